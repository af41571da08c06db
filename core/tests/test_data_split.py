"""`Split` and `RealData`: sampling, value space, holding out, checksums."""

import collections

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcf import DataError, DataSpec, ValueSpace
from dcf.data.base import LabelledPixels, pixel_statistics, real_data
from dcf.data.real import RealData, Split
from dcf.data.sampling import draw_within_classes, stratified_split
from dcf.data.store import TensorStore
from dcf.seeding import generator

SPACE = ValueSpace((0.4, 0.5, 0.1), (0.2, 0.3, 0.4))


def make_split(counts, shape=(3, 4, 6), seed=0):
    gen = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=gen)]
    pixels = torch.randint(0, 256, (len(labels), *shape), generator=gen, dtype=torch.uint8)
    return Split(pixels, labels, SPACE, len(counts))


def make_data(counts=(12, 7, 20), seed=0):
    classes = tuple(f"c{i}" for i in range(len(counts)))
    train, test = make_split(counts, seed=seed), make_split([2] * len(counts), seed=seed + 1)
    return RealData(DataSpec(3, 4, 6, classes, SPACE), train, test, "made")


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=8), n=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_sample_visits_every_image_of_a_class_before_any_again(counts, n, seed):
    split = make_split(counts)
    index = split.sample(n, generator(seed, "draw"))
    assert index.shape == (len(counts), n)
    for c, row in enumerate(index):
        assert (split.labels[row] == c).all()
        for start in range(0, n, counts[c]):
            part = row[start : start + counts[c]].tolist()
            assert len(set(part)) == len(part)


@pytest.mark.parametrize("count", [3, 5, 40])
def test_sample_is_uniform_over_ordered_pairs(count):
    """Both ways of drawing: 3 and 5 images are shuffled, 40 drawn by rejection."""
    counts = torch.full((20000,), count)
    pairs = draw_within_classes(counts, 2, generator(0, "pairs")).tolist()
    seen = collections.Counter(map(tuple, pairs))
    expected = len(pairs) / (count * (count - 1))
    assert len(seen) == count * (count - 1)
    chi2 = sum((n - expected) ** 2 / expected for n in seen.values())
    freedom = len(seen) - 1
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_small_class_starts_again_in_another_order():
    rows = draw_within_classes(torch.full((200,), 6), 12, generator(0, "orders"))
    first, second = rows[:, :6], rows[:, 6:]
    assert torch.equal(first.sort(1).values, second.sort(1).values)
    assert (first != second).any(1).float().mean() > 0.95


def test_sample_follows_its_generator_only():
    split = make_split([30, 500, 3])
    state = torch.get_rng_state()
    one, two = split.sample(9, generator(1, "a")), split.sample(9, generator(1, "a"))
    assert torch.equal(one, two)
    assert not torch.equal(one, split.sample(9, generator(2, "a")))
    assert torch.equal(state, torch.get_rng_state())


def test_sample_reads_all_classes_so_chunks_of_it_agree():
    split = make_split([30, 80, 11])
    whole = split.sample(7, generator(0, "x"))
    chunks = torch.cat([split.sample(7, generator(0, "x"))[c : c + 1] for c in range(3)])
    assert torch.equal(whole, chunks)


def test_sample_of_unbalanced_classes_needs_no_memory_for_the_largest():
    """One image beside a million: the work is n per class, not the largest class times the rounds."""
    counts = torch.tensor([1] * 300 + [10**6])
    rows = draw_within_classes(counts, 256, generator(0, "m"))
    assert (rows[:-1] == 0).all()
    assert len(set(rows[-1].tolist())) == 256


def test_sample_refuses_empty_class_and_bad_n():
    split = Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 2]), ValueSpace.unit(1), 3)
    with pytest.raises(DataError, match="class number 1 has no image"):
        split.sample(1, generator(0))
    with pytest.raises(ValueError, match="at least 1 image"):
        split.sample(0, generator(0))


def test_images_equal_the_space_of_the_pixels():
    split = make_split([4, 5])
    index = torch.tensor([[3, 0], [8, 3]])
    pixels = split.store.pixels[index].double() / 255
    assert torch.allclose(split.images(index).double(), SPACE.encode(pixels), atol=1e-6)
    assert split.images(index).dtype == torch.float32


def test_value_space_round_trip_gives_back_every_stored_byte():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    split = Split(every, torch.zeros(1, dtype=torch.long), SPACE, 1)
    back = SPACE.decode(split.images(torch.tensor([0]))).mul(255).round().to(torch.uint8)
    assert torch.equal(back, every)


@pytest.mark.parametrize("stored", [torch.rand(5, 2, 3, 3), torch.zeros(5, 2, 3, 3, dtype=torch.uint8)])
def test_images_never_alias_what_is_stored(stored):
    split = Split(stored, torch.arange(5), ValueSpace((0.5, 0.5), (0.5, 0.5)), 5)
    before = split.store.pixels.clone()
    split.images(torch.arange(5)).add_(1)
    next(split.batches(5)).x.add_(1)
    assert torch.equal(split.store.pixels, before)


def test_float_images_rest_as_pixels():
    stored = torch.rand(6, 2, 3, 3)
    split = Split(stored, torch.zeros(6), ValueSpace((0.5, 0.1), (2.0, 4.0)), 1)
    assert torch.allclose(split.images(torch.arange(6)), split.space.encode(stored))


def test_batches_are_in_order_and_complete():
    split = make_split([4, 6])
    batches = list(split.batches(4))
    assert [len(b.y) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([b.y for b in batches]), split.labels)
    assert torch.equal(torch.cat([b.x for b in batches]), split.images(torch.arange(10)))


def test_of_class_lists_all_images_of_it():
    split = make_split([4, 1, 6])
    for c in range(3):
        assert torch.equal(split.of_class(c), (split.labels == c).nonzero().flatten())


def test_three_hundred_classes_and_odd_shapes():
    split = make_split([2] * 300, shape=(3, 20, 50))
    assert split.images(split.sample(5, generator(0))).shape == (300, 5, 3, 20, 50)


@pytest.mark.parametrize("labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0])])
def test_split_refuses_labels_that_do_not_fit(labels):
    with pytest.raises(DataError, match="labels"):
        Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels, ValueSpace.unit(1), 3)


def test_store_refuses_other_types():
    with pytest.raises(ValueError, match="uint8 or float32"):
        TensorStore(torch.zeros(2, 1, 2, 2, dtype=torch.int64))


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=6), fraction=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_stratified_split_takes_its_share_of_every_class(counts, fraction):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if max(counts) < 2:
        with pytest.raises(DataError, match="only one image"):
            stratified_split(labels, fraction, generator(0))
        return
    kept, held = stratified_split(labels, fraction, generator(0))
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    for c, n in enumerate(counts):
        taken = int((labels[held] == c).sum())
        assert (taken == 0) if n < 2 else (1 <= taken < n and abs(taken - fraction * n) <= 1)


def test_holdout_hides_the_test_images():
    data = make_data()
    part = data.holdout(0.25, generator(0, "validation"))
    assert part.train.counts.tolist() == [9, 5, 15]
    assert part.test.counts.tolist() == [3, 2, 5]
    real = torch.cat([part.train.store.pixels, part.test.store.pixels]).flatten(1)
    assert {tuple(r) for r in real.tolist()} == {tuple(r) for r in data.train.store.pixels.flatten(1).tolist()}
    assert part.checksum != data.checksum


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_holdout_refuses_no_fraction(fraction):
    with pytest.raises(DataError, match="fraction between 0 and 1"):
        make_data().holdout(fraction, generator(0))


def test_checksum_is_stable_and_sees_every_part():
    assert make_data().checksum == make_data().checksum
    changed = make_data()
    changed.test.store.pixels[0, 0, 0, 0] ^= 1
    assert changed.checksum != make_data().checksum
    relabelled = make_data()
    relabelled.train.labels[:2] = relabelled.train.labels[:2].roll(1) + 1 - relabelled.train.labels[:2]
    assert relabelled.checksum != make_data().checksum


def test_checksum_does_not_depend_on_the_value_space():
    data = make_data()
    unit = ValueSpace.unit(3)
    train = Split(data.train.store, data.train.labels, unit, 3)
    test = Split(data.test.store, data.test.labels, unit, 3)
    assert RealData(DataSpec(3, 4, 6, data.spec.classes, unit), train, test, "x").checksum == data.checksum


def test_real_data_refuses_splits_of_another_shape():
    data = make_data()
    with pytest.raises(DataError, match=r"expected .3, 5, 6. images"):
        RealData(DataSpec(3, 5, 6, data.spec.classes, SPACE), data.train, data.test, "x")


def test_every_class_needs_a_training_image():
    train = LabelledPixels(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 2]))
    with pytest.raises(DataError, match="no training image of class 'b'"):
        real_data(train, train, ["a", "b", "c"], ValueSpace.unit(1), "made", "made")


@pytest.mark.parametrize("stored", [torch.randint(0, 256, (9, 3, 5, 4), dtype=torch.uint8), torch.rand(9, 2, 5, 4)])
def test_pixel_statistics_equal_the_direct_formula(stored):
    scale = 255 if stored.dtype == torch.uint8 else 1
    mean, std = pixel_statistics(TensorStore(stored))
    pixels = stored.double() / scale
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_constant_channel_gets_std_one():
    assert pixel_statistics(TensorStore(torch.full((3, 1, 2, 2), 255, dtype=torch.uint8))) == ((1.0,), (1.0,))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_draws_and_checksum_are_the_same_on_the_gpu():
    data, moved = make_data(), make_data().to("cuda")
    assert torch.equal(data.train.sample(5, generator(0)), moved.train.sample(5, generator(0)).cpu())
    assert moved.checksum == data.checksum
    index = data.train.sample(5, generator(0))
    assert moved.train.images(index).device.type == "cuda"
    assert torch.allclose(moved.train.images(index).cpu(), data.train.images(index), atol=1e-6)


def test_to_the_same_device_is_the_same_object():
    data = make_data()
    assert data.to("cpu") is data
