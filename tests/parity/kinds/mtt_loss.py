"""Trajectory matching: a student's training on the set, its loss, and the gradients of images and step size."""

from __future__ import annotations

import torch
from tests.parity.case import Case, ParityError
from tests.parity.replay import augmenter, draws, network, parameters
from torch import Tensor

from dcf.networks.base import NetworkState
from dcf.training import Augmentation
from dcf.types import Batch
from dcf.unroll import stateless, train_on
from dcf_mtt.student import scale_gradient, student_batches, trajectory_loss

#: What the case calls a method -> how the student's training is differentiated.
_MODES = {"mtt": "adjoint", "tesla": "tesla"}


def compute(case: Case) -> dict[str, Tensor]:
    """`student`, `loss`, `dsyn` and `dlr`."""
    method = case.hyper.get("method", "mtt")
    if method not in _MODES:
        raise ParityError(f"expected the method {' or '.join(_MODES)}, got '{method}'")
    net = network(case, "start")
    start = {name: weight.detach() for name, weight in net.params.items()}
    target = {name: weight.detach() for name, weight in network(case, "target").params.items()}
    syn, lr = case["syn"].clone().requires_grad_(), case["lr"].clone().reshape(()).requires_grad_()
    images = scale_gradient(syn, float(case.hyper.get("image_gradient_factor", 1.0)))
    orders = batches(case)
    lrs, data = lr.expand(len(orders)), Batch(images, case["labels"])
    ended = train_on(stateless(net), start, data, orders, lrs, mode=_MODES[method], augment=recorded(case))
    loss = trajectory_loss(ended, start, target)
    dsyn, dlr = torch.autograd.grad(loss, [syn, lr])
    return {
        "out/student": flat(case, net, ended),
        "out/loss": loss.detach(),
        "out/dsyn": dsyn,
        "out/dlr": dlr.reshape(case.wanted["out/dlr"].shape),
    }


def batches(case: Case) -> list[Tensor]:
    """The images of each step, made of the recorded permutations; they must be the recorded ones.

    Raises:
        ParityError: When they are not.
    """
    given = list(case.group("batch").values())
    orders = list(case.group("perm").values())
    if not orders:
        return given
    size = int(case.hyper.get("batch_syn") or len(case["syn"]))
    made = student_batches(orders, size, int(case.hyper.get("steps", len(given))))
    if given and not all(map(torch.equal, made, given)):
        raise ParityError("the batches made of the recorded permutations are not the recorded ones")
    return made


def recorded(case: Case) -> Augmentation | None:
    """The recorded draws, one a step."""
    values = draws(case)
    return Augmentation(augmenter(case), lambda step, _: values[step]) if values else None


def flat(case: Case, net: NetworkState, weights: dict[str, Tensor]) -> Tensor:
    """All weights in one vector, in the order of the case."""
    ordered = parameters(case, {name: weights[name].detach() for name in net.params}, "w")
    return torch.cat([weight.reshape(-1) for weight in ordered.values()])
