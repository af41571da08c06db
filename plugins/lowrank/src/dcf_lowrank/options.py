"""The options of `lowrank`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

import dcf

__all__ = ["LowRankConfig", "Rule"]

#: How many images a budget pays for; see `dcf_lowrank.budget.images_for_budget`.
Rule = Literal["exact", "reference"]


class LowRankConfig(dcf.Config):
    """Options. `init=noise,rule=reference` are the published choices; the other values of the two are ours."""

    r: int = Field(2, ge=1, le=65536, description="rank of each channel of each image; 2 is the published default")
    init: Literal["svd", "noise", "scaled-noise"] = Field(
        "svd",
        description="svd: best approximation of real images; noise: standard normal factors, as published; "
        "scaled-noise: likewise, brought to the spread `sigma`",
    )
    sigma: float = Field(1.0, gt=0, description="standard deviation of the starting pixels; scaled-noise only")
    rule: Rule = Field(
        "exact",
        description="exact: as many images as the floats pay for; reference: as the released code, "
        "ipc * floor(pixels / floats of an image)",
    )

    @model_validator(mode="after")
    def _sigma_has_an_effect(self) -> LowRankConfig:
        if self.sigma != 1.0 and self.init != "scaled-noise":
            raise ValueError(f"'sigma' has no effect with init={self.init}; expected init=scaled-noise beside it")
        return self
