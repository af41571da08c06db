"""`dcf doctor`: whether this installation can work, and with what."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import typer
from rich.table import Table
from typer.main import get_command

from dcf import __version__
from dcf.cli.console import clean, print_json, stdout
from dcf.cli.later import loaded
from dcf.cli.options import AsJson
from dcf.errors import PluginError
from dcf.registry import registry

__all__ = ["Finding", "add_to", "doctor"]

_LEAST_DISK: Final = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `broken` means that nothing can be condensed here."""

    name: str
    status: Literal["ok", "note", "broken"]
    text: str


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(doctor)


def doctor(json: AsJson = False) -> None:
    """Examine the installation: versions, devices, plugins, disk; fails when something is broken."""
    findings = [finding for part in (_program, _compute, _plugins, _places) for finding in _guarded(part)]
    broken = any(f.status == "broken" for f in findings)
    if json:
        print_json({"ok": not broken, "findings": [asdict(f) for f in findings]})
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for f in findings:
            table.add_row("" if f.status == "ok" else f"{f.status}:", clean(f.name), clean(f.text, 500))
        stdout().print(table)
    if broken:
        raise typer.Exit(1)


def _guarded(part: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a part; whatever it raises is a finding too: the doctor must not fall ill."""
    try:
        yield from part()
    except Exception as error:
        yield Finding(part.__name__.strip("_"), "broken", f"{type(error).__name__}: {error}")


def _program() -> Iterator[Finding]:
    yield Finding("dcf", "ok", f"{__version__} in {Path(__file__).parent.parent}")
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "broken", f"{platform.python_version()} at {sys.executable}")
    yield Finding("system", "ok", f"{platform.platform()}, {os.cpu_count()} processors")


def _compute() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("torch", "broken", f"cannot be imported: {type(error).__name__}: {error}")
        return
    yield Finding("torch", "ok", f"{torch.__version__}, built for {torch.version.cuda or 'the CPU only'}")
    yield Finding("threads", "ok", f"{torch.get_num_threads()} (OMP_NUM_THREADS changes it)")
    yield Finding("cpu", "ok", str(torch.backends.cpu.get_cpu_capability()))
    from dcf.compiled import arithmetic

    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name, kind = torch.cuda.get_device_name(number), arithmetic(torch.device("cuda", number))
        room = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding(f"cuda:{number}", "ok", f"{name}, {room}; long runs use CUDA graphs, in {kind} where that suits")
    if not torch.cuda.is_available():
        yield Finding("cuda", "note", "no CUDA device; runs use the CPU")
    from dcf.runtime import keep_freed_pages

    kept = keep_freed_pages()
    text = "keeps freed pages" if kept else "cannot be told to keep freed pages; CPU runs are slower"
    yield Finding("allocator", "ok" if kept else "note", text)
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "cl") if c and shutil.which(c)), None)
    yield Finding("compiler", "ok" if compiler else "note", compiler or "no C++ compiler")
    yield _kernels(arithmetic(torch.device("cpu")) if compiler else "other")


def _kernels(kind: str) -> Finding:
    """What long runs on the processor are computed with; `kind` is what it multiplies, "other" where nothing suits."""
    if kind == "bf16":
        return Finding("kernels", "ok", "long runs use compiled kernels, in bf16 where that suits")
    if kind == "fp32":
        return Finding("kernels", "ok", "long runs use compiled kernels, in fp32; this processor has no AMX")
    return Finding("kernels", "note", "no compiled kernels, for want of a C++ compiler or AVX2; CPU runs are slower")


def _plugins() -> Iterator[Finding]:
    from dcf.cli.app import build

    reg = registry()
    for plugin in reg.plugins.values():
        yield Finding("plugin", "ok", f"{plugin.name}: {plugin.distribution} {plugin.version}")
    # What other commands find out when they are used, and build() only says of the hooks themselves.
    for name, command in get_command(build(reg)).commands.items():  # type: ignore[attr-defined]
        try:
            loaded(command)
        except PluginError as error:
            yield Finding("command", "broken", f"{name}: " + " ".join(str(error).split()))
    for problem in reg.problems:
        yield Finding("plugin", "broken", str(problem))


def _places() -> Iterator[Finding]:
    yield _writable("directory", Path.cwd())
    from dcf.data.cache import cache_dir

    place = cache_dir()
    there = next(p for p in (place, *place.parents) if p.exists())
    yield _writable("cache", there, f"{place}: ")


def _writable(name: str, path: Path, lead: str = "") -> Finding:
    try:
        with tempfile.TemporaryFile(dir=path):
            free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding(name, "broken", f"{lead}cannot write in '{path}': {error.strerror}")
    status: Literal["ok", "note"] = "ok" if free >= _LEAST_DISK else "note"
    return Finding(name, status, f"{lead}'{path}' is writable, {free / 2**30:.1f} GiB free")
