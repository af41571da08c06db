"""How many images of a rank a budget pays for, and which ranks are worth it. Plain integers, free of torch."""

from __future__ import annotations

import dcf
from dcf_lowrank.options import Rule

__all__ = ["check_rank", "factor_floats", "images_for_budget", "largest_rank", "least_budget"]


def factor_floats(shape: tuple[int, int, int], r: int) -> int:
    """Stored floats of one image, C (H + W) r.

    Args:
        shape: `(C, H, W)` of the image.
        r: Rank of each channel.
    """
    channels, height, width = shape
    return channels * (height + width) * r


def largest_rank(height: int, width: int) -> int:
    """The largest rank whose factors cost no more than the pixels, floor(HW / (H + W)).

    It is below min(H, W), and 0 for images of a single row or column.
    """
    return height * width // (height + width)


def images_for_budget(rule: Rule, floats: int, classes: int, shape: tuple[int, int, int], r: int) -> int:
    """How many factorised images a class a budget pays for.

    With s = HW pixels and q = (H + W) r floats a channel, and the budget of `ipc` plain images a class:

    * `exact`: floor(ipc s / q), whatever fits; the rule of the released readme, and right for any budget.
    * `reference`: ipc floor(s / q), as the released code counts. Where q does not divide s it leaves a part of the
      budget unused: 10 instead of 17 images for 28 x 28 pixels, r = 8 and ipc = 10. `ipc` is the whole number of
      plain images that the budget pays for.

    Args:
        rule: Which of the two.
        floats: Budget in stored floats, for all classes.
        classes: Number of classes.
        shape: `(C, H, W)` of an image.
        r: Rank of each channel.

    Returns:
        Images a class, 0 where the budget holds none.
    """
    channels, height, width = shape
    one = classes * factor_floats(shape, r)
    if rule == "exact":
        return floats // one
    plain = classes * channels * height * width
    return floats // plain * (plain // one)


def least_budget(rule: Rule, classes: int, shape: tuple[int, int, int], r: int) -> int:
    """The smallest budget, in stored floats for all classes, that holds one image a class; `r` is a useful rank."""
    channels, height, width = shape
    return classes * (factor_floats(shape, r) if rule == "exact" else channels * height * width)


def check_rank(height: int, width: int, r: int) -> None:
    """Refuse a rank whose factors cost more than the pixels.

    Raises:
        BudgetError: Naming the largest useful rank.
    """
    most = largest_rank(height, width)
    if r <= most:
        return
    cost = f"rank {r} stores {(height + width) * r} floats a channel, more than the {height * width} of its pixels"
    mend = f"the largest useful one is r={most}" if most else "for images of a single row or column no rank saves any"
    raise dcf.BudgetError(f"lowrank: for images of {height} x {width}, {cost}\n  {mend}; or use --param pixels")
