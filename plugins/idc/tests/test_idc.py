"""The matcher: when it updates what, how its networks learn, and what it is all for."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

import dcf
from dcf.artifacts import Artifacts
from dcf.augmenter import Augmenter
from dcf.context import Chunk
from dcf.data.base import LabelledPixels, real_data
from dcf.engine import Engine
from dcf.pixels import Pixels
from dcf.seeding import generator
from dcf.testing import fake_context, fake_data
from dcf.testing.fakes import TinyFactory, filled
from dcf.training import Schedule, train
from dcf_idc.matcher import IDC, portions
from dcf_idc.options import MultiFormationConfig
from dcf_idc.param import MultiFormation
from dcf_idc.pool import KIND
from dcf_idc.training import Trainee, first_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def options(**changes):
    return IDC.Config(**{"inner_loop": 2, "batch_train": 4, "n_data": 6, "train_augment": "none", **changes})


def context(classes=3, items=1, factor=1, train=6, **extra):
    data = fake_data(classes=classes, train=train)
    param = filled(MultiFormation(MultiFormationConfig(factor=factor)), data, items)
    return fake_context(param, data, **extra)


def start(ctx, matcher, **extra):
    engine = Engine(ctx, matcher, **{"lr": 0.01, "momentum": 0.5, **extra})
    engine.prepare()
    return engine


def canvases(ctx):
    return ctx.param.canvases.detach().clone()


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"bias": True, "match": "feat"}, "'bias' has no effect with match=feat"),
        ({"idx_from": 1}, "'idx_from' has no effect with match=grad"),
        ({"match": "feat", "idx_to": 1}, "idx_to of at least idx_from=last"),
        ({"match": "feat", "idx_from": 2, "idx_to": 1}, "idx_to of at least idx_from=2, got 1"),
        ({"classes_per_update": 0}, "at least 1, got 0"),
        ({"match": "feat", "idx_from": -1}, "at least 0, got -1"),
        ({"train_augment": "shake"}, "shake"),
        ({"metric": "l2"}, "l1_mean"),
    ],
)
def test_options_are_checked(given, text):
    with pytest.raises((ValidationError, dcf.SpecError), match=text):
        options(**given)


def test_defaults_are_the_published_ones():
    config = IDC.Config()
    assert (config.metric, config.inner_loop, config.n_data, config.batch_real) == ("mse", 100, 2000, 64)
    assert (config.lr_net, config.momentum_net, config.decay_net, config.batch_train) == (0.01, 0.9, 5e-4, 64)
    assert (config.bias, config.fc, config.classes_per_update, config.early) == (False, False, 1, 0)
    assert (IDC.defaults.iterations, IDC.defaults.lr, IDC.defaults.momentum) == (2000, 5e-3, 0.5)


@pytest.mark.parametrize(
    ("given", "blocks"),
    [({}, [-1]), ({"idx_from": 1}, [1]), ({"idx_from": 0, "idx_to": 2}, [0, 1, 2])],
)
def test_blocks_that_are_compared(given, blocks):
    assert IDC(options(match="feat", **given)).blocks == blocks


# --- updates --------------------------------------------------------------------------------------------------------


def chunks(*sizes):
    first = 0
    for number, size in enumerate(sizes, 1):
        yield Chunk(torch.arange(first, first + size), number == len(sizes))
        first += size


@pytest.mark.parametrize(
    ("sizes", "every", "wanted"),
    [
        ((3,), 1, [([0], True), ([1], True), ([2], True)]),
        ((2, 1), 1, [([0], True), ([1], True), ([2], True)]),
        ((5,), 2, [([0, 1], True), ([2, 3], True), ([4], True)]),
        ((3, 2), 2, [([0, 1], True), ([2], False), ([3], True), ([4], True)]),
        ((2, 2), "all", [([0, 1], False), ([2, 3], True)]),
        ((2, 1), 9, [([0, 1], False), ([2], True)]),
    ],
)
def test_classes_are_cut_where_the_set_moves(sizes, every, wanted):
    assert [(part.tolist(), update) for part, update in portions(chunks(*sizes), every)] == wanted


def test_a_step_a_class_moves_that_class_alone_and_momentum_the_others():
    ctx, matcher = context(), IDC(options(inner_loop=1))
    engine = start(ctx, matcher)
    seen, move = [canvases(ctx)], engine.optimizer.step

    def noted():
        move()
        seen.append(canvases(ctx))

    engine.optimizer.step = noted
    engine.iterate(0)
    assert len(seen) == 4
    moved = [[bool((b - a)[c].any()) for c in range(3)] for a, b in pairwise(seen)]
    assert moved == [[True, False, False], [True, True, False], [True, True, True]]
    first, again = seen[1][0] - seen[0][0], seen[2][0] - seen[1][0]
    assert torch.allclose(again, 0.5 * first, atol=1e-7)


@pytest.mark.parametrize(("every", "count"), [(1, 6), (2, 4), ("all", 2)])
def test_updates_are_counted_as_they_are_made(every, count):
    ctx, matcher = context(), IDC(options(classes_per_update=every))
    engine = start(ctx, matcher)
    calls, move = [], engine.optimizer.step
    engine.optimizer.step = lambda: calls.append(1) or move()
    engine.iterate(0)
    assert matcher.updates(ctx) == len(calls) == count
    assert matcher.shards == (every == "all")


@pytest.mark.parametrize("every", [1, 2, "all"])
def test_chunks_do_not_change_an_iteration(every):
    ends = []
    for chunk in (1, 2, 3):
        ctx = context(class_chunk=chunk)
        start(ctx, IDC(options(classes_per_update=every))).run(0, 1)
        ends.append(canvases(ctx))
    assert all(torch.allclose(end, ends[0], atol=1e-6) for end in ends)


def test_a_class_with_too_many_views_is_matched_with_some_of_them():
    ctx, matcher = context(items=2, factor=2, train=12), IDC(options(batch_syn=5))
    picked = []
    for step in (0, 1):
        images, labels = matcher.synthetic(ctx, torch.tensor([0, 2]), step)
        assert images.shape[:2] == labels.shape == (2, 5)
        assert labels[:, 0].tolist() == [0, 2]
        every = ctx.synthetic(torch.tensor([0, 2]))
        picked.append([[int((every[c] == x).flatten(1).all(1).nonzero()[0]) for x in images[c]] for c in (0, 1)])
    assert all(len(set(one)) == 5 for step in picked for one in step)
    assert picked[0] != picked[1]


# --- the step size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ipc", "base", "factor"), [(10, 8, 1.0), (1, 8, 0.1), (10, 32, 1 / 16), (50, 4, 20.0)])
def test_step_size_follows_the_images_a_class_and_their_size(ipc, base, factor):
    data = fake_data()
    ctx = dcf.Context(data, filled(Pixels(), data, 1), TinyFactory(), fake_context().augmenter, 0, 10, 1, ipc)
    assert IDC(options(base_size=base)).lr_factor(ctx) == pytest.approx(factor)
    assert IDC(options(base_size=base, rescale=False)).lr_factor(ctx) == 1.0


# --- networks -----------------------------------------------------------------------------------------------------


def test_images_of_a_pass_come_in_whole_batches_without_repetition():
    split = fake_data(classes=3).train  # 18 images
    for least, count in ((1, 4), (4, 4), (5, 8), (17, 18), (100, 18)):
        order = first_images(split, least, 4, generator(0, "x"))
        assert len(order) == len(set(order.tolist())) == count


class Counting(Augmenter):
    """Counts draws and the images they are for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def draw(self, n, shape, generator, shared):
        self.seen.append((n, shared))
        return ()

    def apply(self, batch, values):
        return batch


def test_networks_are_trained_on_real_images_between_matching_steps_only():
    augmenter = Counting()
    ctx = context(augmenter=augmenter)
    matcher = IDC(options(inner_loop=3, n_data=6, train_augment="same"))
    start(ctx, matcher).iterate(0)
    shared = [n for n, shared in augmenter.seen if shared]
    own = [n for n, shared in augmenter.seen if not shared]
    assert len(shared) == 9  # one draw a class and matching step, for real and synthetic images
    assert own == [4, 4] * 2  # two batches hold 6 images; nothing follows the last matching step


def test_networks_whose_training_blows_up_end_the_run_with_what_to_lower():
    run = start(context(), IDC(options(lr_net=1e20)))
    with pytest.raises(dcf.NonFiniteError, match=r"matcher\.lr_net=0\.001"):
        run.run(0, 1)


def test_training_goes_on_with_its_momentum():
    ctx = context()
    matcher = IDC(options())
    net, twin = (matcher.network(ctx, 0) for _ in "ab")
    trainee = Trainee(ctx, net, matcher.config, matcher.augmenter(ctx), "t")
    trainee.images(4, 0)
    trainee.images(4, 1)
    split = ctx.data.train
    orders = [first_images(split, 4, 4, generator(ctx.seed, "t", "step", step)) for step in (0, 1)]
    train(
        twin, lambda i: dcf.Batch(split.images(i), split.labels[i]), lambda epoch: orders[epoch],
        Schedule.constant(0.01, 2), batch=4, momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_labels_of_the_training_are_mixed():
    ctx = context()
    mixed = IDC(options(train_augment="cutmix:prob=1"))
    plain = IDC(options())
    nets = []
    for matcher in (mixed, plain):
        net = matcher.network(ctx, 0)
        Trainee(ctx, net, matcher.config, matcher.augmenter(ctx), "t").images(4, 0)
        nets.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert not torch.allclose(*nets)


@pytest.mark.parametrize("early", [0, 2])
def test_early_epochs_train_before_the_first_matching_step(early):
    ctx, matcher = context(), IDC(options(early=early))
    fresh = matcher.network(ctx, 0)
    seen = []
    matcher.loss = lambda ctx, net, *rest: (
        seen.append([p.detach().clone() for p in net.parameters()]) or (ctx.param.canvases.sum())
    )
    ctx.begin(0)
    next(matcher.outer(ctx, 0))
    same = all(torch.equal(a, b) for a, b in zip(seen[0], fresh.parameters(), strict=True))
    assert same == (early == 0)


def test_networks_trained_in_advance_are_kept_and_drawn_from():
    ctx, matcher = context(), IDC(options(pretrained=3, pretrained_epochs=1))
    start(ctx, matcher)
    files = sorted((Artifacts().root / KIND).glob("*.safetensors"))
    assert len(files) == 3
    before = [path.read_bytes() for path in files]
    drawn = set()
    for it in range(24):
        net = matcher.network(ctx, it)
        drawn.add(float(net.parameters()[0].detach().sum()))
    assert len(drawn) == 3
    again = IDC(options(pretrained=3, pretrained_epochs=1))
    other = context(seed=5)
    again.prepare(other)  # another run, the same networks
    assert [path.read_bytes() for path in sorted((Artifacts().root / KIND).glob("*.safetensors"))] == before
    assert all(torch.equal(a[k], b[k]) for a, b in zip(matcher.pool, again.pool, strict=True) for k in a)


# --- what it is for -----------------------------------------------------------------------------------------------


def test_set_comes_closer_to_the_gradients_of_the_real_images():
    data = fake_data(classes=2, train=12)
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    param = filled(MultiFormation(MultiFormationConfig(factor=1)), data, 2, noise)
    ctx = fake_context(param, data)
    matcher = IDC(options(inner_loop=4, rescale=False))
    engine = start(ctx, matcher, lr=0.2)

    def distance():
        net = ctx.networks.create(ctx.spec, 0, "judge")
        return float(matcher.loss(ctx, net, torch.tensor([0, 1]), 0).detach())

    before = distance()
    engine.run(0, 6)
    assert distance() < 0.8 * before


def test_networks_that_learn_from_real_images_keep_gradients_on_the_synthetic_ones():
    """The paper's idea: trained on the few synthetic images a network soon has nothing left to learn from them."""
    spec, draw = fake_data(classes=3).spec, generator(0, "noise")
    pixels, labels = torch.rand(90, *spec.shape, generator=draw), torch.arange(90) % 3
    split = LabelledPixels(pixels, labels)
    data = real_data(split, split, spec.classes, spec.space, "python:noise", "made up")
    ctx = fake_context(filled(Pixels(), data, 1), data)
    matcher = IDC(options(n_data=90, lr_net=0.05))
    on_real, on_synthetic = (matcher.network(ctx, 0) for _ in "ab")
    trainee = Trainee(ctx, on_real, matcher.config, matcher.augmenter(ctx), "t")
    for step in range(4):
        trainee.images(90, step)
    ctx.train(on_synthetic, epochs=100, lr=0.2, batch=4)
    images, wanted = ctx.param.batch(torch.arange(3))
    lengths = []
    for net in (on_real, on_synthetic):
        grads = torch.autograd.grad(torch.nn.functional.cross_entropy(net(images), wanted), net.parameters())
        lengths.append(float(torch.stack([g.square().sum() for g in grads]).sum()))
    assert lengths[0] > 10 * lengths[1]
