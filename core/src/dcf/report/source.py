"""What a page is about: runs and files, read as data. Torch is imported only for sets in memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcf.errors import FormatError, RunError
from dcf.evaluation.report import Report
from dcf.metadata import read_metadata
from dcf.report.metrics import Curves, read_metrics
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["Source", "read_source"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One run or file.

    Attributes:
        name: How it is called on the page: the path as it was given.
        directory: The run directory, if it is one.
        file: The file of its set, if there is one.
        header: What the file says, decoded from JSON and otherwise not believed; empty without a file.
        config: Of the run; None for a file alone.
        report: The evaluation, if there is one.
        curves: Losses and metrics of the run, by name.
        synthetic: The set, where it is in memory already.
        notes: What a reader must know.
    """

    name: str
    directory: Path | None = None
    file: Path | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    config: RunConfig | None = None
    report: Report | None = None
    curves: Curves = field(default_factory=Curves)
    synthetic: SyntheticSet | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, synthetic: SyntheticSet) -> Source:
        """A set in memory."""
        header = synthetic.describe()
        report, notes = _stored_report(header)
        name = " ".join(str(synthetic.config[k]) for k in ("matcher", "param") if k in synthetic.config)
        return cls(name or "set in memory", header=header, report=report, synthetic=synthetic, notes=notes)

    @property
    def specs(self) -> dict[str, str]:
        """Component specs by role."""
        if self.config is not None:
            return {**self.config.specs(), "labels": self.config.labels, "protocol": self.config.protocol}
        return {str(key): str(value) for key, value in self.header.get("config", {}).items()}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run but the specs, by name."""
        run = self.header.get("run", {}) if self.config is None else self.config.model_dump(mode="json")
        return {str(key): value for key, value in run.items() if key not in self.specs}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, as far as they are known."""
        found = self.header.get("classes")
        return tuple(map(str, found)) if isinstance(found, list) else ()


def read_source(path: Path | str) -> Source:
    """Read a run directory or a file of a set, without torch and without its tensors.

    Raises:
        RunError: When a directory holds neither a run nor a set, or a run cannot be read.
        FormatError: When a file is damaged, or no condensed set.
    """
    path = Path(path)
    if not path.is_dir():
        header = read_metadata(path)
        report, notes = _stored_report(header)
        return Source(str(path), file=path, header=header, report=report, notes=notes)
    return _read_run(RunDir(path))


def _read_run(run: RunDir) -> Source:
    finished = run.result.is_file()
    if not finished and not run.config_file.is_file():
        raise RunError(f"'{run.path}' holds neither a run nor a condensed set")
    header = read_metadata(run.result) if finished else {}
    report, notes = _stored_report(header)
    config = run.config() if run.config_file.is_file() else None
    if not run.report.is_file() and config is not None:
        notes = (*notes, "This run is not finished.")
    curves = read_metrics(run.metrics_file) if run.metrics_file.is_file() else Curves()
    file = run.result if finished else None
    return Source(str(run.path), run.path, file, header, config, report, curves, notes=notes)


def _stored_report(header: Mapping[str, Any]) -> tuple[Report | None, tuple[str, ...]]:
    """The evaluation that a file holds, or why there is none."""
    if "results" not in header:
        return None, ("It has not been evaluated.",) if header else ()
    try:
        return Report.from_json(header["results"]), ()
    except FormatError as error:
        log.warning("the results in the file are left out: %s", error)
        return None, ("The results that the file holds are not of a form that is read.",)
