"""The options of the datasets that come with core; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dcf.config import Config

__all__ = ["Constants", "FolderConfig", "NormConfig", "PythonConfig", "TorchvisionConfig"]

#: Normalisation constants that the user gives; they win over the `norm` option.
Constants = Annotated[
    tuple[float, ...], Field(description="one value a channel, for pixels in [0, 1]; empty: as norm says")
]


class NormConfig(Config):
    """Options of datasets with fields `mean` and `std`, which subclasses declare where they want them listed."""

    @model_validator(mode="after")
    def _constants_belong_together(self) -> Self:
        mean, std = getattr(self, "mean", ()), getattr(self, "std", ())
        if len(mean) != len(std):
            raise ValueError(f"expected as many values in std as in mean, got {len(std)} and {len(mean)}")
        if any(not s > 0 for s in std):
            raise ValueError(f"expected positive values in std, got {list(std)}")
        return self


class TorchvisionConfig(NormConfig):
    """Where the files are, and the value space."""

    root: str = Field("data", description="folder with the files, laid out as torchvision does it")
    download: bool = Field(True, description="fetch the files when they are not in root")
    norm: Literal["published", "auto", "unit"] = Field(
        "published",
        description="value space: constants of the literature, computed on train, or plain pixels",
    )
    mean: Constants = ()
    std: Constants = ()


def _size_text(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


class FolderConfig(NormConfig):
    """Where the images are, and how they become tensors of one shape."""

    path: str = Field(description="the folder")
    train: str = Field("train", description="sub-folder to learn from")
    test: str = Field("test", description="sub-folder to test on; val, valid and validation are tried too")
    split: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of each class to test on when there is no test folder; 0: no test",
    )
    seed: int = Field(0, ge=0, description="which images the split takes")
    size: Annotated[str, BeforeValidator(_size_text)] = Field(
        "auto",
        pattern=r"^(auto|[1-9]\d*|[1-9]\d*x[1-9]\d*)$",
        description="side in pixels, HxW, or auto: that of the files",
    )
    resize: Literal["crop", "squash"] = Field(
        "crop", description="fill the size and cut off evenly, or change the aspect ratio"
    )
    channels: Literal["auto"] | Annotated[int, Field(ge=1, le=4)] = Field(
        "auto",
        description="1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, auto: 1 if all of train is grey, else 3",
    )
    norm: Literal["auto", "unit"] = Field("auto", description="value space: computed on train, or plain pixels")
    mean: Constants = ()
    std: Constants = ()
    cache: bool = Field(True, description="keep the decoded images for the next start")


class PythonConfig(NormConfig):
    """The object, and the value space."""

    target: str = Field(description="module.attribute; modules in the current folder are found")
    norm: Literal["auto", "unit"] = Field("auto", description="value space: computed on train, or plain pixels")
    mean: Constants = ()
    std: Constants = ()
