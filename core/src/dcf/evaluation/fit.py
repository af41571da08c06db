"""Networks trained on one piece of material under a protocol, and tested: the rows of every evaluator."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dcf import compiled
from dcf.augmenter import Augmenter
from dcf.errors import EvaluationError
from dcf.evaluation.context import EvalContext, Findings
from dcf.evaluation.grouping import Group, Grouping
from dcf.evaluation.protocol import PROGRAM, Protocol
from dcf.evaluation.report import Row, Run
from dcf.networks.base import NetworkFactory, NetworkState
from dcf.runtime import precision_text
from dcf.together import Learner, accuracies_each, train_each
from dcf.training import (
    Accuracy,
    Fetch,
    Objective,
    Order,
    Schedule,
    Trained,
    evaluate_accuracy,
    hard_labels,
    random_augmentation,
    run_program,
    shuffled,
    train,
)
from dcf.types import Batch, Program

if TYPE_CHECKING:
    from dcf.data.real import Split
    from dcf.synthetic import SyntheticSet

__all__ = [
    "Material",
    "Measured",
    "Trial",
    "fit_network",
    "material_of",
    "material_of_split",
    "program_row",
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
        steps: Training length in optimiser steps that was learned with them, if any.
        program: The training that they were made for, if it is to be run instead of the protocol's.
        visited: How many of them an epoch visits; all where None.
    """

    size: int
    fetch: Fetch
    order: Callable[[torch.Generator], Order]
    lr: float | None = None
    steps: int | None = None
    program: Program | None = None
    visited: int | None = None

    @property
    def epoch_length(self) -> int:
        """Images that an epoch visits."""
        return self.size if self.visited is None else self.visited


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


class _Done(NamedTuple):
    """A network that was trained and tested: its run, its accuracy by class, its seconds, its training images.

    `kernels` says whether compiled kernels trained it, rather than the plain way.
    """

    run: Run
    accuracy: Accuracy
    seconds: float
    size: int
    kernels: bool


def schedule_for(protocol: Protocol, n: int, learned: float | None = None, steps: int | None = None) -> Schedule:
    """The learning rates of a protocol for n images an epoch, a learned step size and a learned length, if any."""
    lr, epochs = protocol.step_size(learned), protocol.nominal_epochs(n, steps)
    if protocol.schedule == "step-restart":
        return Schedule.step_restart(lr, epochs, protocol.extra_epoch)
    kinds = {"cosine": Schedule.cosine, "constant": Schedule.constant, "step-fifth": Schedule.step_fifth}
    return kinds[protocol.schedule](lr, epochs + protocol.extra_epoch)


@torch.no_grad()
def material_of(one: SyntheticSet, ctx: EvalContext) -> Material:
    """The training images of a set, decoded once; an ordered set that has no program is never shuffled."""
    index = torch.arange(len(one.param.view_class), device=one.param.view_class.device)
    decoded = one.param.batch(index)
    labels = hard_labels(decoded.y) if ctx.rules.labels == "hard" else decoded.y
    x, y = decoded.x.detach().to(ctx.place), labels.detach().to(ctx.place)

    def order(generator: torch.Generator) -> Order:
        if one.hints.ordered and one.hints.program is None:
            return lambda _epoch: index.to(ctx.place)
        return lambda _epoch: one.param.epoch(generator).to(ctx.place)

    visited = len(index) if one.hints.ordered else one.param.epoch_length
    return Material(len(index), lambda i: Batch(x[i], y[i]), order, one.hints.lr, one.hints.steps, None, visited)


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
    protocol: str = "",
    **fields: Any,
) -> Measured:
    """Train and test one network for each trial, from fresh initialisations.

    Several processes divide the trials among them, and all get the whole row.

    Args:
        name: Of the row.
        trials: What to train; may be made one by one.
        total: Their number.
        ctx: Real data, protocol, seeds, device.
        network: Spec of the network.
        augment: Spec of the augmentation.
        protocol: What the row says it was trained by; the id of the context's by default.
        fields: Further fields of the row, such as `bytes` and `info`.
    """
    job = _Job(ctx, ctx.factory(network), ctx.augmenter(augment))
    mine, done = ctx.world.share(range(total)), list[_Done]()
    grouping = Grouping(job.factory, ctx, total)
    for group in grouping.groups(trial for number, trial in enumerate(trials) if number in mine):
        start = time.perf_counter()
        with compiled.expected(len(mine)), compiled.noticed() as usage:
            fitted = _fitted(job, group)
        each = (time.perf_counter() - start) / len(group.trials)
        for trial, (run, accuracy) in zip(group.trials, fitted, strict=True):
            done.append(_Done(run, accuracy, each, trial.material.size, usage.kernels))
            if ctx.progress is not None:
                ctx.progress(f"{name} {network}", len(done), len(mine), accuracy.value)
    done = [one for part in ctx.world.gather(done) for one in part]
    row = Row.of(
        tuple(one.run for one in done), name=name, network=network, augment=augment,
        protocol=protocol or ctx.rules.id, images=max((one.size for one in done), default=0),
        per_class=_mean_per_class([one.accuracy for one in done]),
        precision=precision_text(ctx.place, any(one.kernels for one in done)), **fields,
    )  # fmt: skip
    return Measured(row, _warnings(row, job), [one.seconds for one in done])


def set_row(sets: Sequence[SyntheticSet], ctx: EvalContext, network: str) -> Measured:
    """The row of the sets themselves, for one architecture."""
    return _row_of("sets", sets, [material_of(one, ctx) for one in sets], ctx, network)


def program_row(sets: Sequence[SyntheticSet], ctx: EvalContext, network: str) -> Measured:
    """The row of sets that are programs, run as such: their steps in their order, with their step sizes.

    Raises:
        EvaluationError: When one is no program.
    """
    missing = next((number for number, one in enumerate(sets) if one.hints.program is None), None)
    if missing is not None:
        raise EvaluationError(
            f"set {missing} is no program: it says nothing of the order of its images\n"
            "  evaluate it as a set of images: --evaluator train"
        )
    materials = [replace(material_of(one, ctx), program=one.hints.program) for one in sets]
    return _row_of("replay", sets, materials, ctx, network, augment="none", protocol=PROGRAM)


def _row_of(
    name: str,
    sets: Sequence[SyntheticSet],
    materials: Sequence[Material],
    ctx: EvalContext,
    network: str,
    augment: str | None = None,
    protocol: str = "",
) -> Measured:
    trials = [Trial(number, net, number, m) for number, m in enumerate(materials) for net in range(ctx.n_nets)]
    largest = max((one.storage() for one in sets), key=lambda storage: storage.nbytes)
    sizes = {"bytes": largest.nbytes, "floats": largest.floats, "utilisation": largest.utilisation}
    augment = ctx.augment_spec(sets) if augment is None else augment
    return train_row(name, trials, len(trials), ctx, network, augment, protocol, **sizes)


def fit_network(
    state: NetworkState,
    material: Material,
    ctx: EvalContext,
    augmenter: Augmenter | None,
    number: int,
    net: int,
    *,
    classes: int | None = None,
    objective: Objective | None = None,
) -> Trained:
    """Train a network in place as the protocol of a context says.

    Args:
        state: The network, at the weights that it starts from.
        material: What it is trained on.
        ctx: Protocol, shape of images, seeds.
        augmenter: Applied to every mini-batch.
        number: Of the set whose random streams are used.
        net: Number of the network, likewise.
        classes: Outputs of the network, for augmentation that mixes labels; those of the data by default.
        objective: What is minimised instead of the cross-entropy.
    """
    own, how = _learner(state, material, ctx, augmenter, number, net, classes), _settings(ctx.rules, material)
    return train(state, own.fetch, own.order, augmentation=own.augmentation, objective=objective, **how)


def _settings(rules: Protocol, material: Material) -> dict[str, Any]:
    """What a protocol says of the training on a material, as the loops take it."""
    return {
        "schedule": schedule_for(rules, material.epoch_length, material.lr, material.steps),
        "batch": rules.batch,
        "momentum": rules.momentum,
        "weight_decay": rules.weight_decay,
        "optimizer": rules.optimizer,
        "tally": True,
    }


def _learner(
    state: NetworkState,
    material: Material,
    ctx: EvalContext,
    augmenter: Augmenter | None,
    number: int,
    net: int,
    classes: int | None = None,
) -> Learner:
    """A network with its material and the random streams of its own."""
    draws, spec = ctx.generator(number, net, "augment"), ctx.data.spec
    augmentation = random_augmentation(augmenter, spec.shape, draws, classes or spec.num_classes)
    return Learner(state, material.fetch, material.order(ctx.generator(number, net, "order")), augmentation)


def _fitted(job: _Job, group: Group) -> list[tuple[Run, Accuracy]]:
    """Train one network for each trial, then test it once."""
    ctx, (first, *_) = job.ctx, group.trials
    streams = [ctx.stream(trial.stream, trial.net, "network") for trial in group.trials]
    states = [job.factory.create(ctx.data.spec, ctx.seed, *stream, device=ctx.place) for stream in streams]
    if first.material.program is not None:
        return [_replayed(job, first, states[0], first.material.program)]
    pairs = list(zip(states, group.trials, strict=True))
    learners = [_learner(state, t.material, ctx, job.augmenter, t.stream, t.net) for state, t in pairs]
    trained = train_each(learners, group.how, **_settings(ctx.rules, first.material))
    accuracies = accuracies_each(states, group.how, ctx.data.test)
    rows = zip(pairs, trained, accuracies, strict=True)
    return [_tested(state, one, trial, ctx, accuracy) for (state, trial), one, accuracy in rows]


def _replayed(job: _Job, trial: Trial, state: NetworkState, program: Program) -> tuple[Run, Accuracy]:
    """Run the program of a set instead of a protocol, without augmentation, and test once."""
    device = job.ctx.place
    steps = [torch.tensor(step, device=device) for step in program.steps]
    trained = run_program(state, trial.material.fetch, steps, program.lrs, program.momentum)
    return _tested(state, trained, trial, job.ctx, evaluate_accuracy(state, job.ctx.data.test))


def _tested(
    state: NetworkState, trained: Trained, trial: Trial, ctx: EvalContext, accuracy: Accuracy
) -> tuple[Run, Accuracy]:
    """The run of a network that was trained and tested; the probe looks at it."""
    found = Findings({}) if ctx.probe is None else ctx.probe(state, trial)
    return _run(trained, accuracy, trial, ctx.seed_for(trial.stream, trial.net, "network"), found), accuracy


def _run(trained: Trained, accuracy: Accuracy, trial: Trial, seed: int, found: Findings) -> Run:
    loss = math.nan if trained.loss is None else float(trained.loss)
    finite = math.isfinite(loss)
    train_acc = None if trained.accuracy is None else float(trained.accuracy)
    return Run(
        set=trial.set, net=trial.net, seed=seed, value=accuracy.value, last=accuracy.value,
        train_acc=train_acc, train_loss=loss if finite else None,
        steps=trained.steps, images_seen=trained.images_seen, diverged=not finite,
        metrics=dict(found.metrics), details=dict(found.details),
    )  # fmt: skip


def _mean_per_class(accuracies: Sequence[Accuracy]) -> tuple[float | None, ...]:
    columns = zip(*(a.per_class for a in accuracies), strict=True)
    return tuple(None if None in c else sum(v for v in c if v is not None) / len(c) for c in columns)


def _warnings(row: Row, job: _Job) -> list[str]:
    where = f"{row.name}, {row.network}"
    found = [f"{where}: network {r.net} of set {r.set} diverged (non-finite loss)" for r in row.runs if r.diverged]
    space = job.ctx.data.spec.space
    if job.augmenter is not None and not space.suits(job.augmenter.space):
        wanted = job.augmenter.space
        found.append(f"{where}: augmentation '{row.augment}' expects {wanted} values, the data is {space.kind}")
    for message in found:
        log.warning(message)
    return found
