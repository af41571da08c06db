"""Experts: networks trained on the real data, their weights kept after every epoch."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

import dcf
from dcf.artifacts import Artifacts
from dcf.build import spec_text, stacked
from dcf.compiled import expected
from dcf.data import RealData
from dcf.errors import Stopped
from dcf.networks.base import NetworkFactory
from dcf.seeding import generator
from dcf.training import BLOWN_UP, Augmentation, Schedule, cross_entropy, train
from dcf_mtt.options import Training
from dcf_mtt.store import (
    KIND,
    VERSION,
    ExpertFacts,
    checksum,
    claimed,
    expert_path,
    folder_of,
    read_facts,
    read_row,
    split_row,
    write_expert,
)

__all__ = ["ExpertSet", "Note", "Weights", "clock"]

log = logging.getLogger(__name__)

#: Told of each epoch that was trained: number of the expert, epochs it has now, loss, accuracy.
Note = Callable[[int, int, float, float], None]
#: Training images at most that tell how far an expert is.
_PROBE: Final = 1000
#: Seconds from one saving of an unfinished expert to the next.
_SAVE_EVERY: Final = 60.0
#: Seconds between two looks whether another process is done.
_LOOK_EVERY: Final = 0.5
#: Steps that are timed for an estimate, after one to warm up.
_TIMED: Final = 3


class Weights(Protocol):
    """Where weights of experts come from."""

    def weights(self, number: int, epoch: int) -> dict[str, Tensor]:
        """Weights of expert `number` after `epoch` epochs, by name, on the CPU."""


@dataclass(frozen=True, eq=False)
class ExpertSet:
    """Experts of one kind, all there are or will be: the first five are the same whether five or a hundred are made.

    Args:
        data: The real data, on the device that trains.
        networks: Makes the networks.
        augmenter: Augments every mini-batch, with fresh values for every image.
        training: How they are trained.
        root: Folder of artifacts; the user's by default.
    """

    data: RealData
    networks: NetworkFactory
    augmenter: dcf.Augmenter
    training: Training = field(default_factory=Training)
    root: Path = field(default_factory=lambda: Artifacts().root)

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that decides the experts but how many there are and how long they are trained; JSON-ready."""
        split, shapes = self.data.train, {name: list(p.shape) for name, p in self.network(0, "cpu").params.items()}
        key = {
            "version": VERSION,
            "data": self.data.checksum,
            "classes": self.data.spec.num_classes,
            "space": self.data.spec.space.to_json(),
            "device": split.device.type,
            "network": spec_text(dcf.Kind.NETWORK, self.networks),
            "network_options": self.networks.config.model_dump(mode="json"),
            "weights": shapes,
            "augment": spec_text(dcf.Kind.AUGMENTER, self.augmenter),
            "augment_options": [part.config.model_dump(mode="json") for part in stacked(self.augmenter)],
            "lr": self.training.lr,
            "momentum": self.training.momentum,
            "weight_decay": self.training.weight_decay,
            "batch": self.training.batch,
            "seed": self.training.seed,
        }
        canonical: dict[str, Any] = json.loads(json.dumps(key, allow_nan=False))
        return canonical

    @cached_property
    def folder(self) -> Path:
        """Where they are kept."""
        return folder_of(self.root, self.key)

    def network(self, number: int, device: torch.device | str | None = None) -> dcf.NetworkState:
        """Expert `number` as it begins."""
        device = self.data.train.device if device is None else device
        return self.networks.create(self.data.spec, self.training.seed, KIND, number, device=device)

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return -(-len(self.data.train) // self.training.batch)

    # --- what is there -------------------------------------------------------------------------------

    def facts(self, number: int) -> ExpertFacts | None:
        """What is known of an expert; None where there is none or, after a warning, where its file is of no use."""
        path = expert_path(self.folder, number)
        if not path.exists():
            return None
        try:
            found = read_facts(path)
            if (found.key, found.number) != (self.key, number):
                raise dcf.FormatError(f"'{path}' holds another expert than its place says")
        except dcf.FormatError as error:
            if number not in self._refused:
                log.warning("%s; training this expert again", error)
            self._refused.add(number)
            return None
        return found

    def epochs(self, number: int) -> int:
        """Epochs that an expert was trained; 0 where there is none."""
        found = self.facts(number)
        return 0 if found is None else found.epochs

    def missing(self, count: int, epochs: int) -> dict[int, int]:
        """Experts below `count` that are not trained for so many epochs yet, with the epochs each lacks."""
        lacking = {number: epochs - self.epochs(number) for number in range(count)}
        return {number: left for number, left in lacking.items() if left > 0}

    @cached_property
    def _known(self) -> dict[int, ExpertFacts]:
        return {}

    @cached_property
    def _refused(self) -> set[int]:
        """Experts whose files were said to be of no use: asked again, they are not complained of again."""
        return set()

    def weights(self, number: int, epoch: int) -> dict[str, Tensor]:
        """Weights of an expert after some epochs, by name, on the CPU.

        Raises:
            RunError: When its file is gone or damaged; a damaged one is removed, so that it is made again.
        """
        path = expert_path(self.folder, number)
        try:
            if number not in self._known:
                self._known[number] = read_facts(path)
            return split_row(read_row(path, self._known[number], epoch), self._known[number])
        except dcf.FormatError as error:
            path.unlink(missing_ok=True)
            raise dcf.RunError(
                f"{error}\n  the file was removed; go on with 'dcf resume RUN', which trains this expert again"
            ) from None

    # --- making them -----------------------------------------------------------------------------------

    def make(
        self, count: int, epochs: int, note: Note, check_stop: Callable[[], None], first: int | None = None
    ) -> None:
        """Train what is missing. Several processes may do so at once: each expert is made by one of them.

        Args:
            count: Experts that shall be there.
            epochs: Epochs of each; a longer one is left alone.
            note: Told of every epoch.
            check_stop: Called after every epoch, when what is done can be kept; may raise.
            first: Begin with this number and leave to others what others work on, instead of waiting for them.

        Raises:
            NonFiniteError: When a training diverges.
            RunError: When an expert cannot be written.
        """
        numbers, turn = list(self.missing(count, epochs)), first or 0
        waiting = deque([n for n in numbers if n >= turn] + [n for n in numbers if n < turn])
        busy = 0
        while waiting:
            number = waiting.popleft()
            with claimed(expert_path(self.folder, number)) as mine:
                if mine and self.epochs(number) < epochs:
                    self._train(number, epochs, note, check_stop)
            busy = 0 if mine else busy + 1
            if not mine and first is None:
                waiting.append(number)
                if busy == len(waiting):
                    log.info("waiting for another process that trains the same experts in '%s'", self.folder)
                if busy >= len(waiting):
                    time.sleep(_LOOK_EVERY)
                    check_stop()

    def _train(self, number: int, epochs: int, note: Note, check_stop: Callable[[], None]) -> None:
        """Train one expert, from its last epoch that is kept if nothing but the weights decides how it goes on."""
        state, trajectory = self.network(number), _Trajectory(self, number)
        begun = self.facts(number) if not (self.training.momentum or state.buffers) else None
        if begun is not None and (rows := self._rows(begun)) is not None:
            trajectory.take(begun, rows)
            device = self.data.train.device
            state.load({k: v.to(device) for k, v in split_row(rows[-1], begun).items()})
        else:
            trajectory.add(state)
        done = trajectory.epochs

        def after_epoch(_: int) -> None:
            trajectory.add(state)
            note(number, trajectory.epochs, trajectory.losses[-1], trajectory.accuracies[-1])
            trajectory.save_now_and_then()
            try:
                check_stop()
            except Stopped:
                trajectory.save()
                raise

        self.run(state, number, done, epochs - done, after_epoch)
        trajectory.save()

    def _rows(self, facts: ExpertFacts) -> list[Tensor] | None:
        path = expert_path(self.folder, facts.number)
        try:
            return [read_row(path, facts, epoch) for epoch in range(facts.epochs + 1)]
        except dcf.FormatError as error:
            log.warning("%s; training this expert again", error)
            return None

    def run(
        self, state: dcf.NetworkState, number: int, done: int, epochs: int, after_epoch: Callable[[int], None]
    ) -> None:
        """Train a network on; orders and augmentation are functions of the seed, the number and the epoch.

        Args:
            state: The network, trained in place.
            number: Of the expert.
            done: Epochs it has had.
            epochs: Epochs to add.
            after_epoch: Called after each.
        """
        split, seed, how = self.data.train, self.training.seed, self.training
        aug, shape = self.augmenter, self.data.spec.shape

        def order(epoch: int) -> Tensor:
            return torch.randperm(len(split), generator=generator(seed, "expert order", number, done + epoch))

        def draws(step: int, n: int) -> Any:
            return aug.draw(n, shape, generator(seed, "expert augment", number, done * self.steps + step), shared=False)

        train(
            state,
            lambda index: dcf.Batch(split.images(index), split.labels[index]),
            lambda epoch: order(epoch).to(split.device),
            Schedule.constant(how.lr, epochs),
            batch=how.batch,
            momentum=how.momentum,
            weight_decay=how.weight_decay,
            augmentation=None if aug.is_identity else Augmentation(aug, draws),
            after_epoch=after_epoch,
        )

    def seconds_per_epoch(self, epochs: int) -> float:
        """Time of an epoch of so many, from some steps with a network that is thrown away."""
        state, split = self.network(0), self.data.train
        n = min(self.training.batch, len(split))
        index = torch.arange(n, device=split.device)
        times: list[float] = []

        def note(_: int) -> None:
            if split.device.type == "cuda":
                torch.cuda.synchronize(split.device)
            times.append(time.perf_counter())

        draw = generator(0, "expert timing")
        aug = self.augmenter
        # Compiled kernels pay in a long training only.
        with expected(epochs // (1 + _TIMED)):
            train(
                state,
                lambda i: dcf.Batch(split.images(i), split.labels[i]),
                lambda _: index,
                Schedule.constant(self.training.lr, 1 + _TIMED),
                batch=n,
                augmentation=Augmentation(aug, lambda _, k: aug.draw(k, self.data.spec.shape, draw, shared=False)),
                after_epoch=note,
            )
        with torch.no_grad():
            _probe(state, self.probe)
        note(0)
        return (times[-2] - times[0]) / _TIMED * self.steps + times[-1] - times[-2]

    @cached_property
    def probe(self) -> dcf.Batch:
        """Training images, always the same, that tell how far an expert is."""
        split = self.data.train
        index = torch.randperm(len(split), generator=generator(0, "expert probe"))[:_PROBE].to(split.device)
        return dcf.Batch(split.images(index), split.labels[index])


class _Trajectory:
    """One expert as it grows."""

    def __init__(self, experts: ExpertSet, number: int) -> None:
        self.experts = experts
        self.number = number
        self.rows: list[Tensor] = []
        self.sums: list[int] = []
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.before = 0.0
        self.began = self.saved = time.monotonic()

    @property
    def epochs(self) -> int:
        return len(self.rows) - 1

    def take(self, facts: ExpertFacts, rows: Sequence[Tensor]) -> None:
        """Go on with what was kept."""
        self.rows, self.sums = list(rows), list(facts.sums)
        self.losses, self.accuracies = list(facts.losses), list(facts.accuracies)
        self.before = facts.seconds

    @torch.no_grad()
    def add(self, state: dcf.NetworkState) -> None:
        """Copy the weights: on a CPU a mere `detach` would follow them, and all snapshots would be the last one."""
        row = torch.cat([p.reshape(-1) for p in state.parameters()]).to("cpu", torch.float32, copy=True)
        loss, accuracy = _probe(state, self.experts.probe)
        how = f"expert {self.number} with lr_expert={self.experts.training.lr:g}"
        if not bool(row.isfinite().all()) or not loss < BLOWN_UP:
            raise dcf.NonFiniteError(f"{how} diverged in epoch {len(self.rows)}; give the matcher a smaller lr_expert")
        if self.rows and torch.equal(row, self.rows[-1]):
            raise dcf.RunError(f"{how} stands still in epoch {len(self.rows)}; give the matcher a larger lr_expert")
        self.rows.append(row)
        self.sums.append(checksum(row))
        self.losses.append(loss)
        self.accuracies.append(accuracy)

    def save_now_and_then(self) -> None:
        """Save, if the last time is long ago: what is not saved goes with a process that is killed."""
        if time.monotonic() - self.saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what there is; a shorter trajectory is the beginning of the longer one."""
        experts, params = self.experts, self.experts.key["weights"]
        facts = ExpertFacts(
            version=VERSION,
            key=experts.key,
            number=self.number,
            data=experts.data.id,
            names=tuple(params),
            shapes=tuple(map(tuple, params.values())),
            sums=tuple(self.sums),
            accuracies=tuple(self.accuracies),
            losses=tuple(self.losses),
            seconds=self.before + time.monotonic() - self.began,
            made_with=dcf.__version__,
        )
        write_expert(expert_path(experts.folder, self.number), torch.stack(self.rows), facts)
        self.saved = time.monotonic()


def _probe(state: dcf.NetworkState, images: dcf.Batch) -> tuple[float, float]:
    """Loss and accuracy in evaluation mode; the network is back in training mode afterwards."""
    state.eval()
    parts = [state(x) for x in torch.split(images.x, 256)]
    state.train()
    logits = torch.cat(parts)
    return float(cross_entropy(logits, images.y)), float((logits.argmax(1) == images.y).float().mean())


def clock(seconds: float) -> str:
    """A time for people.

    Example:
        >>> clock(42), clock(90), clock(4000)
        ('42 s', '1:30 min', '1:06 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
