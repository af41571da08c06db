"""Instance norm, ReLU and 2x2 pooling as one operation, written in C++, with its first and second derivative.

What the compiler makes of the same formulas passes through all images for each of their sums; see `_blocks.cpp`.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

import torch
from torch import Tensor

from dcf.compiled._library import address, call, direct, last, library

__all__ = ["BACKWARD", "FORWARD", "TWICE", "available", "norm_relu_pool"]

_SOURCE: Final = "_blocks"
_run = functools.partial(call, _SOURCE)


def available(channels: int) -> bool:
    """Whether the operation can be had for so many channels; it is compiled now if it was not yet."""
    return library(_SOURCE, channels) is not None


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Means of 2x2 pixels of the positive part of what instance norm makes of maps; twice differentiable.

    Args:
        x: `(N, C, H, W)` with sides of 2 and more, fp32 or bf16. An odd last row or column is in no mean.
        weight: `(C,)`.
        bias: `(C,)`.
        eps: Added to the variances.

    Returns:
        `(N, C, H // 2, W // 2)` in fp32, channels last in memory.
    """
    pooled: Tensor = _forward(x, weight, bias, eps, False)[0]
    return pooled


def _maps(x: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_int]:
    return address(x), ctypes.c_int(x.dtype == torch.bfloat16)


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, ...]:
    return tuple(ctypes.c_int64(n) for n in (x.shape[0], *x.shape[2:]))


def _empty(x: Tensor, height: int, width: int, low: bool) -> Tensor:
    dtype = torch.bfloat16 if low else torch.float32
    size = (*x.shape[:2], height, width)
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("dcf::norm_relu_pool", mutates_args=(), device_types="cpu")
@direct("norm_relu_pool")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, low: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled maps, in bf16 where they are to be low, and means and reciprocal deviations `(N, C)` of each image."""
    x, weight, bias = last(x), weight.contiguous(), bias.contiguous()
    pooled, mean, rstd = _forward_like(x, weight, bias, eps, low)
    _run(
        "dcf_forward", x.shape[1], *_maps(x), address(weight), address(bias), ctypes.c_float(eps), *_maps(pooled),
        address(mean), address(rstd), *_sizes(x),
    )  # fmt: skip
    return pooled, mean, rstd


@_forward.register_fake
def _forward_like(x: Tensor, weight: Tensor, bias: Tensor, eps: float, low: bool) -> tuple[Tensor, Tensor, Tensor]:
    each = x.new_empty(x.shape[:2], dtype=torch.float32)
    return _empty(x, x.shape[2] // 2, x.shape[3] // 2, low), each, torch.empty_like(each)


@torch.library.custom_op("dcf::norm_relu_pool_backward", mutates_args=(), device_types="cpu")
@direct("norm_relu_pool_backward")
def _backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, low: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the maps, in bf16 where they are to be low, and `(N, C)` in weight and bias, each image's own."""
    g, x, weight, bias = last(g), last(x), weight.contiguous(), bias.contiguous()
    gx, gw, gb = _backward_like(g, x, weight, bias, mean, rstd, low)
    _run(
        "dcf_backward", x.shape[1], *_maps(g), *_maps(x), address(weight), address(bias), address(mean), address(rstd),
        *_maps(gx), address(gw), address(gb), *_sizes(x),
    )  # fmt: skip
    return gx, gw, gb


@_backward.register_fake
def _backward_like(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, low: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x, x.shape[2], x.shape[3], low), torch.empty_like(mean), torch.empty_like(mean)


@torch.library.custom_op("dcf::norm_relu_pool_twice", mutates_args=(), device_types="cpu")
@direct("norm_relu_pool_twice")
def _twice(
    a: Tensor, alpha: Tensor, beta: Tensor,
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What a cotangent of the gradients comes to in g, in the maps, and `(N, C)` in the weight."""
    a, g, x = last(a), last(g), last(x)
    alpha, beta, weight, bias = (t.contiguous() for t in (alpha, beta, weight, bias))
    dg, dx, dw = _twice_like(a, alpha, beta, g, x, weight, bias, mean, rstd)
    _run(
        "dcf_twice", x.shape[1], *_maps(a), address(alpha), address(beta), *_maps(g), *_maps(x), address(weight),
        address(bias), address(mean), address(rstd), address(dg), address(dx), address(dw), *_sizes(x),
    )  # fmt: skip
    return dg, dx, dw


@_twice.register_fake
def _twice_like(
    a: Tensor, alpha: Tensor, beta: Tensor,
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    height, width = x.shape[2:]
    return _empty(x, height // 2, width // 2, False), _empty(x, height, width, False), torch.empty_like(mean)


def _keep_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _first_derivative(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gx, gw, gb = _backward(g, *ctx.saved_tensors, False)
    return gx, gw.sum(0), gb.sum(0), None, None


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6])


def _second_derivative(ctx: Any, a: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor | None, ...]:
    dg, dx, dw = _twice(a, alpha, beta, *ctx.saved_tensors)
    return dg, dx, dw.sum(0), None, None, None, None


_forward.register_autograd(_first_derivative, setup_context=_keep_forward)
_backward.register_autograd(_second_derivative, setup_context=_keep_backward)

#: The operations as they appear in a graph.
FORWARD = torch.ops.dcf.norm_relu_pool.default
BACKWARD = torch.ops.dcf.norm_relu_pool_backward.default
TWICE = torch.ops.dcf.norm_relu_pool_twice.default
