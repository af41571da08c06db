"""Learned step sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf.errors import UsageError
from dcf.types import ParamGroup

__all__ = ["StepSizes"]

_Form = Literal["log", "softplus"]


class StepSizes:
    """Learned step sizes, positive by construction.

    Args:
        start: Positive step sizes to begin with.
        form: What is learned: "log" the logarithm, "softplus" the number whose softplus is the step size.

    Attributes:
        raw: `(n,)` leaf that requires gradients, in float32: what is learned.

    Raises:
        UsageError: When a step size is not positive and finite, there is none, or the form is unknown.
    """

    def __init__(self, start: Sequence[float], form: _Form = "log") -> None:
        if form not in get_args(_Form):
            raise UsageError(f"step sizes: expected the form {' or '.join(get_args(_Form))}, got '{form}'")
        if not start or not all(0 < x < math.inf for x in start):
            raise UsageError(f"step sizes: expected positive numbers, got {list(start)}")
        self.form = form
        self.start = tuple(float(x) for x in start)
        inverse = math.log if form == "log" else _inverse_softplus
        self.raw = torch.tensor([inverse(x) for x in self.start]).requires_grad_()

    def __call__(self) -> Tensor:
        """The step sizes, `(n,)`, positive, differentiable in `raw`."""
        sizes = self.raw.exp() if self.form == "log" else F.softplus(self.raw)
        # What is mathematically positive may still round to zero.
        return sizes.clamp_min(torch.finfo(sizes.dtype).tiny)

    def group(self, name: str, lr: float, **optimiser: Any) -> ParamGroup:
        """The learned numbers as a group of parameters.

        Args:
            name: Of the group.
            lr: For "log" in units of the step sizes themselves: it is divided by the square of the one to begin with
                (their geometric mean where they differ), so that the first update is, to first order, that of SGD on
                the step size with `lr`. For "softplus" that of `raw`.
            optimiser: Other fields of the group.
        """
        mean = math.exp(math.fsum(map(math.log, self.start)) / len(self.start))
        return ParamGroup(name, [self.raw], lr / mean**2 if self.form == "log" else lr, **optimiser)


def _inverse_softplus(x: float) -> float:
    return x + math.log(-math.expm1(-x))
