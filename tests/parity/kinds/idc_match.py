"""The distance of gradients or block outputs of one real and one synthetic batch, and the gradient of the latter."""

from __future__ import annotations

import torch
from tests.parity.case import Case, ParityError
from tests.parity.replay import network
from torch import Tensor

from dcf.types import Batch
from dcf_idc.distance import feature_loss, gradient_loss
from dcf_idc.matcher import IDC


def compute(case: Case) -> dict[str, Tensor]:
    """`loss` and `dsyn`."""
    images = case["syn"].clone().requires_grad_()
    loss = distance(case, images)
    (gradient,) = torch.autograd.grad(loss, images)
    return {"out/loss": loss, "out/dsyn": gradient}


def distance(case: Case, images: Tensor) -> Tensor:
    """The distance, of both batches as those of one class."""
    net, hyper = network(case), case.hyper
    metric, real = hyper["metric"], case["real"]
    if hyper["match"] == "feat":
        return feature_loss(net, real[None], images[None], metric, blocks(case)).squeeze(0)
    if hyper["match"] != "grad":
        raise ParityError(f"unknown match '{hyper['match']}'")
    theirs = Batch(real[None], case["real_labels"][None])
    ours = Batch(images[None], case["syn_labels"][None])
    return gradient_loss(net, theirs, ours, metric, bool(hyper["bias"]), bool(hyper["fc"])).squeeze(0)


def blocks(case: Case) -> list[int]:
    """Numbers of the blocks, as the matcher reads its options."""
    last = case.hyper.get("idx_to", -1)
    options = {"match": "feat", "idx_from": case.hyper["idx_from"], "idx_to": "none" if last == -1 else last}
    return IDC(IDC.Config(**options)).blocks
