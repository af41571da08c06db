"""Small value types that the interfaces exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dcf.space import ValueSpace

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch", "DataSpec", "Hints", "MatcherDefaults", "Metric", "ParamGroup", "Step"]

#: How gradients are compared; see `dcf.matching.gradient_distance`.
Metric = Literal["ours", "mse", "cos"]


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
    """

    loss: Tensor | None
    update: bool = True
    accumulated: bool = False
    log: Mapping[str, Tensor] = {}


@dataclass
class ParamGroup:
    """Tensors that share one optimiser setting; `--set optim.NAME.lr=...` and `.momentum` win over all of them.

    Args:
        name: Name of the group, such as `images`.
        params: Leaf tensors that require gradients.
        lr: Step size; None takes the run's (`--lr`, else the matcher's default).
        momentum: Of SGD; None takes the run's.
    """

    name: str
    params: Sequence[Tensor]
    lr: float | None = None
    momentum: float | None = None


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
    """

    iterations: int = 1000
    lr: float = 0.1
    momentum: float = 0.5
    init: str = "random"
    iterations_small: int | None = None


@dataclass(frozen=True)
class Hints:
    """What an evaluator must know about a set beyond its images and labels.

    Args:
        lr: Learned step size, if the method learns one.
        ordered: Whether the set is a program whose order matters.
        extra: Anything else, JSON-ready.
    """

    lr: float | None = None
    ordered: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
