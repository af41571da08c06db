"""Datasets made of other datasets: specs as options, checked together with the spec they stand in. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ValidationInfo

from dcf.components import Kind
from dcf.config import Config, validate
from dcf.errors import SpecError
from dcf.registry import registry
from dcf.spec import Option, Spec, Stack, parse_one

__all__ = ["DatasetSpec", "datasets_in", "map_datasets", "nested_fields"]


@dataclass(frozen=True)
class _Nested:
    """Marks a field of a `Config` whose value is a dataset spec."""


def _checked(value: Any, info: ValidationInfo) -> str:
    """The canonical text of a dataset spec whose component exists and takes its options.

    Raises:
        SpecError: Pointing into the whole text, where that is known.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected a dataset spec such as (mnist), got {value!r}"[:300])
    outer: Spec | None = (info.context or {}).get("spec")
    flag = (info.context or {}).get("flag", "")
    option = next((o for o in outer.options if o.key == info.field_name), None) if outer is not None else None
    if outer is None or option is None:
        return str(_checked_spec(parse_one(value), ""))
    if isinstance(option.value, Stack):
        if len(option.value) > 1:
            raise SpecError("expected one dataset, got several joined by '+'", outer.text, option.value_span, (), flag)
        return str(_checked_spec(option.value.specs[0], flag))
    try:
        return str(_checked_spec(parse_one(value), flag))
    except SpecError as error:
        # A spec in quotes was parsed by itself: its places are not those of the whole text.
        raise type(error)(error.message, outer.text, option.value_span, error.hints, flag) from None


def _checked_spec(spec: Spec, flag: str) -> Spec:
    validate(registry().find(Kind.DATASET, spec, flag).component.load_config(), spec, flag)
    return spec


#: The type of an option that is a dataset spec.
DatasetSpec = Annotated[str, BeforeValidator(_checked), _Nested()]

_MARK: Final = _Nested()


def nested_fields(config: type[Config]) -> tuple[str, ...]:
    """The options of `config` that are dataset specs."""
    return tuple(name for name, info in config.model_fields.items() if _MARK in info.metadata)


def datasets_in(spec: Spec | str) -> Iterator[Spec]:
    """A dataset spec and all that it is made of, given or by default; the outermost first."""
    spec = parse_one(spec) if isinstance(spec, str) else spec
    yield spec
    for part in _parts(spec).values():
        yield from datasets_in(part)


def map_datasets(spec: Spec | str, change: Callable[[Spec], Spec]) -> Spec:
    """The same spec with `change` made to it and to every dataset spec that it is made of, given or by default."""
    spec = parse_one(spec) if isinstance(spec, str) else spec
    parts = _parts(spec)
    inner = [Option(name, Stack((map_datasets(part, change),))) for name, part in parts.items()]
    return change(Spec(spec.name, (*inner, *(o for o in spec.options if o.key not in parts))))


def _parts(spec: Spec) -> dict[str, Spec]:
    """The datasets that stand directly in a spec, by option."""
    config = registry().find(Kind.DATASET, spec).component.load_config()
    given = {o.key: o.value for o in spec.options}
    texts = {name: given.get(name, config.model_fields[name].default) for name in nested_fields(config)}
    return {name: parse_one(str(text)) for name, text in texts.items() if isinstance(text, (str, Stack))}
