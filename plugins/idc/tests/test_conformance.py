"""Matcher, parameterization, augmenters, protocol and recipes keep the promises of their interfaces."""

import pytest

import dcf.testing

SMALL = "inner_loop=2,batch_train=4,n_data=6"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dcf.testing.parametrize(f"idc:{SMALL}", kind="matcher")
def test_matcher_conforms(check):
    check()


@dcf.testing.parametrize(f"idc:{SMALL},match=feat,idx_from=0,classes_per_update=all,train_augment=same", kind="matcher")
def test_matcher_of_features_conforms(check):
    check()


@dcf.testing.parametrize(
    f"idc:{SMALL},metric=l1_mean,bias=true,fc=true,early=1,pretrained=2,pretrained_epochs=1,classes_per_update=2",
    kind="matcher",
)
def test_matcher_of_trained_networks_conforms(check):
    check()


@dcf.testing.parametrize("multiformation", kind="param")
def test_parameterization_conforms(check):
    check()


@dcf.testing.parametrize("multiformation:factor=3,decode=bound,bound=7", kind="param")
def test_bounded_views_conform(check):
    check()


@dcf.testing.parametrize("multiformation:factor=3,decode=multi,axes=[width],clamp=update", kind="param")
def test_views_of_several_factors_along_one_axis_conform(check):
    check()


@dcf.testing.parametrize("lowrank:r=2+multiformation:factor=3,clamp=decode", kind="param")
def test_canvases_stored_by_another_conform(check):
    check()


@dcf.testing.parametrize("multiformation+soft-labels", kind="param")
def test_views_with_learned_labels_conform(check):
    check()


@dcf.testing.parametrize("idc:ops=auto", kind="augmenter")
def test_augmenter_conforms(check):
    check()


@dcf.testing.parametrize("cutmix:prob=1,beta=0.5", kind="augmenter")
def test_cutmix_conforms(check):
    check()


@dcf.testing.parametrize("idc:ops=[color,crop]+cutmix", kind="augmenter")
def test_both_together_conform(check):
    check()


def test_protocol_conforms():
    results = dcf.testing.run_checks("protocol", "idc@1")
    assert not [f"{r.name}: {r.detail}" for r in results if r.status == "failed"]


@pytest.mark.parametrize("name", ["idc-i", "idc", "loidc-i", "loidc"])
def test_recipes_conform(name):
    results = dcf.testing.run_checks("recipe", name)
    assert not [f"{r.name}: {r.detail}" for r in results if r.status == "failed"]
