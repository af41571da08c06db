"""Safe files: atomic writes, bounded header reads, deterministic safetensors.

A header is read without torch and within a fixed bound. The writer sorts the header, so that equal contents give
equal bytes (the library keeps metadata in a hash map and does not).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from dcf.errors import FormatError, RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Header", "atomic_write", "pack", "read_header", "read_tensors", "verify", "write_tensors"]

#: Largest header that is read, in bytes: far above any real set, far below what would hurt.
MAX_HEADER: Final = 8 * 2**20
#: Metadata key of the digest over everything else in the file.
DIGEST: Final = "dcf.digest"
#: Elements and axes of one tensor at most: beyond what any machine holds, and quick to multiply.
_MAX_ELEMENTS: Final = 2**48
_MAX_AXES: Final = 16
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


class Header:
    """The header of a safetensors file.

    Attributes:
        path: Where it was read from.
        tensors: Shape and dtype of each tensor, by name.
        metadata: The file's strings.
        start: First byte of the payload.
        nbytes: Length of the payload in bytes.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any], start: int, nbytes: int) -> None:
        self.path = path
        self.start = start
        self.nbytes = nbytes
        metadata = entries.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(map(_is_text, [*metadata, *metadata.values()])):
            raise FormatError(f"'{path}' is damaged: its metadata is not a table of strings")
        self.metadata: dict[str, str] = metadata
        self.tensors: dict[str, dict[str, Any]] = {k: v for k, v in entries.items() if k != "__metadata__"}
        _check_entries(path, self.tensors, nbytes)


def read_header(path: Path | str) -> Header:
    """Read and check the header of a safetensors file, without torch and in bounded memory.

    Raises:
        FormatError: When it is not such a file, is cut off, or claims what cannot be.
    """
    path = Path(path)
    with _opened(path) as file:
        return _header(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """An ordinary file to read; whatever cannot be opened or read becomes one message."""
    try:
        # Not to wait for the other end of a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise FormatError(f"'{path}' is not a file")
            yield file
    except FileNotFoundError:
        raise FormatError(f"no file '{path}'") from None
    except OSError as error:
        raise FormatError(f"cannot read '{path}': {error.strerror}") from None


def _header(file: BinaryIO, path: Path) -> Header:
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= MAX_HEADER or 8 + length > size:
        raise FormatError(_not_a_set(path, size, length))
    try:
        entries = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, or an integer of thousands of digits
        raise FormatError(f"'{path}' is not a safetensors file, or is damaged: its header cannot be read") from None
    if not isinstance(entries, dict):
        raise FormatError(f"'{path}' is not a safetensors file: its header is not a table")
    return Header(path, entries, 8 + length, size - 8 - length)


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and metadata, checking the digest where there is one.

    Raises:
        FormatError: When the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    # One handle throughout: another process may put a new file in this place at any time.
    with _opened(path) as file:
        header = _header(file, path)
        file.seek(0)
        try:
            raw = file.read()
            _require_digest(header, raw)
            tensors = load(raw)
        except MemoryError:
            raise FormatError(f"'{path}' does not fit into memory: it has {header.nbytes} bytes of tensors") from None
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise FormatError(f"'{path}' is damaged: {error}") from None
    return tensors, {k: v for k, v in header.metadata.items() if k != DIGEST}


def verify(path: Path | str) -> None:
    """Make sure that a file is what was written, without torch and without a look at what it means.

    Raises:
        FormatError: When it is missing, cut off, or does not match its digest.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(file, path)
        file.seek(0)
        _require_digest(header, file.read())


def _require_digest(header: Header, raw: bytes) -> None:
    stored = header.metadata.get(DIGEST)
    if stored is not None and stored != _digest(header.tensors, header.metadata, raw[header.start :]):
        raise FormatError(f"'{header.path}' is damaged: its contents do not match its digest; get the file again")


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file as bytes; equal arguments give equal bytes.

    Args:
        tensors: By name; moved to the CPU.
        metadata: Strings; a digest over everything is added.
    """
    from safetensors.torch import save

    plain = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    raw = save(plain)
    length = struct.unpack("<Q", raw[:8])[0]
    entries = json.loads(raw[8 : 8 + length])
    entries.pop("__metadata__", None)
    payload = raw[8 + length :]
    full = {**metadata, DIGEST: _digest(entries, metadata, payload)}
    header = json.dumps(
        {"__metadata__": full, **entries}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + payload


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically.

    Raises:
        RunError: When it cannot be written; whatever was at `path` is still there.
    """
    atomic_write(path, pack(tensors, metadata))


def atomic_write(path: Path | str, content: bytes | str) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename.

    Raises:
        RunError: When it cannot be written (full disk, no permission); nothing is left behind.
    """
    path = Path(path)
    try:
        data = content.encode("utf-8") if isinstance(content, str) else content
    except UnicodeEncodeError:
        raise RunError(f"cannot write '{path}': some of the text is not Unicode, such as a path of odd bytes") from None
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a result is an ordinary one.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror}; nothing was changed there") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _digest(entries: Mapping[str, Any], metadata: Mapping[str, str], payload: bytes) -> str:
    plain = {k: v for k, v in metadata.items() if k != DIGEST}
    described = json.dumps([entries, plain], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(described.encode("utf-8", "surrogatepass") + b"\0" + payload).hexdigest()


def _not_a_set(path: Path, size: int, length: int) -> str:
    if size < 10:
        return f"'{path}' is not a safetensors file: it has {size} bytes"
    if length > MAX_HEADER:
        return f"'{path}' is not a safetensors file: its header claims {length} bytes; at most {MAX_HEADER} are read"
    return f"'{path}' is cut off or damaged: its header claims {length} bytes and the file has {size}"


def _check_entries(path: Path, tensors: Mapping[str, Any], nbytes: int) -> None:
    end = 0
    for name, entry in tensors.items():
        if not _TENSOR_NAME.match(name) or ".." in name:
            raise FormatError(f"'{path}' is damaged: a tensor is named {name[:60]!r}")
        try:
            begin, stop, needed = _extent(entry)
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"'{path}' is damaged: tensor '{name[:60]}' is not described") from None
        if not (begin <= stop <= nbytes and stop - begin == needed):
            raise FormatError(f"'{path}' is cut off or damaged: tensor '{name[:60]}' does not fit into the file")
        end = max(end, stop)
    if end != nbytes:
        raise FormatError(f"'{path}' is damaged: {nbytes} bytes of tensors where {end} are described")


def _extent(entry: Any) -> tuple[int, int, int]:
    """First and one-past-last byte of a tensor, and the bytes that its shape and dtype need."""
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("not the description of a tensor")
    begin, stop = entry["data_offsets"]
    shape = entry["shape"]
    if len(shape) > _MAX_AXES or not all(type(n) is int and 0 <= n <= _MAX_ELEMENTS for n in (begin, stop, *shape)):
        raise ValueError("a size is no size")
    return begin, stop, math.prod(shape) * _ITEM_BYTES[entry["dtype"]]


def _is_text(value: Any) -> bool:
    """Whether it is a string that can be written down: JSON also has halves of characters."""
    try:
        value.encode("utf-8")
    except (AttributeError, UnicodeEncodeError):
        return False
    return True
