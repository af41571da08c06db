"""Training and testing several networks of one architecture at once, each on images and with draws of its own.

A GPU is done with a small network's step long before the next one is launched, so N networks one after the other take
N times as long as one. There they are stacked: they share every operation but the choice and the augmentation of their
images. Of a small step on a CPU, cores wait for one another; there they are trained side by side, a core for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from dcf import compiled
from dcf.networks.base import NetworkState
from dcf.schedule import Schedule
from dcf.side_by_side import side_by_side
from dcf.training import (
    Accuracy,
    Augmentation,
    Fetch,
    Order,
    Trained,
    cross_entropy,
    evaluate_accuracy,
    hard_labels,
    optimizer_for,
    train,
)
from dcf.types import Batch

if TYPE_CHECKING:
    from dcf.data.real import Split

__all__ = ["How", "Learner", "accuracies_each", "accuracies_together", "best_way", "train_each", "train_together"]

T = TypeVar("T")

#: Networks are trained "stacked" in common operations, "beside" one another on a core each, or "alone" on all of them.
How: TypeAlias = Literal["stacked", "beside", "alone"]

#: Multiplications of a step from which and up to which networks are trained side by side. With fewer, Python takes the
#: time, and threads wait for it; with more, all cores are busy with one network. Measured with two cores.
_LEAST, _MOST = 1e8, 5e9
#: Forward passes that a gradient costs as much as.
_PASSES: Final = 3


class Learner(NamedTuple):
    """A network, and what it is trained on.

    Attributes:
        state: The network.
        fetch: Images and labels of indices.
        order: Indices that an epoch visits, as many as for each of the others.
        augmentation: Applied to the mini-batch of each step.
    """

    state: NetworkState
    fetch: Fetch
    order: Order
    augmentation: Augmentation | None = None


def best_way(state: NetworkState, shape: tuple[int, int, int], batch: int, device: torch.device) -> How:
    """How several networks like this one are best trained.

    On a CPU it does not depend on the number of cores, as rounding does.

    Args:
        state: One of them. Networks that draw random numbers are trained alone, as are, on a GPU, those with state of
            their own, such as batch norms.
        shape: `(C, H, W)` of an image.
        batch: Images a step.
        device: Where they are trained.
    """
    if any(isinstance(m, nn.modules.dropout._DropoutNd) for m in state.module.modules()):
        return "alone"
    if device.type == "cpu":
        work = _PASSES * batch * compiled.multiplications(state, shape)
        return "beside" if _LEAST <= work <= _MOST else "alone"
    stacked = device.type == "cuda" and not state.buffers and not compiled.busy(state, shape, batch)
    return "stacked" if stacked else "alone"


def train_each(learners: Sequence[Learner], how: How, schedule: Schedule, **settings: Any) -> list[Trained]:
    """Train networks in place in the way that was chosen.

    Args:
        learners: Networks of one architecture.
        how: See `best_way`.
        schedule: Learning rates and restarts, of all of them.
        **settings: Further ones, as `train_together` takes them.
    """
    if how == "stacked":
        return train_together(learners, schedule, **settings)
    tasks = [
        partial(train, one.state, one.fetch, one.order, schedule, augmentation=one.augmentation, **settings)
        for one in learners
    ]
    return _results(tasks, how)


def accuracies_each(states: Sequence[NetworkState], how: How, split: Split) -> list[Accuracy]:
    """Test networks of one architecture in the way that was chosen, each in one pass over a split."""
    if how == "stacked":
        return accuracies_together(states, split)
    tasks = [partial(evaluate_accuracy, state, split) for state in states]
    return _results(tasks, how)


@torch.enable_grad()
def train_together(
    learners: Sequence[Learner],
    schedule: Schedule,
    *,
    batch: int = 256,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimizer: Literal["sgd", "adam"] = "sgd",
    tally: bool = False,
) -> list[Trained]:
    """What `dcf.training.train` does with each of several networks, up to rounding.

    Args:
        learners: Networks of one architecture without buffers; their parameters are changed in place.
        schedule: Learning rates and restarts, of all of them.
        batch: Images an optimiser step.
        momentum: As in `train`.
        weight_decay: As in `train`.
        optimizer: As in `train`.
        tally: Measure accuracy and loss of the last epoch.
    """
    net = learners[0].state
    net.train()
    weights = _stacked([learner.state for learner in learners])
    leaves, counted, steps, seen = list(weights.values()), _Tally(), 0, 0
    mover = optimizer_for(optimizer, leaves, momentum, weight_decay)
    for epoch in range(schedule.epochs):
        if epoch in schedule.restarts:
            mover = optimizer_for(optimizer, leaves, momentum, weight_decay)
        parts = list(zip(*(torch.split(learner.order(epoch), batch) for learner in learners), strict=True))
        for number, indices in enumerate(parts):
            data = _joined(learners, indices, steps)
            logits, losses = _gradients(net, weights, data, schedule.epochs)
            if tally and epoch == schedule.epochs - 1:
                counted.add(logits, data.y, losses)
            mover.param_groups[0]["lr"] = schedule.lr(epoch, (epoch + number / len(parts)) / schedule.epochs)
            mover.step()
            mover.zero_grad()
            steps, seen = steps + 1, seen + len(indices[0])
    _given_back(weights, learners)
    return counted.results(len(learners), steps, seen)


@torch.no_grad()
def accuracies_together(states: Sequence[NetworkState], split: Split, batch: int = 256) -> list[Accuracy]:
    """What `dcf.training.evaluate_accuracy` finds for each of several networks of one architecture without buffers."""
    net, weights = states[0], _stacked(states)
    device = next(iter(weights.values())).device
    modes = [(module, module.training) for module in net.module.modules()]
    net.eval()
    totals: Tensor | None = None
    size, calls = min(batch, len(split)), -(-len(split) // batch)
    for images in split.batches(batch):
        x, y = images.x.to(device), images.y.to(device)
        logits = _logits_of_all(net, weights, x, size, calls)
        if totals is None:
            totals = torch.zeros(len(states) + 1, logits.shape[-1], dtype=torch.long, device=device)
        hits = (logits.argmax(dim=2) == y).long()
        totals.index_add_(1, y, torch.cat([hits, torch.ones_like(y)[None]]))
    for module, mode in modes:
        module.training = mode
    *correct, count = [[]] * (len(states) + 1) if totals is None else totals.tolist()
    return [Accuracy(tuple(one), tuple(count)) for one in correct]


def _results(tasks: Sequence[Callable[[], T]], how: How) -> list[T]:
    return side_by_side(tasks) if how == "beside" else [task() for task in tasks]


def _stacked(states: Sequence[NetworkState]) -> dict[str, Tensor]:
    """Weights by name, `(networks, ...)`: leaves that require gradients."""
    columns = {name: [state.params[name].detach() for state in states] for name in states[0].params}
    return {name: torch.stack(column).requires_grad_() for name, column in columns.items()}


def _given_back(weights: dict[str, Tensor], learners: Sequence[Learner]) -> None:
    with torch.no_grad():
        for name, values in weights.items():
            for learner, value in zip(learners, values.detach(), strict=True):
                learner.state.params[name].copy_(value)


def _gradients(net: NetworkState, weights: dict[str, Tensor], data: Batch, calls: int) -> tuple[Tensor, Tensor]:
    """Logits and losses of a batch of each network; the gradients become the `.grad` of the weights."""
    leaves = list(weights.values())
    kernel = compiled.stacked_gradients(net, leaves, data.x, data.y, calls)
    if kernel is not None:
        for weight, gradient in zip(leaves, kernel.gradients, strict=True):
            weight.grad = gradient
        return kernel.logits, kernel.loss
    logits = _logits(net, weights, data.x)
    losses: Tensor = vmap(cross_entropy)(logits, data.y)
    losses.sum().backward(inputs=leaves)  # type: ignore[no-untyped-call]
    return logits, losses


def _logits_of_all(net: NetworkState, weights: dict[str, Tensor], x: Tensor, size: int, calls: int) -> Tensor:
    """`(networks, n, K)` of the same images `(n, C, H, W)`."""
    kernel = compiled.stacked_logits(net, list(weights.values()), x, size, calls)
    if kernel is not None:
        return kernel
    found: Tensor = vmap(lambda own: net(x, own))(weights)
    return found


def _logits(net: NetworkState, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """`(networks, n, K)` of images `(networks, n, C, H, W)`."""
    found: Tensor = vmap(lambda own, images: net(images, own))(weights, x)
    return found


def _joined(learners: Sequence[Learner], indices: Sequence[Tensor], step: int) -> Batch:
    """`x` of `(networks, n, C, H, W)` and `y` of `(networks, n)` or `(networks, n, K)`, each with its own draw."""
    batches = _fetched(learners, indices)
    pairs = zip(learners, batches, strict=True)
    batches = [data if own.augmentation is None else own.augmentation(data, step) for own, data in pairs]
    return Batch(torch.stack([data.x for data in batches]), torch.stack([data.y for data in batches]))


def _fetched(learners: Sequence[Learner], indices: Sequence[Tensor]) -> list[Batch]:
    """The batch of each, in one call where all have the same images."""
    if any(learner.fetch is not learners[0].fetch for learner in learners):
        return [learner.fetch(index) for learner, index in zip(learners, indices, strict=True)]
    data = learners[0].fetch(torch.cat(list(indices)))
    sizes = [len(index) for index in indices]
    return [Batch(x, y) for x, y in zip(torch.split(data.x, sizes), torch.split(data.y, sizes), strict=True)]


class _Tally:
    """Correct answers and loss of one epoch for each network, summed on the device."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, logits: Tensor, y: Tensor, losses: Tensor) -> None:
        """A step of networks with logits `(networks, n, K)`."""
        labels = hard_labels(y.flatten(0, 1)).view(logits.shape[:2])
        hits = (logits.detach().argmax(dim=2) == labels).sum(1)
        step = torch.stack([hits.to(losses.dtype), losses.detach() * logits.shape[1]])
        self.sums = step if self.sums is None else self.sums + step
        self.count += logits.shape[1]

    def results(self, networks: int, steps: int, seen: int) -> list[Trained]:
        """One for each network; accuracy and loss stay on the device."""
        if self.sums is None:
            return [Trained(steps, seen)] * networks
        return [Trained(steps, seen, hits, loss) for hits, loss in (self.sums / self.count).unbind(1)]
