"""`dcf list-plugins` and `dcf describe`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from dcf.cli.console import clean, print_json, stdout
from dcf.cli.matrix import show_matrix
from dcf.cli.options import AsJson
from dcf.components import Component, Kind
from dcf.errors import PluginError, UsageError
from dcf.registry import Plugin, Problem, Registered, Registry, registry

__all__ = ["add_to", "describe", "list_plugins", "no_such", "one_kind"]

KindOption = Annotated[
    str | None,
    typer.Option("--kind", metavar="KIND", help=f"only this kind: {', '.join(Kind)}"),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("list-plugins")(list_plugins)
    app.command()(describe)


def one_kind(text: str | None) -> Kind | None:
    """The kind a name stands for.

    Raises:
        UsageError: When there is none, with the choices.
    """
    if text is None:
        return None
    if text not in list(Kind):
        close = difflib.get_close_matches(text, list(Kind), n=1)
        hint = f"\n  did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"--kind {text}: no such kind{hint}\n  expected one of {', '.join(Kind)}")
    return Kind(text)


def list_plugins(
    kind: KindOption = None,
    times: Annotated[
        bool, typer.Option("--times", metavar="", help="show how long each plugin took to import")
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", metavar="", help="show which matcher, parameterization and augmenter compose")
    ] = False,
    json: AsJson = False,
) -> None:
    """List what is installed; problems come last."""
    chosen, reg = one_kind(kind), registry()
    if matrix:
        if chosen is not None or times:
            raise UsageError("--matrix shows three kinds and their compositions: give it without --kind and --times")
        show_matrix(json)
        return
    items = reg.items(chosen)
    if json:
        print_json(
            {
                "components": [_component_json(item) for item in items],
                "plugins": [_plugin_json(plugin) for plugin in reg.plugins.values()],
                "problems": [_problem_json(problem) for problem in reg.problems],
            }
        )
        return
    stdout().print(_table(items, reg, times))


def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a component's name, without options")],
    kind: KindOption = None,
    json: AsJson = False,
) -> None:
    """Show what a component does and which options it takes."""
    found = _named(name, one_kind(kind), registry())
    if json:
        print_json({"components": [{**_component_json(i), "options": _rows(i.component)} for i in found]})
        return
    for number, item in enumerate(found):
        if number:
            typer.echo()
        _describe(item)


def _table(items: list[Registered], reg: Registry, times: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("kind", "name", "plugin", "version", *(["import"] if times else []), "summary"):
        table.add_column(header, no_wrap=header != "summary", overflow="fold")
    for item in items:
        component, plugin = item.component, item.plugin
        where = "built in" if plugin.distribution == "dcf-core" else clean(plugin.distribution)
        time = [f"{1000 * plugin.seconds:.0f} ms"] if times else []
        table.add_row(
            str(component.kind), component.name, where, clean(plugin.version), *time, clean(component.summary)
        )
    for problem in reg.problems:
        time = ["-"] if times else []
        row = ("-", "-", clean(problem.distribution), clean(problem.version), *time)
        table.add_row(*row, f"! {_what_fails(problem)}: {clean(problem.reason, 300)}")
    return table


def _what_fails(problem: Problem) -> str:
    return "conflict" if problem.components else "not loaded" if problem.plugin not in registry().plugins else "problem"


def _named(name: str, kind: Kind | None, reg: Registry) -> list[Registered]:
    kinds = [kind] if kind is not None else list(Kind)
    found = [item for k in kinds for item in reg.items(k) if item.component.name == name]
    if found:
        return found
    for problem in reg.problems:
        named = any(n == name and (kind is None or k is kind) for k, n in problem.components)
        if named or name in (problem.plugin, problem.distribution):
            raise PluginError(f"'{name}' is unavailable\n  reason: {problem}")
    names = sorted({item.component.name for item in reg.items(kind)})
    raise no_such(kind.noun if kind is not None else "component", name, names)


def no_such(what: str, name: str, names: Sequence[str]) -> UsageError:
    """What to tell a user who names something that is not installed.

    Args:
        what: What was looked for, as in a sentence.
        name: The name that was given.
        names: Those that are installed.
    """
    hints = [f"did you mean '{n}'?" for n in difflib.get_close_matches(name, names, n=1)]
    return UsageError("\n  ".join([f"no {what} named '{name}'", *hints, f"installed: {', '.join(names)}"]))


def _describe(item: Registered) -> None:
    component, plugin = item.component, item.plugin
    typer.echo(f"{Kind(component.kind).noun} {component.name}")
    lines = [clean(component.summary, 300), f"paper: {clean(component.paper, 300)}" if component.paper else ""]
    typer.echo("\n".join(f"  {line}" for line in lines if line))
    typer.echo(f"  from: {clean(plugin.distribution)} {clean(plugin.version)}")
    rows = _rows(component)
    if not rows:
        typer.echo("  options: none")
        return
    columns = list(rows[0])
    table = Table(box=None, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(clean(row[column], 300) for column in columns))
    stdout().print(table)


def _rows(component: Component) -> list[dict[str, str]]:
    """Options of a component, or the settings of a recipe or protocol."""
    from dcf.config import field_rows

    if component.kind is Kind.PROTOCOL:
        from dcf.evaluation.protocol import load_protocol

        rules = load_protocol(component.name)
        fields = type(rules).model_fields
        shown = [n for n in fields if n not in ("name", "version", "summary", "paper", "original")]
        return [
            {"setting": n, "value": _text(getattr(rules, n)), "description": fields[n].description or ""} for n in shown
        ]
    if component.kind is Kind.RECIPE:
        from dcf.recipes import all_recipes

        return [{"setting": n, "value": _text(v)} for n, v in all_recipes()[component.name].run.items()]
    return [
        {
            "option": row.name,
            "type": row.type,
            "default": "required" if row.required else row.default,
            "description": row.description,
        }
        for row in field_rows(component.load_config())
    ]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _component_json(item: Registered) -> dict[str, Any]:
    component = item.component
    return {
        "kind": str(component.kind),
        "name": component.name,
        "summary": component.summary,
        "paper": component.paper,
        "distribution": item.plugin.distribution,
        "version": item.plugin.version,
    }


def _plugin_json(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "import_seconds": plugin.seconds,
    }


def _problem_json(problem: Problem) -> dict[str, Any]:
    return {
        "plugin": problem.plugin,
        "distribution": problem.distribution,
        "version": problem.version,
        "reason": problem.reason,
        "components": [{"kind": str(kind), "name": name} for kind, name in problem.components],
    }
