"""The Evaluator interface: is a synthetic set any good?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dcf.config import Config as BaseConfig

if TYPE_CHECKING:
    from dcf.evaluation.context import EvalContext
    from dcf.evaluation.report import Report
    from dcf.synthetic import SyntheticSet

__all__ = ["Evaluator"]


class Evaluator:
    """Base of evaluators.

    An evaluator sees finished sets and the real data, never the state of the run that made them. It must be
    deterministic for a seed, accept hard and soft labels, and report every single value.
    """

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    version: ClassVar[int] = 1
    #: Whether it evaluates nothing but sets that are programs (`Hints.program`).
    programs: ClassVar[bool] = False

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def evaluate(self, sets: Sequence[SyntheticSet], ctx: EvalContext) -> Report:
        """Evaluate independently condensed sets of one kind.

        Args:
            sets: S sets of one dataset and one method.
            ctx: Real data, protocol, networks, seeds, device, progress.

        Returns:
            A report with every value and its summary.
        """
        raise NotImplementedError
