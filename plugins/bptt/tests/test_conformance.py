"""The matchers, recipes and the protocol keep the promises of their interfaces."""

import dcf.testing


@dcf.testing.parametrize("dd:batch_real=8", kind="matcher")
def test_ordered_matcher_conforms(check):
    check()


@dcf.testing.parametrize("bptt:steps=3,lr=0.1,batch_real=4", kind="matcher")
def test_random_matcher_conforms(check):
    check()


@dcf.testing.parametrize("bptt:steps=auto,epochs=3,lr=0.1,learn_lr=one,nets=2,momentum=0", kind="matcher")
def test_matcher_with_several_networks_and_a_learned_step_size_conforms(check):
    check()


@dcf.testing.parametrize("dd", kind="recipe")
def test_recipe_of_programs_conforms(check):
    check()


@dcf.testing.parametrize("rtp", kind="recipe")
def test_recipe_of_memories_conforms(check):
    check()


@dcf.testing.parametrize("lortp", kind="recipe")
def test_recipe_of_low_rank_memories_conforms(check):
    check()


@dcf.testing.parametrize("rtp@1", kind="protocol")
def test_protocol_conforms(check):
    check()
