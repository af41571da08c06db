"""The formulas of the contrastive loss against slow references, and what they do to parts that classes share."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import dcf
import dcf_dcc.contrast
from dcf.matching import class_gradients, gradient_distance
from dcf.networks.base import NetworkState
from dcf.networks.convnet import ConvNet
from dcf_dcc.contrast import class_coupling, contrastive, joint_distance, mean_gradient, pull

METRICS = ["ours", "mse", "cos"]


def small(norm="instance"):
    """A network in float64 and five images of each of three classes."""
    torch.manual_seed(0)
    module = ConvNet((2, 8, 8), 3, width=4, depth=2, norm=norm, activation="swish").double()
    net = NetworkState(module)
    net.freeze_batch_norms()
    return net, torch.randn(3, 5, 2, 8, 8, dtype=torch.float64), torch.arange(3)[:, None].expand(-1, 5)


def slow_mean(net, images, labels, create_graph=False):
    """Class by class, image by image, parameter by parameter."""
    total = [torch.zeros_like(w) for w in net.parameters()]
    for xs, ys in zip(images, labels, strict=True):
        losses = [F.cross_entropy(net(x[None]), y[None]) for x, y in zip(xs, ys, strict=True)]
        loss = torch.stack(losses).mean()
        found = torch.autograd.grad(loss, net.parameters(), create_graph=create_graph)
        total = [a + b / len(images) for a, b in zip(total, found, strict=True)]
    return total


def slow_distance(syn, real, metric):
    """One row after the other."""
    if metric == "mse":
        return sum(((a - b) ** 2).sum() for a, b in zip(syn, real, strict=True))
    if metric == "cos":
        a, b = (torch.cat([g.flatten() for g in side]) for side in (syn, real))
        return 1 - (a * b).sum() / (a.norm() * b.norm() + 1e-6)
    total = torch.zeros((), dtype=syn[0].dtype)
    for a, b in zip(syn, real, strict=True):
        for x, y in zip(a, b, strict=True) if a.ndim > 1 else ():
            total = total + 1 - (x * y).sum() / (x.norm() * y.norm() + 1e-6)
    return total


# --- class-averaged gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "batch", "none"])
def test_mean_gradient_is_the_mean_of_the_classes_gradients(norm):
    net, x, y = small(norm)
    for found, expected in zip(mean_gradient(net, x, y), slow_mean(net, x, y), strict=True):
        assert not found.requires_grad
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", [1, 4, 5, 7, 100])
def test_mean_gradient_does_not_depend_on_the_size_of_a_pass(size, monkeypatch):
    monkeypatch.setattr(dcf_dcc.contrast, "CPU_IMAGES", size)
    net, x, y = small()
    x.requires_grad_()
    found = mean_gradient(net, x, y, create_graph=True)
    expected = slow_mean(net, x, y, create_graph=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))
    weights = [torch.randn_like(g) for g in found]
    got, want = (
        torch.autograd.grad(sum((w * g).sum() for w, g in zip(weights, side, strict=True)), x)[0]
        for side in (found, expected)
    )
    assert torch.allclose(got, want, atol=1e-12)


def test_mean_gradient_takes_soft_labels_and_teaches_them():
    net, x, y = small()
    soft = (F.one_hot(y, 3) * 0.7 + 0.1).double().requires_grad_()
    found = mean_gradient(net, x, soft, create_graph=True)
    hard, every = mean_gradient(net, x, y), [mean_gradient(net, x, torch.full_like(y, k)) for k in range(3)]
    for i, gradient in enumerate(found):
        expected = 0.7 * hard[i] + 0.1 * sum(g[i] for g in every)
        assert torch.allclose(gradient, expected, atol=1e-12)
    assert torch.autograd.grad(found[0].square().sum(), soft)[0].abs().sum() > 0


def test_parts_with_their_shares_add_up_to_the_whole():
    net, x, y = small()
    parts = [mean_gradient(net, x[:1], y[:1], 1 / 3), mean_gradient(net, x[1:], y[1:], 2 / 3)]
    whole = mean_gradient(net, x, y)
    assert all(torch.allclose(a + b, c, atol=1e-12) for a, b, c in zip(*parts, whole, strict=True))


def test_mean_gradient_needs_images():
    net, x, y = small()
    with pytest.raises(ValueError, match="expected at least one image"):
        mean_gradient(net, x[:0], y[:0])


# --- the distance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_joint_distance_is_that_of_the_definition(metric):
    net, x, y = small()
    syn, real = mean_gradient(net, x[:, :2], y[:, :2]), mean_gradient(net, x[:, 2:], y[:, 2:])
    assert float(joint_distance(syn, real, metric)) == pytest.approx(float(slow_distance(syn, real, metric)), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_differentiating_part_by_part_equals_the_whole_graph(metric):
    net, x, y = small()
    real, x = mean_gradient(net, x[:, 3:], y[:, 3:]), x[:, :3].clone().requires_grad_()
    loss = joint_distance(mean_gradient(net, x, y[:, :3], create_graph=True), real, metric)
    (expected,) = torch.autograd.grad(loss, x)
    value, towards = pull(mean_gradient(net, x, y[:, :3]), real, metric)
    found = torch.zeros_like(x)
    for c in range(3):
        part = mean_gradient(net, x[c : c + 1], y[c : c + 1, :3], 1 / 3, create_graph=True)
        change = sum((v * g).sum() for v, g in zip(towards, part, strict=True))
        found += torch.autograd.grad(change, x)[0]
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


# --- what classes share -------------------------------------------------------------------------------------------


def test_a_vector_common_to_all_classes_hides_that_their_gradients_are_opposite():
    torch.manual_seed(0)
    own = torch.nn.functional.normalize(torch.randn(3, 5, 8), dim=2)
    common = torch.nn.functional.normalize(torch.randn(5, 8), dim=1) * 100
    apart = gradient_distance([own], [-own]).sum()
    hidden = gradient_distance([own + common], [common - own]).sum()
    assert float(apart) == pytest.approx(30.0, rel=1e-4)  # 3 classes, 5 rows, 2 each: the largest there is
    assert float(hidden) < 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), strength=st.floats(0.0, 1e4))
def test_what_all_images_share_cancels_where_the_network_knows_nothing(seed, strength):
    draw = torch.Generator().manual_seed(seed)
    own = torch.randn(4, 6, dtype=torch.float64, generator=draw)
    shared = strength * torch.randn(6, dtype=torch.float64, generator=draw)
    error = torch.full((4, 4), 0.25, dtype=torch.float64) - torch.eye(4)  # p - y of uniform p, class by output

    def gradients(features):
        return error[:, :, None] * features[:, None, :]  # of a linear classifier, (class, output, feature)

    with_shared, without = gradients(own + shared).mean(0), gradients(own).mean(0)
    assert torch.allclose(with_shared, without, atol=1e-9 * (1 + strength))


def test_the_contrastive_loss_tells_swapped_classes_apart_under_a_strong_background_and_the_class_wise_one_does_not():
    draw = torch.Generator().manual_seed(0)
    own, shared = torch.randn(4, 6, generator=draw).double(), 300 * torch.randn(6, generator=draw).double()
    error = torch.full((4, 4), 0.25, dtype=torch.float64) - torch.eye(4)
    real, swapped = (error[:, :, None] * (f + shared)[:, None, :] for f in (own, own.roll(1, 0)))
    assert float(gradient_distance([swapped], [real]).sum()) < 1e-3
    assert float(joint_distance([swapped.mean(0)], [real.mean(0)])) > 1


# --- warm-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("it", "step", "expected"),
    [(0, 0, False), (0, 9, False), (0, 10, True), (249, 9, False), (249, 49, True), (250, 0, True)],
)
def test_warmup_has_the_published_truth_table(it, step, expected):
    assert contrastive(it, step, 250, 10) is expected


# --- coupling ---------------------------------------------------------------------------------------------------------


def test_class_coupling_is_that_of_its_definition():
    draw = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (2, 3), (5, 2, 2)]
    syn = [torch.randn(2, *s, generator=draw).double() for s in shapes]
    real = [torch.randn(3, *s, generator=draw).double() for s in shapes]
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(2):
        for c in range(3):
            for a, b in zip(syn, real, strict=True):
                for row in range(a.shape[1]) if a.ndim > 2 else ():
                    expected[i, c] += (a[i, row] * b[c, row]).sum().abs()
    found = class_coupling(syn, real)
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True))
    assert float(found.min()) >= 0
    assert torch.allclose(found.sum(1), torch.ones(2, dtype=torch.float64))


def test_class_coupling_of_nothing_is_zero():
    assert class_coupling([torch.zeros(1, 2, 3)], [torch.ones(4, 2, 3)]).tolist() == [[0.0] * 4]


def test_a_class_is_coupled_most_with_itself():
    net, x, y = small()
    coupling = class_coupling(class_gradients(net, x[:, :2], y[:, :2]), class_gradients(net, x[:, 2:], y[:, 2:]))
    assert coupling.argmax(1).tolist() == [0, 1, 2]


# --- on the published network ---------------------------------------------------------------------------------------


def wave(shape, step, phase):
    """Sine of a count, in the order of memory."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * step + phase).float().view(shape)


@pytest.fixture(scope="module")
def published():
    """The published ConvNet with given weights, ten synthetic images and four real ones of each of ten classes."""
    net = NetworkState(ConvNet((3, 32, 32), 10, depth=3))
    for i, (name, weight) in enumerate(net.params.items()):
        with torch.no_grad():
            if weight.ndim > 1:
                scale = math.sqrt(2 / math.prod(weight.shape[1:]))
                weight.copy_(wave(weight.shape, 0.7310585 + 0.01 * i, 0.3 * i) * scale)
            else:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    syn = wave((10, 1, 3, 32, 32), 0.0171, 0.0).requires_grad_()
    real = wave((40, 3, 32, 32), 0.0191, 0.2).view(10, 4, 3, 32, 32)
    return net, syn, real, torch.arange(10)[:, None]


@pytest.mark.slow
def test_contrastive_loss_and_image_gradient_have_the_published_values(published):
    net, syn, real, y = published
    wanted = mean_gradient(net, real, y.expand(-1, 4))
    found = mean_gradient(net, syn, y, create_graph=True)
    loss = joint_distance(found, wanted)
    assert float(loss.detach()) == pytest.approx(421.249, rel=1e-3)
    (joint,) = torch.autograd.grad(loss, syn, retain_graph=True)
    assert float(joint.norm()) == pytest.approx(64.444, rel=1e-3)
    constant = [g.detach() for g in found]
    assert float(joint_distance([10 * g for g in constant], [10 * g for g in wanted])) == pytest.approx(
        421.264, rel=1e-5
    )
    assert float(joint_distance(constant, wanted, "mse")) == pytest.approx(5790.61, rel=1e-3)
    assert float(joint_distance(constant, wanted, "cos")) == pytest.approx(1.016228, rel=1e-3)


@pytest.mark.slow
def test_the_two_losses_pull_images_in_different_directions(published):
    net, syn, real, y = published
    wanted = class_gradients(net, real, y.expand(-1, 4))
    apart = gradient_distance(class_gradients(net, syn, y, create_graph=True), wanted).sum()
    assert float(apart.detach()) == pytest.approx(3564.497, rel=1e-3)
    (one,) = torch.autograd.grad(apart, syn)
    joint = joint_distance(mean_gradient(net, syn, y, create_graph=True), [g.mean(0) for g in wanted])
    (other,) = torch.autograd.grad(joint, syn)
    assert float(torch.cosine_similarity(one.flatten(), other.flatten(), 0)) == pytest.approx(0.2213, rel=5e-3)


def test_unknown_metric_is_a_clear_error():
    with pytest.raises(dcf.UsageError, match="expected the gradient distance"):
        joint_distance([torch.ones(2, 2)], [torch.ones(2, 2)], "euclid")
