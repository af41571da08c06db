"""Rank correlations, and how much of them is chance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Agreement", "agreement", "average_ranks", "kendall", "spearman", "top_by"]

#: Share of the resamples between the ends of an interval.
_LEVEL = 0.95


def average_ranks(values: Tensor) -> Tensor:
    """Ranks `(..., n)` from 1, float64, along the last axis; equal values share the mean of their ranks.

    Args:
        values: `(..., n)`.
    """
    below = (values[..., None, :] < values[..., :, None]).sum(dim=-1)
    same = (values[..., None, :] == values[..., :, None]).sum(dim=-1)
    return below.double() + (same.double() + 1) / 2


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rho along the last axis: the correlation of average ranks, in [-1, 1]; NaN where all are equal.

    Args:
        x: `(..., n)`.
        y: `(..., n)`.
    """
    a, b = (ranks - ranks.mean(dim=-1, keepdim=True) for ranks in (average_ranks(x), average_ranks(y)))
    return (a * b).sum(dim=-1) / (a.square().sum(dim=-1) * b.square().sum(dim=-1)).sqrt()


def kendall(x: Tensor, y: Tensor) -> Tensor:
    """Kendall's tau-b along the last axis, in [-1, 1]; NaN where all are equal.

    Pairs in the same order minus pairs in opposite order, over the geometric mean of the numbers of pairs that are
    not tied in x and in y.

    Args:
        x: `(..., n)`.
        y: `(..., n)`.
    """
    a, b = (torch.sign(v[..., None, :] - v[..., :, None]).double().flatten(-2) for v in (x, y))
    return (a * b).sum(dim=-1) / (a.square().sum(dim=-1) * b.square().sum(dim=-1)).sqrt()


def top_by(reference: Tensor, k: int) -> Tensor:
    """Places `(k,)` of the k largest values of `reference`, the largest first; the earlier of equal ones.

    The reference chooses, never what is judged: the best k of a bad ranking are another question.
    """
    return torch.argsort(reference, descending=True, stable=True)[:k]


class Agreement(NamedTuple):
    """Two rank correlations with bootstrap intervals.

    Attributes:
        n: Items that are ranked.
        spearman: Rho.
        spearman_ci: 95 % interval.
        kendall: Tau-b.
        kendall_ci: 95 % interval.
    """

    n: int
    spearman: float
    spearman_ci: tuple[float, float]
    kendall: float
    kendall_ci: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}


def agreement(x: Tensor, y: Tensor, resamples: int, generator: torch.Generator) -> Agreement:
    """Rank correlations of R judgements of n items with a reference, and bootstrap intervals over the items.

    The mean over the judgements of each one's correlation; a judgement, or a reference, that finds all items equal
    counts as 0, as it says nothing. Intervals are percentiles over resamples of the items, which are drawn anew with
    replacement, everything about an item together. With few items they are wide, and still too narrow.

    Args:
        x: `(R, n)`.
        y: `(n,)`, the reference.
        resamples: Their number.
        generator: A CPU generator.
    """
    x, y, n = x.double().cpu(), y.double().cpu(), len(y)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    rho, tau = [], []
    for part in torch.split(drawn, max(1, 2**22 // (len(x) * n**2))):
        rho.append(_mean(spearman(x[:, part], y[part])))
        tau.append(_mean(kendall(x[:, part], y[part])))
    whole = float(_mean(spearman(x, y))), float(_mean(kendall(x, y)))
    return Agreement(n, whole[0], _interval(torch.cat(rho)), whole[1], _interval(torch.cat(tau)))


def _mean(correlations: Tensor) -> Tensor:
    """Mean over the judgements, the first axis; NaN counts as 0."""
    return correlations.nan_to_num(nan=0.0).mean(dim=0)


def _interval(values: Tensor) -> tuple[float, float]:
    ends = torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(values, ends).tolist()
    return low, high
