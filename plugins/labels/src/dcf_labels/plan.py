"""How many items a budget pays for when each carries labels besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import dcf

__all__ = ["least_floats", "most_items"]

#: A budget beyond which nothing becomes possible that was not before.
_ENDLESS: Final = 2**48


def most_items(plan: Callable[[int], int], labels: Callable[[int], int], floats: int, least: int) -> int:
    """The largest number of items that are planned with what their labels leave of a budget.

    Labels need not cost more for more items: where a class has a largest number of images, further items may leave each
    with fewer. Only where they are in proportion is there a border to search for; otherwise every number is tried, from
    the largest that is possible downwards.

    Args:
        plan: From a budget to the items of the images alone; more for a larger one, or as many.
        labels: From a number of items to the floats of their labels.
        floats: Budget for both.
        least: Floats of the labels of one item, if it were a single image.

    Returns:
        Items a class, 0 where none fit.
    """

    def planned(left: int) -> int:
        try:
            return max(0, plan(left)) if left > 0 else 0
        except dcf.BudgetError:
            return 0

    def largest(fits: Callable[[int], bool], high: int) -> int:
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def fits(items: int) -> bool:
        return planned(floats - labels(items)) >= items

    most = largest(lambda items: planned(floats - least * items) >= items, planned(floats))
    if not most or fits(most):
        return most
    if labels(most) == most * labels(1):
        return largest(fits, most - 1)
    return next((items for items in range(most - 1, 0, -1) if fits(items)), 0)


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
