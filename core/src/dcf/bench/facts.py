"""What a bench must know of its datasets before it plans: read once, in the form of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcf.build import create
from dcf.components import Kind
from dcf.data.real import RealData
from dcf.errors import DataError
from dcf.evaluation.baselines import equal_bytes
from dcf.evaluation.protocol import Protocol
from dcf.evaluation.runner import affordable_baselines
from dcf.runconfig import parse_budget
from dcf.runtime import select_device

__all__ = ["DataFacts", "read_facts"]


@dataclass(frozen=True)
class DataFacts:
    """A dataset.

    Attributes:
        text: Spec as the user gave it.
        id: Its id, places left out.
        checksum: Sha256 over its images and labels.
        shape: `(C, H, W)` of its images.
        classes: Number of classes.
        train: Number of training images.
        hints: Settings that it suggests.
        affordable: Protocols, by id, and numbers of networks that its whole training set is affordable with.
    """

    text: str
    id: str
    checksum: str
    shape: tuple[int, int, int]
    classes: int
    train: int
    hints: Mapping[str, Any]
    affordable: frozenset[tuple[str, int]]

    def plain_images(self, budget: str) -> int:
        """How many plain float32 images a class a budget holds; `budget` as `UNIT=N`."""
        unit, _, number = budget.partition("=")
        if unit == "ipc":
            return int(number)
        unit, size = parse_budget(budget)
        return equal_bytes(size * 4 if unit == "floats" else size, self.shape, self.classes)

    @property
    def image_bytes(self) -> int:
        """Bytes of one float32 image."""
        return 4 * math.prod(self.shape)


def read_facts(text: str, device: str, wanted: Mapping[str, Protocol], nets: int) -> DataFacts:
    """Load a dataset and say what a bench must know of it.

    Args:
        text: Spec.
        device: Where networks will be trained.
        wanted: Protocols to judge the cost of, by id.
        nets: Networks a row.

    Raises:
        DataError: When it cannot be loaded or has no test images.
    """
    made = create(Kind.DATASET, text, "--data")
    data: RealData = made if isinstance(made, RealData) else made.load()
    if not len(data.test):
        raise DataError(f"the data '{data.id}' have no test images to evaluate on")
    moved = data.to(select_device(device))
    cheap = {(key, nets) for key, rules in wanted.items() if "whole" in affordable_baselines(moved, rules, nets)}
    spec = data.spec
    return DataFacts(
        text, data.id, data.checksum, spec.shape, spec.num_classes, len(data.train), data.hints, frozenset(cheap)
    )
