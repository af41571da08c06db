"""The evaluator `calibration`: how far the confidence of networks trained on a set can be believed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import dcf
from dcf.data import Split
from dcf.evaluation import EvalContext, Findings, Report, Row, Trial, set_row
from dcf.evaluation.train import baseline_rows, build_report, with_program
from dcf_scores.options import CalibrationConfig
from dcf_scores.predictions import predictions
from dcf_scores.reliability import (
    TEMPERATURES,
    Reliability,
    brier,
    calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)

__all__ = ["Calibration", "figures"]


class Calibration(dcf.Evaluator):
    """Expected calibration error, negative log-likelihood and Brier score on the test images.

    The networks, their accuracies and the rows beside them are those of `train`. With `temperature`, a part of the real
    training images is held out from every row and fits one number for each network; the test images never do. The set
    itself may have been made from these images: its networks see them through the set alone.
    """

    Config = CalibrationConfig

    def evaluate(self, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Report:
        """Train the protocol's networks on each set and the baselines, and ask them for probabilities.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol, or a training diverges.
        """
        start = time.perf_counter()
        ctx.check(sets)
        network, config, held = ctx.network_spec(sets), self.config, None
        rest = ctx
        if config.temperature:
            parts = ctx.data.holdout(config.holdout, ctx.generator(0, 0, "calibration holdout"))
            held, rest = parts.test, replace(ctx, data=replace(ctx.data, train=parts.train))
        probed = replace(rest, probe=_Calibrated(ctx.data.test, held, config.bins))
        result = set_row(sets, probed, network)
        results, ordered = with_program(result, sets, probed, network)
        beside, notes = baseline_rows(sets, probed, [network])
        rows = [one.row for one in (*results, *beside)]
        facts = {**config.model_dump(mode="json"), "held_out": len(held) if held else 0, "reliability": _tables(rows)}
        notes = [*ordered, *notes, *_unbounded(rows)]
        summary = result.row.stats["ece"]
        return build_report("calibration", self, sets, ctx, results, beside, notes, summary, start, facts)


@dataclass(frozen=True)
class _Calibrated:
    """Looks at the probabilities of a network."""

    test: Split
    held: Split | None
    bins: int

    def __call__(self, state: dcf.NetworkState, trial: Trial) -> Findings:
        who = f"network {trial.net} of set {trial.set}"
        logits, labels = predictions(state, self.test, who)
        metrics, table = figures(logits, labels, self.bins)
        details: dict[str, Any] = {"reliability": _raw(table)}
        if self.held is not None:
            found = fit_temperature(*predictions(state, self.held, who))
            cooled, after = figures(logits, labels, self.bins, found)
            metrics |= {f"{name}_tempered": value for name, value in cooled.items()} | {"temperature": found}
            details["reliability_tempered"] = _raw(after)
        return Findings(metrics, details)


def figures(
    logits: Tensor, labels: Tensor, bins: int, temperature: float = 1.0
) -> tuple[dict[str, float], Reliability]:
    """ECE, NLL, Brier score and mean confidence of logits `(N, K)`, and their reliability table."""
    chances = torch.softmax(logits.double() / temperature, dim=1)
    table = reliability(chances, labels, bins)
    return {
        "ece": calibration_error(table),
        "nll": negative_log_likelihood(logits, labels, temperature),
        "brier": brier(chances, labels),
        "confidence": float(chances.max(dim=1).values.mean()),
    }, table


def _unbounded(rows: Sequence[Row]) -> list[str]:
    """Which rows have networks that no temperature fits."""
    low = 1.01 * TEMPERATURES[0]
    return [
        f"calibration: {row.name}: all held-out images are right for {n} of {len(row.runs)} networks, so that no "
        "temperature is the best; what is called tempered of them means nothing"
        for row in rows
        if (n := sum(run.metrics.get("temperature", 1.0) < low for run in row.runs))
    ]


def _raw(table: Reliability) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in table._asdict().items()}


def _tables(rows: Sequence[Row]) -> dict[str, Any]:
    """The reliability tables of each row, all its networks together."""
    found: dict[str, Any] = {}
    for row in rows:
        for kind in row.runs[0].details:
            tables = [Reliability(*map(torch.tensor, run.details[kind].values())) for run in row.runs]
            total = tables[0]
            for table in tables[1:]:
                total = total.plus(table)
            found[f"{row.name}{kind.removeprefix('reliability')}"] = total.to_json()
    return found
