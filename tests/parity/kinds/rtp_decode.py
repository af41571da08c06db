"""Images as mixtures of shared bases, their labels, and the gradients of bases and addresses."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from torch import Tensor

from dcf.space import ValueSpace
from dcf.types import DataSpec
from dcf_memory.param import Memory


def compute(case: Case) -> dict[str, Tensor]:
    """`images`, `labels`, `dbases` and `daddresses`, the latter shaped as the addresses are given."""
    param = memory(case)
    index = torch.arange(len(param.view_class))
    images = param.images(index)
    dbases, daddresses = torch.autograd.grad(images, [param.bases, param.addresses], case["upstream"])
    return {
        "out/images": images,
        "out/labels": param.labels(index),
        "out/dbases": dbases,
        "out/daddresses": daddresses.view_as(case["addresses"]),
    }


def memory(case: Case) -> Memory:
    """The set that stores `bases` and `addresses`, class-major."""
    count, channels, height, width = case["bases"].shape
    classes, ipc, _ = case["addresses"].shape
    down = int(case.hyper.get("downsample_scale", 1))
    names = tuple(map(str, range(classes)))
    spec = DataSpec(channels, down * height, down * width, names, ValueSpace.unit(channels))
    param = Memory(Memory.Config(bases=count, down=down))
    param.allocate(spec, torch.arange(classes).repeat_interleave(ipc))
    param.to(case.dtype)
    with torch.no_grad():
        param.bases.copy_(case["bases"])
        param.addresses.copy_(case["addresses"].flatten(0, 1))
    return param
