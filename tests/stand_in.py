"""A GPU that is none: tensors that say they are on `cuda`, computed on the CPU, and a log of every wait for them.

What reads a value back, sends one without `non_blocking`, or asks for a size that depends on values would hold up a GPU
and is logged. Code that chooses by device chooses as on a GPU. CUDA graphs are captured and replayed as there: what
runs again are the operations, on the tensors that they had, and no Python. It says nothing of time, does not refuse
what a GPU refuses, such as operands on several devices, and kernels that differ on a GPU do not differ here.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar, Final, Self
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = ["CUDA", "Card", "Far", "near"]

CUDA: Final = torch.device("cuda", 0)
#: Operations that read values back, or whose result has a size that only the values tell.
_READS: Final = frozenset(
    {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim", "bincount"}
)
#: Methods that bring values to the host.
_HOME: Final = (Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.item)
#: Bytes that a driver takes from memory that is not pinned before the work that waits is done.
_TAKEN_AT_ONCE: Final = 1 << 16
#: Functions that make a tensor of numbers of the host, and send it.
_MADE: Final = (torch.tensor, torch.as_tensor)


class Far(Tensor):
    """A tensor on the stand-in."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        """Wrap a tensor of the CPU."""
        made: Self = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute on the CPU."""
        if Card.here is None:
            raise RuntimeError("a tensor of the stand-in is used where there is none")
        return Card.here.compute(func, args, kwargs or {})


class Graph:
    """A CUDA graph: operations with the very tensors that they had when they were captured."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def replay(self) -> None:
        """Run them again; what they yield goes where it went before, where another graph may have been at work."""
        if Card.here is not None and Card.here.watching:
            Card.here.launches += 1
        for func, args, kwargs, out in self.recorded:
            homes = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
            for t in () if func._schema.is_mutable else _tensors(out):
                if t.is_floating_point() and t.untyped_storage().data_ptr() not in homes:
                    t.fill_(torch.nan)
        for func, args, kwargs, out in self.recorded:
            again = func(*tree_map(near, args), **tree_map(near, kwargs))
            if func._schema.is_mutable:
                continue
            for old, new in zip(tree_leaves(tree_map(near, out)), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Stream:
    """Streams are in order here."""

    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, other: _Stream) -> None:
        """Nothing to wait for."""


@contextmanager
def _captured(
    graph: Graph, pool: object = None, stream: object = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """`torch.cuda.graph`: nothing is computed for good, and waiting is an error."""
    assert Card.here is not None
    assert Card.here.capturing is None
    Card.here.capturing = graph
    try:
        yield
    finally:
        Card.here.capturing = None


#: What there is of `torch.cuda`.
_CUDA: Final[dict[str, Any]] = {
    "CUDAGraph": Graph, "Stream": _Stream, "graph": _captured, "graph_pool_handle": lambda: (0, 1),
    "current_stream": lambda device=None: _Stream(), "stream": nullcontext, "device": nullcontext,
    "get_device_capability": lambda device=None: (9, 0),
    "get_rng_state": lambda device=None: torch.random.get_rng_state(),
    "set_rng_state": lambda state, device=None: torch.random.set_rng_state(state),
    "get_device_properties": lambda device=None: SimpleNamespace(total_memory=Card.memory),
}  # fmt: skip


class Card(TorchFunctionMode):
    """The stand-in; within it, `cuda` is a device.

    Attributes:
        waits: What held it up, by what it was and where in the code, while `watching`.
        operations: Operations that were launched on it one by one, by name, while `watching`.
        launches: CUDA graphs that were launched meanwhile.
        capturing: The graph that operations are captured in.
    """

    here: Card | None = None
    memory: ClassVar[int] = 1 << 37

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.launches = 0
        self.pinned: list[Tensor] = []
        self.capturing: Graph | None = None
        self.watching = False
        self._patched = [
            patch.multiple(torch.cuda, **_CUDA),
            patch.object(torch.autograd, "_engine_run_backward", self._back(torch.autograd._engine_run_backward)),
        ]

    def __enter__(self) -> Self:
        """Begin; skips the test where it cannot stand in."""
        if not _shapes_stay():
            pytest.skip("this version of torch changes shapes in place, which the stand-in does not follow")
        Card.here = self
        for one in self._patched:
            one.start()
        super().__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        """End."""
        super().__exit__(*problem)
        for one in self._patched:
            one.stop()
        Card.here = None

    def _back(self, run: Any) -> Any:
        """Autograd itself is called with no mode about; what it calls shall have this one."""

        def run_in_mode(*args: Any, **kwargs: Any) -> Any:
            TorchFunctionMode.__enter__(self)
            try:
                return run(*args, **kwargs)
            finally:
                TorchFunctionMode.__exit__(self, None, None, None)

        return run_in_mode

    @contextmanager
    def watched(self) -> Iterator[Card]:
        """Log from here to the end of the context."""
        self.waits.clear()
        self.operations.clear()
        self.launches = 0
        self.watching = True
        try:
            yield self
        finally:
            self.watching = False

    # --- Python ----------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer for the device, and follow tensors to and from it."""
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA if isinstance(args[0], Far) else func(*args)
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return isinstance(args[0], Far)
        if func == Tensor.data.__set__ and isinstance(args[1], Far) and not isinstance(args[0], Far):  # type: ignore[attr-defined]
            made = Far(args[1].inner).requires_grad_(args[0].requires_grad)
            return torch.utils.swap_tensors(args[0], made)  # the object stays, as it does where devices are real
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.pin_memory:
            self.pinned.append(args[0])
            return args[0]
        if func in _HOME and isinstance(args[0], Far):
            self._wait(f"{func.__name__}()")
            return func(near(args[0]), *args[1:], **kwargs)
        if _is_far(kwargs.get("device")):
            made = func(*args, **{**kwargs, "device": "cpu"})
            if func in _MADE:
                self._wait(f"torch.{func.__name__}(..., device=...)")
            return self._wrapped(made)
        return func(*args, **kwargs)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`tensor.to(...)` in its forms."""
        like = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        places = [a for a in (*args, kwargs.get("device")) if isinstance(a, (str, torch.device))]
        owner = like[0] if like else tensor
        place = places[0] if places and not like else CUDA if isinstance(owner, Far) else torch.device("cpu")
        dtypes = [like[0].dtype] if like else [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
        waits, far = not any(a is True for a in (*args, kwargs.get("non_blocking"))), _is_far(place)
        if far and not isinstance(tensor, Far):
            if waits:
                self._wait("a copy to the device that blocks")
            elif tensor.nbytes > _TAKEN_AT_ONCE and not any(tensor is one for one in self.pinned):
                self._wait("a large copy to the device from memory that is not pinned")
            tensor = self._wrapped(tensor)
        elif not far and isinstance(tensor, Far):
            self._wait("a copy to the host")
            tensor = near(tensor)
        return Tensor.to(tensor, dtypes[0], copy=kwargs.get("copy", False)) if dtypes else tensor

    def _wrapped(self, tensor: Tensor) -> Tensor:
        made: Tensor = Far(tensor.detach())
        return made.requires_grad_() if tensor.requires_grad else made

    # --- operations ------------------------------------------------------------------------------

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation that has a tensor of the stand-in among its arguments."""
        name = func._schema.name.partition("::")[2]
        leaves = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        self._check(name, args, leaves)
        if self.watching:
            self.operations[name] += 1
        out = func(*tree_map(near, args), **tree_map(near, kwargs))
        if func._schema.is_mutable:
            found = args[0] if isinstance(out, Tensor) else out
        else:
            found = tree_map_only(Tensor, Far, out)
        if self.capturing is not None:
            self.capturing.recorded.append((func, args, kwargs, found))
        return found

    def _check(self, name: str, args: tuple[Any, ...], leaves: list[Tensor]) -> None:
        masks = [t for t in leaves[1:] if t.dtype == torch.bool] if name in ("index", "index_put_", "index_put") else []
        if name in _READS or masks:
            self._wait(name)
        if name == "repeat_interleave":
            self._wait(f"{name} without output_size")
        strange = [t for t in leaves if not isinstance(t, Far) and t.ndim]
        if name == "copy_" and strange and not (len(args) > 2 and args[2]):
            self._wait("a copy to or from the device that blocks")
        elif name.startswith("index") and strange:
            self._wait(f"{name} by numbers of the host")

    def _wait(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if self.watching:
            self.waits[f"{what} at {_caller()}"] += 1


@functools.cache
def _shapes_stay() -> bool:
    """Whether the second derivative of a norm changes no shape in place, as it does in older versions of torch."""
    names: set[str] = set()

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    with Log():
        (first,) = torch.autograd.grad(F.group_norm(x, 2).square().sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x)
    return not {"aten::unsqueeze_", "aten::squeeze_", "aten::transpose_"} & names


def near(value: Any) -> Any:
    """What a tensor of the stand-in wraps; anything else as it is."""
    return value.inner if isinstance(value, Far) else value


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree_map(near, value)) if isinstance(t, Tensor)]


def _is_far(device: Any) -> bool:
    return device is not None and not isinstance(device, Tensor) and torch.device(device).type == "cuda"


def _caller() -> str:
    """The innermost line of dcf or of a plugin."""
    for frame in reversed(traceback.extract_stack()):
        if "/dcf" in frame.filename and "/site-packages/" not in frame.filename:
            return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"
    return "elsewhere"
