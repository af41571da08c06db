"""The matcher, protocols and recipes keep the promises of their interfaces."""

import pytest

import dcf.testing

SMALL = "syn_steps=3,expert_epochs=2,max_start_epoch=3,experts=2,lr_teacher=0.01"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dcf.testing.parametrize(f"mtt:{SMALL}", kind="matcher")
def test_matcher_conforms(check):
    check()


@dcf.testing.parametrize(f"mtt:{SMALL},unroll=tesla,reference_scale=true,batch_syn=1,threshold=20", kind="matcher")
def test_matcher_with_the_truncated_gradient_conforms(check):
    check()


@pytest.mark.parametrize("name", ["mtt@1", "datm@1"])
def test_protocols_conform(name):
    results = dcf.testing.run_checks("protocol", name)
    assert not [f"{r.name}: {r.detail}" for r in results if r.status == "failed"]


@pytest.mark.parametrize("name", ["mtt", "lomtt", "tesla", "datm"])
def test_recipes_conform(name):
    results = dcf.testing.run_checks("recipe", name)
    assert not [f"{r.name}: {r.detail}" for r in results if r.status == "failed"]
