"""Curves as inline SVG: axes, one line a run, and in words what they show. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dcf.report.markup import Markup, element
from dcf.report.metrics import Curve

__all__ = ["STYLES", "chart", "ticks", "words"]

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 12, 44
#: Ratio of the largest to the smallest value from which on the axis is logarithmic.
_SPREAD: Final = 50
#: Kinds of lines that the style sheet tells apart, by colour and by dashes.
STYLES: Final = 6


@dataclass(frozen=True)
class _Axis:
    """Values `low` to `high`, which are drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        least, most = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**n for n in range(least, most + 1, 1 + (most - least) // 6)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, some five of them."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= 0.75 * raw)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def chart(metric: str, curves: Mapping[str, Curve], styles: Sequence[int], key: str) -> Markup:
    """One picture of a metric over the iterations.

    Args:
        metric: Its name.
        curves: By the name of the run.
        styles: Number of the line style of each.
        key: What makes the ids of this picture its own.
    """
    x, y = _axes(list(curves.values()))
    lines = [_line(curve, x, y, style) for curve, style in zip(curves.values(), styles, strict=True)]
    scale = ", logarithmic scale" if y.log else ""
    return element(
        "svg",
        element("title", f"{metric} over the iterations", id=f"{key}-title"),
        element("desc", _words(curves), id=f"{key}-words"),
        _grid(x, y),
        lines,
        element("text", "iteration", x=_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, y=_HEIGHT - 8, class_="label"),
        element("text", metric + scale, x=16, y=_HEIGHT / 2, class_="label", transform=f"rotate(-90 16 {_HEIGHT / 2})"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-words",
        class_="chart",
    )


def _axes(curves: Sequence[Curve]) -> tuple[_Axis, _Axis]:
    its = [it for curve in curves for it, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points if value is not None]
    low, high = min(values), max(values)
    log = low > 0 and high / low >= _SPREAD
    if not log:
        room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    left, right = min(its), max(its)
    across = _Axis(left if right > left else left - 1, right if right > left else right + 1, _LEFT, _WIDTH - _RIGHT)
    return across, _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, log)


def _grid(x: _Axis, y: _Axis) -> list[Markup]:
    """Lines at round numbers, and the numbers."""
    made = []
    for value in y.ticks():
        at = y.at(value)
        made.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
        made.append(element("text", f"{value:.4g}", x=_LEFT - 6, y=at + 4, class_="tick y"))
    below = _HEIGHT - _BOTTOM + 18
    made += [
        element("text", f"{int(value):,}", x=x.at(value), y=below, class_="tick x")
        for value in x.ticks()
        if value == int(value)
    ]
    corner = f"M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"
    return [*made, element("path", d=corner, class_="axis")]


def _line(curve: Curve, x: _Axis, y: _Axis, style: int) -> Markup:
    """A path with a gap where values are missing; a point that stands alone is a dot."""
    pieces: list[list[str]] = [[]]
    for it, value in curve.points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x.at(it)} {y.at(value)}")
    # Of length 0 with round caps, which is a dot.
    path = "".join(f"M{'L'.join(piece if len(piece) > 1 else piece * 2)}" for piece in pieces if piece)
    return element("path", d=path, class_=f"curve s{style % STYLES}")


def _words(curves: Mapping[str, Curve]) -> str:
    """What the picture shows, for who cannot see it."""
    return " ".join(f"{name}: {words(curve)}." for name, curve in curves.items())


def words(curve: Curve) -> str:
    """A curve in words."""
    (first_at, first), (last_at, last), (least_at, least) = curve.first, curve.last, curve.least
    text = f"{first:.4g} at iteration {first_at:,}, {last:.4g} at {last_at:,}, smallest {least:.4g} at {least_at:,}"
    return f"{text}; {curve.broken:,} of {curve.count:,} values are not finite and left out" if curve.broken else text
