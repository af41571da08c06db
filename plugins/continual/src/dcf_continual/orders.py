"""Which classes come when. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import dcf
from dcf.data.classes import class_numbers

__all__ = ["class_order", "groups_of", "named_order", "permutation"]


def permutation(seed: int, classes: int) -> list[int]:
    """The class order of a seed, as all published streams of condensed memories draw it.

    `numpy.random.seed(seed); numpy.random.permutation(classes)`, with the legacy generator (MT19937), whose numbers are
    the same in every version of numpy. The global generator is left alone.

    Args:
        seed: Of the order, 0 to 2**32 - 1.
        classes: Number of classes.
    """
    from numpy.random import RandomState

    return [int(c) for c in RandomState(seed).permutation(classes)]


def named_order(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Class numbers of an order that is written out.

    Raises:
        UsageError: When it does not hold every class once, or a name of none.
    """
    try:
        numbers = [class_numbers([name], classes)[0] for name in names]
    except dcf.DataError as error:
        raise dcf.UsageError(f"order: {error}") from None
    if sorted(numbers) != list(range(len(classes))):
        raise dcf.UsageError(
            f"order: expected each of the {len(classes)} classes once, got {len(numbers)}, {len(set(numbers))} of them "
            "different"
        )
    return numbers


def class_order(order: str | tuple[str, ...], seed: int, classes: Sequence[str]) -> list[int]:
    """Class numbers in order of arrival.

    Args:
        order: "seed": the permutation of the seed; "data": as the data number them; or names or numbers of all classes.
        seed: Of the order.
        classes: All class names, as the data number them.
    """
    if not isinstance(order, str):
        return named_order(order, classes)
    return permutation(seed, len(classes)) if order == "seed" else list(range(len(classes)))


def groups_of(order: Sequence[int], steps: int, sort: bool = False) -> list[list[int]]:
    """The classes of each step: slices of the order, all equally large.

    Args:
        order: Class numbers in order of arrival.
        steps: Number of steps.
        sort: Put each group in ascending order.

    Raises:
        UsageError: When the classes cannot be divided.
    """
    size, rest = divmod(len(order), steps)
    if rest or not size:
        raise dcf.UsageError(f"steps: {len(order)} classes cannot be divided into {steps} steps of equally many")
    groups = [list(order[i * size : (i + 1) * size]) for i in range(steps)]
    return [sorted(group) for group in groups] if sort else groups
