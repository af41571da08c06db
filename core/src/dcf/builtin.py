"""The components that come with core, announced through the same hook as everybody else's."""

from __future__ import annotations

from collections.abc import Iterable

from dcf.components import Component, Kind
from dcf.hookspecs import hookimpl

__all__ = ["dcf_components"]


@hookimpl
def dcf_components() -> Iterable[Component]:
    """Announce what core provides."""
    yield from _PARTS
    yield from _DATASETS
    yield from _NETWORKS


#: Options by name, in modules free of torch, so that a wrong one is reported at once.
_NO_OPTIONS = "dcf.config:Config"
_TORCHVISION = "dcf.data.options:TorchvisionConfig"

_PARTS = (
    Component(
        Kind.MATCHER,
        "none",
        "dcf.nothing:Nothing",
        "match nothing: the set stays as it was initialised",
        config=_NO_OPTIONS,
    ),
    Component(
        Kind.PARAM, "pixels", "dcf.pixels:Pixels", "one float a pixel: the images themselves", config=_NO_OPTIONS
    ),
    Component(Kind.AUGMENTER, "none", "dcf.augmenter:NoAugmentation", "no augmentation", config=_NO_OPTIONS),
    Component(
        Kind.SELECTOR,
        "random",
        "dcf.selector:Random",
        "real images of each class, uniformly without replacement",
        config=_NO_OPTIONS,
    ),
    Component(Kind.SELECTOR, "noise", "dcf.selector:Noise", "standard normal values", config=_NO_OPTIONS),
    Component(
        Kind.EVALUATOR,
        "train",
        "dcf.evaluation.train:Train",
        "accuracy of networks trained on the set",
        config=_NO_OPTIONS,
    ),
    Component(
        Kind.EVALUATOR,
        "replay",
        "dcf.evaluation.replay:Replay",
        "accuracy of networks after the very training that a set was made for, if it is a program",
        "Wang et al., 2018",
        _NO_OPTIONS,
    ),
    Component(
        Kind.EVALUATOR,
        "cross-arch",
        "dcf.evaluation.cross_arch:CrossArch",
        "the same for a pool of architectures",
        config="dcf.evaluation.options:CrossArchConfig",
    ),
    Component(
        Kind.PROTOCOL,
        "dcf-std@1",
        "dcf:evaluation/protocols/dcf-std.toml",
        "1000 steps or 30 epochs, cosine, last epoch",
    ),
    Component(
        Kind.RECIPE,
        "random",
        "dcf:recipe_files/random.toml",
        "real images chosen at random: the baseline of everything",
    ),
)

_DATASETS = (
    Component(
        Kind.DATASET,
        "digits",
        "dcf.data.digits:Digits",
        "1,797 scans of handwritten digits, 8x8, part of the package",
        config="dcf.data.options:DigitsConfig",
    ),
    Component(Kind.DATASET, "mnist", "dcf.data.torchvision:Mnist", "handwritten digits, 1x28x28", config=_TORCHVISION),
    Component(
        Kind.DATASET,
        "fashion-mnist",
        "dcf.data.torchvision:FashionMnist",
        "articles of clothing, 1x28x28",
        config=_TORCHVISION,
    ),
    Component(Kind.DATASET, "svhn", "dcf.data.torchvision:Svhn", "house numbers, 3x32x32", config=_TORCHVISION),
    Component(
        Kind.DATASET, "cifar10", "dcf.data.torchvision:Cifar10", "objects in 10 classes, 3x32x32", config=_TORCHVISION
    ),
    Component(
        Kind.DATASET,
        "cifar100",
        "dcf.data.torchvision:Cifar100",
        "objects in 100 classes, 3x32x32",
        config=_TORCHVISION,
    ),
    Component(
        Kind.DATASET,
        "folder",
        "dcf.data.folder:Folder",
        "your own images, one folder a class",
        config="dcf.data.options:FolderConfig",
    ),
    Component(
        Kind.DATASET,
        "python",
        "dcf.data.python:Python",
        "any Python object: python:module.attribute",
        config="dcf.data.options:PythonConfig",
    ),
    Component(
        Kind.DATASET,
        "imagenet32",
        "dcf.data.imagenet32:ImageNet32",
        "ImageNet at 3x32x32, all of it or a group of similar classes",
        config="dcf.data.options:ImageNet32Config",
    ),
    Component(
        Kind.DATASET,
        "tiny-imagenet",
        "dcf.data.tiny_imagenet:TinyImageNet",
        "200 classes of ImageNet, 3x64x64",
        config="dcf.data.options:TinyImageNetConfig",
    ),
    Component(
        Kind.DATASET,
        "imagenette",
        "dcf.data.imagenet:Imagenette",
        "ten easy classes of ImageNet, in any size",
        config="dcf.data.options:ImagenetteConfig",
    ),
    Component(
        Kind.DATASET,
        "imagewoof",
        "dcf.data.imagenet:Imagewoof",
        "ten breeds of dogs, in any size",
        config="dcf.data.options:ImagenetteConfig",
    ),
    Component(
        Kind.DATASET,
        "imagenet-subset",
        "dcf.data.imagenet:ImageNetSubset",
        "ten of ImageNet's classes, or any others, in any size",
        config="dcf.data.options:ImageNetSubsetConfig",
    ),
    Component(
        Kind.DATASET,
        "subset",
        "dcf.data.subset:Subset",
        "some classes of another dataset, and some images of each",
        config="dcf.data.options:SubsetConfig",
    ),
    Component(
        Kind.DATASET,
        "nuisance",
        "dcf.data.nuisance:Nuisance",
        "another dataset, faint, under texture that all classes share",
        config="dcf.data.options:NuisanceConfig",
    ),
)

_NETWORKS = (
    Component(
        Kind.NETWORK,
        "convnet",
        "dcf.networks.convnet:ConvNetFactory",
        "the field's ConvNet, any depth, width, norm, activation, pooling",
        config="dcf.networks.options:ConvNetConfig",
    ),
    Component(
        Kind.NETWORK, "mlp", "dcf.networks.literature:MLPFactory", "two hidden layers of 128", config=_NO_OPTIONS
    ),
    Component(Kind.NETWORK, "lenet", "dcf.networks.literature:LeNetFactory", "LeNet with ReLU", config=_NO_OPTIONS),
    Component(
        Kind.NETWORK,
        "alexnet",
        "dcf.networks.literature:AlexNetFactory",
        "AlexNet for small images",
        config="dcf.networks.options:AlexNetConfig",
    ),
    Component(
        Kind.NETWORK,
        "vgg",
        "dcf.networks.literature:VGGFactory",
        "VGG11 to VGG19 for small images",
        config="dcf.networks.options:VGGConfig",
    ),
    Component(
        Kind.NETWORK,
        "resnet10",
        "dcf.networks.literature:ResNet10Factory",
        "ResNet10 for small images",
        config="dcf.networks.options:ResNet10Config",
    ),
    Component(
        Kind.NETWORK,
        "densenet",
        "dcf.networks.densenet:DenseNetFactory",
        "DenseNet with 58 layers for small images",
        config="dcf.networks.options:DenseNetConfig",
    ),
    Component(
        Kind.NETWORK,
        "resnet18",
        "dcf.networks.literature:ResNet18Factory",
        "ResNet18 for small images",
        config="dcf.networks.options:ResNet18Config",
    ),
    Component(
        Kind.NETWORK,
        "torchvision",
        "dcf.networks.torchvision:TorchvisionFactory",
        "any torchvision classifier: torchvision:NAME",
        config="dcf.networks.options:TorchvisionConfig",
    ),
)
