"""dcf condenses a large image dataset into a tiny synthetic one that trains a network almost as well.

Public names are listed in `__all__` and imported on first use, so that `import dcf` stays free of torch and of
what only options need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dcf.components import Component, Kind
from dcf.errors import (
    BudgetError,
    ConfigError,
    DataError,
    DcfError,
    EvaluationError,
    FormatError,
    NonFiniteError,
    PluginError,
    RunError,
    SpecError,
    UsageError,
)
from dcf.hookspecs import hookimpl

if TYPE_CHECKING:
    from dcf.assembly import append, merge, slice_set
    from dcf.augmenter import Augmenter
    from dcf.auxiliary import AuxiliaryObjective
    from dcf.config import Config
    from dcf.context import Context
    from dcf.evaluator import Evaluator
    from dcf.exchange.exporting import export_set
    from dcf.exchange.importing import import_set
    from dcf.matcher import Matcher
    from dcf.networks.base import Network, NetworkFactory, NetworkState
    from dcf.parameterization import Parameterization
    from dcf.run import condense, evaluate
    from dcf.selector import Selector
    from dcf.space import ValueSpace
    from dcf.synthetic import SyntheticSet, load
    from dcf.types import Batch, DataSpec, Hints, MatcherDefaults, ParamGroup, Program, Step

__version__ = "0.1.0"

__all__ = [
    "Augmenter",
    "AuxiliaryObjective",
    "Batch",
    "BudgetError",
    "Component",
    "Config",
    "ConfigError",
    "Context",
    "DataError",
    "DataSpec",
    "DcfError",
    "EvaluationError",
    "Evaluator",
    "FormatError",
    "Hints",
    "Kind",
    "Matcher",
    "MatcherDefaults",
    "Network",
    "NetworkFactory",
    "NetworkState",
    "NonFiniteError",
    "ParamGroup",
    "Parameterization",
    "PluginError",
    "Program",
    "RunError",
    "Selector",
    "SpecError",
    "Step",
    "SyntheticSet",
    "UsageError",
    "ValueSpace",
    "__version__",
    "append",
    "condense",
    "evaluate",
    "export_set",
    "hookimpl",
    "import_set",
    "load",
    "merge",
    "slice_set",
]

_LAZY = {
    "Augmenter": "dcf.augmenter",
    "AuxiliaryObjective": "dcf.auxiliary",
    "Batch": "dcf.types",
    "Config": "dcf.config",
    "Context": "dcf.context",
    "DataSpec": "dcf.types",
    "Evaluator": "dcf.evaluator",
    "Hints": "dcf.types",
    "Matcher": "dcf.matcher",
    "MatcherDefaults": "dcf.types",
    "Network": "dcf.networks.base",
    "NetworkFactory": "dcf.networks.base",
    "NetworkState": "dcf.networks.base",
    "ParamGroup": "dcf.types",
    "Parameterization": "dcf.parameterization",
    "Program": "dcf.types",
    "Selector": "dcf.selector",
    "Step": "dcf.types",
    "SyntheticSet": "dcf.synthetic",
    "ValueSpace": "dcf.space",
    "append": "dcf.assembly",
    "condense": "dcf.run",
    "evaluate": "dcf.run",
    "export_set": "dcf.exchange.exporting",
    "import_set": "dcf.exchange.importing",
    "load": "dcf.synthetic",
    "merge": "dcf.assembly",
    "slice_set": "dcf.assembly",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dcf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
