"""Where and how a run computes: device, precision, allocator, environment."""

from __future__ import annotations

import ctypes
import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from dcf.errors import UsageError
from dcf.processes import local_rank, processes_asked_for

__all__ = ["environment", "keep_freed_pages", "precision_of", "precision_text", "select_device"]

log = logging.getLogger(__name__)

# mallopt(3): parameters of glibc's allocator.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def select_device(name: str) -> torch.device:
    """The device a name stands for; "auto" is the first GPU, else the CPU.

    Each of several processes takes a GPU of its own, whichever is named.

    Raises:
        UsageError: When there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and processes_asked_for() > 1:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    # torch keeps the index in 8 bits, so that cuda:256 would become cuda:0.
    index = int(name.partition(":")[2] or 0)
    if device.type == "cuda" and index >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


@contextmanager
def precision_of(mode: Literal["default", "strict"]) -> Iterator[None]:
    """Set the precision of matrix products and convolutions, and put it back afterwards.

    Args:
        mode: "strict": fp32 everywhere, TF32 off; "default": what torch does on this device.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if mode == "strict":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def keep_freed_pages() -> bool:
    """Let the C allocator keep large freed blocks instead of returning them to the system.

    Every step allocates and frees the same large activations; giving their pages back each time costs about a third
    of a CPU iteration in page faults. Values do not change. Returns whether it had an effect.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, (1 << 31) - 1)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def precision_text(device: torch.device, kernels: bool) -> str:
    """In which precision networks were trained, as reports say it: two of them do not compare to the last digit.

    Args:
        device: Where they were.
        kernels: Whether compiled kernels computed anything (`dcf.compiled.noticed`).
    """
    if kernels:
        return "bf16 kernels"
    return "fp32 with TF32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def environment(device: torch.device, precision: str = "") -> dict[str, str]:
    """What decides rounding: versions, device, threads, precision. Without times or names of machines.

    Args:
        device: Where it was computed.
        precision: What `precision_text` said; empty where nothing was trained.
    """
    from dcf import __version__

    return {
        **({"precision": precision} if precision else {}),
        "dcf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }
