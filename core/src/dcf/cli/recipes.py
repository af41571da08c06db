"""`dcf recipes`: settings that belong together, with published values beside measured ones."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from dcf.cli.console import clean, print_json, stdout
from dcf.cli.options import AsJson
from dcf.components import Kind
from dcf.recipes import Recipe, Value, all_recipes
from dcf.registry import registry
from dcf.spec import Spec

__all__ = ["add_to", "recipes"]


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(recipes)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="show this one in full")] = None,
    json: AsJson = False,
) -> None:
    """List recipes, or show one with its published and measured accuracies."""
    if name is not None:
        registry().find(Kind.RECIPE, Spec(name, (), name, (0, len(name))), "")
    found = all_recipes()
    if name is not None:
        found = {name: found[name]}
    if json:
        print_json({"recipes": [recipe.model_dump(mode="json") for recipe in found.values()]})
    elif name is None:
        stdout().print(_overview(found))
    else:
        _show(found[name])


def _overview(found: dict[str, Recipe]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("name", "needs", "published", "measured", "paper", "summary"):
        table.add_column(header, no_wrap=header == "name", justify="right" if header.endswith("ed") else "left")
    for name, recipe in found.items():
        head = recipe.recipe
        numbers = f"{len(recipe.published)}", f"{len(recipe.measured)}"
        table.add_row(name, clean(", ".join(head.requires), 200), *numbers, clean(head.paper), clean(head.summary, 200))
    return table


def _show(recipe: Recipe) -> None:
    head = recipe.recipe
    typer.echo(f"recipe {head.name}")
    for label, text in (("", head.summary), ("paper: ", head.paper), ("needs: ", ", ".join(head.requires))):
        if text:
            typer.echo(f"  {label}{clean(text, 300)}")
    for title, settings in (("run", recipe.run), *((f"for {d}", s) for d, s in recipe.data.items())):
        typer.echo(f"\n{clean(title)}")
        for key, value in settings.items():
            typer.echo(f"  {clean(key)} = {clean(value, 300)}")
    if recipe.published or recipe.measured:
        typer.echo()
        stdout().print(_values(recipe))


def _values(recipe: Recipe) -> Table:
    """Published and measured accuracies of the same setting on one line."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="test accuracy in percent", title_justify="left")
    for header in ("data", "ipc", "network", "published", "source", "measured", "n", "protocol", "on"):
        table.add_column(header, overflow="fold", no_wrap=header in ("published", "measured"))
    measured = {_setting(v): v for v in recipe.measured}
    lines: list[tuple[Value | None, Value | None]] = [(v, measured.pop(_setting(v), None)) for v in recipe.published]
    for published, ours in [*lines, *((None, v) for v in measured.values())]:
        one = published or ours
        if one is not None:
            table.add_row(clean(one.data), str(one.ipc), clean(one.network), *_pair(published, ours))
    return table


def _pair(published: Value | None, ours: Value | None) -> tuple[str, ...]:
    left = (_accuracy(published), clean(published.source, 200)) if published else ("-", "")
    if ours is None:
        return *left, "-", "", clean(published.protocol) if published else "", ""
    return *left, _accuracy(ours), clean(ours.n), clean(ours.protocol), clean(_circumstances(ours), 200)


def _circumstances(value: Value) -> str:
    return ", ".join(p for p in (value.hardware, value.wall_time, f"dcf {value.version}" * bool(value.version)) if p)


def _setting(value: Value) -> tuple[str, int, str]:
    return value.data, value.ipc, value.network


def _accuracy(value: Value) -> str:
    return f"{value.accuracy:.1f}" + (f" ± {value.std:.1f}" if value.std is not None else "")
