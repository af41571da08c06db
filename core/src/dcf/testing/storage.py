"""Checks of parameterizations: files, allocation and budgets."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from dcf.errors import BudgetError
from dcf.files import read_tensors
from dcf.synthetic import load
from dcf.testing.fakes import fake_data, fake_set, fake_spec, filled
from dcf.testing.params import build, views
from dcf.testing.subject import Check, Subject, require, same

__all__ = ["CHECKS"]

#: Name under which a file keeps the class of each item; it counts against no budget.
_LABELS = "labels"
#: A budget in floats that holds two tiny images with any method.
_AMPLE = 2**24


def check_saving_is_lossless(subject: Subject) -> None:
    """Save, load: every tensor, every image and label, and the layout come back bit for bit."""
    param = build(subject)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.safetensors"
        fake_set(param, spec=subject.spec).save(path)
        loaded = load(path).param
    require(same(dict(param.state_dict()), dict(loaded.state_dict())), "stored tensors differ after loading")
    before, after = param.batch(views(param)), loaded.batch(views(loaded))
    require(torch.equal(before.x, after.x), "images differ after loading")
    require(torch.equal(before.y, after.y), "labels differ after loading")
    require(torch.equal(param.view_class, loaded.view_class), "view_class differs after loading")
    require(param.storage() == loaded.storage(), "storage() differs after loading")


def check_storage_is_what_the_file_holds(subject: Subject) -> None:
    """Reported floats and bytes equal those counted in the file."""
    param = build(subject)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.safetensors"
        fake_set(param, spec=subject.spec).save(path)
        tensors, _ = read_tensors(path)
    tensors.pop(_LABELS)
    floats = sum(t.numel() for t in tensors.values())
    nbytes = sum(t.numel() * t.element_size() for t in tensors.values())
    reported = param.storage()
    require(reported.floats == floats, f"storage() reports {reported.floats} floats, the file holds {floats}")
    require(reported.nbytes == nbytes, f"storage() reports {reported.nbytes} bytes, the file holds {nbytes}")


def check_allocates_on_meta(subject: Subject) -> None:
    """`allocate` works under `torch.device("meta")`, to the same shapes: loading relies on it."""
    spec = fake_spec()
    items = torch.tensor([0, 0, 1, 1])
    real, meta = subject.make(), subject.make()
    real.allocate(spec, items)
    with torch.device("meta"):
        meta.allocate(spec, items)
    state = meta.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    wanted = {k: tuple(v.shape) for k, v in real.state_dict().items()}
    require(shapes == wanted, f"expected tensors {wanted}, got {shapes}")
    elsewhere = [k for k, v in state.items() if v.device.type != "meta"]
    require(not elsewhere, f"not allocated on the given device: {', '.join(elsewhere)}")


def check_plan_uses_the_budget(subject: Subject) -> None:
    """As many items a class as fit: these cost at most the budget, and one more would cost too much."""
    spec = fake_spec()
    least = _least(subject)
    for floats in (least, least + 1, 3 * least + 1, 5 * least - 1):
        items = subject.make().plan(spec, floats)
        require(_cost(subject, items) <= floats, f"{items} items a class do not fit into {floats} floats")
        require(_cost(subject, items + 1) > floats, f"{floats} floats hold more than {items} items a class")


def check_plan_refuses_too_small_a_budget(subject: Subject) -> None:
    """A budget that holds nothing is a `BudgetError` that says the smallest one that works."""
    least = _least(subject)
    try:
        items = subject.make().plan(fake_spec(), least - 1)
    except BudgetError as error:
        require(str(least) in str(error), f"expected the error to name {least} floats, got: {error}")
    else:
        require(False, f"expected a BudgetError, got {items} items")


def _least(subject: Subject) -> int:
    """The smallest budget, in floats, that holds one item a class."""
    low, high = 0, _AMPLE
    require(_fits(subject, high), f"not even {high} floats hold one image a class")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(subject, middle) else (middle, high)
    return high


def _fits(subject: Subject, floats: int) -> bool:
    try:
        return bool(subject.make().plan(fake_spec(), floats) >= 1)
    except BudgetError:
        return False


def _cost(subject: Subject, items: int) -> int:
    """Stored floats of a set of so many items a class."""
    return filled(subject.make(), fake_data(), items).storage().floats


CHECKS: Sequence[Check] = (
    check_saving_is_lossless,
    check_storage_is_what_the_file_holds,
    check_allocates_on_meta,
    check_plan_uses_the_budget,
    check_plan_refuses_too_small_a_budget,
)
