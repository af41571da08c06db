"""The two hooks a plugin may implement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from dcf.components import Component

if TYPE_CHECKING:
    import typer

__all__ = ["dcf_commands", "dcf_components", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("dcf")
hookimpl = pluggy.HookimplMarker("dcf")


@hookspec
def dcf_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the components that this plugin provides. Pure, and without importing torch."""


@hookspec
def dcf_commands(app: typer.Typer) -> None:
    """Add sub-commands to the command line.

    Args:
        app: The `dcf` application; use `app.command()` or `app.add_typer()`.
    """
