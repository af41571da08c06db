"""The parameterization and the recipes keep the promises of their interfaces."""

import dcf.testing


@dcf.testing.parametrize("lowrank", kind="param")
def test_parameterization_conforms(check):
    check()


@dcf.testing.parametrize("lowrank:r=1,init=noise", kind="param")
def test_published_initialisation_conforms(check):
    check()


@dcf.testing.parametrize("lowrank:r=3,init=scaled-noise,sigma=0.5", kind="param")
def test_scaled_noise_conforms(check):
    check()


@dcf.testing.parametrize("lodc", kind="recipe")
def test_lodc_recipe_conforms(check):
    check()


@dcf.testing.parametrize("lodsa", kind="recipe")
def test_lodsa_recipe_conforms(check):
    check()


@dcf.testing.parametrize("lodm", kind="recipe")
def test_lodm_recipe_conforms(check):
    check()
