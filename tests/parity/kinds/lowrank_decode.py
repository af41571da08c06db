"""Low-rank images of given factors, their gradient, and how many a budget pays for as the released code counts."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from torch import Tensor

from dcf.space import ValueSpace
from dcf.types import DataSpec
from dcf_lowrank.budget import images_for_budget
from dcf_lowrank.param import LowRank


def compute(case: Case) -> dict[str, Tensor]:
    """`images`, `dA` and `dB`, and `budget` where the case has rows of it."""
    param = factors(case)
    images = param.images(torch.arange(len(case["A"])))
    found = torch.autograd.grad(images, [param.A, param.B], case["upstream"])
    out = {"out/images": images, "out/dA": found[0], "out/dB": found[1]}
    return {**out, "out/budget": budget(case["budget"])} if "budget" in case else out


def factors(case: Case) -> LowRank:
    """The set that stores `A` and `B`, all of one class."""
    items, channels, height, rank = case["A"].shape
    spec = DataSpec(channels, height, case["B"].shape[-1], ("0",), ValueSpace.unit(channels))
    param = LowRank(LowRank.Config(r=rank))
    param.allocate(spec, torch.zeros(items, dtype=torch.long))
    param.to(case.dtype)
    with torch.no_grad():
        for name, stored in param.latents().items():
            stored.copy_(case[name])
    return param


def budget(rows: Tensor) -> Tensor:
    """`(n,)` images a class for `(n, 4)` rows of plain images a class, height, width and rank."""
    return torch.tensor(
        [images_for_budget("reference", ipc * h * w, 1, (1, h, w), rank) for ipc, h, w, rank in rows.tolist()]
    )
