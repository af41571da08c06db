"""Files of other programs: written, read without running anything in them, and refused with the reason."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dcf.cli import main
from dcf.errors import FormatError, UsageError
from dcf.exchange.exporting import export_set
from dcf.exchange.importing import import_set
from dcf.exchange.options import FORMATS, MANIFEST
from dcf.exchange.reading import read_pt
from dcf.metadata import read_metadata
from dcf.pixels import Pixels
from dcf.recorded import load_data
from dcf.space import ValueSpace
from dcf.synthetic import SyntheticSet, load
from dcf.types import DataSpec, Hints, Program


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def made(spec, per_class=2, hints=None, seed=0):
    """A pixel set of noise, which looks like nothing but has every bit to lose."""
    param = Pixels()
    param.allocate(spec, torch.arange(spec.num_classes).repeat_interleave(per_class))
    with torch.no_grad():
        param.latents()["images"].copy_(
            torch.randn(len(param.item_class), *spec.shape, generator=torch.Generator().manual_seed(seed))
        )
    return SyntheticSet(param, spec, {"data": "digits", "param": "pixels"}, hints=hints)


def equal(one, other):
    a, b = one.tensors(), other.tensors()
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.x.dtype == b.x.dtype


def saved(path, value, **how):
    torch.save(value, path, **how)
    return path


def pair(digits, n=10, seed=0):
    images = torch.randn(n, *digits.spec.shape, generator=torch.Generator().manual_seed(seed))
    return images, torch.arange(10).repeat(n)[:n]


# --- there and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "file"), [("pt", ""), ("pt-pair", ""), ("pt-files", "images_best.pt")])
def test_what_is_exported_comes_back_to_the_bit(digits, tmp_path, to, file):
    one = made(digits.spec, hints=Hints(lr=0.0371))
    written = export_set(one, to, tmp_path / "x")
    back = import_set(tmp_path / "x" / file if file else tmp_path / "x", digits)
    assert equal(one, back)
    assert torch.equal(one.param.item_class, back.param.item_class)
    assert back.storage().nbytes == one.storage().nbytes
    kept = back.hints.lr
    if to == "pt-pair":
        assert kept is None
        assert "the learned step size 0.0371" in written.lost
    else:
        assert kept == pytest.approx(0.0371, rel=1e-6)
        assert written.lost == ()


def test_imported_set_is_a_set_like_any_other(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1)):
        saved(f"{name}.pt", list(pair(digits, seed=seed)))
        assert main(["-q", "import", f"{name}.pt", "--data", "digits", "-o", f"{name}.safetensors"]) == 0
    assert main(["info", "a.safetensors"]) == 0
    assert main(["preview", "a.safetensors"]) == 0
    assert main(["-q", "merge", "a.safetensors", "b.safetensors", "-o", "ab.safetensors"]) == 0
    judged = ["evaluate", "ab.safetensors", "--nets", "1", "--epochs", "1", "--baselines", "none", "--device", "cpu"]
    assert main(["-q", *judged]) == 0
    header = read_metadata("a.safetensors")
    assert header["imported"]["file"] == "a.pt"
    assert header["imported"]["layout"] == "pair"
    assert header["storage"]["floats"] == 640
    assert header["packages"]["dataset:digits"].startswith("dcf-core")


def test_labels_in_any_order_are_sorted_with_their_images(digits, tmp_path):
    images, labels = pair(digits)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    back = import_set(saved(tmp_path / "x.pt", [images[order], labels[order]]), digits)
    assert torch.equal(back.tensors().x, images)


def test_arrays_load_without_pickle_and_say_everything(digits, tmp_path):
    one = made(digits.spec, hints=Hints(lr=0.5))
    assert export_set(one, "npz", tmp_path / "x.npz").lost == ()
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["images"], one.tensors().x.numpy())
        assert arrays["labels"].tolist() == one.targets
        assert arrays["classes"].tolist() == one.classes
        assert float(arrays["lr"]) == 0.5
        assert arrays["mean"].tolist() == list(one.space.mean)


# --- pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_pictures_are_the_pixels_in_8_bits(tmp_path, channels, mode):
    space = ValueSpace((0.5,) * channels, (0.25,) * channels)
    one = made(DataSpec(channels, 5, 7, ("cat", "dog"), space))
    written = export_set(one, "png", tmp_path / "x")
    wanted = (space.decode(one.tensors().x).clamp(0, 1) * 255).round().byte()
    for number, place in enumerate(("cat/00000", "cat/00001", "dog/00000", "dog/00001")):
        with Image.open(tmp_path / "x" / f"{place}.png") as picture:
            assert picture.mode == mode
            found = torch.from_numpy(np.array(picture).reshape(5, 7, channels)).permute(2, 0, 1)
        assert torch.equal(found, wanted[number])
    (line,) = written.lost
    pixels = space.decode(one.tensors().x)
    outside = 100 * float(((pixels < 0) | (pixels > 1)).float().mean())
    assert f"{outside:.1f} % of the values lie outside [0, 1]" in line


def test_pictures_of_five_channels_are_refused(tmp_path):
    one = made(DataSpec(5, 4, 4, ("a", "b"), ValueSpace.unit(5)))
    with pytest.raises(UsageError, match="1 to 4 channels, and these images have 5; expected --to npz"):
        export_set(one, "png", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_classes_stay_inside_whatever_a_class_is_called(tmp_path):
    names = ("../../up", "/abs", "a/b", "..", "", "a\nb")
    one = made(DataSpec(1, 4, 4, names, ValueSpace.unit(1)), per_class=1)
    written = export_set(one, "png", tmp_path / "deep" / "x")
    assert {p.name for p in tmp_path.iterdir()} == {"deep"}
    inside = (tmp_path / "deep" / "x").resolve()
    assert all(inside in p.resolve().parents for p in written.files)
    assert len([p for p in written.files if p.suffix == ".png"]) == 6


def test_a_program_is_said_to_be_lost(digits, tmp_path):
    program = Program(((0, 1), (2, 3)), (0.1, 0.2))
    written = export_set(made(digits.spec, hints=Hints(program=program)), "pt", tmp_path / "x.pt")
    assert written.lost == ("the program: order and step sizes of its training",)


# --- what is there already ----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_is_replaced_only_when_asked(digits, tmp_path, to):
    one, other = made(digits.spec, 2), made(digits.spec, 1)
    out = tmp_path / "x"
    export_set(one, to, out)
    with pytest.raises(UsageError, match="--force"):
        export_set(other, to, out)
    export_set(other, to, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    if to == "png":
        assert len(list(out.rglob("*.png"))) == 10


def test_a_folder_of_something_else_is_never_replaced(digits, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("all of it")
    for to in FORMATS:
        with pytest.raises(UsageError):
            export_set(made(digits.spec), to, tmp_path / "x", force=True)
    assert (tmp_path / "x" / "thesis.tex").read_text() == "all of it"


def test_manifest_says_what_was_exported_and_lost(digits, tmp_path):
    export_set(made(digits.spec), "png", tmp_path / "x")
    about = json.loads((tmp_path / "x" / MANIFEST).read_text())
    assert about["classes"] == list(digits.spec.classes)
    assert "8 bits" in about["lost"][0]


# --- layouts that are read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_list_of_sets_with_accuracies_of_numpy_is_read(digits, tmp_path, old):
    sets = [list(pair(digits, seed=s)) for s in range(3)]
    accuracies = {"net": [np.float64(0.5), np.float32(0.25)], "all": np.zeros(3), "text": np.array(["a"])}
    file = saved(tmp_path / "res.pt", {"data": sets, "accs": accuracies}, _use_new_zipfile_serialization=not old)
    with pytest.raises(UsageError, match="holds 3 sets: say which: --experiment N, from 0 to 2"):
        import_set(file, digits)
    with pytest.raises(UsageError, match="--experiment 3"):
        import_set(file, digits, experiment=3)
    back = import_set(file, digits, experiment=2)
    assert torch.equal(back.tensors().x, sets[2][0])
    assert back.metadata["imported"]["experiment"] == 2


def test_files_beside_a_file_of_images_belong_to_it(digits, tmp_path):
    images, labels = pair(digits)
    file = saved(tmp_path / "images_200.pt", torch.nn.Parameter(images))
    with pytest.raises(UsageError, match="1 x 8 x 8: say where its labels are: --labels-file FILE"):
        import_set(file, digits)
    other = saved(tmp_path / "elsewhere.pt", labels)
    assert import_set(file, digits, labels=other).hints.lr is None
    saved(tmp_path / "labels_200.pt", labels)
    saved(tmp_path / "lr_200.pt", torch.tensor(0.02))
    assert import_set(file, digits).hints.lr == pytest.approx(0.02)
    assert import_set(file, digits, lr=0.5).hints.lr == 0.5


def test_pixels_are_brought_into_the_value_space(digits, tmp_path):
    pixels = torch.rand(10, *digits.spec.shape)
    file = saved(tmp_path / "x.pt", {"images": pixels, "labels": torch.arange(10)})
    with pytest.raises(UsageError, match="--values pixels, or --values space"):
        import_set(file, digits)
    assert torch.equal(import_set(file, digits, values="space").tensors().x, pixels)
    assert torch.equal(import_set(file, digits, values="pixels").tensors().x, digits.spec.space.encode(pixels))
    codes = (pixels * 255).round().byte()
    eight = import_set(saved(tmp_path / "y.pt", [codes, torch.arange(10)]), digits)
    assert torch.equal(eight.tensors().x, digits.spec.space.encode(codes.float() / 255))
    far = saved(tmp_path / "far.pt", [pixels * 9, torch.arange(10)])
    with pytest.raises(UsageError, match="expected about 0 to 1"):
        import_set(far, digits, values="pixels")


# --- what is refused ----------------------------------------------------------------------------------------


def changed(digits, how):
    images, labels = pair(digits)
    return [*how(images, labels)]


def with_nan(images, labels):
    images[3, 0, 2, 2] = float("nan")
    return images, labels


WRONG = [
    (with_nan, FormatError, "NaN or infinite values: 1 of its images, first 3"),
    (lambda x, y: (x / 0, y), FormatError, "NaN or infinite values"),
    (lambda x, y: (x[:, :, :7], y), UsageError, "images of 1 x 7 x 8, and those of the data are 1 x 8 x 8"),
    (lambda x, y: (x, y + 1), UsageError, "labels from 1 to 10, and the data have 10 classes"),
    (lambda x, y: (x, y - 1), UsageError, "labels from -1 to 8"),
    (lambda x, y: (x[:5], y[:5]), UsageError, "images of 5 classes, and the data have 10"),
    (lambda x, y: (x, y[:9]), FormatError, "10 images and 9 labels"),
    (lambda x, y: (x, y + 0.5), FormatError, "no class numbers"),
    (lambda x, y: (x.long(), y), FormatError, "images of floats"),
    (lambda x, y: (x[:0], y[:0]), FormatError, "expected images of shape"),
    (lambda x, y: (x, torch.ones(10, 3) / 3), UsageError, "labels of 10 x 3, and the data have 10 classes"),
    (lambda x, y: (x, torch.randn(10, 10)), UsageError, "are they logits"),
    (lambda x, y: (x, torch.eye(10)), UsageError, "such as --labels soft"),
    (lambda x, y: (x[:, 0], y), FormatError, "of no layout that is known"),
    (lambda x, y: (x, y, x), FormatError, "of no layout that is known"),
]


@pytest.mark.parametrize(("how", "kind", "says"), WRONG, ids=[says for _, _, says in WRONG])
def test_what_cannot_be_a_set_of_these_data_is_refused(digits, tmp_path, how, kind, says):
    file = saved(tmp_path / "x.pt", changed(digits, how))
    with pytest.raises(kind) as refused:
        import_set(file, digits)
    assert says in str(refused.value)


@pytest.mark.parametrize("lr", [-0.1, 0.0, float("nan"), float("inf"), 1e7])
def test_step_sizes_that_no_training_can_use_are_refused(digits, tmp_path, lr):
    images, labels = pair(digits)
    file = saved(tmp_path / "x.pt", {"images": images, "labels": labels, "lr": lr})
    with pytest.raises(FormatError, match="which no training can use"):
        import_set(file, digits)


def test_other_classes_and_constants_than_those_of_the_data_are_refused(digits, tmp_path):
    images, labels = pair(digits)
    table = {"images": images, "labels": labels}
    other = saved(tmp_path / "a.pt", {**table, "classes": list("abcdefghij")})
    with pytest.raises(UsageError, match="names the classes a, b, c"):
        import_set(other, digits)
    other = saved(tmp_path / "b.pt", {**table, "mean": [0.1]})
    with pytest.raises(UsageError, match=r"normalised with mean 0\.1, and the data with 0\.305"):
        import_set(other, digits)


class Hostile:
    def __init__(self, call, *args):
        self.made = (call, args)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_a_file_that_is_a_program_is_not_run(tmp_path, old, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, call in enumerate((Hostile(os.system, "touch run"), Hostile(eval, "open('run', 'w')"))):
        saved(f"{number}.pt", {"data": [call]}, _use_new_zipfile_serialization=not old)
        assert main(["import", f"{number}.pt", "--data", "digits", "-o", "x.safetensors"]) == 1
        said = capsys.readouterr().err
        assert "which tensors do not need; nothing of it was run" in said
        assert "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.pt", "1.pt"]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_every_cut_and_many_flips_of_a_file_give_one_clear_error(digits, tmp_path, old):
    whole = saved(tmp_path / "x.pt", list(pair(digits)), _use_new_zipfile_serialization=not old).read_bytes()
    draw = np.random.default_rng(0)
    broken = [whole[:cut] for cut in range(0, len(whole), max(1, len(whole) // 60))]
    for _ in range(60):
        flipped = bytearray(whole)
        for place in draw.integers(0, 700, 3):
            flipped[place] ^= int(draw.integers(1, 256))
        broken.append(bytes(flipped))
    for raw in broken:
        (tmp_path / "x.pt").write_bytes(raw)
        try:
            read_pt(tmp_path / "x.pt")
        except FormatError as error:
            assert "x.pt" in str(error)  # noqa: PT017 - a flip in the numbers is no error at all


def test_an_archive_that_grows_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(FormatError, match="would unpack to"):
        read_pt(tmp_path / "bomb.pt")


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path):
    file = saved(tmp_path / "x.pt", [torch.zeros(1).expand(10**9, 1, 8, 8), torch.zeros(1)])
    with pytest.raises(FormatError, match="larger than the file"):
        read_pt(file)


def test_lists_within_lists_without_end_are_refused(tmp_path):
    deep = torch.zeros(1)
    for _ in range(200):
        deep = [deep]
    with pytest.raises(FormatError, match="nested deeper"):
        read_pt(saved(tmp_path / "x.pt", deep))


def test_other_files_are_no_pt_files(digits, tmp_path):
    made(digits.spec).save(tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="sets of dcf need no import"):
        read_pt(tmp_path / "x.safetensors")
    for name in ("missing.pt", "."):
        with pytest.raises(FormatError):
            read_pt(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FormatError):
        read_pt(tmp_path / "pipe.pt")


def test_a_set_on_disk_is_exported_by_the_command(digits, tmp_path, capsys):
    made(digits.spec).save(tmp_path / "x.safetensors")
    argv = ["export", str(tmp_path / "x.safetensors"), "--to", "pt", "-o", str(tmp_path / "x.pt")]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 20
    assert said["lost"] == []
    found = torch.load(io.BytesIO((tmp_path / "x.pt").read_bytes()), weights_only=True)
    assert torch.equal(found["data"][0][0], load(tmp_path / "x.safetensors").tensors().x)
    assert main(argv) == 2
    assert "--force" in capsys.readouterr().err
