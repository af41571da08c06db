"""`dcf report`: one page about runs and condensed sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from dcf.errors import RunError, UsageError
from dcf.metadata import read_metadata
from dcf.rundir import RunDir

__all__ = ["add_to", "report"]

_SUFFIXES: Final = (".html", ".htm")


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(report)


def report(
    sources: Annotated[
        list[Path], typer.Argument(metavar="RUN|FILE...", help="run directories, finished or not, or condensed sets")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="HTML",
            help="page to write; in RUN or beside FILE by default, of several report.html",
        ),
    ] = None,
    views: Annotated[
        str | None, typer.Option("--views", metavar="INT", help="images a class at most; about ten by default")
    ] = None,
) -> None:
    """Write one page with results, images, curves, settings and sizes, to be opened in a browser."""
    shown = _count(views)
    if out is not None and out.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--out {out}: expected a file ending in .html")
    for path in sources:  # are they runs and sets at all? Before torch.
        _require_readable(path)
    target = out or _beside(sources)
    from dcf.report import write_report

    write_report(sources, target, shown)
    typer.echo(str(target))


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) <= 9):
        raise UsageError(f"--views expects int >= 1, got '{text}'")
    return int(text)


def _require_readable(path: Path) -> None:
    run = RunDir(path)
    if not path.is_dir() or run.result.is_file():
        read_metadata(run.result if path.is_dir() else path)
    elif run.config_file.is_file():
        run.config()
    else:
        raise RunError(f"'{path}' holds neither a run nor a condensed set")


def _beside(sources: list[Path]) -> Path:
    if len(sources) > 1:
        return Path("report.html")
    (source,) = sources
    return RunDir(source).page if source.is_dir() else source.with_suffix(".html")
