"""Small stand-ins: data, network, matcher, run and set, all deterministic and quick on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcf.augmenter import Augmenter, NoAugmentation
from dcf.context import Context
from dcf.data.base import LabelledPixels, real_data
from dcf.matcher import Matcher
from dcf.networks.base import Network, NetworkFactory
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.seeding import generator
from dcf.selector import Random
from dcf.space import ValueSpace
from dcf.types import DataSpec, Step

if TYPE_CHECKING:
    from dcf.data.real import RealData
    from dcf.synthetic import SyntheticSet

__all__ = [
    "PullToMean",
    "SoftPixels",
    "TinyFactory",
    "TinyNet",
    "fake_context",
    "fake_data",
    "fake_set",
    "fake_spec",
    "filled",
]

#: Network spec of the fake sets and of what evaluates them.
NETWORK = "convnet:width=4,depth=1"


def fake_spec(classes: int = 2, shape: tuple[int, int, int] = (3, 8, 8)) -> DataSpec:
    """What `fake_data` looks like.

    Args:
        classes: Number of classes.
        shape: `(C, H, W)`.
    """
    space = ValueSpace((0.5,) * shape[0], (0.25,) * shape[0])
    return DataSpec(*shape, tuple(f"class {c}" for c in range(classes)), space)


def fake_data(
    classes: int = 2, shape: tuple[int, int, int] = (3, 8, 8), train: int = 6, test: int = 4, seed: int = 0
) -> RealData:
    """Data that can be learned: each class is one random image, and its images are that one with some noise.

    Args:
        classes: Number of classes.
        shape: `(C, H, W)`.
        train: Training images a class.
        test: Test images a class.
        seed: Of the images.
    """
    spec = fake_spec(classes, shape)
    draw = generator(seed, "fake data")
    centres = torch.rand(classes, *shape, generator=draw)
    parts = []
    for n in (train, test):
        labels = torch.arange(classes).repeat_interleave(n)
        noise = torch.randn(len(labels), *shape, generator=draw)
        parts.append(LabelledPixels((centres[labels] + 0.1 * noise).clamp(0, 1), labels))
    source = "made up; no licence needed"
    return real_data(parts[0], parts[1], spec.classes, spec.space, "python:dcf.testing.fake_data", source)


class TinyNet(Network):
    """One convolution, and a linear classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.classifier = nn.Linear(24, classes)

    def features(self, x: Tensor) -> Tensor:
        """`(N, 24)` embeddings of `(N, C, H, W)` images of any size."""
        return F.adaptive_avg_pool2d(F.softplus(self.conv(x)), 2).flatten(1)


class TinyFactory(NetworkFactory):
    """Makes `TinyNet`."""

    def build(self, spec: DataSpec) -> Network:
        """A network for images of `spec`."""
        return TinyNet(spec.channels, spec.num_classes)


class PullToMean(Matcher):
    """Pulls all synthetic images of a class to the mean of its real ones: the simplest matcher that learns."""

    def outer(self, ctx: Context, it: int) -> Iterator[Step]:
        """One update; the loss is averaged over images and pixels and summed over classes."""
        for chunk in ctx.chunks():
            mean = ctx.real(chunk.classes, 6).mean(1, keepdim=True)
            loss = (ctx.synthetic(chunk.classes) - mean).square().flatten(1).mean(1).sum()
            yield Step(loss, update=chunk.last)


class SoftPixels(Pixels):
    """Pixels with soft labels: 0.9 for the image's class, the rest shared by the others."""

    def labels(self, index: Tensor) -> Tensor:
        """`(N, K)` probabilities."""
        rest = 0.1 / max(1, self.num_classes - 1)
        hard = F.one_hot(self.view_class[index], self.num_classes).float()
        return hard * (0.9 - rest) + rest


def filled(param: Parameterization, data: RealData, items: int = 2, init: Tensor | None = None) -> Parameterization:
    """The parameterization with `items` items a class, initialised.

    Args:
        param: A fresh one.
        data: What it is to hold; decides shape, classes and device.
        items: Items a class.
        init: `(views, C, H, W)` starting images; random real ones by default.
    """
    param.allocate(data.spec, torch.arange(data.spec.num_classes).repeat_interleave(items))
    param.to(data.train.device)
    if init is None:
        init = Random().images(data, param.view_class, generator(0, "fake init"))
    param.absorb(init, generator(0, "fake absorb"))
    return param


def fake_context(
    param: Parameterization | None = None,
    data: RealData | None = None,
    networks: NetworkFactory | None = None,
    augmenter: Augmenter | None = None,
    seed: int = 0,
    class_chunk: int = 10,
) -> Context:
    """A run as a matcher sees it, over `fake_data` unless told otherwise.

    Args:
        param: The synthetic set, allocated; one pixel image a class by default.
        data: Real data.
        networks: Makes networks; `TinyFactory` by default.
        augmenter: Augmentation; none by default.
        seed: Of the run.
        class_chunk: Classes that are worked on together.
    """
    data = fake_data() if data is None else data
    param = filled(Pixels(), data, 1) if param is None else param
    return Context(data, param, networks or TinyFactory(), augmenter or NoAugmentation(), seed, class_chunk)


def fake_set(
    param: Parameterization | None = None, data: RealData | None = None, spec: str = "pixels", seed: int = 0
) -> SyntheticSet:
    """A finished set.

    Args:
        param: What stores it, allocated; two pixel images a class by default.
        data: The data it was made from; `fake_data` by default.
        spec: Spec of `param`, for the file.
        seed: Of the run that made it.
    """
    from dcf.synthetic import SyntheticSet

    data = fake_data() if data is None else data
    param = filled(Pixels(), data) if param is None else param
    config = {"data": data.id, "param": spec, "augment": "none", "network": NETWORK, "protocol": "dcf-std@1"}
    return SyntheticSet(param, data.spec, config, seed)
