"""How results are told: names of rows and values as short texts. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dcf.texts import clean

if TYPE_CHECKING:
    from dcf.evaluation.report import Row
    from dcf.evaluation.statistics import Stat

__all__ = ["figure_text", "metric_text", "row_title", "value_text"]

_ROWS: Final = {
    "sets": "condensed set",
    "replay": "condensed set, run as a program",
    "random": "random images",
    "random-images": "random images, as many",
    "random-replay": "random images in its place",
    "whole": "whole training set",
}
#: End of the name of a row that was trained without the augmentation of another one.
_PLAIN: Final = "-plain"
#: Metrics that are fractions in [0, 1], shown in percent.
_FRACTIONS: Final = frozenset({"accuracy"})


def row_title(name: str) -> str:
    """What a row was trained on, for people."""
    before = name.removesuffix(_PLAIN)
    if before != name and before in _ROWS:
        return f"{_ROWS[before]}, not augmented"
    return _ROWS.get(name, clean(name))


def metric_text(metric: str, value: float) -> str:
    """One value: in percent where it is a fraction."""
    return f"{100 * value:.1f} %" if metric in _FRACTIONS else f"{value:.4g}"


def value_text(row: Row) -> str:
    """Mean and spread of a row; a single value has no spread, not one of 0."""
    stat = row.stat
    percent = stat.metric in _FRACTIONS
    mean = f"{100 * stat.mean:.1f}" if percent else f"{clean(stat.metric)} {stat.mean:.4g}"
    if stat.n_sets * stat.n_nets > 1:
        mean += f" ± {100 * stat.pooled:.1f}" if percent else f" ± {stat.pooled:.2g}"
    return f"{mean} %" if percent else mean


def figure_text(stat: Stat | None) -> str:
    """Mean, spread and interval of a further figure; `-` for none."""
    if stat is None:
        return "-"
    text = f"{stat.mean:.3f}" if abs(stat.mean) < 100 else f"{stat.mean:.4g}"
    if stat.n_sets * stat.n_nets > 1:
        text += f" ± {stat.pooled:.3f}" if abs(stat.mean) < 100 else f" ± {stat.pooled:.2g}"
    return text if isinstance(stat.ci, str) else f"{text} [{stat.ci[0]:.3f}, {stat.ci[1]:.3f}]"
