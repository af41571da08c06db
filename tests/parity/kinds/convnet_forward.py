"""Logits and embedding of a network, and its batch-norm statistics after one forward pass."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from tests.parity.replay import buffers, network
from torch import Tensor

from dcf.networks.base import NetworkState


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """`logits`, `embedding` and `buf/*`."""
    # Two networks, as every pass moves the statistics.
    once, again = _network(case), _network(case)
    outputs = {"out/logits": once(case["images"]), "out/embedding": again.embed(case["images"])}
    return {**outputs, **buffers(case, once)}


def _network(case: Case) -> NetworkState:
    state = network(case)
    if case.hyper.get("mode", "train") == "eval":
        state.eval()
    return state
