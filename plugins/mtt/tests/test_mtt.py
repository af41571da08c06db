"""The matcher: what it draws, learns and keeps, and that matching trajectories is what it does."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

import dcf
import dcf_mtt.matcher
from dcf.context import Context
from dcf.engine import Engine
from dcf.recipes import load_recipe
from dcf.testing import SoftPixels, fake_data
from dcf.testing.fakes import TinyFactory, filled
from dcf_dsa.augment import DSA
from dcf_labels.options import SoftLabelsConfig
from dcf_labels.param import SoftLabels
from dcf_lowrank.options import LowRankConfig
from dcf_lowrank.param import LowRank
from dcf_mtt.experts import ExpertSet
from dcf_mtt.matcher import MTT
from dcf_mtt.student import trajectory_loss


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def options(**changes):
    small = {"syn_steps": 4, "expert_epochs": 2, "max_start_epoch": 3, "experts": 2, "lr_teacher": 0.1}
    return MTT.Config(**{**small, "lr_expert": 0.05, "batch_expert": 4, **changes})


def context(param=None, data=None, networks=None, augmenter=None, seed=0, iterations=10):
    data = data or fake_data()
    param = filled(dcf.testing.fakes.Pixels(), data, 2) if param is None else param
    from dcf.augmenter import NoAugmentation

    return Context(data, param, networks or TinyFactory(), augmenter or NoAugmentation(), seed, 10, iterations)


def begin(ctx, matcher, lr=0.1, momentum=0.5):
    engine = Engine(ctx, matcher, lr, momentum)
    engine.prepare()
    return engine


def first_step(ctx, matcher, it=0):
    ctx.begin(it)
    (step,) = list(matcher.outer(ctx, it))
    return step


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"min_start_epoch": 3}, "min_start_epoch below max_start_epoch=3, got 3"),
        ({"window": "aligned", "window_start": 4}, "window_start above min_start_epoch=0 and at most"),
        ({"window": "aligned", "window_start": 1, "min_start_epoch": 1}, "window_start above min_start_epoch=1"),
        ({"train_epochs": 3}, "expert_epochs = 4, got 3"),
        ({"batch_syn": 0}, "greater than or equal to 1"),
        ({"experts": 0}, "greater than or equal to 1"),
        ({"threshold": 0}, "greater than 0"),
        ({"keep": 0}, "greater than or equal to 1"),
        ({"syn_steps": 0}, "greater than or equal to 1"),
        ({"lr_teacher": 0}, "greater than 0"),
        ({"lr_least": 0.2}, "lr_least of at most lr_teacher=0.1, got 0.2"),
        ({"unroll": "backwards"}, "adjoint"),
    ],
)
def test_options_have_bounds(given, text):
    with pytest.raises(ValidationError, match=text):
        options(**given)


def test_experts_are_trained_as_long_as_they_are_looked_at():
    assert options().epochs == 4
    assert options(train_epochs=9).epochs == 9
    assert MTT.Config().epochs == 27


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {0: 25, 10_000: 25}),
        (
            {"window": "aligned", "max_start_epoch": 20, "window_iterations": 1000},
            {0: 10, 100: 11, 500: 15, 999: 19, 1000: 20},
        ),
        (
            {"window": "aligned", "window_start": 20, "max_start_epoch": 40, "window_iterations": 2000},
            {0: 20, 500: 25, 1000: 30, 2000: 40},
        ),
    ],
)
def test_windows_are_the_published_ones(given, wanted):
    matcher = MTT(MTT.Config(**given))
    assert {it: matcher.end(it) for it in wanted} == wanted


def test_recipes_have_the_published_settings():
    lines = {
        ("mtt", "cifar10"): ({"syn_steps": 50, "expert_epochs": 2, "max_start_epoch": 2, "lr_lr": 1e-7}, 100.0),
        ("mtt", "cifar100"): ({"syn_steps": 20, "expert_epochs": 3, "max_start_epoch": 20, "lr_lr": 1e-5}, 1000.0),
        ("mtt", "tiny-imagenet"): ({"syn_steps": 10, "expert_epochs": 2, "max_start_epoch": 10}, 10000.0),
        ("lomtt", "cifar10"): ({"syn_steps": 50, "max_start_epoch": 5, "batch_syn": 80, "lr_lr": 1e-7}, 1000.0),
        ("tesla", "cifar10"): ({"syn_steps": 50, "unroll": "tesla", "reference_scale": True}, 1000.0),
        ("datm", "cifar10"): ({"syn_steps": 80, "max_start_epoch": 4, "threshold": 1.1, "start": "experts"}, 100.0),
        ("datm", "cifar100"): ({"syn_steps": 40, "window": "aligned", "window_start": 10}, 1000.0),
    }
    from dcf.config import validate
    from dcf.spec import parse_one

    for (name, data), (wanted, lr) in lines.items():
        settings = load_recipe(name).settings(data)
        config = validate(MTT.Config, parse_one(settings["matcher"])).model_dump()
        assert {k: config[k] for k in wanted} == wanted, (name, data)
        assert settings["lr"] == lr
        assert config["lr_teacher"] == 0.01
        assert config["experts"] == "auto"


# --- an iteration ----------------------------------------------------------------------------------------------------


class Spy(ExpertSet):
    """Writes down what is asked for."""

    asked: list

    def weights(self, number, epoch):
        self.asked.append((number, epoch))
        return super().weights(number, epoch)


def spied(ctx, matcher):
    begin(ctx, matcher)
    spy = Spy(ctx.data, ctx.networks, ctx.augmenter, matcher.config.training)
    object.__setattr__(spy, "asked", [])
    matcher.experts = spy
    return spy


def test_start_and_target_lie_the_asked_epochs_apart_within_the_window():
    ctx, matcher = context(), MTT(options(min_start_epoch=1, max_start_epoch=4, experts=3, syn_steps=1))
    spy = spied(ctx, matcher)
    for it in range(40):
        first_step(ctx, matcher, it)
    starts, targets = spy.asked[::2], spy.asked[1::2]
    assert all((n, e + 2) == target for (n, e), target in zip(starts, targets, strict=True))
    assert {e for _, e in starts} == {1, 2, 3}
    assert {n for n, _ in starts} == {0, 1, 2}


def test_aligned_window_grows_with_the_run():
    ctx = context()
    matcher = MTT(options(window="aligned", window_start=1, max_start_epoch=5, window_iterations=10, syn_steps=1))
    spy = spied(ctx, matcher)
    for it in range(3):
        first_step(ctx, matcher, it)
    assert {e for _, e in spy.asked[::2]} == {0}
    for it in range(100, 130):
        first_step(ctx, matcher, it)
    assert max(e for _, e in spy.asked[::2]) == 4


def test_images_are_decoded_once_and_only_those_that_are_used():
    data = fake_data()
    param = filled(dcf.testing.fakes.Pixels(), data, 5)
    calls, decode = [], param.images
    object.__setattr__(param, "images", lambda index: (calls.append(index), decode(index))[1])
    ctx, matcher = context(param, data), MTT(options(batch_syn=3, syn_steps=2))
    begin(ctx, matcher)
    first_step(ctx, matcher)
    (used,) = calls
    assert len(used) == len(used.unique()) == 4  # a remainder of one, then three
    batch, batches = matcher.drawn(ctx, 0)
    assert [len(b) for b in batches] == [1, 3]
    assert torch.equal(batch.y, param.labels(used))


def test_loss_is_the_one_of_its_definition():
    ctx, matcher = context(), MTT(options(max_start_epoch=1, experts=1))
    begin(ctx, matcher)
    start, target = matcher.experts.weights(0, 0), matcher.experts.weights(0, 2)
    net, weights = matcher.net, {k: w.clone().requires_grad_() for k, w in start.items()}
    x, y = ctx.param.batch(torch.arange(4))
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(net(x.detach(), weights), y)
        grads = torch.autograd.grad(loss, list(weights.values()))
        weights = {k: (w - 0.1 * g).detach().requires_grad_() for (k, w), g in zip(weights.items(), grads, strict=True)}
    wanted = trajectory_loss(weights, start, target)
    assert torch.allclose(first_step(ctx, matcher).loss, wanted, rtol=1e-4)


def gradients(augmenter=None, labels=False, dtype=torch.float64, **changes):
    data = fake_data(classes=3)
    param = SoftLabels(SoftLabelsConfig(form="logits")) if labels else dcf.testing.fakes.Pixels()
    param = filled(param, data, 2).to(dtype)
    ctx = context(param, data, augmenter=augmenter)
    matcher = MTT(options(**{"syn_steps": 6, "batch_syn": 4} | changes))
    begin(ctx, matcher)
    loss = first_step(ctx, matcher).loss
    learned = [*param.parameters(), matcher.step_size.raw]
    return [loss.detach(), *torch.autograd.grad(loss, learned)]


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("augmenter", [None, DSA(DSA.Config())])
def test_every_exact_way_gives_the_same_gradients(augmenter, labels):
    wanted = gradients(augmenter, labels, unroll="full")
    assert all(float(g.abs().sum()) > 0 for g in wanted)
    for way in ({"unroll": "adjoint"}, {"keep": 3}, {"keep": "cpu"}, {"unroll": "checkpoint"}):
        found = gradients(augmenter, labels, **way)
        for a, b in zip(found, wanted, strict=True):
            # The step size is learned in float32.
            assert torch.allclose(a, b, rtol=1e-9 if a.dtype == torch.float64 else 1e-5, atol=1e-14)


def test_truncated_gradient_is_exact_for_one_step_and_another_one_for_several():
    assert all(map(torch.equal, gradients(unroll="tesla", syn_steps=1), gradients(syn_steps=1)))
    (loss, *exact), (same, *found) = gradients(), gradients(unroll="tesla")
    assert torch.equal(loss, same)
    assert all(float((a - b).norm() / b.norm()) > 1e-3 for a, b in zip(found, exact, strict=True))


def test_released_scale_halves_the_gradient_of_the_images_alone():
    loss, dx, dlr = gradients(unroll="tesla")
    half_loss, half_dx, half_dlr = gradients(unroll="tesla", reference_scale=True)
    assert torch.equal(loss, half_loss)
    assert torch.allclose(half_dx, dx / 2, rtol=1e-12)
    assert torch.equal(dlr, half_dlr)


def test_truncated_gradient_reaches_factors_as_the_chain_rule_says():
    data = fake_data()
    factors = filled(LowRank(LowRankConfig(r=2, init="noise")), data, 2)
    plain = filled(dcf.testing.fakes.Pixels(), data, 2, factors.images(torch.arange(4)).detach())
    for param in (factors, plain):
        ctx, matcher = context(param, data), MTT(options(unroll="tesla"))
        begin(ctx, matcher)
        first_step(ctx, matcher).loss.backward(inputs=[*param.parameters()])
    (images,) = plain.parameters()
    a, b = factors.latents()["A"], factors.latents()["B"]
    assert torch.allclose(a.grad, images.grad @ b.detach().mT, rtol=1e-3, atol=1e-5)
    assert torch.allclose(b.grad, a.detach().mT @ images.grad, rtol=1e-3, atol=1e-5)


def test_network_of_batch_norms_is_matched_and_its_statistics_stay():
    from dcf.networks.convnet import ConvNetFactory
    from dcf.networks.options import ConvNetConfig

    ctx = context(networks=ConvNetFactory(ConvNetConfig(width=2, depth=1, norm="batch")))
    matcher = MTT(options())
    engine = begin(ctx, matcher)
    before = {k: b.clone() for k, b in matcher.net.buffers.items()}
    engine.run(0, 2)
    assert all(torch.equal(b, before[k]) for k, b in matcher.net.buffers.items())


# --- the step size ---------------------------------------------------------------------------------------------------


def test_step_size_moves_as_plain_gradient_descent_on_it_to_first_order():
    ctx, matcher = context(), MTT(options(lr_lr=1e-4))
    engine = begin(ctx, matcher, lr=1e-9, momentum=0.0)
    ctx.begin(0)
    (step,) = list(matcher.outer(ctx, 0))
    (draw,) = torch.autograd.grad(step.loss, matcher.step_size.raw)
    slope = float(draw) / 0.1  # d loss / d step size
    engine.iterate(0)
    assert matcher.hints().lr - 0.1 == pytest.approx(-1e-4 * slope, rel=0.02)


@pytest.mark.parametrize(
    ("sign", "least", "wanted"),
    [(1.0, 0.0, 0.1 / 1000), (1.0, 0.03, 0.03), (1.0, 1e-9, 0.1 / 1000), (-1.0, 0.0, 0.1 * 1000)],
)
def test_step_size_stays_positive_and_in_bounds_under_a_huge_gradient(sign, least, wanted, monkeypatch):
    ctx, matcher = context(), MTT(options(lr_least=least))
    engine = begin(ctx, matcher)

    def outer(ctx, it):
        yield dcf.Step(sign * 1e20 * matcher.step_size().sum() + 0 * ctx.param.images(torch.arange(1)).sum())

    monkeypatch.setattr(matcher, "outer", outer)
    for it in range(3):
        engine.iterate(it)
    assert matcher.hints().lr == pytest.approx(wanted, rel=1e-4)


def test_step_size_is_kept_in_checkpoints_and_hints():
    ctx, matcher = context(), MTT(options(lr_lr=1e-2))
    engine = begin(ctx, matcher)
    engine.run(0, 3)
    assert matcher.hints().lr != pytest.approx(0.1)
    other = MTT(options())
    other.load_state_dict(matcher.state_dict())
    assert other.hints().lr == matcher.hints().lr
    fixed = MTT(options(lr_lr=0))
    begin(context(), fixed).run(0, 3)
    assert fixed.hints().lr == pytest.approx(0.1)


# --- what is left out ------------------------------------------------------------------------------------------------


def test_updates_above_the_threshold_are_left_out():
    ctx, matcher = context(), MTT(options(threshold=1e-9))
    engine = begin(ctx, matcher)
    before = [p.detach().clone() for p in engine.watch]
    assert engine.iterate(0).skipped == 1
    assert all(torch.equal(p, b) for p, b in zip(engine.watch, before, strict=True))
    assert MTT(options()).limit == math.inf


def test_diverging_student_ends_the_run_with_advice_and_leaves_the_set():
    ctx, matcher = context(), MTT(options(lr_teacher=1e30))
    engine = begin(ctx, matcher)
    with pytest.raises(dcf.NonFiniteError, match=r"5 iterations in a row(.|\n)*lr_teacher"):
        engine.run(0, 20)
    assert all(bool(p.isfinite().all()) for p in engine.watch)


# --- preparation -----------------------------------------------------------------------------------------------------


def test_preparation_trains_what_is_missing_and_says_so(caplog):
    caplog.set_level("INFO")
    ctx, matcher, told = context(), MTT(options()), []
    ctx.on_report = lambda *facts: told.append(facts)
    assert matcher.preparation(ctx) > 0
    matcher.prepare(ctx)
    assert [(what, done, total) for what, done, total, _ in told] == [("training experts", i, 8) for i in range(1, 9)]
    assert "training 2 of 2 experts for 4 epochs" in caplog.text
    assert matcher.preparation(ctx) == 0
    MTT(options()).prepare(ctx)
    assert len(told) == 8


def test_rehearsal_trains_nothing(tmp_path):
    ctx, matcher = context(), MTT(options())
    matcher.rehearse(ctx)
    assert bool(first_step(ctx, matcher).loss.isfinite())
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_experts_are_shared_by_runs_of_other_seeds_sets_and_steps():
    matchers = [MTT(options()), MTT(options(syn_steps=9, lr_teacher=0.3, unroll="tesla"))]
    folders = [m.expert_set(context(seed=s)).folder for s, m in enumerate(matchers)]
    assert folders[0] == folders[1]


# --- starting from experts --------------------------------------------------------------------------------------------


def test_start_from_experts_needs_learned_labels():
    with pytest.raises(dcf.UsageError, match=r"start=experts(.|\n)*--labels soft"):
        Engine(context(), MTT(options(start="experts")), 0.1, 0.5)


def test_start_from_experts_takes_images_they_know_and_their_opinion():
    data = fake_data(train=12)
    param = filled(SoftLabels(SoftLabelsConfig(form="logits")), data, 3)
    ctx = context(param, data)
    matcher = MTT(options(start="experts", train_epochs=12, lr_expert=0.5))
    begin(ctx, matcher)
    matcher.initialise(ctx)
    images, labels = param.batch(torch.arange(6))
    finals = [matcher.experts.weights(n, 12) for n in range(2)]
    logits = torch.stack([matcher.net(images, w) for w in finals]).detach()
    right = logits.argmax(2) == param.view_class
    assert bool(right[0].all())  # the first expert knows all of these classes
    weight = right[:, :, None].float()
    assert torch.allclose(labels, torch.softmax((logits * weight).sum(0) / weight.sum(0), 1), atol=1e-5)
    real = data.train.images(torch.arange(len(data.train)))
    nearest = torch.cdist(images.detach().flatten(1), real.flatten(1)).argmin(1)
    assert torch.equal(data.train.labels[nearest], param.view_class)
    assert len(nearest.unique()) == 6


def test_class_that_no_expert_knows_is_filled_with_its_own_images(monkeypatch):
    from dcf_mtt import start

    data = fake_data(train=2)
    monkeypatch.setattr(start, "classify", lambda net, w, x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2))
    net = TinyFactory().create(data.spec, 0)
    view_class = torch.tensor([0, 0, 1, 1, 1])
    index = start.images_known_to_experts(net, [{}, {}], data.train, view_class, 0)
    assert torch.equal(data.train.labels[index], view_class)
    assert len(index[:2].unique()) == 2


# --- the idea --------------------------------------------------------------------------------------------------------


def distance_after_training(ctx, matcher, batch, net):
    """Mean loss over experts and start epochs of a plain training on a set."""
    losses = []
    for number in range(2):
        for epoch in range(3):
            start, target = matcher.experts.weights(number, epoch), matcher.experts.weights(number, epoch + 2)
            weights = {k: w.clone().requires_grad_() for k, w in start.items()}
            for _ in range(matcher.config.syn_steps):
                loss = torch.nn.functional.cross_entropy(net(batch.x, weights), batch.y)
                grads = torch.autograd.grad(loss, list(weights.values()))
                moved = zip(weights.items(), grads, strict=True)
                weights = {k: (w - matcher.hints().lr * g).detach().requires_grad_() for (k, w), g in moved}
            losses.append(float(trajectory_loss(weights, start, target).detach()))
    return sum(losses) / len(losses)


def test_training_on_the_matched_images_ends_nearer_to_the_experts():
    data = fake_data(train=20)
    start = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ctx = context(filled(dcf.testing.fakes.Pixels(), data, 2, start), data)
    matcher = MTT(options(lr_lr=0, lr_expert=0.1))
    engine = begin(ctx, matcher, lr=1.0)
    net = TinyFactory().create(data.spec, 1)
    before = distance_after_training(ctx, matcher, dcf.Batch(start, ctx.param.view_class), net)
    engine.run(0, 30)
    images = ctx.param.images(torch.arange(4)).detach()
    after = distance_after_training(ctx, matcher, dcf.Batch(images, ctx.param.view_class), net)
    assert after < 0.9 * min(before, 1.0)


def test_soft_labels_of_the_set_are_taught():
    data = fake_data(classes=3)
    param = filled(SoftLabels(SoftLabelsConfig(form="logits", optimizer="sgd", lr=1.0)), data, 1)
    ctx, matcher = context(param, data), MTT(options())
    engine = begin(ctx, matcher)
    before = param.labels(torch.arange(3)).detach().clone()
    engine.run(0, 3)
    assert not torch.allclose(param.labels(torch.arange(3)), before)
    fixed = filled(SoftPixels(), data, 1)
    begin(context(fixed, data), MTT(options())).run(0, 1)


def test_stand_ins_are_public_for_what_measures():
    assert "StandIns" in dcf_mtt.matcher.__all__


class Paired(dcf.testing.fakes.Pixels):
    """Every image in two versions; all images of a student's step are shown in the same one."""

    @property
    def view_class(self):
        return self.item_class.repeat_interleave(2)

    @property
    def epoch_length(self):
        return len(self.item_class)

    def images(self, index):
        return super().images(index // 2) + (index % 2).view(-1, 1, 1, 1)

    def absorb(self, images, generator=None):
        super().absorb(images[::2], generator)

    def inner_epoch(self, generator, batch):
        order = torch.randperm(self.epoch_length, generator=generator)
        versions = torch.randint(2, (-(-len(order) // batch),), generator=generator)
        return 2 * order + versions.repeat_interleave(batch)[: len(order)]


@pytest.mark.parametrize(("batch", "sizes"), [("all", [4] * 4), (3, [1, 3, 1, 3]), (9, [4] * 4)])
def test_steps_see_what_the_set_says_they_have_in_common(batch, sizes):
    data = fake_data()
    ctx, matcher = context(filled(Paired(), data, 2), data), MTT(options(batch_syn=batch))
    versions = set()
    for it in range(8):
        images = ctx.param.images(torch.arange(8))
        drawn, batches = matcher.drawn(ctx, it)
        seen = [[int((drawn.x[i] == images).flatten(1).all(1).nonzero()) for i in step] for step in batches]
        assert [len(step) for step in seen] == sizes
        assert all(len({view % 2 for view in step}) == 1 for step in seen)
        assert all(len({view // 2 for view in step}) == len(step) for step in seen)
        versions |= {step[0] % 2 for step in seen}
    assert versions == {0, 1}
