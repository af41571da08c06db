"""Classes by name or number. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from dcf.errors import DataError

__all__ = ["class_numbers"]


def class_numbers(wanted: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Classes by name or number, ascending.

    A text is a name where a class is called so. It is a number, from 0, where it is one and no class of the
    dataset has a number for its name.

    Args:
        wanted: Names or numbers; empty for all.
        classes: All class names, in the order of the labels.

    Raises:
        DataError: When there is no such class, or one is named twice.
    """
    numbers = [_class_number(text, classes) for text in wanted] or list(range(len(classes)))
    repeated = next((c for c in numbers if numbers.count(c) > 1), None)
    if repeated is not None:
        raise DataError(f"class '{classes[repeated]}' is named twice; name it once")
    return sorted(numbers)


def _class_number(text: str, classes: Sequence[str]) -> int:
    if text in classes:
        return classes.index(text)
    numbered = any(name.isdecimal() for name in classes)
    if text.isdecimal() and not numbered and int(text) < len(classes):
        return int(text)
    raise DataError(f"no class '{text}'; {_choices(text, classes, numbered)}")


def _choices(text: str, classes: Sequence[str], numbered: bool) -> str:
    close = difflib.get_close_matches(text, classes, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return f"{hint}there are {shown}" + ("" if numbered else f", or numbers from 0 to {len(classes) - 1}")
