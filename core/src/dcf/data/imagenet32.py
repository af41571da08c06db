"""ImageNet at 32x32, all of it or a group of similar classes, from the files of image-net.org."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dcf.data.base import DatasetProvider, LabelledPixels, real_data, value_space
from dcf.data.options import ImageNet32Config
from dcf.data.real import RealData
from dcf.data.unpickle import PickledArray, read_pickle
from dcf.data.wordnet import GROUPS, distinct
from dcf.errors import DataError

__all__ = ["ImageNet32", "MapEntry", "read_batch", "read_map"]

TRAIN = tuple(f"train_data_batch_{number}" for number in range(1, 11))
TEST = ("val_data",)
MAP = "map_clsloc.txt"

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_LINE = re.compile(r"(?P<id>n\d{8})\s+(?P<number>[1-9]\d{0,5})\s+(?P<name>\S+)\s*\Z")


class MapEntry(NamedTuple):
    """A line of `map_clsloc.txt`: the label that stands for a class in the files, and the class's name."""

    number: int
    name: str


class ImageNet32(DatasetProvider):
    """Downsampled ImageNet (Chrabaszcz, Loshchilov and Hutter, 2017), 3x32x32.

    Classes are those of the group, in the order of their numbers in `map_clsloc.txt`, matched by WordNet id: two
    names stand there twice. The test images are those of validation, 50 a class.
    """

    Config = ImageNet32Config

    name: ClassVar[str] = "imagenet32"
    places: ClassVar[frozenset[str]] = frozenset({"root"})
    source: ClassVar[str] = (
        "Downsampled ImageNet (Chrabaszcz, Loshchilov and Hutter, 2017), non-commercial research (image-net.org)"
    )

    def load(self) -> RealData:
        """Read the files, keeping the images of the classes that are wanted.

        Raises:
            DataError: When files are missing or damaged, or do not have the classes.
        """
        files = find_files(Path(self.config.root).expanduser())
        entries = read_map(files[MAP])
        wanted = self._wanted(entries, files[MAP])
        numbers = [entries[one].number for one in wanted]
        known = {entry.number for entry in entries.values()}
        train = _read([files[name] for name in TRAIN], numbers, known)
        test = _read([files[name] for name in TEST], numbers, known)
        space = value_space(train.pixels, self.config.norm, self.config.mean, self.config.std)
        return real_data(train, test, class_names(wanted, entries), space, self.id, self.source)

    def _wanted(self, entries: Mapping[str, MapEntry], path: Path) -> list[str]:
        """WordNet ids of the classes, in the order of the map."""
        ids = self.config.classes or GROUPS.get(self.config.group) or entries
        missing = [one for one in ids if one not in entries]
        if missing:
            raise DataError(f"'{path}' has no class {', '.join(missing[:5])}; it should have ImageNet's 1000 classes")
        return sorted(ids, key=lambda one: entries[one].number)


def find_files(root: Path) -> dict[str, Path]:
    """All files of the dataset, in `root` or in a folder of it.

    Raises:
        DataError: Naming those that are not there.
    """
    inside = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    # Beside those of 32x32 there may lie others, whose files have the same names.
    folders = [root, *sorted(inside, key=lambda p: ("32" not in p.name, p.name))]
    found = {}
    for name in (*TRAIN, *TEST, MAP):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None:
            found[name] = path
    missing = [name for name in (*TRAIN, *TEST, MAP) if name not in found]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DataError(
            f"imagenet32 is not in '{root}', or not all of it: missing {shown}; "
            "get 'Downsampled image data, 32x32' (train and val) and map_clsloc.txt of the devkit from image-net.org,"
            " which needs an account; then pass root=... of the folder that has them"
        )
    return found


def read_map(path: Path) -> dict[str, MapEntry]:
    """The classes by WordNet id, from lines such as `n02119789 1 kit_fox`.

    Raises:
        DataError: When a line is of another form, or an id or a number stands there twice.
    """
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read(1 << 20).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({type(error).__name__})") from None
    entries: dict[str, MapEntry] = {}
    numbers = set()
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.match(line)
        if match is None:
            raise DataError(f"'{path}', line {place}: expected 'n02119789 1 kit_fox' or the like, got {line[:60]!r}")
        number = int(match["number"])
        if match["id"] in entries or number in numbers:
            raise DataError(f"'{path}', line {place}: {match['id']} or the number {number} stands there twice")
        entries[match["id"]] = MapEntry(number, match["name"])
        numbers.add(number)
    if not entries:
        raise DataError(f"'{path}' is empty")
    return entries


def class_names(ids: Sequence[str], entries: Mapping[str, MapEntry]) -> list[str]:
    """A name for each id: WordNet's first for the groups, else the map's; those that stand twice get their id."""
    first = {one: name for group in GROUPS.values() for one, name in group.items()}
    names = [first.get(one, entries[one].name.replace("_", " ")) for one in ids]
    return distinct(names, ids)


def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one file.

    Returns:
        `(n, 3072)` uint8, all red pixels of an image first, then green, then blue, in rows; and `(n,)` labels as
        they stand in the file, in the numbers of `map_clsloc.txt`. The images may be a view of the file.

    Raises:
        DataError: Naming the file, when it does not hold that.
    """
    try:
        found = read_pickle(path)
        pixels, labels = _pixels(found.get("data")), _labels(found.get("labels"))
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or type(error).__name__})") from None
    except ValueError as error:
        raise DataError(f"'{path}' is damaged, or no file of this dataset: {error}") from None
    if len(labels) != len(pixels):
        raise DataError(f"'{path}' is damaged: {len(pixels)} images, but {len(labels)} labels")
    return pixels, labels


def _pixels(value: Any) -> NDArray[np.uint8]:
    if not isinstance(value, PickledArray):
        raise ValueError("there is no array 'data'")
    array = value.numpy()
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != _PIXELS:
        raise ValueError(f"expected 'data' of shape (n, {_PIXELS}) uint8, got {array.shape} {array.dtype}")
    return array


def _labels(value: Any) -> NDArray[np.int64]:
    if isinstance(value, PickledArray):
        array = value.numpy()
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise ValueError(f"expected whole numbers in 'labels', got {array.shape} {array.dtype}")
        return array.astype(np.int64)
    if not isinstance(value, list) or any(type(one) is not int or not 0 <= one < 2**31 for one in value):
        raise ValueError("expected a list of whole numbers 'labels'")
    return np.array(value, dtype=np.int64)


def _read(paths: Sequence[Path], numbers: Sequence[int], known: set[int]) -> LabelledPixels:
    """The images of some classes, file by file, so that never more than one file's are looked at.

    Args:
        paths: The files.
        numbers: The label of each class in the files.
        known: All labels that there are.
    """
    pixels, labels = [], []
    is_known = np.array(sorted(known))
    order = np.full(max(known) + 1, -1)
    order[list(numbers)] = np.arange(len(numbers))
    for path in paths:
        images, found = read_batch(path)
        strange = found[~np.isin(found, is_known)]
        if len(strange):
            raise DataError(f"'{path}' has the label {strange[0]}, which {MAP} does not have; labels count from 1")
        classes = order[found]
        pixels.append(images[classes >= 0])
        labels.append(classes[classes >= 0])
    return LabelledPixels(_joined(pixels), torch.from_numpy(np.concatenate(labels)))


def _joined(pieces: list[NDArray[np.uint8]]) -> torch.Tensor:
    """`(N, 3, 32, 32)` of all pieces, each let go once it is copied: there may be as many as fit."""
    joined, at = torch.empty(sum(map(len, pieces)), *_SHAPE, dtype=torch.uint8), 0
    while pieces:
        piece = pieces.pop(0)
        joined[at : at + len(piece)] = torch.from_numpy(piece).view(-1, *_SHAPE)
        at += len(piece)
    return joined
