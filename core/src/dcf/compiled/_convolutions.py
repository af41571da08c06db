"""3x3 convolutions in fp32, written in C++: in tiles by minimal filtering, with a sixth of the multiplications.

Convolution, gradient in the images and gradient in the weights are derivatives of each other, so the three operations
can be differentiated any number of times (`_tiles.cpp`). With as few channels as images have, sums are taken as they
are defined (`_few.cpp`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from dcf.compiled._library import address, call, direct, last, library

__all__ = ["FEW", "LANES", "OPERATIONS", "available", "convolution", "maps", "sizes", "suit"]

#: Channels must be a multiple of the values in the widest registers, or so few that sums are taken as defined.
LANES: Final = 16
FEW: Final = 4
#: Below, tiles would be mostly border: 2x2 maps have as many multiplications in tiles as by definition.
_SMALLEST: Final = 3


def available(x: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether the operation can be had for images and weights of these shapes; it is compiled now if it was not yet.

    Args:
        x: `(N, C, H, W)`.
        weight: `(K, C, 3, 3)`.
    """
    if not suit(x, weight) or (weight[1] > FEW and (weight[1] % LANES or min(x[2:]) < _SMALLEST)):
        return False
    return library(_source(weight)) is not None


def suit(x: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether shapes are those of images and of 3x3 weights for them, with filters in whole registers."""
    return len(x) == 4 and tuple(weight[1:]) == (x[1], 3, 3) and min(x) > 0 and weight[0] % LANES == 0


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of stride 1 and padding 1; differentiable any number of times.

    Args:
        x: `(N, C, H, W)` in fp32, sides of 3 and more.
        weight: `(K, C, 3, 3)`; K a multiple of 16, C likewise, or at most 4.
        bias: `(K,)`.

    Returns:
        `(N, K, H, W)`, channels last in memory. The relative error is about 2e-5 in tiles of 8x8 and 2e-6 in those of
        4x4, that of the gradient in the weights 8e-5 and 1e-5; as defined, 3e-7 and 3e-6.
    """
    found: Tensor = _convolution(x, weight, bias)
    return found


def _source(weight: Sequence[int]) -> str:
    return "_few" if weight[1] <= FEW else "_tiles"


def _run(function: str, n: int, sides: Sequence[int], weight: Sequence[int], *tensors: Tensor | None) -> None:
    source = _source(weight)
    call(source, f"dcf{source}{function}", 0, *map(address, tensors), *sizes(n, sides, weight))


def sizes(n: int, sides: Sequence[int], weight: Sequence[int]) -> list[ctypes.c_int64]:
    """N, H, W, C and K, as all functions take them last."""
    return [ctypes.c_int64(size) for size in (n, *sides, weight[1], weight[0])]


def maps(like: Tensor, n: int, channels: int, sides: Sequence[int]) -> Tensor:
    """Room for maps, channels last in memory."""
    size = (n, channels, *sides)
    return torch.empty(size, dtype=torch.float32, device=like.device, memory_format=torch.channels_last)


@torch.library.custom_op("dcf::convolution", mutates_args=(), device_types="cpu")
@direct("convolution")
def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of images and weights."""
    x, weight, bias = last(x), weight.contiguous(), None if bias is None else bias.contiguous()
    out: Tensor = _convolution_like(x, weight, bias)
    _run("", len(x), x.shape[2:], weight.shape, x, weight, bias, out)
    return out


@_convolution.register_fake
def _convolution_like(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return maps(x, len(x), len(weight), x.shape[2:])


@torch.library.custom_op("dcf::convolution_images", mutates_args=(), device_types="cpu")
@direct("convolution_images")
def _of_images(g: Tensor, weight: Tensor) -> Tensor:
    """What a cotangent `(N, K, H, W)` of the convolution comes to in the images."""
    g, weight = last(g), weight.contiguous()
    out: Tensor = _of_images_like(g, weight)
    _run("_images", len(g), g.shape[2:], weight.shape, g, weight, out)
    return out


@_of_images.register_fake
def _of_images_like(g: Tensor, weight: Tensor) -> Tensor:
    return maps(g, len(g), weight.shape[1], g.shape[2:])


@torch.library.custom_op("dcf::convolution_weights", mutates_args=(), device_types="cpu")
@direct("convolution_weights")
def _of_weights(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """What a cotangent `(N, K, H, W)` of the convolution comes to in weights and bias."""
    x, g = last(x), last(g)
    weight, bias = _of_weights_like(x, g)
    _run("_weights", len(x), x.shape[2:], weight.shape, x, g, weight, bias)
    return weight, bias


@_of_weights.register_fake
def _of_weights_like(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.empty((g.shape[1], x.shape[1], 3, 3), dtype=torch.float32, device=x.device)
    return weight, torch.empty_like(weight[:, 0, 0, 0])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _of_convolution(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    gw, gb = _of_weights(x, g) if of_weight or of_bias else (None, None)
    return _of_images(g, weight) if of_x else None, gw if of_weight else None, gb if of_bias else None


def _of_image_gradient(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
    g, weight = ctx.saved_tensors
    of_g, of_weight = ctx.needs_input_grad
    return _convolution(a, weight, None) if of_g else None, _of_weights(a, g)[0] if of_weight else None


def _of_weight_gradient(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
    x, g = ctx.saved_tensors
    of_x, of_g = ctx.needs_input_grad
    return _of_images(g, a) if of_x else None, _convolution(x, a, b) if of_g else None


_convolution.register_autograd(_of_convolution, setup_context=_keep)
_of_images.register_autograd(_of_image_gradient, setup_context=_keep)
_of_weights.register_autograd(_of_weight_gradient, setup_context=_keep)


#: As they appear in a graph.
OPERATIONS: Final = (
    torch.ops.dcf.convolution.default,
    torch.ops.dcf.convolution_images.default,
    torch.ops.dcf.convolution_weights.default,
)
