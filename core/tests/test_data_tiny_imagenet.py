"""Tiny ImageNet in its own layout: a list of classes for test images that all lie in one folder."""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dcf.data.fetch import Archive
from dcf.data.tiny_imagenet import TinyImageNet, read_annotations, read_ids, read_names, val_tree
from dcf.errors import DataError
from dcf.space import ValueSpace

#: Neither ids nor names are in the order of the file, and two classes have the same name.
IDS = ("n02012849", "n01443537", "n03126707", "n01629819")
NAMES = {"n01443537": "goldfish", "n01629819": "European fire salamander", "n02012849": "crane", "n03126707": "crane"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def picture(path, value, size=(64, 64), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 255 - value, 128)).save(path, "PNG")


def make(root, per_class=3, tests=2):
    """The archive's files; every picture has a brightness that tells its class. PNG, so that it is exact."""
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{one}\n" for one in IDS))
    words = {**NAMES, "n00001740": "entity"}
    synonyms = {"n01443537": ", Carassius auratus"}
    (root / "words.txt").write_text("".join(f"{one}\t{words[one]}{synonyms.get(one, '')}\n" for one in sorted(words)))
    lines = []
    for label, one in enumerate(sorted(IDS)):
        for i in range(per_class):
            picture(root / "train" / one / "images" / f"{one}_{i}.JPEG", 10 * label)
        (root / "train" / one / f"{one}_boxes.txt").write_text("0 0 1 1\n")
        for i in range(tests):
            name = f"val_{i * len(IDS) + label}.JPEG"
            picture(root / "val" / "images" / name, 10 * label + 1, mode="L" if i else "RGB")
            lines.append(f"{name}\t{one}\t0\t32\t44\t62\n")
    picture(root / "test" / "images" / "test_0.JPEG", 200)
    (root / "val" / "val_annotations.txt").write_text("".join(lines[::-1]))
    return root


def sort_into(root, place):
    """What many do with the test images before anything else."""
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, one = line.split("\t")[:2]
        target = place / one / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "val" / "images" / name, target)


def load(root, **options):
    return TinyImageNet(TinyImageNet.Config(root=str(root), **{"download": False, **options})).load()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_every_image_gets_its_class(tmp_path, inside):
    make(tmp_path / "d" / inside if inside else tmp_path / "d")
    data = load(tmp_path / "d")
    assert data.spec.shape == (3, 64, 64)
    assert data.spec.classes == ("goldfish", "European fire salamander", "crane (n02012849)", "crane (n03126707)")
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert data.test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2 + [3] * 2
    assert torch.equal(data.train.store.pixels[:, 0, 5, 7].long(), 10 * data.train.labels)
    assert torch.equal(data.test.store.pixels[:, 0, 5, 7].long(), 10 * data.test.labels + 1)
    # Grey files are among them.
    assert torch.equal(data.test.store.pixels[1, 0], data.test.store.pixels[1, 1])
    assert data.spec.space == ValueSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.id == "tiny-imagenet"


@pytest.mark.parametrize("place", ["val", "val/images"])
def test_test_images_in_class_folders_are_the_same(tmp_path, place):
    root = make(tmp_path / "d")
    flat = load(root)
    sort_into(root, root / place)
    again = load(root)
    assert again.test.labels.tolist() == flat.test.labels.tolist()
    assert torch.equal(again.test.store.pixels, flat.test.store.pixels)
    # The list is of no use then, and need not be there.
    (root / "val" / "val_annotations.txt").unlink()
    assert load(root).checksum == again.checksum


def test_options_of_the_value_space(tmp_path):
    root = make(tmp_path / "d")
    assert load(root, norm="auto").id == "tiny-imagenet:norm=auto"
    assert load(root, norm="unit").spec.space.kind == "unit"
    assert load(root, mean=(0.5,) * 3, std=(0.25,) * 3).spec.space.mean == (0.5,) * 3


def test_second_start_decodes_nothing(tmp_path, monkeypatch):
    root = make(tmp_path / "d")
    first = load(root).checksum
    monkeypatch.setattr("dcf.data.cache.decode_tree", lambda *_: pytest.fail("decoded again"))
    assert load(root).checksum == first


def remove_class(root):
    shutil.rmtree(root / "train" / IDS[0])


def empty_class(root):
    shutil.rmtree(root / "train" / IDS[0] / "images")


def untested_class(root):
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines(keepends=True)
    for line in [line for line in lines if IDS[0] in line]:
        (root / "val" / "images" / line.split("\t")[0]).unlink()
    (root / "val" / "val_annotations.txt").write_text("".join(line for line in lines if IDS[0] not in line))


def first_line_gone(root):
    path = root / "val" / "val_annotations.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def twice(root):
    path = root / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + "val_0.JPEG\tn01443537\t0\t0\t1\t1\n")


def unsorted_class(root):
    sort_into(root, root / "val")
    shutil.rmtree(root / "val" / IDS[1])


def sorted_stranger(root):
    sort_into(root, root / "val")
    picture(root / "val" / "n99999999" / "x.JPEG", 1)


def annotations(old, new):
    return lambda root: edit(root / "val" / "val_annotations.txt", old, new)


FAULTS = [
    (remove_class, r"train' has no class folder 'n02012849'"),
    (empty_class, r"train/n02012849' has no image"),
    (lambda root: picture(root / "train" / "n99999999" / "x.JPEG", 1), r"'n99999999', which wnids.txt does not have"),
    (lambda root: (root / "train" / IDS[1] / "images" / f"{IDS[1]}_1.JPEG").write_bytes(b"\xff\xd8\xff broken"),
     r"n01443537_1.JPEG' cannot be read"),
    (lambda root: picture(root / "train" / IDS[1] / "images" / "z.JPEG", 1, (32, 64)), r"64x64 .* 64x64 \(12\), 64x32"),
    (lambda root: shutil.rmtree(root / "val"), r"val' has no test images; expected"),
    (lambda root: shutil.rmtree(root / "val" / "images"), r"val' has no test images; expected"),
    (lambda root: (root / "val" / "val_annotations.txt").unlink(), r"val_annotations.txt' is missing"),
    (lambda root: (root / "val" / "images" / "val_5.JPEG").unlink(), r"does not have 'val_5.JPEG', which"),
    (first_line_gone, r"does not say the class of 'val_7.JPEG'"),
    (twice, r"line 9: 'val_0.JPEG' stands there twice"),
    (annotations("val_0.JPEG\tn01443537", "val_0.JPEG\tn00000000"), r"line \d: n00000000 is no class of wnids.txt"),
    (annotations("val_0.JPEG\tn01443537", "val_0.JPEG n01443537"), r"line \d: expected 'val_0.JPEG', a tab"),
    (annotations("val_0.JPEG", "../val_0.JPEG"), r"line \d: expected 'val_0.JPEG', a tab"),
    (untested_class, r"no image of class 'n02012849'"),
    (unsorted_class, r"val' has no class folder 'n01443537'"),
    (sorted_stranger, r"'n99999999', which wnids.txt does not have"),
    (lambda root: edit(root / "wnids.txt", IDS[1], IDS[0]), r"wnids.txt', line 2: expected another id"),
    (lambda root: edit(root / "wnids.txt", IDS[1], "goldfish"), r"wnids.txt', line 2: expected another id"),
    (lambda root: (root / "wnids.txt").write_text("\n"), r"wnids.txt' is empty"),
    (lambda root: (root / "wnids.txt").write_bytes(b"\xff\xfe"), r"wnids.txt' cannot be read"),
    (lambda root: edit(root / "words.txt", IDS[1], "n00000001"), r"words.txt' has no name of 'n01443537'"),
    (lambda root: (root / "words.txt").unlink(), r"words.txt' is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_what_is_wrong_is_said_in_one_line(tmp_path, fault, message):
    root = make(tmp_path / "d")
    fault(root)
    with pytest.raises(DataError, match=message) as error:
        load(root)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_said_where(tmp_path):
    with pytest.raises(DataError, match=r"tiny-imagenet is not in .*root=\.\.\. .*download=true"):
        load(tmp_path)
    (tmp_path / "tiny-imagenet-200").mkdir()
    with pytest.raises(DataError, match=r"has no wnids.txt; remove the folder"):
        load(tmp_path, download=True)


# --- the download --------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server that has the archive; gives its path."""
    folder = tmp_path / "site"
    source = make(tmp_path / "made" / "tiny-imagenet-200")
    folder.mkdir()
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(source.parent))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/{path.name}"
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(TinyImageNet, "archive", Archive(url, md5, source.name))
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


def test_archive_is_downloaded_once(site, tmp_path, capsys):
    root = tmp_path / "root"
    first = load(root, download=True)
    assert [p.name for p in root.iterdir()] == ["tiny-imagenet-200"]
    assert len(first.train) == 12
    site.unlink()
    assert load(root, download=True).checksum == first.checksum == load(tmp_path / "made").checksum
    assert capsys.readouterr().out == ""


def test_archive_that_is_there_is_not_fetched(site, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.move(site, root)
    assert len(load(root, download=True).test) == 8
    assert sorted(p.name for p in root.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: b"not here", None])
def test_failed_download_is_one_message_and_leaves_nothing(site, tmp_path, damage):
    site.write_bytes(damage(site.read_bytes())) if damage else site.unlink()
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"could not download tiny-imagenet to .* on a machine with network") as error:
        load(root, download=True)
    assert "\n" not in str(error.value)
    assert list(root.iterdir()) == []


def test_archive_of_another_form_leaves_nothing(site, tmp_path, monkeypatch):
    with zipfile.ZipFile(site, "w") as archive:
        archive.writestr("elsewhere/wnids.txt", "n01443537\n")
    md5 = hashlib.md5(site.read_bytes()).hexdigest()
    monkeypatch.setattr(TinyImageNet, "archive", TinyImageNet.archive._replace(md5=md5))
    with pytest.raises(DataError, match="could not download tiny-imagenet"):
        load(tmp_path / "root", download=True)
    assert list((tmp_path / "root").iterdir()) == []


def test_published_archive_is_named():
    assert TinyImageNet.archive.url.endswith("/tiny-imagenet-200.zip")
    assert len(bytes.fromhex(TinyImageNet.archive.md5)) == 16


# --- the lists, each by itself ---------------------------------------------------------------------------------------


def test_lists_are_read_line_by_line(tmp_path):
    root = make(tmp_path / "d")
    ids = read_ids(root / "wnids.txt")
    assert ids == sorted(IDS)
    assert read_names(root / "words.txt", ids)[0] == "goldfish"  # the first of its synonyms
    classes = read_annotations(root / "val" / "val_annotations.txt", ids)
    assert len(classes) == 8
    assert classes["val_1.JPEG"] == ids[1]
    tree = val_tree(root / "val", ids)
    assert [classes[file] for file in tree.files] == [ids[label] for label in tree.labels]
    assert np.all(np.diff(tree.labels) >= 0)
