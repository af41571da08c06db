"""What is wrong with a dataset, before any training: every problem at once, with how to mend it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dcf.data.base import DatasetProvider
from dcf.data.decode import (
    GREY_MODES,
    UNREADABLE,
    ImageFacts,
    open_upright,
    sizes_text,
    to_channels,
    unreadable_text,
)
from dcf.data.folder import Folder, match_classes, split_indices
from dcf.data.real import RealData, Split
from dcf.data.store import pieces
from dcf.data.tree import Tree, find_trees
from dcf.errors import DataError

__all__ = ["DataCheck", "Problem", "check"]

#: Largest over smallest class above which a dataset is called imbalanced.
IMBALANCE = 3.0
_EXAMPLES = 5


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: `error` stops `condense`; `warning` may change its result.
        text: What is wrong, and where.
        mend: What to do.
    """

    severity: Literal["error", "warning"]
    text: str
    mend: str


@dataclass
class DataCheck:
    """What was found; `to_json` is ready for `json.dumps`.

    Attributes:
        id: The dataset spec.
        train: Number of training images that can be read.
        test: Number of test images that can be read.
        counts: Images by split (`train`, `test`) and class name.
        sizes: Images by `HxW`.
        modes: Image files by colour mode, such as `RGB`; empty for data that are not files.
        rotated: Files that EXIF says to turn.
        corrupt: File and reason, of those that cannot be read.
        empty: Classes without a training image.
        imbalance: Largest over smallest class of train.
        duplicates: Training images that repeat an earlier one exactly.
        leaked: Test images that are exactly also in train.
        constant: Images of one value all over.
        values: Minimum, maximum, mean and std of pixels in [0, 1].
        nonfinite: Pixels that are NaN or infinite.
        problems: What is wrong; errors first.
    """

    id: str
    train: int = 0
    test: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    rotated: int = 0
    corrupt: list[tuple[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    imbalance: float = 1.0
    duplicates: int = 0
    leaked: int = 0
    constant: int = 0
    values: dict[str, float] = field(default_factory=dict)
    nonfinite: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing stops `condense`."""
        return all(p.severity != "error" for p in self.problems)

    def error(self, text: str, mend: str) -> None:
        """Note something that stops `condense`."""
        self.problems.append(Problem("error", text, mend))

    def warning(self, text: str, mend: str) -> None:
        """Note something that may change a result."""
        self.problems.append(Problem("warning", text, mend))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and text."""
        return {**dataclasses.asdict(self), "ok": self.ok}


@dataclass
class _Seen:
    """What is gathered image by image of one split."""

    labels: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    constant: int = 0
    nonfinite: int = 0
    #: count, sum, sum of squares, minimum, maximum of pixels in [0, 1]
    moments: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, float("inf"), float("-inf")])

    def add(self, image: NDArray[Any], label: int, levels: int, colours: NDArray[Any] | None = None) -> None:
        self.labels.append(label)
        # The shape belongs to the image: 2x8 zeros are not 4x4 zeros.
        head = f"{image.shape}{image.dtype}".encode()
        self.hashes.append(hashlib.blake2b(head + image.tobytes(), digest_size=16).digest())
        values = (image if colours is None else colours).astype(np.float64).ravel() / levels
        finite = values[np.isfinite(values)]
        self.nonfinite += values.size - finite.size
        if not finite.size:
            return
        low, high = float(finite.min()), float(finite.max())
        self.constant += low == high and finite.size == values.size
        n, first, second, least, most = self.moments
        first, second = first + float(finite.sum()), second + float(finite @ finite)
        self.moments = [n + finite.size, first, second, min(least, low), max(most, high)]


def check(data: RealData | DatasetProvider | str | Path) -> DataCheck:
    """Examine a dataset; for folders all problems are gathered instead of stopping at the first.

    Args:
        data: Loaded data, a dataset component, or the path of a folder of class folders.

    Returns:
        What was found. Problems are in it, not raised.
    """
    if isinstance(data, (str, Path)):
        data = Folder(Folder.Config(path=str(data)))
    result = _check_folder(data) if isinstance(data, Folder) else _check_loaded(data)
    result.problems.sort(key=lambda p: p.severity != "error")
    return result


def _check_loaded(data: RealData | DatasetProvider) -> DataCheck:
    result = DataCheck(data.id)
    if isinstance(data, DatasetProvider):
        try:
            data = data.load()
        except DataError as error:
            result.error(str(error), "see the message")
            return result
    train, test = _look_at(data.train), _look_at(data.test)
    height, width = data.spec.height, data.spec.width
    result.sizes = {f"{height}x{width}": len(data.train) + len(data.test)}
    _conclude(result, data.spec.classes, train, test)
    return result


def _look_at(split: Split) -> _Seen:
    seen = _Seen()
    labels = iter(split.labels.tolist())
    for piece in pieces(split.store):
        for image in piece.numpy():
            seen.add(image, next(labels), split.levels)
    return seen


def _check_folder(provider: Folder) -> DataCheck:
    result = DataCheck(provider.id)
    try:
        train_tree, test_tree = find_trees(provider.path, provider.config.train, provider.config.test)
    except DataError as error:
        result.error(
            str(error),
            "arrange the images as PATH/train/CLASS/image and PATH/test/CLASS/image, or PATH/CLASS/image",
        )
        return result
    sizes: Counter[tuple[int, int]] = Counter()
    train = _look_at_files(result, train_tree, sizes)
    if test_tree is not None:
        test = _look_at_files(result, test_tree, sizes)
        test = _relabel(result, train_tree, test_tree, test)
    else:
        train, test = _split_seen(result, provider, train)
    result.sizes = {f"{h}x{w}": n for (h, w), n in sizes.most_common()}
    if provider.config.size == "auto" and len(sizes) > 1:
        side = min(64, *(min(size) for size in sizes))
        result.error(f"the images differ in size: {sizes_text(sizes)}", f"pass size=..., such as size={side}")
    _conclude(result, train_tree.classes, train, test)
    return result


def _look_at_files(result: DataCheck, tree: Tree, sizes: Counter[tuple[int, int]]) -> _Seen:
    seen, facts = _Seen(), []
    for name, label in zip(tree.files, tree.labels, strict=True):
        try:
            image, fact = open_upright(tree.root / name)
            pixels = np.asarray(to_channels(image, 4))
            # Opacity makes two images differ, but is no brightness.
            seen.add(pixels, label, 255, pixels[..., :3])
        except UNREADABLE as error:
            result.corrupt.append((str(tree.root / name), unreadable_text(error)))
            continue
        facts.append(fact)
        sizes[fact.size] += 1
    _note_facts(result, facts)
    if tree.loose:
        result.warning(
            f"{tree.loose} images lie in '{tree.root}' itself and are left out", "move them to class folders"
        )
    return seen


def _note_facts(result: DataCheck, facts: list[ImageFacts]) -> None:
    for fact in facts:
        result.modes[fact.mode] = result.modes.get(fact.mode, 0) + 1
        result.rotated += fact.rotated


def _relabel(result: DataCheck, train_tree: Tree, test_tree: Tree, test: _Seen) -> _Seen:
    try:
        numbers = match_classes(train_tree, test_tree)
    except DataError as error:
        result.error(str(error), "sort the test images into the class folders of train")
        return _Seen()
    test.labels = [numbers[label] for label in test.labels]
    return test


def _split_seen(result: DataCheck, provider: Folder, seen: _Seen) -> tuple[_Seen, _Seen]:
    """The images as the provider splits them; statistics stay with the first part."""
    if provider.config.split == 0 or not seen.labels:
        return seen, _Seen()
    labels = torch.tensor(seen.labels)
    try:
        kept, held = split_indices(labels, provider.config.split, provider.config.seed)
    except DataError as error:
        result.error(str(error), "add images or a test folder, or pass split=0")
        return seen, _Seen()
    train, test = dataclasses.replace(seen), _Seen()
    for part, index in ((train, kept), (test, held)):
        part.labels = [seen.labels[i] for i in index.tolist()]
        part.hashes = [seen.hashes[i] for i in index.tolist()]
    return train, test


def _conclude(result: DataCheck, classes: tuple[str, ...], train: _Seen, test: _Seen) -> None:
    """Fill in the numbers and note the problems that they show."""
    result.train, result.test = len(train.labels), len(test.labels)
    for name, seen in (("train", train), ("test", test)):
        count = Counter(seen.labels)
        result.counts[name] = {cls: count[i] for i, cls in enumerate(classes)}
    known = set(train.hashes)
    result.duplicates = len(train.hashes) - len(known)
    result.leaked = sum(h in known for h in test.hashes)
    result.constant = train.constant + test.constant
    result.nonfinite = train.nonfinite + test.nonfinite
    result.values = _statistics(train, test)
    result.empty = [cls for cls, n in result.counts["train"].items() if not n]
    present = [n for n in result.counts["train"].values() if n]
    result.imbalance = max(present) / min(present) if present else 1.0
    result.problems += [*_class_findings(result), *_image_findings(result)]


def _statistics(*parts: _Seen) -> dict[str, float]:
    n, first, second = (sum(p.moments[i] for p in parts) for i in range(3))
    if not n:
        return {}
    mean = first / n
    std = max(second / n - mean**2, 0.0) ** 0.5
    return {
        "min": min(p.moments[3] for p in parts),
        "max": max(p.moments[4] for p in parts),
        "mean": mean,
        "std": std,
    }


def _class_findings(r: DataCheck) -> Iterator[Problem]:
    """What is wrong with the classes and their sizes."""
    if r.empty:
        text = f"{len(r.empty)} classes have no training image: {_some(r.empty)}"
        yield Problem("error", text, "add images or remove the folder")
    missing = [cls for cls, n in r.counts["test"].items() if not n]
    if not r.test:
        text = "there are no test images, so nothing can be evaluated"
        yield Problem("warning", text, "add a test folder or pass split=0.2")
    elif missing:
        yield Problem("warning", f"{len(missing)} classes have no test image: {_some(missing)}", "add test images")
    if r.imbalance > IMBALANCE:
        counts = {cls: n for cls, n in r.counts["train"].items() if n}
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        text = f"class '{most}' has {r.imbalance:.1f} times the images of class '{least}'"
        yield Problem("warning", text, "add images to small classes; accuracy favours the large ones")


def _image_findings(r: DataCheck) -> Iterator[Problem]:
    """What is wrong with files and pixels."""
    if r.nonfinite:
        yield Problem("error", f"{r.nonfinite} pixels are NaN or infinite", "mend the images or leave them out")
    if r.corrupt:
        text = f"{len(r.corrupt)} files cannot be read and are left out: {_some([n for n, _ in r.corrupt])}"
        yield Problem("warning", text, "replace or delete them")
    if r.duplicates:
        yield Problem("warning", f"{r.duplicates} training images repeat others exactly", "remove the copies")
    if r.leaked:
        text = f"{r.leaked} test images are also in train, so accuracy comes out too high"
        yield Problem("warning", text, "remove them from one side")
    if r.constant:
        yield Problem("warning", f"{r.constant} images have one value all over", "look whether they are broken")
    if 0 < sum(mode in GREY_MODES for mode in r.modes) < len(r.modes):
        text = f"grey and colour files are mixed: {', '.join(f'{m} ({n})' for m, n in r.modes.items())}"
        yield Problem("warning", text, "pass channels=1 or channels=3 to be explicit")
    if r.values and (r.values["min"] < 0 or r.values["max"] > 1):
        text = "pixels are not in [0, 1], so previews and exports will clamp them"
        yield Problem("warning", text, "scale the images to [0, 1]")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(f"'{n}'" for n in names[:_EXAMPLES]) + more
