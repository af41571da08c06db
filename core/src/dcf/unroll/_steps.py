"""The steps themselves: without a graph, or recorded by ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dcf.errors import UsageError

__all__ = ["Loss", "Rule", "State", "StepKernel", "advance", "leaves_of", "record", "walk"]

#: The training loss of one step: weights by name and the number of the step to a scalar.
Loss = Callable[[Mapping[str, Tensor], int], Tensor]


#: The products of a step: its gradient, what the weights before it receive, and what the inputs receive.
StepProducts = tuple[list[Tensor], list[Tensor | None], list[Tensor | None]]


class StepKernel(Protocol):
    """A quicker way to the derivatives of the loss of a step; each method may answer None for the plain way."""

    def gradient(self, weights: Sequence[Tensor], s: int) -> list[Tensor] | None:
        """Gradient of the loss of step s, constants."""

    def recorded(self, weights: Sequence[Tensor], s: int) -> list[Tensor] | None:
        """The same, differentiable in weights and inputs."""

    def products(
        self, weights: Sequence[Tensor], s: int, cotangent: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> StepProducts | None:
        """The gradient, and the products of `cotangent` with its derivatives by weights and by `inputs`."""


@dataclass(frozen=True)
class Rule:
    """How one step follows from the one before.

    Attributes:
        loss: Of a step.
        names: Of the weights, in order.
        momentum: Of SGD.
        kernel: A quicker way to the same derivatives, if there is one.
    """

    loss: Loss
    names: tuple[str, ...]
    momentum: float
    kernel: StepKernel | None = None

    def gradient(self, weights: Sequence[Tensor], s: int, create_graph: bool = False) -> list[Tensor]:
        """Of the loss of step s at weights that require gradients; zero where the loss does not depend on one."""
        if self.kernel is not None:
            found = self.kernel.recorded(weights, s) if create_graph else self.kernel.gradient(weights, s)
            if found is not None:
                return found
        value = self.loss(dict(zip(self.names, weights, strict=True)), s)
        if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
            raise UsageError(f"loss of step {s}: expected a scalar that depends on the weights, got {_told(value)}")
        return list(torch.autograd.grad(value, weights, create_graph=create_graph, materialize_grads=True))


def _told(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)}{'' if value.requires_grad else ' without a gradient'}"


class State(NamedTuple):
    """Where training stands before a step; the velocity is None where it is zero or of no use."""

    weights: list[Tensor]
    velocity: list[Tensor] | None


def walk(
    rule: Rule, weights: Sequence[Tensor], velocity: list[Tensor] | None, steps: Sequence[tuple[int, Tensor]]
) -> Iterator[State]:
    """The state before the first of `steps`, each a number and a step size, and after each; without a graph."""
    state = State([w.detach() for w in weights], velocity)
    yield state
    for s, lr in steps:
        with torch.enable_grad():
            gradient = rule.gradient(leaves_of(state.weights), s)
        with torch.no_grad():
            velocity = advance(rule.momentum, state.velocity, gradient)
            moved = torch._foreach_sub(state.weights, torch._foreach_mul(velocity, lr))
        state = State(list(moved), velocity if rule.momentum else None)
        yield state


def advance(momentum: float, velocity: list[Tensor] | None, gradient: list[Tensor]) -> list[Tensor]:
    """The velocity with which a step moves: `momentum * velocity + gradient`."""
    if velocity is None:
        return gradient
    return list(torch._foreach_add(gradient, velocity, alpha=momentum))


def leaves_of(weights: Sequence[Tensor]) -> list[Tensor]:
    """The same values as leaves that require gradients."""
    return [w.detach().requires_grad_() for w in weights]


def record(rule: Rule, weights: Sequence[Tensor], lrs: Sequence[Tensor], recompute: bool) -> list[Tensor]:
    """The final weights with the graph of all steps, or with one that recomputes each step on the way back."""
    count = len(weights)

    def step(s: int, lr: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        w, v = state[:count], state[count:]
        gradient = rule.gradient(w, s, create_graph=True)
        velocity = [rule.momentum * a + g for a, g in zip(v, gradient, strict=True)] if v else gradient
        moved = [a - lr * b for a, b in zip(w, velocity, strict=True)]
        return (*moved, *velocity) if rule.momentum else tuple(moved)

    # Constant weights must still be something that the loss can be differentiated in.
    state = tuple(w if w.requires_grad else w.detach().requires_grad_() for w in weights)
    for s, lr in enumerate(lrs):
        if recompute:
            state = checkpoint(step, s, lr, *state, use_reentrant=False, preserve_rng_state=False)
        else:
            state = step(s, lr, *state)
    return list(state[:count])
