"""A user's own images: a folder with one sub-folder for each class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import torch

from dcf.data.base import DatasetProvider, LabelledPixels, real_data, value_space
from dcf.data.cache import decoded_tree
from dcf.data.decode import DecodeOptions
from dcf.data.options import FolderConfig
from dcf.data.real import RealData
from dcf.data.sampling import stratified_split
from dcf.data.tree import Tree, find_trees
from dcf.errors import DataError
from dcf.seeding import generator

__all__ = ["Folder"]

log = logging.getLogger(__name__)

#: Damaged files that are named one by one.
_LISTED = 20


class Folder(DatasetProvider):
    """Images in class folders: `PATH/train/CLASS/` and `PATH/test/CLASS/`, or `PATH/CLASS/` to be split."""

    Config = FolderConfig

    name: ClassVar[str] = "folder"
    places: ClassVar[frozenset[str]] = frozenset({"cache", "memory"})

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.config.path).expanduser()

    @property
    def options(self) -> DecodeOptions:
        """How training images are decoded."""
        channels = None if self.config.channels == "auto" else self.config.channels
        return DecodeOptions(parse_size(self.config.size), self.config.resize, channels)

    def load(self) -> RealData:
        """Decode the images, or take them from the cache.

        Raises:
            DataError: When the folder has no images of one shape for every class.
        """
        train_tree, test_tree = find_trees(self.path, self.config.train, self.config.test)
        _refuse_empty(train_tree)
        train = self._decode(train_tree, self.options)
        parts = self._split(train) if test_tree is None else (train, self._decode_test(train_tree, test_tree, train))
        space = value_space(parts[0].pixels, self.config.norm, self.config.mean, self.config.std)
        source = f"images in '{self.path}'; dcf knows no licence of them"
        return real_data(*parts, train_tree.classes, space, self.id, source)

    def _decode(self, tree: Tree, options: DecodeOptions) -> LabelledPixels:
        decoded = decoded_tree(tree, options, self.config.cache, self.config.memory)
        for name, reason in decoded.corrupt[:_LISTED]:
            log.warning("'%s' cannot be read (%s) and is left out", tree.root / name, reason)
        if len(decoded.corrupt) > _LISTED:
            log.warning("%d more files in '%s' cannot be read", len(decoded.corrupt) - _LISTED, tree.root)
        labels = torch.tensor(tree.labels, dtype=torch.int64)[decoded.kept]
        lost = (torch.bincount(labels, minlength=len(tree.classes)) == 0).nonzero().flatten().tolist()
        broken = [tree.classes[c] for c in lost if tree.classes[c] not in tree.empty]
        if broken:
            raise DataError(
                f"no image in '{tree.root / broken[0]}' can be read; replace the files or remove the folder"
            )
        return LabelledPixels(decoded.pixels, labels)

    def _decode_test(self, train_tree: Tree, test_tree: Tree, train: LabelledPixels) -> LabelledPixels:
        """The test images in the shape of the training images, with the labels of their class names."""
        to_train = match_classes(train_tree, test_tree)
        _, channels, height, width = train.pixels.shape
        size = None if self.config.size == "auto" else (height, width)
        test = self._decode(test_tree, DecodeOptions(size, self.config.resize, channels))
        if test.pixels.shape[1:] != train.pixels.shape[1:]:
            found = "x".join(map(str, test.pixels.shape[2:]))
            raise DataError(f"images in '{test_tree.root}' are {found}, those of train {height}x{width}; pass size=...")
        return LabelledPixels(test.pixels, torch.tensor(to_train)[test.labels])

    def _split(self, data: LabelledPixels) -> tuple[LabelledPixels, LabelledPixels]:
        if self.config.split == 0:
            return data, data.select(torch.arange(0))
        try:
            kept, held = split_indices(data.labels, self.config.split, self.config.seed)
        except DataError as error:
            raise DataError(f"folder '{self.path}': {error}; add images or a test folder, or pass split=0") from None
        return data.select(kept), data.select(held)


def split_indices(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image numbers to learn from and to test on, for a folder without a test folder."""
    return stratified_split(labels, fraction, generator(seed, "folder split"))


def match_classes(train: Tree, test: Tree) -> list[int]:
    """For each class folder of `test`, its number in `train`.

    Raises:
        DataError: When a class to test on is not learned, as when test images lie in one folder for all.
    """
    unknown = [name for name in test.classes if name not in train.classes and name not in test.empty]
    if unknown:
        raise DataError(
            f"folder '{test.root / unknown[0]}' names a class that '{train.root}' does not have; "
            "sort the test images into the same class folders"
        )
    missing = sorted(set(train.classes) - set(test.classes) | set(test.empty) & set(train.classes))
    if missing:
        log.warning("no test image of %d classes, such as '%s'", len(missing), missing[0])
    numbers = {name: number for number, name in enumerate(train.classes)}
    return [numbers.get(name, 0) for name in test.classes]


def parse_size(text: str) -> tuple[int, int] | None:
    """`64` or `32x48` as `(height, width)`; None for `auto`."""
    if text == "auto":
        return None
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _refuse_empty(tree: Tree) -> None:
    if not tree.empty:
        return
    more = f", and {len(tree.empty) - 1} more," if len(tree.empty) > 1 else ""
    raise DataError(f"class folder '{tree.root / tree.empty[0]}'{more} has no image; add images or remove the folder")
