"""Condensed sets put together from others, or cut out of one: `merge`, `slice_set` and `append`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from dcf.data.classes import class_numbers
from dcf.errors import DataError, UsageError
from dcf.items import views_of_items
from dcf.joining import Part, joined_classes, joined_header, require_joinable, require_movable, sliced_header
from dcf.parameterization import Parameterization
from dcf.storage import SCALE, ZERO, content_hash, decode
from dcf.synthetic import SyntheticSet, load
from dcf.types import Hints

__all__ = ["append", "arranged", "merge", "slice_set"]

log = logging.getLogger(__name__)

#: How far views may be from what they were, in units of the largest: rounding of another batch, not another image.
_CLOSE: Final = 1e-4


class _Pick(NamedTuple):
    """Items of a set, with the number in the new set of each of its classes."""

    one: SyntheticSet
    items: Tensor
    numbers: Tensor


def merge(
    sets: Sequence[SyntheticSet | Path | str],
    classes: Sequence[str] | None = None,
    across_data: bool = False,
) -> SyntheticSet:
    """One set of all images of several, of the same classes or of different ones.

    Bit for bit what the parts store. Of parts with different classes, the whole has all of them. It remembers what it
    was made of; what was measured of the parts is not claimed for it.

    Args:
        sets: Sets or their files, of one shape, value space and parameterization.
        classes: All classes of the whole in order, where it shall have others, or another order, than that of their
            first appearance in the parts.
        across_data: Whether classes of one name are one class even where the data of the parts differ.

    Raises:
        UsageError: When they cannot be one set: the reason is a property of theirs, or of their parameterization.
        FormatError: When a file is damaged.
    """
    parts, loaded = _parts(sets)
    require_joinable(parts, across_data)
    _warn_of_copies(parts)
    known = joined_classes(parts)
    names = known if classes is None else tuple(classes)
    missing = [name for name in known if name not in names]
    if missing or len(set(names)) < len(names):
        raise UsageError(f"expected all of the classes {', '.join(known)}, each once; got {', '.join(names)}")
    picks = [_Pick(one, torch.arange(len(one.param.item_class)), _numbers(one, names)) for one in loaded]
    return _assembled(picks, names, joined_header(parts, "merge", names))


def slice_set(
    one: SyntheticSet | Path | str, classes: Sequence[str] = (), per_class: int | None = None
) -> SyntheticSet:
    """Some classes of a set, or the first images of each.

    Args:
        one: The set, or its file.
        classes: Names or numbers of classes to keep; the others are no longer classes of the result. Empty: all.
        per_class: Training images of each class at most, whole items of several images only.

    Raises:
        UsageError: When there is no such class or no image of any, not one item of a class fits, or images cannot be
            taken from this set.
    """
    (part,), (whole,) = _parts([one])
    require_movable(part)
    try:
        kept = class_numbers([str(name) for name in classes], whole.spec.classes)
    except DataError as error:
        raise UsageError(str(error)) from None
    names = tuple(whole.spec.classes[c] for c in kept)
    items = _first_items(whole, kept, per_class)
    if not len(items):
        raise UsageError(f"the set has no images of {', '.join(names)}: nothing would be left of it")
    everything = len(kept) == whole.spec.num_classes
    header = sliced_header(replace(part, kept=names), None if everything and per_class is not None else names)
    return _assembled([_Pick(whole, items, _numbers(whole, names))], names, header)


def append(one: SyntheticSet | Path | str, images: Tensor, targets: Sequence[int] | Tensor) -> SyntheticSet:
    """The set with further images, stored as its own are.

    Args:
        one: The set, or its file.
        images: `(N, C, H, W)` in its value space; of each class as many as fill whole items.
        targets: N class numbers.

    Raises:
        UsageError: When the images do not fit the set, or its parameterization makes something else of them.
    """
    (part,), (whole,) = _parts([one])
    require_movable(part)
    added = _absorbed(whole, images, torch.as_tensor(targets, dtype=torch.long))
    header = joined_header([part, Part("appended images", added.describe(), _hash(added))], "append")
    header["config"] = dict(whole.config)
    header["run"].pop("ipc", None)
    picks = [_Pick(s, torch.arange(len(s.param.item_class)), _numbers(s, whole.spec.classes)) for s in (whole, added)]
    return _assembled(picks, whole.spec.classes, header)


def arranged(one: SyntheticSet, classes: Sequence[str]) -> SyntheticSet:
    """The same set with its classes in another order, as its data have them; itself where they are in order.

    Args:
        one: The set.
        classes: Its classes, in the order that is wanted.

    Raises:
        UsageError: When these are not its classes, or its labels cannot be moved.
    """
    names = tuple(classes)
    if names == one.spec.classes:
        return one
    if sorted(names) != sorted(one.spec.classes):
        raise UsageError(f"expected the classes {', '.join(one.spec.classes)}, got {', '.join(names)}")
    pick = _Pick(one, torch.arange(len(one.param.item_class)), _numbers(one, names))
    return _assembled([pick], names, one.describe())


# --- parts -------------------------------------------------------------------------------------------


def _parts(sets: Sequence[SyntheticSet | Path | str]) -> tuple[list[Part], list[SyntheticSet]]:
    loaded = [one if isinstance(one, SyntheticSet) else load(one) for one in sets]
    names = [f"set {n}" if isinstance(one, SyntheticSet) else Path(one).name for n, one in enumerate(sets)]
    return [Part(n, one.describe(), _hash(one)) for n, one in zip(names, loaded, strict=True)], loaded


def _warn_of_copies(parts: Sequence[Part]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        other = seen.setdefault(part.tensors, part.name)
        if other is not part.name:
            log.warning("'%s' and '%s' store the same images: the whole has them twice", other, part.name)


def _hash(one: SyntheticSet) -> str:
    return content_hash(one.stored_tensors())


def _numbers(one: SyntheticSet, names: Sequence[str]) -> Tensor:
    """`(K,)`: the number among `names` of each class of a set; -1 for those that are not there."""
    place = {name: number for number, name in enumerate(names)}
    return torch.tensor([place.get(name, -1) for name in one.spec.classes])


def _first_items(one: SyntheticSet, classes: Sequence[int], per_class: int | None) -> Tensor:
    """Numbers of the first items of classes, of `per_class` images at most."""
    item_class, views = one.param.item_class.cpu(), views_of_items(one.param, one.spec)
    found = []
    for c in classes:
        items = torch.nonzero(item_class == c).flatten()
        if per_class is not None and len(items):
            sizes = torch.tensor([len(views[i]) for i in items.tolist()])
            fitting = items[sizes.cumsum(0) <= per_class]
            if not len(fitting):
                raise UsageError(
                    f"{per_class} images a class: the set stores {int(sizes[0])} images in one item, which cannot be "
                    "divided"
                )
            items = fitting
        found.append(items)
    return torch.cat(found).sort().values


# --- putting together --------------------------------------------------------------------------------


def _assembled(picks: Sequence[_Pick], classes: tuple[str, ...], header: dict[str, Any]) -> SyntheticSet:
    """A set of the picked items, sorted by class, each class in the order of the picks."""
    first = picks[0].one
    spec = replace(first.spec, classes=classes)
    _require_movable_labels(picks, classes)
    labels = torch.cat([pick.numbers[pick.one.param.item_class.cpu()[pick.items]] for pick in picks])
    order = torch.argsort(labels, stable=True)
    param: Parameterization = copy.deepcopy(first.param).cpu()
    param.allocate(spec, labels[order])
    written = _moved(picks, param, spec, order)
    values = decode(written, param.state_dict(), first.store)
    param.load_state_dict(values)
    known = {"config", "seed", "hints", "format", "store", "shape", "classes", "space", "storage"}
    metadata = {k: v for k, v in header.items() if k not in known and v not in ({}, "")}
    told = header.get("hints") or {}
    hints = Hints(told.get("lr"), extra=told.get("extra") or {}, steps=told.get("steps"))
    made = SyntheticSet(param, spec, header["config"], header["seed"], hints, metadata, first.store, written)
    _require_same_views(picks, made)
    return made


def _require_movable_labels(picks: Sequence[_Pick], classes: tuple[str, ...]) -> None:
    """Refuse soft labels where the classes change: they are probabilities of the classes as they were."""
    for pick in picks:
        if pick.one.spec.classes != classes and pick.one.param.labels(torch.arange(1)).ndim == 2:
            raise UsageError(
                "the labels of this set are probabilities of all its classes, so it can only become part of a set of "
                f"the same classes in the same order; got {len(pick.one.spec.classes)} classes for {len(classes)}"
            )


def _moved(picks: Sequence[_Pick], param: Parameterization, spec: Any, order: Tensor) -> dict[str, Tensor]:
    """What the new set writes: rows of what the parts have written, moved to where their items are now."""
    sources = [pick.one.param.item_rows(pick.one.spec, pick.items) for pick in picks]
    stored = [pick.one.stored_tensors() for pick in picks]
    places = param.item_rows(spec, torch.argsort(order))
    written = {}
    for name in stored[0]:
        tensor = name.removesuffix(SCALE).removesuffix(ZERO) if name not in places else name
        rows = torch.cat([one[name].cpu()[rows[tensor]] for one, rows in zip(stored, sources, strict=True)])
        moved = torch.empty_like(rows)
        moved[places[tensor]] = rows
        written[name] = moved
    return written


def _require_same_views(picks: Sequence[_Pick], made: SyntheticSet) -> None:
    """Make sure that every image is what it was, whatever order they are in now.

    Raises:
        UsageError: When one is not: its decoding depends on other items, or on its place among them.
    """
    before = torch.cat([_marks(pick.one, pick.numbers, pick.items) for pick in picks])
    after = _marks(made, torch.arange(made.spec.num_classes), torch.arange(len(made.param.item_class)))
    scale = float(before[:, 1].abs().max().clamp(min=1))
    same = before.shape == after.shape and bool(((_sorted(before) - _sorted(after)).abs() <= _CLOSE * scale).all())
    if not same:
        raise UsageError(
            f"the parameterization {type(made.param).__name__} makes other images of the same items in another set: "
            "none can be taken out of a set, or put into another one"
        )


@torch.no_grad()
def _marks(one: SyntheticSet, numbers: Tensor, items: Tensor) -> Tensor:
    """`(n, 2)` float64: class in the new set, and a projection of image and label, of every view of some items."""
    views = views_of_items(one.param, one.spec)
    index = torch.cat([views[i] for i in items.tolist()])
    batch = one.batch(index)
    draw = torch.Generator().manual_seed(0)
    image = batch.x.cpu().double().flatten(1)
    mark = image @ torch.randn(image.shape[1], generator=draw, dtype=torch.float64)
    if batch.y.ndim == 2:
        soft = batch.y.cpu().double()
        mark = mark + soft @ torch.randn(soft.shape[1], generator=draw, dtype=torch.float64)
    return torch.stack([numbers[one.param.view_class.cpu()[index]].double(), mark], dim=1)


def _sorted(marks: Tensor) -> Tensor:
    """By class, then by mark."""
    marks = marks[marks[:, 1].argsort()]
    return marks[marks[:, 0].argsort(stable=True)]


# --- further images ----------------------------------------------------------------------------------


def _absorbed(whole: SyntheticSet, images: Tensor, targets: Tensor) -> SyntheticSet:
    """A set of these images alone, stored as those of another set are."""
    spec = whole.spec
    if tuple(images.shape) != (len(targets), *spec.shape) or not len(targets):
        raise UsageError(f"expected images of shape {(len(targets), *spec.shape)}, got {tuple(images.shape)}")
    if int(targets.min()) < 0 or int(targets.max()) >= spec.num_classes:
        raise UsageError(f"expected class numbers from 0 to {spec.num_classes - 1}")
    order = torch.argsort(targets, stable=True)
    param = copy.deepcopy(whole.param).cpu()
    param.allocate(spec, _item_classes(whole, targets[order]))
    wanted = images[order][_rank(param.view_class, targets[order])].to(torch.float32)
    if type(param).encode is Parameterization.encode:
        param.absorb(wanted, torch.Generator().manual_seed(0))
    else:  # as well as it can be stored, whatever a run would start from
        Parameterization.absorb(param, wanted)
    made = SyntheticSet(param, spec, whole.config, whole.seed, whole.hints, {}, whole.store)
    _require_likeness(made, wanted)
    return made


def _item_classes(whole: SyntheticSet, targets: Tensor) -> Tensor:
    """`(items,)` classes of as many items as hold images of these classes, ascending."""
    per_item = len(views_of_items(whole.param, whole.spec)[0])
    counts = torch.bincount(targets, minlength=whole.spec.num_classes)
    if bool((counts % per_item).any()):
        raise UsageError(f"the set stores {per_item} images in one item: expected a multiple of {per_item} a class")
    return torch.arange(whole.spec.num_classes).repeat_interleave(counts // per_item)


def _rank(view_class: Tensor, ordered: Tensor) -> Tensor:
    """`(views,)`: for each view the next unused one of the ordered images of its class."""
    start = torch.searchsorted(ordered, torch.arange(int(ordered.max()) + 1))
    seen = dict[int, int]()
    found = []
    for c in view_class.tolist():
        found.append(int(start[c]) + seen.get(c, 0))
        seen[c] = seen.get(c, 0) + 1
    return torch.tensor(found)


def _require_likeness(made: SyntheticSet, images: Tensor) -> None:
    """Make sure that what is stored are the images.

    Raises:
        UsageError: When it starts from something else, such as noise.
    """
    error = (made.tensors().x - images).square().mean()
    if error > images.var(unbiased=False):
        raise UsageError(
            f"the parameterization {type(made.param).__name__} does not store the images that it is given, but starts "
            "from something else (see its options): nothing was appended"
        )
