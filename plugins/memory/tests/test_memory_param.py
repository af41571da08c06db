"""The parameterization at work: budgets, starts, files, stacks, learning, and the idea."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcf
from dcf.budget import Budget
from dcf.build import create, create_stack
from dcf.engine import Engine
from dcf.files import read_header
from dcf.pixels import Pixels
from dcf.planning import plan_items
from dcf.resolve import resolve
from dcf.run import prepare
from dcf.selector import Random
from dcf.session import Session
from dcf.testing import PullToMean, fake_context, fake_data, fake_set, fake_spec
from dcf_memory.bases import addresses_of, best_bases, enlarge, recall
from dcf_memory.param import Memory


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every_view(param):
    return torch.arange(len(param.view_class))


def allocated(data, items=2, inner=None, **options):
    param = Memory(Memory.Config(**options), inner)
    param.allocate(data.spec, torch.arange(data.spec.num_classes).repeat_interleave(items))
    return param


def started(data, items=2, inner=None, **options):
    param = allocated(data, items, inner, **options)
    param.absorb(Random().images(data, param.view_class, generator()), generator(1))
    return param


# --- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "bases", "images"), [(10, 16, 115), (10, 32, 19), (100, 32, 88), (100, 64, 40)])
def test_one_plain_image_a_class_pays_for_the_published_numbers(classes, bases, images):
    spec = fake_spec(classes, (3, 32, 32))
    param = Memory(Memory.Config(bases=bases, down=2))
    assert param.plan(spec, classes * 3072) == images
    assert plan_items(param, spec, Budget("ipc", 1, classes * 3072)) == images


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, high) for high in (4, 3, 12, 12, 20, 4)]), st.integers(0, 3000))
def test_budget_follows_the_published_formula(sizes, more):
    classes, c, height, width, count, down = sizes
    spec, param = fake_spec(classes, (c, height, width)), Memory(Memory.Config(bases=count, down=down))
    shared = count * c * -(-height // down) * -(-width // down)
    least = shared + classes * count
    assert param.plan(spec, least + more) == (least + more - shared) // (classes * count)
    assert param.cost(spec, 3) == shared + 3 * classes * count
    with pytest.raises(dcf.BudgetError, match=f"smallest that works is {least} floats"):
        param.plan(spec, least - 1)


def test_a_run_with_too_many_bases_is_told_the_smallest_budget():
    options = {"matcher": "none", "param": "memory", "data": fake_data(), "ipc": 1, "network": "mlp"}
    prepared = prepare(resolve(options))
    # 16 bases of 3 x 4 x 4 and 2 addresses take 800 floats of the 384 of two plain images.
    with pytest.raises(dcf.BudgetError, match="smallest that works is ipc=3"):
        Session(prepared.config, prepared.data, prepared.matcher, prepared.objects)


def test_more_bases_than_values_are_remarked(caplog):
    with caplog.at_level(logging.WARNING):
        started(fake_data(), bases=48)
        assert not caplog.messages
        started(fake_data(), bases=49)
    assert len(caplog.messages) == 1
    assert "consider memory:bases=48" in caplog.messages[0]


# --- starts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "down"), [((3, 8, 8), 2), ((1, 12, 7), 3), ((2, 5, 11), 1)])
def test_images_start_as_their_best_approximation(shape, down):
    data = fake_data(shape=shape)
    param = allocated(data, items=4, bases=3, down=down)
    images = Random().images(data, param.view_class, generator())
    param.absorb(images)
    bases = best_bases(images, 3, down)
    assert torch.equal(param.bases, bases)
    addresses = addresses_of(images, enlarge(bases, down, shape[1:]))
    assert torch.equal(param.images(every_view(param)), recall(addresses, bases, down, shape[1:]))


def test_bases_beyond_what_the_images_need_can_still_be_learned():
    param = started(fake_data(), items=1, bases=6)
    assert param.addresses.detach()[:, 2:].abs().max() < 1e-5
    upstream = torch.randn(2, 3, 8, 8, generator=generator())
    d_bases, d_addresses = torch.autograd.grad(
        param.images(every_view(param)), [param.bases, param.addresses], upstream
    )
    assert float(d_addresses.abs().amin()) > 1e-3
    assert float(d_bases[:2].abs().amax()) > 1e-3


def test_published_start_ignores_the_images_and_follows_its_generator():
    data = fake_data()
    first, same, other, unseeded = (allocated(data, init="xavier") for _ in range(4))
    first.absorb(torch.zeros(4, 3, 8, 8), generator(5))
    same.absorb(torch.ones(4, 3, 8, 8), generator(5))
    other.absorb(torch.zeros(4, 3, 8, 8), generator(6))
    unseeded.absorb(torch.zeros(4, 3, 8, 8))
    assert torch.equal(first.bases, same.bases)
    assert torch.equal(first.addresses, same.addresses)
    assert not torch.equal(first.bases, other.bases)
    assert float(unseeded.addresses.detach().abs().max()) > 0
    # 16 bases of 48 values, and 16 numbers for each of 4 images.
    assert 0.9 < float(first.bases.detach().abs().max()) / (6 / 64) ** 0.5 <= 1
    assert 0.9 < float(first.addresses.detach().abs().max()) / (6 / 20) ** 0.5 <= 1


# --- files and stacks ----------------------------------------------------------------------------------------------


def test_file_holds_bases_once_and_an_address_an_image(tmp_path):
    data, path = fake_data(shape=(1, 12, 7)), tmp_path / "set.safetensors"
    param = started(data, items=3, bases=4)
    fake_set(param, data, "memory:bases=4").save(path)
    tensors = read_header(path).tensors
    assert {name: entry["shape"] for name, entry in tensors.items()} == {
        "bases": [4, 1, 6, 4],
        "addresses": [6, 4],
        "labels": [6],
    }
    assert param.storage().floats == 4 * 24 + 6 * 4
    loaded = dcf.load(path)
    assert loaded.targets == [0, 0, 0, 1, 1, 1]
    assert torch.equal(loaded.tensors().x, param.images(every_view(param)).detach())


class Recoloured(dcf.Parameterization):
    """Decodes each canvas as it is and negated: two views an item."""

    stackable = True

    @property
    def view_class(self):
        return self.inner.view_class.repeat_interleave(2)

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self.inner.allocate(spec, item_class)

    def images(self, index):
        return self.inner.images(index // 2) * (1 - 2 * (index % 2)).view(-1, 1, 1, 1)

    def absorb(self, images, generator=None):
        self.inner.absorb(images[::2], generator)


def test_the_left_one_stores_the_bases():
    data = fake_data(classes=3)
    param = started(data, items=4, inner=Pixels(), bases=5)
    plain = started(data, items=4, bases=5)
    assert param.inner.shape == (3, 4, 4)
    assert param.inner.view_class.tolist() == [0] * 5
    assert param.view_class.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(param.stored_bases(), plain.bases)
    assert torch.equal(param.images(every_view(param)), plain.images(every_view(plain)))
    assert param.storage().floats == plain.storage().floats


def test_addresses_make_the_best_of_bases_that_the_left_one_changed():
    class Coarse(Pixels):
        def decode(self, latents, size):
            return super().decode(latents, size).mean(-1, keepdim=True).expand(-1, -1, -1, size[1])

    data = fake_data()
    param = started(data, items=4, inner=Coarse(), bases=3)
    images = Random().images(data, param.view_class, generator())
    rest = (images - param.images(every_view(param))).detach()
    shown = enlarge(param.stored_bases().detach(), 2, (8, 8))
    assert float((rest.flatten(1) @ shown.flatten(1).T).abs().max()) < 1e-3  # nothing of it is left to be shown


def test_each_canvas_of_the_left_one_is_a_basis():
    param = started(fake_data(), inner=Recoloured(inner=Pixels()), bases=3)
    assert param.addresses.shape == (4, 6)
    assert param.stored_bases().shape == (6, 3, 4, 4)
    assert param.param_groups()[0].name == "bases"
    assert bool(torch.isfinite(param.images(every_view(param))).all())


@pytest.mark.parametrize(
    "spec", ["lowrank:r=1+memory:bases=6", "pixels+memory:bases=3", "memory:bases=4+memory:bases=3"]
)
def test_stacked_file_round_trip(tmp_path, spec):
    pytest.importorskip("dcf_lowrank")
    data, path = fake_data(classes=3), tmp_path / "set.safetensors"
    param = create_stack("param", spec)[-1]
    items = param.plan(data.spec, 600)
    assert param.cost(data.spec, items) <= 600 < param.cost(data.spec, items + 1)
    param.allocate(data.spec, torch.arange(3).repeat_interleave(items))
    param.absorb(Random().images(data, param.view_class, generator()), generator(1))
    fake_set(param, data, spec).save(path)
    loaded = dcf.load(path)
    assert loaded.param.inner.item_class.tolist() == param.inner.item_class.tolist()
    assert loaded.param.inner.item_class.device.type == "cpu"
    assert torch.equal(loaded.tensors().x, param.images(every_view(param)).detach())
    assert loaded.storage().floats == param.storage().floats == param.cost(data.spec, items)


def test_labels_of_bases_are_not_to_be_learned():
    param = started(fake_data(), inner=Pixels())
    with pytest.raises(dcf.UsageError, match="memory has fixed labels"):
        param.absorb_labels(torch.zeros(4, 2))

    class Learning(Pixels):
        drives = frozenset({"images", "labels"})

    with pytest.raises(dcf.UsageError, match="Learning learns labels: put it to the right of memory"):
        Memory(inner=Learning())


# --- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [None, Pixels])
def test_bases_and_addresses_are_groups_with_the_step_size_of_the_run(inner):
    param = started(fake_data(), inner=inner and inner())
    groups = param.param_groups()
    assert [(g.name, g.lr, g.momentum) for g in groups] == [("bases", None, None), ("addresses", None, None)]
    assert {id(p) for g in groups for p in g.params} == {id(p) for p in param.parameters()}


def test_iterations_equal_a_straight_line_of_formulas():
    data, lr, momentum = fake_data(classes=3), 0.3, 0.5
    param = started(data, bases=3).double()
    ctx = fake_context(param, data, class_chunk=2)
    bases, addresses = param.bases.detach().clone(), param.addresses.detach().clone()
    speed = [torch.zeros_like(bases), torch.zeros_like(addresses)]
    unit = enlarge(torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4), 2, (8, 8)).flatten(1)
    engine = Engine(ctx, PullToMean(), lr, momentum)
    for it in range(2):
        engine.iterate(it)
        mean = ctx.real(torch.arange(3), 6).mean(1).double()[param.view_class]
        mixed = torch.einsum("nk,kcp->ncp", addresses, bases.flatten(2))
        rest = torch.einsum("ncp,pq->ncq", mixed, unit) - mean.flatten(2)
        arriving = torch.einsum("ncq,pq->ncp", 2 * rest / 192 / 2, unit)
        grads = [
            torch.einsum("nk,ncp->kcp", addresses, arriving).view_as(bases),
            torch.einsum("ncp,kcp->nk", arriving, bases.flatten(2)),
        ]
        speed = [momentum * v + g for v, g in zip(speed, grads, strict=True)]
        bases, addresses = bases - lr * speed[0], addresses - lr * speed[1]
        assert torch.allclose(param.bases.detach(), bases, rtol=0, atol=1e-6)
        assert torch.allclose(param.addresses.detach(), addresses, rtol=0, atol=1e-6)


# --- the idea ------------------------------------------------------------------------------------------------------


def test_all_classes_share_the_bases_and_an_address_is_an_images_own():
    data = fake_data(classes=3)
    param = started(data, items=4, bases=5)
    before = param.images(every_view(param)).detach()
    with torch.no_grad():
        param.bases[0] += 0.1
    moved = (param.images(every_view(param)) - before).detach().flatten(1).abs().amax(1) > 1e-4
    assert set(param.view_class[moved].tolist()) == {0, 1, 2}
    before = param.images(every_view(param)).detach()
    with torch.no_grad():
        param.addresses[5] += 0.1
    moved = (param.images(every_view(param)) - before).detach().flatten(1).abs().amax(1) > 0
    assert moved.nonzero().flatten().tolist() == [5]


def test_images_of_one_class_teach_the_images_of_another():
    param = started(fake_data(), items=3, bases=4, init="images")
    param.images(torch.tensor([0, 1])).square().sum().backward()
    assert bool((param.bases.grad.abs().amax((1, 2, 3)) > 0).all())
    assert (param.addresses.grad.abs().sum(1) > 0).tolist() == [True, True, False, False, False, False]


@pytest.fixture(scope="module")
def digits():
    return create("dataset", "digits").load()


def nearest_neighbour_accuracy(param, digits):
    index = torch.arange(len(digits.test))
    near = torch.cdist(digits.test.images(index).flatten(1), param.images(every_view(param)).detach().flatten(1))
    return (param.view_class[near.argmin(1)] == digits.test.labels).double().mean().item()


def test_at_equal_floats_many_more_images_say_more_about_a_class(digits):
    gains = []
    for seed in range(5):
        found = []
        for param in (Memory(Memory.Config(bases=12, down=1)), Pixels()):
            items = param.plan(digits.spec, 30 * 64)
            param.allocate(digits.spec, torch.arange(10).repeat_interleave(items))
            param.absorb(Random().images(digits, param.view_class, generator(seed)))
            assert param.storage().floats <= 30 * 64
            found.append((items, nearest_neighbour_accuracy(param, digits)))
        assert found[0][0] >= 3 * found[1][0]
        gains.append(found[0][1] - found[1][1])
    assert sum(gains) / len(gains) > 0.04  # 0.078 with a standard error of 0.018


def test_what_the_left_one_cannot_store_is_refused_when_the_set_is_planned():
    param = create_stack("param", "lowrank:r=4+memory:bases=2")[-1]
    with pytest.raises(dcf.BudgetError, match="for images of 4 x 4, rank 4 stores 32 floats"):
        param.plan(fake_spec(classes=2, shape=(1, 8, 8)), 10**6)
