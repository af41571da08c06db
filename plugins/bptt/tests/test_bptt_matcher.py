"""The matchers: what is learned and kept, what a program is, one draw for all, which networks, images and classes."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError

import dcf
from dcf.augmenter import Augmenter
from dcf.engine import Engine
from dcf.pixels import Pixels
from dcf.recipes import load_recipe
from dcf.seeding import generator
from dcf.synthetic import SyntheticSet
from dcf.testing import SoftPixels, fake_context, fake_data
from dcf.testing.fakes import filled
from dcf.training import evaluate_accuracy, run_program
from dcf.types import Batch
from dcf_bptt.matcher import BPTT, DD


def dd(**options):
    return DD(DD.Config(**{"batch_real": 8, **options}))


def bptt(**options):
    return BPTT(BPTT.Config(**{"steps": 3, "lr": 0.1, "batch_real": 4, **options}))


def engine(matcher, items=2, lr=0.01, momentum=0.5, classes=2, param=None, **options):
    data = fake_data(classes=classes)
    ctx = fake_context(filled(param or Pixels(), data, items), data, **options)
    return Engine(ctx, matcher, lr, momentum)


def gradient(run):
    """Of one iteration in the images, which stay as they are."""
    found = []
    run.optimizer.step = lambda: found.append([t.grad.clone() for t in run.watch])
    tally = run.iterate(0)
    return tally.read()[0], found[0][0]


# --- options ----------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_released_codes():
    ordered, random = DD.Config(), BPTT.Config()
    assert (ordered.epochs, ordered.batch, ordered.lr, ordered.batch_real, ordered.momentum) == (3, 1, 0.02, 1024, 0)
    assert (ordered.order, ordered.learn_lr, ordered.real, ordered.steps) == ("fixed", "each", "total", "auto")
    assert (random.steps, random.batch, random.lr, random.batch_real, random.momentum) == (150, 32, 0.01, 64, 0.9)
    assert (random.order, random.learn_lr, random.real, random.siamese) == ("random", "no", "per-class", True)
    assert (DD.defaults.optimizer, DD.defaults.lr, DD.defaults.betas) == ("adam", 0.01, (0.5, 0.999))
    assert (DD.defaults.init, DD.defaults.iterations, DD.defaults.decay) == ("noise", 400 * 59, (40 * 59, 0.5))
    assert (BPTT.defaults.optimizer, BPTT.defaults.lr, BPTT.defaults.momentum) == ("sgd", 0.1, 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"order": "random", "learn_lr": "each"},
        {"order": "fixed", "classes": 2},
        {"steps": 0},
        {"keep": 0},
        {"classes": -1},
        {"lr_lr": 0.0},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        BPTT.Config(**options)


def test_a_set_that_its_batches_do_not_divide_is_refused_before_the_run():
    with pytest.raises(dcf.UsageError, match="batch=2 images of every class in each step"):
        engine(dd(batch=2), items=3)
    with pytest.raises(dcf.UsageError, match="steps=2 would never use the last 1"):
        engine(dd(steps=2), items=3)


def test_recipes_name_protocol_clip_and_published_values():
    assert load_recipe("rtp").run["clip"] == load_recipe("lortp").run["clip"] == 2.0
    assert load_recipe("rtp").run["protocol"] == "rtp@1"
    values = {name: [v.accuracy for v in load_recipe(name).published] for name in ("dd", "rtp", "lortp")}
    assert 36.8 in values["dd"]
    assert 66.4 in values["rtp"]
    assert 68.4 in values["lortp"]


# --- number of steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matcher", "items", "steps"),
    [
        (dd(), 4, 12),
        (dd(batch=2), 4, 6),
        (dd(steps=5), 4, 5),
        (bptt(), 4, 3),
        (bptt(steps="auto", epochs=2, batch=3), 4, 4),
    ],
)
def test_length_of_the_training(matcher, items, steps):
    engine(matcher, items=items)
    assert matcher.steps == len(matcher.step_sizes(torch.device("cpu"))) == steps


# --- learned step sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matcher", "count"), [(dd(), 6), (bptt(learn_lr="one"), 1)], ids=["each", "one"])
def test_step_sizes_start_as_told_are_positive_and_move(matcher, count):
    run = engine(matcher, lr=0.05)
    sizes = matcher.sizes
    torch.testing.assert_close(sizes().detach(), torch.full((count,), matcher.config.lr))
    run.run(0, 3)
    assert (sizes() > 0).all()
    assert (sizes() != matcher.config.lr).all()
    assert len(run.groups) == 2
    assert run.groups[1].name == "lrs"


def test_step_sizes_have_the_settings_of_the_run_or_their_own():
    run = engine(dd(halve_every=7), lr=0.25)
    images, sizes = run.optimizer.groups
    assert images.lr == sizes.lr == 0.25
    assert images.optimizer == sizes.optimizer == "adam"
    assert [sizes.lr_at(it) for it in (0, 6, 7, 14)] == [0.25, 0.25, 0.125, 0.0625]
    assert engine(dd(lr_lr=0.5)).optimizer.groups[1].lr == 0.5
    assert engine(dd(halve_every=0)).optimizer.groups[0].lr_at(99999) == 0.01


def test_a_constant_step_size_is_no_parameter():
    matcher = bptt()
    assert len(engine(matcher).groups) == 1
    assert matcher.state_dict() == {}
    assert matcher.hints() == dcf.Hints()


def test_a_learned_single_step_size_is_a_hint():
    matcher = bptt(learn_lr="one", lr=0.2)
    engine(matcher)
    assert matcher.hints().lr == pytest.approx(0.2)
    assert not matcher.hints().ordered


# --- the program ------------------------------------------------------------------------------------------------------


def test_the_file_says_that_the_set_is_a_program(tmp_path):
    matcher = dd(epochs=2)
    run = engine(matcher, items=2)
    run.run(0, 2)
    config = {"data": "digits", "matcher": "dd", "param": "pixels", "augment": "none", "network": "convnet"}
    made = SyntheticSet(run.ctx.param, run.ctx.spec, {**config, "protocol": "dcf-std@1"}, 0, matcher.hints())
    made.save(tmp_path / "set.safetensors")
    hints = dcf.load(tmp_path / "set.safetensors").hints
    assert hints.ordered
    assert hints.program.steps == ((0, 2), (1, 3), (0, 2), (1, 3))
    assert hints.program.lrs == tuple(matcher.sizes().tolist())
    assert hints.program.momentum == 0


def test_the_program_is_the_training_that_was_differentiated():
    """Run by the evaluator's own loop, the program ends at the loss that the matcher saw."""
    matcher = dd(momentum=0.5, real="per-class", batch_real=4)
    run = engine(matcher)
    run.ctx.begin(0)
    task = matcher.task(run.ctx)
    loss, _ = matcher.trained_loss(run.ctx, task, 0)
    program, net = matcher.hints().program, run.ctx.network(0)
    with torch.no_grad():
        images = run.ctx.param.batch(torch.arange(4))
    steps = [torch.tensor(step) for step in program.steps]
    run_program(net, lambda index: Batch(images.x[index], images.y[index]), steps, program.lrs, program.momentum)
    again = torch.nn.functional.cross_entropy(net(task.real.x), task.real.y)
    torch.testing.assert_close(loss.detach(), again.detach(), rtol=1e-4, atol=1e-6)


# --- augmentation -----------------------------------------------------------------------------------------------------


class Brighten(Augmenter):
    """Adds a drawn number to every pixel, and remembers draws and uses."""

    def __init__(self, siamese=True):
        super().__init__()
        self._siamese = siamese
        self.draws, self.uses = [], []

    @property
    def siamese(self):
        return self._siamese

    def draw(self, n, shape, generator, shared):
        values = torch.rand(1 if shared else n, 1, 1, 1, generator=generator)
        self.draws.append((shared, values))
        return values

    def apply(self, batch, values):
        self.uses.append(values)
        return Batch(batch.x + values.to(batch.x), batch.y)


@pytest.mark.parametrize("make", [dd, bptt])
def test_one_draw_is_for_all_steps_and_the_real_images(make):
    augmenter = Brighten()
    run = engine(make(nets=2), augmenter=augmenter)
    run.iterate(0)
    assert [shared for shared, _ in augmenter.draws] == [True]
    assert all(torch.equal(used, augmenter.draws[0][1]) for used in augmenter.uses)
    run.iterate(1)
    assert len(augmenter.draws) == 2
    assert not torch.equal(augmenter.draws[0][1], augmenter.draws[1][1])


def test_one_draw_changes_set_and_real_images_alike():
    """The loss is that of a set and of real images which were brightened before, all by the same number."""
    augmenter, matcher = Brighten(), bptt()
    run = engine(matcher, augmenter=augmenter)
    run.ctx.begin(0)
    loss, _ = matcher.trained_loss(run.ctx, matcher.task(run.ctx), 0)
    (value,) = augmenter.draws[0][1].flatten()
    plain = bptt()
    bare = engine(plain)
    with torch.no_grad():
        next(iter(bare.ctx.param.parameters())).add_(value)
    bare.ctx.begin(0)
    task = plain.task(bare.ctx)
    brighter = type(task)(task.classes, Batch(task.real.x + value, task.real.y), task.alike)
    torch.testing.assert_close(loss, plain.trained_loss(bare.ctx, brighter, 0)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"siamese": False}, {}], ids=["by option", "by the augmenter"])
def test_otherwise_every_image_of_every_step_has_its_own(options):
    augmenter = Brighten(siamese=bool(options))
    run = engine(bptt(batch=1, **options), augmenter=augmenter)
    run.iterate(0)
    assert [(shared, len(values)) for shared, values in augmenter.draws] == [(False, 8), *[(False, 2)] * 3]
    drawn = torch.cat([values.flatten() for _, values in augmenter.draws])
    assert len(drawn.unique()) == len(drawn)
    used = torch.cat([values.flatten() for values in augmenter.uses])
    assert set(used.tolist()) == set(drawn.tolist())


@pytest.mark.parametrize("make", [dd, bptt])
def test_a_training_that_blows_up_moves_nothing_and_ends_the_run(make):
    run = engine(make(nets=2, lr=1e6))
    before = [t.detach().clone() for t in run.watch]
    with pytest.raises(dcf.NonFiniteError, match=r"3 iterations in a row(?s:.*)lower the step size"):
        run.run(0, 3)
    assert all(map(torch.equal, run.watch, before))


# --- images and classes -----------------------------------------------------------------------------------------------


class Watched(Pixels):
    """Remembers what was decoded."""

    def images(self, index):
        self.__dict__.setdefault("seen", []).append(index.tolist())
        return super().images(index)


def test_images_are_decoded_once_and_only_those_that_a_step_takes():
    param = Watched()
    run = engine(bptt(steps=2, batch=1), items=9, param=param)
    run.iterate(0)
    (seen,) = param.seen
    assert len(seen) == len(set(seen)) <= 4
    assert seen == sorted(seen)


def test_an_ordered_training_decodes_the_whole_set_once():
    param = Watched()
    engine(dd(), items=3, param=param).iterate(0)
    assert param.seen == [list(range(6))]


def test_only_drawn_classes_are_trained_and_tested_on():
    run = engine(bptt(classes=2), classes=5)
    _, moved = gradient(run)
    classes = run.matcher.drawn_classes(run.ctx)
    assert len(classes) == 2
    touched = moved.flatten(1).abs().sum(1) > 0
    assert set(run.ctx.param.view_class[touched].tolist()) == set(classes.tolist())
    assert set(run.matcher.real(run.ctx, classes).y.tolist()) == set(classes.tolist())
    run.ctx.begin(1)
    drawn = {tuple(run.matcher.drawn_classes(run.ctx).tolist()) for it in range(12) if run.ctx.begin(it) is None}
    assert len(drawn) > 2


@pytest.mark.parametrize(
    ("options", "counts"), [({"real": "per-class", "batch_real": 3}, [3, 3]), ({"real": "total"}, None)]
)
def test_real_images_of_each_class_or_in_all(options, counts):
    run = engine(bptt(**options))
    batch = run.matcher.real(run.ctx, torch.arange(2))
    assert len(batch.x) == len(batch.y) == (6 if counts else 4)
    assert counts is None or torch.bincount(batch.y).tolist() == counts
    train = run.ctx.data.train
    everything = train.images(torch.arange(len(train)))
    for image, label in zip(batch.x, batch.y, strict=True):
        (found,) = (everything == image).flatten(1).all(1).nonzero().flatten()
        assert train.labels[found] == label


def test_real_images_differ_from_iteration_to_iteration():
    run = engine(dd(batch_real=3))
    batches = [run.matcher.real(run.ctx, torch.arange(2)).x for it in range(3) if run.ctx.begin(it) is None]
    assert not torch.equal(batches[0], batches[1])


# --- networks ---------------------------------------------------------------------------------------------------------


def test_gradients_of_several_networks_are_averaged():
    loss, both = gradient(engine(dd(nets=2)))
    losses, singles = [], []
    for number in range(2):
        run = engine(dd())
        network = run.ctx.network
        run.ctx.network = lambda *_, n=number, network=network: network(n)
        one, grad = gradient(run)
        losses.append(one)
        singles.append(grad)
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert not torch.allclose(singles[0], singles[1])
    torch.testing.assert_close(both, (singles[0] + singles[1]) / 2, rtol=1e-4, atol=1e-7)


def test_every_iteration_has_a_fresh_network():
    run = engine(dd())
    nets = [run.ctx.network(0) for it in range(2) if run.ctx.begin(it) is None]
    assert not torch.equal(nets[0].parameters()[0], nets[1].parameters()[0])


def test_batch_norms_work_and_dropout_is_off():
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5)
            self.classifier = torch.nn.Linear(192, 2)

        def forward(self, x, embed=False):
            return self.classifier(self.drop(self.norm(x)).flatten(1))

    class Factory(dcf.NetworkFactory):
        def build(self, spec):
            return Normed()

    found = [gradient(engine(dd(unroll=mode), networks=Factory())) for mode in ("adjoint", "full")]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_soft_labels_are_trained_on():
    losses = [gradient(engine(dd(), param=param))[0] for param in (Pixels(), SoftPixels())]
    assert losses[0] != losses[1]


# --- the idea ---------------------------------------------------------------------------------------------------------


def accuracy_of(run, program):
    """Mean over networks that the run never saw, trained by a program."""
    found = []
    with torch.no_grad():
        images = run.ctx.param.batch(torch.arange(len(run.ctx.param.view_class)))
    steps = [torch.tensor(step) for step in program.steps]
    for number in range(5):
        net = run.ctx.networks.create(run.ctx.spec, 77, number)
        run_program(net, lambda i: Batch(images.x[i], images.y[i]), steps, program.lrs, program.momentum)
        found.append(evaluate_accuracy(net, run.ctx.data.test).value)
    return sum(found) / len(found)


@pytest.mark.slow
def test_noise_becomes_a_program_that_teaches_networks_it_never_saw():
    data, matcher = fake_data(classes=4, train=12, test=12), dd(lr=0.3, batch_real=24, epochs=4)
    noise = torch.randn(4, *data.spec.shape, generator=generator(1, "noise"))
    run = Engine(fake_context(filled(Pixels(), data, 1, noise), data), matcher, lr=0.1, momentum=0.5)
    before = accuracy_of(run, matcher.hints().program)
    run.run(0, 60)
    after = accuracy_of(run, matcher.hints().program)
    assert before < 0.5
    assert after > before + 0.3


@pytest.mark.slow
def test_learning_needs_the_way_back_through_training():
    """With the weights of every step held constant the gradient points elsewhere: the real loss falls less."""
    losses = {}
    for mode in ("adjoint", "tesla"):
        data = fake_data(classes=4, train=12)
        noise = torch.randn(4, *data.spec.shape, generator=generator(1, "noise"))
        matcher = dd(lr=0.5, batch_real=24, epochs=8, unroll=mode)
        run = Engine(fake_context(filled(Pixels(), data, 1, noise), data), matcher, lr=0.03, momentum=0.5)
        found = []
        run.run(0, 40, on_iteration=lambda progress, found=found: found.append(progress.loss))
        losses[mode] = sum(found[-10:])
    assert losses["adjoint"] < losses["tesla"]


def test_a_run_goes_on_from_a_checkpoint_with_its_step_sizes():
    first = engine(dd())
    first.run(0, 2)
    state = copy.deepcopy(first.state_dict())
    second = engine(dd())
    second.prepare()
    second.load_state_dict(state)
    assert torch.equal(second.matcher.sizes(), first.matcher.sizes())
    first.run(2, 3)
    second.run(2, 3)
    assert torch.equal(second.matcher.sizes(), first.matcher.sizes())
