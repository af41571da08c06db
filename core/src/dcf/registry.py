"""Discovery of plugins and look-up of components.

Every entry point of the group `dcf` is loaded on its own: a plugin that is broken, incompatible or in conflict
becomes a `Problem`, the rest works, and only *using* something of it is an error, which repeats the reason.
Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, Final

import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from dcf import hookspecs
from dcf.components import Component, Kind
from dcf.errors import PluginError, SpecError
from dcf.spec import Spec

__all__ = ["GROUP", "Plugin", "Problem", "Registered", "Registry", "is_strict", "registry"]

log = logging.getLogger(__name__)

GROUP: Final = "dcf"
_CORE: Final = "dcf-core"
_COMPONENT_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*(@\d+)?\Z")


@dataclass(frozen=True)
class Plugin:
    """A plugin that was loaded: entry-point name, distribution, version, and seconds its import took."""

    name: str
    distribution: str
    version: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A plugin, or a component of one, that cannot be used, and why."""

    plugin: str
    distribution: str
    version: str
    reason: str
    #: (kind, name) pairs that the problem makes unusable; empty when they are not known.
    components: tuple[tuple[Kind, str], ...] = ()

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"plugin '{self.plugin}' ({self.distribution}{version}): {self.reason}"


@dataclass(frozen=True)
class Registered:
    """A usable component and the plugin that provides it."""

    component: Component
    plugin: Plugin


@dataclass(frozen=True)
class Candidate:
    """An entry point to load; `module` stands in for importing it, in tests and for built-ins."""

    name: str
    distribution: str
    version: str
    requires: tuple[str, ...] = ()
    entry_point: metadata.EntryPoint | None = None
    module: ModuleType | Any = None

    def load(self) -> Any:
        """Import the plugin's module; what it prints goes to stderr, because stdout is the result."""
        with redirect_stdout(sys.stderr):
            return self.module if self.entry_point is None else self.entry_point.load()


@dataclass
class Registry:
    """Plugins, their components and their problems.

    Build one with `Registry.discover()`, or with `Registry.of(candidates)` in tests.
    """

    manager: pluggy.PluginManager
    plugins: dict[str, Plugin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    blocked: tuple[str, ...] = ()
    _components: dict[tuple[Kind, str], list[Registered]] = field(default_factory=dict)

    # --- building --------------------------------------------------------------------------------

    @classmethod
    def discover(cls, environ: Mapping[str, str] = os.environ) -> Registry:
        """Load what is installed, as `DCF_PLUGINS`, `DCF_BLOCK` and `DCF_STRICT` say."""
        return cls.of(_installed(), environ)

    @classmethod
    def of(cls, candidates: Iterable[Candidate], environ: Mapping[str, str] | None = None) -> Registry:
        """Load the given plugins.

        Raises:
            PluginError: For the first problem, when `DCF_STRICT` is set.
        """
        environ = environ or {}
        only, blocked = _names(environ, "DCF_PLUGINS"), _names(environ, "DCF_BLOCK") or ()
        manager = pluggy.PluginManager("dcf")
        manager.add_hookspecs(hookspecs)
        self = cls(manager, blocked=blocked)
        chosen = [c for c in candidates if c.distribution == _CORE or _is_wanted(c, only, blocked)]
        for candidate in chosen:
            self._add(candidate, [c.distribution for c in chosen if c.name == candidate.name])
        self._mark_conflicts()
        if self.problems and is_strict(environ):
            raise PluginError(f"{self.problems[0]} (DCF_STRICT is set)")
        return self

    def _add(self, candidate: Candidate, owners: Sequence[str] = ()) -> None:
        rivals = sorted({f"'{d}'" for d in owners} - {f"'{candidate.distribution}'"})
        if rivals and candidate.distribution != _CORE:
            hint = f"uninstall one, or block it by its distribution: DCF_BLOCK={candidate.distribution}"
            self._problem(candidate, f"{' and '.join(rivals)} has the same plugin name; {hint}")
            return
        reason = _incompatible(candidate.requires)
        if reason:
            self._problem(candidate, reason)
            return
        start = time.perf_counter()
        # A plugin is other people's code: whatever it raises must not take the program down.
        try:
            module = candidate.load()
        except (Exception, SystemExit) as error:
            self._problem(candidate, f"its import failed: {_one_line(error)}")
            return
        self._register(candidate, module, time.perf_counter() - start)

    def _register(self, candidate: Candidate, module: Any, seconds: float) -> None:
        try:
            self.manager.register(module, candidate.name)
            self.manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self.manager.has_plugin(candidate.name):
                self.manager.unregister(name=candidate.name)
            self._problem(candidate, _one_line(error))
            return
        plugin = Plugin(candidate.name, candidate.distribution, candidate.version, seconds)
        try:
            components = self._components_of(candidate.name)
        except (Exception, SystemExit) as error:  # whatever a plugin's hook raises, the others must not be lost
            self.manager.unregister(name=candidate.name)
            self._problem(candidate, f"its hook dcf_components failed: {_one_line(error)}")
            return
        self.plugins[candidate.name] = plugin
        for component in components:
            self._components.setdefault((Kind(component.kind), component.name), []).append(
                Registered(component, plugin)
            )

    def _components_of(self, plugin: str) -> list[Component]:
        found: list[Component] = []
        for impl in self.manager.hook.dcf_components.get_hookimpls():
            if impl.plugin_name == plugin:
                provided: Any = impl.function()
                found.extend(provided)
        for component in found:
            if not isinstance(component, Component):
                raise TypeError(f"expected dcf.Component, got {type(component).__name__}")
            if not _COMPONENT_NAME.match(component.name):
                raise ValueError(f"'{component.name}' is not a component's name (lower case letters, digits, '-')")
        return found

    def _mark_conflicts(self) -> None:
        for (kind, name), owners in self._components.items():
            if len(owners) < 2:
                continue
            names = " and ".join(f"'{o.plugin.name}' ({o.plugin.distribution})" for o in owners)
            reason = f"{kind.noun} '{name}' is provided by {names}; use DCF_BLOCK=NAME to block one of them"
            for owner in owners:
                p = owner.plugin
                self.problems.append(Problem(p.name, p.distribution, p.version, reason, ((kind, name),)))

    def _problem(self, candidate: Candidate, reason: str) -> None:
        self.problems.append(Problem(candidate.name, candidate.distribution, candidate.version, reason))

    # --- look-up ---------------------------------------------------------------------------------

    def names(self, kind: Kind | str) -> list[str]:
        """Names of the usable components of a kind, sorted."""
        return sorted(name for (k, name), owners in self._components.items() if k == Kind(kind) and len(owners) == 1)

    def items(self, kind: Kind | str | None = None) -> list[Registered]:
        """Usable components, by kind in order of `Kind`, then by name."""
        kinds = [Kind(kind)] if kind is not None else list(Kind)
        return [self._components[(k, name)][0] for k in kinds for name in self.names(k)]

    def find(self, kind: Kind | str, spec: Spec | str, flag: str | None = None) -> Registered:
        """The component a spec names.

        Raises:
            PluginError: When its plugin is broken or two plugins claim the name.
            SpecError: When nothing has that name; with suggestions and the installed choices.
        """
        kind = Kind(kind)
        spec = Spec(spec) if isinstance(spec, str) else spec
        owners = self._components.get((kind, spec.name), [])
        if len(owners) == 1:
            return owners[0]
        if owners:
            reason = next(p.reason for p in self.problems if (kind, spec.name) in p.components)
            raise PluginError(f"{kind.noun} '{spec.name}' is in conflict\n  reason: {reason}")
        raise self._unknown(kind, spec, kind.flag if flag is None else flag)

    def _unknown(self, kind: Kind, spec: Spec, flag: str) -> PluginError | SpecError:
        for problem in self.problems:
            if problem.components:
                continue  # a conflict over other names: the plugin itself was loaded
            if spec.name == problem.plugin or problem.distribution.removeprefix("dcf-") == spec.name:
                return PluginError(
                    f"'{problem.distribution} {problem.version}' could not be loaded, "
                    f"so {kind.noun} '{spec.name}' is unavailable\n"
                    f"  reason: {problem.reason}"
                )
        if spec.name in self.blocked:
            return PluginError(
                f"{kind.noun} '{spec.name}' is unavailable: plugin '{spec.name}' is blocked by DCF_BLOCK"
            )
        names = self.names(kind)
        hints = [f"did you mean '{n}'?" for n in difflib.get_close_matches(spec.name, names, n=1)]
        elsewhere = [k for k in Kind if k is not kind and spec.name in self.names(k)]
        hints += [f"'{spec.name}' is {_article(k.noun)}; use {k.flag} {spec.name}" for k in elsewhere]
        hints.append(f"installed: {', '.join(names) or 'none'}     (see: dcf list-plugins --kind {kind})")
        start = spec.span[0]
        return SpecError(f"no {kind.noun} named '{spec.name}'", spec.text, (start, start + len(spec.name)), hints, flag)


def _installed() -> list[Candidate]:
    """The entry points of the group, built-ins first, then by distribution and name."""
    found = []
    for dist in metadata.distributions():
        for entry in _entries(dist):
            name = str(dist.metadata["Name"])
            found.append(Candidate(entry.name, name, dist.version, tuple(dist.requires or ()), entry))
    unique = {(c.name, c.distribution): c for c in reversed(found)}
    return sorted(unique.values(), key=lambda c: (c.distribution != _CORE, c.distribution, c.name))


def _entries(dist: metadata.Distribution) -> list[metadata.EntryPoint]:
    """The entry points of one distribution in the group; none, and a warning, where its file is damaged."""
    try:
        return [entry for entry in dist.entry_points if entry.group == GROUP]
    except Exception as error:  # the parser of the standard library raises whatever comes
        log.warning("the entry points of '%s' cannot be read: %s", dist.metadata["Name"], _one_line(error))
        return []


def _is_wanted(candidate: Candidate, only: Sequence[str] | None, blocked: Sequence[str]) -> bool:
    """Whether the user's choice lets a plugin load; it is named by entry point or distribution."""
    names = {candidate.name, candidate.distribution}
    return not names & set(blocked) and (only is None or bool(names & set(only)))


def _incompatible(requires: Iterable[str]) -> str:
    """Why a distribution's own requirement on core is not met; empty when it is."""
    from dcf import __version__

    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ours = canonicalize_name(requirement.name) == _CORE
        if ours and applies and not requirement.specifier.contains(__version__, prereleases=True):
            return f"needs dcf-core {requirement.specifier}; found {__version__}"
    return ""


def is_strict(environ: Mapping[str, str]) -> bool:
    """Whether `DCF_STRICT` turns problems of plugins into errors."""
    return environ.get("DCF_STRICT", "") not in ("", "0")


def _names(environ: Mapping[str, str], variable: str) -> tuple[str, ...] | None:
    if variable not in environ:
        return None
    return tuple(part.strip() for part in environ[variable].split(",") if part.strip())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@cache
def registry() -> Registry:
    """The registry of this process, discovered on first use."""
    return Registry.discover()
