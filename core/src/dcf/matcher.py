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

    A run calls `setup`, `param_groups`, then `prepare`, then `initialise`, or `load_state_dict` if it is resumed, then
    `outer` for each iteration. So learnable values are made in `__init__`, or in `setup` where their number depends on
    the run, and networks that outlive an iteration in `prepare`.

    Class attributes:
        reads: What it can teach: "images", "labels" or both. Must overlap with what the parameterization `drives`.
        needs: What it relies on: "double-backward" (networks that can be differentiated twice; tried before the run
            starts), "embedding" (which every network has).
        classwise: Whether classes are independent of each other, so that separate runs may be merged.
        shards: Whether several processes may divide the classes of an iteration: what `outer` yields up to an update is
            a sum over the classes of `ctx.chunks()`, and whatever else it needs of all classes goes through
            `ctx.sum_over_processes`. Otherwise processes make whole iterations with draws of their own, which are
            averaged.
        defaults: The settings of its paper.
        advice: What to change when the run diverges: one line, without a full stop at its end.
    """

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    reads: ClassVar[frozenset[str]] = frozenset({"images"})
    needs: ClassVar[frozenset[str]] = frozenset()
    classwise: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    defaults: ClassVar[MatcherDefaults] = MatcherDefaults()
    advice: ClassVar[str] = "lower the step size (--lr) or clip the gradients (--clip), and start again"

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def setup(self, ctx: Context) -> None:
        """Make learnable values whose number depends on the run; cheap, and before `param_groups`.

        Raises:
            UsageError: When the options do not fit the set, such as batches that its images cannot fill.
        """

    def prepare(self, ctx: Context) -> None:
        """Do what must be done once in a process, before the first iteration, such as training experts.

        What takes long says how far it is (`ctx.report`) and ends when it is asked to (`ctx.check_stop`).
        """

    def initialise(self, ctx: Context) -> None:
        """Change the starting values of the set; once in the life of a run, after `prepare`, never when resumed."""

    def rehearse(self, ctx: Context) -> None:
        """Stand in for `prepare` where only time and memory of an iteration are measured: quick, of any value."""
        self.prepare(ctx)

    def preparation(self, ctx: Context) -> float:
        """Seconds that `prepare` will take, from a measurement of a part of it; 0 where there is nothing to do."""
        return 0.0

    def lr_factor(self, ctx: Context) -> float:
        """What the run's step size is multiplied by, for methods whose published one depends on the size of the set.

        Step sizes of groups of their own, such as those of `--set optim.NAME.lr=...`, are taken as they are.
        """
        return 1.0

    def updates(self, ctx: Context) -> int:
        """Updates of the synthetic set in one outer iteration, for estimates."""
        return 1

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
