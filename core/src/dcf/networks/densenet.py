"""A densely connected network for small images, as condensed sets are tested on.

Source: Huang et al., CVPR 2017, with bottlenecks and compression, in the size that Kim et al. (ICML 2022) evaluate.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from dcf.networks.base import Network, NetworkFactory
from dcf.networks.layers import Pool, norm_layer
from dcf.networks.options import DenseNetConfig, Norm
from dcf.types import DataSpec

__all__ = ["DenseNet", "DenseNetFactory"]

#: Layers of each of the four stages.
STAGES: Final = (6, 12, 24, 16)


class _DenseLayer(nn.Module):
    """Norm, ReLU and 1x1 convolution to 4 g channels, the same with 3x3 to g, which are put before the input's."""

    def __init__(self, inputs: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm_layer(norm, (inputs, 1, 1))
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = norm_layer(norm, (4 * growth, 1, 1))
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C + g, H, W)`."""
        inside = self.conv1(self.norm1(x).relu())  # type: ignore[misc]
        return torch.cat([self.conv2(self.norm2(inside).relu()), x], dim=1)  # type: ignore[misc]


class DenseNet(Network):
    """A 3x3 stem to 2 g channels, four dense stages, and between two of them half the channels and half the size.

    Args:
        shape: `(C, H, W)` of the images, any; an axis of one pixel is no longer pooled.
        num_classes: Outputs K.
        growth: g, channels that a layer adds.
        norm: "batch", as published, or "instance".
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, growth: int = 12, norm: Norm = "batch") -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
        for number, count in enumerate(STAGES, start=1):
            layers = [_DenseLayer(channels + i * growth, growth, norm) for i in range(count)]
            channels += count * growth
            self.add_module(f"stage{number}", nn.Sequential(*layers))
            if number < len(STAGES):
                parts = [
                    norm_layer(norm, (channels, 1, 1)),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels // 2, 1, bias=False),
                ]
                self.add_module(f"transition{number}", nn.Sequential(*parts, Pool("avg")))  # type: ignore[arg-type]
                channels //= 2
        self.norm = norm_layer(norm, (channels, 1, 1))
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Embed `(N, C, H, W)` images as `(N, F)`, averaged over the pixels that are left."""
        last = self.norm(self.blocks(x)[-1]).relu()  # type: ignore[misc]
        return last.mean((-2, -1))  # type: ignore[no-any-return]

    def blocks(self, x: Tensor) -> list[Tensor]:
        """Output `(N, C', H', W')` of each of the four stages."""
        x = self.stem(x)
        found = []
        for number in range(1, len(STAGES) + 1):
            x = getattr(self, f"stage{number}")(x)
            found.append(x)
            if number < len(STAGES):
                x = getattr(self, f"transition{number}")(x)
        return found


class DenseNetFactory(NetworkFactory):
    """The `densenet` component."""

    Config = DenseNetConfig

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> DenseNet:
        """A network for images of `spec`."""
        return DenseNet(spec.shape, spec.num_classes, self.config.growth, self.config.norm)
