"""The application: its own commands, and those that plugins add."""

from __future__ import annotations

import logging
import os
from typing import Annotated, Any, ClassVar, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dcf import __version__
from dcf.cli.console import setup_logging
from dcf.cli.later import add_later, loaded
from dcf.errors import DcfError, PluginError
from dcf.processes import INTERRUPTED, rank
from dcf.registry import Problem, Registry, is_strict, registry

__all__ = ["Interrupted", "add_plugin_commands", "build"]

log = logging.getLogger(__name__)


#: Command to module of this package and summary, as the command's own help begins.
_COMMANDS: Final = {
    "condense": ("condense", "Condense a dataset into a small synthetic one."),
    "resume": ("condense", "Go on with a run that was stopped, killed or not yet evaluated."),
    "estimate": ("estimate", "Say what a run of dcf condense with these options will take: time, memory, bytes."),
    "evaluate": ("evaluate", "Train networks on condensed sets and test them on real images; a file says itself how."),
    "merge": ("assemble", "Make one condensed set of several, of the same classes or of different ones."),
    "slice": ("assemble", "Take some classes of a condensed set, or the first images of each class."),
    "append": ("assemble", "Add real images to a condensed set, stored as its own are."),
    "export": ("exchange", "Write the images of a condensed set for other programs, and say what is lost that way."),
    "import": ("exchange", "Make a condensed set of a published .pt file; nothing in that file is run."),
    "list-plugins": ("plugins", "List what is installed; problems come last."),
    "describe": ("plugins", "Show what a component does and which options it takes."),
    "info": ("info", "Show what condensed sets say about themselves; needs no plugin and reads no images."),
    "preview": ("info", "Write a picture of the images of a condensed set, one class a row."),
    "report": ("report", "Write one page with results, images, curves, settings and sizes, to be opened in a browser."),
    "recipes": (
        "recipes",
        "List recipes, show one with its published and measured accuracies, or run one again and compare.",
    ),
    "check": ("check", "Check that a component keeps the promises of its interface."),
    "doctor": ("doctor", "Examine the installation: versions, devices, plugins, disk; fails when something is broken."),
    "new-plugin": (
        "new_plugin",
        "Write a package with one component that works and is tested, to be changed into yours.",
    ),
    "bench": ("bench", "Run methods beside each other, and look at the results; without a command: run."),
    "data": ("data", "Look at datasets."),
}


class Interrupted(DcfError):  # noqa: N818 - nothing went wrong
    """The user ended a command that has nothing to finish or to keep."""

    exit_code: ClassVar[int] = INTERRUPTED


class _Group(TyperGroup):
    """The commands; says what the parser leaves out: that one was interrupted, and which one it complains of."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except Exception as problem:
            # An option whose value is missing does not know its command.
            if getattr(problem, "ctx", problem) is None and ctx.invoked_subcommand:
                problem.ctx = typer.Context(self, parent=ctx, info_name=ctx.invoked_subcommand)  # type: ignore[attr-defined]
            raise


def build(reg: Registry | None = None) -> typer.Typer:
    """The whole application, with the commands of the plugins of `reg` (those installed, by default).

    Raises:
        PluginError: When the commands of a plugin cannot be used and `DCF_STRICT` is set.
    """
    reg = reg or registry()
    app = typer.Typer(cls=_Group, pretty_exceptions_enable=False, no_args_is_help=True, callback=_start)
    for name, (module, summary) in _COMMANDS.items():
        add_later(app, name, f"dcf.cli.{module}:add_to", summary)
    add_plugin_commands(app, reg)
    return app


def add_plugin_commands(app: typer.Typer, reg: Registry) -> None:
    """Call each plugin's `dcf_commands` on its own; one that raises or collides becomes a problem of `reg`.

    A plugin gets an application of its own, which is merged when it turned out usable: it cannot half-add commands,
    change others' or break the parser.
    """
    for hook in reg.manager.hook.dcf_commands.get_hookimpls():
        plugin = reg.plugins.get(hook.plugin_name)
        if plugin is None:
            continue
        added = typer.Typer()
        try:
            hook.function(app=added)
            _require_usable(added, app)
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            reason = f"its hook dcf_commands failed: {type(error).__name__}: {text}"
            reg.problems.append(Problem(plugin.name, plugin.distribution, plugin.version, reason))
            if is_strict(os.environ):
                raise PluginError(f"{reg.problems[-1]} (DCF_STRICT is set)") from None
            continue
        app.registered_commands.extend(added.registered_commands)
        app.registered_groups.extend(added.registered_groups)


def _require_usable(added: typer.Typer, app: typer.Typer) -> None:
    if not added.registered_commands and not added.registered_groups:
        return
    taken = _names(app) & _names(added)
    if taken:
        raise ValueError(f"the command '{min(taken)}' exists already")
    # Wrong annotations only show when the parser is made; a lone command needs a callback to be a group.
    probe = typer.Typer(callback=lambda: None)
    probe.registered_commands, probe.registered_groups = added.registered_commands, added.registered_groups
    commands = get_command(probe).commands.values()  # type: ignore[attr-defined]
    if is_strict(os.environ):
        for command in commands:
            loaded(command)


def _names(app: typer.Typer) -> set[str]:
    entries: list[Any] = [*app.registered_commands]
    names = {e.name or e.callback.__name__.replace("_", "-") for e in entries}
    return names | {g.name or g.typer_instance.info.name or "" for g in app.registered_groups if g.typer_instance}


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dcf {__version__}")
        raise typer.Exit


def _start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", metavar="", help="show details of every step")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="show warnings and errors only")] = False,
    debug: Annotated[bool, typer.Option("--debug", metavar="", help="show tracebacks, as DCF_DEBUG=1 does")] = False,
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="show the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Condense a large image dataset into a tiny one that trains a network almost as well."""
    chosen = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    setup_logging(chosen if rank() == 0 else logging.ERROR)  # of several processes the first one speaks
    for problem in registry().problems:
        log.warning("%s", problem)
