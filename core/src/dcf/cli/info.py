"""`dcf info` and `dcf preview`. What a file says is shown as data: cleaned of controls and cut to size."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from dcf.cli.console import clean, print_json, stdout
from dcf.cli.options import set_file
from dcf.metadata import read_metadata
from dcf.sizes import size_line

__all__ = ["add_to", "info", "preview"]

_ENTRIES: Final = 12
#: What is shown first, in this order, before whatever else the file says.
_FIRST: Final = ("config", "seed", "shape", "classes", "space", "storage", "results", "selection", "data", "packages")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(info)
    app.command()(preview)


def info(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="condensed sets, or their run directories")],
    json: Annotated[
        bool,
        typer.Option("--json", metavar="", help="write JSON to stdout and nothing else: an object, of several a list"),
    ] = False,
) -> None:
    """Show what condensed sets say about themselves; needs no plugin and reads no images."""
    paths = [set_file(file) for file in files]
    headers = [read_metadata(path) for path in paths]
    if json:
        print_json(headers[0] if len(headers) == 1 else headers)
        return
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        if number:
            typer.echo()
        stdout().print(_table(path, header))


def _table(path: Path, header: Mapping[str, Any]) -> Table:
    """Everything that a file says, a line for each entry."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("file", f"{clean(path, 300)} ({path.stat().st_size:,} bytes, format {header['format']})")
    rest = [key for key in sorted(header) if key not in (*_FIRST, "format")]
    for key in [k for k in _FIRST if k in header] + rest[:_ENTRIES]:
        for name, text in _lines(key, header[key]):
            table.add_row(clean(name, 40), text)
    return table


def _lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if name == "results":
        yield name, _results(value)
    elif name == "config" and isinstance(value, dict):
        yield from ((str(key), _short(entry)) for key, entry in list(value.items())[:_ENTRIES])
    elif name == "classes" and isinstance(value, list):
        yield name, f"{len(value)}: {_short(value)}"
    elif name == "storage" and isinstance(value, dict):
        yield name, clean(size_line(value), 300)
    elif name == "shape" and isinstance(value, list):
        yield name, clean(" x ".join(clean(n, 12) for n in value[:3]))
    else:
        yield name, _short(value)


def _short(value: Any) -> str:
    """A value on one line, with at most a dozen entries."""
    if isinstance(value, dict):
        shown = [f"{clean(k, 40)}={_leaf(v)}" for k, v in list(value.items())[:_ENTRIES]]
    elif isinstance(value, list):
        shown = [_leaf(v) for v in value[:_ENTRIES]]
    else:
        return _leaf(value, 200)
    more = f", and {len(value) - _ENTRIES} more" if len(value) > _ENTRIES else ""
    return clean(", ".join(shown), 600) + more


def _leaf(value: Any, limit: int = 60) -> str:
    return clean(value if isinstance(value, str) else jsonlib.dumps(value), limit)


def _results(value: Any) -> str:
    """The headline of a stored report, whatever else it holds."""
    summary = value.get("summary") if isinstance(value, Mapping) else None
    if not isinstance(summary, Mapping) or not isinstance(summary.get("mean"), float):
        return _short(value)
    spread = summary.get("pooled")
    several = (summary.get("n_sets"), summary.get("n_nets")) != (1, 1)
    beside = f" ± {100 * spread:.1f}" if several and isinstance(spread, float) else ""
    counts = f"{clean(summary.get('n_sets'), 8)} x {clean(summary.get('n_nets'), 8)}"
    metric = clean(summary.get("metric", "accuracy"), 20)
    env = value.get("env")
    precision = env.get("precision", "fp32") if isinstance(env, Mapping) else "fp32"
    trained = "" if precision == "fp32" else f", trained with {clean(precision, 40)}"
    protocol = clean(value.get("protocol"), 80)
    return f"{metric} {100 * summary['mean']:.1f}{beside} % (n = {counts}, protocol {protocol}{trained})"


def preview(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a condensed set, or its run directory")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PNG", help="picture to write; beside FILE by default")
    ] = None,
) -> None:
    """Write a picture of the images of a condensed set, one class a row."""
    path = set_file(file)
    read_metadata(path)  # is it a set at all? Before torch.
    from dcf.preview import save_preview
    from dcf.synthetic import load

    target = out or path.with_suffix(".png")
    save_preview(load(path), target)
    typer.echo(str(target))
