"""One training on ordered images with learned step sizes, judged on real images; gradients of images and step sizes."""

from __future__ import annotations

import torch
from tests.parity.case import Case, ParityError
from tests.parity.replay import network
from torch import Tensor

from dcf.types import Batch
from dcf.unroll import StepSizes, stateless, train_on
from dcf_bptt.order import cycled
from dcf_bptt.training import real_loss


def compute(case: Case) -> dict[str, Tensor]:
    """`loss`, `dsyn/SSS`, `d_raw_lrs`, `d_lrs`, and norm and sum of all trained weights."""
    images = [x.requires_grad_() for x in case.group("syn").values()]
    sizes, net = step_sizes(case["raw_lrs"]), network(case)
    lrs, logits = sizes(), stateless(net)
    start = {name: weight.detach() for name, weight in net.params.items()}
    weights = train_on(logits, start, joined(images, case["labels"]), steps(case, images), lrs)
    loss, _ = real_loss(logits, weights, Batch(case["real"], case["real_labels"]))
    d_lrs, d_raw, *dsyn = torch.autograd.grad(loss, [lrs, sizes.raw, *images])
    trained = torch.cat([weight.detach().flatten() for weight in weights.values()])
    return {
        "out/loss": loss.detach(),
        **{f"out/dsyn/{number:03d}": gradient for number, gradient in enumerate(dsyn)},
        "out/d_raw_lrs": d_raw,
        "out/d_lrs": d_lrs,
        "out/final_params_norm": trained.norm(),
        "out/final_params_sum": trained.sum(),
    }


def step_sizes(raw: Tensor) -> StepSizes:
    """The recorded step sizes, as what softplus makes them from."""
    sizes = StepSizes([1.0] * len(raw), "softplus")
    sizes.raw = raw.clone().requires_grad_()
    return sizes


def joined(images: list[Tensor], labels: Tensor) -> Batch:
    """The images of all batches, one after the other; each batch has the same labels."""
    return Batch(torch.cat(images), labels.repeat(len(images)))


def steps(case: Case, images: list[Tensor]) -> list[Tensor]:
    """Positions of each training step among the joined images."""
    if case.hyper["distill_steps"] != len(images):
        raise ParityError(f"expected {case.hyper['distill_steps']} batches of images, got {len(images)}")
    positions = torch.arange(sum(map(len, images))).split([len(x) for x in images])
    return cycled(positions, len(images) * case.hyper["distill_epochs"])
