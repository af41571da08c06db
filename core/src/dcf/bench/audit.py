"""Is a bench still what its files say? Hashes of all cells, values of all reports, and some evaluated anew."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from dcf.bench.model import Bench, BenchRow, CellRecord
from dcf.errors import DcfError, FormatError
from dcf.evaluation.report import Report, Row
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir

__all__ = ["TOLERANCE", "Finding", "check_bench"]

#: Points by which the mean of a row may differ where another machine, device or version evaluates it.
TOLERANCE: Final = 0.02


class Finding(NamedTuple):
    """What was looked at, and whether it is as it should be.

    Attributes:
        cell: Directory of the cell.
        what: "file", "values" or "evaluation".
        good: Whether it is as recorded.
        detail: What was found.
    """

    cell: str
    what: str
    good: bool
    detail: str


def check_bench(
    bench: Bench, root: Path, rerun: int = 1, watch: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Look at every cell that has values, and evaluate some of them anew.

    Args:
        bench: The bench.
        root: Its directory.
        rerun: How many cells are evaluated anew, the quickest first.
        watch: Told what is being evaluated.

    Raises:
        FormatError: When no file of a bench is there, as when its `bench.json` was taken out of its directory.
    """
    done = [record.directory for _, record in _cells(bench)]
    if done and not any((root / directory).exists() for directory in done):
        raise FormatError(
            f"none of the {len(done)} cells of this bench is in '{root}'\n"
            f"  expected {root / done[0]} and the others; check looks at the directory that the bench was run in"
        )
    found: list[Finding] = []
    for row, record in _cells(bench):
        found.extend(_look(row, record, root))
    bad = {finding.cell for finding in found if not finding.good}
    usable = {record.directory for _, record in _cells(bench)} - bad
    for directory in sorted(usable, key=lambda name: _cost(bench, name))[: max(0, rerun)]:
        watch(directory)
        found.append(_again(root / directory, directory))
    return found


def _cells(bench: Bench) -> Iterator[tuple[BenchRow, CellRecord]]:
    return ((row, cell) for row in bench.rows for cell in row.cells if cell.state == "done")


def _cost(bench: Bench, directory: str) -> tuple[float, str]:
    timing = bench.timing.cells.get(Path(directory).name)
    return (timing.evaluate if timing is not None else 0.0), directory


def _look(row: BenchRow, record: CellRecord, root: Path) -> Iterator[Finding]:
    """Hash of the file, and the values of the report, of one set of a row."""
    run = RunDir(root / record.directory)
    try:
        digest = hashlib.sha256(run.result.read_bytes()).hexdigest()
        report = Report.read(run.report)
    except (OSError, DcfError) as error:
        yield Finding(record.directory, "file", False, str(getattr(error, "strerror", None) or error))
        return
    same = digest == record.sha256
    yield Finding(
        record.directory, "file", same, "" if same else f"sha256 {digest[:16]}, recorded {record.sha256[:16]}"
    )
    recorded = [v for n, part in zip(row.numbers, row.values, strict=True) if n == record.set for v in part]
    rows = [report.rows[0], *report.baselines]
    good = any([run.value for run in one.runs] == recorded for one in rows)
    yield Finding(
        record.directory, "values", good, "" if good else "the values of its report are not those of the bench"
    )


# --- evaluating anew -----------------------------------------------------------------------------


def _again(path: Path, directory: str) -> Finding:
    run = RunDir(path)
    before = Report.read(run.report)
    try:
        after = _evaluated(run.config(), run.result, before.env)
    except DcfError as error:
        return Finding(directory, "evaluation", False, str(error))
    if after.env == before.env:
        same = [r.runs for r in _rows(after)] == [r.runs for r in _rows(before)]
        return Finding(
            directory, "evaluation", same, "the same values" if same else f"other values: {_means(after, before)}"
        )
    close = all(_close(a, b) for a, b in zip(_rows(after), _rows(before), strict=True))
    changed = ", ".join(sorted(key for key in {**before.env, **after.env} if before.env.get(key) != after.env.get(key)))
    return Finding(directory, "evaluation", close, f"{_means(after, before)} (other {changed}: {_allowed()})")


def _allowed() -> str:
    return f"{100 * TOLERANCE:.0f} points or three standard deviations may differ"


def _rows(report: Report) -> list[Row]:
    return [*report.rows, *report.baselines]


def _close(after: Row, before: Row) -> bool:
    return abs(after.stat.mean - before.stat.mean) <= max(TOLERANCE, 3 * before.stat.pooled)


def _means(after: Report, before: Report) -> str:
    return f"{100 * after.summary.mean:.2f}, recorded {100 * before.summary.mean:.2f}"


def _evaluated(config: RunConfig, file: Path, environment: Mapping[str, str]) -> Report:
    """The evaluation of a set by another process, with as many threads as the recorded one had.

    Raises:
        DcfError: When it fails.
    """
    command: list[Any] = [
        sys.executable, "-m", "dcf", "-q", "evaluate", file, "--data", config.data, "--seed", config.seed,
        "--precision", config.precision, "--device", config.device, "--json",
        "--baselines", ",".join(config.baselines) or "none",
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": environment["threads"]} if "threads" in environment else {}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **threads}, check=False
    )
    if done.returncode != 0:
        raise DcfError(done.stderr.strip() or f"the evaluation ended with status {done.returncode}")
    return Report.from_json(json.loads(done.stdout))
