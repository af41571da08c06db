"""Whether a kernel pays: what the processor can do, and how many operations are ahead."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Hashable
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from dcf.compiled._lower import Rounded
from dcf.networks.base import NetworkState

__all__ = [
    "Kind",
    "Processor",
    "activations",
    "arithmetic",
    "busy",
    "multiplications",
    "processor",
    "worthwhile",
]


#: In which precision kernels compute on a processor or a GPU, if it has any that are faster there.
Processor: TypeAlias = Literal["bf16", "fp32", "other"]

#: How many times as much there must be to do for a kernel in fp32: it saves a quarter of the plain way, not more.
_LESS_SAVED: Final = 4
#: Calls from which a kernel pays on a GPU: making it takes as long as a dozen of them, most of it launching.
_LEAST_CALLS: Final = 30
#: Multiplications above which a GPU has enough to do: a millisecond or so, about as long as the few hundred operations
#: of a step take to launch. Reckoned, not measured.
_BUSY: Final = 2e10
#: Of NVIDIA GPUs, the first that multiply bf16.
_AMPERE: Final = (8, 0)


class Kind(Enum):
    """What a kernel computes: its passes through the network, and the multiplications from which it pays.

    The least number is about what a core does in the time that compiling takes (10 to 60 seconds), as measured on a
    Xeon with AMX: 80 GFLOP/s. The last word says which convolutions are in bf16: those of a forward pass that images
    are differentiated through are not, see `dcf.compiled._lower.Lowered`.
    """

    EMBED = ("embeddings", 1, 0.4e12, "all")
    CLASSIFY = ("logits", 1, 0.4e12, "all")
    FEATURES = ("differentiable embeddings", 3, 1.2e12, "derivatives")
    GRADIENT = ("gradient", 3, 1.6e12, "all")
    MATCHED = ("differentiable gradient", 9, 2.4e12, "derivatives")
    RECORDED = ("gradient that is differentiable in weights, too", 9, 2.4e12, "derivatives")
    STEP = ("gradient of a step", 3, 1.6e12, "derivatives")
    PRODUCTS = ("products", 9, 2.4e12, "derivatives")
    # Several classes, or several networks, in one call of `vmap`: on a GPU alone.
    CLASS_GRADIENT = ("gradients of classes", 3, math.inf, "all")
    CLASS_MATCHED = ("differentiable gradients of classes", 9, math.inf, "derivatives")
    STACK_GRADIENT = ("gradients of several networks", 3, math.inf, "all")
    STACK_CLASSIFY = ("logits of several networks", 1, math.inf, "all")

    @property
    def passes(self) -> int:
        """Forward passes that it costs as much as."""
        return self.value[1]

    def least(self, strict: bool) -> float:
        """Multiplications in all from which it is made; more with strict precision, where it saves less of each."""
        return self.value[2] * (_LESS_SAVED if strict else 1)

    def rounded(self, device: torch.device, numbers: Processor) -> Rounded:
        """Which convolutions are in bf16 in default precision, where a device multiplies best what `numbers` says.

        On a GPU, the derivatives of a forward pass that images are differentiated through are not, either: a small part
        of the work there, for which torch takes TF32 by default.
        """
        on_cpu = device.type == "cpu"
        learned = self.value[3] != "all"
        if numbers != "bf16":
            return ("tiled" if learned else "blocks") if on_cpu else "none"
        if not learned:
            return "all"
        return "derivatives" if on_cpu else "none"

    @property
    def differentiable(self) -> bool:
        """Whether its results can be differentiated, in the images and labels."""
        return self in (Kind.FEATURES, Kind.MATCHED, Kind.RECORDED, Kind.CLASS_MATCHED)


@functools.cache
def processor() -> Processor:
    """What suits the processor: "bf16" with matrix units for it (AMX), "fp32" with AVX2, "other" without.

    AVX512_BF16 multiplies bf16 twice as fast as fp32; tiles in fp32 (`_tiles.cpp`) take a sixth of the
    multiplications, and round less.
    """
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="ascii") if platform.machine() == "x86_64" else ""
    except (OSError, UnicodeDecodeError):
        known = ""
    if "amx_bf16" in known:
        return "bf16"
    return "fp32" if "avx2" in known else "other"


def arithmetic(device: torch.device) -> Processor:
    """As `processor`, of a device: "bf16" for GPUs that multiply bf16, "fp32" for older ones."""
    if device.type == "cpu":
        return processor()
    return "bf16" if torch.cuda.get_device_capability(device) >= _AMPERE else "fp32"


def worthwhile(kind: Kind, net: NetworkState, images: Tensor, calls: int, strict: bool = False) -> bool:
    """Whether so many calls with such images have as much to do as pays for making the kernel.

    Args:
        kind: The kernel.
        net: The network.
        images: `(N, C, H, W)`, those of one call.
        calls: In all.
        strict: Whether the kernel is one in fp32.
    """
    if any(m._forward_hooks or m._forward_pre_hooks for m in net.module.modules()):
        return False  # somebody watches the layers, which a kernel does not pass through
    if images.is_cuda:
        return calls >= _LEAST_CALLS
    shape = tuple(int(n) for n in images.shape[1:])
    return len(images) * calls * kind.passes * multiplications(net, shape) >= kind.least(strict)


def busy(net: NetworkState, shape: tuple[int, ...], batch: int) -> bool:
    """Whether the gradient of so many images of `shape` is enough work for a GPU, so that more at once gain nothing."""
    return Kind.GRADIENT.passes * batch * multiplications(net, shape) >= _BUSY


def multiplications(net: NetworkState, shape: tuple[int, ...]) -> int:
    """Multiplications of the convolutions and linear layers for one image of `shape`."""
    return _counted(net, shape)[0]


def activations(net: NetworkState, shape: tuple[int, ...]) -> int:
    """Values that the convolutions and linear layers yield for one image of `shape`."""
    return _counted(net, shape)[1]


def _counted(net: NetworkState, shape: tuple[int, ...]) -> tuple[int, int]:
    # By what the network was made from, as a run makes a new one in every iteration.
    known = net.module.__dict__.setdefault("_counted", {}) if net.origin is None else _COUNTED
    if (net.origin, shape) not in known:
        known[net.origin, shape] = _count(net, shape)
    return known[net.origin, shape]


_COUNTED: Final[dict[tuple[Hashable, tuple[int, ...]], tuple[int, int]]] = {}


def _count(net: NetworkState, shape: tuple[int, ...]) -> tuple[int, int]:
    products = values = 0

    def add(module: Any, inputs: Any, output: Tensor) -> None:
        nonlocal products, values
        products += output.numel() * module.weight[0].numel() // _PROBES
        values += output.numel() // _PROBES

    layers = [m for m in net.module.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(add) for layer in layers]
    kept = {name: buffer.clone() for name, buffer in net.buffers.items()}
    device = next(iter(net.params.values())).device
    dtype = next(iter(net.params.values())).dtype
    try:
        with torch.no_grad():
            net(torch.zeros(_PROBES, *shape, device=device, dtype=dtype))
    finally:
        for handle in handles:
            handle.remove()
        for name, buffer in kept.items():
            net.buffers[name].copy_(buffer)
    return products, values


#: Batch norms refuse a single image.
_PROBES: Final = 2
