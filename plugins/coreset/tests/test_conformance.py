"""The selectors and recipes keep the promises of their interfaces."""

import pytest

import dcf.testing

SMALL = "network=mlp,epochs=2"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dcf.testing.parametrize("herding", kind="selector")
def test_herding_conforms(check):
    check()


@dcf.testing.parametrize("herding:features=raw", kind="selector")
def test_herding_of_pixels_conforms(check):
    check()


@dcf.testing.parametrize(f"k-center:{SMALL}", kind="selector")
def test_k_center_conforms(check):
    check()


@dcf.testing.parametrize("k-center:features=raw,start=random", kind="selector")
def test_k_center_from_a_random_image_conforms(check):
    check()


@dcf.testing.parametrize(f"k-means:{SMALL}", kind="selector")
def test_k_means_conforms(check):
    check()


@dcf.testing.parametrize('forgetting:network="convnet:width=4,depth=1",epochs=2', kind="selector")
def test_forgetting_conforms(check):
    check()


@dcf.testing.parametrize(f"least-confidence:{SMALL}", kind="selector")
def test_least_confidence_conforms(check):
    check()


@dcf.testing.parametrize(f"entropy:{SMALL}", kind="selector")
def test_entropy_conforms(check):
    check()


@dcf.testing.parametrize(f"margin:{SMALL}", kind="selector")
def test_margin_conforms(check):
    check()


@dcf.testing.parametrize(f"el2n:networks=2,{SMALL}", kind="selector")
def test_el2n_conforms(check):
    check()


@dcf.testing.parametrize(f"grand:networks=2,{SMALL}", kind="selector")
def test_grand_conforms(check):
    check()


@dcf.testing.parametrize("herding", kind="recipe")
def test_herding_recipe_conforms(check):
    check()


@dcf.testing.parametrize("k-center", kind="recipe")
def test_k_center_recipe_conforms(check):
    check()


@dcf.testing.parametrize("k-means", kind="recipe")
def test_k_means_recipe_conforms(check):
    check()


@dcf.testing.parametrize("forgetting", kind="recipe")
def test_forgetting_recipe_conforms(check):
    check()
