"""The mathematics of low-rank images: product, balanced truncated SVD, and the two kinds of noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dcf

__all__ = ["balanced_svd", "noise_factors", "rank_decode", "variance_corrected"]


def rank_decode(a: Tensor, b: Tensor) -> Tensor:
    """Images of factors, X = A B for each image and channel (Yang et al., NeurIPS 2023, the map Omega).

    No scale, offset or clamp. The gradients are dA = G B^T and dB = A^T G for an arriving G.

    Args:
        a: `(N, C, H, r)` left factors.
        b: `(N, C, r, W)` right factors.

    Returns:
        `(N, C, H, W)`, of rank at most r in each channel.
    """
    return a @ b


def balanced_svd(images: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of rank r: A = U sqrt(S) and B = sqrt(S) V^T with the r largest of S.

    Balanced, because a step of SGD moves X by about -lr (G B^T B + A A^T G): with c A and B / c the images would be
    the same and the steps not. Signs are such that the entry of largest magnitude in each column of A is positive.

    Where an image has less than r directions, the others would be zero in both factors, and no gradient would ever
    reach them. They get the unit column of U in A and zeros in B, which leaves X as it is.

    Args:
        images: `(N, C, H, W)` in any value space.
        r: Rank, at most min(H, W).

    Returns:
        `A (N, C, H, r)` and `B (N, C, r, W)`.

    Raises:
        BudgetError: When r is larger than min(H, W).
    """
    height, width = images.shape[-2:]
    if r > min(height, width):
        raise dcf.BudgetError(
            f"lowrank: images of {height} x {width} have no rank {r}; expected at most {min(height, width)}"
        )
    u, s, vh = torch.linalg.svd(images, full_matrices=False)
    u, s, vh = u[..., :r], s[..., :r], vh[..., :r, :]
    sign = torch.where(u.gather(-2, u.abs().argmax(-2, keepdim=True)) < 0, -1.0, 1.0).to(u)
    noise_floor = torch.finfo(s.dtype).eps * max(height, width) * s[..., :1]
    empty = s <= noise_floor
    root = s.sqrt()
    left = torch.where(empty, 1.0, root)
    right = torch.where(empty, 0.0, root)
    return u * sign * left.unsqueeze(-2), right.unsqueeze(-1) * (vh * sign.mT)


def noise_factors(shapes: Sequence[Sequence[int]], generator: torch.Generator) -> list[Tensor]:
    """Standard normal factors, drawn one after the other on the CPU: the published initialisation.

    Pixels then have mean 0 and standard deviation sqrt(r), with heavy tails.

    Args:
        shapes: Of A, then of B.
        generator: The only source of randomness.
    """
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def variance_corrected(a: Tensor, b: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Both factors times r^(-1/4) sigma^(1/2), so that standard normal ones give pixels of deviation `sigma`.

    A pixel is a sum of r products of two independent standard normal values, hence of variance r.

    Args:
        a: `(N, C, H, r)`.
        b: `(N, C, r, W)`.
        sigma: Standard deviation of the pixels wanted.
    """
    scale = a.shape[-1] ** -0.25 * sigma**0.5
    return a * scale, b * scale
