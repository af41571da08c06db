"""Tasks that run at once on a CPU, each in a thread of its own that has one core.

Of a network's step on few images, cores that share it spend much of the time waiting for one another. Networks that are
trained side by side share nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from threading import Event, Lock
from typing import Final, TypeVar

import torch

__all__ = ["go_on", "side_by_side"]

T = TypeVar("T")

#: Seconds that a task keeps its core for where another one waits: many steps, so that caches are warm for most of them.
_TURN: Final = 0.2


def side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """The results of tasks, in order, each of which runs in a thread and on a core of its own.

    Where there are more of them than the caller has cores, they take turns, so that all end at about the same time.
    Each sees the caller's context variables, such as what `dcf.compiled` allows. None may use global generators, or
    what another one changes. Where one fails, or the caller is interrupted, the others end at their next `go_on`.

    Args:
        tasks: Whose results do not depend on one another.

    Raises:
        BaseException: What a task raised; of several, the one that is first in order.
    """
    threads = torch.get_num_threads()
    cores = _Cores(threads)
    try:
        with ThreadPoolExecutor(max(1, len(tasks)), "beside") as pool:
            try:
                futures = [pool.submit(copy_context().run, _on_one_core, task, cores) for task in tasks]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future in done:
                        future.result()
            except BaseException:
                cores.closed.set()
                raise
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)  # the caller's own did not change, but threads that begin later take the last


def go_on() -> None:
    """Called by long work, such as training, between its steps: it may wait here, or end, if it runs `side_by_side`."""
    turn = _TURNS.get()
    if turn is not None:
        turn.go_on()


class _Stopped(BaseException):
    """Ends a task whose result nobody waits for: no error, so that nothing takes it for one and goes on."""


class _Cores:
    """Cores that tasks take in turn, first come, first served."""

    def __init__(self, count: int) -> None:
        self.closed = Event()
        self._free, self._waiting, self._lock = count, deque[Event](), Lock()

    def take(self) -> None:
        """Wait for a core."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            own = Event()
            self._waiting.append(own)
        own.wait()

    def give(self) -> None:
        """Leave a core to the one that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class _Turn:
    """What a task has its core for."""

    def __init__(self, cores: _Cores) -> None:
        self.cores, self.began = cores, time.monotonic()

    def go_on(self) -> None:
        if time.monotonic() - self.began > _TURN:
            self.cores.give()
            self.cores.take()
            self.began = time.monotonic()
        if self.cores.closed.is_set():
            raise _Stopped


#: That of the task that runs in a thread.
_TURNS: Final[ContextVar[_Turn | None]] = ContextVar("turn", default=None)


def _on_one_core(task: Callable[[], T], cores: _Cores) -> T:
    torch.set_num_threads(1)
    cores.take()
    try:
        _TURNS.set(_Turn(cores))
        return task()
    finally:
        cores.give()
