"""`dcf continual`: run a stream, show and draw what it came to, list the named ones. Free of torch until one is run."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import dcf
from dcf.bench.methods import split_methods
from dcf.cli.console import clean, print_json, stdout
from dcf.cli.options import (
    AsJson,
    Data,
    Device,
    Network,
    Precision,
    check_protocol,
    in_flags,
    require_device_name,
    set_options,
)
from dcf_continual.options import StreamSettings, load_stream, stream_names
from dcf_continual.plan import require_runnable

__all__ = ["add_to", "plot", "run", "show", "streams"]


def _opt(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(no_args_is_help=True, help="Classes that come step by step, learned from a small memory.")
    group.callback()(_continual)
    group.command("run")(run)
    group.command("show")(show)
    group.command("plot")(plot)
    group.command("streams")(streams)
    app.add_typer(group, name="continual")


def _continual() -> None:
    """Classes that come step by step, learned from a small memory."""


def run(
    out: Annotated[Path, _opt("--out", "DIR", "directory of the stream; what is done in it is not done again")],
    stream: Annotated[
        str | None, _opt("--stream", "NAME", "named protocol (see: dcf continual streams), or a TOML file")
    ] = None,
    data: Data = None,
    steps: Annotated[str | None, _opt("--steps", "INT", "steps of equally many classes")] = None,
    order: Annotated[
        str | None, _opt("--order", "HOW", "seed, data, or all classes in order of arrival, joined by ','")
    ] = None,
    seeds: Annotated[str | None, _opt("--seeds", "LIST", "seeds of class orders, such as 0,1,2")] = None,
    memory: Annotated[
        str | None, _opt("--memory", "SIZE", "ipc=N or class-bytes=N for each class, bytes=N for all of them")
    ] = None,
    methods: Annotated[
        str | None, _opt("--methods", "LIST", "what fills the memory, as 'dcf bench --methods' takes it")
    ] = None,
    iterations: Annotated[
        str | None, _opt("--iterations", "INT", "outer iterations of every method that learns")
    ] = None,
    condense: Annotated[
        str | None, _opt("--condense", "HOW", "step: new classes together; class: each once, for all orders")
    ] = None,
    learner: Annotated[
        str | None, _opt("--learner", "NAME", "gdumb: from scratch; replay: go on, with a head that grows")
    ] = None,
    protocol: Annotated[str | None, _opt("--protocol", "NAME", "protocol that networks are trained by")] = None,
    network: Network = None,
    nets: Annotated[str | None, _opt("--nets", "INT", "networks for each order")] = None,
    head: Annotated[
        str | None, _opt("--head", "NAME", "headline: all (answers of all classes compete) or seen")
    ] = None,
    change: Annotated[
        list[str] | None,
        _opt("--set", "KEY=VALUE", "one setting, such as protocol.epochs=40 or temperature=1; repeatable"),
    ] = None,
    device: Device = None,
    precision: Precision = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="show the settings, write nothing")] = False,
    json: AsJson = False,
) -> None:
    """Run a stream of classes, or go on with one that was stopped."""
    require_device_name(device)
    given = {
        "data": None if data is None else (data,), "steps": steps, "order": order, "seeds": seeds, "memory": memory,
        "methods": None if methods is None else tuple(split_methods([methods])), "iterations": iterations,
        "condense": condense,
        "learner": learner, "protocol": protocol, "network": network, "nets": nets, "head": head, "device": device,
        "precision": precision,
    }  # fmt: skip
    settings = _settings(stream, given, change or [])
    labels = require_runnable(settings)
    if dry_run:
        print_json({"id": settings.id, "methods": labels, **settings.model_dump(mode="json")})
        return
    _run(settings, out, json)


def _settings(stream: str | None, given: dict[str, Any], pairs: list[str]) -> StreamSettings:
    """The stream that was named, with what was given beside it."""
    base = StreamSettings() if stream is None else load_stream(stream)
    flags = {k: v for k, v in given.items() if v is not None}
    if "methods" in flags:
        flags["method"] = ()
    if "protocol" in flags:  # what is changed in one protocol says nothing about another
        flags["protocol_set"] = {}
    try:
        made = base.with_changes(flags)
    except dcf.UsageError as error:
        raise in_flags(error) from None
    changes = set_options(pairs)
    rules = {key.removeprefix("protocol."): v for key, v in changes.items() if key.startswith("protocol.")}
    rest = {key: v for key, v in changes.items() if not key.startswith("protocol.")}
    check_protocol(made.protocol, {**made.protocol_set, **rules})
    typed = made.model_copy(update={"protocol_set": {**made.protocol_set, **rules}}).rules
    return made.with_changes({**rest, "protocol_set": {k: getattr(typed, k) for k in sorted(typed.original)}})


def _run(settings: StreamSettings, out: Path, as_json: bool) -> None:
    from dcf.cli.progress import RunProgress
    from dcf.runtime import keep_freed_pages
    from dcf_continual.display import stream_table
    from dcf_continual.model import FILE
    from dcf_continual.stream import run_stream

    keep_freed_pages()
    with RunProgress() as progress:
        result = run_stream(settings, out, progress)
    if as_json:
        print_json(result.to_json())
        return
    stdout().print(stream_table(result))
    typer.echo(str(out / FILE))


def show(
    stream: Annotated[Path, typer.Argument(metavar="DIR", help="directory of a stream, or its continual.json")],
    head: Annotated[str | None, _opt("--head", "NAME", "all, seen or step; that of the headline by default")] = None,
    json: AsJson = False,
) -> None:
    """Show what a stream came to, as far as it is."""
    from dcf_continual.display import require_head, stream_table
    from dcf_continual.model import read_stream

    require_head(head)
    found = read_stream(stream)
    if json:
        print_json(found.to_json())
    else:
        stdout().print(stream_table(found, head))


def plot(
    stream: Annotated[Path, typer.Argument(metavar="DIR", help="directory of a stream, or its continual.json")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="picture to write: .png or .svg")],
    head: Annotated[str | None, _opt("--head", "NAME", "all, seen or step; that of the headline by default")] = None,
) -> None:
    """Draw accuracy against the number of classes seen."""
    from dcf.figures import require_form
    from dcf_continual.display import require_head, save_curves
    from dcf_continual.model import read_stream

    require_form(out)
    require_head(head)
    save_curves(read_stream(stream), out, head)
    typer.echo(str(out))


def streams(json: AsJson = False) -> None:
    """List the named protocols of streams."""
    found = [(name, tomllib.loads(text)) for name, text in stream_names().items()]
    if json:
        print_json({"streams": [{"id": name, **values} for name, values in found]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("stream", "what", "paper"):
        table.add_column(header, no_wrap=header == "stream", overflow="fold")
    for name, values in found:
        table.add_row(name, clean(values["summary"], 200), clean(values["paper"]))
    stdout().print(table)
