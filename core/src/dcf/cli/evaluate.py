"""`dcf evaluate`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field

from dcf.budget import Store
from dcf.build import check
from dcf.cli import options as common
from dcf.cli.console import print_json
from dcf.components import Kind
from dcf.config import Config, validate_mapping
from dcf.errors import ConfigError, UsageError
from dcf.metadata import read_metadata
from dcf.processes import rank

__all__ = ["add_to", "evaluate"]

log = logging.getLogger(__name__)


class Settings(Config):
    """What `dcf evaluate` takes beside components."""

    networks: int | None = Field(None, ge=1, le=10_000, description="networks a set")
    epochs: int | None = Field(None, ge=1, description="epochs instead of the protocol's")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="seed of the evaluation")
    precision: Literal["default", "strict"] = Field("default", description="strict: fp32 everywhere")
    store: Store | None = Field(None, description="how floats are rounded before the evaluation")


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(evaluate)


def evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="condensed sets (or their run directories) of one method"),
    ],
    evaluator: Annotated[
        str, typer.Option("--evaluator", metavar="SPEC", help="what is asked, such as train or cross-arch")
    ] = "train",
    data: common.Data = None,
    network: common.Network = None,
    protocol: common.ProtocolName = None,
    nets: common.Networks = None,
    epochs: common.Epochs = None,
    baselines: common.Baselines = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="DTYPE", help="evaluate as if stored as fp16 or uint8; writes no set"),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="one protocol setting, such as protocol.lr=0.02; repeatable"),
    ] = None,
    seed: common.Seed = None,
    device: common.Device = None,
    precision: common.Precision = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="also write the whole report as JSON")
    ] = None,
    json: common.AsJson = False,
) -> None:
    """Train networks on condensed sets and test them on real images; a file says itself how."""
    rows = common.baseline_rows(baselines)
    common.require_device_name(device)
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out}: expected a file to write, got a directory")
    settings = _settings({"networks": nets, "epochs": epochs, "seed": seed, "precision": precision, "store": store})
    for kind, text in ((Kind.EVALUATOR, evaluator), (Kind.DATASET, data), (Kind.NETWORK, network)):
        if text is not None:
            check(kind, text)
    paths = [common.set_file(f) for f in files]
    headers = [read_metadata(path) for path in paths]
    overrides = _overrides(headers[0], protocol, settings.epochs, _protocol_changes(change or []))
    common.check_protocol(protocol or str(headers[0]["config"].get("protocol", "dcf-std@1")), overrides)
    _evaluate(
        paths,
        settings.store,
        out,
        json,
        evaluator=evaluator,
        data=data,
        network=network,
        protocol=protocol,
        networks=settings.networks,
        overrides=overrides,
        baselines=("random",) if rows in (None, "auto") else rows,
        seed=settings.seed,
        device=device or "auto",
        precision=settings.precision,
    )


def _settings(values: dict[str, Any]) -> Settings:
    try:
        return validate_mapping(Settings, {k: v for k, v in values.items() if v is not None}, "run")
    except ConfigError as error:
        raise common.in_flags(UsageError(error.message)) from None


def _overrides(
    header: dict[str, Any], protocol: str | None, epochs: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Changes of the protocol: those recorded in the file, unless another protocol is named, then ours."""
    run = header.get("run")
    recorded = run.get("protocol_set") if isinstance(run, dict) and protocol is None else None
    changes = dict(recorded) if isinstance(recorded, dict) else {}
    # Exactly so many epochs: a protocol's least number of steps would otherwise raise them on a small set.
    return {**changes, **({} if epochs is None else {"epochs": epochs, "steps_min": 0}), **given}


def _protocol_changes(pairs: list[str]) -> dict[str, Any]:
    changes = common.set_options(pairs)
    for key in changes:
        if not key.startswith("protocol."):
            raise UsageError(f"--set {key}={changes[key]}: an evaluation takes protocol.OPTION, got '{key}'")
    return {key.removeprefix("protocol."): value for key, value in changes.items()}


def _evaluate(paths: list[Path], store: Store | None, out: Path | None, as_json: bool, **how: Any) -> None:
    from dcf.cli.progress import RunProgress
    from dcf.cli.results import show_report
    from dcf.files import atomic_write
    from dcf.run import evaluate as run_evaluation
    from dcf.runtime import keep_freed_pages
    from dcf.synthetic import load

    keep_freed_pages()
    sets = [load(path) for path in paths]
    if store is not None:
        sets = [one.stored_as(store) for one in sets]
    with RunProgress() as progress:
        report = run_evaluation(sets, listener=progress, **how)
    if rank():  # one of several processes speaks and writes
        return
    if as_json:
        print_json(report.to_json())
    else:
        show_report(report, sets[0].spec.num_classes)
    # Last: what was measured is shown even where it cannot be written.
    if out is not None:
        atomic_write(out, report.text() + "\n")
        log.info("report written to %s", out)
