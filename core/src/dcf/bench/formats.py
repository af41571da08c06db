"""Tables as text: Markdown, CSV and LaTeX. Torch-free."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dcf.bench.table import Sheet, Shown

__all__ = ["csv_text", "latex_text", "markdown_text"]

_SPECIAL: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "\n": " ",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def markdown_text(sheet: Sheet) -> str:
    """A pipe table, its notes below."""
    rule = ["---:" if name in sheet.numeric else "---" for name in sheet.columns]
    lines = [_pipes(map(_markdown, sheet.columns)), _pipes(rule), *(_pipes(map(_markdown, row)) for row in sheet.rows)]
    return "\n".join([*lines, "", *(f"- {_markdown(note)}" for note in sheet.notes)]) + "\n"


def _pipes(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(text.split()))


def latex_text(sheet: Sheet) -> str:
    """A `tabular` of the package booktabs, its notes as comments."""
    align = "".join("r" if name in sheet.numeric else "l" for name in sheet.columns)
    body = [_latex_line(row) for row in sheet.rows]
    notes = [f"% {' '.join(note.split())}" for note in sheet.notes]
    return "\n".join([
        *notes, rf"\begin{{tabular}}{{{align}}}", r"\toprule", _latex_line(sheet.columns), r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}",
    ]) + "\n"  # fmt: skip


def _latex_line(cells: Sequence[str]) -> str:
    line = " & ".join("".join(_SPECIAL.get(c, c) for c in cell) for cell in cells) + r" \\"
    # Right behind a line break these two would be taken for its arguments.
    return f"{{}}{line}" if line.startswith(("[", "*")) else line


#: Columns of the CSV: everything, as numbers, whatever a table for people would show.
_CSV: Final[Mapping[str, Callable[[Shown], Any]]] = {
    "method": lambda s: s.label,
    "role": lambda s: s.row.role,
    "data": lambda s: s.row.data_name,
    "budget": lambda s: s.row.budget,
    "sweep": lambda s: " ".join(f"{k}={v}" for k, v in s.row.sweep.items()),
    "mean": lambda s: s.row.stat and s.row.stat.mean,
    "pooled_std": lambda s: s.row.stat and s.row.stat.pooled,
    "within_std": lambda s: s.row.stat and s.row.stat.within,
    "between_std": lambda s: s.row.stat and s.row.stat.between,
    "ci_low": lambda s: _edge(s.row.stat and s.row.stat.ci, 0),
    "ci_high": lambda s: _edge(s.row.stat and s.row.stat.ci, 1),
    "ci_basis": lambda s: s.row.stat and s.row.stat.ci_basis,
    "sets": lambda s: s.row.stat and s.row.stat.n_sets,
    "nets": lambda s: s.row.stat and s.row.stat.n_nets,
    "vs_random": lambda s: s.random and s.random.mean,
    "vs_random_low": lambda s: _edge(s.random and s.random.interval, 0),
    "vs_random_high": lambda s: _edge(s.random and s.random.interval, 1),
    "floats": lambda s: s.row.floats,
    "bytes": lambda s: s.row.bytes,
    "images_a_class": lambda s: s.row.views,
    "iterations": lambda s: s.row.iterations,
    "matcher": lambda s: s.row.specs.get("matcher"),
    "param": lambda s: s.row.specs.get("param"),
    "init": lambda s: s.row.specs.get("init"),
    "augment_in_training": lambda s: s.row.augment,
    "network": lambda s: s.row.network,
    "protocol": lambda s: s.row.protocol,
    "protocol_hash": lambda s: s.row.protocol_hash,
    "comparable": lambda s: "yes" if s.bench.comparable else "no",
    "bench": lambda s: s.bench.name,
    "note": lambda s: s.row.note,
}


def csv_text(shown: Sequence[Shown]) -> str:
    """One line a row with every figure; accuracies as fractions in [0, 1], nothing where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV)
    writer.writerows([_safe(read(one)) for read in _CSV.values()] for one in shown)
    return out.getvalue()


def _safe(value: Any) -> Any:
    """A value that a spreadsheet does not take for a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return "" if value is None else value


def _edge(interval: Any, at: int) -> Any:
    return interval[at] if isinstance(interval, tuple) else interval
