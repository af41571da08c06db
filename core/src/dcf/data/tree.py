"""Folders of images, one sub-folder a class: what is in them, without opening an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcf.errors import DataError

__all__ = ["Tree", "find_trees", "images_in", "list_classes", "list_tree"]

#: File names that count as images, in lower case.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"}
)
#: Names a folder of test images also goes by.
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Tree:
    """The image files below a folder of class folders.

    Attributes:
        root: The folder.
        classes: Names of the class folders, sorted.
        files: Paths below `root`, sorted within each class, classes in order.
        labels: Class number of each file.
        empty: Class folders without an image file.
        loose: Image files in `root` itself, which belong to no class.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    empty: tuple[str, ...]
    loose: int


def find_trees(path: Path, train: str, test: str) -> tuple[Tree, Tree | None]:
    """The trees to learn from and to test on.

    Args:
        path: A folder with `train` (and perhaps `test`) folders, or with class folders.
        train: Name of the sub-folder to learn from.
        test: Name of the sub-folder to test on; where it is missing, `val` and the like are tried.

    Returns:
        Train and test tree; None for the latter when there is only one tree, to be split.

    Raises:
        DataError: When the folder, or any class folder in it, is missing.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"folder '{path}' {what}; pass path=... of a folder with one sub-folder for each class")
    test_root = next((path / name for name in (test, *TEST_NAMES) if (path / name).is_dir()), None)
    if (path / train).is_dir():
        return list_tree(path / train), list_tree(test_root) if test_root else None
    if test_root:
        raise DataError(f"folder '{path}' has '{test_root.name}' but no '{train}'; name the latter with train=...")
    return list_tree(path), None


def list_tree(root: Path) -> Tree:
    """List the images of a folder of class folders; hidden files and folders are passed over.

    Raises:
        DataError: When there is no class folder.
    """
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not _is_hidden(p.name))
    loose = len(images_in(root))
    if not folders:
        raise DataError(f"folder '{root}' has {loose} images and no class folders; give each class its own sub-folder")
    return list_classes(root, folders, loose)


def list_classes(root: Path, folders: Sequence[str], loose: int = 0) -> Tree:
    """List the images of some class folders, which exist, in the order given; no other folder is looked into.

    Args:
        root: The folder that has them.
        folders: Their names.
        loose: Image files in `root` itself.
    """
    found = [_images_below(root, folder) for folder in folders]
    files = [name for names in found for name in names]
    labels = [label for label, names in enumerate(found) for _ in names]
    empty = tuple(folder for folder, names in zip(folders, found, strict=True) if not names)
    return Tree(root, tuple(folders), tuple(files), tuple(labels), empty, loose)


def images_in(root: Path) -> list[str]:
    """Names of the image files in a folder itself, sorted; none where there is no such folder."""
    return sorted(p.name for p in root.iterdir() if p.is_file() and _is_image(p.name)) if root.is_dir() else []


def _images_below(root: Path, folder: str) -> list[str]:
    names = []
    for place, inner, files in os.walk(root / folder):
        inner[:] = [d for d in inner if not _is_hidden(d)]
        below = Path(place).relative_to(root).as_posix()
        names += [f"{below}/{name}" for name in files if _is_image(name)]
    return sorted(names)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return not _is_hidden(name) and os.path.splitext(name)[1].lower() in EXTENSIONS
