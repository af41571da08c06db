"""The command line. Importing it, its help, its listings and its usage errors stay free of torch."""

from __future__ import annotations

from dcf.cli.entry import main

__all__ = ["main"]
