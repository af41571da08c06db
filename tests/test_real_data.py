"""Short condensations of real data, each beside random images at equal bytes; they need `DCF_DATA`.

`DCF_DATA` is a folder with `MNIST/raw` in torchvision's layout and `cifar10-jpeg.tar.xz` (or that archive unpacked as
`cifar10-jpeg`). The margins are about half of what such runs showed.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

import dcf

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
