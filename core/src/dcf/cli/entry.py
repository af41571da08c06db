"""`main`: runs a command and turns whatever it raises into one message and an exit status."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Final

import typer
from typer.main import get_command

from dcf.cli.app import build
from dcf.cli.console import error as show_error
from dcf.cli.console import logging_restored
from dcf.errors import DcfError
from dcf.processes import INTERRUPTED, rank

__all__ = ["explain", "main"]

#: Options that are the same for all commands and may stand before or after the command's name.
_GLOBAL: Final = frozenset({"-v", "--verbose", "-q", "--quiet", "--debug"})
#: What to do where memory is short; `dcf estimate` knows more of a run.
_LESS: Final = (
    "try a smaller network or batch, or, to condense, fewer images (--ipc) or fewer classes at once (--class-chunk N); "
    "'dcf estimate' says what a run needs"
)
#: Seconds that the first of several processes has to say what is wrong with the request.
_COURTESY: Final = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    arguments = _global_first(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("DCF_DEBUG", "") not in ("", "0")
    try:
        with logging_restored():
            result = get_command(build()).main(arguments, prog_name="dcf", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except (Exception, KeyboardInterrupt) as problem:
        if debug and not isinstance(problem, KeyboardInterrupt):
            traceback.print_exception(problem, file=sys.stderr)
        message, status = explain(problem)
        if message and rank():
            # What is wrong with the request is wrong in every process alike. The first one says it, if it is given the
            # time: the launcher ends all others with the first that ends.
            time.sleep(_COURTESY if status == 2 else 0)
            message = f"process {rank()}: {message}"
        if message:
            show_error(message)
        return status


def explain(problem: BaseException) -> tuple[str, int]:
    """The message for people and the exit status of an exception; the message is empty where all is said."""
    if isinstance(problem, DcfError):
        return str(problem), problem.exit_code
    if isinstance(problem, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", INTERRUPTED
    if hasattr(problem, "format_message"):
        return _usage(problem), int(getattr(problem, "exit_code", 2))
    # Only where something failed: what it takes to know has no place in the start of a program.
    from dcf.estimate.shortage import is_shortage

    if is_shortage(problem):
        return f"out of memory: {_first_line(problem)}\n  {_LESS}", 1
    if isinstance(problem, OSError):
        where = f" '{problem.filename}'" if problem.filename is not None else ""
        return f"{problem.strerror or type(problem).__name__}{':' if where else ''}{where}", 1
    name = type(problem).__name__
    return f"internal error: {name}: {problem}; run again with DCF_DEBUG=1 to see where", 1


def _usage(problem: BaseException) -> str:
    """The parser's complaint in the house form; empty for `no arguments`, which has shown the help."""
    text: str = problem.format_message().strip().rstrip(".")  # type: ignore[attr-defined]
    if not text:
        return ""
    ctx = getattr(problem, "ctx", None)
    command = ctx.command_path if ctx is not None else "dcf"
    # Values are checked by pydantic, which has a voice of its own.
    text = text.replace(": Value error, ", ": ").replace(": Input should be ", ": expected a value ")
    return f"{text[0].lower()}{text[1:]}\n  see: {command} --help"


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]


def _global_first(arguments: Sequence[str]) -> list[str]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = arguments[:end]
    chosen = [a for a in head if a in _GLOBAL]
    return [*chosen, *(a for a in head if a not in _GLOBAL), *arguments[end:]]


def _silence_stdout() -> None:
    """Keep the interpreter from complaining when it flushes into the closed pipe at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
