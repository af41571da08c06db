"""Whether a run came to something that can be used: images of the size of real ones, step sizes that train."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from dcf.types import Hints

if TYPE_CHECKING:
    from dcf.data.real import RealData
    from dcf.parameterization import Parameterization

__all__ = ["STEP_SIZES", "flaw"]

#: A step size lies between these: below, a network stands still; above, no file holds it.
STEP_SIZES: Final = (1e-9, 1e6)
#: How many times as large as the largest value of real images a learned one may be.
_MOST: Final = 1000.0
#: Real images that are looked at.
_PROBE: Final = 100
#: Bytes of images in float32 that are looked at in one piece.
_PIECE: Final = 1 << 24


def flaw(param: Parameterization, data: RealData, hints: Hints) -> str:
    """What is wrong with a set that is finite; empty where it may be of use.

    A loss can stay finite however large images are, as norms and clipped gradients hide their size: a run whose step
    size is a million times too large would go on to its end and be evaluated.

    Args:
        param: The synthetic set.
        data: The real data, which it is compared with in its largest absolute value.
        hints: What the matcher says of it; step sizes are looked at.
    """
    low, high = STEP_SIZES
    sizes = hints.program.lrs if hints.program is not None else () if hints.lr is None else (hints.lr,)
    if sizes and not low <= max(sizes) < high:
        return f"the step size that networks are trained with became {max(sizes):.3g}"
    times = _largest(param) / max(1.0, _largest_real(data))
    return f"the synthetic images became {times:.2g} times as large as real ones" if times > _MOST else ""


@torch.no_grad()
def _largest(param: Parameterization) -> float:
    views = torch.arange(len(param.view_class), device=param.view_class.device)
    return _largest_of(param.images, views, param.shape)


def _largest_real(data: RealData) -> float:
    index = torch.arange(min(_PROBE, len(data.train)), device=data.train.device)
    return _largest_of(data.train.images, index, data.train.shape)


def _largest_of(images: Callable[[Tensor], Tensor], index: Tensor, shape: tuple[int, ...]) -> float:
    """Largest absolute value of images `(n, C, H, W)` by number, of which few are in memory at a time."""
    step = max(1, _PIECE // (4 * math.prod(shape)))
    return max(float(torch.linalg.vector_norm(images(part), math.inf)) for part in torch.split(index, step))
