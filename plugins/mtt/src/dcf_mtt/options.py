"""The options of `mtt`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

import dcf
from dcf.types import KeptSteps, UnrollChoice

__all__ = ["FEW", "MTTConfig", "Training", "experts_of"]

Count = Annotated[int, Field(ge=1)]

#: Experts as published, and below how many training images so many are enough.
PUBLISHED: Final = 100
FEW: Final = (10_000, 5)


@dataclass(frozen=True)
class Training:
    """How experts are trained: plain numbers that decide them.

    Args:
        lr: Step size, constant.
        momentum: Of SGD.
        weight_decay: Added to the gradient.
        batch: Images a step.
        seed: Of weights, orders and augmentation.
    """

    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    seed: int = 0


class MTTConfig(dcf.Config):
    """Options; the defaults are those of the released code, which its published commands change."""

    syn_steps: int = Field(20, ge=1, le=10_000, description="N: steps of the student's training on the set")
    expert_epochs: int = Field(3, ge=1, le=10_000, description="M: epochs of the expert that they shall make up for")
    min_start_epoch: int = Field(
        0, ge=0, le=10_000, description="first epoch of an expert that a student may start from"
    )
    max_start_epoch: int = Field(
        25, ge=1, le=10_000, description="where these epochs end; the student starts before it, never at it"
    )
    window: Literal["fixed", "aligned"] = Field(
        "fixed",
        description="aligned: the end of the start epochs moves from window_start to max_start_epoch",
    )
    window_start: int = Field(10, ge=1, le=10_000, description="where the start epochs end at the beginning of the run")
    window_iterations: int = Field(1000, ge=1, description="iterations after which they end at max_start_epoch")
    batch_syn: Count | Literal["all"] = Field("all", description="synthetic images a step of the student, or all")
    lr_teacher: float = Field(0.01, gt=0, description="step size of the student to begin with; it is learned")
    lr_lr: float = Field(1e-5, ge=0, description="step size of that step size; 0: it stays")
    lr_least: float = Field(0.0, ge=0, description="the learned step size never falls below it; 0: no such bound")
    experts: Count | Literal["auto"] = Field(
        "auto", description="number of experts; auto: 100, or 5 where there are fewer than 10000 training images"
    )
    train_epochs: Count | Literal["auto"] = Field(
        "auto",
        description="epochs that experts are trained; auto: as many as are looked at, which changes nothing else",
    )
    lr_expert: float = Field(0.01, gt=0, description="step size of the experts")
    momentum_expert: float = Field(0.0, ge=0, lt=1, description="SGD momentum of the experts")
    decay_expert: float = Field(0.0, ge=0, description="weight decay of the experts")
    batch_expert: int = Field(256, ge=1, description="images a step of the experts")
    seed_expert: int = Field(0, ge=0, le=2**63 - 1, description="seed of the experts; independent of the run's")
    unroll: UnrollChoice = Field(
        "auto",
        description="how the student's training is differentiated: adjoint and checkpoint are exact and small, "
        "full is exact and large, tesla leaves out how a step changes the later ones; auto: full where that takes "
        "1 GB at most and is faster, else adjoint",
    )
    keep: KeptSteps = Field(
        1, description="adjoint and tesla keep the weights of every keep-th step; cpu: all, in main memory"
    )
    reference_scale: bool = Field(
        False, description="halve the gradient of the images, as the released code of TESLA does by mistake"
    )
    threshold: Annotated[float, Field(gt=0)] | Literal["none"] = Field(
        "none", description="leave out updates whose loss is above it; none: only those that are not finite"
    )
    start: Literal["none", "experts"] = Field(
        "none",
        description="experts: start from real images that experts classify correctly, with the mean of their logits "
        "as soft labels",
    )

    @property
    def epochs_used(self) -> int:
        """Epochs of an expert that a run looks at."""
        return self.max_start_epoch - 1 + self.expert_epochs

    @property
    def epochs(self) -> int:
        """Epochs that experts are trained."""
        return self.epochs_used if self.train_epochs == "auto" else int(self.train_epochs)

    @property
    def training(self) -> Training:
        """How experts are trained."""
        return Training(self.lr_expert, self.momentum_expert, self.decay_expert, self.batch_expert, self.seed_expert)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_start_epoch >= self.max_start_epoch:
            raise ValueError(
                f"expected min_start_epoch below max_start_epoch={self.max_start_epoch}, got {self.min_start_epoch}"
            )
        if self.lr_least > self.lr_teacher:
            raise ValueError(f"expected lr_least of at most lr_teacher={self.lr_teacher}, got {self.lr_least}")
        if self.window == "aligned" and not self.min_start_epoch < self.window_start <= self.max_start_epoch:
            raise ValueError(
                f"expected window_start above min_start_epoch={self.min_start_epoch} and at most "
                f"max_start_epoch={self.max_start_epoch}, got {self.window_start}"
            )
        if self.epochs < self.epochs_used:
            raise ValueError(
                f"expected train_epochs of at least max_start_epoch - 1 + expert_epochs = {self.epochs_used}, "
                f"got {self.train_epochs}"
            )
        return self


def experts_of(wanted: int | str, images: int) -> int:
    """How many experts an option `experts` stands for.

    Args:
        wanted: The option.
        images: Training images of the real data.

    Example:
        >>> experts_of("auto", 50000), experts_of("auto", 1442), experts_of(7, 50000)
        (100, 5, 7)
    """
    if isinstance(wanted, int):
        return wanted
    below, few = FEW
    return few if images < below else PUBLISHED
