"""`AuxiliaryObjective`: what a parameterization wants to be learned beside what the matcher asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from dcf.context import Context

__all__ = ["AuxiliaryObjective"]


class AuxiliaryObjective:
    """An objective that travels with a parameterization, whatever the matcher is.

    At each update the engine adds the gradient of `loss` to that of the matcher, moves the synthetic set, and calls
    `after_update`. Weights that are not stored, such as those of an adversary, belong to the objective: it trains
    them itself, and gives them to checkpoints through `state_dict`.

    Attributes:
        every: "update", or "outer" to take part in the first update of each outer iteration alone: matchers differ
            in how many they make, from one to thousands.
    """

    every: Literal["update", "outer"] = "update"

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
