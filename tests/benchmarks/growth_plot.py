"""Two pictures of one axis of growth, side by side: time and memory, both scales logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["plot"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _ROOM = 400, 300, 60, 30, 50
_COLOURS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_PANELS: Final = (("cpu_s", "CPU seconds an iteration"), ("peak_mb", "peak memory, MB above the imported program"))
_NAMES: Final = {
    "ipc": "synthetic images a class", "classes": "classes", "side": "side of an image, pixels",
    "images": "real images of each of 10 classes",
}  # fmt: skip


def plot(axis: str, lines: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """An SVG.

    Args:
        axis: What is varied.
        lines: Name and points of each line.
    """
    panels = [_panel(axis, lines, key, title, _LEFT + i * _WIDTH) for i, (key, title) in enumerate(_PANELS)]
    legend = [
        f'<text x="{_LEFT + 150 * i}" y="{_TOP + _HEIGHT + 6}" fill="{_COLOURS[i]}">{name}</text>'
        for i, (name, _) in enumerate(lines)
    ]
    inside = '<rect width="100%" height="100%" fill="white"/>' + "".join([*panels, *legend])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH + 20} {_HEIGHT + 50}" font-size="11" '
        f'font-family="sans-serif">{inside}</svg>\n'
    )


def _panel(axis: str, lines: Sequence[tuple[str, Sequence[dict[str, Any]]]], key: str, title: str, left: int) -> str:
    xs = [row[axis] for _, rows in lines for row in rows]
    ys = [row[key] for _, rows in lines for row in rows]
    # At least a decade, so that what is flat looks flat.
    low, high = min(ys) / 1.3, max(max(ys) * 1.3, 13 * min(ys) / 1.3)
    width, height = _WIDTH - 80, _HEIGHT - _TOP - _ROOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / min(xs)) / math.log(max(xs) / min(xs))
        return round(left + across * width, 1), round(_TOP + height * (1 - math.log(y / low) / math.log(high / low)), 1)

    parts = [f'<text x="{left}" y="{_TOP - 10}">{title}</text>']
    parts += [
        f'<text x="{at(x, low)[0]}" y="{_TOP + height + 15}" text-anchor="middle">{x}</text>' for x in sorted(set(xs))
    ]
    for y in _round_numbers(low, high):
        place = at(min(xs), y)[1]
        parts.append(f'<path d="M{left} {place}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 4}" y="{place + 4}" text-anchor="end">{y:g}</text>')
    middle = left + width / 2
    parts.append(f'<text x="{middle}" y="{_TOP + height + 32}" text-anchor="middle">{_NAMES[axis]}</text>')
    for number, (_, rows) in enumerate(lines):
        dots = [at(row[axis], row[key]) for row in rows]
        path = "L".join(f"{x} {y}" for x, y in dots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{_COLOURS[number]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{_COLOURS[number]}"/>' for x, y in dots]
    return "".join(parts)


def _round_numbers(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [n * 10.0**power for power in powers for n in (1, 2, 5) if low <= n * 10.0**power <= high]
