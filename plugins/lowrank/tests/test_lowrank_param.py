"""The parameterization at work: degeneracy to pixels, one iteration by hand, starts, files, stacks, and the idea."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dcf
from dcf.budget import Budget
from dcf.build import create
from dcf.engine import Engine
from dcf.files import read_header
from dcf.pixels import Pixels
from dcf.planning import plan_items
from dcf.selector import Random
from dcf.testing import PullToMean, TinyNet, fake_context, fake_data, fake_set, fake_spec
from dcf_lowrank.factors import balanced_svd
from dcf_lowrank.param import LowRank


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every_view(param):
    return torch.arange(len(param.view_class))


def allocated(data, items=2, **options):
    param = LowRank(LowRank.Config(**options))
    param.allocate(data.spec, torch.arange(data.spec.num_classes).repeat_interleave(items))
    return param


def started(data, items=2, **options):
    param = allocated(data, items, **options)
    param.absorb(Random().images(data, param.view_class, generator()), generator(1))
    return param


# --- degeneracy to pixels ------------------------------------------------------------------------------------------


def mean_loss(net, real, images):
    """Squared distance of mean embeddings."""
    return (net.features(real).mean(0) - net.features(images).mean(0)).square().sum()


def gradient_loss(net, real, images):
    """Squared distance of the gradients of a cross-entropy."""
    sides = []
    for x in (real, images):
        loss = nn.functional.cross_entropy(net.classifier(net.features(x)), torch.zeros(len(x), dtype=torch.long))
        sides.append(torch.autograd.grad(loss, list(net.parameters()), create_graph=True))
    return sum((a - b).square().sum() for a, b in zip(*sides, strict=True))


@pytest.mark.parametrize("loss", [mean_loss, gradient_loss])
def test_with_full_rank_and_a_fixed_left_factor_a_step_is_that_of_pixels(loss):
    data = fake_data()
    low, pixels = allocated(data, r=8), Pixels()
    pixels.allocate(data.spec, low.item_class)
    start = torch.randn(4, 3, 8, 8, generator=generator())
    with torch.no_grad():
        low.A.copy_(torch.eye(8))
        low.B.copy_(start)
        pixels.absorb(start)
    low.A.requires_grad_(False)
    moved = []
    for param, learned in [(low, low.B), (pixels, next(pixels.parameters()))]:
        torch.manual_seed(0)
        optimizer = torch.optim.SGD([learned], lr=0.7, momentum=0.5)
        for step in range(3):
            net = TinyNet(3, 2)
            optimizer.zero_grad()
            loss(net, data.train.images(torch.arange(step, step + 4)), param.images(every_view(param))).backward()
            optimizer.step()
        moved.append(param.images(every_view(param)).detach())
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], start)


# --- one iteration by hand -----------------------------------------------------------------------------------------


class MatchMeans(dcf.Matcher):
    """Mean of a fixed random embedding, with the images of every other class mirrored on both sides."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(192, 5, generator=generator(3), dtype=torch.float64)

    def mean(self, images, mirrored):
        return torch.tanh((images.flip(-1) if mirrored else images).flatten(1) @ self.weight).mean(0)

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        for chunk in ctx.chunks():
            real, syn = ctx.real(chunk.classes, 5, "match").double(), ctx.synthetic(chunk.classes)
            pairs = zip(chunk.classes.tolist(), real, syn, strict=True)
            losses = [(self.mean(x, c % 2) - self.mean(s, c % 2)).square().sum() for c, x, s in pairs]
            yield dcf.Step(torch.stack(losses).sum(), update=chunk.last)


def gradient_of_means(matcher, wanted, images, mirrored):
    """Loss, and its derivative with respect to `(n, C, H, W)` images, by the chain rule."""
    flat = (images.flip(-1) if mirrored else images).flatten(1)
    hidden = torch.tanh(flat @ matcher.weight)
    rest = wanted - hidden.mean(0)
    grad = (-2 / len(images) * rest * (1 - hidden**2)) @ matcher.weight.T
    grad = grad.view(images.shape)
    return float(rest.square().sum()), grad.flip(-1) if mirrored else grad


@pytest.mark.parametrize("class_chunk", [1, 3])
def test_iterations_equal_a_straight_line_of_formulas(class_chunk):
    data, lr, momentum = fake_data(classes=3), 0.3, 0.5
    param, matcher = started(data, r=2).double(), MatchMeans()
    ctx = fake_context(param, data, class_chunk=class_chunk)
    a, b = param.A.detach().clone(), param.B.detach().clone()
    speed_a, speed_b = torch.zeros_like(a), torch.zeros_like(b)
    engine = Engine(ctx, matcher, lr, momentum)
    for it in range(2):
        tally = engine.iterate(it)
        grad_a, grad_b, total = torch.zeros_like(a), torch.zeros_like(b), 0.0
        for c in range(3):
            mine = slice(2 * c, 2 * c + 2)  # this class alone is decoded
            wanted = matcher.mean(ctx.real(torch.tensor([c]), 5, "match")[0].double(), c % 2)
            loss, grad = gradient_of_means(matcher, wanted, a[mine] @ b[mine], c % 2)
            grad_a[mine], grad_b[mine] = grad @ b[mine].mT, a[mine].mT @ grad
            total += loss
        speed_a, speed_b = momentum * speed_a + grad_a, momentum * speed_b + grad_b
        a, b = a - lr * speed_a, b - lr * speed_b
        assert tally.read()[0] == pytest.approx(total, abs=1e-10)
        assert torch.allclose(param.A.detach(), a, rtol=0, atol=1e-10)
        assert torch.allclose(param.B.detach(), b, rtol=0, atol=1e-10)


def test_decoding_a_class_is_a_slice_of_decoding_all():
    param = started(fake_data(classes=3), r=2)
    whole = param.images(every_view(param))
    for c in range(3):
        index = torch.tensor([2 * c, 2 * c + 1])
        assert torch.equal(param.images(index), whole[index])


def test_one_group_of_plain_step_size_holds_both_factors():
    param = started(fake_data())
    (group,) = param.param_groups()
    assert (group.name, group.lr, group.momentum) == ("images", None, None)
    assert [id(p) for p in group.params] == [id(param.A), id(param.B)]


# --- starts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 7), (2, 5, 11)])
def test_svd_starts_from_the_images(shape):
    data = fake_data(shape=shape)
    param = allocated(data, r=2)
    images = Random().images(data, param.view_class, generator())
    param.absorb(images)
    a, b = balanced_svd(images, 2)
    assert torch.equal(param.images(every_view(param)), a @ b)


@pytest.mark.parametrize("init", ["noise", "scaled-noise"])
def test_noise_ignores_the_images_and_follows_its_generator(init):
    data = fake_data()
    first, same, other, unseeded = (allocated(data, init=init) for _ in range(4))
    first.absorb(torch.zeros(4, 3, 8, 8), generator(5))
    same.absorb(torch.ones(4, 3, 8, 8), generator(5))
    other.absorb(torch.zeros(4, 3, 8, 8), generator(6))
    unseeded.absorb(torch.zeros(4, 3, 8, 8))
    assert torch.equal(first.A, same.A)
    assert torch.equal(first.B, same.B)
    assert not torch.equal(first.A, other.A)
    assert float(unseeded.B.detach().abs().max()) > 0


def test_scaled_noise_has_the_spread_asked_for():
    data = fake_data(classes=5, shape=(3, 16, 16))
    param = allocated(data, items=40, r=4, init="scaled-noise", sigma=0.5)
    param.absorb(torch.zeros(200, 3, 16, 16), generator())
    assert param.images(every_view(param)).std().item() == pytest.approx(0.5, rel=0.02)


def test_sigma_without_effect_is_refused():
    with pytest.raises(dcf.ConfigError, match="'sigma' has no effect with init=svd"):
        create("param", "lowrank:sigma=0.5")
    assert create("param", "lowrank:sigma=0.5,init=scaled-noise").config.sigma == 0.5


@pytest.mark.parametrize("store", ["fp32", "uint8"])
def test_warns_of_whitened_images_once_a_run(caplog, store):
    spec = fake_spec()
    white = SimpleNamespace(kind="zca")
    whitened = dcf.DataSpec(3, 8, 8, spec.classes, white)
    with caplog.at_level(logging.WARNING):
        for data in (spec, whitened):
            assert not caplog.messages
            param = LowRank()
            items = plan_items(param, data, Budget("bytes", 5000, 1), store)
            param.allocate(data, torch.arange(data.num_classes).repeat_interleave(items))
    assert len(caplog.messages) == 1
    assert "whitening removes the redundancy" in caplog.messages[0]
    assert "keeps 48 % of the energy" in caplog.messages[0]


def test_warns_of_a_dataset_that_is_whitened(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        dcf.condense(data="digits", param="lowrank:r=2", matcher="none", ipc=2, evaluate=False)
        assert not caplog.messages
        made = dcf.condense(data="digits:norm=zca", param="lowrank:r=2", matcher="none", ipc=2, evaluate=False)
    assert ["whitening removes the redundancy" in message for message in caplog.messages] == [True]
    assert made.space.kind == "zca"


# --- files and stacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 7)])
def test_file_holds_the_factors_and_decodes_to_the_same_bits(tmp_path, shape):
    data, path = fake_data(shape=shape), tmp_path / "set.safetensors"
    param = started(data, r=3)
    fake_set(param, data, "lowrank:r=3").save(path)
    channels, height, width = shape
    tensors = read_header(path).tensors
    assert tensors["A"]["shape"] == [4, channels, height, 3]
    assert tensors["B"]["shape"] == [4, channels, 3, width]
    assert set(tensors) == {"A", "B", "labels"}
    loaded = dcf.load(path)
    assert torch.equal(loaded.tensors().x, param.images(every_view(param)).detach())


class Quarters(dcf.Parameterization):
    """Decodes each canvas on its left into four tiles, each enlarged."""

    stackable = True

    @property
    def view_class(self):
        return self.inner.view_class.repeat_interleave(4)

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self.inner.allocate(spec, item_class)

    def images(self, index):
        tiles = self.inner.images(index // 4).unflatten(2, (2, -1)).unflatten(4, (2, -1))
        picked = tiles[torch.arange(len(index)), :, index % 4 // 2, :, index % 2]
        return picked.repeat_interleave(2, -2).repeat_interleave(2, -1)

    def absorb(self, images, generator=None):
        small = images[:, :, ::2, ::2].unflatten(0, (-1, 2, 2))
        self.inner.absorb(small.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3), generator)


def test_another_parameterization_decodes_its_canvases():
    data = fake_data()
    param = Quarters(inner=LowRank(LowRank.Config(r=2)))
    assert param.plan(data.spec, 6 * 8 * 8) == 2
    param.allocate(data.spec, torch.tensor([0, 0, 1, 1]))
    images = Random().images(data, param.view_class, generator())
    param.absorb(images)
    assert len(param.view_class) == 16
    assert param.storage().floats == 4 * 3 * 16 * 2
    before = param.images(every_view(param)).detach()
    Engine(fake_context(param, data), PullToMean(), lr=0.1, momentum=0.5).run(0, 2)
    after = param.images(every_view(param)).detach()
    assert after.shape == images.shape
    assert not torch.equal(before, after)


# --- the idea ------------------------------------------------------------------------------------------------------


def test_images_stay_of_low_rank_while_they_learn():
    data = fake_data()
    param = started(data, r=2)
    Engine(fake_context(param, data), PullToMean(), lr=5.0, momentum=0.5).run(0, 5)
    singular = torch.linalg.svdvals(param.images(every_view(param)).detach())
    assert float((singular[..., 2:] / singular[..., :1]).max()) < 1e-5


@pytest.fixture(scope="module")
def digits():
    return create("dataset", "digits").load()


def test_half_the_floats_keep_most_of_a_digit(digits):
    images = digits.train.images(torch.arange(len(digits.train))).double()
    a, b = balanced_svd(images, 2)
    assert a[0].numel() + b[0].numel() == images[0].numel() // 2
    lost = (a @ b - images).square().sum((1, 2, 3)) / images.square().sum((1, 2, 3))
    assert 1 - lost.mean().item() == pytest.approx(0.845, abs=0.005)


def nearest_neighbour_accuracy(param, digits):
    index = torch.arange(len(digits.test))
    near = torch.cdist(digits.test.images(index).flatten(1), param.images(every_view(param)).detach().flatten(1))
    return (param.view_class[near.argmin(1)] == digits.test.labels).double().mean().item()


def test_at_equal_floats_more_images_say_more_about_a_class(digits):
    gains = []
    for seed in range(20):
        found = []
        for param in (LowRank(LowRank.Config(r=2)), Pixels()):
            items = param.plan(digits.spec, 10 * 64)
            param.allocate(digits.spec, torch.arange(10).repeat_interleave(items))
            param.absorb(Random().images(digits, param.view_class, generator(seed)))
            assert param.storage().floats == 10 * 64
            found.append((items, nearest_neighbour_accuracy(param, digits)))
        assert found[0][0] == 2 * found[1][0]
        gains.append(found[0][1] - found[1][1])
    assert sum(gains) / len(gains) > 0.04  # 0.065 with a standard error of 0.015
