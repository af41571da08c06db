"""The options of the evaluators; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator

import dcf

__all__ = [
    "AugmentationConfig",
    "CalibrationConfig",
    "Corruption",
    "LabelConfig",
    "MembershipConfig",
    "RankingConfig",
    "RobustnessConfig",
]

Corruption = Literal[
    "gaussian-noise", "shot-noise", "impulse-noise", "blur", "contrast", "brightness", "pixelate", "jpeg"
]
CORRUPTIONS: Final[tuple[Corruption, ...]] = get_args(Corruption)


def _quotient(value: Any) -> Any:
    """Text such as `8/255` as a number; everything else as it is."""
    if not isinstance(value, str) or "/" not in value:
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a number or a quotient such as 8/255, got '{value}'") from None


def _one(value: Any) -> Any:
    """A single value where a list is expected."""
    return (value,) if isinstance(value, (str, int, float)) else value


Quotient = Annotated[float, BeforeValidator(_quotient)]
Weight = Annotated[float, Field(ge=0, le=1)]


class LabelConfig(dcf.Config):
    """Options of `lrs`."""

    weight: Weight = Field(
        0.5, description="of the improvement over random images against the distance to the whole set"
    )
    full: Annotated[float, Field(gt=0, le=1)] | Literal["train"] = Field(
        "train",
        description="accuracy with the whole training set: 'train' trains it under the protocol; a fraction is taken "
        "as it is given, and the report says so",
    )
    random_labels: Literal["hard", "teacher"] = Field(
        "hard",
        description="of random images beside soft labels: their class, or what a network says that was trained on the "
        "whole set",
    )


class AugmentationConfig(dcf.Config):
    """Options of `ars`."""

    weight: Weight = Field(0.5, description="of the improvement over random images with augmentation")
    augment: str = Field(
        "auto",
        description="augmentation to train with and without; 'auto': the protocol's, or 'dsa' without mirroring where "
        "that has none",
    )


class CalibrationConfig(dcf.Config):
    """Options of `calibration`."""

    bins: int = Field(15, ge=1, le=1000, description="bins of the reliability table, of equal width")
    temperature: bool = Field(
        False, description="also fit a temperature to a held-out part of the real training images, and report with it"
    )
    holdout: float = Field(0.1, gt=0, lt=1, description="share of the training images that is held out for it")


class RankingConfig(dcf.Config):
    """Options of `nas-rank`."""

    sample: Annotated[int, Field(ge=3, le=720)] | Literal["all"] = Field(
        "all", description="how many of the 720 architectures, drawn by 'sample_seed'; 'all': every one"
    )
    sample_seed: int = Field(0, ge=0, le=2**31, description="seed of that draw")
    max_width: Literal[32, 64, 128, 256] = Field(256, description="leave out wider architectures")
    holdout: float = Field(0.1, gt=0, lt=1, description="share of the training images that accuracies are ranked on")
    reference_epochs: Annotated[int, Field(ge=1)] | Literal["protocol"] = Field(
        "protocol", description="epochs of the reference, on the rest of the training images"
    )
    reference_nets: int = Field(1, ge=1, le=100, description="networks an architecture in the reference")
    top: tuple[str, ...] = Field(
        ("5", "10", "20", "5%"), description="also correlate over so many best architectures of the reference"
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="bootstrap resamples of the intervals")
    reference: Literal["make", "cached"] = Field(
        "make", description="what to do where the reference is not in the cache: train it, or refuse"
    )

    @field_validator("max_width", mode="before")
    @classmethod
    def _as_number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("top", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        return tuple(str(v) for v in _one(value)) if isinstance(value, (str, int, list, tuple)) else value

    @field_validator("top")
    @classmethod
    def _counts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            number = text.removesuffix("%")
            if not number.isdecimal() or not 0 < int(number) <= (100 if text.endswith("%") else 720):
                raise ValueError(f"expected numbers such as 10 or shares such as 5%, got '{text}'")
        return value

    def places(self, text: str, n: int) -> int:
        """How many of n architectures an entry of `top` means."""
        return round(n * int(text[:-1]) / 100) if text.endswith("%") else int(text)


class RobustnessConfig(dcf.Config):
    """Options of `robust`."""

    images: int = Field(1000, ge=1, description="test images at most, drawn at random, the same for every network")
    eps: Quotient = Field(
        8 / 255, ge=0, le=1, description="largest change of a pixel, which lie in [0, 1]; 8/255 works"
    )
    steps: int = Field(10, ge=1, le=1000, description="steps of PGD")
    step: Annotated[Quotient, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto", description="size of a step of PGD in pixel values; auto: 2.5 eps / steps"
    )
    corruptions: tuple[Corruption, ...] = Field(CORRUPTIONS, description="which corruptions; [] for none")
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
        (1, 2, 3, 4, 5), min_length=1, description="how strong, 1 to 5; their mean is reported"
    )

    _lists = field_validator("corruptions", "severities", mode="before")(_one)

    @property
    def step_size(self) -> float:
        """Size of a step of PGD in pixel values."""
        return 2.5 * self.eps / self.steps if self.step == "auto" else self.step


class MembershipConfig(dcf.Config):
    """Options of `membership`."""

    features: Literal["initial", "trained", "none"] = Field(
        "initial",
        description="feature space of the second distance: the protocol's network as initialised, as trained on the "
        "whole training set, or no second distance",
    )
    fpr: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="false alarm rate at which hits of the attack are counted"
    )
    images: int = Field(10_000, ge=2, description="training images, and test images, at most that the attack looks at")
    picture: Path | None = Field(
        None, description="PNG file for pairs of synthetic images and their nearest real ones, a class a row"
    )
