"""A registry of its own for a test: nothing that is installed is changed, and everything is put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from dcf import __version__
from dcf.components import Component
from dcf.hookspecs import hookimpl
from dcf.registry import Candidate, Registry, registry

__all__ = ["candidate", "plugin", "registry_with"]


def plugin(*components: Component) -> Any:
    """A plugin that announces these components, as a module would.

    Args:
        components: What it provides.
    """

    @hookimpl
    def dcf_components() -> tuple[Component, ...]:
        return components

    return SimpleNamespace(dcf_components=dcf_components)


def candidate(module: Any, name: str) -> Candidate:
    """A plugin as discovery would find it, without an installed distribution.

    Args:
        module: A module or object with hooks, a component, or a `Candidate`, which is returned.
        name: Of the entry point; the distribution is called `dcf-NAME`.
    """
    if isinstance(module, Candidate):
        return module
    module = plugin(module) if isinstance(module, Component) else module
    return Candidate(name, f"dcf-{name}", __version__, module=module)


@contextmanager
def registry_with(*plugins: Any, environ: Mapping[str, str] | None = None) -> Iterator[Registry]:
    """Let the process see core and the given plugins only, until the block is left.

    Args:
        plugins: Modules or objects with hooks, components, or `dcf.registry.Candidate`s; the entry points of the
            former are called `fake0`, `fake1`, ... by their position.
        environ: Variables such as `DCF_BLOCK`.

    Yields:
        The fresh registry, which `dcf.registry.registry()` returns meanwhile.

    Example:
        >>> with registry_with(Component("matcher", "mine", "my.module:Mine", "mine")) as fresh:
        ...     fresh.names("matcher")
        ['mine']
    """
    import dcf.builtin

    core = Candidate("builtin", "dcf-core", __version__, module=dcf.builtin)
    fresh = Registry.of([core, *(candidate(p, f"fake{i}") for i, p in enumerate(plugins))], environ)
    before = registry()
    _install(fresh)
    try:
        yield fresh
    finally:
        _install(before)


def _install(value: Registry) -> None:
    """Make `registry()` return `value`: other modules hold the cached function itself, so its cache is refilled."""
    discover = Registry.__dict__["discover"]
    registry.cache_clear()
    try:
        Registry.discover = lambda *args, **kwargs: value  # type: ignore[method-assign]
        registry()
    finally:
        Registry.discover = discover  # type: ignore[method-assign]
