"""Reading what a run is going to ask for while it computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from torch import Tensor

__all__ = ["ReadAhead", "Request"]


class Request(NamedTuple):
    """Images that a run asks for; which they are is a function of this and of the run's seed.

    Attributes:
        it: The iteration.
        n: Images of each class.
        stream: Name of the draw within the iteration.
        classes: The classes.
    """

    it: int
    n: int
    stream: tuple[str | int, ...]
    classes: tuple[int, ...]


class ReadAhead:
    """Answers requests, and has the next one read in a thread of its own meanwhile.

    Iterations ask for the same draws in the same order, so the one before says what comes next. A guess that is wrong
    costs a read and nothing else: an answer is a function of its request.

    Args:
        read: Answers a request; called in another thread, too, by one at a time of these.
        iterations: Iterations of the run, beyond which nothing is read; 0 where unknown.
    """

    def __init__(self, read: Callable[[Request], Tensor], iterations: int = 0) -> None:
        self._read, self._iterations = read, iterations
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dcf-read-ahead")
        self._coming: tuple[Request, Future[Tensor]] | None = None
        self._before: list[Request] = []
        self._now: list[Request] = []

    def get(self, request: Request) -> Tensor:
        """The answer, whether it was foreseen or not.

        Raises:
            DataError: When it cannot be read, whichever thread found that out.
        """
        coming, self._coming = self._coming, None
        foreseen = coming is not None and coming[0] == request
        answer = coming[1].result() if coming is not None and foreseen else self._read(request)
        self._note(request)
        guess = self._next(request)
        if guess is not None:
            self._coming = guess, self._thread.submit(self._read, guess)
        return answer

    def _note(self, request: Request) -> None:
        if self._now and self._now[0].it != request.it:
            self._before, self._now = self._now, []
        self._now.append(request)

    def _next(self, request: Request) -> Request | None:
        if not self._before:
            return None
        place = len(self._now)
        if place < len(self._before):
            return self._before[place]._replace(it=request.it)
        last = self._iterations and request.it + 1 >= self._iterations
        return None if last else self._before[0]._replace(it=request.it + 1)
