"""Curves of benches: accuracy against stored bytes, floats, or a swept value. Needs matplotlib, imported on use."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dcf.bench.compare import random_of
from dcf.bench.table import NOT_COMPARABLE, Shown
from dcf.errors import UsageError
from dcf.figures import RC, as_label, require_form, require_matplotlib, write_figure

__all__ = ["Curve", "axis_of", "curves", "save_plot"]

SIZES: Final = {"bytes": "stored bytes of the set", "floats": "stored floats of the set"}
_GREY: Final = "0.55"
#: Characters of a title that fit above one plot.
_TITLE: Final = 64
#: Several rows of random images, such as with and without augmentation, differ in their lines.
_STYLES: Final = ("-", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: Its name in the legend.
        role: "method", "random" or "whole".
        x: Positions; empty where the line is level over the whole width.
        mean: Accuracies in percent, as `x`; one value where it is level.
        spread: Population standard deviations in points, as `mean`.
    """

    label: str
    role: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]


def axis_of(shown: Sequence[Shown], asked: str | None) -> str:
    """What is drawn across: what was asked for, else the swept key where there is just one, else bytes.

    Raises:
        UsageError: When nothing of the name was swept.
    """
    keys = list(dict.fromkeys(key for one in shown for key in one.row.sweep))
    if asked is None:
        return keys[0] if len(keys) == 1 else "bytes"
    if asked not in (*SIZES, *keys):
        raise UsageError(f"--x {asked}: expected one of {', '.join([*SIZES, *keys])}")
    return asked


def curves(shown: Sequence[Shown], axis: str) -> list[Curve]:
    """The lines of the plot of one dataset, those of methods first.

    Args:
        shown: Its rows.
        axis: "bytes", "floats" or a swept key.
    """
    known = [one for one in shown if one.row.stat is not None]
    groups: dict[str, list[Shown]] = {}
    for one in known:
        if one.row.role == "method":
            groups.setdefault(_name(one, known, axis), []).append(one)
    found = [_curve(name, "method", [(_at(one, axis), one) for one in group]) for name, group in groups.items()]
    return [*found, *_random_curves(known, axis), *_whole_curves(known)]


def _name(one: Shown, shown: Sequence[Shown], axis: str) -> str:
    """Name of a line: the method, with what makes other lines of it different."""
    rest = [f"{key}={value}" for key, value in one.row.sweep.items() if key != axis]
    budgets = {o.row.budget for o in shown if o.label == one.label and o.row.role == "method"}
    if axis not in SIZES and len(budgets) > 1 and axis not in ("ipc", "budget"):
        rest.append(str(one.row.budget))
    protocols = {o.row.protocol for o in shown if o.label == one.label}
    rest += [one.row.protocol] if len(protocols) > 1 else []
    benches = {o.bench.name for o in shown}
    rest += [one.bench.name] if len(benches) > 1 else []
    return ", ".join([one.label, *rest])


def _at(one: Shown, axis: str) -> float | None:
    """Where a row stands across; None where it stands everywhere."""
    if axis in SIZES:
        size = one.row.bytes if axis == "bytes" else one.row.floats
        return float(size) if size else None
    text = one.row.sweep.get(axis)
    return None if text is None else _numeric(text)


def _numeric(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _curve(label: str, role: str, points: Iterable[tuple[float | None, Shown]]) -> Curve:
    stats = [(at, one.row.stat) for at, one in points if one.row.stat is not None]
    placed = sorted(((at, stat) for at, stat in stats if at is not None), key=lambda pair: pair[0])
    used = placed or [(0.0, stat) for _, stat in stats[:1]]
    mean = tuple(100 * stat.mean for _, stat in used)
    return Curve(label, role, tuple(at for at, _ in placed), mean, tuple(100 * stat.pooled for _, stat in used))


def _random_curves(shown: Sequence[Shown], axis: str) -> list[Curve]:
    """Random images: at their own size, below the methods of a swept budget, and otherwise level, one for a budget."""
    groups: dict[tuple[str, str | None], list[Shown]] = {}
    for one in shown:
        if one.row.role == "random":
            apart = axis not in (*SIZES, "ipc", "budget")
            groups.setdefault((one.label, one.row.budget if apart else None), []).append(one)
    labels = [label for label, _ in groups]
    found = []
    for (label, budget), group in groups.items():
        name = f"{label}, {budget}" if labels.count(label) > 1 else label
        points: list[tuple[float | None, Shown]]
        if len(group) == 1:
            points = [(None, group[0])]
        elif axis in SIZES:
            points = [(_at(one, axis), one) for one in group]
        else:
            points = [pair for one in group for pair in _beside(one, shown, axis)]
        found.append(_curve(name, "random", points))
    return found


def _beside(random: Shown, shown: Sequence[Shown], axis: str) -> list[tuple[float | None, Shown]]:
    """Positions of the methods that a row of random images is compared with."""
    rivals = [o for o in shown if o.row.role == "method" and random_of(o.row, o.bench.rows) is random.row]
    return [(at, random) for at in dict.fromkeys(_at(o, axis) for o in rivals)]


def _whole_curves(shown: Sequence[Shown]) -> list[Curve]:
    return [_curve(one.label, "whole", [(None, one)]) for one in shown if one.row.role == "whole"]


# --- drawing -------------------------------------------------------------------------------------


def save_plot(shown: Sequence[Shown], out: Path, axis: str) -> None:
    """Draw one panel for each dataset and write the file; equal rows give an equal SVG.

    Args:
        shown: Rows that may stand in one table.
        out: A file ending in .png or .svg.
        axis: "bytes", "floats" or a swept key.

    Raises:
        PluginError: When matplotlib is not installed.
        RunError: When the file cannot be written.
    """
    require_form(out)
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(one.row.data_name for one in shown))
    figure = Figure(figsize=(6.4 * len(datasets), 4.8), layout="constrained")
    with matplotlib.rc_context(RC):
        for axes, name in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
            _draw(axes, [one for one in shown if one.row.data_name == name], name, axis)
        protocols = list(dict.fromkeys(one.row.protocol for one in shown))
        title = f"{', '.join(protocols)}; bars and bands: one population standard deviation"
        figure.suptitle(as_label(title), fontsize=8)
        if any(not one.bench.comparable for one in shown):
            figure.text(
                0.5, 0.5, NOT_COMPARABLE, fontsize=40, color="0.6", alpha=0.35, rotation=30, ha="center", va="center"
            )
        write_figure(figure, out)


def _draw(axes: Any, shown: Sequence[Shown], name: str, axis: str) -> None:
    words = _words(shown, axis)
    found = curves(shown, axis) if not words else _by_words(shown, axis, words)
    for role, draw in (("method", _draw_method), ("random", _draw_random), ("whole", _draw_whole)):
        for number, curve in enumerate(c for c in found if c.role == role):
            draw(axes, replace(curve, label=as_label(curve.label)), number)
    if words:
        axes.set_xticks(range(len(words)), [as_label(word) for word in words])
    elif axis in SIZES or _spans(shown, axis):
        axes.set_xscale("log", base=10 if axis in SIZES else 2)
        if axis not in SIZES:
            ticks = sorted({at for one in shown if (at := _at(one, axis)) is not None})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    axes.set_xlabel(SIZES.get(axis, axis))
    axes.set_ylabel("test accuracy in percent")
    short = len(name) <= _TITLE
    title = as_label(name)
    axes.set_title(title if short else textwrap.fill(title, 3 * _TITLE // 2), fontsize=10 if short else 7)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def _words(shown: Sequence[Shown], axis: str) -> list[str]:
    """The values of a swept key that are no numbers, in order; empty where all are numbers."""
    values = list(dict.fromkeys(one.row.sweep[axis] for one in shown if axis in one.row.sweep))
    return values if any(math.isnan(_numeric(value)) for value in values) else []


def _by_words(shown: Sequence[Shown], axis: str, words: Sequence[str]) -> list[Curve]:
    """The lines with the numbers of the words as positions."""
    numbered = [
        replace(one, row=one.row.model_copy(update={"sweep": _numbered(one.row.sweep, axis, words)})) for one in shown
    ]
    return curves(numbered, axis)


def _numbered(sweep: dict[str, str], axis: str, words: Sequence[str]) -> dict[str, str]:
    return {key: str(words.index(value)) if key == axis else value for key, value in sweep.items()}


def _spans(shown: Sequence[Shown], axis: str) -> bool:
    """Whether swept values are positive and far enough apart for a logarithmic axis."""
    values = [at for one in shown if (at := _at(one, axis)) is not None]
    return len(values) > 2 and min(values) > 0 and max(values) / min(values) >= 4


def _draw_method(axes: Any, curve: Curve, number: int) -> None:
    colour = f"C{number}"
    if curve.x:
        axes.errorbar(curve.x, curve.mean, yerr=curve.spread, label=curve.label, color=colour, marker="o", capsize=3)
    else:
        axes.axhline(curve.mean[0], label=curve.label, color=colour, linestyle=":")


def _draw_random(axes: Any, curve: Curve, number: int) -> None:
    style = _STYLES[number % len(_STYLES)]
    low = [m - s for m, s in zip(curve.mean, curve.spread, strict=True)]
    high = [m + s for m, s in zip(curve.mean, curve.spread, strict=True)]
    if len(curve.x) > 1:
        axes.plot(curve.x, curve.mean, label=curve.label, color=_GREY, linestyle=style, marker=".")
        axes.fill_between(curve.x, low, high, color=_GREY, alpha=0.25, linewidth=0)
    else:
        axes.axhline(curve.mean[0], label=curve.label, color=_GREY, linestyle=style)
        axes.axhspan(low[0], high[0], color=_GREY, alpha=0.25, linewidth=0)


def _draw_whole(axes: Any, curve: Curve, number: int) -> None:
    dashes = (0, (6 - 2 * (number % 3), 3))
    axes.axhline(curve.mean[0], label=curve.label, color="black", linestyle=dashes, linewidth=1)
