"""Whether sets may become one, and what the header of the whole says. From headers alone: torch-free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dcf.errors import SpecError, UsageError
from dcf.spec import Option, Spec, Stack, Value, parse_one

__all__ = ["Part", "joined_classes", "joined_header", "origin", "require_joinable", "sliced_header"]

log = logging.getLogger(__name__)

_SUBSET: Final = "subset"
#: What a part says of itself in the header of the whole, beside its name, classes and tensors.
_KEPT: Final = ("seed", "config", "data", "selection", "license")
#: Settings of runs that still hold for a set that was put together, where all its parts have them.
_RUN: Final = ("protocol_set", "networks", "ipc")


@dataclass(frozen=True)
class Part:
    """A set that is to become part of another one.

    Attributes:
        name: What messages and the header of the whole call it, such as the name of its file.
        header: Its header, as `dcf.metadata.read_metadata` gives it.
        tensors: Sha256 of what it stores; empty before that is known.
        kept: Names of the classes that are taken from it; None for all.
    """

    name: str
    header: Mapping[str, Any]
    tensors: str = ""
    kept: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Its class names."""
        return tuple(self.header.get("classes", ()))


def require_joinable(parts: Sequence[Part], across_data: bool = False) -> None:
    """Make sure that sets may become one set.

    Args:
        parts: Two or more.
        across_data: Whether classes of one name are one class even where the data are not the same.

    Raises:
        UsageError: Saying which two cannot be joined, and why.
    """
    if not parts:
        raise UsageError("expected sets to merge, got none")
    first = parts[0]
    for part in parts:
        require_movable(part)
        for what, of in _MUST_AGREE.items():
            if of(part.header) != of(first.header):
                raise UsageError(
                    f"'{part.name}' cannot be merged with '{first.name}': {what} differ, {_short(of(part.header))} and "
                    f"{_short(of(first.header))}"
                )
    if not across_data:
        _require_one_meaning(parts)


def require_movable(part: Part) -> None:
    """Make sure that images may be taken from a set, or added to it.

    Raises:
        UsageError: When the order of its images belongs to it.
    """
    hints = part.header.get("hints") or {}
    if hints.get("ordered") or hints.get("program"):
        raise UsageError(
            f"'{part.name}' is a program: the order of its images belongs to it, so none can be taken away or added"
        )


def _param(header: Mapping[str, Any]) -> Any:
    options = header.get("options") or {}
    return [header["config"].get("param"), *(options.get("param") or [])]


#: What must be the same in all parts, as messages call it.
_MUST_AGREE: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "shapes of images": lambda header: header.get("shape"),
    "value spaces": lambda header: header.get("space"),
    "parameterizations": _param,
    "ways to store floats": lambda header: (header.get("store") or {}).get("dtype", "fp32"),
    "learned step sizes": lambda header: (header.get("hints") or {}).get("lr"),
    "learned lengths of training": lambda header: (header.get("hints") or {}).get("steps"),
}


def _require_one_meaning(parts: Sequence[Part]) -> None:
    seen: dict[str, Part] = {}
    for part in parts:
        for name in part.classes:
            other = seen.setdefault(name, part)
            ours, theirs = origin(part.header), origin(other.header)
            if ours != theirs:
                raise UsageError(
                    f"class '{name}' of '{part.name}' comes from {_short(ours)}, and of '{other.name}' from "
                    f"{_short(theirs)}: these may be two classes\n  if they are one: --across-data"
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- classes and data --------------------------------------------------------------------------------


def origin(header: Mapping[str, Any]) -> str:
    """The dataset that a set was made of, whatever part of it."""
    text = str((header.get("data") or {}).get("id") or header["config"].get("data", ""))
    spec = _spec(text)
    while spec is not None and spec.name == _SUBSET and (inner := _base(spec)) is not None:
        spec = inner
    return text if spec is None else str(spec)


def _spec(text: str) -> Spec | None:
    try:
        return parse_one(text)
    except SpecError:  # an object of no component, or text that a file claims
        return None


def _base(spec: Spec) -> Spec | None:
    value = next((o.value for o in spec.options if o.key == "base"), None)
    if isinstance(value, Stack):
        return value.specs[0]
    return _spec(value) if isinstance(value, str) else None


def joined_classes(parts: Sequence[Part]) -> tuple[str, ...]:
    """The classes of the whole: those of the parts, in order of their first appearance."""
    return tuple(dict.fromkeys(name for part in parts for name in part.classes))


def _joined_data(texts: Sequence[str], further: Sequence[str] = ()) -> str:
    """The dataset that the whole can be evaluated on; empty where no spec says it.

    Args:
        texts: Datasets of the parts.
        further: Classes of the whole that no part has.
    """
    specs = [spec for text in texts if (spec := _spec(text)) is not None]
    if len(set(texts)) == 1 and not (further and specs and specs[0].name == _SUBSET):
        return texts[0]
    if len(specs) < len(texts) or any(spec.name != _SUBSET for spec in specs):
        return ""
    rest = {tuple(o for o in spec.options if o.key != "classes") for spec in specs}
    chosen = [next((o.value for o in spec.options if o.key == "classes"), ()) for spec in specs]
    if len(rest) != 1 or not all(isinstance(one, tuple) and one for one in chosen):
        return ""
    return _with_classes(specs[0], [*(str(name) for one in chosen for name in one), *further])


def _with_classes(subset: Spec, names: Iterable[str]) -> str:
    kept = tuple(o for o in subset.options if o.key != "classes")
    value: Value = tuple(sorted(set(names), key=_order))
    return str(Spec(_SUBSET, (*kept, Option("classes", value))))


def _order(name: str) -> tuple[bool, int, str]:
    """Numbers first, as the dataset itself writes them."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _sliced_data(text: str, names: Sequence[str]) -> str:
    """The classes `names` of a dataset."""
    spec = _spec(text)
    if spec is None or not text:
        return ""
    if spec.name == _SUBSET:
        return _with_classes(spec, names)
    return _with_classes(Spec(_SUBSET, (Option("base", Stack((spec,))),)), names)


# --- headers -----------------------------------------------------------------------------------------


def joined_header(parts: Sequence[Part], by: str, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Config, seed, hints and the rest of the header of a set that is put together.

    What was measured of the parts is not claimed for the whole.

    Args:
        parts: What it is made of.
        by: What made it, such as "merge".
        classes: Of the whole, where it has more than its parts.
    """
    known = joined_classes(parts)
    further = [name for name in classes if name not in known]
    headers = [part.header for part in parts]
    config = _common([header["config"] for header in headers], "how they were made")
    data = _joined_data([str(header["config"].get("data", "")) for header in headers], further)
    config |= {"data": data} if data else {}
    ids = _joined_data([str((header.get("data") or {}).get("id", "")) for header in headers], further)
    options = _common([dict(header.get("options") or {}) for header in headers])
    run = _common([dict(header.get("run") or {}) for header in headers])
    shared = _common([dict(header) for header in headers])
    whole: dict[str, Any] = {key: shared[key] for key in ("data", "environment", "generator") if key in shared}
    if (whole.get("data") or {}).get("id", ids) != ids:  # of fewer classes
        del whole["data"]
    return {
        **whole,
        **({"data": {"id": ids}} if ids and "data" not in whole else {}),
        "config": config,
        "seed": headers[0].get("seed", 0),
        "hints": {**(headers[0].get("hints") or {}), "extra": _common([_extra(header) for header in headers])},
        "options": options,
        "run": {key: run[key] for key in _RUN if key in run and (key != "ipc" or _disjoint(parts))},
        "packages": {k: v for header in reversed(headers) for k, v in (header.get("packages") or {}).items()},
        "license": "; ".join(dict.fromkeys(str(h["license"]) for h in headers if h.get("license"))),
        "assembled": {"by": by, "parts": [record for part in parts for record in _records(part)]},
    }


def sliced_header(part: Part, classes: Sequence[str] | None) -> dict[str, Any]:
    """As `joined_header`, for a part of one set.

    Args:
        part: The set.
        classes: Names of those that are kept; None for all of them.
    """
    made = joined_header([part], "slice")
    if classes is None:  # fewer images of all classes: not what the budget of the run paid for
        made["run"].pop("ipc", None)
        return made
    data = _sliced_data(str(part.header["config"].get("data", "")), classes)
    made["config"] = {**{k: v for k, v in made["config"].items() if k != "data"}, **({"data": data} if data else {})}
    ids = _sliced_data(str((part.header.get("data") or {}).get("id", "")), classes)
    made["data"] = {"id": ids} if ids else {}
    return made


def _extra(header: Mapping[str, Any]) -> dict[str, Any]:
    return dict((header.get("hints") or {}).get("extra") or {})


def _disjoint(parts: Sequence[Part]) -> bool:
    names = [name for part in parts for name in part.classes]
    return len(set(names)) == len(names)


def _common(tables: Sequence[Mapping[str, Any]], told: str = "") -> dict[str, Any]:
    """Entries that are the same in all tables."""
    same = {k: v for k, v in tables[0].items() if all(k in t and t[k] == v for t in tables)}
    lost = sorted({k for table in tables for k in table} - {*same, "data"})
    if told and lost:
        log.warning("the parts differ in %s (%s): the whole does not say", told, ", ".join(lost))
    return same


def _records(part: Part) -> list[dict[str, Any]]:
    """What the whole says of a part; a part that was merged itself stands for its own parts."""
    header = part.header
    before = header.get("assembled") or {}
    if before.get("by") == "merge" and part.kept is None and isinstance(before.get("parts"), list):
        return list(before["parts"])
    kept = {key: header[key] for key in _KEPT if header.get(key) not in (None, {}, "")}
    views = (header.get("storage") or {}).get("views")
    return [
        {
            "name": part.name,
            "tensors": part.tensors,
            "classes": list(part.classes if part.kept is None else part.kept),
            "views": views,
            **kept,
            **({"assembled": before} if before else {}),
        }
    ]
