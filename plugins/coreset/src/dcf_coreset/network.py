"""The network that looks at the images: trained once on the real data, then kept and shared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

import dcf
from dcf.artifacts import Artifact, Artifacts
from dcf.build import create, stacked
from dcf.data import RealData, Split
from dcf.seeding import generator
from dcf.session import make_augmenter
from dcf.training import Schedule, Trained, random_augmentation, shuffled, train
from dcf_coreset.options import TrainingConfig

__all__ = [
    "AUTO",
    "Auto",
    "Plan",
    "TrainedNetwork",
    "auto_epochs",
    "fit",
    "kept",
    "key_of",
    "plan_of",
    "trained_network",
]

log = logging.getLogger(__name__)

#: Raised when the same options train another network.
ALGORITHM: Final = 1
#: Images that are embedded in one forward pass.
_BATCH: Final = 256
_MOMENTUM: Final = 0.9
_WEIGHT_DECAY: Final = 5e-4


@dataclass(frozen=True)
class Auto:
    """What `epochs=auto` stands for: as many epochs as make about `steps`, within bounds.

    Args:
        steps: Optimiser steps aimed at.
        least: Epochs at least.
        most: Epochs at most.
    """

    steps: int
    least: int
    most: int


#: For a network whose features or predictions are used.
AUTO: Final = Auto(steps=1200, least=1, most=40)


def auto_epochs(images: int, batch: int, auto: Auto) -> int:
    """Epochs that `epochs=auto` stands for.

    Args:
        images: Training images.
        batch: Images a step.
        auto: Steps aimed at, and bounds.

    Example:
        >>> auto_epochs(60000, 128, AUTO), auto_epochs(1437, 128, AUTO)
        (3, 40)
    """
    return min(max(round(auto.steps / _steps(images, batch)), auto.least), auto.most)


def _steps(images: int, batch: int) -> int:
    return max(1, -(-images // batch))


@dataclass(frozen=True)
class Plan:
    """How one network is trained; with the data it decides the result.

    Args:
        network: Network spec.
        augment: Augmenter spec.
        epochs: Passes over the training images.
        batch: Images a step.
        lr: Step size at the start.
        anneal: Whether it falls to 0 along half a cosine, rather than staying.
        seed: Of weights, orders and augmentation.
        number: Of the network, among several of the same seed.
    """

    network: str
    augment: str
    epochs: int
    batch: int
    lr: float
    anneal: bool
    seed: int
    number: int = 0


def plan_of(config: TrainingConfig, images: int, auto: Auto = AUTO, anneal: bool = True, number: int = 0) -> Plan:
    """The plan that options give for a dataset of so many training images."""
    epochs = auto_epochs(images, config.batch, auto) if config.epochs == "auto" else config.epochs
    return Plan(config.network, config.augment, epochs, config.batch, config.lr, anneal, config.feature_seed, number)


def key_of(data: RealData, plan: Plan) -> dict[str, Any]:
    """Everything that decides the trained network, JSON-ready."""
    networks, augmenter = create(dcf.Kind.NETWORK, plan.network), make_augmenter(plan.augment, "augment")
    return {
        "algorithm": ALGORITHM,
        "data": data.checksum,
        "classes": data.spec.num_classes,
        "space": data.spec.space.to_json(),
        "device": data.train.device.type,
        "network_options": networks.config.model_dump(mode="json"),
        "augment_options": [part.config.model_dump(mode="json") for part in stacked(augmenter)],
        **asdict(plan),
    }


def fit(
    data: RealData, plan: Plan, fetch: Callable[[Tensor], dcf.Batch], watch: Callable[..., None] | None = None
) -> tuple[dcf.NetworkState, Trained]:
    """Train a network on the real images, by SGD with momentum 0.9 and weight decay 5e-4.

    Args:
        data: The real data.
        plan: How.
        fetch: Images and labels of indices.
        watch: Called as a forward hook of the whole network, before each optimiser step.

    Returns:
        The network, on the device of the data, and what the training did.

    Raises:
        NonFiniteError: When the loss of the last epoch is not finite.
    """
    device, factory = data.train.device, create(dcf.Kind.NETWORK, plan.network)
    state = factory.create(data.spec, plan.seed, "feature network", plan.number, device=device)
    handle = state.module.register_forward_hook(watch) if watch is not None else None
    draws = generator(plan.seed, "feature augment", plan.number)
    trained = train(
        state,
        fetch,
        shuffled(len(data.train), generator(plan.seed, "feature order", plan.number), device),
        Schedule.cosine(plan.lr, plan.epochs) if plan.anneal else Schedule.constant(plan.lr, plan.epochs),
        batch=plan.batch,
        momentum=_MOMENTUM,
        weight_decay=_WEIGHT_DECAY,
        augmentation=random_augmentation(
            make_augmenter(plan.augment, "augment"), data.spec.shape, draws, data.spec.num_classes
        ),
        tally=True,
    )
    if handle is not None:
        handle.remove()
    if trained.loss is None or not bool(torch.isfinite(trained.loss)):
        raise dcf.NonFiniteError(
            f"the network '{plan.network}' that looks at the images diverged at lr={plan.lr}; give the selector a "
            "smaller one, such as lr=0.005"
        )
    return state, trained


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with the weights that its plan gives, in evaluation mode.

    Args:
        state: The network.
        sha256: Of its weights.
        accuracy: On the training images over the last epoch, each batch before its step, in [0, 1].
        shape: `(C, H, W)` of the images.
    """

    state: dcf.NetworkState
    sha256: str
    accuracy: float
    _prefix: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        module = self.state.module
        name = next(name for name, part in module.named_modules() if part is module.classifier)
        object.__setattr__(self, "_prefix", name + ".")
        self.state.eval()

    @torch.no_grad()
    def embed(self, split: Split, index: Tensor) -> Tensor:
        """`(n, F)` float32 embeddings of the images with these numbers."""
        return torch.cat([self.state.embed(split.images(part)) for part in torch.split(index, _BATCH)])

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """`(n, K)` logits of embeddings `(n, F)`."""
        start = self._prefix
        weights = {k.removeprefix(start): p for k, p in self.state.params.items() if k.startswith(start)}
        logits: Tensor = functional_call(self.state.module.classifier, weights, (features,))
        return logits

    @property
    def head_has_bias(self) -> bool:
        """Whether the last layer has a bias.

        Raises:
            UsageError: When it is not linear.
        """
        head = self.state.module.classifier
        if not isinstance(head, nn.Linear):
            raise dcf.UsageError(f"expected a network that ends in a linear layer, got {type(head).__name__}")
        return head.bias is not None


def kept(data: RealData, plan: Plan, kind: str, make: Callable[[], Mapping[str, Tensor]]) -> Artifact:
    """What a training leaves: read from the user's folder of caches, or made and kept there.

    Args:
        data: The real data.
        plan: How the network is trained.
        kind: What is kept.
        make: Trains, and returns the tensors to keep.
    """
    store, key = Artifacts(), key_of(data, plan)
    steps = plan.epochs * _steps(len(data.train), plan.batch)

    def announced() -> Mapping[str, Tensor]:
        log.info(
            "training %s to look at the images: %d epochs, %d steps; kept in '%s'",
            *(plan.network, plan.epochs, steps, store.path(key, kind)),
        )
        return make()

    return store.get_or_make(key, announced, kind)


def trained_network(data: RealData, plan: Plan) -> TrainedNetwork:
    """The network of a plan: read from the user's folder of caches, or trained and kept there.

    Args:
        data: The real data.
        plan: How it is trained.

    Raises:
        NonFiniteError: When its training diverges.
    """

    def make() -> Mapping[str, Tensor]:
        split = data.train
        state, trained = fit(data, plan, lambda index: dcf.Batch(split.images(index), split.labels[index]))
        weights = {f"net.{name}": value for name, value in {**state.params, **state.buffers}.items()}
        return {**weights, "accuracy": torch.as_tensor(trained.accuracy)}

    found = kept(data, plan, "feature-network", make)
    state = create(dcf.Kind.NETWORK, plan.network).create(data.spec, plan.seed, device=data.train.device)
    named = {k.removeprefix("net."): v for k, v in found.tensors.items() if k != "accuracy"}
    state.load({k: v.to(data.train.device) for k, v in named.items()})
    return TrainedNetwork(state, found.sha256, float(found.tensors["accuracy"]))
