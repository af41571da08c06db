"""What would silently give wrong gradients, found in the first step: the graph of its loss, and its value again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from dcf.errors import UsageError
from dcf.unroll._steps import Loss

__all__ = ["guarded", "repeatable"]

#: A node of the graph, and which of its outputs.
Edge: TypeAlias = tuple[Any, int]
#: By how much a loss may differ when it is computed again: relative to its size, and in any case.
_RELATIVE: Final = 1e-3
_ABSOLUTE: Final = 1e-5


def repeatable(loss: Loss) -> Loss:
    """`loss`, which must be the same when that of step 0 is computed again; only on the CPU: no GPU is waited for.

    Raises:
        UsageError: When called for step 0 and far from what it was there before.
    """
    before: list[Tensor] = []

    def watched(weights: Mapping[str, Tensor], s: int) -> Tensor:
        value = loss(weights, s)
        if s == 0 and isinstance(value, Tensor) and not value.ndim and value.device.type == "cpu":
            if before:
                _require_same(float(before[0]), float(value.detach()))
            else:
                before.append(value.detach().clone())
        return value

    return watched


def _require_same(first: float, again: float) -> None:
    largest = max(abs(first), abs(again))
    if math.isfinite(largest) and abs(first - again) > _RELATIVE * largest + _ABSOLUTE:
        raise UsageError(
            f"unroll: the loss of step 0 was {first:.6g} and, computed again, {again:.6g}; "
            "it must be the same: draw augmentation beforehand, leave dropout out, enter autocast inside of the loss"
        )


def guarded(loss: Loss, inputs: Sequence[Tensor]) -> Loss:
    """`loss`, whose first value is looked at; see also `repeatable`.

    Raises:
        UsageError: When an input is computed from another one; when called, if the first value depends on a leaf that
            requires gradients and is neither a weight nor behind one of `inputs`.
    """
    loss = repeatable(loss)
    edges = [_edge(x) for x in inputs]
    for number, (node, _) in enumerate(edges):
        if any(edge in edges for edge in _ancestors([(node, 0)], ())):
            raise UsageError(f"unroll: input {number} is computed from another input; give one of the two")
    looked = False

    def watched(weights: Mapping[str, Tensor], s: int) -> Tensor:
        nonlocal looked
        value = loss(weights, s)
        if not looked and isinstance(value, Tensor) and value.requires_grad:
            _refuse_strangers(value, [*edges, *(_edge(w) for w in weights.values())], s)
            looked = True
        return value

    return watched


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _refuse_strangers(value: Tensor, known: Collection[Edge], s: int) -> None:
    for node, _ in _ancestors([_edge(value)], known):
        if type(node).__name__ == "AccumulateGrad":
            raise UsageError(
                f"unroll: the loss of step {s} depends on a tensor of shape {tuple(node.variable.shape)} that requires "
                "gradients and would receive none; add it to inputs, or detach it"
            )


def _ancestors(roots: Sequence[Edge], stops: Collection[Edge]) -> Iterator[Edge]:
    """Edges above `roots`, each once; `stops` and what only they depend on are left out."""
    seen = set(stops)
    stack = list(roots)
    while stack:
        node, _ = stack.pop()
        for edge in node.next_functions:
            if edge[0] is not None and edge not in seen:
                seen.add(edge)
                stack.append(edge)
                yield edge
