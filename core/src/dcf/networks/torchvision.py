"""Any classification network of torchvision, untrained and made fit for condensation."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torchvision.models
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import StochasticDepth

from dcf.config import Config as BaseConfig
from dcf.errors import ConfigError, UsageError
from dcf.networks.base import Network, NetworkFactory
from dcf.networks.layers import BatchNorm, LayerNorm, dry_shape
from dcf.networks.options import TorchvisionConfig
from dcf.types import DataSpec

__all__ = ["TorchvisionFactory", "TorchvisionNetwork"]


class TorchvisionNetwork(Network):
    """A classification network whose last linear layer becomes `classifier`; its input is the embedding.

    Changes to `model`: no layer works in place; dropout and stochastic depth are left out, since a network must be a
    function of its weights; batch and layer norms are ours, which `torch.func` can transform; attention runs in its
    unfused form, the only one that can be differentiated twice; the classifier is initialised as any linear layer
    (some networks start it at zero, which would hide all other layers from the gradient).

    Args:
        model: A module that maps `(N, 3, H, W)` to `(N, K)` and ends in a linear layer; it is changed.
        channels: Of the images; the first convolution is replaced by one with this many inputs if they differ.
        label: What messages call it.

    Raises:
        UsageError: When `model` has no linear layer or no convolution to adapt.
    """

    def __init__(self, model: nn.Module, channels: int, label: str = "torchvision") -> None:
        super().__init__()
        self._label = label
        _replace(model, _functional_layer)
        _adapt_channels(model, channels, label)
        classifier = _detach_classifier(model, label)
        self.model = model
        self.classifier = classifier
        self._attends = any(isinstance(m, nn.MultiheadAttention) for m in model.modules())

    def train(self, mode: bool = True) -> TorchvisionNetwork:
        """Set the mode of all layers but attention, which has no randomness left and is fused when it evaluates."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.training = True
        return self

    @property
    def label(self) -> str:
        """Such as `torchvision:resnet18`."""
        return self._label

    def features(self, x: Tensor) -> Tensor:
        """Embed `(N, C, H, W)` images as `(N, F)`, the input of the last linear layer."""
        with self._kernel():
            return self.model(x)  # type: ignore[no-any-return]

    def _kernel(self) -> AbstractContextManager[Any]:
        return sdpa_kernel(SDPBackend.MATH) if self._attends else nullcontext()


def _replace(model: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> None:
    for name, module in list(model.named_modules()):
        new = convert(module)
        if new is not module:
            _put(model, name, new)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _functional_layer(layer: nn.Module) -> nn.Module:
    """`layer` itself, no longer in place, or what stands for it in a network that is a function of its weights."""
    if isinstance(layer, (nn.modules.dropout._DropoutNd, StochasticDepth)):
        return nn.Identity()
    if isinstance(layer, nn.BatchNorm2d) and not isinstance(layer, BatchNorm):
        new = BatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        new.load_state_dict(layer.state_dict())
        return new
    if isinstance(layer, nn.LayerNorm):
        kind = _ChannelNorm if isinstance(layer, LayerNorm2d) else LayerNorm
        affine = layer.elementwise_affine
        norm = kind(layer.normalized_shape, layer.eps, affine, layer.bias is not None)
        norm.load_state_dict(layer.state_dict())
        return norm
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return _GlobalAverage()
    if isinstance(layer, nn.MultiheadAttention):
        layer.dropout = 0.0
    if getattr(layer, "inplace", False) is True:
        layer.inplace = False  # type: ignore[assignment]
    return layer


class _GlobalAverage(nn.Module):
    """`(N, C, H, W)` to `(N, C, 1, 1)`; unlike adaptive pooling it has a fast `vmap` in every memory format."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1), keepdim=True)


class _ChannelNorm(LayerNorm):
    """Layer normalisation over the channels of each pixel of `(N, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _adapt_channels(model: nn.Module, channels: int, label: str) -> None:
    name, conv = next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if conv is None:
        raise UsageError(f"network '{label}' has no convolution to adapt to {channels} channels; choose another")
    if conv.in_channels == channels:
        return
    options = {key: getattr(conv, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    _put(model, name, nn.Conv2d(channels, conv.out_channels, bias=conv.bias is not None, **options))


def _detach_classifier(model: nn.Module, label: str) -> nn.Linear:
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise UsageError(f"network '{label}' does not end in a linear layer, so it has no embedding; choose another")
    name, classifier = linears[-1]
    _put(model, name, nn.Identity())
    classifier.reset_parameters()
    return classifier


class TorchvisionFactory(NetworkFactory):
    """The `torchvision` component: `torchvision:NAME`, initialised afresh, no weights are downloaded.

    Raises:
        ConfigError: When torchvision has no classification network of that name.
    """

    Config = TorchvisionConfig

    def __init__(self, config: BaseConfig | None = None) -> None:
        super().__init__(config)
        self._fits: set[tuple[int, int, int]] = set()
        names = torchvision.models.list_models(module=torchvision.models)
        if self.config.name not in names:
            raise _unknown(self.config.name, names)

    def build(self, spec: DataSpec) -> TorchvisionNetwork:
        """A network for images of `spec`.

        Raises:
            UsageError: When the network cannot take images of this size, or cannot be split into embedding and
                classifier.
        """
        label = f"torchvision:{self.config.name}"
        try:
            model = torchvision.models.get_model(
                self.config.name, weights=None, num_classes=spec.num_classes, **_size_options(self.config.name, spec)
            )
            network = TorchvisionNetwork(model, spec.channels, label)
            if spec.shape not in self._fits:
                dry_shape(network, spec.shape)
                self._fits.add(spec.shape)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UsageError(_cannot_take(label, spec, error)) from error
        return network


def _size_options(name: str, spec: DataSpec) -> dict[str, Any]:
    """What the builders of some networks must be told."""
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])
        if spec.height != spec.width or spec.height % patch:
            raise ValueError(f"it needs square images whose side is a multiple of {patch}")
        return {"image_size": spec.height}
    if name.startswith("maxvit"):
        return {"input_size": (spec.height, spec.width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False}
    return {}


def _cannot_take(label: str, spec: DataSpec, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    shape = "x".join(map(str, spec.shape))
    return f"network '{label}' cannot take {shape} images: {reason}; resize the images or choose another network"


def _unknown(name: str, names: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, names, n=1)
    hints = [f"did you mean '{close[0]}'?"] if close else []
    text = f"torchvision:{name}"
    return ConfigError(
        f"torchvision has no classification network '{name}'",
        text,
        (len(text) - len(name), len(text)),
        [*hints, f"choices: {', '.join(names)}"],
    )
