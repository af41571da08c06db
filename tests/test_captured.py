"""Kernels of a GPU: captured once, launched as one, and what they come to is what the plain way comes to.

On a stand-in whose graphs run the captured operations again and no Python; where there is a GPU, on that, too.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections import Counter
from unittest.mock import patch

import pytest
import torch
from tests.stand_in import CUDA, Card, near
from tests.test_waits import VIEWS

from dcf import compiled
from dcf.compiled import Kind, _captured, _kernels, _rules
from dcf.matching import batch_gradients, class_embedding_means, class_gradients
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.runtime import precision_of, precision_text
from dcf.schedule import Schedule
from dcf.testing import fake_data, fake_spec
from dcf.together import Learner, accuracies_together, train_together
from dcf.training import evaluate_accuracy, shuffled, train
from dcf.types import Batch
from dcf.unroll import stateless, train_on

SPEC = fake_spec(3, (3, 8, 8))
REAL = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
)


class Place:
    """A device, and how tensors come to and from it."""

    def __init__(self, card):
        self.card = card
        self.device = CUDA if card is not None else torch.device("cuda", 0)

    def to(self, tensor):
        made = tensor.detach().to(self.device, non_blocking=True)
        return made.requires_grad_(tensor.requires_grad)

    def home(self, tensor):
        return near(tensor.detach()) if self.card is not None else tensor.detach().cpu()

    def net(self, net):
        far = net.__class__(net.module.to(self.device))
        far.origin, far.params = net.origin, {name: self.to(w) for name, w in net.params.items()}
        return far


@pytest.fixture(params=["stand-in", REAL])
def place(request, monkeypatch):
    monkeypatch.setattr(_kernels, "_MADE", {})
    monkeypatch.setattr(_kernels, "_TOLD", set())
    with contextlib.ExitStack() as stack:
        yield Place(stack.enter_context(Card()) if request.param == "stand-in" else None)


@contextlib.contextmanager
def kernels(place, precision="strict", times=1000, keep=False):
    """Allow them; they are forgotten at the end unless they are to be kept."""
    with contextlib.ExitStack() as stack:
        if keep:
            stack.enter_context(patch.object(compiled, "forget_captured"))
        stack.enter_context(precision_of(precision))
        stack.enter_context(compiled.allowed(precision, place.device))
        stack.enter_context(compiled.expected(times))
        yield


def net_of(number=0, **options):
    return ConvNetFactory(ConvNetConfig(**{"width": 8, "depth": 2} | options)).create(SPEC, 0, "net", number)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made():
    return {key[0] for key, kernel in _kernels._MADE.items() if kernel is not None}


def error(found, wanted):
    """Norm of the difference relative to that of what is wanted, all results together."""
    apart = torch.stack([(a - b.detach()).square().sum() for a, b in zip(found, wanted, strict=True)]).sum()
    return float((apart / torch.stack([b.detach().square().sum() for b in wanted]).sum()).sqrt())


# --- each kernel ------------------------------------------------------------------------------------------------------


def loss_gradients(net, place, images, labels):
    found = compiled.loss_gradients(net, images[0], labels[0])
    if found is None:
        logits = net(images[0])
        loss = torch.nn.functional.cross_entropy(logits, labels[0])
        return [loss, logits, *torch.autograd.grad(loss, net.parameters())]
    return [found.loss, found.logits, *found.gradients]


def embeddings(net, place, images, labels):
    with torch.no_grad():
        return [class_embedding_means(net, images)]


def logits(net, place, images, labels):
    with torch.no_grad():
        found = compiled.classify(net, images[0], 5)
        return [net(images[0]) if found is None else found]


def constant_gradients(net, place, images, labels):
    return class_gradients(net, images, labels, strategy="vmap")


def with_image_gradient(function):
    """Results and their image gradient, when something else was computed by the same kernel in between."""

    def differentiated(net, place, images, labels):
        leaf = images.detach().requires_grad_()
        found, other = function(net, leaf, labels), function(net, 2 * leaf, labels)
        total = torch.stack([t.square().sum() for t in (*found, *other)]).sum()
        return [*found, *torch.autograd.grad(total, [leaf])]

    return differentiated


@with_image_gradient
def learned_gradients(net, images, labels):
    return class_gradients(net, images, labels, create_graph=True, strategy="vmap")


@with_image_gradient
def learned_batch(net, images, labels):
    return batch_gradients(net, images[0], labels[0], create_graph=True)


@with_image_gradient
def learned_embeddings(net, images, labels):
    return [class_embedding_means(net, images)]


WAYS = {
    Kind.GRADIENT: loss_gradients, Kind.EMBED: embeddings, Kind.CLASSIFY: logits,
    Kind.CLASS_GRADIENT: constant_gradients, Kind.CLASS_MATCHED: learned_gradients, Kind.MATCHED: learned_batch,
    Kind.FEATURES: learned_embeddings,
}  # fmt: skip


@pytest.mark.parametrize("kind", WAYS)
def test_what_a_kernel_comes_to_follows_its_inputs(kind, place):
    labels = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    for number in range(2):
        net, images = net_of(number), numbers(2, 5, 3, 8, 8, seed=number)
        wanted = WAYS[kind](net, None, images, labels.flip(number))
        with kernels(place, keep=True):
            found = WAYS[kind](place.net(net), place, place.to(images), place.to(labels.flip(number)))
        assert error([place.home(t) for t in found], wanted) < 1e-4
    assert len(_kernels._MADE) == 1, "the second network has the kernel of the first"
    assert made() == {kind}


def test_soft_labels_that_are_learned_have_their_gradient(place):
    net, images, soft = net_of(), numbers(2, 5, 3, 8, 8), numbers(2, 5, 3, seed=1).softmax(-1)

    def of(net, images, soft):
        leaves = images.detach().requires_grad_(), soft.detach().requires_grad_()
        found = class_gradients(net, *leaves, create_graph=True, strategy="vmap")
        return torch.autograd.grad(torch.stack([g.square().sum() for g in found]).sum(), leaves)

    wanted = of(net, images, soft)
    with kernels(place):
        found = of(place.net(net_of()), place.to(images), place.to(soft))
        assert made() == {Kind.CLASS_MATCHED}
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(place.home(a), b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def operations(card):
    return sum(count for name, count in card.operations.items() if name not in VIEWS)


@pytest.mark.parametrize(("kind", "launches"), [(kind, 1 + 1 * kind.differentiable) for kind in WAYS])
def test_a_kernel_is_one_launch_however_deep_the_network_is(kind, launches):
    counts = []
    labels, images = torch.zeros(2, 5, dtype=torch.long), numbers(2, 5, 3, 8, 8)
    for depth in (1, 3):
        with Card() as card, kernels(Place(card)):
            place = Place(card)
            net, x, y = place.net(net_of(depth=depth)), place.to(images), place.to(labels)
            call = {k: f for k, f in WAYS.items() if not k.differentiable}.get(kind) or once(kind)
            call(net, place, x, y)
            with card.watched():
                call(net, place, x, y)
            assert card.launches == launches
            assert card.waits == Counter()
            counts.append(operations(card))
    # What goes in, and out of it; those that are learned have their sum of squares differentiated here.
    assert counts[0] == counts[1] or kind.differentiable
    assert counts[1] <= 8 + 80 * kind.differentiable


def once(kind):
    plain = {
        Kind.CLASS_MATCHED: lambda net, x, y: class_gradients(net, x, y, create_graph=True),
        Kind.MATCHED: lambda net, x, y: batch_gradients(net, x[0], y[0], create_graph=True),
        Kind.FEATURES: lambda net, x, y: [class_embedding_means(net, x)],
    }[kind]

    def call(net, place, images, labels):
        leaf = images.detach().requires_grad_()
        total = torch.stack([t.square().sum() for t in plain(net, leaf, labels)]).sum()
        torch.autograd.grad(total, [leaf])

    return call


@pytest.mark.parametrize("much", [False, True])
def test_classes_of_large_batches_have_convolutions_of_their_own_in_one_launch(much, monkeypatch):
    net, images, labels = net_of(), numbers(2, 5, 3, 8, 8), torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    wanted = constant_gradients(net, None, images, labels)
    monkeypatch.setattr(_rules, "_BUSY", 0.0 if much else float("inf"))
    monkeypatch.setattr(_kernels, "_MADE", {})
    with Card() as card:
        place = Place(card)
        far, x, y = place.net(net), place.to(images), place.to(labels)
        with kernels(place):
            constant_gradients(far, place, x, y)
            (pool,) = _captured._POOLS.values()
            (graph,) = pool.graphs
            with card.watched():
                found = constant_gradients(far, place, 2 * x, y)
                assert card.launches == 1
                found = constant_gradients(far, place, x, y)
        groups = [args[8] for func, args, _, _ in graph.recorded if func._schema.name == "aten::convolution"]
        groups += [args[9] for func, args, _, _ in graph.recorded if func._schema.name == "aten::convolution_backward"]
        assert (max(groups) == 1) is much
        assert error([place.home(t) for t in found], wanted) < 1e-5


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WAYS)
def test_what_is_not_learned_is_rounded_and_what_images_are_learned_through_is_not(kind, place):
    if place.card is None and kind.differentiable:
        pytest.skip("a GPU takes TF32 for these")
    labels, images = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]]), numbers(2, 5, 3, 8, 8)
    wanted = WAYS[kind](net_of(), None, images, labels)
    with kernels(place, "default"), compiled.noticed() as usage:
        found = WAYS[kind](place.net(net_of()), place, place.to(images), place.to(labels))
        assert made() == {kind}
    off = error([place.home(t) for t in found], wanted)
    assert (1e-4 < off < 0.15) if not kind.differentiable else off < 1e-4
    assert usage.kernels is not kind.differentiable
    assert precision_text(torch.device("cuda"), usage.kernels) == (
        "fp32 with TF32" if kind.differentiable else "bf16 kernels"
    )


def test_gpus_that_do_not_multiply_bf16_compute_in_fp32(monkeypatch):
    with Card() as card:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        place = Place(card)
        images, labels = numbers(2, 5, 3, 8, 8), torch.zeros(2, 5, dtype=torch.long)
        wanted = constant_gradients(net_of(), None, images, labels)
        with kernels(place, "default"), compiled.noticed() as usage:
            found = constant_gradients(place.net(net_of()), place, place.to(images), place.to(labels))
        assert error([place.home(t) for t in found], wanted) < 1e-5
        assert not usage.kernels


def test_kernels_with_tf32_and_without_are_two(place):
    net, x, y = place.net(net_of()), place.to(numbers(2, 5, 3, 8, 8)), place.to(torch.zeros(2, 5, dtype=torch.long))
    for precision in ("default", "strict", "default"):
        with kernels(place, precision, keep=True):
            learned_gradients(net, place, x, y)
    assert len(_kernels._MADE) == 2


# --- when there is none -----------------------------------------------------------------------------------------------


class Asking(ConvNetFactory):
    """Makes networks that look at values, which cannot be captured."""

    def build(self, spec):
        net = super().build(spec)
        forward = net.features
        net.features = lambda x: forward(x if x.sum() > 0 else 2 * x)
        return net


def test_what_cannot_be_captured_is_computed_the_plain_way_and_said_once(place, caplog):
    net = Asking(ConvNetConfig(width=8, depth=2)).create(SPEC, 0)
    images, labels = numbers(1, 5, 3, 8, 8), torch.zeros(1, 5, dtype=torch.long)
    far = place.net(net)
    with kernels(place), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert compiled.loss_gradients(far, place.to(images[0]), place.to(labels[0])) is None
            assert compiled.loss_gradients(far, place.to(images[0, :3]), place.to(labels[0, :3])) is None
    assert [r.getMessage() for r in caplog.records if "no captured kernels" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1


class Drawing(ConvNetFactory):
    """Makes networks that add noise."""

    def build(self, spec):
        net = super().build(spec)
        forward = net.features
        net.features = lambda x: forward(x + 1e-3 * torch.randn_like(x))
        return net


def test_a_network_that_draws_has_none_and_its_draws_are_left_alone(place, caplog):
    far = place.net(Drawing(ConvNetConfig(width=8, depth=2)).create(SPEC, 0))
    x, y = place.to(numbers(5, 3, 8, 8)), place.to(torch.arange(5) % 3)
    before = torch.cuda.get_rng_state(place.device)
    with kernels(place), caplog.at_level(logging.WARNING):
        assert compiled.loss_gradients(far, x, y) is None
    assert "draws random numbers" in caplog.text
    assert torch.equal(before, torch.cuda.get_rng_state(place.device))


def test_a_kernel_that_does_not_read_what_it_is_given_is_found_out(place, caplog, monkeypatch):
    monkeypatch.setattr(_captured, "_copy_all", lambda targets, sources: None)
    net, images, labels = place.net(net_of()), place.to(numbers(5, 3, 8, 8)), place.to(torch.arange(5) % 3)
    with kernels(place), caplog.at_level(logging.WARNING):
        assert compiled.loss_gradients(net, images, labels) is None
    assert "captured kernel of this network is off by" in caplog.text


def test_a_few_calls_do_not_pay(place):
    net, images, labels = place.net(net_of()), place.to(numbers(5, 3, 8, 8)), place.to(torch.arange(5) % 3)
    with kernels(place, times=1):
        assert compiled.loss_gradients(net, images, labels, calls=_rules._LEAST_CALLS - 1) is None
        assert _kernels._MADE == {}
        assert compiled.loss_gradients(net, images, labels, calls=_rules._LEAST_CALLS) is not None


def test_nothing_is_captured_without_permission(place):
    net, images, labels = place.net(net_of()), place.to(numbers(5, 3, 8, 8)), place.to(torch.arange(5) % 3)
    with compiled.expected(1000):
        assert compiled.loss_gradients(net, images, labels) is None
    assert _kernels._MADE == {}


def test_the_memory_of_captures_is_given_back_at_the_end(place):
    net, images, labels = place.net(net_of()), place.to(numbers(5, 3, 8, 8)), place.to(torch.arange(5) % 3)
    with kernels(place):
        compiled.loss_gradients(net, images, labels)
        with compiled.allowed("strict", place.device):
            pass
        assert made() == {Kind.GRADIENT}, "another one is still going on"
        assert _captured._POOLS
    assert _kernels._MADE == {}
    assert _captured._POOLS == {}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_networks_that_keep_something_have_none(batch_norm, place):
    net = place.net(net_of(norm="batch" if batch_norm else "none"))
    with kernels(place):
        found = compiled.loss_gradients(net, place.to(numbers(5, 3, 8, 8)), place.to(torch.arange(5) % 3))
    assert (found is None) is batch_norm


def test_on_a_cpu_there_is_none_for_several_classes(monkeypatch):
    monkeypatch.setattr(_kernels, "_make", lambda *_: pytest.fail("made one"))
    with compiled.allowed("default", torch.device("cpu")), compiled.expected(10**9):
        class_gradients(net_of(), numbers(2, 5, 3, 8, 8), torch.zeros(2, 5, dtype=torch.long), strategy="vmap")


def test_real_images_of_many_classes_are_divided_where_a_gpu_has_no_room_for_all(monkeypatch):
    net, images, labels = net_of(), numbers(5, 4, 3, 8, 8), torch.arange(5)[:, None].expand(-1, 4) % 3
    wanted = [constant_gradients(net, None, images, labels), embeddings(net, None, images, labels)]
    each = 4 * compiled.activations(net, (3, 8, 8)) * 12
    for memory, calls in ((1 << 37, 1), (4 * 4 * each, 2), (4 * each, 5), (1, 5)):
        with Card() as card:
            monkeypatch.setattr(Card, "memory", memory)
            monkeypatch.setattr(_kernels, "_MADE", {})
            place = Place(card)
            far, x, y = place.net(net_of()), place.to(images), place.to(labels)
            for number, way in enumerate((constant_gradients, embeddings)):
                with kernels(place):
                    way(far, place, x, y)
                    with card.watched():
                        found = way(far, place, x, y)
                assert error([place.home(t) for t in found], wanted[number]) < 1e-5
                assert card.launches == calls


# --- in use -----------------------------------------------------------------------------------------------------------


def unrolled(net, images, labels, mode, to=lambda t: t):
    """Image gradient of the distance of trained weights; autograd runs where nobody said what is allowed."""
    leaf = images.detach().requires_grad_()
    steps = [to(torch.tensor(s)) for s in ([0, 1], [2, 3], [1, 4])]
    start = {name: w.detach() for name, w in net.params.items()}
    lrs = to(torch.full((3,), 0.1))
    ended = train_on(stateless(net), start, Batch(leaf, labels), steps, lrs, mode=mode)
    loss = torch.stack([w.square().sum() for w in ended.values()]).sum()
    # A GPU's part of the way back is in another thread, which knows nothing of the context variables of this one.
    contextvars.Context().run(loss.backward)
    return leaf.grad


@pytest.mark.parametrize(("mode", "kinds"), [
    ("auto", {Kind.STEP, Kind.PRODUCTS}), ("adjoint", {Kind.STEP, Kind.PRODUCTS}), ("full", set()),
])  # fmt: skip
def test_unrolled_training_is_captured_both_ways(mode, kinds, place):
    net, images, labels = net_of(), numbers(5, 3, 8, 8), torch.arange(5) % 3
    wanted = unrolled(net, images, labels, "full")
    far, x, y = place.net(net_of()), place.to(images), place.to(labels)
    with kernels(place):
        unrolled(far, x, y, mode, place.to)
        watched = place.card.watched() if place.card is not None else contextlib.nullcontext()
        with watched:
            found = unrolled(far, x, y, mode, place.to)
        assert made() == kinds
    if place.card is not None:
        assert place.card.launches == (6 if kinds else 0)
    assert torch.allclose(place.home(found), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_nothing_is_captured_on_the_way_back(place):
    far, x, y = place.net(net_of()), place.to(numbers(5, 3, 8, 8)), place.to(torch.arange(5) % 3)
    steps, start = [place.to(torch.tensor([0, 1]))], {name: w.detach() for name, w in far.params.items()}
    with kernels(place):
        lrs = place.to(torch.full((1,), 0.1))
        train_on(stateless(far), start, Batch(x.requires_grad_(), y), steps, lrs, mode="adjoint")
        assert made() == {Kind.STEP, Kind.PRODUCTS}


def learner(number, place=None):
    net, x = net_of(number), numbers(10, 3, 8, 8, seed=number)
    y = torch.arange(10) % 3
    if place is not None:
        net, x, y = place.net(net), place.to(x), place.to(y)
    order = shuffled(10, torch.Generator().manual_seed(number), x.device)
    return Learner(net, lambda i: Batch(x[i], y[i]), order)


def trained(together, place=None):
    schedule, how = Schedule.constant(0.05, 3), {"batch": 5, "momentum": 0.9, "weight_decay": 0.01, "tally": True}
    learners = [learner(number, place) for number in range(3)]
    if together:
        results = train_together(learners, schedule, **how)
    else:
        results = [train(one.state, one.fetch, one.order, schedule, **how) for one in learners]
    return learners, results


@pytest.mark.parametrize("together", [True, False])
def test_training_with_captured_kernels_is_training(together, place):
    wanted, told = trained(together=False)
    with kernels(place):
        found, results = trained(together, place)
        assert made() == {Kind.STACK_GRADIENT if together else Kind.GRADIENT}
    for a, b in zip(found, wanted, strict=True):
        for name, weight in b.state.params.items():
            assert torch.allclose(place.home(a.state.params[name]), weight.detach(), rtol=1e-3, atol=1e-5)
    for a, b in zip(results, told, strict=True):
        assert float(place.home(a.loss)) == pytest.approx(float(b.loss), rel=1e-4)
        assert float(place.home(a.accuracy)) == pytest.approx(float(b.accuracy))


def test_networks_are_tested_together_in_one_kernel_whose_last_batch_is_filled_up(place):
    split = fake_data(3, shape=(3, 8, 8), train=7).train
    nets = [net_of(number) for number in range(3)]
    wanted = [evaluate_accuracy(net, split, batch=8) for net in nets]
    far_split = fake_data(3, shape=(3, 8, 8), train=7).to(place.device).train
    with kernels(place):
        found = accuracies_together([place.net(net) for net in nets], far_split, batch=8)
        assert [key[0] for key in _kernels._MADE] == [Kind.STACK_CLASSIFY]
        two = accuracies_together([place.net(net) for net in nets[:2]], far_split, batch=8)
    assert found == wanted
    assert two == wanted[:2]
