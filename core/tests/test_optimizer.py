"""The optimiser of what is learned, updates that are left out, and the steps of a matcher's life."""

from __future__ import annotations

import math

import pytest
import torch

import dcf
from dcf.context import Context
from dcf.engine import Engine
from dcf.errors import Stopped
from dcf.matcher import Matcher
from dcf.optimizer import Optimizer, settle
from dcf.runconfig import GroupSettings
from dcf.testing import fake_context
from dcf.types import MatcherDefaults, ParamGroup, Step


def leaf(value=1.0):
    return torch.nn.Parameter(torch.tensor([value]))


class Square(Matcher):
    """Halves the squared image, by Adam, with a step size that is halved every second iteration."""

    defaults = MatcherDefaults(optimizer="adam", betas=(0.5, 0.9), decay=(2, 0.5))

    def outer(self, ctx, it):
        yield Step(0.5 * ctx.param.images(torch.arange(2)).square().sum())


def images_of(engine):
    return next(engine.ctx.param.parameters()).detach().clone()


def test_adam_of_a_run_is_that_of_pytorch_with_its_decay():
    engine = Engine(fake_context(), Square(), lr=0.1, momentum=0.0)
    ours = images_of(engine).requires_grad_()
    reference = torch.optim.Adam([ours], lr=0.1, betas=(0.5, 0.9))
    for it in range(5):
        reference.param_groups[0]["lr"] = 0.1 * 0.5 ** (it // 2)
        reference.zero_grad()
        (0.5 * ours.square().sum()).backward()
        reference.step()
    engine.run(0, 5)
    assert torch.equal(images_of(engine), ours.detach())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_is_the_same_to_the_last_bit(optimizer):
    def fresh():
        return Engine(fake_context(), Square(), 0.1, 0.9, optim={"images": GroupSettings(optimizer=optimizer)})

    whole, first, second = fresh(), fresh(), fresh()
    whole.run(0, 6)
    first.run(0, 3)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    second.run(3, 6)
    assert torch.equal(images_of(whole), images_of(second))
    assert not torch.equal(images_of(whole), images_of(first))


def test_a_group_decides_before_the_matcher_and_the_run_before_both():
    usual = MatcherDefaults(lr=0.1, momentum=0.5, optimizer="adam", decay=(10, 0.5))
    plain = settle(ParamGroup("images", [leaf()]), usual, {})
    assert (plain.lr, plain.optimizer, plain.lr_at(25)) == (0.1, "adam", 0.025)
    own = settle(ParamGroup("lr", [leaf()], lr=1.0, optimizer="sgd"), usual, {"lr": GroupSettings(momentum=0.9)})
    assert (own.lr, own.momentum, own.optimizer) == (1.0, 0.9, "sgd")
    assert own.lr_at(25) == 1.0  # the decay belongs to the step size of the synthetic set
    assert settle(ParamGroup("x", [leaf()]), usual, {"x": GroupSettings(optimizer="sgd")}).optimizer == "sgd"


def test_groups_of_both_kinds_move_together():
    one, two = leaf(), leaf()
    groups = [ParamGroup("a", [one], lr=0.5), ParamGroup("b", [two], lr=0.5, optimizer="adam")]
    optimizer = Optimizer([settle(g, MatcherDefaults(momentum=0.0), {}) for g in groups])
    one.grad, two.grad = torch.tensor([2.0]), torch.tensor([2.0])
    optimizer.begin(0)
    optimizer.step()
    assert one.item() == 0.0
    assert two.item() == pytest.approx(0.5)  # Adam's first step has the length of the step size
    assert set(optimizer.state_dict()) == {"exp_avg.1", "exp_avg_sq.1", "step.1"}


# --- updates that are left out -------------------------------------------------------------------


class Explodes(Matcher):
    """Yields given losses, one an iteration."""

    advice = "lower the boom"

    def __init__(self, factors, limit=math.inf):
        super().__init__()
        self.factors, self.limit = factors, limit

    def outer(self, ctx, it):
        images = ctx.param.images(torch.arange(2))
        yield Step(self.factors[it] * images.square().mean(), limit=self.limit)


def moved(engine, it):
    before = images_of(engine)
    engine.iterate(it)
    return not torch.equal(before, images_of(engine))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_an_update_beyond_its_limit_is_left_out(bad):
    engine = Engine(fake_context(), Explodes([1.0, bad, 1.0], limit=100.0), lr=0.01, momentum=0.9)
    assert [moved(engine, it) for it in range(3)] == [True, False, True]
    assert bool(torch.isfinite(images_of(engine)).all())


def test_momentum_is_not_spent_by_an_update_that_is_left_out():
    engine = Engine(fake_context(), Explodes([1.0, math.nan]), lr=0.01, momentum=0.9)
    engine.iterate(0)
    before = engine.state_dict()["momentum.0"].clone()
    engine.iterate(1)
    assert torch.equal(engine.state_dict()["momentum.0"], before)


def test_a_gradient_that_is_not_finite_counts_though_the_loss_is():
    class Root(Matcher):
        def outer(self, ctx, it):
            yield Step((ctx.param.images(torch.arange(2)) * 0).sqrt().sum(), limit=math.inf)

    assert not moved(Engine(fake_context(), Root(), lr=0.01, momentum=0.0), 0)


def test_a_run_that_cannot_be_updated_any_more_ends_with_the_advice_of_its_matcher():
    engine = Engine(fake_context(), Explodes([1.0, 1.0] + [math.nan] * 9), lr=0.01, momentum=0.0)
    seen = []
    with pytest.raises(dcf.NonFiniteError, match=r"5 iterations in a row, up to iteration 7(?s:.*)lower the boom"):
        engine.run(0, 11, lambda progress: seen.append(progress))
    assert [p.it for p in seen] == [1, 2, 3, 4, 5, 6]
    assert [p.log.get("skipped") for p in seen] == [None, None, 1, 1, 1, 1]
    assert bool(torch.isfinite(images_of(engine)).all())


@pytest.mark.parametrize(
    ("count", "who"), [(1, "^all there is, iteration 1, made"), (3, "^3 iterations in a row, up to iteration 3")]
)
def test_a_short_run_that_was_never_updated_has_failed(count, who):
    engine = Engine(fake_context(), Explodes([math.nan] * count), lr=0.01, momentum=0.0)
    with pytest.raises(dcf.NonFiniteError, match=f"{who}(?s:.*)lower the boom"):
        engine.run(0, count)
    Engine(fake_context(), Explodes([1.0] + [math.nan] * count), lr=0.01, momentum=0.0).run(0, 1 + count)


def test_how_many_were_left_out_survives_a_stop():
    first = Engine(fake_context(), Explodes([math.nan] * 9), lr=0.01, momentum=0.0)
    first.run(0, 9, should_stop=iter([False, False, True]).__next__)
    second = Engine(fake_context(), Explodes([math.nan] * 9), lr=0.01, momentum=0.0)
    second.load_state_dict(first.state_dict())
    with pytest.raises(dcf.NonFiniteError, match="up to iteration 5"):
        second.run(3, 9)


def test_a_loss_without_a_limit_ends_the_run_at_once():
    engine = Engine(fake_context(), Explodes([math.nan], limit=None), lr=0.01, momentum=0.0)
    with pytest.raises(dcf.NonFiniteError, match="lower the boom"):
        engine.run(0, 1)


# --- the life of a matcher -----------------------------------------------------------------------


class LateLearner(Matcher):
    """Learns one number for each view."""

    def setup(self, ctx):
        self.scale = torch.nn.Parameter(torch.ones(len(ctx.param.view_class)))

    def param_groups(self):
        return [ParamGroup("scale", [self.scale])]

    def outer(self, ctx, it):
        yield Step((self.scale * ctx.param.images(torch.arange(2)).mean((1, 2, 3))).sum())


def test_what_a_matcher_learns_may_depend_on_the_run():
    engine = Engine(fake_context(), LateLearner(), lr=0.1, momentum=0.0)
    engine.iterate(0)
    assert engine.matcher.scale.shape == (2,)
    assert not torch.equal(engine.matcher.scale.detach(), torch.ones(2))


def test_a_preparation_says_how_far_it_is_and_stops_when_asked():
    ctx: Context = fake_context()
    ctx.report("training", 1, 3)  # nobody listens: nothing happens
    ctx.check_stop()
    told = []
    ctx.on_report, ctx.stopping = lambda *facts: told.append(facts), lambda: True
    ctx.report("training", 2, 3, "well")
    with pytest.raises(Stopped):
        ctx.check_stop()
    assert told == [("training", 2, 3, "well")]


def test_labels_that_are_fixed_cannot_be_absorbed():
    with pytest.raises(dcf.UsageError, match="Pixels has fixed labels"):
        fake_context().param.absorb_labels(torch.eye(2))
