"""Ten classes of ImageNet as photographs: those that are published as datasets of their own, and any others."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from dcf.data.base import DatasetProvider, LabelledPixels, real_data, value_space
from dcf.data.decode import DecodeOptions
from dcf.data.fetch import Archive, fetch
from dcf.data.folder import parse_size
from dcf.data.options import ImageNetSubsetConfig, ImagenetteConfig
from dcf.data.photos import IMAGENET, class_tree, some, whole_images
from dcf.data.real import RealData
from dcf.data.wordnet import GROUPS, SUBSETS, distinct
from dcf.errors import DataError

__all__ = ["ImageNetSubset", "Imagenette", "Imagewoof", "Photos"]

log = logging.getLogger(__name__)

TRAIN: Final = "train"
TEST: Final = "val"
#: Test images of each class in ILSVRC 2012.
_TEST_IMAGES: Final = 50
_ID: Final = re.compile(r"n\d{8}")
_SITE: Final = "https://s3.amazonaws.com/fast-ai-imageclas/"


class Photos(DatasetProvider):
    """Base of classes of ImageNet in a folder with `train/ID/` and `val/ID/`, ID being a WordNet id.

    Classes are in the order of their ids. Images are RGB of the size that is asked for, resized with antialiasing.
    """

    def ids(self) -> list[str]:
        """WordNet ids of the classes, ascending."""
        raise NotImplementedError

    def folder(self) -> Path:
        """The folder with `train` and `val`.

        Raises:
            DataError: When it is not there, or is another one.
        """
        raise NotImplementedError

    def load(self) -> RealData:
        """Decode the images, or take them from the cache.

        Raises:
            DataError: When the folder, a class or its images are missing, or an image cannot be read.
        """
        folder, ids = self.folder(), self.ids()
        train, test = (self._read(folder / part, ids) for part in (TRAIN, TEST))
        space = value_space(train.pixels, self.config.norm, self.config.mean, self.config.std, IMAGENET)
        return real_data(train, test, class_names(ids), space, self.id, self.source())

    def source(self) -> str:
        """Origin and licence, one line."""
        raise NotImplementedError

    def _read(self, root: Path, ids: list[str]) -> LabelledPixels:
        options = DecodeOptions(parse_size(self.config.size), self.config.resize, 3)
        tree, config = class_tree(root, ids, self.name), self.config
        return whole_images(tree, options, config.cache, self.name, config.memory)[0]


class ImageNetSubset(Photos):
    """Some classes of ILSVRC 2012, tested on its validation images, 50 a class."""

    Config = ImageNetSubsetConfig

    name: ClassVar[str] = "imagenet-subset"
    places: ClassVar[frozenset[str]] = frozenset({"root", "cache", "memory"})

    def ids(self) -> list[str]:
        """Those of the subset, or the ones given."""
        return sorted(self.config.classes or SUBSETS[self.config.subset])

    def folder(self) -> Path:
        """`root`; a note where the test images are not those of ImageNet."""
        root = Path(self.config.root).expanduser()
        missing = [part for part in (TRAIN, TEST) if not (root / part).is_dir()]
        if missing:
            raise DataError(
                f"{self.name}: '{root}' has no folder {some(missing)}; get ILSVRC 2012 from image-net.org, which needs "
                "an account, and pass root=... of the folder with train/n01440764/ and val/n01440764/, and so on"
            )
        if not any(_ID.fullmatch(path.name) for path in (root / TEST).iterdir() if path.is_dir()):
            raise DataError(
                f"{self.name}: '{root / TEST}' has no class folders; sort its images into val/n01440764/ ..."
            )
        return root

    def source(self) -> str:
        """ImageNet."""
        return "ILSVRC 2012 (Russakovsky et al., 2015), non-commercial research (image-net.org)"

    def _read(self, root: Path, ids: list[str]) -> LabelledPixels:
        found = super()._read(root, ids)
        if root.name == TEST and len(found.labels) > _TEST_IMAGES * len(ids):
            log.warning(
                "'%s' has %d images of %d classes, and ILSVRC 2012 has %d of each: results are not comparable",
                root, len(found.labels), len(ids), _TEST_IMAGES,
            )  # fmt: skip
        return found


class Imagenette(Photos):
    """Imagenette of fast.ai, second version: ten easy classes, 9,469 to train and 3,925 to test.

    The test images are a split of its own, and not those of `imagenet-subset:subset=nette`.
    """

    Config = ImagenetteConfig

    name: ClassVar[str] = "imagenette"
    places: ClassVar[frozenset[str]] = frozenset({"root", "cache", "memory", "download"})
    subset: ClassVar[str] = "nette"
    #: By version. Checksums are those that torchvision has.
    archives: ClassVar[Mapping[str, Archive]] = {
        "160": Archive(f"{_SITE}imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412", "imagenette2-160"),
        "320": Archive(f"{_SITE}imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", "imagenette2-320"),
        "full": Archive(f"{_SITE}imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612", "imagenette2"),
    }

    def ids(self) -> list[str]:
        """Those of the subset."""
        return sorted(SUBSETS[self.subset])

    def folder(self) -> Path:
        """The archive's folder: `root`, or in it; downloaded where it is missing and that is allowed."""
        root, archive = Path(self.config.root).expanduser(), self.archives[self.config.version]
        others = {other.folder: version for version, other in self.archives.items() if other != archive}
        if root.name in others:
            raise DataError(f"{self.name}: '{root}' is version={others[root.name]}, not {self.config.version}")
        inside = root / archive.folder
        if not inside.exists() and any((root / TRAIN / one).is_dir() for one in self.ids()):
            inside = root
        if not inside.exists():
            if not self.config.download:
                raise DataError(
                    f"{self.name} is not in '{inside}'; pass root=... of a folder that has it, or download=true"
                )
            fetch(self.name, archive, root)
        self._refuse_others(inside)
        return inside

    def source(self) -> str:
        """The archive."""
        folder = self.archives[self.config.version].folder
        return f"{folder} (fast.ai), images of ImageNet, non-commercial research (image-net.org)"

    def _refuse_others(self, folder: Path) -> None:
        """Whoever points at ImageNet means other test images."""
        missing = [part for part in (TRAIN, TEST) if not (folder / part).is_dir()]
        if missing:
            raise DataError(
                f"{self.name}: '{folder}' has no folder {some(missing)}; remove it to have it downloaded again"
            )
        strange = sorted({path.name for path in (folder / TRAIN).iterdir() if path.is_dir()} - set(self.ids()))
        if strange:
            raise DataError(
                f"{self.name}: '{folder / TRAIN}' has other classes, {some(strange)}; for ImageNet's own images pass "
                f"--data imagenet-subset:root={folder},subset={self.subset}"
            )


class Imagewoof(Imagenette):
    """Imagewoof of fast.ai, second version: ten breeds of dogs, 9,025 to train and 3,929 to test."""

    name: ClassVar[str] = "imagewoof"
    subset: ClassVar[str] = "woof"
    archives: ClassVar[Mapping[str, Archive]] = {
        "160": Archive(f"{_SITE}imagewoof2-160.tgz", "fcd23cc7dfce8837c95a8f9d63a128b7", "imagewoof2-160"),
        "320": Archive(f"{_SITE}imagewoof2-320.tgz", "af65be7963816efa949fa3c3b4947740", "imagewoof2-320"),
        "full": Archive(f"{_SITE}imagewoof2.tgz", "5eaf5bbf4bf16a77c616dc6e8dd5f8e9", "imagewoof2"),
    }


def class_names(ids: list[str]) -> list[str]:
    """WordNet's first name of each class that is in a group or subset, else its id."""
    known = {one: name for named in (*GROUPS.values(), *SUBSETS.values()) for one, name in named.items()}
    return distinct([known.get(one, one) for one in ids], ids)
