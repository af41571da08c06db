"""The images of a set as PNG data inside the page: of each class one row, as they are stored and as they decode."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from dcf.errors import PluginError
from dcf.parameterization import Parameterization
from dcf.preview import displayable, png, thinned, tiled
from dcf.report.source import Source
from dcf.synthetic import SyntheticSet, load

__all__ = ["Gallery", "Strip", "gallery"]

log = logging.getLogger(__name__)

#: Images a class, and classes, that are shown by default.
_VIEWS: Final = 10
_CLASSES: Final = 100
#: Bytes of pixels of the images of one set by default: a page of more than some megabytes is hard to open and to send.
_BYTES: Final = 4 * 2**20
#: Side of an image at most; small ones are enlarged up to the other, in pixels.
_LARGEST: Final = 128
_SHOWN: Final = 64


@dataclass(frozen=True)
class Strip:
    """Some images of one class in a row.

    Attributes:
        uri: A PNG as a data URI.
        width: In pixels.
        height: In pixels.
        shown: Images in it.
        of: Images of this class.
    """

    uri: str
    width: int
    height: int
    shown: int
    of: int


@dataclass(frozen=True)
class Gallery:
    """The images of one source.

    Attributes:
        decoded: What networks train on, by class number.
        stored: What a stack keeps before its last part decodes it, by class number, where that are other images.
        shared: The same where classes share what is stored.
        classes: Classes that have images, shown or not.
        note: Why there are none.
    """

    decoded: dict[int, Strip]
    stored: dict[int, Strip]
    shared: Strip | None = None
    classes: int = 0
    note: str = ""


def gallery(source: Source, views: int | None = None) -> Gallery:
    """The images of a run or file.

    Args:
        source: Its set is loaded where it is not in memory.
        views: Images a class at most.

    Raises:
        FormatError: When the file is damaged.
    """
    if source.synthetic is None and source.file is None:
        return Gallery({}, {}, note="There are no images yet.")
    try:
        synthetic = source.synthetic or load(source.file or "")
    except PluginError as error:
        log.warning("%s; the page has no images of it", error)
        return Gallery({}, {}, note=f"The images cannot be decoded here: {error}")
    return _of_set(synthetic, views)


@torch.no_grad()
def _of_set(synthetic: SyntheticSet, views: int | None) -> Gallery:
    param = synthetic.param
    classes = torch.unique(param.view_class).tolist()
    shown = classes[: _CLASSES if views is None else None]
    most = views or _affordable(synthetic, len(shown))
    decoded = {c: _strip(synthetic, param, _members(param, c), most) for c in shown}
    inner = param.inner
    if inner is None or not _other_images(param, inner):
        return Gallery(decoded, {}, classes=len(classes))
    if inner.item_class.shape != param.item_class.shape or not torch.equal(inner.item_class, param.item_class):
        everything = torch.arange(len(inner.view_class))
        return Gallery(decoded, {}, _strip(synthetic, inner, everything, most), len(classes))
    stored = {c: _strip(synthetic, inner, index, most) for c in shown if len(index := _members(inner, c))}
    return Gallery(decoded, stored, classes=len(classes))


def _affordable(synthetic: SyntheticSet, rows: int) -> int:
    channels, height, width = synthetic.spec.shape
    step = -(-max(height, width) // _LARGEST)
    tile = min(channels, 3) * (height // step) * (width // step)
    return min(_VIEWS, max(1, _BYTES // max(1, tile * rows)))


def _members(param: Parameterization, number: int) -> Tensor:
    return torch.nonzero(param.view_class == number).flatten()


def _other_images(param: Parameterization, inner: Parameterization) -> bool:
    """Whether the right part decodes what the left one stores into other images: learned labels, say, do not."""
    if len(param.view_class) != len(inner.view_class):
        return True
    first = torch.zeros(1, dtype=torch.long, device=param.item_class.device)
    before, after = inner.images(first), param.images(first)
    return before.shape != after.shape or not torch.equal(before, after)


def _strip(synthetic: SyntheticSet, param: Parameterization, index: Tensor, most: int) -> Strip:
    chosen = index[:most].to(param.item_class.device)
    # One at a time: decoded images may be far larger than what is stored of them.
    tiles = torch.cat(list(_tiles(synthetic, param, chosen)))
    grid = tiled(tiles, len(tiles), _SHOWN)
    uri = f"data:image/png;base64,{base64.b64encode(png(grid)).decode('ascii')}"
    return Strip(uri, grid.shape[2], grid.shape[1], len(chosen), len(index))


def _tiles(synthetic: SyntheticSet, param: Parameterization, chosen: Tensor) -> Iterator[Tensor]:
    for one in chosen[:, None]:
        yield thinned(displayable(param.images(one), synthetic.space).cpu(), _LARGEST)
