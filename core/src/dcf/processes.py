"""Processes that work for another one. Torch-free."""

from __future__ import annotations

import os
import threading
from typing import Final

__all__ = ["INTERRUPTED", "end_with_parent", "local_rank", "processes_asked_for", "rank"]

#: Exit status of a process that was asked to stop.
INTERRUPTED: Final = 130


def end_with_parent() -> None:
    """Leave as soon as standard input closes: whoever started this process is gone."""

    def wait() -> None:
        # The file itself: a buffered reader would hold a lock that the interpreter needs at its end.
        while os.read(0, 1024):
            pass
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, daemon=True).start()


def processes_asked_for() -> int:
    """How many processes `torchrun` started for this program; 1 without it."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process among them, from 0."""
    return _number("RANK", 0) if processes_asked_for() > 1 else 0


def local_rank() -> int:
    """Number of this process among those of this machine, from 0."""
    return _number("LOCAL_RANK", 0) if processes_asked_for() > 1 else 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
