"""The options of the selectors; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

import dcf
from dcf.build import check

__all__ = ["EnsembleConfig", "FeatureConfig", "KCenterConfig", "TrainingConfig"]

Auto = Literal["auto"]


class TrainingConfig(dcf.Config):
    """How the network that looks at the images is trained; it is kept and shared by all runs with these options."""

    network: str = Field("convnet:width=32", description="network spec of the network that looks at the images")
    epochs: Annotated[int, Field(ge=1, le=10_000)] | Auto = Field(
        "auto", description="epochs of its training on the real images, 1 or more; auto: by the size of the dataset"
    )
    lr: float = Field(0.05, gt=0, description="step size of SGD with momentum 0.9 and weight decay 5e-4")
    batch: int = Field(128, ge=1, description="images a step")
    augment: str = Field("none", description="augmenter spec of its training; selecting never augments")
    feature_seed: int = Field(
        0, ge=0, description="seed of its training; not the run's, so that runs share the network"
    )

    @field_validator("network")
    @classmethod
    def _names_a_network(cls, value: str) -> str:
        return str(check(dcf.Kind.NETWORK, value, "network"))

    @field_validator("augment")
    @classmethod
    def _names_augmenters(cls, value: str) -> str:
        return str(check(dcf.Kind.AUGMENTER, value, "augment"))


class FeatureConfig(TrainingConfig):
    """Options of what compares images by their features."""

    features: Literal["trained", "raw"] = Field(
        "trained", description="trained: embedding in a trained network; raw: the pixels, normalised as the data are"
    )

    @model_validator(mode="after")
    def _raw_trains_nothing(self) -> Self:
        fields = TrainingConfig.model_fields
        given = [name for name in fields if getattr(self, name) != fields[name].default]
        if self.features == "raw" and given:
            raise ValueError(f"features=raw trains no network; leave out {', '.join(given)}")
        return self


class KCenterConfig(FeatureConfig):
    """Options of `k-center`."""

    start: Literal["class-mean", "random"] = Field(
        "class-mean", description="first image of a class: nearest to its mean, or drawn with the run's seed"
    )


class EnsembleConfig(TrainingConfig):
    """Options of scores that are averaged over networks."""

    networks: int = Field(10, ge=1, le=1000, description="networks over which the score is averaged")
