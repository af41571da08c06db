"""What a stream came to, as a table and as curves."""

from __future__ import annotations

import textwrap
from pathlib import Path

from rich.table import Table

import dcf
from dcf.cli.console import clean
from dcf.evaluation import Stat
from dcf.figures import RC, as_label, require_form, require_matplotlib, write_figure
from dcf_continual.model import HEADS, Stream, StreamRow

__all__ = ["require_head", "save_curves", "stream_table"]

#: Characters of a line of the title that fit into the picture.
_TITLE = 100


def require_head(head: str | None) -> None:
    """Make sure that there is such a head.

    Raises:
        UsageError: When there is none.
    """
    if head is not None and head not in HEADS:
        raise dcf.UsageError(f"--head {head}: expected one of {', '.join(HEADS)}")


def stream_table(stream: Stream, head: str | None = None) -> Table:
    """One line for each method: accuracy after each step in percent, then what sums it up.

    Args:
        stream: What was run.
        head: Which answers compete; those of the headline by default.
    """
    head = head or stream.head
    table = Table(
        title=f"{stream.id}, head '{head}'", box=None, pad_edge=False, header_style="bold", title_justify="left"
    )
    table.add_column("method")
    steps = [f"{seen} classes" for seen in stream.classes_seen]
    for header in (*steps, "average", "forgetting", "BWT", "orders x networks", "bytes"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in stream.rows:
        table.add_row(clean(row.label), *_cells(row, head))
    return table


def _cells(row: StreamRow, head: str) -> list[str]:
    stat = row.average[head]
    return [
        *(_percent(one) for one in row.accuracy[head]),
        _percent(stat),
        _percent(row.forgetting.get(head)),
        _percent(row.backward_transfer.get(head)),
        f"{stat.n_sets} x {stat.n_nets}",
        f"{max(one.memory[-1].bytes for one in row.orders):,}",
    ]


def _percent(stat: Stat | None) -> str:
    if stat is None:
        return "-"
    spread = f" ± {100 * stat.pooled:.1f}" if stat.n_sets * stat.n_nets > 1 else ""
    return f"{100 * stat.mean:.1f}{spread}"


def save_curves(stream: Stream, out: Path, head: str | None = None) -> None:
    """Draw accuracy on the classes seen against their number; bands are one standard deviation.

    Args:
        stream: What was run.
        out: A file ending in .png or .svg.
        head: Which answers compete; those of the headline by default.

    Raises:
        UsageError: When nothing was run yet.
        PluginError: When matplotlib is not installed.
        RunError: When the file cannot be written.
    """
    require_form(out)
    require_matplotlib()
    if not stream.rows:
        raise dcf.UsageError("the stream has no results yet: run it first")
    import matplotlib
    from matplotlib.figure import Figure

    head = head or stream.head
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    with matplotlib.rc_context(RC):
        axes = figure.subplots()
        # Steps of a sequence of datasets add images, not classes.
        growing = len(set(stream.classes_seen)) == len(stream.classes_seen)
        places = list(stream.classes_seen) if growing else list(range(1, len(stream.classes_seen) + 1))
        for number, row in enumerate(stream.rows):
            _draw(axes, places, row, head, f"C{number}")
        axes.set_xticks(places)
        axes.set_xlabel("classes seen" if growing else "steps")
        axes.set_ylabel("test accuracy on what was seen, in percent")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
        title = f"{stream.id}, head '{head}'; bands: one population standard deviation"
        figure.suptitle(textwrap.fill(as_label(title), _TITLE, break_on_hyphens=False), fontsize=7)
        write_figure(figure, out)


def _draw(axes: object, places: list[int], row: StreamRow, head: str, colour: str) -> None:
    mean = [100 * stat.mean for stat in row.accuracy[head]]
    spread = [100 * stat.pooled for stat in row.accuracy[head]]
    low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    axes.plot(places, mean, label=as_label(row.label), color=colour, marker="o")  # type: ignore[attr-defined]
    axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)  # type: ignore[attr-defined]
