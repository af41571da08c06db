"""`dcf merge`, `dcf slice` and `dcf append`: sets put together from others, or cut out of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from dcf.build import check
from dcf.cli import options as common
from dcf.cli.console import print_json
from dcf.components import Kind
from dcf.config import Config, validate_mapping
from dcf.data.classes import class_numbers
from dcf.errors import ConfigError, DataError, UsageError
from dcf.joining import Part, require_joinable, require_movable
from dcf.metadata import read_metadata
from dcf.sizes import size_line

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["add_to", "append", "merge", "slice_file"]

_OUT = typer.Option("--out", "-o", metavar="FILE", help="file to write")
_FORCE = typer.Option("--force", metavar="", help="write over a file that is there")
_FILE = typer.Argument(metavar="FILE", help="a condensed set, or its run directory")


class Settings(Config):
    """Numbers that these commands take."""

    per_class: int | None = Field(None, ge=1, le=2**31 - 1, description="images a class")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of the choice")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(merge)
    app.command("slice")(slice_file)
    app.command()(append)


def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="condensed sets, or their run directories")],
    out: Annotated[Path, _OUT],
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="LIST", help="all classes of the whole in order, such as cat,dog"),
    ] = None,
    across_data: Annotated[
        bool,
        typer.Option("--across-data", metavar="", help="classes of one name are one class, whatever data they are of"),
    ] = False,
    force: Annotated[bool, _FORCE] = False,
    json: common.AsJson = False,
) -> None:
    """Make one condensed set of several, of the same classes or of different ones."""
    _require_free(out, force)
    paths = [common.set_file(file) for file in files]
    # From the headers, before torch: most of what forbids it stands there.
    require_joinable([Part(str(path), read_metadata(path)) for path in paths], across_data)
    from dcf.assembly import merge as merge_sets

    _finish(merge_sets(paths, _names(classes) or None, across_data), out, json)


def slice_file(
    file: Annotated[Path, _FILE],
    out: Annotated[Path, _OUT],
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="LIST", help="classes to keep, by name or number: cat,dog")
    ] = None,
    per_class: Annotated[
        str | None, typer.Option("--per-class", metavar="INT", help="images of each class to keep at most")
    ] = None,
    force: Annotated[bool, _FORCE] = False,
    json: common.AsJson = False,
) -> None:
    """Take some classes of a condensed set, or the first images of each class."""
    _require_free(out, force)
    settings, names = _settings({"per_class": per_class}), _names(classes)
    if not names and settings.per_class is None:
        raise UsageError("dcf slice: expected --classes, --per-class or both; neither was given")
    path = common.set_file(file)
    header = read_metadata(path)
    require_movable(Part(str(path), header))
    try:
        class_numbers(names, header.get("classes", ()))
    except DataError as error:
        raise UsageError(f"--classes {classes}: {error}") from None
    from dcf.assembly import slice_set

    _finish(slice_set(path, names, settings.per_class), out, json)


def append(
    file: Annotated[Path, _FILE],
    out: Annotated[Path, _OUT],
    per_class: Annotated[str, typer.Option("--per-class", metavar="INT", help="real images of each class to add")],
    init: Annotated[str, typer.Option("--init", metavar="SPEC", help="selector of these images")] = "random",
    data: common.Data = None,
    seed: common.Seed = None,
    force: Annotated[bool, _FORCE] = False,
    json: common.AsJson = False,
) -> None:
    """Add real images to a condensed set, stored as its own are."""
    _require_free(out, force)
    settings = _settings({"per_class": per_class, "seed": seed})
    check(Kind.SELECTOR, init)
    if data is not None:
        check(Kind.DATASET, data)
    path = common.set_file(file)
    require_movable(Part(str(path), read_metadata(path)))
    _append(path, out, init, data, settings, json)


def _append(path: Path, out: Path, init: str, data: str | None, settings: Settings, as_json: bool) -> None:
    import torch

    from dcf.assembly import append as append_images
    from dcf.build import create
    from dcf.recorded import data_of
    from dcf.seeding import generator
    from dcf.synthetic import load

    whole = load(path)
    real = data_of(whole, data)
    selector, per_class = create(Kind.SELECTOR, init), settings.per_class or 1
    _require_enough(real.train.counts.tolist(), whole.spec.classes, per_class)
    targets = torch.arange(whole.spec.num_classes).repeat_interleave(per_class)
    images = selector.images(real, targets, generator(settings.seed, "append"))
    _finish(append_images(whole, images, targets), out, as_json)


def _require_enough(counts: Sequence[int], classes: Sequence[str], wanted: int) -> None:
    """Make sure that no real image would be added twice.

    Raises:
        UsageError: Naming the class with the fewest images.
    """
    least = min(counts)
    if wanted > least:
        raise UsageError(
            f"--per-class {wanted}: class '{classes[counts.index(least)]}' has {least} training images, and none is "
            "added twice"
        )


# --- what they share ---------------------------------------------------------------------------------


def _settings(given: Mapping[str, str | None]) -> Settings:
    try:
        return validate_mapping(Settings, {k: v for k, v in given.items() if v is not None}, "run")
    except ConfigError as error:
        raise common.in_flags(UsageError(error.message)) from None


def _names(text: str | None) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if text is not None and not all(names):
        raise UsageError(f"--classes {text}: a class is missing between two commas")
    return names


def _require_free(out: Path, force: bool) -> None:
    if out.is_dir():
        raise UsageError(f"--out {out}: expected a file to write, got a directory")
    if out.exists() and not force:
        raise UsageError(f"--out {out}: there is a file of that name     (write over it: --force)")


def _finish(made: SyntheticSet, out: Path, as_json: bool) -> None:
    made.save(out)
    storage = made.storage().to_json()
    if as_json:
        classes: Sequence[str] = made.classes
        facts: dict[str, Any] = {"file": str(out), "classes": list(classes), "storage": storage}
        print_json({**facts, "assembled": made.metadata["assembled"]})
        return
    typer.echo(f"{out}: {len(made.classes)} classes, {size_line(storage)}")
