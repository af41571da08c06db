"""One matching step with gradients averaged over classes, or one of its warm-up: loss and image gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.parity.case import Case, ParityError
from tests.parity.replay import RecordedContext, buffers, drive, pixels
from torch import Tensor

from dcf_dcc.matcher import DCC


def compute(case: Case) -> dict[str, Tensor]:
    """`loss`, `dsyn` and, with batch norms, `buf/*`."""
    matcher = DCC(
        DCC.Config(metric=case.hyper["metric"], match_steps=1, net_epochs=1, bn="reference", **warmup(case.hyper))
    )
    ctx = RecordedContext(case, pixels(case))
    replay = drive(ctx, matcher)
    return {"out/loss": replay.losses[0], "out/dsyn": replay.gradients[0][0], **buffers(case, ctx.net)}


def warmup(hyper: Mapping[str, Any]) -> dict[str, int]:
    """Options that put the first step into the phase that was recorded."""
    phase = hyper.get("phase")
    if phase not in ("contrast", "warmup"):
        raise ParityError(f"expected the phase 'contrast' or 'warmup', got '{phase}'")
    length = int(phase == "warmup")
    return {"outer_warmup": length, "inner_warmup": length}
