"""Which synthetic images each training step takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dcf

__all__ = ["cycled", "ordered_batches", "random_batches", "require_all_used", "views_by_class"]


def views_by_class(view_class: Tensor, classes: int) -> list[Tensor]:
    """The view numbers of each class, ascending.

    Args:
        view_class: `(views,)` class of each view.
        classes: Number of classes.
    """
    return [torch.nonzero(view_class == c).flatten() for c in range(classes)]


def ordered_batches(views: Sequence[Tensor], batch: int) -> list[Tensor]:
    """Cut a set into batches: the first `batch` images of every class, then the next, and so on.

    Args:
        views: View numbers of each class.
        batch: Images a class and step.

    Returns:
        One `(classes * batch,)` a step, class after class.

    Raises:
        UsageError: When classes differ in size, or `batch` does not divide it.
    """
    sizes = {len(v) for v in views}
    if len(sizes) > 1:
        raise dcf.UsageError(
            f"order=fixed takes equally many images of every class, got from {min(sizes)} to {max(sizes)} a class\n"
            "  use another parameterization or order=random"
        )
    (size,) = sizes
    if size % batch:
        raise dcf.UsageError(
            f"order=fixed takes batch={batch} images of every class in each step, which does not divide the set's "
            f"{size} a class\n  use {_divisors(size)}, or --ipc with a multiple of {batch}"
        )
    table = torch.stack(list(views)).unflatten(1, (size // batch, batch))
    return [step.contiguous() for step in table.transpose(0, 1).flatten(1)]


def _divisors(size: int) -> str:
    """`batch=1`, or the options where there are several."""
    fitting = [str(n) for n in range(1, size + 1) if size % n == 0]
    return f"batch={fitting[0]}" if len(fitting) == 1 else f"batch={', '.join(fitting[:-1])} or {fitting[-1]}"


def require_all_used(batches: int, steps: int) -> None:
    """Refuse a program that never comes to some images of the set, which would be paid for and never learned.

    Raises:
        UsageError: When there are fewer steps than batches.
    """
    if steps < batches:
        raise dcf.UsageError(
            f"order=fixed makes {batches} batches of the set, of which steps={steps} would never use the last "
            f"{batches - steps}\n  use steps=auto or steps={batches} and more, a larger batch, or a smaller --ipc"
        )


def cycled(batches: Sequence[Tensor], steps: int) -> list[Tensor]:
    """So many steps: all batches in order, then from the first again."""
    return [batches[s % len(batches)] for s in range(steps)]


def random_batches(views: Sequence[Tensor], batch: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """For each step some images of every class, uniformly without replacement within the step.

    Args:
        views: View numbers of each class.
        batch: Images a class and step; a class that has fewer gives all of them.
        steps: How many steps.
        generator: A CPU generator, the only source of randomness.

    Returns:
        One `(B,)` a step, class after class, on the device of `views`.
    """
    parts = []
    for own in views:
        drawn = torch.rand(steps, len(own), generator=generator).argsort(1)[:, :batch]
        parts.append(own[drawn.to(own.device)])
    return list(torch.cat(parts, 1))
