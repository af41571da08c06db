"""DM: the loss against plain loops, batch norms, chunks, and that it moves class means together."""

from __future__ import annotations

import pytest
import torch

from dcf.engine import Engine
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.recipes import load_recipe, starter
from dcf.testing import fake_context, fake_data
from dcf_dm.matcher import DM, mean_distance


def images_of(ctx):
    return ctx.param.images(torch.arange(len(ctx.param.view_class))).detach()


def run(ctx, iterations=1, lr=1.0):
    engine = Engine(ctx, DM(DM.Config(batch_real=6)), lr, 0.5)
    return [engine.iterate(it).read()[0] for it in range(iterations)]


def test_distance_is_summed_over_features_and_kept_by_class():
    real, syn = torch.randn(3, 5), torch.randn(3, 5)
    want = [sum((float(a) - float(b)) ** 2 for a, b in zip(r, s, strict=True)) for r, s in zip(real, syn, strict=True)]
    assert mean_distance(real, syn).tolist() == pytest.approx(want, rel=1e-5)


def test_loss_equals_a_plain_loop_over_classes():
    ctx = fake_context(data=fake_data(classes=3))
    matcher, net = DM(DM.Config(batch_real=4)), ctx.network()
    found = matcher.loss(ctx, net, torch.arange(3))
    for c in range(3):
        real = ctx.real(torch.tensor([c]), 4, "match")[0]
        syn = ctx.synthetic(torch.tensor([c]))[0]
        want = (net.embed(real).mean(0) - net.embed(syn).mean(0)).square().sum()
        assert float(found[c].detach()) == pytest.approx(float(want.detach()), rel=1e-4)


def test_repeating_every_image_leaves_the_loss_and_halves_the_gradient():
    data = fake_data()
    gradients = []
    for copies in (1, 2):
        param: Parameterization = Pixels()
        param.allocate(data.spec, torch.arange(2).repeat_interleave(copies))
        param.absorb(torch.ones(2 * copies, 3, 8, 8))
        ctx = fake_context(param=param, data=data)
        loss = DM().loss(ctx, ctx.network(), torch.arange(2)).sum()
        gradients.append((float(loss.detach()), torch.autograd.grad(loss, list(param.parameters()))[0][0]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    assert torch.allclose(gradients[1][1], gradients[0][1] / 2, atol=1e-6)


def batch_norm_net():
    return ConvNetFactory(ConvNetConfig(width=4, depth=1, norm="batch"))


def test_batch_norms_see_all_classes_at_once_whatever_the_chunk():
    whole, parts = fake_context(networks=batch_norm_net()), fake_context(networks=batch_norm_net(), class_chunk=1)
    assert run(whole, 2) == run(parts, 2)
    assert torch.equal(images_of(whole), images_of(parts))


def test_without_batch_norms_a_class_does_not_know_of_the_others():
    both = fake_context(data=fake_data(classes=2))
    run(both, 3)
    alone = fake_context(data=fake_data(classes=2))
    alone._views[1] = alone._views[1][:0]  # class 1 has no synthetic image
    run(alone, 3)
    assert torch.allclose(images_of(both)[0], images_of(alone)[0], atol=1e-6)
    assert not torch.allclose(images_of(both)[1], images_of(alone)[1], atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 2])
def test_class_chunk_changes_nothing(chunk):
    data = fake_data(classes=3)
    whole, parts = fake_context(data=data), fake_context(data=data, class_chunk=chunk)
    run(whole, 3)
    run(parts, 3)
    assert torch.allclose(images_of(whole), images_of(parts), atol=1e-6)


def test_matching_means_brings_the_embeddings_together():
    ctx = fake_context()
    ctx.param.absorb(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    losses = run(ctx, 60)
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_network_changes_every_iteration_and_is_never_trained():
    ctx = fake_context()
    seen = []
    original = ctx.network
    ctx.network = lambda: seen.append(original()) or seen[-1]
    run(ctx, 2)
    first, second = ([w.clone() for w in net.parameters()] for net in seen)
    assert not torch.equal(first[0], second[0])
    ctx.begin(0)
    assert all(torch.equal(a, b) for a, b in zip(first, original().parameters(), strict=True))


def test_recipe_has_the_published_settings_and_the_quick_one_is_the_starter():
    settings = load_recipe("dm").settings("cifar10")
    assert (settings["iterations"], settings["lr"], settings["init"]) == (20000, 1.0, "random")
    assert starter().recipe.name == "dm-quick"
