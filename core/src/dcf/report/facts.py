"""Sizes, settings, versions, licences and commands, source beside source. Torch-free."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dcf.errors import SpecError
from dcf.report.markup import Markup, Node, code_block, element, joined, table
from dcf.report.source import Source
from dcf.runconfig import SPEC_ROLES
from dcf.sizes import count, size_texts
from dcf.spec import parse
from dcf.texts import clean

__all__ = ["environment", "settings", "storage", "usage"]

#: Lines of a table at most, and tensors of one set.
_LINES, _TENSORS = 200, 200
_SIZES: Final = ("floats", "bytes", "store", "views", "label_bytes", "space_bytes", "payload_bytes")
#: Settings of a run that have an option of their own, in the order they are written in.
_OPTIONS: Final = (
    *("ipc", "budget", "store", "iterations", "lr", "momentum", "clip", "class_chunk", "seed", "precision"),
)


def side_by_side(caption: str, sources: Sequence[Source], columns: Sequence[Mapping[str, Any]]) -> Markup | None:
    """A table with one line for each key and one column for each source; lines that differ are marked."""
    keys = list(dict.fromkeys(key for column in columns for key in column))[:_LINES]
    if not keys:
        return None
    rows = []
    for key in keys:
        cells = [_text(column.get(key)) for column in columns]
        # Where one does not have it at all, there is nothing that could differ.
        differs = len(set(cells)) > 1 and all(key in column for column in columns)
        mark = element("span", "differs", class_="differs") if differs else None
        rows.append([joined(clean(key, 80), " " if differs else None, mark), *cells])
    return table(caption, ["", *(source.name for source in sources)], rows)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 600)


# --- sizes ---------------------------------------------------------------------------------------


def storage(sources: Sequence[Source]) -> Markup:
    """What the sets cost."""
    known = [source for source in sources if isinstance(source.header.get("storage"), dict)]
    if not known:
        return element("p", "Nothing is stored yet.")
    columns = [_sizes(source.header["storage"]) for source in known]
    tensors = [
        [source.name, *_tensor(entry)]
        for source in known
        for entry in _entries(source.header["storage"].get("tensors"))
    ]
    header = ["run or file", "tensor", "shape", "type", "bytes"]
    listed = table("Stored tensors that count against the budget", header, tensors, numeric=[4]) if tensors else None
    return joined(side_by_side("What a set costs, to the byte", known, columns), listed)


def _sizes(entry: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: entry[key] if key == "store" else count(entry[key]) for key in _SIZES if key in entry}
    return {key.replace("_", " "): value for key, value in {**plain, **size_texts(entry)}.items()}


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value[:_TENSORS] if isinstance(one, dict)] if isinstance(value, list) else []


def _tensor(entry: Mapping[str, Any]) -> list[str]:
    shape = entry.get("shape")
    text = " x ".join(clean(n, 12) for n in shape[:8]) if isinstance(shape, list) else "-"
    return [clean(entry.get("name")), text, clean(entry.get("dtype")), count(entry.get("bytes"))]


# --- settings ------------------------------------------------------------------------------------


def settings(sources: Sequence[Source]) -> Markup:
    """Components and settings; options of components as they were in force."""
    options = [dict(_component_options(source)) for source in sources]
    return joined(
        side_by_side("Components", sources, [source.specs for source in sources]),
        side_by_side("Settings of the run", sources, [source.settings for source in sources]),
        side_by_side("Every option of the components, defaults included", sources, options),
    )


def _component_options(source: Source) -> Iterable[tuple[str, Any]]:
    for role, parts in source.header.get("options", {}).items():
        for number, part in enumerate(parts if isinstance(parts, list) else []):
            names = _names(source.specs.get(role, ""))
            label = names[number] if number < len(names) else str(number + 1)
            for key, value in part.items() if isinstance(part, dict) else ():
                yield f"{role} {label}: {key}", value


def _names(spec: str) -> list[str]:
    try:
        return [part.name for part in parse(spec)]
    except SpecError:
        return []


# --- where it was made ---------------------------------------------------------------------------


def environment(sources: Sequence[Source]) -> Markup:
    """Machine, versions, data and their licence."""
    return joined(
        side_by_side("Machine and versions", sources, [_versions(source) for source in sources]),
        side_by_side("Data and licence", sources, [_data(source) for source in sources]),
    )


def _versions(source: Source) -> dict[str, Any]:
    made = dict(source.header.get("environment", {}))
    judged = dict(source.report.env) if source.report is not None else {}
    changed = {f"{key} (evaluation)": value for key, value in judged.items() if made.get(key) != value}
    return {**made, **changed, **source.header.get("packages", {})}


def _data(source: Source) -> dict[str, Any]:
    data = source.header.get("data", {})
    found = {"data": source.specs.get("data"), **{f"data: {key}": value for key, value in data.items()}}
    shape, space = source.header.get("shape"), source.header.get("space")
    found |= {"shape": " x ".join(clean(n, 12) for n in shape[:3])} if isinstance(shape, list) else {}
    found |= {"value space": space} if isinstance(space, dict) else {}
    found |= {"classes": f"{len(source.classes):,}"} if source.classes else {}
    return {**found, "licence of the source data": source.header.get("license") or "not stated"}


# --- using it again ------------------------------------------------------------------------------


def usage(sources: Sequence[Source]) -> Markup:
    """Commands and code for each source."""
    return joined([_usage(source) for source in sources])


def _usage(source: Source) -> list[Node]:
    made: list[Node] = [element("h3", source.name)] if source.file or source.directory else []
    if source.directory is not None and source.notes:
        made += [element("p", "Go on with it, or read what it came to:"), _shell("dcf", "resume", source.directory)]
    if source.file is not None:
        commands = [("evaluate", source.file), ("evaluate", source.file, "--evaluator", "cross-arch")]
        made += [element("p", "Evaluate it again, as its file says, and on other networks:")]
        made += [code_block(" ".join(_words("dcf", *words)) for words in commands)]
        made += [element("p", "Train on it in Python:"), code_block(_python(source.file))]
    again = _condense(source)
    if again:
        made += [element("p", "Make another with the same settings:"), code_block([again])]
    return made


def _shell(*words: Any) -> Markup:
    return code_block([" ".join(_words(*words))])


def _words(*words: Any) -> list[str]:
    """Words as a shell takes them; a path that looks like an option stays a path."""
    return [shlex.quote(f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w)) for w in words]


def _python(file: Path) -> list[str]:
    return [
        "import dcf",
        "",
        f"condensed = dcf.load({str(file)!r})",
        "images, labels = condensed.tensors()     # in the value space of the data",
        "pixels = condensed.space.decode(images)  # in [0, 1]",
    ]


def _condense(source: Source) -> str:
    """The command that makes such a set; none where code would have to be named that a file must not choose."""
    specs = {role: text for role, text in source.specs.items() if role in SPEC_ROLES}
    if not {"data", "matcher", "param"} <= set(specs) or any(
        "python" in _names(t) or not _names(t) for t in specs.values()
    ):
        return ""
    words: list[Any] = ["dcf", "condense"]
    for role, text in specs.items():
        words += [f"--{role}", text]
    values = source.settings
    for key in _OPTIONS:
        if isinstance(values.get(key), (str, int, float)) and not isinstance(values[key], bool):
            words += [f"--{key.replace('_', '-')}", str(values[key])]
    words += ["--protocol", source.specs["protocol"]] if "protocol" in source.specs else []
    for key, mark in (("protocol_set", "protocol"), ("optim", "optim")):
        words += _changes(values.get(key), mark)
    return " ".join(_words(*words))


def _changes(values: Any, mark: str) -> list[str]:
    made: list[str] = []
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            made += _changes(value, f"{mark}.{key}")
        elif value is not None:
            made += ["--set", f"{mark}.{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return made
