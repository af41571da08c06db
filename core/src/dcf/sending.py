"""Sending tensors to a device without waiting for it."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["send"]

#: Bytes that a driver takes at once from memory that is not pinned; what is larger may wait for the work before it.
_TAKEN_AT_ONCE: Final = 1 << 16


def send(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device, without holding up a GPU that has work to do.

    What comes from the host goes there in order, behind the work that waits already; `Tensor.to` would first let that
    finish. What comes back to the host is waited for, as the numbers are not there before.

    Args:
        tensor: On any device.
        device: Where it is wanted.
        dtype: What it becomes; its own by default.
    """
    from_host = tensor.device.type == "cpu"
    if from_host and torch.device(device).type == "cuda" and tensor.nbytes > _TAKEN_AT_ONCE:
        tensor = tensor.pin_memory()
    return tensor.to(device, tensor.dtype if dtype is None else dtype, non_blocking=from_host)
