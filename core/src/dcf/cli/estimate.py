"""`dcf estimate`: what a run will take, before it starts."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dcf.cli.condense import condense, request_of
from dcf.cli.console import clean, print_json, stdout
from dcf.estimate.units import duration_text, parse_size, size_text
from dcf.sizes import count

if TYPE_CHECKING:
    from dcf.estimate import Estimate

__all__ = ["add_to", "estimate", "estimate_table"]

#: Options of `condense` that say where a run is kept rather than what it is.
_NOT_OURS = ("out", "force", "dry_run", "json")

_Limit = Annotated[
    str | None,
    typer.Option("--memory-limit", metavar="SIZE", help="refuse a run that needs more, such as 4GiB"),
]
_Json = Annotated[bool, typer.Option("--json", metavar="", help="write one JSON object to stdout and nothing else")]


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(estimate)


def estimate(*, memory_limit: str | None, json: bool, **options: Any) -> None:
    """Say what a run of dcf condense with these options will take: time, memory, bytes.

    Its first steps are run in a process of their own and thrown away; nothing of it is written.
    """
    limit = None if memory_limit is None else parse_size(memory_limit)
    request = request_of(options)
    from dcf.cli.progress import RunProgress
    from dcf.estimate import DoesNotFitError, estimate_request

    with RunProgress() as progress:
        try:
            found = estimate_request(request, limit, progress.stage)
        except DoesNotFitError as refused:
            if json:
                print_json(refused.to_json())
            elif refused.estimate is not None:
                _show(refused.estimate)
            raise
    if json:
        print_json(found.to_json())
    else:
        _show(found)


def _options() -> list[inspect.Parameter]:
    """The options of the command: those of `condense` that decide a run, and its own."""
    shared = inspect.signature(condense, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        *(p.replace(kind=keyword) for p in shared if p.name not in _NOT_OURS),
        inspect.Parameter("memory_limit", keyword, default=None, annotation=_Limit),
        inspect.Parameter("json", keyword, default=False, annotation=_Json),
    ]


# The parser reads the options from here: written out they would be a second copy of a long list.
estimate.__signature__ = inspect.Signature(_options(), return_annotation=None)  # type: ignore[attr-defined]
estimate.__annotations__ = {p.name: p.annotation for p in _options()}


def _show(found: Estimate) -> None:
    stdout().print(estimate_table(found))
    stdout().print(f"{found.basis} ({clean(found.device)})")


def estimate_table(found: Estimate) -> Table:
    """One line for each part of a run.

    Args:
        found: What was measured.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    table.add_column("estimate", justify="right", no_wrap=True)
    table.add_column("of which")
    for cells in (*_times(found), *_sizes(found)):
        table.add_row(*cells)
    return table


def _times(found: Estimate) -> list[tuple[str, str, str]]:
    each, (least, most) = found.seconds_per_iteration, found.spread
    facts = [f"{duration_text(each)} each" if found.iterations else ""]
    facts += [f"from {duration_text(least)} to {duration_text(most)}"] if most > 1.2 * least else []
    facts += [f"{count(found.updates)} updates in each"] if found.updates > 1 else []
    facts += [f"{duration_text(found.warm_up)} to warm up"] if found.warm_up > 0.05 * found.condensing_seconds else []
    made = [("compiled kernels", duration_text(found.kernels), "each once, and kept")] if found.kernels else []
    rows = [f"{row.networks} x {row.name} {duration_text(row.seconds / row.networks)}" for row in found.evaluation]
    return [
        ("start, loading the data", duration_text(found.start), ""),
        ("preparation", duration_text(found.preparation + found.initialisation), ""),
        *made,
        (
            f"{count(found.iterations)} iterations",
            duration_text(found.condensing_seconds),
            ", ".join(filter(None, facts)),
        ),
        ("evaluation", duration_text(found.evaluation_seconds), ", ".join(rows) or "none"),
        ("total", duration_text(found.seconds), ""),
    ]


def _sizes(found: Estimate) -> list[tuple[str, str, str]]:
    room = "" if found.room_bytes is None else f"; {_room(found)}"
    return [
        ("memory at its peak", size_text(found.peak_bytes), f"{size_text(found.baseline_bytes)} before the work{room}"),
        ("stored", size_text(found.stored_bytes), f"{count(found.stored_bytes)} bytes"),
        ("a checkpoint", size_text(found.checkpoint_bytes), "two are kept"),
    ]


def _room(found: Estimate) -> str:
    what = "available" if found.limit_bytes is None else "allowed"
    return f"{size_text(found.room_bytes or 0)} {what}"
