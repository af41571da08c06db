"""What is written in C++, compiled when it is first asked for and kept in the folder of caches."""

from __future__ import annotations

import ctypes
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

__all__ = ["DIRECT", "address", "call", "direct", "last", "library"]

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

#: The functions behind operations, by what these are called in a graph.
DIRECT: Final[dict[str, Callable[..., Any]]] = {}
#: Of a file beside the one that says so.
_INCLUDE: Final = re.compile(r'#include "(\w+\.hpp)"')


@functools.cache
def library(name: str, channels: int = 0) -> ctypes.CDLL | None:
    """The functions of a file beside this one; None where it cannot be compiled.

    Args:
        name: Of the file, without its ending.
        channels: What the file is compiled for, if it is for a number of channels.
    """
    try:
        from torch._inductor.codecache import CppCodeCache

        # In one piece, so that what was compiled before is known by all that it was made from.
        source = _INCLUDE.sub(lambda found: _text(found[1]), _text(f"{name}.cpp"))
        # The compiler's own loops are vectorised ahead; these are not.
        flags = ("-ftree-loop-vectorize", "-ffp-contract=fast")
        found: ctypes.CDLL = CppCodeCache.load(f"#define DCF_CHANNELS {channels}\n{source}", extra_flags=flags)
    except Exception as problem:  # a private interface of a compiler that may not be there; one can do without
        log.debug("%s is not to be had: %s: %s", name, type(problem).__name__, str(problem)[:300])
        return None
    return found


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="ascii")


def call(name: str, function: str, channels: int, *given: Any) -> None:
    """Call a function of a library.

    Raises:
        MemoryError: There is not enough for what the function works in.
        RuntimeError: It cannot be compiled here.
    """
    found = library(name, channels)
    if found is None:
        raise RuntimeError(f"{function} was asked for where it cannot be compiled")
    if getattr(found, function)(*given):
        raise MemoryError(f"not enough memory for {function}: use smaller batches")


def direct(name: str) -> Callable[[F], F]:
    """Marks the function behind the operation `dcf::name`, which changes none of its arguments."""

    def marked(function: F) -> F:
        DIRECT[f"dcf.{name}.default"] = function
        return function

    return marked


def address(x: Tensor | None) -> ctypes.c_void_p:
    """Where the values of a tensor begin; null for none."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def last(x: Tensor) -> Tensor:
    """The same maps with channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)
