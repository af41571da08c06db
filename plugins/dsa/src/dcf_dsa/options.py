"""The options of `dsa`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator

import dcf
from dcf.operations.options import Family, Strengths

__all__ = ["DIGIT_STRATEGY", "FULL_STRATEGY", "DSAConfig"]

#: The published strategy `color_crop_cutout_flip_scale_rotate`, for everything but digits.
FULL_STRATEGY: Final[tuple[Family, ...]] = ("color", "crop", "cutout", "flip", "scale", "rotate")

#: The published strategy for MNIST and SVHN: a mirrored digit is not a digit.
DIGIT_STRATEGY: Final[tuple[Family, ...]] = ("color", "crop", "cutout", "scale", "rotate")


class _Choice(dcf.Config):
    """What is applied in a call."""

    ops: tuple[Family, ...] = Field(
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

    @field_validator("ops", mode="before")
    @classmethod
    def _read_strategy(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return FULL_STRATEGY if value == "auto" else value.split("_")


class DSAConfig(Strengths, _Choice):  # fields of the last base come first
    """Options of `dsa`; the defaults are the published ones for CIFAR and FashionMNIST."""
