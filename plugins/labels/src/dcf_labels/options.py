"""The options of `soft-labels` and `ld`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

import dcf

__all__ = ["Form", "LDConfig", "SoftLabelsConfig"]

#: A number that may be left to the size of the set.
Count = Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"]

#: What is stored of a label: the probabilities themselves, or numbers whose softmax they are.
Form = Literal["probabilities", "logits"]


class SoftLabelsConfig(dcf.Config):
    """Options; they are those of the labels, the images keep their own."""

    init: Literal["onehot", "uniform", "teacher"] = Field(
        "onehot",
        description="what labels start from: the class of each image, all classes alike, or what a network trained "
        "on the real data says of it",
    )
    form: Form = Field(
        "probabilities",
        description="what is stored: probabilities, kept on the simplex, or logits, whose softmax the labels are",
    )
    learn_images: bool = Field(True, description="whether images are learned, too; false: they stay as they start")
    optimizer: Literal["sgd", "adam"] = Field("adam", description="optimiser of the labels")
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="step size of the labels, never that of the run; auto: see the table of defaults"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of optimizer=sgd")
    teacher_epochs: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        "auto", description="epochs that the network of init=teacher is trained for; auto: by the size of the dataset"
    )

    @model_validator(mode="after")
    def _teacher_is_used(self) -> SoftLabelsConfig:
        if self.teacher_epochs != "auto" and self.init != "teacher":
            raise ValueError(f"'teacher_epochs' has no effect with init={self.init}; expected init=teacher beside it")
        return self


class LDConfig(dcf.Config):
    """Options; the defaults are the paper's."""

    variant: Literal["or2", "ridge"] = Field(
        "or2",
        description="how labels are judged: or2: by the network after one step of training on them; ridge: by a "
        "linear classifier fitted to them in closed form on the network's features",
    )
    batch: Count = Field("auto", description="images of the set a step; auto: by their number, see the table")
    batch_real: int = Field(1024, ge=1, description="real images that the labels are judged by")
    window: Count = Field(
        "auto",
        description="iterations that the error is averaged over, and that it may go without a new minimum before the "
        "network is replaced; auto: see the table",
    )
    lr_step: float = Field(0.01, gt=0, description="step size of the step of training that or2 looks through")
    lr_net: float = Field(1e-3, gt=0, description="step size of Adam, which trains the network")
    ridge: float = Field(1.0, gt=0, description="weight of the squared norm of the classifier that ridge fits")
    head_rate: float = Field(
        0.01, gt=0, le=1, description="share of the fitted classifier in the running one; ridge only"
    )
