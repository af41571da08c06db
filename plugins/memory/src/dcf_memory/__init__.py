"""Addressable memory for dcf: images as mixtures of bases that all classes share."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the parameterization."""
    yield dcf.Component(
        "param",
        "memory",
        "dcf_memory.param:Memory",
        "mix each image from bases that all classes share: many more images at equal floats",
        "Deng and Russakovsky, NeurIPS 2022",
        "dcf_memory.options:MemoryConfig",
    )
