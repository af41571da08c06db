"""`RunConfig`: one run, completely resolved, as its `config.toml` says it. Torch-free."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dcf.budget import Budget, Store, parse_budget
from dcf.config import Config, validate_mapping
from dcf.errors import RunError, SpecError, UsageError
from dcf.spec import Option, Spec, Stack, Value, parse

__all__ = ["GroupSettings", "RunConfig", "apply_overrides", "from_toml", "parse_budget", "to_toml"]

#: Roles of a run that are specs, with the kind of component each is.
SPEC_ROLES: Mapping[str, str] = {
    "data": "dataset",
    "matcher": "matcher",
    "param": "param",
    "augment": "augmenter",
    "init": "selector",
    "network": "network",
}

#: Settings that hold several values by name; `--set` addresses what is in them.
_TABLES = ("protocol_set", "optim")


class GroupSettings(Config):
    """How one group of learned tensors is optimised; what is not given is decided by its owner."""

    lr: float | None = Field(None, gt=0, description="step size")
    momentum: float | None = Field(None, ge=0, lt=1, description="SGD momentum")
    optimizer: Literal["sgd", "adam"] | None = Field(None, description="sgd or adam")


class RunConfig(Config):
    """Everything that decides the outcome of a run."""

    recipe: str = Field("", description="recipe the settings came from, if any")
    data: str = Field("digits", description="dataset spec")
    matcher: str = Field("none", description="matcher spec: what the synthetic set must match")
    param: str = Field("pixels", description="parameterization spec: how the set is stored")
    augment: str = Field("none", description="augmenter spec, used in matching and in training on the set")
    init: str = Field("random", description="selector spec: what the set starts from")
    labels: str = Field("hard", description="kind of labels: hard, or learned ones such as soft:init=onehot")
    network: str = Field("convnet", description="network spec, for matching and for evaluation")
    ipc: int | None = Field(None, ge=1, description="budget as plain float images a class")
    budget: str | None = Field(None, description="budget as bytes=N or floats=N for the whole set")
    store: Store = Field("fp32", description="how stored floats are written: fp32, fp16, or uint8 with a scale a row")
    iterations: int = Field(1000, ge=0, description="outer iterations")
    lr: float = Field(0.1, gt=0, description="step size of the synthetic set")
    momentum: float = Field(0.5, ge=0, lt=1, description="SGD momentum of the synthetic set")
    optim: dict[str, GroupSettings] = Field(
        default_factory=dict, description="settings of single groups of learned tensors, by name of the group"
    )
    clip: float | None = Field(None, gt=0, description="largest L2 norm of the gradients of one update")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of everything random")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["default", "strict"] = Field("default", description="strict: fp32 everywhere, TF32 off")
    replicas: int | Literal["auto"] = Field(
        "auto",
        description="draws (networks, batches) that every update is averaged over; 'auto': 1, or one for each process "
        "where these cannot divide the classes",
    )
    class_chunk: int | Literal["auto"] = Field("auto", description="classes that are worked on together")
    checkpoint_every: int = Field(20, ge=1, description="outer iterations between two checkpoints")
    protocol: str = Field("dcf-std@1", description="evaluation protocol")
    protocol_set: dict[str, Any] = Field(default_factory=dict, description="protocol settings that were changed")
    networks: int | None = Field(
        None, ge=1, le=10_000, description="evaluation networks; the protocol's number by default"
    )
    evaluate: bool = Field(True, description="whether the finished set is evaluated")
    baselines: tuple[Literal["random", "whole"], ...] | Literal["auto"] = Field(
        "auto", description="rows beside the result: random (equal bytes), whole (training set)"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.ipc is not None and self.budget is not None:
            raise ValueError("give either ipc or budget, not both")
        if self.budget is not None:
            parse_budget(self.budget)
        if isinstance(self.class_chunk, int) and self.class_chunk < 1:
            raise ValueError("option 'class_chunk' expects 'auto' or an int >= 1")
        if isinstance(self.replicas, int) and self.replicas < 1:
            raise ValueError("option 'replicas' expects 'auto' or an int >= 1")
        return self

    def budget_of(self, elements: int, classes: int) -> Budget:
        """The budget of the whole set.

        Args:
            elements: Elements of one image, C H W.
            classes: Number of classes.
        """
        return Budget.of(self.ipc, self.budget, elements, classes, self.store)

    def specs(self) -> dict[str, str]:
        """The component specs by role, as files record them."""
        return {role: getattr(self, role) for role in SPEC_ROLES}


def apply_overrides(values: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """Fold `--set` options into the settings of a run.

    Args:
        values: Settings by name; specs as text.
        overrides: By dotted key: `matcher.metric`, `param.NAME.option` for one of a stack, `protocol.epochs`,
            `optim.GROUP.lr`, or a setting's own name such as `clip`.

    Raises:
        UsageError: For a key that addresses nothing.
        ConfigError: For a setting of a group that there is none of, or a wrong value.
    """
    values = dict(values)
    for key, value in overrides.items():
        role, _, rest = key.partition(".")
        if role in SPEC_ROLES and rest:
            stack = parse(values.get(role) or RunConfig.model_fields[role].default)
            values[role] = str(_with_option(stack, rest, value, f"--set {key}"))
        elif role == "protocol" and rest:
            values["protocol_set"] = {**values.get("protocol_set", {}), rest: value}
        elif role == "optim" and rest.count("."):
            group, _, setting = rest.rpartition(".")
            validate_mapping(GroupSettings, {setting: value}, f"--set optim.{group}")
            groups = values.get("optim", {})
            values["optim"] = {**groups, group: {**dict(groups.get(group, {})), setting: value}}
        elif key in RunConfig.model_fields and key not in _TABLES:
            values[key] = value
        else:
            raise _addresses_nothing(key, value)
    return values


def _addresses_nothing(key: str, value: str) -> UsageError:
    own = [field for field in RunConfig.model_fields if field not in _TABLES]
    role, dot, option = key.partition(".")
    close = difflib.get_close_matches(role, [*SPEC_ROLES, "protocol", "optim"] if dot else own, n=1)
    hint = f"  did you mean '{close[0]}{dot}{option}'?\n" if close else ""
    roles = ", ".join([*(f"{r}.OPTION" for r in (*SPEC_ROLES, "protocol")), "optim.GROUP.lr"])
    return UsageError(
        f"--set {key}={value}: '{key}' addresses nothing\n{hint}  use {roles}, or one of {', '.join(own)}"
    )


def _with_option(stack: Stack, path: str, value: str, flag: str) -> Stack:
    name, _, rest = path.partition(".")
    names = [s.name for s in stack]
    position, key = (names.index(name), rest) if rest and name in names else (len(names) - 1, path)
    changed = list(stack)
    spec = changed[position]
    kept = tuple(o for o in spec.options if o.key != key)
    changed[position] = Spec(spec.name, (*kept, Option(key, _value(value, flag))))
    return Stack(tuple(changed))


def _value(text: str, flag: str) -> Value:
    """One value of the spec language: a word, a quoted text, a list or a nested spec."""
    lead = "x:k="
    try:
        stack = parse(lead + text)
    except SpecError as error:
        span = (max(0, error.span[0] - len(lead)), max(1, error.span[1] - len(lead)))
        raise SpecError(error.message, text, span, error.hints, flag) from None
    if len(stack) > 1 or len(stack.specs[0].options) > 1:
        raise SpecError(
            "expected one value", text, (0, len(text)), ["put a value that contains ',' or '+' in quotes"], flag
        )
    return stack.specs[0].options[0].value


def to_toml(config: RunConfig) -> str:
    """The run as TOML: flat, one setting a line, in order of declaration."""
    lines = ["# A dcf run, completely resolved. 'dcf resume' reads this file."]
    tables = []
    for name, value in config.model_dump(mode="json").items():
        if value is None:
            continue
        if isinstance(value, dict):
            tables += [f"\n[{name}]", *_toml_pairs(value)] if value else []
        else:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _toml(value: Any) -> str:
    """A value on one line of TOML."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_toml_pairs(value))} }}" if value else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's text is TOML's but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_pairs(values: Mapping[str, Any]) -> list[str]:
    """`key = value` of everything but None, which TOML does not have."""
    return [f"{_toml(str(key))} = {_toml(value)}" for key, value in values.items() if value is not None]


def from_toml(path: Path) -> RunConfig:
    """Read a run's configuration.

    Raises:
        RunError: When the file is missing or unreadable.
        ConfigError: When it holds what no run takes.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"'{path.parent}' is not a run directory: it has no config.toml") from None
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None
    try:
        return validate_mapping(RunConfig, values, "config.toml")
    except SpecError as error:
        raise RunError(f"'{path}' is not usable: {error.message}") from None
