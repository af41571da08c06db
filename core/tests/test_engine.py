"""The engine: gradients reach only what is learned, updates, chunks, guards, and exact resumption."""

from __future__ import annotations

import math

import pytest
import torch

import dcf
from dcf.auxiliary import AuxiliaryObjective
from dcf.engine import Engine, check_composition, estimate_chunk
from dcf.matcher import Matcher
from dcf.nothing import Nothing
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.runconfig import GroupSettings
from dcf.testing import fake_context, fake_data
from dcf.testing.fakes import filled
from dcf.types import ParamGroup, Step


class Pull(Matcher):
    """Pull every synthetic pixel to 1, through a network weight so that a leak would show."""

    def outer(self, ctx, it):
        self.net = ctx.network()
        weight = self.net.parameters()[0]
        for chunk in ctx.chunks():
            images = ctx.synthetic(chunk.classes)
            yield Step((images - 1).square().sum() + 0 * weight.sum(), update=chunk.last, log={"mean": images.mean()})


class Twice(Matcher):
    """Two updates an iteration; remembers what it saw when it was resumed."""

    def outer(self, ctx, it):
        self.seen = []
        for _ in range(2):
            images = ctx.param.images(torch.arange(len(ctx.param.view_class)))
            self.seen.append(images.detach().clone())
            yield Step(images.sum())


class OwnScale(Matcher):
    """Has a learnable value and a counter of its own."""

    def __init__(self, config=None):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.count = torch.zeros(())

    def param_groups(self):
        return [ParamGroup("scale", [self.scale], lr=0.01, momentum=0.0)]

    def project_(self):
        self.scale.clamp_(min=0.5)

    def outer(self, ctx, it):
        self.count = self.count + 1
        yield Step((self.scale * ctx.param.images(torch.arange(2))).square().sum())

    def state_dict(self):
        return {"scale": self.scale.detach(), "count": self.count}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.scale.copy_(state["scale"])
        self.count = state["count"]


def images_of(engine):
    return engine.ctx.param.images(torch.arange(len(engine.ctx.param.view_class))).detach().clone()


def make(matcher, lr=0.1, momentum=0.5, **options):
    return Engine(fake_context(**options), matcher, lr, momentum)


def test_gradient_reaches_the_set_and_not_the_network():
    engine = make(Pull())
    before = images_of(engine)
    engine.iterate(0)
    assert torch.allclose(images_of(engine), before - 0.1 * 2 * (before - 1))
    assert all(w.grad is None for w in engine.matcher.net.parameters())


def test_momentum_follows_plain_sgd():
    engine = make(Twice())
    before = images_of(engine)
    engine.iterate(0)
    # v1 = g, v2 = 0.5 g + g: a displacement of lr (1 + 1.5) g
    assert torch.allclose(before - images_of(engine), torch.full_like(before, 0.1 * 2.5), atol=1e-6)


def test_set_has_moved_when_the_matcher_is_resumed():
    engine = make(Twice())
    engine.iterate(0)
    first, second = engine.matcher.seen
    assert torch.allclose(second, first - 0.1)


@pytest.mark.parametrize("chunk", [1, 2])
def test_class_chunk_does_not_change_the_result(chunk):
    whole, parts = make(Pull(), class_chunk=2), make(Pull(), class_chunk=chunk)
    for it in range(3):
        whole.iterate(it)
        parts.iterate(it)
    assert torch.equal(images_of(whole), images_of(parts))


def test_loss_is_averaged_over_updates_and_logs_over_steps():
    engine = make(Pull(), class_chunk=1)
    before = images_of(engine)
    loss, logs = engine.iterate(0).read()
    assert loss == pytest.approx(float((before - 1).square().sum()), rel=1e-5)
    assert logs["mean"] == pytest.approx(float(before.mean()), abs=1e-5)


def test_matcher_values_learn_and_are_projected():
    engine = make(OwnScale(), lr=1e-4)
    for it in range(50):
        engine.iterate(it)
    assert 0.5 <= float(engine.matcher.scale.detach()) < 2.0


def test_clip_bounds_the_joint_gradient():
    ctx = fake_context()
    engine = Engine(ctx, Pull(), lr=1.0, momentum=0.0, clip=0.5)
    before = images_of(engine)
    engine.iterate(0)
    assert float((images_of(engine) - before).norm()) == pytest.approx(0.5, rel=1e-4)


def test_state_restores_exactly_what_an_uninterrupted_run_has():
    straight, first, second = make(OwnScale()), make(OwnScale()), make(OwnScale())
    for it in range(4):
        straight.iterate(it)
    for it in range(2):
        first.iterate(it)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for it in range(2, 4):
        second.iterate(it)
    assert torch.equal(images_of(straight), images_of(second))
    assert float(second.matcher.count) == 4


def test_run_stops_when_asked_and_says_how_far_it_came():
    engine, reports = make(Pull()), []
    done = engine.run(0, 10, reports.append, lambda: len(reports) == 3)
    assert done == 3
    assert [p.it for p in reports] == [1, 2, 3]
    assert all(math.isfinite(p.loss) for p in reports)


class Explodes(Matcher):
    def outer(self, ctx, it):
        yield Step(ctx.param.images(torch.arange(2)).sum() * (float("nan") if it == 2 else 1.0))


def test_nan_stops_the_run_before_the_iteration_is_reported():
    engine, reports = make(Explodes()), []
    with pytest.raises(dcf.NonFiniteError, match=r"the loss became nan in iteration 3.*\n.*--lr"):
        engine.run(0, 10, reports.append)
    assert len(reports) == 2


class Endless(Matcher):
    def outer(self, ctx, it):
        yield Step(ctx.param.images(torch.arange(2)).sum() + math.inf)


def test_an_infinite_loss_stops_the_run_though_the_set_stays_finite():
    engine = make(Endless())
    with pytest.raises(dcf.NonFiniteError, match="the loss became inf in iteration 1"):
        engine.run(0, 3)
    assert bool(images_of(engine).isfinite().all())


class Overflows(Matcher):
    def outer(self, ctx, it):
        yield Step(1e30 * ctx.param.images(torch.arange(2)).sum())


def test_infinite_set_stops_the_run_though_the_loss_is_finite():
    with pytest.raises(dcf.NonFiniteError, match="the synthetic set became NaN or infinite"):
        make(Overflows(), lr=1e20).run(0, 3)


class Leaks(Matcher):
    def outer(self, ctx, it):
        with torch.no_grad():
            yield Step(torch.zeros(()))


class Empty(Matcher):
    def outer(self, ctx, it):
        yield Step(None)


@pytest.mark.parametrize(("matcher", "text"), [(Leaks(), "inside no_grad"), (Empty(), "no loss")])
def test_broken_matchers_are_named(matcher, text):
    with pytest.raises(RuntimeError, match=text):
        make(matcher).iterate(0)


class Frozen(Parameterization):
    drives = frozenset()


def test_pair_that_cannot_learn_is_refused():
    with pytest.raises(dcf.UsageError, match="Pull teaches images, but Frozen learns nothing") as refused:
        check_composition(Pull(), Frozen())
    assert "--labels" not in str(refused.value)


def test_matching_nothing_leaves_the_set_alone():
    engine = make(Nothing())
    before = images_of(engine)
    assert engine.run(0, 3) == 3
    assert torch.equal(before, images_of(engine))


def test_chunk_estimate_keeps_within_memory():
    assert estimate_chunk(100, 10, 10, budget=10_000) == 10
    assert estimate_chunk(100, 10, 10, budget=3_500) == 3
    assert estimate_chunk(100, 10, 10, budget=1) == 1


# --- settings of groups --------------------------------------------------------------------------


def rates(engine):
    return {g.name: (o.lr, o.momentum) for g, o in zip(engine.groups, engine.optimizer.groups, strict=True)}


def test_a_group_has_its_own_settings_unless_the_run_says_otherwise():
    assert rates(make(OwnScale())) == {"images": (0.1, 0.5), "scale": (0.01, 0.0)}
    optim = {"scale": GroupSettings(momentum=0.9), "images": GroupSettings(lr=3.0)}
    engine = Engine(fake_context(), OwnScale(), 0.1, 0.5, optim=optim)
    assert rates(engine) == {"images": (3.0, 0.5), "scale": (0.01, 0.9)}


def test_settings_of_an_unknown_group_are_refused():
    with pytest.raises(dcf.UsageError, match=r"expected a group of what is learned \(images, scale\), got 'image'"):
        Engine(fake_context(), OwnScale(), 0.1, 0.5, optim={"image": GroupSettings(lr=1.0)})


# --- the life of a matcher -----------------------------------------------------------------------


class Diary(Twice):
    def __init__(self):
        super().__init__()
        self.entries = []

    def prepare(self, ctx):
        self.entries.append("prepare")

    def load_state_dict(self, state):
        self.entries.append("load")

    def outer(self, ctx, it):
        for step in super().outer(ctx, it):
            self.entries.append((it, ctx.update))
            yield step


def test_a_matcher_is_prepared_once_and_updates_are_counted():
    engine = make(Diary())
    engine.prepare()
    engine.load_state_dict(engine.state_dict())
    engine.run(0, 2)
    assert engine.matcher.entries == ["prepare", "load", (0, 0), (0, 1), (1, 0), (1, 1)]


# --- objectives of the parameterization ----------------------------------------------------------


class Shrink(AuxiliaryObjective):
    """Pulls the images to 0, and counts updates in a tensor of its own."""

    def __init__(self, param):
        self.param = param
        self.count = torch.zeros(())
        self.drawn = []

    def loss(self, ctx):
        self.drawn.append((ctx.it, ctx.update))
        return 0.5 * self.param.images(torch.arange(2)).square().sum()

    def after_update(self, ctx):
        self.count = self.count + 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Shrinking(Pixels):
    def aux(self):
        return [Shrink(self)]


def shrinking():
    data = fake_data()
    return make(Twice(), lr=0.1, momentum=0.0, data=data, param=filled(Shrinking(), data, 1))


def test_objectives_of_the_parameterization_are_learned_at_every_update():
    engine = shrinking()
    before = images_of(engine)
    loss, logs = engine.iterate(0).read()
    after = 0.9 * (0.9 * before - 0.1) - 0.1  # each update subtracts 0.1 (1 + image)
    assert torch.allclose(images_of(engine), after, atol=1e-6)
    assert engine.objectives[0].drawn == [(0, 0), (0, 1)]
    first, second = before, 0.9 * before - 0.1
    assert loss == pytest.approx(float(first.sum() + second.sum()) / 2, rel=1e-5)
    assert logs["aux"] == pytest.approx(float(first.square().sum() + second.square().sum()) / 4, rel=1e-5)


def test_an_objective_of_every_iteration_takes_part_in_its_first_update_only():
    engine = shrinking()
    engine.objectives[0].every = "outer"
    before = images_of(engine)
    engine.iterate(0)
    engine.iterate(1)
    after = before
    for _ in range(2):
        after = 0.9 * after - 0.1 - 0.1
    assert torch.allclose(images_of(engine), after, atol=1e-6)
    assert engine.objectives[0].drawn == [(0, 0), (1, 0)]
    assert float(engine.objectives[0].count) == 2


def test_an_objective_that_learned_something_infinite_stops_the_run():
    engine = shrinking()
    engine.objectives[0].count = torch.tensor(math.nan)
    with pytest.raises(
        dcf.NonFiniteError, match=r"what Shrink trains beside the set diverged in iteration 1;.*\n.*--lr"
    ):
        engine.run(0, 1)
    assert bool(images_of(engine).isfinite().all())


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1001.0])
def test_an_objective_whose_own_training_diverged_stops_the_run(loss, monkeypatch):
    engine = shrinking()
    engine.objectives[0].trained = torch.tensor(999.0)
    engine.run(0, 1)
    engine.objectives[0].trained = torch.tensor(loss)
    monkeypatch.setattr(Shrink, "advice", "shrink less")
    with pytest.raises(dcf.NonFiniteError, match=rf"diverged, at a loss of {loss:g}, in iteration 2;.*\n  shrink less"):
        engine.run(1, 2)


def test_a_set_that_led_its_objective_astray_is_what_is_named():
    engine = shrinking()
    engine.objectives[0].count = torch.tensor(math.nan)
    with torch.no_grad():
        engine.watch[0].fill_(math.inf)
    with pytest.raises(dcf.NonFiniteError, match="the loss became nan"):
        engine.run(0, 1)


def test_state_of_objectives_outlives_the_run():
    first, second = shrinking(), shrinking()
    first.iterate(0)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    assert float(second.objectives[0].count) == 2
    assert "count" not in first.ctx.param.state_dict()


# --- what happens before an iteration, and step sizes that follow the size of the set ---


class Clamped(Pixels):
    """Bounds that hold at the start of an iteration only."""

    def begin_(self):
        for tensor in self.parameters():
            tensor.clamp_(0, 1)


class Drift(Twice):
    """Two updates of one each; half of the step size it is given."""

    def lr_factor(self, ctx):
        return 0.5


def test_bounds_of_an_iteration_hold_at_its_start_and_not_after_an_update():
    data = fake_data()
    param = filled(Clamped(), data, init=torch.full((4, 3, 8, 8), 1.5))
    matcher = Drift()
    engine = Engine(fake_context(param, data), matcher, lr=2.0, momentum=0.0)
    engine.run(0, 2)
    first, second = (seen.unique().tolist() for seen in matcher.seen)
    assert (first, second) == ([0.0], [-1.0])  # in the second iteration; the first one ended at -1
    assert next(param.parameters()).unique().tolist() == [-2.0]


def test_step_size_is_multiplied_by_the_factor_of_the_matcher_unless_a_group_has_its_own():
    data = fake_data()
    for optim, moved in (({}, -0.05), ({"images": GroupSettings(lr=0.1)}, -0.1)):
        param = filled(Pixels(), data, init=torch.zeros(4, 3, 8, 8))
        Engine(fake_context(param, data), Drift(), lr=0.1, momentum=0.0, optim=optim).run(0, 1)
        assert next(param.parameters()).unique().tolist() == [pytest.approx(2 * moved)]
