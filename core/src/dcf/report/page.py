"""The page: its sections in order, the style sheet, and what keeps it from doing anything. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Final

from dcf import __version__
from dcf.report import facts
from dcf.report.chart import STYLES, chart, words
from dcf.report.markup import Markup, element, joined, table
from dcf.report.results import results
from dcf.report.source import Source
from dcf.texts import clean

if TYPE_CHECKING:
    from dcf.report.pictures import Gallery, Strip

__all__ = ["page"]

#: Nothing is loaded and nothing runs, whatever stands in the page.
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(sources: Sequence[Source], galleries: Sequence[Gallery]) -> str:
    """The whole page.

    Args:
        sources: What it is about.
        galleries: The images of each.
    """
    title = _title(sources)
    sections = {
        "Results": results(sources),
        "Images": _images(sources, galleries),
        "Curves": _curves(sources),
        "Storage": facts.storage(sources),
        "Settings": facts.settings(sources),
        "Use it again": facts.usage(sources),
        "Environment and licence": facts.environment(sources),
    }
    head = element("head", *_head(title))
    body = element(
        "body",
        element("header", element("h1", title), _lead(sources), _contents(list(sections))),
        element("main", [_section(name, contents) for name, contents in sections.items()]),
        element("footer", element("p", f"Written by dcf report, dcf {__version__}.")),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _title(sources: Sequence[Source]) -> str:
    if len(sources) > 1:
        return f"{len(sources)} condensed sets side by side"
    return f"Condensed set {clean(sources[0].name, 120)}"


def _head(title: str) -> list[Markup]:
    style = resources.files("dcf.report").joinpath("page.css").read_text("utf-8")
    return [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        Markup(f"<style>\n{style}</style>"),
    ]


def _lead(sources: Sequence[Source]) -> list[Markup]:
    return [element("p", _sentence(source, len(sources) > 1)) for source in sources]


def _sentence(source: Source, several: bool) -> str:
    specs = {role: clean(text, 200) for role, text in source.specs.items()}
    words = [specs.get("data", "unknown data")]
    words += [f"{role} {specs[role]}" for role in ("matcher", "augment") if role in specs]
    words += [f"stored as {specs['param']}"] if "param" in specs else []
    notes = " ".join(source.notes)
    return f"{f'{source.name}: ' if several else ''}{', '.join(words)}.{f' {notes}' if notes else ''}"


def _contents(names: Sequence[str]) -> Markup:
    links = [element("li", element("a", name, href=f"#{_id(name)}")) for name in names]
    return element("nav", element("ul", links), aria_label="Contents")


def _section(name: str, contents: Markup) -> Markup:
    return element(
        "section", element("h2", name, id=_id(name)), contents or element("p", "None."), aria_labelledby=_id(name)
    )


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


# --- images --------------------------------------------------------------------------------------


def _images(sources: Sequence[Source], galleries: Sequence[Gallery]) -> Markup:
    """One table for sources of the same classes: a class a row, a source a column."""
    groups: dict[tuple[str, ...], list[tuple[Source, Gallery]]] = {}
    for source, gallery in zip(sources, galleries, strict=True):
        if gallery.decoded:
            groups.setdefault(source.classes, []).append((source, gallery))
    notes = [
        element("p", f"{source.name}: {gallery.note}" if len(sources) > 1 else gallery.note)
        for source, gallery in zip(sources, galleries, strict=True)
        if gallery.note
    ]
    return joined(notes, [_class_table(classes, group) for classes, group in groups.items()])


def _class_table(classes: Sequence[str], group: Sequence[tuple[Source, Gallery]]) -> Markup:
    columns: list[tuple[str, dict[int, Strip]]] = []
    shared = []
    for source, gallery in group:
        kept = bool(gallery.stored or gallery.shared)
        columns += [(f"{source.name}: stored", gallery.stored)] if gallery.stored else []
        columns.append((f"{source.name}: decoded" if kept else source.name, gallery.decoded))
        if gallery.shared is not None:
            name = f"{source.name}: stored, shared by all classes"
            shared.append(element("figure", _image(gallery.shared, name), element("figcaption", name)))
    numbers = sorted({number for _, strips in columns for number in strips})
    rows = [
        [classes[number], *(_strip_cell(strips.get(number), classes[number], name) for name, strips in columns)]
        for number in numbers
    ]
    total = max(gallery.classes for _, gallery in group)
    shown = "" if len(numbers) == total else f", {len(numbers):,} of {total:,} classes"
    caption = f"Images as pixels, one class a row{shown}; values outside of [0, 1] are cut off"
    return joined(table(caption, ["class", *(name for name, _ in columns)], rows, class_="images"), shared)


def _strip_cell(strip: Strip | None, name: str, column: str) -> Markup:
    if strip is None:
        return element("td", "-")
    more = element("span", f"{strip.shown:,} of {strip.of:,}", class_="note") if strip.shown < strip.of else None
    return element("td", _image(strip, f"class {clean(name)}, {column}"), more)


def _image(strip: Strip, what: str) -> Markup:
    alt = f"{strip.shown:,} of {strip.of:,} images: {what}"
    return element("img", src=Markup(strip.uri), alt=alt, width=strip.width, height=strip.height)


# --- curves --------------------------------------------------------------------------------------


def _curves(sources: Sequence[Source]) -> Markup:
    """One picture for each metric, with all runs that have it."""
    names = list(dict.fromkeys(name for source in sources for name in source.curves.by_name))
    figures = [_figure(name, number, sources) for number, name in enumerate(names)]
    left_out = sum(source.curves.left_out for source in sources)
    note = element("p", f"{left_out:,} further metrics are not drawn.", class_="note") if left_out else None
    return joined(figures or element("p", "No metrics were recorded."), note)


def _figure(name: str, number: int, sources: Sequence[Source]) -> Markup:
    having = [(at, source) for at, source in enumerate(sources) if name in source.curves.by_name]
    curves = {f"{at + 1}. {clean(source.name)}": source.curves.by_name[name] for at, source in having}
    legend = [
        element("li", element("span", class_=f"key s{at % STYLES}", aria_hidden="true"), f" {label}: {words(curve)}")
        for (at, _), (label, curve) in zip(having, curves.items(), strict=True)
    ]
    drawn = chart(name, curves, [at for at, _ in having], f"curve-{number}")
    return element("figure", element("h3", name), drawn, element("figcaption", element("ul", legend)))
