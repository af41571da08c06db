"""`dcf new-plugin`: the beginning of a package of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dcf import __version__
from dcf.cli.console import print_json
from dcf.cli.options import AsJson
from dcf.errors import UsageError
from dcf.files import atomic_write
from dcf.registry import registry
from dcf.scaffold import KINDS, Plan, contents, plan

__all__ = ["add_to", "new_plugin"]


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("new-plugin")(new_plugin)


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the component, such as cosine")],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help=f"what it is: {', '.join(KINDS)}")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="folder to write; dcf-NAME by default")
    ] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="write over files that are there")] = False,
    json: AsJson = False,
) -> None:
    """Write a package with one component that works and is tested, to be changed into yours."""
    made = plan(name, kind)
    _require_new(made, force)
    folder = out or Path(made.distribution)
    files = {folder / path: text for path, text in contents(made, _requirement())}
    _require_free(folder, files, force)
    for path, text in files.items():
        atomic_write(path, text)
    if json:
        print_json({"name": made.name, "kind": str(made.kind), "folder": str(folder), "files": list(map(str, files))})
        return
    where = shlex.quote(str(folder))
    typer.echo(f"{folder}: the {made.kind.noun} '{made.name}' in {len(files)} files")
    typer.echo(f"  uv pip install --editable {where}\n  pytest {where}")


def _requirement() -> str:
    """The versions of core that a plugin written now can rely on."""
    major, minor, *_ = __version__.split(".")
    return f"dcf-core>={major}.{minor},<{major}.{int(minor) + 1}"


def _require_new(made: Plan, force: bool) -> None:
    """Make sure that the name is free: of two components of one name neither can be used."""
    for item in registry().items(made.kind):
        own = force and item.plugin.distribution == made.distribution
        if item.component.name == made.name and not own:
            raise UsageError(
                f"there is a {made.kind.noun} '{made.name}' already, from {item.plugin.distribution}; "
                "of two of one name neither can be used: choose another"
            )


def _require_free(folder: Path, files: dict[Path, str], force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: expected a folder to write, got a file")
    there = [path for path in files if path.exists()]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UsageError(f"'{there[0]}'{more} is there already     (write over it: --force)")
