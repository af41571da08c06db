"""The evaluator `kernel-velocity`: how fast the tangent kernel of a network moves while it learns from a set."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dcf
from dcf.augmenter import Augmenter
from dcf.errors import EvaluationError
from dcf.evaluation.baselines import equal_bytes, find_baseline, pick_per_class
from dcf.evaluation.context import EvalContext
from dcf.evaluation.fit import Material, Measured, Trial, material_of, material_of_split, schedule_for
from dcf.evaluation.report import Report, Row, Run
from dcf.evaluation.statistics import summarize
from dcf.evaluation.train import build_report
from dcf.networks.base import NetworkFactory
from dcf.training import Order, Schedule, Trained, evaluate_accuracy, random_augmentation, train
from dcf_dcc.kernels import (
    epochs_of_kernels,
    kernel_distance,
    mean_velocity,
    probe,
    tangent_kernel,
    velocities,
)
from dcf_dcc.options import VelocityConfig

__all__ = ["Film", "KernelVelocity"]


@dataclass
class Film:
    """The kernels of one network along its training, of which only distances are kept.

    Args:
        kernel: From nothing to the `(n, n)` kernel of the network as it stands.
        epochs: After which numbers of epochs to take it, ascending from 0.
    """

    kernel: Callable[[], Tensor]
    epochs: Sequence[int]
    #: Of each kernel from the one before.
    steps: list[float] = field(default_factory=list)
    #: Of each kernel from the first, which has 0.
    from_start: list[float] = field(default_factory=list)
    _first: Tensor | None = None
    _last: Tensor | None = None

    def after(self, epoch: int) -> None:
        """Take the kernel if it is due after this number of epochs.

        Raises:
            EvaluationError: When it is not finite.
        """
        if epoch not in self.epochs:
            return
        now = self.kernel()
        if not bool(torch.isfinite(now).all()):
            raise EvaluationError(
                f"the tangent kernel is not finite after {epoch} epochs, so the training has diverged\n"
                "  lower the step size of the protocol: --set protocol.lr=0.001"
            )
        if self._first is None or self._last is None:
            self._first = now
            self.from_start.append(0.0)
        else:
            self.steps.append(kernel_distance(self._last, now))
            self.from_start.append(kernel_distance(self._first, now))
        self._last = now


class _Job(NamedTuple):
    """What all networks of an evaluation share."""

    ctx: EvalContext
    network: str
    factory: NetworkFactory
    augment: str
    augmenter: Augmenter | None
    images: Tensor
    config: VelocityConfig


class _Filmed(NamedTuple):
    """One network: its figures, its film and how long it took."""

    run: Run
    film: Film
    seconds: float


class KernelVelocity(dcf.Evaluator):
    """Velocity of the empirical tangent kernel on test images, in training under a protocol (Fort et al., 2020).

    The kernel is taken on images that are the same for every network and set. Network n of every set and of every
    baseline starts and is shuffled alike, so that what differs is the material. The value is the velocity averaged
    over the epochs from the first kernel to the last; the whole curves are in the report's `extra`. It describes a
    training; it is no measure of quality.
    """

    Config = VelocityConfig

    def evaluate(self, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Report:
        """Train the protocol's networks on each set, and on the baselines' images, taking kernels on the way.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol, are programs, or a training diverges.
        """
        start = time.perf_counter()
        ctx.check(sets)
        _refuse_programs(sets)
        job, notes = _job(sets, ctx, self.config)
        materials = [material_of(one, ctx) for one in sets]
        trials = (Trial(s, net, 0, m) for s, m in enumerate(materials) for net in range(ctx.n_nets))
        result, curves = _row("sets", trials, len(sets) * ctx.n_nets, job, **_sizes(sets))
        beside, extra = [], {"sets": curves}
        for name in ctx.baselines:
            found = _baseline(name, sets, job)
            if isinstance(found, str):
                notes.append(found)
            else:
                beside.append(found[0])
                extra[name] = found[1]
        facts = {**self.config.model_dump(), "images": len(job.images), "unit": "epoch", "curves": extra}
        stat = result.row.stat
        return build_report("kernel-velocity", self, sets, ctx, [result], beside, notes, stat, start, facts)


def _refuse_programs(sets: Sequence[dcf.SyntheticSet]) -> None:
    """A velocity is a distance an epoch, which a program, whose steps are all different, has none of.

    Raises:
        EvaluationError: When a set is one.
    """
    if any(one.hints.program is not None for one in sets):
        raise EvaluationError(
            "kernel-velocity: this set is a program, which has no epochs to measure a velocity over; shuffled under a "
            "protocol it would be another set\n  run it as what it is: --evaluator replay"
        )


def _job(sets: Sequence[dcf.SyntheticSet], ctx: EvalContext, config: VelocityConfig) -> tuple[_Job, list[str]]:
    network, augment, test = ctx.network_spec(sets), ctx.augment_spec(sets), ctx.data.test
    chosen = probe(test.labels, ctx.data.spec.num_classes, config.n, ctx.generator(0, 0, "probe"))
    images = test.images(chosen.to(test.device)).to(ctx.place)
    few = f"kernel-velocity: {len(chosen)} test images instead of {config.n}, as a class has no more"
    job = _Job(ctx, network, ctx.factory(network), augment, ctx.augmenter(augment), images, config)
    return job, [few] if len(chosen) < config.n else []


def _sizes(sets: Sequence[dcf.SyntheticSet]) -> dict[str, Any]:
    largest = max((one.storage() for one in sets), key=lambda storage: storage.nbytes)
    return {"bytes": largest.nbytes, "floats": largest.floats, "utilisation": largest.utilisation}


def _row(name: str, trials: Iterator[Trial], total: int, job: _Job, **fields: Any) -> tuple[Measured, dict[str, Any]]:
    """One network for each trial: the row, and its curves."""
    filmed: list[_Filmed] = []
    size = 0
    for trial in trials:
        filmed.append(_film(trial, job))
        size = max(size, trial.material.size)
        if job.ctx.progress is not None:
            job.ctx.progress(f"{name} {job.network}", len(filmed), total, filmed[-1].run.last)
    runs = tuple(one.run for one in filmed)
    numbers = sorted({run.set for run in runs})
    stat = summarize([[r.value for r in runs if r.set == s] for s in numbers], "velocity")
    row = Row(
        name=name, network=job.network, protocol=job.ctx.rules.id, augment=job.augment, images=size, runs=runs,
        stat=stat, **fields,
    )  # fmt: skip
    return Measured(row, [], [one.seconds for one in filmed]), _curves(filmed)


def _curves(filmed: Sequence[_Filmed]) -> dict[str, Any]:
    """Every curve of a row and their mean, JSON-ready."""
    epochs = list(filmed[0].film.epochs)
    each = [
        {
            "set": one.run.set,
            "net": one.run.net,
            "velocity": velocities(one.film.steps, epochs),
            "from_start": one.film.from_start,
        }
        for one in filmed
    ]
    columns = list(zip(*(curve["velocity"] for curve in each), strict=True))
    return {
        "epochs": epochs,
        "dt": [later - before for before, later in itertools.pairwise(epochs)],
        "velocity": [fmean(column) for column in columns],
        "velocity_std": [pstdev(column) for column in columns],
        "from_start": [fmean(column) for column in zip(*(curve["from_start"] for curve in each), strict=True)],
        "runs": each,
    }


def _film(trial: Trial, job: _Job) -> _Filmed:
    """Train one network, with a look at its kernel between epochs, then test it once."""
    began, ctx, material = time.perf_counter(), job.ctx, trial.material
    stream = (trial.stream, trial.net)
    state = job.factory.create(ctx.data.spec, ctx.seed, *ctx.stream(*stream, "network"), device=ctx.place)
    schedule = schedule_for(ctx.rules, material.size, material.lr, material.steps)
    marks = epochs_of_kernels(schedule.epochs, job.config.every, job.config.until)
    film = Film(lambda: tangent_kernel(state, job.images, job.config.mode), marks)
    order = _watched(material.order(ctx.generator(*stream, "order")), film)
    trained = _train(state, material, order, schedule, job, ctx.generator(*stream, "augment"))
    film.after(schedule.epochs)
    run = Run(
        set=trial.set, net=trial.net, seed=ctx.seed_for(*stream, "network"), metric="velocity",
        value=mean_velocity(film.steps, marks), last=evaluate_accuracy(state, ctx.data.test).value,
        train_acc=float(trained.accuracy) if trained.accuracy is not None else None,
        train_loss=_finite(trained.loss), steps=trained.steps, images_seen=trained.images_seen,
        diverged=_finite(trained.loss) is None,
    )  # fmt: skip
    return _Filmed(run, film, time.perf_counter() - began)


def _train(
    state: dcf.NetworkState, material: Material, order: Order, schedule: Schedule, job: _Job, draws: torch.Generator
) -> Trained:
    rules = job.ctx.rules
    return train(
        state, material.fetch, order, schedule, batch=rules.batch, momentum=rules.momentum,
        weight_decay=rules.weight_decay, tally=True, optimizer=rules.optimizer,
        augmentation=random_augmentation(
            job.augmenter, job.ctx.data.spec.shape, draws, job.ctx.data.spec.num_classes
        ),
    )  # fmt: skip


def _watched(order: Order, film: Film) -> Order:
    """The same order: an epoch asks for it at its beginning, when its predecessor is over."""

    def watched(epoch: int) -> Tensor:
        film.after(epoch)
        return order(epoch)

    return watched


def _finite(loss: Tensor | None) -> float | None:
    return float(loss) if loss is not None and bool(torch.isfinite(loss)) else None


# --- baselines ----------------------------------------------------------------------------------------------------


def _baseline(name: str, sets: Sequence[dcf.SyntheticSet], job: _Job) -> tuple[Measured, dict[str, Any]] | str:
    """The row and curves of a baseline, or why there are none."""
    ctx, lr, steps = job.ctx, sets[0].hints.lr, sets[0].hints.steps
    if name == "whole":
        everything = material_of_split(ctx.data.train, ctx.place, lr)
        return _row("whole", (Trial(0, net, 0, everything) for net in range(ctx.n_nets)), ctx.n_nets, job)
    if name != "random":
        find_baseline(name)
        return f"{name}: kernel-velocity has no such row; it knows random and whole"
    nbytes = min(one.storage().nbytes for one in sets)
    k = equal_bytes(nbytes, ctx.data.spec.shape, ctx.data.spec.num_classes)
    if k == 0:
        return f"random: no row, because the set's {nbytes} bytes hold no float32 image a class"
    counts = ctx.data.train.counts.clamp(max=k)
    floats = int(counts.sum()) * math.prod(ctx.data.spec.shape)
    sizes = {"bytes": 4 * floats, "floats": floats, "info": {"per_class": k, "bytes_of_set": nbytes}}
    return _row("random", _selections(job, k, lr, steps), ctx.n_nets, job, **sizes)


def _selections(job: _Job, k: int, lr: float | None, steps: int | None) -> Iterator[Trial]:
    """Random real images, a fresh selection for every network, as every evaluator takes them."""
    ctx = job.ctx
    for net in range(ctx.n_nets):
        draw = ctx.generator(0, net, "random selection")
        picked = pick_per_class(ctx.data.train.labels, ctx.data.spec.num_classes, k, draw)
        chosen = ctx.data.train.select(picked)
        yield Trial(net, net, 0, replace(material_of_split(chosen, ctx.place, lr), steps=steps))
