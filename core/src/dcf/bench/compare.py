"""Differences between rows, with the interval that says whether they are more than spread. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, variance
from typing import NamedTuple

from dcf.bench.model import BenchRow
from dcf.evaluation.statistics import summarize, t_quantile

__all__ = ["Difference", "circumstances", "difference", "random_of"]


class Difference(NamedTuple):
    """How much better one row is than another.

    Attributes:
        mean: Difference of the means, as a fraction.
        interval: Its 95 % interval; None where it cannot be estimated.
        basis: What the interval rests on.
    """

    mean: float
    interval: tuple[float, float] | None
    basis: str

    @property
    def beyond(self) -> bool:
        """Whether the difference is beyond the spread: the interval does not hold 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def difference(a: BenchRow, b: BenchRow) -> Difference | None:
    """How much better `a` is than `b`; None while one of them has no value.

    Paired where both have the same sets and the same networks, by seed, so that what initialisation and order do
    to both cancels; else by Welch's approximation.
    """
    if a.stat is None or b.stat is None:
        return None
    mean = a.stat.mean - b.stat.mean
    if a.numbers == b.numbers and a.net_seeds == b.net_seeds:
        return _paired(a, b, mean)
    parts = [_variance_of_mean(row.values) for row in (a, b)]
    if None in parts:
        return Difference(mean, None, "")
    (va, da), (vb, db) = (part for part in parts if part is not None)
    total = va + vb
    if total == 0:
        return Difference(mean, (mean, mean), "unpaired")
    # A whole number that came out a hair too small is meant.
    freedom = max(1, math.floor(total**2 / (va**2 / da + vb**2 / db) + 1e-9))
    half = t_quantile(freedom) * math.sqrt(total)
    return Difference(mean, (mean - half, mean + half), "unpaired")


def _paired(a: BenchRow, b: BenchRow, mean: float) -> Difference:
    pairs = [[x - y for x, y in zip(p, q, strict=True)] for p, q in zip(a.values, b.values, strict=True)]
    stat = summarize(pairs, "difference")
    if isinstance(stat.ci, str):
        return Difference(mean, None, "")
    return Difference(mean, stat.ci, f"paired, {stat.ci_basis}")


def _variance_of_mean(values: tuple[tuple[float, ...], ...]) -> tuple[float, int] | None:
    """Variance of the mean of `values[set][network]`, and its degrees of freedom.

    From the means of the sets from three sets on; below, from the networks, conditional on these sets.
    """
    sets, nets = len(values), len(values[0])
    if sets >= 3:
        return variance([fmean(row) for row in values]) / sets, sets - 1
    if nets < 2:
        return None
    return fmean(variance(row) for row in values) / (sets * nets), sets * (nets - 1)


def circumstances(row: BenchRow) -> tuple[str, ...]:
    """What must be equal for two rows to be comparable, the budget aside."""
    return row.data["id"], row.data["checksum"], row.protocol, row.protocol_hash, row.augment, row.network


def random_of(row: BenchRow, rows: Iterable[BenchRow]) -> BenchRow | None:
    """The row of random images that a row is to be compared with: same circumstances, same budget."""
    usable = [
        r for r in rows if r.role == "random" and r.budget == row.budget and circumstances(r) == circumstances(row)
    ]
    own = [r for r in usable if r.specs == row.specs and r.sweep == row.sweep and r.label.endswith(f"of {row.label})")]
    return next(iter(own or [r for r in usable if r.label == "random"]), None)
