"""Distances and per-class gradients against numbers of the published functions and against plain loops."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch.nn import functional as F

import dcf
from dcf import matching
from dcf.matching import (
    batch_norm_statistics,
    class_embedding_means,
    class_gradients,
    freeze_batch_norms,
    gradient_distance,
    loops,
)
from dcf.networks.base import NetworkState
from dcf.networks.convnet import ConvNet
from dcf.testing import fake_context, fake_data

SHAPES = [(4, 3, 3, 3), (4,), (2, 3, 3), (5, 7)]


def wave(shape, w, p):
    """sin(k w + p) for k = 0, 1, ... in C order."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(k * w + p).float().reshape(shape)


def pair(scale=1.0):
    syn = [scale * wave(s, 0.37, 0.0)[None] for s in SHAPES]
    real = [scale * wave(s, 0.11, 0.5)[None] for s in SHAPES]
    return syn, real


def distance(syn, real, metric="ours"):
    return float(gradient_distance(syn, real, metric))


@pytest.mark.parametrize(("part", "expected"), list(enumerate([3.866536, 0.0, 2.004677, 3.257972])))
def test_rows_decide_and_weights_of_one_axis_count_nothing(part, expected):
    syn, real = pair()
    assert distance(syn[part : part + 1], real[part : part + 1]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("metric", "expected"), [("ours", 9.129185), ("mse", 157.196808), ("cos", 0.923692)])
def test_distances_have_the_published_values(metric, expected):
    assert distance(*pair(), metric) == pytest.approx(expected, rel=1e-4)


def test_epsilon_makes_the_distance_depend_on_scale():
    assert distance(*pair(1e-4)) == pytest.approx(10.950886, rel=1e-4)
    assert distance(*pair(10.0)) == pytest.approx(9.129184, rel=1e-4)


def test_equal_and_opposite_gradients_are_the_extremes():
    syn, _ = pair()
    assert distance(syn, syn) < 1e-5
    assert distance(syn, [-g for g in syn]) == pytest.approx(22, abs=1e-4)


def test_dead_rows_count_one_each_and_have_a_finite_gradient():
    _, real = pair()
    syn = [torch.zeros_like(g).requires_grad_() for g in real]
    total = gradient_distance(syn, real).sum()
    assert float(total.detach()) == 11.0
    found = torch.autograd.grad(total, syn, allow_unused=True)
    assert all(torch.isfinite(g).all() for g in found if g is not None)


def test_classes_are_apart():
    syn, real = pair()
    double = [torch.cat([a, b]) for a, b in zip(syn, real, strict=True)]
    found = gradient_distance(double, [torch.cat([b, b]) for b in real])
    assert found.tolist() == pytest.approx([9.129185, 0.0], rel=1e-4, abs=1e-4)


def test_unknown_metric_is_a_clear_error():
    with pytest.raises(dcf.UsageError, match="expected the gradient distance 'ours', 'mse' or 'cos', got 'euclid'"):
        gradient_distance(*pair(), "euclid")


# --- on the published network ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """The published ConvNet with given weights, ten synthetic images and four real ones of each of ten classes."""
    net = NetworkState(ConvNet((3, 32, 32), 10, depth=3))
    for i, (name, weight) in enumerate(net.params.items()):
        with torch.no_grad():
            if weight.ndim > 1:
                fan_in = math.prod(weight.shape[1:])
                weight.copy_(wave(weight.shape, 0.7310585 + 0.01 * i, 0.3 * i) * math.sqrt(2 / fan_in))
            else:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    syn = wave((10, 1, 3, 32, 32), 0.0171, 0.0).requires_grad_()
    real = wave((40, 3, 32, 32), 0.0191, 0.2).view(10, 4, 3, 32, 32)
    return net, syn, real, torch.arange(10)[:, None]


def class_distances(published, **options):
    net, syn, real, y = published
    wanted = class_gradients(net, real, y.expand(-1, 4), **options)
    return gradient_distance(class_gradients(net, syn, y, create_graph=True, **options), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_class_wise_loss_and_image_gradient_have_the_published_values(published, strategy):
    _, syn, _, _ = published
    loss = class_distances(published, strategy=strategy).sum()
    assert float(loss.detach()) == pytest.approx(3564.497, rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, syn)
    assert float(gradient.norm()) == pytest.approx(252.366, rel=1e-3)


@pytest.mark.slow
def test_mean_embedding_loss_has_the_published_value(published):
    net, syn, real, _ = published
    loss = (class_embedding_means(net, real) - class_embedding_means(net, syn)).square().sum()
    assert float(loss.detach()) == pytest.approx(1829.901, rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, syn)
    assert float(gradient.norm()) == pytest.approx(339.853, rel=1e-3)


def small(norm="instance", dtype=torch.float64):
    torch.manual_seed(0)
    module = ConvNet((2, 8, 8), 3, width=4, depth=2, norm=norm, activation="swish").to(dtype)
    return NetworkState(module), torch.randn(3, 5, 2, 8, 8, dtype=dtype), torch.arange(3)[:, None].expand(-1, 5)


@pytest.mark.parametrize("norm", ["instance", "layer", "group", "none"])
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_per_class_gradients_equal_plain_backward(norm, strategy):
    net, x, y = small(norm)
    found = class_gradients(net, x, y, strategy=strategy)
    for c in range(3):
        loss = F.cross_entropy(net(x[c]), y[c])
        for got, want in zip(found, torch.autograd.grad(loss, net.parameters()), strict=True):
            assert torch.allclose(got[c], want, atol=1e-12)
            assert not got.requires_grad


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_gradients_are_differentiable_in_the_images(strategy):
    net, x, y = small()
    x = x[:, :1].clone().requires_grad_()

    def norm_of_gradients(images):
        return sum(g.square().sum() for g in class_gradients(net, images, y[:, :1], True, strategy))

    assert torch.autograd.gradcheck(norm_of_gradients, x, atol=1e-6)


def test_gradients_of_one_class_are_let_go_before_those_of_the_next(monkeypatch):
    alive, counts = weakref.WeakSet(), []

    def gradient(net, x, y, create_graph, calls):
        counts.append(len(alive))
        found = [x.mean() * torch.ones_like(w) for w in net.parameters()]
        for each in found:
            alive.add(each)
        return found

    monkeypatch.setattr(matching, "batch_gradients", gradient)
    net, _, y = small()
    x = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 5, 2, 8, 8)
    found = class_gradients(net, x, y, strategy="loop")
    assert max(counts) <= len(list(net.parameters())), "they would lie scattered in memory that is freed"
    assert all(torch.equal(g[2], torch.full_like(g[2], 2.0)) for g in found)


def test_gradients_accept_soft_labels():
    net, x, y = small()
    soft = F.one_hot(y, 3).double()
    for a, b in zip(class_gradients(net, x, soft), class_gradients(net, x, y), strict=True):
        assert torch.allclose(a, b)


def test_reference_statistics_take_one_momentum_step():
    net, x, _ = small("batch")
    images = x.flatten(0, 1)
    raw = F.conv2d(images, net.params["conv1.weight"], net.params["conv1.bias"], padding=1)
    batch_norm_statistics(net, images, "reference")
    mean, var = raw.mean((0, 2, 3)), raw.var((0, 2, 3), unbiased=True)
    assert torch.allclose(net.buffers["norm1.running_mean"], 0.1 * mean)
    assert torch.allclose(net.buffers["norm1.running_var"], 0.9 + 0.1 * var)
    assert not any(layer.training for layer in net.batch_norms)


def test_exact_statistics_are_those_of_the_batch():
    net, x, _ = small("batch")
    images = x.flatten(0, 1)
    raw = F.conv2d(images, net.params["conv1.weight"], net.params["conv1.bias"], padding=1)
    batch_norm_statistics(net, images, "exact")
    assert torch.allclose(net.buffers["norm1.running_mean"], raw.mean((0, 2, 3)))
    assert torch.allclose(net.buffers["norm1.running_var"], raw.var((0, 2, 3), unbiased=True))
    assert {layer.momentum for layer in net.batch_norms} == {0.1}


def test_networks_without_batch_norm_are_left_alone():
    net, x, _ = small()
    batch_norm_statistics(net, x.flatten(0, 1))
    assert net.module.training


@pytest.mark.parametrize("mode", ["reference", "exact"])
def test_batch_norms_are_frozen_on_real_images_of_every_class(mode):
    ctx = fake_context(data=fake_data(classes=3, shape=(2, 8, 8)))
    (net, _, _), (twin, _, _) = small("batch", torch.float32), small("batch", torch.float32)
    freeze_batch_norms(ctx, net, 4, mode, 1)
    images = ctx.real(torch.arange(3), 4, "bn", 1)
    assert images.shape[:2] == (3, 4)
    batch_norm_statistics(twin, images.flatten(0, 1), mode)
    assert all(torch.equal(net.buffers[name], twin.buffers[name]) for name in net.buffers)
    assert not any(layer.training for layer in net.batch_norms)


def test_no_images_are_drawn_for_networks_without_batch_norm():
    ctx = fake_context()
    ctx.real = None
    freeze_batch_norms(ctx, small()[0], 4, "exact", 0)


def test_embedding_means_see_all_classes_as_one_batch_under_batch_norm():
    net, x, _ = small("batch")
    together = net.embed(x.flatten(0, 1)).view(3, 5, -1).mean(1)
    assert torch.allclose(class_embedding_means(net, x), together)
    apart = torch.stack([net.embed(part).mean(0) for part in x])
    assert not torch.allclose(class_embedding_means(net, x), apart, atol=1e-3)


# --- loops ----------------------------------------------------------------------------------------------------------

TABLE = {2: (1, 7), 5: (10, 50), 20: (20, 25)}


@pytest.mark.parametrize(
    ("size", "expected"), [(0, (1, 7)), (2, (1, 7)), (4, (1, 7)), (5, (10, 50)), (19, (10, 50)), (999, (20, 25))]
)
def test_a_row_holds_up_to_the_next(size, expected):
    assert loops(TABLE, size) == expected


def test_what_is_given_wins_over_the_row():
    assert loops(TABLE, 5, steps=3) == (3, 50)
    assert loops(TABLE, 5, epochs=0) == (10, 0)
    assert loops(TABLE, 5, 4, 2) == (4, 2)
