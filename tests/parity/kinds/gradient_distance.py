"""Distance of two lists of gradients, and its own gradient."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from tests.parity.replay import numbered
from torch import Tensor

from dcf.matching import gradient_distance


def compute(case: Case) -> dict[str, Tensor]:
    """`distance` and `dsyn/*`."""
    syn = [tensor.requires_grad_() for tensor in case.group("syn").values()]
    real = list(case.group("real").values())
    one_class = gradient_distance([s[None] for s in syn], [r[None] for r in real], case.hyper["metric"])
    distance = one_class.squeeze(0)
    found = torch.autograd.grad(distance, syn, materialize_grads=True)
    return {"out/distance": distance, **numbered("out/dsyn", found)}
