"""The matcher and the recipes keep the promises of their interfaces."""

import dcf.testing


@dcf.testing.parametrize("dm", kind="matcher")
def test_matcher_conforms(check):
    check()


@dcf.testing.parametrize("dm", kind="recipe")
def test_recipe_conforms(check):
    check()


@dcf.testing.parametrize("dm-quick", kind="recipe")
def test_quick_recipe_conforms(check):
    check()
