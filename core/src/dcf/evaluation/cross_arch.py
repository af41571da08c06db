"""The evaluator `cross-arch`: does a set made with one network train others?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from dcf.evaluation.context import EvalContext
from dcf.evaluation.fit import Measured, set_row
from dcf.evaluation.options import CrossArchConfig, pool_specs
from dcf.evaluation.report import Report
from dcf.evaluation.train import baseline_rows, build_report, with_program
from dcf.evaluator import Evaluator

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["CrossArch", "pool_specs", "transfer"]


class CrossArch(Evaluator):
    """One row for each architecture of a pool, under one protocol: condensed with A, tested on every B."""

    Config = CrossArchConfig

    def evaluate(self, sets: Sequence[SyntheticSet], ctx: EvalContext) -> Report:
        """Train every network of the pool, and the one that made the set, on each set.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol.
        """
        start = time.perf_counter()
        ctx.check(sets)
        home = ctx.network_spec(sets)
        networks = list(dict.fromkeys([home, *pool_specs(self.config.pool)]))
        for network in networks:
            ctx.factory(network)
        rows = [with_program(set_row(sets, ctx, network), sets, ctx, network) for network in networks]
        results = [one for measured, _ in rows for one in measured]
        beside, notes = baseline_rows(sets, ctx, networks)
        notes = [*rows[0][1], *notes]
        extra = {name: transfer(rows, home) for name, rows in _by_name([*results, *beside]).items()}
        return build_report("cross-arch", self, sets, ctx, results, beside, notes, results[0].row.stat, start, extra)


def _by_name(rows: Sequence[Measured]) -> dict[str, list[Measured]]:
    groups: dict[str, list[Measured]] = {}
    for measured in rows:
        groups.setdefault(measured.row.name, []).append(measured)
    return groups


def transfer(rows: Sequence[Measured], home: str) -> dict[str, float | str | None]:
    """How accuracy carries over from the network that made the set.

    Args:
        rows: One for each architecture.
        home: Spec of the architecture A that made the set.

    Returns:
        `home` A, `accuracy` on it, `mean_others` over B != A, and `gap` = accuracy - mean_others, in [-1, 1];
        None without others.
    """
    here = next(m.row.stat.mean for m in rows if m.row.network == home)
    others = [m.row.stat.mean for m in rows if m.row.network != home]
    mean = fmean(others) if others else None
    return {"home": home, "accuracy": here, "mean_others": mean, "gap": None if mean is None else here - mean}
