"""Short condensations of real data, each beside random images at equal bytes; they need `DCF_DATA`.

`DCF_DATA` is a folder with `MNIST/raw` in torchvision's layout and `cifar10-jpeg.tar.xz` (or that archive unpacked as
`cifar10-jpeg`). The margins are about half of what such runs showed.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
import torch

import dcf
import dcf.data

ROOT = Path(os.environ.get("DCF_DATA", ""))

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "MNIST").is_dir(), reason="DCF_DATA names no folder with MNIST"),
]

MNIST = f'mnist:root="{ROOT}",download=false'


def gap(report):
    """Points by which the set is above random images at equal bytes."""
    rows = {row["name"]: 100 * row["stat"]["mean"] for row in report["baselines"]}
    return 100 * report["summary"]["mean"] - rows["random"]


def condense(**options):
    made = dcf.condense(networks=3, baselines=["random"], **options)
    return made.metadata["results"]


def test_gradient_matching_beats_random_on_mnist():
    report = condense(
        recipe="dc", data=MNIST, ipc=1, iterations=150, network="convnet:width=32",
        overrides={"matcher.batch_real": "32", "protocol.epochs": "150"},
    )  # fmt: skip
    assert gap(report) > 8


def test_distribution_matching_beats_random_on_mnist():
    report = condense(
        recipe="dm", data=MNIST, ipc=1, iterations=150, network="convnet:width=32",
        overrides={"matcher.batch_real": "32", "protocol.epochs": "300"},
    )  # fmt: skip
    assert gap(report) > 8


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    if (ROOT / "cifar10-jpeg").is_dir():
        return ROOT / "cifar10-jpeg"
    archive = ROOT / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip("DCF_DATA has no cifar10-jpeg.tar.xz")
    place = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(archive) as files:
        files.extractall(place, filter="data")
    return place


def test_distribution_matching_beats_random_on_cifar10(cifar):
    report = condense(
        recipe="dm", data=f'folder:path="{cifar}",cache=false', ipc=1, iterations=100, network="convnet:width=32",
        overrides={"matcher.batch_real": "32", "protocol.epochs": "300"},
    )  # fmt: skip
    assert gap(report) > 3


def test_whitened_cifar10_is_softly_white(cifar, monkeypatch, tmp_path):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path))
    data = dcf.data.load(f'subset:base=(folder:path="{cifar}",cache=false),per_class=600,norm=zca')
    index = torch.arange(len(data.train))
    values = data.train.images(index)
    assert values.flatten(1).mean(0).abs().max() < 1e-4
    assert abs(float(values.std()) - 0.25) < 0.02
    assert abs(float(data.test.images(torch.arange(1000)).std()) - 0.25) < 0.02
    pixels = data.spec.space.decode(values[:100])
    assert (pixels - data.train.store.pixels[:100] / 255).abs().max() < 1e-4


# --- texture that all classes share -----------------------------------------------------------------------------------


def nuisance(cifar, signal, mode="fixed"):
    """Digits 0 to 4 of MNIST over photographs."""
    base = f"subset:base=({MNIST}),classes=[0,1,2,3,4],per_class=1000,test_per_class=800"
    background = f'folder:path="{cifar}",cache=false'
    return f"nuisance:base=({base}),background=({background}),signal={signal},mode={mode}"


def kept(data, faint):
    """Share of what each loss knows of the classes at full signal that is left at a faint one."""
    from dcf.networks.convnet import ConvNetFactory
    from dcf.networks.options import ConvNetConfig
    from dcf_dcc.signal import class_signal

    gaps = []
    for real in (data(1.0), data(faint)):
        images = real.train.images(real.train.sample(74, torch.Generator().manual_seed(0)))
        nets = [ConvNetFactory(ConvNetConfig(width=32)).create(real.spec, seed) for seed in range(15)]
        found = [class_signal(net, images[:, :64], images[:, 64:]) for net in nets]
        gaps.append([sum(pair[loss].gap for pair in found) for loss in (0, 1)])
    return [after / before for before, after in zip(*gaps, strict=True)]


def test_under_one_background_the_contrastive_loss_keeps_three_times_the_class_information(cifar):
    class_wise, contrastive = kept(lambda signal: dcf.data.load(nuisance(cifar, signal)), 0.03)
    assert contrastive >= 3 * class_wise


def test_under_a_pool_of_backgrounds_both_losses_keep_alike(cifar):
    class_wise, contrastive = kept(lambda signal: dcf.data.load(nuisance(cifar, signal, "pool")), 0.3)
    assert contrastive == pytest.approx(class_wise, rel=0.4)


def test_where_the_background_drowns_the_classes_contrastive_matching_learns_and_class_wise_does_not(cifar):
    common = {
        "data": nuisance(cifar, 0.02), "init": "random", "ipc": 1, "iterations": 15, "lr": 0.001,
        "network": "convnet:width=32", "protocol": "vico-dc@1", "overrides": {"protocol.epochs": "200"},
    }  # fmt: skip
    class_wise = condense(matcher="dc:match_steps=10,net_epochs=5,batch_real=64", **common)
    contrastive = condense(matcher="dcc:outer_warmup=0,inner_warmup=0,batch_real=64", **common)
    assert contrastive["summary"]["mean"] - class_wise["summary"]["mean"] >= 0.15
    assert gap(contrastive) >= 15
    assert abs(gap(class_wise)) < 8
