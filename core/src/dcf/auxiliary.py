"""`AuxiliaryObjective`: what a parameterization wants to be learned beside what the matcher asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from dcf.errors import NonFiniteError
from dcf.training import BLOWN_UP

if TYPE_CHECKING:
    from dcf.context import Context

__all__ = ["AuxiliaryObjective", "require_sound"]


class AuxiliaryObjective:
    """An objective that travels with a parameterization, whatever the matcher is.

    At each update the engine adds the gradient of `loss` to that of the matcher, moves the synthetic set, and calls
    `after_update`. Weights that are not stored, such as those of an adversary, belong to the objective: it trains
    them itself, and gives them to checkpoints through `state_dict`.

    Attributes:
        every: "update", or "outer" to take part in the first update of each outer iteration alone: matchers differ
            in how many they make, from one to thousands.
        trained: Scalar, the loss at which `after_update` last trained what belongs to the objective; None where there
            is none. Where it is not finite or above `dcf.training.BLOWN_UP`, the run ends: the set could be sound, and
            yet learn nothing of the objective any more.
        advice: What to change then; the matcher's where it is empty.
    """

    every: Literal["update", "outer"] = "update"
    trained: Tensor | None = None
    advice: ClassVar[str] = ""

    def loss(self, ctx: Context) -> Tensor:
        """The objective, a scalar that depends on the stored tensors.

        Args:
            ctx: The run. Random draws are a function of `ctx.seed`, `ctx.it` and `ctx.update`, never of earlier ones.
        """
        raise NotImplementedError

    def after_update(self, ctx: Context) -> None:
        """Train what belongs to the objective; the synthetic set has moved, and must not be changed here."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Tensors that outlive an update; optimiser state included."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


def require_sound(objectives: Iterable[AuxiliaryObjective], it: int, advice: str) -> None:
    """Make sure that what belongs to objectives has not diverged; to be called after an iteration.

    Args:
        objectives: Of the parameterization.
        it: The iteration, from 0.
        advice: For those that have none of their own.

    Raises:
        NonFiniteError: When what one of them learned is not finite, or its loss has blown up.
    """
    for objective in objectives:
        learned = [t for t in objective.state_dict().values() if t.is_floating_point()]
        sound = [torch.isfinite(t).all() for t in learned]
        if objective.trained is not None:
            sound.append(objective.trained <= BLOWN_UP)  # False for NaN
        # Read once: each answer that is asked for alone would hold up a GPU.
        if sound and not bool(torch.stack(sound).all()):
            loss = "" if objective.trained is None else f", at a loss of {float(objective.trained):.4g},"
            raise NonFiniteError(
                f"what {type(objective).__name__} trains beside the set diverged{loss} in iteration {it + 1}; "
                f"the last good checkpoint is kept\n  {objective.advice or advice}"
            )
