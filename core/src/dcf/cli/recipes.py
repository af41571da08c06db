"""`dcf recipes`: settings that belong together, with published values beside measured ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from rich.table import Table

from dcf.cli import options as common
from dcf.cli.console import clean, print_json, stdout
from dcf.cli.options import AsJson
from dcf.components import Kind
from dcf.config import Config, validate_mapping
from dcf.errors import ConfigError, DataError, UsageError
from dcf.recipes import Recipe, Value, all_recipes, load_recipe
from dcf.registry import registry
from dcf.spec import Spec

if TYPE_CHECKING:
    from dcf.bench.verify import Trial, Verdict

__all__ = ["add_to", "recipes"]


def _opt(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel="Run one again")


class Counts(Config):
    """Numbers that `--verify` takes."""

    ipc: int | None = Field(None, ge=1, description="only values of this budget")
    sets: int | None = Field(None, ge=1, le=1000, description="sets instead of the recorded number")
    nets: int | None = Field(None, ge=1, le=10_000, description="networks instead of the recorded number")
    jobs: int | None = Field(None, ge=1, le=512, description="processes at a time")


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(recipes)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="show this one in full")] = None,
    verify: Annotated[str | None, _opt("--verify", "NAME", "run this one as it was recorded, and compare")] = None,
    data: Annotated[
        list[str] | None, _opt("--data", "SPEC", "where a dataset is, as SPEC or NAME=SPEC; repeatable")
    ] = None,
    ipc: Annotated[str | None, _opt("--ipc", "INT", "only values of this budget")] = None,
    sets: Annotated[str | None, _opt("--sets", "INT", "sets instead of the recorded number")] = None,
    nets: Annotated[str | None, _opt("--nets", "INT", "networks instead of the recorded number")] = None,
    jobs: Annotated[str | None, _opt("--jobs", "INT", "processes at a time")] = None,
    device: common.Device = None,
    out: Annotated[Path | None, _opt("--out", "DIR", "where it runs; runs/verify-NAME by default")] = None,
    json: AsJson = False,
) -> None:
    """List recipes, show one with its published and measured accuracies, or run one again and compare."""
    asked = {"ipc": ipc, "sets": sets, "nets": nets, "jobs": jobs}
    if verify is not None:
        if name is not None:
            raise UsageError(f"give one name: 'dcf recipes {name}' shows, 'dcf recipes --verify {verify}' runs")
        _verify(verify, data or [], asked, device, out or Path("runs") / f"verify-{verify}", json)
        return
    if data or out or device or any(asked.values()):
        raise UsageError("--data, --ipc, --sets, --nets, --jobs, --device and --out go with --verify NAME")
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
    return _with_spread(value.accuracy, value.std)


def _with_spread(mean: float, spread: float | None) -> str:
    return f"{mean:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


# --- running one again ---------------------------------------------------------------------------


def _verify(
    name: str, data: list[str], asked: dict[str, str | None], device: str | None, out: Path, as_json: bool
) -> None:
    from dcf.bench.verify import given_data, trials, verify
    from dcf.build import check

    common.require_device_name(device)
    try:
        counts = validate_mapping(Counts, {k: v for k, v in asked.items() if v is not None}, "run")
    except ConfigError as error:
        raise common.in_flags(UsageError(error.message)) from None
    given = given_data(data)
    for text in given.values():
        check(Kind.DATASET, text)
    todo = trials(load_recipe(name), given, **counts.model_dump(), device=device)
    from dcf.cli.bench_progress import BenchProgress

    with BenchProgress() as progress:
        found = verify(todo, out, progress)
    if as_json:
        print_json({"recipe": name, "verdicts": [_verdict_json(verdict) for verdict in found]})
    else:
        stdout().print(_verdicts(found))
        _explain_verdicts(found)
    if all(verdict.row is None for verdict in found):
        raise DataError("nothing was run: the data of these values are not here; say where they are: --data NAME=SPEC")
    if any(verdict.agrees is False or (verdict.row is not None and verdict.now is None) for verdict in found):
        raise typer.Exit(1)


def _verdicts(found: list[Verdict]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="test accuracy in percent", title_justify="left")
    for header in ("data", "ipc", "protocol", "published", "recorded", "now", "n", "difference", "allowed", "verdict"):
        table.add_column(header, no_wrap=header in ("published", "recorded", "now"))
    for verdict in found:
        table.add_row(*_verdict_row(verdict))
    return table


def _verdict_row(verdict: Verdict) -> list[str]:
    from dcf.bench.verify import allowed

    trial, now = verdict.trial, verdict.now
    value = trial.value
    head = [clean(value.data), str(value.ipc), clean(value.protocol)]
    head += [_accuracy(trial.published) if trial.published else "-", "-" if _is_published(trial) else _accuracy(value)]
    if now is None or verdict.row is None or verdict.row.stat is None:
        return [*head, "-", "", "", "", "not run" if verdict.row is None else "failed"]
    stat = verdict.row.stat
    n, change = f"{stat.n_sets} x {stat.n_nets}", f"{now[0] - value.accuracy:+.1f}"
    word = "agrees" if verdict.agrees else "DISAGREES"
    return [*head, _with_spread(*now), n, change, f"{allowed(value.std, now[1]):.1f}", word]


def _is_published(trial: Trial) -> bool:
    """Whether nothing was recorded here, so that the published value is what is compared with."""
    return trial.value is trial.published


def _explain_verdicts(found: list[Verdict]) -> None:
    typer.echo("allowed: 2 points, or three times the combined standard deviation where that is more")
    if any(verdict.now is not None and verdict.now[1] is None for verdict in found):
        typer.echo("one value has no spread, and a difference from it says little: give --nets or --sets")
    if any(_is_published(verdict.trial) for verdict in found):
        typer.echo("where nothing was recorded, the difference is to the published value")
    for verdict in found:
        if verdict.note:
            typer.echo(f"{clean(verdict.trial.value.data)} ipc {verdict.trial.value.ipc}: {clean(verdict.note, 500)}")


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    value, now = verdict.trial.value, verdict.now
    published = verdict.trial.published
    return {
        "data": value.data,
        "ipc": value.ipc,
        "protocol": value.protocol,
        "published": published.accuracy if published is not None else None,
        "recorded": None if _is_published(verdict.trial) else value.accuracy,
        "now": now[0] if now is not None else None,
        "spread": now[1] if now is not None else None,
        "agrees": verdict.agrees,
        "note": verdict.note,
    }
