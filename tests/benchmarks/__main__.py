"""`python -m tests.benchmarks --published PATH`: dcf beside a checkout of the published code."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.cases import CASES, random_data
from tests.benchmarks.published import fingerprint, load
from tests.benchmarks.run import machine, run_case

from dcf.runtime import keep_freed_pages

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the chosen cases, print a table, and write the results as JSON where asked."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # The published code calls what torch has renamed since; nobody here can mend that.
    warnings.simplefilter("ignore", UserWarning)
    # Before anything is allocated, and for both sides alike: they share the process.
    kept = keep_freed_pages()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    try:
        modules = load(options.published)
    except FileNotFoundError as error:
        parser.error(f"--published: {error}")
    data = random_data(device)
    results: dict[str, Any] = {
        "format": 1,
        "machine": machine(device, kept),
        "published": fingerprint(options.published),
        "cases": [],
    }
    print(_HEADER, flush=True)
    for case in options.cases:
        results["cases"].append(run_case(case, modules, data, options.pairs, options.class_chunk))
        print(_row(results["cases"][-1]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--published", type=Path, required=True, metavar="PATH", help="checkout of the published code")
    parser.add_argument("--cases", type=_cases, default=list(CASES.values()), metavar="A,B", help=", ".join(CASES))
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs a case")
    parser.add_argument("--threads", type=int, default=0, help="threads of both sides; torch's choice by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--class-chunk", type=int, metavar="N", help="classes worked on together, instead of dcf's choice"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where results go as JSON, after each case")
    return parser


def _cases(text: str) -> list[Any]:
    unknown = [name for name in text.split(",") if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no case named '{unknown[0]}'; there are {', '.join(CASES)}")
    return [CASES[name] for name in text.split(",")]


_HEADER = (
    f"{'case':20} {'published s':>12} {'dcf s':>8}  {'published / dcf':18} {'CPU seconds':18} {'n':>3}  "
    f"{'load':11}  relative error"
)


def _row(result: dict[str, Any]) -> str:
    load = result["load"]
    spread, cpu = (f"{r['median']:.2f} [{r['min']:.2f} {r['max']:.2f}]" for r in (result["ratio"], result["ratio_cpu"]))
    errors = ", ".join(f"{name} {value:.0e}" for name, value in result["relative_error"].items()) or "not compared"
    return (
        f"{result['case']:20} {result['published_s']['median']:12.3f} {result['ours_s']['median']:8.3f}  "
        f"{spread:18} {cpu:18} {result['n']:3d}  {load[0]:.1f} to {load[1]:.1f}  {errors}"
    )


if __name__ == "__main__":
    sys.exit(main())
