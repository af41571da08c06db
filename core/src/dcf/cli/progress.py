"""How far a run is: a live bar on a terminal, otherwise a line every half minute and at the end."""

from __future__ import annotations

import logging
import resource
import sys
from typing import TYPE_CHECKING, Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dcf.cli.console import stderr
from dcf.cli.display import Display, clock

if TYPE_CHECKING:
    from dcf.engine import Progress as RunState
    from dcf.run import Listener
else:
    # At run time nothing of it is needed, and dcf.run would import torch.
    Listener = object

__all__ = ["RunProgress"]

log = logging.getLogger(__name__)

_EVERY: Final = 30.0  # seconds between two lines where nobody watches


class RunProgress(Display[Progress], Listener):
    """Shows the progress of a run or an evaluation on stderr.

    Args:
        live: Whether to draw a bar; by default where stderr is a terminal and the level is not quiet.
        every: Seconds between two lines where there is no bar.
    """

    def __init__(self, live: bool | None = None, every: float = _EVERY) -> None:
        super().__init__(live, every)
        self._task: TaskID | None = None
        self._first = 0

    def __enter__(self) -> Self:
        if self.live:
            self.draw(Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"), TimeRemainingColumn(compact=True),
                console=stderr, transient=True,
            ))  # fmt: skip
        return self

    def stage(self, text: str) -> None:
        """A stage begins."""
        log.info("%s", text)
        self._end_task()

    def preparing(self, what: str, done: int, total: int, facts: str) -> None:
        """A part of what comes before the first iteration is done."""
        self._show(what, done, total, facts, "", done == total)

    def step(self, progress: RunState) -> None:
        """An outer iteration is done."""
        if self._first == 0:
            self._first = progress.it
        done = progress.it - self._first + 1
        speed = done / progress.seconds if progress.seconds > 0 else 0.0
        facts = f"loss {progress.loss:.4g}, {speed:.3g} it/s, {_memory_text()}"
        left = f"{clock((progress.iterations - progress.it) / speed)} left" if speed else ""
        last = progress.it == progress.iterations
        self._show("condensing", progress.it, progress.iterations, facts, left, last)

    def evaluated(self, row: str, done: int, total: int, accuracy: float) -> None:
        """An evaluation network of a row is trained and tested."""
        # Reports call the rows of the sets themselves "sets".
        what = row.replace("sets", "condensed set", 1) if row.startswith("sets") else row
        self._show(f"evaluating {what}", done, total, f"accuracy {100 * accuracy:.1f} %", "", done == total)

    def _show(self, what: str, done: int, total: int, facts: str, left: str, last: bool) -> None:
        self._advance(what, done, total, facts)
        if self.line_due(last):
            log.info("%s", ", ".join(p for p in (f"{what}: {done} of {total}", facts, "" if last else left) if p))
        if last:
            self._end_task()

    def _advance(self, what: str, done: int, total: int, facts: str) -> None:
        if self.drawing is None:
            return
        if self._task is None:
            self._task = self.drawing.add_task(what, total=total, completed=max(0, done - 1), facts=facts)
        self.drawing.update(self._task, completed=done, description=what, facts=facts)

    def _end_task(self) -> None:
        if self.drawing is not None and self._task is not None:
            self.drawing.remove_task(self._task)
        self._task = None


def _memory_text() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
