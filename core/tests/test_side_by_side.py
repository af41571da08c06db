"""Tasks that run at once, each on a core."""

import threading
import time
from _thread import interrupt_main
from contextvars import ContextVar
from functools import partial

import pytest
import torch

from dcf import side_by_side as module
from dcf.side_by_side import go_on, side_by_side

VALUE: ContextVar[int] = ContextVar("value", default=0)


@pytest.fixture
def threads(set_threads):
    """Three of them."""
    set_threads(3)
    return 3


def work_until_stopped():
    """Steps without end; the test fails where it is not stopped."""
    for _ in range(1000):
        go_on()
        time.sleep(0.01)
    pytest.fail("nothing ended it")


def test_they_run_at_once_and_results_are_in_order(threads):
    everybody = threading.Barrier(3, timeout=10)

    def task(number):
        everybody.wait()
        time.sleep(0.02 * (3 - number))
        return number

    assert side_by_side([partial(task, n) for n in range(3)]) == [0, 1, 2]


def test_no_more_run_than_there_are_cores_and_they_take_turns(monkeypatch, threads):
    monkeypatch.setattr(module, "_TURN", 0.01)
    running, most, begun = set(), [], []

    def task(number):
        begun.append(number)
        for _ in range(10):
            running.add(number)
            most.append(len(running))
            time.sleep(0.004)
            running.remove(number)
            go_on()
        return len(begun)

    others = side_by_side([partial(task, n) for n in range(5)])
    assert max(most) == threads
    assert others == [5] * 5, "each had ended only when all had begun"


def test_each_has_one_core_and_the_caller_as_many_as_before(threads):
    assert side_by_side([torch.get_num_threads] * 2) == [1, 1]
    assert torch.get_num_threads() == threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads], "threads that begin later take over the number of the tasks"


def test_each_sees_the_context_of_the_caller_and_keeps_its_own():
    def task(value):
        seen = VALUE.get()
        VALUE.set(value)
        return seen

    VALUE.set(7)
    assert side_by_side([partial(task, n) for n in range(2)]) == [7, 7]
    assert VALUE.get() == 7


def test_an_error_ends_the_others(threads):
    def fail():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        side_by_side([work_until_stopped, fail, work_until_stopped])
    assert torch.get_num_threads() == threads


def test_an_interruption_ends_all_of_them(threads):
    begun = threading.Event()

    def interrupting():
        begun.set()
        interrupt_main()
        work_until_stopped()

    with pytest.raises(KeyboardInterrupt):
        side_by_side([interrupting, work_until_stopped])
    assert begun.is_set()
    assert torch.get_num_threads() == threads


def test_nothing_stops_what_runs_alone():
    go_on()
    assert side_by_side([]) == []
