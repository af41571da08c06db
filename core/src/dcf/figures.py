"""Figures as files: PNG or SVG, the same for the same numbers. Needs matplotlib, imported on use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from dcf.errors import PluginError, RunError, UsageError
from dcf.texts import clean

__all__ = ["RC", "as_label", "require_form", "require_matplotlib", "write_figure"]

#: Settings of matplotlib with which equal figures give equal files.
RC: Final[dict[Any, Any]] = {"svg.hashsalt": "dcf", "svg.fonttype": "path"}
_FORMS: Final = (".png", ".svg")


def require_matplotlib() -> None:
    """Make sure that plots can be drawn.

    Raises:
        PluginError: When matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PluginError("plots need matplotlib, which is not installed: pip install 'dcf-core[plot]'") from None


def require_form(out: Path) -> None:
    """Make sure that a file is of a form that plots are written in.

    Raises:
        UsageError: When it is not.
    """
    if out.suffix.lower() not in _FORMS:
        raise UsageError(f"-o {out}: expected a file ending in {' or '.join(_FORMS)}")


def as_label(text: str) -> str:
    """A text that matplotlib shows as it is, on one line; control characters, which fonts do not have, become `?`.

    Two dollars would make a formula of what is between them, and a legend leaves out what begins with an underscore.

    Args:
        text: A label, a title, or the name of a tick.
    """
    plain = clean(" ".join(text.split()), len(text)).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def write_figure(figure: Any, out: Path) -> None:
    """Write a matplotlib figure; drawn under `RC`, equal figures give an equal SVG.

    Args:
        figure: A `matplotlib.figure.Figure`.
        out: A file ending in .png or .svg.

    Raises:
        RunError: When it cannot be written.
    """
    form = out.suffix.lower().removeprefix(".")
    # Without the date of today and the version of matplotlib.
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    try:
        figure.savefig(out, format=form, dpi=150, metadata=metadata)
    except OSError as error:
        raise RunError(f"cannot write '{out}': {error.strerror or error}") from None
