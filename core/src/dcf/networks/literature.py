"""The other networks that condensed sets are tested on, as published for 28x28 and 32x32, for any image size.

Source: the cross-architecture tables of Zhao et al., ICLR 2021; layer sizes as in their released code.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar, Final, Literal, TypeAlias

from torch import Tensor, nn

from dcf.networks.base import Network, NetworkFactory
from dcf.networks.layers import LayerSequence, Pool, dry_shape, norm_layer
from dcf.networks.options import AlexNetConfig, Downsample, ResNet10Config, ResNet18Config, VGGConfig, VGGDepth
from dcf.types import DataSpec

__all__ = [
    "MLP",
    "VGG",
    "AlexNet",
    "AlexNetFactory",
    "LeNet",
    "LeNetFactory",
    "MLPFactory",
    "ResNet10Factory",
    "ResNet18",
    "ResNet18Factory",
    "VGGFactory",
]

Shape: TypeAlias = tuple[int, int, int]

#: Convolutions of each of the five stages, and the channels of the stages.
VGG_STAGES: Final[dict[int, tuple[int, ...]]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
VGG_CHANNELS: Final = (64, 128, 256, 512, 512)


class MLP(LayerSequence):
    """All pixels, 128 hidden units, 128 hidden units, K; ReLU between. The embedding is the second hidden layer.

    Args:
        shape: `(C, H, W)` of the images.
        num_classes: Outputs K.
    """

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__(shape)
        self.append("flatten", nn.Flatten())
        for layer in (1, 2):
            self.append(f"fc{layer}", nn.Linear(self.shape[0], 128))
            self.append(f"activation{layer}", nn.ReLU())
            self.end_block()
        self.close(num_classes)


class LeNet(LayerSequence):
    """Two 5x5 convolutions (6 and 16 channels) with ReLU and 2x2 max-pooling, then 120, 84 and K units.

    Images below 32 pixels are padded with zeros to 32 in the first convolution: by 2 for 28x28, as published.
    The embedding has 84 units. Source: LeCun et al., 1998, in its present-day form.

    Args:
        shape: `(C, H, W)` of the images.
        num_classes: Outputs K.
    """

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__(shape)
        padding = (max(0, 33 - shape[1]) // 2, max(0, 33 - shape[2]) // 2)
        for number, conv in enumerate((nn.Conv2d(shape[0], 6, 5, padding=padding), nn.Conv2d(6, 16, 5)), start=1):
            self.append(f"conv{number}", conv)
            self.append(f"activation{number}", nn.ReLU())
            self.append(f"pool{number}", Pool("max"))
            self.end_block()
        self.append("flatten", nn.Flatten())
        for number, units in enumerate((120, 84), start=1):
            self.append(f"fc{number}", nn.Linear(self.shape[0], units))
            self.append(f"activation{number + 2}", nn.ReLU())
            self.end_block()
        self.close(num_classes)


class AlexNet(LayerSequence):
    """Five convolutions of 128, 192, 256, 192 and 192 channels, three 2x2 max-poolings, then one linear layer.

    Source: Krizhevsky et al., NeurIPS 2012, reduced for small images. The first 5x5 convolution pads by 4 when
    there is one channel, else 2, as published.

    Args:
        shape: `(C, H, W)` of the images.
        num_classes: Outputs K.
        norm: "batch" puts a batch norm after each convolution.
    """

    def __init__(self, shape: Shape, num_classes: int, norm: Literal["none", "batch"] = "none") -> None:
        super().__init__(shape)
        # channels, kernel, padding, pooled
        layers = (
            (128, 5, 4 if shape[0] == 1 else 2, True),
            (192, 5, 2, True),
            (256, 3, 1, False),
            (192, 3, 1, False),
            (192, 3, 1, True),
        )
        for number, (channels, kernel, padding, pooled) in enumerate(layers, start=1):
            self.append(f"conv{number}", nn.Conv2d(self.shape[0], channels, kernel, padding=padding))
            self.append(f"norm{number}", norm_layer(norm, self.shape))
            self.append(f"activation{number}", nn.ReLU())
            self.append(f"pool{number}", Pool("max") if pooled else None)
            self.end_block()
        self.close(num_classes)


class VGG(LayerSequence):
    """Five stages of 3x3 convolutions with norm and ReLU, each followed by 2x2 max-pooling, then one linear layer.

    Source: Simonyan and Zisserman, ICLR 2015. The first convolution pads by 3 when there is one channel, else 1, as
    published. Maps larger than one pixel after the last stage are averaged, so the classifier has 512 inputs.

    Args:
        shape: `(C, H, W)` of the images.
        num_classes: Outputs K.
        depth: Layers with weights in the original network; here the last three of them are one.
        norm: After each convolution.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        depth: VGGDepth = 11,
        norm: Literal["instance", "batch"] = "instance",
    ) -> None:
        super().__init__(shape)
        number = 0
        for stage, (count, channels) in enumerate(zip(VGG_STAGES[depth], VGG_CHANNELS, strict=True), start=1):
            for _ in range(count):
                number += 1
                padding = 3 if number == 1 and shape[0] == 1 else 1
                self.append(f"conv{number}", nn.Conv2d(self.shape[0], channels, 3, padding=padding))
                self.append(f"norm{number}", norm_layer(norm, self.shape))
                self.append(f"activation{number}", nn.ReLU())
            self.append(f"pool{stage}", Pool("max"))
            self.end_block()
        self.append("mean", _GlobalMean())
        self.close(num_classes)


class _GlobalMean(nn.Module):
    """`(N, C, H, W)` to `(N, C)`, averaged over pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions without bias, each with a norm, and a shortcut around them."""

    def __init__(
        self, inputs: int, channels: int, stride: int, norm: Literal["instance", "batch"], pooled: bool
    ) -> None:
        super().__init__()
        # Pooling variant: every stride-2 convolution becomes one of stride 1 followed by 2x2 averaging.
        pools = [("pool", Pool("avg"))] if pooled and stride > 1 else []
        step = 1 if pooled else stride
        map_shape = (channels, 1, 1)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=step, padding=1, bias=False)
        self.norm1 = norm_layer(norm, map_shape)
        self.activation1 = nn.ReLU()
        self.shrink = nn.Sequential(OrderedDict(pools))
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, map_shape)
        self.activation2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != channels:
            self.shortcut.add_module("conv", nn.Conv2d(inputs, channels, 1, stride=step, bias=False))
            for name, pool in pools:
                self.shortcut.add_module(name, pool)
            self.shortcut.add_module("norm", norm_layer(norm, map_shape))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H / stride, W / stride)`."""
        out = self.shrink(self.activation1(self.norm1(self.conv1(x))))  # type: ignore[misc]
        return self.activation2(self.norm2(self.conv2(out)) + self.shortcut(x))  # type: ignore[misc, no-any-return]


class ResNet18(Network):
    """Residual network for small images: 3x3 stem, four stages of two basic blocks, 64 to 512 channels.

    Source: He et al., CVPR 2016, with the stem of its CIFAR networks.

    Args:
        shape: `(C, H, W)` of the images.
        num_classes: Outputs K.
        norm: After each convolution.
        downsample: "stride": stride-2 convolutions and an average over all remaining pixels. "avgpool": 2x2 average
            pooling instead of strides (after the first ReLU of the block, and between convolution and norm of the
            shortcut), and no pooling at the end, so the embedding depends on the image size.
        depth: Basic blocks of each stage: 2, or 1 in ResNet10.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        norm: Literal["instance", "batch"] = "instance",
        downsample: Downsample = "stride",
        depth: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        self.norm1 = norm_layer(norm, (64, *shape[1:]))
        self.activation1 = nn.ReLU()
        pooled, inputs = downsample == "avgpool", 64
        for number, (channels, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), start=1):
            first = _BasicBlock(inputs, channels, stride, norm, pooled)
            rest = [_BasicBlock(channels, channels, 1, norm, pooled) for _ in range(depth - 1)]
            self.add_module(f"stage{number}", nn.Sequential(first, *rest))
            inputs = channels
        self.head = nn.Flatten() if pooled else _GlobalMean()
        self.classifier = nn.Linear(dry_shape(self, shape, embed=True)[0], num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Embed `(N, C, H, W)` images as `(N, F)`; F is 512 unless the final pooling is left out."""
        return self.head(self.blocks(x)[-1])  # type: ignore[no-any-return]

    def blocks(self, x: Tensor) -> list[Tensor]:
        """Output `(N, C', H', W')` of each of the four stages."""
        x = self.activation1(self.norm1(self.conv1(x)))  # type: ignore[misc]
        found = []
        for number in range(1, 5):
            x = getattr(self, f"stage{number}")(x)
            found.append(x)
        return found


class MLPFactory(NetworkFactory):
    """The `mlp` component."""

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> MLP:
        """A network for images of `spec`."""
        return MLP(spec.shape, spec.num_classes)


class LeNetFactory(NetworkFactory):
    """The `lenet` component."""

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> LeNet:
        """A network for images of `spec`."""
        return LeNet(spec.shape, spec.num_classes)


class AlexNetFactory(NetworkFactory):
    """The `alexnet` component."""

    Config = AlexNetConfig

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> AlexNet:
        """A network for images of `spec`."""
        return AlexNet(spec.shape, spec.num_classes, self.config.norm)


class VGGFactory(NetworkFactory):
    """The `vgg` component."""

    Config = VGGConfig

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> VGG:
        """A network for images of `spec`."""
        return VGG(spec.shape, spec.num_classes, self.config.depth, self.config.norm)


class ResNet18Factory(NetworkFactory):
    """The `resnet18` component."""

    Config = ResNet18Config

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> ResNet18:
        """A network for images of `spec`."""
        return ResNet18(spec.shape, spec.num_classes, self.config.norm, self.config.downsample)


class ResNet10Factory(NetworkFactory):
    """The `resnet10` component: one block in each stage instead of two."""

    Config = ResNet10Config

    needs_preflight: ClassVar[bool] = False

    def build(self, spec: DataSpec) -> ResNet18:
        """A network for images of `spec`."""
        return ResNet18(spec.shape, spec.num_classes, self.config.norm, self.config.downsample, depth=1)
