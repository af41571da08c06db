"""DC: the loop table, the order of matching and training, batch norms, and that matching gradients is what it does."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

import dcf
from dcf.context import Context
from dcf.engine import Engine
from dcf.matching import class_gradients, gradient_distance
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.recipes import load_recipe
from dcf.testing import SoftPixels, fake_context, fake_data
from dcf.testing.fakes import filled
from dcf_dc.matcher import DC


@pytest.mark.parametrize(
    ("ipc", "expected"),
    [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (40, (40, 15)), (50, (50, 10))],
)
def test_loop_table_is_the_published_one(ipc, expected):
    assert DC().schedule(ipc) == expected


@pytest.mark.parametrize(
    ("ipc", "expected"), [(0, (1, 1)), (2, (10, 50)), (15, (10, 50)), (49, (40, 15)), (999, (50, 10))]
)
def test_other_sizes_take_the_row_below(ipc, expected):
    assert DC().schedule(ipc) == expected


@pytest.mark.parametrize(("option", "least"), [("match_steps", 1), ("net_epochs", 0)])
def test_counts_have_bounds(option, least):
    assert getattr(DC.Config(**{option: least}), option) == least
    with pytest.raises(ValidationError):
        DC.Config(**{option: least - 1})


def test_options_win_over_the_table():
    matcher = DC(DC.Config(match_steps=3))
    assert matcher.schedule(10) == (3, 50)
    assert DC(DC.Config(net_epochs=2)).schedule(10) == (10, 2)


class Spy(Context):
    """Writes down what the matcher asks for."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def real(self, classes, n, *stream):
        self.calls.append(("real", len(classes), n, *stream))
        return super().real(classes, n, *stream)

    def train(self, net, epochs, lr, batch, *stream):
        self.calls.append(("train", epochs, lr, batch))
        super().train(net, epochs, lr, batch, *stream)

    def network(self, *stream):
        self.calls.append(("network",))
        return super().network(*stream)


def spy(factory=None, class_chunk=10, **options):
    base = fake_context(networks=factory, class_chunk=class_chunk, **options)
    return Spy(base.data, base.param, base.networks, base.augmenter, base.seed, class_chunk)


def run(ctx, matcher, iterations=1):
    engine = Engine(ctx, matcher, 0.1, 0.5)
    for it in range(iterations):
        engine.iterate(it)
    return ctx.param.images(torch.arange(len(ctx.param.view_class))).detach()


def test_networks_are_trained_between_matching_steps_and_not_after_the_last():
    ctx = spy()
    run(ctx, DC(DC.Config(match_steps=3, net_epochs=4, lr_net=0.02, batch_train=7, batch_real=5)))
    names = [call[0] for call in ctx.calls]
    assert names == ["network", "real", "train", "real", "train", "real"]
    assert ctx.calls[2] == ("train", 4, 0.02, 7)


def test_one_image_a_class_matches_once_and_never_trains():
    ctx = spy()
    run(ctx, DC(), iterations=2)
    assert [call[0] for call in ctx.calls] == ["network", "real"] * 2


def test_every_matching_step_draws_other_real_images():
    ctx = spy()
    run(ctx, DC(DC.Config(match_steps=3, net_epochs=1)))
    streams = [call[3:] for call in ctx.calls if call[0] == "real"]
    assert streams == [("match", 0), ("match", 1), ("match", 2)]


def batch_norm_net():
    return ConvNetFactory(ConvNetConfig(width=4, depth=1, norm="batch"))


@pytest.mark.parametrize("mode", ["reference", "exact"])
def test_batch_norms_take_statistics_of_all_classes_before_each_step(mode):
    ctx = spy(batch_norm_net(), class_chunk=1)
    run(ctx, DC(DC.Config(match_steps=2, net_epochs=1, bn=mode, bn_images=3)))
    asked = [call for call in ctx.calls if call[0] == "real"]
    assert asked[0] == ("real", 2, 3, "bn", 0)
    assert [call[3] for call in asked] == ["bn", "match", "match"] * 2


def test_the_two_ways_with_batch_norms_differ():
    sets = [run(spy(batch_norm_net()), DC(DC.Config(bn=mode)), 2) for mode in ("reference", "exact")]
    assert not torch.allclose(sets[0], sets[1])


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_class_chunk_changes_nothing(metric, chunk):
    data = fake_data(classes=3)
    matcher = DC(DC.Config(metric=metric, match_steps=2, net_epochs=1))
    assert torch.equal(run(spy(data=data), matcher, 2), run(spy(data=data, class_chunk=chunk), matcher, 2))


def test_loss_is_summed_over_classes_and_zero_for_the_real_images_themselves():
    ctx = spy(data=fake_data(classes=3, train=1))
    matcher = DC()
    net, classes = ctx.network(), torch.arange(3)
    ctx.param.absorb(ctx.data.train.images(torch.arange(3)))
    each = matcher.loss(ctx, net, classes, 0)
    assert each.shape == (3,)
    assert float(each.detach().abs().max()) < 1e-3
    ctx.param.absorb(torch.randn(3, 3, 8, 8))
    steps = list(matcher.match(ctx, net, 0))
    assert len(steps) == 1
    assert float(steps[0].loss.detach()) == pytest.approx(float(matcher.loss(ctx, net, classes, 0).sum().detach()))


def test_matching_gradients_brings_the_synthetic_gradients_closer():
    ctx = spy()
    matcher = DC(DC.Config(batch_real=6))
    engine = Engine(ctx, matcher, 0.1, 0.5)
    ctx.param.absorb(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    losses = [engine.iterate(it).read()[0] for it in range(40)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_soft_labels_of_the_set_are_matched_and_learned():
    data = fake_data(classes=3)
    param = filled(SoftPixels(), data, 1)
    ctx, classes = fake_context(data=data, param=param), torch.arange(3)
    matcher, net = DC(), ctx.network()
    soft = param.labels(torch.arange(3)).requires_grad_()
    param.labels = lambda index: soft[index]
    loss = matcher.loss(ctx, net, classes, 0)
    real = ctx.real(classes, matcher.config.batch_real, "match", 0)
    wanted = class_gradients(net, real, ctx.labels(classes, real.shape[1]))
    found = class_gradients(net, ctx.synthetic(classes), soft[:, None], create_graph=True)
    assert torch.allclose(loss, gradient_distance(found, wanted))
    assert torch.autograd.grad(loss.sum(), soft)[0].abs().sum() > 0


def test_recipe_has_the_published_settings():
    recipe = load_recipe("dc")
    assert recipe.settings("cifar10") | {"iterations": 1000, "lr": 0.1, "init": "noise"} == recipe.settings("cifar10")
    assert {(v.data, v.ipc): v.accuracy for v in recipe.published}["cifar10", 10] == 44.9


def test_networks_that_cannot_be_differentiated_twice_are_refused_before_the_run():
    with pytest.raises(dcf.UsageError, match="hardsigmoid"):
        dcf.condense(
            data=fake_data(shape=(3, 32, 32)), matcher="dc", network="torchvision:mobilenet_v3_small", iterations=1
        )
