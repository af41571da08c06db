"""`python -m tests.benchmarks.unroll`: time and memory of the ways to differentiate through training.

Time: all sides in one process, in turn, the order alternating, one call of each beforehand that is not counted.
Memory: each side in a process of its own, highest resident memory above that just before the unroll.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.memory import highest, in_process
from tests.benchmarks.run import machine
from tests.benchmarks.unroll_sides import Gradients, Problem, sides

from dcf.runtime import keep_freed_pages

__all__ = ["main"]

REFERENCE = "published"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each side and number of steps, and write JSON where asked."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    kept = options.keep_freed_pages and keep_freed_pages()
    if options.child:
        print(highest(sides()[options.child](Problem(options.steps[0], options.batch))))
        return 0
    results: dict[str, Any] = {"format": 1, "machine": machine(torch.device("cpu"), kept), "batch": options.batch}
    for steps in options.steps:
        result = _times(steps, options) if options.pairs else {"steps": steps}
        if not options.no_memory:
            result["memory_mb"] = {name: _memory(name, steps, options) for name in options.sides}
        results.setdefault("cases", []).append(result)
        print(json.dumps(result), flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.unroll", description=__doc__)
    parser.add_argument("--steps", type=_numbers, default=[10, 20, 50], metavar="T,T", help="training steps")
    parser.add_argument("--batch", type=int, default=10, help="images a step")
    parser.add_argument("--pairs", type=int, default=7, help="timed rounds; 0 measures no time")
    parser.add_argument("--threads", type=int, default=2)
    names = [name for name in sides() if name != "tesla"]
    parser.add_argument("--sides", type=lambda text: text.split(","), default=names, help=", ".join(sides()))
    parser.add_argument("--keep-freed-pages", action="store_true", help="allocator setting of `dcf`, for all sides")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--child", metavar="SIDE", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where results go as JSON, after each number of steps")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


# --- time -------------------------------------------------------------------------------------------------------------


def _times(steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each side, ratios to the reference round by round, and how far the gradients are apart."""
    load = os.getloadavg()[0]
    problem = Problem(steps, options.batch)
    calls = {name: sides()[name](problem) for name in options.sides}
    wall, cpu = _rounds(calls, options.pairs)
    return {
        "steps": steps,
        "n": options.pairs,
        "seconds": {name: _summary(taken) for name, taken in wall.items()},
        "cpu_seconds": {name: _summary(taken) for name, taken in cpu.items()},
        "ratio": _ratios(wall),
        "ratio_cpu": _ratios(cpu),
        "relative_error_float64": _agreement(steps, options),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


_Seconds = dict[str, list[float]]


def _rounds(calls: dict[str, Callable[[], Gradients]], rounds: int) -> tuple[_Seconds, _Seconds]:
    wall: _Seconds = {name: [] for name in calls}
    cpu: _Seconds = {name: [] for name in calls}
    for number in range(-1, rounds):
        for name in list(calls) if number % 2 else reversed(calls):
            gc.collect()
            began = time.perf_counter(), time.process_time()
            calls[name]()
            taken = time.perf_counter() - began[0], time.process_time() - began[1]
            if number >= 0:
                wall[name].append(taken[0])
                cpu[name].append(taken[1])
    return wall, cpu


def _ratios(seconds: _Seconds) -> dict[str, dict[str, float]]:
    """Reference over each other side: above 1, the side is faster."""
    if REFERENCE not in seconds:
        return {}
    return {
        name: _summary([a / b for a, b in zip(seconds[REFERENCE], taken, strict=True)])
        for name, taken in seconds.items()
        if name != REFERENCE
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _agreement(steps: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    problem = Problem(steps, options.batch, torch.float64)
    found = {name: sides()[name](problem)() for name in options.sides}
    wanted = found.pop(REFERENCE, None)
    if wanted is None:
        return {}
    return {
        name: {
            part: float((a - b).norm() / b.norm())
            for part, a, b in zip(("images", "step size"), gradients, wanted, strict=True)
        }
        for name, gradients in found.items()
    }


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory(name: str, steps: int, options: argparse.Namespace) -> float:
    arguments = ["--child", name, "--steps", str(steps), "--batch", str(options.batch)]
    arguments += ["--threads", str(options.threads), *(["--keep-freed-pages"] if options.keep_freed_pages else [])]
    return in_process("tests.benchmarks.unroll", *arguments)


if __name__ == "__main__":
    sys.exit(main())
