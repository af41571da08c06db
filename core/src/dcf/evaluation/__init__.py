"""Evaluating synthetic sets: protocols, statistics, reports, evaluators and the rows they are compared with.

Names are imported on first use, so that protocols and reports stay free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcf.evaluation.baselines import random_images_row, random_row, random_selection, whole_row
    from dcf.evaluation.context import EvalContext, Findings
    from dcf.evaluation.fit import Material, Trial, material_of, set_row, train_row
    from dcf.evaluation.protocol import Cost, Protocol, cost, load_protocol
    from dcf.evaluation.report import Report, Row, Run
    from dcf.evaluation.statistics import Stat, summarize

__all__ = [
    "Cost",
    "EvalContext",
    "Findings",
    "Material",
    "Protocol",
    "Report",
    "Row",
    "Run",
    "Stat",
    "Trial",
    "cost",
    "load_protocol",
    "material_of",
    "random_images_row",
    "random_row",
    "random_selection",
    "set_row",
    "summarize",
    "train_row",
    "whole_row",
]

_LAZY = {
    "Cost": "protocol",
    "EvalContext": "context",
    "Findings": "context",
    "Material": "fit",
    "Protocol": "protocol",
    "Report": "report",
    "Row": "report",
    "Run": "report",
    "Stat": "statistics",
    "Trial": "fit",
    "cost": "protocol",
    "load_protocol": "protocol",
    "material_of": "fit",
    "random_images_row": "baselines",
    "random_row": "baselines",
    "random_selection": "baselines",
    "set_row": "fit",
    "summarize": "statistics",
    "train_row": "fit",
    "whole_row": "baselines",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dcf.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dcf.evaluation.{_LAZY[name]}"), name)
