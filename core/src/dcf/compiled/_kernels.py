"""Making kernels, once for a network and a size of batch, and finding them again."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from dcf.compiled import _captured
from dcf.compiled._folding import attach, call_directly, nothing_to_fuse, tidy
from dcf.compiled._functions import FUNCTIONS, Kernel
from dcf.compiled._lower import Lowered, Rounded, RoundedMaps
from dcf.compiled._rules import Kind
from dcf.data.cache import cache_dir
from dcf.networks.base import NetworkState

__all__ = ["Kind", "forget_captured", "has_kernel", "kernel_for", "seconds_spent"]

log = logging.getLogger(__name__)

#: Kernels by what they are for; None where one could not be made, which is not tried again.
_MADE: dict[Hashable, Kernel | None] = {}
#: Why some could not be made, said once each: where there is no compiler, that is so for all.
_TOLD: set[str] = set()
#: Seconds that making each of them took.
_SECONDS: dict[Hashable, float] = {}
#: Held while one is made: tracing and compilers change what all threads share.
_MAKING: Final = threading.RLock()
#: What the results of a kernel may differ by from the plain way, relative to the norm of all of them together. bf16
#: costs some percent where a gradient nearly cancels, fp32 the mask of a ReLU at its kink; a network that was
#: misunderstood is off by its whole size. Of 558 networks in tiles the results were off by 0.6 % at most.
_DIFFERENCE: Final[dict[Rounded, float]] = {"all": 0.3, "derivatives": 0.3, "blocks": 0.01, "tiled": 0.01, "none": 0.01}
#: Likewise of their derivatives, where they have any: 612 networks were off by 0.8 % at most, 558 in tiles by 1.9 %.
_TURNED: Final[dict[Rounded, float]] = {"all": 0.3, "derivatives": 0.04, "blocks": 0.04, "tiled": 0.04, "none": 0.02}


def kernel_for(
    kind: Kind, rounded: Rounded, net: NetworkState, data: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor] | None:
    """What a kernel makes of data and weights, made now if there is none yet; None where none can be made.

    Args:
        kind: Of the kernel.
        rounded: Which convolutions are in bf16.
        net: The network, which must know what it was made from.
        data: Images first, then labels, then cotangents, as `kind` needs them.
        weights: In order of `net.params`; constants, but for the kind that is differentiable in them.

    Returns:
        The results; constants, but for the kinds that are differentiable.
    """
    kernel, inputs = _found(kind, rounded, net, data, weights)
    return None if kernel is None else list(kernel(*inputs))


def has_kernel(
    kind: Kind, rounded: Rounded, net: NetworkState, data: Sequence[Tensor], weights: Sequence[Tensor]
) -> bool:
    """Whether `kernel_for` of the same would compute; it is made now if there is none yet."""
    return _found(kind, rounded, net, data, weights)[0] is not None


def _found(
    kind: Kind, rounded: Rounded, net: NetworkState, data: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Kernel | None, list[Tensor]]:
    inputs = [*data, *(weights if kind is Kind.RECORDED else (w.detach() for w in weights))]
    if net.origin is None or net.buffers:
        return None, inputs
    shapes = tuple((t.shape, t.dtype, kind.differentiable and t.requires_grad) for t in data)
    device, stacked = inputs[0].device, inputs[-1].shape
    tf32 = device.type == "cuda" and (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    # What is compiled is compiled for a number of threads.
    key = (kind, rounded, net.origin, net.module.training, shapes, stacked, tf32, torch.get_num_threads(), device)
    if key not in _MADE:
        with _MAKING:
            if key not in _MADE:
                began = time.perf_counter()
                _MADE[key] = _make(kind, rounded, net, len(data), inputs)
                _SECONDS[key] = time.perf_counter() - began
    return _MADE[key], inputs


def forget_captured() -> None:
    """Give back the memory of a GPU that kernels hold; what is asked for again is made again."""
    for key in [key for key in _MADE if isinstance(key, tuple) and key[-1].type != "cpu"]:
        del _MADE[key]
    _captured.forget()


def seconds_spent() -> float:
    """Seconds that this process has spent on making kernels, those that could not be made among them."""
    return sum(_SECONDS.values())


def _make(kind: Kind, rounded: Rounded, net: NetworkState, data: int, inputs: list[Tensor]) -> Kernel | None:
    if any(isinstance(m, nn.modules.dropout._DropoutNd) for m in net.module.modules()):
        return None
    plain, on_gpu = FUNCTIONS[kind](net, data), inputs[0].is_cuda
    began, made = time.monotonic(), "captured" if on_gpu else "compiled"
    log.info("%s a kernel for images %s, once", "capturing" if on_gpu else "compiling", tuple(inputs[0].shape))
    try:
        with _quiet():
            kernel = (_launched_as_one if on_gpu else _compiled)(plain, inputs, rounded, kind.differentiable)
            off, turned = _differences(kernel, plain, inputs, kind.differentiable)
    except Exception as problem:  # compilers fail in many ways, and a run can do without
        reason = (str(problem).strip().splitlines() or [""])[0][:120]
        text = f"no {made} kernels: {type(problem).__name__}: {reason}; computing the plain way"
        log.log(logging.DEBUG if text in _TOLD else logging.WARNING, "%s", text)
        _TOLD.add(text)
        return None
    if not (off <= _DIFFERENCE[rounded] and turned <= _TURNED[rounded]):
        text = "the %s kernel of this network is off by %.2g, its derivative by %.2g; computing the plain way"
        log.warning(text, made, off, turned)
        return None
    log.debug("%s in %.1f s; off by %.2g, %.2g", made, time.monotonic() - began, off, turned)
    return kernel


def _launched_as_one(plain: Kernel, inputs: list[Tensor], rounded: Rounded, differentiable: bool) -> Kernel:
    def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
        if rounded == "none":
            return plain(*tensors)
        with RoundedMaps():
            return plain(*tensors)

    return _captured.captured(lowered, inputs, differentiable)


def _compiled(plain: Kernel, inputs: list[Tensor], rounded: Rounded, differentiable: bool) -> Kernel:
    def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
        with Lowered(rounded):
            return plain(*tensors)

    graph = make_fx(lowered)(*_leaves(inputs))
    if differentiable:
        attach(graph)
    tidy(graph)
    if any("rand" in str(node.target) or "dropout" in str(node.target) for node in graph.graph.nodes):
        raise ValueError("the network draws random numbers")
    kernel = _as_it_is(graph, differentiable) if nothing_to_fuse(graph) else torch.compile(graph, dynamic=False)
    return kernel if differentiable else lambda *tensors: _without_graph(kernel, tensors)


def _as_it_is(graph: GraphModule, differentiable: bool) -> Kernel:
    """A graph that runs operation by operation, its derivative tidied as it is itself."""
    if not differentiable:
        call_directly(graph)
        return graph.forward
    from functorch.compile import aot_function, make_boxed_func

    def tidied(part: GraphModule, _: Sequence[Any]) -> Any:
        tidy(part)
        call_directly(part)
        return make_boxed_func(part.forward)

    kernel: Kernel = aot_function(graph, fw_compiler=tidied, bw_compiler=tidied)
    return kernel


def _without_graph(kernel: Kernel, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(kernel(*tensors))


def _differences(kernel: Kernel, plain: Kernel, inputs: Sequence[Tensor], differentiable: bool) -> tuple[float, float]:
    """How far a kernel is off in its results, and in their derivatives in images and in what else is learned."""
    if not differentiable:
        return _difference(kernel(*_leaves(inputs)), plain(*_leaves(inputs))), 0.0
    (found, towards), (wanted, rightly) = (_with_derivatives(each, inputs) for each in (kernel, plain))
    parts = [_difference(towards[:1], rightly[:1])]  # the images apart: their gradient is small beside that in weights
    if len(towards) > 1:
        parts.append(_difference(towards[1:], rightly[1:]))
    return _difference(found, wanted), float(torch.tensor(parts).max())  # NaN if either is


def _with_derivatives(function: Kernel, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The results, and the gradients of half their squares in the images and in all else that requires one."""
    leaves = [inputs[0].detach().requires_grad_(), *(t.detach().requires_grad_(t.requires_grad) for t in inputs[1:])]
    with torch.enable_grad():
        found = function(*leaves)
        half = torch.stack([t.square().sum() for t in found]).sum() / 2
        return found, torch.autograd.grad(half, [t for t in leaves if t.requires_grad], materialize_grads=True)


def _leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Norm of the difference relative to that of what is wanted; NaN where anything is not finite."""
    apart = [(a.detach().float() - b.detach().float()).square().sum() for a, b in zip(found, wanted, strict=True)]
    size = torch.stack([b.detach().float().square().sum() for b in wanted]).sum()
    return float((torch.stack(apart).sum() / size.clamp(min=torch.finfo(size.dtype).tiny)).sqrt())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is compiled in the folder of caches, and the compiler's talk about GPUs to itself."""
    talkative = logging.getLogger("torch.utils.cpp_extension")
    level = talkative.level
    talkative.setLevel(logging.ERROR)
    if not _cache_was_chosen():
        os.environ[_CACHE] = str(cache_dir() / "compiled")
    try:
        yield
    finally:
        talkative.setLevel(level)


#: Where the compiler keeps what it made.
_CACHE: Final = "TORCHINDUCTOR_CACHE_DIR"


def _cache_was_chosen() -> bool:
    given = os.environ.get(_CACHE)
    if given is None:
        return False
    # Importing torchvision is enough for the compiler to put its own default there, which is nobody's choice.
    path = Path(given)
    return not (path.name.startswith("torchinductor_") and path.parent == Path(tempfile.gettempdir()))
