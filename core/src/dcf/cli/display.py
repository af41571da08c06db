"""What displays of progress share: a drawing on a terminal that goes when the work ends, otherwise lines in time."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Generic, Self, TypeVar

from rich.live import Live
from rich.progress import Progress

from dcf.cli.console import stderr

__all__ = ["Display", "clock"]

log = logging.getLogger(__name__)

DrawingT = TypeVar("DrawingT", Live, Progress)


class Display(Generic[DrawingT]):
    """Base of displays; a context manager.

    Args:
        live: Whether to draw; by default where stderr is a terminal and the level is not quiet.
        every: Seconds between two lines where nothing is drawn.
    """

    def __init__(self, live: bool | None, every: float) -> None:
        self.live = (stderr.is_terminal and log.isEnabledFor(logging.INFO)) if live is None else live
        self.every = every
        self.drawing: DrawingT | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.drawing is not None:
            self.drawing.stop()
            self.drawing = None

    def draw(self, drawing: DrawingT) -> None:
        """Show a drawing from now on, until the work ends."""
        self.drawing = drawing
        drawing.start()

    def line_due(self, must: bool = False) -> bool:
        """Whether a line is to be written now: nothing is drawn and the last one is long ago, or it must be."""
        now = time.monotonic()
        due = must or (self.drawing is None and now - self._last_line >= self.every)
        if due:
            self._last_line = now
        return due


def clock(seconds: float) -> str:
    """A duration as `MM:SS`, or `H:MM:SS` from an hour on; less than nothing is nothing."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
