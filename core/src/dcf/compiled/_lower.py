"""What a kernel computes otherwise than the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dcf.networks.layers import mean_of_four

__all__ = ["Lowered", "Rounded"]

#: Which convolutions are computed in bf16; the others are in fp32.
Rounded: TypeAlias = Literal["all", "derivatives", "none"]

#: What is replaced by a product with a mask.
_RELUS: Final = (torch.relu, F.relu, Tensor.relu)


class Lowered(TorchFunctionMode):
    """Within it, convolutions are computed with channels last, most of them in bf16, and the rest in what fuses.

    What goes into a convolution in bf16 is rounded to it (8 bits of precision), products are summed in fp32, what
    comes out is rounded once more and is fp32 again.

    Args:
        rounded: "derivatives": convolutions of the forward pass are in fp32, so that no ReLU takes a pixel for one on
            the other side of its kink; the derivatives of convolutions, of any order, are in bf16. Such a flip turns
            a gradient by far more than the rounding of its own convolutions does. "none": nothing is in bf16.
    """

    def __init__(self, rounded: Rounded = "all") -> None:
        super().__init__()
        self.convolution = _CONVOLUTIONS[rounded]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace convolutions, ReLUs and pooling; everything else passes."""
        if func is torch.conv2d:
            return self.convolution(*args, **(kwargs or {}))
        if func in _RELUS:
            return _relu(args[0])
        if func is mean_of_four:
            return _mean_of_four(args[0])
        return func(*args, **(kwargs or {}))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    low_x, low_weight = (t.to(torch.bfloat16, memory_format=torch.channels_last) for t in (x, weight))
    # With one channel, the library takes some thirty times as long for the gradients of weight and bias together.
    apart = bias is not None and x.shape[1] == 1
    low_bias = None if bias is None or apart else bias.to(torch.bfloat16)
    found: Tensor = torch.conv2d(low_x, low_weight, low_bias, *rest, **options)
    found = found.to(x.dtype)
    return found + bias[:, None, None] if bias is not None and apart else found


def _forward_in_fp32(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    """The value of one convolution with the derivatives of another."""
    low = _convolution(x, weight, bias, *rest, **options)
    full = _in_fp32(x.detach(), weight.detach(), None if bias is None else bias.detach(), *rest, **options)
    return low + (full - low.detach())


def _in_fp32(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    return torch.conv2d(x, weight, *rest, **options)


_CONVOLUTIONS: Final[dict[Rounded, Callable[..., Tensor]]] = {
    "all": _convolution,
    "derivatives": _forward_in_fp32,
    "none": _in_fp32,
}


def _relu(x: Tensor) -> Tensor:
    # A mask of booleans takes the compiler's loops ten times as long to store as one of numbers.
    return x * (x.detach() > 0).to(x.dtype)


def _mean_of_four(x: Tensor) -> Tensor:
    *lead, height, width = x.shape
    return x.reshape(*lead, height // 2, 2, width // 2, 2).sum((-3, -1)) * 0.25
