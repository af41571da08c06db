"""Networks trained on one piece of material under a protocol, and tested: the rows of every evaluator."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dcf.augmenter import Augmenter
from dcf.evaluation.context import EvalContext
from dcf.evaluation.protocol import Protocol
from dcf.evaluation.report import Row, Run
from dcf.networks.base import NetworkFactory
from dcf.training import (
    Accuracy,
    Fetch,
    Order,
    Schedule,
    Trained,
    evaluate_accuracy,
    hard_labels,
    random_augmentation,
    shuffled,
    train,
)
from dcf.types import Batch

if TYPE_CHECKING:
    from dcf.data.real import Split
    from dcf.synthetic import SyntheticSet

__all__ = [
    "Material",
    "Measured",
    "Trial",
    "material_of",
    "material_of_split",
    "schedule_for",
    "set_row",
    "train_row",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """Images that a network is trained on.

    Args:
        size: Number N of training images.
        fetch: Images and labels of `(n,)` indices, on the device of the networks.
        order: From a CPU generator to the order source of one training.
        lr: Step size that was learned with the images, if any.
    """

    size: int
    fetch: Fetch
    order: Callable[[torch.Generator], Order]
    lr: float | None = None


class Trial(NamedTuple):
    """One network to train.

    Attributes:
        set: Number of the set, for the statistics.
        net: Number of the network.
        stream: Number of the set whose random streams are used: baselines share those of set 0.
        material: What it is trained on.
    """

    set: int
    net: int
    stream: int
    material: Material


@dataclass
class Measured:
    """A row, what a reader must know about it, and the seconds of each of its runs."""

    row: Row
    warnings: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class _Job(NamedTuple):
    """What all networks of one row share."""

    ctx: EvalContext
    factory: NetworkFactory
    augmenter: Augmenter | None


def schedule_for(protocol: Protocol, n: int, learned: float | None = None) -> Schedule:
    """The learning rates of a protocol for n training images and a learned step size, if any."""
    lr, epochs = protocol.step_size(learned), protocol.nominal_epochs(n)
    if protocol.schedule == "step-restart":
        return Schedule.step_restart(lr, epochs, protocol.extra_epoch)
    total = epochs + protocol.extra_epoch
    return Schedule.cosine(lr, total) if protocol.schedule == "cosine" else Schedule.constant(lr, total)


@torch.no_grad()
def material_of(one: SyntheticSet, ctx: EvalContext) -> Material:
    """The training images of a set, decoded once; a set that is an ordered program is never shuffled."""
    index = torch.arange(len(one.param.view_class), device=one.param.view_class.device)
    decoded = one.param.batch(index)
    labels = hard_labels(decoded.y) if ctx.rules.labels == "hard" else decoded.y
    x, y = decoded.x.detach().to(ctx.place), labels.detach().to(ctx.place)

    def order(generator: torch.Generator) -> Order:
        if one.hints.ordered:
            return lambda _epoch: index.to(ctx.place)
        return lambda _epoch: one.param.epoch(generator).to(ctx.place)

    return Material(len(index), lambda i: Batch(x[i], y[i]), order, one.hints.lr)


def material_of_split(split: Split, device: torch.device | str, lr: float | None = None) -> Material:
    """All images of a split, fetched batch by batch and shuffled anew each epoch."""
    home = split.labels.device

    def fetch(index: Tensor) -> Batch:
        there = index.to(home)
        return Batch(split.images(there).to(device), split.labels[there].to(device))

    return Material(len(split), fetch, lambda generator: shuffled(len(split), generator, home), lr)


def train_row(
    name: str,
    trials: Iterable[Trial],
    total: int,
    ctx: EvalContext,
    network: str,
    augment: str,
    **fields: Any,
) -> Measured:
    """Train and test one network for each trial, from fresh initialisations.

    Args:
        name: Of the row.
        trials: What to train; may be made one by one.
        total: Their number, for progress.
        ctx: Real data, protocol, seeds, device.
        network: Spec of the network.
        augment: Spec of the augmentation.
        fields: Further fields of the row, such as `bytes` and `info`.
    """
    job = _Job(ctx, ctx.factory(network), ctx.augmenter(augment))
    results: list[tuple[Run, Accuracy]] = []
    seconds: list[float] = []
    size = 0
    for trial in trials:
        start = time.perf_counter()
        results.append(_fit(job, trial))
        seconds.append(time.perf_counter() - start)
        size = max(size, trial.material.size)
        if ctx.progress is not None:
            ctx.progress(f"{name} {network}", len(results), total, results[-1][1].value)
    row = Row.of(
        tuple(run for run, _ in results), name=name, network=network, protocol=ctx.rules.id, augment=augment,
        images=size, per_class=_mean_per_class([accuracy for _, accuracy in results]), **fields,
    )  # fmt: skip
    return Measured(row, _warnings(row, job), seconds)


def set_row(sets: Sequence[SyntheticSet], ctx: EvalContext, network: str) -> Measured:
    """The row of the sets themselves, for one architecture."""
    materials = [material_of(one, ctx) for one in sets]
    trials = [Trial(number, net, number, m) for number, m in enumerate(materials) for net in range(ctx.n_nets)]
    largest = max((one.storage() for one in sets), key=lambda storage: storage.nbytes)
    sizes = {"bytes": largest.nbytes, "floats": largest.floats, "utilisation": largest.utilisation}
    return train_row("sets", trials, len(trials), ctx, network, ctx.augment_spec(sets), **sizes)


def _fit(job: _Job, trial: Trial) -> tuple[Run, Accuracy]:
    """Train one network, then test it once."""
    ctx, rules, material = job.ctx, job.ctx.rules, trial.material
    number, net = trial.stream, trial.net
    state = job.factory.create(ctx.data.spec, ctx.seed, *ctx.stream(number, net, "network"), device=ctx.place)
    trained = train(
        state,
        material.fetch,
        material.order(ctx.generator(number, net, "order")),
        schedule_for(rules, material.size, material.lr),
        batch=rules.batch,
        momentum=rules.momentum,
        weight_decay=rules.weight_decay,
        augmentation=random_augmentation(job.augmenter, ctx.data.spec.shape, ctx.generator(number, net, "augment")),
        tally=True,
    )
    accuracy = evaluate_accuracy(state, ctx.data.test)
    return _run(trained, accuracy, trial, ctx.seed_for(number, net, "network")), accuracy


def _run(trained: Trained, accuracy: Accuracy, trial: Trial, seed: int) -> Run:
    loss = math.nan if trained.loss is None else float(trained.loss)
    finite = math.isfinite(loss)
    train_acc = None if trained.accuracy is None else float(trained.accuracy)
    return Run(
        set=trial.set, net=trial.net, seed=seed, value=accuracy.value, last=accuracy.value,
        train_acc=train_acc, train_loss=loss if finite else None,
        steps=trained.steps, images_seen=trained.images_seen, diverged=not finite,
    )  # fmt: skip


def _mean_per_class(accuracies: Sequence[Accuracy]) -> tuple[float | None, ...]:
    columns = zip(*(a.per_class for a in accuracies), strict=True)
    return tuple(None if None in c else sum(v for v in c if v is not None) / len(c) for c in columns)


def _warnings(row: Row, job: _Job) -> list[str]:
    where = f"{row.name}, {row.network}"
    found = [f"{where}: network {r.net} of set {r.set} diverged (non-finite loss)" for r in row.runs if r.diverged]
    space = job.ctx.data.spec.space.kind
    if job.augmenter is not None and job.augmenter.space not in ("any", space):
        found.append(f"{where}: augmentation '{row.augment}' expects {job.augmenter.space} values, the data is {space}")
    for message in found:
        log.warning(message)
    return found
