"""Tiny ImageNet: 200 classes at 64x64, from the files of the archive as they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from dcf.data.base import DatasetProvider, LabelledPixels, real_data, value_space
from dcf.data.decode import DecodeOptions, sizes_text
from dcf.data.fetch import Archive, fetch
from dcf.data.options import TinyImageNetConfig
from dcf.data.photos import IMAGENET, class_tree, some, whole_images
from dcf.data.real import RealData
from dcf.data.tree import Tree, images_in
from dcf.data.wordnet import distinct
from dcf.errors import DataError

__all__ = ["TinyImageNet", "flat_tree", "read_annotations", "read_ids", "read_names"]

IDS: Final = "wnids.txt"
WORDS: Final = "words.txt"
ANNOTATIONS: Final = "val_annotations.txt"

_SIZE: Final = (64, 64)
_ID: Final = re.compile(r"n\d{8}")
#: `words.txt` lists all of WordNet, in 2.6 MB.
_MOST: Final = 1 << 24


class TinyImageNet(DatasetProvider):
    """Tiny ImageNet (Le and Yang, 2015), 3x64x64: 200 classes with 500 images each, 50 to test on.

    Classes are in the order of their WordNet ids. The test images are those of validation, which lie in one folder for
    all classes with their classes in a list; sorted into class folders they are read, too. The images of `test` have no
    published labels and are not looked at.
    """

    Config = TinyImageNetConfig

    name: ClassVar[str] = "tiny-imagenet"
    places: ClassVar[frozenset[str]] = frozenset({"root", "cache", "memory", "download"})
    archive: ClassVar[Archive] = Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
    )
    source: ClassVar[str] = (
        "Tiny ImageNet (Le and Yang, 2015), images of ImageNet, non-commercial research (image-net.org)"
    )

    def load(self) -> RealData:
        """Decode the images, or take them from the cache; after a download if they are missing and that is allowed.

        Raises:
            DataError: When files are missing or damaged, or lists do not fit to the images.
        """
        folder = self._folder()
        ids = read_ids(folder / IDS)
        train = self._read(train_tree(folder / "train", ids))
        test = self._read(val_tree(folder / "val", ids))
        space = value_space(train.pixels, self.config.norm, self.config.mean, self.config.std, IMAGENET)
        names = read_names(folder / WORDS, ids)
        return real_data(train, test, distinct(names, ids), space, self.id, self.source)

    def _folder(self) -> Path:
        root = Path(self.config.root).expanduser()
        inside = root / self.archive.folder
        found = next((place for place in (inside, root) if (place / IDS).is_file()), None)
        if found is not None:
            return found
        if inside.exists():
            raise DataError(f"{self.name}: '{inside}' has no {IDS}; remove the folder to have it downloaded again")
        if not self.config.download:
            raise DataError(f"{self.name} is not in '{root}'; pass root=... of a folder that has it, or download=true")
        fetch(self.name, self.archive, root)
        return inside

    def _read(self, tree: Tree) -> LabelledPixels:
        images, found = whole_images(
            tree, DecodeOptions(_SIZE, "crop", 3), self.config.cache, self.name, self.config.memory
        )
        if set(found.sizes) != {_SIZE}:
            raise DataError(f"{self.name}: expected images of 64x64 in '{tree.root}', got {sizes_text(found.sizes)}")
        return images


def train_tree(root: Path, ids: Sequence[str]) -> Tree:
    """The images of `train`, each class in `ID/images/`.

    Raises:
        DataError: When a class is missing, empty or unknown.
    """
    _refuse_unknown(root, ids)
    return class_tree(root, ids, TinyImageNet.name)


def val_tree(root: Path, ids: Sequence[str]) -> Tree:
    """The images of `val`: in one folder with a list beside it, or in class folders, in `val` or in `val/images`.

    Raises:
        DataError: When neither is there, or the list does not fit to the images.
    """
    flat = root / "images"
    if images_in(flat):
        return flat_tree(flat, read_annotations(root / ANNOTATIONS, ids), ids)
    place = next((p for p in (flat, root) if any(map(_ID.fullmatch, _folders(p)))), None)
    if place is None:
        raise DataError(
            f"{TinyImageNet.name}: '{root}' has no test images; expected '{flat}' and {ANNOTATIONS}, or class folders"
        )
    _refuse_unknown(place, ids)
    return class_tree(place, ids, TinyImageNet.name)


def flat_tree(root: Path, classes: Mapping[str, str], ids: Sequence[str]) -> Tree:
    """The images of a folder without class folders.

    Args:
        root: The folder.
        classes: WordNet id of each file that should be there.
        ids: All ids, in the order of the labels.

    Raises:
        DataError: When a file is missing, has no class, or a class has no file.
    """
    there = set(images_in(root))
    missing, unlisted = sorted(classes.keys() - there), sorted(there - classes.keys())
    if missing:
        raise DataError(f"'{root}' does not have {some(missing)}, which {ANNOTATIONS} lists; get a whole copy")
    if unlisted:
        raise DataError(f"{ANNOTATIONS} does not say the class of {some(unlisted)} in '{root}'; get a whole copy")
    number = {one: label for label, one in enumerate(ids)}
    files = sorted(classes, key=lambda file: (number[classes[file]], file))
    count = Counter(classes.values())
    empty = [one for one in ids if not count[one]]
    if empty:
        raise DataError(f"{ANNOTATIONS} beside '{root}' has no image of class {some(empty)}; get a whole copy")
    return Tree(root, tuple(ids), tuple(files), tuple(number[classes[file]] for file in files), (), 0)


def read_annotations(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """WordNet id of each file, from lines such as `val_0.JPEG n03444034 0 32 44 62` with tabs between.

    Raises:
        DataError: When a line is of another form, names an unknown class, or a file for the second time.
    """
    known, found = set(ids), dict[str, str]()
    for place, line in _lines(path):
        file, _, rest = line.partition("\t")
        one = rest.split("\t")[0].strip()
        if not file or "/" in file or not _ID.fullmatch(one):
            raise DataError(f"'{path}', line {place}: expected 'val_0.JPEG', a tab and 'n03444034', got {line[:60]!r}")
        if one not in known:
            raise DataError(f"'{path}', line {place}: {one} is no class of {IDS}")
        if file in found:
            raise DataError(f"'{path}', line {place}: '{file}' stands there twice")
        found[file] = one
    return found


def read_ids(path: Path) -> list[str]:
    """The WordNet ids of the classes, ascending: their order in the file means nothing.

    Raises:
        DataError: When a line is no such id, or stands there twice.
    """
    found = set[str]()
    for place, line in _lines(path):
        one = line.strip()
        if not _ID.fullmatch(one) or one in found:
            raise DataError(f"'{path}', line {place}: expected another id such as n03444034, got {line[:60]!r}")
        found.add(one)
    if not found:
        raise DataError(f"'{path}' is empty")
    return sorted(found)


def read_names(path: Path, ids: Sequence[str]) -> list[str]:
    """The first name of each class, from lines such as `n00001740 entity` with a tab between, for all of WordNet.

    Raises:
        DataError: When a class has no name.
    """
    names = {one: text.split(",")[0].strip() for one, _, text in (line.partition("\t") for _, line in _lines(path))}
    missing = [one for one in ids if not names.get(one)]
    if missing:
        raise DataError(f"'{path}' has no name of {some(missing)}; get a whole copy")
    return [names[one] for one in ids]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and lines, without empty ones."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read(_MOST).splitlines()
    except FileNotFoundError:
        raise DataError(f"{TinyImageNet.name}: '{path}' is missing; get a whole copy") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({type(error).__name__})") from None
    return ((place, line) for place, line in enumerate(lines, 1) if line.strip())


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _refuse_unknown(root: Path, ids: Sequence[str]) -> None:
    strange = [name for name in _folders(root) if _ID.fullmatch(name) and name not in ids]
    if strange:
        raise DataError(
            f"{TinyImageNet.name}: '{root}' has the class folder {some(strange)}, which {IDS} does not have"
        )
