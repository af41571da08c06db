"""Cells: the runs that a bench is made of. Each is a run directory, found again by what it runs, not by its name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from dcf.bench.plan import changed_rules
from dcf.errors import DcfError, FormatError
from dcf.evaluation.report import Report
from dcf.files import atomic_write, verify
from dcf.runconfig import RunConfig, from_toml, to_toml
from dcf.rundir import RunDir

__all__ = ["Cell", "cell_key", "make_cell", "read_report"]

#: Settings that decide where and how a run computes, or what it is called, but not what comes out.
_PLACES: Final = frozenset({"recipe", "data", "device", "class_chunk", "checkpoint_every", "evaluate", "protocol_set"})
_KEY_VERSION: Final = 1


@dataclass(frozen=True)
class Cell:
    """One run of a bench: one set, condensed and evaluated.

    Attributes:
        key: 64 hexadecimal digits over everything that decides its outcome.
        name: Name of its directory.
        path: The directory.
        config: The run.
        data: Id and checksum of its dataset.
    """

    key: str
    name: str
    path: Path
    config: RunConfig
    data: tuple[str, str]

    @property
    def state(self) -> Literal["done", "begun", "new"]:
        """How far it is: evaluated, begun, or not begun; one whose report or set is damaged has to be run again."""
        run = RunDir(self.path)
        if _is_sound(run, self.config.evaluate):
            return "done"
        return "begun" if run.config_file.exists() else "new"

    def write(self) -> None:
        """Write what is to be run; a run that was begun stays as it is but for the place of its data and its device."""
        run = RunDir(self.path)
        config = self.config
        if run.config_file.exists():
            before = run.config()
            device = before.device if config.device == "auto" else config.device
            config = before.model_copy(update={"data": config.data, "device": device})
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write(run.config_file, to_toml(config))
        if run.report.exists() and self.state != "done":  # a run that has a report would be taken for a finished one
            run.report.unlink()


def read_report(path: Path) -> Report:
    """The report in a run directory.

    Raises:
        FormatError: When it is damaged.
    """
    file = RunDir(path).report
    return _cached_report(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=10_000)
def _cached_report(file: Path, _changed: int) -> Report:
    return Report.read(file)


def _is_sound(run: RunDir, evaluated: bool) -> bool:
    """Whether a run is finished, and both its report and its set are what was written."""
    try:
        if evaluated:
            read_report(run.path)
        else:  # it says so, and nothing else
            json.loads(run.report.read_text(encoding="utf-8"))
        _verify(run.result, run.result.stat().st_mtime_ns)
    except (OSError, ValueError, FormatError):
        return False
    return True


@lru_cache(maxsize=10_000)
def _verify(file: Path, _changed: int) -> None:
    verify(file)


def cell_key(config: RunConfig, data_id: str, checksum: str) -> str:
    """The key of a run on a dataset.

    Settings at their defaults are left out, so that a setting that is new does not change the keys of earlier runs.

    Args:
        config: The run, complete.
        data_id: Id of the dataset, without its place.
        checksum: Of the dataset's images and labels.
    """
    values: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True, exclude=set(_PLACES))
    if not config.baselines:
        values.pop("baselines", None)
    if config.replicas == 1:
        values.pop("replicas", None)  # what 'auto' becomes in the one process of a cell
    values |= {
        "key_version": _KEY_VERSION,
        "data": [data_id, checksum],
        "protocol": changed_rules(config.model_dump()).id,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def make_cell(root: Path, config: RunConfig, data: tuple[str, str], number: int) -> Cell:
    """The cell of a run, in the directory it has already or the one that it is to get.

    Args:
        root: Directory of the bench.
        config: The run.
        data: Id and checksum of its dataset.
        number: Of the set.
    """
    key = cell_key(config, *data)
    for digits in (8, 16, 64):
        found = sorted((root / "cells").glob(f"*-{key[:digits]}"))
        path = found[0] if found else root / "cells" / f"{_slug(config, number)}-{key[:digits]}"
        if _is_ours(path, key, data):
            break
    return Cell(key, path.name, path, config, data)


def _is_ours(path: Path, key: str, data: tuple[str, str]) -> bool:
    """Whether a directory is free, or holds this very run."""
    if not (path / "config.toml").exists():
        return True
    try:
        return cell_key(from_toml(path / "config.toml"), *data) == key
    except DcfError:
        return False


def _slug(config: RunConfig, number: int) -> str:
    chosen: Mapping[str, str] = config.specs()
    parts = [chosen["data"].partition(":")[0]]
    roles = ("matcher", "param", "augment") if config.matcher != "none" else ("init", "param", "augment")
    parts += [chosen[role] for role in roles if chosen[role] not in ("none", "pixels")]
    parts += ["whole"] if "whole" in config.baselines else []
    parts.append(f"ipc{config.ipc}" if config.ipc is not None else str(config.budget).replace("=", ""))
    return "-".join(re.sub(r"[^A-Za-z0-9.+]+", "_", part) for part in parts)[:80] + f"-s{number}"
