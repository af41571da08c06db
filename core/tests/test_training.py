"""Training loop, schedules and testing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dcf.augmenter import Augmenter, NoAugmentation
from dcf.errors import UsageError
from dcf.networks.base import Network, NetworkState
from dcf.training import (
    Augmentation,
    Schedule,
    cross_entropy,
    evaluate_accuracy,
    hard_labels,
    random_augmentation,
    sgd,
    sgd_epochs,
    shuffled,
    train,
)
from dcf.types import Batch


class Linear(Network):
    """One linear layer on flat images; dropout makes training and evaluation mode differ."""

    def __init__(self, inputs: int = 12, classes: int = 3, dropout: float = 0.0):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(inputs, classes)

    def features(self, x):
        return self.drop(x.flatten(1))


class Shift(Augmenter):
    """Adds one number to each image."""

    def draw(self, n, shape, generator, shared):
        return torch.randn(1 if shared else n, generator=generator)

    def apply(self, batch, values):
        return Batch(batch.x + values.to(batch.x).view(-1, 1, 1, 1), batch.y)


class MixHalves(Augmenter):
    """Every image becomes the mean of itself and the next one, its label likewise."""

    mixes_labels = True

    def draw(self, n, shape, generator, shared):
        return ()

    def apply(self, batch, values):
        return Batch(*((t + t.roll(-1, 0)) / 2 for t in batch))


class Batches:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def batches(self, batch):
        for start in range(0, len(self.y), batch):
            yield Batch(self.x[start : start + batch], self.y[start : start + batch])


def fresh(seed=0, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetworkState(Linear(**kwargs).double())


def images(n=7, seed=1):
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(n, 3, 2, 2, generator=g).double(), torch.arange(n) % 3)


def fetch_from(data):
    return lambda index: Batch(data.x[index], data.y[index])


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.parameters()])


# --- schedules ----------------------------------------


@pytest.mark.parametrize(("epochs", "before", "after"), [(300, 152, 149), (1000, 502, 499), (6, 5, 2), (1, 2, 0)])
def test_step_restart_runs_the_published_epochs(epochs, before, after):
    schedule = Schedule.step_restart(0.01, epochs)
    lrs = [schedule.lr(e, 0.0) for e in range(schedule.epochs)]
    assert schedule.epochs == epochs + 1
    assert lrs == [0.01] * before + [pytest.approx(0.001)] * after
    assert schedule.restarts == (frozenset({before}) if after else frozenset())


def test_step_restart_without_the_extra_epoch_stops_one_earlier():
    assert Schedule.step_restart(0.01, 300, extra_epoch=False).epochs == 300


@pytest.mark.parametrize(("epochs", "lengths"), [(1000, (666, 167, 167)), (3, (2, 0, 1)), (1, (0, 0, 1))])
def test_step_fifth_drops_twice_and_keeps_its_optimiser(epochs, lengths):
    schedule = Schedule.step_fifth(0.01, epochs)
    wanted = [lr for lr, n in zip((0.01, 0.002, 0.0004), lengths, strict=True) for _ in range(n)]
    assert schedule.lrs == pytest.approx(tuple(wanted))
    assert not schedule.restarts


def test_cosine_falls_from_lr_towards_zero_by_step():
    schedule = Schedule.cosine(0.1, 4)
    assert schedule.lr(0, 0.0) == 0.1
    assert schedule.lr(2, 0.5) == pytest.approx(0.05)
    assert schedule.lr(3, 0.99) == pytest.approx(0.05 * (1 + math.cos(0.99 * math.pi)))


# --- the loop against plain numpy ----------------------------------------


def reference_training(state, data, orders, lrs, restarts, batch, momentum, decay):
    """Softmax regression by hand: SGD with momentum in numpy, one learning rate for each step."""
    w, b = (p.detach().numpy().copy() for p in state.parameters())
    x, y = data.x.flatten(1).numpy(), np.eye(3)[data.y.numpy()]
    vw, vb, step, rates = np.zeros_like(w), np.zeros_like(b), 0, iter(lrs)
    for epoch, order in enumerate(orders):
        if epoch in restarts:
            vw, vb = np.zeros_like(w), np.zeros_like(b)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            z = x[part] @ w.T + b
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            delta = (p - y[part]) / len(part)
            vw = momentum * vw + delta.T @ x[part] + decay * w
            vb = momentum * vb + delta.sum(0) + decay * b
            lr = next(rates)
            w, b, step = w - lr * vw, b - lr * vb, step + 1
    return np.concatenate([w.ravel(), b])


def test_loop_equals_sgd_with_a_restart_that_loses_the_momentum():
    data, orders = images(), [np.random.default_rng(e).permutation(7) for e in range(7)]
    want = reference_training(fresh(), data, orders, [0.1] * 15 + [0.01] * 6, {5}, 3, 0.9, 5e-4)
    kept = reference_training(fresh(), data, orders, [0.1] * 15 + [0.01] * 6, set(), 3, 0.9, 5e-4)
    state = fresh()
    done = train(
        state, fetch_from(data), lambda e: torch.from_numpy(orders[e]), Schedule.step_restart(0.1, 6),
        batch=3, momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    np.testing.assert_allclose(weights(state).numpy(), want, rtol=1e-10)
    assert np.abs(weights(state).numpy() - kept).max() > 1e-4
    assert (done.steps, done.images_seen) == (21, 49)
    assert done.accuracy is None


def test_cosine_takes_its_rate_anew_at_each_step():
    data, orders = images(), [np.arange(7)] * 2
    rates = [0.1 * 0.5 * (1 + math.cos(math.pi * t / 6)) for t in range(6)]
    want = reference_training(fresh(), data, orders, rates, set(), 3, 0.0, 0.0)
    state = fresh()
    train(state, fetch_from(data), lambda _: torch.arange(7), Schedule.cosine(0.1, 2), batch=3)
    np.testing.assert_allclose(weights(state).numpy(), want, rtol=1e-10)


def test_inner_training_is_plain_sgd_over_shuffled_epochs():
    data = images()
    draws = torch.Generator().manual_seed(5)
    orders = [torch.randperm(7, generator=draws).numpy() for _ in range(3)]
    want = reference_training(fresh(), data, orders, [0.05] * 6, set(), 4, 0.0, 0.0)
    state = fresh()
    sgd_epochs(state, data, lr=0.05, epochs=3, generator=torch.Generator().manual_seed(5), batch=4)
    np.testing.assert_allclose(weights(state).numpy(), want, rtol=1e-10)


def test_inner_training_leaves_no_gradient_anywhere():
    state, data = fresh(), images()
    x = data.x.clone().requires_grad_()
    sgd_epochs(state, Batch(x * 1, data.y), lr=0.1, epochs=1, generator=torch.Generator())
    assert x.grad is None
    assert all(p.grad is None for p in state.parameters())


def test_training_works_where_gradients_are_off():
    state, before = fresh(), weights(fresh())
    with torch.no_grad():
        sgd_epochs(state, images(), lr=0.1, epochs=1, generator=torch.Generator())
    assert not torch.equal(weights(state), before)


def test_training_is_deterministic_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    results = []
    for _ in range(2):
        state = fresh()
        sgd_epochs(
            state, images(), lr=0.1, epochs=3, generator=torch.Generator().manual_seed(3), batch=2, augmenter=Shift()
        )
        results.append(weights(state))
    assert torch.equal(*results)
    assert torch.equal(before, torch.random.get_rng_state())


def test_tally_counts_the_last_epoch_before_each_step():
    data, state, twin = images(6), fresh(), fresh()
    done = train(state, fetch_from(data), lambda _: torch.arange(6), Schedule.constant(0.5, 3), batch=2, tally=True)
    hits, losses = 0, []
    for epoch in range(3):
        for start in range(0, 6, 2):
            part = torch.arange(start, start + 2)
            if epoch == 2:
                logits = twin(data.x[part]).detach()
                hits += int((logits.argmax(1) == data.y[part]).sum())
                losses.append(float(cross_entropy(logits, data.y[part])))
            train(twin, fetch_from(data), lambda _, p=part: p, Schedule.constant(0.5, 1))
    assert float(done.accuracy) == pytest.approx(hits / 6)
    assert float(done.loss) == pytest.approx(np.mean(losses))


def test_diverged_training_shows_in_the_loss():
    data = images()
    broken = Batch(data.x * math.inf, data.y)
    done = train(fresh(), fetch_from(broken), lambda _: torch.arange(7), Schedule.constant(1.0, 2), tally=True)
    assert not math.isfinite(float(done.loss))


# --- augmentation ----------------------------------------


def test_recorded_draws_are_replayed_step_by_step():
    data, recorded = images(4), [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])]
    shifts = torch.cat(recorded).double().view(-1, 1, 1, 1)
    plain, replayed = fresh(), fresh()
    train(
        plain, fetch_from(Batch(data.x + shifts, data.y)), lambda _: torch.arange(4),
        Schedule.constant(0.1, 1), batch=2,
    )  # fmt: skip
    train(
        replayed, fetch_from(data), lambda _: torch.arange(4), Schedule.constant(0.1, 1), batch=2,
        augmentation=Augmentation(Shift(), lambda step, n: recorded[step]),
    )  # fmt: skip
    assert torch.equal(weights(plain), weights(replayed))


def test_each_image_of_each_step_gets_its_own_draw():
    augmentation = random_augmentation(Shift(), (3, 2, 2), torch.Generator().manual_seed(0))
    zeros = Batch(torch.zeros(5, 3, 2, 2), torch.zeros(5, dtype=torch.long))
    first, second = (augmentation(zeros, step).x[:, 0, 0, 0] for step in range(2))
    assert len({*first.tolist(), *second.tolist()}) == 10
    assert float(zeros.x.abs().sum()) == 0


def test_identity_costs_no_draw():
    assert random_augmentation(NoAugmentation(), (3, 2, 2), torch.Generator()) is None
    assert random_augmentation(None, (3, 2, 2), torch.Generator()) is None


def test_shuffled_visits_everything_in_a_new_order_each_epoch():
    order = shuffled(50, torch.Generator().manual_seed(0))
    first, second = order(0), order(1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert not torch.equal(first, second)


# --- labels and loss ----------------------------------------


def test_cross_entropy_of_probabilities_is_their_mean_over_the_batch():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    soft = torch.tensor([[0.2, 0.3, 0.5]] * 4).double()
    want = -(soft * torch.log_softmax(logits, 1)).sum() / 4
    assert torch.allclose(cross_entropy(logits, soft), want)


def test_one_hot_probabilities_train_like_their_classes():
    data, hard, soft = images(), fresh(), fresh()
    one_hot = torch.eye(3).double()[data.y]
    for state, y in ((hard, data.y), (soft, one_hot)):
        sgd_epochs(state, Batch(data.x, y), lr=0.1, epochs=2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(weights(hard), weights(soft), rtol=1e-10)
    assert torch.equal(hard_labels(one_hot), data.y)


# --- testing ----------------------------------------


def test_accuracy_counts_each_image_once_for_any_batch():
    state, data = fresh(), images(10)
    hits = (state(data.x).argmax(1) == data.y).tolist()
    results = [evaluate_accuracy(state, Batches(*data), batch) for batch in (1, 3, 10)]
    assert results[0] == results[1] == results[2]
    assert results[0].value == sum(hits) / 10
    assert results[0].correct == tuple(sum(h for h, y in zip(hits, data.y, strict=True) if y == c) for c in range(3))
    assert results[0].count == (4, 3, 3)


def test_a_class_without_test_images_has_no_accuracy():
    data = images(2)
    accuracy = evaluate_accuracy(fresh(), Batches(*data))
    assert accuracy.per_class[2] is None
    assert accuracy.to_json()["per_class"][2] is None


def test_testing_is_in_evaluation_mode_and_puts_every_mode_back():
    state, data = fresh(dropout=0.9), images(200)
    state.train()
    state.module.classifier.eval()
    first, second = (evaluate_accuracy(state, Batches(*data)) for _ in range(2))
    assert first == second
    assert state.module.training
    assert state.module.drop.training
    assert not state.module.classifier.training


def test_an_objective_stands_in_for_the_cross_entropy_and_sees_the_augmented_batch():
    data, seen = images(), []

    def doubled(logits, batch):
        seen.append(batch.x)
        return 2 * cross_entropy(logits, batch.y)

    def run(lr, objective, shift):
        net, draws = fresh(), torch.Generator().manual_seed(2)
        augmentation = random_augmentation(shift, (3, 2, 2), draws)
        order = shuffled(7, torch.Generator().manual_seed(1))
        train(
            net,
            fetch_from(data),
            order,
            Schedule.constant(lr, 2),
            batch=4,
            augmentation=augmentation,
            objective=objective,
        )
        return weights(net)

    assert all(map(torch.allclose, run(0.1, None, Shift()), run(0.05, doubled, Shift())))
    assert len(seen) == 4
    assert not any(torch.isin(x, data.x).any() for x in seen)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_the_gpu_equals_the_cpu():
    data, states = images(), [fresh(), fresh()]
    for state, device in zip(states, ("cpu", "cuda"), strict=True):
        state.params = {k: v.detach().to(device).requires_grad_() for k, v in state.params.items()}
        moved = Batch(data.x.to(device), data.y.to(device))
        sgd_epochs(state, moved, lr=0.1, epochs=3, generator=torch.Generator().manual_seed(0), augmenter=Shift())
    assert torch.allclose(weights(states[0]), weights(states[1]).cpu(), rtol=1e-9)


# --- one optimiser for several trainings, and mixed labels ---


def test_two_trainings_with_one_optimiser_are_one_training():
    data, order = images(), lambda _: torch.arange(7)
    once, twice = fresh(), fresh()
    train(once, fetch_from(data), order, Schedule.constant(0.1, 4), batch=3, momentum=0.9, weight_decay=0.01)
    optimizer = sgd(twice, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        train(twice, fetch_from(data), order, Schedule.constant(0.1, 2), batch=3, optimizer=optimizer)
    assert torch.equal(weights(once), weights(twice))


def test_two_trainings_with_optimisers_of_their_own_lose_momentum():
    data, order = images(), lambda _: torch.arange(7)
    once, twice = fresh(), fresh()
    train(once, fetch_from(data), order, Schedule.constant(0.1, 4), momentum=0.9)
    for _ in range(2):
        train(twice, fetch_from(data), order, Schedule.constant(0.1, 2), momentum=0.9)
    assert not torch.equal(weights(once), weights(twice))


@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_mixed_with_the_images(soft):
    state, data = fresh(), images(4)
    hot = torch.nn.functional.one_hot(data.y, 3).double()
    given = Batch(data.x, hot) if soft else data
    augmentation = random_augmentation(MixHalves(), (3, 2, 2), torch.Generator(), classes=0 if soft else 3)
    mixed = augmentation(given, 0)
    assert torch.equal(mixed.y, (hot + hot.roll(-1, 0)) / 2)
    done = train(
        state, fetch_from(given), lambda _: torch.arange(4), Schedule.constant(0.1, 1), augmentation=augmentation,
        tally=True,
    )  # fmt: skip
    expected = -(mixed.y * fresh()(mixed.x).log_softmax(1)).sum(1).mean()
    assert done.loss == pytest.approx(float(expected.detach()))


def test_mixing_class_indices_takes_their_number():
    augmentation = random_augmentation(MixHalves(), (3, 2, 2), torch.Generator())
    with pytest.raises(UsageError, match="expected the number of classes"):
        augmentation(images(), 0)
