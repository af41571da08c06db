"""One iteration of distribution matching: loss and gradient of the synthetic set."""

from __future__ import annotations

import importlib

import torch
from tests.parity.case import Case, ParityError
from tests.parity.replay import RecordedContext, class_major, data_spec, drive, pixels
from torch import Tensor

from dcf.build import create
from dcf.components import Kind
from dcf.parameterization import Parameterization
from dcf_dm.matcher import DM


def compute(case: Case) -> dict[str, Tensor]:
    """`loss`, and `dsyn` or `dA` and `dB`."""
    factored = case.hyper.get("rank") is not None
    ctx = RecordedContext(case, factors(case) if factored else pixels(case))
    if (case.hyper["variant"] == "bn") != bool(ctx.net.batch_norms):
        raise ParityError(f"variant '{case.hyper['variant']}' does not fit a network with norm '{case.net['norm']}'")
    replay = drive(ctx, DM())
    names = ["out/dA", "out/dB"] if factored else ["out/dsyn"]
    return {"out/loss": replay.losses[0], **dict(zip(names, replay.gradients[0], strict=True))}


def factors(case: Case) -> Parameterization:
    """The synthetic set that stores `A` and `B`."""
    importlib.import_module("dcf_lowrank")
    param: Parameterization = create(Kind.PARAM, f"lowrank:r={case.hyper['rank']}")
    param.allocate(data_spec(case), class_major(case, len(case["A"])))
    param.to(case.dtype)
    with torch.no_grad():
        for stored, given in zip(param.latents().values(), (case["A"], case["B"]), strict=True):
            stored.copy_(given)
    return param
