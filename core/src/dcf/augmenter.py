"""The Augmenter interface: differentiable augmentation whose draws are values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dcf.config import Config as BaseConfig
from dcf.types import Batch

__all__ = ["Augmenter", "ChainAugmenter", "NoAugmentation"]


class Augmenter:
    """Base of differentiable augmentations.

    Two phases, so that one draw can be shared by two batches, stored and replayed: `draw` is the only one that
    uses randomness, and `apply` is a pure function, differentiable in the pixels. Networks that are trained side by
    side call both at once, from several threads.
    """

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    #: Value space that `apply` expects: "normalized", "unit" or "any".
    space: ClassVar[str] = "any"

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @property
    def is_identity(self) -> bool:
        """Whether `apply` returns its input unchanged, so that callers may skip it."""
        return False

    @property
    def mixes_labels(self) -> bool:
        """Whether `apply` mixes images of different labels, and so needs labels of `(N, K)` probabilities."""
        return False

    @property
    def shareable(self) -> bool:
        """Whether one draw fits batches of any size; what cannot be shared is for the training of networks only."""
        return True

    @property
    def siamese(self) -> bool:
        """Whether matching applies one draw to real and synthetic images; otherwise every image has its own."""
        return True

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Any:
        """Draw the parameters for one call.

        Args:
            n: Number of images the draw will be applied to; irrelevant when `shared`.
            shape: `(C, H, W)` of one image.
            generator: A CPU generator, the only source of randomness.
            shared: One value for the whole batch, applicable to batches of any size (siamese use), instead of
                one per image.

        Returns:
            A value that `apply` understands: nested tuples, lists, dictionaries, strings, numbers and CPU tensors.
        """
        raise NotImplementedError

    def apply(self, batch: Batch, values: Any) -> Batch:
        """Apply a draw.

        Args:
            batch: `x` of `(N, C, H, W)`; where it `mixes_labels`, with `y` of `(N, K)`.
            values: What `draw` returned.

        Returns:
            A batch of the same shapes, dtype and device; the input is not modified.
        """
        raise NotImplementedError

    def apply_classes(self, images: Tensor, draws: Sequence[Any]) -> Tensor:
        """Apply one shared draw to each class of a chunk.

        Args:
            images: `(c, B, C, H, W)`, c classes with B images each.
            draws: c draws, shared or with one value for each of B images.

        Returns:
            `(c, B, C, H, W)`.
        """
        labels = torch.zeros(images.shape[1], dtype=torch.long, device=images.device)
        return torch.stack([self.apply(Batch(x, labels), d).x for x, d in zip(images, draws, strict=True)])


class NoAugmentation(Augmenter):
    """Leave the images as they are."""

    @property
    def is_identity(self) -> bool:
        """Always."""
        return True

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Any:
        """Draw nothing."""
        return ()

    def apply(self, batch: Batch, values: Any) -> Batch:
        """Return the batch."""
        return batch

    def apply_classes(self, images: Tensor, draws: Sequence[Any]) -> Tensor:
        """Return the images."""
        return images


class ChainAugmenter(Augmenter):
    """Several augmenters, applied left to right: what `a+b` means."""

    def __init__(self, parts: Sequence[Augmenter]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    @property
    def is_identity(self) -> bool:
        """When every part is."""
        return all(part.is_identity for part in self.parts)

    @property
    def mixes_labels(self) -> bool:
        """When any part does."""
        return any(part.mixes_labels for part in self.parts)

    @property
    def shareable(self) -> bool:
        """When every part is."""
        return all(part.shareable for part in self.parts)

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Any:
        """One draw of each part, in order."""
        return [part.draw(n, shape, generator, shared) for part in self.parts]

    def apply(self, batch: Batch, values: Any) -> Batch:
        """Apply the parts in order."""
        for part, value in zip(self.parts, values, strict=True):
            batch = part.apply(batch, value)
        return batch
