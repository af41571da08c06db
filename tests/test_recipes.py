"""Every recipe that is named after a system of the literature runs, on data that come with the package.

One that is driven into NaN, or blows up short of it, stops, says how to mend it, and leaves nothing that is of no use.
"""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

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


# --- runs that diverge ------------------------------------------------------------------------------------------

#: Recipes that learn nothing, and those whose stored values are brought back into bounds after every update.
STILL = ("random", "herding", "k-center", "k-means", "forgetting")
BOUNDED = ("ld",)


@pytest.fixture(scope="module")
def one_cache(tmp_path_factory):
    """What a method must prepare is prepared once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def unusable(folder):
    """Files of a run that hold a NaN or an infinite value."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            tensors = load_file(path).items()
            yield from (f"{path.name}: {n}" for n, t in tensors if t.is_floating_point() and not t.isfinite().all())
        elif path.suffix in (".json", ".jsonl", ".toml") and re.search(
            r"\b(NaN|-?Infinity|nan|inf)\b", path.read_text()
        ):
            yield path.name


def diverging(name, out, lr=None, **overrides):
    """Steps far too large, on a network that is quick."""
    return dcf.condense(
        recipe=name, data="digits", out=out, network="convnet:width=4,depth=2", evaluate=False, iterations=8, lr=lr,
        device="cpu", overrides={"checkpoint_every": 1, **overrides},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("lr", [1e30, 1e6])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in STILL])
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(name, lr, tmp_path, one_cache):
    if name in BOUNDED:
        images, labels = diverging(name, tmp_path / "run", lr).tensors()
        assert bool(images.isfinite().all())
        assert bool(labels.isfinite().all())
    else:
        with pytest.raises(dcf.NonFiniteError) as stopped:
            diverging(name, tmp_path / "run", lr)
        assert stopped.value.exit_code == 1
        said, advice = str(stopped.value).split("\n")
        assert said.endswith("the last good checkpoint is kept")
        assert "--lr" in advice
    kept = sorted((tmp_path / "run/checkpoints").glob("*.safetensors"))
    assert kept
    assert load_file(kept[-1])
    assert list(unusable(tmp_path / "run")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dd", "optim.images.lr"), ("dd", "optim.lrs.lr"), ("dd", "matcher.lr"), ("rtp", "matcher.lr"),
        ("rtp", "optim.addresses.lr"), ("rtp", "optim.bases.lr"), ("ld", "matcher.lr_step"), ("ld", "matcher.lr_net"),
        ("mtt", "matcher.lr_teacher"), ("mtt", "matcher.lr_lr"), ("mtt", "optim.step_size.lr"),
    ],
)  # fmt: skip
def test_whatever_step_is_too_large_is_noticed(name, key, tmp_path, one_cache):
    with pytest.raises(dcf.NonFiniteError, match="the last good checkpoint is kept\n  l"):
        diverging(name, tmp_path / "run", **{key: 1e6})
    assert load_file(max((tmp_path / "run/checkpoints").glob("*.safetensors")))
    assert list(unusable(tmp_path / "run")) == []


def test_recipes_that_learn_nothing_are_those(tmp_path):
    recipes = all_recipes()
    assert {n for n in NAMES if recipes[n].settings("digits").get("matcher", "none") == "none"} == set(STILL)


def test_unusable_files_are_found(tmp_path):
    save_file({"x": torch.tensor([1.0, float("inf")])}, tmp_path / "a.safetensors")
    (tmp_path / "b.jsonl").write_text('{"loss": NaN}\n')
    (tmp_path / "c.json").write_text('{"name": "info, nanometres"}\n')
    assert list(unusable(tmp_path)) == ["a.safetensors: x", "b.jsonl"]
