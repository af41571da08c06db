"""Adversarial examples within a box of pixels, whatever the value space of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Model", "fgsm", "pgd"]

#: From `(N, C, H, W)` pixels in [0, 1] to `(N, K)` logits, differentiable.
Model: TypeAlias = "Callable[[Tensor], Tensor]"


def fgsm(model: Model, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
    """One step of size `eps` along the sign of the gradient (Goodfellow et al., ICLR 2015).

    Args:
        model: What is attacked.
        pixels: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` true class indices.
        eps: Largest change of a pixel, in [0, 1].

    Returns:
        `(N, C, H, W)` in [0, 1].
    """
    return (pixels + eps * _direction(model, pixels, labels)).clamp(0, 1)


def pgd(
    model: Model,
    pixels: Tensor,
    labels: Tensor,
    eps: float,
    steps: int,
    step: float,
    generator: torch.Generator,
) -> Tensor:
    """Steps along the sign of the gradient, each taken back into the box, from a random start (Madry et al., 2018).

    Args:
        model: What is attacked.
        pixels: `(N, C, H, W)` in [0, 1].
        labels: `(N,)` true class indices.
        eps: Largest change of a pixel, in [0, 1].
        steps: Their number.
        step: Size of each.
        generator: A CPU generator, for the start.

    Returns:
        `(N, C, H, W)` in [0, 1].
    """
    low, high = (pixels - eps).clamp(min=0), (pixels + eps).clamp(max=1)
    noise = torch.rand(pixels.shape, generator=generator).to(pixels)
    moved = low + noise * (high - low)
    for _ in range(steps):
        moved = torch.clamp(moved + step * _direction(model, moved, labels), low, high)
    return moved


def _direction(model: Model, pixels: Tensor, labels: Tensor) -> Tensor:
    """Sign of the gradient of the cross-entropy, summed over images, in the pixels."""
    leaf = pixels.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(model(leaf), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient.sign()
