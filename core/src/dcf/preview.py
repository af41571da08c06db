"""A picture of a synthetic set: a grid of its decoded images, one class a row."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf.files import atomic_write
from dcf.space import ValueSpace
from dcf.synthetic import SyntheticSet

__all__ = ["class_grid", "displayable", "png", "save_picture", "save_preview", "thinned", "tiled"]

#: Views a class that are shown, and rows at most: a picture of 200 classes with 80 views each helps nobody.
_COLUMNS, _ROWS, _SIDE = 10, 40, 32
#: Side of a tile at most, in pixels.
_LARGEST = 256
#: Width in pixels and value of the lines between tiles.
_LINE, _GREY = 2, 128


def displayable(images: Tensor, space: ValueSpace) -> Tensor:
    """Images as 8-bit pixels for the eye.

    Args:
        images: `(N, C, H, W)` in `space`.
        space: What the values mean.

    Returns:
        `(N, 1 or 3, H, W)` uint8. Values outside [0, 1] are cut off; of more than three channels the first three are
        shown, of two the first.
    """
    pixels = space.decode(images.float()).clamp(0, 1)
    channels = 3 if pixels.shape[1] >= 3 else 1
    return (pixels[:, :channels] * 255).round().to(torch.uint8)


def class_grid(synthetic: SyntheticSet) -> Tensor:
    """`(1 or 3, H, W)` uint8: one class a row, small images enlarged by whole factors."""
    view_class = synthetic.param.view_class
    present = torch.unique(view_class)[:_ROWS]
    rows = [torch.nonzero(view_class == c).flatten()[:_COLUMNS] for c in present]
    columns = max(len(r) for r in rows)
    tiles = []
    for row in rows:
        # One at a time: decoded images may be far larger than what is stored of them.
        images = torch.cat([_tile(synthetic, index) for index in row[:, None]])
        blank = torch.zeros(columns - len(row), *images.shape[1:], dtype=torch.uint8)
        tiles.append(torch.cat([images, blank]))
    return tiled(torch.cat(tiles), columns)


def tiled(tiles: Tensor, columns: int, side: int = _SIDE) -> Tensor:
    """`(C, H, W)` of `(rows * columns, C, h, w)` uint8 tiles, row by row, with grey lines between and around them.

    Tiles that are smaller than `side` pixels are enlarged by whole factors.
    """
    factor = max(1, side // max(tiles.shape[-2:]))
    big = tiles.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    framed = F.pad(big, (_LINE, 0, _LINE, 0), value=_GREY)
    rows = framed.reshape(-1, columns, *framed.shape[1:]).permute(2, 0, 3, 1, 4)
    grid = rows.flatten(3, 4).flatten(1, 2)
    return F.pad(grid, (0, _LINE, 0, _LINE), value=_GREY)


def _tile(synthetic: SyntheticSet, index: Tensor) -> Tensor:
    return thinned(displayable(synthetic.batch(index).x, synthetic.space).cpu(), _LARGEST)


def thinned(images: Tensor, side: int) -> Tensor:
    """`(N, C, h, w)`: images of which every k-th row and column is left, so that both sides are at most `side`."""
    step = -(-max(images.shape[-2:]) // side)
    return images[..., ::step, ::step].clone()


def save_preview(synthetic: SyntheticSet, path: Path | str) -> None:
    """Write the grid as a PNG file, atomically.

    Raises:
        RunError: When it cannot be written.
    """
    save_picture(class_grid(synthetic), path)


def save_picture(picture: Tensor, path: Path | str) -> None:
    """Write a `(1 or 3, H, W)` uint8 picture as a PNG file, atomically.

    Raises:
        RunError: When it cannot be written.
    """
    atomic_write(path, png(picture))


def png(picture: Tensor) -> bytes:
    """A PNG file of a `(1 or 3, H, W)` uint8 picture."""
    from PIL import Image

    grid = picture.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(grid if grid.shape[2] == 3 else grid[..., 0]).save(buffer, format="PNG")
    return buffer.getvalue()
