"""What is kept: the new classes of a step condensed, and put beside those that came before."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

import dcf
from dcf.bench.cells import make_cell
from dcf.bench.plan import Point
from dcf.budget import Budget
from dcf.build import create, create_stack
from dcf.config import validate
from dcf.data import RealData
from dcf.data.options import SubsetConfig
from dcf.data.subset import Subset
from dcf.joining import Part, require_joinable
from dcf.metadata import read_metadata
from dcf.planning import plan_items
from dcf.resolve import Request
from dcf.run import Listener, prepare, resume, start
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir
from dcf.spec import parse_one
from dcf_continual.options import StreamSettings, memory_of
from dcf_continual.plan import Group, points_of, request_of, subset_of

__all__ = ["condensed", "memories", "require_alike_steps", "require_keepable", "trimmed"]

log = logging.getLogger(__name__)

#: Bytes of a class beyond which no image becomes possible that was not before.
_ENOUGH: Final = 2**40


def condensed(
    settings: StreamSettings,
    method: int,
    group: Group,
    seen: int,
    seed: int,
    data: Sequence[RealData],
    root: Path,
    listener: Listener,
) -> list[Path]:
    """Condense the classes of one step, unless that was done before.

    Args:
        settings: Of the stream.
        method: Number of the method.
        group: What comes.
        seen: Classes seen, those of the group included.
        seed: Of the order.
        data: The datasets of the stream.
        root: Where runs are kept; each is found again by all that decides its outcome.
        listener: Told of progress.

    Returns:
        The files of the sets: one, or one for each class.

    Raises:
        Stopped: When the user asked to stop.
    """
    real, text = data[group.data], settings.data[group.data]
    names = [real.spec.classes[c] for c in group.numbers]
    files = []
    for part, run_seed in _parts(settings, method, text, names, seed):
        budget = _budget(settings, real, seen, len(part))
        request = request_of(settings, _point(settings, method, subset_of(text, part), budget), run_seed)
        files.append(_run(request, real, root, listener))
    return files


def _parts(
    settings: StreamSettings, method: int, text: str, names: Sequence[str], seed: int
) -> list[tuple[Sequence[str], int]]:
    """The classes of each run, and its seed: all together, or each by itself where they are independent."""
    point = _point(settings, method, text, "ipc=1")
    matcher = str(point.request.settings.get("matcher", "none"))
    apart = settings.condense == "class" and matcher != "none" and create(dcf.Kind.MATCHER, matcher).classwise
    return [([name], settings.seeds[0]) for name in names] if apart else [(names, seed)]


def _point(settings: StreamSettings, method: int, data: str, budget: str) -> Point:
    return points_of(settings, data, budget)[method]


def _budget(settings: StreamSettings, real: RealData, seen: int, classes: int) -> str:
    memory = memory_of(settings.memory)
    if memory.unit == "ipc":
        return f"ipc={memory.number}"
    return f"bytes={classes * memory.class_bytes(_image_bytes(real), seen)}"


def _image_bytes(real: RealData) -> int:
    channels, height, width = real.spec.shape
    return 4 * channels * height * width


def require_keepable(settings: StreamSettings, groups: Sequence[Group], data: Sequence[RealData]) -> None:
    """Make sure, before anything is run, that what the methods make can be put together, and has room to the end.

    Args:
        settings: Of the stream.
        groups: The steps of an order; those of other orders are as large.
        data: The datasets of the stream.

    Raises:
        UsageError: When images cannot be moved from set to set, or the memory is too small for one image of each class;
            names the smallest that works.
    """
    memory, last = memory_of(settings.memory), groups[-1]
    real, text = data[last.data], settings.data[last.data]
    seen = real.spec.num_classes * (len(groups) if settings.sequence else 1)
    names = [real.spec.classes[c] for c in last.numbers]
    for method, point in enumerate(points_of(settings, text, "ipc=1")):
        part, seed = _parts(settings, method, text, names, settings.seeds[0])[0]
        request = request_of(settings, _point(settings, method, subset_of(text, part), "ipc=1"), seed)
        config = prepare(Request(request.settings, {**request.objects, "data": _subset(request, real)})).config
        spec = replace(real.spec, classes=tuple(part))
        _require_movable(config, spec, point.label, len(part) == real.spec.num_classes)
        if memory.unit == "ipc":
            continue
        share = memory.class_bytes(_image_bytes(real), seen)
        least = _least_share(config, spec, share)
        if least > share:
            needed = f"bytes={least * seen}" if memory.fixed else f"class-bytes={least}"
            raise dcf.UsageError(
                f"memory: {settings.memory} has no room for one image of each of {seen} classes, as '{point.label}' "
                f"stores them; the smallest that works is {needed}"
            )


def _require_movable(config: RunConfig, spec: dcf.DataSpec, label: str, all_classes: bool) -> None:
    param = create_stack(dcf.Kind.PARAM, config.param)[-1]
    param.allocate(spec, torch.arange(spec.num_classes).repeat_interleave(2))
    try:
        param.item_rows(spec, torch.arange(1))
    except dcf.UsageError as error:
        raise dcf.UsageError(f"method '{label}' cannot fill a memory step by step: {error}") from None
    if not all_classes and param.labels(torch.arange(1)).ndim == 2:
        raise dcf.UsageError(
            f"method '{label}' cannot fill a memory step by step: its labels are probabilities of the classes of one "
            "step, and mean nothing among others"
        )


def require_alike_steps(label: str, files: Sequence[Sequence[Path]]) -> None:
    """Make sure that the sets of the steps so far can become one.

    Whether a matcher learns something of the whole set, such as its step size, only its result says.

    Args:
        label: Of the method.
        files: Sets of each step.

    Raises:
        UsageError: When they cannot.
    """
    parts = [Part(f"step {n}", read_metadata(path)) for n, step in enumerate(files, start=1) for path in step]
    try:
        require_joinable(parts, across_data=True)
    except dcf.UsageError as error:
        raise dcf.UsageError(f"method '{label}' cannot fill a memory step by step: {error}") from None


def _least_share(config: RunConfig, spec: dcf.DataSpec, share: int) -> int:
    """The smallest number of bytes of a class, `share` or more, that holds an image.

    Raises:
        BudgetError: When none does.
    """

    def works(nbytes: int) -> bool:
        param = create_stack(dcf.Kind.PARAM, config.param)[-1]
        budget = Budget("bytes", nbytes * spec.num_classes, math.prod(spec.shape))
        try:
            return plan_items(param, spec, budget, config.store) > 0
        except dcf.BudgetError:
            if nbytes > _ENOUGH:
                raise
            return False

    low, high = share - 1, max(1, share)
    while not works(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle and works(middle) else (middle, high)
    return high


def _run(request: Request, real: RealData, root: Path, listener: Listener) -> Path:
    """The file of one run: found, finished, or made."""
    chosen = _subset(request, real)
    prepared = prepare(Request(request.settings, {**request.objects, "data": chosen}), listener)
    cell = make_cell(root, prepared.config, (chosen.id, chosen.checksum), 0)
    directory = RunDir(cell.path)
    if cell.state != "done":
        begun = cell.state == "begun" and any(directory.checkpoints.glob("*.safetensors"))
        if begun:
            cell.write()  # which takes away what is damaged
        outcome = resume(cell.path, listener) if begun else start(prepared, directory, True, listener)
        if outcome.interrupted:
            raise KeyboardInterrupt
    return directory.result


def _subset(request: Request, real: RealData) -> RealData:
    spec = parse_one(str(request.settings["data"]), "--data")
    config = validate(SubsetConfig, spec, "--data")
    return replace(Subset(config).of(real), id=Subset(config).id)


def trimmed(one: dcf.SyntheticSet, class_bytes: int) -> dcf.SyntheticSet:
    """A set of which each class takes so many bytes at most: the first of its images.

    Args:
        one: The set; every item of it takes as many bytes.
        class_bytes: Bytes of a class.

    Raises:
        UsageError: When not one item of a class fits.
    """
    storage = one.storage()
    items = len(one.param.item_class)
    keep = class_bytes * items // storage.nbytes
    per_item = storage.views // items
    if not keep:
        raise dcf.UsageError(
            f"memory: {class_bytes} bytes a class hold no image; one takes {storage.nbytes // items} bytes"
        )
    if storage.views <= keep * per_item * len({int(c) for c in one.param.item_class}):
        return one
    return dcf.slice_set(one, per_class=keep * per_item)


def memories(
    settings: StreamSettings, files: Sequence[Sequence[Path]], groups: Sequence[Group], data: Sequence[RealData]
) -> list[dcf.SyntheticSet]:
    """The memory after each step: all sets so far as one, of all classes of the data.

    Args:
        settings: Of the stream.
        files: Sets of each step.
        groups: The steps.
        data: The datasets of the stream.
    """
    memory, real = memory_of(settings.memory), data[0]
    kept: list[dcf.SyntheticSet] = []
    found, seen = [], set[tuple[int, int]]()
    for step, group in zip(files, groups, strict=True):
        seen |= {(group.data, c) for c in group.numbers}
        kept += [dcf.load(path) for path in step]
        if memory.fixed:
            kept = [trimmed(one, memory.class_bytes(_image_bytes(real), len(seen))) for one in kept]
        whole = dcf.merge(kept, real.spec.classes, across_data=settings.sequence)
        named: Mapping[str, str] = {"data": settings.data[0]} if not settings.sequence else {}
        whole.config = {**whole.config, **named}
        found.append(whole)
    return found
