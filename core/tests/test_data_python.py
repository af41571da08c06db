"""Data made by the user's own code."""

import sys

import numpy as np
import pytest
import torch

from dcf import DataError
from dcf.data.digits import Digits
from dcf.data.python import Python

MODULE = """
import numpy as np
import torch
from PIL import Image
from dcf.data.digits import Digits

def pixels(n, *shape):
    return torch.arange(n * int(np.prod(shape))).reshape(n, *shape).to(torch.uint8)

class Items:
    classes = ["cat", "dog", "owl"]
    def __init__(self, make, n=6):
        self.make, self.n = make, n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        return self.make(i), i % 3

tensors = ((pixels(6, 3, 4, 5), torch.arange(6) % 3), (pixels(3, 3, 4, 5), torch.arange(3)))
arrays = ((pixels(6, 4, 5).numpy(), np.arange(6) % 3), (pixels(3, 4, 5).numpy(), [0, 1, 2]))
floats = ((torch.rand(6, 7, 4, 5), torch.arange(6) % 3), (torch.rand(3, 7, 4, 5), torch.arange(3)))
wide = ((torch.randn(6, 1, 4, 5), torch.arange(6) % 3), (torch.randn(3, 1, 4, 5), torch.arange(3)))
nan = ((torch.full((3, 1, 4, 5), float("nan")), torch.arange(3)),) * 2
channels_last = ((pixels(6, 9, 8, 3), torch.arange(6) % 3),) * 2
integers = ((torch.zeros(3, 1, 4, 4, dtype=torch.int64), torch.arange(3)),) * 2
gap = ((pixels(2, 1, 4, 4), torch.tensor([0, 2])),) * 2
real_labels = ((pixels(2, 1, 4, 4), torch.tensor([0.5, 2])),) * 2
one_pair = (pixels(6, 3, 4, 5), torch.arange(6))
unlike = (tensors[0], arrays[1])
number = 3
digits = Digits()

def pil():
    image = lambda i: Image.fromarray(np.full((4, 5, 3), i * 10, np.uint8))
    return Items(image), Items(image, 3)

def tensor_items():
    return Items(lambda i: torch.full((2, 4, 5), i / 10)), Items(lambda i: torch.full((2, 4, 5), i / 10))

def ragged():
    return (Items(lambda i: torch.zeros(1, 4, 4 + i)),) * 2

def not_pairs():
    class Bare(Items):
        def __getitem__(self, i):
            return torch.zeros(1, 4, 4)
    return (Bare(None),) * 2

def broken_item():
    def fail(i):
        raise OSError("disk on fire")
    return (Items(fail),) * 2

def real():
    return Digits().load()

def broken():
    return 1 / 0

class Whole(tuple):
    def __new__(cls):
        return tuple.__new__(cls, tensors)
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(MODULE)
    (tmp_path / "bad_import.py").write_text("import no_such_thing")
    (tmp_path / "bad_code.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield lambda target, **options: Python(Python.Config(target=target, **options)).load()
    assert sys.path == before
    for name in ("mydata", "bad_import", "bad_code"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("target", ["mydata.tensors", "mydata.Whole"])
def test_tensors(load, target):
    data = load(target)
    assert data.spec.shape == (3, 4, 5)
    assert data.spec.classes == ("0", "1", "2")
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.train.store.pixels[0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert data.id == f"python:{target}"


def test_arrays_without_channel_axis(load):
    assert load("mydata.arrays").spec.shape == (1, 4, 5)


def test_floats_of_many_channels_stay_floats(load):
    data = load("mydata.floats", norm="unit")
    pair = sys.modules["mydata"].floats
    assert torch.equal(data.train.images(torch.arange(6)), pair[0][0])


def test_floats_outside_the_unit_range_are_taken_with_a_warning(load, caplog):
    data = load("mydata.wide")
    assert "float pixels are not in [0, 1]" in caplog.text
    assert data.train.images(torch.arange(6)).mean().abs() < 1e-4


def test_items_of_pil_images_keep_bytes_and_names(load):
    data = load("mydata.pil")
    assert data.train.store.pixels.dtype == torch.uint8
    assert data.train.store.pixels[3].unique().tolist() == [30]
    assert data.spec.classes == ("cat", "dog", "owl")


def test_items_of_tensors(load):
    data = load("mydata.tensor_items", mean=(0.5, 0.5), std=(0.5, 0.5))
    assert np.allclose(data.train.images(torch.tensor([1])).unique(), [(0.1 - 0.5) / 0.5])


@pytest.mark.parametrize("target", ["mydata.real", "mydata.digits"])
def test_real_data_and_providers_pass_through(load, target):
    assert load(target).checksum == Digits().load().checksum


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "expected module.attribute, got 'nothing'"),
        ("no_module.x", "no module named 'no_module'; looked in"),
        ("bad_import.x", "importing 'bad_import' failed: No module named 'no_such_thing'"),
        ("bad_code.x", "importing 'bad_code' failed: ZeroDivisionError"),
        ("mydata.tensor", "module 'mydata' has no attribute 'tensor'; it has .*tensors"),
        ("mydata.broken", "calling 'mydata.broken' failed: ZeroDivisionError: division by zero"),
        ("mydata.number", "'mydata.number' gives int; expected a dcf RealData, or a pair"),
        ("mydata.one_pair", "gives one pair of arrays; expected"),
        ("mydata.channels_last", r"expected \(N, C, H, W\), got \(6, 9, 8, 3\), which looks like"),
        ("mydata.integers", "expected uint8 or float images, got torch.int64"),
        ("mydata.nan", "some pixels are NaN or infinite"),
        ("mydata.gap", "no training image of class '1'"),
        ("mydata.real_labels", "whole numbers from 0"),
        ("mydata.unlike", "expected the same form"),
        ("mydata.ragged", r"item 1 of train .* is \(1, 4, 5\) float32, the first is \(1, 4, 4\)"),
        ("mydata.not_pairs", r"item 0 of train .* is Tensor; expected \(image, label\)"),
        ("mydata.broken_item", "reading item 0 of train .* failed: OSError: disk on fire"),
    ],
)
def test_what_is_wrong_is_said(load, target, message):
    with pytest.raises(DataError, match=message):
        load(target)
