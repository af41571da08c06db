"""A training with momentum on decoded mini-batches, judged on real images; gradients of all that is stored."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from tests.parity.replay import data_spec, network, parameters
from torch import Tensor

from dcf.types import Batch
from dcf.unroll import stateless, train_on
from dcf_bptt.training import real_loss
from dcf_memory.param import Memory


def compute(case: Case) -> dict[str, Tensor]:
    """`loss`, `dbases`, `daddresses` and `dnet/*`."""
    param, net = memory(case), network(case)
    steps, logits = list(case.group("batch").values())[: case.hyper["inner_steps"]], stateless(net)
    used = torch.cat(steps).unique()
    weights = train_on(
        logits,
        net.params,
        param.batch(used),
        [torch.searchsorted(used, step) for step in steps],
        torch.full((len(steps),), case.hyper["lr"], dtype=case.dtype),
        momentum=case.hyper["momentum"],
    )
    loss, _ = real_loss(logits, weights, Batch(case["real"], case["real_labels"]))
    learned = [param.bases, param.addresses, *net.parameters()]
    dbases, daddresses, *dnet = torch.autograd.grad(loss, learned, materialize_grads=True)
    return {
        "out/loss": loss.detach(),
        "out/dbases": dbases,
        "out/daddresses": daddresses.view_as(case["addresses"]),
        **parameters(case, dict(zip(net.params, dnet, strict=True)), "out/dnet"),
    }


def memory(case: Case) -> Memory:
    """The set that stores `bases` and `addresses`, class-major."""
    addresses = case["addresses"].flatten(0, -2)
    param = Memory(Memory.Config(bases=len(case["bases"]), down=int(case.hyper.get("downsample_scale", 1))))
    param.allocate(data_spec(case), torch.arange(len(addresses)) // case.hyper["ipc"])
    param.to(case.dtype)
    with torch.no_grad():
        param.bases.copy_(case["bases"])
        param.addresses.copy_(addresses)
    return param
