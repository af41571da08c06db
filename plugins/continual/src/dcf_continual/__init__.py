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
    from dcf.cli.later import add_later

    add_later(
        app,
        "continual",
        "dcf_continual.commands:add_to",
        "Classes that come step by step, learned from a small memory.",
    )
