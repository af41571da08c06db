"""Recipes run again: is what we recorded what comes out?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dcf.bench.plan import plan
from dcf.bench.settings import BenchSettings
from dcf.components import Kind
from dcf.config import validate_mapping, value_text
from dcf.errors import ConfigError, DataError, UsageError
from dcf.evaluation.protocol import PROGRAM
from dcf.recipes import Recipe, Value
from dcf.registry import registry
from dcf.spec import Option, Spec, parse_one

if TYPE_CHECKING:
    from dcf.bench.model import BenchRow
    from dcf.bench.pool import Watcher

__all__ = ["LEAST", "Trial", "Verdict", "allowed", "given_data", "trials", "verify"]

#: Points that two means may differ by, however small their spreads.
LEAST: Final = 2.0
#: Combined standard deviations that they may differ by.
WIDTH: Final = 3.0
_COUNT: Final = re.compile(r"\s*(\d+)\s*[x\u00d7]\s*(\d+)\s*\Z")
_NAMED: Final = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)=(?P<spec>.+)\Z", re.S)


@dataclass(frozen=True)
class Trial:
    """One recorded value, and the bench that runs it again.

    Attributes:
        value: What is compared with: measured here, or published where nothing was measured.
        published: The published value of the same setting, if any.
        settings: The bench; None where there is no dataset of that name.
        name: Of its directory.
    """

    value: Value
    published: Value | None
    settings: BenchSettings | None
    name: str


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        trial: What was run.
        row: Its row; None where it was not run.
        note: Why it was not run.
    """

    trial: Trial
    row: BenchRow | None
    note: str = ""

    @property
    def now(self) -> tuple[float, float | None] | None:
        """Mean and spread in percent; one value alone has no spread."""
        if self.row is None or self.row.stat is None:
            return None
        stat = self.row.stat
        return 100 * stat.mean, 100 * stat.pooled if stat.n_sets * stat.n_nets > 1 else None

    @property
    def agrees(self) -> bool | None:
        """Whether the two means differ by no more than is allowed; None where nothing was run."""
        if self.now is None:
            return None
        mean, spread = self.now
        return abs(mean - self.trial.value.accuracy) <= allowed(self.trial.value.std, spread)


def allowed(recorded: float | None, now: float | None) -> float:
    """Points that two means may differ by: two, or three combined standard deviations where that is more."""
    return max(LEAST, WIDTH * math.hypot(recorded or 0.0, now or 0.0))


def given_data(texts: Sequence[str]) -> dict[str, str]:
    """Dataset specs by the name that recipes know them under, from `SPEC` or `NAME=SPEC`.

    Raises:
        SpecError: When a spec cannot be read.
    """
    found = {}
    for text in texts:
        named = _NAMED.match(text)
        spec = named["spec"] if named else text
        found[named["name"] if named else parse_one(text, "--data").name] = spec
    return found


def trials(
    recipe: Recipe,
    data: Mapping[str, str],
    *,
    ipc: int | None = None,
    sets: Any = None,
    nets: Any = None,
    jobs: Any = None,
    device: str | None = None,
) -> list[Trial]:
    """What to run: every measured value, or every published one where none was measured.

    Args:
        recipe: The recipe.
        data: Dataset specs by name; where there are any, values of others are left out.
        ipc: Only values of this budget.
        sets: Sets instead of the recorded number.
        nets: Networks instead of the recorded number.
        jobs: Processes at a time.
        device: Where to run.

    Raises:
        UsageError: When the recipe records nothing of the kind, or its settings cannot be used.
    """
    usable = [v for v in recipe.measured or recipe.published if not data or v.data in data]
    chosen = [v for v in usable if ipc is None or v.ipc == ipc]
    if not chosen:
        known = ", ".join(dict.fromkeys(f"{v.data} ipc {v.ipc}" for v in (*recipe.measured, *recipe.published)))
        raise UsageError(f"recipe '{recipe.recipe.name}' has no value for that; it has: {known or 'none'}")
    common = {k: v for k, v in {"jobs": jobs, "device": device}.items() if v is not None}
    made = []
    for value in chosen:
        count = {k: v for k, v in (("sets", sets), ("nets", nets)) if v is not None}
        settings = None
        if value.data in {**data, **dict.fromkeys(registry().names(Kind.DATASET))}:
            settings = _bench(recipe, value, data.get(value.data, value.data), {**common, **_count(value), **count})
            plan(settings)
        published = next((p for p in recipe.published if _same(p, value)), None)
        made.append(Trial(value, published, settings, _directory(value)))
    return made


def _same(a: Value, b: Value) -> bool:
    return (a.data, a.ipc, a.network) == (b.data, b.ipc, b.network)


def _directory(value: Value) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"{value.data}-ipc{value.ipc}-{value.network}-{value.protocol}").strip("_-")


def _count(value: Value) -> dict[str, int]:
    """Sets and networks of a recorded value; one set of five networks where it does not say."""
    match = _COUNT.match(value.n)
    return {"sets": int(match[1]), "nets": int(match[2])} if match else {"sets": 1, "nets": 5}


def _bench(recipe: Recipe, value: Value, data: str, counts: Mapping[str, Any]) -> BenchSettings:
    """The bench of one value: the recipe with what it was recorded with."""
    method: dict[str, Any] = {
        "name": recipe.recipe.name,
        "recipe": recipe.recipe.name,
        # By the name in the recipe: the images may come from elsewhere, such as a folder.
        **{k: v for k, v in recipe.data.get(value.data, {}).items() if k not in ("networks", "baselines")},
    }
    if value.protocol not in ("", PROGRAM):  # a program is run as such whatever the recipe's protocol is
        method["protocol"] = value.protocol
        method["protocol_set"] = {}
    if value.network != Value.model_fields["network"].default:
        method["network"] = value.network
    if value.iterations is not None:
        method["iterations"] = value.iterations
    changes = {key: value_text(one) for key, one in value.settings.items() if key not in ("networks", "seed")}
    fixed = {"seed": value.settings["seed"]} if "seed" in value.settings else {}
    values = {
        "data": (data,), "ipc": (value.ipc,), "protocol": "recipe", "method": ({**method, "set": changes},),
        **fixed, **counts,
    }  # fmt: skip
    try:
        return validate_mapping(BenchSettings, values, "verify")
    except ConfigError as error:
        raise UsageError(error.message) from None


def verify(
    todo: Sequence[Trial],
    root: Path,
    watcher: Watcher | None = None,
    report: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Run the trials one after the other.

    Args:
        todo: What to run.
        root: Each gets a directory of its own in it; what is done there is not run again.
        watcher: Told of progress.
        report: Called with each verdict.

    Raises:
        KeyboardInterrupt: When one was stopped.
    """
    from dcf.bench.run import run_bench

    found = []
    for trial in todo:
        note = _missing(trial)
        if note or trial.settings is None:
            verdict = Verdict(trial, None, note)
        else:
            outcome = run_bench(trial.settings, root / trial.name, alone=True, watcher=watcher)
            if outcome.interrupted:
                raise KeyboardInterrupt
            rows = [row for row in outcome.bench.rows if row.role == "method"] or list(outcome.bench.rows)
            reasons = "; ".join(text.partition("\n")[0] for text in outcome.failures.values())
            verdict = Verdict(trial, rows[0], reasons)
        report(verdict)
        found.append(verdict)
    return found


def _missing(trial: Trial) -> str:
    """Why the dataset of a trial is not here; empty when it is. Nothing is fetched."""
    from dcf.build import create

    if trial.settings is None:
        return f"there is no dataset of this name; say where it is: --data {trial.value.data}=SPEC"
    spec = parse_one(trial.settings.data[0], "--data")
    known = registry().find(Kind.DATASET, spec).component.load_config().model_fields
    if "download" in known and not any(o.key == "download" for o in spec.options):
        spec = Spec(spec.name, (*spec.options, Option("download", "false")))
    try:
        made = create(Kind.DATASET, str(spec), "--data")
        made.load()
    except DataError as error:
        return f"not here: {str(error).partition(chr(10))[0]}"
    return ""
