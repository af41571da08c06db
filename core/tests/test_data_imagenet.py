"""Photographs of ImageNet's classes: which ones, at which size, and whose test images."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import re
import shutil
import sys
import tarfile
import threading
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

import dcf.testing
from dcf.build import check
from dcf.data.fetch import Archive
from dcf.data.imagenet import ImageNetSubset, Imagenette, Imagewoof
from dcf.data.options import ImageNetSubsetConfig
from dcf.data.wordnet import SUBSETS
from dcf.errors import ConfigError, DataError

WORDNET = Path("/usr/share/wordnet")
DERIVE = Path(__file__).parents[2] / "tests" / "derive_imagenet_groups.py"

WOOF = sorted(SUBSETS["woof"])
NETTE = sorted(SUBSETS["nette"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def picture(path, value, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, 128)).save(path, "PNG")


def make(root, ids, train=2, test=1):
    """A folder as ImageNet's is unpacked; every picture has a brightness that tells its class."""
    for label, one in enumerate(ids):
        for part, n in (("train", train), ("val", test)):
            for i in range(n):
                picture(root / part / one / f"{one}_{i}.JPEG", 10 * label + (part == "val"))
    return root


def load(provider, root, **options):
    return provider(provider.Config(root=str(root), **options)).load()


# --- which classes ---------------------------------------------------------------------------------------------------


def test_subsets_are_ten_classes_each():
    assert set(SUBSETS) == set(get_args(ImageNetSubsetConfig.model_fields["subset"].annotation))
    for subset, named in SUBSETS.items():
        assert len(named) == len(set(named.values())) == 10, subset
        assert list(named) == sorted(named)
        assert all(re.fullmatch(r"n\d{8}", one) for one in named)


@pytest.mark.parametrize(
    ("subset", "some"),
    [
        ("fruit", {"n07753592": "banana", "n07742313": "Granny Smith"}),
        ("meow", {"n02129165": "lion", "n02123045": "tabby"}),
        ("nette", {"n01440764": "tench", "n03888257": "parachute"}),
        ("squawk", {"n01518878": "ostrich", "n01860187": "black swan"}),
        ("woof", {"n02115641": "dingo", "n02111889": "Samoyed"}),
        ("yellow", {"n02129165": "lion", "n04146614": "school bus"}),
    ],
)
def test_subsets_have_the_classes_of_their_names(subset, some):
    assert some.items() <= SUBSETS[subset].items()


@pytest.mark.skipif(not (WORDNET.is_dir() and DERIVE.is_file()), reason="needs WordNet's files (wordnet-base)")
def test_subsets_are_those_of_wordnet():
    spec = importlib.util.spec_from_file_location("derive", DERIVE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["derive"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert module.derive_subsets(WORDNET) == SUBSETS


def test_images_get_the_labels_of_their_folders_and_others_are_left_alone(tmp_path):
    root = make(tmp_path / "d", WOOF + NETTE[:2])
    (root / "train" / NETTE[0] / f"{NETTE[0]}_0.JPEG").write_bytes(b"of another class")
    data = load(ImageNetSubset, root, subset="woof", size=16)
    assert data.spec.classes == tuple(SUBSETS["woof"].values())
    assert data.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert torch.equal(data.train.store.pixels[:, 0, 3, 4].long(), 10 * data.train.labels)
    assert torch.equal(data.test.store.pixels[:, 0, 3, 4].long(), 10 * data.test.labels + 1)
    assert data.spec.space.mean == (0.485, 0.456, 0.406)
    assert data.id == "imagenet-subset:size=16,subset=woof"


def test_classes_by_id_are_in_the_order_of_ids(tmp_path):
    root = make(tmp_path / "d", [NETTE[3], WOOF[0], "n00000001"])
    data = load(ImageNetSubset, root, classes=["n00000001", NETTE[3], WOOF[0]], size=8, norm="unit")
    assert data.spec.classes == ("n00000001", "Shih-Tzu", "chain saw")
    again = load(ImageNetSubset, root, classes=[WOOF[0], "n00000001", NETTE[3]], size=8, norm="unit")
    assert again.id == data.id
    assert again.checksum == data.checksum


# --- which size ------------------------------------------------------------------------------------------------------


def test_images_are_squashed_or_cut(tmp_path):
    root = make(tmp_path / "d", WOOF[:2])
    wide = Image.new("RGB", (40, 20), "black")
    wide.paste("white", (0, 0, 10, 20))  # the left quarter
    wide.save(root / "train" / WOOF[0] / f"{WOOF[0]}_0.JPEG", "PNG")
    classes = WOOF[:2]
    squashed, cut = (load(ImageNetSubset, root, classes=classes, size=20, resize=how) for how in ("squash", "crop"))
    assert squashed.spec.shape == cut.spec.shape == (3, 20, 20)
    assert squashed.train.store.pixels[0, 0, 10, :4].min() == 255
    assert cut.train.store.pixels[0].max() == 0
    assert squashed.id != cut.id


def test_default_is_the_published_size(tmp_path):
    root = make(tmp_path / "d", WOOF[:2])
    assert load(ImageNetSubset, root, classes=WOOF[:2]).spec.shape == (3, 128, 128)
    assert load(ImageNetSubset, root, classes=WOOF[:2], size="24x32").spec.shape == (3, 24, 32)


# --- what can be wrong -----------------------------------------------------------------------------------------------


def flatten_val(root):
    for file in list((root / "val").rglob("*.JPEG")):
        shutil.move(file, root / "val" / file.name)
    for folder in (root / "val").iterdir():
        if folder.is_dir():
            folder.rmdir()


FAULTS = [
    (lambda root: shutil.rmtree(root / "train"), r"has no folder 'train'; get ILSVRC 2012 .*root=\.\.\."),
    (lambda root: shutil.rmtree(root / "val"), r"has no folder 'val'; get ILSVRC 2012"),
    (shutil.rmtree, r"has no folder 'train', 'val'; get"),
    (flatten_val, r"val' has no class folders; sort its images"),
    (lambda root: shutil.rmtree(root / "train" / WOOF[4]), rf"train' has no class folder '{WOOF[4]}'"),
    (lambda root: [shutil.rmtree(root / "val" / one) for one in WOOF[:5]], r"' and 2 more; one is expected"),
    (lambda root: [f.unlink() for f in (root / "val" / WOOF[2]).iterdir()], rf"val/{WOOF[2]}' has no image"),
    (lambda root: [f.write_bytes(b"\xff\xd8\xff") for f in (root / "train" / WOOF[1]).iterdir()],
     rf"{WOOF[1]}_0.JPEG' cannot be read .*, and 1 others; get a whole copy"),
    (lambda root: (root / "val" / WOOF[1] / f"{WOOF[1]}_0.JPEG").write_bytes(b""), r"_0.JPEG' cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_what_is_wrong_is_said_in_one_line(tmp_path, fault, message):
    root = make(tmp_path / "d", WOOF)
    fault(root)
    with pytest.raises(DataError, match=message) as error:
        load(ImageNetSubset, root, subset="woof", size=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagenet-subset:subset=fruit,classes=[n01440764]", "give either a subset or classes"),
        ("imagenet-subset:subset=fish", "'fruit' | 'meow'"),
        ("imagenet-subset:classes=[tench]", "WordNet ids such as n02099601, got 'tench'"),
        ("imagenet-subset:subset=fruit,size=auto", "size"),
        ("imagenette:size=224", "size=224 would enlarge images of version=160; add version=320"),
        ("imagewoof:size=16x400,version=320", "add version=full"),
    ],
)
def test_wrong_options_are_refused(spec, message):
    with pytest.raises(ConfigError) as error:
        check("dataset", spec)
    assert message in str(error.value)


def test_other_test_images_than_imagenets_are_noticed(tmp_path, caplog):
    root = make(tmp_path / "d", WOOF[:2], train=1, test=50)
    load(ImageNetSubset, root, classes=WOOF[:2], size=4)
    assert "not comparable" not in caplog.text
    for i in range(50, 52):
        picture(root / "val" / WOOF[0] / f"{i}.JPEG", 1)
    load(ImageNetSubset, root, classes=WOOF[:2], size=4)
    assert "102 images of 2 classes, and ILSVRC 2012 has 50 of each" in caplog.text


# --- the published archives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("provider", "ids"), [(Imagenette, NETTE), (Imagewoof, WOOF)])
def test_archives_folder_or_what_it_lies_in_is_given(tmp_path, provider, ids):
    folder = make(tmp_path / provider.archives["160"].folder, ids, test=60)
    data = load(provider, tmp_path, size=8, download=False)
    assert data.id == f"{provider.name}:size=8"
    assert len(data.test) == 600
    assert load(provider, folder, size=8, download=False).checksum == data.checksum
    assert data.source.startswith(folder.name)


def test_imagenet_itself_is_no_imagenette(tmp_path):
    root = make(tmp_path / "d", NETTE + WOOF[:1])
    with pytest.raises(DataError, match=rf"other classes, '{WOOF[0]}'; .*--data imagenet-subset:root=.*,subset=nette"):
        load(Imagenette, root, size=8)


def test_versions_are_not_mixed_up(tmp_path):
    root = make(tmp_path / "imagenette2-320", NETTE)
    with pytest.raises(DataError, match="is version=320, not 160"):
        load(Imagenette, root, size=8)
    assert load(Imagenette, root, size=8, version="320").id == "imagenette:size=8,version=320"
    assert load(Imagenette, tmp_path, size=8, version="320", download=False).spec.num_classes == 10


def test_missing_archive_is_said_where(tmp_path):
    with pytest.raises(DataError, match=r"imagewoof is not in '.*imagewoof2-160'; pass root=\.\.\. .*download=true"):
        load(Imagewoof, tmp_path, size=8, download=False)
    picture(tmp_path / "train" / "other" / "1.png", 1)  # of something else
    with pytest.raises(DataError, match="imagewoof is not in"):
        load(Imagewoof, tmp_path, size=8, download=False)
    for part in ("val", "train"):
        shutil.rmtree(make(tmp_path / "imagewoof2-160", WOOF) / part)
        with pytest.raises(DataError, match=f"has no folder '{part}'; remove it"):
            load(Imagewoof, tmp_path, size=8)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server that has Imagenette's archive; gives its path."""
    source = make(tmp_path / "made" / "imagenette2-160", NETTE)
    path = tmp_path / "site" / "imagenette2-160.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, source.name)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(path.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/{path.name}"
    archive = Archive(url, hashlib.md5(path.read_bytes()).hexdigest(), source.name)
    monkeypatch.setattr(Imagenette, "archives", {**Imagenette.archives, "160": archive})
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


def test_archive_is_downloaded_once(site, tmp_path):
    root = tmp_path / "root"
    first = load(Imagenette, root, size=8)
    assert [p.name for p in root.iterdir()] == ["imagenette2-160"]
    site.unlink()
    assert load(Imagenette, root, size=8).checksum == first.checksum


def test_damaged_archive_leaves_nothing(site, tmp_path):
    site.write_bytes(site.read_bytes()[:-20])
    with pytest.raises(DataError, match="could not download imagenette to"):
        load(Imagenette, tmp_path / "root", size=8)
    assert list((tmp_path / "root").iterdir()) == []


def test_published_archives_are_named():
    for provider in (Imagenette, Imagewoof):
        for archive in provider.archives.values():
            assert archive.url.endswith(f"/{archive.folder}.tgz")
            assert len(bytes.fromhex(archive.md5)) == 16
    sums = [archive.md5 for provider in (Imagenette, Imagewoof) for archive in provider.archives.values()]
    assert len(set(sums)) == 6


@pytest.fixture
def spec(tmp_path):
    root = make(tmp_path / "d", WOOF[:2], train=3, test=2)
    return f"imagenet-subset:root={root},classes=[{','.join(WOOF[:2])}],size=8"


def test_it_keeps_the_promises_of_a_dataset(spec):
    results = dcf.testing.run_checks("dataset", spec)
    assert [f"{r.name}: {r.detail}" for r in results if r.status == "failed"] == []
