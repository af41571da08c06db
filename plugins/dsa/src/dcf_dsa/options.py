"""The options of `dsa`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator

import dcf

__all__ = ["DIGIT_STRATEGY", "FULL_STRATEGY", "DSAConfig", "OpFamily"]

OpFamily = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]

#: The published strategy `color_crop_cutout_flip_scale_rotate`, for everything but digits.
FULL_STRATEGY: Final[tuple[OpFamily, ...]] = ("color", "crop", "cutout", "flip", "scale", "rotate")

#: The published strategy for MNIST and SVHN: a mirrored digit is not a digit.
DIGIT_STRATEGY: Final[tuple[OpFamily, ...]] = ("color", "crop", "cutout", "scale", "rotate")


class DSAConfig(dcf.Config):
    """Options of `dsa`; the defaults are the published ones for CIFAR and FashionMNIST."""

    ops: tuple[OpFamily, ...] = Field(
        FULL_STRATEGY,
        min_length=1,
        description="operations to choose from, in order, also as in color_crop_cutout, or 'auto'; "
        "leave flip out for digits",
    )
    mode: Literal["single", "multi"] = Field(
        "single", description="single: one of ops for each call; multi: all of them, in order"
    )
    siamese: bool = Field(
        True,
        description="matching uses one draw for real and synthetic images; false: a draw for each",
    )
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

    @field_validator("ops", mode="before")
    @classmethod
    def _read_strategy(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return FULL_STRATEGY if value == "auto" else value.split("_")
