"""Training a network on a set of images, and testing it.

Everything that differs between the loops of the literature is an argument: the learning rate of every epoch
and the epochs that restart the optimiser (`Schedule`), the order in which an epoch visits the images, and the
augmentation of every optimiser step. So one loop serves the inner training of matching methods, the
evaluation protocols, and the replay of a recorded run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf import compiled
from dcf.augmenter import Augmenter
from dcf.errors import UsageError
from dcf.networks.base import NetworkState
from dcf.schedule import Schedule
from dcf.sending import send
from dcf.side_by_side import go_on
from dcf.types import Batch

if TYPE_CHECKING:
    from dcf.data.real import Split

__all__ = [
    "BLOWN_UP",
    "Accuracy",
    "Augmentation",
    "Fetch",
    "Objective",
    "Order",
    "Schedule",
    "Trained",
    "cross_entropy",
    "evaluate_accuracy",
    "hard_labels",
    "optimizer_for",
    "random_augmentation",
    "run_program",
    "sgd",
    "sgd_epochs",
    "shuffled",
    "train",
]

#: Cross-entropy in nats from which a training has blown up: guessing among a million classes costs 14.
BLOWN_UP: Final = 1000.0

#: From `(n,)` indices to the batch of those images, detached and on the network's device.
Fetch: TypeAlias = "Callable[[Tensor], Batch]"
#: From the number of an epoch to the `(N,)` indices it visits, in order.
Order: TypeAlias = "Callable[[int], Tensor]"
#: From the logits `(N, K)` of a mini-batch, and that batch as the network saw it, to the loss, averaged over the batch.
Objective: TypeAlias = "Callable[[Tensor, Batch], Tensor]"


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats, averaged over the batch.

    Args:
        logits: `(N, K)`.
        y: `(N,)` class indices (int64) or `(N, K)` class probabilities.

    Returns:
        Scalar.
    """
    return F.cross_entropy(logits, y)


def hard_labels(y: Tensor) -> Tensor:
    """`(N,)` class indices of labels that are indices already or `(N, K)` probabilities."""
    return y.argmax(dim=1) if y.ndim == 2 else y


@dataclass(frozen=True)
class Augmentation:
    """An augmenter and where its draws come from, so that recorded draws can be replayed.

    Args:
        augmenter: What applies a draw.
        draws: From the number of the optimiser step and the number of images to a draw for that many images.
        classes: Number of classes, which an augmenter that mixes labels needs where they are class indices.
    """

    augmenter: Augmenter
    draws: Callable[[int, int], Any]
    classes: int = 0

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Augment the mini-batch of optimiser step number `step`.

        Raises:
            UsageError: When labels are to be mixed, are class indices, and nobody said how many classes there are.
        """
        if self.augmenter.mixes_labels and batch.y.ndim == 1:
            if self.classes < 1:
                raise UsageError("this augmentation mixes labels: expected the number of classes beside it, got none")
            batch = Batch(batch.x, F.one_hot(batch.y, self.classes).to(batch.x.dtype))
        return self.augmenter.apply(batch, self.draws(step, len(batch.x)))


def random_augmentation(
    augmenter: Augmenter | None, shape: tuple[int, int, int], generator: torch.Generator, classes: int = 0
) -> Augmentation | None:
    """Fresh values for every image of every step, or None where nothing is to be done.

    Args:
        augmenter: What to apply.
        shape: `(C, H, W)` of one image.
        generator: CPU generator, used by one draw a step.
        classes: Number of classes; only augmenters that mix labels ask for it.
    """
    if augmenter is None or augmenter.is_identity:
        return None
    return Augmentation(augmenter, lambda _step, n: augmenter.draw(n, shape, generator, shared=False), classes)


def shuffled(n: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Order:
    """An order source: a fresh permutation of `0..n-1` each epoch, drawn on the CPU."""
    return lambda _epoch: send(torch.randperm(n, generator=generator), device)


class Trained(NamedTuple):
    """What a training did.

    Attributes:
        steps: Optimiser steps.
        images_seen: Images that went through the network, repetitions counted.
        accuracy: Scalar in [0, 1] over the last epoch, each batch counted before its step; None unless tallied.
        loss: Scalar, mean over the images of the last epoch; not finite once training diverged; None unless
            tallied.
    """

    steps: int
    images_seen: int
    accuracy: Tensor | None = None
    loss: Tensor | None = None


class _Tally:
    """Correct answers and loss of one epoch, summed on the device."""

    def __init__(self) -> None:
        self.correct: Tensor | None = None
        self.loss: Tensor | None = None
        self.count = 0

    def add(self, logits: Tensor, y: Tensor, loss: Tensor) -> None:
        hits = (logits.detach().argmax(dim=1) == hard_labels(y)).sum()
        total = loss.detach() * len(y)
        self.correct = hits if self.correct is None else self.correct + hits
        self.loss = total if self.loss is None else self.loss + total
        self.count += len(y)

    def mean(self, total: Tensor | None) -> Tensor | None:
        return None if total is None else total / self.count


@torch.enable_grad()
def train(
    state: NetworkState,
    fetch: Fetch,
    order: Order,
    schedule: Schedule,
    *,
    batch: int = 256,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    augmentation: Augmentation | None = None,
    tally: bool = False,
    optimizer: Literal["sgd", "adam"] | torch.optim.Optimizer = "sgd",
    after_epoch: Callable[[int], None] = lambda epoch: None,
    objective: Objective | None = None,
) -> Trained:
    """Train a network in place on the cross-entropy, or on an objective that is given, in training mode.

    Uses no global randomness and never waits for the device.

    Args:
        state: The network; its parameters are changed in place, their `.grad` is left None.
        fetch: Images and labels of indices.
        order: Indices that an epoch visits; consecutive runs of `batch` form its mini-batches, the last may be
            short.
        schedule: Learning rates and restarts.
        batch: Images an optimiser step.
        momentum: Of SGD, without dampening: `v <- momentum v + g`, `w <- w - lr v`.
        weight_decay: Added to the gradient as `weight_decay * w`, for all parameters.
        augmentation: Applied to the mini-batch of each step.
        tally: Measure accuracy and loss of the last epoch.
        optimizer: "sgd", or "adam" with `momentum` and 0.999 as its coefficients; or one that goes on from an earlier
            training of this network (see `sgd`), whose momentum and weight decay then hold.
        after_epoch: Called with the number of each epoch, from 0, when it is done; must not change the network.
        objective: What is minimised instead of the cross-entropy.
    """
    state.train()
    params, counted, steps, seen = state.parameters(), _Tally(), 0, 0
    mover = optimizer_for(optimizer, params, momentum, weight_decay)
    for epoch in range(schedule.epochs):
        if epoch in schedule.restarts and isinstance(optimizer, str):
            mover = optimizer_for(optimizer, params, momentum, weight_decay)
        parts = torch.split(order(epoch), batch)
        for number, index in enumerate(parts):
            go_on()
            data = fetch(index)
            if augmentation is not None:
                data = augmentation(data, steps)
            logits, loss = _gradients(state, data, schedule.epochs, objective)
            if tally and epoch == schedule.epochs - 1:
                counted.add(logits, data.y, loss)
            mover.param_groups[0]["lr"] = schedule.lr(epoch, (epoch + number / len(parts)) / schedule.epochs)
            mover.step()
            mover.zero_grad()
            steps, seen = steps + 1, seen + len(index)
        after_epoch(epoch)
    return Trained(steps, seen, counted.mean(counted.correct), counted.mean(counted.loss))


@torch.enable_grad()
def run_program(
    state: NetworkState, fetch: Fetch, steps: Sequence[Tensor], lrs: Sequence[float], momentum: float = 0.0
) -> Trained:
    """Train a network in place by given steps in a given order, each with its own step size.

    Args:
        state: The network, put in training mode.
        fetch: Images and labels of indices.
        steps: `(n,)` indices of each optimiser step.
        lrs: Step size of each.
        momentum: Of SGD: `v <- momentum v + g`, `w <- w - lr v`, as in `dcf.unroll`.
    """
    state.train()
    params, counted, seen = state.parameters(), _Tally(), 0
    mover = optimizer_for("sgd", params, momentum, 0.0)
    for index, lr in zip(steps, lrs, strict=True):
        go_on()
        data = fetch(index)
        logits = state(data.x)
        loss = cross_entropy(logits, data.y)
        counted.add(logits, data.y, loss)
        mover.param_groups[0]["lr"] = lr
        loss.backward(inputs=params)  # type: ignore[no-untyped-call]
        mover.step()
        mover.zero_grad()
        seen += len(index)
    return Trained(len(steps), seen, counted.mean(counted.correct), counted.mean(counted.loss))


def sgd(state: NetworkState, momentum: float = 0.0, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """An optimiser for several calls of `train`, which so keep their momentum; the schedules give the step size.

    Args:
        state: The network whose weights it moves.
        momentum: Without dampening.
        weight_decay: Added to the gradient, for all parameters.
    """
    return torch.optim.SGD(state.parameters(), lr=0.0, momentum=momentum, weight_decay=weight_decay)


def _gradients(
    state: NetworkState, data: Batch, calls: int, objective: Objective | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and loss of a batch; its gradient becomes the `.grad` of the parameters."""
    params = state.parameters()
    kernel = compiled.loss_gradients(state, data.x, data.y, calls) if objective is None else None
    if kernel is not None:
        for weight, gradient in zip(params, kernel.gradients, strict=True):
            weight.grad = gradient
        return kernel.logits, kernel.loss
    logits = state(data.x)
    loss = cross_entropy(logits, data.y) if objective is None else objective(logits, data)
    loss.backward(inputs=params)  # type: ignore[no-untyped-call]
    return logits, loss


def optimizer_for(
    wanted: str | torch.optim.Optimizer, params: list[Tensor], momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of a name, as `train` takes it, or one that is there already; its step size is set at each step."""
    if isinstance(wanted, torch.optim.Optimizer):
        return wanted
    if wanted == "adam":
        return torch.optim.Adam(params, lr=0.0, betas=(momentum, 0.999), weight_decay=weight_decay)
    at_once = params[0].is_cuda or None  # a launch for all weights; torch decides on a CPU
    return torch.optim.SGD(params, lr=0.0, momentum=momentum, weight_decay=weight_decay, foreach=at_once)


def sgd_epochs(
    state: NetworkState,
    data: Batch,
    *,
    lr: float,
    epochs: int,
    generator: torch.Generator,
    batch: int = 256,
    augmenter: Augmenter | None = None,
) -> Trained:
    """The inner training of matching methods: plain SGD over a detached copy of a set, shuffled each epoch.

    Source: Zhao et al., ICLR 2021, algorithm 1 (network update).

    Args:
        state: Trained in place, in training mode.
        data: `x` of `(N, C, H, W)` and `y` of `(N,)` or `(N, K)`; detached here.
        lr: Constant step size; no momentum, no weight decay.
        epochs: Passes over the set.
        generator: CPU generator of the orders and the augmentation.
        batch: Images an optimiser step.
        augmenter: Applied with a draw of its own to every image of every step.
    """
    x, y = data.x.detach(), data.y.detach()
    return train(
        state,
        lambda index: Batch(x[index], y[index]),
        shuffled(len(x), generator, x.device),
        Schedule.constant(lr, epochs),
        batch=batch,
        augmentation=random_augmentation(augmenter, (x.shape[1], x.shape[2], x.shape[3]), generator),
    )


@dataclass(frozen=True)
class Accuracy:
    """Correct answers on a split.

    Attributes:
        correct: `(K,)` correct images of each class.
        count: `(K,)` images of each class.
    """

    correct: tuple[int, ...]
    count: tuple[int, ...]

    @property
    def value(self) -> float:
        """Fraction of all images, in [0, 1]; every image weighs the same."""
        return sum(self.correct) / max(1, sum(self.count))

    @property
    def per_class(self) -> list[float | None]:
        """Fraction for each class, in [0, 1]; None for a class without images."""
        return [c / n if n else None for c, n in zip(self.correct, self.count, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"accuracy": self.value, "per_class": self.per_class}


@torch.no_grad()
def evaluate_accuracy(state: NetworkState, split: Split, batch: int = 256) -> Accuracy:
    """Test a network in evaluation mode, in one pass over a split; the mode of every layer is put back.

    Where `dcf.compiled` allows and it pays, in a compiled kernel with bf16 convolutions.

    Args:
        state: The network; not changed.
        split: Images and their class indices.
        batch: Images a forward pass; does not change the result beyond rounding.
    """
    totals: Tensor | None = None
    size, calls = min(batch, len(split)), -(-len(split) // batch)
    device = next(iter(state.params.values())).device
    with _eval_mode(state):
        for images in split.batches(batch):
            go_on()
            x, y = images.x.to(device), images.y.to(device)
            logits = compiled.classify(state, x, size, calls)
            logits = state(x) if logits is None else logits
            if totals is None:
                totals = torch.zeros(2, logits.shape[1], dtype=torch.long, device=device)
            hits = logits.argmax(dim=1) == y
            totals.index_add_(1, y, torch.stack([hits.long(), torch.ones_like(y)]))
    correct, count = ([], []) if totals is None else totals.tolist()
    return Accuracy(tuple(correct), tuple(count))


@contextmanager
def _eval_mode(state: NetworkState) -> Iterator[None]:
    modes = [(module, module.training) for module in state.module.modules()]
    state.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
