"""Where text goes: stdout is the result, stderr everything else; and text of others made safe to show."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from dcf.texts import clean

__all__ = ["clean", "error", "logging_restored", "print_json", "setup_logging", "stderr", "stdout"]

#: Width of tables where stdout is no terminal; nothing is padded to it.
_WIDE: Final = 200
#: The one console of stderr: log lines and the progress bar share it.
stderr: Final = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def stdout() -> Console:
    """A console for results; as wide as the terminal, and wide where there is none."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(markup=False, highlight=False, emoji=False, width=None if narrow else _WIDE)


def print_json(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """One JSON object, or a list of some, on stdout; pure ASCII, so that nothing in it can steer a terminal."""
    typer.echo(json.dumps(value, indent=1))


def error(message: str) -> None:
    """`error: MESSAGE` on stderr, as it is: no markup, no wrapping, so that carets stay under their spot."""
    safe = "\n".join(clean(line, 2000) for line in message.split("\n"))
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {safe}", err=True)


class _PlainFormatter(logging.Formatter):
    """Messages as they are, with the level in front where it is worth a look."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def _ours_or_serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0].partition("_")[0] == "dcf"


@contextmanager
def logging_restored() -> Iterator[None]:
    """Put logging back as it was: a program that calls `main` is not left with our handler and level."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)
        logging.captureWarnings(False)


def setup_logging(level: int) -> None:
    """Send log records to stderr: those of dcf and its plugins from `level` on, of others from WARNING on."""
    handler: logging.Handler
    if stderr.is_terminal:
        handler = RichHandler(
            console=stderr, show_path=False, log_time_format="[%H:%M:%S]", highlighter=NullHighlighter()
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PlainFormatter())
    handler.addFilter(_ours_or_serious)
    handler.name = "dcf-cli"
    root = logging.getLogger()
    for old in [h for h in root.handlers if h.name == handler.name]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
