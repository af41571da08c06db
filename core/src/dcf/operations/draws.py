"""How the values of augmenting operations are distributed.

`u` is uniform in [0, 1). With the published ratios:

==========  ====================================================  ===============================
operation   value                                                 range
==========  ====================================================  ===============================
brightness  (u - 0.5) b                                           [-0.5, 0.5), b = 1
saturation  u r                                                   [0, 2), r = 2
contrast    u + r                                                 [0.5, 1.5), r = 0.5
crop        integer in [-k, k], k = int(size 0.125 + 0.5)         rows and columns apart
cutout      integer in [0, size - s % 2], s = side of the box     rows and columns apart
flip        1 if u < p else 0                                     p = 0.5
scale       u (r - 1/r) + 1/r                                     [1/1.2, 1.2), x and y apart
rotate      (2u - 1) t degrees, given in radians                  [-15, 15) degrees
==========  ====================================================  ===============================

Source: Zhao and Bilen, ICML 2021; ratios of the published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor

from dcf.operations.images import cutout_side
from dcf.operations.options import Strengths

__all__ = [
    "FAMILIES",
    "Draw",
    "GeneratorSource",
    "Source",
    "draw_family",
    "draw_values",
]

#: What one call applies, in order: names of operations with their values, one row an image or one for all.
Draw: TypeAlias = list[tuple[str, Tensor]]

#: The operations that a name in a strategy stands for, in the order in which they are applied.
FAMILIES: Final[Mapping[str, tuple[str, ...]]] = {
    "color": ("brightness", "saturation", "contrast"),
    "crop": ("crop",),
    "cutout": ("cutout",),
    "flip": ("flip",),
    "scale": ("scale",),
    "rotate": ("rotate",),
}


class Source(Protocol):
    """Where random numbers come from; each call is one draw."""

    def uniform(self, rows: int) -> Tensor:
        """`(rows,)` float32 in [0, 1)."""
        ...

    def integers(self, low: int, high: int, rows: int) -> Tensor:
        """`(rows,)` int64 in [low, high)."""
        ...


@dataclass(frozen=True)
class GeneratorSource:
    """Random numbers of one CPU generator."""

    generator: torch.Generator

    def uniform(self, rows: int) -> Tensor:
        """`(rows,)` float32 in [0, 1)."""
        return torch.rand(rows, generator=self.generator, dtype=torch.float32)

    def integers(self, low: int, high: int, rows: int) -> Tensor:
        """`(rows,)` int64 in [low, high)."""
        return torch.randint(low, high, (rows,), generator=self.generator)


def draw_family(family: str, rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Draw:
    """Draw the values of one strategy name.

    Args:
        family: A key of `FAMILIES`.
        rows: Number of images, or 1 for a value shared by all.
        size: `(H, W)`.
        config: Strengths.
        source: Random numbers.
    """
    return [(op, draw_values(op, rows, size, config, source)) for op in FAMILIES[family]]


def draw_values(op: str, rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    """Draw the values of one operation.

    Args:
        op: A key of `dcf.operations.images.OPERATIONS`.
        rows: Number of images, or 1 for a value shared by all.
        size: `(H, W)`.
        config: Strengths.
        source: Random numbers.

    Returns:
        CPU tensor `(rows,)`, or `(rows, 2)` for crop, cutout and scale; float32, but int64 for crop, cutout
        and flip.
    """
    return _DRAWS[op](rows, size, config, source)


def _brightness(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    return (source.uniform(rows) - 0.5) * config.brightness


def _saturation(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    return source.uniform(rows) * config.saturation


def _contrast(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    return source.uniform(rows) + config.contrast


def _crop(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    limits = [int(side * config.crop + 0.5) for side in size]
    return torch.stack([source.integers(-k, k + 1, rows) for k in limits], dim=1)


def _cutout(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    # An even box may have its centre one past the last pixel: its middle lies between two pixels.
    ends = [side + 1 - cutout_side(side, config.cutout) % 2 for side in size]
    return torch.stack([source.integers(0, end, rows) for end in ends], dim=1)


def _flip(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    return (source.uniform(rows) < config.prob_flip).long()


def _scale(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    low, high = 1 / config.scale, config.scale
    return torch.stack([source.uniform(rows) * (high - low) + low for _ in "xy"], dim=1)


def _rotate(rows: int, size: tuple[int, int], config: Strengths, source: Source) -> Tensor:
    return (source.uniform(rows) * 2 - 1) * math.radians(config.rotate)


_DRAWS: Final[Mapping[str, Callable[[int, tuple[int, int], Strengths, Source], Tensor]]] = {
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
