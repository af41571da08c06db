"""Data made by the user's own code: `python:package.module.attribute`."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dcf.data.base import DatasetProvider, LabelledPixels, real_data, value_space
from dcf.data.options import PythonConfig
from dcf.data.real import RealData
from dcf.data.store import PixelStore, as_store
from dcf.errors import DataError

__all__ = ["Python"]

log = logging.getLogger(__name__)

_WANTED = "a dcf RealData, or a pair (train, test) of (image, label) datasets or of (images, labels) arrays"


class Python(DatasetProvider):
    """What a Python object gives: `RealData`, or a pair of datasets or arrays.

    Functions and classes are called, without arguments.
    """

    Config = PythonConfig

    name: ClassVar[str] = "python"

    def load(self) -> RealData:
        """Import, call, convert.

        Raises:
            DataError: When there is no such object, it fails, or gives something else.
        """
        target = self.config.target
        with _current_folder_importable():
            value = _resolve(target)
            if callable(value) and not isinstance(value, (RealData, DatasetProvider)):
                value = _guarded(f"calling '{target}'", value)
            if isinstance(value, DatasetProvider):
                value = value.load()
            if isinstance(value, RealData):
                return value
            return self._from_pair(value)

    def _from_pair(self, value: Any) -> RealData:
        target = self.config.target
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise DataError(f"'{target}' gives {_kind(value)}; expected {_WANTED}")
        if _is_array(value[0]):
            raise DataError(f"'{target}' gives one pair of arrays; expected {_WANTED}")
        train = _labelled(value[0], f"train of '{target}'")
        test = _labelled(value[1], f"test of '{target}'")
        _require_same_form(train, test, target)
        classes = _class_names(value[0], int(torch.cat([train.labels, test.labels]).max()) + 1)
        space = value_space(train.pixels, self.config.norm, self.config.mean, self.config.std)
        return real_data(train, test, classes, space, self.id, f"Python object '{target}'; dcf knows no licence of it")


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _resolve(target: str) -> Any:
    """The object behind `module.attribute`."""
    module, _, attribute = target.replace(":", ".").rpartition(".")
    if not module:
        raise DataError(f"expected module.attribute, got '{target}'")
    importlib.invalidate_caches()
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise DataError(f"importing '{module}' failed: {error}") from error
        raise DataError(f"no module named '{module}'; looked in '{os.getcwd()}' and Python's path") from None
    except Exception as error:
        raise DataError(f"importing '{module}' failed: {type(error).__name__}: {error}") from error
    if not hasattr(loaded, attribute):
        public = ", ".join(name for name in dir(loaded) if not name.startswith("_"))
        raise DataError(f"module '{module}' has no attribute '{attribute}'; it has {public or 'none'}")
    return getattr(loaded, attribute)


def _guarded(what: str, call: Any, *args: Any) -> Any:
    """The result of the user's code, whose failures of any kind become one message."""
    try:
        return call(*args)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what} failed: {type(error).__name__}: {error}") from error


def _labelled(part: Any, what: str) -> LabelledPixels:
    if isinstance(part, (tuple, list)) and len(part) == 2 and _is_array(part[0]):
        return LabelledPixels(_pixels(torch.as_tensor(part[0]), what), _labels(part[1], what))
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        return _from_items(part, what)
    raise DataError(f"{what} is {_kind(part)}; expected a dataset with (image, label) items or (images, labels) arrays")


def _from_items(dataset: Any, what: str) -> LabelledPixels:
    """Read a map-style dataset item by item."""
    images: list[Tensor] = []
    labels = []
    for i in range(len(dataset)):
        item = _guarded(f"reading item {i} of {what}", dataset.__getitem__, i)
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"item {i} of {what} is {_kind(item)}; expected (image, label)")
        image = _image(item[0], f"item {i} of {what}")
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise DataError(f"item {i} of {what} is {_form(image)}, the first is {_form(images[0])}; resize them alike")
        images.append(image)
        labels.append(item[1])
    if not images:
        raise DataError(f"{what} is empty")
    return LabelledPixels(_pixels(torch.stack(images), what), _labels(labels, what))


def _image(image: Any, what: str) -> Tensor:
    """A `(C, H, W)` tensor of a tensor `(C, H, W)`, an array `(H, W, C)` or a PIL image."""
    if isinstance(image, Tensor):
        return image if image.dim() == 3 else image[None]
    array = np.array(image)
    if array.ndim not in (2, 3) or array.dtype == object:
        raise DataError(
            f"{what} has an image of type {type(image).__name__}; expected a tensor, an array or a PIL image"
        )
    tensor = torch.from_numpy(array)
    return tensor[None] if array.ndim == 2 else tensor.permute(2, 0, 1)


def _pixels(images: Tensor, what: str) -> Tensor:
    """`(N, C, H, W)` uint8 or float32 of images in one tensor."""
    images = images.detach().cpu()
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.dim() != 4 or 0 in images.shape[1:]:
        raise DataError(f"{what}: expected images of shape (N, C, H, W), got {tuple(images.shape)}")
    if images.shape[1] > 4 >= images.shape[3]:
        raise DataError(f"{what}: expected (N, C, H, W), got {tuple(images.shape)}, which looks like (N, H, W, C)")
    if images.dtype == torch.uint8:
        return images.contiguous()
    if not images.is_floating_point():
        raise DataError(f"{what}: expected uint8 or float images, got {images.dtype}")
    images = images.float().contiguous()
    if not bool(images.isfinite().all()):
        raise DataError(f"{what}: some pixels are NaN or infinite")
    if images.numel() and (float(images.min()) < 0 or float(images.max()) > 1):
        log.warning("%s: float pixels are not in [0, 1]; previews and exports will clamp them", what)
    return images


def _labels(labels: Any, what: str) -> Tensor:
    try:
        values = torch.as_tensor(labels if _is_array(labels) else [int(label) for label in labels]).cpu()
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: expected whole numbers as labels ({error})") from None
    if values.dim() != 1 or values.is_floating_point() or (len(values) and int(values.min()) < 0):
        raise DataError(f"{what}: expected labels of shape (N,), whole numbers from 0, got {_form(values)}")
    return values.long()


def _require_same_form(train: LabelledPixels, test: LabelledPixels, target: str) -> None:
    learn, judge = as_store(train.pixels), as_store(test.pixels)
    if learn.shape[1:] != judge.shape[1:] or learn.dtype != judge.dtype:
        raise DataError(f"'{target}': train has {_form(learn)}, test {_form(judge)}; expected the same form")
    if not learn.shape[0]:
        raise DataError(f"train of '{target}' is empty")


def _class_names(train: Any, at_least: int) -> Sequence[str]:
    """The dataset's own names if it has enough, else the numbers."""
    names = getattr(train, "classes", None)
    if isinstance(names, (tuple, list)) and len(names) >= at_least:
        return [str(name) for name in names]
    return [str(c) for c in range(at_least)]


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _form(tensor: Tensor | PixelStore) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _kind(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"{type(value).__name__}{size}"
