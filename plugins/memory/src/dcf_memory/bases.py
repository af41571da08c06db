"""The mathematics of addressable memory: mixing, enlarging, and the best bases of given images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["addresses_of", "basis_size", "best_bases", "enlarge", "recall", "xavier"]


def basis_size(size: tuple[int, int], down: int) -> tuple[int, int]:
    """Height and width of a basis, ceil(H / down) and ceil(W / down).

    Args:
        size: `(H, W)` of an image.
        down: How many times smaller a basis is along each axis.
    """
    return -(-size[0] // down), -(-size[1] // down)


def enlarge(canvases: Tensor, down: int, size: tuple[int, int]) -> Tensor:
    """Canvases enlarged `down` times, bilinearly and without aligned corners; what sticks out is cut off.

    Args:
        canvases: `(N, C, h, w)` of the size that `basis_size` gives.
        down: Factor along each axis.
        size: `(H, W)` of the images, from which the last `h * down - H` rows and the like of columns are missing.

    Returns:
        `(N, C, H, W)`.
    """
    if down == 1:
        return canvases
    grown = F.interpolate(canvases, scale_factor=down, mode="bilinear", align_corners=False)
    return grown[..., : size[0], : size[1]]


def recall(addresses: Tensor, bases: Tensor, down: int, size: tuple[int, int]) -> Tensor:
    """Images of addresses, x_i = enlarge(sum over k of a_ik b_k) (Deng and Russakovsky, NeurIPS 2022).

    Args:
        addresses: `(N, K)`, of any value.
        bases: `(K, C, h, w)`, of any value; no image has any of its own.
        down: Factor by which the mixture is enlarged.
        size: `(H, W)` of the images.

    Returns:
        `(N, C, H, W)`; no clamp.
    """
    mixed = (addresses @ bases.flatten(1)).reshape(len(addresses), *bases.shape[1:])
    return enlarge(mixed, down, size)


def xavier(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform values of a table in +- sqrt(6 / (rows + columns)): the published start of both tables.

    The tables are those of all addresses, `(images of all classes, K)`, and of all bases, `(K, C h w)`: the more
    images there are, the smaller their addresses start.

    Args:
        rows: Of the table.
        columns: Of the table.
        generator: The only source of randomness, on the CPU.

    Returns:
        `(rows, columns)`.
    """
    bound = (6 / (rows + columns)) ** 0.5
    return (2 * torch.rand(rows, columns, generator=generator) - 1) * bound


def best_bases(images: Tensor, count: int, down: int) -> Tensor:
    """Bases whose mixtures come closest to images in the sum of squares, over all bases and addresses.

    With the enlargement written as matrices, x = E_h b E_w^T, and E = Q R of each, the images are projected on Q. By
    Eckart and Young the leading right singular vectors of what results span the best mixtures; R^-1 takes them back
    to bases. Each is scaled with the root of its singular value, so that enlarged bases and addresses share it: of
    all scales this one has the least sum of squares. Signs are such that the largest entry in magnitude is positive.

    Args:
        images: `(N, C, H, W)` in any value space.
        count: Bases wanted, K.
        down: How many times smaller they are along each axis.

    Returns:
        `(k, C, h, w)`, the most important first. k < K where the images have no more than k directions.
    """
    (q_rows, r_rows), (q_columns, r_columns) = (
        torch.linalg.qr(_enlargement(images, side, down)) for side in images.shape[-2:]
    )
    inside = q_rows.mT @ images @ q_columns
    _, s, vh = torch.linalg.svd(inside.flatten(1), full_matrices=False)
    noise_floor = torch.finfo(s.dtype).eps * max(inside.flatten(1).shape) * s[0]
    used = min(count, int((s > noise_floor).sum()))
    s, vh = s[:used, None], vh[:used]
    sign = torch.where(vh.gather(1, vh.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0).to(vh)
    scaled = (sign * s.sqrt() * vh).reshape(used, *inside.shape[1:])
    half = torch.linalg.solve_triangular(r_rows, scaled, upper=True)
    return torch.linalg.solve_triangular(r_columns.mT, half, upper=False, left=False)


def addresses_of(images: Tensor, enlarged: Tensor) -> Tensor:
    """Addresses whose mixtures of given bases come closest to images in the sum of squares; the smallest such ones.

    Args:
        images: `(N, C, H, W)`.
        enlarged: `(K, C, H, W)`, bases in the size of an image.

    Returns:
        `(N, K)`.
    """
    return images.flatten(1) @ torch.linalg.pinv(enlarged.flatten(1))


def _enlargement(like: Tensor, side: int, down: int) -> Tensor:
    """`(side, ceil(side / down))`: enlarging one axis, as a matrix of full column rank."""
    small = basis_size((side, 1), down)[0]
    units = torch.eye(small, dtype=like.dtype, device=like.device)[:, None, :, None]
    return enlarge(units, down, (side, 1))[:, 0, :, 0].mT
