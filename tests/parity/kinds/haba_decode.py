"""Every hallucinator applied to every basis, and the gradients of bases and hallucinators."""

from __future__ import annotations

import torch
from tests.parity.case import Case, ParityError
from torch import Tensor

from dcf.space import ValueSpace
from dcf.types import DataSpec
from dcf_haba.hallucinators import NAMES
from dcf_haba.param import Haba

#: Our names of the published parameters.
_NAMES = {name.replace("_", "."): name for name in NAMES}


def compute(case: Case) -> dict[str, Tensor]:
    """`images` (style, N, C, H, W), `dbasis` and, in the order of the file, `dstyle/SSS/*`."""
    param = haba(case)
    images = param.images(torch.arange(len(param.view_class))).unflatten(0, (len(case["basis"]), -1)).transpose(0, 1)
    learned = [param.bases, *param.styles()]
    dbasis, *found = torch.autograd.grad(images, learned, case["upstream"])
    gradients = dict(zip(NAMES, found, strict=True))
    out = {"out/images": images, "out/dbasis": dbasis}
    for style in range(param.config.styles):
        for number, name in enumerate(published_order(case)):
            given = case[f"style/{style:03d}/{number:03d}"]
            out[f"out/dstyle/{style:03d}/{number:03d}"] = gradients[_NAMES[name]][style].view_as(given)
    return out


def published_order(case: Case) -> list[str]:
    """Names of the numbered parameters of a hallucinator."""
    names = case.meta.get("style_params", [])
    if sorted(names) != sorted(_NAMES):
        raise ParityError(f"expected style_params {', '.join(_NAMES)}; got {', '.join(map(str, names))}")
    return list(names)


def haba(case: Case) -> Haba:
    """The set that stores `basis` and the hallucinators, all of one class."""
    items, inward, height, width = case["basis"].shape
    order = published_order(case)
    count = len({name.split("/")[1] for name in case.tensors if name.startswith("style/")})
    given = [[case[f"style/{style:03d}/{number:03d}"] for number in range(len(order))] for style in range(count)]
    named = {_NAMES[name]: torch.stack([one[number] for one in given]) for number, name in enumerate(order)}
    middle, kernel = named["encoder_weight"].shape[1], named["encoder_weight"].shape[-1]
    channels = named["decoder_weight"].shape[2]
    if inward not in (1, channels):
        raise ParityError(f"expected bases of 1 or {channels} channels, as images have them, got {inward}")
    spec = DataSpec(channels, height, width, ("0",), ValueSpace.unit(channels))
    basis = "full" if inward == channels else "single"
    param = Haba(Haba.Config(styles=count, kernel=kernel, middle=middle, basis=basis, objective="none"))
    param.allocate(spec, torch.zeros(items, dtype=torch.long))
    param.to(case.dtype)
    with torch.no_grad():
        param.bases.copy_(case["basis"])
        for name, stored in zip(NAMES, param.styles(), strict=True):
            stored.copy_(named[name].view_as(stored))
    return param
