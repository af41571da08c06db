"""Herding within each class."""

from __future__ import annotations

from tests.parity.case import Case
from torch import Tensor

from dcf_coreset.ordering import herding_order


def compute(case: Case) -> dict[str, Tensor]:
    """`herding/CCC` for every class that is asked for: ids in the order chosen."""
    labels, found = case["labels"], {}
    for name in case.wanted:
        members = (labels == int(name.rpartition("/")[2])).nonzero().flatten()
        order = herding_order(case["features"][members], min(case.hyper["budget"], len(members)))
        found[name] = case["ids"][members[order]]
    return found
