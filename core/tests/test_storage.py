"""How floats are written and read back, what that costs to the byte, and how many items a budget pays for."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcf
from dcf.budget import STORES, Budget, image_numbers
from dcf.errors import BudgetError, FormatError, PluginError, RunError
from dcf.files import pack, read_header, read_tensors
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.planning import plan_items
from dcf.preview import class_grid
from dcf.storage import decode, encode, layout, measure, stored
from dcf.synthetic import SyntheticSet, load
from dcf.testing.fakes import fake_data, fake_set, fake_spec, filled

ROUNDED = STORES[1:]
CONFIG = {"data": "digits", "matcher": "none", "param": "pixels", "augment": "none", "network": "mlp"}
FLOATS = st.floats(-60000, 60000, width=32)


def pixels(items=2, spec=None, seed=0):
    spec = spec or fake_spec()
    param = Pixels()
    param.allocate(spec, torch.arange(spec.num_classes).repeat_interleave(items))
    param.absorb(torch.randn(len(param.view_class), *spec.shape, generator=torch.Generator().manual_seed(seed)))
    return param


def small_set(store, items=2, spec=None, **metadata):
    spec = spec or fake_spec()
    return SyntheticSet(pixels(items, spec), spec, CONFIG, 7, None, metadata, store)


@pytest.fixture(params=ROUNDED)
def store(request):
    return request.param


@pytest.fixture
def path(tmp_path, store):
    small_set(store).save(tmp_path / "set.safetensors")
    return tmp_path / "set.safetensors"


@pytest.fixture
def forge(path):
    """Replace parts of the file, with a digest that is right."""

    def change(metadata=(), tensors=()):
        found, text = read_tensors(path)
        found.update(tensors)
        text |= {f"dcf.{key}": json.dumps(value) for key, value in dict(metadata).items()}
        kept = {k: v for k, v in text.items() if v != "null"}
        path.write_bytes(pack({k: t for k, t in found.items() if t is not None}, kept))
        return path

    return change


# --- one tensor ----------------------------------------------------------------------------------


def codes_by_hand(row):
    """Slow reference: 256 equally spaced levels from the smallest to the largest value, the nearest one each."""
    low, high = min(row), max(row)
    levels = [low + (high - low) * k / 255 for k in range(256)]
    return [min(range(256), key=lambda k: abs(levels[k] - value)) for value in row]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=5, max_size=5), min_size=1, max_size=3))
def test_codes_are_the_nearest_of_256_levels_of_each_row(rows):
    plain = {"x": torch.tensor(rows)}
    written = encode(plain, "uint8")
    again = decode(written, plain, "uint8")["x"]
    for number, row in enumerate(plain["x"].tolist()):
        step = (max(row) - min(row)) / 255
        room = 0.51 * step + 1e-6 * max(map(abs, row))  # half a level, and the rounding of float32
        assert (again[number] - plain["x"][number]).abs().max() <= room
        if step > 1e-4 * max(map(abs, row)):
            ours, reference = written["x"][number].tolist(), codes_by_hand(row)
            assert max(abs(a - b) for a, b in zip(ours, reference, strict=True)) <= 1  # a tie may go either way
    assert torch.equal(written["x.zero"], plain["x"].amin(1))


def test_the_example_of_the_documentation():
    plain = {"x": torch.tensor([[0.0, 0.6, 1.0, 0.25], [3.0, 3.0, 3.0, 3.0]])}
    written = encode(plain, "uint8")
    assert written["x"].tolist() == [[0, 153, 255, 64], [0, 0, 0, 0]]
    assert written["x.scale"].tolist() == [pytest.approx(1 / 255), 0]
    again = decode(written, plain, "uint8")["x"]
    assert torch.equal(again, written["x.zero"][:, None] + written["x.scale"][:, None] * written["x"].float())
    assert torch.equal(again[1], plain["x"][1]), "a constant row is exact"


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.4e38, -7.25])
def test_constant_rows_are_exact(value):
    plain = {"x": torch.full((2, 9), value)}
    assert torch.equal(decode(encode(plain, "uint8"), plain, "uint8")["x"], plain["x"])


@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_fp16_is_a_cast(values):
    plain = {"x": torch.tensor(values)}
    assert torch.equal(encode(plain, "fp16")["x"], plain["x"].half())
    assert torch.equal(decode(encode(plain, "fp16"), plain, "fp16")["x"], plain["x"].half().float())


def test_only_floats_are_rounded_and_tiny_rows_are_left_alone(store):
    plain = {
        "whole": torch.arange(6).view(2, 3),
        "flag": torch.tensor([True]),
        "byte": torch.arange(8, dtype=torch.uint8).view(1, 8),
        "number": torch.tensor(0.1),
        "vector": torch.rand(9),
        "pair": torch.rand(9, 2),
        "none": torch.rand(0, 9),
        "half": torch.rand(2, 8).half(),
        "wide": torch.rand(2, 3),
        "double": torch.rand(2, 3).double(),
    }
    written = encode(plain, store)
    for name in ("whole", "flag", "byte"):
        assert torch.equal(written[name], plain[name])
    again = decode(written, plain, store)
    assert {k: v.dtype for k, v in again.items()} == {k: v.dtype for k, v in plain.items()}
    coded = {name.removesuffix(".scale") for name in written if name.endswith(".scale")}
    assert coded == ({"wide", "double"} if store == "uint8" else set())  # eight halves are as short as eight codes
    exact = {name for name in plain if torch.equal(again[name], plain[name])}
    if store == "uint8":
        assert exact >= {"number", "vector", "pair", "half"}
    else:
        assert exact >= {"half"}
        assert {"number", "vector", "pair", "wide", "double"}.isdisjoint(exact)


@pytest.mark.parametrize(("value", "store"), [(65520.0, "fp16"), (-1e9, "fp16"), (float("inf"), "uint8")])
def test_a_value_out_of_reach_is_one_error_with_advice(value, store):
    plain = {"x": torch.zeros(2, 9)}
    plain["x"][1, 3] = value
    with pytest.raises(RunError, match=rf"'x' holds values up to .* as {store}(.|\n)*--store fp32"):
        encode(plain, store)
    assert torch.isfinite(encode({"x": torch.full((1, 9), 65504.0)}, "fp16")["x"]).all()


def test_the_whole_range_of_float32_can_be_coded_or_is_refused():
    plain = {"x": torch.tensor([[-1e38, 0.0, 1e38]])}
    again = decode(encode(plain, "uint8"), plain, "uint8")["x"]
    assert (again - plain["x"]).abs().max() < 1e36
    with pytest.raises(RunError, match="--store fp32"):
        encode({"x": torch.tensor([[-3.4e38, 0.0, 3.4e38]])}, "uint8")


def test_a_name_that_is_taken_is_an_error_and_not_a_mixture():
    taken = {"x": torch.rand(2, 9), "x.scale": torch.rand(2)}
    for use in (layout, encode, stored):
        with pytest.raises(PluginError, match=r"'x' and 'x\.scale' cannot be stored as uint8"):
            use(taken, "uint8")
    assert set(encode(taken, "fp16")) == set(taken)


@pytest.mark.parametrize("store", STORES)
def test_what_is_reported_is_what_is_written(store):
    tensors = {"a": torch.rand(3, 4, 5), "b": torch.rand(7), "c": torch.arange(5), "d": torch.rand(2, 2)}
    written = encode(tensors, store)
    told = {t.name: t for t in stored(tensors, store)}
    assert set(told) == set(written)
    for name, tensor in written.items():
        assert told[name].shape == tuple(tensor.shape)
        assert told[name].dtype == str(tensor.dtype).removeprefix("torch.")
        assert (told[name].floats, told[name].nbytes) == (tensor.numel(), tensor.numel() * tensor.element_size())
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    assert stored(meta, store) == stored(tensors, store)


# --- sets and their files ------------------------------------------------------------------------


def test_a_set_holds_what_its_file_gives_back(store, path):
    exact, rounded, loaded = pixels(), small_set(store), dcf.load(path)
    assert not torch.equal(rounded.tensors().x, exact.images(torch.arange(4)))
    assert torch.equal(rounded.tensors().x, loaded.tensors().x)
    assert loaded.tensors().x.dtype == torch.float32
    assert torch.equal(class_grid(rounded), class_grid(loaded))
    assert (loaded.store, loaded.storage(), loaded.spec) == (store, rounded.storage(), rounded.spec)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.param.parameters())


def test_rounding_leaves_the_original_alone(store):
    exact = pixels()
    before = exact.images(torch.arange(4)).clone()
    SyntheticSet(exact, fake_spec(), CONFIG, store=store)
    assert torch.equal(exact.images(torch.arange(4)), before)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("seed", range(5))
def test_save_load_save_gives_the_same_bytes(tmp_path, store, seed):
    param = pixels(seed=seed)
    with torch.no_grad():  # far from zero, where a scale cannot be found again from the rounded values
        param.latents()["images"].mul_(1e-3).add_(1e3)
    first = tmp_path / "first"
    SyntheticSet(param, fake_spec(), CONFIG, store=store).save(first)
    again = tmp_path / "again"
    for _ in range(3):
        load(first).save(again)
        assert again.read_bytes() == first.read_bytes()


def test_what_is_changed_after_loading_is_saved(path, store, tmp_path):
    one = load(path)
    with torch.no_grad():
        one.param.latents()["images"].add_(1.0)
    one.save(tmp_path / "changed")
    assert torch.allclose(load(tmp_path / "changed").tensors().x, one.tensors().x, atol=0.02)
    assert not torch.allclose(load(tmp_path / "changed").tensors().x, load(path).tensors().x, atol=0.5)


def test_a_set_can_be_stored_in_another_way(store):
    one = small_set("fp32", results={"summary": {}})
    other = one.stored_as(store)
    assert (other.store, one.store) == (store, "fp32")
    assert "results" not in other.metadata, "they are those of other numbers"
    assert other.storage().nbytes < one.storage().nbytes
    assert torch.equal(other.stored_as("fp32").tensors().x, other.tensors().x)


def test_plain_files_stay_of_format_1(tmp_path, store):
    small_set("fp32").save(tmp_path / "plain")
    small_set(store).save(tmp_path / "rounded")
    plain, rounded = (dcf.synthetic.read_metadata(tmp_path / n) for n in ("plain", "rounded"))
    assert (plain["format"], "store" in plain) == (1, False)
    assert (rounded["format"], rounded["store"]) == (2, {"dtype": store})
    assert set(read_header(tmp_path / "plain").tensors) == {"images", "labels"}


@pytest.mark.parametrize("store", STORES)
def test_soft_labels_and_decoders_are_counted_and_class_numbers_are_not(store, tmp_path):
    one = small_set(store, run={"ipc": 3, "budget": None})
    one.save(tmp_path / "set")
    told = one.storage().to_json()
    assert told["payload_bytes"] == read_header(tmp_path / "set").nbytes
    assert told["payload_bytes"] - told["bytes"] == told["label_bytes"] == 4 * 8
    assert told["views_per_class"] == 2
    assert told["utilisation"] == pytest.approx(2 / 3)
    assert told == dcf.synthetic.read_metadata(tmp_path / "set")["storage"]
    json.dumps(told, allow_nan=False)


def test_unequal_views_are_told_as_a_range():
    param = Pixels()
    param.allocate(fake_spec(3), torch.tensor([0, 0, 2]))
    assert measure(param).to_json()["views_per_class"] == {"min": 0, "max": 2}
    assert measure(param).utilisation is None


# --- hostile files -------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["uint8"], indirect=True)
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        *(
            ("images.scale", t)
            for t in (None, torch.ones(3), torch.ones(4, 1), torch.tensor(1.0), torch.ones(4).half())
        ),
        *(("images.zero", t) for t in (None, torch.zeros(5), torch.zeros(4, dtype=torch.int32))),
        *(("images", t) for t in (None, torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 9, dtype=torch.uint8))),
        ("labels.scale", torch.ones(4)),
        ("images.scale.scale", torch.ones(4)),
    ],
    ids=lambda v: v if isinstance(v, str) else "none" if v is None else f"{tuple(v.shape)} {v.dtype}",
)
def test_codes_of_another_form_are_refused(forge, name, tensor):
    with pytest.raises(FormatError, match=r"tensor '.*': expected"):
        load(forge(tensors={name: tensor}))


@pytest.mark.parametrize("store", ["uint8"], indirect=True)
@pytest.mark.parametrize("name", ["images.scale", "images.zero"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scales_that_are_not_finite_are_refused(forge, name, value):
    with pytest.raises(FormatError, match=f"NaN or infinite values in '{name}'"):
        load(forge(tensors={name: torch.tensor([1.0, value, 1.0, 1.0])}))


@pytest.mark.parametrize("store", ["uint8"], indirect=True)
def test_codes_that_stand_for_infinity_are_refused(forge):
    with pytest.raises(FormatError, match="NaN or infinite values in 'images'"):
        load(forge(tensors={"images.scale": torch.full((4,), 3e38)}))


@pytest.mark.parametrize("store", ["fp16"], indirect=True)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_halves_that_are_not_finite_are_refused(forge, value):
    with pytest.raises(FormatError, match="NaN or infinite values in 'images'"):
        load(forge(tensors={"images": torch.full((4, 3, 8, 8), value).half()}))


@pytest.mark.parametrize(
    "metadata",
    [
        *({"store": {"dtype": d}} for d in ("fp32", "int4", "", 3, None, ["fp16"], {"fp16": 1})),
        *({"store": s} for s in ("fp16", [], {}, {"dtype": "fp16", "more": 1}, None)),
        {"format": 1},
        {"format": 1, "store": None},
    ],
    ids=str,
)
def test_claims_that_do_not_match_are_refused(forge, metadata):
    with pytest.raises(FormatError):
        load(forge(metadata))


def test_the_store_of_another_file_is_refused(forge, store):
    other = next(s for s in ROUNDED if s != store)
    with pytest.raises(FormatError, match="tensor 'images"):
        load(forge({"store": {"dtype": other}}))


# --- budgets -------------------------------------------------------------------------------------


class Shared(Pixels):
    """Pixels, and a decoder that all of them share."""

    def allocate(self, spec, item_class):
        super().allocate(spec, item_class)
        self.register_parameter("decoder", torch.nn.Parameter(torch.zeros(6, 7)))


class Pairs(Pixels):
    """Plans items by twos only, and refuses less than two images a class."""

    def plan(self, spec, floats):
        pairs = floats // (2 * spec.num_classes * 192)
        if pairs < 1:
            raise BudgetError(f"two images a class cost {2 * spec.num_classes * 192} floats")
        return 2 * pairs


class Never(Pixels):
    """Fits into no budget."""

    def plan(self, spec, floats):
        raise BudgetError("never: images of 8 x 8 are too small for it")


class Halves(Pixels):
    """Stores 16-bit floats itself."""

    def encode(self, images):
        return {"images": images.half()}

    def decode(self, latents, size):
        return latents["images"].float()


def plan(param, text, store, spec=None):
    spec = spec or fake_spec()
    unit, _, number = text.partition("=")
    ipc, budget = (int(number), None) if unit == "ipc" else (None, text)
    budget = Budget.of(ipc, budget, 192, spec.num_classes, store)
    return plan_items(param, spec, budget, store)


@pytest.mark.parametrize(
    ("budget", "store", "items"),
    [
        *(("ipc=10", s, 10) for s in STORES),
        *(("floats=3840", s, n) for s, n in (("fp32", 10), ("fp16", 10), ("uint8", 9))),
        *(("bytes=15360", s, n) for s, n in (("fp32", 10), ("fp16", 20), ("uint8", 38))),
        *(("bytes=1600", s, n) for s, n in (("fp32", 1), ("fp16", 2), ("uint8", 4))),
    ],
)
def test_rounded_floats_leave_room_for_more(budget, store, items):
    assert plan(Pixels(), budget, store) == items


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([Pixels, Shared, Halves]), st.sampled_from(STORES), st.sampled_from(["floats", "bytes"]),
       st.integers(1, 30_000))  # fmt: skip
def test_a_budget_is_kept_and_one_more_would_exceed_it(cls, store, unit, number):
    def spent(items):
        storage = measure(filled(cls(), fake_data(), items), store)
        return storage.nbytes if unit == "bytes" else storage.floats

    if number < spent(1):
        with pytest.raises(BudgetError, match=f"the smallest that works is {unit}={spent(1)}$"):
            plan(cls(), f"{unit}={number}", store)
    else:
        items = plan(cls(), f"{unit}={number}", store)
        assert spent(items) <= number < spent(items + 1)


def test_a_rule_of_its_own_is_respected(store):
    assert [plan(Pairs(), f"ipc={n}", "fp32") for n in (2, 3, 4, 5)] == [2, 2, 4, 4]
    assert plan(Pairs(), "bytes=15360", "fp16") == 20
    assert plan(Pairs(), "bytes=15360", "uint8") == 38
    assert plan(Pairs(), "bytes=15199", "uint8") == 36  # 38 items take 15200
    assert plan(Pairs(), "ipc=5", store) % 2 == 0


@pytest.mark.parametrize("unit", ["ipc", "floats", "bytes"])
@pytest.mark.parametrize("cls", [Pixels, Shared, Pairs, Halves])
@pytest.mark.parametrize("store", STORES)
def test_the_smallest_budget_that_is_named_works_and_is_the_smallest(cls, store, unit):
    with pytest.raises(BudgetError, match=f"smallest that works is {unit}=") as refused:
        # More than one plain image costs: a budget of ipc=1 that holds nothing.
        plan(type("Costly", (cls,), {"allocate": costly(cls)})(), f"{unit}=1", store)
    named = str(refused.value).rpartition(" ")[2]
    least = int(named.partition("=")[2])
    costly_cls = type("Costly", (cls,), {"allocate": costly(cls)})
    assert plan(costly_cls(), named, store) >= 1
    with pytest.raises(BudgetError):
        plan(costly_cls(), f"{unit}={least - 1}", store)


def costly(cls):
    def allocate(self, spec, item_class):
        cls.allocate(self, spec, item_class)
        self.register_parameter("table", torch.nn.Parameter(torch.zeros(30, 40)))

    return allocate


def test_what_fits_into_no_budget_says_why_itself(store):
    with pytest.raises(BudgetError, match="never: images of 8 x 8 are too small"):
        plan(Never(), "bytes=100000", store)


def test_a_large_budget_is_planned_quickly(store):
    class Counted(Parameterization):
        asked = 0

        def plan(self, spec, floats):
            Counted.asked += 1
            return super().plan(spec, floats)

        encode, decode = Pixels.encode, Pixels.decode

    assert plan(Counted(), "bytes=3000000", store) > 3000
    assert Counted.asked <= 2


@pytest.mark.parametrize("budget", ["ipc=1000000000", "floats=1" + "0" * 14, "bytes=1" + "0" * 30])
def test_an_absurd_budget_is_refused_before_anything_is_allocated(budget, store):
    with pytest.raises(BudgetError, match=r"is too large: it holds [0-9]+ items a class"):
        plan(Pixels(), budget, store)


def test_a_plain_image_costs_what_its_file_says():
    for shape in ((1, 1, 1), (1, 1, 2), (1, 1, 3), (3, 8, 8)):
        for store in STORES:
            one = measure(pixels(1, fake_spec(1, shape)), store)
            assert one.floats == image_numbers(one.image_floats, store)


def test_fake_sets_are_measured_like_any_other():
    assert fake_set().storage().nbytes == 4 * 192 * 4
