"""From the settings of a bench to its points: one request of a run for each method, swept value, dataset and budget.

Torch-free: everything that can be wrong about a request is found here, before anything is loaded.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dcf.bench.methods import Method, parse_method
from dcf.bench.settings import DECIDED, OWN_PROTOCOL, BenchSettings
from dcf.components import Kind
from dcf.errors import DcfError, UsageError
from dcf.evaluation.protocol import Protocol, load_protocol
from dcf.recipes import load_recipe, starter
from dcf.registry import registry
from dcf.resolve import Request, resolve
from dcf.runconfig import SPEC_ROLES, RunConfig
from dcf.spec import parse

__all__ = ["Point", "changed_rules", "plan"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One row to be: a method with one choice of swept values, on one dataset, with one budget.

    Attributes:
        label: Name of the method.
        request: Its run, number of the set and what the data decide aside.
        data: Spec of the dataset.
        sweep: Swept values by dotted key.
        shortened: Whether its iterations are to be a tenth of what method and data say.
    """

    label: str
    request: Request
    data: str
    sweep: Mapping[str, str]
    shortened: bool


def plan(settings: BenchSettings) -> list[Point]:
    """All points of a bench, by dataset, then by budget, then by method.

    Raises:
        UsageError: For the first request that no run could be made of.
    """
    methods = settings.all_methods() or [_usual(settings)]
    _require_swept(settings, methods)
    return [
        point
        for data in settings.data
        for budget in settings.budgets
        for method in methods
        for point in _points(settings, method, data, budget, budget == settings.budgets[0])
    ]


def _points(settings: BenchSettings, method: Method, data: str, budget: str, first: bool) -> Iterator[Point]:
    common = {k: v for k, v in settings.set.items() if k not in method.settings}
    own = {**common, **method.changes, **settings.override}
    swept = {**{k: v for k, v in settings.sweep.items() if _has(method, own, k)}, **method.sweep}
    _require_free({**own, **swept})
    if not first and {"ipc", "budget"} & {*swept, *own, *method.settings}:
        return  # it has a budget of its own, and stands beside the first of the bench's
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        try:
            yield _point(settings, method, data, budget, {**own, **chosen}, chosen)
        except UsageError as error:
            raise _told(error, method, chosen) from None


def _point(
    settings: BenchSettings,
    method: Method,
    data: str,
    budget: str,
    changes: Mapping[str, str],
    sweep: Mapping[str, str],
) -> Point:
    options = _options(settings, method, data, budget, changes)
    request = resolve(options, method.settings.get("recipe"), changes)
    rules = changed_rules(request.settings)
    if settings.preset == "quick":
        rules = _tenth(rules, changes)
    made = {**request.settings, "protocol": rules.published_id, "protocol_set": _canonical(rules)}
    shortened = settings.preset == "quick" and "iterations" not in {**settings.set, **changes}
    return Point(method.label, Request(made, request.objects), data, sweep, shortened)


def _options(
    settings: BenchSettings, method: Method, data: str, budget: str, changes: Mapping[str, str]
) -> dict[str, Any]:
    """Settings of a run by name: what the method says, and what the bench decides."""
    options: dict[str, Any] = {
        "precision": settings.precision,
        **_size(budget, {**method.settings, **changes}),
        **{k: v for k, v in method.settings.items() if k != "recipe"},
        "data": data,
        "device": settings.device,
        "networks": settings.nets,
        "baselines": (),
        "evaluate": True,
    }
    named = "protocol" in method.settings or "protocol" in changes
    if not named and settings.protocol != OWN_PROTOCOL:
        options["protocol"] = settings.protocol
    if named or settings.protocol != OWN_PROTOCOL:
        # What a recipe changes in its own protocol says nothing about another one.
        options.setdefault("protocol_set", {})
    return options


def _size(budget: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The budget as settings of a run, unless the method says its own."""
    if {"ipc", "budget"} & set(given):
        return {}
    unit, _, number = budget.partition("=")
    return {"ipc": int(number)} if unit == "ipc" else {"budget": budget}


def changed_rules(settings: Mapping[str, Any]) -> Protocol:
    """The protocol of a run's settings, with what they change in it."""
    rules = load_protocol(str(settings.get("protocol", RunConfig.model_fields["protocol"].default)))
    changes = dict(settings.get("protocol_set") or {})
    return rules.with_overrides(**changes) if changes else rules


def _canonical(rules: Protocol) -> dict[str, Any]:
    """What is changed in a protocol, in its own types, so that equal changes are equal however they were written."""
    return {key: getattr(rules, key) for key in sorted(rules.original) if key != "augment_for"}


def _tenth(rules: Protocol, changes: Mapping[str, str]) -> Protocol:
    """The protocol with a tenth of its epochs and of its least number of steps, unless these were asked for."""
    wanted = {"epochs": max(1, rules.epochs // 10), "steps_min": rules.steps_min // 10}
    return rules.with_overrides(**{k: v for k, v in wanted.items() if f"protocol.{k}" not in changes})


def _require_free(keys: Iterable[str]) -> None:
    for key in keys:
        if key in DECIDED:
            raise UsageError(f"'{key}' is the same for all rows of a bench; set it for the whole bench")


# --- sweeps --------------------------------------------------------------------------------------


def _has(method: Method, changes: Mapping[str, str], key: str) -> bool:
    """Whether a method has the option that a key addresses; settings of the run itself all have."""
    role, _, rest = key.partition(".")
    if role not in SPEC_ROLES or not rest:
        return True
    text = changes.get(role) or _setting(method, role)
    names = [spec.name for spec in parse(text)]
    head = rest.partition(".")[0]
    name = head if head in names and "." in rest else names[-1]
    option = rest.partition(".")[2] if name == head else rest
    config = registry().find(SPEC_ROLES[role], name).component.load_config()
    return option.partition(".")[0] in config.model_fields


def _setting(method: Method, role: str) -> str:
    """The spec that a method has for a role, its recipe's or the default where it says none."""
    usual = str(RunConfig.model_fields[role].default)
    recipe = method.settings.get("recipe")
    base = load_recipe(str(recipe)).run if recipe else {}
    return str(method.settings.get(role) or base.get(role) or usual)


def _require_swept(settings: BenchSettings, methods: list[Method]) -> None:
    """Make sure that every key that is swept changes something."""
    for key, values in settings.sweep.items():
        if any(_has(m, {**settings.set, **m.changes, **settings.override}, key) for m in methods):
            continue
        role, _, option = key.partition(".")
        owners = _owners(role, option)
        hints = [f"'{name}' has it: add it to a method, as in --methods METHOD+{name}" for name in owners]
        raise UsageError(
            "\n  ".join(
                [f"--sweep {key}={','.join(values)}: no method of this bench has the option '{option}'", *hints]
            )
        )


def _owners(role: str, option: str) -> list[str]:
    """Components of a role that have an option."""
    found = []
    for item in registry().items(SPEC_ROLES[role]):
        try:
            known = item.component.load_config().model_fields
        except DcfError:
            continue
        if option.partition(".")[0] in known:
            found.append(item.component.name)
    return found


def _usual(settings: BenchSettings) -> Method:
    """The method of a bench that names none: the starter recipe, with what a sweep of `param.OPTION` needs."""
    chosen = starter()
    if chosen is None:
        raise UsageError("no method was named and none that could be a default is installed; name some: --methods A,B")
    swept = [key.partition(".")[2] for key in settings.sweep if key.startswith("param.")]
    owners = _owners(Kind.PARAM.value, swept[0]) if swept and "param" not in settings.set else []
    name = chosen.recipe.name
    return parse_method(f"{name}+{owners[0]}" if len(owners) == 1 else name)


def _told(error: UsageError, method: Method, sweep: Mapping[str, str]) -> UsageError:
    """The complaint, with the method it is about in front."""
    values = "".join(f", {k}={v}" for k, v in sweep.items())
    return UsageError(f"method '{method.label}'{values}: {error}")
