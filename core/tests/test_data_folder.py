"""A user's own folder of images."""

import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from dcf import DataError
from dcf.config import validate
from dcf.data import cache
from dcf.data.decode import decode_tree, to_channels
from dcf.data.folder import Folder
from dcf.spec import parse_one

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def save(path, mode="RGB", size=(8, 8), value=None, **options):
    """Write an image of random pixels, or of one value; `size` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}[mode])
    pixels = rng.integers(0, 256, shape) if value is None else np.broadcast_to(value, shape)
    Image.frombytes(mode, size[::-1], np.ascontiguousarray(pixels, np.uint8).tobytes()).save(path, **options)
    return pixels


def make(root, classes=("a", "b"), n=5, **options):
    for name in classes:
        for i in range(n):
            save(root / name / f"{i}.png", **options)
    return root


def load(path, **options):
    return Folder(Folder.Config(path=str(path), **options)).load()


def test_train_and_test_folders(tmp_path):
    pixels = save(tmp_path / "d" / "train" / "b" / "x.PNG", size=(20, 50))
    save(tmp_path / "d" / "train" / "a" / "deep" / "er" / "y.png", size=(20, 50))
    save(tmp_path / "d" / "test" / "b" / "z.png", size=(20, 50))
    save(tmp_path / "d" / "train" / ".hidden" / "n.png")
    (tmp_path / "d" / "train" / "b" / "notes.txt").write_text("no image")
    data = load(tmp_path / "d")
    assert data.spec.classes == ("a", "b")
    assert data.spec.shape == (3, 20, 50)
    assert data.train.labels.tolist() == [0, 1]
    assert data.test.labels.tolist() == [1]
    assert np.array_equal(data.train.store.pixels[1].numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_the_test_folder(tmp_path, name):
    make(tmp_path / "d" / "train")
    make(tmp_path / "d" / name, n=2)
    assert len(load(tmp_path / "d").test) == 4


def test_named_folders(tmp_path):
    make(tmp_path / "d" / "learn")
    make(tmp_path / "d" / "judge", n=2)
    make(tmp_path / "d" / "val", n=3)
    data = load(tmp_path / "d", train="learn", test="judge")
    assert (len(data.train), len(data.test)) == (10, 4)


def test_split_is_stratified_and_seeded(tmp_path):
    make(tmp_path / "d", n=10)
    data = load(tmp_path / "d", split=0.3)
    assert data.train.counts.tolist() == [7, 7]
    assert data.test.counts.tolist() == [3, 3]
    assert load(tmp_path / "d", split=0.3).checksum == data.checksum
    assert load(tmp_path / "d", split=0.3, seed=1).checksum != data.checksum


def test_three_hundred_classes(tmp_path):
    make(tmp_path / "d", classes=[f"{i:03}" for i in range(300)], n=2, size=(4, 4), mode="L")
    data = load(tmp_path / "d", split=0.5)
    assert data.spec.num_classes == 300
    assert data.train.counts.tolist() == [1] * 300


def test_one_image_in_all(tmp_path):
    make(tmp_path / "d", classes=["a"], n=1)
    with pytest.raises(DataError, match=r"every class has only one image; .* pass split=0"):
        load(tmp_path / "d")
    data = load(tmp_path / "d", split=0)
    assert (len(data.train), len(data.test)) == (1, 0)
    assert list(data.test.batches(4)) == []


def test_norm_is_computed_on_train_only(tmp_path):
    make(tmp_path / "d" / "train", value=51, mode="L", n=1)
    save(tmp_path / "d" / "train" / "a" / "x.png", mode="L", value=153)
    save(tmp_path / "d" / "train" / "b" / "x.png", mode="L", value=153)
    make(tmp_path / "d" / "test", value=255, mode="L")
    space = load(tmp_path / "d").spec.space
    assert space.mean == pytest.approx((0.4,))
    assert space.std == pytest.approx((0.2,))
    assert load(tmp_path / "d", norm="unit").spec.space.kind == "unit"
    assert load(tmp_path / "d", mean=["0.5"], std=["0.5"]).spec.space.mean == (0.5,)


def test_channels_follow_the_files(tmp_path):
    make(tmp_path / "grey", mode="L")
    assert load(tmp_path / "grey").spec.channels == 1
    save(tmp_path / "grey" / "a" / "colour.png", mode="RGB")
    assert load(tmp_path / "grey").spec.channels == 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_one_to_four_channels(tmp_path, mode, channels):
    make(tmp_path / "d", mode=mode)
    assert load(tmp_path / "d", channels=str(channels)).spec.shape == (channels, 8, 8)


def test_alpha_is_kept_when_asked_for_and_white_otherwise(tmp_path):
    save(tmp_path / "d" / "a" / "x.png", mode="RGBA", value=(10, 20, 30, 0))
    kept = load(tmp_path / "d", channels=4, split=0).train.store.pixels
    assert kept[0, :, 0, 0].tolist() == [10, 20, 30, 0]
    assert load(tmp_path / "d", split=0).train.store.pixels.unique().tolist() == [255]


def test_grey_alpha_counts_as_grey(tmp_path):
    save(tmp_path / "d" / "a" / "x.png", mode="LA", value=(100, 255))
    data = load(tmp_path / "d", split=0)
    assert data.spec.channels == 1
    assert data.train.store.pixels.unique().tolist() == [100]


def test_palette_cmyk_bilevel_and_sixteen_bits():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert np.asarray(to_channels(palette, 3))[0, 0].tolist() == [200, 100, 50]
    palette.info["transparency"] = 1
    assert np.asarray(to_channels(palette, 3))[0, 0].tolist() == [255, 255, 255]
    assert np.asarray(to_channels(palette, 4))[0, 0].tolist() == [200, 100, 50, 0]
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert np.asarray(to_channels(cmyk, 3))[0, 0].tolist() == [255, 0, 0]
    assert np.asarray(to_channels(Image.new("1", (2, 2), 1), 1))[0, 0] == 255
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert np.asarray(to_channels(deep, 1)).tolist() == [[0, 1, 128, 255]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = save(tmp_path / "d" / "a" / "x.png", size=(6, 9), exif=exif)
    data = load(tmp_path / "d", split=0)
    assert data.spec.shape == (3, 9, 6)
    assert np.array_equal(data.train.store.pixels[0].permute(1, 2, 0).numpy(), np.rot90(pixels, -1))


def test_crop_keeps_the_middle_and_squash_keeps_all(tmp_path):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 200
    (tmp_path / "d" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "d" / "a" / "x.png")
    crop = load(tmp_path / "d", size=8, split=0).train.store.pixels
    assert crop.unique().tolist() == [200]
    squash = load(tmp_path / "d", size=8, split=0, resize="squash").train.store.pixels
    assert squash.float().mean() == pytest.approx(100, abs=5)
    assert load(tmp_path / "d", size="4x12", split=0).spec.shape == (1, 4, 12)
    assert load(tmp_path / "d", size=(4, 12), split=0).spec.shape == (1, 4, 12)


def test_different_sizes_are_listed(tmp_path):
    make(tmp_path / "d", size=(8, 8))
    save(tmp_path / "d" / "b" / "x.png", size=(9, 30))
    with pytest.raises(DataError, match=r"differ in size: 8x8 \(10\), 9x30 \(1\); pass size="):
        load(tmp_path / "d")
    assert load(tmp_path / "d", size=8).spec.shape == (3, 8, 8)


def test_test_images_of_another_size(tmp_path):
    make(tmp_path / "d" / "train", size=(8, 8))
    make(tmp_path / "d" / "test", size=(9, 9))
    with pytest.raises(DataError, match="are 9x9, those of train 8x8; pass size="):
        load(tmp_path / "d")


def test_corrupt_files_are_left_out_with_a_warning(tmp_path, caplog):
    make(tmp_path / "d", n=4)
    (tmp_path / "d" / "a" / "0.png").write_bytes(b"not an image at all")
    whole = (tmp_path / "d" / "b" / "1.png").read_bytes()
    (tmp_path / "d" / "b" / "1.png").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path / "d", split=0)
    assert data.train.counts.tolist() == [3, 3]
    assert "0.png' cannot be read (not an image, or damaged) and is left out" in caplog.text
    assert "1.png' cannot be read" in caplog.text
    survivor = Image.open(tmp_path / "d" / "b" / "2.png")
    assert np.array_equal(data.train.store.pixels[4].permute(1, 2, 0).numpy(), np.asarray(survivor))


@pytest.mark.parametrize("options", [{}, {"memory": "disk"}, {"cache": False}])
def test_a_link_that_leads_nowhere_is_left_out_as_a_corrupt_file_is(tmp_path, caplog, options):
    make(tmp_path / "d", n=3)
    (tmp_path / "d" / "a" / "00.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "d" / "b" / "9.png").symlink_to(tmp_path / "d" / "b" / "0.png")
    data = load(tmp_path / "d", split=0, **options)
    assert data.train.counts.tolist() == [3, 4]
    assert "00.png' cannot be read" in caplog.text


def test_class_of_corrupt_files_only_is_fatal(tmp_path):
    make(tmp_path / "d", n=1)
    (tmp_path / "d" / "a" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image in .*a' can be read; replace the files or remove the folder"):
        load(tmp_path / "d", split=0)


def test_nothing_readable(tmp_path):
    make(tmp_path / "d", classes=["a"], n=1)
    (tmp_path / "d" / "a" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images in .* can be read"):
        load(tmp_path / "d")
    with pytest.raises(DataError, match=r"no image in .* can be read"):
        load(tmp_path / "d", size=8)


def test_empty_class_names_the_folder_and_the_fix(tmp_path):
    make(tmp_path / "d")
    (tmp_path / "d" / "c").mkdir()
    with pytest.raises(DataError, match=r"class folder '.*d/c' has no image; add images or remove the folder"):
        load(tmp_path / "d")


def test_wrong_folders(tmp_path):
    with pytest.raises(DataError, match="does not exist; pass path="):
        load(tmp_path / "none")
    save(tmp_path / "flat" / "x.png")
    with pytest.raises(DataError, match="has 1 images and no class folders"):
        load(tmp_path / "flat")
    make(tmp_path / "half" / "test")
    with pytest.raises(DataError, match="has 'test' but no 'train'"):
        load(tmp_path / "half")


def test_flat_test_folder_is_refused_not_scored(tmp_path):
    """Some archives keep all test images in one folder: one wrong class, and a plausible accuracy."""
    make(tmp_path / "d" / "train")
    make(tmp_path / "d" / "val", classes=["images"])
    with pytest.raises(DataError, match=r"names a class that .* does not have; sort the test images"):
        load(tmp_path / "d")


def test_test_labels_follow_the_names_of_train(tmp_path, caplog):
    make(tmp_path / "d" / "train", classes=("a", "b", "c"))
    make(tmp_path / "d" / "test", classes=("c",), n=2)
    data = load(tmp_path / "d")
    assert data.test.labels.tolist() == [2, 2]
    assert "no test image of 2 classes" in caplog.text


def test_cache_spares_the_decoding_and_changes_nothing(tmp_path, monkeypatch):
    make(tmp_path / "d")
    (tmp_path / "d" / "a" / "0.png").write_bytes(b"broken")
    first = load(tmp_path / "d").checksum
    monkeypatch.setattr("dcf.data.cache.decode_tree", lambda *_: pytest.fail("decoded again"))
    assert load(tmp_path / "d").checksum == first


def test_cache_follows_files_and_options(tmp_path):
    make(tmp_path / "d")
    first = load(tmp_path / "d")
    assert load(tmp_path / "d", size=4).spec.shape == (3, 4, 4)
    save(tmp_path / "d" / "a" / "0.png", value=3)
    os.utime(tmp_path / "d" / "a" / "0.png", ns=(1, 1))
    assert load(tmp_path / "d").checksum != first.checksum


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b[:-9] + b"\0" * 9, lambda b: b""])
def test_damaged_cache_is_made_anew(tmp_path, caplog, damage):
    make(tmp_path / "d")
    first = load(tmp_path / "d").checksum
    (file,) = cache.cache_dir().rglob("*.safetensors")
    good = file.read_bytes()
    file.write_bytes(damage(good))
    assert load(tmp_path / "d").checksum == first
    assert "is damaged" in caplog.text
    assert file.read_bytes() == good


def test_cache_can_be_off_or_impossible(tmp_path, monkeypatch, caplog):
    make(tmp_path / "d")
    load(tmp_path / "d", cache=False)
    assert not cache.cache_dir().exists()
    (tmp_path / "cache").write_text("a file where the folder should be")
    load(tmp_path / "d")
    assert "could not cache the decoded images" in caplog.text


def test_cache_place_follows_the_platform(monkeypatch):
    monkeypatch.delenv("DCF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr("sys.platform", "linux")
    assert str(cache.cache_dir()) == "/somewhere/dcf"


def test_id_is_the_canonical_spec(tmp_path):
    make(tmp_path / "d")
    data = load(tmp_path / "d", size="8", cache=False, mean=(0.5,) * 3, std=(1,) * 3)
    expected = f"folder:path={tmp_path / 'd'},size=8,mean=[0.5,0.5,0.5],std=[1.0,1.0,1.0]"
    assert data.id == expected
    assert Folder(validate(Folder.Config, parse_one(expected))).load().checksum == data.checksum


@pytest.mark.parametrize(
    "options",
    [{"size": "big"}, {"size": 0}, {"channels": 5}, {"split": 1}, {"mean": (1,)}, {"std": (0,), "mean": (0,)}],
)
def test_options_are_bounded(options):
    with pytest.raises(ValidationError):
        Folder.Config(path="x", **options)


def test_decoding_in_threads_keeps_the_order(tmp_path):
    from dcf.data.decode import DecodeOptions
    from dcf.data.tree import list_tree

    for i in range(150):
        save(tmp_path / "d" / "a" / f"{i:03}.png", mode="L", size=(2, 2), value=i)
    decoded = decode_tree(list_tree(tmp_path / "d"), DecodeOptions(None, "crop", None))
    assert torch.equal(decoded.pixels.take(slice(None))[:, 0, 0, 0].long(), torch.arange(150))


def test_many_corrupt_files_do_not_flood_the_log(tmp_path, caplog):
    make(tmp_path / "d", classes=["a"], n=2)
    for i in range(30):
        (tmp_path / "d" / "a" / f"bad{i}.png").write_bytes(b"broken")
    assert len(load(tmp_path / "d", split=0).train) == 2
    assert len(caplog.records) == 21
    assert "10 more files" in caplog.text
