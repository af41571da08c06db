"""The evaluators keep the promises of their interface."""

import pytest

import dcf.testing

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Reference rankings of these tests belong to no user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dcf.testing.parametrize("lrs:full=0.9,random_labels=teacher", kind="evaluator")
def test_label_robust_score_conforms(check):
    check()


@dcf.testing.parametrize("ars:augment=(dsa:ops=[color,crop]),weight=0.3", kind="evaluator")
def test_augmentation_robust_score_conforms(check):
    check()


@dcf.testing.parametrize("calibration:temperature=true,holdout=0.3", kind="evaluator")
def test_calibration_conforms(check):
    check()


@dcf.testing.parametrize("nas-rank:sample=3,max_width=32,resamples=100,reference_nets=2", kind="evaluator")
def test_ranking_conforms(check):
    check()


@dcf.testing.parametrize("robust:steps=2,corruptions=[jpeg,blur],severities=[1,5]", kind="evaluator")
def test_robustness_conforms(check):
    check()


@dcf.testing.parametrize("membership:features=trained,fpr=0.3", kind="evaluator")
def test_membership_conforms(check):
    check()
