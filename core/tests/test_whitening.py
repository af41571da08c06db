"""ZCA whitening: the formula, as the value space of a dataset, kept between runs, and in a file."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcf
import dcf.data
from dcf import DataError, EvaluationError, FormatError, PluginError, ValueSpace
from dcf.augmenter import Augmenter
from dcf.cli.entry import main
from dcf.data import whitened
from dcf.data.base import LabelledPixels, real_data, value_space
from dcf.data.real import Split
from dcf.data.store import TensorStore
from dcf.evaluation.context import EvalContext
from dcf.files import pack, read_header, read_tensors
from dcf.metadata import format_of, read_metadata
from dcf.pixels import Pixels
from dcf.preview import displayable
from dcf.side_by_side import side_by_side
from dcf.synthetic import load
from dcf.testing import fake_data, fake_set
from dcf.testing.fakes import filled
from dcf.whitening import TENSORS, Whitening, fit_whitening, fit_zca, unwhiten, whiten

DIGITS = "digits:norm=zca"
ID = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images(n=40, shape=(3, 4, 5), seed=0):
    """Pixels whose neighbours go together, as those of photographs do."""
    draw = torch.Generator().manual_seed(seed)
    rough = torch.rand(n, *shape, generator=draw, dtype=torch.float64)
    return (rough + rough.mean((-1, -2), keepdim=True)) / 2


def whitened_data(n=40, shape=(3, 4, 5), dtype=torch.float32):
    pixels = images(n, shape).float() if dtype == torch.float32 else (images(n, shape) * 255).to(torch.uint8)
    part = LabelledPixels(pixels, torch.arange(n) % 2)
    space = value_space(pixels, "zca")
    return real_data(part, LabelledPixels(pixels[:6].clone(), part.labels[:6]), "ab", space, "made", "made up")


# --- the formula -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "eps"), [(500, 0.1), (500, 1e-3), (20, 0.1)])
def test_the_formula_entry_by_entry(n, eps):
    x = images(n)
    flat = x.flatten(1)
    got = fit_zca([x], eps)
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (n - 1))
    for matrix, power in ((got.matrix, -0.5), (got.inverse, 0.5)):
        want = sum((s.clamp(min=0) + eps) ** power * torch.outer(u, u) for s, u in zip(values, vectors.T, strict=True))
        assert torch.allclose(matrix, want, atol=1e-10)
    assert torch.allclose(got.mean, flat.mean(0), atol=1e-14)
    assert torch.allclose(got.matrix @ got.inverse, torch.eye(60, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(whiten(x, got)[7].flatten(), (flat[7] - flat.mean(0)) @ got.matrix, atol=1e-12)
    assert torch.allclose(unwhiten(whiten(x, got), got), x, atol=1e-8)


def test_the_covariance_of_whitened_images_is_that_of_the_formula():
    """Variance s comes out as s / (s + eps): nearly 1 where s is large, not blown up where it is small."""
    x = images(500)
    z = whiten(x, fit_zca([x], 0.01)).flatten(1)
    found = torch.linalg.eigvalsh(z.T.cov())
    before = torch.linalg.eigvalsh(x.flatten(1).T.cov())
    assert torch.allclose(found, before / (before + 0.01), atol=1e-10)
    assert z.mean(0).abs().max() < 1e-12


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_pieces_do_not_matter(sizes, seed):
    x = (images(sum(sizes), (1, 3, 2), seed) * 255).to(torch.uint8)
    whole, parts = fit_zca([x], levels=255), fit_zca(x.split(sizes), levels=255)
    pixels = fit_zca([x.double() / 255])
    for a, b, c in zip(whole, parts, pixels, strict=True):
        assert torch.equal(a, b)  # sums of 8-bit values are exact
        assert torch.allclose(a, c, atol=1e-9)


def test_constant_images_and_a_single_one_can_be_whitened():
    for x in (torch.full((5, 1, 2, 2), 0.3), images(1, (1, 2, 2))):
        zca = fit_zca([x])
        assert torch.allclose(zca.matrix, torch.eye(4, dtype=torch.float64) / 0.1**0.5, atol=1e-6)


def test_low_precision_of_products_does_not_reach_the_pixels():
    before = torch.get_float32_matmul_precision()
    x = images(60).float()
    white = fit_whitening(TensorStore(x))
    want = white.encode(x)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = white.encode(x)
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


# --- as a value space --------------------------------------------------------------------------------------------


def test_a_whitened_space_is_known_by_its_id():
    one, same, other = (
        ValueSpace.whitened(Whitening(i, (1, 2, 2), 0.1, fit_zca([images(9, (1, 2, 2), s)])))
        for i, s in ((ID, 0), (ID, 1), (ID[::-1], 0))
    )
    assert one == same != other
    assert hash(one) == hash(same)
    assert one != ValueSpace.unit(1)
    assert (one.kind, one.mean, one.std) == ("zca", (0.0,), (1.0,))
    assert one.to_json() == {"kind": "zca", "id": ID, "eps": 0.1, "convention": "zca-kornia"}
    for text in (str(one), repr(one)):
        assert ID[:12] in text
        assert len(text) < 100
    assert len(str(ValueSpace((0.123456,) * 90, (1.0,) * 90))) < 100
    with pytest.raises(ValueError, match="means of 0"):
        ValueSpace((0.5,), (1.0,), one.whitening)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Whitening("x", (1, 2, 2), 0.1, fit_zca([images(9, (1, 2, 2))]))


def test_encode_and_decode_take_any_axes_and_the_shape_of_the_images():
    space = ValueSpace.whitened(fit_whitening(TensorStore(images().float())))
    x = images(6).view(2, 3, 3, 4, 5)
    for dtype, close in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        z = space.encode(x.to(dtype))
        assert (z.shape, z.dtype) == (x.shape, dtype)
        assert torch.allclose(space.decode(z), x.to(dtype), atol=close)
        assert torch.allclose(space.encode(x[1, 2].to(dtype)), z[1, 2], atol=close)
    with pytest.raises(ValueError, match="expected images of"):
        space.encode(torch.rand(2, 3, 5, 4))
    values = torch.zeros(1, 3, 4, 5, requires_grad=True)
    space.decode(values).sum().backward()
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize(
    ("space", "good"),
    [
        (ValueSpace.unit(1), ["any", "unit"]),
        (ValueSpace((0.5,), (0.5,)), ["any", "normalized"]),
        (None, ["any", "normalized"]),
    ],
)
def test_which_values_an_augmentation_may_expect(space, good):
    space = space or ValueSpace.whitened(fit_whitening(TensorStore(images().float())))
    assert [w for w in ("any", "unit", "normalized") if space.suits(w)] == good


def test_value_spaces_are_free_of_torch():
    code = "import sys, dcf.space, dcf.types, dcf.metadata; assert not {'torch', 'numpy'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- as data -----------------------------------------------------------------------------------------------------


def test_whitened_digits():
    data, plain = dcf.data.load(DIGITS), dcf.data.load("digits")
    assert (data.id, data.spec.space.kind) == (DIGITS, "zca")
    assert data.checksum == plain.checksum
    assert data.train.store.dtype == torch.uint8
    z = data.train.images(torch.arange(len(data.train)))
    pixels = data.train.store.pixels.double() / 16
    want = whiten(pixels, fit_zca([pixels]))
    assert torch.allclose(z.double(), want, atol=1e-5)
    assert z.flatten(1).mean(0).abs().max() < 1e-5
    test = data.test.images(torch.arange(5))  # with what the training images gave
    assert torch.allclose(test.double(), whiten(data.test.store.pixels[:5].double() / 16, fit_zca([pixels])), atol=1e-5)
    assert torch.allclose(data.spec.space.decode(test), data.test.store.pixels[:5] / 16, atol=1e-5)


def test_the_id_says_what_was_fitted_and_how():
    pixels = (images() * 255).to(torch.uint8)
    first = fit_whitening(TensorStore(pixels)).id
    assert fit_whitening(TensorStore(pixels.clone())).id == first
    assert fit_whitening(TensorStore(pixels), eps=0.2).id != first
    assert fit_whitening(TensorStore(pixels), 254).id != first
    assert fit_whitening(TensorStore(pixels.view(40, 3, 5, 4))).id != first
    pixels[3, 0, 0, 0] ^= 1
    assert fit_whitening(TensorStore(pixels)).id != first
    assert dcf.data.load(DIGITS).spec.space == dcf.data.load(DIGITS).spec.space


def test_threads_may_take_images_of_a_split_at_once(monkeypatch):
    monkeypatch.setattr(whitened, "_PIECE", 7)
    make, made = whitened.WhitenedCopy._make, []

    def slowly(self, part):
        time.sleep(0.005)
        made.append(part.start)
        make(self, part)

    wanted = whitened_data().train.images(torch.arange(40))
    monkeypatch.setattr(whitened.WhitenedCopy, "_make", slowly)
    split = whitened_data().train
    found = side_by_side([lambda: split.images(torch.arange(40))] * 3)
    assert all(torch.equal(one, found[0]) for one in found)
    assert torch.allclose(found[0], wanted, atol=1e-5)
    assert made == list(range(0, 40, 7)), "each piece once"


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["kept", "on use"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_splits_deliver_whitened_images(monkeypatch, limit, dtype):
    monkeypatch.setattr(whitened, "MOST_BYTES", limit)
    monkeypatch.setattr(whitened, "_PIECE", 7)
    data = whitened_data(dtype=dtype)
    train, pixels = data.train, data.train.store.pixels.double() / data.train.levels
    want = whiten(pixels, fit_zca([pixels])).float()
    index = torch.tensor([[39, 3], [3, 0]])
    first = train.images(index)
    assert torch.allclose(first, want[index], atol=1e-5)
    first += 1  # what is handed out is a copy
    assert torch.allclose(train.images(index), want[index], atol=1e-5)
    batches = [b.x for b in train.batches(16)]
    batches[0] += 1
    assert torch.allclose(torch.cat([b.x for b in train.batches(16)]), want, atol=1e-5)
    assert torch.allclose(train.select(torch.tensor([5, 2])).images(torch.tensor([1])), want[[2]], atol=1e-5)
    assert torch.allclose(data.to("cpu").test.images(torch.arange(6)), want[:6], atol=1e-5)
    held = data.holdout(0.5, torch.Generator().manual_seed(0))
    assert held.spec.space == data.spec.space
    assert any(torch.allclose(held.test.images(torch.tensor([0]))[0], one, atol=1e-5) for one in want)
    assert train.images(torch.empty(0, dtype=torch.long)).shape == (0, 3, 4, 5)


def test_only_what_is_taken_is_whitened_and_only_once(monkeypatch):
    monkeypatch.setattr(whitened, "_PIECE", 10)
    split, calls = whitened_data().train, []
    encode = Whitening.encode
    monkeypatch.setattr(Whitening, "encode", lambda self, x: calls.append(len(x)) or encode(self, x))
    one = split.images(torch.tensor([12, 19]))
    assert calls == [10]
    split.images(torch.tensor([11, 35]))
    assert calls == [10, 10]
    everything = split.images(torch.arange(40))
    assert calls == [10] * 4
    assert torch.equal(everything[[12, 19]], one)  # the same bits whatever is taken together
    list(split.batches(8))
    assert len(calls) == 4


def test_an_empty_split_can_be_whitened():
    space = value_space(images().float(), "zca")
    assert list(Split(torch.empty(0, 3, 4, 5), torch.empty(0), space, 2).batches(3)) == []


def test_parts_of_whitened_data_keep_its_whitening_unless_told_otherwise():
    base = dcf.data.load(DIGITS)
    part = dcf.data.load(f"subset:base=({DIGITS}),classes=[1,2],per_class=20")
    assert part.spec.space == base.spec.space
    own = dcf.data.load("subset:base=(digits),classes=[1,2],per_class=20,norm=zca")
    assert own.spec.space.kind == "zca"
    assert own.spec.space != base.spec.space
    assert own.train.images(torch.arange(40)).flatten(1).mean(0).abs().max() < 1e-5
    assert own.id == "subset:base=(digits),classes=[1,2],per_class=20,norm=zca"


def test_texture_is_laid_over_pixels_and_the_blend_is_whitened():
    plain = dcf.data.load("nuisance:base=(digits),background=(digits),norm=zca")
    other = dcf.data.load(f"nuisance:base=({DIGITS}),background=(digits),norm=zca")
    assert plain.spec.space == other.spec.space
    assert plain.train.images(torch.arange(1442)).flatten(1).mean(0).abs().max() < 1e-5


def test_images_that_are_too_large_are_refused_before_any_work():
    with pytest.raises(DataError, match="196,608 x 196,608; at most 12,288"):
        value_space(torch.zeros(1, 3, 256, 256, dtype=torch.uint8), "zca")
    with pytest.raises(DataError, match="no training images"):
        fit_whitening(TensorStore(torch.zeros(0, 1, 2, 2)))


def test_a_folder_can_be_whitened(tmp_path):
    from PIL import Image

    for c in "ab":
        for n in range(4):
            path = tmp_path / "data" / c / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((images(1, (5, 4, 3), n)[0] * 255).to(torch.uint8).numpy()).save(path)
    data = dcf.data.load(f'folder:path="{tmp_path / "data"}",norm=zca,split=0')
    assert data.train.images(torch.arange(8)).flatten(1).mean(0).abs().max() < 1e-5


# --- kept between runs -------------------------------------------------------------------------------------------


def test_the_fit_is_made_when_needed_once_and_kept(cache, monkeypatch, caplog):
    made = []
    monkeypatch.setattr("dcf.whitening.fit_zca", lambda *a: made.append(1) or fit_zca(*a))
    monkeypatch.setattr("dcf.whitening._SLOW", 64)
    with caplog.at_level(logging.INFO):
        first = dcf.data.load(DIGITS)
        assert first.spec.space == dcf.data.load(DIGITS).spec.space
        assert not made  # spaces are compared without it
        images = first.train.images(torch.arange(3)), first.test.images(torch.arange(3))
        assert made == [1]
        again = dcf.data.load(DIGITS)
        assert torch.equal(again.train.images(torch.arange(3)), images[0])
    assert made == [1]
    assert len(list((cache / "artifacts" / "whitening").glob("*.safetensors"))) == 1
    said = [m for m in caplog.messages if "whitening" in m]
    assert said == ["computing the ZCA whitening of 1442 images of 64 values; done once and kept"]


# --- in a file ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A condensed set of whitened digits, and its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        path = tmp_path_factory.mktemp("made") / "run"
        one = dcf.condense(
            data=DIGITS, matcher="dm", ipc=2, iterations=2, network="convnet:width=4,depth=1", out=path, seed=3,
            overrides={"protocol.steps_min": "10", "protocol.epochs": "5"}, baselines=["random"], networks=1,
        )  # fmt: skip
    return one, path / "synthetic.safetensors"


@pytest.fixture
def forge(made, tmp_path):
    """A copy of the file with parts replaced, and a digest that is right; None drops an entry."""

    def change(space=None, tensors=(), **metadata):
        stored, text = read_tensors(made[1])
        stored.update(tensors)
        if space is not None:
            text["dcf.space"] = json.dumps({**json.loads(text["dcf.space"]), **space})
        text |= {f"dcf.{k}": json.dumps(v) for k, v in metadata.items()}
        path = tmp_path / "forged.safetensors"
        path.write_bytes(pack({k: t for k, t in stored.items() if t is not None}, text))
        return path

    return change


def test_a_condensed_set_of_whitened_digits_evaluates_to_the_same_rows(made):
    one, path = made
    report = dcf.evaluate(path, networks=1, baselines=["random"])
    for part in ("rows", "summary", "baselines"):
        assert report.to_json(timing=False)[part] == one.metadata["results"][part]


def test_the_file_decodes_by_itself(made, monkeypatch):
    one, path = made
    monkeypatch.setattr("dcf.whitening.fit_zca", None)
    monkeypatch.setattr("dcf.data.digits.Digits.load", None)
    loaded = load(path)
    assert loaded.space == one.space
    for a, b in zip(loaded.space.whitening.zca, one.space.whitening.zca, strict=True):
        assert torch.equal(a, b)
    x = loaded.tensors().x
    assert torch.equal(x, one.tensors().x)
    pixels = loaded.space.decode(x)
    assert torch.allclose(loaded.space.encode(pixels), x, atol=1e-4)
    assert torch.equal(displayable(x, loaded.space), (pixels.clamp(0, 1) * 255).round().to(torch.uint8))


def test_the_file_says_what_the_whitening_costs_and_no_budget_counts_it(made):
    header = read_metadata(made[1])
    assert (header["format"], header["space"]["kind"], header["generator"]) == (3, "zca", "dcf format 3")
    storage = header["storage"]
    assert storage["bytes"] == 20 * 64 * 4
    assert storage["space_bytes"] == 4 * (64 + 2 * 64 * 64)
    assert storage["payload_bytes"] == read_header(made[1]).nbytes
    assert storage["utilisation"] == 1.0
    assert set(TENSORS) < set(read_header(made[1]).tensors)
    plain = fake_set().storage().to_json()
    assert "space_bytes" not in plain


def test_info_says_what_the_whitening_adds(made, capsys):
    assert main(["info", str(made[1])]) == 0
    assert "33,024 bytes of whitening that no budget counts" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("store", ["fp16", "uint8"])
def test_rounding_leaves_the_whitening_alone(made, tmp_path, store):
    rounded = made[0].stored_as(store)
    rounded.save(tmp_path / "set.safetensors")
    loaded = load(tmp_path / "set.safetensors")
    assert loaded.store == store
    assert read_metadata(tmp_path / "set.safetensors")["format"] == 3
    assert torch.equal(loaded.space.whitening.zca.matrix, made[0].space.whitening.zca.matrix)
    assert torch.equal(loaded.tensors().x, rounded.tensors().x)
    assert loaded.storage().to_json() == rounded.storage().to_json()


def test_files_have_the_smallest_version_that_they_can_do_with(made):
    assert [format_of(store, made[0].space) for store in ("fp32", "fp16")] == [3, 3]
    assert [format_of(store, ValueSpace.unit(1)) for store in ("fp32", "fp16")] == [1, 2]


@pytest.mark.parametrize("data", ["digits", "digits:norm=unit", "subset:base=(digits),per_class=9,norm=zca"])
def test_another_space_is_refused(made, capsys, data):
    with pytest.raises(EvaluationError, match="accuracies would mean nothing") as error:
        dcf.evaluate(made[1], data=data, networks=1)
    assert len(str(error.value)) < 250
    with pytest.raises(EvaluationError, match="value space: expected") as error:
        EvalContext(dcf.data.load(data)).check([made[0]])
    assert len(str(error.value)) < 250
    assert main(["evaluate", str(made[1]), "--data", data]) == 1
    assert "accuracies would mean nothing" in capsys.readouterr().err


DAMAGES = {
    "missing": ({}, {"space.inverse": None}, "expected (64, 64) torch.float32, got none"),
    "all missing": ({}, dict.fromkeys(TENSORS), "tensor 'space.mean'"),
    "shape": ({}, {"space.matrix": torch.eye(63)}, "got (63, 63)"),
    "flat": ({}, {"space.mean": torch.zeros(1, 64)}, "got (1, 64)"),
    "dtype": ({}, {"space.mean": torch.zeros(64).double()}, "torch.float64"),
    "nan": ({}, {"space.matrix": torch.full((64, 64), float("nan"))}, "NaN or infinite"),
    "infinite": ({}, {"space.mean": torch.full((64,), float("inf"))}, "NaN or infinite"),
    "further": ({}, {"space.more": torch.zeros(3)}, "space.more"),
    "id": ({"id": "ABC"}, {}, "description"),
    "long id": ({"id": ID + "0"}, {}, "description"),
    "no id": ({"id": None}, {}, "description"),
    "id list": ({"id": [ID]}, {}, "description"),
    "eps": ({"eps": "0.1"}, {}, "description"),
    "eps 0": ({"eps": 0.0}, {}, "description"),
    "convention": ({"convention": "zca-kip"}, {}, "'zca-kip' is unknown"),
    "convention table": ({"convention": {}}, {}, "unknown"),
    "kind": ({"kind": "unit"}, {}, "'space'"),
    "new kind": ({"kind": "pca"}, {}, "'space'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_hostile_whitening_is_one_message(forge, capsys, name):
    space, tensors, said = DAMAGES[name]
    path = forge(space, tensors)
    with pytest.raises(FormatError, match=r"forged\.safetensors") as error:
        load(path)
    assert said in str(error.value)
    assert main(["evaluate", str(path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("version", [1, 2])
def test_a_whitened_set_of_an_older_version_cannot_be(forge, version):
    with pytest.raises(FormatError, match="damaged"):
        load(forge(format=version))


def test_the_names_of_its_tensors_are_taken(tmp_path):
    class Colliding(Pixels):
        def encode(self, x):
            return {"space.mean": x}

        def decode(self, latents, size):
            return latents["space.mean"]

    one = fake_set(filled(Colliding(), fake_data()))
    with pytest.raises(PluginError, match=r"'space\.mean', which in a file holds the whitening"):
        one.save(tmp_path / "set.safetensors")


# --- with augmentation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expects", "warned"), [("normalized", False), ("unit", True)])
def test_whitened_values_count_as_normalized(made, expects, warned):
    class Picky(Augmenter):
        space = expects

        def draw(self, n, shape, generator, shared):
            return ()

        def apply(self, batch, values):
            return batch

    ctx = EvalContext(
        dcf.data.load(DIGITS), networks=1, baselines=(), objects={"picky": Picky()},
        overrides={"augment": "picky", "steps_min": 1, "epochs": 1},
    )  # fmt: skip
    from dcf.evaluation.fit import set_row

    measured = set_row([made[0]], ctx, "convnet:width=4,depth=1")
    assert bool(measured.warnings) == warned
