"""One matching step of gradient matching: loss and image gradient."""

from __future__ import annotations

from tests.parity.case import Case
from tests.parity.replay import RecordedContext, buffers, drive, pixels
from torch import Tensor

from dcf_dc.matcher import DC


def compute(case: Case) -> dict[str, Tensor]:
    """`loss`, `dsyn` and `buf/*`."""
    matcher = DC(DC.Config(metric=case.hyper["metric"], match_steps=1, net_epochs=1, bn="reference"))
    ctx = RecordedContext(case, pixels(case))
    replay = drive(ctx, matcher)
    return {"out/loss": replay.losses[0], "out/dsyn": replay.gradients[0][0], **buffers(case, ctx.net)}
