"""The optimiser of what is learned: SGD or Adam for each group, with step sizes that may decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dcf.errors import UsageError
from dcf.runconfig import GroupSettings
from dcf.types import MatcherDefaults, ParamGroup

__all__ = ["Optimizer", "Settled", "require_groups", "settle"]


@dataclass(frozen=True)
class Settled:
    """A group with every setting decided; see `dcf.types.ParamGroup`."""

    params: Sequence[Tensor]
    lr: float
    momentum: float
    optimizer: Literal["sgd", "adam"]
    betas: tuple[float, float]
    decay: tuple[int, float] | None

    def lr_at(self, it: int) -> float:
        """Step size in outer iteration `it`, from 0."""
        if self.decay is None:
            return self.lr
        every, factor = self.decay
        return self.lr * factor ** (it // every)


def settle(group: ParamGroup, usual: MatcherDefaults, optim: Mapping[str, GroupSettings]) -> Settled:
    """Decide every setting of a group: `optim` wins over the group, the group over `usual`.

    Args:
        group: As its owner gives it.
        usual: Settings of the run.
        optim: Settings by name of a group.
    """
    given = optim.get(group.name, GroupSettings())

    def first(*values: Any) -> Any:
        return next(v for v in values if v is not None)

    return Settled(
        list(group.params),
        first(given.lr, group.lr, usual.lr),
        first(given.momentum, group.momentum, usual.momentum),
        first(given.optimizer, group.optimizer, usual.optimizer),
        first(group.betas, usual.betas),
        group.decay if group.decay is not None or group.lr is not None else usual.decay,
    )


def require_groups(groups: Sequence[ParamGroup], optim: Mapping[str, GroupSettings]) -> None:
    """Refuse settings for groups that there are none of.

    Raises:
        UsageError: When `optim` names no group.
    """
    names = sorted({g.name for g in groups})
    for unknown in set(optim) - set(names):
        raise UsageError(f"optim.{unknown}: expected a group of what is learned ({', '.join(names)}), got '{unknown}'")


class Optimizer:
    """One optimiser of PyTorch for all groups of each kind.

    Args:
        groups: What is learned.
    """

    def __init__(self, groups: Sequence[Settled]) -> None:
        self.groups = list(groups)
        self.params: list[Tensor] = [p for group in groups for p in group.params]
        self._parts: list[tuple[torch.optim.Optimizer, list[Settled]]] = []
        for name in ("sgd", "adam"):
            mine = [group for group in groups if group.optimizer == name]
            if mine:
                self._parts.append((_make(name, mine), mine))

    def begin(self, it: int) -> None:
        """Set the step sizes of outer iteration `it`."""
        for made, groups in self._parts:
            for settings, group in zip(made.param_groups, groups, strict=True):
                settings["lr"] = group.lr_at(it)

    def step(self) -> None:
        """Move every tensor by its gradient."""
        for made, _ in self._parts:
            made.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Momenta and whatever else outlives a step, by name."""
        state: dict[str, Tensor] = {}
        for number, tensor in enumerate(self.params):
            for key, value in self._state(tensor).items():
                if value is not None:
                    name = "momentum" if key == "momentum_buffer" else key
                    state[f"{name}.{number}"] = torch.as_tensor(value)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; other entries are left alone."""
        for number, tensor in enumerate(self.params):
            own = self._state(tensor)
            for name, key in _ENTRIES.items():
                if (value := state.get(f"{name}.{number}")) is not None:
                    # The step count of Adam stays on the CPU, where PyTorch keeps it.
                    own[key] = value.clone() if key == "step" else value.to(tensor.device).clone()

    def _state(self, tensor: Tensor) -> dict[str, Any]:
        owner = next(made for made, groups in self._parts if any(p is tensor for g in groups for p in g.params))
        found: dict[str, Any] = owner.state[tensor]
        return found


#: What optimisers keep of a tensor, in the order they make it: name in a checkpoint -> PyTorch's name.
_ENTRIES = {"momentum": "momentum_buffer", "step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


def _make(name: str, groups: Sequence[Settled]) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD([{"params": g.params, "lr": g.lr, "momentum": g.momentum} for g in groups], lr=0.0)
    return torch.optim.Adam([{"params": g.params, "lr": g.lr, "betas": g.betas} for g in groups], lr=0.0)
