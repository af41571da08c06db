"""The plain convolutional network of the condensation literature, for any image size.

Source: Gidaris and Komodakis, CVPR 2018, as used by Zhao et al., ICLR 2021, section 4.1.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from dcf.networks.base import NetworkFactory
from dcf.networks.layers import LayerSequence, Pool, activation_layer, norm_layer
from dcf.networks.options import Activation, ConvNetConfig, Norm, Pooling
from dcf.types import DataSpec

__all__ = ["ConvNet", "ConvNetFactory", "auto_depth"]


def auto_depth(height: int, width: int) -> int:
    """Blocks for an image size: 3, and one more for each doubling of the smaller side from 64 on.

    Example:
        >>> [auto_depth(side, side) for side in (8, 28, 32, 48, 64, 96, 128, 256)]
        [3, 3, 3, 3, 4, 4, 5, 6]
    """
    return 3 + max(0, (min(height, width) // 32).bit_length() - 1)


class ConvNet(LayerSequence):
    """`depth` blocks of 3x3 convolution with bias, norm, activation and 2x2 pooling, then one linear layer.

    Parameters are named `conv1`, `norm1`, ..., `classifier`. The first convolution pads by 3 when there is one
    channel, else 1, as published: 28x28 digits so become the 32x32 of the other datasets.

    Args:
        shape: `(C, H, W)` of the images, any; an axis of one pixel is no longer pooled.
        num_classes: Outputs K.
        width: Channels of every block.
        depth: Number of blocks.
        norm: See `dcf.networks.layers.norm_layer`.
        activation: See `dcf.networks.layers.activation_layer`.
        pooling: "none" keeps the map size, and makes the classifier large.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        width: int = 128,
        depth: int = 3,
        norm: Norm = "instance",
        activation: Activation = "relu",
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__(shape)
        for block in range(1, depth + 1):
            padding = 3 if block == 1 and shape[0] == 1 else 1
            self.append(f"conv{block}", nn.Conv2d(self.shape[0], width, 3, padding=padding))
            self.append(f"norm{block}", norm_layer(norm, self.shape))
            self.append(f"activation{block}", activation_layer(activation))
            self.append(f"pool{block}", None if pooling == "none" else Pool(pooling))
            self.end_block()
        self.close(num_classes)


class ConvNetFactory(NetworkFactory):
    """The `convnet` component."""

    Config = ConvNetConfig

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> ConvNet:
        """A network for images of `spec`."""
        config: ConvNetConfig = self.config
        depth = auto_depth(spec.height, spec.width) if config.depth == "auto" else config.depth
        return ConvNet(
            spec.shape, spec.num_classes, config.width, depth, config.norm, config.activation, config.pooling
        )
