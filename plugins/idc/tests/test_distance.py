"""What is compared, against loops over entries; and that only convolutions count unless asked for."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import dcf
from dcf.build import create
from dcf.testing.fakes import TinyFactory, fake_spec
from dcf_idc.distance import block_means, feature_loss, gradient_loss, point_distance, weights_compared

NET = "convnet:width=4,depth=2"
METRICS = ["mse", "l1", "l1_mean", "cos"]
KINDS = {"conv1.weight": "conv", "conv2.weight": "conv", "classifier.weight": "fc"}


def network(text=NET, shape=(3, 8, 8)):
    state = create("network", text).create(fake_spec(shape=shape), 0)
    state.load({name: w.double() for name, w in state.params.items()})
    return state


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_distance(x, y, metric):
    """The distance of two tensors, row by row in plain Python; a row is what lies under one index of the first axis."""
    total = 0.0
    for a, b in zip(x, y, strict=True):
        a, b = a.reshape(-1).tolist(), b.reshape(-1).tolist()
        pairs = list(zip(a, b, strict=True))
        if metric == "mse":
            total += sum((p - q) ** 2 for p, q in pairs)
        elif metric == "l1":
            total += sum(abs(p - q) for p, q in pairs)
        elif metric == "l1_mean":
            total += sum(abs(p - q) for p, q in pairs) / len(pairs)
        else:
            norms = math.sqrt(sum(p * p for p in a)) * math.sqrt(sum(q * q for q in b))
            total += 1 - sum(p * q for p, q in pairs) / (norms + 1e-6)
    return total


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3), (5,)])
def test_distance_equals_a_loop(metric, shape):
    x, y = images(2, *shape), images(2, *shape, seed=1)
    found = point_distance(x, y, metric)
    assert found.tolist() == pytest.approx([slow_distance(a, b, metric) for a, b in zip(x, y, strict=True)])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("bias", "fc"), [(False, False), (True, False), (False, True), (True, True)])
def test_gradient_loss_equals_one_class_and_one_weight_at_a_time(metric, bias, fc):
    net = network()
    real, syn = images(2, 5, 3, 8, 8), images(2, 2, 3, 8, 8, seed=1)
    labels = torch.tensor([[0], [1]])
    found = gradient_loss(
        net, dcf.Batch(real, labels.expand(-1, 5)), dcf.Batch(syn, labels.expand(-1, 2)), metric, bias, fc
    )
    for c in (0, 1):
        total = 0.0
        for name, weight in net.params.items():
            kind = KINDS.get(name, "bias")
            if (kind == "bias" and not bias) or (kind == "fc" and not fc):
                continue
            a, b = (
                torch.autograd.grad(F.cross_entropy(net(x[c]), labels[c].expand(len(x[c]))), weight)[0]
                for x in (real, syn)
            )
            total += slow_distance(a, b, metric)
        assert float(found[c].detach()) == pytest.approx(total, rel=1e-9)


def test_gradient_loss_moves_synthetic_images_and_soft_labels_and_holds_real_ones():
    net = network()
    real, syn = images(1, 5, 3, 8, 8).requires_grad_(), images(1, 2, 3, 8, 8, seed=1).requires_grad_()
    soft = torch.full((1, 2, 2), 0.5, dtype=torch.float64).requires_grad_()
    loss = gradient_loss(net, dcf.Batch(real, torch.zeros(1, 5, dtype=torch.long)), dcf.Batch(syn, soft), "mse")
    grads = torch.autograd.grad(loss.sum(), [real, syn, soft], allow_unused=True)
    assert grads[0] is None
    assert all(float(g.abs().sum()) > 0 for g in grads[1:])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blocks", [[0], [1], [0, 1], [-1]])
def test_feature_loss_equals_one_block_at_a_time(metric, blocks):
    net = network()
    real, syn = images(2, 5, 3, 8, 8), images(2, 2, 3, 8, 8, seed=1)
    found = feature_loss(net, real, syn, metric, blocks)
    for c in (0, 1):
        with torch.no_grad():
            theirs, ours = net.blocks(real[c]), net.blocks(syn[c])
        total = sum(slow_distance(theirs[b].mean(0), ours[b].mean(0), metric) for b in blocks)
        assert float(found[c].detach()) == pytest.approx(float(total), rel=1e-9)


def test_batch_norms_see_one_class_at_a_time():
    net = network("convnet:width=4,depth=2,norm=batch")
    x = images(2, 5, 3, 8, 8)
    (together,) = block_means(net, x, [1])
    assert torch.allclose(together[1], net.blocks(x[1])[1].mean(0))


def test_block_that_does_not_exist_is_refused():
    with pytest.raises(dcf.UsageError, match=r"has 2 blocks, numbered from 0; .* below 2, got 2"):
        feature_loss(network(), images(1, 2, 3, 8, 8), images(1, 2, 3, 8, 8), "mse", [0, 2])


def test_network_without_convolutions_is_refused_unless_its_layers_count():
    net = create("network", "mlp").create(fake_spec(), 0)
    with pytest.raises(dcf.UsageError, match=r"no convolution.*\n?.*matcher\.fc=true"):
        weights_compared(net, bias=False, fc=False)
    assert len(weights_compared(net, bias=False, fc=True)) == 3
    assert len(weights_compared(TinyFactory().create(fake_spec(), 0), bias=False, fc=False)) == 1
