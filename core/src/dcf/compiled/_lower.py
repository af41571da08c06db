"""What a kernel computes otherwise than the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Lowered"]


class Lowered(TorchFunctionMode):
    """Within it, convolutions are computed in bf16 with channels last, and group norms in plain operations.

    What goes into a convolution is rounded to bf16 (8 bits of precision), products are summed in fp32, what comes out
    is rounded once more and is fp32 again. Plain operations can be fused with what surrounds them; the library's group
    norm cannot.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace the two functions; everything else passes."""
        if func is torch.conv2d:
            return _convolution(*args, **(kwargs or {}))
        if func is torch.group_norm:
            return _group_norm(*args[:5])
        return func(*args, **(kwargs or {}))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    low_x, low_weight = (t.to(torch.bfloat16, memory_format=torch.channels_last) for t in (x, weight))
    # With one channel, the library takes some thirty times as long for the gradients of weight and bias together.
    apart = bias is not None and x.shape[1] == 1
    low_bias = None if bias is None or apart else bias.to(torch.bfloat16)
    found: Tensor = torch.conv2d(low_x, low_weight, low_bias, *rest, **options)
    found = found.to(x.dtype)
    return found + bias[:, None, None] if bias is not None and apart else found


def _group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`(N, C, ...)`, normalised over each group of channels and all pixels of one image."""
    n, channels = x.shape[:2]
    grouped = x.reshape(n, groups, channels // groups, *x.shape[2:])
    variance, mean = torch.var_mean(grouped, tuple(range(2, grouped.ndim)), correction=0, keepdim=True)
    found = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)
    shape = (1, channels) + (1,) * (x.ndim - 2)
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape)
