"""The 8x8 digits that come with the package: a dataset that needs neither a download nor a wait."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, ClassVar

import torch
from safetensors.torch import load
from torch import Tensor

from dcf.data.base import DatasetProvider, LabelledPixels, real_data, value_space
from dcf.data.options import DigitsConfig
from dcf.data.real import RealData
from dcf.space import ValueSpace

__all__ = ["Digits"]

#: White of these scans; they rest as 0 .. 16, which is exact, where 8 bits would round.
LEVELS = 16
#: Mean and population std of the training images, for pixels in [0, 1].
SPACE = ValueSpace((0.3051,), (0.3762,))


class Digits(DatasetProvider):
    """Handwritten digits, 1x8x8, 10 classes, 1,442 images to train and 355 to test.

    Every fifth image of a class, in the order of the source, is a test image.
    """

    Config = DigitsConfig

    name: ClassVar[str] = "digits"
    source: ClassVar[str] = (
        "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, 1998), CC BY 4.0; "
        "the copy in scikit-learn (BSD-3)"
    )
    hints: ClassVar[dict[str, Any]] = {
        "network": "convnet:width=32",
        "iterations": 200,
        "networks": 3,
        "protocol_set": {"steps_min": 300},
    }

    def load(self) -> RealData:
        """Read the images from the package."""
        tensors = load(files("dcf.data").joinpath("digits.safetensors").read_bytes())
        images, labels = tensors["images"], tensors["labels"].long()
        is_test = _every_fifth(labels)
        train = LabelledPixels(images[~is_test], labels[~is_test])
        test = LabelledPixels(images[is_test], labels[is_test])
        classes = [str(c) for c in range(10)]
        norm = self.config.norm
        space = SPACE if norm == "auto" else value_space(train.pixels, norm, levels=LEVELS)
        return real_data(train, test, classes, space, self.id, self.source, self.hints, LEVELS)


def _every_fifth(labels: Tensor) -> Tensor:
    """`(N,)` bool: whether an image is the fifth, tenth, ... of its class."""
    seen = torch.nn.functional.one_hot(labels).cumsum(0)
    return seen.gather(1, labels[:, None]).flatten() % 5 == 0
