"""The settings of a bench: a TOML file, the command line, presets. Torch-free."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dcf.bench.methods import Method, parse_method, split_methods, split_top
from dcf.build import check
from dcf.components import Kind
from dcf.config import Config, validate_mapping, value_text
from dcf.errors import ConfigError, SpecError, UsageError
from dcf.runconfig import RunConfig, parse_budget

__all__ = ["DECIDED", "OWN_PROTOCOL", "BenchSettings", "MethodTable", "read_settings", "sweep_option"]

#: The value of `protocol` that leaves each method the one its recipe names.
OWN_PROTOCOL: Final = "recipe"
#: Settings of a run that the bench decides for all of its rows.
DECIDED: Final = frozenset({"data", "seed", "networks", "evaluate", "baselines", "device"})


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, (str, int)) else value


def _flat(value: Any) -> Any:
    """Nested tables as dotted keys: `param.r = 2` and `"param.r" = 2` say the same in TOML."""
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found |= {f"{key}.{rest}": v for rest, v in _flat(inner).items()}
        else:
            found[str(key)] = inner
    return found


def _texts(value: Any) -> Any:
    return {k: value_text(v) for k, v in _flat(value).items()} if isinstance(value, Mapping) else value


def _text_lists(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    flat = _flat(value).items()
    return {k: tuple(map(value_text, v)) if isinstance(v, (list, tuple)) else (value_text(v),) for k, v in flat}


def _require_values(sweep: Mapping[str, tuple[str, ...]]) -> None:
    for key, values in sweep.items():
        if not values:
            raise ValueError(f"sweep of '{key}': expected at least one value")


Several = Annotated[tuple[str, ...], BeforeValidator(_several)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_several)]
Changes = Annotated[dict[str, str], BeforeValidator(_texts)]
Sweep = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_text_lists)]


class MethodTable(Config):
    """What a `[[method]]` table holds beside settings of a run."""

    name: str = Field("", description="label of its rows; spec or matcher by default")
    spec: str = Field("", description="the method as on the command line, such as 'NAME+lowrank:r=2'")
    set: Changes = Field(default_factory=dict, description="component options by dotted key")
    sweep: Sweep = Field(default_factory=dict, description="values to run it with, by dotted key")

    @model_validator(mode="after")
    def _sweeps_over_something(self) -> Self:
        _require_values(self.sweep)
        return self


class BenchSettings(Config):
    """What a bench runs: everything that its file can say, the methods aside."""

    data: Several = Field(("digits",), min_length=1, description="dataset specs")
    ipc: Counts = Field((), description="budgets in plain images a class")
    budget: Several = Field((), description="budgets as bytes=N, floats=N or ipc=N, for the whole set")
    methods: Several = Field((), description="methods as on the command line")
    method: tuple[dict[str, Any], ...] = Field((), description="methods as tables")
    sets: int = Field(3, ge=1, le=1000, description="sets condensed independently, S")
    nets: int = Field(5, ge=1, le=10_000, description="networks trained on each set, N")
    protocol: str = Field("dcf-std@1", description="evaluation protocol of all methods; 'recipe': each recipe's own")
    seed: int = Field(0, ge=0, le=2**62, description="seed of set 0; set s has seed + s")
    jobs: int = Field(1, ge=1, le=512, description="processes at a time")
    preset: Literal["std", "quick"] = Field(
        "std", description="quick: 1 set, 2 networks, a tenth of epochs and iterations; not comparable"
    )
    whole: bool = Field(False, description="run the row of the whole training set however long it takes")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["default", "strict"] = Field("default", description="strict: fp32 everywhere")
    set: Changes = Field(default_factory=dict, description="component options by dotted key, for all methods")
    sweep: Sweep = Field(default_factory=dict, description="values by dotted key, for the methods that have the option")
    override: Changes = Field(default_factory=dict, description="as 'set', before what a method says itself")

    @model_validator(mode="before")
    @classmethod
    def _quick(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("preset") == "quick":
            return {"sets": 1, "nets": 2, **values}
        return values

    @model_validator(mode="after")
    def _budgets_are_budgets(self) -> Self:
        for text in self.budgets:
            require_budget(text)
        _require_values(self.sweep)
        return self

    @property
    def budgets(self) -> tuple[str, ...]:
        """All budgets as `UNIT=N`, each once; one image a class where none is given."""
        given = (*(f"ipc={n}" for n in self.ipc), *self.budget)
        return tuple(dict.fromkeys(given)) or ("ipc=1",)

    def all_methods(self) -> list[Method]:
        """The methods, each with a label of its own.

        Raises:
            UsageError: When one cannot be read, or two have the same label.
        """
        made = [parse_method(text) for text in split_methods(self.methods)]
        made += [_from_table(table, number) for number, table in enumerate(self.method, 1)]
        labels = [m.label for m in made]
        twice = next((name for name in labels if labels.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"two methods are called '{twice}'; give one of them another name")
        return made


def require_budget(text: str) -> None:
    """Make sure that a text is a budget.

    Raises:
        ValueError: When it is not.
    """
    unit, _, number = text.partition("=")
    if unit == "ipc" and number.isdecimal() and int(number) >= 1:
        return
    try:
        parse_budget(text)
    except ValueError:
        raise ValueError(f"expected a budget such as bytes=122880, floats=30720 or ipc=10, got '{text}'") from None


def sweep_option(text: str) -> tuple[str, tuple[str, ...]]:
    """Key and values of `--sweep key=v1,v2`.

    Raises:
        UsageError: When it is not of this form.
    """
    key, equals, values = text.partition("=")
    found = tuple(v.strip() for v in split_top(values, ","))
    if not equals or not key or not all(found):
        raise UsageError(f"--sweep {text}: expected key=value,value,..., such as param.r=1,2,4")
    return key, found


def read_settings(file: Path | None, given: Mapping[str, Any]) -> BenchSettings:
    """Settings from a file and from options given beside it, which win; lists and tables of options are added to.

    Args:
        file: A TOML file, or None.
        given: Values by name; None means not given.

    Raises:
        UsageError: When the file cannot be read, or something in it is wrong.
    """
    values: dict[str, Any] = _read(file) if file is not None else {}
    asked = {k: v for k, v in given.items() if v is not None}
    if "ipc" in asked or "budget" in asked:
        values = {k: v for k, v in values.items() if k not in ("ipc", "budget")}
    for key in ("methods", "sweep"):
        if key in asked:
            asked[key] = _joined(values.get(key), asked[key])
    try:
        settings = validate_mapping(BenchSettings, {**values, **asked}, "bench")
    except ConfigError as error:
        raise _plain(error, file) from None
    for text in settings.data:
        check(Kind.DATASET, text)
    return settings


def _joined(known: Any, more: Any) -> Any:
    if isinstance(more, Mapping):
        return {**_flat(known or {}), **more}
    return (*_several(known or ()), *more)


def _plain(error: ConfigError, file: Path | None) -> UsageError:
    where = f"{file}: " if file is not None else ""
    hints = [h for h in error.hints if not h.startswith("options:")]
    if "has no option" in error.message:
        hints.append(f"settings: {', '.join(n for n in BenchSettings.model_fields if n != 'override')}")
    return UsageError("\n  ".join([where + error.message, *hints]))


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file '{file}'") from None
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read '{file}': {getattr(error, 'strerror', None) or error}") from None


def _from_table(table: Mapping[str, Any], number: int) -> Method:
    """A method from its table: its own keys, and settings of a run."""
    own = {k: v for k, v in table.items() if k in MethodTable.model_fields}
    rest = {k: v for k, v in table.items() if k not in own}
    where = f"method {number}"
    try:
        head = validate_mapping(MethodTable, own, where)
    except ConfigError as error:
        raise UsageError(error.message) from None
    where = f"method '{head.name}'" if head.name else where
    _require_run_settings(rest, where)
    try:
        base = parse_method(head.spec) if head.spec else Method("", {})
    except SpecError as error:
        raise error.with_flag(f"{where}: spec") from None
    named = {"recipe", "matcher"} & set(rest)
    for key in sorted(set(base.settings) & set(rest) | (named if head.spec else set())):
        raise UsageError(f"{where}: '{key}' and the spec '{head.spec}' say the same thing twice; leave one of them out")
    settings = {**base.settings, **rest}
    if not {"recipe", "matcher"} & set(settings):
        raise UsageError(f"{where}: expected a 'spec', a 'recipe' or a 'matcher'")
    label = head.name or head.spec or str(settings.get("recipe") or settings["matcher"])
    return Method(label, settings, {**base.changes, **head.set}, head.sweep)


def _require_run_settings(values: Mapping[str, Any], where: str) -> None:
    usable: Sequence[str] = sorted(set(RunConfig.model_fields) - DECIDED)
    for key in values:
        if key in DECIDED:
            raise UsageError(f"{where}: '{key}' is the same for all methods; set it for the whole bench")
        if key not in RunConfig.model_fields:
            own = ", ".join(MethodTable.model_fields)
            raise UsageError(
                f"{where} has no option '{key}'\n  its own: {own}\n  settings of a run: {', '.join(usable)}"
            )
