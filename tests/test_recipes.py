"""Every recipe that is named after a system of the literature runs, on data that come with the package."""

import pytest

import dcf
from dcf.recipes import all_recipes

#: Names that users may rely on.
NAMES = (
    *("dc", "dsa", "dm", "dcc", "dsac", "lodc", "lodsa", "lodm", "mtt", "lomtt", "tesla", "datm"),
    *("idc-i", "idc", "loidc-i", "loidc", "haba", "lohaba", "rtp", "lortp", "dd", "ld"),
    *("random", "herding", "k-center", "k-means", "forgetting"),
)


def test_promised_names_are_there():
    assert set(NAMES) <= set(all_recipes())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_recipe_runs_on_digits(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))
    iterations = min(2, all_recipes()[name].settings("digits").get("iterations", 2))
    small = {"network": "convnet:width=4,depth=2", "evaluate": False, "iterations": iterations}
    found = dcf.condense(recipe=name, data="digits", out=tmp_path / "run", **small)
    images, labels = dcf.load(tmp_path / "run" / "synthetic.safetensors").tensors()
    assert len(images) == len(labels) == found.storage().views
    assert bool(images.isfinite().all())
