"""What the adjoint would silently get wrong, found in the graph of the first step's loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from dcf.errors import UsageError
from dcf.unroll._steps import Loss

__all__ = ["guarded"]

#: A node of the graph, and which of its outputs.
Edge: TypeAlias = tuple[Any, int]


def guarded(loss: Loss, inputs: Sequence[Tensor]) -> Loss:
    """`loss`, whose first value is looked at.

    Raises:
        UsageError: When an input is computed from another one; when called, if the first value depends on a leaf that
            requires gradients and is neither a weight nor behind one of `inputs`.
    """
    edges = [_edge(x) for x in inputs]
    for number, (node, _) in enumerate(edges):
        if any(edge in edges for edge in _ancestors([(node, 0)], ())):
            raise UsageError(f"unroll: input {number} is computed from another input; give one of the two")
    looked = False

    def watched(weights: Mapping[str, Tensor], s: int) -> Tensor:
        nonlocal looked
        value = loss(weights, s)
        if not looked and value.requires_grad:
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
