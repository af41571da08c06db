"""Text of others made safe to show: one line, no controls, of bounded length."""

from __future__ import annotations

import unicodedata
from typing import Any, Final

__all__ = ["clean"]

#: Unicode categories that could steer a terminal or hide text: controls, formats, surrogates, private, separators.
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def clean(value: Any, limit: int = 100) -> str:
    """Text from a file or a plugin as one safe line.

    Args:
        value: Anything; `str()` of it is shown.
        limit: Characters at most; longer text is cut and ends in "...".
    """
    text = value if isinstance(value, str) else str(value)
    text = "".join("?" if unicodedata.category(c) in _UNSAFE else c for c in text[: limit + 1])
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."
