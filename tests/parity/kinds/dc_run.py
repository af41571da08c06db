"""Several matching steps on one network that is trained in between, with the synthetic set moving."""

from __future__ import annotations

import torch
from tests.parity.case import Case, ParityError
from tests.parity.replay import RecordedContext, drive, parameters, pixels
from torch import Tensor

from dcf.matcher import Matcher
from dcf_dc.matcher import DC


def compute(case: Case) -> dict[str, Tensor]:
    """`syn`, `net/*` and `losses`."""
    ctx = RecordedContext(case, pixels(case))
    replay = drive(ctx, matcher(case), lr=case.hyper["lr_img"], momentum=case.hyper.get("momentum_img", 0.5))
    with torch.no_grad():
        images = ctx.param.images(torch.arange(len(ctx.param.view_class)))
    net = parameters(case, ctx.net.params, "out/net")
    return {"out/syn": images, "out/losses": torch.stack(replay.losses), **net}


def matcher(case: Case) -> Matcher:
    """The matcher of `hyper.method`, with the case's schedule."""
    hyper = case.hyper
    options = {
        "metric": hyper["metric"],
        "match_steps": hyper["outer_loop"],
        "net_epochs": hyper["inner_loop"],
        "lr_net": hyper["lr_net"],
        "batch_train": hyper["batch_train"],
    }
    if hyper["method"] == "dc":
        return DC(DC.Config(**options))
    if hyper["method"] == "dcc":
        from dcf_dcc.matcher import DCC

        return DCC(DCC.Config(**options, outer_warmup=0, inner_warmup=0))
    raise ParityError(f"unknown method '{hyper['method']}'")
