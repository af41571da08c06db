"""The highest memory of one call, each measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

__all__ = ["highest", "in_process"]


def in_process(module: str, *arguments: str) -> float:
    """What `python -m MODULE ARGUMENTS` prints last: megabytes."""
    command: Sequence[str] = [sys.executable, "-m", module, *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(printed.strip().splitlines()[-1])


def highest(
    call: Callable[[], object], device: torch.device | None = None, first: Callable[[], object] | None = None
) -> float:
    """Megabytes at the highest during a call, above those just before: resident ones, or those reserved on a GPU.

    Args:
        call: What is measured.
        device: Where it computes; a CPU by default.
        first: Done before, such as what compiles. On a GPU it counts, too: captured graphs keep what they work in.
    """
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        (first or call)()
        call()
        return round((torch.cuda.max_memory_reserved(device) - before) / 1e6, 1)
    if first is not None:
        first()
    gc.collect()
    # Pages that the first call left behind would be taken again by this one, and not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    # Sets the highest back to the present (proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    resident = _resident("VmRSS")
    call()
    return round(_resident("VmHWM") - resident, 1)


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6
