"""Step sizes over a training: what the loops of the literature differ in. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every optimiser step, and where the optimiser starts again.

    Args:
        lrs: One learning rate an epoch; its length is the number of epochs.
        restarts: Epochs that begin with a new optimiser, so with empty momentum buffers.
        anneal: Multiply by `(1 + cos(pi t / T)) / 2` at step t of T, counted from 0 over the whole training.
    """

    lrs: tuple[float, ...]
    restarts: frozenset[int] = frozenset()
    anneal: bool = False

    @classmethod
    def constant(cls, lr: float, epochs: int) -> Schedule:
        """The same learning rate throughout."""
        return cls((lr,) * epochs)

    @classmethod
    def cosine(cls, lr: float, epochs: int) -> Schedule:
        """From `lr` towards 0 along half a cosine, step by step."""
        return cls((lr,) * epochs, anneal=True)

    @classmethod
    def step_restart(cls, lr: float, epochs: int, extra_epoch: bool = True) -> Schedule:
        """The published evaluation loop: after epoch number `epochs // 2 + 1` a tenth, and a new optimiser.

        Args:
            lr: Learning rate before the drop.
            epochs: The nominal number E.
            extra_epoch: Run epochs 0..E, as the published loops do, instead of 0..E-1.
        """
        total, drop = epochs + extra_epoch, epochs // 2 + 2
        lrs = tuple(lr if epoch < drop else lr * 0.1 for epoch in range(total))
        return cls(lrs, frozenset({drop}) if drop < total else frozenset())

    @classmethod
    def step_fifth(cls, lr: float, epochs: int) -> Schedule:
        """A fifth from epoch number `2 * epochs // 3` on, and a 25th from `5 * epochs // 6` on; one optimiser."""
        drops = (2 * epochs // 3, 5 * epochs // 6)
        return cls(tuple(lr * 0.2 ** sum(epoch >= drop for drop in drops) for epoch in range(epochs)))

    @property
    def epochs(self) -> int:
        """Number of epochs that are run."""
        return len(self.lrs)

    def lr(self, epoch: int, progress: float) -> float:
        """Learning rate of a step in `epoch` that begins after the fraction `progress` of all steps."""
        factor = 0.5 * (1 + math.cos(math.pi * progress)) if self.anneal else 1.0
        return self.lrs[epoch] * factor
