"""Checks of evaluators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dcf.evaluation.context import EvalContext
from dcf.evaluation.protocol import Protocol
from dcf.evaluation.report import Report, Row
from dcf.testing.fakes import NETWORK, SoftPixels, fake_data, fake_set, filled
from dcf.testing.subject import Check, Subject, require, same
from dcf.types import Hints, Program

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["CHECKS", "exercise"]

_NETS = 2


def protocol() -> Protocol:
    """Two epochs of a small network."""
    return Protocol(name="tiny", version=1, epochs=2, batch=4, lr=0.05, schedule="constant", network=NETWORK)


def sets(soft: bool = False) -> list[SyntheticSet]:
    """Two sets of one method, with hard or soft labels."""
    data = fake_data()
    made = []
    for seed in (0, 1):
        init = fake_data(seed=seed).train.images(torch.tensor([0, 1, 6, 7]))
        param = filled(SoftPixels(), data, 2, init) if soft else None
        made.append(fake_set(param, data, seed=seed))
    return made


def report_of(subject: Subject, many: Sequence[SyntheticSet], seed: int = 0, device: str = "cpu") -> Report:
    """Evaluate sets on fake data, with two networks each."""
    data = fake_data().to(device)
    ctx = EvalContext(data, protocol(), seed, device, networks=_NETS)
    made = subject.make()
    for one in many if made.programs else ():
        one.hints = Hints(program=Program(((0, 2), (1, 3), (0, 2)), (0.05, 0.02, 0.01)))
    report: Report = made.evaluate(many, ctx)
    return report


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """Every value of a report."""
    report = report_of(subject, sets(), seed, str(device))
    return [torch.tensor([run.value for run in row.runs], dtype=torch.float64, device=device) for row in report.rows]


def check_report_is_deterministic(subject: Subject) -> None:
    """All of a report but its timing is a function of sets, data, protocol and seed."""
    first, second = (report_of(subject, sets()).to_json(timing=False) for _ in range(2))
    different = [key for key in first if first[key] != second[key]]
    require(not different, f"two evaluations differ in {', '.join(different)}")


def check_every_value_is_present(subject: Subject) -> None:
    """Each row has one finite value for each set and network; mean and counts are those of the values."""
    report = report_of(subject, sets())
    require(bool(report.rows), "the report has no row")
    for row in report.rows:
        _check_row(row)
    accuracies = [v for row in report.rows for v in [run.value for run in row.runs] if row.stat.metric == "accuracy"]
    require(all(0 <= v <= 1 for v in accuracies), "accuracies lie outside 0 .. 1")


def _check_row(row: Row) -> None:
    pairs = [(run.set, run.net) for run in row.runs]
    values = [run.value for run in row.runs]
    where = f"row '{row.name}' of '{row.network}'"
    require(len(pairs) == len(set(pairs)) == 2 * _NETS, f"{where}: expected {2 * _NETS} values, got {len(pairs)}")
    require(all(map(math.isfinite, values)), f"{where}: a value is NaN or infinite")
    require((row.stat.n_sets, row.stat.n_nets) == (2, _NETS), f"{where}: expected n = 2 x {_NETS}")
    require(math.isclose(row.stat.mean, fmean(values), abs_tol=1e-9), f"{where}: the mean is not that of the values")


def check_summary_is_consistent(subject: Subject) -> None:
    """The headline rests on as many sets and networks as were evaluated, and names what it is."""
    report = report_of(subject, sets())
    require(report.summary.n_sets == 2, f"expected 2 sets in the summary, got {report.summary.n_sets}")
    require(bool(report.summary.metric), "the summary does not say what was measured")
    require(report.protocol == protocol().id, f"expected protocol '{protocol().id}', got '{report.protocol}'")


def check_soft_labels_are_accepted(subject: Subject) -> None:
    """Sets with class probabilities are evaluated like those with class indices."""
    for row in report_of(subject, sets(soft=True)).rows:
        _check_row(row)


def check_report_survives_json(subject: Subject) -> None:
    """Files keep the report as JSON: reading it back gives the same."""
    report = report_of(subject, sets())
    require(Report.from_json(report.to_json()) == report, "the report read back from JSON differs")


def check_sets_are_not_modified(subject: Subject) -> None:
    """Evaluation leaves the stored tensors as they were, without gradients."""
    many = sets()
    before = [t.clone() for one in many for t in one.param.state_dict().values()]
    report_of(subject, many)
    after = [t for one in many for t in one.param.state_dict().values()]
    require(same(before, after), "evaluating changes a set")
    require(all(p.grad is None for one in many for p in one.param.parameters()), "evaluating leaves gradients in a set")


CHECKS: Sequence[Check] = (
    check_report_is_deterministic,
    check_every_value_is_present,
    check_summary_is_consistent,
    check_soft_labels_are_accepted,
    check_report_survives_json,
    check_sets_are_not_modified,
)
