"""`dcf check`: the conformance checks of a component."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.table import Table

from dcf import build
from dcf.cli.console import clean, print_json, stdout
from dcf.cli.options import AsJson
from dcf.cli.plugins import KindOption, no_such, one_kind
from dcf.components import Kind
from dcf.errors import UsageError
from dcf.registry import registry
from dcf.spec import parse

__all__ = ["add_to", "check"]

#: Kinds that are files rather than code.
_NOT_CODE: Final = (Kind.PROTOCOL, Kind.RECIPE)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(check)


def check(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="component to check, such as pixels")],
    kind: KindOption = None,
    json: AsJson = False,
) -> None:
    """Check that a component keeps the promises of its interface."""
    chosen = one_kind(kind) or _only_kind(spec)
    text = str(build.check(chosen, spec, ""))
    from dcf.testing import run_checks

    results = run_checks(str(chosen), text)
    failed = sum(r.status == "failed" for r in results)
    if json:
        rows = [{"name": r.name, "status": r.status, "detail": r.detail} for r in results]
        print_json({"kind": str(chosen), "spec": text, "failed": failed, "checks": rows})
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for r in results:
            table.add_row(clean(r.status), clean(r.name), clean(r.detail, 500))
        stdout().print(table)
        typer.echo(f"{chosen} {text}: {len(results)} checks, {failed} failed")
    if failed:
        raise typer.Exit(1)


def _only_kind(text: str) -> Kind:
    """The kind of which a component of that name is installed."""
    name = parse(text).specs[0].name
    kinds = [k for k in Kind if k not in _NOT_CODE and name in registry().names(k)]
    if len(kinds) > 1:
        raise UsageError(f"'{name}' is of several kinds; say which: {' or '.join(f'--kind {k}' for k in kinds)}")
    if not kinds:
        names = sorted({i.component.name for i in registry().items() if i.component.kind not in _NOT_CODE})
        raise no_such("component", name, names)
    return kinds[0]
