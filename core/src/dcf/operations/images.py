"""Operations of differentiable augmentation as pure functions of images and already drawn values.

Every function takes

* `images`: `(N, C, H, W)`, any channel count, floating point, in the dataset's normalised space, where 0 is
  the mean colour; "zero" below therefore means that colour;
* `values`: R rows on any device, R a divisor of N; row r serves the r-th block of N / R images. N rows are
  one an image, one row is for all of them, and with classes one after the other it is one row a class,

and returns new images of the same shape, dtype and device. All are linear or affine in the pixels, hence
differentiable; the input is never written to. Nothing here is random, and the result for one image does
not depend on the others in the batch.

Coordinates of `scale` and `rotate` are normalised: pixel centres lie at `(2 i + 1) / n - 1`, x along columns
and y along rows. Sampling is bilinear with zeros outside.

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf.errors import UsageError
from dcf.sending import send

__all__ = [
    "OPERATIONS",
    "apply_op",
    "brightness",
    "contrast",
    "crop",
    "cutout",
    "cutout_side",
    "flip",
    "rotate",
    "saturation",
    "scale",
]


def brightness(images: Tensor, values: Tensor) -> Tensor:
    """Add a constant: `x + p`.

    Args:
        images: `(N, C, H, W)`.
        values: p, `(R,)`.
    """
    return (_blocks(images, values) + _scalars(values, images)).flatten(0, 1)


def saturation(images: Tensor, values: Tensor) -> Tensor:
    """Move each pixel from or towards its grey value: `m + (x - m) p`, m = mean over channels of that pixel.

    Images of one channel come back unchanged, bit for bit.

    Args:
        images: `(N, C, H, W)`.
        values: p, `(R,)`.
    """
    blocks = _blocks(images, values)
    return _towards(blocks, blocks.mean(dim=2, keepdim=True), values)


def contrast(images: Tensor, values: Tensor) -> Tensor:
    """Move each pixel from or towards the image's mean: `m + (x - m) p`, m = mean over C, H and W.

    Args:
        images: `(N, C, H, W)`.
        values: p, `(R,)`.
    """
    blocks = _blocks(images, values)
    return _towards(blocks, blocks.mean(dim=(2, 3, 4), keepdim=True), values)


def crop(images: Tensor, values: Tensor) -> Tensor:
    """Shift by whole pixels: `out[y, x] = in[y + dy, x + dx]`, zero where that lies outside.

    Args:
        images: `(N, C, H, W)`.
        values: `(dy, dx)`, integers, `(R, 2)`.
    """
    height, width = images.shape[-2:]
    rows, columns = _shifted(values[:, 0], height, images), _shifted(values[:, 1], width, images)
    outside = _outside(rows, height)[:, :, None] | _outside(columns, width)[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    blocks = _blocks(images, values)
    flat = blocks.flatten(3)
    moved = flat.gather(3, source.flatten(1)[:, None, None].expand_as(flat)).view(blocks.shape)
    return moved.masked_fill(outside[:, None, None], 0).flatten(0, 1)


def cutout(images: Tensor, values: Tensor, ratio: float = 0.5) -> Tensor:
    """Set a box to zero; no gradient reaches the pixels in it.

    The box has `cutout_side(H, ratio)` rows, beginning at `oy - side // 2`, each clamped to the image, and
    columns likewise; near a border it is therefore smaller.

    Args:
        images: `(N, C, H, W)`.
        values: Centre `(oy, ox)`, integers, `(R, 2)`.
        ratio: Side of the box over side of the image.
    """
    height, width = images.shape[-2:]
    rows = _box(values[:, 0], height, cutout_side(height, ratio), images)
    columns = _box(values[:, 1], width, cutout_side(width, ratio), images)
    box = (rows[:, :, None] & columns[:, None, :])[:, None, None]
    return _blocks(images, values).masked_fill(box, 0).flatten(0, 1)


def cutout_side(size: int, ratio: float) -> int:
    """Side of the cutout box in pixels, `size * ratio` rounded half up."""
    return int(size * ratio + 0.5)


def flip(images: Tensor, values: Tensor) -> Tensor:
    """Mirror left and right where the value is 1.

    Args:
        images: `(N, C, H, W)`.
        values: 0 or 1, `(R,)`.
    """
    blocks = _blocks(images, values)
    chosen = send(values, images.device).view(-1, 1, 1, 1, 1) != 0
    return torch.where(chosen, blocks.flip(4), blocks).flatten(0, 1)


def scale(images: Tensor, values: Tensor) -> Tensor:
    """Zoom about the centre: the output pixel at (X, Y) is sampled at (sx X, sy Y).

    Above 1 the picture shrinks.

    Args:
        images: `(N, C, H, W)`.
        values: `(sx, sy)`, `(R, 2)`; sx acts along the width.
    """
    factors = send(values, images.device, _sampling_dtype(images)).reshape(-1, 1, 1, 2)
    return _sample(images, _centres(images) * factors)


def rotate(images: Tensor, values: Tensor) -> Tensor:
    """Turn about the centre, anticlockwise for positive angles.

    The output pixel at (X, Y) is sampled at `(X cos t - Y sin t, X sin t + Y cos t)` in normalised
    coordinates, as published. That is a true rotation of square images; others are turned as if stretched to
    a square, which shears them.

    Args:
        images: `(N, C, H, W)`.
        values: t in radians, `(R,)`.
    """
    angle = send(values, images.device, _sampling_dtype(images)).reshape(-1, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    x, y = _centres(images).unbind(-1)
    return _sample(images, torch.stack([x * cosine - y * sine, x * sine + y * cosine], dim=-1))


#: Every operation by the name it has in a draw.
OPERATIONS: Final[Mapping[str, Callable[..., Tensor]]] = MappingProxyType(
    {f.__name__: f for f in (brightness, saturation, contrast, crop, cutout, flip, scale, rotate)}
)


def apply_op(images: Tensor, op: str, values: Tensor, cutout_ratio: float = 0.5) -> Tensor:
    """Apply one operation of a draw.

    Args:
        images: `(N, C, H, W)`, normalised.
        op: A key of `OPERATIONS`.
        values: R rows, R a divisor of N.
        cutout_ratio: Side of the cutout box over side of the image; only read by `cutout`.

    Returns:
        `(N, C, H, W)`.

    Raises:
        UsageError: Unknown operation, or a number of rows that does not divide N.
    """
    if op not in OPERATIONS:
        raise UsageError(f"expected one of the operations {', '.join(OPERATIONS)}, got '{op}'")
    extra = (cutout_ratio,) if op == "cutout" else ()
    return OPERATIONS[op](images, values, *extra)


def _blocks(images: Tensor, values: Tensor) -> Tensor:
    """`(R, N / R, C, H, W)`: the images that share a row of values, together."""
    count, rows = images.shape[0], values.shape[0]
    if rows == 0 or count % rows:
        raise UsageError(f"expected rows of values that divide {count} images, got {rows}")
    return images.view(rows, count // rows, *images.shape[1:])


def _scalars(values: Tensor, images: Tensor) -> Tensor:
    return send(values, images.device, images.dtype).view(-1, 1, 1, 1, 1)


def _towards(blocks: Tensor, centre: Tensor, values: Tensor) -> Tensor:
    return (centre + (blocks - centre) * _scalars(values, blocks)).flatten(0, 1)


def _shifted(offset: Tensor, size: int, images: Tensor) -> Tensor:
    """Source index of each output row or column, `(n, size)`; may lie outside."""
    return torch.arange(size, device=images.device) + send(offset, images.device, torch.long)[:, None]


def _outside(index: Tensor, size: int) -> Tensor:
    return (index < 0) | (index >= size)


def _box(centre: Tensor, size: int, side: int, images: Tensor) -> Tensor:
    """Which rows or columns the box covers, `(n, size)`, boolean."""
    start = send(centre, images.device, torch.long)[:, None] - side // 2
    first, last = start.clamp(0, size - 1), (start + side - 1).clamp(0, size - 1)
    position = torch.arange(size, device=images.device)
    return (position >= first) & (position <= last) & (side > 0)


def _sampling_dtype(images: Tensor) -> torch.dtype:
    # A half-precision coordinate cannot tell neighbouring pixels apart.
    return torch.promote_types(images.dtype, torch.float32)


def _centres(images: Tensor) -> Tensor:
    """Normalised (x, y) of every pixel centre, `(1, H, W, 2)`."""
    y, x = (_centres_along(side, images) for side in images.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]


def _centres_along(size: int, images: Tensor) -> Tensor:
    index = torch.arange(size, device=images.device, dtype=_sampling_dtype(images))
    return (2 * index + 1) / size - 1


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    """Sample `(N, C, H, W)` images at the `(R, H, W, 2)` points of each block."""
    # The grid comes from plain products and not from `affine_grid`, whose matrix product TF32 makes coarse.
    blocks = _blocks(images, grid)
    points = grid[:, None].expand(-1, blocks.shape[1], -1, -1, -1).flatten(0, 1)
    source = images.to(grid.dtype)
    sampled = F.grid_sample(source, points, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.to(images.dtype)
