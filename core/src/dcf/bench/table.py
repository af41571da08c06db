"""Tables of benches: what stands in them, apart from how it is written. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from dcf.bench.compare import Difference, difference, random_of
from dcf.bench.model import Bench, BenchRow
from dcf.errors import UsageError

__all__ = [
    "NOT_COMPARABLE",
    "Sheet",
    "Shown",
    "count_text",
    "gain_text",
    "long_sheet",
    "pivot_sheet",
    "result_text",
    "row_label",
    "shown_rows",
]

NOT_COMPARABLE: Final = "not comparable"


@dataclass(frozen=True)
class Shown:
    """A row as tables show it.

    Attributes:
        row: The row.
        bench: The bench it comes from.
        label: Its name, made different from others' where that is needed.
        random: How much better it is than random images; None for those, and where there is no value.
    """

    row: BenchRow
    bench: Bench
    label: str
    random: Difference | None


@dataclass
class Sheet:
    """A table without its form.

    Attributes:
        columns: Headers; those of `numeric` are set to the right.
        rows: Cells as text.
        numeric: Headers of columns of numbers.
        notes: Lines that belong below it.
    """

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    numeric: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


def shown_rows(benches: Sequence[Bench], mixed: bool = False) -> list[Shown]:
    """The rows of benches that may stand in one table.

    Raises:
        UsageError: When they were obtained under different protocols and `mixed` is not set.
    """
    pairs = [(bench, row) for bench in benches for row in bench.rows]
    protocols = Counter((row.protocol, row.protocol_hash) for _, row in pairs)
    if len(protocols) > 1 and not mixed:
        found = "\n".join(f"  {name} ({digest}): {n} rows" for (name, digest), n in protocols.items())
        raise UsageError(
            f"the rows were obtained under {len(protocols)} protocols, and are not comparable:\n{found}\n"
            "  show them all the same, with a column that says so: --mixed"
        )
    found_rows = [row for _, row in pairs]
    return [Shown(row, bench, row_label(row, found_rows), _gain(row, bench)) for bench, row in pairs]


def _gain(row: BenchRow, bench: Bench) -> Difference | None:
    base = random_of(row, bench.rows) if row.role == "method" else None
    return difference(row, base) if base is not None else None


def row_label(row: BenchRow, rows: Sequence[BenchRow]) -> str:
    """The label as tables show it: with augmentation and network where another row of the same name has others."""
    rivals = [r for r in rows if r.label == row.label]
    parts = [
        text
        for text, differs in (
            ("no augmentation" if row.augment == "none" else row.augment, len({r.augment for r in rivals}) > 1),
            (row.network, len({r.network for r in rivals}) > 1),
        )
        if differs
    ]
    return f"{row.label} ({', '.join(parts)})" if parts and row.role != "method" else row.label


# --- one row a line ------------------------------------------------------------------------------

_Column = tuple[str, bool, Callable[[Shown], str]]


def long_sheet(shown: Sequence[Shown]) -> Sheet:
    """One line a row: result, difference to random, size, and whatever differs between the rows."""
    columns = [column for column in _always() if column[0] != "data" or _datasets(shown)[1:]]
    columns += [*_sweeps(shown), *_where_different(shown)]
    return Sheet(
        [name for name, _, _ in columns],
        [[text(one) for _, _, text in columns] for one in shown],
        frozenset(name for name, numeric, _ in columns if numeric),
        _notes(shown),
    )


def _always() -> list[_Column]:
    return [
        ("method", False, lambda s: s.label),
        ("data", False, lambda s: s.row.data_name),
        ("budget", False, lambda s: s.row.budget or "all images"),
        ("accuracy", True, lambda s: result_text(s.row)),
        ("n", True, lambda s: count_text(s.row)),
        ("vs random", True, lambda s: gain_text(s.random)),
        ("stored floats", True, lambda s: _number(s.row.floats)),
        ("stored bytes", True, lambda s: _number(s.row.bytes)),
        ("images a class", True, lambda s: "-" if s.row.views is None else f"{s.row.views:.4g}"),
    ]


def _datasets(shown: Sequence[Shown]) -> list[str]:
    return list(dict.fromkeys(s.row.data_name for s in shown))


def _sweeps(shown: Sequence[Shown]) -> list[_Column]:
    keys = dict.fromkeys(key for one in shown for key in one.row.sweep)
    return [(key, True, lambda s, key=key: s.row.sweep.get(key, "")) for key in keys]  # type: ignore[misc]


def _where_different(shown: Sequence[Shown]) -> list[_Column]:
    """Columns that only some tables need: they say what differs between rows."""
    several = len({_rules(s) for s in shown}) > 1
    same_name = len({s.row.protocol for s in shown}) < len({_rules(s) for s in shown})
    columns: list[tuple[bool, _Column]] = [
        (len({s.row.augment for s in shown}) > 1, ("augment", False, lambda s: s.row.augment)),
        (len({s.row.network for s in shown}) > 1, ("network", False, lambda s: s.row.network)),
        (several, ("protocol", False, lambda s: _protocol(s.row, same_name))),
        (len({id(s.bench) for s in shown}) > 1, ("bench", False, lambda s: s.bench.name)),
        (any(not s.bench.comparable for s in shown), ("mark", False, lambda s: _mark(s.bench))),
    ]
    return [column for needed, column in columns if needed]


def _rules(one: Shown) -> tuple[str, str]:
    return one.row.protocol, one.row.protocol_hash


def _protocol(row: BenchRow, with_hash: bool) -> str:
    return f"{row.protocol} {row.protocol_hash[:8]}" if with_hash else row.protocol


def _mark(bench: Bench) -> str:
    return "" if bench.comparable else f"{NOT_COMPARABLE} (preset {bench.preset})"


def result_text(row: BenchRow) -> str:
    """Mean and spread in percent; a single value has no spread."""
    if row.stat is None:
        return "-"
    mean = f"{100 * row.stat.mean:.1f}"
    return mean + (f" ± {100 * row.stat.pooled:.1f}" if row.stat.n_sets * row.stat.n_nets > 1 else "")


def count_text(row: BenchRow) -> str:
    """Sets x networks, and how many sets are missing."""
    if row.stat is None:
        return "-"
    done = sum(cell.state == "done" for cell in row.cells)
    shown = f"{row.stat.n_sets} x {row.stat.n_nets}"
    return shown if done == len(row.cells) else f"{shown} ({done} of {len(row.cells)} sets)"


def gain_text(found: Difference | None) -> str:
    """A difference in points with its interval."""
    if found is None:
        return ""
    mean = f"{100 * found.mean:+.1f}"
    if found.interval is None:
        return mean
    low, high = (f"{100 * edge:+.1f}" for edge in found.interval)
    return f"{mean} [{low}, {high}]"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _notes(shown: Sequence[Shown]) -> list[str]:
    protocols = list(dict.fromkeys(s.row.protocol for s in shown))
    notes = [f"protocol: {protocols[0]}"] if len(protocols) == 1 else []
    several = len(_datasets(shown)) > 1
    notes += [] if several else [f"data: {name}" for name in _datasets(shown)]
    notes.append("accuracy on the test images in percent; ± is the population standard deviation over all values")
    notes.append("n: sets x networks; vs random: points, with the 95 % interval of the difference")
    notes += [f"{s.label}{f', {s.row.data_name}' * several}: {s.row.note}" for s in shown if s.row.note]
    notes += [f"failed: {f.cell}: {f.reason}" for bench in _benches(shown) for f in bench.failures]
    if any(not bench.comparable for bench in _benches(shown)):
        notes.append(f"{NOT_COMPARABLE.upper()}: preset quick trains a tenth of what the protocol and the methods say")
    return notes


def _benches(shown: Sequence[Shown]) -> list[Bench]:
    return list({id(s.bench): s.bench for s in shown}.values())


# --- methods by datasets and budgets -------------------------------------------------------------


def pivot_sheet(shown: Sequence[Shown]) -> Sheet:
    """Methods down, datasets and budgets across; the whole training set stands in each column of its dataset.

    A dataset is named where there are several; one alone is in the notes.
    """
    places = list(dict.fromkeys((s.row.data_name, s.row.budget) for s in shown if s.row.budget is not None))
    several = len({_rules(s) for s in shown}) > 1
    heads = ["method", *(["protocol"] if several else [])]
    names = list(dict.fromkeys(_line(s, several) for s in shown))
    cells: dict[tuple[tuple[str, ...], tuple[str, str | None]], str] = {}
    for one in shown:
        for place in places:
            if place[0] == one.row.data_name and one.row.budget in (None, place[1]):
                cells[(_line(one, several), place)] = result_text(one.row)
    many = bool(_datasets(shown)[1:])
    across = [f"{data} {budget}" if many else str(budget) for data, budget in places]
    rows = [[*name, *(cells.get((name, place), "") for place in places)] for name in names]
    return Sheet([*heads, *across], rows, frozenset(across), _notes(shown))


def _line(one: Shown, with_protocol: bool) -> tuple[str, ...]:
    sweep = ", ".join(f"{key}={value}" for key, value in one.row.sweep.items())
    mark = "" if one.bench.comparable else f" ({NOT_COMPARABLE})"
    name = (f"{one.label}, {sweep}" if sweep else one.label) + mark
    return (name, one.row.protocol) if with_protocol else (name,)
