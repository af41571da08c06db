"""Which matcher, parameterization and augmenter go together, as the packages that provide them have tried. Torch-free.

A package says so in a file `compositions.json` beside its `__init__.py`: for any triple that has a component of its
own in it. What no package speaks of is untested.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, Final

from dcf.components import Kind
from dcf.registry import Registered, Registry, registry

__all__ = ["FILE", "SCHEMA", "Cell", "Status", "axes", "cells", "file_text", "owner", "package_of"]

log = logging.getLogger(__name__)

FILE: Final = "compositions.json"
SCHEMA: Final = "dcf.compositions/1"
_CORE: Final = "dcf-core"
_KINDS: Final = (Kind.MATCHER, Kind.PARAM, Kind.AUGMENTER)
#: Characters of a file that are read at most.
_LARGEST: Final = 2**22

Triple = tuple[str, str, str]


class Status(StrEnum):
    """What is known of a composition."""

    #: A recipe is made of it: whole runs are part of the tests.
    TESTED = "tested"
    #: One outer iteration was run on tiny data: what was to be learned has changed, and came back from its file.
    RUNS = "runs"
    #: It is refused before a run starts, for a reason.
    IMPOSSIBLE = "impossible"
    #: Nobody has said.
    UNTESTED = "untested"


@dataclass(frozen=True)
class Cell:
    """One composition.

    Attributes:
        matcher: Its name.
        param: Name of the parameterization, or names of a stack joined by `+`.
        augmenter: Its name.
        status: What is known of it.
        reason: Why it is impossible.
        distribution: Who says so; empty where nobody does.
    """

    matcher: str
    param: str
    augmenter: str
    status: Status = Status.UNTESTED
    reason: str = ""
    distribution: str = ""

    @property
    def key(self) -> Triple:
        """The three names."""
        return self.matcher, self.param, self.augmenter


def cells(reg: Registry | None = None) -> list[Cell]:
    """Every composition of what is installed, in order of the names."""
    reg = reg or registry()
    known = _recorded(reg)
    matchers, params, augmenters = axes(reg, known)
    return [known.get((m, p, a)) or Cell(m, p, a) for m in matchers for p in params for a in augmenters]


def axes(reg: Registry, recorded: Iterable[Triple] = ()) -> tuple[list[str], list[str], list[str]]:
    """Names of matchers, parameterizations and augmenters; of the second also the stacks that are recorded."""
    matchers, params, augmenters = (sorted(reg.names(kind)) for kind in _KINDS)
    stacks = {param for _, param, _ in recorded if "+" in param}
    return matchers, [*params, *sorted(stacks)], augmenters


def owner(key: Triple, reg: Registry | None = None) -> Registered:
    """The component whose package speaks of a composition: the first of the three that is not built in, if any is."""
    found = list(_members(key, reg or registry()))
    return next((item for item in found if item.plugin.distribution != _CORE), found[0])


def package_of(item: Registered) -> str:
    """The Python package that a component belongs to."""
    return item.component.target.partition(":")[0].partition(".")[0]


def file_text(found: Sequence[Cell]) -> str:
    """The contents of a package's file: one line for each matcher and parameterization."""
    lines = []
    pairs = dict.fromkeys((cell.matcher, cell.param) for cell in found)
    for matcher, param in pairs:
        entry = {c.augmenter: _entry(c) for c in found if (c.matcher, c.param) == (matcher, param)}
        lines.append(f"  {json.dumps(f'{matcher} {param}')}: {json.dumps(entry)}")
    body = ",\n".join(lines)
    return f'{{\n "schema": "{SCHEMA}",\n "cells": {{\n{body}\n }}\n}}\n'


def _entry(cell: Cell) -> str:
    return f"{cell.status}: {cell.reason}" if cell.reason else str(cell.status)


# --- reading -------------------------------------------------------------------------------------


def _recorded(reg: Registry) -> dict[Triple, Cell]:
    """What the installed packages say; of two that speak of the same, the owner is believed."""
    found: dict[Triple, Cell] = {}
    packages = {package_of(item): item.plugin.distribution for kind in _KINDS for item in reg.items(kind)}
    for package, distribution in packages.items():
        for cell in _of_package(package, distribution):
            members = list(_members(cell.key, reg))
            if not members or distribution not in {item.plugin.distribution for item in members}:
                continue
            if cell.key not in found or owner(cell.key, reg).plugin.distribution == distribution:
                found[cell.key] = cell
    return found


def _members(key: Triple, reg: Registry) -> Iterator[Registered]:
    """The components of a composition; nothing when one of them is not installed."""
    matcher, param, augmenter = key
    names = [(Kind.MATCHER, matcher), *((Kind.PARAM, part) for part in param.split("+")), (Kind.AUGMENTER, augmenter)]
    by_name = {(item.component.kind, item.component.name): item for kind in _KINDS for item in reg.items(kind)}
    if all(name in by_name for name in names):
        yield from (by_name[name] for name in names)


def _of_package(package: str, distribution: str) -> Iterator[Cell]:
    try:
        text = resources.files(package).joinpath(FILE).read_text("utf-8")
    except FileNotFoundError:
        return
    except Exception as error:  # a plugin's package, which may be anything
        log.warning("the compositions of '%s' cannot be read: %s", distribution, error)
        return
    try:
        yield from list(_parsed(text, distribution))
    except (ValueError, RecursionError) as error:
        log.warning("the compositions of '%s' are not usable: %s", distribution, str(error)[:200])


def _parsed(text: str, distribution: str) -> Iterator[Cell]:
    value = json.loads(text) if len(text) <= _LARGEST else None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ValueError(f"expected the schema {SCHEMA}")
    for pair, entries in _table(value.get("cells")).items():
        matcher, _, param = pair.partition(" ")
        for augmenter, entry in _table(entries).items():
            status, _, reason = str(entry).partition(": ")
            yield Cell(matcher, param, augmenter, Status(status), reason, distribution)


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected a table of compositions")
    return value
