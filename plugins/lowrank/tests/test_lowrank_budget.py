"""Budgets: the published tables, both rules, refusals, and that reports, state dict and file agree to the float."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcf
from dcf.files import read_header
from dcf.recipes import load_recipe
from dcf.resolve import resolve
from dcf.run import prepare
from dcf.session import Session
from dcf.testing import fake_data, fake_set, fake_spec
from dcf_lowrank.budget import check_rank, factor_floats, images_for_budget, largest_rank, least_budget
from dcf_lowrank.param import LowRank

IPC = (1, 10, 20, 50)
#: (side, rank) -> images a class for each of IPC, as (released code, released readme).
TABLE = {
    (28, 1): ((14, 14), (140, 140), (280, 280), (700, 700)),
    (28, 2): ((7, 7), (70, 70), (140, 140), (350, 350)),
    (28, 4): ((3, 3), (30, 35), (60, 70), (150, 175)),
    (28, 8): ((1, 1), (10, 17), (20, 35), (50, 87)),
    (28, 16): ((0, 0), (0, 8), (0, 17), (0, 43)),
    **{(32, r): tuple((16 // r * n, 16 // r * n) for n in IPC) for r in (1, 2, 4, 8, 16)},
    **{(64, r): tuple((32 // r * n, 32 // r * n) for n in IPC) for r in (1, 2, 4, 8, 16)},
}
#: (side, plain images, rank, low-rank images) of the released settings.
RELEASED = [
    (28, 1, 2, 7), (28, 10, 8, 17), (28, 10, 2, 70), (32, 1, 2, 8), (32, 10, 2, 80), (32, 50, 4, 200),
    (32, 10, 8, 20), (64, 1, 4, 8), (64, 10, 4, 80), (32, 10, 2, 80), (32, 20, 4, 80),
]  # fmt: skip
#: Released settings that store more than they claim.
OVER_BUDGET = [(28, 1, 2, 8), (28, 50, 8, 88)]


def plain(classes, shape, ipc):
    """Floats of `ipc` plain images a class."""
    return ipc * classes * shape[0] * shape[1] * shape[2]


@pytest.mark.parametrize("side", [28, 32, 64])
@pytest.mark.parametrize("r", [1, 2, 4, 8, 16])
def test_both_rules_reproduce_the_table(side, r):
    for shape, classes in [((1, side, side), 1), ((3, side, side), 10)]:
        found = tuple(
            tuple(
                images_for_budget(rule, plain(classes, shape, ipc), classes, shape, r)
                for rule in ("reference", "exact")
            )
            for ipc in IPC
        )
        assert found == TABLE[side, r]


@pytest.mark.parametrize(("side", "ipc", "r", "images"), RELEASED)
def test_released_settings_fit(side, ipc, r, images):
    shape = (3, side, side)
    assert images_for_budget("exact", plain(10, shape, ipc), 10, shape, r) == images
    assert images * factor_floats(shape, r) <= plain(1, shape, ipc)


@pytest.mark.parametrize(("side", "ipc", "r", "images"), OVER_BUDGET)
def test_released_settings_that_do_not_fit(side, ipc, r, images):
    shape = (1, side, side)
    assert images * factor_floats(shape, r) > plain(1, shape, ipc)
    assert images_for_budget("exact", plain(10, shape, ipc), 10, shape, r) == images - 1


def test_budget_of_a_continual_memory():
    # 80 images of rank 2 cost 10 plain ones, 80 of rank 4 cost 20.
    assert 80 * factor_floats((3, 32, 32), 2) == 10 * 3072
    assert 80 * factor_floats((3, 32, 32), 4) == 20 * 3072


def test_reference_rule_counts_whole_plain_images():
    shape = (1, 28, 28)
    assert images_for_budget("reference", plain(10, shape, 3) - 1, 10, shape, 2) == 14
    assert images_for_budget("exact", plain(10, shape, 3) - 1, 10, shape, 2) == 20


SHAPES = st.tuples(st.integers(1, 4), st.integers(2, 20), st.integers(2, 20))


@given(SHAPES, st.data())
def test_useful_ranks_are_those_that_cost_no_more_than_pixels(shape, data):
    channels, height, width = shape
    most = largest_rank(height, width)
    assert factor_floats(shape, most) <= channels * height * width < factor_floats(shape, most + 1)
    assert most < min(height, width)
    check_rank(height, width, data.draw(st.integers(1, most)))
    with pytest.raises(dcf.BudgetError, match=rf"the largest useful one is r={most}\b"):
        check_rank(height, width, data.draw(st.integers(most + 1, 100)))


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.data())
def test_one_more_image_would_exceed_the_budget(shape, data):
    classes, ipc = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    r = data.draw(st.integers(1, largest_rank(shape[1], shape[2])))
    param, spec = LowRank(LowRank.Config(r=r)), fake_spec(classes, shape)
    budget = plain(classes, shape, ipc) + data.draw(st.integers(0, 7))
    items = param.plan(spec, budget)
    assert items == images_for_budget("exact", budget, classes, shape, r)
    assert param.cost(spec, items) <= budget < param.cost(spec, items + 1)
    least = LowRank(LowRank.Config(r=r, rule="reference")).plan(spec, budget)
    assert ipc <= least <= items


@settings(deadline=None, max_examples=10)
@given(st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)), st.data())
def test_report_state_and_file_agree(shape, data):
    r, items = data.draw(st.integers(1, largest_rank(shape[1], shape[2]))), data.draw(st.integers(1, 4))
    param, real = LowRank(LowRank.Config(r=r, init="noise")), fake_data(2, shape, train=1, test=1)
    param.allocate(real.spec, torch.arange(2).repeat_interleave(items))
    param.absorb(torch.zeros(2 * items, *shape))
    floats = 2 * items * factor_floats(shape, r)
    assert param.storage().floats == floats == sum(t.numel() for t in param.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.safetensors"
        fake_set(param, real, f"lowrank:r={r}").save(path)
        header = read_header(path)
        assert set(header.tensors) == {"A", "B", "labels"}
        assert header.nbytes == 4 * floats + 8 * 2 * items  # and an int64 class for each image
        assert path.stat().st_size == header.start + header.nbytes


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_too_small_a_budget_names_the_smallest_that_works(rule):
    param, spec = LowRank(LowRank.Config(r=3, rule=rule)), fake_spec(2, (3, 12, 10))
    least = least_budget(rule, 2, spec.shape, 3)
    with pytest.raises(dcf.BudgetError, match=f"smallest that works is {least} floats"):
        param.plan(spec, least - 1)
    assert param.plan(spec, least) == images_for_budget(rule, least, 2, spec.shape, 3) >= 1


def test_rank_beyond_the_pixels_is_refused_before_anything_is_computed():
    param = LowRank(LowRank.Config(r=5))
    with pytest.raises(dcf.BudgetError, match="rank 5 stores 80 floats a channel, more than the 64") as caught:
        param.plan(fake_spec(), 10**6)
    assert "r=4" in str(caught.value)
    with pytest.raises(dcf.BudgetError, match="r=4"):
        param.absorb(torch.zeros(2, 3, 8, 8))


def test_images_of_one_row_have_no_useful_rank():
    with pytest.raises(dcf.BudgetError, match="no rank saves any"):
        check_rank(1, 30, 1)


def test_a_run_gets_the_images_that_its_budget_pays_for():
    options = {"matcher": "none", "param": "lowrank:r=2", "data": fake_data(), "ipc": 3, "network": "mlp"}
    prepared = prepare(resolve(options))
    session = Session(prepared.config, prepared.data, prepared.matcher, prepared.objects)
    assert session.config.init == "random"
    assert len(session.param.view_class) == 2 * 3 * 2
    assert session.param.storage().floats == plain(2, (3, 8, 8), 3)


def test_ranks_that_the_sources_name_are_ranks_that_pay():
    for value in load_recipe("lodm").published:
        side = {"mnist": 28, "tiny-imagenet": 64}.get(value.data, 32)
        for r in re.findall(r"param\.r=(\d+)", value.source):
            check_rank(side, side, int(r))
