"""Training experts: how far it is, how long it will take, and several processes at it."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import torch

import dcf
from dcf.build import create
from dcf.errors import Stopped
from dcf.session import make_augmenter
from dcf_mtt.experts import ExpertSet, clock
from dcf_mtt.options import Training

__all__ = ["Job", "Tally", "expert_set", "spread"]

log = logging.getLogger(__name__)

#: Seconds between two looks at what the other processes say.
_LOOK_EVERY: Final = 0.2
#: Seconds that a process has to save its expert when it is asked to stop.
_GRACE: Final = 600.0


class Tally:
    """Counts epochs and tells the user.

    Args:
        missing: Epochs that each expert lacks, by its number.
        report: Told of what, done, total and facts; see `dcf.Context.report`.
        processes: How many train at once.
    """

    def __init__(
        self, missing: Mapping[int, int], report: Callable[[str, int, int, str], None], processes: int = 1
    ) -> None:
        self.total = sum(missing.values())
        self.experts = len(missing)
        self.report = report
        self.processes = max(1, min(processes, self.experts))
        self.done = 0
        self.warm = 0.0

    def __call__(self, number: int, epochs: int, loss: float, accuracy: float) -> None:
        """An epoch is done; see `dcf_mtt.experts.Note`."""
        self.done += 1
        # The first epoch of a process takes what comes before any training, too: the second tells.
        if self.done == self.processes:
            self.warm = time.monotonic()
        elif self.done == 2 * self.processes and self.total > self.done:
            left = (time.monotonic() - self.warm) * (self.total - self.done) / self.processes
            log.info("the experts will take about %s", clock(left))
        facts = f"expert {number}, epoch {epochs}, loss {loss:.3f}, accuracy {100 * accuracy:.1f} %"
        self.report("training experts", min(self.done, self.total), self.total, facts)


@dataclass(frozen=True)
class Job:
    """What another process needs to know to train the same experts: plain text and numbers.

    Args:
        data: Dataset spec.
        network: Network spec.
        augment: Augmenter spec.
        training: How experts are trained.
        root: Folder of artifacts.
        count: Experts that shall be there.
        epochs: Epochs of each.
        devices: Devices, taken in turn.
        threads: Of each process.
    """

    data: str
    network: str
    augment: str
    training: Training
    root: Path
    count: int
    epochs: int
    devices: tuple[str, ...]
    threads: int


def expert_set(job: Job, device: str) -> ExpertSet:
    """The experts of a job, on a device."""
    made = create(dcf.Kind.DATASET, job.data, "--data")
    networks, augmenter = create(dcf.Kind.NETWORK, job.network), make_augmenter(job.augment)
    return ExpertSet(made.load().to(device), networks, augmenter, job.training, job.root)


def spread(job: Job, jobs: int, note: Callable[[int, int, float, float], None], check_stop: Callable[[], None]) -> None:
    """Train experts in several processes, each one expert after the other.

    Args:
        job: What is to be made.
        jobs: Processes.
        note: Told of every epoch, in this process.
        check_stop: Called several times a second; when it raises, every process saves its expert and ends.

    Raises:
        RunError: When a process fails.
    """
    context: Any = multiprocessing.get_context("spawn")
    told: Queue[Any] = context.Queue()
    stop: Event = context.Event()
    processes = [context.Process(target=_work, args=(job, i, jobs, told, stop), daemon=True) for i in range(jobs)]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            _listen(told, note)
            check_stop()
        _drain(told, note)
        _require_success(processes)
    finally:
        stop.set()
        _end(processes, told)


def _work(job: Job, index: int, jobs: int, told: Queue[Any], stop: Event) -> None:
    """One process: begins with its own part of the experts, then takes what the others have not begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    torch.set_num_threads(job.threads)
    parent = multiprocessing.parent_process()

    def check_stop() -> None:
        if stop.is_set() or (parent is not None and not parent.is_alive()):
            raise Stopped("asked to stop")

    try:
        experts = expert_set(job, job.devices[index % len(job.devices)])
        first = index * job.count // jobs
        experts.make(job.count, job.epochs, lambda *epoch: told.put(epoch), check_stop, first)
    except Stopped:
        return
    except dcf.DcfError as error:
        told.put(str(error))


def _listen(told: Queue[Any], note: Callable[[int, int, float, float], None], wait: float = _LOOK_EVERY) -> None:
    with suppress(queue.Empty):
        said = told.get(timeout=wait)
        if isinstance(said, str):
            raise dcf.RunError(f"{said}\n  what was trained so far is kept")
        note(*said)


def _drain(told: Queue[Any], note: Callable[[int, int, float, float], None]) -> None:
    while not told.empty():
        _listen(told, note)


def _require_success(processes: list[BaseProcess]) -> None:
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise dcf.RunError(
            f"{len(failed)} of {len(processes)} processes that train experts ended with status {failed[0]}, "
            "perhaps for lack of memory; what was trained so far is kept: take fewer --jobs and start again"
        )


def _end(processes: list[BaseProcess], told: Queue[Any]) -> None:
    """Wait until every process has saved what it has; one that does not come to an end is ended."""
    deadline = time.monotonic() + _GRACE
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        # A process cannot end before somebody takes what it has said.
        with suppress(queue.Empty):
            told.get(timeout=_LOOK_EVERY)
    for process in processes:
        process.terminate()
        process.join()
