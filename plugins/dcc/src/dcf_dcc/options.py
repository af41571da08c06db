"""The options of `dcc` and `kernel-velocity`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

import dcf
from dcf.types import Metric

__all__ = ["DCCConfig", "VelocityConfig"]

Auto = Literal["auto"]


class DCCConfig(dcf.Config):
    """Options; the defaults are the paper's for ConvNet."""

    metric: Metric = Field("ours", description="gradient distance: ours (row-wise cosine), mse or cos")
    outer_warmup: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="networks at the beginning whose first matching steps are class-wise; "
        "auto: a quarter of the run's iterations, which is the published 250 of 1000",
    )
    inner_warmup: int = Field(10, ge=0, description="how many matching steps of each of these networks are class-wise")
    batch_real: int = Field(256, ge=1, description="real images a class and step")
    match_steps: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="matching steps a network; auto: the released table by images a class"
    )
    net_epochs: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="training epochs between matching steps; auto: the released table"
    )
    lr_net: float = Field(0.01, gt=0, description="step size of the network's training")
    batch_train: int = Field(256, ge=1, description="batch of the network's training")
    monitor_every: int = Field(
        10,
        ge=0,
        description="iterations from one in which contrastive steps also log the class-wise distance to the next; "
        "0: never, as it costs about another gradient of the real images",
    )
    bn: Literal["reference", "exact"] = Field(
        "reference",
        description="how batch norms take their statistics from real images: one momentum step as released, or exactly",
    )
    bn_images: int = Field(16, ge=1, description="real images a class for the statistics of batch norms")


class VelocityConfig(dcf.Config):
    """Options of `kernel-velocity`."""

    n: int = Field(100, ge=2, le=4096, description="test images that the kernel is taken on, balanced over classes")
    mode: Literal["sum", "trace"] = Field(
        "sum",
        description="sum: gradients of the sum of all logits, one backward pass an image; "
        "trace: the exact kernel summed over its classes, one for each class",
    )
    every: int = Field(1, ge=1, description="epochs between two kernels")
    until: int = Field(
        20, ge=1, description="last epoch at which a kernel is taken; training goes on as the protocol says"
    )
