"""The parameterization keeps the promises of its interface, alone and with others on either side."""

import dcf.testing


@dcf.testing.parametrize("memory", kind="param")
def test_parameterization_conforms(check):
    check()


@dcf.testing.parametrize("memory:bases=4,down=1,init=xavier", kind="param")
def test_published_start_conforms(check):
    check()


@dcf.testing.parametrize("memory:bases=5,down=3", kind="param")
def test_a_factor_that_does_not_divide_the_size_conforms(check):
    check()


@dcf.testing.parametrize("pixels+memory:bases=4", kind="param")
def test_bases_stored_by_another_conform(check):
    check()
