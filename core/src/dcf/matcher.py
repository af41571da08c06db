"""The Matcher interface: what the synthetic set must match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from dcf.config import Config as BaseConfig
from dcf.types import Hints, MatcherDefaults, ParamGroup, Step

if TYPE_CHECKING:
    from dcf.context import Context

__all__ = ["Matcher"]


class Matcher:
    """Base of matchers.

    `outer` is a generator that yields one `Step` for each loss. While it is suspended the engine
    differentiates the loss and, when asked, moves the synthetic set; when it is resumed the set has moved: that is
    the place to train a network on it. Two rules: never yield inside `no_grad` or autocast, and never change in
    place the weights of a network that a yielded loss depends on before being resumed.

    A run calls `param_groups`, then `prepare`, then `load_state_dict` if it is resumed, then `outer` for each
    iteration. So learnable values are made in `__init__`, and networks that outlive an iteration in `prepare`.

    Class attributes:
        reads: What it can teach: "images", "labels" or both. Must overlap with what the parameterization `drives`.
        needs: What it relies on: "double-backward" (networks that can be differentiated twice; tried before the run
            starts), "embedding" (which every network has).
        classwise: Whether classes are independent of each other, so that separate runs may be merged.
        defaults: The settings of its paper.
    """

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    reads: ClassVar[frozenset[str]] = frozenset({"images"})
    needs: ClassVar[frozenset[str]] = frozenset()
    classwise: ClassVar[bool] = False
    defaults: ClassVar[MatcherDefaults] = MatcherDefaults()

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def prepare(self, ctx: Context) -> None:
        """Do what must be done once in a process, before the first iteration, such as training experts."""

    def outer(self, ctx: Context, it: int) -> Iterator[Step]:
        """One outer iteration.

        Args:
            ctx: Real data, synthetic set, networks, augmentation, training; seeded for this iteration.
            it: Number of the iteration, from 0.

        Yields:
            Losses, with what the engine shall do with each.
        """
        raise NotImplementedError

    def param_groups(self) -> list[ParamGroup]:
        """The matcher's own learnable values, such as a step size; moved to the run's device by the engine."""
        return []

    def project_(self) -> None:
        """Bring the matcher's own values back into their bounds after an update."""

    def hints(self) -> Hints:
        """What an evaluator must know about the finished set."""
        return Hints()

    def state_dict(self) -> Mapping[str, Tensor]:
        """Tensors that outlive an outer iteration; everything else must be a function of the iteration."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
