"""Which of the published layouts a file has, and what of a set it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from dcf.errors import FormatError, UsageError
from dcf.exchange.reading import read_pt

__all__ = ["Published", "read_published"]

#: Names of tensors in a plain table, in the order in which they are looked for.
_IMAGES: Final = ("images", "image", "data", "x")
_LABELS: Final = ("labels", "label", "targets", "y")


@dataclass(frozen=True)
class Published:
    """What a published file holds of one set; nothing of it is checked beyond its form.

    Attributes:
        images: `(N, C, H, W)`, of any number type.
        labels: `(N,)` class numbers, or `(N, K)` soft labels.
        layout: How the file was laid out: `list` of sets, `pair`, `table`, or `files`.
        lr: Learned step size.
        facts: What a file that was exported here says besides: `classes`, `mean`, `std`, `targets`.
    """

    images: Tensor
    labels: Tensor
    layout: str
    lr: float | None
    facts: Mapping[str, Any]


def read_published(
    path: Path, labels: Path | None = None, lr: Path | None = None, experiment: int | None = None
) -> Published:
    """Read a published set.

    Args:
        path: The file.
        labels: File of its labels, of a set that consists of several files; where None, the one that is called like
            `path` with `labels` for `images`, if it is there.
        lr: File of its learned step size, likewise.
        experiment: Which one of a file of several sets, from 0.

    Raises:
        FormatError: When a file is damaged, or of a layout that is not known.
        UsageError: When it must be said what the file does not say.
    """
    found = read_pt(path)
    if isinstance(found, Tensor):
        return _of_files(found, path, labels or _beside(path, "labels"), lr or _beside(path, "lr"), experiment)
    if labels is not None:
        raise UsageError(f"--labels-file {labels}: '{path}' holds labels itself")
    images, known, layout, facts = _of_one_file(found, path, experiment)
    step = facts.get("lr", facts.get("syn_lr")) if lr is None else read_pt(lr)
    return Published(images, known, layout, _number(step, lr or path), facts)


def _of_one_file(found: Any, path: Path, experiment: int | None) -> tuple[Tensor, Tensor, str, Mapping[str, Any]]:
    """Images, labels, layout and what else a file says."""
    facts = found if isinstance(found, dict) else {}
    listed = facts.get("data", found)
    if _is_pair(listed):
        _require_one(experiment, 1, path)
        return listed[0], listed[1], "pair", facts
    if isinstance(listed, (list, tuple)) and listed and all(_is_pair(one) for one in listed):
        images, known = listed[_require_one(experiment, len(listed), path)]
        return images, known, "list", facts
    pair = [next((facts[k] for k in names if isinstance(facts.get(k), Tensor)), None) for names in (_IMAGES, _LABELS)]
    if pair[0] is not None and pair[1] is not None:
        _require_one(experiment, 1, path)
        return pair[0], pair[1], "table", facts
    raise FormatError(
        f"'{path}' is of no layout that is known: it holds {_shown(found)}\n"
        "  known: a table whose 'data' lists [images, labels]; [images, labels]; a table of images and labels; a "
        "tensor of images with a file of labels"
    )


def _of_files(images: Tensor, path: Path, labels: Path | None, lr: Path | None, experiment: int | None) -> Published:
    _require_one(experiment, 1, path)
    if labels is None:
        raise UsageError(
            f"'{path}' holds one tensor of shape {_size(images)}: say where its labels are: --labels-file FILE"
        )
    known = read_pt(labels)
    if not isinstance(known, Tensor):
        raise FormatError(f"'{labels}' holds {_shown(known)}; expected one tensor of labels")
    return Published(images, known, "files", None if lr is None else _number(read_pt(lr), lr), {})


def _beside(path: Path, what: str) -> Path | None:
    """The file that belongs to a file of images: `labels_best.pt` to `images_best.pt`."""
    head, found, tail = path.name.rpartition("images")
    beside = path.with_name(f"{head}{what}{tail}") if found else path
    return beside if beside != path and beside.is_file() else None


def _require_one(experiment: int | None, sets: int, path: Path) -> int:
    """The number of the set that is meant.

    Raises:
        UsageError: When there are several and none was named, or there is none of that number.
    """
    if experiment is None and sets > 1:
        raise UsageError(f"'{path}' holds {sets} sets: say which: --experiment N, from 0 to {sets - 1}")
    if experiment is not None and experiment >= sets:
        raise UsageError(f"--experiment {experiment}: '{path}' holds {sets}, numbered from 0")
    return experiment or 0


def _is_pair(value: Any) -> bool:
    """Whether it is `[images, labels]`."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    first, second = value
    return isinstance(first, Tensor) and isinstance(second, Tensor) and first.ndim == 4 and second.ndim in (1, 2)


def _number(value: Any, path: Path) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise FormatError(f"the step size in '{path}' is {_shown(value)}; expected one number")


def _shown(value: Any) -> str:
    """What something is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {_size(value)}"
    if isinstance(value, dict):
        return (
            f"a table with the entries {', '.join(str(k)[:20] for k in list(value)[:6])}" if value else "an empty table"
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = ", ".join(_shown(one) if isinstance(one, Tensor) else type(one).__name__ for one in list(value)[:3])
        return f"a list of {len(value)} ({parts})"
    return f"{type(value).__name__}"


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
