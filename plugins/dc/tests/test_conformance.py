"""The matcher, protocol and recipe keep the promises of their interfaces."""

import dcf.testing


@dcf.testing.parametrize("dc:match_steps=3,net_epochs=2", kind="matcher")
def test_matcher_conforms(check):
    check()


@dcf.testing.parametrize("dc-eval", kind="augmenter")
def test_augmenter_conforms(check):
    check()


@dcf.testing.parametrize("dc-eval:ops=[crop,noise]", kind="augmenter")
def test_augmenter_with_other_operations_conforms(check):
    check()


@dcf.testing.parametrize("vico-dc@1", kind="protocol")
def test_protocol_without_augmentation_conforms(check):
    check()


@dcf.testing.parametrize("vico-dc@2", kind="protocol")
def test_protocol_conforms(check):
    check()


@dcf.testing.parametrize("dc", kind="recipe")
def test_recipe_conforms(check):
    check()
