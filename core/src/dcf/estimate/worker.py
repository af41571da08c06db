"""The process that measures: `python -m dcf.estimate.worker`, told what by its standard input.

It says what it does on its standard output, one JSON object a line, and ends with whoever started it: when standard
input closes, nobody waits for it any more.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from dcf.errors import DcfError, UsageError
from dcf.estimate.memory import take_me_first
from dcf.processes import end_with_parent
from dcf.resolve import Request

__all__ = ["main"]

Tell = Callable[..., None]


class _Relay(logging.Handler):
    """Hands warnings to the process that waits."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand over one record."""
        self.tell(log=[record.name, record.levelno, record.getMessage()])


def main() -> int:
    """Measure one run; 0: done, 1: failed, and why was said."""
    take_me_first()
    tell = _channel()
    logging.basicConfig(level=logging.WARNING, handlers=[_Relay(tell)])
    try:
        request, began = _request()
        end_with_parent()
        # Only now: torch is imported while somebody watches what it takes.
        from dcf.estimate.measure import measured

        tell(facts=measured(request, tell, began))
    except Exception as error:
        traceback.print_exc()
        _explain(error, tell)
        return 1
    return 0


def _channel() -> Tell:
    """What says things to the process that waits; whatever else is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**event: Any) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    return tell


def _request() -> tuple[Request, float]:
    """The run as the process that waits packed it, and `time.perf_counter()` of when it started this one."""
    head = json.loads(sys.stdin.buffer.readline())
    began = time.perf_counter() - max(0.0, time.time() - head["time"])
    # As there: objects may be of modules that only its path leads to.
    sys.path[:] = head["path"]
    packed = sys.stdin.buffer.read(head["bytes"])
    try:
        # What is read comes from the process that started this one.
        request: Request = pickle.loads(packed)  # noqa: S301
    except (AttributeError, ImportError) as error:
        raise UsageError(
            f"a component that was given as an object cannot be made again in the process that measures: {error}\n"
            "  give it as a spec, or define its class at the top of a module that can be imported"
        ) from None
    return request, began


def _explain(error: Exception, tell: Tell) -> None:
    from dcf.estimate.model import DoesNotFitError
    from dcf.estimate.shortage import shortage_of

    if isinstance(error, DoesNotFitError):
        tell(shortage={"needed": error.needed, "room": error.room, "who": "available here"})
        return
    if not isinstance(error, DcfError):
        short = shortage_of(error)
        if short is not None:
            tell(shortage=short)
            return
    message = str(error) if isinstance(error, DcfError) else f"internal error: {type(error).__name__}: {error}"
    tell(failed={"types": [cls.__name__ for cls in type(error).__mro__], "message": message})


if __name__ == "__main__":
    sys.exit(main())
