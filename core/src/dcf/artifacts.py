"""Artifacts: tensors that are dear to make, such as trained networks, kept on disk under what decides them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dcf.data.cache import cache_dir
from dcf.errors import FormatError, RunError
from dcf.files import read_tensors, write_tensors

__all__ = ["Artifact", "Artifacts"]

log = logging.getLogger(__name__)

#: Raised when the form of the files changes; older files are then left alone.
VERSION: Final = 1
#: Metadata entry that says what a file was made from.
_KEY: Final = "dcf.artifact"
_KIND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")


@dataclass(frozen=True, eq=False)
class Artifact:
    """Tensors, and where they are kept.

    Attributes:
        tensors: By name, on the CPU.
        sha256: Of names, types, shapes and values, in hexadecimal; the same whether they were made or read.
        path: The file that holds them; None when it could not be written.
        made: Whether they were made just now, rather than read.
    """

    tensors: Mapping[str, Tensor]
    sha256: str
    path: Path | None
    made: bool


class Artifacts:
    """A folder of tensors, by kind and by what they were made from.

    Several processes may share it: a file is written whole or not at all, and what two processes ask for at the same
    time is made by one of them while the other waits.

    Args:
        root: The folder; by default `artifacts` in the folder of caches, which is `DCF_CACHE` or the platform's place.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = cache_dir() / "artifacts" if root is None else Path(root).expanduser()

    def path(self, key: Mapping[str, Any], kind: str) -> Path:
        """The file of an artifact, whether it exists or not.

        Args:
            key: Everything that decides the tensors, JSON-ready; the order of its entries does not matter.
            kind: What it is, such as `experts`: lower case letters, digits and `-`.

        Raises:
            ValueError: When `kind` has other characters, or `key` has numbers that are not finite.
            TypeError: When `key` is not JSON-ready.
        """
        if not _KIND.match(kind):
            raise ValueError(f"expected a kind of lower case letters, digits and '-', got '{kind}'")
        name = hashlib.sha256(_described(key, kind).encode()).hexdigest()
        return self.root / kind / f"{name}.safetensors"

    def get(self, key: Mapping[str, Any], kind: str) -> Artifact | None:
        """What is stored under a key; None when nothing is, or, after a warning, when it is damaged.

        Args:
            key: As for `path`.
            kind: As for `path`.
        """
        path = self.path(key, kind)
        if not os.path.exists(path):
            return None
        try:
            tensors, metadata = read_tensors(path)
            if metadata.get(_KEY) != _described(key, kind):
                raise FormatError(f"'{path}' was made from something else than its name says")
        except FormatError as error:
            log.warning("%s; making it again", error)
            return None
        return Artifact(tensors, _sha256(tensors), path, made=False)

    def get_or_make(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]], kind: str) -> Artifact:
        """What is stored under a key, or what `make` returns, which is then stored.

        Args:
            key: Everything that decides the tensors, JSON-ready: data, options, seed, and a version of the algorithm.
            make: Called when nothing usable is stored. Its tensors may be on any device; their names are of letters,
                digits, `_`, `.` and `-`. What it raises is passed on, and nothing is stored.
            kind: What it is, such as `experts`; names the sub-folder.

        Returns:
            The artifact. Where it cannot be stored, after a warning, its `path` is None.

        Raises:
            ValueError: When a tensor has another name, or as for `path`.
        """
        path = self.path(key, kind)
        if (found := self.get(key, kind)) is not None:
            return found
        with _locked(path.with_suffix(".lock")):
            if os.path.exists(path) and (found := self.get(key, kind)) is not None:
                return found
            tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(make().items())}
            _check_names(tensors)
            kept = _store(path, tensors, _described(key, kind))
        return Artifact(tensors, _sha256(tensors), path if kept else None, made=True)


def _described(key: Mapping[str, Any], kind: str) -> str:
    return json.dumps([VERSION, kind, key], sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    for name in tensors:
        if not _NAME.match(name) or ".." in name:
            raise ValueError(f"expected names of letters, digits, '_', '.' and '-', got '{name}'")


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _store(path: Path, tensors: Mapping[str, Tensor], described: str) -> bool:
    try:
        write_tensors(path, tensors, {_KEY: described})
    except RunError as error:
        log.warning("%s; the next run makes it again", error)
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that goes with the process, however it ends; where none can be had, go on without."""
    handle = _acquire(path)
    try:
        yield
    finally:
        if handle is not None:
            # Removed while it is held: whoever waits for it finds that its file is gone, and takes a new one.
            with suppress(OSError):
                path.unlink()
            os.close(handle)


def _acquire(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle, held = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666), False
            try:
                held = _hold(handle, path)
            finally:
                if not held:
                    os.close(handle)
            if held:
                return handle
    except OSError as error:
        log.debug("no lock '%s': %s", path, error)
        return None


def _hold(handle: int, path: Path) -> bool:
    """Wait for the lock; whether the file it belongs to is still the one at `path`."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that makes the same; its lock is '%s'", path)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
