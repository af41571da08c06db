"""Several processes on one run: who works on what, and sums over all of them.

What is learned is the data, so nothing here wraps a network. Processes are those that `torchrun` starts; in a process
that is alone every function returns at once.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dcf.errors import RunError
from dcf.processes import processes_asked_for

__all__ = ["ALONE", "World", "joined"]

T = TypeVar("T")

#: Seconds of silence after which a process counts as lost; preparations of one may keep the others waiting for long.
_TIMEOUT: Final = datetime.timedelta(days=1)


@dataclass(frozen=True)
class World:
    """The processes that work on a run together.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`: consecutive ones, and parts that differ by one at most."""
        begin, end = (len(items) * number // self.size for number in (self.rank, self.rank + 1))
        return items[begin:end]

    @torch.no_grad()
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes; every process gets the same bits.

        Raises:
            RunError: When another process is gone.
        """
        if self.size == 1 or not tensors:
            return
        self._pass_on(tensors, dist.all_reduce)

    @torch.no_grad()
    def sum_in_order(self, parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The sum of lists of tensors, those of process 0 first: the same bits as if one process had all of them.

        Where rounding is amplified, as by a loss that compares directions, that is what keeps runs of different
        numbers of processes together.

        Args:
            parts: At least one; each a list of tensors of one dtype, of the same shapes in all parts and processes.

        Raises:
            RunError: When another process is gone.
        """
        total = [torch.empty_like(t) for t in parts[0]] if self.rank else []
        if self.rank:
            self._pass_on(total, lambda flat: dist.recv(flat, self.rank - 1))
        for part in parts:
            total = [a + b for a, b in zip(total, part, strict=True)] if total else [t.clone() for t in part]
        if self.rank < self.size - 1:
            self._pass_on(total, lambda flat: dist.send(flat, self.rank + 1))
        if self.size > 1:
            self._pass_on(total, lambda flat: dist.broadcast(flat, self.size - 1))
        return total

    @staticmethod
    def _pass_on(tensors: Sequence[Tensor], transfer: Callable[[Tensor], Any]) -> None:
        """Send or receive tensors as one."""
        flat = torch.cat([t.reshape(-1) for t in tensors])
        _call(lambda: transfer(flat))
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag if self.size == 1 else any(self.gather(flag))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; small Python objects.

        Raises:
            RunError: When another process is gone.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        _call(lambda: dist.all_gather_object(found, value))
        return found

    def from_first(self, value: T) -> T:
        """The value that process 0 has."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)


#: A process without others.
ALONE: Final = World()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world of this process, joined for as long as the context lasts.

    Args:
        device: Where the tensors of the run live.

    Raises:
        RunError: When the others cannot be reached.
    """
    if dist.is_available() and dist.is_initialized():  # the program that calls us has joined already
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if processes_asked_for() == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    _call(lambda: dist.init_process_group(backend, timeout=_TIMEOUT))
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _call(collective: Callable[[], Any]) -> None:
    try:
        collective()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise RunError(
            "another process of this run ended or cannot be reached; the last checkpoint is kept\n"
            f"  go on with: dcf resume RUN, in as many processes as you like\n  reason: {reason}"
        ) from None
