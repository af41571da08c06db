"""Whitened images that are kept: each is a product with a large matrix, too dear to make again in every step."""

from __future__ import annotations

import threading
from typing import Final

import torch
from torch import Tensor

from dcf.data.store import PixelStore
from dcf.whitening import Whitening

__all__ = ["MOST_BYTES", "WhitenedCopy"]

#: Bytes of a copy at most; larger splits are whitened batch by batch.
MOST_BYTES: Final = 1 << 30
#: Images that are whitened together.
_PIECE: Final = 128
#: Held while pieces are made: networks that are trained side by side may take images of one split at once.
_MAKING: Final = threading.Lock()


class WhitenedCopy:
    """The whitened images of a store in float32, each piece made when one of its images is first taken.

    A piece is always the same images, so that an image has the same bits whatever is taken with it, and when.

    Args:
        store: Pixels at rest.
        levels: Stored value of a white pixel.
        whitening: What is applied to them.
    """

    def __init__(self, store: PixelStore, levels: int, whitening: Whitening) -> None:
        self._store, self._levels, self._whitening = store, levels, whitening
        self._missing = torch.ones(-(-store.shape[0] // _PIECE), dtype=torch.bool)
        self._complete = not len(self._missing)
        self._values = torch.empty(0, *store.shape[1:], device=store.device)

    @staticmethod
    def fits(store: PixelStore) -> bool:
        """Whether the copy would be small enough."""
        n, channels, height, width = store.shape
        return 4 * n * channels * height * width <= MOST_BYTES

    def take(self, index: Tensor | slice) -> Tensor:
        """Whitened images `(n, C, H, W)` of image numbers `(n,)` or of a slice; a copy."""
        if not self._complete:
            with _MAKING:
                self._fill(index)
        if isinstance(index, slice):
            return self._values[index].clone()
        return self._values.index_select(0, index.to(self._store.device))

    def _fill(self, index: Tensor | slice) -> None:
        if not len(self._values):
            self._values = torch.empty(self._store.shape, device=self._store.device)
        wanted = torch.zeros_like(self._missing)
        if self._store.device.type == "cpu":
            numbers = torch.arange(self._store.shape[0])[index] if isinstance(index, slice) else index.cpu()
            wanted[numbers // _PIECE] = True
        else:  # All at once: quick there, and looking for what is missing would hold up every step.
            wanted[:] = True
        for number in (wanted & self._missing).nonzero().flatten().tolist():
            self._make(slice(number * _PIECE, (number + 1) * _PIECE))
        self._missing &= ~wanted
        self._complete = not bool(self._missing.any())

    @torch.no_grad()
    def _make(self, part: slice) -> None:
        pixels = self._store.take(part).to(torch.float32, copy=True)
        self._values[part] = self._whitening.encode(pixels.div_(self._levels))
