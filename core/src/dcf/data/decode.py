"""Image files to uint8 arrays: orientation, colour mode, size; many at a time."""

from __future__ import annotations

import logging
import os
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dcf.data.store import PixelStore, TensorStore
from dcf.data.tree import Tree
from dcf.errors import DataError

__all__ = [
    "GREY_MODES",
    "UNREADABLE",
    "DecodeOptions",
    "Decoded",
    "ImageFacts",
    "Seen",
    "decode_blocks",
    "decode_image",
    "decode_tree",
    "first_size",
    "sizes_text",
    "to_channels",
]

log = logging.getLogger(__name__)

Pixels: TypeAlias = "NDArray[np.uint8]"

#: What PIL raises for files that it cannot read.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, KeyError, IndexError, OverflowError,
    MemoryError, Image.DecompressionBombError,
)  # fmt: skip
#: Modes without colour; a palette counts as colour.
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"})
_ORIENTATION = 0x0112
_CHUNK = 16
#: Bytes of decoded images that are held at once on the way to a file.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class ImageFacts:
    """What an image file says of itself.

    Attributes:
        size: `(height, width)` as one sees it, after the EXIF rotation.
        mode: PIL's colour mode, such as `RGB`.
        rotated: Whether EXIF asks for a rotation or a flip.
    """

    size: tuple[int, int]
    mode: str
    rotated: bool

    @property
    def grey(self) -> bool:
        """Whether the image has no colour by its mode."""
        return self.mode in GREY_MODES


@dataclass(frozen=True)
class DecodeOptions:
    """How files become arrays of one shape.

    Args:
        size: `(height, width)`; None keeps the size of the files, which then have to share one.
        resize: `crop` fills the target and cuts the rest off evenly; `squash` changes the aspect ratio.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; None takes 1 if every file is grey, else 3.
    """

    size: tuple[int, int] | None
    resize: Literal["crop", "squash"]
    channels: int | None


@dataclass(frozen=True)
class Decoded:
    """The images of a tree.

    Attributes:
        pixels: `(n, C, H, W)` uint8, of the files that could be read, in memory or in a file.
        kept: `(n,)` int64, their places in the tree's list.
        sizes: Files by `(height, width)`.
        corrupt: File and reason, of those that could not be read.
    """

    pixels: PixelStore
    kept: Tensor
    sizes: dict[tuple[int, int], int]
    corrupt: tuple[tuple[str, str], ...]


def open_upright(path: Path, at_least: int | None = None) -> tuple[Image.Image, ImageFacts]:
    """Open and decode a file, first frame, turned as EXIF says.

    Args:
        path: The file.
        at_least: Shorter side that is enough, in pixels; lets JPEG decode large photos cheaply.
    """
    with Image.open(path) as image:
        facts_mode, (width, height) = image.mode, image.size
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        rotated = orientation in range(2, 9)
        upright = ImageOps.exif_transpose(image) if rotated else image.copy()
    size = (width, height) if orientation in range(5, 9) else (height, width)
    return upright, ImageFacts(size, facts_mode, rotated)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image with 1 to 4 channels; transparency is laid on white where no alpha is asked for.

    CMYK and palettes go through RGB; 16-bit grey is scaled to 8 bits.

    Raises:
        ValueError: For images of floats, whose range nobody knows.
    """
    image = _eight_bits(image)
    has_alpha = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    if channels in (2, 4):
        colour = (
            image
            if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info
            else image.convert("RGBA")
        )
        return colour.convert("LA" if channels == 2 else "RGBA")
    if has_alpha:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("images of floats are not supported; convert them to 8 bits")
    if not image.mode.startswith("I"):
        return image
    deep = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def fit(image: Image.Image, size: tuple[int, int], resize: Literal["crop", "squash"]) -> Image.Image:
    """The image at `(height, width)`, bilinear with antialiasing; untouched when it has that size."""
    width_height = size[1], size[0]
    if image.size == width_height:
        return image
    if resize == "squash":
        return image.resize(width_height, Image.Resampling.BILINEAR)
    return ImageOps.fit(image, width_height, Image.Resampling.BILINEAR)


def decode_image(path: Path, options: DecodeOptions) -> tuple[Pixels, ImageFacts]:
    """One file as `(C, H, W)` uint8, and what it said of itself.

    Raises:
        Exception: Any of `UNREADABLE`.
    """
    at_least = None if options.size is None else 2 * max(options.size)
    image, facts = open_upright(path, at_least)
    image = to_channels(image, options.channels or (1 if facts.grey else 3))
    array = np.asarray(fit(image, options.size or facts.size, options.resize))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1), facts


def decode_tree(tree: Tree, options: DecodeOptions) -> Decoded:
    """All images of a tree, in its order; files that cannot be read are listed and left out.

    Raises:
        DataError: When no file can be read, or no size was asked for and the files differ.
    """
    size = options.size or first_size(tree)
    canvas = np.zeros((len(tree.files), options.channels or 3, *size), np.uint8)
    seen = Seen()
    _decode(canvas, tree, 0, options, seen)
    seen.require_one_size(tree, options)
    if options.channels is None and seen.all_grey:
        canvas = canvas[:, :1]
    pixels = torch.from_numpy(canvas)
    pixels = pixels[seen.kept] if seen.corrupt else pixels.contiguous()
    return Decoded(TensorStore(pixels), torch.tensor(seen.kept, dtype=torch.int64), seen.sizes, tuple(seen.corrupt))


def decode_blocks(tree: Tree, options: DecodeOptions, seen: Seen) -> Iterator[Tensor]:
    """The same images, a bounded number at a time, grey ones of `channels=None` with three equal channels.

    Args:
        tree: The files.
        options: How they are decoded.
        seen: Gets what was found in them.

    Yields:
        `(n, C, H, W)` uint8, of the files that could be read.

    Raises:
        DataError: As `decode_tree`.
    """
    size = options.size or first_size(tree)
    channels = options.channels or 3
    step = max(_CHUNK, _BLOCK // (channels * size[0] * size[1]))
    for start in range(0, len(tree.files), step):
        before = len(seen.kept)
        canvas = np.zeros((min(step, len(tree.files) - start), channels, *size), np.uint8)
        _decode(canvas, tree, start, options, seen)
        rows = torch.tensor(seen.kept[before:], dtype=torch.int64) - start
        yield torch.from_numpy(canvas) if len(rows) == len(canvas) else torch.from_numpy(canvas)[rows]
    seen.require_one_size(tree, options)


@dataclass
class Seen:
    """What was found in the files so far.

    Attributes:
        kept: Places in the tree's list of those that could be read.
        sizes: Files by `(height, width)`.
        corrupt: File and reason, of those that could not.
        all_grey: Whether no file had colour.
    """

    kept: list[int] = field(default_factory=list)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    corrupt: list[tuple[str, str]] = field(default_factory=list)
    all_grey: bool = True

    def add(self, number: int, name: str, found: ImageFacts | str) -> None:
        """Note a file."""
        if isinstance(found, str):
            self.corrupt.append((name, found))
            return
        self.kept.append(number)
        self.sizes[found.size] = self.sizes.get(found.size, 0) + 1
        self.all_grey = self.all_grey and found.grey

    def require_one_size(self, tree: Tree, options: DecodeOptions) -> None:
        """Refuse files of several sizes where none was asked for.

        Raises:
            DataError: With the sizes.
        """
        if options.size is None and len(self.sizes) > 1:
            found = sizes_text(self.sizes)
            raise DataError(f"images in '{tree.root}' differ in size: {found}; pass size=..., such as size=64")


def _decode(canvas: Pixels, tree: Tree, start: int, options: DecodeOptions, seen: Seen) -> None:
    """Decode files from `start` on into the rows of `canvas` `(n, C, H, W)`, in threads."""
    chunks = range(0, len(canvas), _CHUNK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda at: list(_fill(canvas[at : at + _CHUNK], tree, start + at, options)), chunks)
        for number, facts in enumerate((facts for part in found for facts in part), start):
            seen.add(number, tree.files[number], facts)


def sizes_text(sizes: dict[tuple[int, int], int]) -> str:
    """The most frequent sizes as `HxW (count)`, for messages."""
    common = Counter(sizes).most_common(4)
    text = ", ".join(f"{h}x{w} ({n})" for (h, w), n in common)
    return text + (f" and {len(sizes) - len(common)} more" if len(sizes) > len(common) else "")


def _fill(rows: Pixels, tree: Tree, start: int, options: DecodeOptions) -> Iterator[ImageFacts | str]:
    """Decode files into `(n, C, H, W)`, the first of them number `start`; gives facts, or why one cannot be read."""
    for i in range(len(rows)):
        try:
            pixels, facts = decode_image(tree.root / tree.files[start + i], options)
        except UNREADABLE as error:
            yield unreadable_text(error)
            continue
        if pixels.shape[1:] == rows.shape[2:]:
            rows[i] = pixels
        yield facts


def first_size(tree: Tree) -> tuple[int, int]:
    """`(height, width)` of the first file that can be read.

    Raises:
        DataError: When there is none.
    """
    for name in tree.files:
        try:
            return open_upright(tree.root / name)[1].size
        except UNREADABLE:
            continue
    raise DataError(f"none of the {len(tree.files)} images in '{tree.root}' can be read")


def unreadable_text(error: BaseException) -> str:
    """Why a file could not be read, in one line without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
