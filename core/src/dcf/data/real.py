"""`RealData`: a dataset's train and test images, kept small at rest and normalised on use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dcf.data.sampling import draw_within_classes, stratified_split
from dcf.data.store import PixelStore, as_store, digest
from dcf.data.whitened import WhitenedCopy
from dcf.errors import DataError
from dcf.sending import send
from dcf.space import ValueSpace
from dcf.types import Batch, DataSpec

__all__ = ["RealData", "Split"]


class Split:
    """One split of a dataset: images and labels on one device.

    Images rest as uint8, or as float32 where 8 bits do not do. What rests are pixels, not normalised values:
    `pixel = stored / levels`, nominally in [0, 1], and `images` gives `space.encode(pixel)`. Whitened values are kept
    beside them once they are made, unless they take more than 1 GiB.

    Args:
        pixels: `(N, C, H, W)` stored values, or a store of such.
        labels: `(N,)` class numbers below `classes`.
        space: Value space of what `images` returns.
        classes: Number of classes K; a class may have no image here.
        levels: Stored value of a white pixel; 0 stands for 255 of uint8 and 1 of float32.
    """

    def __init__(
        self, pixels: Tensor | PixelStore, labels: Tensor, space: ValueSpace, classes: int, levels: int = 0
    ) -> None:
        self.store: PixelStore = as_store(pixels)
        self.space = space
        self.levels = levels or (255 if self.store.dtype == torch.uint8 else 1)
        self.labels = labels.to(self.store.device, torch.int64)
        on_cpu = self.labels.cpu()
        _require_labels(on_cpu, self.store.shape[0], classes)
        #: `(K,)` images per class, int64, on the CPU: for planning, not for kernels.
        self.counts = torch.bincount(on_cpu, minlength=classes)
        self._by_class = on_cpu.argsort(stable=True)
        self._start = self.counts.cumsum(0) - self.counts
        # Kept on the device: making them anew would cost a host copy in every step.
        self._mean = torch.tensor(space.mean, device=self.device).view(-1, 1, 1)
        self._std = torch.tensor(space.std, device=self.device).view(-1, 1, 1)
        self._copy: WhitenedCopy | None = None
        if space.whitening is not None and WhitenedCopy.fits(self.store):
            self._copy = WhitenedCopy(self.store, self.levels, space.whitening)

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.store.device

    @property
    def resident(self) -> bool:
        """Whether images come from memory; else they are read from a file, and it pays to read ahead."""
        return self.store.resident or self._copy is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of an image."""
        return self.store.shape[1:]

    def __len__(self) -> int:
        return self.store.shape[0]

    def images(self, index: Tensor) -> Tensor:
        """Images by number.

        Args:
            index: Image numbers of any shape `(...)`, on any device.

        Returns:
            `(..., C, H, W)` float32 in the dataset's value space, on the split's device.
        """
        return self._take(index.flatten()).view(*index.shape, *self.shape)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` image numbers of every class, uniformly without replacement.

        A class with fewer than `n` images gives all of them, then starts again in another order. The draw is
        made on the CPU and for all classes at once, so it depends neither on the device nor on how classes
        are chunked.

        Args:
            n: Images of each class, at least 1.
            generator: A CPU generator.

        Returns:
            `(K, n)` int64 on the split's device; row c has numbers of class c.

        Raises:
            DataError: When a class has no image.
        """
        if n < 1:
            raise ValueError(f"expected at least 1 image a class, got {n}")
        if int(self.counts.min()) == 0:
            raise DataError(f"class number {int(self.counts.argmin())} has no image to sample from")
        positions = draw_within_classes(self.counts, n, generator)
        return send(self._by_class[self._start[:, None] + positions], self.device)

    def of_class(self, c: int) -> Tensor:
        """Image numbers `(counts[c],)` of class `c`, ascending, on the split's device."""
        start = int(self._start[c])
        return self._by_class[start : start + int(self.counts[c])].to(self.device)

    def batches(self, batch: int) -> Iterator[Batch]:
        """All images in order, at most `batch` at a time."""
        for start in range(0, len(self), batch):
            part = slice(start, start + batch)
            yield Batch(self._take(part), self.labels[part])

    def select(self, index: Tensor) -> Split:
        """A split of its own with the images of these numbers `(n,)`."""
        labels = self.labels.index_select(0, index.to(self.device))
        return Split(self.store.select(index), labels, self.space, len(self.counts), self.levels)

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(self.store.to(device), self.labels, self.space, len(self.counts), self.levels)

    def digest(self) -> str:
        """Sha256 over shape, labels and stored values."""
        return digest(self.store, self.labels, self.levels)

    def _take(self, index: Tensor | slice) -> Tensor:
        """Images `(n, C, H, W)` in float32 of the value space; a copy."""
        if self._copy is not None:
            return self._copy.take(index)
        return self.encode(self.store.take(index))

    def encode(self, stored: Tensor) -> Tensor:
        """Stored values `(n, C, H, W)`, as the split's store gives them, in float32 of the value space; a copy."""
        pixels = stored.to(torch.float32, copy=True).div_(self.levels)
        if self.space.whitening is not None:
            return self.space.encode(pixels)
        # In the order of `ToTensor` and `Normalize`.
        return pixels.sub_(self._mean).div_(self._std)


@dataclass(frozen=True, eq=False)
class RealData:
    """A dataset: real images to condense, and those to test on.

    Args:
        spec: Shape, class names and value space of the images.
        train: What may be learned from.
        test: What an evaluator looks at once; empty when there is none.
        id: The dataset spec it came from, such as `mnist`.
        source: One line on origin and licence of the images.
        hints: Settings that suit this dataset where the user gives none, by option name.
    """

    spec: DataSpec
    train: Split
    test: Split
    id: str
    source: str = "unknown"
    hints: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in (self.train, self.test):
            if split.shape != self.spec.shape or len(split.counts) != self.spec.num_classes:
                got = f"{split.shape} images of {len(split.counts)} classes"
                raise DataError(f"expected {self.spec.shape} images of {self.spec.num_classes} classes, got {got}")

    @cached_property
    def checksum(self) -> str:
        """Sha256 over shapes, labels and pixels of train and test, on any device and however normalised."""
        return hashlib.sha256(f"{self.train.digest()} {self.test.digest()}".encode()).hexdigest()

    def to(self, device: torch.device | str) -> RealData:
        """The same data on another device."""
        if torch.device(device) == self.train.device:
            return self
        moved = replace(self, train=self.train.to(device), test=self.test.to(device))
        if "checksum" in self.__dict__:
            moved.__dict__["checksum"] = self.checksum
        return moved

    def holdout(self, fraction: float, generator: torch.Generator) -> RealData:
        """Train and validation parts of `train`, stratified by class; the real test images are not in it.

        Args:
            fraction: Share of each class that becomes the new `test`, between 0 and 1.
            generator: A CPU generator.

        Raises:
            DataError: When no class has two images.
        """
        kept, held = stratified_split(self.train.labels.cpu(), fraction, generator)
        return replace(self, train=self.train.select(kept), test=self.train.select(held))


def _require_labels(labels: Tensor, images: int, classes: int) -> None:
    if labels.shape != (images,):
        raise DataError(f"expected one label for each of {images} images, got labels of shape {tuple(labels.shape)}")
    if images and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        found = f"{int(labels.min())} .. {int(labels.max())}"
        raise DataError(f"expected labels 0 .. {classes - 1}, got {found}")
