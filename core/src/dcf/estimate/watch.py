"""The process that measures, seen from outside: started, listened to, and ended before it takes what others need."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Final

import dcf.errors
from dcf.errors import DcfError, RunError, UsageError
from dcf.estimate.memory import Machine, resident
from dcf.estimate.model import PARTS, DoesNotFitError
from dcf.resolve import Request

__all__ = ["measure_apart"]

#: Seconds between two looks at the memory.
_POLL: Final = 0.02
#: Bytes that are left to others, at most; an eighth of what there is, where that is less.
_MARGIN: Final = 512 * 2**20
_KILLED: Final = -signal.SIGKILL
#: Before the process has said anything better.
_ELSEWHERE: Final = ("a machine with more memory, or a higher limit (ulimit -v, ulimit -d)",)
#: What the process is started with.
_COMMAND: Final = (sys.executable, "-m", "dcf.estimate.worker")


def measure_apart(request: Request, on_stage: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure a run in a process of its own.

    Args:
        request: The run.
        on_stage: Told what is being measured.

    Returns:
        What `dcf.estimate.model.Estimate.from_json` takes.

    Raises:
        DoesNotFitError: When the memory of this machine or of the GPU does not do.
        DcfError: What the process raised, or that it crashed.
    """
    payload = _packed(request)
    with _started(payload) as (process, said):
        watch = _Watch(process.pid, Machine(), on_stage)
        for event in _events(process, watch.look):
            watch.hear(event)
        if watch.facts is None:
            raise watch.died(process.wait(), said)
        return {**watch.facts, "advice": watch.advice}


def _packed(request: Request) -> bytes:
    try:
        packed = pickle.dumps(request)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"a component that was given as an object cannot be handed to the process that measures: {error}\n"
            "  give it as a spec, or define its class at the top of a module"
        ) from None
    head = {"path": sys.path, "bytes": len(packed), "time": time.time()}
    return json.dumps(head).encode() + b"\n" + packed


@contextmanager
def _started(payload: bytes) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The process, with what it writes on stderr; it is gone afterwards, and so is everything that it started."""
    with tempfile.TemporaryFile() as said:
        # A session of its own: a Ctrl-C reaches this process alone, and ends the other one with it.
        process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True,
        )  # fmt: skip
        try:
            # A process that is gone already has said why.
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).write(payload)
                _pipe(process.stdin).flush()
            yield process, said
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            _pipe(pipe).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the process was started without pipes")
    return pipe


def _events(process: subprocess.Popen[bytes], look: Callable[[], None]) -> Iterator[Mapping[str, Any]]:
    """What the process says, one JSON object a line, until it ends; `look` is called many times a second."""
    pipe, rest = _pipe(process.stdout).fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            look()
            if not selector.select(_POLL):
                if process.poll() is not None:
                    return
                continue
            part = os.read(pipe, 1 << 16)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            yield from map(json.loads, lines)


@dataclass
class _Watch:
    """What is known of the process."""

    pid: int
    machine: Machine
    on_stage: Callable[[str], None]
    facts: dict[str, Any] | None = None
    part: str = "loading"
    advice: dict[str, Sequence[str]] = field(default_factory=dict)
    used: int = 0

    def __post_init__(self) -> None:
        start = self.machine.available()
        self.margin = 0 if start is None else min(_MARGIN, start // 8)

    def look(self) -> None:
        """See how much memory the process has and how much is left.

        Raises:
            DoesNotFitError: When too little is left.
        """
        self.used = resident(self.pid) or self.used
        free = self.machine.available()
        if free is not None and free < self.margin:
            raise self.too_large(self.used, self.used + free, "available here")

    def too_large(self, needed: int, room: int | None, who: str) -> DoesNotFitError:
        """The refusal, with the advice for the part that was running."""
        why = f"{who}; stopped {PARTS[self.part]}"
        return DoesNotFitError(needed, room, why, self.advice.get(self.part, _ELSEWHERE))

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take in what the process says.

        Raises:
            DcfError: When it says that it failed.
        """
        if "log" in event:
            name, level, text = event["log"]
            logging.getLogger(name).log(level, "%s", text)
        if "stage" in event:
            self.on_stage(event["stage"])
        self.part = event.get("part", self.part)
        self.advice |= event.get("advice", {})
        self.facts = event.get("facts", self.facts)
        if "shortage" in event:
            short = event["shortage"]
            raise self.too_large(short["needed"], short["room"], short["who"])
        if "failed" in event:
            raise _error(event["failed"]["types"], event["failed"]["message"])

    def died(self, code: int, said: IO[bytes]) -> DcfError:
        """Why the process ended without a word."""
        if code == _KILLED:
            # Nobody but the system does that: it was short of memory between two looks.
            return self.too_large(self.used, None, "the system ended the process that measures with SIGKILL")
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        last = f"\n  its last words: {lines[-1][:300]}" if lines else ""
        return RunError(f"the process that measures {how} {PARTS[self.part]}{last}")


def _error(types: Sequence[str], message: str) -> DcfError:
    """The error of the other process: of the first class in its line of ancestors that is known here."""
    for name in types:
        known = getattr(dcf.errors, name, None)
        if isinstance(known, type) and issubclass(known, DcfError):
            return known(message)
    return RunError(message)
