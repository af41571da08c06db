"""`dcf data check`: what is wrong with a dataset, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dcf import build
from dcf.cli.console import clean, print_json, stdout
from dcf.cli.options import AsJson
from dcf.components import Kind
from dcf.registry import registry
from dcf.spec import Option, Spec

if TYPE_CHECKING:
    from dcf.data.check import DataCheck

__all__ = ["add_to", "check"]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(no_args_is_help=True, help="Look at datasets.")
    group.callback()(_data)
    group.command("check")(check)
    app.add_typer(group, name="data")


def _data() -> None:
    """Look at datasets."""


def check(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="dataset, or a path of a folder of images")],
    json: AsJson = False,
) -> None:
    """Report everything that is wrong with a dataset, and how to mend it."""
    text = _as_spec(spec)
    build.check(Kind.DATASET, text, "")
    from dcf.data.check import check as examine

    result = examine(build.create(Kind.DATASET, text, ""))
    if json:
        print_json(result.to_json())
    else:
        _show(result)
    if not result.ok:
        raise typer.Exit(1)


def _as_spec(text: str) -> str:
    """A path that is a directory, as a spec of it; the name of a dataset stays one."""
    if Path(text).is_dir() and text not in registry().names(Kind.DATASET):
        return str(Spec("folder", (Option("path", text),)))
    return text


def _show(result: DataCheck) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    counts = result.counts.get("train", {})
    table.add_row("data", clean(result.id, 200))
    table.add_row("train", f"{result.train:,} images in {len(counts)} classes")
    table.add_row("test", f"{result.test:,} images")
    table.add_row("sizes", clean(", ".join(f"{size} ({n:,})" for size, n in list(result.sizes.items())[:10]), 400))
    if result.modes:
        table.add_row("modes", clean(", ".join(f"{mode} ({n:,})" for mode, n in result.modes.items()), 400))
    if result.values:
        table.add_row("values", ", ".join(f"{name} {value:.4g}" for name, value in result.values.items()))
    table.add_row("imbalance", f"{result.imbalance:.3g}")
    stdout().print(table)
    for problem in result.problems:
        typer.echo(f"{problem.severity}: {clean(problem.text, 600)}\n  {clean(problem.mend, 300)}")
    typer.echo("ready for condense" if result.ok else "not ready for condense")
