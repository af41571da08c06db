"""`dcf condense` and `dcf resume`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcf.cli import options as common
from dcf.cli.console import print_json
from dcf.errors import UsageError
from dcf.processes import rank
from dcf.resolve import Request, resolve
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir
from dcf.sizes import size_texts

if TYPE_CHECKING:
    from dcf.run import Outcome, Prepared

__all__ = ["add_to", "condense", "request_of", "resume"]

_WHAT = "What is condensed, and how"
_SIZE = "How small"
_SOLVE = "How it is optimised"
_FILES = "Files"

#: Parameters of `condense` that are settings of a run by the same name.
_SETTINGS = (
    *("data", "matcher", "param", "augment", "init", "labels", "network", "ipc", "budget", "store", "iterations"),
    *("lr", "momentum", "clip", "class_chunk", "seed", "device", "precision", "protocol"),
)

#: What a plan says of the storage, in this order.
_PLANNED = (
    *("views_per_class", "views", "floats", "bytes", "store", "budget", "utilisation"),
    *("equivalent_images", "label_bytes", "space_bytes", "payload_bytes"),
)


def _opt(flag: str, metavar: str, text: str, panel: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(condense)
    app.command()(resume)


def condense(
    data: Annotated[
        str | None, _opt("--data", "SPEC", "dataset, such as cifar10 or 'folder:path=DIR,size=64'", _WHAT)
    ] = None,
    matcher: Annotated[str | None, _opt("--matcher", "SPEC", "what the synthetic set must match", _WHAT)] = None,
    param: Annotated[str | None, _opt("--param", "SPEC", "how the set is stored; '+' stacks", _WHAT)] = None,
    augment: Annotated[str | None, _opt("--augment", "SPEC", "augmentation; '+' chains", _WHAT)] = None,
    init: Annotated[
        str | None, _opt("--init", "SPEC", "selector of the images that the set starts from", _WHAT)
    ] = None,
    labels: Annotated[str | None, _opt("--labels", "SPEC", "hard, or learned: soft:init=onehot", _WHAT)] = None,
    network: Annotated[str | None, _opt("--network", "SPEC", "network, such as convnet:depth=3", _WHAT)] = None,
    recipe: Annotated[
        str | None, _opt("--recipe", "NAME", "settings that belong together; see: dcf recipes", _WHAT)
    ] = None,
    change: Annotated[
        list[str] | None, _opt("--set", "KEY=VALUE", "one option, such as param.r=4; repeatable", _WHAT)
    ] = None,
    ipc: Annotated[
        str | None, _opt("--ipc", "INT", "budget: as many floats as this many images a class", _SIZE)
    ] = None,
    budget: Annotated[
        str | None, _opt("--budget", "bytes=N", "budget of the whole set: bytes=N or floats=N", _SIZE)
    ] = None,
    store: Annotated[str | None, _opt("--store", "DTYPE", "how floats are stored: fp32, fp16 or uint8", _SIZE)] = None,
    iterations: Annotated[str | None, _opt("--iterations", "INT", "outer iterations", _SOLVE)] = None,
    lr: Annotated[str | None, _opt("--lr", "FLOAT", "step size of the synthetic set", _SOLVE)] = None,
    momentum: Annotated[str | None, _opt("--momentum", "FLOAT", "SGD momentum of the synthetic set", _SOLVE)] = None,
    clip: Annotated[str | None, _opt("--clip", "FLOAT", "largest L2 norm of one update's gradients", _SOLVE)] = None,
    class_chunk: Annotated[
        str | None, _opt("--class-chunk", "INT", "classes worked on together, or auto", _SOLVE)
    ] = None,
    seed: common.Seed = None,
    device: common.Device = None,
    precision: common.Precision = None,
    protocol: common.ProtocolName = None,
    nets: common.Networks = None,
    epochs: common.Epochs = None,
    baselines: common.Baselines = None,
    no_eval: Annotated[bool, _opt("--no-eval", "", "do not evaluate the finished set", "How it is judged")] = False,
    out: Annotated[Path | None, _opt("--out", "DIR", "run directory; runs/... by default", _FILES)] = None,
    force: Annotated[bool, _opt("--force", "", "start over in a directory that holds a run", _FILES)] = False,
    dry_run: Annotated[bool, _opt("--dry-run", "", "show configuration and storage, write nothing", _FILES)] = False,
    json: common.AsJson = False,
) -> None:
    """Condense a dataset into a small synthetic one."""
    request = request_of(locals())
    if dry_run:
        _plan(request, json)
    else:
        if out is not None and rank() == 0:
            RunDir(out).require_free(force)
        _run(request, out, force, json)


def request_of(options: Mapping[str, Any]) -> Request:
    """The run that the options of `condense`, by parameter, ask for.

    Raises:
        UsageError: Or a subclass, for the first thing that is wrong.
    """
    given = {name: options[name] for name in _SETTINGS}
    given |= {
        "networks": options["nets"],
        "baselines": common.baseline_rows(options["baselines"]),
        "evaluate": False if options["no_eval"] else None,
    }
    changes = common.set_options(options["change"] or ())
    if options["epochs"] is not None:
        # Exactly so many: a protocol's least number of steps would otherwise raise them on a small set.
        changes = {"protocol.steps_min": "0", "protocol.epochs": options["epochs"], **changes}
    return _request(given, options["recipe"], changes)


def _request(given: dict[str, Any], recipe: str | None, changes: dict[str, str]) -> Request:
    """Everything that can be checked without torch."""
    common.require_device_name(given["device"])
    try:
        request = resolve(given, recipe, changes)
    except UsageError as error:
        raise common.in_flags(error) from None
    settings = request.settings
    protocol = str(settings.get("protocol", RunConfig.model_fields["protocol"].default))
    common.check_protocol(protocol, dict(settings.get("protocol_set", {})))
    return request


def _run(request: Request, out: Path | None, force: bool, as_json: bool) -> None:
    from dcf.cli.progress import RunProgress
    from dcf.run import default_run_directory, prepare, start
    from dcf.runtime import keep_freed_pages

    keep_freed_pages()
    with RunProgress() as progress:
        prepared = prepare(request, progress)
        directory = RunDir(out) if out is not None else default_run_directory(prepared.config)
        outcome = start(prepared, directory, force, progress)
    _finish(outcome, as_json)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory of 'dcf condense'")],
    json: common.AsJson = False,
) -> None:
    """Go on with a run that was stopped, killed or not yet evaluated."""
    from dcf.runconfig import from_toml

    from_toml(run / "config.toml")  # is it a run at all? Before torch.
    from dcf.cli.progress import RunProgress
    from dcf.run import resume as go_on
    from dcf.runtime import keep_freed_pages

    keep_freed_pages()
    with RunProgress() as progress:
        outcome = go_on(run, progress)
    _finish(outcome, json)


def _finish(outcome: Outcome, as_json: bool) -> None:
    from dcf.cli.results import show_outcome

    if rank() == 0:
        show_outcome(outcome, as_json)
    if outcome.interrupted:
        raise typer.Exit(130)


def _plan(request: Request, as_json: bool) -> None:
    from dcf.cli.progress import RunProgress
    from dcf.run import prepare
    from dcf.runconfig import to_toml

    with RunProgress() as progress:
        prepared = prepare(request, progress)
        plan = _storage_plan(prepared)
    if as_json:
        print_json({"config": prepared.config.model_dump(mode="json"), "plan": plan})
        return
    typer.echo(to_toml(prepared.config))
    # As comments: the whole output stays a usable config.toml.
    shown = {**plan, **size_texts(plan)}
    typer.echo("\n".join(["# planned", *(f"# {name.replace('_', ' ')} = {value}" for name, value in shown.items())]))
    typer.echo("# for time and memory: dcf estimate, with the same options")


def _storage_plan(prepared: Prepared) -> dict[str, Any]:
    """What the set will cost, from the very objects that a run would use."""
    from dcf.session import Session
    from dcf.storage import measure

    config, spec = prepared.config, prepared.data.spec
    param = Session(config, prepared.data, prepared.matcher, prepared.objects).param
    budget = config.budget_of(math.prod(spec.shape), spec.num_classes)
    storage = measure(param, config.store, budget, spec.space.nbytes).to_json()
    items = {"items_per_class": len(param.item_class) // spec.num_classes}
    return {**items, **{name: storage[name] for name in _PLANNED if name in storage}, "iterations": config.iterations}
