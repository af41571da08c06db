"""`import_set`: a published condensed set becomes one of ours, checked against the data that it was made from."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dcf.build import create_stack, spec_text, stacked, used_packages
from dcf.components import Kind
from dcf.data.real import RealData
from dcf.errors import FormatError, UsageError
from dcf.exchange.layouts import Published, read_published
from dcf.exchange.options import Values
from dcf.parameterization import Parameterization
from dcf.recorded import load_data
from dcf.runconfig import SPEC_ROLES
from dcf.runtime import environment
from dcf.synthetic import SyntheticSet
from dcf.types import DataSpec, Hints

__all__ = ["import_set"]

log = logging.getLogger(__name__)

#: How far a row of soft labels may be from summing to 1.
_CLOSE: Final = 1e-3
#: How far from 0 and from 1 values may lie that are taken for pixels; learned ones leave the range a little.
_SLACK: Final = 0.05
_FAR: Final = 1.0
#: Largest step size that a file may hold.
_LARGEST_STEP: Final = 1e6


@dataclass(frozen=True)
class _Checked:
    """Images and labels that can be stored: finite, of the right shape, sorted by class.

    Attributes:
        images: `(N, C, H, W)` float32, as they are to be stored.
        targets: `(N,)` class numbers, ascending.
        soft: `(N, K)` probabilities; None where labels are class numbers.
    """

    images: Tensor
    targets: Tensor
    soft: Tensor | None


def import_set(
    path: Path | str,
    data: Any,
    *,
    param: str = "pixels",
    labels: Path | str | None = None,
    lr: float | Path | None = None,
    experiment: int | None = None,
    values: Values = "auto",
    logits: bool = False,
    network: str = "convnet",
    augment: str = "none",
    protocol: str = "",
) -> SyntheticSet:
    """Read a published `.pt` file as a condensed set. Nothing in the file is run.

    Args:
        path: The file.
        data: The dataset it was made from: a spec, a dataset component, or data. Says classes and value space.
        param: Spec of the parameterization that decodes what the file holds; of soft labels one that stores these.
        labels: File of the labels, where they have one.
        lr: Learned step size, or the file that holds it.
        experiment: Which one of a file of several sets, from 0.
        values: Whether the numbers are values of the data's value space or pixels in [0, 1]; "auto" refuses those that
            could be either. Only for `pixels`: of others the numbers are taken as they are.
        logits: Soft labels are logits, whose softmax are the probabilities.
        network: Spec of the network to record, which evaluations train.
        augment: Spec of the augmentation to record, which they use where the protocol says so.
        protocol: Evaluation protocol to record; empty for none.

    Raises:
        FormatError: When the file is damaged, would have to be run, or holds what cannot be a set.
        UsageError: When the file and `data` or `param` do not fit, or something must be said that the file does not.
    """
    path = Path(path)
    step = lr if isinstance(lr, Path) else None
    found = read_published(path, None if labels is None else Path(labels), step, experiment)
    real = load_data(data)
    plain = values if param.split("+")[0] == "pixels" else "space"
    checked = _checked(found, real.spec, plain, logits, path)
    hints = Hints(_step_size(found.lr if lr is None or step else lr, path))
    text = spec_text(Kind.PARAM, param)
    stored = _stored(create_stack(Kind.PARAM, text, "--param")[-1], real.spec, checked, path)
    config = {"data": real.id, "param": text, "network": network, "augment": augment}
    config |= {"protocol": protocol} if protocol else {}
    facts: dict[str, Any] = {"file": path.name, "sha256": _sha256(path), "layout": found.layout}
    facts |= {} if experiment is None else {"experiment": experiment}
    return SyntheticSet(stored, real.spec, config, hints=hints, metadata=_metadata(stored, real, config, facts))


def _metadata(
    param: Parameterization, real: RealData, config: Mapping[str, str], imported: Mapping[str, Any]
) -> dict[str, Any]:
    sizes = torch.bincount(param.item_class)
    even = int(sizes.min()) == int(sizes.max())
    return {
        "imported": dict(imported),
        "options": {"param": [part.config.model_dump(mode="json") for part in stacked(param)]},
        "packages": used_packages({kind: config[role] for role, kind in SPEC_ROLES.items() if role in config}),
        "data": {"id": real.id, "checksum": real.checksum, "train": len(real.train), "test": len(real.test)},
        "license": real.source,
        "environment": environment(torch.device("cpu")),
        "run": {"ipc": int(sizes[0])} if even and config["param"] == "pixels" else {},
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what the file holds -----------------------------------------------------------------------------


def _checked(found: Published, spec: DataSpec, values: Values, logits: bool, path: Path) -> _Checked:
    """The set of a file, sorted by class."""
    _require_shape(found, spec, path)
    _require_facts(found.facts, spec, values, path)
    images = _images(found.images, spec, values, path)
    targets, soft = _labels(found, spec, logits, path)
    order = torch.argsort(targets, stable=True)
    return _Checked(images[order].contiguous(), targets[order], None if soft is None else soft[order].contiguous())


def _require_shape(found: Published, spec: DataSpec, path: Path) -> None:
    images, labels = found.images, found.labels
    if images.ndim != 4 or not len(images):
        raise FormatError(f"'{path}': expected images of shape N x C x H x W, got {_size(images)}")
    if tuple(images.shape[1:]) != spec.shape:
        wanted = " x ".join(map(str, spec.shape))
        raise UsageError(
            f"'{path}' holds images of {_size(images[0])}, and those of the data are {wanted}: other data?"
        )
    if len(labels) != len(images):
        raise FormatError(f"'{path}' has {len(images)} images and {len(labels)} labels")


def _require_facts(facts: Mapping[str, Any], spec: DataSpec, values: Values, path: Path) -> None:
    """What a file says of itself must be what the data say."""
    classes = facts.get("classes")
    if isinstance(classes, list) and tuple(map(str, classes)) != spec.classes:
        raise UsageError(
            f"'{path}' names the classes {_few(classes)}, and the data have {_few(spec.classes)}\n"
            "  part of them, or another order? see the dataset 'subset': dcf describe subset"
        )
    for name, ours in (("mean", spec.space.mean), ("std", spec.space.std)):
        theirs = facts.get(name)
        if values != "pixels" and isinstance(theirs, list) and tuple(theirs) != tuple(ours):
            raise UsageError(
                f"'{path}' is normalised with {name} {_few(theirs)}, and the data with {_few(ours)}\n"
                "  give the data those constants, such as --data 'NAME:mean=[...],std=[...]'"
            )


def _images(images: Tensor, spec: DataSpec, values: Values, path: Path) -> Tensor:
    """`(N, C, H, W)` float32 in the value space of the data."""
    if images.dtype == torch.uint8:
        return spec.space.encode(images.float() / 255)
    if not images.is_floating_point():
        raise FormatError(f"'{path}': expected images of floats or 8-bit integers, got {images.dtype}")
    kept = images.detach().float()
    _require_finite(kept, "image", path)
    low, high = float(kept.min()), float(kept.max())
    if values == "pixels" and (low < -_FAR or high > 1 + _FAR):
        raise UsageError(f"--values pixels: expected about 0 to 1, and '{path}' holds {low:.3g} to {high:.3g}")
    if values == "auto" and spec.space.kind != "unit" and low >= -_SLACK and high <= 1 + _SLACK:
        raise UsageError(
            f"'{path}' holds {low:.3g} to {high:.3g}, which may be pixels, while values of the data are {spec.space}\n"
            "  say which: --values pixels, or --values space"
        )
    return spec.space.encode(kept) if values == "pixels" else kept


def _labels(found: Published, spec: DataSpec, logits: bool, path: Path) -> tuple[Tensor, Tensor | None]:
    """Class numbers, and probabilities where labels are soft."""
    labels, k = found.labels.detach(), spec.num_classes
    if labels.ndim == 1:
        if logits:
            raise UsageError(f"--logits: '{path}' has a class for each image and no soft labels")
        return _class_numbers(labels, k, path), None
    if labels.ndim != 2 or labels.shape[1] != k or not labels.is_floating_point():
        raise UsageError(f"'{path}' has labels of {_size(labels)}, and the data have {k} classes: other data?")
    _require_finite(labels, "label", path)
    soft = labels.float().softmax(1) if logits else labels.float()
    if float(soft.min()) < 0 or float((soft.sum(1) - 1).abs().max()) > _CLOSE:
        raise UsageError(f"'{path}' has soft labels that are no probabilities\n  are they logits? --logits")
    told = found.facts.get("targets")
    known = isinstance(told, Tensor) and told.shape == labels.shape[:1]
    return _class_numbers(told if known else soft.argmax(1), k, path, every=False), soft


def _class_numbers(labels: Any, k: int, path: Path, every: bool = True) -> Tensor:
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise FormatError(f"'{path}' has labels that are no class numbers, such as {float(labels[0]):.3g}")
    numbers: Tensor = labels.long()
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= k:
        raise UsageError(f"'{path}' has labels from {low} to {high}, and the data have {k} classes: other data?")
    present = len(torch.unique(numbers))
    if every and present < k:
        raise UsageError(
            f"'{path}' has images of {present} classes, and the data have {k}: other data?\n"
            "  some classes of a dataset: --data 'subset:base=(NAME),classes=[...]'"
        )
    return numbers


def _require_finite(tensor: Tensor, what: str, path: Path) -> None:
    good = torch.isfinite(tensor).flatten(1).all(1)
    if not bool(good.all()):
        first = int(torch.nonzero(~good)[0])
        raise FormatError(f"'{path}' holds NaN or infinite values: {int((~good).sum())} of its {what}s, first {first}")


def _step_size(value: Any, path: Path) -> float | None:
    if value is None:
        return None
    if not math.isfinite(value) or not 0 < value < _LARGEST_STEP:
        raise FormatError(
            f"'{path}' has the learned step size {value:g}, which no training can use\n  another one: --lr VALUE"
        )
    return float(value)


# --- how it is stored --------------------------------------------------------------------------------


def _stored(param: Parameterization, spec: DataSpec, checked: _Checked, path: Path) -> Parameterization:
    """The parameterization with the set in it."""
    param.allocate(spec, checked.targets)
    tensors = dict(param.state_dict())
    images = [n for n, t in tensors.items() if t.shape == checked.images.shape]
    if len(images) != 1:
        raise UsageError(
            f"--param: what '{path}' holds, {_size(checked.images)}, is not what this parameterization stores: "
            + ", ".join(f"{name} {_size(t)}" for name, t in tensors.items())
        )
    with torch.no_grad():
        tensors.pop(images[0]).copy_(checked.images)
        if checked.soft is not None:
            _absorb_soft(param, checked.soft, path)
    if len(tensors) > (checked.soft is not None):
        raise UsageError(
            f"--param: this parameterization also stores {', '.join(tensors)}, which '{path}' does not hold"
        )
    return param


def _absorb_soft(param: Parameterization, soft: Tensor, path: Path) -> None:
    if "labels" not in param.drives:
        raise UsageError(f"'{path}' has soft labels: say what stores them, such as --labels soft")
    param.absorb_labels(soft)


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _few(values: Any) -> str:
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v)[:30] for v in list(values)[:5]]
    return ", ".join(shown) + (f", ... ({len(values)})" if len(values) > 5 else "")
