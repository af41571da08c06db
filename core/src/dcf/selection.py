"""The images that a run starts from, and what is recorded of how they were chosen."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from dcf.errors import PluginError
from dcf.runconfig import RunConfig
from dcf.seeding import generator
from dcf.selector import Selector

if TYPE_CHECKING:
    from dcf.data.real import RealData

__all__ = ["select"]

log = logging.getLogger(__name__)

#: Chosen images that are recorded by number at most, and characters of a record.
_MOST_INDICES: Final = 100_000
_LONGEST: Final = 2 * 2**20


def select(selector: Selector, data: RealData, view_class: Tensor, config: RunConfig) -> tuple[Tensor, dict[str, Any]]:
    """The images that a run starts from.

    Args:
        selector: Chooses them.
        data: The real data.
        view_class: `(views,)` class wanted at each place.
        config: The run; one that learns nothing keeps real images, so that it is recorded which.

    Returns:
        `(views, C, H, W)` images, and what the file says about them: the selector's record, and for a coreset of at
        most 100,000 images the `indices` of its images in the training data, one for each view.

    Raises:
        PluginError: When the record cannot be written as JSON.
    """
    draw = generator(config.seed, "init")
    # A coreset is a set that is not learned; whoever overrides `images` need not choose by `indices`.
    if not selector.real or type(selector).images is not Selector.images:
        return selector.images(data, view_class, draw), _record(selector)
    index = selector.indices(data, view_class, draw)
    record = _record(selector)
    if config.iterations == 0 or config.matcher == "none":
        _warn_of_copies(index, view_class, data.spec.classes)
        record = {**record, "indices": index.tolist()} if len(index) <= _MOST_INDICES else record
    return data.train.images(index), record


def _warn_of_copies(index: Tensor, view_class: Tensor, classes: Sequence[str]) -> None:
    """Say where a coreset has an image more than once: its budget could be smaller."""
    labels = view_class.cpu()[index.cpu().argsort(stable=True)]
    ordered = index.cpu().sort().values
    copies = torch.bincount(labels[1:][ordered[1:] == ordered[:-1]], minlength=len(classes))
    short = torch.nonzero(copies).flatten().tolist()
    if short:
        log.warning(
            "the coreset has images more than once, as %d classes have fewer than it has places for, such as %d places "
            "too many in '%s'", len(short), int(copies[short[0]]), classes[short[0]],
        )  # fmt: skip


def _record(selector: Selector) -> dict[str, Any]:
    """The selector's record as it will be read from a file."""
    try:
        text = json.dumps(dict(selector.record), allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise PluginError(f"{type(selector).__name__}.record cannot be written as JSON: {error}") from None
    if len(text) > _LONGEST:
        raise PluginError(f"{type(selector).__name__}.record has {len(text)} characters; expected at most {_LONGEST}")
    record: dict[str, Any] = json.loads(text)
    return record
