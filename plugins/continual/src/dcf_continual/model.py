"""`continual.json`, schema `dcf.continual/1`: every count of a stream, and what it sums up to. Torch-free.

All of it but `timing` is a function of the settings and the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import dcf
from dcf.evaluation import Stat, summarize
from dcf.files import atomic_write
from dcf_continual.metrics import Matrix, accuracy_after, average_incremental, backward_transfer, forgetting

__all__ = [
    "FILE",
    "HEADS",
    "SCHEMA",
    "MemoryFacts",
    "NetRun",
    "OrderResult",
    "Stream",
    "StreamRow",
    "read_stream",
    "row_of",
]

SCHEMA: Final = "dcf.continual/1"
FILE: Final = "continual.json"
#: Which answers compete: those for all classes, for those seen so far, or for those of the image's own step.
HEADS: Final = ("all", "seen", "step")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class MemoryFacts(_Model):
    """The memory after one step."""

    bytes: int = Field(description="stored bytes of all classes seen")
    views: int = Field(description="training images that it decodes to")
    tensors: str = Field(description="sha256 of what is stored")


class NetRun(_Model):
    """One network of one order, or the chain of its states: what it answered after each step."""

    net: int = Field(description="number of the network; equal numbers share initialisation and order across methods")
    hits: dict[str, tuple[tuple[int, ...], ...]] = Field(
        description="correct answers by head ('all', 'seen' or 'step'): hits[head][t][j] after step t on group j"
    )
    train_loss: tuple[float | None, ...] = Field(description="of the last epoch of each step; none: not finite")
    optimiser_steps: tuple[int, ...] = Field(description="optimiser steps of each step of the stream")

    def matrix(self, head: str, counts: Sequence[int]) -> list[list[float]]:
        """`A[t][j]` in [0, 1]."""
        return [[h / n for h, n in zip(row, counts, strict=False)] for row in self.hits[head]]


class OrderResult(_Model):
    """One order of the classes."""

    seed: int = Field(description="of the order, of condensing and of training")
    groups: tuple[tuple[str, ...], ...] = Field(description="class names of each step")
    counts: tuple[int, ...] = Field(description="test images of each step's classes")
    memory: tuple[MemoryFacts, ...] = Field(description="the memory after each step")
    runs: tuple[NetRun, ...] = Field(description="networks")


class StreamRow(_Model):
    """One method over all orders."""

    label: str = Field(description="name of the method")
    specs: dict[str, str] = Field(description="component specs by role")
    iterations: int = Field(description="outer iterations of condensing")
    orders: tuple[OrderResult, ...] = Field(description="class orders")
    accuracy: dict[str, tuple[Stat, ...]] = Field(description="by head: accuracy on classes seen, after each step")
    average: dict[str, Stat] = Field(description="by head: average incremental accuracy, the mean over the steps")
    final: dict[str, Stat] = Field(description="by head: accuracy after the last step")
    forgetting: dict[str, Stat] = Field({}, description="by head; of learners from scratch it is dilution of memory")
    backward_transfer: dict[str, Stat] = Field({}, description="by head")


class Stream(_Model):
    """A stream as far as it is."""

    schema_: Literal["dcf.continual/1"] = Field("dcf.continual/1", alias="schema")
    id: str = Field(min_length=1, description="of the stream's protocol; numbers under different ids do not compare")
    head: str = Field(description="head of the headline")
    settings: dict[str, Any] = Field(description="the whole of what was asked for")
    training: dict[str, Any] = Field(description="the whole protocol that networks were trained by")
    data: tuple[dict[str, str], ...] = Field(description="id and checksum of each dataset")
    classes_seen: tuple[int, ...] = Field(description="number of classes seen after each step")
    environment: dict[str, str] = Field({}, description="versions and device")
    rows: tuple[StreamRow, ...] = Field((), description="methods, as far as they are")
    timing: dict[str, float] = Field({}, description="seconds; nothing else depends on the clock")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Everything that is shown is there: the file may come from anywhere."""
        if self.head not in HEADS:
            raise ValueError(f"expected one of {', '.join(HEADS)} as its head, got '{self.head}'")
        for row in self.rows:
            tables = {*row.accuracy} & {*row.average} & {*row.final}
            lengths = {len(stats) for stats in row.accuracy.values()} | {len(one.memory) for one in row.orders}
            if not tables.issuperset(HEADS) or not row.orders or lengths != {len(self.classes_seen)}:
                raise ValueError(f"row '{row.label}' does not have the accuracies of {len(self.classes_seen)} steps")
        return self

    def to_json(self, timing: bool = True) -> dict[str, Any]:
        """JSON-ready; without `timing` a function of settings and data alone."""
        return self.model_dump(mode="json", by_alias=True, exclude=set() if timing else {"timing"})

    def write(self, path: Path) -> None:
        """Write the file, all of it or nothing."""
        atomic_write(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def row_of(label: str, specs: Mapping[str, str], iterations: int, orders: Sequence[OrderResult]) -> StreamRow:
    """A row with all that its orders sum up to.

    Args:
        label: Name of the method.
        specs: Component specs by role.
        iterations: Outer iterations.
        orders: At least one, with equally many networks.
    """
    heads = list(orders[0].runs[0].hits)
    steps = len(orders[0].groups)

    def over(head: str, metric: str, of: Callable[[Matrix, Sequence[int]], float | None]) -> Stat | None:
        values = [[of(run.matrix(head, one.counts), one.counts) for run in one.runs] for one in orders]
        known = [[v for v in row if v is not None] for row in values]
        return summarize(known, metric) if all(known) else None

    def table(metric: str, of: Callable[[Matrix, Sequence[int]], float | None]) -> dict[str, Stat]:
        found = {head: over(head, metric, of) for head in heads}
        return {head: stat for head, stat in found.items() if stat is not None}

    after = {
        head: tuple(
            stat
            for t in range(steps)
            if (stat := over(head, "accuracy", lambda m, n, t=t: accuracy_after(m, n)[t])) is not None  # type: ignore[misc]
        )
        for head in heads
    }
    return StreamRow(
        label=label, specs=dict(specs), iterations=iterations, orders=tuple(orders), accuracy=after,
        average=table("accuracy", lambda m, n: average_incremental(accuracy_after(m, n))),
        final=table("accuracy", lambda m, n: accuracy_after(m, n)[-1]),
        forgetting=table("forgetting", lambda m, n: forgetting(m)),
        backward_transfer=table("backward transfer", lambda m, n: backward_transfer(m)),
    )  # fmt: skip


def read_stream(path: Path) -> Stream:
    """Read what a stream came to.

    Args:
        path: Its file, or its directory.

    Raises:
        FormatError: When it is not there, or is no such file.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return Stream.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise dcf.FormatError(f"there is no stream at '{path}': expected a {FILE} or its directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise dcf.FormatError(f"cannot read '{file}': {getattr(error, 'strerror', None) or error}") from None
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"]))
        raise dcf.FormatError(f"'{file}' is not a stream of schema '{SCHEMA}': {where}: {detail['msg']}") from None
