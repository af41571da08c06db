"""The evaluator `replay`: a set that is a program, run as one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dcf.evaluation.baselines import random_program_row
from dcf.evaluation.context import EvalContext
from dcf.evaluation.fit import Measured, program_row
from dcf.evaluation.report import Report
from dcf.evaluation.train import baseline_rows, build_report
from dcf.evaluator import Evaluator

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["Replay"]


class Replay(Evaluator):
    """Accuracy of fresh networks after exactly the training that the set was made for (Wang et al., 2018).

    The steps are those of the set, in its order and with its step sizes; epochs, batch, step size and augmentation of
    the protocol play no part. Random images stand beside it twice: in the same program, one for each of its images,
    and trained under the protocol.
    """

    programs: ClassVar[bool] = True

    def evaluate(self, sets: Sequence[SyntheticSet], ctx: EvalContext) -> Report:
        """Run the program of each set on the protocol's number of networks.

        Raises:
            EvaluationError: When a set is no program, or the sets do not fit the data.
        """
        start = time.perf_counter()
        ctx.check(sets)
        network = ctx.network_spec(sets)
        result = program_row(sets, ctx, network)
        beside, notes = baseline_rows(sets, ctx, [network])
        if "random" in ctx.baselines:
            same = random_program_row(sets, ctx, network)
            beside, notes = ([same, *beside], notes) if isinstance(same, Measured) else (beside, [*notes, same])
        return build_report("replay", self, sets, ctx, [result], beside, notes, result.row.stat, start)
