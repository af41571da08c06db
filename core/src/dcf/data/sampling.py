"""Random image numbers, drawn on the CPU: per class without replacement, and stratified splits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcf.errors import DataError

__all__ = ["draw_within_classes", "stratified_split"]

#: A class at least this many times larger than the draw is drawn by rejection: no need to touch all images.
_SPARSE = 4


def draw_within_classes(counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """For every class, `n` positions within the class, uniformly without replacement.

    A class with fewer than `n` images gives all of them, then all of them again in another order, and so on.

    Args:
        counts: `(K,)` images per class, int64, on the CPU, all positive.
        n: Positions wanted of each class.
        generator: A CPU generator. What it draws depends on `counts` and `n` alone.

    Returns:
        `(K, n)` int64, entry `[c, j]` in `[0, counts[c])`.
    """
    positions = counts.new_empty(len(counts), n)
    sparse = counts >= _SPARSE * n
    if bool(sparse.any()):
        positions[sparse] = _first_distinct(counts[sparse], n, generator)
    if not bool(sparse.all()):
        positions[~sparse] = _shuffled_rounds(counts[~sparse], n, generator)
    return positions


def _shuffled_rounds(counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Whole shuffles of each class, one after the other, cut to `n`: `(K, n)`.

    Column `j` stands for item `j % count` in round `j // count`; sorting by round plus a random number
    shuffles within rounds only.
    """
    rounds = (n + counts - 1) // counts
    width = int((rounds * counts).max())
    column = torch.arange(width).expand(len(counts), width)
    keys = torch.rand(len(counts), width, generator=generator, dtype=torch.float64)
    keys += column // counts[:, None]
    return keys.argsort(dim=1)[:, :n] % counts[:, None]


def _first_distinct(counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The first `n` distinct values of independent uniform draws: `(K, n)`, for classes much larger than `n`.

    The first distinct values of such a sequence are a uniform sample without replacement, in random order.
    """
    while True:
        uniform = torch.rand(len(counts), 2 * n + 8, generator=generator, dtype=torch.float64)
        drawn = (uniform * counts[:, None]).long()
        repeated = _is_repeat(drawn)
        if int((~repeated).sum(dim=1).min()) >= n:
            return drawn.gather(1, repeated.byte().argsort(dim=1, stable=True)[:, :n])


def _is_repeat(drawn: Tensor) -> Tensor:
    """`(K, m)` bool: whether the same value stands further left in its row."""
    order = drawn.argsort(dim=1, stable=True)
    ordered = drawn.gather(1, order)
    repeat = torch.zeros_like(drawn, dtype=torch.bool)
    repeat[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(repeat).scatter_(1, order, repeat)


def stratified_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split image numbers in two parts with the same share of every class.

    Each class gives `fraction` of its images, rounded, to the second part, but at least one and never all;
    a class of one image stays in the first part.

    Args:
        labels: `(N,)` int64, on the CPU.
        fraction: Share of the second part, between 0 and 1.
        generator: A CPU generator.

    Returns:
        Two ascending lists of image numbers that together are `0 .. N-1`.

    Raises:
        DataError: When no class has two images.
    """
    if not 0 < fraction < 1:
        raise DataError(f"expected a fraction between 0 and 1 to hold out, got {fraction}")
    counts = torch.bincount(labels)
    if not len(counts) or int(counts.max()) < 2:
        raise DataError("cannot hold out images for testing: every class has only one image")
    held = torch.tensor([min(max(math.floor(fraction * c + 0.5), 1), max(c - 1, 0)) for c in counts.tolist()])
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    is_held = torch.zeros(len(labels), dtype=torch.bool)
    is_held[order] = rank < held[labels[order]]
    return (~is_held).nonzero().flatten(), is_held.nonzero().flatten()
