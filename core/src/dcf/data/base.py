"""What a dataset component is, and the steps all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dcf.config import Config as BaseConfig
from dcf.data.options import Constants
from dcf.data.real import RealData, Split
from dcf.data.store import PixelStore, as_store, pieces
from dcf.errors import DataError
from dcf.space import ValueSpace
from dcf.spec import Option, Spec, Value
from dcf.types import DataSpec
from dcf.whitening import fit_whitening

__all__ = [
    "DatasetProvider",
    "LabelledPixels",
    "pixel_statistics",
    "real_data",
    "value_space",
]


class LabelledPixels(NamedTuple):
    """Images at rest with their labels.

    Attributes:
        pixels: `(N, C, H, W)` uint8, or float32 pixels nominally in [0, 1]; or a store of such.
        labels: `(N,)` int64.
    """

    pixels: Tensor | PixelStore
    labels: Tensor

    def select(self, index: Tensor) -> LabelledPixels:
        """The images of these numbers `(n,)` with their labels; what lies in a file stays there."""
        return LabelledPixels(as_store(self.pixels).select(index), self.labels[index])


class DatasetProvider:
    """Base of dataset components: options in, `RealData` out."""

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    #: The component's name, as in `--data NAME`.
    name: ClassVar[str] = ""
    #: Options that say where the data lie, not which data they are; left out of the dataset's id.
    places: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @property
    def id(self) -> str:
        """The canonical spec of this dataset, options at their defaults and places left out."""
        given = self.config.model_dump(exclude_defaults=True, exclude=set(self.places))
        return str(Spec(self.name, tuple(Option(key, _spec_value(value)) for key, value in given.items())))

    def load(self) -> RealData:
        """Read the data, on the CPU.

        Raises:
            DataError: When the data are missing, empty, damaged or of the wrong form.
        """
        raise NotImplementedError


def real_data(
    train: LabelledPixels,
    test: LabelledPixels,
    classes: Sequence[str],
    space: ValueSpace,
    id: str,  # noqa: A002 - the public name of the field
    source: str,
    hints: Mapping[str, Any] | None = None,
    levels: int = 0,
) -> RealData:
    """Put a dataset together and make sure that every class can be learned.

    Args:
        train: Images to learn from; every class has at least one.
        test: Images to test on, of the same shape; may be empty.
        classes: Class names, in the order of the labels.
        space: Value space that images are delivered in.
        id: The dataset spec.
        source: Origin and licence, one line.
        hints: Settings that suit the dataset.
        levels: Stored value of a white pixel; 0 for 255 of uint8 and 1 of float32.

    Raises:
        DataError: When a class has no training image, or labels do not fit.
    """
    learn, judge = (Split(part.pixels, part.labels, space, len(classes), levels) for part in (train, test))
    empty = [classes[c] for c in (learn.counts == 0).nonzero().flatten().tolist()]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        names = ", ".join(f"'{c}'" for c in empty[:5])
        raise DataError(f"{id}: no training image of class {names}{more}; add images or drop the class")
    channels, height, width = learn.shape
    spec = DataSpec(channels, height, width, tuple(classes), space)
    return RealData(spec, learn, judge, id, source, dict(hints or {}))


def value_space(
    pixels: Tensor | PixelStore,
    norm: str,
    mean: Constants = (),
    std: Constants = (),
    published: ValueSpace | None = None,
    levels: int = 0,
) -> ValueSpace:
    """The value space that a dataset's options ask for.

    Args:
        pixels: `(N, C, H, W)` training images, uint8 or float32, or a store of such.
        norm: `auto` computes the constants on `pixels`, `unit` leaves pixels as they are, `published` takes
            those of the literature, `zca` whitens with what `pixels` give.
        mean: Explicit constants, which win over `norm`; empty for none.
        std: As `mean`.
        published: The space of the literature.
        levels: Stored value of a white pixel; 0 for 255 of uint8 and 1 of float32.

    Raises:
        DataError: When the number of given constants is not that of the channels, or images are too large to whiten.
    """
    channels = pixels.shape[1]
    if mean and len(mean) != channels:
        raise DataError(f"the images have {channels} channels, but mean and std have {len(mean)} values")
    if mean:
        return ValueSpace(mean, std)
    if norm == "unit":
        return ValueSpace.unit(channels)
    if norm == "zca":
        return ValueSpace.whitened(fit_whitening(as_store(pixels), levels))
    if norm == "published" and published is not None:
        return published
    return ValueSpace(*pixel_statistics(as_store(pixels), levels))


def pixel_statistics(store: PixelStore, levels: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of every channel, over all images and places, in one pass.

    Returns:
        Mean and std, one value a channel, for pixels in [0, 1], rounded to 6 decimals. A channel that is
        constant has std 1, so that it can be normalised.
    """
    sums = [_channel_sums(piece) for piece in pieces(store)]
    total = torch.stack(sums).sum(0)
    count, first, second = total[0], total[1], total[2]
    scale = levels or (255 if store.dtype == torch.uint8 else 1)
    mean = first / count
    std = (second / count - mean.square()).clamp(min=0).sqrt() / scale
    std = torch.where(std < 1e-6, 1.0, std)
    return _rounded(mean / scale), _rounded(std)


def _channel_sums(piece: Tensor) -> Tensor:
    """`(3, C)` float64: count, sum and sum of squares of every channel of `(n, C, H, W)` stored values."""
    if piece.dtype == torch.uint8:
        # Exact and quick: 256 counts hold all that is asked for.
        grey = torch.arange(256, dtype=torch.float64)
        hist = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in piece.unbind(1)]).double()
        return torch.stack([hist.sum(1), hist @ grey, hist @ grey.square()])
    flat = piece.transpose(0, 1).flatten(1).double()
    return torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(v, 6) for v in values.tolist())


def _spec_value(value: Any) -> Value:
    if isinstance(value, (tuple, list)):
        return tuple(map(_spec_value, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
