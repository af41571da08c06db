"""`dcf export` and `dcf import`: files for other programs, and theirs made into condensed sets."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from dcf.build import check
from dcf.cli import options as common
from dcf.cli.console import clean, print_json
from dcf.components import Kind
from dcf.config import Config, validate_mapping
from dcf.errors import ConfigError, UsageError
from dcf.exchange.options import FORMATS, Values, check_format, require_free, require_pt
from dcf.metadata import read_metadata
from dcf.resolve import add_labels
from dcf.sizes import size_line

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["add_to", "export", "import_file"]

log = logging.getLogger(__name__)

_OUT = typer.Option("--out", "-o", metavar="PATH", help="file to write; of formats that are folders, the folder")
_FORCE = typer.Option("--force", metavar="", help="replace an export, or write over a file, that is there")


class Settings(Config):
    """Numbers and choices that `dcf import` takes."""

    lr: float | None = Field(None, gt=0, lt=1e6, description="learned step size")
    experiment: int | None = Field(None, ge=0, description="which set of a file of several")
    values: Values = Field("auto", description="what the numbers are")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(export)
    app.command("import")(import_file)


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a condensed set, or its run directory")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")],
    out: Annotated[Path, _OUT],
    force: Annotated[bool, _FORCE] = False,
    json: common.AsJson = False,
) -> None:
    """Write the images of a condensed set for other programs, and say what is lost that way."""
    check_format(to)
    require_free(out, to, force)
    path = common.set_file(file)
    read_metadata(path)
    from dcf.exchange.exporting import export_set
    from dcf.synthetic import load

    one = load(path)
    written = export_set(one, to, out, force)  # type: ignore[arg-type]  # checked above
    if json:
        facts = {"format": to, "out": str(out), "files": [str(f) for f in written.files], "images": len(one)}
        print_json({**facts, "lost": list(written.lost)})
        return
    for line in written.lost:
        log.warning("not in the export: %s", clean(line, 300))
    typer.echo(f"{out}: {len(one):,} images of {len(one.classes)} classes")


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE.pt", help="a published set, as torch.save wrote it")],
    data: Annotated[str, typer.Option("--data", metavar="SPEC", help="dataset it was made from, such as cifar10")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="set to write, such as one.safetensors")],
    param: Annotated[
        str, typer.Option("--param", metavar="SPEC", help="what decodes the images in the file")
    ] = "pixels",
    labels: Annotated[
        str, typer.Option("--labels", metavar="SPEC", help="kind of labels in the file: hard, or such as soft")
    ] = "hard",
    logits: Annotated[
        bool, typer.Option("--logits", metavar="", help="soft labels are logits, not probabilities")
    ] = False,
    values: Annotated[
        str | None,
        typer.Option(
            "--values", metavar="WHAT", help="numbers are of the data's value space, or pixels: space, pixels"
        ),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", metavar="INT", help="which one of a file of several sets, from 0")
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option("--labels-file", metavar="FILE", help="file of the labels; by default labels_X.pt of images_X.pt"),
    ] = None,
    lr: Annotated[str | None, typer.Option("--lr", metavar="FLOAT", help="learned step size of the set")] = None,
    lr_file: Annotated[
        Path | None, typer.Option("--lr-file", metavar="FILE", help="file of it; by default lr_X.pt of images_X.pt")
    ] = None,
    network: Annotated[
        str,
        typer.Option("--network", metavar="SPEC", help="network that it is evaluated with, unless another is named"),
    ] = "convnet",
    augment: Annotated[
        str, typer.Option("--augment", metavar="SPEC", help="augmentation that it was made for")
    ] = "none",
    protocol: common.ProtocolName = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="write over a file that is there")] = False,
    json: common.AsJson = False,
) -> None:
    """Make a condensed set of a published .pt file; nothing in that file is run."""
    require_free(out, "pt", force)
    settings = _settings({"lr": lr, "experiment": experiment, "values": values})
    if lr is not None and lr_file is not None:
        raise UsageError("give either --lr or --lr-file, not both")
    if protocol is not None:
        common.check_protocol(protocol, {})
    specs = {kind: str(check(kind, t)) for kind, t in ((Kind.NETWORK, network), (Kind.AUGMENTER, augment))}
    check(Kind.DATASET, data)
    stack = _param(param, labels)
    if settings.values != "auto" and stack.split("+")[0] != "pixels":
        raise UsageError(f"--values: {stack} says itself what it stores; leave the option out")
    for one in (file, labels_file, lr_file):
        if one is not None:
            require_pt(one)
    from dcf.exchange.importing import import_set

    made = import_set(
        file,
        data,
        param=stack,
        labels=labels_file,
        lr=lr_file or settings.lr,
        experiment=settings.experiment,
        values=settings.values,
        logits=logits,
        network=specs[Kind.NETWORK],
        augment=specs[Kind.AUGMENTER],
        protocol=protocol or "",
    )
    _finish(made, out, json)


def _param(param: str, labels: str) -> str:
    """The whole stack: what stores the images, and the labels on top where they are not plain."""
    settings = {"param": str(check(Kind.PARAM, param)), "labels": labels}
    add_labels(settings, {})
    return settings["param"]


def _settings(given: dict[str, str | None]) -> Settings:
    try:
        return validate_mapping(Settings, {k: v for k, v in given.items() if v is not None}, "run")
    except ConfigError as error:
        raise common.in_flags(UsageError(error.message)) from None


def _finish(made: SyntheticSet, out: Path, as_json: bool) -> None:
    made.save(out)
    storage, imported = made.storage().to_json(), made.metadata["imported"]
    if made.hints.lr is None and imported["layout"] == "files":
        log.warning("no learned step size is known: evaluations take the protocol's; if there is one: --lr VALUE")
    if as_json:
        facts: dict[str, Any] = {"file": str(out), "classes": made.classes, "lr": made.hints.lr}
        print_json({**facts, "storage": storage, "imported": imported})
        return
    typer.echo(f"{out}: {len(made.classes)} classes, {size_line(storage)}")
