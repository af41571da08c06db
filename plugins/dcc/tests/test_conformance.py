"""The matcher, evaluator and recipes keep the promises of their interfaces."""

import pytest

import dcf.testing


@dcf.testing.parametrize("dcc:match_steps=3,net_epochs=2", kind="matcher")
def test_matcher_conforms(check):
    check()


@dcf.testing.parametrize("dcc:match_steps=3,net_epochs=2,outer_warmup=9,inner_warmup=9", kind="matcher")
def test_matcher_conforms_in_its_warmup(check):
    check()


@pytest.mark.slow
@dcf.testing.parametrize("kernel-velocity:n=4", kind="evaluator")
def test_evaluator_conforms(check):
    check()


@dcf.testing.parametrize("dcc", kind="recipe")
def test_recipe_conforms(check):
    check()


@dcf.testing.parametrize("dsac", kind="recipe")
def test_recipe_with_augmentation_conforms(check):
    check()
