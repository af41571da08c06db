"""`Estimate`: what was measured, what follows from it, and whether it fits. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Final

from dcf.errors import DcfError
from dcf.estimate.units import size_text

__all__ = ["DoesNotFitError", "Estimate", "EvaluationRow", "Sample", "iteration_seconds", "judged"]

#: Parts of a run that can take too much memory, in their order, and how they are called.
PARTS: Final[Mapping[str, str]] = {
    "loading": "while loading the data",
    "preparing": "while preparing",
    "condensing": "while condensing",
    "evaluating": "while evaluating",
}


@dataclass(frozen=True)
class Sample:
    """One outer iteration that was run, wholly or until some update.

    Attributes:
        it: Its number.
        updates: Seconds up to the first update, and from each to the next.
        rest: Seconds from the last update to the end of the iteration; None where it was cut short.
    """

    it: int
    updates: tuple[float, ...]
    rest: float | None

    def seconds(self, updates: int) -> float:
        """Seconds of the whole iteration: the first update and, for each further one, the mean of those measured.

        Args:
            updates: Updates of a whole iteration; an iteration that was not cut short knows them itself.
        """
        if self.rest is not None:
            return sum(self.updates) + self.rest
        later = self.updates[1:] or self.updates
        return self.updates[0] + (updates - 1) * sum(later) / len(later)


def iteration_seconds(samples: Sequence[Sample], updates: int) -> tuple[float, ...]:
    """Seconds of an iteration as each sample says: all but the first, which warms up, where there are any."""
    return tuple(sample.seconds(updates) for sample in samples[1:] or samples)


@dataclass(frozen=True)
class EvaluationRow:
    """What one row of the evaluation takes.

    Attributes:
        name: "sets", "random" or "whole"; of sets that are programs "replay" and "random-replay" in place of "sets".
        networks: Networks that are trained and tested.
        epochs: Epochs of each; 1 of a program.
        train_seconds: Seconds that training one takes.
        test_seconds: Seconds that testing one takes.
    """

    name: str
    networks: int
    epochs: int
    train_seconds: float
    test_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of the row."""
        return self.networks * (self.train_seconds + self.test_seconds)


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Times are in seconds, memory in bytes. On a CPU memory is that of the whole process, program and data included;
    on a GPU it is what torch reserves there.

    Attributes:
        device: Where it was measured.
        iterations: Outer iterations of the run.
        updates: Updates of the set in each.
        samples: The iterations that were run, the first one with everything that is done only once.
        start: To start the program and load the data.
        preparation: Of what the matcher does before the first iteration, as it says itself.
        initialisation: To choose the first images and give the set its starting values.
        evaluation: Rows of the evaluation; empty where there is none.
        baseline_bytes: Memory once the data are loaded.
        peaks: Highest memory up to the end of each part: "preparing", "condensing", "evaluating".
        host_bytes: Highest memory of the process outside the GPU; on a CPU the same as `peak_bytes`.
        available_bytes: What the process could have had here; None where the system does not say.
        stored_bytes: Of the tensors that the budget pays for.
        checkpoint_bytes: Of one checkpoint; a run keeps two.
        kernels: To make compiled kernels, each once (see `dcf.compiled`); in no other time.
        config: The run, completely resolved.
        advice: By part of the run, what would make it smaller.
        limit_bytes: The limit that was given.
    """

    device: str
    iterations: int
    updates: int
    samples: tuple[Sample, ...]
    start: float
    preparation: float
    initialisation: float
    evaluation: tuple[EvaluationRow, ...]
    baseline_bytes: int
    peaks: Mapping[str, int]
    host_bytes: int
    available_bytes: int | None
    stored_bytes: int
    checkpoint_bytes: int
    kernels: float = 0.0
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    advice: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    limit_bytes: int | None = None

    @property
    def seconds_per_iteration(self) -> float:
        """Mean over the samples, the first left out where there are others; 0 for a run without iterations."""
        known = iteration_seconds(self.samples, self.updates)
        return sum(known) / len(known) if known else 0.0

    @property
    def spread(self) -> tuple[float, float]:
        """The quickest and the slowest of the iterations behind `seconds_per_iteration`, in seconds."""
        known = iteration_seconds(self.samples, self.updates)
        return (min(known), max(known)) if known else (0.0, 0.0)

    @property
    def warm_up(self) -> float:
        """Seconds that the first iteration takes longer than others; 0 where only that one was measured."""
        if len(self.samples) < 2:
            return 0.0
        return max(0.0, self.samples[0].seconds(self.updates) - self.seconds_per_iteration)

    @property
    def condensing_seconds(self) -> float:
        """Seconds of all iterations."""
        return self.iterations * self.seconds_per_iteration + self.warm_up

    @property
    def evaluation_seconds(self) -> float:
        """Seconds of the evaluation."""
        return sum(row.seconds for row in self.evaluation)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, from the start of the program."""
        before = self.start + self.preparation + self.initialisation + self.kernels
        return before + self.condensing_seconds + self.evaluation_seconds

    @property
    def peak_bytes(self) -> int:
        """Highest memory of the whole run."""
        return max([self.baseline_bytes, *self.peaks.values()])

    @property
    def room_bytes(self) -> int | None:
        """What may be needed: the limit that was given, else what is available here; None where nobody says."""
        return self.available_bytes if self.limit_bytes is None else self.limit_bytes

    @property
    def fits(self) -> bool:
        """Whether the run needs no more memory than it may."""
        return self.room_bytes is None or self.peak_bytes <= self.room_bytes

    @property
    def basis(self) -> str:
        """What the times of an iteration rest on, and how far they can be trusted: one line."""
        if not self.samples:
            return "this run has no iterations; other programs on this machine change the times"
        counted = self.samples[1:] or self.samples
        updates, its = sum(len(s.updates) for s in counted), len(counted)
        what = f"{_many(updates, 'update')} of " if updates else ""
        text = f"measured on {what}{_many(its, 'iteration')}"
        text += ", the first one left out as it warms up" if len(self.samples) > 1 else ", which include the warm-up"
        return f"{text}; other programs on this machine change the times"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: what was measured and what follows from it."""
        derived = (
            *("seconds", "seconds_per_iteration", "spread", "warm_up", "condensing_seconds", "evaluation_seconds"),
            *("peak_bytes", "room_bytes", "fits", "basis"),
        )
        return {**{name: getattr(self, name) for name in derived}, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate that `to_json` wrote, or that was measured."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        known["samples"] = tuple(Sample(s["it"], tuple(s["updates"]), s["rest"]) for s in known["samples"])
        known["evaluation"] = tuple(EvaluationRow(**row) for row in known["evaluation"])
        return cls(**known)


class DoesNotFitError(DcfError):
    """A run that needs more memory than there is.

    Args:
        needed: Bytes that it needs at least.
        room: Bytes that there are.
        why: Where it needs them, and who says how many there are.
        advice: What would make it smaller, one line each.
        estimate: What was measured; None where it could not be measured to its end.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, needed: int, room: int | None, why: str, advice: Sequence[str], estimate: Estimate | None = None
    ) -> None:
        self.needed, self.room, self.advice, self.estimate = needed, room, tuple(advice), estimate
        at_least = "" if estimate is not None else "more than "
        there = "" if room is None else f", there are {size_text(room)}"
        lines = [f"this run does not fit: it needs {at_least}{size_text(needed)} of memory{there} ({why})"]
        super().__init__("\n  ".join([*lines, *(f"try {line}" for line in self.advice)]))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        if self.estimate is not None:
            return self.estimate.to_json()
        return {"fits": False, "needed_bytes": self.needed, "room_bytes": self.room, "advice": list(self.advice)}


def judged(estimate: Estimate, limit: int | None) -> Estimate:
    """The estimate under a limit of memory.

    Args:
        estimate: What was measured.
        limit: Bytes; None for what is available here.

    Raises:
        DoesNotFitError: When it needs more.
    """
    estimate = replace(estimate, limit_bytes=limit)
    room = estimate.room_bytes
    if room is None or estimate.fits:
        return estimate
    peaks = {"loading": estimate.baseline_bytes, **estimate.peaks}
    part = next(name for name in PARTS if peaks.get(name, 0) > room)
    who = "available here" if limit is None else "the limit that was given"
    raise DoesNotFitError(
        estimate.peak_bytes, room, f"{who}; first exceeded {PARTS[part]}", estimate.advice.get(part, ()), estimate
    )


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
