"""Sets that are programs: running them as such, both ways, and what their files say."""

from __future__ import annotations

import json

import pytest
import torch

import dcf
from dcf.errors import EvaluationError, FormatError
from dcf.evaluation.context import EvalContext
from dcf.evaluation.cross_arch import CrossArch
from dcf.evaluation.fit import material_of
from dcf.evaluation.protocol import Protocol
from dcf.evaluation.replay import Replay
from dcf.evaluation.train import Train
from dcf.networks.base import NetworkState
from dcf.synthetic import SyntheticSet, load
from dcf.testing import fake_data, fake_set
from dcf.testing.fakes import TinyFactory
from dcf.training import cross_entropy, run_program
from dcf.types import Batch, Hints, Program

PROGRAM = Program(((0, 2), (1, 3), (0, 2)), (0.5, 0.25, 0.125), 0.5)
RULES = Protocol(name="tiny", version=1, epochs=2, batch=4, lr=0.1, schedule="constant", networks=2)


def programmed(program=PROGRAM):
    one = fake_set()
    return SyntheticSet(one.param, one.spec, {**one.config, "network": "tiny"}, hints=Hints(program=program))


def context(**kwargs):
    return EvalContext(
        fake_data(), **{"protocol": RULES, "objects": {"tiny": TinyFactory()}, "baselines": (), **kwargs}
    )


def values(row):
    return [run.value for run in row.runs]


def test_a_program_is_run_in_its_order_with_its_step_sizes_and_momentum():
    data = fake_data()
    images = Batch(data.train.images(torch.arange(4)), data.train.labels[:4])
    state = TinyFactory().create(data.spec, 0)
    weights = {k: v.detach().clone() for k, v in state.params.items()}
    velocity = {k: torch.zeros_like(v) for k, v in weights.items()}
    for step, lr in zip(PROGRAM.steps, PROGRAM.lrs, strict=True):
        leaves = {k: v.requires_grad_() for k, v in weights.items()}
        loss = cross_entropy(state(images.x[list(step)], leaves), images.y[list(step)])
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        velocity = {k: 0.5 * velocity[k] + grads[k] for k in velocity}
        weights = {k: (leaves[k] - lr * velocity[k]).detach() for k in leaves}
    ours: NetworkState = TinyFactory().create(data.spec, 0)
    steps = [torch.tensor(s) for s in PROGRAM.steps]
    done = run_program(ours, lambda i: Batch(images.x[i], images.y[i]), steps, PROGRAM.lrs, 0.5)
    assert (done.steps, done.images_seen) == (3, 6)
    for name, value in weights.items():
        assert torch.allclose(ours.params[name], value, atol=1e-6)


def test_replay_runs_the_program_and_nothing_of_the_protocol():
    report = Replay().evaluate([programmed()], context())
    longer = Replay().evaluate([programmed()], context(overrides={"epochs": 50, "lr": 0.9}))
    assert values(report.rows[0]) == values(longer.rows[0])
    assert report.rows[0].name == "replay"
    assert {run.steps for run in report.rows[0].runs} == {3}
    backwards = Replay().evaluate(
        [programmed(Program(PROGRAM.steps[1:] + PROGRAM.steps[:1], PROGRAM.lrs, 0.5))], context()
    )
    assert [r.train_loss for r in report.rows[0].runs] != [r.train_loss for r in backwards.rows[0].runs]


def test_replay_shows_random_images_in_the_same_program_and_under_the_protocol():
    report = Replay().evaluate([programmed()], context(baselines=("random",)))
    assert [row.name for row in report.baselines] == ["random-replay", "random"]
    assert [row.runs[0].steps for row in report.baselines] == [3, 2]


def test_replay_refuses_a_set_that_is_no_program():
    with pytest.raises(EvaluationError, match="set 0 is no program"):
        Replay().evaluate([programmed(None)], context())


@pytest.mark.parametrize("evaluator", [Train(), CrossArch(CrossArch.Config(pool=("mlp",)))])
def test_other_evaluators_run_a_program_both_ways_and_say_so(evaluator):
    report = evaluator.evaluate([programmed()], context())
    assert [row.name for row in report.rows[:2]] == ["sets", "replay"]
    assert report.summary == report.rows[0].stat
    assert any("this set is a program" in warning for warning in report.warnings)


def test_under_a_protocol_a_program_is_shuffled_like_any_set():
    order = material_of(programmed(), context()).order(torch.Generator().manual_seed(0))
    orders = {tuple(order(epoch).tolist()) for epoch in range(8)}
    assert len(orders) > 1


def test_the_file_keeps_the_program(tmp_path):
    path = tmp_path / "program.safetensors"
    programmed().save(path)
    back = load(path)
    assert back.hints == Hints(None, True, {}, None, PROGRAM)
    assert values(Replay().evaluate([back], context()).rows[0]) == values(
        Replay().evaluate([programmed()], context()).rows[0]
    )


GOOD = {"steps": [[0, 2], [1]], "lrs": [0.5, 0.1], "momentum": 0.0}


@pytest.mark.parametrize(
    "hints",
    [
        *({"steps": n} for n in (0, -1, 1.5, True, "7", 10**12)),
        *({"program": p} for p in ([], 3, {}, {**GOOD, "steps": []}, {**GOOD, "lrs": [0.5]}, {**GOOD, "lrs": "ab"})),
        *({"program": {**GOOD, "steps": s}} for s in ([[0], [4]], [[0], [-1]], [[0], []], [[0], [0.5]], [0, 1], [[0]])),
        *({"program": {**GOOD, "lrs": r}} for r in ([0.5, 0], [0.5, -1], [0.5, 1e300], [0.5, None], [0.5, True])),
        *({"program": {**GOOD, "momentum": m}} for m in (1, -0.1, "0", None)),
    ],
    ids=lambda h: json.dumps(h)[:60],
)
def test_hints_of_another_form_are_refused(tmp_path, hints, monkeypatch):
    path = tmp_path / "odd.safetensors"
    monkeypatch.setattr(Hints, "to_json", lambda self: hints)
    programmed().save(path)
    with pytest.raises(FormatError, match="damaged"):
        load(path)


def test_a_program_has_a_step_size_for_each_step():
    with pytest.raises(ValueError, match="as many step sizes as steps, got 1 and 2"):
        Program(((0,), (1,)), (0.1,))
    assert dcf.Hints(program=PROGRAM).ordered


def test_a_learned_length_and_adam_are_followed():
    rules = Protocol(
        name="tiny", version=1, epochs=7, batch=2, lr=1e-3, schedule="constant", optimizer="adam", length="learned"
    )
    one = fake_set()
    learned = SyntheticSet(one.param, one.spec, {**one.config, "network": "tiny"}, hints=Hints(steps=5))
    ctx = context(protocol=rules, baselines=("random",), networks=1)
    report = Train().evaluate([learned], ctx)
    # 4 images in batches of 2: whole epochs, so 6 steps for 5; random images are trained as long.
    assert [row.runs[0].steps for row in (*report.rows, *report.baselines)] == [6, 6]
    usual = Train().evaluate([SyntheticSet(one.param, one.spec, {**one.config, "network": "tiny"})], ctx)
    assert usual.rows[0].runs[0].steps == 14
    by_sgd = Train().evaluate([learned], context(protocol=rules.with_overrides(optimizer="sgd"), networks=1))
    assert by_sgd.rows[0].runs[0].train_loss != report.rows[0].runs[0].train_loss


def test_a_row_of_a_program_says_so_instead_of_a_protocol():
    report = Train().evaluate([programmed()], context())
    assert [row.protocol for row in report.rows] == ["tiny@1", "replay@1"]
    beside = Replay().evaluate([programmed()], context(baselines=("random",))).baselines
    assert [row.protocol for row in beside] == ["replay@1", "tiny@1"]
