"""How large a set may be: a budget in plain images a class, in stored numbers or in bytes. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

__all__ = ["STORES", "Budget", "Store", "image_numbers", "is_coded", "parse_budget"]

#: How the floats of a set are written: as they are, rounded to 16 bits, or as 8-bit codes with a scale a row.
Store = Literal["fp32", "fp16", "uint8"]
STORES: Final[tuple[Store, ...]] = get_args(Store)
#: Bytes of a float32, and numbers beside the codes of one row: its scale and its zero.
_FLOAT_BYTES: Final = 4
_BESIDE: Final = 2


def is_coded(row: int, itemsize: int) -> bool:
    """Whether 8-bit codes with a float32 scale and zero are shorter than a row of floats.

    Args:
        row: Elements of the row; 1 for single numbers and for each element of a vector, which never are.
        itemsize: Bytes of an element as it is.
    """
    return row + _BESIDE * _FLOAT_BYTES < row * itemsize


def image_numbers(elements: int, store: Store) -> int:
    """Stored numbers of one plain image: its elements, and with `uint8` its scale and zero.

    Args:
        elements: Elements of an image, C H W.
        store: How floats are written.
    """
    return elements + (_BESIDE if store == "uint8" and is_coded(elements, _FLOAT_BYTES) else 0)


def parse_budget(text: str) -> tuple[Literal["bytes", "floats"], int]:
    """`bytes=N` or `floats=N`.

    Raises:
        ValueError: When it is neither.
    """
    unit, _, number = text.partition("=")
    if unit not in ("bytes", "floats") or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"expected bytes=N or floats=N, got '{text}'")
    return ("bytes" if unit == "bytes" else "floats"), int(number)


@dataclass(frozen=True)
class Budget:
    """What a whole set may cost.

    Attributes:
        unit: What is counted: plain images a class, stored numbers, or bytes.
        number: How many of them.
        one_ipc: Stored numbers of one plain image of each class, written as the set is.
    """

    unit: Literal["ipc", "floats", "bytes"]
    number: int
    one_ipc: int

    @classmethod
    def of(cls, ipc: int | None, budget: str | None, elements: int, classes: int, store: Store) -> Self:
        """The budget of a run.

        Args:
            ipc: Plain images a class; 1 where neither is given.
            budget: `bytes=N` or `floats=N`.
            elements: Elements of an image, C H W.
            classes: Number of classes.
            store: How floats are written.

        Raises:
            ValueError: When `budget` is of another form.
        """
        unit, number = ("ipc", ipc or 1) if budget is None else parse_budget(budget)
        return cls(unit, number, classes * image_numbers(elements, store))  # type: ignore[arg-type]

    @classmethod
    def recorded(cls, run: Any, elements: int, classes: int, store: Store) -> Self | None:
        """The budget that a file's table `run` tells of; None where it tells of none that could be."""
        ipc, budget = (run.get("ipc"), run.get("budget")) if isinstance(run, Mapping) else (None, None)
        good_ipc = type(ipc) is int and ipc >= 1
        if not (good_ipc if budget is None else isinstance(budget, str)):
            return None
        try:
            return cls.of(ipc, budget, elements, classes, store)
        except ValueError:
            return None

    @property
    def limit(self) -> int:
        """Bytes, or stored numbers, at most."""
        return self.number * self.one_ipc if self.unit == "ipc" else self.number

    @property
    def plain_images(self) -> int:
        """Whole plain images a class that it pays for; those of float32 where it counts bytes."""
        return self.limit // (self.one_ipc * (_FLOAT_BYTES if self.unit == "bytes" else 1))

    def spent(self, numbers: int, nbytes: int) -> int:
        """What counts against the limit of a set that stores so many numbers in so many bytes."""
        return nbytes if self.unit == "bytes" else numbers

    def least(self, spent: int) -> str:
        """The smallest budget of this unit that pays for `spent`, as `unit=N`."""
        return f"{self.unit}={-(-spent // self.one_ipc) if self.unit == 'ipc' else spent}"

    def __str__(self) -> str:
        return f"{self.unit}={self.number}"

    def to_json(self) -> dict[str, int]:
        """JSON-ready: `bytes`, or `floats` with the `ipc` that they follow from, if any."""
        if self.unit == "ipc":
            return {"ipc": self.number, "floats": self.limit}
        return {self.unit: self.number}
