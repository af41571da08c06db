"""The benchmark datasets of the literature, read and downloaded by torchvision."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch

from dcf.data.base import DatasetProvider, LabelledPixels, real_data, value_space
from dcf.data.fetch import NETWORK, patience, reason
from dcf.data.options import TorchvisionConfig
from dcf.data.real import RealData
from dcf.errors import DataError
from dcf.space import ValueSpace

__all__ = ["Cifar10", "Cifar100", "FashionMnist", "Mnist", "Svhn", "TorchvisionDataset"]

log = logging.getLogger(__name__)

_DIGITS = tuple(str(c) for c in range(10))
#: What torchvision raises for files that are there and cannot be read.
_DAMAGE = (
    ValueError,
    TypeError,
    AssertionError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
)


class TorchvisionDataset(DatasetProvider):
    """Base of datasets that torchvision knows; a subclass is a table row."""

    Config = TorchvisionConfig

    places: ClassVar[frozenset[str]] = frozenset({"root", "download"})
    #: Name of the class in `torchvision.datasets`.
    torchvision_name: ClassVar[str]
    #: Folder below root that torchvision reads; empty for root itself.
    folder: ClassVar[str] = ""
    published: ClassVar[ValueSpace]
    #: Class names; empty takes torchvision's.
    classes: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str]

    @property
    def root(self) -> Path:
        """The folder with the files."""
        return Path(self.config.root).expanduser()

    def load(self) -> RealData:
        """Read the files, after a download if they are missing and that is allowed.

        Raises:
            DataError: When they are missing or damaged, or could not be downloaded.
        """
        try:
            parts = self._read(self.root)
        except DataError as error:
            if not self.config.download:
                raise DataError(f"{error}; pass root=... of a folder that has it, or download=true") from None
            log.info("%s; downloading %s", error, self.name)
            self._download()
            parts = self._read(self.root)
        train, test = (_labelled_pixels(part) for part in parts)
        classes = self.classes or tuple(parts[0].classes)
        space = value_space(train.pixels, self.config.norm, self.config.mean, self.config.std, self.published)
        return real_data(train, test, classes, space, self.id, self.source)

    def _read(self, root: Path) -> list[Any]:
        """Torchvision's train and test objects from files that are there."""
        place = root / self.folder
        try:
            return [self._open(root, part, download=False) for part in ("train", "test")]
        except RuntimeError as error:
            if "not found" in str(error):
                raise DataError(f"{self.name} is not in '{place}', or not all of it") from None
            raise DataError(f"the files of {self.name} in '{place}' are damaged ({reason(error)})") from None
        except _DAMAGE as error:
            raise DataError(f"the files of {self.name} in '{place}' are damaged ({reason(error)})") from None

    def _open(self, root: Path, part: str, download: bool) -> Any:
        return self._torchvision_class()(os.fspath(root), train=part == "train", download=download)

    def _torchvision_class(self) -> Any:
        import torchvision

        return getattr(torchvision.datasets, self.torchvision_name)

    def _archives(self) -> Iterable[tuple[str, str]]:
        """What torchvision downloads: path below root, and md5."""
        raise NotImplementedError

    def _download(self) -> None:
        """Fetch into a scratch folder and move over file by file, so that no half file ever lies in root."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".dcf-download-", dir=self.root) as name:
                scratch = Path(name)
                self._link_archives(scratch)
                with patience(), contextlib.redirect_stdout(sys.stderr):
                    for part in ("train", "test"):
                        self._open(scratch, part, download=True)
                _move_files(scratch, self.root)
        except NETWORK as error:
            raise DataError(
                f"could not download {self.name} to '{self.root}' ({reason(error)}); "
                "fetch it on a machine with network and pass root=... of the folder that has it"
            ) from None
        except _DAMAGE as error:
            raise DataError(f"the download of {self.name} is damaged ({reason(error)}); try again") from None

    def _link_archives(self, scratch: Path) -> None:
        """Show the scratch folder those archives that are in root already and whole."""
        from torchvision.datasets.utils import check_integrity

        for path, md5 in self._archives():
            if check_integrity(self.root / path, md5):
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                (scratch / path).symlink_to((self.root / path).resolve())


class Mnist(TorchvisionDataset):
    """MNIST: 1x28x28, 10 digits, 60,000 to train and 10,000 to test."""

    name: ClassVar[str] = "mnist"
    torchvision_name: ClassVar[str] = "MNIST"
    folder: ClassVar[str] = "MNIST/raw"
    published: ClassVar[ValueSpace] = ValueSpace((0.1307,), (0.3081,))
    classes: ClassVar[tuple[str, ...]] = _DIGITS
    source: ClassVar[str] = "MNIST (LeCun, Cortes and Burges, 1998), CC BY-SA 3.0"

    def _archives(self) -> Iterable[tuple[str, str]]:
        return [(f"{self.folder}/{name}", md5) for name, md5 in self._torchvision_class().resources]


class FashionMnist(Mnist):
    """Fashion-MNIST: 1x28x28, 10 kinds of clothing, 60,000 to train and 10,000 to test."""

    name: ClassVar[str] = "fashion-mnist"
    torchvision_name: ClassVar[str] = "FashionMNIST"
    folder: ClassVar[str] = "FashionMNIST/raw"
    published: ClassVar[ValueSpace] = ValueSpace((0.2861,), (0.3530,))
    classes: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = "Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), MIT"


class Svhn(TorchvisionDataset):
    """SVHN: 3x32x32, 10 digits, 73,257 to train and 26,032 to test; the extra images are not used."""

    name: ClassVar[str] = "svhn"
    torchvision_name: ClassVar[str] = "SVHN"
    published: ClassVar[ValueSpace] = ValueSpace((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
    classes: ClassVar[tuple[str, ...]] = _DIGITS
    source: ClassVar[str] = "Street View House Numbers (Netzer et al., 2011), non-commercial use only"

    def load(self) -> RealData:
        """As for the others; its files are in Matlab's format, which scipy reads."""
        try:
            importlib.import_module("scipy.io")
        except ImportError:
            raise DataError("svhn comes in Matlab files, which need scipy; pip install scipy") from None
        return super().load()

    def _open(self, root: Path, part: str, download: bool) -> Any:
        return self._torchvision_class()(os.fspath(root), split=part, download=download)

    def _archives(self) -> Iterable[tuple[str, str]]:
        split_list = self._torchvision_class().split_list
        return [tuple(split_list[part][1:]) for part in ("train", "test")]


class Cifar10(TorchvisionDataset):
    """CIFAR-10: 3x32x32, 10 classes, 50,000 to train and 10,000 to test.

    The published std is the mean of per-image stds; `norm=auto` gives that of the pixels, about 0.25.
    """

    name: ClassVar[str] = "cifar10"
    torchvision_name: ClassVar[str] = "CIFAR10"
    folder: ClassVar[str] = "cifar-10-batches-py"
    published: ClassVar[ValueSpace] = ValueSpace((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    source: ClassVar[str] = "CIFAR-10 (Krizhevsky, 2009), no licence stated"

    def _archives(self) -> Iterable[tuple[str, str]]:
        cls = self._torchvision_class()
        return [(cls.filename, cls.tgz_md5)]


class Cifar100(Cifar10):
    """CIFAR-100: 3x32x32, 100 classes, 50,000 to train and 10,000 to test.

    Several papers normalise it with the constants of CIFAR-10; give those as `mean` and `std`.
    """

    name: ClassVar[str] = "cifar100"
    torchvision_name: ClassVar[str] = "CIFAR100"
    folder: ClassVar[str] = "cifar-100-python"
    published: ClassVar[ValueSpace] = ValueSpace((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    source: ClassVar[str] = "CIFAR-100 (Krizhevsky, 2009), no licence stated"


def _labelled_pixels(dataset: Any) -> LabelledPixels:
    """All images `(N, C, H, W)` uint8 and labels of a torchvision object, without a loop over images."""
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    pixels = torch.as_tensor(dataset.data)
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2)
    return LabelledPixels(pixels.contiguous(), labels.long())


def _move_files(scratch: Path, root: Path) -> None:
    for path in sorted(scratch.rglob("*")):
        if path.is_file() and not path.is_symlink():
            target = root / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
