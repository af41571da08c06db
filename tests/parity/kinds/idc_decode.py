"""Stored images cut into tiles that are enlarged to images, their labels, and the gradient of what is stored."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from torch import Tensor

from dcf.space import ValueSpace
from dcf.types import DataSpec
from dcf_idc.formation import decode_tiles, grid_of, view_table
from dcf_idc.options import MultiFormationConfig
from dcf_idc.param import MultiFormation


def compute(case: Case) -> dict[str, Tensor]:
    """`images`, `labels` and `ddata`."""
    hyper = case.hyper
    decode, side = hyper.get("decode_type", "single"), int(hyper["size"])
    bound = {"bound": int(hyper["bound"])} if decode == "bound" else {}
    config = MultiFormationConfig(factor=hyper["factor"], decode=decode, **bound)
    table = view_table(len(case["data"]), config.factor, config.decode, config.bound, config.axes)
    same_size = case["data"].shape[-2:] == (side, side)
    images, stored = whole(case, config) if same_size else resized(case, config, table, side)
    (gradient,) = torch.autograd.grad(images, stored, case["upstream"])
    return {"out/images": images, "out/labels": case["labels"][table[:, 0]], "out/ddata": gradient}


def whole(case: Case, config: MultiFormationConfig) -> tuple[Tensor, Tensor]:
    """The views of a set that stores `data`, all of one class, as the bound of a case is that of all its images."""
    items, channels, height, width = case["data"].shape
    spec = DataSpec(channels, height, width, ("0",), ValueSpace.unit(channels))
    param = MultiFormation(config)
    param.allocate(spec, torch.zeros(items, dtype=torch.long))
    param.to(case.dtype)
    with torch.no_grad():
        param.canvases.copy_(case["data"])
    return param.images(torch.arange(len(param.view_class))), param.canvases


def resized(case: Case, config: MultiFormationConfig, table: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The same for views of another size than what is stored, which no set has."""
    stored = case["data"].clone().requires_grad_()
    views = [
        decode_tiles(stored[canvas][None], row[None], column[None], grid_of(int(k), config.axes), (side, side))
        for canvas, k, row, column in table
    ]
    return torch.cat(views), stored
