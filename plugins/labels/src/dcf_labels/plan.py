"""How many items a budget pays for when each carries labels besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import dcf

__all__ = ["least_floats", "most_items"]

#: A budget beyond which nothing becomes possible that was not before.
_ENDLESS: Final = 2**48


def most_items(plan: Callable[[int], int], labels: Callable[[int], int], floats: int, most: int) -> int:
    """The largest number of items that are planned with what their labels leave of a budget.

    Args:
        plan: From a budget to the items of the images alone; more for a larger one, or as many.
        labels: From a number of items to the floats of their labels.
        floats: Budget for both.
        most: A number that is large enough.

    Returns:
        Items a class, 0 where none fit.
    """

    def fits(items: int) -> bool:
        left = floats - labels(items)
        try:
            return left > 0 and plan(left) >= items
        except dcf.BudgetError:
            return False

    if most > 0 and fits(most):
        return most
    low, high = 0, max(0, most - 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def least_floats(items: Callable[[int], int], low: int) -> int | None:
    """The smallest budget that holds anything; None where none does.

    Args:
        items: From a budget to the items that it holds.
        low: A budget of which it is known that less holds nothing.
    """
    high = max(1, low)
    while not items(high):
        if (high := 2 * high) > _ENDLESS:
            return None
        low = high // 2 + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if items(middle) else (middle + 1, high)
    return high
