"""A network trained once on the real data, which says what labels start from; kept and shared by runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor

import dcf
from dcf.artifacts import Artifacts
from dcf.build import spec_text
from dcf.seeding import generator
from dcf.training import Schedule, shuffled, train

__all__ = ["auto_epochs", "predictions", "teacher"]

log = logging.getLogger(__name__)

#: Raised when the same options train another network.
_ALGORITHM: Final = 2
_KIND: Final = "label-teacher"
#: Where its accuracy stands beside the weights: on the training images, each batch before its step.
_ACCURACY: Final = "accuracy"
_BATCH: Final = 128
_LR: Final = 0.02
_MOMENTUM: Final = 0.9
_WEIGHT_DECAY: Final = 5e-4
#: Optimiser steps aimed at, and epochs at least and at most.
_STEPS, _LEAST, _MOST = 1200, 1, 40


def auto_epochs(images: int) -> int:
    """Epochs that `teacher_epochs=auto` stands for, given the number of training images.

    Example:
        >>> auto_epochs(60000), auto_epochs(1442)
        (3, 40)
    """
    return min(max(round(_STEPS / -(-images // _BATCH)), _LEAST), _MOST)


def teacher(ctx: dcf.Context, epochs: int | Literal["auto"] = "auto") -> dcf.NetworkState:
    """A network of the run's kind, trained on the real images: read from the folder of caches, or trained and kept.

    SGD with step size 0.02, which falls to 0 along half a cosine, momentum 0.9 and weight decay 5e-4.

    Args:
        ctx: The run; its data, kind of network and seed decide the weights.
        epochs: Passes over the training images.

    Returns:
        The network in evaluation mode.

    Raises:
        NonFiniteError: When its training diverges.
    """
    count = auto_epochs(len(ctx.data.train)) if epochs == "auto" else epochs
    found = Artifacts().get_or_make(_key(ctx, count), lambda: _trained(ctx, count), _KIND)
    state = ctx.networks.create(ctx.spec, ctx.seed, "label teacher", device=ctx.device)
    weights = {name: value.to(ctx.device) for name, value in found.tensors.items() if name != _ACCURACY}
    state.load(weights)
    state.eval()
    accuracy = 100 * float(found.tensors[_ACCURACY])
    log.info(
        "labels start from a network trained on the real images for %d epochs, right for %.1f %% of them in its last",
        *(count, accuracy),
    )
    return state


@torch.no_grad()
def predictions(state: dcf.NetworkState, images: Tensor) -> Tensor:
    """`(N, K)` probabilities that a network gives `(N, C, H, W)` images."""
    return torch.cat([state(part).softmax(1) for part in torch.split(images, _BATCH)])


def _key(ctx: dcf.Context, epochs: int) -> dict[str, Any]:
    """Everything that decides the weights, JSON-ready."""
    return {
        "algorithm": _ALGORITHM,
        "data": ctx.data.checksum,
        "classes": ctx.spec.num_classes,
        "space": ctx.spec.space.to_json(),
        "device": ctx.device.type,
        "network": spec_text(dcf.Kind.NETWORK, ctx.networks),
        "options": ctx.networks.config.model_dump(mode="json"),
        "epochs": epochs,
        "seed": ctx.seed,
    }


def _trained(ctx: dcf.Context, epochs: int) -> Mapping[str, Tensor]:
    state, split = ctx.networks.create(ctx.spec, ctx.seed, "label teacher", device=ctx.device), ctx.data.train

    def tell(epoch: int) -> None:
        ctx.report("training the network that labels start from", epoch + 1, epochs)

    trained = train(
        state,
        lambda index: dcf.Batch(split.images(index), split.labels[index]),
        shuffled(len(split), generator(ctx.seed, "label teacher order"), ctx.device),
        Schedule.cosine(_LR, epochs),
        batch=_BATCH,
        momentum=_MOMENTUM,
        weight_decay=_WEIGHT_DECAY,
        tally=True,
        after_epoch=tell,
    )
    if trained.loss is None or not bool(torch.isfinite(trained.loss)):
        raise dcf.NonFiniteError(
            "the network that labels start from diverged; take another --network, or --labels soft:init=onehot"
        )
    return {**state.params, **state.buffers, _ACCURACY: torch.as_tensor(trained.accuracy)}
