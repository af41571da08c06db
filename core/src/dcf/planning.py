"""How many items a class a budget pays for, counted as they are written."""

from __future__ import annotations

import copy
from typing import Final

import torch

from dcf.budget import Budget, Store
from dcf.errors import BudgetError
from dcf.parameterization import Parameterization
from dcf.storage import stored
from dcf.types import DataSpec

__all__ = ["plan_items"]

#: Bytes of a number in the file, at least.
_WIDTH: Final = {"fp32": 4, "fp16": 2, "uint8": 1}
#: Items of a set at most: far above what is condensed, far below what would exhaust the memory to count.
_MOST_ITEMS: Final = 2**28
#: A budget, in numbers, beyond which nothing becomes possible that was not before.
_ENDLESS: Final = 2**48


def plan_items(param: Parameterization, spec: DataSpec, budget: Budget, store: Store = "fp32") -> int:
    """The largest number of items a class that a parameterization plans and that fits into a budget.

    `param.plan` is asked with the floats that the budget would hold; where the set as it is written costs more, with
    the most for which it does not.

    Args:
        param: A fresh one.
        spec: The data.
        budget: Of the whole set.
        store: How floats are written; scales of 8-bit codes count as bytes and as numbers.

    Raises:
        BudgetError: When not even one fits; says the smallest budget that works, in the unit of this one. Or when it
            holds more items than can be counted.
    """
    search = _Search(param, spec, budget, store)
    first = min(search.cap, search.estimate()) if store == "uint8" else search.cap
    items = search.planned(first)
    if items and search.fits(items) and (first == search.most or not search.fits(items + 1)):
        return items
    items = search.planned(search.largest())
    if not items:
        raise search.too_small()
    return items


class _Search:
    """Plans of one parameterization, and what they cost."""

    def __init__(self, param: Parameterization, spec: DataSpec, budget: Budget, store: Store) -> None:
        self.param, self.spec, self.budget, self.store = param, spec, budget, store
        self.width = _WIDTH[store] if budget.unit == "bytes" else 1
        #: Numbers that the budget would hold without scales.
        self.cap = budget.limit // self.width
        # One with a rule of its own is never asked with more than its budget; others may hold shorter numbers.
        self.own_rule = type(param).plan is not Parameterization.plan
        self.most = self.cap if self.own_rule else budget.limit
        self.refusal: BudgetError | None = None
        self._spent: dict[int, int] = {}

    def planned(self, floats: int) -> int:
        """Items a class that the parameterization plans; 0 where it refuses."""
        try:
            return max(0, self.param.plan(self.spec, floats))
        except BudgetError as error:
            self.refusal = self.refusal or error
            return 0

    def spent(self, items: int) -> int:
        """What so many items a class cost, in bytes or numbers as the budget counts."""
        self._require_countable(items)
        if items not in self._spent:
            probe = copy.deepcopy(self.param)
            item_class = torch.arange(self.spec.num_classes).repeat_interleave(items)
            with torch.device("meta"):
                probe.allocate(self.spec, item_class)
            entries = stored(probe.state_dict(), self.store)
            self._spent[items] = self.budget.spent(sum(t.floats for t in entries), sum(t.nbytes for t in entries))
        return self._spent[items]

    def _require_countable(self, items: int) -> None:
        if items * self.spec.num_classes > _MOST_ITEMS:
            raise BudgetError(f"the budget {self.budget} is too large: it holds {items} items a class")

    def fits(self, items: int) -> bool:
        return self.spent(items) <= self.budget.limit

    def estimate(self) -> int:
        """Floats of as many items as fit, if each further one costs the same."""
        one = self.spent(1)
        items = 1 + (self.budget.limit - one) // max(1, self.spent(2) - one) if one <= self.budget.limit else 0
        self._require_countable(items)
        return self.param.cost(self.spec, items) if items else 0

    def largest(self) -> int:
        """The largest number of floats for which what is planned, if anything, fits."""
        low, high = 0, self.most
        while low < high:
            middle = (low + high + 1) // 2
            items = self.planned(middle)
            low, high = (middle, high) if not items or self.fits(items) else (low, middle - 1)
        return low

    def too_small(self) -> BudgetError:
        """What to tell a user whose budget holds nothing."""
        least = self._least()
        if least is None:  # refused whatever the budget: the parameterization has said why
            return self.refusal or BudgetError("the budget holds no item a class")
        needed = self.spent(self.planned(least))
        if self.own_rule:
            needed = max(needed, least * self.width)
        stored_as = "" if self.store == "fp32" else f", stored as {self.store}"
        return BudgetError(
            f"the budget {self.budget} holds no item a class{stored_as}; "
            f"the smallest that works is {self.budget.least(needed)}"
        )

    def _least(self) -> int | None:
        """The fewest floats for which anything is planned; None where nothing ever is."""
        high = 1
        while not self.planned(high):
            if (high := 2 * high) > _ENDLESS:
                return None
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.planned(middle) else (middle, high)
        return high
