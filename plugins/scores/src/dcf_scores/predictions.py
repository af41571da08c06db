"""What a trained network says about the images of a split."""

from __future__ import annotations

import torch
from torch import Tensor

import dcf
from dcf.data import Split
from dcf.errors import EvaluationError

__all__ = ["predictions"]


@torch.inference_mode()
def predictions(state: dcf.NetworkState, split: Split, who: str, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Logits `(N, K)` in evaluation mode and class indices `(N,)` of all images in order, on the CPU.

    Args:
        state: The network; left in training mode as it came.
        split: Images with their labels.
        who: Names the network where it fails.
        batch: Images a forward pass.

    Raises:
        EvaluationError: When a logit is not finite.
    """
    device = next(iter(state.params.values())).device
    state.eval()
    logits = torch.cat([state(part.x.to(device)).cpu() for part in split.batches(batch)])
    state.train()
    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(
            f"the outputs of {who} are not finite, so its training has diverged\n"
            "  lower the step size of the protocol: --set protocol.lr=0.001"
        )
    return logits, split.labels.cpu()
