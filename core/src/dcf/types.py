"""Small value types that the interfaces exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

from dcf.space import ValueSpace

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Batch",
    "DataSpec",
    "Hints",
    "KeptSteps",
    "MatcherDefaults",
    "Metric",
    "ParamGroup",
    "Program",
    "Step",
    "UnrollChoice",
    "UnrollMode",
]

#: How gradients are compared; see `dcf.matching.gradient_distance`.
Metric = Literal["ours", "mse", "cos"]
#: How a training is differentiated; see `dcf.unroll.unroll`.
UnrollMode: TypeAlias = Literal["adjoint", "full", "checkpoint", "tesla"]
#: The same as an option of training on images, where "auto" is the quickest exact one that is small enough.
UnrollChoice: TypeAlias = Literal["auto", "adjoint", "full", "checkpoint", "tesla"]
#: The weights of every so-many-th step are kept for the way back; "cpu": of all, in main memory. As an option.
KeptSteps: TypeAlias = Annotated[int, Field(ge=1)] | Literal["cpu"]


class Batch(NamedTuple):
    """Images with their labels.

    Attributes:
        x: `(N, C, H, W)` images in the dataset's value space.
        y: `(N,)` class indices (int64) or `(N, K)` class probabilities.
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class DataSpec:
    """What the images of a dataset look like.

    Args:
        channels: Number of channels, any.
        height: Rows.
        width: Columns; need not equal `height`.
        classes: Class names; the index in this tuple is the label.
        space: What the values mean.
    """

    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    space: ValueSpace

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        return (self.channels, self.height, self.width)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


class Step(NamedTuple):
    """What a matcher yields: one loss, and what the engine shall do with it.

    Attributes:
        loss: Scalar, differentiated into the synthetic (and the matcher's own) parameters only.
            None when `accumulated`.
        update: False accumulates the gradients and goes on; True also makes the optimiser step.
        accumulated: The matcher has written `.grad` itself.
        log: Detached scalars for the metrics, by name.
        limit: Leave the update out when the loss is above this, or it or a gradient is not finite; infinity checks
            the latter alone, None nothing. For objectives that can explode, such as those that differentiate
            through training; several such iterations in a row end the run. Waits for the device.
    """

    loss: Tensor | None
    update: bool = True
    accumulated: bool = False
    log: Mapping[str, Tensor] = {}
    limit: float | None = None


@dataclass
class ParamGroup:
    """Tensors that share one optimiser setting; `--set optim.NAME.lr=...` and so on win over all of them.

    Args:
        name: Name of the group, such as `images`.
        params: Leaf tensors that require gradients.
        lr: Step size; None takes the run's (`--lr`, else the matcher's default).
        momentum: Of SGD; None takes the run's.
        optimizer: "sgd" or "adam"; None takes the matcher's default.
        betas: Of Adam; None takes the matcher's default.
        decay: `(n, factor)`: the step size is multiplied by `factor` after every n outer iterations.
    """

    name: str
    params: Sequence[Tensor]
    lr: float | None = None
    momentum: float | None = None
    optimizer: Literal["sgd", "adam"] | None = None
    betas: tuple[float, float] | None = None
    decay: tuple[int, float] | None = None


@dataclass(frozen=True)
class MatcherDefaults:
    """Settings of a run that a method's paper fixes, used where the user gives none.

    Args:
        iterations: Outer iterations.
        lr: Step size of the synthetic parameters.
        momentum: Of SGD on the synthetic parameters.
        init: Selector spec that initialises the synthetic set.
        iterations_small: At most so many where the data suggest a number of their own, as small data do; for methods
            whose outer iterations are long ones.
        optimizer: Of the synthetic parameters.
        betas: Of Adam.
        decay: As in `ParamGroup`, for the synthetic parameters.
    """

    iterations: int = 1000
    lr: float = 0.1
    momentum: float = 0.5
    init: str = "random"
    iterations_small: int | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    decay: tuple[int, float] | None = None


@dataclass(frozen=True)
class Program:
    """Training steps that belong to a set: which images, in which order, with which step size.

    Attributes:
        steps: View numbers of each optimiser step, in order.
        lrs: Step size of each.
        momentum: Of SGD over the whole program.
    """

    steps: tuple[tuple[int, ...], ...]
    lrs: tuple[float, ...]
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.lrs) or not self.steps:
            raise ValueError(f"expected as many step sizes as steps, got {len(self.lrs)} and {len(self.steps)}")


@dataclass(frozen=True)
class Hints:
    """What an evaluator must know about a set beyond its images and labels.

    Args:
        lr: Learned step size, if the method learns one.
        ordered: Whether the set is a program whose order matters; always so where it has a `program`.
        extra: Anything else, JSON-ready.
        steps: Learned training length in optimiser steps, if the method learns one.
        program: The training that the set was made for, if it is an ordered one.
    """

    lr: float | None = None
    ordered: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    program: Program | None = None

    def __post_init__(self) -> None:
        if self.program is not None and not self.ordered:
            object.__setattr__(self, "ordered", True)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; what is not there is left out, but for the three oldest."""
        program = self.program and {
            "steps": [list(step) for step in self.program.steps],
            "lrs": list(self.program.lrs),
            "momentum": self.program.momentum,
        }
        later = {"steps": self.steps, "program": program}
        return {
            "lr": self.lr,
            "ordered": self.ordered,
            "extra": dict(self.extra),
            **{k: v for k, v in later.items() if v is not None},
        }
