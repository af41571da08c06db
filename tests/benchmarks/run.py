"""Timing of one case: interleaved pairs in one process, statistics, agreement, and what machine it was."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tests.benchmarks.cases import Case, shared_inputs
from tests.benchmarks.ours import Ours, initial_weights
from tests.benchmarks.published import Published
from torch import Tensor

from dcf.data.real import RealData

__all__ = ["machine", "run_case"]

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def run_case(
    case: Case, modules: ModuleType, data: RealData, pairs: int, class_chunk: int | None = None
) -> dict[str, Any]:
    """Check that both sides agree, then time them in turn.

    Args:
        case: The case.
        modules: The published code.
        data: Real images on the device that is measured.
        pairs: Timed pairs; which side goes first alternates.
        class_chunk: See `Ours`.

    Returns:
        JSON-ready: seconds of both sides and the ratio published / ours, each as median, min and max, the ratio also
        of CPU seconds of the process, which other people's work disturbs less; n; the relative error of what both
        compute from the same input; the load average before and after.
    """
    ours, published = Ours(case, data, class_chunk), Published(modules, case, data)
    agreement = _agreement(case, ours, published, data)
    load = os.getloadavg()[0]
    wall, cpu = _interleave((published.step, ours.step), pairs, data.train.device)
    return {
        "case": case.name,
        "n": pairs,
        "published_s": _summary(wall[0]),
        "ours_s": _summary(wall[1]),
        "ratio": _summary(_ratios(wall)),
        "ratio_cpu": _summary(_ratios(cpu)),
        "relative_error": agreement,
        "class_chunk": ours.session.ctx.class_chunk,
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def _agreement(case: Case, ours: Ours, published: Published, data: RealData) -> dict[str, float]:
    """Relative error of each result; training with random augmentation differs by its draws and is left out."""
    if case.part == "training" and case.augmented:
        return {}
    shared = shared_inputs(case, data, initial_weights(ours))
    wanted, found = published.once(shared), ours.once(shared)
    return {name: _relative_error(found[name], wanted[name]) for name in wanted}


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


_Seconds = list[list[float]]


def _interleave(sides: Sequence[Callable[[], None]], pairs: int, device: torch.device) -> tuple[_Seconds, _Seconds]:
    """Wall and CPU seconds of each side, pair by pair, after one call of each that is not counted."""
    wall: _Seconds = [[] for _ in sides]
    cpu: _Seconds = [[] for _ in sides]
    for pair in range(-1, pairs):
        for number in range(len(sides)) if pair % 2 else reversed(range(len(sides))):
            gc.collect()
            taken = _time(sides[number], device)
            if pair >= 0:
                wall[number].append(taken[0])
                cpu[number].append(taken[1])
    return wall, cpu


def _time(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
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
