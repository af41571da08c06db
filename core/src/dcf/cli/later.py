"""Commands whose code is imported when they are asked for: a list of commands needs their names and summaries alone."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dcf.errors import DcfError, PluginError

__all__ = ["add_later", "loaded"]


def add_later(app: typer.Typer, name: str, target: str, summary: str) -> None:
    """Add a command, or a group of them, without importing it.

    Args:
        app: The application, or that which a plugin's `dcf_commands` got.
        name: What users type.
        target: `"package.module:function"`; the function takes a `typer.Typer` and adds the command `name` to it.
        summary: One line for `dcf --help`: the first of the command's own help.
    """
    kind = type("Later", (_Later,), {"target": target})
    app.add_typer(typer.Typer(cls=kind, help=summary), name=name)


def loaded(command: Any) -> Any:
    """The command itself, imported if it was not yet."""
    return command.loaded() if isinstance(command, _Later) else command


class _Later(TyperGroup):
    """Stands for a command in lists, and gives way to it when it is run."""

    target: str

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """A context of the command itself."""
        return self.loaded().make_context(info_name, args, parent=parent, **extra)

    def loaded(self) -> Any:
        """The command itself.

        Raises:
            PluginError: When it cannot be imported.
        """
        module, _, name = self.target.partition(":")
        # With a callback, a lone command stays one command of several.
        app = typer.Typer(callback=lambda: None)
        try:
            getattr(importlib.import_module(module), name)(app)
            return get_command(app).commands[self.name]  # type: ignore[attr-defined]
        except DcfError:
            raise
        except (Exception, SystemExit) as error:  # a plugin is other people's code
            text = " ".join(str(error).split())
            reason = f"'{self.target}' failed: {type(error).__name__}: {text}"
            raise PluginError(f"the command '{self.name}' cannot be loaded\n  reason: {reason}") from error
