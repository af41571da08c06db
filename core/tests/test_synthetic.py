"""Condensed sets: as a dataset, through their file, and what a damaged or hostile file can do to a reader."""

from __future__ import annotations

import json
import random
import sys
import time
import tracemalloc

import pytest
import torch
from torch.utils.data import DataLoader

import dcf
from dcf.errors import DcfError, EvaluationError, FormatError, PluginError, RunError, UsageError
from dcf.files import pack, read_header, read_tensors
from dcf.metadata import FORMAT, read_metadata
from dcf.pixels import Pixels
from dcf.preview import class_grid, save_preview
from dcf.space import ValueSpace
from dcf.synthetic import SyntheticSet, load
from dcf.types import DataSpec, Hints

SPEC = DataSpec(1, 8, 8, tuple("0123456789"), ValueSpace((0.3051,), (0.3762,)))
CONFIG = {"data": "digits", "matcher": "none", "param": "pixels", "augment": "none", "network": "mlp"}


def small_set(ipc=2, spec=SPEC, **metadata):
    param = Pixels()
    param.allocate(spec, torch.arange(spec.num_classes).repeat_interleave(ipc))
    g = torch.Generator().manual_seed(0)
    param.absorb(torch.randn(spec.num_classes * ipc, *spec.shape, generator=g))
    hints = Hints(0.02, True, {"note": [1, None]})
    return SyntheticSet(param, spec, {**CONFIG, "protocol": "dcf-std@1"}, 7, hints, metadata)


@pytest.fixture
def path(tmp_path):
    small_set(packages={"param:pixels": "dcf-core 0.1.0"}, license="CC BY 4.0 é").save(tmp_path / "set.safetensors")
    return tmp_path / "set.safetensors"


@pytest.fixture
def forge(path):
    """Replace parts of the file, with a digest that is right: what somebody does on purpose.

    Metadata as values, or as text that starts with `raw `; None drops an entry.
    """

    def change(metadata=(), tensors=()):
        stored, text = read_tensors(path)
        stored.update(tensors)
        for key, value in dict(metadata).items():
            raw = isinstance(value, str) and value.startswith("raw ")
            text[f"dcf.{key}"] = value[4:] if raw else json.dumps(value)
        kept = {k: v for k, v in text.items() if v != "null"}
        path.write_bytes(pack({k: t for k, t in stored.items() if t is not None}, kept))
        return path

    return change


# --- as a dataset --------------------------------------------------------------------------------


def test_a_set_is_a_dataset_like_those_of_torchvision(path):
    one = dcf.load(path)
    assert isinstance(one, torch.utils.data.Dataset)
    assert len(one) == len(one.targets) == 20
    assert one.targets == [c for c in range(10) for _ in range(2)]
    assert (one.classes, one.class_to_idx["3"]) == (list("0123456789"), 3)
    image, target = one[5]
    assert (image.shape, image.dtype, target, type(target)) == ((1, 8, 8), torch.float32, 2, int)
    assert torch.equal(image, one.tensors().x[5])
    assert not image.requires_grad
    assert torch.equal(one[-1][0], one[19][0])
    assert [target for _, target in one] == one.targets  # ends: `for` stops at IndexError
    for outside in (20, -21):
        with pytest.raises(IndexError):
            one[outside]


def test_transforms_are_applied_to_items_only(path):
    one = dcf.load(path, transform=lambda image: image + 1, target_transform=str)
    assert torch.equal(one[3][0], one.tensors().x[3] + 1)
    assert one[3][1] == "1"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_set_works_in_a_data_loader(path, workers):
    batches = list(DataLoader(dcf.load(path), batch_size=8, num_workers=workers))
    assert [len(y) for _, y in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([x for x, _ in batches]), dcf.load(path).tensors().x)
    assert torch.cat([y for _, y in batches]).tolist() == dcf.load(path).targets


def test_soft_labels_are_items_too(path):
    class Soft(Pixels):
        def labels(self, index):
            return torch.eye(10)[self.view_class[index]]

    one = small_set()
    one.param.__class__ = Soft
    assert one[4][1].tolist() == torch.eye(10)[2].tolist()


# --- through the file ----------------------------------------------------------------------------


def test_what_was_saved_is_loaded(path):
    before, after = small_set(), dcf.load(path)
    assert torch.equal(after.tensors().x, before.tensors().x)
    assert torch.equal(after.tensors().y, before.tensors().y)
    assert (after.spec, after.config, after.seed, after.hints) == (SPEC, before.config, 7, before.hints)
    assert after.metadata["license"] == "CC BY 4.0 é"
    assert read_metadata(path)["storage"]["bytes"] == 20 * 64 * 4


def test_save_load_save_gives_the_same_bytes(path, tmp_path):
    again = tmp_path / "again.safetensors"
    dcf.load(path).save(again)
    assert again.read_bytes() == path.read_bytes()


def test_odd_class_names_and_shapes_survive(tmp_path):
    names = ("", "ä ö", "日本", "a\nb", '"', "😀", "../x", "null")
    spec = DataSpec(5, 3, 7, names, ValueSpace.unit(5))
    small_set(1, spec).save(tmp_path / "a")
    assert dcf.load(tmp_path / "a").spec == spec


def test_what_cannot_be_written_is_an_error_and_changes_nothing(path, monkeypatch):
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="No space left"):
        small_set(3).save(path)
    with pytest.raises(RunError, match="No space left"):
        save_preview(small_set(), path)
    assert (path.read_bytes(), [p.name for p in path.parent.iterdir()]) == (before, [path.name])


# --- damaged -------------------------------------------------------------------------------------


def test_a_set_cut_off_anywhere_is_refused(path):
    whole = path.read_bytes()
    start = read_header(path).start
    for end in {*range(0, len(whole), 97), 7, 8, start - 1, start, start + 1, len(whole) - 1}:
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError):
            load(path)


def test_a_set_with_a_flipped_bit_is_refused_or_the_same(path):
    whole, clean = path.read_bytes(), load(path)
    rng = random.Random(1)
    for at in [*range(8), *(rng.randrange(len(whole)) for _ in range(200))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            one = load(path)
        except DcfError:
            continue
        assert torch.equal(one.tensors().x, clean.tensors().x), at
        assert (one.targets, one.spec, one.config) == (clean.targets, clean.spec, clean.config), at


def test_another_programs_file_is_not_a_set(path):
    path.write_bytes(pack({"x": torch.zeros(1)}, {"format": "pt"}))
    with pytest.raises(FormatError, match="not a condensed set"):
        load(path)


@pytest.mark.parametrize("version", [0, -1, "x", "1", True, 1.0, [1], {}])
def test_an_unknown_version_is_refused(forge, version):
    with pytest.raises(FormatError, match="unknown format version"):
        load(forge({"format": version}))


@pytest.mark.parametrize("version", [FORMAT + 1, 10**30])
def test_a_newer_version_says_to_update(forge, version):
    with pytest.raises(FormatError, match="update dcf-core"):
        load(forge({"format": version}, {"images": None}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(forge, value):
    images = small_set().tensors().x.clone()
    images[3, 0, 0, 0] = value
    with pytest.raises(FormatError, match="NaN or infinite values in 'images'"):
        load(forge(tensors={"images": images}))


@pytest.mark.parametrize(
    "images",
    [None, *(torch.zeros(s) for s in [(19, 1, 8, 8), (20, 1, 8, 9), (20, 64), (20, 3, 8, 8), (), (0, 1, 8, 8)])]
    + [torch.zeros(20, 1, 8, 8, dtype=d) for d in (torch.float64, torch.float16, torch.int64, torch.bool)],
    ids=lambda t: "none" if t is None else f"{tuple(t.shape)} {t.dtype}",
)
def test_images_of_another_form_are_refused(forge, images):
    with pytest.raises(FormatError, match="tensor 'images': expected 20 x 1 x 8 x 8"):
        load(forge(tensors={"images": images}))


def test_a_tensor_that_nobody_asked_for_is_refused(forge):
    with pytest.raises(FormatError, match="tensor 'extra': expected no such tensor, got 3"):
        load(forge(tensors={"extra": torch.zeros(3)}))


def test_a_tensor_with_a_path_for_a_name_is_refused(forge, path):
    with pytest.raises(FormatError, match="a tensor is named"):
        load(forge(tensors={"../x": torch.zeros(1)}))


@pytest.mark.parametrize(
    "labels",
    [
        None,
        torch.arange(10.0).repeat(2),
        torch.arange(10, dtype=torch.int32).repeat(2),
        torch.eye(10).repeat(2, 1),
        torch.zeros(0, dtype=torch.long),
        torch.tensor(3),
        torch.full((20,), 10),
        torch.full((20,), -1),
        torch.full((20,), 2**62),
    ],
    ids=lambda t: "none" if t is None else f"{tuple(t.shape)} {t.dtype} {t.flatten()[:1].tolist()}",
)
def test_labels_that_are_no_labels_are_refused(forge, labels):
    with pytest.raises(FormatError, match=r"it has no labels|outside its 10 classes"):
        load(forge(tensors={"labels": labels}))


# --- hostile -------------------------------------------------------------------------------------

BOMBS = {
    "no JSON": "raw {",
    "empty": "raw ",
    "not a number": "raw NaN",
    "infinite": "raw [1e999]",
    "half a character": 'raw "\\ud800"',
    "digits": "raw " + "9" * 5000,
    "deep": "raw " + "[" * 500 + "]" * 500,
    "very deep": "raw " + "[" * 100_000 + "]" * 100_000,
    "deep tables": "raw " + '{"a":' * 40 + "1" + "}" * 40,
}


@pytest.mark.parametrize("key", ["format", "classes", "config", "note"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_metadata_that_is_no_plain_json_is_refused(forge, key, bomb):
    path = forge({key: BOMBS[bomb]})
    for reader in (read_metadata, load):
        with pytest.raises(FormatError):
            reader(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("shape", v) for v in ([1, 8], [1, 8, 8, 1], [1, 8, -8], [1, 8, 0], [1, 8, 8.0], [True, 8, 8], "188", 3)),
        *(("shape", v) for v in ([1, 2**20, 2**20], [1, 10**30, 1], [2**27, 1, 1], ["1", "8", "8"], None)),
        *(("classes", v) for v in ([], list(range(10)), "0123456789", 10, {"a": 0}, [["0"]], None)),
        *(("space", v) for v in ({}, [], 3, {"kind": "zca"}, {"kind": "unit", "mean": [0], "std": [0]}, None)),
        *(
            ("space", {"kind": "normalized", "mean": m, "std": s})
            for m, s in (([], []), ([0] * 3, [1] * 3), (["nan"], [1]))
        ),
        ("space", {"kind": "normalized", "mean": [0], "std": ["inf"]}),
        *(("config", v) for v in ([], 3, "pixels", None, {"param": ["pixels"]}, {"param": {}}, {"param": "x" * 5000})),
        *(("hints", v) for v in ([], 3, {"lr": "x"}, {"lr": -1}, {"lr": True}, {"ordered": 1}, {"extra": []})),
        *(("seed", v) for v in ("x", -1, 1.5, 2**63, 10**1000, True, [])),
        *(("run", v) for v in ([1], "x", {"protocol_set": [1]}, {"networks": "x"}, {"networks": 0})),
        *(("data", v) for v in ([1], "x")),
        *(("packages", v) for v in ([1], "x")),
    ],
    ids=lambda v: str(v)[:40],
)
def test_metadata_of_another_form_is_refused(forge, key, value):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            load(forge({key: value}))
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_many_claimed_classes_cost_what_they_take_in_the_file(forge):
    begin = time.perf_counter()
    one = load(forge({"classes": [str(n) for n in range(300_000)]}))
    assert one.spec.num_classes == 300_000
    assert class_grid(one).shape[1] < 2000
    assert time.perf_counter() - begin < 5


def test_the_preview_of_large_images_is_small():
    grid = class_grid(small_set(1, DataSpec(1, 1500, 900, ("a", "b"), ValueSpace.unit(1))))
    assert max(grid.shape) <= 2 * 260


@pytest.mark.parametrize(
    "param",
    [
        "",
        "pixels:",
        "pixels:a=1",
        "pixels+pixels",
        "x:a=" + "(" * 1500,
        "x:" + "a=[" * 500,
        "PIXELS",
        "../x",
        "a b",
        "é",
    ],
    ids=lambda p: p[:20],
)
def test_a_parameterization_that_cannot_be_is_refused(forge, param):
    with pytest.raises(PluginError, match="cannot be decoded here"):
        load(forge({"config": {**CONFIG, "param": param}}))


@pytest.mark.parametrize(
    ("packages", "named"),
    [
        ({"param:frob": "dcf-frobnicate 0.3.1"}, "dcf-frobnicate"),
        ({}, "dcf-frob"),
        ({"param:frob": "x; rm -rf ~"}, "dcf-frob"),
        ({"param:frob": "--index-url=http://evil x"}, "dcf-frob"),
        ({"param:frob": ["x"]}, "dcf-frob"),
    ],
)
def test_a_missing_parameterization_names_the_package_to_install(forge, packages, named):
    config = {**CONFIG, "param": "pixels+frob:factor=2"}
    with pytest.raises(PluginError, match=f"'frob' is not installed: pip install {named} ") as caught:
        load(forge({"config": config, "packages": packages}))
    assert "rm -rf" not in str(caught.value)
    assert "evil" not in str(caught.value)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield "trap"
    assert "trap" not in sys.modules


def test_a_dataset_that_is_code_is_not_run(forge, trap):
    path = forge({"config": {**CONFIG, "data": "python:trap.data"}})
    assert load(path).config["data"] == "python:trap.data"
    with pytest.raises(UsageError, match="code that a file names is not run"):
        dcf.evaluate(path)


@pytest.mark.parametrize(
    "text", ["python:trap.x", "trap:x", "trap.x", "trap", 'python:"trap.x"', "torchvision:trap", ""]
)
@pytest.mark.parametrize("role", ["param", "network", "augment", "protocol", "matcher", "init", "data"])
def test_no_spec_in_a_file_imports_code(forge, trap, role, text):
    path = forge(
        {
            "config": {**CONFIG, "protocol": "dcf-std@1", role: text},
            "options": {role: {"target": "trap:x"}},
            "run": {"protocol_set": {"epochs": 1, "steps_min": 0}},
        }
    )
    if role in ("matcher", "init") or (role, text) == (
        "augment",
        "",
    ):  # which say how it was made, and are not needed again
        assert load(path).config[role] == text
        return
    with pytest.raises(DcfError):
        dcf.evaluate(path, networks=1)


@pytest.mark.parametrize(
    "changes", [{"self": 1}, {"name": "x"}, {"epochs": "x"}, {"": 1}, {"augment_for": {}}, {"lr": 0}]
)
def test_protocol_settings_in_a_file_are_checked(forge, changes):
    with pytest.raises(DcfError):
        dcf.evaluate(forge({"run": {"protocol_set": changes}}), networks=1)


def test_a_set_of_other_images_is_not_evaluated(forge):
    with pytest.raises(EvaluationError, match="value space"):
        dcf.evaluate(forge({"space": ValueSpace.unit(1).to_json()}), networks=1)
