"""Layers that the networks share, for maps of any size, and networks that are one layer after the other."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from dcf.networks.base import Network
from dcf.networks.options import GROUPS, Activation, Norm

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "LayerSequence",
    "Pool",
    "activation_layer",
    "dry_shape",
    "mean_of_four",
    "norm_layer",
    "standardize",
]


class Pool(nn.Module):
    """Pooling of 2x2 pixels with stride 2; an axis that is one pixel wide stays as it is, so no map vanishes.

    An odd last row or column is left out, as PyTorch's pooling does.

    Args:
        kind: "avg" or "max".
    """

    def __init__(self, kind: Literal["avg", "max"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C, max(1, H // 2), max(1, W // 2))`."""
        if self.kind == "avg" and x.device.type == "cpu" and x.shape[-2] % 2 == x.shape[-1] % 2 == 0:
            return mean_of_four(x)
        window = (min(2, x.shape[-2]), min(2, x.shape[-1]))
        return F.avg_pool2d(x, window) if self.kind == "avg" else F.max_pool2d(x, window)

    def extra_repr(self) -> str:
        """The kind, for `repr`."""
        return self.kind


def mean_of_four(x: Tensor) -> Tensor:
    """Means of 2x2 pixels, `(..., H, W)` with even sides to `(..., H / 2, W / 2)`.

    On a CPU some three times faster than the library's kernel. Like a function of PyTorch, it can be replaced by a
    `TorchFunctionMode`, for compilers that do better with another way to write it.
    """
    if has_torch_function_unary(x):
        replaced: Tensor = handle_torch_function(mean_of_four, (x,), x)
        return replaced
    *lead, height, width = x.shape
    # Unbinding, not indexing: its gradient is one copy instead of two sums with zeros.
    top, bottom = x.reshape(*lead, height // 2, 2, width).unbind(-2)
    left, right = (top + bottom).reshape(*lead, height // 2, width // 2, 2).unbind(-1)
    mean: Tensor = (left + right) * 0.25
    return mean


class GroupNorm(nn.GroupNorm):
    """Group normalisation that passes a group of one single value on, scaled and shifted.

    The formula would replace a lone value by the bias and so cut the network off from its input; that is what
    instance normalisation of a 1x1 map is.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`, normalised over each group of channels and all pixels of one image."""
        if math.prod(x.shape[1:]) > self.num_groups:
            return super().forward(x)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that `torch.func` can transform and differentiate twice.

    In training mode each call normalises by its own batch and moves the running statistics in place, those of
    `NetworkState.buffers` when called through it. Inside `torch.func` transforms (`vmap`, `grad`) a captured tensor
    cannot be written, and lanes of a `vmap` would not agree on a value: there the running statistics and
    `num_batches_tracked` are left alone, and each lane is normalised by its own batch. In evaluation mode nothing
    differs from PyTorch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`, normalised over images and pixels of each channel."""
        if not self.training or not _inside_transform():
            return super().forward(x)
        shape = (-1, 1, 1)
        weight = None if self.weight is None else self.weight.view(shape)
        return _affine(standardize(x, (0, 2, 3), self.eps), weight, None if weight is None else self.bias.view(shape))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that `torch.func` can transform and differentiate twice."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, ...)`, normalised over the last axes, those of the weight."""
        if not _inside_transform():
            return super().forward(x)
        axes = tuple(range(-len(self.normalized_shape), 0))
        return _affine(standardize(x, axes, self.eps), self.weight, self.bias)


def standardize(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps)` over `axes`, with the biased variance, in plain operations.

    PyTorch's own batch and layer norms (2.15) have a wrong second derivative under `vmap`, by up to its own size;
    their group norm is right.
    """
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


def _inside_transform() -> bool:
    # torch has no public question for this; the private one is the same since 2.0.
    return torch._C._functorch.peek_interpreter_stack() is not None


def norm_layer(kind: Norm, shape: tuple[int, ...]) -> nn.Module | None:
    """A normalising layer with weight and bias and an epsilon of 1e-5.

    Args:
        kind: "instance" is a group norm with one group a channel, without running statistics; "layer" is over
            channels, rows and columns, with a weight and a bias for each; "group" has 4 groups; "none" is None.
        shape: `(C, H, W)` of the maps; only "layer" needs the size.
    """
    channels = shape[0]
    if kind == "none":
        return None
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "layer":
        return LayerNorm(list(shape))
    return GroupNorm(channels if kind == "instance" else GROUPS, channels)


def activation_layer(kind: Activation) -> nn.Module:
    """An activation, never in place; "leakyrelu" has slope 0.01, "swish" is x sigmoid(x)."""
    kinds: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "leakyrelu": nn.LeakyReLU,
        "swish": nn.SiLU,
    }
    return kinds[kind]()


def dry_shape(module: nn.Module, shape: tuple[int, ...], **options: Any) -> tuple[int, ...]:
    """Shape without the batch axis of what `module` makes of `(2, *shape)` input; `module` is not changed.

    Args:
        module: Any module on the CPU.
        shape: Of the input, without the batch axis.
        options: Passed on to the module's `forward`.
    """
    # With real zeros: the first convolution on the meta device imports 900 modules and takes seconds. The buffers are
    # copies, as batch norms in training mode would move their statistics.
    copies = {name: tensor.clone() for name, tensor in module.named_buffers()}
    with torch.no_grad():
        home = next((p.device for p in module.parameters()), None)
        probe = torch.zeros(2, *shape, device=home)
        out = functional_call(module, copies, (probe,), options) if copies else module(probe, **options)
    return tuple(out.shape[1:])


class LayerSequence(Network):
    """A network of layers one after the other, flattened (channel, row, column) and classified linearly.

    Layers are attributes of their own, so that parameter names are short: `conv1.weight`, `norm1.bias`. Subclasses
    `append` them in order, say where a block ends (`end_block`), then `close`.

    Args:
        shape: `(C, H, W)` of the images.

    Attributes:
        shape: Of what the last layer so far yields, without the batch axis.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self._order: list[str] = []
        self._ends: set[str] = set()

    def append(self, name: str, layer: nn.Module | None) -> None:
        """Add a layer under a name of its own; None adds nothing."""
        if layer is not None:
            self.add_module(name, layer)
            self._order.append(name)
            self.shape = dry_shape(layer, self.shape)

    def end_block(self) -> None:
        """Say that the layer that was appended last ends a block."""
        self._ends.add(self._order[-1])

    def close(self, num_classes: int) -> None:
        """Add the classifier on the flattened output of the last layer."""
        self.shape = (math.prod(self.shape),)
        self.classifier = nn.Linear(self.shape[0], num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Embed `(N, C, H, W)` images as `(N, F)`, the flattened output of the last layer."""
        for name in self._order:
            x = getattr(self, name)(x)
        return x.flatten(1)

    def blocks(self, x: Tensor) -> list[Tensor]:
        """Output of every layer that ends a block, not flattened; the embedding alone where none does."""
        if not self._ends:
            return super().blocks(x)
        found = []
        for name in self._order:
            x = getattr(self, name)(x)
            if name in self._ends:
                found.append(x)
        return found
