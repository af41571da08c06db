"""`dcf list-plugins --matrix`: what composes with what, as the installed packages have tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import typer
from rich.table import Table

from dcf.cli.console import clean, print_json, stdout
from dcf.compositions import Cell, Status, cells

__all__ = ["matrix_table", "show_matrix"]

_MEANING: Final = {
    Status.TESTED: "a recipe is made of it",
    Status.RUNS: "one outer iteration was run on tiny data",
    Status.IMPOSSIBLE: "refused before a run starts",
    Status.UNTESTED: "no installed package has tried it",
}


def show_matrix(as_json: bool) -> None:
    """Every composition of what is installed, on stdout."""
    found = cells()
    counts = Counter(cell.status for cell in found)
    if as_json:
        rows = [
            {
                "matcher": c.matcher,
                "param": c.param,
                "augmenter": c.augmenter,
                "status": str(c.status),
                "reason": c.reason,
                "distribution": c.distribution,
            }
            for c in found
        ]
        print_json({"counts": {str(status): counts[status] for status in Status}, "cells": rows})
        return
    table, reasons = matrix_table(found)
    stdout().print(table)
    for status in Status:
        if counts[status]:
            typer.echo(f"{status}: {counts[status]} of {len(found)}, {_MEANING[status]}")
    for number, reason in enumerate(reasons, 1):
        typer.echo(f"no ({number}): {clean(reason, 400)}")


def matrix_table(found: Sequence[Cell]) -> tuple[Table, list[str]]:
    """One line for each matcher and parameterization, one column for each augmenter; and the reasons that it names."""
    reasons = list(dict.fromkeys(cell.reason for cell in found if cell.status is Status.IMPOSSIBLE))
    augmenters = list(dict.fromkeys(cell.augmenter for cell in found))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("matcher", "parameterization", *augmenters):
        table.add_column(header, no_wrap=True)
    by_key = {cell.key: cell for cell in found}
    for matcher, param in dict.fromkeys((cell.matcher, cell.param) for cell in found):
        row = [by_key[matcher, param, augmenter] for augmenter in augmenters]
        table.add_row(matcher, param, *(_mark(cell, reasons) for cell in row))
    return table, reasons


def _mark(cell: Cell, reasons: Sequence[str]) -> str:
    if cell.status is Status.IMPOSSIBLE:
        return f"no ({reasons.index(cell.reason) + 1})"
    return "-" if cell.status is Status.UNTESTED else str(cell.status)
