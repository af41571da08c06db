"""From specs to objects: `lowrank:r=4` to a parameterization, text or objects alike."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dcf.components import Kind
from dcf.config import validate, validate_mapping
from dcf.errors import DcfError, SpecError, UsageError
from dcf.registry import Registry, registry
from dcf.spec import Option, Spec, Stack, parse, parse_one

__all__ = ["check", "create", "create_stack", "spec_text", "stacked", "suited", "used_packages"]

#: What an object must be to stand in for a spec.
_BASES: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.MATCHER: ("dcf.matcher:Matcher",),
    Kind.PARAM: ("dcf.parameterization:Parameterization",),
    Kind.AUGMENTER: ("dcf.augmenter:Augmenter",),
    Kind.EVALUATOR: ("dcf.evaluator:Evaluator",),
    Kind.DATASET: ("dcf.data.real:RealData", "dcf.data.base:DatasetProvider"),
    Kind.NETWORK: ("dcf.networks.base:NetworkFactory",),
    Kind.SELECTOR: ("dcf.selector:Selector",),
}


def check(kind: Kind | str, text: str, flag: str | None = None, reg: Registry | None = None) -> Stack:
    """Parse a spec and make sure that its components exist and take its options.

    Imports no code of components that say where their options are declared (`Component.config`).

    Raises:
        SpecError: With the place that is wrong.
        PluginError: When a component's plugin cannot be used.
    """
    kind = Kind(kind)
    flag = kind.flag if flag is None else flag
    stack = parse(text, flag) if kind.stacks else Stack((parse_one(text, flag),))
    for spec in stack:
        component = (reg or registry()).find(kind, spec, flag).component
        validate(component.load_config(), spec, flag)
    return stack


def create(
    kind: Kind | str, what: Any, flag: str | None = None, options: Mapping[str, Any] | None = None, **extra: Any
) -> Any:
    """Make one component.

    Args:
        kind: Its kind.
        what: A spec as text or `Spec`, or an object that already is one, which is returned.
        flag: Command line option for error messages; the kind's own by default.
        options: Complete options, as a file records them; they stand in for those of the spec.
        extra: Passed to the component's constructor after its config.

    Raises:
        SpecError: Unknown name, unknown option, wrong value.
    """
    kind = Kind(kind)
    flag = kind.flag if flag is None else flag
    if not isinstance(what, (str, Spec)):
        return _checked_object(kind, what)
    spec = parse_one(what, flag) if isinstance(what, str) else what
    component = registry().find(kind, spec, flag).component
    cls = component.load()
    config = validate(cls.Config, spec, flag) if options is None else validate_mapping(cls.Config, options, spec.name)
    return cls(config, **extra)


def create_stack(
    kind: Kind | str, what: Any, flag: str | None = None, options: Sequence[Mapping[str, Any]] | None = None
) -> list[Any]:
    """Make the components of a stack, left to right; parameterizations are nested, the right owning the left.

    Args:
        kind: Their kind.
        what: A spec as text or `Stack`, or an object, which is returned as the only one.
        flag: Command line option for error messages; the kind's own by default.
        options: Complete options of each component, as a file records them; they stand in for those of the spec.

    Raises:
        SpecError: Unknown name, unknown option, wrong value, or a right one that stores images itself.
    """
    kind = Kind(kind)
    flag = kind.flag if flag is None else flag
    if not isinstance(what, (str, Stack)):
        return [_checked_object(kind, what)]
    stack = parse(what, flag) if isinstance(what, str) else what
    made: list[Any] = []
    for position, spec in enumerate(stack):
        extra: dict[str, Any] = {}
        if kind is Kind.PARAM and position > 0:
            cls = registry().find(kind, spec, flag).component.load()
            if not cls.stackable:
                raise SpecError(
                    f"parameterization '{spec.name}' stores images itself and cannot stand to the right of another",
                    spec.text,
                    spec.span,
                    ["the left one is stored, the right one decodes it"],
                    flag,
                )
            extra["inner"] = made[-1]
        made.append(create(kind, spec, flag, None if options is None else options[position], **extra))
    return made


def _checked_object(kind: Kind, what: Any) -> Any:
    """An object that was given in place of a spec, if it is of the kind."""
    bases = [_attribute(target) for target in _BASES.get(kind, ())]
    if bases and not isinstance(what, tuple(bases)):
        names = " or ".join(f"{base.__module__}.{base.__name__}" for base in bases)
        raise UsageError(f"{kind.noun}: expected a spec such as 'name:option=value', or a {names}, got {what!r}"[:300])
    return what


def _attribute(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def stacked(what: Any) -> list[Any]:
    """The components that an object consists of, left to right as its spec names them; most are one."""
    from dcf.augmenter import ChainAugmenter
    from dcf.parameterization import Parameterization

    if isinstance(what, Parameterization) and what.inner is not None:
        return [*stacked(what.inner), what]
    if isinstance(what, ChainAugmenter):
        return [one for part in what.parts for one in stacked(part)]
    return [what]


def suited(param: Any) -> dict[str, Any]:
    """Settings of a run that suit a parameterization, for where neither the user nor the data say otherwise.

    Args:
        param: A spec as text or `Stack`, or an object. Of the parts of a stack, the right one wins.

    Raises:
        SpecError: As `create_stack`.
    """
    made = create_stack(Kind.PARAM, param)[-1]
    return {key: value for part in stacked(made) for key, value in part.defaults.items()}


def used_packages(specs: Mapping[str, str]) -> dict[str, str]:
    """Distribution and version of every component of some specs by kind, as `kind:name`; objects are left out."""
    found = {}
    for kind, text in specs.items():
        for spec in parse(text):
            try:
                plugin = registry().find(kind, spec).plugin
            except DcfError:  # an object of no plugin: there is nothing to name
                continue
            found[f"{kind}:{spec.name}"] = f"{plugin.distribution} {plugin.version}"
    return found


def spec_text(kind: Kind | str, what: Any) -> str:
    """The canonical spec of text or of an object, for files and logs."""
    if isinstance(what, str):
        return str(parse(what))
    if isinstance(what, (Spec, Stack)):
        return str(what)
    return str(Stack(tuple(_spec_of(kind, part) for part in stacked(what))))


def _spec_of(kind: Kind | str, what: Any) -> Spec:
    cls = type(what)
    for item in registry().items(kind):
        if item.component.target == f"{cls.__module__}:{cls.__qualname__}":
            return Spec(item.component.name, _options(what.config.model_dump(mode="json", exclude_defaults=True)))
    return parse_one(f"python:{cls.__module__}.{cls.__qualname__}")


def _options(values: Mapping[str, Any]) -> tuple[Option, ...]:
    def value(v: Any) -> Any:
        if isinstance(v, bool):
            return str(v).lower()
        return tuple(value(i) for i in v) if isinstance(v, (list, tuple)) else str(v)

    return tuple(Option(k, value(v)) for k, v in values.items())
