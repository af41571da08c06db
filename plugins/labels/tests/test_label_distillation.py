"""Label distillation: its tables, gradients against full autograd and differences, resuming, and the idea."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from torch.nn import functional as F

import dcf
from dcf.augmenter import Augmenter
from dcf.engine import Engine
from dcf.files import read_tensors, write_tensors
from dcf.pixels import Pixels
from dcf.testing import fake_context, fake_data
from dcf.testing.fakes import TinyFactory, filled
from dcf.testing.subject import same
from dcf_labels.matcher import LD, inner_batch, restart_window
from dcf_labels.param import SoftLabels
from dcf_labels.ridge import ridge_head, with_bias


def labelled(data, items=2, **options):
    settings = {"init": "uniform", "learn_images": False, **options}
    return filled(SoftLabels(SoftLabels.Config(**settings), Pixels()), data, items)


def engine_of(data=None, items=2, seed=0, soft=None, networks=None, **options):
    data = fake_data(train=8) if data is None else data
    ctx = fake_context(labelled(data, items, **(soft or {})), data, networks, seed=seed)
    return Engine(ctx, LD(LD.Config(**{"batch_real": 8, **options})), lr=0.1, momentum=0.5)


def first_step(engine):
    engine.prepare()
    engine.ctx.begin(0)
    return next(engine.matcher.outer(engine.ctx, 0))


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "classes", "batch", "window"),
    [(10, 10, 10, 50), (20, 10, 10, 50), (50, 10, 25, 50), (100, 10, 50, 50), (500, 10, 50, 200), (100, 100, 100, 100)],
)
def test_tables_are_the_published_ones(images, classes, batch, window):
    assert inner_batch(images, classes) == batch
    assert restart_window(images, classes) == window


def test_no_batch_is_larger_than_the_set():
    assert inner_batch(4, 2) == 4
    engine = engine_of(batch=7)
    assert first_step(engine).limit == 1000.0
    assert engine.matcher.batch == 4


def test_defaults_are_the_published_ones():
    config, defaults = LD.Config(), LD.defaults
    assert (config.lr_step, config.lr_net, config.batch_real, config.ridge, config.head_rate) == (
        0.01, 1e-3, 1024, 1.0, 0.01,
    )  # fmt: skip
    assert (defaults.lr, defaults.optimizer, defaults.init) == (1e-3, "adam", "random")


def test_only_labels_are_taught():
    with pytest.raises(dcf.UsageError, match="LD teaches labels, but Pixels learns images") as refused:
        Engine(fake_context(), LD(), lr=0.1, momentum=0.5)
    assert "--labels soft" in str(refused.value)


def test_augmentation_that_is_not_used_is_spoken_of(caplog):
    class Shift(Augmenter):
        is_identity = False

    engine = engine_of()
    engine.ctx.augmenter = Shift()
    with caplog.at_level(logging.WARNING):
        engine.prepare()
    assert "ld augments nothing" in caplog.text


# --- or2 --------------------------------------------------------------------------------------------------------------


class DoubleFactory(TinyFactory):
    """Networks in double precision."""

    def build(self, spec):
        return super().build(spec).double()


def double(engine):
    """The same run in double precision, before its first iteration."""
    engine.prepare()
    engine.ctx.param.double()
    net = engine.matcher.learner.net
    net.load({name: value.double() for name, value in net.params.items()})
    return engine


def outer_loss(net, lr, small_x, labels, real):
    """What the labels are judged by, written out with a plain module."""
    names = list(net.params)
    weights = [net.params[name].detach().clone().requires_grad_() for name in names]
    logits = net(small_x, dict(zip(names, weights, strict=True)))
    inner = -(labels * logits.log_softmax(1)).sum(1).mean()
    grads = torch.autograd.grad(inner, weights, create_graph=True)
    moved = {name: w - lr * g for name, w, g in zip(names, weights, grads, strict=True)}
    return F.cross_entropy(net(real.x.double(), moved), real.y)


def test_gradient_of_or2_is_that_of_full_autograd_and_of_differences():
    engine = double(engine_of(lr_step=0.5))
    matcher, ctx = engine.matcher, engine.ctx
    param = ctx.param
    real = matcher.real_batch(ctx, 0)
    order = torch.cat([torch.nonzero((param.images(torch.arange(4)) == x).flatten(1).all(1))[0]
                       for x in matcher.small_batch(ctx, 0).x])  # fmt: skip
    images = param.images(torch.arange(4))[order]

    matcher.real_batch = lambda ctx, it: dcf.Batch(real.x.double(), real.y)
    ctx.begin(0)
    step = next(matcher.outer(ctx, 0))
    (found,) = torch.autograd.grad(step.loss, param.soft_labels)

    labels = param.soft_labels.detach()[order].requires_grad_()
    loss = outer_loss(matcher.learner.net, 0.5, images, labels, real)
    (wanted,) = torch.autograd.grad(loss, labels)
    assert torch.allclose(step.loss, loss, rtol=1e-12)
    assert torch.allclose(found[order], wanted, rtol=1e-9, atol=1e-15)

    h = 1e-5
    for i, k in ((0, 0), (1, 1), (3, 0)):
        sides = []
        for sign in (1, -1):
            shifted = labels.detach().clone()
            shifted[i, k] += sign * h
            sides.append(float(outer_loss(matcher.learner.net, 0.5, images, shifted, real).detach()))
        assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(float(wanted[i, k]), rel=1e-5)


def test_network_makes_the_step_of_adam_on_the_labels_as_they_were():
    engine = engine_of(lr_net=0.01, soft={"lr": 0.2})
    engine.prepare()
    net, matcher = engine.matcher.learner.net, engine.matcher
    before = copy.deepcopy({name: w.detach() for name, w in net.params.items()})
    small = matcher.small_batch(engine.ctx, 0)
    labels = small.y.detach().clone()
    engine.iterate(0)
    assert not torch.equal(labels, matcher.small_batch(engine.ctx, 0).y.detach())

    weights = {name: w.clone().requires_grad_() for name, w in before.items()}
    adam = torch.optim.Adam(weights.values(), lr=0.01)
    F.cross_entropy(net(small.x, weights), labels).backward()
    adam.step()
    for name, weight in weights.items():
        assert torch.allclose(weight, net.params[name], atol=1e-6), name
    assert all(w.grad is None for w in net.parameters())


def test_a_pass_over_the_set_shows_every_image_once():
    engine = engine_of(fake_data(classes=3, train=8), items=4, batch=4)
    engine.prepare()
    matcher, ctx = engine.matcher, engine.ctx
    seen = torch.cat([matcher.small_batch(ctx, it).x for it in (3, 4, 5)]).flatten(1)
    every = ctx.param.images(torch.arange(12)).detach().flatten(1)
    assert torch.equal(seen.sum(1).sort().values, every.sum(1).sort().values)
    real = torch.cat([matcher.real_batch(ctx, it).x for it in range(3)]).flatten(1).sum(1)
    assert len(real) == len(set(real.tolist())) == 24


def straight_line(net, fresh, batches, settings, labels, iterations):
    """The whole of or2 in one loop, as the paper says it: labels, network, restarts and the lengths at the minima.

    Args:
        net: Says what the network computes.
        fresh: From a number to the weights that the network of that number starts with.
        batches: From an iteration to real images, their classes, images of the set, and their numbers in it.
        settings: `(lr_step, lr_net, lr of the labels, window)`.
        labels: `(N, K)` to begin with.
        iterations: How many.
    """
    lr_step, lr_net, lr, window = settings
    labels = labels.clone().requires_grad_()
    teacher = torch.optim.Adam([labels], lr=lr)
    weights, errors, lengths = fresh(0), [], []
    student = torch.optim.Adam(weights.values(), lr=lr_net)
    for it in range(iterations):
        x, y, small_x, numbers = batches(it)
        inner = -(labels[numbers] * net(small_x, weights).log_softmax(1)).sum(1).mean()
        grads = torch.autograd.grad(inner, weights.values(), create_graph=True)
        logits = net(x, {n: w - lr_step * g for (n, w), g in zip(weights.items(), grads, strict=True)})
        (labels.grad,) = torch.autograd.grad(F.cross_entropy(logits, y), labels)
        teacher.step()
        with torch.no_grad():
            labels.clamp_(0, 1)
            labels /= labels.sum(1, keepdim=True)
        for weight, grad in zip(weights.values(), grads, strict=True):
            weight.grad = grad.detach()
        student.step()
        errors.append(float((logits.argmax(1) != y).double().mean()))
        averages = [sum(errors[i - window : i]) / window for i in range(window, len(errors) + 1)]
        least = averages.index(min(averages)) + window if averages else 0
        if averages and len(errors) - least >= window:
            lengths.append(least)
            weights, errors = fresh(len(lengths)), []
            student = torch.optim.Adam(weights.values(), lr=lr_net)
    return labels.detach(), {n: w.detach() for n, w in weights.items()}, lengths


def test_the_whole_loop_is_that_of_a_straight_line():
    networks = DoubleFactory()
    engine = engine_of(fake_data(classes=3, train=8), items=2, networks=networks, soft={"lr": 0.02},
                       lr_step=0.5, lr_net=0.05, window=4, batch=3, batch_real=8)  # fmt: skip
    engine.prepare()
    ctx, matcher, param = engine.ctx, engine.matcher, engine.ctx.param.double()
    plain, small = matcher.real_batch, matcher.small_batch
    matcher.real_batch = lambda ctx, it: dcf.Batch(plain(ctx, it).x.double(), plain(ctx, it).y)
    every = param.images(torch.arange(6)).detach()

    def fresh(number):
        made = networks.create(ctx.spec, ctx.seed, "label network", number)
        return {n: w.detach().double().requires_grad_() for n, w in made.params.items()}

    def batches(it):
        x, y = matcher.real_batch(ctx, it)
        images = small(ctx, it).x
        return x, y, images, (images[:, None] == every).flatten(2).all(2).int().argmax(1)

    start, net = param.soft_labels.detach().clone(), matcher.learner.net
    labels, weights, lengths = straight_line(net, fresh, batches, (0.5, 0.05, 0.02, 4), start, 40)
    engine.run(0, 40)
    assert len(lengths) >= 3
    assert engine.matcher.rule.restarts == len(lengths)
    assert engine.matcher.rule.lengths == lengths[-3:]
    assert torch.allclose(param.soft_labels.detach(), labels, atol=1e-9)
    for name, weight in weights.items():
        assert torch.allclose(matcher.learner.net.params[name].detach(), weight, atol=1e-8), name
    assert float((labels - start).abs().max()) > 0.1


# --- ridge ------------------------------------------------------------------------------------------------------------


def test_ridge_head_solves_the_normal_equations():
    draw = torch.Generator().manual_seed(0)
    features = with_bias(torch.randn(6, 20, generator=draw, dtype=torch.float64))
    labels = torch.rand(6, 4, generator=draw, dtype=torch.float64)
    found = ridge_head(features, labels, 0.7)
    system = features.mT @ features + 0.7 * torch.eye(21, dtype=torch.float64)
    assert torch.allclose(found, torch.linalg.solve(system, features.mT @ labels), atol=1e-12)
    assert torch.equal(features[:, -1], torch.ones(6, dtype=torch.float64))


def test_ridge_head_is_differentiable_in_the_labels():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    labels = torch.rand(3, 2, generator=draw, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: ridge_head(features, y, 1.0), labels)


def test_ridge_variant_is_the_running_head_on_features_worked_out_by_hand():
    engine = engine_of(variant="ridge", head_rate=0.25, soft={"init": "onehot"})
    engine.prepare()
    matcher, ctx = engine.matcher, engine.ctx
    start = torch.randn(matcher.head.shape, generator=torch.Generator().manual_seed(1))
    matcher.head = start
    with torch.no_grad():
        matcher.scale.fill_(1.5)
    step = first_step(engine)

    small, real, net = matcher.small_batch(ctx, 0), matcher.real_batch(ctx, 0), matcher.learner.net
    with torch.no_grad():
        phi, seen = with_bias(net.embed(small.x)), with_bias(net.embed(real.x))
    labels = small.y.detach().requires_grad_()
    head = 0.75 * start + 0.25 * torch.linalg.solve(phi.mT @ phi + torch.eye(phi.shape[1]), phi.mT @ labels)
    scale = torch.tensor(1.5, requires_grad=True)
    loss = F.cross_entropy(seen @ (scale * head), real.y)
    assert torch.allclose(step.loss, loss, atol=1e-5)
    found = torch.autograd.grad(step.loss, [ctx.param.soft_labels, matcher.scale])
    wanted = torch.autograd.grad(loss, [labels, scale])
    assert torch.allclose(found[1], wanted[1], atol=1e-4)
    assert torch.allclose(found[0].square().sum(), wanted[0].square().sum(), rtol=1e-3)
    assert torch.allclose(matcher.head, head.detach(), atol=1e-5)


def test_ridge_variant_trains_the_features_and_learns_the_scale():
    engine = engine_of(variant="ridge", head_rate=0.5, soft={"init": "onehot"})
    engine.prepare()
    before = {name: w.detach().clone() for name, w in engine.matcher.learner.net.params.items()}
    engine.run(0, 2)
    after = engine.matcher.learner.net.params
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"conv.weight", "conv.bias"}
    assert float(engine.matcher.scale.detach()) != 1.0
    assert [group.name for group in engine.groups] == ["labels", "scale"]


# --- what outlives an iteration ---------------------------------------------------------------------------------------


class Normed(TinyFactory):
    """Networks with buffers."""

    def build(self, spec):
        net = super().build(spec)
        net.norm = torch.nn.BatchNorm2d(6)
        plain = net.conv
        net.conv = torch.nn.Sequential(plain, net.norm)
        return net


@pytest.mark.parametrize("variant", ["or2", "ridge"])
@pytest.mark.parametrize("networks", [TinyFactory, Normed])
def test_resuming_changes_nothing(tmp_path, variant, networks):
    def fresh():
        return engine_of(variant=variant, window=2, lr_net=0.05, networks=networks(), soft={"lr": 0.01})

    whole, cuts = fresh(), (1, 2, 6)
    whole.run(0, 9)
    assert whole.matcher.rule.restarts  # a network was replaced on the way
    for cut in cuts:
        first, second = fresh(), fresh()
        first.run(0, cut)
        path = tmp_path / f"{cut}.safetensors"
        write_tensors(path, first.state_dict(), {})
        second.prepare()
        second.load_state_dict(read_tensors(path)[0])
        second.run(cut, 9)
        assert same(dict(whole.state_dict()), dict(second.state_dict()))
        assert whole.matcher.hints() == second.matcher.hints()


def test_running_statistics_are_those_of_the_set_alone():
    engine = engine_of(networks=Normed())
    engine.prepare()
    step = first_step(engine)
    net = engine.matcher.learner.net
    tracked = next(b for name, b in net.buffers.items() if name.endswith("num_batches_tracked"))
    assert int(tracked) == 1
    torch.autograd.grad(step.loss, engine.ctx.param.soft_labels)
    assert int(tracked) == 1


def test_iterations_depend_on_nothing_but_seed_and_state():
    first, second, other = engine_of(), engine_of(), engine_of(seed=1)
    for engine in (first, second, other):
        engine.run(0, 3)
    assert same(dict(first.state_dict()), dict(second.state_dict()))
    assert not torch.equal(first.ctx.param.soft_labels, other.ctx.param.soft_labels)


def test_hints_hold_the_learned_length():
    engine = engine_of(window=2)
    engine.run(0, 1)
    assert engine.matcher.hints().steps is None
    engine.run(1, 2)
    assert engine.matcher.hints().steps == 2
    json.dumps(engine.matcher.hints().to_json())


# --- the idea ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_learned_labels_teach_more_than_classes_do_on_the_same_images():
    shared = dict(data="digits", budget="floats=740", network="convnet:width=8,depth=2", networks=6, baselines=())  # noqa: C408
    protocol = {"protocol": "ld@1", "overrides": {"matcher.batch_real": "128", "protocol.length": "epochs"}}
    means = {}
    for name, labels, iterations in (
        ("uniform", "soft:init=uniform,learn_images=false", 0),
        ("onehot", "soft:init=onehot,learn_images=false", 0),
        ("learned", "soft:init=uniform,learn_images=false,lr=0.005", 400),
    ):
        made = dcf.condense(matcher="ld", labels=labels, iterations=iterations, **shared, **protocol)
        means[name] = made.metadata["results"]["rows"][0]["stat"]["mean"]
    assert means["learned"] > means["onehot"] + 0.02
    assert means["learned"] > means["uniform"] + 0.2
