"""`check`: every problem of a dataset at once."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dcf import DataSpec, ValueSpace
from dcf.data.check import check
from dcf.data.digits import Digits
from dcf.data.folder import Folder
from dcf.data.real import RealData, Split
from dcf.data.torchvision import Mnist

rng = np.random.default_rng(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **options)
    return pixels


def texts(result, severity):
    return "\n".join(p.text for p in result.problems if p.severity == severity)


def test_digits_are_clean_but_for_nothing():
    result = check(Digits())
    assert result.ok
    assert (result.train, result.test) == (1442, 355)
    assert sum(result.counts["train"].values()) == 1442
    assert result.values["max"] == 1.0
    assert result.problems == []


def test_clean_folder(tmp_path):
    for part, n in (("train", 4), ("test", 2)):
        for name in ("a", "b"):
            for i in range(n):
                save(tmp_path / part / name / f"{i}.png")
    result = check(tmp_path)
    assert result.ok
    assert result.problems == []
    assert result.sizes == {"6x6": 12}
    assert result.modes == {"RGB": 12}


def test_all_problems_of_a_folder_come_at_once(tmp_path):
    train, exif = tmp_path / "train", Image.Exif()
    exif[0x0112] = 3
    twin = save(train / "a" / "0.png")
    save(train / "a" / "1.png", twin)
    for i in range(2, 9):
        save(train / "a" / f"{i}.png")
    save(train / "b" / "0.png", np.zeros((6, 6), np.uint8))
    save(train / "b" / "1.jpg", rng.integers(0, 256, (8, 4, 4), dtype=np.uint8)[..., :3], exif=exif)
    (train / "b" / "2.png").write_bytes(b"broken")
    (train / "c").mkdir()
    save(train / "loose.png")
    save(tmp_path / "test" / "a" / "0.png", twin)
    result = check(str(tmp_path))
    assert not result.ok
    assert result.empty == ["c"]
    assert result.duplicates == 1
    assert result.leaked == 1
    assert result.constant == 1
    assert result.rotated == 1
    assert result.imbalance == 4.5
    assert [reason for _, reason in result.corrupt] == ["not an image, or damaged"]
    assert result.modes == {"RGB": 11, "L": 1}
    assert result.sizes == {"6x6": 11, "8x4": 1}
    errors, warnings = texts(result, "error"), texts(result, "warning")
    assert "no training image: 'c'" in errors
    assert "differ in size: 6x6 (11), 8x4 (1)" in errors
    for words in ("cannot be read", "repeat others", "also in train", "one value", "4.5 times", "mixed", "loose"):
        assert words in (warnings if words != "loose" else warnings.replace("lie in", "loose"))
    assert all(p.mend for p in result.problems)
    assert [p.severity for p in result.problems] == sorted(p.severity for p in result.problems)


def test_size_option_settles_different_sizes(tmp_path):
    save(tmp_path / "a" / "0.png")
    save(tmp_path / "a" / "1.png", rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert not check(Folder(Folder.Config(path=str(tmp_path)))).ok
    assert check(Folder(Folder.Config(path=str(tmp_path), size=6))).ok


def test_split_folder_is_checked_as_it_will_be_split(tmp_path):
    twin = save(tmp_path / "a" / "0.png")
    for i in range(1, 8):
        save(tmp_path / "a" / f"{i}.png", twin)
    result = check(tmp_path)
    data = Folder(Folder.Config(path=str(tmp_path))).load()
    assert (result.train, result.test) == (len(data.train), len(data.test))
    assert result.leaked == len(data.test)
    assert result.duplicates == len(data.train) - 1


def test_opacity_tells_images_apart_but_is_no_brightness(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    save(tmp_path / "a" / "0.png", pixels)
    pixels[..., 3] = 255
    save(tmp_path / "a" / "1.png", pixels)
    result = check(Folder(Folder.Config(path=str(tmp_path), split=0)))
    assert result.duplicates == 0
    assert result.values["max"] == 0.0


@pytest.mark.parametrize("make", [lambda p: p / "none", lambda p: p])
def test_missing_folder_is_a_problem_not_an_exception(tmp_path, make):
    result = check(make(tmp_path))
    assert not result.ok
    assert len(result.problems) == 1


def test_flat_test_folder_is_a_problem(tmp_path):
    save(tmp_path / "train" / "a" / "0.png")
    save(tmp_path / "val" / "images" / "0.png")
    assert "names a class that" in texts(check(tmp_path), "error")


def test_one_image_cannot_be_split(tmp_path):
    save(tmp_path / "a" / "0.png")
    assert "only one image" in texts(check(tmp_path), "error")


def test_provider_that_cannot_load_is_a_problem(tmp_path):
    result = check(Mnist(Mnist.Config(root=str(tmp_path), download=False)))
    assert "mnist is not in" in texts(result, "error")


def test_float_data_with_nan_and_odd_range():
    pixels = torch.rand(6, 1, 3, 3) * 4 - 2
    pixels[0, 0, 0, 0] = float("nan")
    space = ValueSpace.unit(1)
    split = Split(pixels, torch.arange(6) % 2, space, 2)
    result = check(RealData(DataSpec(1, 3, 3, ("a", "b"), space), split, split, "made"))
    assert result.nonfinite == 2
    assert result.leaked == 6
    assert "NaN" in texts(result, "error")
    assert "not in [0, 1]" in texts(result, "warning")


def test_statistics_equal_the_direct_formula():
    data = Digits().load()
    pixels = torch.cat([data.train.store.pixels, data.test.store.pixels]).double() / 16
    values = check(data).values
    assert values["mean"] == pytest.approx(float(pixels.mean()))
    assert values["std"] == pytest.approx(float(pixels.std(correction=0)))


def test_json_is_plain(tmp_path):
    save(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.png").write_bytes(b"broken")
    text = json.dumps(check(tmp_path).to_json())
    assert json.loads(text)["ok"] is False
