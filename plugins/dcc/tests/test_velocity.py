"""The evaluator `kernel-velocity`: what it measures, on which networks, and what its report says."""

from __future__ import annotations

import itertools

import pytest
import torch

import dcf
from dcf.evaluation.context import EvalContext
from dcf.evaluation.protocol import Protocol
from dcf.pixels import Pixels
from dcf.testing import fake_data, fake_set
from dcf.testing.fakes import filled
from dcf_dcc.kernels import kernel_distance
from dcf_dcc.velocity import Film, KernelVelocity

NETWORK = "convnet:width=4,depth=1"


def rules(**options):
    return Protocol(
        **{"name": "tiny", "version": 1, "epochs": 4, "lr": 0.05, "schedule": "constant", "network": NETWORK, **options}
    )


def report_of(sets=None, baselines=("random",), networks=2, options=None, **protocol):
    data = fake_data()
    ctx = EvalContext(data, rules(**protocol), 0, networks=networks, baselines=baselines)
    evaluator = KernelVelocity(KernelVelocity.Config(**{"n": 4, **(options or {})}))
    return evaluator.evaluate(sets or [fake_set(data=data)], ctx)


def other_set(seed=1):
    data = fake_data()
    init = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return fake_set(filled(Pixels(), data, 2, init), data)


# --- film -------------------------------------------------------------------------------------------------------------


def test_film_takes_kernels_when_they_are_due():
    kernels = [torch.eye(2).double() + k * torch.ones(2, 2).double() for k in range(3)]
    taken = iter(kernels)
    film = Film(lambda: next(taken), [0, 2, 3])
    for epoch in range(6):
        film.after(epoch)
    assert film.steps == [kernel_distance(a, b) for a, b in itertools.pairwise(kernels)]
    assert film.from_start == [0.0, kernel_distance(kernels[0], kernels[1]), kernel_distance(kernels[0], kernels[2])]


def test_kernel_of_a_diverged_training_is_a_clear_error():
    film = Film(lambda: torch.full((2, 2), torch.nan), [0, 1])
    with pytest.raises(dcf.EvaluationError, match="not finite after 1 epochs"):
        film.after(1)


# --- report -----------------------------------------------------------------------------------------------------------


def test_report_has_the_whole_curve_of_every_network_and_row():
    report = report_of()
    assert report.summary.metric == "velocity"
    assert set(report.extra["curves"]) == {"sets", "random"}
    for row, name in zip([*report.rows, *report.baselines], ("sets", "random"), strict=True):
        curves = report.extra["curves"][name]
        assert curves["epochs"] == [0, 1, 2, 3, 4]
        assert curves["dt"] == [1, 1, 1, 1]
        assert len(curves["runs"]) == len(row.runs) == 2
        for run, curve in zip(row.runs, curves["runs"], strict=True):
            assert run.value == pytest.approx(sum(curve["velocity"]) / 4)
            assert all(0 < v <= 1 for v in curve["velocity"])
            assert curve["from_start"][0] == 0
            assert 0 <= run.last <= 1
        middle = [sum(column) / 2 for column in zip(*(c["velocity"] for c in curves["runs"]), strict=True)]
        assert curves["velocity"] == pytest.approx(middle)


def test_interval_is_recorded_and_divides():
    every, twice = (report_of(options={"every": k, "until": 3}).extra["curves"]["sets"] for k in (1, 2))
    assert twice["epochs"] == [0, 2, 3]
    assert twice["dt"] == [2, 1]
    for one, two in zip(every["runs"], twice["runs"], strict=True):
        assert two["velocity"][0] == pytest.approx(two["from_start"][1] / 2)
        assert one["from_start"][2] == pytest.approx(two["from_start"][1])


def test_what_is_measured_does_not_change_the_training():
    plain = dcf.evaluate(fake_set(), data=fake_data(), protocol=rules(), networks=2, baselines=[])
    filmed = report_of(baselines=())
    assert [run.last for run in filmed.rows[0].runs] == [run.value for run in plain.rows[0].runs]


def test_networks_of_all_sets_and_rows_start_alike():
    sets = [fake_set(), fake_set()]
    report = report_of(sets)
    values = {(run.set, run.net): run.value for run in report.rows[0].runs}
    assert values[0, 0] == values[1, 0]
    assert values[0, 0] != values[0, 1]
    assert [run.seed for run in report.baselines[0].runs] == [run.seed for run in report.rows[0].runs[:2]]


def test_other_images_move_the_kernel_otherwise():
    assert report_of().summary.mean != report_of([other_set()]).summary.mean


def test_a_network_that_hardly_learns_hardly_moves_its_kernel():
    still, moving = (report_of(baselines=(), lr=lr, weight_decay=0.0).summary.mean for lr in (1e-6, 0.05))
    assert still < 1e-6 < moving


@pytest.mark.parametrize("mode", ["sum", "trace"])
def test_modes_are_recorded(mode):
    report = report_of(options={"mode": mode}, baselines=(), networks=1)
    assert report.extra["mode"] == mode
    assert report.extra["images"] == 4
    assert report.extra["unit"] == "epoch"


def test_fewer_test_images_than_asked_for_are_noted():
    report = report_of(options={"n": 100}, baselines=())
    assert report.extra["images"] == 8
    assert "8 test images instead of 100" in report.warnings[0]


def test_the_whole_training_set_has_a_row_when_asked_for():
    report = report_of(baselines=("whole",))
    assert [row.name for row in report.baselines] == ["whole"]
    assert report.baselines[0].images == 12


def test_unknown_baseline_is_a_clear_error():
    with pytest.raises(dcf.UsageError, match="no baseline named 'best'"):
        report_of(baselines=("best",))


def test_soft_labels_and_learned_steps_are_taken_as_the_protocol_says():
    with pytest.raises(dcf.DcfError, match="learned"):
        report_of(lr="learned")


def test_a_program_is_refused_with_the_reason():
    one = fake_set()
    one.hints = dcf.Hints(program=dcf.Program(((0,), (1,)), (0.1, 0.2)))
    with pytest.raises(dcf.EvaluationError, match=r"is a program.*\n.*--evaluator replay"):
        report_of([one])
