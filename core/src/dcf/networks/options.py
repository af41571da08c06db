"""The options of the networks that come with core; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dcf.config import Config

__all__ = [
    "GROUPS",
    "Activation",
    "AlexNetConfig",
    "ConvNetConfig",
    "DenseNetConfig",
    "Downsample",
    "Norm",
    "Pooling",
    "ResNet10Config",
    "ResNet18Config",
    "TorchvisionConfig",
    "VGGConfig",
    "VGGDepth",
]

Norm: TypeAlias = Literal["instance", "batch", "layer", "group", "none"]
Activation: TypeAlias = Literal["relu", "sigmoid", "leakyrelu", "swish"]
Pooling: TypeAlias = Literal["avg", "max", "none"]
VGGDepth: TypeAlias = Literal[11, 13, 16, 19]
Downsample: TypeAlias = Literal["stride", "avgpool"]

#: Groups of `norm="group"`, as published.
GROUPS: Final = 4


class ConvNetConfig(Config):
    """Defaults: the ConvNet of the literature."""

    width: int = Field(128, ge=1, le=16384, description="channels of every block")
    depth: Literal["auto"] | int = Field(
        "auto", description="number of blocks, 1 or more; auto: 3 below 64 pixels, 4 below 128, 5 below 256, ..."
    )
    norm: Norm = Field("instance", description="normalisation; group has 4 groups")
    activation: Activation = Field("relu", description="activation")
    pooling: Pooling = Field("avg", description="pooling after each block")

    @field_validator("depth", mode="before")
    @classmethod
    def _depth_is_auto_or_count(cls, value: Any) -> Any:
        text = str(value)
        if text != "auto" and not (text.isdecimal() and int(text) >= 1):
            raise ValueError(f"expected 'auto' or an integer of at least 1, got '{text}'")
        return text if text == "auto" else int(text)

    @model_validator(mode="after")
    def _width_has_whole_groups(self) -> Self:
        if self.norm == "group" and self.width % GROUPS:
            raise ValueError(f"norm=group needs a width that is a multiple of {GROUPS}, got {self.width}")
        return self


class AlexNetConfig(Config):
    """Defaults: without normalisation."""

    norm: Literal["none", "batch"] = Field("none", description="normalisation after each convolution")


def _number(value: object) -> object:
    """Text of a spec as a number where it is one; the check of the choices comes after."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class VGGConfig(Config):
    """Defaults: VGG11 with instance norm."""

    depth: Annotated[VGGDepth, BeforeValidator(_number)] = Field(11, description="depth of the original network")
    norm: Literal["instance", "batch"] = Field("instance", description="normalisation after each convolution")


class ResNet18Config(Config):
    """Defaults: instance norm, stride-2 convolutions."""

    norm: Literal["instance", "batch"] = Field("instance", description="normalisation after each convolution")
    downsample: Downsample = Field(
        "stride", description="how maps shrink: stride-2 convolutions, or 2x2 average pooling (the AP variant)"
    )


class ResNet10Config(ResNet18Config):
    """Defaults: as those of the larger one, instance norm and stride-2 convolutions; published with norm=batch."""


class DenseNetConfig(Config):
    """Defaults: the size that condensed sets are tested on, with batch norm."""

    growth: int = Field(12, ge=1, le=1024, description="channels that each layer adds")
    norm: Literal["instance", "batch"] = Field("batch", description="normalisation before each convolution")


class TorchvisionConfig(Config):
    """The name in `torchvision.models`."""

    name: str = Field(description="name in torchvision.models, such as resnet18")
