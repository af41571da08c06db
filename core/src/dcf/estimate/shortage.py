"""What an out-of-memory error says: how much was needed at least, and how much there is."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from dcf.estimate.memory import Machine, resident

__all__ = ["is_shortage", "shortage_of"]

_BYTES: Final = re.compile(r"tried to allocate (\d+) bytes", re.IGNORECASE)
#: What the loader of libraries says where an address space, or a limit of it, has no room for one.
_UNMAPPED: Final = re.compile("failed to map segment|cannot allocate memory", re.IGNORECASE)
_SIZE: Final = re.compile(r"Tried to allocate ([\d.]+) ([KMGT]?)iB")


def is_shortage(problem: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a GPU, was short; by name, without importing torch."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    text = str(problem)
    if isinstance(problem, ImportError):
        return _UNMAPPED.search(text) is not None
    return isinstance(problem, RuntimeError) and "DefaultCPUAllocator" in text


def shortage_of(problem: BaseException) -> dict[str, Any] | None:
    """`needed` and `room` in bytes, and `who` says so; None for an error of another kind.

    Args:
        problem: Anything that was raised.
    """
    text = str(problem)
    if not is_shortage(problem):
        return None
    if type(problem).__name__ == "OutOfMemoryError":
        return _on_gpu(text)
    match, used, free = _BYTES.search(text), resident() or 0, Machine().available()
    room = None if free is None else used + free
    # What does not say how much it wanted wanted more than there was.
    needed = used + int(match[1]) if match else room or used
    return {"needed": needed, "room": room, "who": "available here"}


def _on_gpu(text: str) -> dict[str, Any]:
    torch = sys.modules["torch"]
    match = _SIZE.search(text)
    wanted = int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " ")) if match else 0
    free, _ = torch.cuda.mem_get_info()
    return {
        "needed": torch.cuda.memory_allocated() + wanted,
        "room": torch.cuda.memory_reserved() + free,
        "who": "on the GPU",
    }
