"""From the cells of a bench to its file: values, statistics, hashes, failures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from dcf.bench.cells import Cell, read_report
from dcf.bench.model import Bench, BenchRow, BenchTiming, CellRecord, CellTiming, Failure
from dcf.bench.rows import RowPlan
from dcf.bench.settings import BenchSettings
from dcf.evaluation.report import Report, Row
from dcf.evaluation.statistics import summarize
from dcf.runconfig import SPEC_ROLES
from dcf.rundir import RunDir

__all__ = ["FAILED", "PROGRESS", "cell_timing", "file_hash", "gather"]

#: File in a cell's directory that says how far it is and how long it took.
PROGRESS: Final = "progress.json"
#: What stands in a cell's log in front of the reason why it failed.
FAILED: Final = "the cell failed: "
#: Settings of a row that stand elsewhere, or decide nothing.
_ELSEWHERE: Final = frozenset(
    {*SPEC_ROLES, "recipe", "seed", "device", "class_chunk", "checkpoint_every", "iterations"}
)


def gather(settings: BenchSettings, root: Path, rows: Sequence[RowPlan], failures: Mapping[str, str]) -> Bench:
    """The bench as it stands.

    Args:
        settings: What was asked for.
        root: Its directory.
        rows: Its rows.
        failures: Reasons by key of the cell.
    """
    cells = {cell.key: cell for row in rows for cell in row.cells}
    done = [cell for cell in cells.values() if cell.state == "done"]
    environments = [_report(cell).env for cell in done]
    return Bench(
        name=root.resolve().name,
        preset=settings.preset,
        settings=settings.model_dump(mode="json", exclude={"jobs"}),
        environment=tuple({json.dumps(e, sort_keys=True): e for e in environments}.values()),
        rows=tuple(_record(row, settings, failures) for row in rows),
        failures=tuple(_failures(rows, failures)),
        timing=BenchTiming(cells={cell.name: cell_timing(cell.path) for cell in done}),
    )


def _record(row: RowPlan, settings: BenchSettings, failures: Mapping[str, str]) -> BenchRow:
    config = row.config
    given = config.model_dump(mode="json", exclude_defaults=True, exclude=set(_ELSEWHERE))
    return BenchRow(
        label=row.label,
        role=row.role,
        recipe=config.recipe,
        specs={role: text for role, text in config.specs().items() if role != "data"},
        sweep=dict(row.sweep),
        config=given,
        data={"spec": row.facts.text, "id": row.facts.id, "checksum": row.facts.checksum},
        budget=row.budget,
        iterations=config.iterations,
        **_protocol(row),
        augment=row.augment,
        network=row.network,
        sets=max(1, len(row.cells)) if row.role == "whole" else settings.sets,
        nets=settings.nets,
        cells=tuple(_cell_record(number, cell, failures) for number, cell in enumerate(row.cells)),
        note=row.note,
        **_measured(row),
    )


def _protocol(row: RowPlan) -> dict[str, str]:
    """What the row was trained by: its protocol, or what its reports say where a set was run as a program."""
    planned = {"protocol": row.rules.id, "protocol_hash": row.rules.config_hash}
    done = next((cell for cell in row.cells if cell.state == "done"), None)
    used = _wanted(_report(done), row.source).protocol if done is not None else row.rules.id
    if used == row.rules.id:
        return planned
    return {"protocol": used, "protocol_hash": hashlib.sha256(used.encode()).hexdigest()[:16]}


def _cell_record(number: int, cell: Cell, failures: Mapping[str, str]) -> CellRecord:
    where = f"cells/{cell.name}"
    if cell.state != "done":
        state = "failed" if cell.key in failures else "missing"
        return CellRecord(set=number, seed=cell.config.seed, directory=where, state=state)
    return CellRecord(
        set=number,
        seed=cell.config.seed,
        directory=where,
        state="done",
        sha256=file_hash(RunDir(cell.path).result),
        tensors=_report(cell).sets[0].sha256,
    )


def _measured(row: RowPlan) -> dict[str, Any]:
    """What the finished cells of a row say."""
    found = [(number, _report(cell)) for number, cell in enumerate(row.cells) if cell.state == "done"]
    if not found:
        return {}
    parts = [(number, part) for number, report in found for part in _parts(_wanted(report, row.source))]
    values = tuple(tuple(value for value, _ in part) for _, part in parts)
    return {
        "values": values,
        "numbers": tuple(number for number, _ in parts),
        "net_seeds": tuple(tuple(seed for _, seed in part) for _, part in parts),
        "precision": " and ".join(sorted({_wanted(report, row.source).precision for _, report in found} - {""})),
        "stat": summarize(values),
        **_storage(row, [report for _, report in found]),
    }


def _wanted(report: Report, source: str) -> Row:
    return report.rows[0] if source == "sets" else next(row for row in report.baselines if row.name == source)


def _parts(row: Row) -> list[list[tuple[float, int]]]:
    """Value and seed of each network, set by set."""
    numbers = sorted({run.set for run in row.runs})
    return [[(run.value, run.seed) for run in row.runs if run.set == number] for number in numbers]


def _storage(row: RowPlan, reports: Sequence[Report]) -> dict[str, Any]:
    measured = [_wanted(report, row.source) for report in reports]
    views = max(one.images for one in measured) / row.facts.classes
    if row.role == "whole":
        floats = row.facts.train * row.facts.image_bytes // 4
        return {"floats": floats, "bytes": floats * 4, "views": views}
    if row.source == "random":
        nbytes = max(one.bytes or 0 for one in measured)
        return {"floats": nbytes // 4, "bytes": nbytes, "views": views}
    stored = [report.sets[0].storage for report in reports]
    return {"floats": max(s["floats"] for s in stored), "bytes": max(s["bytes"] for s in stored), "views": views}


def _failures(rows: Sequence[RowPlan], reasons: Mapping[str, str]) -> list[Failure]:
    labels = {cell.key: (cell.name, row.label) for row in reversed(rows) for cell in row.cells}
    return [
        Failure(cell=labels[key][0], label=labels[key][1], reason=(text.splitlines() or ["unknown"])[0])
        for key, text in reasons.items()
        if key in labels
    ]


# --- files of a cell -----------------------------------------------------------------------------


def _report(cell: Cell) -> Report:
    return read_report(cell.path)


def file_hash(file: Path) -> str:
    """Sha256 of a file."""
    return _cached_hash(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=10_000)
def _cached_hash(file: Path, _changed: int) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def cell_timing(path: Path) -> CellTiming:
    """Seconds of a cell, as its worker noted them."""
    try:
        noted = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
        return CellTiming(condense=float(noted["condense"]), evaluate=float(noted["evaluate"]))
    except (OSError, ValueError, KeyError, TypeError):
        return CellTiming()
