"""Instance norm, ReLU and 2x2 pooling as one operation, written in C++, with its first and second derivative.

What the compiler makes of the same formulas passes through all images for each of their sums; see `_blocks.cpp`.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["BACKWARD", "FORWARD", "TWICE", "available", "norm_relu_pool"]

log = logging.getLogger(__name__)


def available(channels: int) -> bool:
    """Whether the operation can be had for so many channels; it is compiled now if it was not yet."""
    return _library(channels) is not None


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Means of 2x2 pixels of the positive part of what instance norm makes of maps; twice differentiable.

    Args:
        x: `(N, C, H, W)` with even sides, fp32 or bf16.
        weight: `(C,)`.
        bias: `(C,)`.
        eps: Added to the variances.

    Returns:
        `(N, C, H / 2, W / 2)` in fp32, channels last in memory.
    """
    pooled: Tensor = _forward(x, weight, bias, eps, False)[0]
    return pooled


@functools.cache
def _library(channels: int) -> ctypes.CDLL | None:
    try:
        from torch._inductor.codecache import CppCodeCache

        source = Path(__file__).with_name("_blocks.cpp").read_text(encoding="ascii")
        # The compiler's own loops are vectorised ahead; these are not.
        flags = ("-ftree-loop-vectorize", "-ffp-contract=fast")
        found: ctypes.CDLL = CppCodeCache.load(f"#define DCF_CHANNELS {channels}\n{source}", extra_flags=flags)
    except Exception as problem:  # a private interface of a compiler that may not be there; one can do without
        log.debug("no fused norms: %s: %s", type(problem).__name__, str(problem)[:300])
        return None
    return found


def _call(name: str, channels: int, *given: Any) -> None:
    """Call a function of the library; a tensor of images is passed as its address and whether it is in bf16."""
    library = _library(channels)
    if library is None:
        raise RuntimeError("the fused norm was asked for where it cannot be compiled")
    getattr(library, name)(*given)


def _at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _maps(x: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_int]:
    return _at(x), ctypes.c_int(x.dtype == torch.bfloat16)


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, ...]:
    return tuple(ctypes.c_int64(n) for n in (x.shape[0], *x.shape[2:]))


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, height: int, width: int, low: bool) -> Tensor:
    dtype = torch.bfloat16 if low else torch.float32
    size = (*x.shape[:2], height, width)
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("dcf::norm_relu_pool", mutates_args=(), device_types="cpu")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, low: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled maps, in bf16 where they are to be low, and means and reciprocal deviations `(N, C)` of each image."""
    x, weight, bias = _last(x), weight.contiguous(), bias.contiguous()
    pooled, mean, rstd = _forward_like(x, weight, bias, eps, low)
    _call(
        "dcf_forward", x.shape[1], *_maps(x), _at(weight), _at(bias), ctypes.c_float(eps), *_maps(pooled), _at(mean),
        _at(rstd), *_sizes(x),
    )  # fmt: skip
    return pooled, mean, rstd


@_forward.register_fake
def _forward_like(x: Tensor, weight: Tensor, bias: Tensor, eps: float, low: bool) -> tuple[Tensor, Tensor, Tensor]:
    each = x.new_empty(x.shape[:2], dtype=torch.float32)
    return _empty(x, x.shape[2] // 2, x.shape[3] // 2, low), each, torch.empty_like(each)


@torch.library.custom_op("dcf::norm_relu_pool_backward", mutates_args=(), device_types="cpu")
def _backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, low: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the maps, in bf16 where they are to be low, and `(N, C)` in weight and bias, each image's own."""
    g, x, weight, bias = _last(g), _last(x), weight.contiguous(), bias.contiguous()
    gx, gw, gb = _backward_like(g, x, weight, bias, mean, rstd, low)
    _call(
        "dcf_backward", x.shape[1], *_maps(g), *_maps(x), _at(weight), _at(bias), _at(mean), _at(rstd), *_maps(gx),
        _at(gw), _at(gb), *_sizes(x),
    )  # fmt: skip
    return gx, gw, gb


@_backward.register_fake
def _backward_like(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, low: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x, x.shape[2], x.shape[3], low), torch.empty_like(mean), torch.empty_like(mean)


@torch.library.custom_op("dcf::norm_relu_pool_twice", mutates_args=(), device_types="cpu")
def _twice(
    a: Tensor, alpha: Tensor, beta: Tensor,
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What a cotangent of the gradients comes to in g, in the maps, and `(N, C)` in the weight."""
    a, g, x = _last(a), _last(g), _last(x)
    alpha, beta, weight, bias = (t.contiguous() for t in (alpha, beta, weight, bias))
    dg, dx, dw = _twice_like(a, alpha, beta, g, x, weight, bias, mean, rstd)
    _call(
        "dcf_twice", x.shape[1], *_maps(a), _at(alpha), _at(beta), *_maps(g), *_maps(x), _at(weight), _at(bias),
        _at(mean), _at(rstd), _at(dg), _at(dx), _at(dw), *_sizes(x),
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
