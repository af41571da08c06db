"""Kernels of a GPU: a function's operations captured once as a CUDA graph and launched as one.

Most steps of a run are hundreds of small operations, each of which takes longer to launch than to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["captured", "forget"]

#: From tensors to tensors, without reading a value back.
Function = Callable[..., tuple[Tensor, ...]]

#: Calls before the capture, as libraries choose algorithms and take workspace in the first ones.
_WARM_UP: Final = 3


class _Pool:
    """The memory that all captures on a device work in, and the stream that they are captured on.

    What one leaves behind another may overwrite: none reads anything but its own inputs, and none gives anything away
    but copies of its outputs. Graphs are kept as long as the pool: one that all have left must not be used again.
    """

    def __init__(self, device: torch.device) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graphs: list[torch.cuda.CUDAGraph] = []


_POOLS: dict[torch.device, _Pool] = {}


def captured(function: Function, inputs: Sequence[Tensor], differentiable: bool) -> Function:
    """The same function of tensors like these, as one launch.

    Args:
        function: Pure; decides by nothing but the shapes.
        inputs: On a GPU; their shapes and dtypes are those of every call, their values do not matter.
        differentiable: Whether the results shall be differentiable, once, in those inputs that require gradients. On
            the way back they are computed again: what is kept for that in a capture would be that of its last launch.

    Raises:
        RuntimeError: When something in it cannot be captured.
        ValueError: When it draws random numbers.
    """
    forward = _Capture(_constant(function, leaves=not differentiable), inputs)
    if not differentiable:
        return forward
    wanted = [t.requires_grad for t in inputs]
    backward = _Capture(_products(function, wanted), [*inputs, *forward(*inputs)])

    def kernel(*tensors: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _Differentiable.apply(forward, backward, wanted, *tensors)
        return found

    return kernel


def forget() -> None:
    """Give back the memory that captures work in, once those that use it are gone."""
    _POOLS.clear()


class _Capture:
    """A captured function; its results are constants.

    The tensors that it was captured with are its own: calls copy into them, and results out of them.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        device = inputs[0].device
        with torch.no_grad():
            # Other values than those of the first call, which is checked: whatever was not read anew would show there.
            self.inputs = [(t.flip(0) if t.ndim else t).clone(memory_format=torch.contiguous_format) for t in inputs]
        self.graph = torch.cuda.CUDAGraph()
        self.shapes: list[torch.Size] = []
        with torch.cuda.device(device):
            self.joined = self._capture(function, device)

    def _capture(self, function: Function, device: torch.device) -> Tensor:
        here = torch.cuda.current_stream(device)
        pool = _POOLS.get(device) or _Pool(device)
        drawn = torch.cuda.get_rng_state(device)
        pool.stream.wait_stream(here)
        with torch.cuda.stream(pool.stream):
            for _ in range(_WARM_UP):
                function(*self.inputs)
        here.wait_stream(pool.stream)
        if not torch.equal(drawn, torch.cuda.get_rng_state(device)):
            torch.cuda.set_rng_state(drawn, device)  # as if nobody had tried
            raise ValueError("the network draws random numbers")
        # Another thread may read images ahead meanwhile, which must not break the capture. The outer context is for
        # versions of torch that do not leave the stream of a capture that fails.
        handle, mode = pool.handle, "thread_local"
        with (
            torch.cuda.stream(here),
            torch.cuda.graph(self.graph, handle, stream=pool.stream, capture_error_mode=mode),
        ):
            found = function(*self.inputs)
            self.shapes = [t.shape for t in found]
            joined = torch.cat([t.detach().reshape(-1) for t in found])
        pool.graphs.append(self.graph)
        _POOLS[device] = pool
        return joined

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            _copy_all(self.inputs, [t.detach() for t in tensors])
            self.graph.replay()
            parts = torch.split(self.joined.clone(), [shape.numel() for shape in self.shapes])
            return tuple(part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy, those of one dtype that lie alike in one launch."""
    alike: list[tuple[Tensor, Tensor]] = []
    others: list[tuple[Tensor, Tensor]] = []
    for pair in zip(targets, sources, strict=True):
        plain = pair[1].is_contiguous() and pair[1].dtype == pair[0].dtype == torch.float32
        (alike if plain else others).append(pair)
    if alike:
        torch._foreach_copy_([a for a, _ in alike], [b for _, b in alike])
    for target, source in others:
        target.copy_(source)


class _Differentiable(torch.autograd.Function):
    """`(forward, backward, wanted, *inputs)` to the results of `forward`."""

    @staticmethod
    def forward(
        ctx: Any, forward: Function, backward: Function, wanted: Sequence[bool], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.backward, ctx.wanted = backward, wanted
        ctx.save_for_backward(*inputs)
        return forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        found = iter(ctx.backward(*ctx.saved_tensors, *cotangents))
        return (None, None, None, *(next(found) if asked else None for asked in ctx.wanted))


def _constant(function: Function, leaves: bool) -> Function:
    def constant(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = [t.detach().requires_grad_(leaves and t.is_floating_point()) for t in tensors]
        return tuple(t.detach() for t in function(*inputs))

    return constant


def _products(function: Function, wanted: Sequence[bool]) -> Function:
    """From inputs and cotangents of the results to the gradients in the inputs that are wanted."""

    def products(*tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(wanted)
        inputs = [t.detach().requires_grad_(asked) for t, asked in zip(tensors[:count], wanted, strict=True)]
        with torch.enable_grad():
            found = function(*inputs)
            targets = [t for t, asked in zip(inputs, wanted, strict=True) if asked]
            pairs = [(t, c) for t, c in zip(found, tensors[count:], strict=True) if t.requires_grad]
            if not pairs:
                return tuple(torch.zeros_like(t) for t in targets)
            results, cotangents = zip(*pairs, strict=True)
            return torch.autograd.grad(results, targets, cotangents, materialize_grads=True)

    return products
