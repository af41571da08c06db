"""The network that looks at the images: trained once, kept by content, the same each time."""

from __future__ import annotations

import logging

import pytest
import torch

import dcf
import dcf_coreset.network as module
from dcf.artifacts import Artifacts
from dcf.build import create
from dcf.testing import fake_data
from dcf.training import evaluate_accuracy
from dcf_coreset.forgetting import count_forgetting
from dcf_coreset.network import AUTO, Auto, auto_epochs, plan_of, trained_network
from dcf_coreset.options import TrainingConfig
from dcf_coreset.scores import ForgettingCounter

NET = "convnet:width=4,depth=1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trainings(monkeypatch):
    """The plans that are trained from now on."""
    seen, original = [], module.fit

    def fit(data, plan, *args):
        seen.append(plan)
        return original(data, plan, *args)

    monkeypatch.setattr(module, "fit", fit)
    return seen


def plan(images=12, **options):
    return plan_of(TrainingConfig(**{"network": NET, "epochs": 2, "batch": 4, **options}), images)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.state.parameters()])


def test_second_request_trains_nothing_and_gives_the_same(trainings):
    data = fake_data()
    first, second = trained_network(data, plan()), trained_network(data, plan())
    assert len(trainings) == 1
    assert torch.equal(weights(first), weights(second))
    assert (first.sha256, first.accuracy) == (second.sha256, second.accuracy)


@pytest.mark.parametrize(
    "change",
    [
        {"network": "convnet:width=5,depth=1"},
        {"epochs": 3},
        {"lr": 0.02},
        {"batch": 5},
        {"feature_seed": 1},
    ],
)
def test_another_option_trains_another_network(trainings, change):
    data = fake_data()
    first, second = trained_network(data, plan()), trained_network(data, plan(**change))
    assert len(trainings) == 2
    assert first.sha256 != second.sha256


def test_augmentation_trains_another_network(trainings):
    pytest.importorskip("dcf_dsa")
    data = fake_data()
    first, second = trained_network(data, plan()), trained_network(data, plan(augment="dsa:ops=[color]"))
    assert len(trainings) == 2
    assert first.sha256 != second.sha256


def test_other_images_or_another_value_space_train_another_network(trainings):
    data = fake_data()
    trained_network(data, plan())
    trained_network(fake_data(seed=1), plan())
    spec = data.spec.space.unit(3)
    moved = dcf.DataSpec(3, 8, 8, data.spec.classes, spec)
    splits = [type(data.train)(s.store, s.labels, spec, 2, s.levels) for s in (data.train, data.test)]
    trained_network(type(data)(moved, *splits, id="same pixels"), plan())
    assert len(trainings) == 3


def test_a_damaged_file_is_trained_again(trainings, caplog):
    data = fake_data()
    first = trained_network(data, plan())
    (file,) = Artifacts().root.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    assert trained_network(data, plan()).sha256 == first.sha256
    assert len(trainings) == 2
    assert "making it again" in caplog.text


def test_training_does_not_depend_on_the_cache_or_on_global_generators(tmp_path, monkeypatch):
    found = []
    for number in range(2):
        monkeypatch.setenv("DCF_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        found.append(trained_network(fake_data(), plan()).sha256)
    assert found[0] == found[1]


def test_networks_of_one_seed_differ_by_number():
    data, config = fake_data(), TrainingConfig(network=NET, epochs=1)
    found = {trained_network(data, plan_of(config, 12, number=n)).sha256 for n in range(3)}
    assert len(found) == 3


def test_log_says_what_is_trained_and_where_it_is_kept(caplog):
    with caplog.at_level(logging.INFO):
        trained_network(fake_data(), plan())
        trained_network(fake_data(), plan())
    (line,) = [r.getMessage() for r in caplog.records if "training" in r.getMessage()]
    assert "2 epochs, 6 steps" in line
    assert str(Artifacts().root) in line


def test_training_learns():
    data = fake_data(classes=3, train=20, test=20)
    net = trained_network(data, plan(60, epochs=10, network="convnet:width=8,depth=1"))
    assert net.accuracy > 0.9
    assert evaluate_accuracy(net.state, data.test).value > 0.9


@pytest.mark.parametrize("network", [NET, f"{NET},norm=batch", "mlp", "lenet"])
def test_embeddings_and_logits_are_those_of_the_network(network):
    data = fake_data(shape=(1, 28, 28))
    net = trained_network(data, plan(network=network, epochs=1))
    index = torch.tensor([5, 0, 7])
    features = net.embed(data.train, index)
    images = data.train.images(index)
    assert torch.equal(features, net.state.embed(images).detach())
    assert torch.allclose(net.classify(features), net.state(images).detach(), atol=1e-6)
    assert not features.requires_grad


def test_batch_norms_use_their_running_statistics():
    data = fake_data()
    net = trained_network(data, plan(network=f"{NET},norm=batch"))
    alone, together = net.embed(data.train, torch.tensor([3])), net.embed(data.train, torch.arange(12))
    assert torch.allclose(alone[0], together[3], atol=1e-5)


def test_diverged_training_is_an_error_and_is_not_kept():
    with pytest.raises(dcf.NonFiniteError, match="smaller one"):
        trained_network(fake_data(), plan(lr=1e30, epochs=5))
    assert not list(Artifacts().root.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("images", "batch", "want"), [(60000, 128, 3), (50000, 128, 3), (1437, 128, 40), (5, 128, 40), (10**7, 128, 1)]
)
def test_auto_aims_at_a_number_of_steps_within_bounds(images, batch, want):
    assert auto_epochs(images, batch, AUTO) == want


def test_auto_keeps_its_bounds():
    assert auto_epochs(10**6, 1, Auto(100, 5, 9)) == 5
    assert auto_epochs(1, 1, Auto(100, 5, 9)) == 9


# --- forgetting ---------------------------------------------------------------------------------------------------


def test_every_image_is_visited_once_an_epoch(monkeypatch):
    visits, original = [], ForgettingCounter.visit
    monkeypatch.setattr(ForgettingCounter, "visit", lambda self, i, r: visits.append(i.clone()) or original(self, i, r))
    count_forgetting(fake_data(), plan(epochs=3))
    epochs = torch.cat(visits).view(3, 12)
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_visits_are_counted_for_the_right_images():
    # A network that does not move is right about the same images at every visit.
    data, still = fake_data(classes=3, train=8), plan(24, lr=1e-20)
    found = count_forgetting(data, still)
    start = create("network", NET).create(data.spec, still.seed, "feature network", 0)
    right = start(data.train.images(torch.arange(24))).argmax(1) == data.train.labels
    assert 0 < int(right.sum()) < 24
    assert torch.equal(found["learned"], right)
    assert int(found["forgotten"].sum()) == 0
