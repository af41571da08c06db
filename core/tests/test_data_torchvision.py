"""The benchmark datasets, on small files in the real formats, fetched from a server on this machine."""

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
import scipy.io
import torch
import torchvision

from dcf import DataError
from dcf.data.torchvision import Cifar10, Cifar100, FashionMnist, Mnist, Svhn

rng = np.random.default_rng(0)


def md5(data):
    return hashlib.md5(data).hexdigest()


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def site(tmp_path):
    """A folder, and the address of a web server that serves it."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mnist(site, monkeypatch):
    """MNIST's four archives with 30 and 20 made images on the server; gives them uncompressed."""
    folder, url = site
    labels = {"train": np.arange(30) % 10, "t10k": np.arange(20) % 10}
    made, resources = {}, []
    for part, y in labels.items():
        images = rng.integers(0, 256, (len(y), 28, 28))
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", y)):
            made[name] = array
            data = gzip.compress(idx(array))
            (folder / f"{name}.gz").write_bytes(data)
            resources.append((f"{name}.gz", md5(data)))
    for cls in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(cls, "mirrors", [url])
        monkeypatch.setattr(cls, "resources", resources)
    return made


@pytest.fixture
def nowhere(monkeypatch):
    """No mirror answers: port 9 of this machine refuses at once."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])


def left_in(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_mnist_is_downloaded_and_read(mnist, tmp_path, capsys):
    root = tmp_path / "root"
    data = Mnist(Mnist.Config(root=str(root))).load()
    assert np.array_equal(data.train.store.pixels.squeeze(1).numpy(), mnist["train-images-idx3-ubyte"])
    assert data.test.labels.tolist() == mnist["t10k-labels-idx1-ubyte"].tolist()
    assert data.spec.classes == tuple("0123456789")
    assert (data.spec.space.mean, data.spec.space.std) == ((0.1307,), (0.3081,))
    assert data.id == "mnist"
    assert capsys.readouterr().out == ""
    assert not [name for name in left_in(root) if "dcf-download" in name]


def test_second_start_needs_no_network(mnist, nowhere, tmp_path, monkeypatch, site):
    root = str(tmp_path / "root")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [site[1]])
    first = Mnist(Mnist.Config(root=root)).load()
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert Mnist(Mnist.Config(root=root)).load().checksum == first.checksum
    assert Mnist(Mnist.Config(root=root, download=False)).load().checksum == first.checksum


def test_fashion_mnist_has_names_and_its_own_folder(mnist, tmp_path):
    data = FashionMnist(FashionMnist.Config(root=str(tmp_path / "root"))).load()
    assert data.spec.classes[0] == "T-shirt/top"
    assert (tmp_path / "root" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").exists()


def test_missing_without_download_says_where_and_what(tmp_path):
    with pytest.raises(DataError) as error:
        Mnist(Mnist.Config(root=str(tmp_path), download=False)).load()
    assert f"mnist is not in '{tmp_path / 'MNIST' / 'raw'}'" in str(error.value)
    assert "root=..." in str(error.value)
    assert "download=true" in str(error.value)
    assert left_in(tmp_path) == []


def test_no_network_is_one_message_and_leaves_nothing(nowhere, tmp_path):
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"could not download mnist to .*; fetch it on a machine with network") as e:
        Mnist(Mnist.Config(root=str(root))).load()
    assert "\n" not in str(e.value)
    assert list(root.iterdir()) == []


def test_archives_that_are_there_are_not_fetched(mnist, nowhere, site, tmp_path):
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in site[0].glob("*.gz"):
        (raw / archive.name).write_bytes(archive.read_bytes())
    data = Mnist(Mnist.Config(root=str(tmp_path / "root"))).load()
    assert len(data.train) == 30
    assert not any(p.is_symlink() for p in raw.iterdir())


def test_damaged_download_never_looks_complete(mnist, site, tmp_path):
    archive = site[0] / "t10k-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-40])
    root = tmp_path / "root"
    with pytest.raises(DataError, match="could not download mnist"):
        Mnist(Mnist.Config(root=str(root))).load()
    assert list(root.iterdir()) == []


def test_damaged_files_are_named_or_fetched_again(mnist, tmp_path):
    root = tmp_path / "root"
    good = Mnist(Mnist.Config(root=str(root))).load().checksum
    images = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"the files of mnist in .* are damaged"):
        Mnist(Mnist.Config(root=str(root), download=False)).load()
    assert Mnist(Mnist.Config(root=str(root))).load().checksum == good


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_root_is_one_message(mnist, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="could not download mnist"):
        Mnist(Mnist.Config(root=str(tmp_path / "root"))).load()


@pytest.mark.parametrize(("provider", "key", "classes"), [(Cifar10, "labels", 10), (Cifar100, "fine_labels", 100)])
def test_cifar_is_downloaded_and_read(provider, key, classes, site, tmp_path, monkeypatch):
    cls = getattr(torchvision.datasets, provider.torchvision_name)
    made = write_cifar(cls, key, classes, site, tmp_path, monkeypatch)
    data = provider(provider.Config(root=str(tmp_path / "root"))).load()
    pixels = np.concatenate([made[name][0] for name, _ in cls.train_list])
    assert np.array_equal(data.train.store.pixels.flatten(1).numpy(), pixels)
    assert data.spec.classes == tuple(f"name {c}" for c in range(classes))
    assert data.spec.shape == (3, 32, 32)
    assert data.spec.space == provider.published


def write_cifar(cls, key, classes, site, tmp_path, monkeypatch):
    made, lists = {}, {}
    source = tmp_path / "archive" / cls.base_folder
    source.mkdir(parents=True)
    for attribute in ("train_list", "test_list"):
        lists[attribute] = []
        for name, _ in getattr(cls, attribute):
            pixels = rng.integers(0, 256, (classes, 3072), dtype=np.uint8)
            made[name] = pixels, list(range(classes))
            data = pickle.dumps({"data": pixels, key: made[name][1]})
            (source / name).write_bytes(data)
            lists[attribute].append([name, md5(data)])
        monkeypatch.setattr(cls, attribute, lists[attribute])
    meta = pickle.dumps({cls.meta["key"]: [f"name {c}" for c in range(classes)]})
    (source / cls.meta["filename"]).write_bytes(meta)
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(meta)})
    archive = site[0] / cls.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, cls.base_folder)
    monkeypatch.setattr(cls, "url", site[1] + cls.filename)
    monkeypatch.setattr(cls, "tgz_md5", md5(archive.read_bytes()))
    return made


def test_svhn_is_downloaded_and_ten_means_zero(site, tmp_path, monkeypatch):
    split_list, made = {}, {}
    for part, n in (("train", 40), ("test", 20)):
        made[part] = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        name = f"{part}_32x32.mat"
        scipy.io.savemat(site[0] / name, {"X": made[part], "y": (np.arange(n) % 10 + 1)[:, None].astype(np.uint8)})
        split_list[part] = [site[1] + name, name, md5((site[0] / name).read_bytes())]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    data = Svhn(Svhn.Config(root=str(tmp_path / "root"))).load()
    assert np.array_equal(data.train.store.pixels[7].numpy(), made["train"][..., 7].transpose(2, 0, 1))
    assert data.train.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert len(data.test) == 20


def test_value_space_options(mnist, tmp_path):
    root = str(tmp_path / "root")
    auto = Mnist(Mnist.Config(root=root, norm="auto")).load()
    assert auto.train.images(torch.arange(30)).mean().abs() < 1e-3
    assert auto.id == "mnist:norm=auto"
    assert Mnist(Mnist.Config(root=root, norm="unit")).load().spec.space.kind == "unit"
    given = Mnist(Mnist.Config(root=root, mean=(0.5,), std=(0.25,))).load()
    assert given.spec.space.mean == (0.5,)
    with pytest.raises(DataError, match="1 channels, but mean and std have 3"):
        Mnist(Mnist.Config(root=root, mean=(0.5,) * 3, std=(0.25,) * 3)).load()


@pytest.mark.data
@pytest.mark.skipif("DCF_DATA" not in os.environ, reason="DCF_DATA is not set")
def test_real_mnist_has_the_published_statistics():
    data = Mnist(Mnist.Config(root=os.environ["DCF_DATA"], download=False)).load()
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert data.train.counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    values = torch.cat([batch.x for batch in data.train.batches(10000)])
    assert values.mean().abs() < 1e-3
    assert (values.std() - 1).abs() < 1e-3
