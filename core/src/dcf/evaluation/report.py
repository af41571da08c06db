"""Reports of evaluations, schema `dcf.eval/1`: every single value, then what it sums up to.

All of a report but its `timing` is a function of the inputs, so that it can be stored in a file that must come
out the same after an interruption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from dcf.errors import FormatError
from dcf.evaluation.statistics import Stat, summarize

__all__ = ["SCHEMA", "Report", "Row", "Run", "SetInfo", "Timing"]

SCHEMA = "dcf.eval/1"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    #: Fields that are written only where they hold something: most reports have nothing to say there.
    _sparse: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value or key not in self._sparse}


class Run(_Model):
    """One network: trained once, tested once."""

    _sparse = frozenset({"metrics", "details"})

    set: int = Field(description="number of the set it was trained on")
    net: int = Field(description="number of the network; equal numbers share initialisation and order across rows")
    seed: int = Field(description="seed of the network's initialisation")
    metric: str = Field("accuracy", description="what `value` is")
    value: float = Field(description="the value that counts; a fraction in [0, 1] for accuracies")
    last: float = Field(description="test accuracy after the last epoch, in [0, 1]")
    train_acc: float | None = Field(None, description="training accuracy over the last epoch, in [0, 1]")
    train_loss: float | None = Field(None, description="training loss over the last epoch; none once it is not finite")
    steps: int = Field(description="optimiser steps")
    images_seen: int = Field(description="images through the network in training, repetitions counted")
    diverged: bool = Field(False, description="whether the loss became NaN or infinite")
    metrics: dict[str, float] = Field({}, description="what else was measured on the network, by name")
    details: dict[str, Any] = Field({}, description="tables and curves of the network, by name")


class Row(_Model):
    """One line of a table: some training material, one network architecture."""

    _sparse = frozenset({"precision", "stats"})

    name: str = Field(description="'sets', or the name of the baseline")
    network: str = Field(description="spec of the network")
    protocol: str = Field(min_length=1, description="id of the protocol")
    augment: str = Field(description="spec of the augmentation in training")
    precision: str = Field("", description="in which precision its networks were trained; empty where it is not known")
    images: int = Field(description="training images, decoded")
    bytes: int | None = Field(None, description="stored bytes they cost; none for real images that are not stored")
    floats: int | None = Field(None, description="stored numbers; none for real images that are not stored")
    utilisation: float | None = Field(None, description="share of the budget of the set that is used")
    runs: tuple[Run, ...] = Field(description="every value")
    stat: Stat = Field(description="mean and spread of the values")
    stats: dict[str, Stat] = Field({}, description="mean and spread of each of the runs' `metrics`")
    per_class: tuple[float | None, ...] = Field((), description="accuracy of each class in [0, 1], mean over the runs")
    info: dict[str, Any] = Field({}, description="what else identifies the row, such as images a class")

    @classmethod
    def of(cls, runs: tuple[Run, ...], **fields: Any) -> Row:
        """A row with the statistics of its runs and of their metrics, sets in order of their number.

        Raises:
            ValueError: When the runs do not all have the same metrics, or measured different things.
        """
        numbers = sorted({run.set for run in runs})
        by_set = [[run for run in runs if run.set == s] for s in numbers]
        named = {(run.metric, frozenset(run.metrics)) for run in runs}
        if len(named) != 1:
            raise ValueError(f"expected runs that measured the same, got {sorted(map(str, named))}")
        stats = {m: summarize([[r.metrics[m] for r in group] for group in by_set], m) for m in runs[0].metrics}
        stat = summarize([[r.value for r in group] for group in by_set], runs[0].metric)
        return cls(runs=runs, stat=stat, stats=stats, **fields)


class SetInfo(_Model):
    """One evaluated set."""

    seed: int = Field(description="seed of the run that made it")
    sha256: str = Field(description="of its stored tensors")
    storage: dict[str, Any] = Field(description="floats, bytes, views a class, budget, utilisation, each tensor")
    selection: dict[str, Any] = Field({}, description="how the images were chosen that it started from or consists of")


class Timing(_Model):
    """What depends on the machine's mood, apart from everything else."""

    seconds: float = Field(0.0, description="whole evaluation, wall time")
    rows: dict[str, list[float]] = Field({}, description="seconds of each run, by row")


class Report(_Model):
    """The result of one evaluator. Cannot be built without the id of a protocol."""

    schema_: Literal["dcf.eval/1"] = Field("dcf.eval/1", alias="schema")
    evaluator: str = Field(description="spec of the evaluator")
    version: int = Field(1, ge=1, description="of the evaluator")
    protocol: str = Field(min_length=1, description="id; numbers under different ids are not comparable")
    protocol_hash: str = Field(min_length=1, description="over everything in the protocol that can change a number")
    settings: dict[str, Any] = Field(description="the whole protocol")
    seed: int = Field(description="of the evaluation")
    data: dict[str, Any] = Field(description="id and checksum of the dataset")
    method: dict[str, Any] = Field(description="component specs recorded in the sets")
    sets: tuple[SetInfo, ...] = Field(description="the evaluated sets")
    rows: tuple[Row, ...] = Field(min_length=1, description="results of the sets")
    summary: Stat = Field(description="the headline")
    baselines: tuple[Row, ...] = Field((), description="what stands beside it, under the same protocol")
    extra: dict[str, Any] = Field({}, description="further figures of the evaluator")
    selection: Literal["none", "val", "test"] = Field("none", description="on which images anything was chosen")
    env: dict[str, str] = Field({}, description="versions and device")
    warnings: tuple[str, ...] = Field((), description="what a reader of the numbers must know")
    timing: Timing = Field(Timing(), description="seconds; nothing else depends on the clock")

    def to_json(self, timing: bool = True) -> dict[str, Any]:
        """JSON-ready; without `timing` a function of the inputs alone."""
        return self.model_dump(mode="json", by_alias=True, exclude=set() if timing else {"timing"})

    def to_file(self) -> dict[str, Any]:
        """What belongs into the file of a set: everything but `timing`, JSON-ready."""
        return self.to_json(timing=False)

    def text(self, timing: bool = True) -> str:
        """`to_json` as text with sorted keys."""
        return json.dumps(self.to_json(timing), sort_keys=True, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str) -> Report:
        """Read what `to_json` or `text` wrote.

        Raises:
            FormatError: When it is not a report, or one of a newer schema.
        """
        try:
            return (
                cls.model_validate_json(value) if isinstance(value, str) else cls.model_validate_json(json.dumps(value))
            )
        except (ValidationError, TypeError, ValueError) as error:
            raise FormatError(f"not a report of schema '{SCHEMA}': {_first(error)}") from None

    @classmethod
    def read(cls, file: Path) -> Report:
        """Read the file that a run has written.

        Raises:
            FormatError: When it is damaged; names it.
        """
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, FormatError) as error:
            raise FormatError(f"'{file}' is damaged: {error}") from None


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        detail = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    return str(error)
