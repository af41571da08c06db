"""A run that blew up without becoming infinite is found."""

import pytest
import torch

from dcf.errors import NonFiniteError
from dcf.pixels import Pixels
from dcf.plausible import STEP_SIZES, flaw
from dcf.run import condense
from dcf.synthetic import load
from dcf.testing import fake_data, fake_set
from dcf.testing.fakes import PullToMean, TinyFactory, filled
from dcf.types import Hints, Program


def judged(factor=1.0, one=1.0, hints=None):
    """The flaw of noise of a size, one image of which has another."""
    data = fake_data()
    param = filled(Pixels(), data)
    images = torch.randn_like(param.state_dict()["images"]) * factor
    images[-1] *= one
    param.load_state_dict({"images": images})
    return flaw(param, data, hints or Hints())


@pytest.mark.parametrize("factor", [0.0, 1e-6, 1.0, 100.0])
def test_images_of_any_sensible_size_pass(factor):
    assert judged(factor) == ""


def test_images_out_of_all_proportion_are_found():
    assert judged(1e6).startswith("the synthetic images became ")
    assert judged(1e6).endswith(" times as large as real ones")


def test_a_single_image_is_enough():
    assert "times as large as real ones" in judged(one=1e6)


@pytest.mark.parametrize("bad", [0, 3, 5])
def test_few_images_are_in_memory_at_a_time(monkeypatch, bad):
    """Real images that are read from a file because they fit nowhere else are not fetched by the hundred."""
    data, most = fake_data(), []
    param = filled(Pixels(), data, items=3)
    images = param.state_dict()["images"]
    images[bad] *= 1e6
    param.load_state_dict({"images": images})
    monkeypatch.setattr("dcf.plausible._PIECE", 2 * 4 * images[0].numel())
    for kind in (Pixels, type(data.train)):
        read = kind.images
        monkeypatch.setattr(kind, "images", lambda self, i, read=read: most.append(len(i)) or read(self, i))
    assert "times as large as real ones" in flaw(param, data, Hints())
    assert set(most) <= {1, 2}


class Itself(Pixels):
    """Gives its own tensor, no copy."""

    def images(self, index):
        return next(self.parameters())


def test_a_run_stops_before_it_keeps_such_a_set(tmp_path):
    """Its loss stays finite, while the images grow."""
    options = {"matcher": PullToMean(), "data": fake_data(), "network": TinyFactory(), "ipc": 1, "evaluate": False}
    with pytest.raises(NonFiniteError, match=r"times as large as real ones by iteration 3; the last good checkpoint"):
        condense(**options, lr=1e5, iterations=4, out=tmp_path, overrides={"checkpoint_every": 3})
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("*.safetensors"))] == ["00000000.safetensors"]
    assert not (tmp_path / "synthetic.safetensors").exists()


def test_looking_changes_nothing():
    data = fake_data()
    param = filled(Itself(), data)
    before = {name: value.clone() for name, value in param.state_dict().items()}
    assert before["images"].min() < 0
    assert flaw(param, data, Hints()) == ""
    assert all(torch.equal(value, before[name]) for name, value in param.state_dict().items())


@pytest.mark.parametrize("lrs", [(1e-38, 1e-38), (0.1, 1e6), (1e7,), (float("inf"), 0.1)])
def test_step_sizes_that_train_nothing_or_fit_no_file_are_found(lrs):
    program = Program(tuple((0,) for _ in lrs), lrs)
    assert judged(hints=Hints(program=program)).startswith("the step size that networks are trained with became ")
    assert judged(hints=Hints(lr=max(lrs))) != ""


@pytest.mark.parametrize("lrs", [(1e-38, 0.1), (0.02, 0.03), (9e5,)])
def test_other_step_sizes_pass(lrs):
    assert judged(hints=Hints(program=Program(tuple((0,) for _ in lrs), lrs))) == ""


@pytest.mark.parametrize("lr", [STEP_SIZES[0], STEP_SIZES[1] * (1 - 1e-9)])
def test_what_passes_can_be_read_from_a_file(lr, tmp_path):
    made = fake_set()
    made.hints = Hints(program=Program(((0,),), (lr,)))
    assert judged(hints=made.hints) == ""
    made.save(tmp_path / "set.safetensors")
    assert load(tmp_path / "set.safetensors").hints == made.hints
