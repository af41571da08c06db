"""Published names of networks and pools, in terms of component specs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from dcf.errors import UsageError

__all__ = ["POOLS", "REFERENCE_NAMES", "from_published_names", "published_spec"]

#: Names of the networks in the released code of Zhao et al. (ICLR 2021) and its successors. There every ConvNet has
#: depth 3 unless its name says otherwise, at every image size.
REFERENCE_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ConvNet": "convnet:depth=3",
        "ConvNetD1": "convnet:depth=1",
        "ConvNetD2": "convnet:depth=2",
        "ConvNetD3": "convnet:depth=3",
        "ConvNetD4": "convnet:depth=4",
        "ConvNetW32": "convnet:width=32,depth=3",
        "ConvNetW64": "convnet:width=64,depth=3",
        "ConvNetW128": "convnet:width=128,depth=3",
        "ConvNetW256": "convnet:width=256,depth=3",
        "ConvNetAS": "convnet:depth=3,activation=sigmoid",
        "ConvNetAR": "convnet:depth=3,activation=relu",
        "ConvNetAL": "convnet:depth=3,activation=leakyrelu",
        "ConvNetASwish": "convnet:depth=3,activation=swish",
        "ConvNetASwishBN": "convnet:depth=3,norm=batch,activation=swish",
        "ConvNetNN": "convnet:depth=3,norm=none",
        "ConvNetBN": "convnet:depth=3,norm=batch",
        "ConvNetLN": "convnet:depth=3,norm=layer",
        "ConvNetIN": "convnet:depth=3,norm=instance",
        "ConvNetGN": "convnet:depth=3,norm=group",
        "ConvNetNP": "convnet:depth=3,pooling=none",
        "ConvNetMP": "convnet:depth=3,pooling=max",
        "ConvNetAP": "convnet:depth=3,pooling=avg",
        "MLP": "mlp",
        "LeNet": "lenet",
        "AlexNet": "alexnet",
        "AlexNetBN": "alexnet:norm=batch",
        "VGG11": "vgg:depth=11",
        "VGG11BN": "vgg:depth=11,norm=batch",
        "ResNet18": "resnet18",
        "ResNet18BN": "resnet18:norm=batch",
        "ResNet18BN_AP": "resnet18:norm=batch,downsample=avgpool",
    }
)

#: Networks that the literature tests a condensed set on. ConvNets here follow the image size where their depth is not
#: the subject, as published for 64x64 and above. `dcbench` is the part of that pool which core has.
POOLS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "vico-m": ("mlp", "convnet", "lenet", "alexnet", "vgg:depth=11", "resnet18"),
        "vico-b": (
            "convnet:norm=batch",
            "convnet:norm=batch,activation=swish",
            "alexnet:norm=batch",
            "vgg:depth=11,norm=batch",
            "resnet18:norm=batch",
        ),
        "width": ("convnet:width=32", "convnet:width=64", "convnet:width=128", "convnet:width=256"),
        "depth": ("convnet:depth=1", "convnet:depth=2", "convnet:depth=3", "convnet:depth=4"),
        "activation": (
            "convnet:activation=sigmoid",
            "convnet:activation=relu",
            "convnet:activation=leakyrelu",
            "convnet:activation=swish",
        ),
        "pooling": ("convnet:pooling=none", "convnet:pooling=max", "convnet:pooling=avg"),
        "norm": (
            "convnet:norm=none",
            "convnet:norm=batch",
            "convnet:norm=layer",
            "convnet:norm=instance",
            "convnet:norm=group",
        ),
        "mtt": ("convnet", "alexnet", "vgg:depth=11", "resnet18:downsample=avgpool", "resnet18"),
        "idc": ("convnet", "resnet10:norm=batch", "densenet"),
        "haba": ("convnet", "alexnet", "vgg:depth=11", "resnet18"),
        "dcbench": ("mlp", "convnet:depth=1", "convnet:depth=2", "convnet", "convnet:depth=4", "alexnet", "resnet18"),
    }
)

_NORMS = {
    "instancenorm": "instance",
    "batchnorm": "batch",
    "layernorm": "layer",
    "groupnorm": "group",
    "none": "none",
}
_POOLINGS = {"avgpooling": "avg", "maxpooling": "max", "none": "none"}


def published_spec(net: Mapping[str, Any]) -> str:
    """The component spec of a network described in the terms of the released code.

    Args:
        net: `arch` ("convnet" or "lenet"); for a convnet also `width`, `depth`, `act`, `norm`, `pool`.

    Raises:
        UsageError: When the architecture, norm or pooling is unknown.

    Example:
        >>> published_spec({"arch": "lenet"})
        'lenet'
    """
    arch: str = _choice({"convnet": "convnet", "lenet": "lenet"}, net["arch"], "architecture")
    if arch == "lenet":
        return arch
    norm, pooling = _choice(_NORMS, net["norm"], "norm"), _choice(_POOLINGS, net["pool"], "pooling")
    return f"{arch}:width={net['width']},depth={net['depth']},norm={norm},activation={net['act']},pooling={pooling}"


def from_published_names(names: Sequence[str], arch: str = "convnet") -> list[str]:
    """Our names of parameters and buffers that a published description names, in the order given.

    Args:
        names: Such as `conv1.weight`, `norm2.running_var`, `fc3.bias`, `classifier.weight`.
        arch: "convnet" or "lenet"; the last linear layer of the latter is `fc3` there and `classifier` here.

    Raises:
        UsageError: When the architecture is unknown.
    """
    renamed = _choice({"convnet": {}, "lenet": {"fc3": "classifier"}}, arch, "architecture")
    layers = [name.partition(".") for name in names]
    return [renamed.get(layer, layer) + dot + rest for layer, dot, rest in layers]


def _choice(table: Mapping[str, Any], key: str, what: str) -> Any:
    if key not in table:
        raise UsageError(f"unknown {what} '{key}', expected one of {', '.join(table)}")
    return table[key]
