"""Sizes and durations as text."""

from __future__ import annotations

import math
import re
from typing import Final

from dcf.errors import UsageError

__all__ = ["duration_text", "parse_size", "size_text"]

_FACTORS: Final = {
    "": 1, "b": 1,
    **{f"{letter}{end}": 1024**power for power, letter in enumerate("kmgt", 1) for end in ("", "ib")},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
}  # fmt: skip
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_size(text: str, flag: str = "--memory-limit") -> int:
    """Bytes that a text such as "4GiB", "500MB" or "2G" stands for; a single letter counts in powers of 1024.

    Raises:
        UsageError: When it is no size, or not above zero.

    Example:
        >>> parse_size("1.5GiB"), parse_size("2MB")
        (1610612736, 2000000)
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None or not 1 <= float(match[1]) * factor < 2**63:
        raise UsageError(f"{flag} {text}: expected a size above zero, such as 4GiB or 500MB")
    return int(float(match[1]) * factor)


def size_text(size: int) -> str:
    """Bytes for people, in powers of 1024.

    Example:
        >>> size_text(2560), size_text(3 * 2**30)
        ('2.5 KiB', '3.0 GiB')
    """
    if size < 1024:
        return f"{size} B"
    power = min(4, int(math.log2(size)) // 10)
    value = size / 1024**power
    return f"{value:.1f} {'KMGT'[power - 1]}iB" if value < 100 else f"{value:.0f} {'KMGT'[power - 1]}iB"


def duration_text(seconds: float) -> str:
    """Seconds for people, to about two figures.

    Example:
        >>> [duration_text(s) for s in (0.0421, 3.21, 75, 4000, 100000)]
        ['0.042 s', '3.2 s', '1 min 15 s', '1 h 7 min', '1 d 4 h']
    """
    if seconds < 59.5:
        return "0 s" if seconds <= 0 else f"{seconds:.2g} s" if seconds < 10 else f"{round(seconds)} s"
    if seconds < 3570:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    if seconds < 84600:
        return "{} h {} min".format(*divmod(round(seconds / 60), 60))
    return "{} d {} h".format(*divmod(round(seconds / 3600), 24))
