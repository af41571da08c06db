"""The first block of a network as one operation, written in C++, with the gradients of its weights.

What lies between the images and what is pooled is four times as large as that, or more; it is never in memory here. See
`_first.cpp`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from dcf.compiled._convolutions import FEW, maps, sizes, suit
from dcf.compiled._library import address, call, direct, last, library

__all__ = ["OPERATIONS", "available", "first_block"]

_SOURCE: Final = "_first"
_Three: TypeAlias = tuple[Tensor, Tensor, Tensor]
_Four: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


def available(x: Sequence[int], weight: Sequence[int]) -> bool:
    """As `available` of `_convolutions`, for images `(N, C, H, W)` and weights `(K, C, 3, 3)` of a first block."""
    even = suit(x, weight) and x[2] % 2 == x[3] % 2 == 0
    return even and weight[1] <= FEW and library(_SOURCE, weight[1]) is not None


def first_block(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Means of 2x2 pixels of the positive part of what instance norm makes of a convolution of images.

    Differentiable once, in all but the images.

    Args:
        x: `(N, C, H, W)` in fp32, with at most 4 channels and even sides.
        weight: `(K, C, 3, 3)`; K a multiple of 16. The convolution has stride 1 and padding 1.
        bias: `(K,)`.
        scale: Of the norm, `(K,)`.
        shift: Of the norm, `(K,)`.
        eps: Added to the variances.

    Returns:
        `(N, K, H / 2, W / 2)`, channels last in memory.
    """
    pooled: Tensor = _forward(x, weight, bias, scale, shift, eps)[0]
    return pooled


@torch.library.custom_op("dcf::first_block", mutates_args=(), device_types="cpu")
@direct("first_block")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float) -> _Three:
    """Pooled maps, and means and reciprocal deviations `(N, K)` of each image's convolution."""
    out: _Three = _forward_like(x, weight, bias, scale, shift, eps)
    given = [last(x), *(t.contiguous() for t in (weight, bias, scale, shift))]
    numbers = ctypes.c_float(eps), *sizes(len(x), x.shape[2:], weight.shape)
    call(_SOURCE, "dcf_first", x.shape[1], *map(address, (*given, *out)), *numbers)
    return out


@_forward.register_fake
def _forward_like(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float) -> _Three:
    mean = torch.empty((len(x), len(weight)), dtype=torch.float32, device=x.device)
    return maps(x, len(x), len(weight), [side // 2 for side in x.shape[2:]]), mean, torch.empty_like(mean)


@torch.library.custom_op("dcf::first_block_backward", mutates_args=(), device_types="cpu")
@direct("first_block_backward")
def _backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor
) -> _Four:
    """Gradients in weight, bias, scale and shift."""
    out: _Four = _backward_like(g, x, weight, bias, scale, shift, mean, rstd)
    given = [last(g), last(x), *(t.contiguous() for t in (weight, bias, scale, shift, mean, rstd))]
    numbers = sizes(len(x), x.shape[2:], weight.shape)
    call(_SOURCE, "dcf_first_backward", x.shape[1], *map(address, (*given, *out)), *numbers)
    return out


@_backward.register_fake
def _backward_like(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor
) -> _Four:
    each = [torch.empty(len(weight), dtype=torch.float32, device=x.device) for _ in range(3)]
    return torch.empty(weight.shape, dtype=torch.float32, device=x.device), each[0], each[1], each[2]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: _Three) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])


def _derivative(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return None, *_backward(g, *ctx.saved_tensors), None


_forward.register_autograd(_derivative, setup_context=_keep)

#: As they appear in a graph.
OPERATIONS: Final = (torch.ops.dcf.first_block.default, torch.ops.dcf.first_block_backward.default)
