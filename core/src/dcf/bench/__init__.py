"""`dcf bench`: methods x budgets x datasets x sets x networks, cell by cell.

Names are imported on first use, so that settings, tables and files of a bench stay free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcf.bench.model import Bench, BenchRow, read_bench
    from dcf.bench.run import BenchOutcome, run_bench
    from dcf.bench.settings import BenchSettings, read_settings

__all__ = ["Bench", "BenchOutcome", "BenchRow", "BenchSettings", "read_bench", "read_settings", "run_bench"]

_LAZY = {
    "Bench": "model",
    "BenchOutcome": "run",
    "BenchRow": "model",
    "BenchSettings": "settings",
    "read_bench": "model",
    "read_settings": "settings",
    "run_bench": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dcf.bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dcf.bench.{_LAZY[name]}"), name)
