"""Losses and metrics of a run as curves, from a file whose lines may be anything. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dcf.errors import RunError
from dcf.texts import clean

__all__ = ["Curve", "Curves", "read_metrics"]

#: Characters of a line, and lines, that are read at most.
_LINE: Final = 2**16
_LINES: Final = 2_000_000
#: Curves at most, and points of one that are drawn.
_CURVES: Final = 12
_POINTS: Final = 400
#: Values beyond which nothing is drawn.
_LARGEST: Final = 1e100


@dataclass(frozen=True)
class Curve:
    """One metric over the iterations.

    Attributes:
        points: `(iteration, value)` in order, thinned out such that every extreme is still there; a value is None
            where it was not finite.
        first: First finite value, with its iteration.
        last: Last one.
        least: Smallest one.
        count: Values that were read.
        broken: How many of them were not finite.
    """

    points: tuple[tuple[int, float | None], ...]
    first: tuple[int, float]
    last: tuple[int, float]
    least: tuple[int, float]
    count: int
    broken: int


@dataclass(frozen=True)
class Curves:
    """All curves of a run by the name of the metric, the loss first.

    Attributes:
        by_name: The curves.
        left_out: Names beyond the dozen that are read.
    """

    by_name: Mapping[str, Curve] = field(default_factory=dict)
    left_out: int = 0


def read_metrics(path: Path) -> Curves:
    """Read `metrics.jsonl`; lines that are no metrics are passed over.

    Raises:
        RunError: When the file cannot be read.
    """
    values: dict[str, list[tuple[int, float | None]]] = {}
    left_out: set[str] = set()
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for row in _rows(file):
                for name, value in _metrics(row):
                    if name not in values and len(values) >= _CURVES:
                        left_out.add(name)
                    else:
                        values.setdefault(name, []).append((row["it"], value))
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror}") from None
    made = {name: curve for name, points in values.items() if (curve := _curve(points)) is not None}
    return Curves(made, len(left_out))


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    for _ in range(_LINES):
        line = file.readline(_LINE)
        if not line:
            return
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # no JSON: a line that a kill cut off, or a piece of an endless one
            continue
        if isinstance(row, dict) and type(row.get("it")) is int and 0 <= row["it"] < 2**53:
            yield row


def _metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for key, value in row.items():
        if key == "it" or isinstance(value, bool) or not (value is None or isinstance(value, (int, float))):
            continue
        # NaN compares as false, and an integer of any length can be compared.
        yield clean(key, 60), float(value) if value is not None and -_LARGEST < value < _LARGEST else None


def _curve(points: list[tuple[int, float | None]]) -> Curve | None:
    known = [(it, value) for it, value in points if value is not None]
    if not known:
        return None
    least = min(known, key=lambda point: point[1])
    return Curve(_thinned(points), known[0], known[-1], least, len(points), len(points) - len(known))


def _thinned(points: list[tuple[int, float | None]]) -> tuple[tuple[int, float | None], ...]:
    """At most about `_POINTS` of them: of each stretch the smallest and the largest, and a gap where there was one."""
    if len(points) <= _POINTS:
        return tuple(points)
    size = -(-2 * len(points) // _POINTS)
    return tuple(p for start in range(0, len(points), size) for p in _extremes(points[start : start + size]))


def _extremes(stretch: list[tuple[int, float | None]]) -> Iterable[tuple[int, float | None]]:
    known = [(it, value) for it, value in stretch if value is not None]
    if not known:
        return stretch[:1]
    kept = {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])}
    gap = next((point for point in stretch if point[1] is None), None)
    return sorted({*kept, *([gap] if gap else [])}, key=lambda point: point[0])
