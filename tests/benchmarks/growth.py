"""`python -m tests.benchmarks growth`: time and peak memory of an iteration against what makes a run large.

Each point is a process of its own, so that its highest memory is that of nothing else; it is forked from one that has
imported everything. A point is a run with everything at its base value but one: images a class, classes, the side of an
image, or the number of real images.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from tests.benchmarks.growth_plot import plot
from tests.benchmarks.run import machine

from dcf.data.base import LabelledPixels, real_data
from dcf.data.disk import FileWriter, open_file
from dcf.data.real import RealData
from dcf.estimate.memory import peak_resident, resident
from dcf.runconfig import RunConfig
from dcf.runtime import keep_freed_pages, precision_of
from dcf.session import Session
from dcf.space import ValueSpace

__all__ = ["AXES", "Point", "main", "measure", "points", "slope"]

MATCHERS: Final = {"dm": "dm", "dc": "dc:match_steps=1"}
#: Iterations that are timed, after one that is not.
TIMED: Final = 3
_PIECE: Final = 4096
#: Bytes that a process with its images on disk may allocate, above what it has once everything is imported.
_LIMIT: Final = 600 * 2**20


@dataclass(frozen=True)
class Point:
    """A run.

    Attributes:
        matcher: A key of `MATCHERS`.
        ipc: Synthetic images a class.
        classes: Classes.
        side: Of an image, in pixels.
        images: Real images of each class.
        memory: Where these are.
        batch: Real images a class and step.
    """

    matcher: str = "dm"
    ipc: int = 1
    classes: int = 10
    side: int = 32
    images: int = 200
    memory: str = "resident"
    batch: int = 32


#: What is varied, and its values.
AXES: Final[dict[str, tuple[int, ...]]] = {
    "ipc": (1, 5, 10, 20, 50),
    "classes": (10, 20, 50, 100, 200),
    "side": (32, 48, 64, 96, 128),
    "images": (200, 2000, 10000, 50000),
}


def points(matchers: Sequence[str], axes: Sequence[str]) -> Iterator[tuple[str, Point]]:
    """The axis of each point, and the point; the number of real images is varied for DM alone, in both places."""
    for matcher in matchers:
        for axis in axes:
            places = ("resident", "disk") if axis == "images" and matcher == "dm" else ("resident",)
            for memory in places if axis != "images" or matcher == "dm" else ():
                for value in AXES[axis]:
                    yield axis, replace(Point(matcher, memory=memory), **{axis: value})


def measure(point: Point) -> dict[str, float]:
    """Seconds of an iteration, and the megabytes at the highest above those of the imported program."""
    base = resident() or 0
    with tempfile.TemporaryDirectory() as folder, precision_of("strict"):
        data = _data(point, Path(folder))
        session = _session(point, data)
        loaded = peak_resident()
        wall, cpu = _time(session)
    return {
        "cpu_s": round(statistics.median(cpu), 4), "cpu_min_s": round(min(cpu), 4), "cpu_max_s": round(max(cpu), 4),
        "wall_s": round(statistics.median(wall), 4), "n": len(cpu), "class_chunk": session.ctx.class_chunk,
        "peak_mb": round((peak_resident() - base) / 1e6, 1), "data_mb": round((loaded - base) / 1e6, 1),
        "dataset_mb": round(point.classes * point.images * 3 * point.side**2 / 1e6, 1),
    }  # fmt: skip


def _rehearse() -> None:
    """Import all that a run imports, so that this is not counted."""
    point = Point(classes=2, images=4, batch=1)
    with precision_of("strict"):
        _time(_session(point, _data(point, Path())))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of the growth between the last two points: 1 is linear, 0 flat."""
    return math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])


def _data(point: Point, folder: Path) -> RealData:
    """Random images, class after class; on disk they are never in memory whole, which a limit makes sure of."""
    labels = torch.arange(point.classes).repeat_interleave(point.images)
    draw = torch.Generator().manual_seed(0)
    shape = (3, point.side, point.side)
    test = LabelledPixels(torch.zeros(0, *shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    pixels: Any
    if point.memory == "resident":
        pixels = torch.randint(256, (len(labels), *shape), dtype=torch.uint8, generator=draw)
    else:
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = int(status.split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + _LIMIT, most))
        writer = FileWriter(folder / "pixels")
        for start in range(0, len(labels), _PIECE):
            size = (min(_PIECE, len(labels) - start), *shape)
            writer.add(torch.randint(256, size, dtype=torch.uint8, generator=draw))
        writer.finish(torch.arange(len(labels)), {})
        pixels = open_file(folder / "pixels")[0]
    names = [str(c) for c in range(point.classes)]
    space = ValueSpace((0.5, 0.5, 0.5), (0.29, 0.29, 0.29))
    return real_data(LabelledPixels(pixels, labels), test, names, space, "random", "made up")


def _session(point: Point, data: RealData) -> Session:
    config = RunConfig(
        data="digits", matcher=f"{MATCHERS[point.matcher]}{':' if point.matcher == 'dm' else ','}"
        f"batch_real={point.batch}", augment="dsa", init="noise", network="convnet:width=32,depth=3", ipc=point.ipc,
        iterations=1 + TIMED, lr=0.1, momentum=0.5, device="cpu", protocol="dcf-std@1",
    )  # fmt: skip
    session = Session(config, data)
    session.initialise()
    session.engine.prepare()
    return session


def _time(session: Session) -> tuple[list[float], list[float]]:
    wall, cpu = [], []
    for it in range(1 + TIMED):
        began = time.perf_counter(), time.process_time()
        session.engine.iterate(it).read()
        if it:
            wall.append(time.perf_counter() - began[0])
            cpu.append(time.process_time() - began[1])
    return wall, cpu


def main(arguments: Sequence[str]) -> int:
    """Measure all points, print a table, and write JSON and plots where asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks growth", description=__doc__)
    parser.add_argument("--matchers", default="dm,dc", metavar="A,B", help=", ".join(MATCHERS))
    parser.add_argument("--axes", default=",".join(AXES), metavar="A,B", help=", ".join(AXES))
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where growth.json and a plot of each axis go")
    options = parser.parse_args(arguments)
    # More threads would not survive the forks.
    torch.set_num_threads(1)
    keep_freed_pages()
    _rehearse()
    found: list[dict[str, Any]] = []
    for axis, point in points(options.matchers.split(","), options.axes.split(",")):
        load = os.getloadavg()[0]
        found.append({"axis": axis, **asdict(point), **_apart(point), "load": round(load, 1)})
        print(_row(found[-1]), flush=True)
        if options.out:
            _write(options.out, found)
    for axis, matcher, memory, rows in series(found):
        x = [row[axis] for row in rows]
        exponents = {key: slope(x, [row[key] for row in rows]) for key in ("cpu_s", "peak_mb")}
        print(f"{axis:8} {matcher} {memory:9} time ~ x^{exponents['cpu_s']:.2f}, memory ~ x^{exponents['peak_mb']:.2f}")
    return 0


def _write(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    """All points as JSON, and a picture of each axis that has two."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {"format": 1, "machine": machine(torch.device("cpu"), True), "points": found}
    (folder / "growth.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for axis in {axis: None for axis, *_ in series(found)}:
        lines = [(f"{m.upper()}, {place}", rows) for a, m, place, rows in series(found) if a == axis]
        (folder / f"{axis}.svg").write_text(plot(axis, lines), encoding="utf-8")


def series(found: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
    """Axis, matcher, place and points of each line."""
    for axis, matcher, memory in {(row["axis"], row["matcher"], row["memory"]): None for row in found}:
        rows = [r for r in found if (r["axis"], r["matcher"], r["memory"]) == (axis, matcher, memory)]
        if len(rows) > 1:
            yield axis, matcher, memory, rows


def _apart(point: Point) -> dict[str, Any]:
    """Measure a point in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as child:
        return dict(child.apply(measure, (point,)))


def _row(row: dict[str, Any]) -> str:
    return (
        f"{row['axis']:8} {row[row['axis']]:6d} {row['matcher']} {row['memory']:9} {row['cpu_s']:8.3f} s "
        f"[{row['cpu_min_s']:.3f} {row['cpu_max_s']:.3f}]  {row['peak_mb']:8.1f} MB  load {row['load']}"
    )
