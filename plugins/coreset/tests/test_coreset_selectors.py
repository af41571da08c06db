"""Selectors: which images are picked, for odd classes too, and what is reported of it."""

from __future__ import annotations

import json

import pytest
import torch

import dcf
import dcf_coreset.network as network
from dcf.build import check, create
from dcf.data import RealData, Split
from dcf.seeding import generator
from dcf.testing import fake_data
from dcf_coreset.ordering import herding_order, k_center_order
from dcf_coreset.selection import fill

NET = 'network="convnet:width=4,depth=1",epochs=2'
ALL = [
    "herding:features=raw",
    f"herding:{NET}",
    f"k-center:{NET}",
    "k-center:features=raw,start=random",
    f"k-means:{NET}",
    f"forgetting:{NET}",
    f"least-confidence:{NET}",
    f"entropy:{NET}",
    f"margin:{NET}",
    f"el2n:networks=2,{NET}",
    f"grand:networks=2,{NET}",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def uneven(counts=(9, 2, 5), seed=0):
    """Data with so many training images of each class, in mixed order."""
    data = fake_data(classes=len(counts), train=max(counts), seed=seed)
    kept = torch.cat([data.train.of_class(c)[:n] for c, n in enumerate(counts)])
    mixed = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))]
    return RealData(data.spec, data.train.select(mixed), data.test, "fake")


def pick(spec, data, wanted, seed=0):
    selector = create("selector", spec)
    return selector.indices(data, torch.tensor(wanted), generator(seed, "init")), selector


@pytest.mark.parametrize("spec", ALL)
def test_uneven_unsorted_classes_are_served(spec):
    data, wanted = uneven(), [2, 0, 1, 0, 2, 0, 1, 1, 1, 1]
    index, _ = pick(spec, data, wanted)
    assert torch.equal(data.train.labels[index], torch.tensor(wanted))
    ones = index[torch.tensor(wanted) == 1].tolist()
    assert len(set(ones[:2])) == 2  # both, before any comes again
    assert ones[2:4] == ones[:2]
    assert ones[4] == ones[0]
    others = index[torch.tensor(wanted) != 1].tolist()
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("spec", ALL)
def test_the_run_repeats_itself_without_what_was_kept(spec, tmp_path, monkeypatch):
    found = []
    for number in range(2):
        monkeypatch.setenv("DCF_CACHE", str(tmp_path / str(number)))
        found.append(pick(spec, uneven(), [0, 1, 2, 0, 0])[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("spec", [s for s in ALL if "k-means" not in s and "random" not in s])
def test_seed_of_the_run_changes_nothing(spec):
    data = fake_data(train=12)
    first, second = (pick(spec, data, [0, 0, 0, 1], seed)[0] for seed in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize("spec", ["k-center:features=raw,start=random", "k-means:features=raw"])
def test_seed_of_the_run_decides_where_there_is_a_draw(spec):
    data = fake_data(train=40)
    found = {tuple(pick(spec, data, [0, 0, 0, 1], seed)[0].tolist()) for seed in range(5)}
    assert len(found) > 1


@pytest.mark.parametrize("spec", ALL)
def test_nothing_wanted_trains_nothing(spec, monkeypatch):
    monkeypatch.setattr(network, "fit", None)
    index, selector = pick(spec, fake_data(), [])
    assert index.tolist() == []
    assert selector.record == {}


def test_a_class_without_images_is_an_error():
    data = fake_data(classes=3)
    train = data.train.select((data.train.labels != 1).nonzero().flatten())
    bare = RealData(data.spec, train, data.test, "fake")
    assert len(pick("herding:features=raw", bare, [0, 2])[0]) == 2
    with pytest.raises(dcf.DataError, match="class number 1 has no image"):
        pick("herding:features=raw", bare, [0, 1])


def test_places_get_images_in_the_order_they_are_taken():
    data = fake_data(classes=2, train=4)
    index = fill(data.train, torch.tensor([1, 0, 1, 1]), lambda members, count: torch.arange(count).flip(0))
    assert index.tolist() == [4 + 2, 0, 4 + 1, 4 + 0]


# --- each selector does what its name says ------------------------------------------------------------------------


def test_herding_and_k_center_look_at_one_class_at_a_time():
    data = uneven((9, 6, 5))
    wanted = [0] * 3 + [1] * 3 + [2] * 3
    for spec in ("herding:features=raw", "k-center:features=raw"):
        index, _ = pick(spec, data, wanted)
        for c in range(3):
            members = data.train.of_class(c)
            pixels = data.train.images(members).flatten(1)
            order = herding_order(pixels, 3)
            if "k-center" in spec:
                order = k_center_order(pixels, 3, order[:1])
            assert torch.equal(index[3 * c : 3 * c + 3], members[order])


def test_k_center_starts_nearest_to_the_class_mean():
    data = fake_data(train=15)
    assert torch.equal(pick("k-center:features=raw", data, [0, 1])[0], pick("herding:features=raw", data, [0, 1])[0])


def test_features_of_the_trained_network_are_used():
    data = fake_data(classes=2, train=30)
    spec = f"herding:{NET}"
    index, selector = pick(spec, data, [0] * 5)
    net = network.trained_network(data, network.plan_of(selector.config, 60))
    members = data.train.of_class(0)
    assert torch.equal(index, members[herding_order(net.embed(data.train, members), 5)])
    assert not torch.equal(index, pick("herding:features=raw", data, [0] * 5)[0])


def mislabelled():
    """Two classes of 20 in which two images carry the label of the other one."""
    data = fake_data(classes=2, train=20)
    labels = data.train.labels.clone()
    labels[[3, 30]] = 1 - labels[[3, 30]]
    return RealData(data.spec, Split(data.train.store, labels, data.spec.space, 2), data.test, "fake")


@pytest.mark.parametrize(
    "spec",
    [
        'el2n:networks=2,network="convnet:width=8,depth=1",epochs=4,batch=8',
        'grand:networks=2,network="convnet:width=8,depth=1",epochs=4,batch=8',
        'forgetting:network="convnet:width=8,depth=1",epochs=4,batch=8',
    ],
)
def test_images_that_do_not_fit_their_label_are_the_hard_ones(spec):
    index, _ = pick(spec, mislabelled(), [0, 1])
    assert index.tolist() == [30, 3]


@pytest.mark.parametrize("name", ["least-confidence", "entropy", "margin"])
def test_images_between_the_classes_are_the_uncertain_ones(name):
    data = fake_data(classes=2, train=20)
    pixels = data.train.store.take(torch.arange(40)).clone()
    pixels[7] = (pixels[0].float() / 2 + pixels[20].float() / 2).to(pixels.dtype)
    blended = RealData(data.spec, Split(pixels, data.train.labels, data.spec.space, 2), data.test, "fake")
    index, _ = pick(f'{name}:network="convnet:width=8,depth=1",epochs=10,batch=8', blended, [0])
    assert index.tolist() == [7]


def test_scores_are_averaged_over_networks():
    data = fake_data(classes=2, train=20)
    _, selector = pick(f"el2n:networks=3,{NET}", data, [0])
    plans = [network.plan_of(selector.config, 40, anneal=False, number=n) for n in range(3)]
    members = data.train.of_class(0)
    nets = [network.trained_network(data, plan) for plan in plans]
    each = [(net.state(data.train.images(members)).softmax(1) - torch.tensor([1.0, 0.0])).norm(dim=1) for net in nets]
    assert [n.sha256 for n in nets] == selector.record["features"]["sha256"]
    assert int(pick(f"el2n:networks=3,{NET}", data, [0])[0]) == int(members[sum(each).argmax()])


# --- what is reported ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ALL)
def test_record_is_plain_and_names_what_decided(spec):
    _, selector = pick(spec, uneven(), [0, 1, 2])
    record = json.loads(json.dumps(selector.record))
    assert record == selector.record
    again = create("selector", record["selector"])
    assert again.config == selector.config
    features = record["features"]
    if "raw" in spec:
        assert features == {"source": "raw"}
    else:
        assert features["source"] == "trained"
        assert (features["network"], features["epochs"], features["seed"]) == ("convnet:width=4,depth=1", 2, 0)
        assert {"lr", "batch", "augment", "schedule", "sha256", "train_accuracy"} <= features.keys()


def test_record_gives_the_hash_of_the_network():
    data = fake_data()
    _, selector = pick(f"herding:{NET}", data, [0, 1])
    net = network.trained_network(data, network.plan_of(selector.config, 12))
    features = selector.record["features"]
    assert (features["sha256"], features["train_accuracy"]) == (net.sha256, net.accuracy)


def test_selectors_with_the_same_training_share_the_network(monkeypatch):
    data = uneven()
    _, first = pick(f"herding:{NET}", data, [0, 1, 2])
    monkeypatch.setattr(network, "fit", None)
    for name in ("k-center", "k-means", "least-confidence", "entropy", "margin"):
        _, other = pick(f"{name}:{NET}", data, [0, 1, 2])
        assert other.record["features"] == first.record["features"]


# --- options and runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("herding:network=convnt", "did you mean 'convnet'"),
        ('herding:network="convnet:width=0"', "width"),
        ("herding:augment=flip-everything", "flip-everything"),
        ("herding:epochs=0", "epochs"),
        ("herding:epochs=some", "epochs"),
        ("herding:lr=0", "lr"),
        ("herding:features=none", "features"),
        ("herding:features=raw,epochs=3", "leave out epochs"),
        ("k-center:start=middle", "start"),
        ("el2n:networks=0", "networks"),
        ("forgetting:features=raw", "features"),
    ],
)
def test_a_wrong_option_is_said_before_anything_starts(spec, message):
    with pytest.raises(dcf.SpecError) as caught:
        check("selector", spec)
    assert message in str(caught.value)


def test_a_nested_spec_reads_the_same_in_brackets_and_quotes():
    configs = [create("selector", f"herding:network={v}").config for v in ("(convnet:width=8)", '"convnet:width=8"')]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("recipe", ["herding", "k-center", "k-means", "forgetting"])
def test_recipe_keeps_real_images(recipe, tmp_path):
    data = uneven((9, 4, 5))
    options = {"init": f"{recipe}:{NET}", "network": "convnet:width=4,depth=1", "ipc": 2, "evaluate": False}
    made = dcf.condense(recipe=recipe, data=data, out=tmp_path / "run", **options)
    images, real = made.tensors()[0], data.train.images(torch.arange(len(data.train)))
    assert len(images) == 6
    assert all(bool((real - image).flatten(1).abs().amax(1).min() < 1e-6) for image in images)
