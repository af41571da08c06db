"""The spread of accuracies over S independently condensed sets with N networks each.

Model: `acc[s, n] = mu + a[s] + e[s, n]`, where a is the effect of a set and e that of a network's
initialisation, order and augmentation. Nothing here needs more than the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, pstdev, variance
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NOT_ESTIMATED", "Estimate", "Stat", "summarize", "t_quantile"]

NOT_ESTIMATED: Final = "not estimated"
Estimate: TypeAlias = float | Literal["not estimated"]


class Stat(BaseModel):
    """Mean and spread of one metric."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    metric: str = Field("accuracy", description="what was measured; accuracies are fractions in [0, 1]")
    mean: float = Field(description="over all values")
    pooled: float = Field(description="population standard deviation (ddof 0) of all values, as papers report")
    within: Estimate = Field(description="standard deviation between the networks of one set")
    between: Estimate = Field(description="standard deviation between sets, that between networks removed")
    n_sets: int = Field(ge=1, description="independent sets S")
    n_nets: int = Field(ge=1, description="networks a set N")
    ci: tuple[float, float] | Literal["not estimated"] = Field(description="95 % confidence interval of the mean")
    ci_basis: str = Field(description="what the interval generalises over")


def summarize(values: Sequence[Sequence[float]], metric: str = "accuracy") -> Stat:
    """Mean, pooled, within-set and between-set spread, and a 95 % interval.

    `within = sqrt(mean_s var_n(acc))` and `between = sqrt(max(0, var_s(mean_n acc) - within^2 / N))`, both
    with ddof 1; what cannot be estimated (one set, one network) says so and is never 0. The interval is that of
    the set means from three sets on; below, it is that of the networks, conditional on these sets.

    Args:
        values: S rows of N values: `values[s][n]`.
        metric: Name of what was measured.

    Raises:
        ValueError: When there is no value or one that is not finite, or the rows differ in length.
    """
    lengths = {len(row) for row in values}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"expected sets with equally many networks, at least one, got {[len(row) for row in values]}")
    everything = [v for row in values for v in row]
    if not all(map(math.isfinite, everything)):
        raise ValueError(f"expected finite values, got {everything}")
    within, between = _components(values)
    ci, basis = _interval(values, within)
    return Stat(
        metric=metric, mean=fmean(everything), pooled=pstdev(everything), within=within, between=between,
        n_sets=len(values), n_nets=lengths.pop(), ci=ci, ci_basis=basis,
    )  # fmt: skip


def _components(values: Sequence[Sequence[float]]) -> tuple[Estimate, Estimate]:
    n = len(values[0])
    if n < 2:
        return NOT_ESTIMATED, NOT_ESTIMATED
    within = math.sqrt(fmean(variance(row) for row in values))
    if len(values) < 2:
        return within, NOT_ESTIMATED
    return within, math.sqrt(max(0.0, variance([fmean(row) for row in values]) - within**2 / n))


def _interval(
    values: Sequence[Sequence[float]], within: Estimate
) -> tuple[tuple[float, float] | Literal["not estimated"], str]:
    means = [fmean(row) for row in values]
    sets, nets = len(values), len(values[0])
    if sets >= 3:
        half, basis = t_quantile(sets - 1) * math.sqrt(variance(means) / sets), "sets"
    elif isinstance(within, float):
        half = t_quantile(sets * (nets - 1)) * within / math.sqrt(sets * nets)
        basis = f"networks, conditional on {'one set' if sets == 1 else f'{sets} sets'}"
    else:
        return NOT_ESTIMATED, ""
    return (fmean(means) - half, fmean(means) + half), basis


def t_quantile(df: int, level: float = 0.95) -> float:
    """The t with `P(|T| <= t) = level` for Student's distribution with `df` degrees of freedom.

    By bisection of the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4); above
    1000 the first correction to the normal quantile, off by less than 1e-5.
    """
    if df > 1000:
        z = NormalDist().inv_cdf((1 + level) / 2)
        return z + (z**3 + z) / (4 * df)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_mass(theta: float, df: int) -> float:
    """`P(|T| <= sqrt(df) tan(theta))`."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, df, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
