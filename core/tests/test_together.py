"""Networks that are trained together come to what each comes to alone."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcf.augmenter import Augmenter
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.schedule import Schedule
from dcf.seeding import generator
from dcf.testing import fake_data, fake_spec
from dcf.together import Learner, accuracies_each, accuracies_together, best_way, train_each, train_together
from dcf.training import evaluate_accuracy, random_augmentation, shuffled, train
from dcf.types import Batch

SPEC = fake_spec(classes=3)
N = 10


class Brighter(Augmenter):
    """Adds to every image a value of its own."""

    def draw(self, n, shape, generator, shared=False):
        return torch.rand(n, generator=generator)[:, None, None, None]

    def apply(self, batch, draw):
        return Batch(batch.x + draw, batch.y)


def learner(number, soft=False, augmented=True, size=N, device="cpu", **options):
    """A network, images, an order and augmentation that are those of a number alone."""
    net = ConvNetFactory(ConvNetConfig(width=8, depth=2, **options)).create(SPEC, 0, "net", number, device=device)
    x = torch.randn(size, *SPEC.shape, generator=generator(0, "images", number))
    y = torch.randint(3, (size,), generator=generator(0, "labels", number))
    x, y = x.to(device), (F.one_hot(y, 3) * 0.7 + 0.1 if soft else y).to(device)
    draws = generator(0, "draws", number)
    augmentation = random_augmentation(Brighter() if augmented else None, SPEC.shape, draws)
    order = shuffled(size, generator(0, "order", number), device)
    return Learner(net, lambda i: Batch(x[i], y[i]), order, augmentation)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {"momentum": 0.9, "weight_decay": 0.01},
        {"schedule": Schedule.step_restart(0.05, 2), "momentum": 0.9},
        {"schedule": Schedule.cosine(0.01, 2), "optimizer": "adam", "momentum": 0.5, "batch": 3, "norm": "none"},
        {"augmented": False, "batch": 256},
    ],
    ids=str,
)
def test_each_is_trained_as_if_it_were_alone(how, soft):
    how = {"schedule": Schedule.constant(0.05, 3), "batch": 4, "tally": True} | how
    augmented, schedule, norm = how.pop("augmented", True), how.pop("schedule"), how.pop("norm", "instance")
    together, alone = ([learner(n, soft, augmented, norm=norm) for n in range(3)] for _ in range(2))
    found = train_together(together, schedule, **how)
    for one, own, result in zip(together, alone, found, strict=True):
        before = own.state.parameters()[0].detach().clone()
        wanted = train(own.state, own.fetch, own.order, schedule, augmentation=own.augmentation, **how)
        assert (result.steps, result.images_seen) == (wanted.steps, wanted.images_seen)
        assert float(result.loss) == pytest.approx(float(wanted.loss), rel=1e-4)
        assert float(result.accuracy) == pytest.approx(float(wanted.accuracy))
        assert not torch.equal(own.state.parameters()[0], before), "nothing was learned"
        for a, b in zip(one.state.parameters(), own.state.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
            assert a.requires_grad
            assert a.grad is None


def test_without_a_tally_nothing_is_counted():
    (one,) = train_together([learner(0)], Schedule.constant(0.1, 1))
    assert (one.loss, one.accuracy, one.images_seen) == (None, None, N)


def test_one_that_diverges_leaves_the_others_alone():
    def poisoned(own):
        return own._replace(fetch=lambda i: Batch(own.fetch(i).x * math.nan, own.fetch(i).y))

    bad, good, alone = poisoned(learner(0)), learner(1), learner(1)
    found = train_together([bad, good], Schedule.constant(0.05, 2), tally=True)
    wanted = train(alone.state, alone.fetch, alone.order, Schedule.constant(0.05, 2), augmentation=alone.augmentation)
    assert wanted.steps == found[1].steps
    assert [bool(one.loss.isfinite()) for one in found] == [False, True]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(
        good.state.parameters(), alone.state.parameters(), strict=True
    ))  # fmt: skip


def test_each_is_tested_as_if_it_were_alone():
    split = fake_data(classes=3, test=7).test
    states = [learner(n).state for n in range(3)]
    states[0].module.eval()
    found = accuracies_together(states, split, batch=4)
    assert found == [evaluate_accuracy(state, split, batch=4) for state in states]
    assert len({one.correct for one in found}) > 1, "networks that answer alike show nothing"
    assert not states[0].module.training


def test_orders_of_different_lengths_are_no_group():
    with pytest.raises(ValueError, match="zip"):
        train_together([learner(0), learner(1, size=N + 5)], Schedule.constant(0.1, 1), batch=4)


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_they_are_stacked_on_a_gpu_where_a_step_of_one_is_too_little_for_it():
    net = ConvNetFactory().create(fake_spec(10, (3, 32, 32)), 0)
    assert best_way(net, (3, 32, 32), 100, CUDA) == "stacked"
    assert best_way(net, (3, 32, 32), 256, CUDA) == "alone"


@pytest.mark.parametrize(
    ("shape", "images", "way"),
    [((1, 8, 8), 3, "alone"), ((1, 8, 8), 10, "beside"), ((3, 32, 32), 30, "beside"), ((3, 32, 32), 100, "alone")],
)
def test_they_are_side_by_side_on_a_cpu_where_a_step_keeps_few_cores_busy(shape, images, way):
    net = ConvNetFactory().create(fake_spec(10, shape), 0)
    assert best_way(net, shape, images, CPU) == way


def test_networks_with_state_or_random_layers():
    assert best_way(learner(0).state, SPEC.shape, 4, CUDA) == "stacked"
    assert best_way(learner(0, norm="batch").state, SPEC.shape, 4, CUDA) == "alone"
    assert best_way(learner(0).state, SPEC.shape, 20_000, CPU) == "beside"
    assert best_way(learner(0, norm="batch").state, SPEC.shape, 20_000, CPU) == "beside"
    random = learner(0).state
    random.module.add_module("drop", nn.Dropout())
    assert best_way(random, SPEC.shape, 4, CUDA) == best_way(random, SPEC.shape, 20_000, CPU) == "alone"


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_side_by_side_each_is_trained_and_tested_to_the_bit_as_on_one_core(norm, set_threads):
    set_threads(1)
    schedule, split = Schedule.constant(0.05, 3), fake_data(classes=3, test=7).test
    beside, alone = ([learner(n, norm=norm) for n in range(3)] for _ in range(2))
    found = train_each(beside, "beside", schedule, batch=4, momentum=0.9, tally=True)
    accuracies = accuracies_each([one.state for one in beside], "beside", split)
    for one, own, result, accuracy in zip(beside, alone, found, accuracies, strict=True):
        wanted = train(
            own.state, own.fetch, own.order, schedule, augmentation=own.augmentation, batch=4, momentum=0.9, tally=True
        )
        assert (result.loss, result.accuracy) == (wanted.loss, wanted.accuracy)
        assert all(map(torch.equal, one.state.parameters(), own.state.parameters()))
        assert accuracy == evaluate_accuracy(own.state, split)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_each_is_trained_as_if_it_were_alone():
    together, alone = ([learner(n, augmented=False, device="cuda") for n in range(3)] for _ in range(2))
    schedule = Schedule.constant(0.05, 3)
    train_together(together, schedule, batch=4)
    for one, own in zip(together, alone, strict=True):
        train(own.state, own.fetch, own.order, schedule, batch=4)
        for a, b in zip(one.state.parameters(), own.state.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-2, atol=1e-3)
