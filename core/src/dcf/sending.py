"""Sending tensors to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["send"]


def send(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device, without holding up a GPU that has work to do.

    What comes from the host goes there in order, behind the work that waits already; `Tensor.to` would first let that
    finish. What comes back to the host is waited for, as the numbers are not there before.

    Args:
        tensor: On any device.
        device: Where it is wanted.
        dtype: What it becomes; its own by default.
    """
    return tensor.to(device, tensor.dtype if dtype is None else dtype, non_blocking=tensor.device.type == "cpu")
