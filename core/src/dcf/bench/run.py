"""A bench from its settings to its file: plan, run what is not done, gather."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dcf.bench.cells import Cell
from dcf.bench.facts import DataFacts, read_facts
from dcf.bench.gather import gather
from dcf.bench.model import Bench
from dcf.bench.plan import Point, changed_rules, plan
from dcf.bench.pool import Pool, Watcher
from dcf.bench.rows import RowPlan, plan_rows
from dcf.bench.settings import BenchSettings
from dcf.errors import RunError, UsageError
from dcf.files import atomic_write
from dcf.session import interruptible

__all__ = ["BenchOutcome", "plan_bench", "run_bench"]

log = logging.getLogger(__name__)

FILE: Final = "bench.json"


@dataclass(frozen=True)
class BenchOutcome:
    """What a bench came to.

    Attributes:
        bench: The bench as it stands.
        file: Where it was written.
        failures: Messages by name of the cell's directory.
        interrupted: Whether it was stopped before its end.
    """

    bench: Bench
    file: Path
    failures: Mapping[str, str]
    interrupted: bool


def plan_bench(
    settings: BenchSettings, root: Path, points: Sequence[Point] | None = None, watcher: Watcher | None = None
) -> list[RowPlan]:
    """The rows of a bench and their cells; loads the datasets, runs nothing.

    Args:
        settings: Of the bench.
        root: Its directory.
        points: What `plan` made of the settings, where that is known already.
        watcher: Told of progress.
    """
    points = plan(settings) if points is None else points
    watcher = watcher or Watcher()
    facts: dict[str, DataFacts] = {}
    for text in settings.data:
        watcher.stage(f"loading {text}")
        rules = [changed_rules(point.request.settings) for point in points if point.data == text]
        facts[text] = read_facts(text, settings.device, {r.id: r for r in rules}, settings.nets)
    return plan_rows(settings, root, points, facts)


def run_bench(
    settings: BenchSettings,
    root: Path,
    *,
    points: Sequence[Point] | None = None,
    only: str = "",
    alone: bool = False,
    watcher: Watcher | None = None,
) -> BenchOutcome:
    """Run every cell of a bench that is not done, and write its file after each.

    Args:
        settings: Of the bench.
        root: Its directory; what is done in it is not run again.
        points: What `plan` made of the settings, where that is known already.
        only: Run only cells whose row or directory contains this text.
        alone: Run the methods without the rows that stand beside them.
        watcher: Told of progress.

    Raises:
        DcfError: When nothing could be started; a cell that fails is only recorded.
    """
    watcher = watcher or Watcher()
    rows = plan_bench(settings, root, points, watcher)
    with _locked(root):
        cells = _in_order(rows, only, alone)
        todo = [cell for cell in cells if cell.state != "done"]
        watcher.begins(len(cells), len(cells) - len(todo))
        failures: dict[str, str] = {}
        gather(settings, root, rows, failures).write(root / FILE)

        def ended(cell: Cell, error: str | None) -> None:
            _record_failure(root, cell, error)
            if error is not None:
                failures[cell.key] = error
            gather(settings, root, rows, failures).write(root / FILE)

        with interruptible() as interrupt:
            finished = Pool(settings.jobs, watcher).run(todo, ended, lambda: interrupt.asked)
        bench = gather(settings, root, rows, failures)
        names = {cell.key: cell.name for cell in cells}
        return BenchOutcome(bench, root / FILE, {names[k]: v for k, v in failures.items()}, not finished)


def _in_order(rows: Sequence[RowPlan], only: str, alone: bool = False) -> list[Cell]:
    """The cells to run, each once: all first sets before all second ones, random before the methods."""
    ranked = []
    methods = [row for row in rows if row.role == "method"] if alone else []
    for row in methods or rows:
        text = " ".join((row.label, row.facts.text, str(row.budget), row.role))
        for number, cell in enumerate(row.cells):
            if only in text or only in cell.name:
                ranked.append((number, ("random", "method", "whole").index(row.role), cell))
    ranked.sort(key=lambda entry: entry[:2])
    if only and not ranked:
        raise UsageError(f"--only {only}: no row or cell of this bench contains it")
    return list({cell.key: cell for _, _, cell in ranked}.values())


def _record_failure(root: Path, cell: Cell, error: str | None) -> None:
    file = root / "failures" / f"{cell.name}.txt"
    if error is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, f"{error}\n")
    else:
        file.unlink(missing_ok=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep a second bench out of the directory; the lock goes with the process, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(f"cannot write in '{root}': {error.strerror}") from None
    try:
        _take(handle, root)
        yield
    finally:
        os.close(handle)


def _take(handle: int, root: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RunError(f"another bench is running in '{root}'     (another place: --out DIR)") from None
