"""One operation of DSA with recorded values."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from tests.parity.replay import rows
from torch import Tensor

from dcf.types import Batch
from dcf_dsa.augment import DSA


def compute(case: Case) -> dict[str, Tensor]:
    """`images`."""
    images, op = case["images"], case.hyper["op"]
    augment = DSA(DSA.Config(cutout=case.hyper.get("ratio_cutout", 0.5)))
    batch = Batch(images, torch.zeros(len(images), dtype=torch.long))
    return {"out/images": augment.apply(batch, [(op, rows(op, case["param"]))]).x}
