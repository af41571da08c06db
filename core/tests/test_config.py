"""Options: conversion, and complaints in words for people."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from dcf.config import Config, field_rows, options_summary, validate, validate_mapping
from dcf.errors import ConfigError
from dcf.spec import parse_one


class Inner(Config):
    lr: float = Field(0.1, gt=0, description="step size")


class Lowrank(Config):
    """A component's options as they may be."""

    r: int = Field(ge=1, description="rank of each channel")
    init: Literal["svd", "normal"] = Field("svd", description="starting values")
    scale: float | Literal["auto"] = Field("auto", description="scale")
    ops: tuple[str, ...] = Field(("a", "b"), description="operations")
    share: bool = Field(False, description="share the factors")
    opt: Inner = Field(Inner(), description="optimiser")
    drop: float = Field(0.0, ge=0, lt=1, description="share that is dropped")
    steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="steps")


def convert(text):
    return validate(Lowrank, parse_one(text), "--param")


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("lowrank:r=4", {"r": 4}),
        ("lowrank:r=4,init=normal", {"r": 4, "init": "normal"}),
        ("lowrank:r=4,scale=1e-3", {"r": 4, "scale": 1e-3}),
        ("lowrank:r=4,ops=[crop,color]", {"r": 4, "ops": ("crop", "color")}),
        ("lowrank:r=4,ops=[]", {"r": 4, "ops": ()}),
        ("lowrank:r=4,share=true", {"r": 4, "share": True}),
        ("lowrank:r=4,share=no", {"r": 4, "share": False}),
        ("lowrank:r=4,opt.lr=2", {"r": 4, "opt": Inner(lr=2)}),
        ("lowrank:r=4,steps=3", {"r": 4, "steps": 3}),
        ("lowrank:r=4,steps=auto", {"r": 4}),
    ],
)
def test_text_is_converted(text, changed):
    assert convert(text) == Lowrank(**changed)


OPTIONS = (
    "options: r (int >= 1, required), init ('svd' | 'normal', default svd), scale (float | 'auto', default auto), "
    "ops (list of str, default [a,b]), share (bool, default false), opt (Inner, default lr=0.1), "
    "drop (float >= 0 and < 1, default 0.0), steps ('auto' or an int >= 1, default auto)"
)


@pytest.mark.parametrize(
    ("text", "message", "under"),
    [
        ("lowrank", "lowrank needs the option 'r'", "lowrank"),
        ("lowrank:init=svd", "lowrank needs the option 'r'", "lowrank:init=svd"),
        ("lowrank:rank=4", "lowrank has no option 'rank'", "rank"),
        ("lowrank:r=4,ini=svd", "lowrank has no option 'ini'", "ini"),
        ("lowrank:r=4.5", "lowrank: option 'r' expects int >= 1, got '4.5'", "4.5"),
        ("lowrank:r=four", "lowrank: option 'r' expects int >= 1, got 'four'", "four"),
        ("lowrank:r=0", "lowrank: option 'r' expects int >= 1, got '0'", "0"),
        ("lowrank:r=''", "lowrank: option 'r' expects int >= 1, got ''", "''"),
        ("lowrank:r=[1]", "lowrank: option 'r' expects int >= 1, got '[1]'", "[1]"),
        ("lowrank:r=4,init=zeros", "lowrank: option 'init' expects 'svd' | 'normal', got 'zeros'", "zeros"),
        ("lowrank:r=4,share=maybe", "lowrank: option 'share' expects bool, got 'maybe'", "maybe"),
        ("lowrank:r=4,drop=1", "lowrank: option 'drop' expects float >= 0 and < 1, got '1'", "1"),
        ("lowrank:r=4,scale=big", "lowrank: option 'scale' expects float | 'auto', got 'big'", "big"),
        ("lowrank:r=4,steps=0", "lowrank: option 'steps' expects 'auto' or an int >= 1, got '0'", "0"),
        ("lowrank:r=4,steps=all", "lowrank: option 'steps' expects 'auto' or an int >= 1, got 'all'", "all"),
        ("lowrank:r=4,ops=crop", "lowrank: option 'ops' expects list of str, got 'crop'", "crop"),
    ],
)
def test_complaint_names_option_expectation_and_place(text, message, under):
    with pytest.raises(ConfigError) as caught:
        convert(text)
    error = caught.value
    assert error.message == message
    assert text[slice(*error.span)] == under
    assert error.hints[-1] == OPTIONS
    assert f"  --param {text}" in str(error).splitlines()
    assert "pydantic" not in str(error)


def test_typo_is_reported_before_what_it_left_missing():
    with pytest.raises(ConfigError) as caught:
        convert("lowrank:rr=4")
    assert caught.value.message == "lowrank has no option 'rr'"
    assert "did you mean 'r'?" in caught.value.hints


def test_nested_option_is_named_in_full():
    with pytest.raises(ConfigError) as caught:
        convert("lowrank:r=4,opt.lr=-1")
    text = "lowrank:r=4,opt.lr=-1"
    assert "opt" in caught.value.message
    assert text[slice(*caught.value.span)] == "-1"
    with pytest.raises(ConfigError, match=r"has no option 'opt\.rate'"):
        convert("lowrank:r=4,opt.rate=1")


def test_options_are_frozen_and_closed():
    config = Lowrank(r=4)
    with pytest.raises(ValidationError):
        config.r = 5
    with pytest.raises(ValidationError):
        Lowrank(r=4, unknown=1)


def test_rule_over_several_options_speaks_for_itself():
    class Range(Config):
        low: int = Field(0, description="from")
        high: int = Field(1, description="to")

        @model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError(f"expected low <= high, got {self.low} and {self.high}")
            return self

    with pytest.raises(ConfigError) as caught:
        validate(Range, parse_one("range:low=3"))
    assert caught.value.message == "range: expected low <= high, got 3 and 1"


def test_defaults_are_validated():
    class Bad(Config):
        size: int = Field(0, ge=1, description="a size")

    with pytest.raises(ValidationError):
        Bad()


def test_values_of_a_file_are_checked_too():
    assert validate_mapping(Lowrank, {"r": 4, "ops": ["x"]}, "lowrank") == Lowrank(r=4, ops=("x",))
    with pytest.raises(ConfigError) as caught:
        validate_mapping(Lowrank, {"r": "x"}, "config.toml")
    assert caught.value.message == "config.toml: option 'r' expects int >= 1, got 'x'"
    assert "^" not in str(caught.value)


def test_rows_describe_every_option():
    rows = {row.name: row for row in field_rows(Lowrank)}
    assert list(rows) == list(Lowrank.model_fields)
    assert rows["r"].required
    assert rows["r"].default == ""
    assert rows["r"].type == "int >= 1"
    assert (rows["init"].default, rows["init"].description) == ("svd", "starting values")
    assert options_summary(Config) == "none"


def test_a_number_beyond_32_bits_is_refused():
    class Sizes(Config):
        scale: float = 1.0

    with pytest.raises(ConfigError, match="larger than a float of 32 bits"):
        validate(Sizes, parse_one("sizes:scale=1e39"))
    assert validate(Sizes, parse_one("sizes:scale=3e38")).scale == 3e38


def test_bounds_of_a_choice_are_its_own():
    class Sizes(Config):
        some: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="a choice and nothing")
        many: Literal["auto", "all"] | Annotated[int, Field(ge=1, le=4)] = Field("auto", description="several words")
        text: Annotated[int, Field(ge=1)] | float | Literal["auto"] = Field("auto", description="three kinds")

    assert [row.type for row in field_rows(Sizes)] == [
        "float > 0 and <= 1",
        "'auto' | 'all' or an int >= 1 and <= 4",
        "'auto' or an int >= 1 or a float",
    ]
