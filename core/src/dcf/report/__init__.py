"""One static page about runs and condensed sets: results, images, curves, sizes, settings, how to use them again.

The page is a function of what it is about: no date, no network, no script. Whatever files say is shown as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcf.errors import UsageError
from dcf.files import atomic_write
from dcf.report.page import page
from dcf.report.source import Source, read_source

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = ["report_html", "write_report"]


def report_html(sources: Sequence[Path | str | SyntheticSet], views: int | None = None) -> str:
    """The page about one or several runs, files or sets, side by side.

    Args:
        sources: Run directories (finished or not), files of sets, or sets in memory.
        views: Images a class to show at most; by default ten, and fewer where the page would grow out of hand.

    Raises:
        UsageError: When there is nothing to report, or no image to be shown.
        RunError: When a directory holds neither a run nor a set.
        FormatError: When a file is damaged, or no condensed set.
    """
    if isinstance(sources, str) or not sources:
        raise UsageError(f"expected a list of at least one run or file to report on, got {sources!r}")
    if views is not None and views < 1:
        raise UsageError(f"views: expected an int >= 1, got {views}")
    read = [read_source(one) if isinstance(one, (str, Path)) else Source.of(one) for one in sources]
    from dcf.report.pictures import gallery

    return page(read, [gallery(source, views) for source in read])


def write_report(sources: Sequence[Path | str | SyntheticSet], out: Path | str, views: int | None = None) -> None:
    """Write the page to a file, whole or not at all; as `report_html`.

    Raises:
        RunError: When it cannot be written.
    """
    atomic_write(out, report_html(sources, views))
