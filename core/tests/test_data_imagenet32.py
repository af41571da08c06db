"""ImageNet at 32x32 from pickle files, which are read as data: layout, groups, and files that mean harm."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import pickletools
import struct
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dcf.testing
from dcf.build import check
from dcf.data.imagenet32 import MAP, TEST, TRAIN, ImageNet32, class_names, find_files, read_batch, read_map
from dcf.data.options import ImageNet32Config
from dcf.data.unpickle import read_pickle
from dcf.data.wordnet import GROUPS
from dcf.errors import ConfigError, DataError
from dcf.space import ValueSpace

WORDNET = Path("/usr/share/wordnet")
DERIVE = Path(__file__).parents[2] / "tests" / "derive_imagenet_groups.py"

SIZES = {"automobile": 9, "truck": 9, "lizard": 11, "fish": 16, "terrier": 26, "insect": 27}
#: Names that stand twice among the 1000.
TWICE = {"n02012849": "crane", "n03126707": "crane", "n03710637": "maillot", "n03710721": "maillot"}


def numbering():
    """A map in which the order is neither that of ids nor of groups, as in the real one."""
    ids = [one for group in GROUPS.values() for one in group] + list(TWICE)
    shuffled = np.random.default_rng(1).permutation(len(ids))
    return {ids[place]: number for number, place in enumerate(shuffled, 1)}


NUMBERS = numbering()
NAMES = {**{one: name for group in GROUPS.values() for one, name in group.items()}, **TWICE}


def map_text():
    rows = sorted(NUMBERS.items(), key=lambda row: row[1])
    return "".join(f"{one} {number} {NAMES[one].replace(' ', '_')}\n" for one, number in rows)


def python2(content):
    """The bytes that cPickle of Python 2 writes for such a dictionary with protocol 2, written out by hand."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def array(value):
        raw = value.tobytes()
        code = f"{value.dtype.kind}{value.dtype.itemsize}".encode()
        order = b"<" if value.dtype.itemsize > 1 else b"|"
        dtype = b"cnumpy\ndtype\n" + text(code) + b"K\x00K\x01\x87R(K\x03" + text(order)
        dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"".join(b"J" + struct.pack("<i", n) for n in value.shape)
        shape = b"(" + shape + b"t"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        return made + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"

    def numbers(value):
        return b"](" + b"".join(b"M" + struct.pack("<H", n) for n in value) + b"e"

    parts = [text(k) + (array(v) if isinstance(v, np.ndarray) else numbers(v)) for k, v in content.items()]
    return b"\x80\x02}(" + b"".join(parts) + b"u."


def modern(protocol):
    def write(content):
        return pickle.dumps({key.decode(): value for key, value in content.items()}, protocol)

    return write


WRITERS = {"python2": python2, **{f"protocol{p}": modern(p) for p in (2, 3, 4, 5)}}


def content(labels, seed=0):
    """What a file holds: images that tell their label and their place, so that a mix-up shows."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    for place, label in enumerate(labels):
        data[place, 0], data[place, 1024] = label % 256, place % 256
    return {b"data": data, b"labels": list(labels), b"mean": data.mean(0) if len(labels) else np.zeros(3072)}


def fill(root, write=python2, labels=None, folders=("", "", "")):
    """A whole dataset below `root`, each file with two images of every class of the map."""
    wanted = sorted(NUMBERS.values()) if labels is None else labels
    for seed, name in enumerate((*TRAIN, *TEST)):
        place = root / (folders[1] if name in TEST else folders[0])
        place.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(seed).permutation(np.repeat(wanted, 2)).tolist()
        (place / name).write_bytes(write(content(order, seed)))
    (root / folders[2]).mkdir(parents=True, exist_ok=True)
    (root / folders[2] / MAP).write_text(map_text())
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("imagenet"))


def load(root, **options):
    return ImageNet32(ImageNet32.Config(root=str(root), **options)).load()


def batch(path, write=python2, **changes):
    path.write_bytes(write({**content([3, 25, 3]), **{k.encode(): v for k, v in changes.items()}}))
    return read_batch(path)


# --- groups -----------------------------------------------------------------------------------------------------


def test_groups_have_the_published_sizes_and_share_no_class():
    assert {name: len(group) for name, group in GROUPS.items()} == SIZES
    ids = [one for group in GROUPS.values() for one in group]
    assert len(set(ids)) == len(ids)
    assert all(list(group) == sorted(group) for group in GROUPS.values())
    choices = get_args(ImageNet32Config.model_fields["group"].annotation)
    assert set(choices) == {"all", *GROUPS}


@pytest.mark.parametrize(
    ("group", "some"),
    [
        ("automobile", {"n02930766": "cab", "n03777568": "Model T"}),
        ("truck", {"n04465501": "tractor", "n03770679": "minivan"}),
        ("fish", {"n01440764": "tench", "n02641379": "gar"}),
        ("terrier", {"n02096585": "Boston bull", "n02098413": "Lhasa", "n02097047": "miniature schnauzer"}),
        ("lizard", {"n01675722": "banded gecko", "n01695060": "Komodo dragon"}),
        ("insect", {"n02219486": "ant", "n02279972": "monarch"}),
    ],
)
def test_some_members(group, some):
    assert some.items() <= GROUPS[group].items()


@pytest.mark.slow
@pytest.mark.skipif(not (WORDNET.is_dir() and DERIVE.is_file()), reason="needs WordNet's files (wordnet-base)")
def test_groups_are_those_of_wordnet():
    spec = importlib.util.spec_from_file_location("derive", DERIVE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["derive"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert module.derive(WORDNET) == GROUPS


# --- what is loaded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", SIZES)
def test_a_group_has_its_images_labels_and_names(root, group):
    data = load(root, group=group)
    ids = sorted(GROUPS[group], key=NUMBERS.get)
    assert data.spec.classes == tuple(GROUPS[group][one] for one in ids)
    assert data.spec.shape == (3, 32, 32)
    assert data.train.counts.tolist() == [20] * SIZES[group]
    assert data.test.counts.tolist() == [2] * SIZES[group]
    # The first pixel of each image tells the number that it had in its file.
    for split in (data.train, data.test):
        told = split.store.take(slice(None))[:, 0, 0, 0].tolist()
        assert told == [NUMBERS[ids[label]] for label in split.labels.tolist()]


def test_pixels_are_planar_and_in_rows(root):
    data = load(root, group="lizard")
    first = content(np.random.default_rng(0).permutation(np.repeat(sorted(NUMBERS.values()), 2)).tolist(), 0)
    wanted = [NUMBERS[one] for one in GROUPS["lizard"]]
    kept = first[b"data"][np.isin(first[b"labels"], wanted)]
    stored = data.train.store.take(slice(None)).numpy()
    assert np.array_equal(stored[: len(kept)].reshape(len(kept), -1), kept)
    assert np.array_equal(stored[0, 1], kept[0][1024:2048].reshape(32, 32))


def test_labels_that_are_also_new_ones_do_not_mix(tmp_path):
    # In the real map some terriers have the numbers 3 and 25, which are new labels too.
    ids = sorted(GROUPS["terrier"])
    numbers = {one: 40 + place for place, one in enumerate(ids)} | {ids[5]: 3, ids[20]: 25}
    lines = [f"{one} {numbers[one]} x{one}" for one in ids]
    (tmp_path / MAP).write_text("\n".join(lines))
    for name in (*TRAIN, *TEST):
        (tmp_path / name).write_bytes(python2(content(sorted(numbers.values()))))
    data = load(tmp_path, group="terrier")
    order = sorted(ids, key=numbers.get)
    assert order[0] == ids[5]
    assert data.spec.classes[0] == GROUPS["terrier"][ids[5]]
    told = data.train.store.take(slice(None))[:, 0, 0, 0].tolist()
    assert told == [numbers[order[label]] for label in data.train.labels.tolist()]


def test_classes_by_id_and_names_that_stand_twice(root):
    data = load(root, classes=["n03126707", "n02012849", "n03710637"])
    ids = sorted(["n03126707", "n02012849", "n03710637"], key=NUMBERS.get)
    expected = [f"crane ({one})" if TWICE[one] == "crane" else "maillot" for one in ids]
    assert data.spec.classes == tuple(expected)
    told = set(data.test.store.take(slice(None))[:, 0, 0, 0].tolist())
    assert told == {NUMBERS[one] for one in ids}


def test_all_classes(root):
    data = load(root)
    assert data.spec.num_classes == len(NUMBERS)
    assert len(set(data.spec.classes)) == len(NUMBERS)
    told = data.train.store.take(slice(None))[:, 0, 0, 0].long()
    assert torch.equal(told, data.train.labels + 1)  # all numbers are there, so that the first is class 0


def test_the_component_keeps_its_promises(root):
    results = dcf.testing.run_checks("dataset", f'imagenet32:root="{root}",group=lizard')
    assert [f"{r.name}: {r.detail}" for r in results if r.status == "failed"] == []


def test_value_space(root):
    data = load(root, group="fish")
    x = data.train.images(torch.arange(len(data.train)))
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(x.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-3)
    assert load(root, group="fish", norm="unit").spec.space == ValueSpace.unit(3)
    assert load(root, group="fish", mean=(0.5,) * 3, std=(0.2,) * 3).spec.space == ValueSpace((0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_protocol_gives_the_same(root, tmp_path, write):
    labels = [NUMBERS[one] for one in GROUPS["truck"]]
    made = load(fill(tmp_path / "a", write, labels), group="truck")
    assert made.checksum == load(fill(tmp_path / "b", python2, labels), group="truck").checksum


def test_files_in_the_folders_of_the_archives(root, tmp_path):
    other = tmp_path / "Imagenet16_train"
    other.mkdir(parents=True)
    for name in TRAIN:
        (other / name).write_bytes(b"of another size")
    fill(tmp_path, folders=("Imagenet32_train", "Imagenet32_val", "devkit"))
    assert load(tmp_path, group="fish").checksum == load(root, group="fish").checksum
    assert find_files(tmp_path)["val_data"] == tmp_path / "Imagenet32_val" / "val_data"


def test_id_leaves_the_place_out():
    config = ImageNet32.Config(root="/x", classes=["n02099601", "n02085620"], norm="unit")
    assert ImageNet32(config).id == "imagenet32:classes=[n02085620,n02099601],norm=unit"
    assert ImageNet32(ImageNet32.Config(group="fish")).id == "imagenet32:group=fish"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("group=bird", "'automobile' | 'fish' | 'insect' | 'lizard' | 'terrier' | 'truck'"),
        ("group=fish,classes=[n02099601]", "give either a group or classes, not both"),
        ("classes=[n02099601,n02099601]", "a class is named twice"),
        ("classes=[terrier]", "classes: expected WordNet ids such as n02099601, got 'terrier'"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(ConfigError) as error:
        check("dataset", f"imagenet32:{options}")
    assert said in str(error.value)


# --- what is missing or damaged ---------------------------------------------------------------------------------


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError) as error:
        load(tmp_path / "nowhere")
    assert "missing train_data_batch_1, train_data_batch_2, train_data_batch_3 and 9 more" in str(error.value)
    assert "image-net.org" in str(error.value)
    fill(tmp_path)
    (tmp_path / "train_data_batch_7").unlink()
    (tmp_path / MAP).unlink()
    with pytest.raises(DataError, match=f"missing train_data_batch_7, {MAP}; get"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("n02119789 1\n", "line 1: expected 'n02119789 1 kit_fox'"),
        ("n02119789 1 a\nn02119789 2 b\n", "line 2: n02119789 or the number 2 stands there twice"),
        ("n02119789 1 a\n\nn02119790 1 b\n", "line 3: n02119790 or the number 1"),
        ("n02119789 0 a\n", "line 1"),
        ("n02119789 9999999999 a\n", "line 1"),
        ("1 n02119789 a\n", "line 1"),
    ],
)
def test_wrong_maps(tmp_path, text, said):
    (tmp_path / MAP).write_text(text)
    with pytest.raises(DataError) as error:
        read_map(tmp_path / MAP)
    assert said in str(error.value)
    assert str(tmp_path / MAP) in str(error.value)


def test_map_in_another_encoding(tmp_path):
    (tmp_path / MAP).write_bytes(b"n02119789 1 \xff\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_map(tmp_path / MAP)


def test_map_without_the_classes(tmp_path):
    fill(tmp_path)
    (tmp_path / MAP).write_text("n02119789 1 kit_fox\n")
    with pytest.raises(DataError, match=r"has no class n01440764, n01443537.*1000 classes"):
        load(tmp_path, group="fish")


def test_names_without_the_table(tmp_path):
    (tmp_path / MAP).write_text("n02119789 1 kit_fox\nn02012849 2 crane\nn03126707 3 crane\n")
    entries = read_map(tmp_path / MAP)
    assert class_names(list(entries), entries) == ["kit fox", "crane (n02012849)", "crane (n03126707)"]


def test_labels_that_the_map_does_not_have(tmp_path):
    fill(tmp_path)
    for labels, said in (([0, 1], "has the label 0"), ([1, 5000], "has the label 5000")):
        (tmp_path / "train_data_batch_3").write_bytes(python2(content(labels)))
        with pytest.raises(DataError, match=f"train_data_batch_3' {said}"):
            load(tmp_path, group="fish")


def test_a_class_without_images(tmp_path):
    fill(tmp_path, labels=[NUMBERS[one] for one in list(GROUPS["fish"])[1:]])
    with pytest.raises(DataError, match="no training image of class 'tench'"):
        load(tmp_path, group="fish")


U8 = np.zeros((3, 3072), np.uint8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": U8.astype(np.float32)}, "uint8, got (3, 3072) float32"),
        ({"data": U8[:, :3071]}, "got (3, 3071)"),
        ({"data": U8.reshape(-1)}, "got (9216,)"),
        ({"data": U8[:2]}, "2 images, but 3 labels"),
        ({"data": [1, 2]}, "there is no array 'data'"),
        ({"labels": np.zeros((3, 1), np.int64)}, "expected whole numbers in 'labels'"),
        ({"labels": np.zeros(3)}, "expected whole numbers in 'labels'"),
        ({"labels": "abc"}, "expected a list of whole numbers 'labels'"),
        ({"labels": [1, None, 2]}, "expected a list of whole numbers 'labels'"),
        ({"labels": [1, True, 2]}, "expected a list of whole numbers 'labels'"),
        ({"labels": [1, -1, 2]}, "expected a list of whole numbers 'labels'"),
        ({"labels": [1, 2**200, 2]}, "expected a list of whole numbers 'labels'"),
    ],
)
def test_wrong_contents(tmp_path, changes, said):
    with pytest.raises(DataError) as error:
        batch(tmp_path / "train_data_batch_1", modern(4), **changes)
    assert said in str(error.value)
    assert str(tmp_path / "train_data_batch_1") in str(error.value)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_labels_may_be_an_array(tmp_path, write):
    data, labels = batch(tmp_path / "b", write, labels=np.array([7, 8, 9], dtype=np.int64))
    assert labels.tolist() == [7, 8, 9]
    assert data.shape == (3, 3072)


def test_the_hand_written_file_is_a_real_pickle(tmp_path):
    made = content([3, 25, 3])
    read = pickle.loads(python2(made), encoding="bytes")
    assert np.array_equal(read[b"data"], made[b"data"])
    assert read[b"labels"] == made[b"labels"]
    assert np.array_equal(read[b"mean"], made[b"mean"])


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_columns_first_and_other_numbers(tmp_path, write):
    table = np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3))
    big = np.arange(4, dtype=">i4")
    if write is not python2:
        (tmp_path / "a").write_bytes(write({b"f": table, b"b": big}))
        found = read_pickle(tmp_path / "a")
        assert np.array_equal(found["f"].numpy(), table)
        assert np.array_equal(found["b"].numpy(), big)


# --- files that mean harm ---------------------------------------------------------------------------------------


class Evil:
    def __init__(self, call, *args):
        self.what = (call, args)

    def __reduce__(self):
        return self.what


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read_batch(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    evil = pickle.dumps({"data": Evil(os.system, f"touch {trace}"), "labels": []}, protocol)
    message = refused(tmp_path / "f", evil)
    assert not trace.exists()
    if protocol >= 2:
        assert f"it asks for '{os.name}.system', which arrays do not need; nothing of it was run" in message


@pytest.mark.parametrize(
    ("call", "args"),
    [
        (eval, ("1",)),
        (getattr, (1, "real")),
        (np.load, ("x",)),
        (np.frombuffer, (b"1",)),
        (bytes, (10**12,)),
        (bytearray, (10**12,)),
    ],
)
def test_other_names_are_refused(tmp_path, call, args):
    refused(tmp_path / "f", pickle.dumps({"data": Evil(call, *args), "labels": []}, 4))


def test_encode_is_for_latin_text_only(tmp_path):
    import _codecs

    for args in (("x", "rot13"), ("x", "idna"), (b"x", "latin1")):
        refused(tmp_path / "f", pickle.dumps({"data": Evil(_codecs.encode, *args), "labels": []}, 4))


def raw_array(shape, raw, dtype=b"u1"):
    """A dictionary with one array of any claims."""
    lengths = b"".join(b"\x8a\x09" + int(n).to_bytes(9, "little", signed=True) for n in shape)
    head = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01("
    kind = b"tcnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R(K\x03U\x01|tb\x89"
    return head + lengths + kind + raw + b"tbU\x06labels]u."


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\x00" * 50, "no pickle of protocol 2 to 5"),
        (b"\x80\x09.", "no pickle of protocol 2 to 5"),
        (b"\x80\x04N.", "expected a dictionary, got NoneType"),
        (b"\x80\x04.", "do not fit together"),
        (b"\x80\x04}(U\x01a", "ends early"),
        (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.", "ends early"),
        (b"\x80\x04\x96" + (2**62).to_bytes(8, "little") + b"x.", "ends early"),
        (b"\x80\x04X" + (2**32 - 1).to_bytes(4, "little") + b"x.", "ends early"),
        (b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"}.", "a frame larger than the file"),
        (b"\x80\x04}r\xff\xff\xff\xff.", "there is no array"),
        (b"\x80\x04j\xff\xff\xff\xff.", "do not fit together"),
        (b"\x80\x04}K\x01K\x02s.", "a key that is no text"),
        (b"\x80\x04}(U\x01au.", "entries for what is no dictionary"),
        (b"\x80\x04N(K\x01e.", "items for what is no list"),
        (b"\x80\x04(t" + b"\x85" * 30_000 + b".", "expected a dictionary, got tuple"),
        (b"\x80\x04\x85.", "takes what it never gave"),
        (b"\x80\x04}u.", "do not fit together"),
        (b"\x80\x04X\x02\x00\x00\x00\xff\xff.", "do not fit together"),
        (b"\x80\x04cnumpy\n" + b"a" * 5000 + b"\n.", "a name without an end"),
        (b"\x80\x04cos", "a name without an end"),
        (b"\x80\x04K\x01)R.", "a call of what is no name"),
        (b"\x80\x04K\x01K\x01\x93.", "a name that is no text"),
        (b"\x80\x04cnumpy\nndarray\n)R.", "an array that is called"),
        (b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R.", "an array of another class"),
        (b"\x80\x04cnumpy\ndtype\n)R.", "a number type without a name"),
        (b"\x80\x04cnumpy.core.numeric\n_frombuffer\n)R.", "an array that is not complete"),
        (b"\x80\x04cnumpy\ndtype\n}b.", "a state of what is no array"),
        (b"\x80\x04cnumpy\nndarray\n)\x81.", "the operation b'\\x81'"),
        (b"\x80\x04\x82\x01.", "the operation b'\\x82'"),
        (b"\x80\x04U\x01aQ.", "the operation b'Q'"),
        (raw_array((1, 3072), b"U\x03abc"), "an array of shape (1, 3072) with 3 bytes"),
        (raw_array((2**60, 3072), b"U\x03abc"), "with 3 bytes"),
        (raw_array((-1, -3), b"U\x03abc"), "whose shape is not one or two lengths"),
        (raw_array((0, 2**63), b"U\x00"), "is damaged"),
        (raw_array((1, 1, 3), b"U\x03abc"), "whose shape is not one or two lengths"),
        (raw_array((3,), b"N"), "not complete"),
        (raw_array((1, 3), b"U\x03abc", b"O8"), "an array of type 'O8', which is not read"),
        (raw_array((1, 3), b"U\x03abc", b"V3"), "an array of type 'V3', which is not read"),
    ],
)
def test_damaged_files(tmp_path, data, said):
    assert said in refused(tmp_path / "f", data)


def test_the_same_bytes_again_and_again(tmp_path):
    text = pickle.dumps("x" * 1000, 2)[2:-1]
    call = b"c_codecs\nencode\n"
    again = call + b"h\x05X\x06\x00\x00\x00latin1\x86R"
    data = b"\x80\x02(" + text.replace(b"q\x00", b"q\x05") + again * 2000 + b"t."
    assert "again and again" in refused(tmp_path / "f", data)


def test_many_parts_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dcf.data.unpickle._MOST_STEPS", 1000)
    assert "more than 1,000 parts" in refused(tmp_path / "f", b"\x80\x02" + b"N" * 5000 + b".")


@settings(deadline=None, max_examples=150)
@given(cut=st.integers(0, 400), byte=st.integers(0, 255), length=st.integers(1, 10_000))
@example(cut=0, byte=0, length=1)
def test_any_damage_is_one_message(tmp_path_factory, cut, byte, length):
    whole = python2(content([3, 25]))
    data = bytearray(whole[: max(1, len(whole) - length)] if cut % 2 else whole)
    data[cut % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        pixels, labels = read_batch(path)
        assert pixels.shape == (len(labels), 3072)


def test_only_these_operations_are_known():
    from dcf.data.unpickle import _OPERATIONS

    known = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}
    names = {known[code] for code in _OPERATIONS}
    harmful = {
        "INST",
        "OBJ",
        "NEWOBJ",
        "NEWOBJ_EX",
        "EXT1",
        "EXT2",
        "EXT4",
        "PERSID",
        "BINPERSID",
        "NEXT_BUFFER",
        "DUP",
    }
    assert not names & harmful


def test_no_pickle_is_loaded_by_core():
    source = Path(__file__).parents[1] / "src" / "dcf" / "data"
    for name in ("imagenet32.py", "unpickle.py"):
        assert "import pickle" not in (source / name).read_text()
