"""What a network is to dcf: a module with an embedding, and a functional handle on its weights."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dcf.config import Config as BaseConfig
from dcf.errors import UsageError
from dcf.seeding import global_seed
from dcf.sending import send
from dcf.types import DataSpec

__all__ = ["Network", "NetworkFactory", "NetworkState"]


class Network(nn.Module):
    """Base of networks: `features` embeds, `classifier` maps the embedding to logits, `blocks` looks inside.

    A network must be functional (no state but parameters and buffers), safe under `torch.vmap` and twice
    differentiable: no in-place operation, no `.view` of a permuted tensor.
    """

    classifier: nn.Module

    @property
    def label(self) -> str:
        """What messages to people call this network."""
        return type(self).__name__

    def features(self, x: Tensor) -> Tensor:
        """Embed `(N, C, H, W)` images as `(N, F)`, the input of `classifier`."""
        raise NotImplementedError

    def blocks(self, x: Tensor) -> list[Tensor]:
        """Outputs `(N, ...)` of the network's blocks, first to last; the embedding alone where it has none."""
        return [self.features(x)]

    def forward(self, x: Tensor, embed: bool = False, blocks: bool = False) -> Tensor | list[Tensor]:
        """Logits `(N, K)` of images `(N, C, H, W)`, or with `embed` the embedding `(N, F)`, or with `blocks` those."""
        if blocks:
            return self.blocks(x)
        features = self.features(x)
        return features if embed else self.classifier(features)


class NetworkFactory:
    """Base of network components: options in, a freshly initialised `Network` for some data out."""

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    #: Whether a run that needs second derivatives tries one before it starts; False where they are known to exist.
    needs_preflight: ClassVar[bool] = True

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def build(self, spec: DataSpec) -> Network:
        """A network for images of `spec`, initialised from torch's global generator (PyTorch's defaults)."""
        raise NotImplementedError

    def create(self, spec: DataSpec, seed: int, *stream: str | int, device: torch.device | str = "cpu") -> NetworkState:
        """A fresh network whose weights depend only on `seed` and `stream`; global generators are untouched."""
        with global_seed(seed, *stream):
            module = self.build(spec)
        # It comes from the CPU, so a GPU need not finish its other work first.
        state = NetworkState(module._apply(lambda tensor: send(tensor, device)))  # type: ignore[no-untyped-call]
        state.origin = (type(self), self.config.model_dump_json(), spec)
        return state


class NetworkState:
    """A network as a function of explicit weights.

    Attributes:
        module: The skeleton; its own parameters are not used once this handle exists.
        params: Leaf tensors by name, in `named_parameters` order; they require gradients.
        buffers: Such as batch-norm statistics. A forward pass in training mode updates them in place, except inside
            `torch.func` transforms such as `vmap`, where they stay (see `dcf.networks.layers.BatchNorm`).
        origin: What the network was made from: two of the same origin compute the same function of weights. None
            where that is not known.
    """

    origin: Hashable | None = None

    def __init__(self, module: Network) -> None:
        self.module = module
        self.params: dict[str, Tensor] = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
        self.buffers: dict[str, Tensor] = {k: b.detach() for k, b in module.named_buffers()}
        module.train()

    @property
    def batch_norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        """The batch-normalising layers, whose output depends on the whole batch."""
        return [m for m in self.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __call__(self, x: Tensor, params: Mapping[str, Tensor] | None = None, embed: bool = False) -> Tensor:
        """Logits `(N, K)`, or embeddings `(N, F)`, of images `(N, C, H, W)` under `params` (default: its own)."""
        weights = self.params if params is None else params
        return functional_call(self.module, ({**weights}, self.buffers), (x,), {"embed": embed})  # type: ignore[no-any-return]

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings `(N, F)` of images `(N, C, H, W)`."""
        return self(x, embed=True)

    def blocks(self, x: Tensor, params: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Outputs `(N, ...)` of each block for images `(N, C, H, W)`, under `params` (default: its own)."""
        weights = self.params if params is None else params
        return functional_call(self.module, ({**weights}, self.buffers), (x,), {"blocks": True})  # type: ignore[no-any-return]

    def train(self) -> None:
        """Training mode for every layer."""
        self.module.train()

    def eval(self) -> None:
        """Evaluation mode for every layer."""
        self.module.eval()

    def freeze_batch_norms(self) -> None:
        """Let batch norms use their running statistics; all other layers keep their mode."""
        for layer in self.batch_norms:
            layer.eval()

    def parameters(self) -> list[Tensor]:
        """The weights in order."""
        return list(self.params.values())

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Replace weights and buffers by copies of given ones, which also set the dtype.

        Args:
            values: Every parameter, and any of the buffers, by name, in any order; floating buffers that are not
                given are cast to the dtype of the parameters.

        Raises:
            UsageError: When a parameter is missing, a name is unknown or a shape differs.
        """
        _check_names(values, self.params, self.buffers)
        self.params = {k: values[k].detach().clone().requires_grad_() for k in self.params}
        dtype = next(iter(self.params.values())).dtype
        for k, b in self.buffers.items():
            own = values.get(k, b).detach().clone()
            self.buffers[k] = own.to(dtype) if own.is_floating_point() else own


def _check_names(values: Mapping[str, Tensor], params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    known = {**params, **buffers}
    wrong = sorted(set(params) - set(values)) + sorted(set(values) - set(known))
    if wrong:
        raise UsageError(f"expected the weights {', '.join(params)}; missing or unknown: {', '.join(wrong)}")
    for name, value in values.items():
        if value.shape != known[name].shape:
            raise UsageError(f"weight '{name}': expected shape {tuple(known[name].shape)}, got {tuple(value.shape)}")
