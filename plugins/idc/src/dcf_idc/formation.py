"""Multi-formation: which tiles a stored image is cut into, how they become images, and images tiles again.

A stored image, here a canvas, is cut into a grid of rows x columns equal tiles, after padding on the right and at the
bottom where its sides are no multiples; each tile is enlarged to a whole image (Kim et al., ICML 2022, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf_idc.options import Axis, Decode

__all__ = ["PADDING", "decode_tiles", "grid_of", "pack", "shrink", "tile_size", "view_table"]

#: Value of the padding, in units of pixels in [0, 1].
PADDING = 0.5


def grid_of(factor: int, axes: Sequence[Axis]) -> tuple[int, int]:
    """`(rows, columns)` of tiles that a factor makes along the given axes.

    Example:
        >>> grid_of(3, ("height", "width")), grid_of(3, ("width",))
        ((3, 3), (1, 3))
    """
    return factor if "height" in axes else 1, factor if "width" in axes else 1


def tile_size(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """`(h, w)` of a tile of a canvas of `(H, W)`: ceil(H / rows) and ceil(W / columns)."""
    return -(-size[0] // grid[0]), -(-size[1] // grid[1])


def view_table(canvases: int, factor: int, decode: Decode, bound: int, axes: Sequence[Axis]) -> Tensor:
    """The images that canvases decode to, in order: of which canvas, with which factor, and which tile.

    `single`: tile (0, 0) of every canvas, then tile (0, 1) of every one, and so on row by row. `multi`: those of
    factor 1, then those of factor 2, up to the factor. `bound`: from the factor down to 1, as many of the next canvases
    as leave room for the rest, of which each needs one: with room = bound - left - done, the first
    min(room // tiles, left) of those that are left, and at factor 1 all of them.

    Args:
        canvases: N.
        factor: The largest factor.
        decode: Which of the three.
        bound: Images at most; of `bound` only. N where that is more.
        axes: Those that are cut.

    Returns:
        `(views, 4)` int64, on the CPU: canvas, factor, row and column of the tile.
    """
    if decode == "single":
        return _tiles(range(canvases), factor, axes)
    if decode == "multi":
        return torch.cat([_tiles(range(canvases), k, axes) for k in range(1, factor + 1)])
    parts, first, done = [], 0, 0
    for k in range(factor, 0, -1):
        left, tiles = canvases - first, _count(k, axes)
        room = max(0, bound - left - done)
        n = left if k == 1 else min(room // tiles, left)
        parts.append(_tiles(range(first, first + n), k, axes))
        first, done = first + n, done + n * tiles
    return torch.cat(parts)


def _count(factor: int, axes: Sequence[Axis]) -> int:
    rows, columns = grid_of(factor, axes)
    return rows * columns


def _tiles(canvases: range, factor: int, axes: Sequence[Axis]) -> Tensor:
    """The rows of `view_table` for some canvases and one factor, tile-major."""
    rows, columns = grid_of(factor, axes)
    # On the CPU also where a set is planned on the meta device: a table is its values.
    parts = [range(rows), range(columns), canvases]
    row, column, canvas = torch.meshgrid(
        *(torch.tensor(p, dtype=torch.long, device="cpu") for p in parts), indexing="ij"
    )
    return torch.stack([canvas, torch.full_like(canvas, factor), row, column], dim=-1).flatten(0, 2)


def decode_tiles(canvases: Tensor, row: Tensor, column: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """One tile of each canvas, enlarged to an image: bilinear, without aligned corners; differentiable.

    Args:
        canvases: `(n, C, H, W)`, pixels nominally in [0, 1]; padded with 0.5 where the grid does not divide a side.
        row: `(n,)` row of the tile of each.
        column: `(n,)` likewise.
        grid: `(rows, columns)` of tiles.
        size: `(H', W')` of an image.

    Returns:
        `(n, C, H', W')`.
    """
    n, channels, height, width = canvases.shape
    if grid != (1, 1):
        h, w = tile_size((height, width), grid)
        missing = (0, grid[1] * w - width, 0, grid[0] * h - height)
        if any(missing):
            canvases = F.pad(canvases, missing, value=PADDING)
        tiles = canvases.reshape(n, channels, grid[0], h, grid[1], w)
        canvases = tiles[torch.arange(n, device=canvases.device), :, row, :, column]
    if canvases.shape[-2:] == torch.Size(size):
        return canvases
    return F.interpolate(canvases, size, mode="bilinear", align_corners=False)


def shrink(images: Tensor, size: tuple[int, int], how: Literal["nearest", "area"]) -> Tensor:
    """Images in the size of a tile.

    Args:
        images: `(n, C, H, W)`.
        size: `(h, w)` of a tile.
        how: "nearest": one pixel of each patch, the published choice; "area": its mean.

    Returns:
        `(n, C, h, w)`.
    """
    return images if images.shape[-2:] == torch.Size(size) else F.interpolate(images, size, mode=how)


def pack(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """Canvases of tiles; what sticks out on the right and at the bottom is cut off.

    Args:
        tiles: `(N, rows, columns, C, h, w)`.
        size: `(H, W)` of a canvas.

    Returns:
        `(N, C, H, W)`.
    """
    n, rows, columns, channels, h, w = tiles.shape
    whole = tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, rows * h, columns * w)
    return whole[..., : size[0], : size[1]]
