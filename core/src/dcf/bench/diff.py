"""What changed between two benches, row by row. Torch-free."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcf.bench.compare import Difference, difference
from dcf.bench.model import Bench, BenchRow
from dcf.bench.table import Sheet, count_text, gain_text, result_text, row_label

__all__ = ["Pair", "diff", "diff_json", "diff_sheet"]


@dataclass(frozen=True)
class Pair:
    """Rows of two benches that ask the same question.

    Attributes:
        first: Of the first bench; None where it has none.
        second: Of the second.
        change: How much better the second is.
    """

    first: BenchRow | None
    second: BenchRow | None
    change: Difference | None

    @property
    def row(self) -> BenchRow:
        """The one that is there."""
        row = self.first or self.second
        assert row is not None, "a pair has at least one row"  # noqa: S101 - made that way below
        return row


def diff(first: Bench, second: Bench) -> list[Pair]:
    """Rows of equal methods, data, budget and protocol side by side, then those that only one bench has.

    Rows are matched by what they are made of, not by their names; names only tell apart rows of one bench that
    are made of the same, such as with other numbers of iterations.
    """
    names = [_names(first), _names(second)]
    right = dict(zip(names[1], second.rows, strict=True))
    pairs = []
    for name, row in zip(names[0], first.rows, strict=True):
        other = right.pop(name, None)
        pairs.append(Pair(row, other, difference(other, row) if other is not None else None))
    return [*pairs, *(Pair(None, row, None) for row in right.values())]


def _names(bench: Bench) -> list[tuple[str, ...]]:
    made = [_made_of(row) for row in bench.rows]
    counts = Counter(made)
    return [(name, row.label) if counts[name] > 1 else (name,) for name, row in zip(made, bench.rows, strict=True)]


def _made_of(row: BenchRow) -> str:
    role = {"role": row.role, "source": row.label if row.role == "random" and row.label != "random" else ""}
    data = [row.data["id"], row.data["checksum"], row.budget, row.protocol, row.protocol_hash, row.augment, row.network]
    return json.dumps([role, row.specs, row.sweep, data], sort_keys=True)


def diff_sheet(pairs: Sequence[Pair], names: tuple[str, str]) -> Sheet:
    """The comparison as a table; swept values have a column each, datasets one where there are several.

    Args:
        pairs: What `diff` found.
        names: Of the two benches.
    """
    rows = [pair.row for pair in pairs]
    datasets = list(dict.fromkeys(row.data_name for row in rows))
    keys = list(dict.fromkeys(key for row in rows for key in row.sweep))
    heads = ["method", *(["data"] if datasets[1:] else []), "budget", *keys]
    sheet = Sheet(
        [*heads, names[0], "n", names[1], "n ", "difference", ""],
        numeric=frozenset({*keys, names[0], names[1], "n", "n ", "difference"}),
    )
    for pair, row in zip(pairs, rows, strict=True):
        data = [row.data_name] if datasets[1:] else []
        what = [row_label(row, rows), *data, row.budget or "all images", *(row.sweep.get(key, "") for key in keys)]
        both = [f for one in (pair.first, pair.second) for f in _cells(one)]
        sheet.rows.append([*what, *both, gain_text(pair.change), _verdict(pair, names)])
    sheet.notes += [] if datasets[1:] else [f"data: {name}" for name in datasets]
    sheet.notes.append(
        "difference: points, with its 95 % interval; accuracy in percent ± population standard deviation"
    )
    return sheet


def _cells(row: BenchRow | None) -> tuple[str, str]:
    return (result_text(row), count_text(row)) if row is not None else ("", "")


def _verdict(pair: Pair, names: tuple[str, str]) -> str:
    if pair.first is None or pair.second is None:
        return f"only in {names[0] if pair.first is not None else names[1]}"
    verdict = "beyond the spread" if pair.change is not None and pair.change.beyond else ""
    return ", ".join(filter(None, (verdict, _precisions(pair))))


def _precisions(pair: Pair) -> str:
    """That the networks of both rows were trained in different precisions, which alone makes a difference."""
    first, second = (one.precision if one is not None else "" for one in (pair.first, pair.second))
    return f"{first} against {second}" if first and second and first != second else ""


def diff_json(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The comparison for machines; accuracies as fractions."""
    return {"rows": [_pair_json(pair) for pair in pairs]}


def _pair_json(pair: Pair) -> dict[str, Any]:
    row, change = pair.row, pair.change
    return {
        "label": row.label,
        "role": row.role,
        "specs": row.specs,
        "sweep": row.sweep,
        "data": row.data_name,
        "budget": row.budget,
        "protocol": row.protocol,
        "first": pair.first.stat.mean if pair.first is not None and pair.first.stat is not None else None,
        "second": pair.second.stat.mean if pair.second is not None and pair.second.stat is not None else None,
        "difference": change.mean if change is not None else None,
        "interval": list(change.interval) if change is not None and change.interval is not None else None,
        "basis": change.basis if change is not None else "",
        "beyond": change.beyond if change is not None else None,
        "precisions": [one.precision if one is not None else "" for one in (pair.first, pair.second)],
    }
