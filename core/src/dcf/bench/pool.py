"""Cells in processes of their own: so many at a time, one failing without the others."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dcf.bench.cells import Cell
from dcf.bench.gather import FAILED, PROGRESS

__all__ = ["Pool", "Running", "Watcher", "worker_environment"]

log = logging.getLogger(__name__)

LOG: Final = "worker.log"
_INTERRUPTED: Final = 130
_PAUSE: Final = 0.1  # seconds between two looks at the processes


@dataclass
class Running:
    """A cell that is being worked on."""

    cell: Cell
    process: subprocess.Popen[bytes]

    @property
    def progress(self) -> dict[str, Any]:
        """How far it is, as its worker noted it."""
        try:
            noted = json.loads((self.cell.path / PROGRESS).read_text(encoding="utf-8"))
            return noted if isinstance(noted, dict) else {}
        except (OSError, ValueError):
            return {}


class Watcher:
    """What wants to know how far a bench is; every method may be overridden, none needs to be."""

    def stage(self, text: str) -> None:
        """A stage begins, such as loading the data."""

    def begins(self, total: int, done: int) -> None:
        """The cells are known: their number, and how many are done already."""

    def running(self, running: Sequence[Running]) -> None:
        """These are worked on; called several times a second."""

    def ended(self, cell: Cell, error: str | None) -> None:
        """A cell ended: done, or failed with a message."""


class Pool:
    """Runs cells.

    Args:
        jobs: Processes at a time.
        watcher: Told of progress.
    """

    def __init__(self, jobs: int, watcher: Watcher) -> None:
        self.jobs = jobs
        self.watcher = watcher
        self._running: list[Running] = []

    def run(self, cells: Sequence[Cell], ended: Callable[[Cell, str | None], None], stop: Callable[[], bool]) -> bool:
        """Run all cells, in their order.

        Args:
            cells: What to run.
            ended: Called with each cell that is done, or failed with the message.
            stop: Asked several times a second; once it says so nothing new is started, and what runs is asked to
                write a checkpoint and end.

        Returns:
            Whether all of them came to an end; False when it was stopped.
        """
        waiting, asked = list(cells), False
        try:
            while waiting or self._running:
                if stop() and not asked:
                    asked, waiting = True, []
                    self._signal(signal.SIGINT)
                while waiting and len(self._running) < self.jobs:
                    self._start(waiting.pop(0))
                self._collect(ended)
                self.watcher.running(self._running)
                time.sleep(_PAUSE)
        finally:
            self._end()
        return not asked

    def _start(self, cell: Cell) -> None:
        cell.write()
        with (cell.path / LOG).open("ab") as file:
            # A session of its own: a Ctrl-C reaches the bench alone, which tells its workers in its own words.
            process = subprocess.Popen(
                [sys.executable, "-m", "dcf.bench.worker", str(cell.path)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=worker_environment(self.jobs),
                start_new_session=True,
            )
        self._running.append(Running(cell, process))

    def _collect(self, ended: Callable[[Cell, str | None], None]) -> None:
        for one in [r for r in self._running if r.process.poll() is not None]:
            self._running.remove(one)
            _close(one.process)
            code = one.process.returncode
            if code != _INTERRUPTED:
                error = None if code == 0 else _reason(one.cell.path / LOG, code)
                ended(one.cell, error)
                self.watcher.ended(one.cell, error)

    def _signal(self, number: int) -> None:
        for one in self._running:
            one.process.send_signal(number)

    def _end(self) -> None:
        """Leave nothing running behind, however the loop ended."""
        self._signal(signal.SIGKILL)
        for one in self._running:
            one.process.wait()
            _close(one.process)
        self._running = []


def worker_environment(jobs: int) -> dict[str, str]:
    """The environment of a worker: its share of the cores, unless the user has decided."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usual = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    if jobs > 1:
        usual["OMP_WAIT_POLICY"] = "PASSIVE"
    return {**usual, **os.environ}


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _reason(file: Path, code: int) -> str:
    """Why a worker failed: its own words, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory? try fewer --jobs)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}; see {file}"
    text = file.read_text(encoding="utf-8", errors="replace")
    _, found, message = text.rpartition(FAILED)
    return message.strip() if found else f"its process ended with status {code}; see {file}"
