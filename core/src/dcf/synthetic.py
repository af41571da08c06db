"""`SyntheticSet`: a condensed set in memory and in its file."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dcf.budget import Budget, Store
from dcf.build import create_stack
from dcf.components import Kind
from dcf.errors import DcfError, FormatError, PluginError, SpecError
from dcf.files import DIGEST, read_header, read_tensors, write_tensors
from dcf.metadata import FORMAT, data_spec, decode_metadata, format_of, read_metadata
from dcf.parameterization import Parameterization
from dcf.plausible import STEP_SIZES
from dcf.registry import registry
from dcf.space import ValueSpace
from dcf.spec import parse
from dcf.storage import StorageReport, decode, encode, layout, measure
from dcf.types import Batch, DataSpec, Hints, Program
from dcf.whitening import TENSORS

__all__ = ["FORMAT", "SyntheticSet", "load", "read_metadata"]

#: Optimiser steps that a file may claim.
_MAX_STEPS: Final = 10_000_000
_LABELS: Final = "labels"
#: A distribution and its version, as in `dcf-lowrank 0.1.0`.
_PACKAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}( [A-Za-z0-9][A-Za-z0-9.+!]{0,31})?\Z")


class SyntheticSet(Dataset[tuple[Any, Any]]):
    """A condensed set: a torchvision-style dataset, and everything needed to use and to judge it.

    Items are `(image, target)`: a `(C, H, W)` float tensor in the dataset's value space (`set.space` tells and
    inverts it) and an int class, or a `(K,)` tensor of probabilities for soft labels.

    Attributes:
        param: The parameterization that stores and decodes it.
        spec: Shape, classes and value space.
        hints: What an evaluator must know beyond images and labels.
        config: Canonical specs by role (`data`, `matcher`, `param`, `augment`, `network`, `protocol`, ...).
        metadata: Everything else of the file's header, decoded from JSON.
        seed: Of the run that made it.
        store: How floats are written: "fp32" as they are, "fp16" or "uint8" rounded. `param` holds them rounded
            already, so that what is seen and evaluated is what the file gives back.
    """

    def __init__(
        self,
        param: Parameterization,
        spec: DataSpec,
        config: Mapping[str, Any],
        seed: int = 0,
        hints: Hints | None = None,
        metadata: Mapping[str, Any] | None = None,
        store: Store = "fp32",
        written: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take over a parameterization.

        Args:
            param: The parameterization; where `store` rounds, a rounded copy is taken.
            spec: Shape, classes and value space.
            config: Canonical specs by role.
            seed: Of the run that made it.
            hints: What an evaluator must know.
            metadata: Whatever else the file shall say.
            store: How floats are written.
            written: Tensors as they are written, of which `param` holds the values already.

        Raises:
            RunError: When a value is beyond what `store` can hold.
        """
        self.store: Store = store
        self._written = written
        if store != "fp32" and written is None:
            param = copy.deepcopy(param)
            self._written = encode(param.state_dict(), store)
            param.load_state_dict(decode(self._written, param.state_dict(), store))
        self.param = param
        self.spec = spec
        self.config = dict(config)
        self.seed = seed
        self.hints = hints or Hints()
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.transform: Callable[[Any], Any] | None = None
        self.target_transform: Callable[[Any], Any] | None = None

    # --- as a dataset ----------------------------------------------------------------------------

    @property
    def classes(self) -> list[str]:
        """Class names by index."""
        return list(self.spec.classes)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class index by name."""
        return {name: i for i, name in enumerate(self.spec.classes)}

    @property
    def targets(self) -> list[int]:
        """Class index of every training image."""
        return [int(c) for c in self.param.view_class]

    @property
    def space(self) -> ValueSpace:
        """What the values of the images mean; `space.decode` gives pixels in [0, 1]."""
        return self.spec.space

    def __len__(self) -> int:
        return len(self.param.view_class)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        batch = self.batch(torch.tensor([index % len(self)]))
        image: Any = batch.x[0]
        target: Any = int(batch.y[0]) if batch.y.ndim == 1 else batch.y[0]
        image = self.transform(image) if self.transform else image
        return image, self.target_transform(target) if self.target_transform else target

    @torch.no_grad()
    def batch(self, index: Tensor) -> Batch:
        """Decoded images and labels of the given views, without graph."""
        return self.param.batch(index.to(self.param.item_class.device))

    def tensors(self) -> Batch:
        """All images `(views, C, H, W)` and labels, decoded at once, for training on the device."""
        return self.batch(torch.arange(len(self)))

    # --- as it is stored -------------------------------------------------------------------------

    def storage(self) -> StorageReport:
        """What the set costs in its file, and the share of its budget that this is."""
        elements, classes = math.prod(self.spec.shape), self.spec.num_classes
        budget = Budget.recorded(self.metadata.get("run"), elements, classes, self.store)
        return measure(self.param, self.store, budget, self.space.nbytes)

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors of its file but `labels` and those of a whitening, by name.

        Raises:
            RunError: When a value is beyond what `store` can hold.
        """
        state = self.param.state_dict()
        if self.store == "fp32":
            return dict(state)
        if self._written is not None:
            # The codes of rounded values need not be those that they came from: kept while the values are.
            values = decode(self._written, state, self.store)
            if all(torch.equal(values[name], tensor.cpu()) for name, tensor in state.items()):
                return dict(self._written)
        return encode(state, self.store)

    def stored_as(self, store: Store) -> SyntheticSet:
        """The same set with its floats written in another way; results of the evaluation do not go with it.

        Args:
            store: "fp32", "fp16" or "uint8".

        Raises:
            RunError: When a value is beyond what `store` can hold.
        """
        metadata = {k: v for k, v in self.metadata.items() if k != "results"}
        return SyntheticSet(self.param, self.spec, self.config, self.seed, self.hints, metadata, store)

    # --- as a file -------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write the set to one safetensors file, atomically.

        Raises:
            RunError: When it cannot be written, or a value is beyond what `store` can hold.
            PluginError: When the parameterization stores a tensor under a name that the file needs itself.
        """
        stored = self.stored_tensors()
        for name in (_LABELS, *TENSORS):
            if name in stored:
                raise PluginError(
                    f"{type(self.param).__name__} stores a tensor called '{name}', which in a file holds "
                    f"{'the class of each item' if name == _LABELS else 'the whitening'}; expected another name"
                )
        whitening = {} if self.space.whitening is None else self.space.whitening.tensors()
        tensors = {**stored, **whitening, _LABELS: self.param.item_class}
        write_tensors(path, tensors, {f"dcf.{k}": _dump(v) for k, v in self.describe().items()})

    def describe(self) -> dict[str, Any]:
        """The header's values by name without the prefix, JSON-ready and a function of the set alone."""
        spec = self.spec
        return {
            **self.metadata,
            "format": format_of(self.store, spec.space),
            **({} if self.store == "fp32" else {"store": {"dtype": self.store}}),
            "config": self.config,
            "seed": self.seed,
            "shape": list(spec.shape),
            "classes": list(spec.classes),
            "space": spec.space.to_json(),
            "hints": self.hints.to_json(),
            "storage": self.storage().to_json(),
        }


def load(
    path: Path | str,
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
) -> SyntheticSet:
    """Load a condensed set.

    Args:
        path: The `.safetensors` file.
        transform: Applied to each image tensor by `__getitem__`.
        target_transform: Applied to each target.

    Raises:
        FormatError: When the file is damaged, inconsistent or of a newer format.
        PluginError: When the parameterization's plugin is not installed; names the package.
    """
    path = Path(path)
    read_metadata(path)  # a file that is no set, or of a newer format, says so before its tensors are read
    if DIGEST not in read_header(path).metadata:
        raise FormatError(f"'{path}' has no digest: another program changed it, and nothing vouches for its contents")
    tensors, strings = read_tensors(path)
    meta = decode_metadata(strings, path)
    spec = data_spec(meta, tensors, path)
    if spec.space.whitening is not None:
        tensors = {k: t for k, t in tensors.items() if k not in TENSORS}
    labels = _checked_labels(tensors.pop(_LABELS, None), spec, path)
    param = _parameterization(meta, path)
    store: Store = (meta.get("store") or {"dtype": "fp32"})["dtype"]
    _fill(param, spec, labels, tensors, store, path)
    known = {"format", "config", "seed", "shape", "classes", "space", "hints", "storage", "store"}
    loaded = SyntheticSet(
        param,
        spec,
        meta["config"],
        meta.get("seed", 0),
        _hints(meta.get("hints", {}), len(param.view_class), path),
        {k: v for k, v in meta.items() if k not in known},
        store,
        tensors,
    )
    loaded.transform, loaded.target_transform = transform, target_transform
    return loaded


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _checked_labels(labels: Tensor | None, spec: DataSpec, path: Path) -> Tensor:
    if labels is None or labels.dtype != torch.long or labels.ndim != 1 or len(labels) == 0:
        raise FormatError(f"'{path}' is damaged: it has no labels; expected an int64 class for each stored item")
    if int(labels.min()) < 0 or int(labels.max()) >= spec.num_classes:
        raise FormatError(f"'{path}' is damaged: a label lies outside its {spec.num_classes} classes")
    return labels


def _checked_views(param: Parameterization, spec: DataSpec, path: Path) -> None:
    views = param.view_class
    if len(views) == 0 or int(views.min()) < 0 or int(views.max()) >= spec.num_classes:
        raise FormatError(f"'{path}' is damaged: an image lies outside its {spec.num_classes} classes")


def _parameterization(meta: Mapping[str, Any], path: Path) -> Parameterization:
    text = str(meta["config"].get("param", ""))
    # What was in force when the set was made: defaults of a component may have changed since.
    options = meta.get("options", {}).get("param")
    try:
        made: Parameterization = create_stack(Kind.PARAM, text, "", options if isinstance(options, list) else None)[-1]
    except Exception as error:  # a plugin's code: whatever it raises is why the set cannot be decoded
        raise PluginError(_missing(meta, text, path, error)) from None
    return made


def _missing(meta: Mapping[str, Any], text: str, path: Path, error: Exception) -> str:
    try:
        absent = [s.name for s in parse(text) if s.name not in registry().names(Kind.PARAM)]
    except SpecError:
        absent = []
    packages = meta.get("packages", {})
    lines = [f"'{path}' is stored as '{text[:80]}', which cannot be decoded here"]
    for name in absent:
        package = str(packages.get(f"param:{name}", ""))
        # The line is there to be pasted: nothing but a name and a version of a distribution gets into it.
        package = package if _PACKAGE.match(package) else f"dcf-{name}"
        lines.append(
            f"  parameterization '{name}' is not installed: pip install {package.split(' ')[0]}"
            f"     (made with {package})"
        )
    return "\n".join(lines if absent else [*lines, f"  reason: {error}"])


def _fill(
    param: Parameterization,
    spec: DataSpec,
    labels: Tensor,
    tensors: Mapping[str, Tensor],
    store: Store,
    path: Path,
) -> None:
    """Give the parameterization its tensors; shapes are compared before anything of their size is allocated."""
    try:
        with torch.device("meta"):
            param.allocate(spec, labels)
        _set_item_class(param, labels)
        _checked_views(param, spec, path)
    except DcfError:
        raise
    except Exception as error:  # a plugin's code, given sizes that a file claims
        raise FormatError(f"'{path}' is damaged: its sizes cannot be decoded ({_first_line(error)})") from None
    expected = {k: _form(v) for k, v in layout(param.state_dict(), store).items()}
    found = {k: _form(v) for k, v in tensors.items()}
    if expected != found:
        name = min(k for k, _ in set(expected.items()) ^ set(found.items()))
        want, got = expected.get(name, "no such tensor"), found.get(name, "none")
        raise FormatError(f"'{path}' is damaged: tensor '{name[:60]}': expected {want}, got {got}")
    _require_finite(tensors, path)
    values = decode(tensors, param.state_dict(), store)
    _require_finite(values, path)
    param.load_state_dict(values, assign=True)


def _require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"'{path}' holds NaN or infinite values in '{name}'; it cannot be used")


def _hints(hints: Mapping[str, Any], views: int, path: Path) -> Hints:
    damaged = FormatError(f"'{path}' is damaged: its hints are not of the form they must have")
    if not isinstance(hints, dict):
        raise damaged
    lr, ordered, extra = hints.get("lr"), hints.get("ordered", False), hints.get("extra", {})
    steps, program = hints.get("steps"), hints.get("program")
    good_steps = steps is None or (type(steps) is int and 0 < steps <= _MAX_STEPS)
    if not ((lr is None or _is_step_size(lr)) and isinstance(ordered, bool) and isinstance(extra, dict) and good_steps):
        raise damaged
    if program is not None and not _is_program(program, views):
        raise FormatError(f"'{path}' is damaged: its program does not fit its {views} images")
    made = program and Program(tuple(map(tuple, program["steps"])), tuple(program["lrs"]), program.get("momentum", 0.0))
    return Hints(lr, ordered, extra, steps, made)


def _is_step_size(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < STEP_SIZES[1]


def _is_program(program: Any, views: int) -> bool:
    """Whether it is what `Hints.to_json` writes, for a set of so many views."""
    if not isinstance(program, dict):
        return False
    steps, lrs, momentum = program.get("steps"), program.get("lrs"), program.get("momentum", 0.0)
    if not isinstance(steps, list) or not isinstance(lrs, list) or not 0 < len(steps) == len(lrs) <= _MAX_STEPS:
        return False
    if not all(map(_is_step_size, lrs)) or not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
        return False
    return all(isinstance(s, list) and s and all(type(i) is int and 0 <= i < views for i in s) for s in steps)


def _form(tensor: Tensor) -> str:
    shape = " x ".join(map(str, tensor.shape)) or "a number"
    return f"{shape} ({str(tensor.dtype).removeprefix('torch.')})"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _set_item_class(param: Parameterization, labels: Tensor) -> None:
    param.item_class = labels
    if param.inner is not None:
        _set_item_class(param.inner, param.inner_classes(labels))
