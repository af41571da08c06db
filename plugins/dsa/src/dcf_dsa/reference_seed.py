"""Draws as the published code makes them from one integer, so that its recorded seeds can be replayed.

The published code reseeds before every draw and counts the seed up: in mode `single` seed s chooses the
operation and s + 1, s + 2, ... give its values; in mode `multi` nothing is chosen and the values begin at s.
Here each of these draws has a generator of its own, so no global state is touched. Values are those of the
published code on a CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dcf.operations.draws import Draw
from dcf_dsa.augment import DSA
from dcf_dsa.draws import draw_strategy

__all__ = ["ReferenceDraw", "SeedSource", "draws_from_reference_seed"]


class ReferenceDraw(NamedTuple):
    """What one seed gives.

    Attributes:
        values: A shared draw, for `DSA.apply` and a batch of any size.
        next_seed: The first seed that was not used.
    """

    values: Draw
    next_seed: int


class SeedSource:
    """Random numbers whose every draw is made with a fresh generator, its seed one higher each time.

    Args:
        seed: Seed of the first draw.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _generator(self) -> torch.Generator:
        made = torch.Generator().manual_seed(self.seed)
        self.seed += 1
        return made

    def uniform(self, rows: int) -> Tensor:
        """`(rows,)` float32 in [0, 1)."""
        return torch.rand(rows, generator=self._generator(), dtype=torch.float32)

    def integers(self, low: int, high: int, rows: int) -> Tensor:
        """`(rows,)` int64 in [low, high)."""
        return torch.randint(low, high, (rows,), generator=self._generator())


def draws_from_reference_seed(
    seed: int, shape: tuple[int, int, int], config: DSA.Config | None = None
) -> ReferenceDraw:
    """The shared draw that the published code makes from a seed.

    Args:
        seed: The seed, at least 0.
        shape: `(C, H, W)` of one image.
        config: Operations, mode and strengths; the published ones by default.
    """
    config = config if config is not None else DSA.Config()
    source = SeedSource(seed)
    values = draw_strategy(1, shape[1:], config, source)
    return ReferenceDraw(values, source.seed)
