"""A matcher that matches nothing: for sets that are chosen rather than learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from dcf.matcher import Matcher
from dcf.types import MatcherDefaults, Step

__all__ = ["Nothing"]


class Nothing(Matcher):
    """Leave the set as it was initialised; what a coreset is condensed with."""

    reads: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    classwise: ClassVar[bool] = True
    defaults: ClassVar[MatcherDefaults] = MatcherDefaults(iterations=0, init="random")

    def outer(self, ctx: object, it: int) -> Iterator[Step]:
        """Yield nothing."""
        return iter(())
