"""The mathematics of trajectory matching: a student's training on the set, and how near to an expert it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = [
    "draw_start",
    "scale_gradient",
    "student_batches",
    "trajectory_loss",
    "window_end",
]


def trajectory_loss(end: Mapping[str, Tensor], start: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Squared distance of the student's last weights from the expert's, over that of where both began.

    Cazenavette et al., CVPR 2022, equation 2. One ratio over all weights together, none of them left out or weighed.

    Args:
        end: Weights of the student after its training, by name, differentiable.
        start: Weights it started from; the expert's at that time.
        target: Weights of the expert some epochs later.

    Returns:
        Scalar: 1 where the student has come no nearer, 0 where it arrived. Not finite where `start` is `target`.
    """
    return _squared_distance(end, target) / _squared_distance(start, target)


def _squared_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum()


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values, bit for bit, with a gradient that is multiplied by `factor` on its way back."""
    return x if factor == 1 else x.detach() + (x - x.detach()) * factor


# --- what is drawn ----------------------------------------------------------------------------------------------------


def student_batches(orders: Iterable[Tensor], size: int, steps: int) -> list[Tensor]:
    """The images of each step, as released: an order of all images is cut into chunks, which are used from its end.

    So the remainder, where there is one, comes first. The next order is taken when no chunk is left.

    Args:
        orders: `(V,)` permutations, as many as it takes.
        size: Images a chunk; at least 1.
        steps: Number of steps.

    Example:
        >>> [b.tolist() for b in student_batches([torch.arange(5), torch.arange(5)], 3, 3)]
        [[3, 4], [0, 1, 2], [3, 4]]
    """
    found: list[Tensor] = []
    for order in orders:
        found += reversed(torch.split(order, size))
        if len(found) >= steps:
            return found[:steps]
    raise ValueError(f"expected orders for {steps} steps, got enough for {len(found)}")


def window_end(it: int, begin: int, end: int, iterations: int) -> int:
    """Where the start epochs end in an iteration: moves from `begin` to `end`, and stays there.

    Guo et al., ICLR 2024, as released.

    Args:
        it: Outer iteration, from 0.
        begin: The end at the beginning.
        end: The end from `iterations` on.
        iterations: How long it moves.

    Example:
        >>> [window_end(it, 10, 20, 1000) for it in (0, 100, 500, 999, 1000, 9999)]
        [10, 11, 15, 19, 20, 20]
    """
    return min(begin + (end - begin) * it // iterations, end)


def draw_start(first: int, end: int, generator: torch.Generator) -> int:
    """An epoch to start from, each of `first` to `end - 1` as likely."""
    return int(torch.randint(first, end, (), generator=generator))
