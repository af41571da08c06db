"""What every installed parameterization costs: reports equal the file to the byte, and budgets are used up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dcf.budget import STORES, Budget
from dcf.build import create_stack
from dcf.errors import BudgetError, UsageError
from dcf.files import read_header, read_tensors
from dcf.planning import plan_items
from dcf.registry import registry
from dcf.storage import measure
from dcf.synthetic import SyntheticSet, load
from dcf.testing import fake_spec

#: Specs of parameterizations that have required options, or options that change what is stored.
SPECS = {
    "haba": ["haba", "haba:kernel=1"],
    "lowrank": ["lowrank", "lowrank:r=1"],
    "memory": ["memory:bases=2,down=1"],
}
#: Shortest side of an image where that is more than 1: what is smaller is refused, whatever the budget.
SIDES = {"haba": 3}
#: Rules that leave part of a budget unused on purpose, as a published code does.
WASTEFUL = ["lowrank:r=1,rule=reference"]

LABELS = "labels"
UNITS = ["ipc", "floats", "bytes"]
# Many shapes are too small for a rank, or for the least that is stored of a stack.
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=SUPPRESSED)


def installed():
    """Specs of all that is installed, and of two in a row where the right one stacks."""
    known = {item.component.name: item.component.load() for item in registry().items("param")}
    alone = [spec for name in known for spec in SPECS.get(name, [name])]
    rights = [spec for name in known if known[name].stackable for spec in SPECS.get(name, [name])]
    stacks = [f"{left}+{right}" for right in rights for left in alone]
    return [*alone, *filter(possible, stacks)]


def possible(text):
    """Whether the parts of a stack go together; some refuse what stands to their left."""
    try:
        create_stack("param", text)
    except UsageError:
        return False
    return True


shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))
stores = st.sampled_from(STORES)


def large_enough(text, shape):
    """Whether every part of a stack goes with images of this size."""
    return min(shape[1:]) >= max(SIDES.get(part, 1) for part in text.split("+"))


def budget_of(unit, number, spec, store):
    ipc, text = (number, None) if unit == "ipc" else (None, f"{unit}={number}")
    return Budget.of(ipc, text, math.prod(spec.shape), spec.num_classes, store)


def planned(text, spec, budget, store):
    """Items a class and an allocated parameterization; None where the budget holds nothing."""
    param = create_stack("param", text)[-1]
    try:
        items = plan_items(param, spec, budget, store)
    except BudgetError:
        return None
    return items, allocated(text, spec, items)


def allocated(text, spec, items):
    param = create_stack("param", text)[-1]
    param.allocate(spec, torch.arange(spec.num_classes).repeat_interleave(items))
    return param


def filled(param, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(len(param.view_class), *param.shape, generator=draw)
    param.absorb(images, torch.Generator().manual_seed(seed))
    return param


@pytest.mark.parametrize("text", [*installed(), *WASTEFUL])
@QUICK
@given(shape=shapes, classes=st.integers(1, 4), store=stores, unit=st.sampled_from(UNITS), number=st.integers(1, 3000))
def test_reports_equal_the_file_to_the_byte(tmp_path, text, shape, classes, store, unit, number):
    assume(large_enough(text, shape))
    spec = fake_spec(classes, shape)
    number = number % 5 + 1 if unit == "ipc" else number
    found = planned(text, spec, budget_of(unit, number, spec, store), store)
    assume(found is not None)
    path = tmp_path / "set.safetensors"
    run = {"ipc": number, "budget": None} if unit == "ipc" else {"ipc": None, "budget": f"{unit}={number}"}
    one = SyntheticSet(filled(found[1]), spec, {"param": text}, 0, None, {"run": run}, store)
    one.save(path)

    told, header = one.storage(), read_header(path)
    in_file = {k: v for k, v in read_tensors(path)[0].items() if k != LABELS}
    assert told.payload_bytes == header.nbytes
    assert told.nbytes == header.nbytes - 8 * len(one.param.item_class)
    assert told.nbytes == sum(t.numel() * t.element_size() for t in in_file.values())
    assert told.floats == sum(t.numel() for t in in_file.values())
    assert {t.name: t.nbytes for t in told.tensors} == {k: t.numel() * t.element_size() for k, t in in_file.items()}
    assert told.to_json() == one.describe()["storage"]
    assert 0 < told.utilisation <= 1
    assert sum(told.class_views) == told.views == len(one)

    again = load(path)
    assert again.storage() == told
    assert torch.equal(again.tensors().x, one.tensors().x)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("text", installed())
@QUICK
@given(shape=shapes, classes=st.integers(1, 4), store=stores, unit=st.sampled_from(UNITS), number=st.integers(1, 9000))
def test_one_more_item_a_class_would_exceed_the_budget(text, shape, classes, store, unit, number):
    assume(large_enough(text, shape))
    spec = fake_spec(classes, shape)
    budget = budget_of(unit, number % 7 + 1 if unit == "ipc" else number, spec, store)
    found = planned(text, spec, budget, store)
    assume(found is not None)
    items, param = found
    assert items >= 1
    assert measure(param, store, budget).utilisation <= 1
    assert measure(allocated(text, spec, items + 1), store, budget).utilisation > 1


@pytest.mark.parametrize("text", installed())
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("unit", ["floats", "bytes"])
def test_the_least_budget_that_is_named_is_the_least_that_works(text, store, unit):
    spec = fake_spec(3, (3, 12, 12))

    def plan(number):
        return plan_items(create_stack("param", text)[-1], spec, budget_of(unit, number, spec, store), store)

    with pytest.raises(BudgetError, match=f"smallest that works is {unit}=[0-9]+$") as refused:
        plan(1)
    least = int(str(refused.value).rpartition("=")[2])
    assert plan(least) >= 1
    with pytest.raises(BudgetError):
        plan(least - 1)


@pytest.mark.parametrize("store", STORES)
def test_plain_images_of_an_ipc_use_their_budget_whole(store):
    spec = fake_spec(4, (3, 8, 8))
    budget = budget_of("ipc", 7, spec, store)
    items, param = planned("pixels", spec, budget, store)
    assert (items, measure(param, store, budget).utilisation) == (7, 1.0)
