"""The augmenter, protocol and recipe keep the promises of their interfaces."""

import dcf.testing


@dcf.testing.parametrize("dsa", kind="augmenter")
def test_augmenter_conforms(check):
    check()


@dcf.testing.parametrize("dsa:mode=multi", kind="augmenter")
def test_all_operations_at_once_conform(check):
    check()


@dcf.testing.parametrize("vico-dsa@1", kind="protocol")
def test_protocol_conforms(check):
    check()


@dcf.testing.parametrize("dsa", kind="recipe")
def test_recipe_conforms(check):
    check()
