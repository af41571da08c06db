"""Cases in rounds: interleaved pairs in one process, statistics, agreement, launches, and what machine it was."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tests.benchmarks.cases import PARTS, Case, shared_inputs
from tests.benchmarks.ours import Ours, Precision, initial_weights
from tests.benchmarks.published import Published
from tests.benchmarks.published_others import published_side
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dcf.data.real import RealData

__all__ = ["Timed", "machine"]

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
#: Calls of the CUDA runtime and driver that hand work to a GPU.
_HANDED = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
#: Real images a class where both sides are compared in float64; that takes no more.
_FEW = 16
#: Of work of one case in a round, at least; a long step is one pair.
LEAST_SECONDS = 4.0


class Timed:
    """One case that is being measured: agreement when it is made, then pairs, a few in every round.

    Rounds are spread over the whole run, so that a state the machine is in for minutes concerns some pairs of every
    case and not all pairs of some.

    Args:
        case: The case.
        modules: The published code.
        data: Real images on the device that is measured.
        rounds: How many there will be; an outer iteration is one whatever they are, its parts divided among them.
        class_chunk: See `Ours`.
        precision: Of dcf's side.
    """

    def __init__(
        self,
        case: Case,
        modules: SimpleNamespace,
        data: RealData,
        rounds: int,
        class_chunk: int | None = None,
        precision: Precision = "default",
    ) -> None:
        self.case, self.rounds, self.precision = case, rounds, precision
        self.device = data.train.device
        self.ours = Ours(case, data, class_chunk, precision)
        self.sides: tuple[Any, Any] = (published_side(modules, case, data), self.ours)
        self.agreement, self.launches, self.first = _agreement(case, *reversed(self.sides), data, precision)
        self.wall: _Seconds = [[], []]
        self.cpu: _Seconds = [[], []]
        self.load: list[float] = []
        self._parts = [side.parts() for side in self.sides] if case.part == "outer" else []
        if case.part == "outer":
            self.first = _warmed(self.sides, self.device)
        elif not self.agreement:
            _pair(self.sides, 0, _step, self.device)

    def round(self) -> None:
        """Time the pairs of one round: one, or as many as take `LEAST_SECONDS`, or its share of the parts."""
        self.load.append(os.getloadavg()[0])
        began = time.perf_counter()
        if self._parts:
            for _ in range(-(-PARTS // self.rounds)):
                self._timed(_pair(self._parts, len(self.wall[0]), _part, self.device))
            return
        while time.perf_counter() - began < LEAST_SECONDS:
            self._timed(_pair(self.sides, len(self.wall[0]), _step, self.device))

    def _timed(self, taken: list[tuple[float, float] | None]) -> None:
        for number, seconds in enumerate(taken):
            if seconds is not None:
                self.wall[number].append(seconds[0])
                self.cpu[number].append(seconds[1])

    def result(self) -> dict[str, Any]:
        """What was measured so far, JSON-ready.

        Returns:
            Seconds of both sides and the ratio published / ours, each as median, min and max, the ratio also of CPU
            seconds of the process, which other people's work disturbs less; the ratios themselves, in order; n; how
            far both are apart on the same input, in float64, in fp32 and in the precision that is timed; seconds of
            dcf's first call, which compiles; launches of both; the load average before each round.
        """
        ratios = _ratios(self.wall)
        return {
            "case": self.case.name,
            "precision": self.precision,
            "n": len(ratios),
            "published_s": _summary(self.wall[0]),
            "ours_s": _summary(self.wall[1]),
            "ratio": _summary(ratios),
            "ratio_cpu": _summary(_ratios(self.cpu)),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ratio_of_sums": sum(self.wall[0]) / sum(self.wall[1]),
            "ratio_of_sums_cpu": sum(self.cpu[0]) / sum(self.cpu[1]),
            "ours_first_s": self.first,
            "relative_error": self.agreement,
            "launches": self.launches,
            "class_chunk": self.ours.session.ctx.class_chunk,
            "load": [round(load, 2) for load in self.load],
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


def _pair(
    sides: Sequence[Any], number: int, call: Callable[[Any], bool], device: torch.device
) -> list[tuple[float, float] | None]:
    """Wall and CPU seconds of one call of each side, None for one that has ended; who goes first alternates."""
    taken: list[tuple[float, float] | None] = [None for _ in sides]
    for side in range(len(sides)) if number % 2 else reversed(range(len(sides))):
        gc.collect()
        ended: list[bool] = []
        seconds = _time(lambda it=sides[side], end=ended: end.append(call(it)), device)
        if not ended[0]:
            taken[side] = seconds
    return taken


def _step(side: Any) -> bool:
    side.step()
    return False


def _part(parts: Iterator[None]) -> bool:
    """Do the next part; whether there is none."""
    return next(parts, True) is True


def _warmed(sides: Sequence[Any], device: torch.device) -> float:
    """Let each side do the first two parts of another iteration, a step and a training; seconds of dcf's, the last."""
    for side in sides:
        parts = side.parts()
        taken, _ = _time(lambda it=parts: [next(it) for _ in range(2)], device)
    return taken


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
