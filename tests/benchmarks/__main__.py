"""`python -m tests.benchmarks --published PATH`: dcf beside checkouts of the published code; `growth`: dcf alone."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks import growth
from tests.benchmarks.cases import CASES, Case, random_data
from tests.benchmarks.memory import highest, in_process
from tests.benchmarks.ours import Ours
from tests.benchmarks.published import CHECKOUTS, checkout, fingerprint, load
from tests.benchmarks.published_others import published_side
from tests.benchmarks.run import Timed, machine

from dcf.compiled import allowed
from dcf.runtime import keep_freed_pages

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the chosen cases, print a table, and write the results as JSON where asked."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["growth"]:
        return growth.main(given[1:])
    parser = _parser()
    options = parser.parse_args(given)
    # The published code calls what torch has renamed since; nobody here can mend that.
    warnings.simplefilter("ignore", UserWarning)
    # Before anything is allocated, and for both sides alike: they share the process.
    kept = keep_freed_pages()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    found = {name: checkout(options.published, name) for name in CHECKOUTS}
    cases = [case for case in options.cases if found[case.checkout] is not None]
    if not cases:
        parser.error(f"--published: '{options.published}' has no checkout of what the cases are compared with")
    if options.child:
        print(_child(cases[0], options, device, found))
        return 0
    for case in options.cases:
        if case not in cases:
            print(f"{case.name}: no checkout of {CHECKOUTS[case.checkout][0]} in '{options.published / case.checkout}'")
    with allowed(options.precision, device):
        # Kernels of a GPU are given back when nothing allows them any more, which is not between two rounds.
        results = _measure(cases, options, device, found, machine(device, kept))
    print("\n".join([_HEADER, *map(_row, results["cases"])]))
    return 0


def _measure(
    cases: list[Case],
    options: argparse.Namespace,
    device: torch.device,
    found: dict[str, Path | None],
    measured_on: dict[str, Any],
) -> dict[str, Any]:
    """All cases, round after round; what is known so far is written after each."""
    results: dict[str, Any] = {
        "format": 3,
        "machine": measured_on,
        "published": {name: fingerprint(path, name) for name, path in found.items() if path is not None},
        "rounds": 0,
    }
    memory = {case.name: _memory(case, options) for case in cases if not options.no_memory and case.part != "outer"}
    timed = []
    for case in cases:
        print(f"{case.name}: both sides compute the same, and what is compiled", file=sys.stderr, flush=True)
        timed.append(_timed(case, options, device, found))
    for number in range(1, options.rounds + 1):
        for one in timed:
            print(f"round {number} of {options.rounds}: {one.case.name}", file=sys.stderr, flush=True)
            one.round()
        results["rounds"] = number
        results["cases"] = [one.result() | _measured_memory(memory, one.case) for one in timed]
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _timed(case: Case, options: argparse.Namespace, device: torch.device, found: dict[str, Path | None]) -> Timed:
    path = found[case.checkout]
    if path is None:
        raise RuntimeError(f"the case '{case.name}' has no checkout")
    data, modules = _data(device, case.space), _load(path, case.checkout)
    return Timed(case, modules, data, options.rounds, options.class_chunk, options.precision)


#: One for all cases, as all are held at a time.
_data, _load = functools.cache(random_data), functools.cache(load)


def _memory(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Megabytes of both sides, each in a process of its own."""
    shared = ["--published", str(options.published), "--cases", case.name, "--threads", str(options.threads)]
    shared += ["--device", options.device, "--precision", options.precision]
    return {side: in_process("tests.benchmarks", *shared, "--child", side) for side in ("published", "ours")}


def _measured_memory(memory: dict[str, dict[str, float]], case: Case) -> dict[str, Any]:
    return {"memory_mb": memory[case.name]} if case.name in memory else {}


def _child(case: Case, options: argparse.Namespace, device: torch.device, found: dict[str, Path | None]) -> float:
    """Megabytes of one side's second call: the first of dcf compiles."""
    path, data = found[case.checkout], random_data(device, case.space)
    if options.child == "ours":
        side: Any = Ours(case, data, options.class_chunk, options.precision)
    else:
        side = published_side(load(path, case.checkout), case, data)  # type: ignore[arg-type]
    with allowed(options.precision, device):
        return highest(side.step, device, side.step if options.child == "ours" else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--published", type=Path, required=True, metavar="PATH", help="folder of checkouts: dc, dcc, mtt, idc"
    )
    parser.add_argument("--cases", type=_cases, default=list(CASES.values()), metavar="A,B", help=", ".join(CASES))
    parser.add_argument("--rounds", type=_positive, default=5, help="over all cases, a pair or more of each")
    parser.add_argument("--threads", type=int, default=0, help="threads of both sides; torch's choice by default")
    parser.add_argument("--precision", choices=("default", "strict"), default="default", help="of dcf's side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument(
        "--class-chunk", type=int, metavar="N", help="classes worked on together, instead of dcf's choice"
    )
    parser.add_argument("--child", choices=("published", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where results go as JSON, after each round")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not '{text}'")
    return int(text)


def _cases(text: str) -> list[Case]:
    unknown = [name for name in text.split(",") if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no case named '{unknown[0]}'; there are {', '.join(CASES)}")
    return [CASES[name] for name in text.split(",")]


_HEADER = (
    f"{'case':20} {'published s':>12} {'dcf s':>8}  {'published / dcf':18} {'CPU seconds':18} {'n':>3}  "
    f"{'load':11}  {'MB':>13}  relative error"
)


def _row(result: dict[str, Any]) -> str:
    load, memory = result["load"], result.get("memory_mb", {})
    spread, cpu = (f"{r['median']:.2f} [{r['min']:.2f} {r['max']:.2f}]" for r in (result["ratio"], result["ratio_cpu"]))
    errors = "; ".join(
        f"{kind}: " + ", ".join(f"{name} {value:.0e}" for name, value in parts.items())
        for kind, parts in result["relative_error"].items()
    )
    megabytes = f"{memory['published']:.0f} / {memory['ours']:.0f}" if memory else ""
    return (
        f"{result['case']:20} {result['published_s']['median']:12.3f} {result['ours_s']['median']:8.3f}  "
        f"{spread:18} {cpu:18} {result['n']:3d}  {min(load):.1f} to {max(load):.1f}  {megabytes:>13}  "
        f"{errors or 'not compared'}"
    )


if __name__ == "__main__":
    sys.exit(main())
