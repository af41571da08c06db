"""Data that no benchmark has: odd sizes, channels, counts and damaged files, condensed and evaluated end to end."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

import dcf
from dcf.testing import fake_data

QUICK = {
    "network": "convnet:width=4,depth=1",
    "iterations": 2,
    "networks": 1,
    "protocol": "dcf-std@1[epochs=1,steps_min=2]",
}


def condense(data, **options):
    return dcf.condense(data=data, **{"matcher": "dm:batch_real=4", **QUICK, **options})


def picture(path, size=(9, 7), mode="RGB", seed=0):
    noise = random.Random(f"{path.name}{seed}")
    image = Image.new(mode, size)
    depth = len(image.getbands())
    pixels = [tuple(noise.randrange(256) for _ in range(depth)) for _ in range(size[0] * size[1])]
    image.putdata([p[0] for p in pixels] if depth == 1 else pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes with four training and two test pictures each."""
    for split, count in (("train", 4), ("test", 2)):
        for name in ("apple", "bee", "cat"):
            for number in range(count):
                picture(tmp_path / split / name / f"{number}.png", seed=split)
    return tmp_path


def accuracy(made):
    return made.metadata["results"]["summary"]["mean"]


@pytest.mark.parametrize("shape", [(1, 20, 50), (2, 9, 9), (3, 5, 30), (4, 8, 8), (3, 1, 7)])
@pytest.mark.parametrize("matcher", ["dm:batch_real=4", "dc:batch_real=4,match_steps=2,net_epochs=1"])
def test_any_channels_and_sides(shape, matcher):
    made = condense(fake_data(shape=shape), matcher=matcher, augment="dsa")
    assert made[0][0].shape == shape
    assert 0 <= accuracy(made) <= 1


def test_300_classes():
    made = condense(fake_data(classes=300, shape=(1, 6, 6), train=2, test=1))
    assert len(made.classes) == 300
    assert made.targets == list(range(300))


@pytest.mark.parametrize("ipc", [1, 7])
def test_class_smaller_than_the_budget_and_the_batch(ipc):
    made = condense(fake_data(train=3), matcher="dm:batch_real=64", ipc=ipc)
    assert len(made) == 2 * ipc
    assert torch.isfinite(made.tensors().x).all()


def test_one_image_a_class_is_enough():
    made = condense(fake_data(train=1, test=1))
    assert len(made) == 2


def test_folder_end_to_end(folder, tmp_path):
    made = condense(f"folder:path={folder},cache=false", out=tmp_path / "run", ipc=2)
    assert made.classes == ["apple", "bee", "cat"]
    loaded = dcf.load(tmp_path / "run" / "synthetic.safetensors")
    assert loaded[0][0].shape == (3, 7, 9)
    report = dcf.evaluate(tmp_path / "run" / "synthetic.safetensors")
    assert report.summary.mean == pytest.approx(accuracy(made))


@pytest.mark.parametrize(("size", "depth"), [(32, 3), (64, 4), (128, 5)])
def test_network_follows_the_size_of_the_images(folder, tmp_path, monkeypatch, capsys, size, depth):
    from dcf.cli import main
    from dcf.networks.convnet import ConvNet

    depths = set()
    plain = ConvNet.__init__
    monkeypatch.setattr(
        ConvNet, "__init__", lambda self, *args: (depths.add(args[3]), plain(self, *args))[1]
    )  # (shape, classes, width, depth, ...)
    words = ["--matcher", "dm:batch_real=4", "--network", "convnet:width=4", "--ipc", "1", "--iterations", "2"]
    words += ["--nets", "1", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(["condense", "--data", f"folder:path={folder},size={size},cache=false", *words]) == 0
    assert dcf.load(tmp_path / "run" / "synthetic.safetensors")[0][0].shape == (3, size, size)
    assert depths == {depth}
    assert str(tmp_path / "run") in capsys.readouterr().out


def test_subset_of_imagenet_end_to_end(tmp_path):
    ids = ("n02129165", "n02123045", "n02128757")
    for part, count in (("train", 4), ("val", 2)):
        for one in (*ids, "n01440764"):
            for number in range(count):
                picture(tmp_path / part / one / f"{one}_{number}.png", size=(90, 60), seed=part)
    spec = f"imagenet-subset:root={tmp_path},classes=[{','.join(ids)}],size=64,cache=false"
    made = condense(spec, network="convnet:width=4", out=tmp_path / "run")
    assert made.classes == ["tabby", "snow leopard", "lion"]
    assert made[0][0].shape == (3, 64, 64)
    report = dcf.evaluate(tmp_path / "run" / "synthetic.safetensors", protocol=QUICK["protocol"])
    assert 0 <= report.summary.mean <= 1


def test_corrupt_picture_among_good_ones_is_left_out(folder, caplog):
    (folder / "train" / "bee" / "0.png").write_bytes(b"\x89PNG not a picture")
    made = condense(f"folder:path={folder},cache=false")
    assert "0.png" in caplog.text
    assert made.metadata["data"]["train"] == 11


def test_empty_class_is_named(folder):
    for file in (folder / "train" / "cat").iterdir():
        file.unlink()
    with pytest.raises(dcf.DataError, match="cat"):
        condense(f"folder:path={folder},cache=false")


def test_one_picture_in_all_is_refused_with_advice(tmp_path):
    picture(tmp_path / "train" / "only" / "1.png")
    with pytest.raises(dcf.DataError) as caught:
        condense(f"folder:path={tmp_path},cache=false")
    assert "split" in str(caught.value) or "test" in str(caught.value)


def test_budget_too_small_says_what_would_do():
    with pytest.raises(dcf.BudgetError, match="the smallest that works is bytes=1536"):
        condense(fake_data(), budget="bytes=100")


def test_wrong_object_as_data_is_a_clear_error():
    with pytest.raises(dcf.UsageError, match="data"):
        condense(3)
