"""Class-incremental learning from condensed memories for dcf."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dcf

if TYPE_CHECKING:
    import typer

__all__ = ["dcf_commands"]


@dcf.hookimpl
def dcf_commands(app: typer.Typer) -> None:
    """Add `dcf continual`."""
    from dcf_continual.commands import add_to

    add_to(app)
