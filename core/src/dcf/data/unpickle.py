"""Arrays out of pickle files, read as data: nothing that a file names is looked up, imported or called."""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from dcf.errors import DataError

__all__ = ["PickledArray", "read_pickle"]

#: Parts that a file may have; the largest of those that are read has an integer for each of 130,000 images.
_MOST_STEPS: Final = 2_000_000
_DTYPE = re.compile(r"[|<>=]?(b1|[ui][1248]|f[248])\Z")


class _DamageError(ValueError):
    """What is wrong with a file, without its name."""


@dataclass(frozen=True)
class _Name:
    """A name that a file asks for; it stays one."""

    text: str


@dataclass
class _DType:
    """A number type: code such as `u1`, and byte order."""

    code: str
    order: str = "|"


@dataclass
class PickledArray:
    """An array as a file describes it, nothing of it believed.

    Attributes:
        dtype: Its number type.
        shape: Length of each axis.
        fortran: Whether the first axis is the fastest.
        raw: Its bytes; a view of the file where that can be.
    """

    dtype: Any = None
    shape: Any = None
    fortran: Any = False
    raw: Any = None

    def numpy(self) -> NDArray[Any]:
        """The array, after a check that it is what it claims to be; it may be a view of the file.

        Raises:
            ValueError: When type, shape and bytes do not fit together.
        """
        if not isinstance(self.dtype, _DType) or not isinstance(self.raw, (bytes, memoryview)):
            raise _DamageError("an array is not complete")
        if not _DTYPE.match(self.dtype.order + self.dtype.code):
            raise _DamageError(f"an array of type '{self.dtype.code[:20]}', which is not read")
        dtype = np.dtype(self.dtype.order + self.dtype.code)
        shape = self.shape if isinstance(self.shape, tuple) else ()
        if len(shape) not in (1, 2) or any(type(n) is not int or n < 0 for n in shape):
            raise _DamageError("an array whose shape is not one or two lengths")
        if math.prod(shape) * dtype.itemsize != len(self.raw):
            raise _DamageError(f"an array of shape {shape} with {len(self.raw)} bytes of {dtype}"[:200])
        return np.frombuffer(self.raw, dtype).reshape(shape, order="F" if self.fortran == 1 else "C")


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dictionary of arrays, numbers and texts from a pickle file of protocol 2 to 5.

    Such a file is a program. Here it can only build dictionaries, lists, tuples, numbers, texts and
    `PickledArray`s; whatever else it asks for is an error. The file is mapped into memory, so that of an array's
    bytes only those are read that are used, unless the file has them as text, as protocol 2 of Python 3 does.

    Raises:
        DataError: Naming the file, when it is damaged or holds anything else.
        OSError: When it cannot be opened.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise DataError(f"'{path}' is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        found = _Machine(data).run()
    except _DamageError as error:
        raise DataError(f"'{path}' is damaged, or no file of this dataset: {error}") from None
    except (ValueError, IndexError, KeyError):
        # Text that is no text, a stack that is empty, something said before that was not.
        raise DataError(f"'{path}' is damaged: its parts do not fit together") from None
    if not isinstance(found, dict):
        raise DataError(f"'{path}' is no file of this dataset: expected a dictionary, got {type(found).__name__}")
    return found


class _Machine:
    """The stack machine that pickles are written for, with the few operations that arrays need."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def run(self) -> Any:
        if bytes(self.take(1)) != b"\x80" or self.number(1) not in (2, 3, 4, 5):
            raise _DamageError("it is no pickle of protocol 2 to 5")
        for _ in range(_MOST_STEPS):
            code = bytes(self.take(1))
            if code == b".":
                return self.stack.pop()
            if code not in _OPERATIONS:
                raise _DamageError(f"the operation {code!r} at byte {self.at - 1} is not read")
            _OPERATIONS[code](self)
        raise _DamageError(f"it has more than {_MOST_STEPS:,} parts")

    def take(self, count: int) -> memoryview:
        """The next bytes; as many as the file says, if it has them."""
        if count > len(self.data) - self.at:
            raise _DamageError(f"it ends early: {count:,} bytes are announced at byte {self.at:,}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        """Text up to the end of a line: a name, so that a long one is damage."""
        piece = bytes(self.data[self.at : self.at + 256])
        text, end, _ = piece.partition(b"\n")
        if not end:
            raise _DamageError("a name without an end")
        self.take(len(text) + 1)
        return text.decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values, self.stack[start:] = self.stack[start:], []
        return values

    def top(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise _DamageError("it takes what it never gave")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def name(self, module: Any, attribute: Any) -> None:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise _DamageError("a name that is no text")
        text = f"{module}.{attribute}"
        if text not in _NAMES:
            raise _DamageError(f"it asks for '{text[:80]}', which arrays do not need; nothing of it was run")
        self.push(_Name(_NAMES[text]))

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _DamageError("items for what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise _DamageError("entries for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_text(key)] = value

    def reduce(self) -> None:
        """What is a call in a pickle: the name and the arguments are turned into what they stand for."""
        name, args = self.top(2)
        if not isinstance(name, _Name) or not isinstance(args, tuple):
            raise _DamageError("a call of what is no name")
        made = _MADE[name.text](args)
        if isinstance(made, bytes):
            self.encoded += len(made)
            if self.encoded > len(self.data):
                raise _DamageError("it says the same bytes again and again")
        self.push(made)

    def build(self) -> None:
        """What is a change of an object in a pickle: the fields of an array or of its number type."""
        (state,) = self.top(1)
        target = self.stack[-1]
        if isinstance(target, _DType) and isinstance(state, tuple) and len(state) > 1:
            target.order = _text(state[1])
        elif isinstance(target, PickledArray) and isinstance(state, tuple) and len(state) == 5:
            _, target.shape, target.dtype, target.fortran, target.raw = state
        else:
            raise _DamageError("a state of what is no array")


def _refuse(reason: str) -> NoReturn:
    raise _DamageError(reason)


def _text(value: Any) -> str:
    """A key or a short name, from Python 2 or 3."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, memoryview)) and len(value) <= 256:
        return bytes(value).decode("latin-1")
    raise _DamageError("a key that is no text")


def _made_array(args: tuple[Any, ...]) -> PickledArray:
    return PickledArray() if args[:1] == (_Name("ndarray"),) else _refuse("an array of another class")


def _made_dtype(args: tuple[Any, ...]) -> _DType:
    return _DType(_text(args[0])) if args else _refuse("a number type without a name")


def _made_bytes(args: tuple[Any, ...]) -> bytes:
    """Bytes that Python 3 wrote for Python 2, as text."""
    if len(args) == 2 and isinstance(args[0], str) and _text(args[1]) in ("latin1", "latin-1"):
        return args[0].encode("latin-1")
    return _refuse("text in another encoding")


def _made_nothing(args: tuple[Any, ...]) -> bytes:
    return b"" if not args else _refuse("bytes that are made of something")


def _made_buffer(args: tuple[Any, ...]) -> PickledArray:
    """An array of protocol 5: bytes, type, shape and order."""
    if len(args) != 4:
        raise _DamageError("an array that is not complete")
    raw, dtype, shape, order = args
    return PickledArray(dtype, shape, _text(order) == "F", raw)


#: Names that a file may use, and what they stand for here. The same things have had several places in numpy.
_NAMES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), "array"),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), "buffer"),
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
    **dict.fromkeys(("__builtin__.bytes", "builtins.bytes"), "bytes"),
}

_MADE: Final[Mapping[str, Callable[[tuple[Any, ...]], Any]]] = {
    "array": _made_array,
    "buffer": _made_buffer,
    "dtype": _made_dtype,
    "encode": _made_bytes,
    "bytes": _made_nothing,
    "ndarray": lambda _: _refuse("an array that is called"),
}


def _decoded(view: memoryview) -> str:
    return str(view, "utf-8")


_Operation = Callable[[_Machine], None]

#: Every operation that is carried out, by its code; those of arrays are in protocols 2 to 5.
_OPERATIONS: Final[Mapping[bytes, _Operation]] = {
    # constants and numbers
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: m.push(m.number(m.number(1), signed=True)),
    b"G": lambda m: m.push(m.take(8)),  # a float: no array needs one, so it stays bytes
    # bytes and texts, with a length of 1, 4 or 8 bytes
    b"U": lambda m: m.push(m.take(m.number(1))),
    b"T": lambda m: m.push(m.take(m.number(4))),
    b"C": lambda m: m.push(m.take(m.number(1))),
    b"B": lambda m: m.push(m.take(m.number(4))),
    b"\x8e": lambda m: m.push(m.take(m.number(8))),
    b"\x96": lambda m: m.push(m.take(m.number(8))),
    b"\x8c": lambda m: m.push(_decoded(m.take(m.number(1)))),
    b"X": lambda m: m.push(_decoded(m.take(m.number(4)))),
    b"\x8d": lambda m: m.push(_decoded(m.take(m.number(8)))),
    # tuples, lists and dictionaries
    b"(": lambda m: m.marks.append(len(m.stack)),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push(m.top(1)),
    b"\x86": lambda m: m.push(m.top(2)),
    b"\x87": lambda m: m.push(m.top(3)),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend(list(m.top(1))),
    b"e": lambda m: m.extend(m.since_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.update(list(m.top(2))),
    b"u": lambda m: m.update(m.since_mark()),
    # what was said before
    b"q": lambda m: m.memo.__setitem__(m.number(1), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.number(4), m.stack[-1]),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    # names and what is made of them
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.name(*m.top(2)),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
    b"\x95": lambda m: None if m.number(8) <= len(m.data) else _refuse("a frame larger than the file"),
}
