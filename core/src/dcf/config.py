"""`dcf.Config`: the options of a component, and pydantic's complaints turned into messages for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from dcf.errors import ConfigError
from dcf.spec import Spec

__all__ = ["Config", "FieldRow", "field_rows", "options_summary", "validate", "validate_mapping", "value_text"]

#: Largest number of 32 bits: what components compute with.
_LARGEST: Final = 3.4028234e38
_BEYOND: Final = "beyond_float32"


class Config(BaseModel):
    """Base of every component's options: frozen, unknown keys forbidden, defaults those of the paper.

    Every field carries a `description` and its bounds. A value that depends on the data (image size,
    number of classes) is not an option: it arrives as an argument.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=False, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _is_computable(cls, value: Any) -> Any:
        if any(isinstance(v, float) and abs(v) > _LARGEST for v in _flat(value)):
            raise PydanticCustomError(_BEYOND, "larger than a float of 32 bits")
        return value


def _flat(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class FieldRow:
    """One option of a component, as `dcf describe` and the reference show it."""

    name: str
    type: str
    default: str
    description: str
    required: bool


def field_rows(config: type[Config]) -> list[FieldRow]:
    """The options of `config`, in order of declaration."""
    return [
        FieldRow(
            name,
            _type_text(info),
            "" if info.is_required() else value_text(info.get_default(call_default_factory=True)),
            info.description or "",
            info.is_required(),
        )
        for name, info in config.model_fields.items()
    ]


def options_summary(config: type[Config]) -> str:
    """One line that lists all options: `r (int >= 1, required), init ('svd' | 'normal', default svd)`."""
    rows = [f"{r.name} ({r.type}, {'required' if r.required else 'default ' + r.default})" for r in field_rows(config)]
    return ", ".join(rows) if rows else "none"


def validate(config: type[ConfigT], spec: Spec, flag: str = "") -> ConfigT:
    """Convert and check the options of `spec`.

    Raises:
        ConfigError: Naming the option, what was expected, what was got, and pointing at it in the text.
    """
    try:
        return config.model_validate(spec.as_dict(), context={"spec": spec, "flag": flag})
    except ValidationError as error:
        raise _explain(error, config, spec, flag) from None


def validate_mapping(config: type[ConfigT], values: Mapping[str, Any], name: str) -> ConfigT:
    """Check options that came from a file or from Python rather than from a spec."""
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(error, config, Spec(name), "") from None


def _explain(error: ValidationError, config: type[Config], spec: Spec, flag: str) -> ConfigError:
    details = error.errors(include_url=False)
    # An unknown key usually is the typo that also left a required one missing: report it first.
    detail = min(details, key=lambda d: {"extra_forbidden": 0, "missing": 2}.get(d["type"], 1))
    path, info = _locate(config, detail["loc"])
    option = next((o for o in spec.options if o.key == path), None) or next(
        (o for o in spec.options if o.key.split(".")[0] == path.split(".")[0]), None
    )
    hints = [f"options: {options_summary(config)}"]
    span = spec.span
    if detail["type"] == "extra_forbidden":
        message = f"{spec.name} has no option '{path}'"
        close = difflib.get_close_matches(path, list(config.model_fields), n=1)
        hints = [f"did you mean '{close[0]}'?", *hints] if close else hints
        span = option.key_span if option else span
    elif detail["type"] == "missing":
        message = f"{spec.name} needs the option '{path}'"
    else:
        message = _wrong_value(info, spec, path, detail)
        span = option.value_span if option else span
    return ConfigError(message, spec.text, span, hints, flag)


def _locate(config: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """The dotted name of an option, and its field; pydantic's place also lists positions and branches of unions."""
    path, model, info = "", config, None
    for part in loc:
        path = f"{path}.{part}" if path else str(part)
        info = model.model_fields.get(str(part))
        inner = info.annotation if info is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return path, info


def _wrong_value(info: FieldInfo | None, spec: Spec, key: str, detail: Mapping[str, Any]) -> str:
    if info is None or detail["type"] in ("value_error", "assertion_error"):
        reason = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return f"{spec.name}{'.' + key if key else ''}: {reason}"
    got = "''" if detail.get("input") == "" else repr(value_text(detail.get("input")))
    why = f", which is {detail['msg']}" if detail["type"] == _BEYOND else ""
    return f"{spec.name}: option '{key}' expects {_type_text(info)}, got {got}{why}"


def value_text(value: Any) -> str:
    """A value as the spec language writes it."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def _type_text(info: FieldInfo) -> str:
    return " ".join([_annotation_text(info.annotation), _limits(info.metadata)]).rstrip()


def _limits(metadata: Iterable[Any]) -> str:
    """The bounds among the metadata of a field or of an annotation: `>= 0 and < 1`."""
    signs = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}
    flat = [m for one in metadata for m in (one.metadata if isinstance(one, FieldInfo) else (one,))]
    return " and ".join(
        f"{sign} {getattr(meta, kind.__name__.lower())}"
        for meta in flat
        for kind, sign in signs.items()
        if isinstance(meta, kind)
    )


def _annotation_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        plain, *metadata = get_args(annotation)
        return " ".join([_annotation_text(plain), _limits(metadata)]).rstrip()
    if origin is Literal:
        return " | ".join(repr(a) for a in get_args(annotation))
    if origin in (Union, UnionType):
        return _union_text([a for a in get_args(annotation) if a is not NoneType])
    if origin in (list, tuple):
        inner = [a for a in get_args(annotation) if a is not Ellipsis]
        return f"list of {_annotation_text(inner[0])}" if inner else "list"
    return str(getattr(annotation, "__name__", annotation))


def _union_text(choices: list[Any]) -> str:
    """The choices: `float | 'auto'`, but `'auto' or an int >= 1`, as the bounds would seem to be those of all."""
    bounded = any(get_origin(a) is Annotated and _limits(get_args(a)[1:]) for a in choices)
    if not bounded or len(choices) < 2:
        return " | ".join(map(_annotation_text, choices))
    texts = [_with_article(_annotation_text(a)) for a in choices]
    return " or ".join(sorted(texts, key=lambda text: text[0].isalpha()))


def _with_article(text: str) -> str:
    if not text[0].isalpha():
        return text
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"
