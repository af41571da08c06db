"""A run directory: configuration, metrics, checkpoints, results. Torch is imported only to read a checkpoint."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dcf.errors import FormatError, RunError
from dcf.files import atomic_write, read_tensors, write_tensors
from dcf.runconfig import RunConfig, from_toml, to_toml

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RunDir", "default_directory"]

log = logging.getLogger(__name__)

_KEPT: Final = 2


class RunDir:
    """The files of one run.

    Args:
        path: The directory; created by `create`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.result = self.path / "synthetic.safetensors"
        self.preview = self.path / "preview.png"
        self.report = self.path / "report.json"
        self.page = self.path / "report.html"

    # --- life ------------------------------------------------------------------------------------

    def create(self, config: RunConfig, force: bool = False) -> None:
        """Start a new run here; what a run before it left is removed once the new configuration is on the disk.

        Raises:
            RunError: When a run is here already and `force` is not set, or nothing can be written here.
        """
        self.require_free(force)
        # Its place is taken last, when no checkpoint is left that could pass for one of the new run.
        waiting = self.path / f".{self.config_file.name}.tmp"
        atomic_write(waiting, to_toml(config))
        try:
            self._make(self.checkpoints)
            for old in (self.metrics_file, self.result, self.preview, self.report, self.page):
                self._remove(old)
            for old in self.checkpoints.glob("*.safetensors"):
                self._remove(old)
            self._move(waiting, self.config_file)
        finally:
            self._remove(waiting)

    def require_free(self, force: bool = False) -> None:
        """Make sure that a new run may start here.

        Raises:
            RunError: When a run is here already and `force` is not set.
        """
        if self.config_file.exists() and not force:
            state = (
                "a finished run"
                if self.report.exists()
                else f"an unfinished run; continue it with: dcf resume {self.path}"
            )
            raise RunError(f"'{self.path}' holds {state}     (another place: --out DIR; start over: --force)")

    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            RunError: When this is not a run directory.
        """
        return from_toml(self.config_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on the same run; the lock goes with the process, however it ends.

        Raises:
            RunError: When another process has it.
        """
        self._make(self.path)
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(f"cannot write in '{self.path}': {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise RunError(f"another process is working on '{self.path}'") from None
        try:
            self._remove_leftovers()
            yield
        finally:
            os.close(handle)

    def _remove_leftovers(self) -> None:
        """Remove what a killed process had not finished writing; only the holder of the lock may."""
        for directory in (self.path, self.checkpoints):
            for old in directory.glob(".*.tmp"):
                self._remove(old)

    # --- metrics ---------------------------------------------------------------------------------

    def append_metrics(self, rows: list[Mapping[str, Any]]) -> None:
        """Add rows to the metrics, one JSON object a line."""
        if not rows:
            return
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows)
        except OSError as error:
            raise RunError(f"cannot write '{self.metrics_file}': {error.strerror}") from None

    def truncate_metrics(self, it: int) -> None:
        """Forget rows after iteration `it`, which will be run again."""
        if not self.metrics_file.exists():
            return
        kept = []
        try:
            text = self.metrics_file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise RunError(f"cannot read '{self.metrics_file}': {error.strerror}") from None
        for line in text.split("\n"):
            try:
                if json.loads(line)["it"] <= it:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                break  # the line that a kill cut off
        atomic_write(self.metrics_file, "".join(kept))

    # --- checkpoints -----------------------------------------------------------------------------

    def save_checkpoint(self, it: int, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state after `it` iterations and drop all but the newest two.

        Raises:
            RunError: When it cannot be written; the others are still there.
        """
        path = self.checkpoints / f"{it:08d}.safetensors"
        try:
            write_tensors(path, state, {"dcf.checkpoint": json.dumps({"it": it, **facts})})
        except RunError as error:
            raise RunError(
                f"{error}\n  mend that, for a full disk by making room, then: dcf resume {self.path}"
            ) from None
        for old in self._checkpoints()[:-_KEPT]:
            self._remove(old)

    def newest_checkpoint(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Iterations done, state and facts of the newest checkpoint that can be read; None without any."""
        damaged: Exception | None = None
        for path in reversed(self._checkpoints()):
            try:
                state, metadata = read_tensors(path)
                facts = json.loads(metadata["dcf.checkpoint"])
                return int(facts["it"]), state, facts
            except FormatError as error:
                damaged = error
            except (KeyError, TypeError, ValueError, RecursionError):
                damaged = FormatError(f"'{path}' is not a checkpoint")
            log.warning("%s; going back to the checkpoint before", damaged)
        if damaged is not None:
            raise RunError(f"no checkpoint of '{self.path}' can be read: {damaged}")
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted(
            (p for p in self.checkpoints.glob("*.safetensors") if p.stem.isdecimal()), key=lambda p: int(p.stem)
        )

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove '{path}': {error.strerror}") from None

    def _move(self, path: Path, target: Path) -> None:
        try:
            path.replace(target)
        except OSError as error:
            raise RunError(f"cannot write '{target}': {error.strerror}") from None

    def _make(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the directory '{path}': {error.strerror}") from None


def _strict(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it, which knows no NaN: what is not finite becomes null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def default_directory(config: RunConfig, root: Path | str = "runs") -> Path:
    """`runs/<data>-<specs>-<n>` with the smallest n that is free."""
    parts = [config.data.split(":")[0]]
    parts += [
        re.sub(r"[^A-Za-z0-9.+-]+", "_", text)
        for text in (config.matcher, config.param, config.augment)
        if text not in ("none", "pixels")
    ]
    stem = "-".join(parts)[:80] + f"-ipc{config.ipc}" * (config.ipc is not None)
    number = 1
    while (path := Path(root) / f"{stem}-{number}").exists():
        number += 1
    return path
