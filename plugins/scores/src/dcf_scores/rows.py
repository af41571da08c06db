"""What the evaluators share about rows: further figures of finished ones, pairs of networks, a reference network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from statistics import fmean, variance
from typing import Any

import dcf
from dcf.distributed import ALONE
from dcf.evaluation import EvalContext, Findings, Material, Row, Run, Trial, train_row
from dcf.evaluation.statistics import NOT_ESTIMATED, t_quantile

__all__ = ["train_one", "value_of", "with_metrics", "with_shared_rivals"]


def with_metrics(row: Row, metrics: Callable[[Run], Mapping[str, float]]) -> Row:
    """The same row with further figures of every run, and their summaries.

    Args:
        row: A finished row.
        metrics: From a run to finite numbers by name.
    """
    runs = tuple(run.model_copy(update={"metrics": {**run.metrics, **metrics(run)}}) for run in row.runs)
    kept = {name: getattr(row, name) for name in Row.model_fields if name not in ("runs", "stat", "stats")}
    return Row.of(runs, **kept)


def with_shared_rivals(row: Row, names: Iterable[str]) -> Row:
    """The same row with intervals of differences between sets and rivals that all sets share.

    The difference of network n is taken with network n of the rivals for every set, so what chance did to the rivals
    does not average out over sets. With the crossed effects of sets and networks, the variance of the mean is at most
    `var_s / S + var_n / N`, of the means over networks and over sets; Student's t has the fewer degrees of freedom.

    Args:
        row: A row with these metrics.
        names: Of metrics.
    """
    changed = {name: row.stats[name].model_copy(update=_crossed(row, name)) for name in names}
    return row.model_copy(update={"stats": {**row.stats, **changed}})


def _crossed(row: Row, name: str) -> dict[str, Any]:
    groups = {key: _means(row, name, key) for key in ("set", "net")}
    parts = [(variance(means) / len(means), len(means) - 1) for means in groups.values() if len(means) > 1]
    if not parts:
        return {"ci": NOT_ESTIMATED, "ci_basis": ""}
    half = t_quantile(min(df for _, df in parts)) * math.sqrt(sum(v for v, _ in parts))
    mean, several = row.stats[name].mean, len(parts) > 1
    basis = "sets and networks; the networks of all sets share their rivals" if several else _conditional(groups)
    return {"ci": (mean - half, mean + half), "ci_basis": basis}


def _means(row: Row, name: str, key: str) -> list[float]:
    """The mean of a metric for each set, or for each number of a network."""
    numbers = sorted({getattr(run, key) for run in row.runs})
    return [fmean(run.metrics[name] for run in row.runs if getattr(run, key) == number) for number in numbers]


def _conditional(groups: Mapping[str, list[float]]) -> str:
    return "networks, conditional on one set" if len(groups["set"]) == 1 else "sets, conditional on one network"


def value_of(row: Row, net: int, number: int | None = None) -> float:
    """The value of network `net` of a row, of set `number` where the row has several sets of that network."""
    return next(run.value for run in row.runs if run.net == net and number in (None, run.set))


def train_one(material: Material, ctx: EvalContext, network: str, augment: str) -> tuple[dcf.NetworkState, Run]:
    """One network trained under the protocol, as network 0 of set 0 is; every process trains its own.

    Returns:
        The network, and its run with the test accuracy.
    """
    kept: list[dcf.NetworkState] = []

    def keep(state: dcf.NetworkState, trial: Trial) -> Findings:
        kept.append(state)
        return Findings({})

    alone = replace(ctx, probe=keep, world=ALONE)
    measured = train_row("reference network", [Trial(0, 0, 0, material)], 1, alone, network, augment)
    return kept[0], measured.row.runs[0]
