"""Sets put together from others, or cut out of one: bit for bit what they were, or refused with the reason."""

import json
from dataclasses import replace

import pytest
import torch

import dcf
from dcf.assembly import append, arranged, merge, slice_set
from dcf.cli import main
from dcf.errors import UsageError
from dcf.joining import origin
from dcf.metadata import read_metadata
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.space import ValueSpace
from dcf.synthetic import SyntheticSet, load
from dcf.testing.fakes import SoftPixels, fake_data, filled
from dcf.types import DataSpec, Hints

SPACE = ValueSpace((0.3,), (0.4,))
ALL = tuple("abcdefghij")


class Halves(Parameterization):
    """Two views an item, tile by tile: the left halves of all items, then the right ones."""

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self._parameters["wide"] = torch.nn.Parameter(torch.zeros(len(item_class), *spec.shape[:2], 2 * spec.width))
        self.latent_names = ("wide",)

    @property
    def view_class(self):
        return torch.cat([self.item_class, self.item_class])

    def images(self, index):
        wide, n, width = self._parameters["wide"], len(self.item_class), self.shape[2]
        return torch.stack([wide[i % n, ..., :width] if i < n else wide[i % n, ..., width:] for i in index.tolist()])

    def absorb(self, images, generator=None):
        n = len(self.item_class)
        with torch.no_grad():
            self._parameters["wide"].copy_(torch.cat([images[:n], images[n:]], dim=-1))


class LabelledHalves(Halves):
    """With one stored number for each view, in their order, which is added to the image."""

    def allocate(self, spec, item_class):
        super().allocate(spec, item_class)
        self._parameters["shift"] = torch.nn.Parameter(torch.zeros(2 * len(item_class), 1))

    def images(self, index):
        return super().images(index) + self._parameters["shift"][index, :, None, None]

    def absorb(self, images, generator=None):
        super().absorb(images)
        with torch.no_grad():
            self._parameters["shift"].copy_(torch.arange(len(self.view_class))[:, None] / 7)


class Shared(Pixels):
    """Pixels beside a tensor of all items, of as many rows as there are items here."""

    def allocate(self, spec, item_class):
        super().allocate(spec, item_class)
        self._parameters["common"] = torch.nn.Parameter(torch.zeros(4, 1))


class Ranked(Pixels):
    """An image depends on its place among all: nothing in the layout shows it."""

    def images(self, index):
        return super().images(index) + index.view(-1, 1, 1, 1)


def made(classes, param=None, items=2, store="fp32", seed=0, data="digits", hints=None, space=SPACE, **metadata):
    spec = DataSpec(1, 6, 4, tuple(classes), space)
    draw = torch.Generator().manual_seed(seed)
    param = param or Pixels()
    param.allocate(spec, torch.arange(len(classes)).repeat_interleave(items))
    param.absorb(torch.randn(len(param.view_class), *spec.shape, generator=draw))
    config = {"data": data, "matcher": "none", "param": "pixels", "network": "mlp", "augment": "none"}
    meta = {"license": f"licence of {data}", "data": {"id": data, "checksum": "x"}, **metadata}
    return SyntheticSet(param, spec, config, seed, hints, meta, store)


def by_class(one, name):
    """Images of a class, sorted, so that the order of views does not matter."""
    x = one.tensors().x[torch.tensor(one.targets) == one.class_to_idx[name]].flatten(1)
    return x[x[:, 0].argsort()]


PARAMS = [Pixels, Halves, LabelledHalves]


@pytest.mark.parametrize("store", ["fp32", "fp16", "uint8"])
@pytest.mark.parametrize("param", PARAMS)
def test_parts_of_other_classes_are_kept_bit_for_bit(param, store):
    parts = [made(ALL[i : i + 2], param(), store=store, seed=i) for i in (4, 0, 8, 2, 6)]
    whole = merge(parts)
    assert whole.classes == ["e", "f", "a", "b", "i", "j", "c", "d", "g", "h"]
    assert whole.store == store
    assert whole.storage().floats == sum(one.storage().floats for one in parts)
    for part in parts:
        for name in part.classes:
            assert torch.equal(by_class(whole, name), by_class(part, name))


@pytest.mark.parametrize("param", PARAMS)
def test_parts_of_the_same_classes_have_all_images(param):
    first, second = (made("ab", param(), seed=s) for s in (0, 1))
    whole = merge([first, second])
    assert whole.classes == ["a", "b"]
    assert whole.storage().views_per_class == 2 * first.storage().views_per_class
    both = torch.cat([by_class(first, "b"), by_class(second, "b")])
    assert torch.equal(by_class(whole, "b"), both[both[:, 0].argsort()])


@pytest.mark.parametrize("store", ["fp32", "uint8"])
def test_the_whole_reads_back_from_its_file(store, tmp_path):
    parts = [made(ALL[i : i + 2], store=store, seed=i) for i in (0, 2)]
    whole = merge(parts)
    whole.save(tmp_path / "whole.safetensors")
    again = load(tmp_path / "whole.safetensors")
    assert torch.equal(again.tensors().x, whole.tensors().x)
    assert again.targets == whole.targets == [0, 0, 1, 1, 2, 2, 3, 3]
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_merging_does_not_touch_the_parts():
    parts = [made("ab"), made("cd", seed=1)]
    before = [one.tensors().x.clone() for one in parts]
    whole = merge(parts)
    with torch.no_grad():
        for tensor in whole.param.parameters():
            tensor.zero_()
    assert all(torch.equal(one.tensors().x, x) for one, x in zip(parts, before, strict=True))


def test_classes_may_be_given_in_order_and_without_images():
    whole = merge([made("dc"), made("ab", seed=1)], classes="abcdef")
    assert whole.classes == list("abcdef")
    assert sorted(set(whole.targets)) == [0, 1, 2, 3]
    assert whole.storage().views_per_class == {"min": 0, "max": 2}
    with pytest.raises(UsageError, match="expected all of the classes d, c, a, b, each once; got a, b"):
        merge([made("dc"), made("ab")], classes="ab")


@pytest.mark.parametrize("others", ["cd", ""])
def test_a_class_without_images_belongs_to_the_data_that_the_whole_is_evaluated_on(others):
    parts = [made(one, data=f"subset:base=(digits),classes=[{','.join(one)}]") for one in ("ab", others) if one]
    header = merge(parts, classes=[*"ab", *others, "e"]).describe()
    wanted = f"subset:base=(digits),classes=[{','.join([*'ab', *others, 'e'])}]"
    assert header["config"]["data"] == header["data"]["id"] == wanted
    assert merge([made("ab")], classes="abc").config["data"] == "digits"


def test_the_same_images_twice_are_warned_of(caplog):
    one = made("ab")
    assert len(merge([one, made("ab", seed=1)])) == 8
    assert not caplog.text
    merge([one, one])
    assert "'set 0' and 'set 1' store the same images" in caplog.text


def test_the_whole_says_what_it_is_made_of():
    parts = [
        made("ab", data="subset:base=(digits),classes=[a,b]", results={"mean": 0.9}, run={"ipc": 2, "budget": None}),
        made("cd", data="subset:base=(digits),classes=[c,d]", seed=5, run={"ipc": 2, "iterations": 3}),
    ]
    header = merge(parts).describe()
    assert header["config"]["data"] == "subset:base=(digits),classes=[a,b,c,d]"
    assert header["data"] == {"id": "subset:base=(digits),classes=[a,b,c,d]"}
    assert header["run"] == {"ipc": 2}
    assert "results" not in header
    assert header["license"].count("licence of") == 2
    assert header["assembled"]["by"] == "merge"
    told = header["assembled"]["parts"]
    assert [one["classes"] for one in told] == [["a", "b"], ["c", "d"]]
    assert [one["seed"] for one in told] == [0, 5]
    assert [one["views"] for one in told] == [4, 4]
    assert len({one["tensors"] for one in told}) == 2
    assert "results" not in json.dumps(told)


def test_merging_step_by_step_tells_the_same_as_merging_at_once():
    a, b, c = (made(ALL[i : i + 1], seed=i) for i in range(3))
    chained, at_once = merge([merge([a, b]), c]), merge([a, b, c])
    assert torch.equal(chained.tensors().x, at_once.tensors().x)
    tensors = [[p["tensors"] for p in one.metadata["assembled"]["parts"]] for one in (chained, at_once)]
    assert tensors[0] == tensors[1]
    assert len(tensors[0]) == 3


REFUSED = {
    "shape": (lambda: merge([made("ab"), other_shape()]), "shapes of images differ"),
    "space": (lambda: merge([made("ab"), made("cd", space=ValueSpace((0.0,), (1.0,)))]), "value spaces differ"),
    "store": (lambda: merge([made("ab"), made("cd", store="fp16")]), "ways to store floats differ, fp16 and fp32"),
    "param": (lambda: merge([made("ab"), with_param(made("cd"), "lowrank:r=2")]), "parameterizations differ"),
    "options": (
        lambda: merge([made("ab", options={"param": [{"r": 1}]}), made("cd", options={"param": [{"r": 2}]})]),
        "r",
    ),
    "class": (
        lambda: merge([made("ab", data="mnist"), made("bc", data="svhn")]),
        "class 'b' of 'set 1' comes from svhn",
    ),
    "step size": (
        lambda: merge([made("ab", hints=Hints(0.1)), made("cd", hints=Hints(0.2))]),
        "learned step sizes differ",
    ),
    "program": (lambda: merge([made("ab"), made("cd", hints=Hints(ordered=True))]), "'set 1' is a program"),
    "shared": (
        lambda: merge([made("ab", Shared()), made("cd", Shared())]),
        "tensors that all of its images share .common",
    ),
    "place": (lambda: merge([made("ab", Ranked()), made("cd", Ranked())]), "makes other images of the same items"),
    "soft": (lambda: merge([made("ab", SoftPixels()), made("cd", SoftPixels())]), "probabilities of all its classes"),
    "nothing": (lambda: merge([]), "expected sets to merge, got none"),
}


def other_shape():
    return replace_spec(made("cd"), height=4, width=6)


def replace_spec(one, **changes):
    param = Pixels()
    spec = replace(one.spec, **changes)
    param.allocate(spec, torch.tensor([0, 1]))
    return SyntheticSet(param, spec, one.config)


def with_param(one, text):
    one.config["param"] = text
    return one


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_one_set_is_refused_with_the_reason(name):
    run, reason = REFUSED[name]
    with pytest.raises(UsageError, match=reason):
        run()


def test_classes_of_one_name_may_be_said_to_be_one():
    whole = merge([made("ab", data="mnist"), made("ab", data="svhn", seed=1)], across_data=True)
    assert len(whole) == 8
    assert "data" not in whole.config
    assert whole.metadata["license"] == "licence of mnist; licence of svhn"


def test_soft_labels_of_the_same_classes_go_along():
    whole = merge([made("ab", SoftPixels()), made("ab", SoftPixels(), seed=1)])
    assert whole.tensors().y.shape == (8, 2)


def test_origin_is_the_dataset_whatever_part_of_it():
    def header(text):
        return {"config": {"data": text}}

    assert origin(header("subset:base=(subset:base=(mnist),classes=[1,2]),classes=[1]")) == "mnist"
    assert origin({"config": {"data": "folder:path=x"}, "data": {"id": "folder"}}) == "folder"
    assert origin(header("no spec: (")) == "no spec: ("


# --- slices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("param", PARAMS)
def test_a_slice_has_the_classes_that_are_named(param):
    whole = made("abcd", param(), items=3, store="uint8")
    part = slice_set(whole, ["d", "1"])
    assert part.classes == ["b", "d"]
    assert part.config["data"] == "subset:base=(digits),classes=[b,d]"
    assert torch.equal(by_class(part, "d"), by_class(whole, "d"))
    assert part.metadata["assembled"]["by"] == "slice"
    assert part.metadata["assembled"]["parts"][0]["classes"] == ["b", "d"]


def test_a_slice_has_the_first_images_of_each_class():
    whole = made("ab", items=3)
    part = slice_set(whole, per_class=2)
    assert part.targets == [0, 0, 1, 1]
    assert torch.equal(part.tensors().x, whole.tensors().x[[0, 1, 3, 4]])
    assert part.config["data"] == "digits"


def test_items_of_several_images_are_not_divided():
    whole = made("ab", Halves(), items=3)
    assert slice_set(whole, per_class=5).storage().views_per_class == 4
    with pytest.raises(UsageError, match="1 images a class: the set stores 2 images in one item"):
        slice_set(whole, per_class=1)


def test_slices_merge_to_the_whole():
    whole = made("abcd", LabelledHalves(), items=2, store="uint8")
    again = merge([slice_set(whole, ["a", "b"]), slice_set(whole, ["c", "d"])])
    assert torch.equal(again.tensors().x, whole.tensors().x)
    assert torch.equal(again.stored_tensors()["wide"], whole.stored_tensors()["wide"])


def test_a_class_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="no class 'x'"):
        slice_set(made("ab"), ["x"])


def test_nothing_is_cut_out_of_classes_without_images():
    whole = merge([made("ab")], classes="abcd")
    assert slice_set(whole, ["a", "d"]).storage().views_per_class == {"min": 0, "max": 2}
    with pytest.raises(UsageError, match="no images of c, d"):
        slice_set(whole, ["c", "d"])


# --- further images ----------------------------------------------------------------------------------


def test_appended_images_are_stored_as_those_of_the_set_are():
    whole = made("ab")
    images = torch.randn(3, 1, 6, 4, generator=torch.Generator().manual_seed(9))
    longer = append(whole, images, [1, 0, 1])
    assert longer.targets == [0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(longer.tensors().x[[2, 5, 6]], images[[1, 0, 2]])
    assert longer.metadata["assembled"]["by"] == "append"
    assert longer.config == whole.config


def test_items_of_several_images_are_filled():
    whole = made("ab", Halves())
    images = torch.randn(4, 1, 6, 4, generator=torch.Generator().manual_seed(9))
    longer = append(whole, images, [0, 0, 1, 1])
    assert longer.storage().views_per_class == 6
    with pytest.raises(UsageError, match="a multiple of 2 a class"):
        append(whole, images[:3], [0, 0, 1])


class Noise(Pixels):
    """Starts from zeros whatever the images are."""

    def encode(self, images):
        return {"images": torch.zeros_like(images) + 5}


def test_what_does_not_store_images_cannot_take_them():
    with pytest.raises(UsageError, match="does not store the images that it is given"):
        append(made("ab", Noise()), torch.randn(2, 1, 6, 4), [0, 1])
    with pytest.raises(UsageError, match="expected images of shape"):
        append(made("ab"), torch.randn(2, 1, 6, 5), [0, 1])
    with pytest.raises(UsageError, match="class numbers from 0 to 1"):
        append(made("ab"), torch.randn(2, 1, 6, 4), [0, 2])


def test_classes_are_put_in_the_order_of_the_data():
    one = made("cab")
    moved = arranged(one, ("a", "b", "c"))
    assert moved.classes == ["a", "b", "c"]
    assert torch.equal(by_class(moved, "c"), by_class(one, "c"))
    assert arranged(moved, ("a", "b", "c")) is moved
    with pytest.raises(UsageError, match="expected the classes"):
        arranged(one, ("a", "b"))


# --- runs and the command line -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Files of five runs of two classes each."""
    root = tmp_path_factory.mktemp("steps")
    files = []
    for c in (6, 0, 8, 2, 4):
        data = f"subset:base=(digits),classes=[{c},{c + 1}]"
        dcf.condense(matcher="none", init="random", data=data, ipc=2, iterations=0, evaluate=False, out=root / str(c))
        files.append(root / str(c) / "synthetic.safetensors")
    return files


def test_merged_steps_are_the_classes_condensed_apart(steps, tmp_path):
    whole = merge(steps)
    whole.save(tmp_path / "all.safetensors")
    again = load(tmp_path / "all.safetensors")
    for file in steps:
        part = load(file)
        for name in part.classes:
            assert torch.equal(by_class(again, name), by_class(part, name))
    assert again.metadata["run"]["ipc"] == 2
    report = dcf.evaluate(tmp_path / "all.safetensors", networks=1, overrides={"epochs": 1, "steps_min": 0})
    assert report.data["id"] == "subset:base=(digits),classes=[0,1,2,3,4,5,6,7,8,9]"


def test_commands_put_together_cut_and_add(steps, tmp_path, capsys):
    out = str(tmp_path / "all.safetensors")
    assert main(["merge", *map(str, steps), "-o", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["storage"]["views_per_class"] == 2
    assert [part["name"] for part in told["assembled"]["parts"]] == ["synthetic.safetensors"] * 5
    part = str(tmp_path / "part.safetensors")
    assert main(["slice", out, "--classes", "3,0", "--per-class", "1", "-o", part]) == 0
    assert "2 classes" in capsys.readouterr().out
    assert main(["append", part, "--per-class", "2", "-o", str(tmp_path / "more.safetensors")]) == 0
    assert load(tmp_path / "more.safetensors").targets == [0, 0, 0, 1, 1, 1]
    assert read_metadata(tmp_path / "more.safetensors")["assembled"]["by"] == "append"
    capsys.readouterr()
    assert main(["append", part, "--per-class", "144", "-o", str(tmp_path / "many.safetensors")]) == 2
    assert "class '0' has 143 training images, and none is added twice" in capsys.readouterr().err
    assert main(["merge", out, part, "-o", out]) == 2
    assert "--force" in capsys.readouterr().err


def test_fake_sets_share_nothing_by_chance():
    # As many rows as items do not make a shared tensor one of the items.
    param = filled(Shared(), fake_data(), 2)
    assert len(param.state_dict()["common"]) == len(param.item_class)
    with pytest.raises(UsageError, match="common"):
        param.item_rows(fake_data().spec, torch.arange(4))
