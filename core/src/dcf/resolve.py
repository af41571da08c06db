"""From what the user said to one `RunConfig`: recipe, defaults of data and method, options. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcf.build import check, spec_text
from dcf.components import Kind
from dcf.config import validate_mapping, value_text
from dcf.errors import BudgetError, ConfigError, SpecError, UsageError
from dcf.evaluation.protocol import load_protocol
from dcf.recipes import load_recipe, starter
from dcf.registry import registry
from dcf.runconfig import SPEC_ROLES, RunConfig, apply_overrides, parse_budget
from dcf.spec import Spec, Stack, parse, parse_one
from dcf.types import MatcherDefaults

__all__ = ["Request", "add_labels", "complete", "resolve"]

_HARD = "hard"
_LABELS = "-labels"
_FLAGS = {"augment": "--augment", "init": "--init", "data": "--data", "param": "--param"}


@dataclass(frozen=True)
class Request:
    """What was asked for, checked as far as that goes without loading anything.

    Attributes:
        settings: Explicit settings by name, recipe and options merged.
        objects: Components given as objects rather than as specs, by role.
    """

    settings: Mapping[str, Any]
    objects: Mapping[str, Any]


def resolve(
    options: Mapping[str, Any], recipe: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Request:
    """Merge recipe and options, and check everything that can be checked without torch.

    Args:
        options: Settings of `RunConfig` by name, None meaning not given; components as specs or objects.
        recipe: Name of a recipe; without one and without a matcher, the starter recipe is taken.
        overrides: `--set` options by dotted key.

    Raises:
        UsageError: Or a subclass, for the first thing that is wrong.
    """
    given = {k: v for k, v in options.items() if v is not None}
    objects = {k: v for k, v in given.items() if k in SPEC_ROLES and not isinstance(v, str)}
    given |= {k: spec_text(SPEC_ROLES[k], v) for k, v in objects.items()}
    base = _recipe_settings(given, recipe)
    if "ipc" in given or "budget" in given:
        base = {k: v for k, v in base.items() if k not in ("ipc", "budget")}
    settings = apply_overrides({**base, **given}, {k: value_text(v) for k, v in (overrides or {}).items()})
    for role, kind in SPEC_ROLES.items():
        if role in settings and role not in objects:
            settings[role] = str(check(kind, str(settings[role]), _FLAGS.get(role)))
    add_labels(settings, objects)
    _split_protocol(settings)
    _check_values(settings)
    return Request(settings, objects)


def complete(request: Request, hints: Mapping[str, Any], defaults: MatcherDefaults) -> RunConfig:
    """Fill in what neither recipe nor user said: first what suits the data, then the method's own settings.

    Args:
        request: What was asked for.
        hints: Settings that the dataset suggests.
        defaults: Settings that the matcher's paper fixes.
    """
    usual = {k: v for k, v in hints.items() if k in RunConfig.model_fields}
    if "protocol" in request.settings:
        # The data's hint changes the default protocol, not one that was asked for.
        usual.pop("protocol_set", None)
    if "iterations" in usual and defaults.iterations_small is not None:
        usual["iterations"] = min(usual["iterations"], defaults.iterations_small)
    base: dict[str, Any] = {
        "iterations": defaults.iterations,
        "lr": defaults.lr,
        "momentum": defaults.momentum,
        "init": defaults.init,
        **usual,
        **request.settings,
    }
    if base.get("budget") is not None and "ipc" not in request.settings:
        base.pop("ipc", None)
    elif base.get("ipc") is None and base.get("budget") is None:
        base["ipc"] = 1
    return validate_mapping(RunConfig, base, "run")


def add_labels(settings: dict[str, Any], objects: Mapping[str, Any]) -> None:
    """Learned labels are stored by a parameterization on top: `--labels NAME:...` adds `NAME-labels:...` to the stack.

    A stack that has them already, as the configuration of a run does, stays as it is.

    Args:
        settings: `labels` and `param` of a run; the latter is changed.
        objects: Components that were given as objects, by role.

    Raises:
        UsageError: When there are no such labels, or nothing that they could be stacked on.
    """
    text = str(settings.get("labels", _HARD))
    if text == _HARD:
        return
    wanted = parse_one(text, "--labels")
    name = f"{wanted.name}{_LABELS}"
    stack = parse(str(settings.get("param", RunConfig.model_fields["param"].default)))
    if "param" in objects:
        raise UsageError(f"--labels {text} needs the parameterization as a spec, got an object; stack the labels there")
    if name in [part.name for part in stack]:
        return
    if name not in registry().names(Kind.PARAM):
        kinds = [n.removesuffix(_LABELS) for n in registry().names(Kind.PARAM) if n.endswith(_LABELS)]
        raise SpecError(
            f"unknown kind of labels '{wanted.name}'",
            text,
            (0, len(wanted.name)),
            [f"expected {_HARD}{''.join(f' or {kind}' for kind in kinds)}"],
            "--labels",
        )
    added = Spec(name, wanted.options, text, (0, len(wanted.name)))
    check(Kind.PARAM, str(added), "--labels")
    settings["param"] = str(Stack((*stack, added)))


def _split_protocol(settings: dict[str, Any]) -> None:
    """Take a protocol apart into its name and what is changed in it: `NAME`, `NAME@V` and `NAME@V[key=value]` do."""
    rules = load_protocol(str(settings.get("protocol", RunConfig.model_fields["protocol"].default)))
    if "protocol" in settings:
        settings["protocol"] = rules.published_id
        changed = {key: getattr(rules, key) for key in rules.original}
        if changed:
            settings["protocol_set"] = {**changed, **settings.get("protocol_set", {})}


def _recipe_settings(given: Mapping[str, Any], recipe: str | None) -> dict[str, Any]:
    if recipe is not None:
        chosen = load_recipe(recipe)
    elif "matcher" in given:
        return {}
    else:
        found = starter()
        if found is None:
            raise UsageError(
                "no matcher was named and none that could be a default is installed\n"
                "  choose one: --matcher NAME, or --recipe NAME (see: dcf list-plugins)"
            )
        chosen = found
    data = str(given.get("data", RunConfig.model_fields["data"].default)).partition(":")[0]
    return {**chosen.settings(data), "recipe": chosen.recipe.name}


def _check_values(settings: Mapping[str, Any]) -> None:
    if settings.get("ipc") is not None and settings.get("budget") is not None:
        raise BudgetError("give either --ipc or --budget, not both")
    if settings.get("budget") is not None:
        try:
            parse_budget(str(settings["budget"]))
        except ValueError as error:
            raise BudgetError(f"--budget: {error}") from None
    try:
        validate_mapping(RunConfig, settings, "run")
    except ConfigError as error:
        raise UsageError(
            "\n  ".join([error.message, *(h for h in error.hints if not h.startswith("options:"))])
        ) from None
