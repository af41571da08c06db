"""The options of `dc`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

import dcf
from dcf.types import Metric

__all__ = ["DCConfig", "EvaluationAugmentConfig", "Operation"]

Operation: TypeAlias = Literal["crop", "scale", "rotate", "noise"]


class DCConfig(dcf.Config):
    """Options; the defaults are the paper's for ConvNet."""

    metric: Metric = Field("ours", description="gradient distance: ours (row-wise cosine), mse or cos")
    batch_real: int = Field(256, ge=1, description="real images a class and step")
    match_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="matching steps a network; auto: the published table by images a class"
    )
    net_epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="training epochs between matching steps; auto: the published table"
    )
    lr_net: float = Field(0.01, gt=0, description="step size of the network's training")
    batch_train: int = Field(256, ge=1, description="batch of the network's training")
    bn: Literal["reference", "exact"] = Field(
        "reference",
        description="how batch norms take their statistics from real images: one momentum step as released, or exactly",
    )
    bn_images: int = Field(16, ge=1, description="real images a class for the statistics of batch norms")


class EvaluationAugmentConfig(dcf.Config):
    """Options of `dc-eval`; the defaults are the published ones for MNIST."""

    ops: tuple[Operation, ...] = Field(
        ("crop", "scale", "rotate"), min_length=1, description="operations of which every image gets one"
    )
    crop: int = Field(4, ge=1, description="crop: moved by -crop to crop - 1 pixels, down and right")
    scale: float = Field(0.2, gt=0, lt=1, description="scale: height and width times 1 - scale to 1 + scale, apart")
    rotate: int = Field(45, ge=1, le=180, description="rotate: by whole degrees from -rotate to rotate - 1")
    noise: float = Field(0.001, gt=0, description="noise: standard deviation, in normalised values")
