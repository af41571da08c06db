"""A stream as it is written down: TOML files, the command line, named protocols. Torch-free."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

import dcf
from dcf.bench import BenchSettings
from dcf.config import validate_mapping
from dcf.errors import ConfigError
from dcf.evaluation import Protocol, load_protocol
from dcf.spec import Option, Spec, parse_one

__all__ = ["Memory", "StreamSettings", "load_stream", "memory_of", "stream_names"]

_MEMORY: Final = re.compile(r"(?P<unit>ipc|class-bytes|bytes)=(?P<number>[1-9]\d*)\Z")
#: What says how much is run and where, or names it, but not what a number means.
_NOT_IN_ID: Final = frozenset(
    {"name", "version", "summary", "paper", "seeds", "nets", "methods", "method", "device", "original"}
)


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, (str, int)) else value


def _order(value: Any) -> Any:
    if isinstance(value, str) and value not in ("seed", "data"):
        return tuple(part.strip() for part in value.split(","))
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else value


def _numbers(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class Memory(dcf.Config):
    """How much may be kept."""

    unit: Literal["ipc", "class-bytes", "bytes"] = Field(description="of a class, or of everything")
    number: int = Field(ge=1, description="how much")

    @property
    def fixed(self) -> bool:
        """Whether it is shared by all classes seen, so that old ones must give way to new ones."""
        return self.unit == "bytes"

    def class_bytes(self, image_bytes: int, seen: int) -> int:
        """Bytes that a class may take.

        Args:
            image_bytes: Of one plain float32 image.
            seen: Classes seen so far.
        """
        if self.unit == "ipc":
            return self.number * image_bytes
        return self.number if self.unit == "class-bytes" else self.number // seen


def memory_of(text: str) -> Memory:
    """The size of a memory from `ipc=N`, `class-bytes=N` or `bytes=N`.

    Raises:
        ValueError: When it is of another form.
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise ValueError(f"expected ipc=N or class-bytes=N for each class, or bytes=N for all of them, got '{text}'")
    return Memory(unit=match["unit"], number=int(match["number"]))


class StreamSettings(dcf.Config):
    """Everything that decides what a stream comes to."""

    name: str = Field("", description="name of the protocol, without its version")
    version: int = Field(0, ge=0, description="raised whenever anything that can change a number changes")
    summary: str = Field("", description="one line for listings")
    paper: str = Field("", description="where the protocol comes from")

    data: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        ("digits",), min_length=1, description="dataset whose classes come in steps; several: one comes after the other"
    )
    steps: int = Field(
        5, ge=1, le=10_000, description="steps of equally many classes; of several datasets, their number"
    )
    order: Annotated[str | tuple[str, ...], BeforeValidator(_order)] = Field(
        "seed",
        description="'seed': a permutation for each seed; 'data': as the data number them; or all classes in order",
    )
    sort: bool = Field(False, description="classes of a step in ascending order")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], BeforeValidator(_numbers)] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="seeds of class orders, of condensing and of training"
    )

    memory: str = Field("ipc=10", description="ipc=N or class-bytes=N for each class seen, bytes=N for all of them")
    methods: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (), description="what fills the memory: recipes, matchers or selectors, as 'dcf bench --methods' takes them"
    )
    method: tuple[dict[str, Any], ...] = Field((), description="the same as tables, as in the file of a bench")
    iterations: int | None = Field(
        None, ge=1, description="outer iterations of every method that learns, instead of its own"
    )
    condense: Literal["step", "class"] = Field(
        "step",
        description="'step': the new classes together, with the seed of the order; 'class': each class by itself, once "
        "for all orders, where the matcher treats classes apart",
    )

    learner: Literal["gdumb", "replay"] = Field(
        "gdumb", description="'gdumb': from scratch on the memory; 'replay': go on, with a head that grows"
    )
    distil: float = Field(1.0, ge=0, description="replay: weight of staying at the answers of the network before")
    temperature: float = Field(2.0, gt=0, description="replay: temperature of these answers")
    protocol: str = Field("dcf-std@1", description="protocol that networks are trained by")
    protocol_set: dict[str, Any] = Field(default_factory=dict, description="what is changed in it")
    network: str = Field("convnet", description="network that is trained on the memory")
    nets: int = Field(3, ge=1, le=10_000, description="networks for each order")
    head: Literal["all", "seen"] = Field(
        "all", description="which answers compete in the headline: those for all classes, or for those seen"
    )

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["default", "strict"] = Field("default", description="strict: fp32 everywhere, TF32 off")
    original: dict[str, Any] = Field({}, description="values of the named protocol that were changed")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        memory_of(self.memory)
        if len(self.data) > 1 and self.steps != len(self.data):
            raise ValueError(f"{len(self.data)} datasets come in as many steps, got steps={self.steps}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected each seed once, got seeds={','.join(map(str, self.seeds))}")
        if self.learner == "replay" and self.head == "all":
            # Its head has no output for a class before it comes.
            object.__setattr__(self, "head", "seen")
        return self

    @property
    def sequence(self) -> bool:
        """Whether datasets of the same classes come one after the other."""
        return len(self.data) > 1

    @property
    def rules(self) -> Protocol:
        """The protocol that networks are trained by."""
        rules = load_protocol(self.protocol)
        return rules.with_overrides(**self.protocol_set) if self.protocol_set else rules

    @property
    def id(self) -> str:
        """`NAME@VERSION` with everything that was changed in brackets; numbers under different ids do not compare."""
        base = f"{self.name}@{self.version}" if self.name else "custom"
        shown = self.original if self.name else _changed(self)
        options = [Option(key, _text(key, getattr(self, key))) for key in sorted(shown) if key not in _NOT_IN_ID]
        return f"{base}[{str(Spec('x', tuple(options))).removeprefix('x:')}]" if options else base

    def bench(self, data: str, budget: str, seed: int = 0) -> BenchSettings:
        """The settings of a bench with the same methods, which makes runs of them."""
        methods = self.methods or (() if self.method else ("random",))
        values = {
            "data": (data,), "budget": (budget,), "methods": methods, "method": self.method, "sets": 1, "nets": 1,
            "seed": seed, "device": self.device, "precision": self.precision,
        }  # fmt: skip
        return validate_mapping(BenchSettings, values, "stream")

    def with_changes(self, changes: Mapping[str, Any]) -> StreamSettings:
        """The same with other values; those of a named protocol are remembered, and show in its id.

        Raises:
            UsageError: For a name that is unknown or a value that does not fit.
        """
        values = {**self.model_dump(exclude={"original"}), **changes}
        made = _validated(values, "run")
        before = {k: v for k, v in self.model_dump(exclude={"original"}).items() if k in changes}
        kept = {**before, **self.original}
        original = {k: v for k, v in kept.items() if v != getattr(made, k)}
        return made.model_copy(update={"original": original})


def _changed(settings: StreamSettings) -> list[str]:
    return [
        k
        for k, field in type(settings).model_fields.items()
        if getattr(settings, k) != field.get_default(call_default_factory=True)
    ]


def _text(key: str, value: Any) -> Any:
    if key == "data":  # where it lies is nobody's business
        return tuple(parse_one(one).name for one in value)
    if isinstance(value, dict):
        return tuple(f"{k}={_text(k, v)}" for k, v in sorted(value.items()))
    if isinstance(value, bool):
        return str(value).lower()
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _validated(values: Mapping[str, Any], where: str) -> StreamSettings:
    try:
        return validate_mapping(StreamSettings, values, where)
    except ConfigError as error:
        # All settings are listed where one is not known; where a value is wrong, the message says what it may be.
        hints = error.hints if "has no option" in error.message else ()
        raise dcf.UsageError("\n  ".join([error.message, *hints])) from None


# --- named protocols ---------------------------------------------------------------------------------


def stream_names() -> dict[str, str]:
    """Every named stream with its file's text, as `NAME@VERSION`."""
    found = {}
    for file in sorted((resources.files("dcf_continual") / "protocols").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            text = file.read_text(encoding="utf-8")
            values = tomllib.loads(text)
            found[f"{values['name']}@{values['version']}"] = text
    return found


def load_stream(text: str, begun: tuple[Path, ...] = ()) -> StreamSettings:
    """A stream by the name of its protocol, with or without version, or from a TOML file.

    Args:
        text: Name or path.
        begun: Files that begin with this one.

    Raises:
        UsageError: When there is none of that name, or the file cannot be used.
    """
    known = stream_names()
    matching = [name for name in known if text in (name, name.partition("@")[0])]
    if matching:
        return _validated(tomllib.loads(known[matching[-1]]), matching[-1])
    path = Path(text)
    if path.suffix != ".toml":
        raise dcf.UsageError(f"no stream named '{text}'; there are {', '.join(known)}, or a file ending in .toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise dcf.UsageError(f"no file '{path}'") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise dcf.UsageError(f"cannot read '{path}': {error}") from None
    base = values.pop("stream", None)
    if path.resolve() in begun:
        raise dcf.UsageError(f"'{path}' begins with itself: expected 'stream' to name another one")
    begun = (*begun, path.resolve())
    return load_stream(str(base), begun).with_changes(values) if base else _validated(values, str(path))
