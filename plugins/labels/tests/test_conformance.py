"""What the package announces keeps the promises of its interfaces; the parameterization alone and on top of others."""

import dcf.testing


@dcf.testing.parametrize("soft-labels", kind="param")
def test_alone_it_conforms(check):
    check()


@dcf.testing.parametrize("pixels+soft-labels:form=logits,init=uniform", kind="param")
def test_logits_conform(check):
    check()


@dcf.testing.parametrize("lowrank:r=1+soft-labels", kind="param")
def test_beside_factors_it_conforms(check):
    check()


@dcf.testing.parametrize("pixels+soft-labels:learn_images=false,init=uniform", kind="param")
def test_labels_of_fixed_images_conform(check):
    check()


@dcf.testing.parametrize("ld", kind="matcher")
def test_matcher_conforms(check):
    check()


@dcf.testing.parametrize("ld", kind="recipe")
def test_recipe_conforms(check):
    check()


@dcf.testing.parametrize("ld@1", kind="protocol")
def test_protocol_conforms(check):
    check()
