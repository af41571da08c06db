"""How much memory a process has, and how much more it can get. Torch-free; Linux says, other systems say less."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Machine", "peak_resident", "resident", "take_me_first"]


def resident(pid: int | str = "self") -> int | None:
    """Bytes of a process that are in memory; None where it has ended or the system does not say."""
    return _status(pid, "VmRSS")


def peak_resident() -> int:
    """The most bytes that this process has had in memory so far."""
    # Not getrusage where it can be avoided: it counts what the parent had when this process was made.
    known = _status("self", "VmHWM")
    if known is not None:
        return known
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def take_me_first() -> None:
    """Tell the system that, short of memory, it should end this process rather than another."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _status(pid: int | str, name: str) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return _field(text, name)


def _field(text: str, name: str) -> int | None:
    """A line `name:   123 kB`, in bytes."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


class Machine:
    """What this machine, or the container this process is in, can still give.

    Args:
        root: Where `proc` and `sys` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.groups = list(_limited_groups(root))

    def available(self) -> int | None:
        """Bytes that processes can still get without swapping; None where the system does not say."""
        rooms = [room for group in self.groups if (room := _room(*group)) is not None]
        try:
            meminfo = (self.root / "proc/meminfo").read_text(encoding="ascii")
        except OSError:
            return None
        known = _field(meminfo, "MemAvailable")
        return min([*rooms, *_limits(self.root), *([] if known is None else [known])], default=None)


def _limits(root: Path) -> Iterator[int]:
    """Bytes that the limits of this process itself (`ulimit -v`, `ulimit -d`) leave it."""
    try:
        status = (root / "proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, used = resource.getrlimit(limit)[0], _field(status, name)
        if most != resource.RLIM_INFINITY and used is not None:
            yield max(0, most - used)


def _limited_groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Control groups around this process that have a limit: folder, file of the limit, file of what is used."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = base.joinpath(*parts[:depth])
            if _number(folder / limit) is not None:
                yield folder, limit, usage


def _room(folder: Path, limit: str, usage: str) -> int | None:
    most, used = _number(folder / limit), _number(folder / usage)
    return None if most is None or used is None else max(0, most - used + _cached(folder))


def _cached(folder: Path) -> int:
    """Bytes of files that the system drops when memory is short, which count as used."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    """What a file of a control group says; None for none, and for "max" or as good as that."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() and int(text) < 2**60 else None
