"""The rows of a bench and the cells that each is made of, the baselines that must stand beside them included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from dcf.bench.cells import Cell, make_cell
from dcf.bench.facts import DataFacts
from dcf.bench.plan import Point, changed_rules
from dcf.bench.settings import BenchSettings
from dcf.build import create, suited
from dcf.components import Kind
from dcf.evaluation.protocol import Protocol, cost
from dcf.resolve import Request, complete, resolve
from dcf.runconfig import RunConfig
from dcf.types import MatcherDefaults

__all__ = ["RowPlan", "plan_rows"]

#: Which row of a cell's report holds the values.
Source = Literal["sets", "random", "whole"]
_ORDER: Final = {"method": 0, "random": 1, "whole": 2}


@dataclass(frozen=True)
class RowPlan:
    """One row and what it is made of.

    Attributes:
        label: Name of the method, or of the baseline.
        role: "method", "random" or "whole".
        config: The run of its first set.
        facts: Its dataset.
        budget: As `UNIT=N`; None for the whole training set.
        rules: Its protocol, changes included.
        augment: Augmentation in training on the set.
        network: Network that is trained on the set.
        sweep: Swept values by dotted key.
        cells: Its runs by number of the set; empty when it is not run.
        source: Which row of their reports counts.
        note: Why it is not run, or what a reader must know.
    """

    label: str
    role: Literal["method", "random", "whole"]
    config: RunConfig
    facts: DataFacts
    budget: str | None
    rules: Protocol
    augment: str
    network: str
    sweep: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    source: Source = "sets"
    note: str = ""

    @property
    def circumstances(self) -> tuple[str, ...]:
        """What must be equal for a baseline to be comparable, the budget aside."""
        return self.facts.text, self.rules.id, self.augment, self.network, self.config.precision


def plan_rows(
    settings: BenchSettings, root: Path, points: Sequence[Point], facts: Mapping[str, DataFacts]
) -> list[RowPlan]:
    """The rows of a bench: its methods, then the baselines, by dataset and budget.

    Args:
        settings: Of the bench.
        root: Its directory.
        points: What is to be run.
        facts: What is known of each dataset, by spec.
    """
    methods = [_method_row(settings, root, point, facts[point.data]) for point in points]
    random = [_random_row(settings, root, row) for row in _firsts(methods, with_budget=True)]
    whole = [_whole_row(settings, root, row) for row in _firsts(methods, with_budget=False)]
    # A method that is the random baseline stands in the table once.
    taken = {cell.key for row in random for cell in row.cells if row.source == "sets"}
    kept = [row for row in methods if not all(cell.key in taken for cell in row.cells)]
    return _sorted([*kept, *random, *whole], methods)


def _method_row(settings: BenchSettings, root: Path, point: Point, facts: DataFacts) -> RowPlan:
    config = _completed(point.request, facts.hints)
    if point.shortened and config.iterations:
        config = config.model_copy(update={"iterations": max(1, config.iterations // 10)})
    rules = changed_rules(config.model_dump())
    if rules.lr == "learned":
        # Real images have no step size of their own: they are trained with the one that each set learned.
        config = config.model_copy(update={"baselines": ("random",)})
    return _row(settings, root, config, facts, RowPlan(
        point.label, "method", config, facts, _budget_of(config), rules,
        rules.augment_spec(config.augment, facts.id), rules.network_spec(config.network), point.sweep,
    ))  # fmt: skip


def _completed(request: Request, hints: Mapping[str, Any]) -> RunConfig:
    """The run as `dcf condense` would make it of the same settings."""
    settings = request.settings
    usual = suited(str(settings.get("param", "pixels")))
    return complete(request, {**usual, **hints}, _defaults(str(settings.get("matcher", "none"))))


@cache
def _defaults(matcher: str) -> MatcherDefaults:
    made = create(Kind.MATCHER, matcher)
    defaults: MatcherDefaults = made.defaults
    return defaults


def _budget_of(config: RunConfig) -> str:
    return config.budget if config.budget is not None else f"ipc={config.ipc}"


def _row(settings: BenchSettings, root: Path, config: RunConfig, facts: DataFacts, row: RowPlan) -> RowPlan:
    """The row with a cell for each of its sets; the whole training set is one."""
    count = 1 if row.role == "whole" else settings.sets
    made = [config.model_copy(update={"seed": settings.seed + number}) for number in range(count)]
    data = (facts.id, facts.checksum)
    return replace(row, cells=tuple(make_cell(root, one, data, number) for number, one in enumerate(made)))


# --- baselines -----------------------------------------------------------------------------------


def _firsts(rows: Iterable[RowPlan], with_budget: bool) -> list[RowPlan]:
    """The first row of each combination of circumstances that needs a baseline of its own."""
    found: dict[Any, RowPlan] = {}
    for row in rows:
        own = (row.label, *row.sweep.items()) if row.rules.lr == "learned" and with_budget else ()
        found.setdefault((row.circumstances, row.budget if with_budget else None, own), row)
    return list(found.values())


def _random_row(settings: BenchSettings, root: Path, row: RowPlan) -> RowPlan:
    """Real images chosen at random, under the circumstances of a row and at its budget in bytes."""
    if row.rules.lr == "learned":
        label = f"random (step size of {row.label})"
        return replace(row, label=label, role="random", source="random")
    images = row.facts.plain_images(str(row.budget))
    config = _plain_run(settings, row, max(1, images))
    made = replace(row, label="random", role="random", config=config, sweep={}, cells=())
    if images < 1:
        return replace(made, note="not run: the budget holds no float32 image a class")
    return _row(settings, root, config, row.facts, made)


def _whole_row(settings: BenchSettings, root: Path, row: RowPlan) -> RowPlan:
    """The whole training set under the circumstances of a row."""
    config = _plain_run(settings, row, 1).model_copy(update={"baselines": ("whole",)})
    made = replace(row, label="whole", role="whole", config=config, budget=None, sweep={}, cells=(), source="whole")
    if row.rules.lr == "learned":
        return replace(made, note="not run: the protocol trains with a learned step size, which real images lack")
    if not settings.whole and (row.rules.id, settings.nets) not in row.facts.affordable:
        images = settings.nets * cost(row.rules, row.facts.train).images_seen
        return replace(made, note=f"not run (about {images:.2g} images through the network; --whole runs it)")
    return _row(settings, root, config, row.facts, made)


def _plain_run(settings: BenchSettings, row: RowPlan, ipc: int) -> RunConfig:
    """A run that stores real images as they are, evaluated as a row is."""
    options = {
        "data": row.facts.text, "matcher": "none", "param": "pixels", "augment": row.augment, "init": "random",
        "network": row.network, "ipc": ipc, "iterations": 0, "protocol": row.rules.published_id,
        "protocol_set": dict(row.config.protocol_set), "networks": settings.nets, "baselines": (),
        "precision": row.config.precision, "device": settings.device, "evaluate": True,
    }  # fmt: skip
    request: Request = resolve(options)
    return _completed(request, {})


def _sorted(rows: list[RowPlan], methods: list[RowPlan]) -> list[RowPlan]:
    """By dataset, then by budget, then methods before baselines; each in the order of first appearance."""
    places = list(dict.fromkeys((row.facts.text, row.budget) for row in methods))
    datasets = list(dict.fromkeys(row.facts.text for row in methods))

    def place(row: RowPlan) -> tuple[int, int, int]:
        at = places.index((row.facts.text, row.budget)) if row.budget is not None else len(places)
        return datasets.index(row.facts.text), at, _ORDER[row.role]

    return sorted(rows, key=place)
