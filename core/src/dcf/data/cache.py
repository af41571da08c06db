"""Decoded image folders on disk, so that the next start reads one file instead of thousands."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcf.data.decode import Decoded, DecodeOptions, decode_tree
from dcf.data.tree import Tree

__all__ = ["cache_dir", "decoded_tree", "key_of", "read", "write"]

log = logging.getLogger(__name__)

#: Raised when what is stored, or how files are decoded, changes.
VERSION = 1
_BROKEN = (SafetensorError, OSError, ValueError, KeyError, TypeError)


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


def decoded_tree(tree: Tree, options: DecodeOptions, cache: bool) -> Decoded:
    """The images of a tree: decoded, or those that were kept of an earlier time.

    Args:
        tree: The files.
        options: How they are decoded.
        cache: Whether to look for kept ones, and to keep what had to be decoded.

    Raises:
        DataError: As `decode_tree`.
    """
    if not cache:
        return decode_tree(tree, options)
    key = key_of(tree, options)
    decoded = read(key)
    if decoded is None:
        log.info("decoding %d images in '%s'", len(tree.files), tree.root)
        decoded = decode_tree(tree, options)
        write(key, decoded)
    return decoded


def key_of(tree: Tree, options: DecodeOptions) -> str:
    """A hash of all that decides the result: files with size and time of change, and options."""
    sha = hashlib.sha256(json.dumps([VERSION, str(tree.root.resolve()), asdict(options)]).encode())
    for name in tree.files:
        stat = os.stat(tree.root / name)
        sha.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return sha.hexdigest()


def read(key: str) -> Decoded | None:
    """What was stored under `key`; None when nothing was, or it is damaged."""
    path = _path(key)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            pixels, kept = file.get_tensor("pixels"), file.get_tensor("kept")
            facts = json.loads(file.metadata()["facts"])
        if facts["sha256"] != _sha256(pixels, kept):
            raise ValueError("the contents changed")
        sizes = {(h, w): n for h, w, n in facts["sizes"]}
        return Decoded(pixels, kept, sizes, tuple((name, reason) for name, reason in facts["corrupt"]))
    except _BROKEN as error:
        log.warning("cache file '%s' is damaged (%s); decoding the images again", path, error)
        return None


def write(key: str, decoded: Decoded) -> None:
    """Store under `key`, atomically; where that is impossible, say so and go on."""
    path = _path(key)
    facts = {
        "sizes": [(h, w, n) for (h, w), n in decoded.sizes.items()],
        "corrupt": decoded.corrupt,
        "sha256": _sha256(decoded.pixels, decoded.kept),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
            file = Path(scratch) / path.name
            save_file({"pixels": decoded.pixels, "kept": decoded.kept}, file, {"facts": json.dumps(facts)})
            file.replace(path)
    except (OSError, SafetensorError) as error:
        log.warning(
            "could not cache the decoded images in '%s' (%s); the next start decodes them again",
            path.parent,
            error,
        )


def _path(key: str) -> Path:
    return cache_dir() / "folders" / f"{key}.safetensors"


def _sha256(*tensors: Tensor) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.numpy().data)
    return sha.hexdigest()
