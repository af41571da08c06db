"""The options of `haba`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

import dcf

__all__ = ["HabaConfig"]


class HabaConfig(dcf.Config):
    """Options; the defaults are those of the published commands."""

    styles: int = Field(
        5, ge=1, le=1024, description="hallucinators, which all classes share; each basis is shown by each"
    )
    kernel: int = Field(3, ge=1, le=31, description="side of the kernels of both convolutions")
    middle: int | Literal["auto"] = Field(
        "auto", description="channels between the two convolutions; auto: as many as an image has"
    )
    basis: Literal["full", "single"] = Field(
        "full", description="channels of a basis: those of an image, or a single one, which leaves room for more bases"
    )
    init: Literal["layers", "identity"] = Field(
        "layers",
        description="hallucinators to begin with: layers: random, as convolutions are in PyTorch, which is published; "
        "identity: noise of a tenth of that around showing the basis as it is",
    )
    objective: Literal["adversarial", "none"] = Field(
        "adversarial",
        description="adversarial: keep what the hallucinators make of one basis apart; none: leave that out",
    )
    every: Literal["update", "outer"] = Field(
        "update", description="the objective takes part in every update, or in the first of each outer iteration"
    )
    batch: int | Literal["all"] = Field("all", description="bases that the objective looks at in an update, or all")
    club: float = Field(0.1, ge=0, description="weight of the similarity of two images of a basis, in what is stored")
    cls: float = Field(1.0, ge=0, description="weight of the cross-entropy in training the adversary")
    likelihood: float = Field(0.1, ge=0, description="weight of the dissimilarity of two images of a basis, likewise")
    contrast: float = Field(0.1, ge=0, description="weight of the supervised contrastive loss, likewise")
    temperature: float = Field(0.07, gt=0, description="of the contrastive loss")
    lr_adversary: float = Field(0.001, ge=0, description="step size of the adversary")
    momentum_adversary: float = Field(0.9, ge=0, lt=1, description="SGD momentum of the adversary")

    @field_validator("middle", "batch")
    @classmethod
    def _is_positive(cls, value: int | str) -> int | str:
        if not isinstance(value, str) and value < 1:
            raise ValueError(f"expected a number above 0, got {value}")
        return value

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        if self.adversarial and self.styles < 2:
            raise ValueError("expected at least 2 styles, which the objective compares, or objective=none; got 1")
        return self

    @property
    def adversarial(self) -> bool:
        """Whether there is an objective of its own."""
        return self.objective == "adversarial"
