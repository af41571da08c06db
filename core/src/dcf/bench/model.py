"""`bench.json`, schema `dcf.bench/1`: every value of a bench, and what it sums up to. Torch-free.

All of it but `timing` is a function of the cells.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcf.errors import FormatError
from dcf.evaluation.statistics import Stat
from dcf.files import atomic_write

__all__ = ["SCHEMA", "Bench", "BenchRow", "BenchTiming", "CellRecord", "CellTiming", "Failure", "read_bench"]

SCHEMA: Final = "dcf.bench/1"
_FILE: Final = "bench.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class CellRecord(_Model):
    """One set of a row, and where it is."""

    set: int = Field(ge=0, description="number of the set")
    seed: int = Field(description="seed of its run and of its evaluation")
    directory: str = Field(description="run directory, relative to the file")
    state: Literal["done", "missing", "failed"] = Field(description="whether its values are there")
    sha256: str = Field("", description="of its file")
    tensors: str = Field("", description="sha256 of what is stored in it")


class BenchRow(_Model):
    """One method, or one baseline, on one dataset with one budget."""

    label: str = Field(description="name of the method, or of the baseline")
    role: Literal["method", "random", "whole"] = Field(description="what the row is")
    recipe: str = Field("", description="recipe its settings came from, if any")
    specs: dict[str, str] = Field(description="component specs by role")
    sweep: dict[str, str] = Field({}, description="swept values by dotted key")
    config: dict[str, Any] = Field({}, description="settings of the run that are not defaults")
    data: dict[str, str] = Field(description="spec, id and checksum of the dataset")
    budget: str | None = Field(description="as UNIT=N; none for the whole training set")
    iterations: int = Field(ge=0, description="outer iterations")
    floats: int | None = Field(None, description="stored floats, the most of all sets")
    bytes: int | None = Field(None, description="stored bytes, the most of all sets")
    views: float | None = Field(None, description="training images a class that a set decodes to")
    protocol: str = Field(min_length=1, description="id; numbers under different ids are not comparable")
    protocol_hash: str = Field(min_length=1, description="over everything in the protocol that can change a number")
    augment: str = Field(description="spec of the augmentation in training on the set")
    network: str = Field(description="spec of the network that is trained on the set")
    sets: int = Field(ge=1, description="sets that were asked for")
    nets: int = Field(ge=1, description="networks a set that were asked for")
    precision: str = Field("", description="in which precision its networks were trained; empty where it is not known")
    values: tuple[tuple[float, ...], ...] = Field((), description="accuracies in [0, 1]: values[set][network]")
    numbers: tuple[int, ...] = Field((), description="number of the set of each row of 'values'")
    net_seeds: tuple[tuple[int, ...], ...] = Field((), description="seed of each network, as 'values'")
    stat: Stat | None = Field(None, description="mean and spread of the values; none before there are any")
    cells: tuple[CellRecord, ...] = Field((), description="the runs behind it")
    note: str = Field("", description="why it was not run, or what a reader must know")

    @property
    def data_name(self) -> str:
        """The dataset as tables call it."""
        return self.data["id"]


class Failure(_Model):
    """A cell that could not be finished."""

    cell: str = Field(description="name of its directory")
    label: str = Field(description="of its row")
    reason: str = Field(description="first line of the message")


class CellTiming(_Model):
    """Seconds of one cell."""

    condense: float = Field(0.0, description="wall time of the condensation, repeated iterations included")
    evaluate: float = Field(0.0, description="wall time of the evaluation")


class BenchTiming(_Model):
    """What depends on the machine's mood, apart from everything else."""

    cells: dict[str, CellTiming] = Field({}, description="by name of the cell's directory")


class Bench(_Model):
    """A bench as far as it is."""

    schema_: Literal["dcf.bench/1"] = Field("dcf.bench/1", alias="schema")
    name: str = Field("", description="name of its directory")
    preset: Literal["std", "quick"] = Field(description="quick: its numbers are not comparable with any others")
    settings: dict[str, Any] = Field(description="what was asked for")
    environment: tuple[dict[str, str], ...] = Field((), description="versions and devices of the cells, each once")
    rows: tuple[BenchRow, ...] = Field(description="methods and baselines")
    failures: tuple[Failure, ...] = Field((), description="cells that could not be finished")
    timing: BenchTiming = Field(BenchTiming(), description="seconds; nothing else depends on the clock")

    @property
    def comparable(self) -> bool:
        """Whether its numbers may be compared with those of others."""
        return self.preset != "quick"

    def to_json(self, timing: bool = True) -> dict[str, Any]:
        """JSON-ready; without `timing` a function of the cells alone."""
        return self.model_dump(mode="json", by_alias=True, exclude=set() if timing else {"timing"})

    def write(self, path: Path) -> None:
        """Write the file, all of it or nothing."""
        atomic_write(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def read_bench(path: Path) -> Bench:
    """Read a bench.

    Args:
        path: Its file, or its directory.

    Raises:
        FormatError: When it is not there, or is no bench.
    """
    file = path / _FILE if path.is_dir() else path
    try:
        return Bench.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"there is no bench at '{path}': expected a {_FILE} or its directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read '{file}': {getattr(error, 'strerror', None) or error}") from None
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        raise FormatError(f"'{file}' is not a bench of schema '{SCHEMA}': {where}: {detail['msg']}") from None
