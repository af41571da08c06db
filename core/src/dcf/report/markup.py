"""HTML that is escaped by the way it is built: text becomes markup only through `element`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from dcf.texts import clean

__all__ = ["Markup", "Node", "code_block", "element", "joined", "table"]

#: Characters of one text at most; whatever is longer is no text that a person reads.
_LONGEST: Final = 2000
#: Elements without an end tag; none of SVG, whose elements all have one.
_VOID: Final = frozenset({"img", "meta"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Node: TypeAlias = "Markup | str | int | float | Iterable[Node] | None"


def element(name: str, /, *children: Node, **attributes: str | int | float | bool | None) -> Markup:
    """One HTML or SVG element.

    Args:
        name: Of the element.
        children: Text, which is escaped and made safe, or markup; of nested lists, each; None is left out.
        attributes: By name, `_` standing for `-` and a `_` at the end for nothing (`class_`); None and False are left
            out, True stands alone. Markup is taken as it is.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        parts.append(label if value is True else f'{label}="{_attribute(value)}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if name in _VOID else f"{start}{joined(*children)}</{name}>")


def joined(*nodes: Node) -> Markup:
    """Nodes one after the other."""
    return Markup("".join(_flat(nodes)))


def code_block(lines: Iterable[str], limit: int = 5000) -> Markup:
    """Lines to be copied as they are, one click selecting all of them."""
    text = "\n".join(_escaped(line, limit) for line in lines)
    return element("pre", element("code", Markup(text)), tabindex="0")


def table(
    caption: str, header: Iterable[Node], rows: Iterable[Iterable[Node]], numeric: Iterable[int] = (), class_: str = ""
) -> Markup:
    """A table whose first column names its rows; it scrolls by itself where it is wide.

    Args:
        caption: What it shows.
        header: A cell for each column.
        rows: Cells; a `<td>` or `<th>` element is taken as it is.
        numeric: Columns whose cells stand to the right.
        class_: CSS classes.
    """
    right = set(numeric)
    head = element("tr", [element("th", cell, scope="col", class_=_side(n, right)) for n, cell in enumerate(header)])
    body = [element("tr", [_cell(n, cell, right) for n, cell in enumerate(row)]) for row in rows]
    made = element(
        "table", element("caption", caption), element("thead", head), element("tbody", body), class_=class_ or None
    )
    return element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _cell(number: int, cell: Node, right: set[int]) -> Markup:
    if isinstance(cell, Markup) and cell.startswith(("<td", "<th")):
        return cell
    if number == 0:
        return element("th", cell, scope="row")
    return element("td", cell, class_=_side(number, right))


def _side(number: int, right: set[int]) -> str | None:
    return "n" if number in right else None


def _flat(nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Markup):
            yield node
        elif isinstance(node, str):
            yield _escaped(node, _LONGEST)
        elif isinstance(node, (int, float)):
            yield _escaped(str(node), _LONGEST)
        elif node is not None:
            yield from _flat(node)


def _attribute(value: str | float) -> str:
    # Markup stays as it is: a picture is megabytes of it.
    return value if isinstance(value, Markup) else _escaped(str(value), None)


def _escaped(text: str, limit: int | None) -> str:
    return html.escape(clean(text, len(text) if limit is None else limit))
