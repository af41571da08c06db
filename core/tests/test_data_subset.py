"""Some classes of another dataset, and some images of each; and specs that stand in other specs."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcf
from dcf.build import check
from dcf.data import load
from dcf.data.base import pixel_statistics
from dcf.data.nested import datasets_in, map_datasets, nested_fields
from dcf.data.options import NuisanceConfig, SubsetConfig, TorchvisionConfig
from dcf.data.real import Split
from dcf.data.subset import Subset, class_numbers, images_to_keep
from dcf.errors import DataError, SpecError, UsageError
from dcf.space import ValueSpace
from dcf.spec import Option, Spec

ANIMALS = ("cat", "dog", "frog", "horse")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def toy(labels, classes):
    labels = torch.tensor(labels)
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return Split(pixels, labels, ValueSpace.unit(1), classes)


# --- what is kept -----------------------------------------------------------------------------------------------


def test_classes_keep_pixels_order_and_space_of_the_base(digits):
    data = load("subset:base=(digits),classes=[7,1,4]")
    assert data.spec.classes == ("1", "4", "7")
    assert data.spec.space == digits.spec.space
    assert data.source == digits.source
    assert data.hints == digits.hints
    for split, whole in ((data.train, digits.train), (data.test, digits.test)):
        kept = torch.isin(whole.labels, torch.tensor([1, 4, 7]))
        assert torch.equal(split.images(torch.arange(len(split))), whole.images(kept.nonzero().flatten()))
        assert torch.equal(torch.tensor([1, 4, 7])[split.labels], whole.labels[kept])


def test_number_of_images_of_each_part():
    data = load("subset:base=(digits),classes=[0,1],per_class=20,test_per_class=5")
    assert data.train.counts.tolist() == [20, 20]
    assert data.test.counts.tolist() == [5, 5]
    everything = load("subset:base=(digits),per_class=100000")
    assert everything.checksum == load("digits").checksum


def test_seed_chooses_other_images():
    one, same, other = (load(f"subset:base=(digits),per_class=20,seed={s}") for s in (0, 0, 1))
    assert one.checksum == same.checksum != other.checksum


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    few=st.integers(1, 10),
    more=st.integers(0, 20),
    seed=st.integers(0, 5),
)
def test_fewer_images_are_part_of_more_and_classes_do_not_touch_each_other(labels, few, more, seed):
    split = toy(labels, 4)
    small = images_to_keep(split, [1, 3], few, seed, "train")
    large = images_to_keep(split, [1, 3], few + more, seed, "train")
    alone = images_to_keep(split, [3], few, seed, "train")
    counts = split.counts
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.equal(small, small.sort().values)
    assert alone.tolist() == [i for i in small.tolist() if labels[i] == 3]
    assert len(small) == sum(min(few, int(counts[c])) for c in (1, 3))


def test_train_and_test_are_drawn_apart():
    split = toy([0] * 50, 1)
    train, test = (images_to_keep(split, [0], 10, 0, part) for part in ("train", "test"))
    assert not torch.equal(train, test)


def test_value_space_can_be_computed_anew(digits):
    data = load("subset:base=(digits),classes=[0],norm=auto")
    mean, std = pixel_statistics(data.train.store, 16)
    assert (data.spec.space.mean, data.spec.space.std) == (mean, std)
    assert data.spec.space != digits.spec.space
    x = data.train.images(torch.arange(len(data.train)))
    assert abs(float(x.mean())) < 1e-4
    assert abs(float(x.std(correction=0)) - 1) < 1e-4
    assert load("subset:base=(digits),norm=unit").spec.space == ValueSpace.unit(1)


def test_subset_of_a_subset():
    data = load("subset:base=(subset:base=(digits),classes=[2,3,4],norm=unit),classes=[2,4]")
    assert data.spec.classes == ("2", "4")
    assert data.id == "subset:base=(subset:base=(digits),classes=[2,3,4],norm=unit),classes=[2,4]"


# --- which classes ----------------------------------------------------------------------------------------------


def test_classes_by_name_or_number():
    assert class_numbers(["horse", "cat"], ANIMALS) == [0, 3]
    assert class_numbers(["3", "0"], ANIMALS) == [0, 3]
    assert class_numbers([], ANIMALS) == [0, 1, 2, 3]


def test_a_number_is_a_name_where_names_are_numbers():
    assert class_numbers(["1", "3"], ("1", "2", "3")) == [0, 2]
    with pytest.raises(DataError, match="no class '0'"):
        class_numbers(["0"], ("1", "2", "3"))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["hors"], "no class 'hors'; did you mean 'horse'? there are cat, dog, frog, horse, or numbers from 0 to 3"),
        (["4"], "no class '4'; there are cat"),
        (["cat", "0"], "class 'cat' is named twice"),
    ],
)
def test_wrong_classes(wanted, said):
    with pytest.raises(DataError) as error:
        class_numbers(wanted, ANIMALS)
    assert said in str(error.value)


def test_errors_say_which_option():
    with pytest.raises(DataError, match="classes of subset: no class 'x'"):
        load("subset:base=(digits),classes=[x]")
    with pytest.raises(DataError, match="base of subset: mnist is not in"):
        load("subset:base=(mnist:root=/nowhere,download=false)")
    with pytest.raises(DataError, match="base of subset: base of subset: mnist is not in"):
        load("subset:base=(subset:base=(mnist:root=/nowhere,download=false))")


# --- specs in specs ---------------------------------------------------------------------------------------------


def test_id_leaves_places_out_and_has_one_order_of_classes():
    config = Subset.Config(base="mnist:root=/x,download=false,norm=unit", classes=(3, "1", 2), per_class=5)
    assert Subset(config).id == "subset:base=(mnist:norm=unit),classes=[1,2,3],per_class=5"
    assert Subset(Subset.Config(base="digits")).id == "subset:base=(digits)"


def caret(error):
    """What the caret line of a message points at."""
    lines = str(error).splitlines()
    at = next(i for i, line in enumerate(lines) if set(line.strip()) == {"^"})
    return "".join(c for c, mark in zip(lines[at - 1].ljust(len(lines[at])), lines[at], strict=False) if mark == "^")


@pytest.mark.parametrize(
    ("text", "said", "pointed"),
    [
        ("subset:base=(mnist:rot=x)", "did you mean 'root'?", "rot"),
        ("subset:base=(mnst),seed=1", "did you mean 'mnist'?", "mnst"),
        ("subset:base=mnst,seed=1", "did you mean 'mnist'?", "mnst"),
        ('subset:base="mnist:rot=x"', "did you mean 'root'?", '"mnist:rot=x"'),
        ("nuisance:base=(subset:base=(digits:size=3)),signal=0.1", "no option 'size'", "size"),
        ("nuisance:base=(digits),background=(cifar10:norm=pca)", "'published' | 'auto' | 'unit' | 'zca'", "pca"),
        ("subset:base=(mnist+svhn)", "expected one dataset", "(mnist+svhn)"),
        ("subset:base=[mnist]", "expected a dataset spec such as (mnist)", "[mnist]"),
        ("subset:per_class=3", "subset needs the option 'base'", "subset:per_class=3"),
        ("subset:base=(digits),per_class=-1", "int >= 0", "-1"),
    ],
)
def test_a_wrong_part_is_pointed_at_in_the_whole_text(text, said, pointed):
    with pytest.raises(SpecError) as error:
        check("dataset", text)
    assert said in str(error.value)
    assert f"--data {text}" in str(error.value)
    assert caret(error.value) == pointed


def test_parts_are_checked_without_torch():
    code = (
        "import sys; from dcf.build import check; from dcf.errors import SpecError\n"
        "for text in ('subset:base=(mnist:rot=x)', 'nuisance:base=(digits),signal=2', 'imagenet32:group=bird'):\n"
        "    try: check('dataset', text)\n"
        "    except SpecError: continue\n"
        "    raise AssertionError(text)\n"
        "check('dataset', 'nuisance:base=(subset:base=(mnist)),background=(imagenet32:group=fish)')\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_wrong_parts_in_python():
    with pytest.raises(SpecError, match="no dataset named 'mnst'"):
        SubsetConfig(base="mnst")
    with pytest.raises(ValueError, match="expected a dataset spec"):
        SubsetConfig(base=3)


def test_deep_nesting_is_a_message():
    text = "digits"
    for _ in range(20):
        text = f"subset:base=({text})"
    assert str(check("dataset", text)) == text
    with pytest.raises(SpecError, match="nested"):
        check("dataset", "subset:base=(" * 60 + "digits" + ")" * 60)


def test_fields_that_are_datasets():
    assert nested_fields(SubsetConfig) == ("base",)
    assert nested_fields(NuisanceConfig) == ("base", "background")
    assert nested_fields(TorchvisionConfig) == ()


def test_all_datasets_of_a_spec_those_by_default_too():
    found = datasets_in('nuisance:base=(subset:base="python:os.getcwd")')
    assert [spec.name for spec in found] == ["nuisance", "subset", "python", "cifar10"]


def test_a_change_reaches_every_dataset():
    def mark(spec):
        return Spec(spec.name, (*spec.options, Option("seed", "7"))) if spec.name == "folder" else spec

    text = str(map_datasets("subset:base=(subset:base=(folder:path=x)),classes=[a]", mark))
    assert text == "subset:base=(subset:base=(folder:path=x,seed=7)),classes=[a]"


# --- sets made of parts -----------------------------------------------------------------------------------------


def small_set(data):
    return dcf.condense(matcher="none", data=data, ipc=1, iterations=0, evaluate=False, network="mlp")


def evaluate(made):
    return dcf.evaluate(made, networks=1, overrides={"epochs": "1", "steps_min": "0"})


def test_a_set_finds_its_data_again(tmp_path):
    made = small_set("subset:base=(digits),classes=[3,5],per_class=30")
    made.save(tmp_path / "set.safetensors")
    found = dcf.load(tmp_path / "set.safetensors")
    assert found.metadata["data"]["id"] == "subset:base=(digits),classes=[3,5],per_class=30"
    report = evaluate(found)
    assert report.data == {"id": made.metadata["data"]["id"], "checksum": made.metadata["data"]["checksum"]}


def test_code_that_a_file_names_inside_is_not_run():
    made = small_set("subset:base=(digits)")
    made.config["data"] = "nuisance:base=(subset:base=(python:dcf.testing.fake_data)),background=(digits)"
    with pytest.raises(UsageError, match="code that a file names is not run"):
        evaluate(made)


def test_a_file_makes_nobody_download(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = small_set("subset:base=(digits)")
    made.config["data"] = "nuisance:base=(digits)"  # the background is cifar10, by default with a download
    monkeypatch.setattr("dcf.data.torchvision.TorchvisionDataset._download", lambda self: pytest.fail("a download"))
    with pytest.raises(DataError, match="background of nuisance: cifar10 is not in"):
        evaluate(made)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("folder:path=gone,size=32", "folder:path=DIR,size=32"),
        ("imagenet32:group=truck", "imagenet32:root=DIR,group=truck"),
        ("mnist:norm=unit,root=gone", "mnist:norm=unit,root=DIR"),
        ("subset:base=(folder:path=gone),per_class=3", "'subset:base=(folder:path=DIR),per_class=3'"),
        ("nuisance:base=(digits),signal=0.1", "'nuisance:base=(digits),background=(cifar10:root=DIR),signal=0.1'"),
    ],
)
def test_data_that_are_not_here_are_asked_for_in_full(monkeypatch, tmp_path, data, said):
    monkeypatch.chdir(tmp_path)
    made = small_set("digits")
    made.config["data"] = data
    with pytest.raises(DataError) as caught:
        evaluate(made)
    assert str(caught.value).endswith(f"\n  say where they are: --data {said}")
    given = shlex.split(said)[0]
    assert str(check("dataset", given)) == given
