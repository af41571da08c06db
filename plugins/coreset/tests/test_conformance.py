"""The selectors and recipes keep the promises of their interfaces."""

import pytest

import dcf.testing

SMALL = "network=mlp,epochs=2"

SELECTORS = [
    f"herding:{SMALL}",
    "herding:features=raw",
    f"k-center:{SMALL}",
    "k-center:features=raw,start=random",
    f"k-means:{SMALL}",
    'forgetting:network="convnet:width=4,depth=1",epochs=2',
    f"least-confidence:{SMALL}",
    f"entropy:{SMALL}",
    f"margin:{SMALL}",
    f"el2n:networks=2,{SMALL}",
    f"grand:networks=2,{SMALL}",
]
RECIPES = ["herding", "k-center", "k-means", "forgetting"]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    ("kind", "spec"), [*(("selector", spec) for spec in SELECTORS), *(("recipe", name) for name in RECIPES)]
)
def test_component_conforms(kind, spec):
    results = dcf.testing.run_checks(kind, spec)
    assert len(results) >= 5
    assert not [f"{r.name}: {r.detail}" for r in results if r.status == "failed"]
