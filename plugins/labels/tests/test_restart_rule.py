"""The rule that replaces the network, against error sequences worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from dcf_labels.restart import RestartRule


def feed(rule, errors):
    """Numbers of the steps, from 1, at which the network was replaced."""
    return [step for step, error in enumerate(errors, 1) if rule.advance(error)]


def test_network_is_replaced_a_window_after_the_minimum_of_the_average():
    rule = RestartRule(window=3)
    # averages from step 3 on: .6 .5 .4 .4 .5 .6 -> the first of the two minima is at step 5, three later it is over
    assert feed(rule, [0.7, 0.6, 0.5, 0.4, 0.3, 0.5, 0.7]) == []
    assert rule.best == pytest.approx(0.4)
    assert (rule.best_step, rule.steps) == (5, 7)
    assert rule.advance(0.6)
    assert (rule.lengths, rule.restarts, rule.steps, rule.best_step, rule.errors) == ([5], 1, 0, 0, [])


def test_a_new_minimum_in_time_keeps_the_network():
    rule = RestartRule(window=3)
    assert feed(rule, [0.5, 0.5, 0.5, 0.6, 0.6, 0.2]) == []
    assert rule.best_step == 6


def test_single_good_steps_are_averaged_away():
    rule = RestartRule(window=4)
    assert feed(rule, [0.4, 0.4, 0.4, 0.4, 0.0, 1.0, 0.4, 0.9]) == []
    assert rule.best_step == 5  # the window with the 0.0; with single errors it would be the same step
    rule = RestartRule(window=2)
    assert feed(rule, [0.5, 0.5, 0.1, 0.9]) == []
    assert rule.best_step == 3
    assert rule.best == pytest.approx(0.3)


def test_nothing_is_decided_before_the_first_full_window():
    rule = RestartRule(window=50)
    assert feed(rule, [0.9] * 49) == []
    assert rule.length is None
    assert not rule.advance(0.9)
    assert rule.length == 50


def test_length_is_the_mean_of_the_last_three():
    rule = RestartRule(window=1)
    for minimum in (2, 4, 6, 9):
        assert feed(rule, [1 - 0.01 * step for step in range(minimum)] + [1.0]) == [minimum + 1]
    assert rule.lengths == [4, 6, 9]
    assert rule.length == 6  # 19 / 3
    assert rule.restarts == 4


def test_length_of_a_first_network_that_still_improves_is_its_minimum_so_far():
    rule = RestartRule(window=2)
    feed(rule, [0.9, 0.8, 0.7, 0.6])
    assert rule.length == 4


def test_state_is_all_there_is():
    errors = [(7 * i % 11) / 11 for i in range(40)]
    whole, first = RestartRule(window=4), RestartRule(window=4)
    feed(whole, errors)
    for cut in (0, 1, 3, 5, 9, 20):
        first, second = RestartRule(window=4), RestartRule(window=4)
        feed(first, errors[:cut])
        second.load_state_dict(first.state_dict())
        assert second == first
        feed(second, errors[cut:])
        assert second == whole


def test_state_has_the_same_shapes_throughout():
    rule = RestartRule(window=4)
    shapes = []
    for error in itertools.islice(itertools.cycle([0.5, 0.4, 0.6]), 30):
        shapes.append({name: (t.shape, t.dtype) for name, t in rule.state_dict().items()})
        rule.advance(error)
    assert all(found == shapes[0] for found in shapes)
