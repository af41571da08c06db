"""The discrete adjoint: forward without a graph, back one rebuilt step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dcf.errors import UsageError
from dcf.unroll._closure import guarded
from dcf.unroll._steps import Rule, State, advance, leaves_of, walk

__all__ = ["sweep"]


def sweep(
    rule: Rule,
    weights: Sequence[Tensor],
    lrs: Tensor,
    inputs: Sequence[Tensor],
    hessian: bool,
    keep: int | Literal["cpu"],
) -> list[Tensor]:
    """The final weights, as one node of the graph.

    Args:
        rule: How to make a step.
        weights: To start from.
        lrs: `(T,)` step sizes, on the device of the weights.
        inputs: Of `dcf.unroll.unroll`.
        hessian: Whether the weights of a step depend on earlier steps, as they do; else they count as constants.
        keep: Of `dcf.unroll.unroll`.
    """
    # What stands there twice would receive its gradient twice.
    sources = list({id(x): x for x in inputs if x.requires_grad}.values())
    checked = Rule(guarded(rule.loss, sources), rule.names, rule.momentum, rule.kernel)
    plan = _Plan(checked, len(lrs), 1 if keep == "cpu" else keep, keep == "cpu", hessian, copy_context())
    return list(_Sweep.apply(plan, lrs, *weights, *sources))


@dataclass(frozen=True)
class _Plan:
    """What the sweep needs beside tensors."""

    rule: Rule
    steps: int
    every: int
    offload: bool
    hessian: bool
    #: What is allowed and expected; autograd goes back over a GPU's part of a graph in a thread of its own.
    context: Context


class _Sweep(torch.autograd.Function):
    """`(plan, lrs, *weights, *inputs)` to the final weights."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, lrs: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(plan.rule.names)
        weights, inputs = tensors[:count], tensors[count:]
        # Velocities are needed where training is taken up again, and for the gradient in the step sizes.
        velocities = plan.rule.momentum > 0 and (plan.every > 1 or ctx.needs_input_grad[1])
        kept = list(weights)
        final = list(weights)
        for s, (final, velocity) in enumerate(walk(plan.rule, weights, None, list(enumerate(lrs.unbind())))):
            if 0 < s < plan.steps and s % plan.every == 0:
                kept += _put_away([*final, *(velocity or ())] if velocities else final, plan.offload)
        ctx.plan, ctx.velocities = plan, velocities
        ctx.save_for_backward(lrs, *inputs, *kept)
        return tuple(final)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UsageError("unroll: this mode cannot be differentiated twice (create_graph=True); use mode='full'")
        return ctx.plan.context.copy().run(_way_back, ctx, gradients)  # type: ignore[no-any-return]


def _way_back(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    plan: _Plan = ctx.plan
    lrs, *rest = ctx.saved_tensors
    inputs = len(ctx.needs_input_grad) - 2 - len(gradients)
    kept = _Kept(len(gradients), plan.every, ctx.velocities, rest[inputs:])
    back = _WayBack(plan, lrs, rest[:inputs], list(gradients), ctx.needs_input_grad)
    for first in reversed(range(0, plan.steps, plan.every)):
        back.segment(first, kept.at(first, lrs.device))
    return back.result()


def _put_away(tensors: Sequence[Tensor], offload: bool) -> list[Tensor]:
    """The tensors as they are, or copies in main memory that a GPU writes and fetches without being waited for."""
    if not offload or tensors[0].device.type == "cpu":
        return list(tensors)
    copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors]
    return [copy.copy_(t, non_blocking=True) for copy, t in zip(copies, tensors, strict=True)]


@dataclass(frozen=True)
class _Kept:
    """Kept states in a row: `count` weights, then, but before step 0, as many velocities where those are kept."""

    count: int
    every: int
    velocities: bool
    tensors: list[Tensor]

    def at(self, s: int, device: torch.device) -> State:
        """The state before step s, one that was kept."""
        if s == 0:
            return State(self.tensors[: self.count], None)
        size = self.count * (2 if self.velocities else 1)
        begin = self.count + (s // self.every - 1) * size
        found = [t.to(device, non_blocking=True) for t in self.tensors[begin : begin + size]]
        return State(found[: self.count], found[self.count :] or None)


class _WayBack:
    """The sweep from the last step to the first.

    With `a` the gradient in the weights after step s and `b` the one that later steps carry back to the velocity, the
    gradient in `grad loss` of step s is `c = b - lrs[s] a`. One product of the derivatives of `grad loss` with `c`
    gives what the weights before the step (the Hessian term) and the inputs receive; then `b <- momentum c`.
    """

    def __init__(
        self, plan: _Plan, lrs: Tensor, inputs: list[Tensor], final: list[Tensor], needed: tuple[bool, ...]
    ) -> None:
        self.plan = plan
        self.lrs = lrs.unbind()
        self.inputs = inputs
        self.needs_lrs = needed[1]
        self.needs_start = needed[2 : 2 + len(final)]
        self.to_weights = final
        self.to_velocity: list[Tensor] | None = None
        self.to_inputs: list[Tensor | None] = [None] * len(inputs)
        self.to_lrs: list[Tensor] = []

    def segment(self, first: int, state: State) -> None:
        """Go back over the steps from `first`, where `state` was, to the next state that was kept."""
        last = min(first + self.plan.every, self.plan.steps) - 1
        between = [(s, self.lrs[s]) for s in range(first, last)]
        states = list(walk(self.plan.rule, *state, between))
        for s in range(last, first - 1, -1):
            self._step(s, states.pop())

    def result(self) -> tuple[Tensor | None, ...]:
        """The gradients of all arguments of the sweep."""
        lrs = torch.stack(self.to_lrs[::-1]) if self.needs_lrs else None
        start = [g if need else None for g, need in zip(self.to_weights, self.needs_start, strict=True)]
        return (None, lrs, *start, *self.to_inputs)

    def _step(self, s: int, state: State) -> None:
        cotangent = list(torch._foreach_mul(self.to_weights, -self.lrs[s]))
        if self.to_velocity is not None:
            torch._foreach_add_(cotangent, self.to_velocity)
        # Nothing comes before step 0, unless somebody wants to know what the start is worth.
        hessian = self.plan.hessian and (s > 0 or any(self.needs_start))
        gradient, to_weights, to_inputs = self._products(s, state.weights, cotangent, hessian)
        if self.needs_lrs:
            self.to_lrs.append(-_dot(self.to_weights, advance(self.plan.rule.momentum, state.velocity, gradient)))
        self.to_weights = [_sum(a, b) for a, b in zip(self.to_weights, to_weights, strict=True)]
        self.to_inputs = [_sum(a, b) for a, b in zip(self.to_inputs, to_inputs, strict=True)]
        if self.plan.rule.momentum:
            self.to_velocity = list(torch._foreach_mul(cotangent, self.plan.rule.momentum))

    def _products(
        self, s: int, weights: list[Tensor], cotangent: list[Tensor], hessian: bool
    ) -> tuple[list[Tensor], list[Tensor | None], list[Tensor | None]]:
        """The gradient of the step's loss, and the products of `cotangent` with its derivatives."""
        if self.plan.rule.kernel is not None:
            with torch.enable_grad():
                found = self.plan.rule.kernel.products(weights, s, cotangent, self.inputs)
            if found is not None:
                return found if hessian else (found[0], [None] * len(weights), found[2])
        leaves = leaves_of(weights)
        targets = [*leaves, *self.inputs] if hessian else self.inputs
        with torch.enable_grad():
            gradient = self.plan.rule.gradient(leaves, s, create_graph=bool(targets))
        products: list[Tensor | None] = [None] * len(targets)
        pairs = [(g, c) for g, c in zip(gradient, cotangent, strict=True) if g.requires_grad]
        if targets and pairs:
            outputs, factors = zip(*pairs, strict=True)
            products = list(torch.autograd.grad(outputs, targets, factors, allow_unused=True))
        nothing: list[Tensor | None] = [None] * (0 if hessian else len(leaves))
        products = nothing + products
        return [g.detach() for g in gradient], products[: len(leaves)], products[len(leaves) :]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.sum(x * y) for x, y in zip(a, b, strict=True)]).sum()


def _sum(a: Tensor | None, b: Tensor | None) -> Any:
    """Of two gradients, of which None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
