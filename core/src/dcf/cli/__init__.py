"""The command line. Importing it, its help, its listings and its usage errors stay free of torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see `dcf.cli.entry.main`."""
    try:
        from dcf.cli.entry import main as run
    except KeyboardInterrupt:  # within the time that importing takes
        sys.stderr.write("error: interrupted\n")
        return 130
    return run(argv)
