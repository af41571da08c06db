"""Clock and memory of the device that a run is measured on."""

from __future__ import annotations

import time

import torch

from dcf import compiled
from dcf.estimate.memory import Machine, peak_resident, resident

__all__ = ["Gauge"]


class Gauge:
    """On a GPU memory is what torch reserves there; on a CPU it is that of this process.

    Args:
        device: Where the run is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            # So that what asks for the memory of "the" GPU means this one.
            torch.cuda.set_device(device)

    @property
    def name(self) -> str:
        """The device for people."""
        if self.on_gpu:
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'' if threads == 1 else 's'}"

    def now(self) -> float:
        """Seconds on some clock, once everything that was asked for is done; it stands still while kernels are made."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.kernels()

    def kernels(self) -> float:
        """Seconds that making compiled kernels took so far: each is made once, however long a run is."""
        return compiled.seconds_spent()

    def used(self) -> int:
        """Bytes in use."""
        if self.on_gpu:
            return torch.cuda.memory_reserved(self.device)
        known = resident()
        return peak_resident() if known is None else known

    def peak(self) -> int:
        """The most bytes that were in use so far."""
        return torch.cuda.max_memory_reserved(self.device) if self.on_gpu else peak_resident()

    def room(self) -> int | None:
        """Bytes that this process could have, those in use among them; None where the system does not say."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.on_gpu else Machine().available()
        return None if free is None else self.used() + free
