"""Processes that work for another one. Torch-free."""

from __future__ import annotations

import os
import threading
from typing import Final

__all__ = ["INTERRUPTED", "end_with_parent"]

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
