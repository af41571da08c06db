"""The options of `dd` and `bptt`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

import dcf
from dcf.types import KeptSteps, UnrollMode

__all__ = ["BPTTConfig", "DDConfig"]

Order = Literal["fixed", "random"]
LearnLr = Literal["no", "one", "each"]
Counted = Literal["per-class", "total"]
Count = Annotated[int, Field(ge=1)]


class BPTTConfig(dcf.Config):
    """Options; the defaults are those of the released code of RememberThePast."""

    steps: Count | Literal["auto"] = Field(
        150, description="training steps T of a network; auto: as many as make `epochs` passes over the set"
    )
    epochs: int = Field(1, ge=1, description="passes over the set where steps=auto")
    order: Order = Field(
        "random",
        description="which images a step takes. random: of each class any `batch` of them, drawn anew; fixed: the "
        "first `batch`, then the next, from the first again at the end: the set becomes a program",
    )
    batch: int = Field(
        32, ge=1, description="synthetic images a class and step; where order=random and a class has fewer, all of them"
    )
    lr: float = Field(0.01, gt=0, description="step size of the training; where it is learned, what it starts from")
    learn_lr: LearnLr = Field(
        "no", description="step sizes that are learned: no, one for all steps, or one for each (where order=fixed)"
    )
    lr_lr: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="step size at which those are learned, of what softplus makes them from; auto: the run's"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the training")
    classes: Count | Literal["all"] = Field(
        "all", description="classes that an outer iteration trains and tests on, drawn anew (where order=random)"
    )
    batch_real: int = Field(64, ge=1, description="real images that a trained network is tested on; see `real`")
    real: Counted = Field("per-class", description="whether batch_real is meant for each class or in all, of any class")
    nets: int = Field(1, ge=1, le=10_000, description="networks an outer iteration; their gradients are averaged")
    siamese: bool = Field(
        True,
        description="one draw of the augmentation for all steps and the real images; false: one for every image",
    )
    halve_every: int = Field(
        0,
        ge=0,
        description="outer iterations after which the step sizes of the set are halved, again and again; 0: never",
    )
    unroll: UnrollMode = Field(
        "adjoint",
        description="how training is differentiated: adjoint (exact, memory of one step and of the weights kept), full "
        "(memory of all steps), checkpoint, or tesla (without second derivatives; not exact)",
    )
    keep: KeptSteps = Field(
        1, description="for adjoint: keep the weights of every k-th step and recompute the others; cpu: in main memory"
    )

    @model_validator(mode="after")
    def _fits_the_order(self) -> Self:
        if self.order == "random" and self.learn_lr == "each":
            raise ValueError("learn_lr=each needs order=fixed: random steps are no program that could keep them")
        if self.order == "fixed" and self.classes != "all":
            raise ValueError("classes below all of them need order=random: a program takes all classes in each step")
        return self


class DDConfig(BPTTConfig):
    """Options; the defaults are those of the released code of dataset distillation (MNIST, random initialisations)."""

    steps: Count | Literal["auto"] = Field(
        "auto", description="training steps T of a network; auto: as many as make `epochs` passes over the set"
    )
    epochs: int = Field(3, ge=1, description="passes over the set where steps=auto")
    order: Order = Field(
        "fixed",
        description="which images a step takes. fixed: of each class the first `batch`, then the next, from the first "
        "again at the end: the set becomes a program; random: any `batch` of them, drawn anew",
    )
    batch: int = Field(1, ge=1, description="synthetic images a class and step; where order=fixed it divides the set")
    lr: float = Field(0.02, gt=0, description="step size of the training; where it is learned, what it starts from")
    learn_lr: LearnLr = Field(
        "each", description="step sizes that are learned: no, one for all steps, or one for each (where order=fixed)"
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of the training")
    batch_real: int = Field(1024, ge=1, description="real images that a trained network is tested on; see `real`")
    real: Counted = Field("total", description="whether batch_real is meant for each class or in all, of any class")
    halve_every: int = Field(
        2360,
        ge=0,
        description="outer iterations after which the step sizes of the set are halved, again and again; 0: never; "
        "2360 are the published 40 epochs of MNIST, 59 iterations of 1024 images each",
    )
