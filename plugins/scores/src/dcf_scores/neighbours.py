"""Nearest neighbours among many images, and attacks that tell members from others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Nearest", "area_under_curve", "hits_at", "nearest"]

#: How many of a piece are compared exactly.
_CANDIDATES = 8


class Nearest(NamedTuple):
    """The nearest of some vectors to each of others.

    Attributes:
        number: `(N,)` number of the nearest; the first of equally near ones.
        distance: `(N,)` Euclidean distance to it.
    """

    number: Tensor
    distance: Tensor


def nearest(queries: Tensor, pieces: Iterable[Tensor]) -> Nearest:
    """The nearest vector to each query.

    Candidates are found by matrix products, whose rounding would make the distance to a copy anything but 0; the
    distances to the few best are then computed from differences.

    Args:
        queries: `(N, D)`.
        pieces: `(m, D)` vectors, a bounded number at a time, numbered through.
    """
    best = torch.full((len(queries),), torch.inf, device=queries.device)
    index, begin = torch.zeros(len(queries), dtype=torch.int64, device=queries.device), 0
    for piece in pieces:
        near = _best_of(queries, piece.to(queries))
        nearer = near.distance < best
        best, index = torch.where(nearer, near.distance, best), torch.where(nearer, near.number + begin, index)
        begin += len(piece)
    return Nearest(index, best)


def _best_of(queries: Tensor, piece: Tensor) -> Nearest:
    rough = piece.square().sum(dim=1) - 2 * queries @ piece.T
    candidates = rough.topk(min(_CANDIDATES, len(piece)), dim=1, largest=False).indices.sort(dim=1).values
    parts = torch.split(torch.arange(len(queries), device=queries.device), 256)
    exact = torch.cat([(queries[part, None] - piece[candidates[part]]).square().sum(dim=2).sqrt() for part in parts])
    first = exact.min(dim=1, keepdim=True)
    chosen = (exact == first.values).byte().argmax(dim=1, keepdim=True)
    return Nearest(candidates.gather(1, chosen)[:, 0], first.values[:, 0])


def area_under_curve(members: Tensor, others: Tensor) -> float:
    """Chance that a member scores above one of the others, ties half: 0.5 for an attack that knows nothing.

    Args:
        members: `(N,)` scores, larger for those that the attack takes for members.
        others: `(M,)` scores.
    """
    ordered = others.double().sort().values
    scores = members.double()
    below = torch.searchsorted(ordered, scores, right=False)
    below_or_equal = torch.searchsorted(ordered, scores, right=True)
    return float((below + below_or_equal).double().mean() / (2 * len(ordered)))


def hits_at(members: Tensor, others: Tensor, rate: float) -> float:
    """Share of the members above a threshold that at most a share `rate` of the others exceeds.

    Source: Carlini et al., IEEE S&P 2022: an attack is judged where it raises few false alarms.

    Args:
        members: `(N,)` scores.
        others: `(M,)` scores; there should be several times 1 / `rate`.
        rate: Of false alarms, in (0, 1).
    """
    allowed = int(rate * len(others))
    threshold = others.double().sort(descending=True).values[allowed]
    return float((members.double() > threshold).double().mean())
