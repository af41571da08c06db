"""Which images each training step takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dcf
from dcf_bptt.order import cycled, ordered_batches, random_batches, require_all_used, views_by_class


def table(classes, size):
    return [torch.arange(c * size, (c + 1) * size) for c in range(classes)]


def test_views_of_each_class_whatever_their_order():
    view_class = torch.tensor([2, 0, 2, 0, 1])
    assert [v.tolist() for v in views_by_class(view_class, 4)] == [[1, 3], [4], [0, 2], []]


def test_ordered_batches_take_the_next_images_of_every_class():
    assert [b.tolist() for b in ordered_batches(table(2, 4), 2)] == [[0, 1, 4, 5], [2, 3, 6, 7]]


@given(classes=st.integers(1, 4), batch=st.integers(1, 4), count=st.integers(1, 4))
def test_ordered_batches_visit_every_image_once(classes, batch, count):
    batches = ordered_batches(table(classes, batch * count), batch)
    assert len(batches) == count
    assert sorted(torch.cat(batches).tolist()) == list(range(classes * batch * count))


def test_what_does_not_divide_is_refused_with_what_does():
    with pytest.raises(dcf.UsageError, match=r"batch=3 .* does not divide the set's 4 a class\n  use batch=1, 2 or 4"):
        ordered_batches(table(2, 4), 3)


def test_a_program_that_never_comes_to_some_images_is_refused():
    require_all_used(3, 3)
    with pytest.raises(dcf.UsageError, match=r"3 batches .* steps=2 would never use the last 1\n  use steps=auto"):
        require_all_used(3, 2)


def test_classes_of_different_size_are_refused():
    with pytest.raises(dcf.UsageError, match="from 1 to 2 a class"):
        ordered_batches([torch.arange(2), torch.arange(2, 3)], 1)


def test_a_program_begins_anew_at_its_end():
    batches = [*table(1, 1), torch.tensor([7])]
    assert [b.tolist() for b in cycled(batches, 5)] == [[0], [7], [0], [7], [0]]


@given(batch=st.integers(1, 7), steps=st.integers(1, 5), seed=st.integers(0, 99))
def test_random_batches_hold_equally_many_of_each_class_without_repetition(batch, steps, seed):
    views = table(3, 5)
    found = random_batches(views, batch, steps, torch.Generator().manual_seed(seed))
    assert len(found) == steps
    for step in found:
        assert len(set(step.tolist())) == len(step) == 3 * min(batch, 5)
        assert (torch.bincount(step // 5, minlength=3) == min(batch, 5)).all()


def test_random_batches_differ_by_step_and_reach_every_image():
    found = random_batches(table(2, 6), 2, 40, torch.Generator().manual_seed(0))
    assert len({tuple(sorted(step.tolist())) for step in found}) > 10
    assert set(torch.cat(found).tolist()) == set(range(12))


def test_a_small_class_gives_all_it_has():
    found = random_batches([torch.arange(4), torch.tensor([9])], 3, 6, torch.Generator().manual_seed(0))
    assert all(len(step) == 4 and 9 in step for step in found)
