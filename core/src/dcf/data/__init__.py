"""Real data: splits that live on a device, the datasets that come with core, and a check of any of them.

Public names are imported on first use, so that importing the package stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcf.data.base import DatasetProvider
    from dcf.data.check import DataCheck
    from dcf.data.real import RealData, Split

__all__ = ["DataCheck", "DatasetProvider", "RealData", "Split", "load"]

_LAZY = {
    "DataCheck": "dcf.data.check",
    "DatasetProvider": "dcf.data.base",
    "RealData": "dcf.data.real",
    "Split": "dcf.data.real",
}


def load(spec: str) -> RealData:
    """Load a dataset by its spec, such as `"digits"` or `"folder:path=photos,size=64"`.

    Raises:
        SpecError: When the spec is wrong.
        DataError: When the data are missing or unusable.
    """
    from dcf.build import create
    from dcf.components import Kind

    data: RealData = create(Kind.DATASET, spec).load()
    return data


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dcf.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
