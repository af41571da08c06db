"""Results on stdout: tables for people, one JSON object for machines."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from dcf.cli.console import clean, print_json, stdout
from dcf.evaluation.wording import figure_text, row_title, value_text
from dcf.sizes import count, share, size_line

if TYPE_CHECKING:
    from dcf.evaluation.report import Report, Row
    from dcf.run import Outcome

__all__ = ["figures_table", "outcome_json", "report_table", "show_outcome", "show_report"]

log = logging.getLogger(__name__)


def show_outcome(outcome: Outcome, as_json: bool) -> None:
    """The result of a run: accuracies, then the paths of what was written."""
    if outcome.interrupted:
        log.warning(_interrupted_text(outcome))
    if as_json:
        print_json(outcome_json(outcome))
        return
    if outcome.report is not None:
        show_report(outcome.report, outcome.synthetic.spec.num_classes)
    elif not outcome.interrupted:
        log.info("stored: %s", size_line(outcome.synthetic.storage().to_json()))
    if outcome.directory is not None and not outcome.interrupted:
        typer.echo(str(outcome.directory.preview))
        typer.echo(str(outcome.directory.result))


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The result of a run for machines."""
    directory = outcome.directory
    written = directory if directory is not None and not outcome.interrupted else None
    return {
        "run": str(directory.path) if directory else None,
        "interrupted": outcome.interrupted,
        "iterations_done": outcome.done,
        "synthetic": str(written.result) if written else None,
        "preview": str(written.preview) if written else None,
        "config": outcome.config.model_dump(mode="json"),
        "storage": outcome.synthetic.storage().to_json(),
        "report": outcome.report.to_json() if outcome.report else None,
    }


def show_report(report: Report, classes: int) -> None:
    """Accuracies as a table on stdout, further figures as another, warnings on stderr."""
    stdout().print(report_table(report, classes))
    figures = figures_table(report)
    if figures is not None:
        stdout().print()
        stdout().print(figures)
    for note in (_pixels_note(report), _precision_note(report)):
        if note:
            stdout().print(note)
    for warning in report.warnings:
        log.warning("%s", clean(warning, 500))


def report_table(report: Report, classes: int) -> Table:
    """One line for each row of a report.

    Args:
        report: What was measured.
        classes: Number of classes, for images a class.
    """
    rows = [*report.rows, *report.baselines]
    several = len({row.network for row in rows}) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trained on")
    if several:
        table.add_column("network")
    for header in ("result", "n", "protocol", "stored floats", "stored bytes", "budget used", "views a class"):
        table.add_column(header, justify="right" if header != "protocol" else "left", no_wrap=header == "result")
    for row in rows:
        cells = [row_title(row.name), *([clean(row.network)] if several else [])]
        table.add_row(
            *cells, value_text(row), f"{row.stat.n_sets} x {row.stat.n_nets}", clean(row.protocol), *_size(row, classes)
        )
    return table


def figures_table(report: Report) -> Table | None:
    """One line for each further figure, one column for each row of a report that has any; None where none has.

    The figure that the report sums up to comes first. Intervals are those of the report, at 95 %.
    """
    rows = [row for row in (*report.rows, *report.baselines) if row.stats]
    names = dict.fromkeys(name for row in rows for name in row.stats)
    if not names:
        return None
    several = len({row.network for row in rows}) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("figure")
    for row in rows:
        what = row_title(row.name)
        table.add_column(f"{what}, {clean(row.network)}" if several else what, justify="right")
    for name in sorted(names, key=lambda name: name != report.summary.metric):
        table.add_row(clean(name), *(figure_text(row.stats.get(name)) for row in rows))
    return table


def _pixels_note(report: Report) -> str:
    """How many 8-bit images the bytes of the random ones would hold: as floats, they cost four times as much."""
    found = next((row.info for row in report.baselines if "uint8_per_class" in row.info), None)
    if found is None:
        return ""
    small, large = count(found["uint8_per_class"]), count(found.get("per_class"))
    return f"random images are float32 pixels, {large} a class; in 8-bit pixels those bytes would hold {small} a class"


def _precision_note(report: Report) -> str:
    """Which rows were trained otherwise than in fp32; empty where none was."""
    rows = [row for row in (*report.rows, *report.baselines) if row.precision not in ("", "fp32")]
    told = dict.fromkeys((row.precision, row_title(row.name)) for row in rows)
    return "; ".join(f"{title}: trained with {clean(precision, 40)}" for precision, title in told)


def _size(row: Row, classes: int) -> tuple[str, ...]:
    return count(row.floats), count(row.bytes), share(row.utilisation), count(row.images / max(1, classes))


def _interrupted_text(outcome: Outcome) -> str:
    text = f"stopped after iteration {outcome.done} of {outcome.config.iterations}"
    return f"{text}; go on with: dcf resume {outcome.directory.path}" if outcome.directory else text
