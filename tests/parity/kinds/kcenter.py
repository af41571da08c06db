"""Farthest-first traversal from given samples."""

from __future__ import annotations

import torch
from tests.parity.case import Case, ParityError
from torch import Tensor

from dcf_coreset.ordering import k_center_order


def compute(case: Case) -> dict[str, Tensor]:
    """`order`: ids in the order chosen, the initial ones first."""
    if case.hyper.get("metric", "euclidean") != "euclidean":
        raise ParityError(f"expected the metric 'euclidean', got '{case.hyper['metric']}'")
    ids = case["ids"]
    start = torch.cat([(ids == one).nonzero().flatten() for one in case["initial"]])
    return {"out/order": ids[k_center_order(case["features"], case.hyper["total"], start)]}
