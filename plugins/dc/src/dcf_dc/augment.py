"""The augmenter `dc-eval`: how networks are trained on digits when DC is evaluated."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

import dcf
from dcf_dc.options import EvaluationAugmentConfig, Operation

__all__ = ["DCEvaluationAugment", "cropped", "rotated", "scaled"]

#: Which operation each image gets, and the values of each: `(N,)` and, of those that were drawn, `(N, ...)`.
Draw: TypeAlias = dict[str, Tensor]


class DCEvaluationAugment(dcf.Augmenter):
    """One operation an image, chosen apart for each (Zhao, Mopuri and Bilen, ICLR 2021, released evaluation).

    It is meant for the training of networks. Matching with one draw for real and synthetic images has no such form,
    because what fills a border is the mean colour of a batch.
    """

    Config = EvaluationAugmentConfig

    space = "normalized"

    @property
    def shareable(self) -> bool:
        """Never."""
        return False

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Draw:
        """Draw an operation and values for each of `n` images of `(C, H, W)`.

        Raises:
            UsageError: With `shared`.
        """
        if shared:
            raise dcf.UsageError(
                "dc-eval changes images one by one and cannot be shared by real and synthetic ones; "
                "use it where networks are trained: --set protocol.augment=dc-eval"
            )
        config = self.config
        made = {"op": torch.randint(len(config.ops), (n,), generator=generator)}
        for op in config.ops:
            made[op] = _values(op, n, shape, config, generator)
        return made

    def apply(self, batch: dcf.Batch, values: Draw) -> dcf.Batch:
        """Give every image of `(N, C, H, W)` its operation; labels stay."""
        made = batch.x
        for number, op in enumerate(self.config.ops):
            mine = values["op"] == number
            if bool(mine.any()):
                changed = _OPERATIONS[op](batch.x, values[op].to(made.device), self.config)
                made = torch.where(mine.to(made.device)[:, None, None, None], changed, made)
        return dcf.Batch(made, batch.y)


def _values(
    op: Operation, n: int, shape: tuple[int, int, int], config: EvaluationAugmentConfig, generator: torch.Generator
) -> Tensor:
    """`(N, ...)` values of one operation; see `cropped`, `scaled` and `rotated`."""
    if op == "crop":
        return torch.randint(2 * config.crop, (n, 2), generator=generator) - config.crop
    if op == "scale":
        factors = 1 - config.scale + 2 * config.scale * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        # As published, the height gives both sides.
        return (factors * shape[1]).long().clamp_min(1)
    if op == "rotate":
        return torch.randint(-config.rotate, config.rotate, (n,), generator=generator)
    return torch.randn(n, *shape, generator=generator)


def cropped(images: Tensor, offsets: Tensor) -> Tensor:
    """Move images; what comes in from outside has the mean colour of the batch.

    Args:
        images: `(N, C, H, W)`.
        offsets: `(N, 2)` integers: where the upper left corner of the result lies in the image, down and right.

    Returns:
        `(N, C, H, W)`.
    """
    window = _Window.of(images, offsets, torch.ones_like(offsets))
    return torch.where(window.inside, window.pick(images), images.mean((0, 2, 3), keepdim=True))


def scaled(images: Tensor, sides: Tensor) -> Tensor:
    """Resize images by nearest neighbours and show the middle; around smaller ones is zero, the mean of the data.

    Args:
        images: `(N, C, H, W)`, normalised.
        sides: `(N, 2)` integers: height and width that the image is resized to, at least 1.

    Returns:
        `(N, C, H, W)`.
    """
    size = torch.tensor(images.shape[-2:], device=images.device)
    # Rounded towards zero on both sides: of a smaller image the border, of a larger one what is cut off.
    start = torch.where(sides < size, -((size - sides) // 2), (sides - size) // 2)
    window = _Window.of(images, start, size / sides)
    return torch.where(window.inside, window.pick(images), images.new_zeros(()))


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn images about their middle, by bicubic interpolation; the corners get the mean of everything in the batch.

    Args:
        images: `(N, C, H, W)`.
        degrees: `(N,)`, anticlockwise.

    Returns:
        `(N, C, H, W)`.
    """
    n, _, height, width = images.shape
    angle = degrees.to(images.dtype) * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Coordinates run from -1 to 1 on both axes, whatever the sides are.
    rows = [torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, height, width], align_corners=False)
    fill = images.mean()
    return F.grid_sample(images - fill, grid, mode="bicubic", padding_mode="zeros", align_corners=False) + fill


class _Window(NamedTuple):
    """Which pixel of its image every pixel of a result shows.

    Attributes:
        rows: `(N, H)`, within the image.
        cols: `(N, W)`, likewise.
        inside: `(N, 1, H, W)`, false where there is no such pixel.
    """

    rows: Tensor
    cols: Tensor
    inside: Tensor

    @classmethod
    def of(cls, images: Tensor, start: Tensor, step: Tensor) -> _Window:
        """Pixel i shows pixel floor((start + i + 1/2) step), along both axes: `(N, 2)` each."""
        axes = []
        for axis, size in enumerate(images.shape[-2:]):
            position = torch.arange(size, device=images.device) + start[:, axis, None] + 0.5
            axes.append((position * step[:, axis, None].double()).floor().long())
        valid = [(axis >= 0) & (axis < size) for axis, size in zip(axes, images.shape[-2:], strict=True)]
        inside = valid[0][:, None, :, None] & valid[1][:, None, None, :]
        rows, cols = (axis.clamp(0, size - 1) for axis, size in zip(axes, images.shape[-2:], strict=True))
        return cls(rows, cols, inside)

    def pick(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` of those pixels."""
        number = torch.arange(len(images), device=images.device)[:, None, None]
        return images.movedim(1, -1)[number, self.rows[:, :, None], self.cols[:, None, :]].movedim(-1, 1)


_OPERATIONS = {
    "crop": lambda images, values, config: cropped(images, values),
    "scale": lambda images, values, config: scaled(images, values),
    "rotate": lambda images, values, config: rotated(images, values),
    "noise": lambda images, values, config: images + config.noise * values.to(images.dtype),
}
