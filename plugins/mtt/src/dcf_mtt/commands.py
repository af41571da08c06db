"""`dcf experts`: train them beforehand, list and check those that are kept. Free of torch until one is asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from rich.table import Table

import dcf
from dcf.cli.console import clean, print_json, stdout
from dcf.cli.options import AsJson, Data, Device, Network, in_flags, require_device_name, set_options
from dcf.config import validate_mapping
from dcf.errors import ConfigError
from dcf.resolve import Request, resolve
from dcf.spec import parse_one
from dcf_mtt.options import MTTConfig, experts_of

if TYPE_CHECKING:
    from dcf.run import Prepared
    from dcf_mtt.store import ExpertFacts

__all__ = ["add_to", "check", "show", "train"]

#: Epochs that are trained where neither the user nor a recipe says how many; as published.
_EPOCHS = 50
#: What experts depend on.
_PARTS = frozenset({"matcher", "network", "augment", "data"})
_NOTHING = "no experts are kept yet; train some: dcf experts train --data NAME"


class Counts(dcf.Config):
    """Numbers that `dcf experts train` takes."""

    experts: int | None = Field(None, ge=1, le=100_000, description="experts that shall be there")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs of each")
    jobs: int = Field(1, ge=1, le=512, description="processes at a time")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(no_args_is_help=True, help="Networks trained on the real data, kept for trajectory matching.")
    group.callback()(_experts)
    group.command("train")(train)
    group.command("list")(show)
    group.command("check")(check)
    app.add_typer(group, name="experts")


def _experts() -> None:
    """Networks trained on the real data, kept for trajectory matching."""


def train(
    data: Data = None,
    network: Network = None,
    augment: Annotated[str | None, typer.Option("--augment", metavar="SPEC", help="augmentation of the run")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", metavar="NAME", help="as 'dcf condense --recipe'")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="one option, such as matcher.lr_expert=0.02; repeatable"),
    ] = None,
    experts: Annotated[str | None, typer.Option("--experts", metavar="INT", help="experts that shall be there")] = None,
    epochs: Annotated[str | None, typer.Option("--epochs", metavar="INT", help="epochs of each")] = None,
    jobs: Annotated[
        str | None, typer.Option("--jobs", metavar="INT", help="processes at a time; GPUs are taken in turn")
    ] = None,
    device: Device = None,
    json: AsJson = False,
) -> None:
    """Train the experts that are missing; 'dcf condense' with the same data, network, augmentation finds them."""
    require_device_name(device)
    counts = _counts({"experts": experts, "epochs": epochs, "jobs": jobs})
    try:
        options = {"data": data, "network": network, "augment": augment, "device": device, "evaluate": False}
        chosen = options if recipe is not None else {**options, "matcher": "mtt"}
        changes = set_options(change or ())
        _require_use(changes)
        request = resolve(chosen, recipe, changes)
    except dcf.UsageError as error:
        raise in_flags(error) from None
    name = parse_one(str(request.settings["matcher"])).name
    if name != "mtt":
        raise dcf.UsageError(f"--recipe {recipe}: expected one of the matcher 'mtt', which has experts, got '{name}'")
    _train(request, counts, recipe is not None, json)


def _require_use(changes: Mapping[str, Any]) -> None:
    """Refuse what would change nothing about experts."""
    for key in changes:
        if key.partition(".")[0] not in _PARTS or "." not in key:
            raise dcf.UsageError(
                f"--set {key}: no expert depends on that; expected an option of the matcher, network, augmentation or "
                "data, such as matcher.lr_expert (see: dcf describe mtt)"
            )


def _counts(given: dict[str, str | None]) -> Counts:
    try:
        return validate_mapping(Counts, {k: v for k, v in given.items() if v is not None}, "")
    except ConfigError as error:
        raise dcf.UsageError(re.sub(r"^: option '(\w+)'", r"--\1", error.message)) from None


def _train(request: Request, counts: Counts, like_recipe: bool, as_json: bool) -> None:
    from dcf.cli.progress import RunProgress
    from dcf.run import prepare
    from dcf.runtime import keep_freed_pages
    from dcf.session import interruptible

    keep_freed_pages()
    with RunProgress() as progress, interruptible() as interrupt:
        prepared = prepare(request, progress)
        config: MTTConfig = prepared.matcher.config
        count = counts.experts or experts_of(config.experts, len(prepared.data.train))
        epochs = counts.epochs or (config.epochs if like_recipe else _EPOCHS)

        def check_stop() -> None:
            from dcf.errors import Stopped

            if interrupt.asked:
                raise Stopped("stopped; what was trained is kept, and the same command goes on from there")

        folder = _make(prepared, count, epochs, counts.jobs, progress.preparing, check_stop)
    _show([_summary(folder)], as_json)


def _make(prepared: Prepared, count: int, epochs: int, jobs: int, report: Any, check_stop: Any) -> Path:
    """Train what is missing; the folder of the experts."""
    import torch

    from dcf.build import create
    from dcf.session import make_augmenter
    from dcf_mtt.experts import ExpertSet
    from dcf_mtt.workers import Job, Tally, spread

    config, matcher = prepared.config, prepared.matcher
    networks, augmenter = create(dcf.Kind.NETWORK, config.network), make_augmenter(config.augment)
    experts = ExpertSet(prepared.data, networks, augmenter, matcher.config.training)
    missing = experts.missing(count, epochs)
    jobs = min(jobs, len(missing))
    note = Tally(missing, report, jobs)
    if jobs > 1:
        split = prepared.data.train.device
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = (str(split),) if split.type == "cpu" or config.device != "cuda" else tuple(cuda)
        threads = max(1, torch.get_num_threads() // jobs)
        job = Job(
            config.data, config.network, config.augment, matcher.config.training, experts.root, count, epochs,
            devices, threads,
        )  # fmt: skip
        spread(job, jobs, note, check_stop)
    experts.make(count, epochs, note, check_stop)
    return experts.folder


def show(json: AsJson = False) -> None:
    """List the experts that are kept: data, network, how many, how long, how good, how large."""
    _show([_summary(folder) for folder in _folders()], json)


def check(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="only these; the beginning of a key will do")
    ] = None,
    json: AsJson = False,
) -> None:
    """Read every file of the experts that are kept, and say what is wrong with it."""
    folders = [folder for folder in _folders() if folder.name.startswith(key or "")]
    if key is not None and not folders:
        raise dcf.UsageError(f"no experts are kept under '{key}' (see: dcf experts list)")
    results = [_examined(folder) for folder in folders]
    if not folders and not json:
        typer.echo(_NOTHING)
    elif json:
        print_json({"sets": results, "ok": not any(result["problems"] for result in results)})
    else:
        for result in results:
            verdict = f"{len(result['problems'])} damaged" if result["problems"] else "ok"
            typer.echo(f"{result['key'][:12]}  {result['files']} experts, {verdict}")
            for problem in result["problems"]:
                typer.echo(f"  {clean(problem, 600)}\n    remove the file; the next run trains this expert again")
    if any(result["problems"] for result in results):
        raise typer.Exit(1)


def _folders() -> list[Path]:
    from dcf.artifacts import Artifacts
    from dcf_mtt.store import KIND

    root = Artifacts().root / KIND
    return sorted(path for path in root.glob("*") if path.is_dir())


def _examined(folder: Path) -> dict[str, Any]:
    from dcf_mtt.store import examine, experts_in

    problems = []
    files = experts_in(folder)
    for path in files:
        try:
            examine(path)
        except dcf.FormatError as error:
            # Nobody gave this file away: it is made again, not got again.
            problems.append(str(error).removesuffix("; get the file again"))
    return {"key": folder.name, "files": len(files), "problems": problems}


def _summary(folder: Path) -> dict[str, Any]:
    """What a folder of experts holds; files that are no experts are counted apart."""
    from dcf_mtt.store import experts_in, read_facts

    found: list[ExpertFacts] = []
    files = experts_in(folder)
    for path in files:
        try:
            found.append(read_facts(path))
        except dcf.FormatError:
            continue
    last = [facts.accuracies[-1] for facts in found]
    return {
        "key": folder.name,
        "data": found[0].data if found else "",
        "network": str(found[0].key.get("network", "")) if found else "",
        "augment": str(found[0].key.get("augment", "")) if found else "",
        "experts": len(found),
        "epochs": [min(f.epochs for f in found), max(f.epochs for f in found)] if found else [0, 0],
        "accuracy": sum(last) / len(last) if last else None,
        "bytes": sum(os.stat(path).st_size for path in files),
        "damaged": len(files) - len(found),
        "folder": str(folder),
    }


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"sets": rows})
        return
    if not rows:
        typer.echo(_NOTHING)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("key", "data", "network", "augment", "experts", "epochs", "accuracy", "size", "damaged"):
        table.add_column(header, no_wrap=header == "key", overflow="fold")
    for row in rows:
        low, high = row["epochs"]
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        cells = (row["key"][:12], row["data"], row["network"], row["augment"], row["experts"])
        span = str(low) if low == high else f"{low} to {high}"
        table.add_row(
            *(clean(cell) for cell in cells), span, accuracy, f"{row['bytes'] / 2**20:.1f} MiB", str(row["damaged"])
        )
    stdout().print(table)
