"""Pixels that stay in a file: of a dataset that is larger than memory, only what is taken is read."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcf.errors import DataError
from dcf.files import read_header

__all__ = ["DiskStore", "FileWriter", "checked", "open_file"]

#: Bytes before the tensors: room for a header whose length is known only when all images are written.
_HEAD: Final = 4096
#: Bytes that are read or written in one piece.
_PIECE: Final = 1 << 24


class DiskStore:
    """Images in a file, read when they are taken.

    They are read by position, not mapped. A file that is cut off under a run is then an error with a message, where a
    mapping would end the process; and what was read is the system's to keep or drop, no memory of the process.

    Args:
        path: A file with one image after the other, as `FileWriter` writes it.
        start: First byte of the first image.
        shape: `(N, C, H, W)`; values are uint8.
        rows: `(n,)` places in the file of the images of this store; all, in order, where None.
        device: Where `take` delivers.
    """

    dtype: Final = torch.uint8
    resident: Final = False

    def __init__(
        self,
        path: Path,
        start: int,
        shape: tuple[int, int, int, int],
        rows: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.path, self._start, self._file = path, start, shape
        self._rows = rows
        self.device = torch.device(device)
        # Open for as long as the store is there: the file may be removed meanwhile.
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, C, H, W)`."""
        return (self._file[0] if self._rows is None else len(self._rows), *self._file[1:])

    def take(self, index: Tensor | slice) -> Tensor:
        """The stored values `(n, C, H, W)` of image numbers `(n,)` or of a slice.

        Raises:
            DataError: When the file cannot be read, or is shorter than it was.
        """
        rows = self._places(index)
        pinned = self.device.type == "cuda"
        taken = torch.empty(len(rows), *self._file[1:], dtype=torch.uint8, pin_memory=pinned)
        self._read(rows.numpy(), taken.flatten(1).numpy() if len(rows) else np.empty((0, 0), np.uint8))
        return taken.to(self.device, non_blocking=True)

    def select(self, index: Tensor) -> DiskStore:
        """A store of the images of these numbers `(n,)`; nothing is copied."""
        return DiskStore(self.path, self._start, self._file, self._places(index), self.device)

    def to(self, device: torch.device | str) -> DiskStore:
        """The same images, delivered elsewhere."""
        return DiskStore(self.path, self._start, self._file, self._rows, device)

    def _places(self, index: Tensor | slice) -> Tensor:
        """`(n,)` int64 places in the file, on the CPU."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(self.shape[0]))
        index = index.cpu()
        return index if self._rows is None else self._rows[index]

    def _read(self, rows: NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        """Read images into rows of `(n, C*H*W)`, in the order of the file, neighbours at once."""
        if not len(rows):
            return
        order = rows.argsort(kind="stable")
        # A new run begins where neighbours in the file are none in the result, or the other way round.
        breaks = (np.diff(rows[order]) != 1) | (np.diff(order) != 1)
        for run in np.split(order, breaks.nonzero()[0] + 1):
            part = into[run[0] : run[0] + len(run)]
            _read_exactly(self._handle, part, self._start + int(rows[run[0]]) * into.shape[1], self.path)


def _read_exactly(handle: int, into: NDArray[np.uint8], offset: int, path: Path) -> None:
    view = into.reshape(-1).data
    while view:
        try:
            count = os.preadv(handle, [view[:_PIECE]], offset)
        except OSError as error:
            raise DataError(f"cannot read '{path}': {error.strerror}") from None
        if count == 0:
            raise DataError(
                f"'{path}' was cut off while it was in use; remove it and start again: images are then decoded anew"
            )
        view, offset = view[count:], offset + count


class FileWriter:
    """Writes images block after block into a safetensors file: `pixels`, then `facts` (JSON), then `kept`.

    Args:
        path: A new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape: tuple[int, ...] = ()
        self._sha = hashlib.sha256()
        self._file = path.open("wb")
        self._file.write(b" " * _HEAD)

    def add(self, pixels: Tensor) -> None:
        """Append images `(n, C, H, W)` of uint8."""
        self.shape = (sum(self.shape[:1]) + len(pixels), *pixels.shape[1:])
        self._put(pixels.contiguous().numpy())

    def finish(self, kept: Tensor, facts: dict[str, Any]) -> None:
        """Write what belongs to the images, then the header, and close.

        Args:
            kept: `(N,)` int64, which of the files of a tree the images are.
            facts: JSON-ready.
        """
        text = json.dumps(facts).encode()
        size = int(np.prod(self.shape))
        text += b" " * (-(size + len(text)) % 8)  # what follows is read in words of eight bytes
        ends = size, size + len(text), size + len(text) + kept.nbytes
        self._file.write(text)
        self._put(kept.numpy())
        entries = {
            "__metadata__": {"sha256": self._sha.hexdigest()},
            "pixels": {"dtype": "U8", "shape": self.shape, "data_offsets": [0, ends[0]]},
            "facts": {"dtype": "U8", "shape": [len(text)], "data_offsets": [ends[0], ends[1]]},
            "kept": {"dtype": "I64", "shape": [len(kept)], "data_offsets": [ends[1], ends[2]]},
        }
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEAD - 8) + json.dumps(entries).encode().ljust(_HEAD - 8))
        self.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def _put(self, values: NDArray[Any]) -> None:
        self._sha.update(values.data)
        self._file.write(values.data)


def open_file(path: Path) -> tuple[DiskStore, Tensor, dict[str, Any]]:
    """The images of a file that `FileWriter` wrote, left there; `kept` and `facts` beside them.

    Raises:
        FormatError: When it is cut off or no such file.
        KeyError: When a part is missing.
        ValueError: When its contents are damaged.
    """
    header = read_header(path)
    parts = {name: (header.start + e["data_offsets"][0], e["shape"]) for name, e in header.tensors.items()}
    start, (n, channels, height, width) = parts["pixels"]
    store = DiskStore(path, start, (n, channels, height, width))
    with path.open("rb") as file:
        file.seek(parts["facts"][0])
        facts = json.loads(file.read(parts["facts"][1][0]))
        file.seek(parts["kept"][0])
        kept = torch.from_numpy(np.frombuffer(file.read(8 * parts["kept"][1][0]), np.int64).copy())
        checked(header.metadata["sha256"], _from(file.read, file.seek, start, n * channels * height * width), kept)
    return store, kept, facts


def checked(expected: str, pixels: Iterator[Any], kept: Tensor) -> None:
    """Compare the digest of a file.

    Raises:
        ValueError: When it is another one.
    """
    sha = hashlib.sha256()
    for piece in pixels:
        sha.update(piece)
    sha.update(kept.numpy().data)
    if sha.hexdigest() != expected:
        raise ValueError("the contents changed")


def _from(read: Callable[[int], bytes], seek: Callable[[int], int], start: int, size: int) -> Iterator[bytes]:
    seek(start)
    while size > 0 and (piece := read(min(size, _PIECE))):
        size -= len(piece)
        yield piece
