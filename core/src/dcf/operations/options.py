"""The options that augmenters of these operations share; free of torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from dcf.config import Config

__all__ = ["Family", "Strengths"]

#: Names of a strategy; `color` stands for three operations (see `dcf.operations.draws.FAMILIES`).
Family: TypeAlias = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]


class Strengths(Config):
    """How strong each operation is; the defaults are the published ones for CIFAR and FashionMNIST."""

    brightness: float = Field(1.0, ge=0, description="width of the range of the added constant, about 0")
    saturation: float = Field(2.0, ge=0, description="largest factor of the distance to grey; the smallest is 0")
    contrast: float = Field(
        0.5,
        ge=0,
        description="smallest factor of the distance to the image's mean; the largest is 1 more",
    )
    crop: float = Field(0.125, ge=0, le=1, description="largest shift over the image's side")
    cutout: float = Field(0.5, ge=0, le=1, description="side of the box over the image's side")
    scale: float = Field(1.2, ge=1, description="largest zoom factor; the smallest is its inverse")
    rotate: float = Field(15.0, ge=0, le=180, description="largest angle, in degrees")
    prob_flip: float = Field(0.5, ge=0, le=1, description="probability of mirroring")
