"""DCC: its schedule, warm-up, one loss for all classes however they are chunked, draws a class, and its metrics."""

from __future__ import annotations

import logging

import pytest
import torch
from pydantic import ValidationError

import dcf
from dcf.augmenter import Augmenter
from dcf.context import Context
from dcf.engine import Engine
from dcf.matching import class_gradients, gradient_distance
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.pixels import Pixels
from dcf.recipes import load_recipe
from dcf.testing import SoftPixels, fake_context, fake_data
from dcf.testing.fakes import filled
from dcf.types import Batch
from dcf_dcc.contrast import joint_distance, mean_gradient
from dcf_dcc.matcher import DCC


def dcc(**options):
    """A matcher that is contrastive from the first step, quick unless told otherwise."""
    quick = {"outer_warmup": 0, "inner_warmup": 0, "match_steps": 2, "net_epochs": 1}
    return DCC(DCC.Config(**{**quick, **options}))


# --- schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ipc", "expected"),
    [(1, (10, 5)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (40, (40, 15)), (50, (50, 10))],
)
def test_loop_table_is_the_released_one(ipc, expected):
    assert DCC().schedule(ipc) == expected


@pytest.mark.parametrize(("ipc", "expected"), [(0, (10, 5)), (2, (10, 50)), (49, (40, 15)), (999, (50, 10))])
def test_other_sizes_take_the_row_below(ipc, expected):
    assert DCC().schedule(ipc) == expected


@pytest.mark.parametrize(("option", "least"), [("match_steps", 1), ("net_epochs", 0), ("outer_warmup", 0)])
def test_counts_have_bounds(option, least):
    assert getattr(DCC.Config(**{option: least}), option) == least
    with pytest.raises(ValidationError):
        DCC.Config(**{option: least - 1})


def test_options_win_over_the_table():
    assert DCC(DCC.Config(match_steps=3)).schedule(10) == (3, 50)
    assert DCC(DCC.Config(net_epochs=2)).schedule(10) == (10, 2)


class Spy(Context):
    """Writes down what the matcher asks for, and how many optimiser steps its networks make."""

    def __init__(self, base, **options):
        parts = (base.data, base.param, base.networks, base.augmenter, base.seed, base.class_chunk)
        super().__init__(*parts, **options)
        self.calls = []
        self.steps = 0

    def real(self, classes, n, *stream):
        self.calls.append(("real", classes.tolist(), n, *stream))
        return super().real(classes, n, *stream)

    def train(self, net, epochs, lr, batch, *stream):
        self.calls.append(("train", epochs, lr, batch))
        self.steps += epochs * -(-len(self.param.view_class) // batch)
        super().train(net, epochs, lr, batch, *stream)

    def network(self, *stream):
        self.calls.append(("network",))
        return super().network(*stream)


def spy(iterations=0, **options):
    return Spy(fake_context(**options), iterations=iterations)


def run(ctx, matcher, iterations=1):
    engine = Engine(ctx, matcher, 0.1, 0.5)
    tallies = [engine.iterate(it) for it in range(iterations)]
    return ctx.param.images(torch.arange(len(ctx.param.view_class))).detach(), [tally.read() for tally in tallies]


@pytest.mark.slow
def test_one_image_a_class_trains_45_steps_on_each_network_and_matches_ten_times():
    ctx = spy()
    run(ctx, DCC(DCC.Config(batch_real=2)), iterations=2)
    assert ctx.steps == 2 * 45
    names = [call[0] for call in ctx.calls if call[0] != "real" or call[3] == "match"]
    assert names.count("network") == 2
    assert sum(call[0] == "train" for call in ctx.calls) == 2 * 9
    assert ctx.calls[-1][0] == "real"  # never trained after the last match


def test_network_is_trained_as_told_between_matching_steps():
    ctx = spy()
    run(ctx, dcc(match_steps=3, net_epochs=4, lr_net=0.02, batch_train=7, batch_real=5, monitor_every=0))
    assert [call[0] for call in ctx.calls] == ["network", "real", "train", "real", "train", "real"]
    assert [call for call in ctx.calls if call[0] == "train"] == [("train", 4, 0.02, 7)] * 2
    assert [call[2:] for call in ctx.calls if call[0] == "real"] == [(5, "match", step) for step in range(3)]


# --- warm-up ----------------------------------------------------------------------------------------------------------


def phases(matcher, iterations):
    """Which loss each step of a run uses, network by network."""
    found = []
    matcher.class_wise = lambda ctx, net, step: iter([found[-1].append("class-wise")][1:])
    matcher.contrast = lambda ctx, net, step: iter([found[-1].append("contrastive")][1:])
    ctx = spy(iterations=iterations)
    for it in range(iterations):
        found.append([])
        ctx.begin(it)
        list(matcher.outer(ctx, it))
    return found


def test_warmup_covers_the_first_steps_of_the_first_networks():
    found = phases(dcc(outer_warmup=2, inner_warmup=3, match_steps=4), 3)
    warm, cold = "class-wise", "contrastive"
    assert found == [[warm, warm, warm, cold]] * 2 + [[cold] * 4]


@pytest.mark.parametrize(("iterations", "expected"), [(1000, 250), (400, 100), (4, 1), (3, 0), (2, 0), (0, 0)])
def test_automatic_warmup_is_a_quarter_of_the_run(iterations, expected):
    assert DCC().warmup(iterations) == expected
    assert dcc(outer_warmup=7).warmup(iterations) == 7


def test_defaults_are_the_published_ones():
    config, defaults = DCC.Config(), DCC.defaults
    assert (DCC().warmup(1000), config.inner_warmup, config.batch_real, config.lr_net) == (250, 10, 256, 0.01)
    assert (defaults.iterations, defaults.lr, defaults.momentum, defaults.init) == (1000, 0.1, 0.5, "random")


def test_run_without_any_contrastive_step_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        dcc(outer_warmup=250, inner_warmup=10, match_steps=10).prepare(spy(iterations=100))
    assert len(caplog.records) == 1
    assert "only the class-wise loss is used" in caplog.text
    assert "outer_warmup=auto" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"outer_warmup": 99, "inner_warmup": 10, "match_steps": 10},
        {"outer_warmup": 250, "inner_warmup": 9, "match_steps": 10},
        {"outer_warmup": "auto", "inner_warmup": 10, "match_steps": 10},
    ],
)
def test_run_with_contrastive_steps_says_nothing(options, caplog):
    with caplog.at_level(logging.WARNING):
        dcc(**options).prepare(spy(iterations=100))
    assert not caplog.records


def test_run_knows_how_many_iterations_it_has():
    seen = []

    class Asks(DCC):
        def outer(self, ctx, it):
            seen.append(ctx.iterations)
            yield from ()

    dcf.condense(data=fake_data(), matcher=Asks(), network="convnet:width=4,depth=1", iterations=3, evaluate=False)
    assert seen == [3, 3, 3]


# --- the loss ---------------------------------------------------------------------------------------------------------


def means(ctx, net, batch, step=0):
    """Class-averaged gradients of synthetic and real images, one class and one image set after the other."""
    sides = []
    for c in range(ctx.spec.num_classes):
        one = torch.tensor([c])
        real, syn = ctx.siamese(one, ctx.real(one, batch, "match", step), ctx.synthetic(one), step)
        found = class_gradients(net, syn, ctx.synthetic_labels(one), create_graph=True)
        wanted = class_gradients(net, real, ctx.labels(one, real.shape[1]))
        sides.append((found, wanted))
    classes = len(sides)
    return [
        [sum(part[side][w][0] for part in sides) / classes for w in range(len(net.parameters()))] for side in (0, 1)
    ]


def uneven(counts=(3, 1, 2), seed=0):
    """A set with another number of images for each class."""
    data, param = fake_data(classes=len(counts)), Pixels()
    param.allocate(data.spec, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
    param.absorb(torch.randn(sum(counts), 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return data, param


class Shift(Augmenter):
    """Adds one random number; remembers from which it was drawn."""

    def __init__(self):
        super().__init__()
        self.applied = []

    def draw(self, n, shape, generator, shared):
        return torch.rand(1 if shared else n, generator=generator)

    def apply(self, batch, values):
        self.applied.append((len(batch.x), float(values[0])))
        return Batch(batch.x * (1 + values.view(-1, 1, 1, 1)), batch.y)


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("augmenter", [None, Shift()])
def test_loss_and_gradient_weight_every_class_alike_whatever_the_chunks_and_counts(metric, chunk, augmenter):
    data, param = uneven()
    ctx = fake_context(param, data, augmenter=augmenter, class_chunk=chunk)
    (images,) = param.parameters()
    matcher, net = dcc(metric=metric, batch_real=4), ctx.network()
    expected = joint_distance(*means(ctx, net, 4), metric)
    (wanted,) = torch.autograd.grad(expected, images)
    steps = list(matcher.contrast(ctx, net, 0))
    assert [step.update for step in steps] == [False] * (len(steps) - 1) + [True]
    assert float(sum(step.loss.detach() for step in steps)) == pytest.approx(float(expected.detach()), rel=1e-4)
    found = sum(torch.autograd.grad(step.loss, images)[0] for step in steps)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize("options", [{}, {"outer_warmup": 9, "inner_warmup": 1}])
def test_class_chunk_changes_nothing(options):
    data = fake_data(classes=3)
    one, all_ = (run(spy(data=data, class_chunk=chunk), dcc(**options), 2) for chunk in (1, 3))
    assert torch.allclose(one[0], all_[0], atol=1e-5)
    for (loss, logs), (other, others) in zip(one[1], all_[1], strict=True):
        assert loss == pytest.approx(other, rel=1e-4)
        assert logs == pytest.approx(others, rel=1e-4)


def test_only_one_chunks_graph_is_alive(monkeypatch):
    """What makes many classes fit: first all chunks without a graph, then one graph after the other."""
    ctx, matcher, asked = fake_context(data=fake_data(classes=4), class_chunk=1), dcc(monitor_every=0), []

    def noted(net, images, labels, share, create_graph=False):
        asked.append((len(images), create_graph))
        return [mean_gradient(net, images, labels, share, create_graph)]

    monkeypatch.setattr("dcf_dcc.matcher.mean_gradient_parts", noted)
    list(matcher.contrast(ctx, ctx.network(), 0))
    assert asked == [(1, False)] * 8 + [(1, True)] * 4


def test_each_class_has_its_own_draw_shared_by_its_real_and_synthetic_images():
    augmenter = Shift()
    ctx = fake_context(data=fake_data(classes=3), augmenter=augmenter)
    list(dcc(batch_real=4, monitor_every=0).contrast(ctx, ctx.network(), 0))
    real, syn = ([value for size, value in augmenter.applied if size == n] for n in (4, 1))
    assert len(set(real)) == 3
    assert real == syn


def test_other_steps_have_other_draws():
    augmenter = Shift()
    ctx = fake_context(data=fake_data(classes=3), augmenter=augmenter)
    for step in range(2):
        list(dcc(monitor_every=0).contrast(ctx, ctx.network(), step))
    assert len({value for _, value in augmenter.applied}) == 6


def test_warmup_step_is_the_sum_of_the_classes_distances():
    ctx = fake_context(data=fake_data(classes=3), class_chunk=2)
    net, classes = ctx.network(), torch.arange(3)
    real = ctx.real(classes, 256, "match", 0)
    wanted = class_gradients(net, real, ctx.labels(classes, real.shape[1]))
    expected = gradient_distance(class_gradients(net, ctx.synthetic(classes), ctx.synthetic_labels(classes)), wanted)
    steps = list(dcc().class_wise(ctx, net, 0))
    assert float(sum(step.loss.detach() for step in steps)) == pytest.approx(float(expected.sum()), rel=1e-5)


def test_soft_labels_of_the_set_are_matched_and_learned():
    data = fake_data(classes=3)
    param = filled(SoftPixels(), data, 1)
    ctx = fake_context(data=data, param=param)
    soft = param.labels(torch.arange(3)).requires_grad_()
    param.labels = lambda index: soft[index]
    (step,) = dcc().contrast(ctx, ctx.network(), 0)
    assert torch.autograd.grad(step.loss, soft)[0].abs().sum() > 0


@pytest.mark.slow
def test_matching_brings_the_mean_gradients_closer():
    ctx = spy(data=fake_data(classes=3))
    ctx.param.absorb(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    _, tallies = run(ctx, dcc(batch_real=6, match_steps=1), 40)
    losses = [loss for loss, _ in tallies]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


# --- batch norms ------------------------------------------------------------------------------------------------------


def batch_norm_net():
    return ConvNetFactory(ConvNetConfig(width=4, depth=1, norm="batch"))


@pytest.mark.parametrize("mode", ["reference", "exact"])
@pytest.mark.parametrize("warmup", [0, 9])
def test_batch_norms_take_statistics_of_all_classes_before_each_step(mode, warmup):
    ctx = spy(networks=batch_norm_net(), class_chunk=1)
    run(ctx, dcc(bn=mode, bn_images=3, outer_warmup=warmup, inner_warmup=warmup, monitor_every=0))
    asked = [call for call in ctx.calls if call[0] == "real"]
    assert [call[1:3] for call in asked if call[3] == "bn"] == [([0, 1], 3)] * 2
    assert asked[0][3] == "bn"


def test_the_two_ways_with_batch_norms_differ():
    sets = [run(spy(networks=batch_norm_net()), dcc(bn=mode), 2)[0] for mode in ("reference", "exact")]
    assert not torch.allclose(*sets)


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_both_distances_are_logged_in_the_warmup():
    _, ((loss, logs),) = run(spy(), dcc(outer_warmup=9, inner_warmup=9))
    assert set(logs) == {"class_wise", "contrastive"}
    assert logs["class_wise"] == pytest.approx(loss, rel=1e-5)
    assert 0 < logs["contrastive"] != logs["class_wise"]


def test_contrastive_steps_log_the_class_wise_distance_now_and_then():
    _, tallies = run(spy(), dcc(monitor_every=3), 5)
    assert [set(logs) for _, logs in tallies] == [
        {"class_wise", "contrastive"} if it % 3 == 0 else {"contrastive"} for it in range(5)
    ]
    assert all(logs["contrastive"] == pytest.approx(loss, rel=1e-5) for loss, logs in tallies)


def test_monitoring_changes_nothing_and_can_be_left_off():
    silent, spoken = (run(spy(), dcc(monitor_every=every), 3) for every in (0, 1))
    assert torch.equal(silent[0], spoken[0])
    assert all("class_wise" not in logs for _, logs in silent[1])


def test_the_same_step_logs_the_same_distances_in_both_phases():
    (_, ((_, warm),)), (_, ((_, cold),)) = (
        run(spy(data=fake_data(classes=3)), dcc(outer_warmup=w, inner_warmup=w, match_steps=1)) for w in (0, 1)
    )
    assert warm == pytest.approx(cold, rel=1e-4)


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "protocol"), [("dcc", "vico-dc@2"), ("dsac", "vico-dsa@1")])
def test_recipes_have_the_released_settings(name, protocol):
    recipe = load_recipe(name)
    wanted = {"matcher": "dcc", "iterations": 1000, "lr": 0.1, "momentum": 0.5, "init": "random", "protocol": protocol}
    assert recipe.settings("cifar10") | wanted == recipe.settings("cifar10")
    assert all("remembered" in value.source for value in recipe.published)


def test_digits_are_not_mirrored():
    recipe = load_recipe("dsac")
    assert all("flip" not in recipe.settings(data)["augment"] for data in ("mnist", "svhn", "digits"))


def test_wrong_options_are_refused():
    for options in ({"outer_warmup": -1}, {"inner_warmup": -1}, {"match_steps": 0}, {"outer_warmup": "later"}):
        with pytest.raises(ValueError, match="validation error"):
            DCC.Config(**options)
