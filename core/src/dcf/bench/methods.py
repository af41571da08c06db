"""Methods as they are written on the command line: `NAME[+spec...]`, and lists of them. Torch-free.

NAME is a recipe, a matcher or a selector, in this order; what follows is a parameterization, an augmenter, a
network or a selector, in this order. A prefix such as `matcher:` says which one is meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dcf.components import Kind
from dcf.errors import SpecError, UsageError
from dcf.recipes import load_recipe
from dcf.registry import registry
from dcf.spec import Spec, parse_one

__all__ = ["Method", "parse_method", "split_methods", "split_top"]

_FLAG: Final = "--methods"
_FIRST: Final = (Kind.RECIPE, Kind.MATCHER, Kind.SELECTOR)
_FURTHER: Final = (Kind.PARAM, Kind.AUGMENTER, Kind.NETWORK, Kind.SELECTOR)
#: Which setting of a run a kind of component is.
_SETTING: Final = {
    Kind.RECIPE: "recipe",
    Kind.MATCHER: "matcher",
    Kind.SELECTOR: "init",
    Kind.PARAM: "param",
    Kind.AUGMENTER: "augment",
    Kind.NETWORK: "network",
}
_PREFIX: Final = re.compile(r"(?P<kind>recipe|matcher|selector|param|augmenter|network):(?=[a-z][a-z0-9-]*(?:[:@]|\Z))")
_OPTION: Final = re.compile(r"\s*[A-Za-z_][A-Za-z0-9_.]*=")
_CLOSING: Final = {"]": "[", ")": "("}


@dataclass(frozen=True)
class Method:
    """One method of a bench.

    Attributes:
        label: Name of its rows.
        settings: Settings of a run by name, `recipe` among them.
        changes: Component options by dotted key, as with `--set`.
        sweep: Values to run it with, by dotted key.
    """

    label: str
    settings: Mapping[str, Any]
    changes: Mapping[str, str] = field(default_factory=dict)
    sweep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def split_top(text: str, mark: str) -> list[str]:
    """Split at a character that stands in no brackets and no quotes.

    Args:
        text: Anything; brackets that do not fit are left to the parser of the pieces.
        mark: One character.
    """
    pieces, start, depth, quote = [], 0, 0, ""
    for at, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "[(" or c in _CLOSING:
            depth += 1 if c in "[(" else -1
        elif c == mark and depth == 0:
            pieces.append(text[start:at])
            start = at + 1
    return [*pieces, text[start:]]


def split_methods(texts: Iterable[str]) -> list[str]:
    """The methods of `--methods a,b:x=1,y=2,c`: a piece of the form `key=value` belongs to what stands before it."""
    found: list[str] = []
    for text in texts:
        first = len(found)
        for piece in split_top(text, ","):
            if _OPTION.match(piece) and len(found) > first:
                found[-1] += f",{piece}"
            else:
                found.append(piece.strip())
    if any(not name for name in found):
        raise UsageError(f"{_FLAG} {','.join(texts)}: a method is missing between two commas")
    return found


def parse_method(text: str) -> Method:
    """A method from `NAME[+spec...]`; its label is the text.

    Raises:
        SpecError: When a part is no component that can stand there, or its options cannot be read.
    """
    head, *further = split_top(text, "+")
    kind, spec = _component(head, _FIRST)
    settings, changes = _begin(kind, spec)
    for part in further:
        kind, spec = _component(part, _FURTHER)
        name = _SETTING[kind]
        known = settings.get(name) if kind.stacks else None
        settings[name] = f"{known}+{spec}" if known else str(spec)
    return Method(text, settings, changes)


def _begin(kind: Kind, spec: Spec) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and changes of a method that begins with a component."""
    if kind is Kind.RECIPE:
        # A recipe takes no options itself: they go to what makes the method, its matcher or its selector.
        role = "init" if load_recipe(spec.name).run.get("matcher") == "none" else "matcher"
        pairs = (str(option).partition("=") for option in spec.options)
        return {"recipe": spec.name}, {f"{role}.{key}": value for key, _, value in pairs}
    if kind is Kind.MATCHER:
        return {"matcher": str(spec)}, {}
    return {"matcher": "none", "iterations": 0, "init": str(spec)}, {}


def _component(text: str, kinds: Sequence[Kind]) -> tuple[Kind, Spec]:
    """What a part of a method names: the first kind that has a component of the name."""
    match = _PREFIX.match(text)
    rest = text[match.end() :] if match else text
    wanted = [k for k in kinds if match is None or k.value == match["kind"]]
    if not wanted:
        raise SpecError(f"{_article(kinds)} is expected here", text, (0, len(text)), [_offer(k) for k in kinds], _FLAG)
    spec = parse_one(rest, _FLAG)
    for kind in wanted:
        if spec.name in registry().names(kind):
            return kind, spec
    raise _unknown(spec, wanted)


def _unknown(spec: Spec, kinds: Sequence[Kind]) -> Exception:
    names = sorted({name for kind in kinds for name in registry().names(kind)})
    close = difflib.get_close_matches(spec.name, names, n=1)
    start = spec.span[0]
    hints = [f"did you mean '{close[0]}'?"] if close else []
    elsewhere = [k for k in (*_FIRST, *_FURTHER) if k not in kinds and spec.name in registry().names(k)]
    if elsewhere and kinds[0] in _FIRST:
        hints.append(f"'{spec.name}' is a {elsewhere[0].noun}; write METHOD+{spec.name}")
    elif elsewhere:
        hints.append(f"'{spec.name}' is a {elsewhere[0].noun}, which can only stand first")
    hints += [_offer(kind) for kind in kinds]
    *first, last = [kind.noun for kind in kinds]
    message = f"no {', '.join(first)}{' or ' if first else ''}{last} named '{spec.name}'"
    return SpecError(message, spec.text, (start, start + len(spec.name)), hints, _FLAG)


def _offer(kind: Kind) -> str:
    return f"{kind.noun}s: {', '.join(registry().names(kind)) or 'none'}"


def _article(kinds: Sequence[Kind]) -> str:
    return f"a {' or a '.join(k.noun for k in kinds)}"
