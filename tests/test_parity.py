"""dcf gives the numbers that the published implementations gave; and the runner notices when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.parity.__main__ import main
from tests.parity.case import read
from tests.parity.compare import check, judge, kinds, output_error
from tests.parity.replay import RecordedContext, drive, pixels

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "parity" / "cases"
IMPLEMENTED = [path for path in sorted(CASES.glob("*.safetensors")) if read(path).kind in kinds()]

Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


@pytest.fixture
def edited(tmp_path):
    """Writes a copy of a case with something changed."""

    def write(name: str, edit: Edit) -> Path:
        with safe_open(CASES / f"{name}.safetensors", "pt") as file:
            meta = json.loads(file.metadata()["case"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        edit(meta, tensors)
        path = tmp_path / f"{name}-edited.safetensors"
        save_file({k: t.contiguous().clone() for k, t in tensors.items()}, path, {"case": json.dumps(meta)})
        return path

    return write


@pytest.mark.parametrize("path", IMPLEMENTED, ids=lambda path: path.stem)
def test_recorded_case(path):
    verdict = check(path)
    missing = verdict.reason.removeprefix("needs dcf-")
    if missing != verdict.reason and not (ROOT / "plugins" / missing).exists():
        pytest.skip(verdict.reason)
    assert verdict.ok, verdict.line()


def test_every_kind_has_a_case():
    assert {read(path).kind for path in IMPLEMENTED} == set(kinds())


def test_recorded_case_needs_no_particular_file_name(edited):
    assert check(edited("dc-loss_ours", lambda meta, tensors: None)).ok


# --- what must not pass -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("gradient-distance_ours", "out/dsyn/004"),
        ("convnet-forward_bn", "out/buf/003"),
        ("dc-loss_dsa", "out/dsyn"),
        ("dm-loss_in", "out/loss"),
        ("dsa-op_crop_siamese", "out/images"),
        ("train-eval_dsa", "out/net/008"),
        ("dc-run_dc", "out/losses"),
    ],
)
def test_one_wrong_value_is_found_and_named(edited, name, output):
    def edit(meta, tensors):
        size = max(float(tensors[output].abs().max()), meta["tolerance"]["floor"])
        tensors[output].view(-1)[-1] += 3 * meta["tolerance"]["rel"] * size

    verdict = check(edited(name, edit))
    assert not verdict.ok
    assert verdict.output == output


def change_metric(meta, tensors):
    meta["hyper"]["metric"] = "cos"


def change_activation(meta, tensors):
    meta["net"]["act"] = "sigmoid"


def change_draw(meta, tensors):
    tensors["aug/001/00"] = tensors["aug/001/00"] + 1


def change_order(meta, tensors):
    tensors["order"] = tensors["order"].flip(-1)


def change_momentum(meta, tensors):
    meta["hyper"]["momentum_img"] = 0.4


def change_precision(meta, tensors):
    meta["dtype"] = "float32"


def swap_names(meta, tensors):
    names = meta["net"]["params"]
    first, second = names.index("norm1.weight"), names.index("norm2.weight")
    names[first], names[second] = names[second], names[first]


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("gradient-distance_ours", change_metric),
        ("dc-loss_ours", change_metric),
        ("dc-loss_ours", change_precision),
        ("dc-loss_dsa", change_draw),
        ("dm-loss_in", change_activation),
        ("dm-loss_in", swap_names),
        ("train-eval_a", change_order),
        ("dc-run_dc", change_order),
        ("dc-run_dc", change_momentum),
    ],
)
def test_a_wrong_setting_is_found(edited, name, edit):
    verdict = check(edited(name, edit))
    assert not verdict.ok
    assert verdict.reason == ""  # computed, and different


def test_a_missing_output_is_bad(edited):
    verdict = check(edited("dm-loss_in", lambda meta, tensors: tensors.update({"out/other": torch.zeros(2)})))
    assert (verdict.ok, verdict.output, verdict.reason) == (False, "out/other", "not computed")


def test_outputs_that_are_not_listed_do_not_matter(edited):
    assert check(edited("dm-loss_in", lambda meta, tensors: tensors.pop("out/loss") and None)).ok


def test_unknown_kind_is_bad(edited):
    verdict = check(edited("dm-loss_in", lambda meta, tensors: meta.update(kind="../case")))
    assert not verdict.ok
    assert "unknown kind '../case'" in verdict.line()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"dtype": "float16"}, "float16"),
        ({"net": None}, "TypeError"),
        ({"hyper": {"metric": "best", "ipc": 2, "num_classes": 3}}, "metric"),
    ],
)
def test_a_description_that_makes_no_sense_is_bad(edited, change, message):
    verdict = check(edited("dc-loss_ours", lambda meta, tensors: meta.update(change)))
    assert not verdict.ok
    assert message in verdict.reason


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_a_corrupt_file_is_bad(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((CASES / "dc-loss_ours.safetensors").read_bytes()[:keep])
    verdict = check(path)
    assert not verdict.ok
    assert "cannot be read" in verdict.reason
    assert "\n" not in verdict.line()


def test_a_file_that_is_not_there_is_bad(tmp_path):
    assert not check(tmp_path / "none.safetensors").ok


def test_main_prints_one_line_a_file_and_fails_if_any_is_bad(capsys, tmp_path):
    good = str(CASES / "gradient-distance_mse.safetensors")
    assert main([good]) == 0
    assert main([str(tmp_path / "none.safetensors"), good]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert [line.split()[0] for line in lines] == ["gradient-distance_mse", "none", "gradient-distance_mse"]
    assert lines[0].endswith(" ok")
    assert " BAD " in lines[1]


# --- comparing ------------------------------------------------------------------------------------------------------


def test_error_is_relative_to_the_largest_expected_value():
    want = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert output_error(want + torch.tensor([0.2, 0.0]), want) == pytest.approx(0.05)


def test_error_of_tiny_values_is_relative_to_the_floor():
    want = torch.tensor([1e-12], dtype=torch.float64)
    assert output_error(want * 2, want, floor=1e-6) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    "got",
    [None, torch.tensor([1.0]), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, 2.0])],
    ids=["missing", "shape", "nan", "inf"],
)
def test_error_is_infinite_where_nothing_can_be_compared(got):
    assert output_error(got, torch.tensor([1.0, 2.0])) == float("inf")


def test_integers_must_be_equal():
    want = torch.tensor([1000000, 2])
    assert output_error(torch.tensor([1000000, 2], dtype=torch.int32), want) == 0
    assert output_error(want + torch.tensor([1, 0]), want, floor=1e9) == float("inf")
    assert output_error(want.float(), want) == float("inf")


def test_exact_means_equal():
    want = torch.tensor([1.0])
    assert output_error(want.clone(), want, exact=True) == 0
    assert output_error(want + 1e-6, want, exact=True) == float("inf")


# --- by name, at any chunking, in the right precision -------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet-forward_in", "dc-loss_mse", "train-eval_full"])
def test_weights_go_by_name(edited, name):
    def reverse(meta, tensors):
        count = len(meta["net"]["params"])
        meta["net"]["params"].reverse()
        for prefix in ("net", "out/net"):
            found = [tensors.get(f"{prefix}/{i:03d}") for i in range(count)]
            tensors.update({f"{prefix}/{count - 1 - i:03d}": t for i, t in enumerate(found) if t is not None})

    assert check(edited(name, reverse)).ok


def test_a_tensor_of_another_network_is_bad(edited):
    verdict = check(edited("dm-loss_in", lambda meta, tensors: meta["net"].update(width=6)))
    assert "conv1.weight" in verdict.reason


@pytest.mark.parametrize("name", ["dsa-op_scale_siamese", "dm-loss_in"])
def test_floating_inputs_have_the_precision_of_the_case(name):
    case = read(CASES / f"{name}.safetensors")
    floating = {tensor.dtype for tensor in case.tensors.values() if tensor.is_floating_point()}
    assert floating == {case.dtype}


def replayed(path: Path, class_chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    from dcf_dc.matcher import DC

    case = read(path)
    ctx = RecordedContext(case, pixels(case), class_chunk)
    replay = drive(ctx, DC(DC.Config(match_steps=1)))
    return replay.losses[0], replay.gradients[0][0]


@pytest.mark.parametrize("name", ["dc-loss_dsa", "dc-loss_bn"])
def test_chunks_of_classes_change_nothing(name):
    path = CASES / f"{name}.safetensors"
    alone = replayed(path, 1)
    for chunk in (2, 99):
        torch.testing.assert_close(replayed(path, chunk), alone, rtol=1e-12, atol=1e-12)


def test_classes_may_have_different_numbers_of_real_images(edited):
    path = edited("dc-loss_ours", lambda meta, tensors: tensors.update({"real/001": tensors["real/001"][:2]}))
    torch.testing.assert_close(replayed(path, 99), replayed(path, 1), rtol=1e-12, atol=1e-12)
    assert judge(read(path), {"out/loss": replayed(path, 99)[0]}).error > 1e-3
