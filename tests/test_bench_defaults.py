"""A cell of a bench is the run that `dcf condense` would make of the same settings."""

import pytest

from dcf.bench.run import plan_bench
from dcf.bench.settings import read_settings
from dcf.build import create_stack, suited
from dcf.components import Kind
from dcf.resolve import resolve
from dcf.run import prepare


def cell_of(tmp_path, *, matcher, param, **given):
    method = {"matcher": matcher, "param": param, **given}
    settings = read_settings(None, {"data": ("digits",), "method": (method,), "sets": 1, "nets": 2, "device": "cpu"})
    return plan_bench(settings, tmp_path)[0].cells[0].config


@pytest.mark.parametrize(
    ("given", "init"),
    [
        ({"matcher": "dc", "param": "lowrank:r=2"}, "random"),  # what suits the parameterization, not the method
        ({"matcher": "dc", "param": "pixels"}, "noise"),
        ({"matcher": "dm", "param": "lowrank:r=2"}, "random"),
        ({"matcher": "dc", "param": "lowrank:r=2", "init": "noise"}, "noise"),
    ],
    ids=str,
)
def test_a_cell_is_completed_as_the_same_run_alone(tmp_path, given, init):
    decided = {"data": "digits", "ipc": 1, "device": "cpu", "networks": 2, "baselines": (), "protocol": "dcf-std@1"}
    alone = prepare(resolve({**given, **decided})).config
    assert cell_of(tmp_path, **given) == alone
    assert alone.init == init


def test_what_suits_a_parameterization_is_the_same_for_text_and_object():
    made = create_stack(Kind.PARAM, "lowrank:r=2")[-1]
    assert suited("lowrank:r=2") == suited(made) == {"init": "random"}
    assert suited("pixels") == {}
