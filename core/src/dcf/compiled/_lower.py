"""What a kernel computes otherwise than the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dcf.compiled import _blocks, _convolutions, _first
from dcf.networks.layers import mean_of_four

__all__ = ["EXACT", "Lowered", "Rounded", "RoundedMaps"]

#: Which convolutions are computed in bf16; the others are in fp32, and in tiles if it says so.
Rounded: TypeAlias = Literal["all", "derivatives", "blocks", "tiled", "none"]

#: What is replaced by a product with a mask.
_RELUS: Final = (torch.relu, F.relu, Tensor.relu)
_DETACHING: Final = (torch.detach, Tensor.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


class Lowered(TorchFunctionMode):
    """Within it, convolutions are computed with channels last, in bf16 or in tiles, and the rest in what fuses.

    What goes into a convolution in bf16 is rounded to it (8 bits of precision), products are summed in fp32, what
    comes out is rounded once more and is fp32 again. Instance norm, ReLU and means of 2x2 in a row are one operation.

    Args:
        rounded: "derivatives": convolutions of the forward pass are in fp32, so that no ReLU takes a pixel for one on
            the other side of its kink; the derivatives of convolutions, of any order, are in bf16. Such a flip turns
            a gradient by far more than the rounding of its own convolutions does. "tiled": nothing is in bf16, and
            convolutions of 3x3 are computed in tiles where they can be. "blocks": as "tiled", and the first one is one
            operation with norm, ReLU and means; images cannot be differentiated then. "none": nothing is in bf16.
    """

    def __init__(self, rounded: Rounded = "all") -> None:
        super().__init__()
        self.convolution = _CONVOLUTIONS[rounded]
        self.blocks = rounded == "blocks"
        # What convolutions and instance norms yielded and ReLUs made of that, beside what went in; kept, so that no id
        # is used again.
        self._convolved: dict[int, tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = {}
        self._normed: dict[int, tuple[Tensor, _Normed]] = {}
        self._rectified: dict[int, tuple[Tensor, _Normed]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace convolutions, norms, ReLUs and pooling; everything else passes."""
        if func is torch.conv2d:
            return self._convolution(*args, **(kwargs or {}))
        if func is F.group_norm:
            return self._norm(*args, **(kwargs or {}))
        if func in _RELUS:
            return self._relu(args[0])
        if func is mean_of_four:
            return self._mean_of_four(args[0])
        if func is F.avg_pool2d:
            return self._pool(*args, **(kwargs or {}))
        if func in _DETACHING:
            return _constant(args[0])
        return func(*args, **(kwargs or {}))

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
        found = self.convolution(x, weight, bias, *rest, **options)
        # Of images, that is: there is nothing before them that a gradient could go to.
        if self.blocks and bias is not None and x.grad_fn is None:
            framed = _framed(x, weight, *rest, **options)
            if framed is not None:
                self._convolved[id(found)] = (found, (framed, weight, bias))
        return found

    def _norm(
        self, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        found = F.group_norm(x, groups, weight, bias, eps)
        whole = x.dim() == 4 and groups == x.shape[1] and x.dtype == torch.float32
        if whole and weight is not None and bias is not None:
            self._normed[id(found)] = (found, _Normed(x, weight, bias, eps))
        return found

    def _relu(self, x: Tensor) -> Tensor:
        found = _relu(x)
        if id(x) in self._normed:
            self._rectified[id(found)] = (found, self._normed[id(x)][1])
        return found

    def _mean_of_four(self, x: Tensor) -> Tensor:
        even = x.shape[-2] % 2 == x.shape[-1] % 2 == 0
        fused = self._fused(x) if even else None
        return _mean_of_four(x) if fused is None else fused

    def _pool(self, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        # Maps of odd sides, whose last row or column is left out.
        fused = self._fused(x) if rest in ((2,), ((2, 2),)) and not options and min(x.shape[-2:]) > 1 else None
        return F.avg_pool2d(x, *rest, **options) if fused is None else fused

    def _fused(self, x: Tensor) -> Tensor | None:
        # Norm and ReLU were computed already, while tracing; nothing depends on them then, and they are dropped.
        if id(x) not in self._rectified:
            return None
        _, normed = self._rectified[id(x)]
        _, convolved = self._convolved.get(id(normed.x), (None, None))
        if convolved is not None and _first.available(convolved[0].shape, convolved[1].shape):
            return _first.first_block(*convolved, *normed[1:])
        return _blocks.norm_relu_pool(*normed) if _blocks.available(x.shape[1]) else None


class RoundedMaps(TorchFunctionMode):
    """Within it, convolutions and the maps between them are in bf16, sums of products in fp32: for a GPU.

    There, what lies between convolutions takes as long as its bytes take to be read and written. Group norms, ReLUs and
    pooling take and yield bf16, everything else fp32.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Round what goes into convolutions and norms; widen again what goes elsewhere."""
        kwargs = kwargs or {}
        if func is torch.conv2d or func is F.group_norm:
            return func(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
        if func in _ON_MAPS or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        return func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})


#: What takes maps in bf16 and yields such.
_ON_MAPS: Final = (*_RELUS, F.leaky_relu, F.silu, F.avg_pool2d, mean_of_four)


def _rounded(value: Any) -> Any:
    wide = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if wide else value


def _widened(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.to(torch.float32) if low else value


@torch.library.custom_op("dcf::constant", mutates_args=(), device_types="cpu")
def _constant(x: Tensor) -> Tensor:
    """The same values, detached: a traced graph does not tell whether the network did that or autograd."""
    return x.clone()


@_constant.register_fake
def _constant_like(x: Tensor) -> Tensor:
    return torch.empty_like(x)


_constant.register_autograd(lambda ctx, g: None)


class _Normed(NamedTuple):
    """What an instance norm was given."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    eps: float


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    low_x, low_weight = (t.to(torch.bfloat16, memory_format=torch.channels_last) for t in (x, weight))
    # With one channel, the library takes some thirty times as long for the gradients of weight and bias together, in
    # fp32 as in bf16.
    apart = bias is not None and x.shape[1] == 1
    low_bias = None if bias is None or apart else bias.to(torch.bfloat16)
    found: Tensor = torch.conv2d(low_x, low_weight, low_bias, *rest, **options)
    found = found.to(x.dtype)
    return found + bias[:, None, None] if bias is not None and apart else found


def _forward_in_fp32(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or x.dim() != 4:
        return _in_fp32(x, weight, bias, stride, padding, dilation, groups)
    sizes = [_both(n) for n in (stride, padding, dilation)]
    found: Tensor = _exact(x, weight, bias, *sizes, groups)
    return found


@torch.library.custom_op("dcf::exact_convolution", mutates_args=(), device_types="cpu")
def _exact(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution in fp32 whose derivatives are in bf16: an operation of its own, as a graph would see through it."""
    found = _tiled(x, weight, bias, stride, padding, dilation, groups)
    return found.contiguous(memory_format=torch.channels_last)


@_exact.register_fake
def _exact_like(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return torch.conv2d(x, weight, bias, *rest).contiguous(memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.rest = inputs
    ctx.save_for_backward(x, weight)


def _derivative_in_bf16(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    low_g, x, weight = (t.to(torch.bfloat16, memory_format=torch.channels_last) for t in (g, *ctx.saved_tensors))
    stride, padding, dilation, groups = ctx.rest
    # With one channel, the library takes some thirty times as long for the gradients of weight and bias together.
    apart = ctx.needs_input_grad[2] and x.shape[1] == 1
    wanted = [*ctx.needs_input_grad[:2], ctx.needs_input_grad[2] and not apart]
    gx, gw, gb = torch.ops.aten.convolution_backward(
        low_g, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups, wanted
    )
    if apart:
        gb = g.sum((0, 2, 3))
    return (*(None if t is None else t.to(g.dtype) for t in (gx, gw, gb)), None, None, None, None)


_exact.register_autograd(_derivative_in_bf16, setup_context=_keep)

#: The operation as it appears in a graph.
EXACT: Final = torch.ops.dcf.exact_convolution.default


def _in_fp32(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    if bias is None or x.shape[1] > 1:
        return torch.conv2d(x, weight, bias, *rest, **options)
    return torch.conv2d(x, weight, None, *rest, **options) + bias[:, None, None]  # see _convolution


def _tiled(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    framed = _framed(x, weight, *rest, **options)
    if framed is not None and _convolutions.available(framed.shape, weight.shape):
        return _convolutions.convolution(framed, weight, bias)
    return _in_fp32(x, weight, bias, *rest, **options)


def _framed(
    x: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor | None:
    """What a 3x3 convolution with a padding of 1 makes the same of; None where there is no such thing, or not in fp32.

    That is `x` itself, or images with a frame of zeros, which networks for sides that are no power of two give them.
    """
    whole = [_both(stride), _both(dilation)] == [[1, 1]] * 2 and groups == 1 and x.dim() == 4
    if not whole or isinstance(padding, str) or not x.dtype == weight.dtype == torch.float32:
        return None
    down, across = (size - 1 for size in _both(padding))
    if down == across == 0:
        return x
    few = x.shape[1] <= _convolutions.FEW and min(down, across) >= 0
    return F.pad(x, (across, across, down, down)) if few else None


def _both(size: Any) -> Any:
    return [size, size] if isinstance(size, int) else size if isinstance(size, str) else list(size)


_CONVOLUTIONS: Final[dict[Rounded, Callable[..., Tensor]]] = {
    "all": _convolution,
    "derivatives": _forward_in_fp32,
    "blocks": _tiled,
    "tiled": _tiled,
    "none": _in_fp32,
}


def _relu(x: Tensor) -> Tensor:
    # A mask of booleans takes the compiler's loops ten times as long to store as one of numbers.
    return x * (x > 0).to(x.dtype)


def _mean_of_four(x: Tensor) -> Tensor:
    *lead, height, width = x.shape
    return x.reshape(*lead, height // 2, 2, width // 2, 2).sum((-3, -1)) * 0.25
