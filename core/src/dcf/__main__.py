"""`python -m dcf` is the console script `dcf`."""

from __future__ import annotations

import sys

from dcf.cli import main

if __name__ == "__main__":
    sys.exit(main())
