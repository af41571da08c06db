"""One case: interleaved pairs in one process, statistics, agreement, launches, and what machine it was."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tests.benchmarks.cases import Case, shared_inputs
from tests.benchmarks.ours import Ours, Precision, initial_weights
from tests.benchmarks.published import Published
from tests.benchmarks.published_others import published_side
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dcf.compiled import allowed
from dcf.data.real import RealData

__all__ = ["machine", "run_case"]

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
#: Calls of the CUDA runtime and driver that hand work to a GPU.
_HANDED = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
#: Real images a class where both sides are compared in float64; that takes no more.
_FEW = 16


def run_case(
    case: Case,
    modules: SimpleNamespace,
    data: RealData,
    pairs: int,
    class_chunk: int | None = None,
    precision: Precision = "default",
) -> dict[str, Any]:
    """Check that both sides agree, then time them in turn.

    Args:
        case: The case.
        modules: The published code.
        data: Real images on the device that is measured.
        pairs: Timed pairs; which side goes first alternates. An outer iteration is timed once, part by part.
        class_chunk: See `Ours`.
        precision: Of dcf's side.

    Returns:
        JSON-ready: seconds of both sides and the ratio published / ours, each as median, min and max, the ratio also
        of CPU seconds of the process, which other people's work disturbs less; n; how far both are apart on the same
        input, in float64, in fp32 and in the precision that is timed; seconds of dcf's first call, which compiles;
        launches of both; the load average before and after.
    """
    # Kernels of a GPU are given back when nothing allows them any more, which is not between two steps of a run.
    with allowed(precision, data.train.device):
        return _measured(case, modules, data, pairs, class_chunk, precision)


def _measured(
    case: Case, modules: SimpleNamespace, data: RealData, pairs: int, class_chunk: int | None, precision: Precision
) -> dict[str, Any]:
    ours, published = Ours(case, data, class_chunk, precision), published_side(modules, case, data)
    agreement, launches, first = _agreement(case, ours, published, data, precision)
    load = os.getloadavg()[0]
    sides, device = (published, ours), data.train.device
    if case.part == "outer":
        first = _warmed(sides, device)
        wall, cpu = _in_parts(sides, device)
    else:
        wall, cpu = _interleave(sides, pairs, device, warm=bool(agreement))
    return {
        "case": case.name,
        "precision": precision,
        "n": len(wall[0]),
        "published_s": _summary(wall[0]),
        "ours_s": _summary(wall[1]),
        "ratio": _summary(_ratios(wall)),
        "ratio_cpu": _summary(_ratios(cpu)),
        "ratio_of_sums": sum(wall[0]) / sum(wall[1]),
        "ratio_of_sums_cpu": sum(cpu[0]) / sum(cpu[1]),
        "ours_first_s": first,
        "relative_error": agreement,
        "launches": launches,
        "class_chunk": ours.session.ctx.class_chunk,
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


# --- agreement --------------------------------------------------------------------------------------------------------


def _agreement(
    case: Case, ours: Ours, published: Published, data: RealData, precision: Precision
) -> tuple[dict[str, dict[str, float]], dict[str, int], float]:
    """Relative errors by precision, launches by side, and the seconds of dcf's first call.

    Training with random augmentation differs by its draws and is not compared.
    """
    if case.part in ("evaluation", "outer") or (case.part == "training" and case.augmented):
        return {}, {}, 0.0
    weights = initial_weights(ours)
    found = {}
    if case.part == "match":  # the published epoch casts images to fp32
        few = shared_inputs(case, data, weights, torch.float64, _FEW)
        found["float64"] = _errors(_in(ours, "strict").once(few), published.once(few))
    shared = shared_inputs(case, data, weights, torch.float32, case.batch_real)
    began = time.perf_counter()
    ours.once(shared)
    first = time.perf_counter() - began
    wanted, theirs = _counted(lambda: published.once(shared), data.train.device)
    own, mine = _counted(lambda: ours.once(shared), data.train.device)
    if precision == "default":
        found["strict"] = _errors(_in(ours, "strict").once(shared), wanted)
    found[precision] = _errors(own, wanted)
    return found, {"published": theirs, "ours": mine}, first


def _in(ours: Ours, precision: Precision) -> Ours:
    return ours if ours.precision == precision else Ours(ours.case, ours.data, ours.class_chunk, precision)


def _errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    return {name: _relative_error(found[name], wanted[name]) for name in wanted}


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _counted(call: Callable[[], dict[str, Tensor]], device: torch.device) -> tuple[dict[str, Tensor], int]:
    """What a call hands to a GPU, a CUDA graph as one; on a CPU, the operations that call no other."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as recorded:
        found = call()
    events = recorded.events() or []
    if device.type == "cuda":
        return found, sum(event.name.startswith(_HANDED) for event in events)
    return found, sum(event.name.startswith(("aten::", "## Call")) and not event.cpu_children for event in events)


# --- time -------------------------------------------------------------------------------------------------------------


_Seconds = list[list[float]]


def _interleave(sides: Sequence[Any], pairs: int, device: torch.device, warm: bool) -> tuple[_Seconds, _Seconds]:
    """Wall and CPU seconds of each side, pair by pair; after one call of each that is not counted, if they are cold."""
    wall: _Seconds = [[] for _ in sides]
    cpu: _Seconds = [[] for _ in sides]
    for pair in range(0 if warm else -1, pairs):
        for number in range(len(sides)) if pair % 2 else reversed(range(len(sides))):
            gc.collect()
            taken = _time(sides[number].step, device)
            if pair >= 0:
                wall[number].append(taken[0])
                cpu[number].append(taken[1])
    return wall, cpu


def _warmed(sides: Sequence[Any], device: torch.device) -> float:
    """Let each side do the first two parts of another iteration, a step and a training; seconds of dcf's, the last."""
    for side in sides:
        parts = side.parts()
        taken, _ = _time(lambda it=parts: [next(it) for _ in range(2)], device)
    return taken


def _in_parts(sides: Sequence[Any], device: torch.device) -> tuple[_Seconds, _Seconds]:
    """Wall and CPU seconds of each part of one iteration of each side, the parts in turn; none is left out."""
    wall: _Seconds = [[] for _ in sides]
    cpu: _Seconds = [[] for _ in sides]
    going, done, part = [side.parts() for side in sides], False, 0
    while not done:
        for number in range(len(sides)) if part % 2 else reversed(range(len(sides))):
            gc.collect()
            ended: list[bool] = []
            taken = _time(lambda it=going[number], end=ended: end.append(next(it, True) is True), device)
            if ended[0]:
                done = True
            else:
                wall[number].append(taken[0])
                cpu[number].append(taken[1])
        part += 1
    return wall, cpu


def _time(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    _synchronize(device)
    began = time.perf_counter(), time.process_time()
    step()
    _synchronize(device)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def _ratios(seconds: _Seconds) -> list[float]:
    return [theirs / own for theirs, own in zip(*seconds, strict=True)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine(device: torch.device, kept_pages: bool) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu_field("model name") or platform.processor(),
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in _cpu_field("flags").split()],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "freed_pages_kept": kept_pages,
    }


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
