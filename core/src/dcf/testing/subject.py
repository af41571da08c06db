"""What a conformance check is given, how it ends, and the comparisons that several checks share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dcf.build import create, create_stack
from dcf.components import Component, Kind
from dcf.config import Config
from dcf.errors import PluginError, SpecError, UsageError
from dcf.registry import Registered, registry
from dcf.spec import Spec, parse

__all__ = [
    "Check",
    "CheckFailed",
    "CheckSkipped",
    "Exercise",
    "Subject",
    "close",
    "find_component",
    "kind_of",
    "require",
    "same",
]

#: Kinds that are files rather than classes.
TEXTS = (Kind.PROTOCOL, Kind.RECIPE)


class CheckFailed(AssertionError):  # noqa: N818 - it reads as the result it is
    """A component does not do what the interface promises."""


class CheckSkipped(Exception):  # noqa: N818 - not an error
    """A check has nothing to check here; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A component under test.

    Attributes:
        kind: Its kind.
        spec: Its spec, canonical; for stacks the whole of it.
        registered: The component, the last one of a stack, and its plugin.
        exercise: Uses a fresh object once; see `Exercise`.
    """

    kind: Kind
    spec: str
    registered: Registered
    exercise: Exercise

    @property
    def component(self) -> Component:
        """What the plugin announced."""
        return self.registered.component

    @property
    def cls(self) -> Any:
        """The component's class."""
        return self.component.load()

    @property
    def gaps(self) -> Mapping[str, str]:
        """Reasons of the checks that are known to fail, by name of the check."""
        found: Mapping[str, str] = {} if self.kind in TEXTS else getattr(self.cls, "conformance_xfail", {})
        return found

    def make(self) -> Any:
        """A fresh object of the spec; of a stack of parameterizations, the rightmost, which owns the others.

        Raises:
            SpecError: When the spec does not fit.
        """
        if self.kind.stacks:
            return create_stack(self.kind, self.spec)[-1]
        return create(self.kind, self.spec)

    def config(self) -> Config:
        """The validated options of the spec."""
        found: Config = self.make().config
        return found


#: From a subject, a seed and a device to what a fresh object computed: the same for the same seed.
Exercise: TypeAlias = Callable[[Subject, int, torch.device], list[Tensor]]
Check: TypeAlias = Callable[[Subject], None]


def require(condition: bool, message: str) -> None:
    """Fail the running check with `message` unless `condition` holds.

    Raises:
        CheckFailed: With the message.
    """
    if not condition:
        raise CheckFailed(message)


def same(a: Any, b: Any) -> bool:
    """Whether two nested values of tuples, lists, dictionaries, tensors and plain values are equal, bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def close(a: Sequence[Tensor], b: Sequence[Tensor], rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two lists of tensors agree within rounding."""
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=rtol, atol=atol) for x, y in zip(a, b, strict=True)
    )


def kind_of(kind: Kind | str | None, text: str) -> Kind:
    """The kind of component that `text` names.

    Args:
        kind: What is known already, or None to look the name up among all kinds. A recipe or protocol that shares
            its name with a component stands back.
        text: A spec, or the name of a recipe or protocol.

    Raises:
        UsageError: When nothing or several kinds have the name.
        PluginError: When its plugin could not be loaded.
    """
    if kind is not None:
        return _kind(kind)
    name = text if _is_text_name(text) else parse(text).specs[-1].name
    found = [k for k in Kind if name in registry().names(k)]
    found = [k for k in found if k not in TEXTS] or found
    if len(found) > 1:
        nouns = " and ".join(k.noun for k in found)
        raise UsageError(f"'{name}' is the name of a {nouns}; say which is meant: --kind {found[0]}")
    if not found:
        raise _unknown(name)
    return found[0]


def find_component(kind: Kind, text: str) -> Registered:
    """The component that a spec names, the last one of a stack.

    Raises:
        SpecError: When there is none.
        PluginError: When its plugin could not be loaded.
    """
    if kind in TEXTS:
        return registry().find(kind, Spec(text, text=text, span=(0, len(text))))
    for spec in parse(text, kind.flag):
        found = registry().find(kind, spec)
    return found


def _kind(kind: Kind | str) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        raise UsageError(f"unknown kind '{kind}'; expected one of {', '.join(Kind)}") from None


def _is_text_name(text: str) -> bool:
    return any(text in registry().names(k) for k in TEXTS)


def _unknown(name: str) -> UsageError:
    for kind in Kind:
        try:
            registry().find(kind, Spec(name))
        except PluginError as error:
            return error
        except SpecError:
            continue
    names = sorted({n for k in Kind for n in registry().names(k)})
    near = [f"\n  did you mean '{n}'?" for n in difflib.get_close_matches(name, names, n=1)]
    return UsageError(f"no component is named '{name}' (see: dcf list-plugins){''.join(near)}")
