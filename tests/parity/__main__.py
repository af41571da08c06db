"""`python -m tests.parity FILE...`: recompute recorded cases with dcf, one line each; exit status 1 if any is bad."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.parity.compare import check

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdict of each file; return 0 if all pass, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a recorded case, .safetensors")
    passed = True
    for path in parser.parse_args(arguments).files:
        verdict = check(path)
        passed = passed and verdict.ok
        print(verdict.line(), flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
