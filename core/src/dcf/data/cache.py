"""Decoded image folders on disk, so that the next start reads one file instead of thousands, or less than that."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dcf.data.decode import Decoded, DecodeOptions, Seen, decode_blocks, decode_tree, first_size
from dcf.data.disk import FileWriter, open_file
from dcf.data.options import Memory
from dcf.data.store import PixelStore, TensorStore, pieces
from dcf.data.tree import Tree
from dcf.errors import DataError, FormatError
from dcf.estimate.memory import Machine
from dcf.estimate.units import size_text

__all__ = ["cache_dir", "decoded_tree", "key_of", "read", "write"]

log = logging.getLogger(__name__)

#: Raised when what is stored, or how files are decoded, changes.
VERSION = 2
_BROKEN = (FormatError, DataError, OSError, ValueError, KeyError, TypeError)


def cache_dir() -> Path:
    """`DCF_CACHE`, else the platform's place for caches."""
    if given := os.environ.get("DCF_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "dcf"


def decoded_tree(tree: Tree, options: DecodeOptions, cache: bool, memory: Memory = "auto") -> Decoded:
    """The images of a tree: decoded, or those that were kept of an earlier time.

    Args:
        tree: The files.
        options: How they are decoded.
        cache: Whether to look for kept ones, and to keep what had to be decoded.
        memory: Where the images are afterwards: `resident` in memory, `disk` in the file that they are kept in, `auto`
            in memory where they take at most half of what there is. They are the same.

    Raises:
        DataError: As `decode_tree`, and when images that have to lie in a file cannot be written.
    """
    if not cache:
        return decode_tree(tree, options)
    key, on_disk = key_of(tree, options), memory == "disk" or (memory == "auto" and _is_large(tree, options))
    decoded = read(key, on_disk)
    if decoded is None:
        log.info("decoding %d images in '%s'", len(tree.files), tree.root)
        if on_disk:
            return _decoded_on_disk(key, tree, options)
        decoded = decode_tree(tree, options)
        write(key, decoded)
    return decoded


def key_of(tree: Tree, options: DecodeOptions) -> str:
    """A hash of all that decides the result: files with size and time of change, and options."""
    sha = hashlib.sha256(json.dumps([VERSION, str(tree.root.resolve()), asdict(options)]).encode())
    for name in tree.files:
        sha.update(f"{name}\0{_state(tree.root / name)}\n".encode(errors="surrogateescape"))
    return sha.hexdigest()


def _state(path: Path) -> str:
    """Size and time of change; of a link that leads nowhere, that: decoding leaves such files out, and says so."""
    try:
        stat = path.stat()
    except OSError:
        return "unreadable"
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


def read(key: str, on_disk: bool = False) -> Decoded | None:
    """What was stored under `key`; None when nothing was, or it is damaged.

    Args:
        key: As `key_of` gives it.
        on_disk: Whether the images stay in the file.
    """
    path = _path(key)
    if not path.exists():
        return None
    try:
        store, kept, facts = open_file(path)
        pixels: PixelStore = store if on_disk else TensorStore(store.take(slice(None)))
        sizes = {(h, w): n for h, w, n in facts["sizes"]}
        return Decoded(pixels, kept, sizes, tuple((name, reason) for name, reason in facts["corrupt"]))
    except _BROKEN as error:
        log.warning("cache file '%s' is damaged (%s); decoding the images again", path, error)
        return None


def write(key: str, decoded: Decoded) -> None:
    """Store under `key`, atomically; where that is impossible, say so and go on."""
    seen = Seen(decoded.kept.tolist(), decoded.sizes, list(decoded.corrupt))
    try:
        with _new_file(_path(key)) as file:
            _write(file, pieces(decoded.pixels), seen)
    except OSError as error:
        log.warning(
            "could not cache the decoded images in '%s' (%s); the next start decodes them again",
            _path(key).parent,
            error,
        )


def _decoded_on_disk(key: str, tree: Tree, options: DecodeOptions) -> Decoded:
    """Decode into a file, of which only a piece is in memory at any time.

    Raises:
        DataError: As `decode_tree`, and when there is no room for the file.
    """
    path, needed, seen = _path(key), _bytes(tree, options), Seen()
    try:
        with _new_file(path) as file:
            free = shutil.disk_usage(file.parent).free
            if free < needed:
                raise OSError(errno.ENOSPC, f"{size_text(free)} are free")
            _write(file, decode_blocks(tree, options, seen), seen)
            if options.channels is None and seen.all_grey:
                colour = file.rename(file.with_suffix(".colour"))
                _write(file, (piece[:, :1] for piece in pieces(open_file(colour)[0])), seen)
    except OSError as error:
        raise DataError(
            f"the images of '{tree.root}' take {size_text(needed)} and cannot be kept in '{path.parent}' "
            f"({error.strerror}); make room there, set DCF_CACHE to another folder, or take a smaller size=..."
        ) from None
    decoded = read(key, on_disk=True)
    if decoded is None:
        raise DataError(f"'{path}' cannot be read again right after it was written; see to the disk that it is on")
    return decoded


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A place to write to; what was written appears at `path` at the end, whole, and after an error not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        file = Path(scratch) / path.name
        yield file
        file.replace(path)


def _write(file: Path, blocks: Iterable[Tensor], seen: Seen) -> None:
    """Write blocks of images `(n, C, H, W)`, and then what was seen of them."""
    writer = FileWriter(file)
    try:
        for block in blocks:
            writer.add(block)
        sizes = [(h, w, n) for (h, w), n in seen.sizes.items()]
        writer.finish(torch.tensor(seen.kept, dtype=torch.int64), {"sizes": sizes, "corrupt": list(seen.corrupt)})
    finally:
        writer.close()


def _is_large(tree: Tree, options: DecodeOptions) -> bool:
    """Whether the images would take more than half of the memory that this process can get."""
    room = Machine().available()
    return room is not None and 2 * _bytes(tree, options) > room


def _bytes(tree: Tree, options: DecodeOptions) -> int:
    height, width = options.size or first_size(tree)
    return len(tree.files) * (options.channels or 3) * height * width


def _path(key: str) -> Path:
    return cache_dir() / "folders" / f"{key}.safetensors"
