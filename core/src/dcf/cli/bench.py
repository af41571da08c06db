"""`dcf bench`: methods beside each other, and what becomes of the numbers."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.table import Table
from typer.core import TyperGroup

from dcf.bench.formats import csv_text, latex_text, markdown_text
from dcf.bench.model import read_bench
from dcf.bench.table import Sheet, long_sheet, pivot_sheet, shown_rows
from dcf.cli import options as common
from dcf.cli.console import clean, print_json, stdout
from dcf.errors import PluginError, UsageError

if TYPE_CHECKING:
    from dcf.bench.audit import Finding
    from dcf.bench.plan import Point
    from dcf.bench.run import BenchOutcome
    from dcf.bench.settings import BenchSettings
    from dcf.bench.table import Shown

__all__ = ["add_to"]

log = logging.getLogger(__name__)

_WHAT: Final = "What is compared"
_JUDGE: Final = "How it is judged"
_HOW: Final = "How it runs"


Mixed = Annotated[
    bool,
    typer.Option("--mixed", metavar="", help="show rows of different protocols together, with a column that says so"),
]


def _opt(flag: str, metavar: str, text: str, panel: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel)


class _RunByDefault(TyperGroup):
    """A group whose command is `run` where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front of what names no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            if not args[0].startswith("-"):
                _require_file(Path(args[0]))
            args = ["run", *args]
        return super().parse_args(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(cls=_RunByDefault, no_args_is_help=True)
    group.callback()(_bench)
    for command in (run, table, plot, diff, check):
        group.command()(command)
    app.add_typer(group, name="bench")


def _bench() -> None:
    """Run methods beside each other, and look at the results; without a command: run."""


def run(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.toml]", help="settings and methods")] = None,
    methods: Annotated[
        list[str] | None, _opt("--methods", "A,B+SPEC,...", "recipes, matchers or selectors; '+' adds a spec", _WHAT)
    ] = None,
    data: Annotated[list[str] | None, _opt("--data", "SPEC", "dataset; repeatable", _WHAT)] = None,
    budget: Annotated[
        list[str] | None, _opt("--budget", "bytes=N", "budget of a set: bytes=N or floats=N; repeatable", _WHAT)
    ] = None,
    ipc: Annotated[list[str] | None, _opt("--ipc", "INT", "budget in images a class; repeatable", _WHAT)] = None,
    sweep: Annotated[
        list[str] | None, _opt("--sweep", "KEY=V1,V2,...", "run with each of these values; repeatable", _WHAT)
    ] = None,
    change: Annotated[
        list[str] | None, _opt("--set", "KEY=VALUE", "one option for all methods; repeatable", _WHAT)
    ] = None,
    sets: Annotated[str | None, _opt("--sets", "INT", "sets condensed for each row", _JUDGE)] = None,
    nets: common.Networks = None,
    protocol: Annotated[
        str | None,
        _opt("--protocol", "NAME", "evaluation protocol of all methods, or 'recipe': each recipe's own", _JUDGE),
    ] = None,
    preset: Annotated[str | None, _opt("--preset", "NAME", "std, or quick: small and not comparable", _JUDGE)] = None,
    whole: Annotated[bool, _opt("--whole", "", "run the whole training set, however long it takes", _JUDGE)] = False,
    seed: common.Seed = None,
    jobs: Annotated[str | None, _opt("--jobs", "INT", "processes at a time", _HOW)] = None,
    device: common.Device = None,
    precision: common.Precision = None,
    only: Annotated[str, _opt("--only", "TEXT", "run only cells whose row or directory contains this", _HOW)] = "",
    out: Annotated[
        Path | None, _opt("--out", "DIR", "directory of the bench; runs/<name of the file> by default", "Files")
    ] = None,
    dry_run: Annotated[bool, _opt("--dry-run", "", "show the rows and cells, run nothing", "Files")] = False,
    json: common.AsJson = False,
) -> None:
    """Run every cell that is not done yet: methods x budgets x datasets x sets."""
    from dcf.bench.plan import plan
    from dcf.bench.settings import read_settings

    _require_file(file)
    common.require_device_name(device)
    given = {
        "methods": tuple(methods) if methods else None, "data": tuple(data) if data else None,
        "budget": tuple(budget) if budget else None, "ipc": tuple(ipc) if ipc else None, "sweep": _sweeps(sweep or ()),
        "override": common.set_options(change or ()) or None, "sets": sets, "nets": nets, "protocol": protocol,
        "preset": preset, "whole": whole or None, "seed": seed, "jobs": jobs, "device": device, "precision": precision,
    }  # fmt: skip
    settings = read_settings(file, given)
    points = plan(settings)
    root = out or Path("runs") / (file.stem if file is not None else "bench")
    if dry_run:
        _show_plan(settings, root, points, json)
    else:
        _run(settings, root, points, only, json)


def _require_file(file: Path | None) -> None:
    """Take a misspelt command for what it is, rather than for the name of a file."""
    if file is None or file.exists() or file.suffix:
        return
    commands = ("run", "table", "plot", "diff", "check")
    close = difflib.get_close_matches(str(file), commands, n=1)
    hint = f"\n  did you mean 'dcf bench {close[0]}'?" if close else ""
    raise UsageError(f"'{file}' is neither a file nor a command{hint}\n  commands: {', '.join(commands)}")


def _sweeps(texts: Sequence[str]) -> Mapping[str, Any] | None:
    from dcf.bench.settings import sweep_option

    return dict(map(sweep_option, texts)) or None


def _show_plan(settings: BenchSettings, root: Path, points: Sequence[Point], as_json: bool) -> None:
    from dcf.bench.run import plan_bench
    from dcf.cli.bench_progress import BenchProgress

    with BenchProgress() as progress:
        rows = plan_bench(settings, root, points, progress)
    if as_json:
        cells = [{"label": r.label, "cells": [{"name": c.name, "state": c.state} for c in r.cells]} for r in rows]
        print_json({"out": str(root), "rows": cells})
        return
    for row in rows:
        states = ", ".join(f"{cell.name} ({cell.state})" for cell in row.cells)
        typer.echo(f"{row.label}, {row.facts.id}, {row.budget or 'all images'}: {states or row.note}")


def _run(settings: BenchSettings, root: Path, points: Sequence[Point], only: str, as_json: bool) -> None:
    from dcf.bench.run import run_bench
    from dcf.cli.bench_progress import BenchProgress

    with BenchProgress() as progress:
        outcome = run_bench(settings, root, points=points, only=only, watcher=progress)
    if as_json:
        print_json(outcome.bench.to_json())
    else:
        _show(long_sheet(shown_rows([outcome.bench], mixed=True)))
        for path in [*_sweep_plots(outcome, root), outcome.file]:
            typer.echo(str(path))
    _end(outcome)


def _sweep_plots(outcome: BenchOutcome, root: Path) -> list[Path]:
    """Draw a sweep over one key, where matplotlib is there."""
    from dcf.bench.plot import axis_of, save_plot
    from dcf.figures import require_matplotlib

    shown = [one for one in shown_rows([outcome.bench], mixed=True) if one.row.stat is not None]
    keys = {key for one in shown for key in one.row.sweep}
    if len(keys) != 1:
        return []
    try:
        require_matplotlib()
    except PluginError as error:
        log.info("no picture of the sweep: %s", error)
        return []
    written = [root / "sweep.svg", root / "sweep.png"]
    for path in written:
        save_plot(shown, path, axis_of(shown, None))
    return written


def _end(outcome: BenchOutcome) -> None:
    for name, reason in outcome.failures.items():
        log.error("%s failed: %s", name, "\n".join(clean(line, 2000) for line in reason.splitlines()))
    if outcome.interrupted:
        log.warning("stopped; the same command goes on")
        raise typer.Exit(130)
    if outcome.failures:
        raise typer.Exit(1)


# --- what becomes of the numbers -----------------------------------------------------------------


def table(
    benches: Annotated[list[Path], typer.Argument(metavar="BENCH...", help="bench.json files, or their directories")],
    form: Annotated[
        Literal["rich", "markdown", "csv", "latex"], typer.Option("--format", help="what the table is written as")
    ] = "rich",
    mixed: Mixed = False,
    pivot: Annotated[
        bool, typer.Option("--pivot", metavar="", help="methods down, datasets and budgets across")
    ] = False,
) -> None:
    """Show benches as a table; rows of different protocols only with a column that says so."""
    if pivot and form == "csv":
        raise UsageError("--pivot: the CSV has one line a row, with every figure; pivot it where you read it")
    shown = _shown(benches, mixed)
    if form == "csv":
        typer.echo(csv_text(shown), nl=False)
        return
    sheet = pivot_sheet(shown) if pivot else long_sheet(shown)
    if form == "rich":
        _show(sheet)
    else:
        typer.echo(markdown_text(sheet) if form == "markdown" else latex_text(sheet), nl=False)


def plot(
    benches: Annotated[list[Path], typer.Argument(metavar="BENCH...", help="bench.json files, or their directories")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="a file ending in .png or .svg")],
    x: Annotated[
        str | None, typer.Option("--x", metavar="NAME", help="bytes, floats, or a swept key, the default of a sweep")
    ] = None,
    mixed: Mixed = False,
) -> None:
    """Draw accuracy against stored bytes, or against what was swept."""
    from dcf.bench.plot import axis_of, save_plot
    from dcf.figures import require_form

    require_form(out)
    shown = _shown(benches, mixed)
    if all(one.row.stat is None for one in shown):
        raise UsageError("there is nothing to draw: no row has a value yet")
    save_plot(shown, out, axis_of(shown, x))
    typer.echo(str(out))


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="bench.json, or its directory")],
    second: Annotated[Path, typer.Argument(metavar="B", help="another one")],
    json: common.AsJson = False,
) -> None:
    """Compare two benches row by row; says which differences are beyond the spread."""
    from dcf.bench.diff import diff as compare
    from dcf.bench.diff import diff_json, diff_sheet

    a, b = read_bench(first), read_bench(second)
    pairs = compare(a, b)
    if json:
        print_json(diff_json(pairs))
        return
    names = (a.name or "A", b.name or "B")
    _show(diff_sheet(pairs, names if names[0] != names[1] else (str(first), str(second))))


def check(
    bench: Annotated[Path, typer.Argument(metavar="BENCH", help="bench.json, or its directory")],
    rerun: Annotated[
        int, typer.Option("--rerun", metavar="N", min=0, max=100_000, help="cells to evaluate anew, the quickest first")
    ] = 1,
    json: common.AsJson = False,
) -> None:
    """Check that every file is the recorded one, and evaluate some anew."""
    from dcf.bench.audit import check_bench

    found = check_bench(
        read_bench(bench),
        bench if bench.is_dir() else bench.parent,
        rerun,
        lambda name: log.info("evaluating %s again", name),
    )
    bad = [finding for finding in found if not finding.good]
    if json:
        print_json({"good": not bad, "findings": [finding._asdict() for finding in found]})
    else:
        _show_findings(found)
    if bad:
        raise typer.Exit(1)


def _show_findings(found: Sequence[Finding]) -> None:
    sheet = Sheet(["cell", "looked at", "", "found"])
    worth = [f for f in found if not f.good or f.what == "evaluation"]
    sheet.rows = [[f.cell, f.what, "good" if f.good else "WRONG", clean(f.detail, 300)] for f in worth]
    good = sum(f.good for f in found if f.what == "file")
    total = sum(f.what == "file" for f in found)
    sheet.notes.append(f"{good} of {total} files are the recorded ones")
    _show(sheet)


def _shown(benches: Sequence[Path], mixed: bool) -> list[Shown]:
    return shown_rows([read_bench(path) for path in benches], mixed)


def _show(sheet: Sheet) -> None:
    """A table on stdout, with its notes below."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in sheet.columns:
        shown.add_column(clean(name), justify="right" if name in sheet.numeric else "left", no_wrap=name == "accuracy")
    for row in sheet.rows:
        shown.add_row(*(clean(cell, 300) for cell in row))
    if sheet.rows:
        stdout().print(shown)
    for note in sheet.notes:
        typer.echo(clean(note, 500))
