"""The process of one cell: `python -m dcf.bench.worker DIRECTORY` runs or resumes the run that stands there.

It ends with its parent: when the pipe that is its standard input closes, nobody waits for it any more.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dcf.bench.gather import FAILED, PROGRESS
from dcf.engine import Progress
from dcf.errors import RunError
from dcf.files import atomic_write
from dcf.processes import INTERRUPTED, end_with_parent
from dcf.resolve import resolve
from dcf.run import Listener, prepare, resume, start
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir
from dcf.runtime import keep_freed_pages

__all__ = ["main", "run_cell"]

#: Seconds between two notes of how far it is.
_EVERY: Final = 1.0


class Notes(Listener):
    """Writes down how far a cell is and how long it took so far, over all its starts.

    Args:
        path: The cell's directory.
    """

    def __init__(self, path: Path) -> None:
        self.file = path / PROGRESS
        self.facts: dict[str, Any] = {"stage": "", "done": 0, "total": 0, "condense": 0.0, "evaluate": 0.0}
        try:
            before = json.loads(self.file.read_text(encoding="utf-8"))
            self.facts |= {key: float(before[key]) for key in ("condense", "evaluate")}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the first start, or a note that a kill cut off
        self._since = self._written = time.monotonic()

    def stage(self, text: str) -> None:
        """A stage begins."""
        self._note(text, 0, 0, True)

    def step(self, progress: Progress) -> None:
        """An outer iteration is done."""
        self._note("condensing", progress.it, progress.iterations, False)

    def evaluated(self, row: str, done: int, total: int, accuracy: float) -> None:
        """An evaluation network is trained and tested."""
        self._note("evaluating", done, total, False)

    def close(self) -> None:
        """Write the last note."""
        self._note(str(self.facts["stage"]), int(self.facts["done"]), int(self.facts["total"]), True)

    def _note(self, stage: str, done: int, total: int, now: bool) -> None:
        at = time.monotonic()
        key = {"condensing": "condense", "evaluating": "evaluate"}.get(str(self.facts["stage"]))
        if key is not None:
            self.facts[key] += at - self._since
        self._since = at
        self.facts |= {"stage": stage, "done": done, "total": total}
        if now or at - self._written >= _EVERY:
            self._written = at
            atomic_write(self.file, json.dumps(self.facts))


def run_cell(path: Path) -> bool:
    """Bring a cell to its end.

    Returns:
        Whether it got there; False when it was interrupted.
    """
    directory, notes = RunDir(path), Notes(path)
    config = directory.config()
    try:
        if any(directory.checkpoints.glob("*.safetensors")):
            outcome = resume(path, notes)
        else:
            prepared = prepare(resolve(_settings(config)), notes)
            named = prepared.config.model_copy(update={"recipe": config.recipe})
            outcome = start(replace(prepared, config=named), directory, True, notes)
    finally:
        notes.close()
    return not outcome.interrupted


def _settings(config: RunConfig) -> dict[str, Any]:
    return {k: v for k, v in config.model_dump().items() if k != "recipe"}


def main(argv: list[str] | None = None) -> int:
    """Run a cell; 0: done, 1: failed, 130: interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        raise RunError("expected the directory of one cell")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s: %(message)s")
    end_with_parent()
    keep_freed_pages()
    try:
        return 0 if run_cell(Path(arguments[0])) else INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        from dcf.cli.entry import explain

        message, _ = explain(error)
        logging.getLogger(__name__).debug("failed", exc_info=error)
        print(f"{FAILED}{message}", file=sys.stderr, flush=True)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


if __name__ == "__main__":
    sys.exit(main())
