"""How far a bench is: a live bar with the running cells on a terminal, otherwise a line for each cell that ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dcf.cli.console import clean, stderr
from dcf.cli.display import Display, clock

if TYPE_CHECKING:
    from dcf.bench.cells import Cell
    from dcf.bench.pool import Running, Watcher
else:
    # At run time nothing of it is needed, and it would import torch.
    Watcher = object

__all__ = ["BenchProgress"]

log = logging.getLogger(__name__)

_EVERY: Final = 60.0  # seconds between two lines where nobody watches
_STAGES: Final = {"condensing": 0.8, "evaluating": 0.2}


class BenchProgress(Display[Live], Watcher):
    """Shows the progress of a bench on stderr.

    Args:
        live: Whether to draw; by default where stderr is a terminal and the level is not quiet.
    """

    def __init__(self, live: bool | None = None) -> None:
        super().__init__(live, _EVERY)
        self._total = self._done = self._before = 0
        self._start = time.monotonic()

    def stage(self, text: str) -> None:
        """A stage begins."""
        log.info("%s", text)

    def begins(self, total: int, done: int) -> None:
        """The cells are known."""
        self._total, self._done, self._before = total, done, done
        self._start = self._last_line = time.monotonic()
        log.info("%d cells, %d of them done already", total, done)
        if self.live and total > done:
            self.draw(Live(console=stderr, transient=True, refresh_per_second=4))

    def running(self, running: Sequence[Running]) -> None:
        """These are worked on."""
        if self.drawing is not None:
            self.drawing.update(self._picture(running))
        elif running and self.line_due():
            log.info("%s; running: %s", self._line(running), "; ".join(map(_state, running)))

    def ended(self, cell: Cell, error: str | None) -> None:
        """A cell ended."""
        self._done += 1
        if error is None:
            log.info("%d of %d done: %s", self._done, self._total, cell.name)
        else:
            log.warning(
                "%d of %d failed: %s: %s", self._done, self._total, cell.name, clean(error.splitlines()[0], 300)
            )

    def _line(self, running: Sequence[Running]) -> str:
        left = self._left(running)
        return f"{self._done} of {self._total} cells" + (f", about {clock(left)} left" if left is not None else "")

    def _left(self, running: Sequence[Running]) -> float | None:
        """Seconds that are left if the other cells take as long as those of this start did."""
        work = self._done - self._before + sum(_fraction(one.progress) for one in running)
        if work < 0.05:
            return None
        return (time.monotonic() - self._start) / work * (self._total - self._before - work)

    def _picture(self, running: Sequence[Running]) -> Group:
        head = Table.grid(padding=(0, 1))
        head.add_row(
            "cells", ProgressBar(total=max(1, self._total), completed=self._done, width=24), self._line(running)
        )
        return Group(head, *(Text(f"  {_state(one)}", overflow="ellipsis", no_wrap=True) for one in running))


def _state(one: Running) -> str:
    noted = one.progress
    total = int(noted.get("total") or 0)
    how_far = f" {int(noted.get('done') or 0)} of {total}" if total else ""
    return f"{one.cell.name}: {clean(noted.get('stage') or 'starting')}{how_far}"


def _fraction(noted: dict[str, Any]) -> float:
    """How much of a cell is done, condensing taken as four fifths of it."""
    total = float(noted.get("total") or 0)
    part = float(noted.get("done") or 0) / total if total else 0.0
    stage = str(noted.get("stage"))
    before = _STAGES["condensing"] if stage == "evaluating" else 0.0
    return min(1.0, before + part * _STAGES.get(stage, 0.0))
