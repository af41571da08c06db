"""Applying draws: the operations of one call, one after the other, for a batch or for each class of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dcf.augmenter import Augmenter
from dcf.errors import UsageError
from dcf.operations.draws import Draw
from dcf.operations.images import apply_op
from dcf.operations.options import Strengths
from dcf.types import Batch

__all__ = ["DrawnOperations", "apply_draw", "apply_draws"]


class DrawnOperations(Augmenter):
    """Base of augmenters whose draw is a list of operations with their values; they differ in what they draw.

    The values are CPU tensors with one row an image, or one row for all when the draw is shared.
    """

    Config = Strengths

    space: ClassVar[str] = "normalized"

    def apply(self, batch: Batch, values: Draw) -> Batch:
        """Apply a draw to `(N, C, H, W)` images; the labels stay."""
        return Batch(apply_draw(batch.x, values, self.config.cutout), batch.y)

    def apply_classes(self, images: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Apply one draw to each class, all classes that drew the same operations in one call.

        Args:
            images: `(c, B, C, H, W)`.
            draws: c draws, with one row or B rows of values each.

        Returns:
            `(c, B, C, H, W)`, equal to applying the draws class by class.
        """
        _require_one_a_class(images, draws)
        if images.device.type == "cpu":
            # Grouping saves launches, of which a CPU has none, and costs copies: class after class is faster there.
            return super().apply_classes(images, draws)
        return apply_draws(images, draws, self.config.cutout)


def apply_draw(images: Tensor, draw: Draw, cutout_ratio: float = 0.5) -> Tensor:
    """Apply the operations of a draw one after the other.

    Args:
        images: `(N, C, H, W)`, normalised.
        draw: Operations with one row of values an image, or one row for all.
        cutout_ratio: Side of the cutout box over side of the image.

    Returns:
        `(N, C, H, W)`; `images` itself when the draw is empty.

    Raises:
        UsageError: Unknown operation, or a number of rows that is neither 1 nor N.
    """
    for op, values in draw:
        images = apply_op(images, op, _fitting(values, images.shape[0]), cutout_ratio)
    return images


def apply_draws(images: Tensor, draws: Sequence[Draw], cutout_ratio: float = 0.5) -> Tensor:
    """Apply one draw to each class of a chunk, with one call for each set of operations that occurs.

    Args:
        images: `(c, B, C, H, W)`, normalised.
        draws: c draws, with one row or B rows of values each.
        cutout_ratio: Side of the cutout box over side of the image.

    Returns:
        `(c, B, C, H, W)`.

    Raises:
        UsageError: When there is not one draw a class.
    """
    _require_one_a_class(images, draws)
    groups = _group_by_operations(draws)
    if len(groups) == 1:
        return _apply_group(images, draws, cutout_ratio)
    # Unbinding and stacking copies once each way and needs no index on the device.
    classes = images.unbind(0)
    done: dict[int, Tensor] = {}
    for members in groups:
        chunk = torch.stack([classes[i] for i in members])
        result = _apply_group(chunk, [draws[i] for i in members], cutout_ratio)
        done.update(zip(members, result.unbind(0), strict=True))
    return torch.stack([done[i] for i in range(len(draws))])


def _require_one_a_class(images: Tensor, draws: Sequence[Draw]) -> None:
    if len(draws) != images.shape[0]:
        raise UsageError(f"expected one draw a class, got {len(draws)} for {images.shape[0]} classes")


def _group_by_operations(draws: Sequence[Draw]) -> list[list[int]]:
    """Positions of the draws, those with the same operations together, in order of first occurrence."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, draw in enumerate(draws):
        groups.setdefault(tuple(op for op, _ in draw), []).append(position)
    return list(groups.values())


def _apply_group(images: Tensor, draws: Sequence[Draw], cutout_ratio: float) -> Tensor:
    """`(g, B, C, H, W)` images, and g draws of the same operations."""
    joined = images.flatten(0, 1)
    for items in zip(*draws, strict=True):
        rows = _join([_fitting(values, images.shape[1]) for _, values in items])
        joined = apply_op(joined, items[0][0], rows, cutout_ratio)
    return joined.view(images.shape)


def _join(values: Sequence[Tensor]) -> Tensor:
    """Rows of several classes one after the other, as many for each class."""
    most = max(v.shape[0] for v in values)
    return torch.cat([v.expand(most, *v.shape[1:]) for v in values])


def _fitting(values: Tensor, size: int) -> Tensor:
    if values.shape[0] not in (1, size):
        raise UsageError(
            f"expected 1 or {size} rows of values for {size} images, got {values.shape[0]}; "
            "a draw made for single images only fits a batch of its own size"
        )
    return values
