"""The options of the datasets that come with core; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dcf.config import Config
from dcf.data.nested import DatasetSpec

__all__ = [
    "Constants",
    "DigitsConfig",
    "FolderConfig",
    "ImageNet32Config",
    "ImageNetSubsetConfig",
    "ImagenetteConfig",
    "Memory",
    "NormConfig",
    "NuisanceConfig",
    "PythonConfig",
    "SubsetConfig",
    "TinyImageNetConfig",
    "TorchvisionConfig",
]

#: Normalisation constants that the user gives; they win over the `norm` option.
Constants = Annotated[
    tuple[float, ...], Field(description="one value a channel, for pixels in [0, 1]; empty: as norm says")
]

#: Where decoded images are; see `dcf.data.cache.decoded_tree`.
Memory: TypeAlias = Literal["auto", "resident", "disk"]

_MEMORY = "where decoded images are; auto: on disk if they would take more than half of what is free"
_NORM = "value space: computed on train, plain pixels, or ZCA whitening"
_PUBLISHED = "value space: constants of the literature, computed on train, plain pixels, or ZCA whitening"


class NormConfig(Config):
    """Options of datasets with fields `mean` and `std`, which subclasses declare where they want them listed."""

    @model_validator(mode="after")
    def _constants_belong_together(self) -> Self:
        mean, std = getattr(self, "mean", ()), getattr(self, "std", ())
        if len(mean) != len(std):
            raise ValueError(f"expected as many values in std as in mean, got {len(std)} and {len(mean)}")
        if any(not s > 0 for s in std):
            raise ValueError(f"expected positive values in std, got {list(std)}")
        if getattr(self, "memory", "") == "disk" and not getattr(self, "cache", True):
            raise ValueError("memory=disk takes the images from the cache; leave cache=false out")
        if mean and getattr(self, "norm", "") == "zca":
            raise ValueError("mean and std mean nothing with norm=zca, which is fitted to the images; leave them out")
        return self


class DigitsConfig(Config):
    """The value space."""

    norm: Literal["auto", "unit", "zca"] = Field("auto", description=_NORM)


class TorchvisionConfig(NormConfig):
    """Where the files are, and the value space."""

    root: str = Field("data", description="folder with the files, laid out as torchvision does it")
    download: bool = Field(True, description="fetch the files when they are not in root")
    norm: Literal["published", "auto", "unit", "zca"] = Field("published", description=_PUBLISHED)
    mean: Constants = ()
    std: Constants = ()


def _size_text(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _checked_size(value: str) -> str:
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", value) is None:
        raise ValueError(f"expected a side in pixels such as 64, or HxW such as 48x64, got '{value}'")
    return value


def _checked_size_or_auto(value: str) -> str:
    return value if value == "auto" else _checked_size(value)


def _class_list(value: Any) -> Any:
    """Classes as texts; their order means nothing, so that there is one way to write each selection."""
    if not isinstance(value, (tuple, list)):
        return value
    texts = [str(one) if isinstance(one, int) else one for one in value]
    if not all(isinstance(one, str) for one in texts):
        return value
    return tuple(sorted(texts, key=lambda t: (not t.isdecimal(), int(t) if t.isdecimal() else 0, t)))


class FolderConfig(NormConfig):
    """Where the images are, and how they become tensors of one shape."""

    path: str = Field(description="the folder")
    train: str = Field("train", description="sub-folder to learn from")
    test: str = Field("test", description="sub-folder to test on; val, valid and validation are tried too")
    split: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of each class to test on when there is no test folder; 0: no test",
    )
    seed: int = Field(0, ge=0, description="which images the split takes")
    size: Annotated[str, BeforeValidator(_size_text), AfterValidator(_checked_size_or_auto)] = Field(
        "auto", description="side in pixels, HxW, or auto: that of the files"
    )
    resize: Literal["crop", "squash"] = Field(
        "crop", description="fill the size and cut off evenly, or change the aspect ratio"
    )
    channels: Literal["auto"] | Annotated[int, Field(ge=1, le=4)] = Field(
        "auto",
        description="1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, auto: 1 if all of train is grey, else 3",
    )
    norm: Literal["auto", "unit", "zca"] = Field("auto", description=_NORM)
    mean: Constants = ()
    std: Constants = ()
    cache: bool = Field(True, description="keep the decoded images for the next start")
    memory: Memory = Field("auto", description=_MEMORY)


class PhotosConfig(NormConfig):
    """How the photographs of ImageNet become tensors of one shape, and their value space."""

    size: Annotated[str, BeforeValidator(_size_text), AfterValidator(_checked_size)] = Field(
        "128", description="side in pixels, or HxW"
    )
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="change the aspect ratio, as published for the subsets, or fill the size and cut off evenly",
    )
    norm: Literal["published", "auto", "unit", "zca"] = Field("published", description=_PUBLISHED)
    mean: Constants = ()
    std: Constants = ()
    cache: bool = Field(True, description="keep the decoded images for the next start")
    memory: Memory = Field("auto", description=_MEMORY)


class ImagenetteConfig(PhotosConfig):
    """Where the files are, and how they become tensors of one shape."""

    root: str = Field("data", description="folder with the unpacked archive, or that folder itself")
    download: bool = Field(True, description="fetch the files when they are not in root")
    version: Literal["160", "320", "full"] = Field(
        "160", description="archive: shorter sides of 160 or 320 pixels, or as in ImageNet"
    )

    @model_validator(mode="after")
    def _is_not_enlarged(self) -> Self:
        side = max(map(int, self.size.split("x")))
        if self.version != "full" and side > int(self.version):
            larger = "320" if side <= 320 else "full"
            raise ValueError(f"size={self.size} would enlarge images of version={self.version}; add version={larger}")
        return self


class TinyImageNetConfig(NormConfig):
    """Where the files are, and the value space."""

    root: str = Field("data", description="folder with tiny-imagenet-200, or that folder itself")
    download: bool = Field(True, description="fetch the files when they are not in root")
    norm: Literal["published", "auto", "unit", "zca"] = Field("published", description=_PUBLISHED)
    mean: Constants = ()
    std: Constants = ()
    cache: bool = Field(True, description="keep the decoded images for the next start")
    memory: Memory = Field("auto", description=_MEMORY)


class PythonConfig(NormConfig):
    """The object, and the value space."""

    target: str = Field(description="module.attribute; modules in the current folder are found")
    norm: Literal["auto", "unit", "zca"] = Field("auto", description=_NORM)
    mean: Constants = ()
    std: Constants = ()


class SubsetConfig(Config):
    """What is kept of another dataset."""

    base: DatasetSpec = Field(description="the dataset to take from, as in base=(mnist)")
    classes: Annotated[tuple[str, ...], BeforeValidator(_class_list)] = Field(
        (), description="classes to keep, by name or number; the base's order stays; empty: all"
    )
    per_class: int = Field(0, ge=0, le=2**31 - 1, description="most training images a class; 0: all")
    test_per_class: int = Field(0, ge=0, le=2**31 - 1, description="most test images a class; 0: all")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="which images are kept")
    norm: Literal["base", "auto", "unit", "zca"] = Field(
        "base", description="value space: that of the base; computed on the images kept; plain pixels; ZCA whitening"
    )


class NuisanceConfig(NormConfig):
    """A base dataset and the texture that is laid over it."""

    base: DatasetSpec = Field(description="the dataset to recognise, as in base=(mnist)")
    background: DatasetSpec = Field("cifar10", description="the dataset whose training images are the texture")
    signal: float = Field(0.02, gt=0, le=1, description="weight of the base's pixels")
    weight: float = Field(1.0, ge=0, le=1, description="weight of the background's pixels")
    mode: Literal["fixed", "pool"] = Field(
        "fixed", description="one background for all images, or one of a pool for each image"
    )
    pool: int = Field(30, ge=1, le=2**31 - 1, description="backgrounds to draw from, with mode=pool")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="which backgrounds, and which image gets which")
    norm: Literal["auto", "unit", "zca"] = Field("auto", description=_NORM)
    mean: Constants = ()
    std: Constants = ()

    @model_validator(mode="after")
    def _pool_has_a_meaning(self) -> Self:
        if self.mode == "fixed" and self.pool != type(self).model_fields["pool"].default:
            raise ValueError("pool means nothing with mode=fixed; add mode=pool, or leave it out")
        return self


def _wordnet_ids(values: tuple[str, ...]) -> tuple[str, ...]:
    strange = next((one for one in values if not re.fullmatch(r"n\d{8}", one)), None)
    if strange is not None:
        raise ValueError(f"expected WordNet ids such as n02099601, got '{strange}'"[:200])
    if len(set(values)) < len(values):
        raise ValueError("a class is named twice")
    return values


class ImageNet32Config(NormConfig):
    """Where the files are, and which classes are taken."""

    root: str = Field("data", description="folder with train_data_batch_1 to 10, val_data and map_clsloc.txt")
    group: Literal["all", "automobile", "fish", "insect", "lizard", "terrier", "truck"] = Field(
        "all", description="similar classes, by WordNet; all: the 1000"
    )
    classes: Annotated[tuple[str, ...], BeforeValidator(_class_list), AfterValidator(_wordnet_ids)] = Field(
        (), description="WordNet ids such as n02099601, in place of a group"
    )
    norm: Literal["auto", "unit", "zca"] = Field("auto", description=_NORM)
    mean: Constants = ()
    std: Constants = ()

    @model_validator(mode="after")
    def _group_or_classes(self) -> Self:
        if self.classes and self.group != "all":
            raise ValueError("give either a group or classes, not both")
        return self


class ImageNetSubsetConfig(PhotosConfig):
    """Where ImageNet is, which classes are taken, and how images become tensors of one shape."""

    root: str = Field("data", description="folder with train/n01440764/ and val/n01440764/, and so on")
    subset: Literal["fruit", "meow", "nette", "squawk", "woof", "yellow"] = Field(
        "nette", description="ten classes: fruit, cats, easy ones, birds, dogs or yellow things"
    )
    classes: Annotated[tuple[str, ...], BeforeValidator(_class_list), AfterValidator(_wordnet_ids)] = Field(
        (), description="WordNet ids such as n02099601, in place of a subset"
    )

    @model_validator(mode="after")
    def _subset_or_classes(self) -> Self:
        if self.classes and self.subset != type(self).model_fields["subset"].default:
            raise ValueError("give either a subset or classes, not both")
        return self
