"""How sizes are told: the storage entry of a file or a plan as short texts. Whatever a file claims is shown as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dcf.texts import clean

__all__ = ["count", "share", "size_line", "size_texts"]


def count(value: Any) -> str:
    """A number with its thousands apart, whole where it is whole; `-` for none."""
    if not _is_number(value) or abs(value) >= 1e15:
        return "-" if value is None else clean(value, 20)
    return f"{value:,.1f}" if value != int(value) else f"{int(value):,}"


def share(value: Any) -> str:
    """A fraction in percent; `-` for none. Never rounded up to a whole budget that is not used whole."""
    if not _is_number(value) or not 0 <= value < 1e6:
        return "-"
    return f"{math.floor(1000 * value + 1e-9) / 10:.1f} %"


def size_texts(storage: Mapping[str, Any]) -> dict[str, str]:
    """Those entries of a storage table that are not plain numbers, as text."""
    return {
        "views_per_class": _views(storage.get("views_per_class")),
        "budget": _budget(storage.get("budget")),
        "utilisation": share(storage.get("utilisation")),
        "equivalent_images": count(storage.get("equivalent_images")),
    }


def size_line(storage: Mapping[str, Any]) -> str:
    """A storage table in one line."""
    texts = size_texts(storage)
    parts = [f"{count(storage.get('floats'))} floats", f"{count(storage.get('bytes'))} bytes"]
    if _is_number(storage.get("equivalent_images")) and storage["equivalent_images"] != storage.get("views"):
        parts.append(f"as many as {texts['equivalent_images']} plain images")
    parts += [f"as {clean(storage['store'], 12)}"] if "store" in storage else []
    parts += [f"{count(storage.get('views'))} views"]
    parts += [f"{texts['views_per_class']} a class"] if "views_per_class" in storage else []
    parts += [f"{texts['utilisation']} of the budget ({texts['budget']})"] if texts["utilisation"] != "-" else []
    if "space_bytes" in storage:
        parts.append(f"beside {count(storage['space_bytes'])} bytes of whitening that no budget counts")
    return ", ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _budget(value: Any) -> str:
    known = value if isinstance(value, Mapping) else {}
    return ", ".join(f"{unit}={clean(known[unit], 20)}" for unit in ("ipc", "floats", "bytes") if unit in known) or "-"


def _views(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{count(value.get('min'))} to {count(value.get('max'))}"
    return count(value)
