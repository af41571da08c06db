"""The evaluator `train`: fresh networks trained on the sets, tested on real images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcf.evaluation.baselines import find_baseline
from dcf.evaluation.context import EvalContext
from dcf.evaluation.fit import Measured, program_row, set_row
from dcf.evaluation.report import Report, Row, SetInfo, Timing
from dcf.evaluation.statistics import Stat
from dcf.evaluator import Evaluator
from dcf.runtime import environment
from dcf.storage import content_hash

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["Train", "baseline_rows", "build_report", "order_notes", "with_program"]


class Train(Evaluator):
    """Accuracy of networks trained from scratch on a set, after the last epoch (Zhao et al., ICLR 2021)."""

    def evaluate(self, sets: Sequence[SyntheticSet], ctx: EvalContext) -> Report:
        """Train the protocol's networks on each set, and the baselines beside them.

        Sets that are programs are run both ways: as sets of images under the protocol, which is the headline, and as
        what they are.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol.
            PluginError: When the protocol's augmenter or network is not installed.
        """
        start = time.perf_counter()
        ctx.check(sets)
        network = ctx.network_spec(sets)
        result = set_row(sets, ctx, network)
        results, warnings = with_program(result, sets, ctx, network)
        beside, notes = baseline_rows(sets, ctx, [network])
        return build_report("train", self, sets, ctx, results, beside, [*warnings, *notes], result.row.stat, start)


def with_program(
    result: Measured, sets: Sequence[SyntheticSet], ctx: EvalContext, network: str
) -> tuple[list[Measured], list[str]]:
    """A row of sets, and where they are programs the row that runs them as such, with a warning."""
    notes = order_notes(sets)
    return [result, *([program_row(sets, ctx, network)] if sets[0].hints.program is not None else [])], notes


def order_notes(sets: Sequence[SyntheticSet]) -> list[str]:
    """The warning that sets get whose order matters, where they are trained on as sets of images."""
    hints = sets[0].hints
    if not hints.ordered:
        return []
    if hints.program is None:
        return ["the order of the images is part of this set, and it does not say how to run it"]
    return [
        "this set is a program: the order of its images and the step size of each step are part of it; 'replay' runs "
        "it as such, the protocol shuffles its images and trains with a step size of its own"
    ]


def baseline_rows(
    sets: Sequence[SyntheticSet], ctx: EvalContext, networks: Sequence[str]
) -> tuple[list[Measured], list[str]]:
    """Rows of the context's baselines for each network, and the reasons why any are missing."""
    made = [find_baseline(name)(sets, ctx, network) for name in ctx.baselines for network in networks]
    return [m for m in made if isinstance(m, Measured)], list(dict.fromkeys(m for m in made if isinstance(m, str)))


def build_report(
    name: str,
    evaluator: Evaluator,
    sets: Sequence[SyntheticSet],
    ctx: EvalContext,
    results: Sequence[Measured],
    beside: Sequence[Measured],
    notes: Sequence[str],
    summary: Stat,
    start: float,
    extra: Mapping[str, Any] | None = None,
) -> Report:
    """A report from measured rows.

    Args:
        name: Of the evaluator.
        evaluator: For its version.
        sets: The evaluated sets.
        ctx: Protocol, data, seed.
        results: Rows of the sets.
        beside: Rows of the baselines.
        notes: Further warnings.
        summary: The headline.
        start: `time.perf_counter()` when the evaluation began.
        extra: Further figures, JSON-ready.
    """
    measured, facts = [*results, *beside], tuple(_info(one) for one in sets)
    return Report(
        evaluator=name,
        version=evaluator.version,
        protocol=ctx.rules.id,
        protocol_hash=ctx.rules.config_hash,
        settings=ctx.rules.model_dump(mode="json"),
        seed=ctx.seed,
        data={"id": ctx.data.id, "checksum": ctx.data.checksum},
        method=dict(sets[0].config),
        sets=facts,
        rows=tuple(m.row for m in results),
        summary=summary,
        baselines=tuple(m.row for m in beside),
        extra=dict(extra or {}),
        env=environment(ctx.place, " and ".join(sorted({m.row.precision for m in measured} - {""}))),
        warnings=(*(w for m in measured for w in m.warnings), *notes, *_copies(facts)),
        timing=Timing(seconds=time.perf_counter() - start, rows={_key(m.row): m.seconds for m in measured}),
    )


def _key(row: Row) -> str:
    return f"{row.name} {row.network}"


def _copies(sets: Sequence[SetInfo]) -> list[str]:
    """That sets are the same, so that nothing is learned of how sets differ."""
    different = len({one.sha256 for one in sets})
    if different == len(sets):
        return []
    return [f"{len(sets)} sets were given, of which {different} differ: the spread over sets says too little"]


def _info(one: SyntheticSet) -> SetInfo:
    selection = one.metadata.get("selection") or {}
    return SetInfo(
        seed=one.seed, sha256=content_hash(one.stored_tensors()), storage=one.storage().to_json(), selection=selection
    )
