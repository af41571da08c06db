"""Published datasets that are folders of photographs: every file has to be there and whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import torch

from dcf.data.base import LabelledPixels
from dcf.data.cache import decoded_tree
from dcf.data.decode import Decoded, DecodeOptions
from dcf.data.options import Memory
from dcf.data.tree import Tree, list_classes
from dcf.errors import DataError
from dcf.space import ValueSpace

__all__ = ["IMAGENET", "class_tree", "some", "whole_images"]

#: The constants that images of ImageNet are normalised with.
IMAGENET: Final = ValueSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NAMED: Final = 3


def class_tree(root: Path, ids: Sequence[str], name: str) -> Tree:
    """The images of some classes in a folder that has one folder for each class.

    Args:
        root: The folder.
        ids: Names of the class folders that are wanted; others are passed over.
        name: The dataset's name, for messages.

    Raises:
        DataError: When a class folder is missing or has no image.
    """
    missing = [one for one in ids if not (root / one).is_dir()]
    if missing:
        raise DataError(f"{name}: '{root}' has no class folder {some(missing)}; one is expected for each class")
    tree = list_classes(root, ids)
    if tree.empty:
        raise DataError(f"{name}: '{root / tree.empty[0]}' has no image, which makes {len(tree.empty)} empty classes")
    return tree


def whole_images(
    tree: Tree, options: DecodeOptions, cache: bool, name: str, memory: Memory = "auto"
) -> tuple[LabelledPixels, Decoded]:
    """The images of a tree with their labels, and how they were found.

    Args:
        tree: The files.
        options: How they are decoded.
        cache: Whether decoded images are kept for the next time.
        name: The dataset's name, for messages.
        memory: Where the images are afterwards, as in `decoded_tree`.

    Raises:
        DataError: When any of them cannot be read: results on part of a published dataset are not comparable.
    """
    decoded = decoded_tree(tree, options, cache, memory)
    if decoded.corrupt:
        file, why = decoded.corrupt[0]
        more = f", and {len(decoded.corrupt) - 1} others" if len(decoded.corrupt) > 1 else ""
        raise DataError(f"{name}: '{tree.root / file}' cannot be read ({why}){more}; get a whole copy of the dataset")
    return LabelledPixels(decoded.pixels, torch.tensor(tree.labels, dtype=torch.int64)), decoded


def some(names: Collection[str]) -> str:
    """The first few of them in quotes, and how many more there are."""
    shown = ", ".join(f"'{one}'" for one in list(names)[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
