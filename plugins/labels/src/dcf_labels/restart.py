"""When the network has learned what the labels can teach it: it is then replaced, and its time is remembered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["RestartRule"]

#: Lengths that are averaged.
_LENGTHS = 3
#: Where there is no error yet.
_NONE = -1.0


@dataclass
class RestartRule:
    """Watches the error on real images, averaged over a window, for a minimum that is not passed again.

    Where none of the last `window` averages is a new minimum, the network is to be replaced, and the number of steps it
    had done at the minimum is noted. Averages count from the first full window on.

    Args:
        window: Steps that are averaged, and steps that may pass without a new minimum.

    Attributes:
        steps: Steps of the present network.
        best: Its smallest average; infinite before there is one.
        best_step: Steps it had done then.
        restarts: Networks that were replaced.
        lengths: Steps at the minimum of the last networks, at most three, the newest last.
    """

    window: int
    steps: int = 0
    best: float = math.inf
    best_step: int = 0
    restarts: int = 0
    errors: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def advance(self, error: float) -> bool:
        """Take note of a step.

        Args:
            error: On real images at this step, in [0, 1].

        Returns:
            Whether the network is to be replaced by a new one; the counts are then those of the new one.
        """
        self.steps += 1
        self.errors = [*self.errors, error][-self.window :]
        if len(self.errors) == self.window:
            mean = math.fsum(self.errors) / self.window
            if mean < self.best:
                self.best, self.best_step = mean, self.steps
        if self.best_step == 0 or self.steps - self.best_step < self.window:
            return False
        self.lengths = [*self.lengths, self.best_step][-_LENGTHS:]
        self.restarts += 1
        self.steps, self.best, self.best_step, self.errors = 0, math.inf, 0, []
        return True

    @property
    def length(self) -> int | None:
        """The training length learned: mean of the last three, rounded; of the present network where there is none.

        None before the first full window.
        """
        if self.lengths:
            return round(sum(self.lengths) / len(self.lengths))
        return self.best_step or None

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors of fixed shapes."""
        errors = self.errors + [_NONE] * (self.window - len(self.errors))
        lengths = self.lengths + [0] * (_LENGTHS - len(self.lengths))
        return {
            "errors": torch.tensor(errors, dtype=torch.float64),
            # Finite, as everything in a checkpoint is.
            "best": torch.tensor(self.best if math.isfinite(self.best) else _NONE, dtype=torch.float64),
            "counts": torch.tensor([self.steps, self.best_step, self.restarts]),
            "lengths": torch.tensor(lengths),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.errors = [e for e in state["errors"].tolist() if e != _NONE]
        best = float(state["best"])
        self.best = math.inf if best == _NONE else best
        self.steps, self.best_step, self.restarts = state["counts"].tolist()
        self.lengths = [n for n in state["lengths"].tolist() if n]
