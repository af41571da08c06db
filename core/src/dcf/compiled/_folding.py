"""What is done to the graph of a kernel before it is compiled, or instead of that."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from dcf.compiled import _blocks, _convolutions, _first, _lower
from dcf.compiled._library import DIRECT

__all__ = ["attach", "call_directly", "nothing_to_fuse", "tidy"]

#: Operations that take maps in bf16, and where their arguments say whether the maps that they yield are; None: never.
_LOW: Final = {_blocks.FORWARD: 4, _blocks.BACKWARD: 6, _blocks.TWICE: None}
#: Operations on maps that are as fast one by one as in compiled loops.
_WHOLE: Final = (
    *_LOW,
    *_convolutions.OPERATIONS,
    *_first.OPERATIONS,
    _lower.EXACT,
    operator.getitem,
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.constant_pad_nd.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.view.default,
)


def tidy(graph: GraphModule) -> None:
    """Leave out what nothing depends on, and casts beside operations that could do without them; in place.

    Fused norms read bf16 that was widened for them, and write what would be rounded to bf16 next.
    """
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in _LOW:
            _fold_inputs(node)
            flag = _LOW[node.target]
            if flag is not None:
                _fold_output(node, flag)
        if node.target is torch.ops.aten.convolution_backward.default:
            _mask_unused(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def attach(graph: GraphModule) -> None:
    """Let a graph be differentiated through what autograd saved for the derivatives in it; in place.

    Older versions of torch write that they detach what they save, which is no part of the function.
    """
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])


def call_directly(graph: GraphModule) -> None:
    """Call the functions behind operations, of a graph that is neither compiled nor differentiated; in place.

    What torch does around operations takes a tenth of a step on a few small images.
    """
    for node in graph.graph.nodes:
        node.target = DIRECT.get(str(node.target), node.target)
    graph.recompile()


def nothing_to_fuse(graph: GraphModule) -> bool:
    """Whether maps `(N, C, H, W)` meet convolutions, fused norms and casts alone; compiling gains nothing then."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    return all(node.target in _WHOLE for node in calls if _dimensions(node) == 4)


def _fold_inputs(node: Node) -> None:
    for argument in list(node.all_input_nodes):
        source = _source(argument, torch.float32)
        if source is not None and _dtype(source) == torch.bfloat16:
            node.replace_input_with(argument, source)


def _fold_output(node: Node, flag: int) -> None:
    maps = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    casts = [(cast, _source(cast, torch.bfloat16)) for of in maps for cast in of.users]
    if not casts or any(source is None for _, source in casts):
        return
    node.args = (*node.args[:flag], True, *node.args[flag + 1 :])
    for cast, source in casts:
        if source is not None:
            cast.replace_all_uses_with(source)


def _mask_unused(node: Node) -> None:
    """Do not ask for gradients in image, weight or bias that nobody takes."""
    taken = {user.args[1] for user in node.users if user.target is operator.getitem}
    *rest, mask = node.args
    if len(taken) == len(node.users) and isinstance(mask, (list, tuple)):
        node.args = (*rest, [bool(asked) and i in taken for i, asked in enumerate(mask)])


def _source(node: Any, dtype: torch.dtype) -> Node | None:
    """What a cast to `dtype` casts; None for anything else."""
    if not isinstance(node, Node) or node.target is not torch.ops.aten._to_copy.default:
        return None
    formats = (None, torch.preserve_format, torch.channels_last)
    if node.kwargs.get("dtype") != dtype or node.kwargs.get("memory_format") not in formats:
        return None
    source = node.args[0]
    return source if isinstance(source, Node) else None


def _dimensions(node: Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else None


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None
