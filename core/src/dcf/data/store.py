"""Where the pixels of a split lie: in one tensor, or in a file (`dcf.data.disk`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["PixelStore", "TensorStore", "as_store", "digest", "pieces"]

#: Bytes looked at in one piece when a whole store is read.
_PIECE = 1 << 24


class PixelStore(Protocol):
    """Images at rest, as stored values: nothing here knows of normalisation or classes."""

    @property
    def resident(self) -> bool:
        """Whether they are in memory, so that reading ahead gains nothing."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, C, H, W)`."""

    @property
    def device(self) -> torch.device:
        """Where `take` delivers."""

    @property
    def dtype(self) -> torch.dtype:
        """`torch.uint8` or `torch.float32`."""

    def take(self, index: Tensor | slice) -> Tensor:
        """The stored values `(n, C, H, W)` of image numbers `(n,)` or of a slice, on `device`."""

    def select(self, index: Tensor) -> PixelStore:
        """A store of its own with the images of these numbers `(n,)`."""

    def to(self, device: torch.device | str) -> PixelStore:
        """The same images on another device."""


class TensorStore:
    """All images in one resident tensor.

    Args:
        pixels: `(N, C, H, W)`, uint8 or float32.
    """

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dim() != 4 or pixels.dtype not in (torch.uint8, torch.float32):
            got = f"{tuple(pixels.shape)} {pixels.dtype}"
            raise ValueError(f"expected (N, C, H, W) pixels of uint8 or float32, got {got}")
        self.pixels = pixels.contiguous()

    @property
    def resident(self) -> bool:
        """Always."""
        return True

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, C, H, W)`."""
        n, channels, height, width = self.pixels.shape
        return n, channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the tensor lies."""
        return self.pixels.device

    @property
    def dtype(self) -> torch.dtype:
        """`torch.uint8` or `torch.float32`."""
        return self.pixels.dtype

    def take(self, index: Tensor | slice) -> Tensor:
        """The stored values `(n, C, H, W)` of image numbers `(n,)`, or a view of a slice."""
        if isinstance(index, slice):
            return self.pixels[index]
        return self.pixels.index_select(0, index.to(self.device))

    def select(self, index: Tensor) -> TensorStore:
        """A copy of the images of these numbers `(n,)`."""
        return TensorStore(self.take(index))

    def to(self, device: torch.device | str) -> TensorStore:
        """The same images on another device."""
        return TensorStore(self.pixels.to(device))


def as_store(pixels: Tensor | PixelStore) -> PixelStore:
    """A store of pixels `(N, C, H, W)`, or the store that was given."""
    return TensorStore(pixels) if isinstance(pixels, Tensor) else pixels


def pieces(store: PixelStore) -> Iterator[Tensor]:
    """The stored values in order, a bounded number of images at a time, on the CPU."""
    n, channels, height, width = store.shape
    size = channels * height * width * (1 if store.dtype == torch.uint8 else 4)
    step = max(1, _PIECE // max(1, size))
    for start in range(0, n, step):
        yield store.take(slice(start, start + step)).cpu()


def digest(store: PixelStore, labels: Tensor, levels: int) -> str:
    """Sha256 over shape, value type, scale, labels and stored values; the same on every device."""
    sha = hashlib.sha256(f"{store.shape} {store.dtype} {levels}".encode())
    sha.update(labels.cpu().to(torch.int64).numpy().data)
    for piece in pieces(store):
        sha.update(piece.contiguous().numpy().data)
    return sha.hexdigest()
