"""The parameterization keeps the promises of its interface, alone and with others on either side."""

import dcf.testing


@dcf.testing.parametrize("haba", kind="param")
def test_parameterization_conforms(check):
    check()


@dcf.testing.parametrize("haba:styles=2,kernel=2,middle=5,basis=single,init=identity,every=outer,batch=1", kind="param")
def test_every_other_option_conforms(check):
    check()


@dcf.testing.parametrize("pixels+haba:objective=none", kind="param")
def test_bases_stored_by_another_conform(check):
    check()
