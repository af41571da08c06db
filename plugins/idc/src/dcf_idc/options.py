"""The options of this package; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Any, Final, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

import dcf
from dcf.build import check
from dcf.operations.options import Family, Strengths

__all__ = [
    "FULL_STRATEGY",
    "Axis",
    "CutMixConfig",
    "Decode",
    "Distance",
    "IDCAugmentConfig",
    "IDCConfig",
    "MultiFormationConfig",
]

Decode: TypeAlias = Literal["single", "multi", "bound"]
Axis: TypeAlias = Literal["height", "width"]
#: How one gradient or feature is compared with another; see `dcf_idc.distance.point_distance`.
Distance: TypeAlias = Literal["mse", "l1", "l1_mean", "cos"]

#: The published strategy of evaluations, where mirrored images are images.
FULL_STRATEGY: Final[tuple[Family, ...]] = ("color", "crop", "cutout", "flip", "scale", "rotate")


class MultiFormationConfig(dcf.Config):
    """Options of `multiformation`."""

    factor: int = Field(2, ge=1, le=64, description="tiles along each axis; 1: plain pixels in [0, 1]")
    decode: Decode = Field(
        "single",
        description="single: tiles of the factor; multi: those of every factor from 1 on; bound: those of the largest "
        "factors for which a class has at most 'bound' images",
    )
    bound: int = Field(128, ge=1, le=2**31 - 1, description="images a class at most; decode=bound only")
    axes: tuple[Axis, ...] = Field(
        ("height", "width"), min_length=1, max_length=2, description="axes that are cut; [width] for spectrograms"
    )
    init: Literal["images", "noise"] = Field(
        "images",
        description="images: those of the run's selector, shrunk and packed; noise: 0.5 + N(0, 1) / 4, cut to [0, 1]",
    )
    shrink: Literal["nearest", "area"] = Field(
        "nearest", description="how images become tiles to begin with; nearest is as published"
    )
    clamp: Literal["auto", "iteration", "update", "decode", "none"] = Field(
        "auto",
        description="when values are cut to [0, 1]: before an iteration, after an update, or the decoded ones; auto: "
        "before an iteration, or not at all where a left parameterization stores them",
    )

    @field_validator("axes")
    @classmethod
    def _each_axis_once(cls, value: tuple[Axis, ...]) -> tuple[Axis, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected each axis once, got [{','.join(value)}]")
        return value

    @model_validator(mode="after")
    def _bound_has_an_effect(self) -> Self:
        if self.bound != 128 and self.decode != "bound":
            raise ValueError(f"'bound' has no effect with decode={self.decode}; expected decode=bound beside it")
        return self


class _Choice(dcf.Config):
    """What is applied in a call."""

    ops: tuple[Family, ...] = Field(
        ("color", "crop", "cutout"),
        min_length=1,
        description="operations, also as in color_crop_cutout, or 'auto' for all: flip, color and cutout are always "
        "applied, of crop, scale and rotate one",
    )

    @field_validator("ops", mode="before")
    @classmethod
    def _read_strategy(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return FULL_STRATEGY if value == "auto" else value.split("_")

    @field_validator("ops")
    @classmethod
    def _each_operation_once(cls, value: tuple[Family, ...]) -> tuple[Family, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected each operation once, got [{','.join(value)}]")
        return value


class IDCAugmentConfig(Strengths, _Choice):  # fields of the last base come first
    """Options of the augmenter `idc`; the default operations are those of matching."""


class CutMixConfig(dcf.Config):
    """Options of `cutmix`."""

    beta: float = Field(1.0, gt=0, le=100, description="both parameters of the beta distribution of the kept share")
    prob: float = Field(0.5, ge=0, le=1, description="probability that a batch is mixed at all")


class IDCConfig(dcf.Config):
    """Options of the matcher `idc`; the defaults are the published ones for CIFAR10."""

    match: Literal["grad", "feat"] = Field(
        "grad", description="grad: gradients of the loss; feat: mean outputs of the network's blocks"
    )
    metric: Distance = Field(
        "mse",
        description="mse and l1: summed over all entries; l1_mean: averaged within rows; cos: one minus the cosine "
        "of rows, summed",
    )
    bias: bool = Field(False, description="compare gradients of weights of one axis, too: biases, norms")
    fc: bool = Field(False, description="compare gradients of weights of two axes, too: linear layers")
    idx_from: int | Literal["last"] = Field("last", description="first block that match=feat compares, from 0")
    idx_to: int | Literal["none"] = Field("none", description="last block that match=feat compares; none: the first")
    inner_loop: int = Field(100, ge=1, le=100_000, description="matching steps a network")
    batch_real: int = Field(64, ge=1, description="real images a class and matching step")
    batch_syn: int = Field(128, ge=1, description="synthetic images a class and matching step, at most")
    classes_per_update: int | Literal["all"] = Field(
        1, description="classes that are matched before the set moves, 1 or more, or all"
    )
    n_data: int = Field(
        2000, ge=0, description="real images that the network is trained on after each matching step, at least"
    )
    batch_train: int = Field(64, ge=1, description="images a step of that training")
    lr_net: float = Field(0.01, gt=0, description="step size of that training")
    momentum_net: float = Field(0.9, ge=0, lt=1, description="SGD momentum of that training")
    decay_net: float = Field(5e-4, ge=0, description="weight decay of that training")
    train_augment: str = Field(
        "idc:ops=[color,crop]+cutmix",
        description="augmenter spec of that training, with values for each image, or 'same' as matching",
    )
    early: int = Field(0, ge=0, le=10_000, description="epochs on the real data before a network is matched")
    pretrained: int = Field(
        0, ge=0, le=1000, description="networks that are trained on the real data once and kept, to begin with; 0: none"
    )
    pretrained_epochs: int = Field(5, ge=1, le=10_000, description="epochs of their training")
    bn: Literal["reference", "exact"] = Field(
        "reference",
        description="how batch norms, if any, take their statistics from real images before each matching step: one "
        "pass moves them by their momentum, or they become those of the pass",
    )
    rescale: bool = Field(
        True, description="multiply --lr by ipc / 10 and by (image side / base_size) squared, as published"
    )
    base_size: int = Field(32, ge=1, le=65536, description="image side for which --lr is meant; 28 for MNIST")

    @field_validator("train_augment")
    @classmethod
    def _names_augmenters(cls, value: str) -> str:
        return value if value == "same" else str(check(dcf.Kind.AUGMENTER, value, "train_augment"))

    @field_validator("classes_per_update", "idx_from", "idx_to")
    @classmethod
    def _is_a_count(cls, value: int | str, info: Any) -> int | str:
        least = 1 if info.field_name == "classes_per_update" else 0
        if isinstance(value, int) and value < least:
            raise ValueError(f"expected a number of at least {least}, got {value}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        features = self.match == "feat"
        unused = ("bias", "fc") if features else ("idx_from", "idx_to")
        given = [name for name in unused if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise ValueError(f"'{given[0]}' has no effect with match={self.match}")
        if self.idx_to != "none" and (self.idx_from == "last" or int(self.idx_to) < int(self.idx_from)):
            raise ValueError(f"expected idx_to of at least idx_from={self.idx_from}, got {self.idx_to}")
        return self
