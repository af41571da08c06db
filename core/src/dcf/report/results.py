"""Accuracies as tables: what is compared first, then every single value. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dcf.evaluation.report import Report, Row
from dcf.evaluation.wording import figure_text, metric_text, row_title, value_text
from dcf.report.markup import Markup, Node, element, joined, table
from dcf.report.source import Source
from dcf.sizes import count, share

__all__ = ["results"]

#: Rows of a table, classes, and warnings at most: what a hostile file would fill without end.
_ROWS, _CLASSES, _WARNINGS = 2000, 1000, 20


def results(sources: Sequence[Source]) -> Markup:
    """The section's contents."""
    known = [(source, source.report) for source in sources if source.report is not None]
    missing = [_sentence(source, len(sources) > 1) for source in sources if source.report is None]
    if not known:
        return joined(missing or element("p", "There are no results."))
    return joined(
        _summary(known, len(sources) > 1),
        _comparable([report for _, report in known]),
        missing,
        _warnings(known),
        _figures(known),
        element("details", element("summary", "Every value"), _values(known)),
        element("details", element("summary", "Spread, and the classes one by one"), _spread(known), _classes(known)),
    )


def _sentence(source: Source, several: bool) -> Markup:
    text = " ".join(source.notes) or "It has not been evaluated."
    return element("p", f"{source.name}: {text}" if several else text)


def _all_rows(known: Sequence[tuple[Source, Report]]) -> Iterator[tuple[Source, Report, Row]]:
    found = ((source, report, row) for source, report in known for row in (*report.rows, *report.baselines))
    for number, one in enumerate(found):
        if number < _ROWS:
            yield one


def _summary(known: Sequence[tuple[Source, Report]], several: bool) -> Markup:
    header = ["trained on", "result", "n", "protocol", "network", "stored floats", "stored bytes", "budget used"]
    rows = []
    for source, report, row in _all_rows(known):
        n = f"{row.stat.n_sets} x {row.stat.n_nets}"
        own = row in report.rows
        value = element("strong", value_text(row)) if own else value_text(row)
        cells: list[Node] = [row_title(row.name), value, n, row.protocol, row.network]
        cells += [count(row.floats), count(row.bytes), share(row.utilisation), count(row.images)]
        rows.append([source.name, element("td", cells[0]), *cells[1:]] if several else cells)
    header = [*(["run or file"] if several else []), *header, "training images"]
    shift = int(several)
    return table(
        "Test accuracy (mean ± population standard deviation of all values); n = sets x networks of each",
        header,
        rows,
        numeric=[shift + at for at in (1, 2, 5, 6, 7, 8)],
    )


def _comparable(reports: Sequence[Report]) -> Markup:
    """What stands in the way of comparing the rows."""
    found = []
    if len({report.protocol_hash for report in reports}) > 1:
        found.append("They were evaluated under different protocols: their accuracies are not comparable.")
    if len({str(report.data.get("checksum", report.data)) for report in reports}) > 1:
        found.append("They were evaluated on different data: their accuracies are not comparable.")
    selected = sorted({report.selection for report in reports} - {"none"})
    found += [f"Something was chosen by looking at {name} images." for name in selected]
    note = "Random images cost as many bytes as the condensed set, as float32 pixels."
    if any(row.name.startswith("random") for report in reports for row in report.baselines):
        found.append(note)
    return joined([element("p", text, class_="note") for text in found])


def _warnings(known: Sequence[tuple[Source, Report]]) -> Markup | None:
    texts = list(dict.fromkeys(text for _, report in known for text in report.warnings))
    if not texts:
        return None
    return element("ul", [element("li", text) for text in texts[:_WARNINGS]], class_="warnings")


def _figures(known: Sequence[tuple[Source, Report]]) -> Markup | None:
    """What evaluators measured beside the accuracy, a figure a line."""
    rows = [(source, row) for source, _, row in _all_rows(known) if row.stats]
    names = list(dict.fromkeys(name for _, row in rows for name in row.stats))[:_ROWS]
    if not names:
        return None
    header = ["figure", *(f"{source.name}: {row_title(row.name)}, {row.network}" for source, row in rows)]
    cells = [[name, *(figure_text(row.stats.get(name)) for _, row in rows)] for name in names]
    return table("Further figures: mean ± standard deviation [95 % interval]", header, cells, range(1, len(header)))


def _values(known: Sequence[tuple[Source, Report]]) -> Markup:
    header = ["trained on", "network", "set", "network number", "value", "last epoch", "training accuracy"]
    header += ["training loss", "steps", "images seen", "seed of the network"]
    rows: list[list[Node]] = [
        [
            f"{source.name}: {row_title(row.name)}", row.network, run.set, run.net,
            "diverged" if run.diverged else metric_text(run.metric, run.value),
            metric_text("accuracy", run.last),
            "-" if run.train_acc is None else metric_text("accuracy", run.train_acc),
            "-" if run.train_loss is None else f"{run.train_loss:.4g}", count(run.steps), count(run.images_seen),
            run.seed,
        ]
        for source, _, row in _all_rows(known)
        for run in row.runs
    ]  # fmt: skip
    return table("Each network, trained once and tested once", header, rows[:_ROWS], numeric=range(2, 11))


def _spread(known: Sequence[tuple[Source, Report]]) -> Markup:
    header = ["trained on", "mean", "all values", "networks of one set", "sets", "95 % interval of the mean", "over"]
    rows = []
    for source, _, row in _all_rows(known):
        stat, metric = row.stat, row.stat.metric
        three = [v if isinstance(v, str) else metric_text(metric, v) for v in (stat.pooled, stat.within, stat.between)]
        interval = stat.ci if isinstance(stat.ci, str) else " to ".join(metric_text(metric, v) for v in stat.ci)
        name = f"{source.name}: {row_title(row.name)}"
        rows.append([name, metric_text(metric, stat.mean), *three, interval, stat.ci_basis])
    return table("Standard deviations between values, and of what", header, rows, numeric=range(1, 6))


def _classes(known: Sequence[tuple[Source, Report]]) -> Markup | None:
    columns = [(source, row) for source, _, row in _all_rows(known) if row.per_class]
    if not columns:
        return None
    number = min(_CLASSES, max(len(row.per_class) for _, row in columns))
    names = next((source.classes for source, row in columns if len(source.classes) >= number), ())
    rows = []
    for c in range(number):
        values = [row.per_class[c] if c < len(row.per_class) else None for _, row in columns]
        cells = ["-" if value is None else metric_text("accuracy", value) for value in values]
        rows.append([names[c] if names else str(c), *cells])
    header = ["class", *(f"{source.name}: {row_title(row.name)}" for source, row in columns)]
    return table("Accuracy of each class, mean over the networks", header, rows, numeric=range(1, len(header)))
