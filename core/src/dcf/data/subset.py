"""Some classes of another dataset, and some images of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dcf.data.base import LabelledPixels, real_data, value_space
from dcf.data.classes import class_numbers
from dcf.data.derived import DerivedDataset
from dcf.data.options import SubsetConfig
from dcf.data.real import RealData, Split
from dcf.data.store import PixelStore
from dcf.errors import DataError
from dcf.seeding import generator
from dcf.space import ValueSpace

__all__ = ["Subset", "class_numbers", "images_to_keep"]


class Subset(DerivedDataset):
    """Part of a dataset, in the order, the pixels and the value space of the whole."""

    Config = SubsetConfig

    name: ClassVar[str] = "subset"

    def load(self) -> RealData:
        """Load the base and keep what is asked for.

        Raises:
            DataError: When the base cannot be loaded or has no such class.
        """
        return self.of(self.load_part("base"))

    def of(self, base: RealData) -> RealData:
        """Keep what is asked for of a base that is loaded already, on the CPU.

        Raises:
            DataError: When it has no such class.
        """
        try:
            numbers = class_numbers(self.config.classes, base.spec.classes)
        except DataError as error:
            raise DataError(f"classes of {self.name}: {error}") from None
        train = self._kept(base.train, numbers, self.config.per_class, "train")
        test = self._kept(base.test, numbers, self.config.test_per_class, "test")
        names = [base.spec.classes[c] for c in numbers]
        levels = base.train.levels
        space = self._space(base, train.pixels)
        return real_data(train, test, names, space, self.id, base.source, base.hints, levels)

    def _kept(self, split: Split, numbers: Sequence[int], most: int, part: str) -> LabelledPixels:
        index = images_to_keep(split, numbers, most, self.config.seed, part)
        labels = torch.full((len(split.counts),), -1, dtype=torch.int64)
        labels[list(numbers)] = torch.arange(len(numbers))
        return LabelledPixels(split.store.select(index), labels[split.labels[index]])

    def _space(self, base: RealData, pixels: Tensor | PixelStore) -> ValueSpace:
        if self.config.norm == "base":
            return base.spec.space
        return value_space(pixels, self.config.norm, levels=base.train.levels)


def images_to_keep(split: Split, numbers: Sequence[int], most: int, seed: int, part: str) -> Tensor:
    """Image numbers of some classes, ascending.

    Which images of a class are kept depends neither on the other classes nor on how many are kept: fewer are
    always a part of more.

    Args:
        split: Images of the base, on the CPU.
        numbers: Classes of the base.
        most: Images of each class at most; 0 for all.
        seed: Of the draw.
        part: Name of the split, so that two are drawn apart.
    """
    kept = []
    for c in numbers:
        index = split.of_class(c)
        if 0 < most < len(index):
            index = index[torch.randperm(len(index), generator=generator(seed, "subset", part, c))[:most]]
        kept.append(index)
    return torch.cat(kept).sort().values
