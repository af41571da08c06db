"""Networks that are trained on the real data once, kept, and matched in turn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

import dcf
from dcf.artifacts import Artifacts
from dcf.build import spec_text, stacked
from dcf.training import evaluate_accuracy
from dcf_idc.options import IDCConfig
from dcf_idc.training import Trainee

__all__ = ["pretrained", "pretraining_key"]

log = logging.getLogger(__name__)

#: Raised when the same options train other networks.
VERSION: Final = 1
#: Names the folder they are kept in.
KIND: Final = "pretrained-networks"
#: Of their weights, orders and augmentation: not the run's, so that runs share them.
_SEED: Final = 0


def pretraining_key(ctx: dcf.Context, config: IDCConfig, augmenter: dcf.Augmenter, number: int) -> dict[str, Any]:
    """Everything that decides a network that is trained in advance, JSON-ready.

    Args:
        ctx: The run.
        config: The matcher's options.
        augmenter: Of the training.
        number: Of the network.
    """
    return {
        "version": VERSION,
        "data": ctx.data.checksum,
        "space": ctx.spec.space.to_json(),
        "device": ctx.device.type,
        "network": spec_text(dcf.Kind.NETWORK, ctx.networks),
        "network_options": ctx.networks.config.model_dump(mode="json"),
        "augment": spec_text(dcf.Kind.AUGMENTER, augmenter),
        "augment_options": [part.config.model_dump(mode="json") for part in stacked(augmenter)],
        "epochs": config.pretrained_epochs,
        "batch": config.batch_train,
        "lr": config.lr_net,
        "momentum": config.momentum_net,
        "weight_decay": config.decay_net,
        "number": number,
    }


def pretrained(ctx: dcf.Context, config: IDCConfig, augmenter: dcf.Augmenter) -> list[Mapping[str, Tensor]]:
    """Weights and buffers by name of each network, on the CPU: read, or trained and kept.

    Args:
        ctx: The run.
        config: The matcher's options.
        augmenter: Of the training.

    Raises:
        Stopped: When the user asks to stop between two networks.
    """
    store, found = Artifacts(), []
    for number in range(config.pretrained):
        ctx.check_stop()
        key = pretraining_key(ctx, config, augmenter, number)
        kept = store.get_or_make(key, lambda number=number: _trained(ctx, config, augmenter, number), KIND)
        if kept.made:
            ctx.report("training networks on the real data", number + 1, config.pretrained)
        found.append(kept.tensors)
    return found


def _trained(ctx: dcf.Context, config: IDCConfig, augmenter: dcf.Augmenter, number: int) -> Mapping[str, Tensor]:
    net = ctx.networks.create(ctx.spec, _SEED, KIND, number, device=ctx.device)
    Trainee(ctx, net, config, augmenter, KIND, number, seed=_SEED).epochs(config.pretrained_epochs)
    log.info("network %d: accuracy %.3f on the real data", number, evaluate_accuracy(net, ctx.data.train).value)
    return {**net.params, **net.buffers}
