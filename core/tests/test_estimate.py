"""`dcf estimate`: the arithmetic, the watching of memory, refusals with advice, and the figures against real runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field
from typer.main import get_command

import dcf
from dcf import compiled
from dcf.cli import main
from dcf.cli.app import build
from dcf.cli.estimate import estimate_table
from dcf.cli.later import loaded
from dcf.compiled import _kernels
from dcf.estimate import DoesNotFitError, Estimate, EvaluationRow, estimate, evaluating
from dcf.estimate import watch as watch_module
from dcf.estimate.advice import advice_on_data, advice_on_evaluation, advice_on_run
from dcf.estimate.gauge import Gauge
from dcf.estimate.measure import Rehearsal, measured, sampled_iterations
from dcf.estimate.memory import Machine, peak_resident, resident
from dcf.estimate.model import Sample, judged
from dcf.estimate.shortage import shortage_of
from dcf.estimate.units import duration_text, parse_size, size_text
from dcf.estimate.worker import _explain
from dcf.networks.options import ConvNetConfig
from dcf.resolve import resolve
from dcf.run import prepare
from dcf.runconfig import RunConfig
from dcf.session import Session
from dcf.testing import PullToMean, TinyFactory, fake_data
from dcf.training import Trained
from dcf.types import Hints, Program

MIB = 2**20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def an_estimate(**changes):
    known = Estimate(
        device="cpu",
        iterations=10,
        updates=4,
        samples=(
            Sample(0, (5.0, 1.0, 1.0, 1.0), 0.5),
            Sample(5, (1.0, 2.0), None),
            Sample(2, (1.0, 1.0, 1.0, 1.0), 1.0),
        ),
        start=1.0,
        preparation=2.0,
        initialisation=3.0,
        evaluation=(EvaluationRow("sets", 5, 30, 2.0, 0.5), EvaluationRow("random", 5, 30, 1.0, 0.5)),
        baseline_bytes=100,
        peaks={"preparing": 110, "condensing": 300, "evaluating": 250},
        host_bytes=300,
        available_bytes=1000,
        stored_bytes=64,
        checkpoint_bytes=128,
        advice={"condensing": ["--class-chunk 5"], "loading": ["smaller images"]},
    )
    return replace(known, **changes)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_an_iteration_that_was_cut_short_is_its_first_update_and_later_ones():
    assert Sample(0, (5.0, 1.0, 3.0), None).seconds(10) == 5 + 9 * 2
    assert Sample(0, (5.0,), None).seconds(3) == 15
    assert Sample(0, (5.0, 1.0), 0.5).seconds(99) == 6.5
    assert Sample(0, (), 0.5).seconds(1) == 0.5


def test_the_first_iteration_counts_once_where_there_are_others():
    found = an_estimate()
    assert found.seconds_per_iteration == (1 + 3 * 2 + 5) / 2
    assert found.spread == (5, 7)
    assert found.warm_up == 8.5 - 6
    assert found.condensing_seconds == 10 * 6 + 2.5
    assert found.evaluation_seconds == 5 * 2.5 + 5 * 1.5
    assert found.seconds == 1 + 2 + 3 + 62.5 + 20
    assert "measured on 6 updates of 2 iterations" in found.basis


def test_a_single_iteration_is_the_only_witness():
    found = an_estimate(samples=(Sample(0, (5.0, 1.0), None),))
    assert (found.seconds_per_iteration, found.warm_up) == (8, 0)
    assert "measured on 2 updates of 1 iteration, which include the warm-up" in found.basis


def test_a_run_without_iterations_takes_none():
    found = an_estimate(samples=(), iterations=0, evaluation=())
    assert (found.condensing_seconds, found.seconds, found.spread) == (0, 6, (0, 0))
    assert "no iterations" in found.basis


def test_json_says_the_same():
    found = an_estimate()
    told = json.loads(json.dumps(found.to_json()))
    assert told["seconds"] == found.seconds
    assert told["fits"] is True
    again = Estimate.from_json(told)
    assert again.to_json() == found.to_json()
    assert again.samples == found.samples


def test_iterations_are_taken_from_all_over_the_run():
    assert list(sampled_iterations(0)) == []
    assert list(sampled_iterations(1)) == [0]
    assert sorted(sampled_iterations(3)) == [0, 1, 2]
    many = list(sampled_iterations(1000))
    assert many[:5] == [0, 500, 250, 750, 125]
    assert len(set(many)) == len(many)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_what_fits_is_given_back_and_what_does_not_is_refused_with_the_advice_of_its_part():
    found = an_estimate()
    assert judged(found, None).room_bytes == 1000
    assert judged(found, 300).fits
    with pytest.raises(DoesNotFitError) as caught:
        judged(found, 299)
    assert caught.value.estimate.limit_bytes == 299
    assert (caught.value.needed, caught.value.room, caught.value.exit_code) == (300, 299, 1)
    assert str(caught.value).splitlines() == [
        "this run does not fit: it needs 300 B of memory, there are 299 B "
        "(the limit that was given; first exceeded while condensing)",
        "  try --class-chunk 5",
    ]
    with pytest.raises(DoesNotFitError, match="while loading the data") as caught:
        judged(found, 99)
    assert caught.value.advice == ("smaller images",)
    with pytest.raises(DoesNotFitError, match="available here"):
        judged(replace(found, available_bytes=200), None)


def test_an_unknown_room_refuses_nothing():
    assert judged(an_estimate(available_bytes=None), None).fits


def test_sizes_are_read_and_written():
    assert [parse_size(t) for t in ("1", "2 kB", "2K", "1.5GiB", "4gib", "1T")] == [
        *(1, 2000, 2048, 1610612736, 4 * 2**30, 2**40)
    ]
    for text in ("", "4X", "-1", "0", "0.1", "GiB", "1e9", "9999999999T"):
        with pytest.raises(dcf.UsageError, match="expected a size above zero, such as 4GiB"):
            parse_size(text)
    assert [size_text(n) for n in (0, 1023, 1024, 150 * MIB, 3 * 2**30)] == [
        *("0 B", "1023 B", "1.0 KiB", "150 MiB", "3.0 GiB")
    ]
    assert [duration_text(s) for s in (0, 0.0421, 59.6, 3599, 86399, 200000)] == [
        *("0 s", "0.042 s", "1 min 0 s", "1 h 0 min", "1 d 0 h", "2 d 8 h")
    ]


def fake_machine(root, meminfo, cgroup, files):
    for name, text in {"proc/meminfo": meminfo, "proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Machine(root)


def test_memory_is_what_the_machine_has(tmp_path):
    meminfo = "MemTotal:  100 kB\nMemAvailable:  70 kB\n"
    assert fake_machine(tmp_path, meminfo, "0::/\n", {}).available() == 70 * 1024
    assert Machine(tmp_path / "nowhere").available() is None


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_what_the_container_may_have(tmp_path, version):
    base = "sys/fs/cgroup/" if version == 2 else "sys/fs/cgroup/memory/"
    limit, usage, cached = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    files = {
        f"{base}outer/{limit}": "5000\n", f"{base}outer/{usage}": "4000\n",
        f"{base}outer/memory.stat": f"{cached} 500\n",
        f"{base}outer/inner/{limit}": "max\n" if version == 2 else "9223372036854771712\n",
        f"{base}outer/inner/{usage}": "10\n",
    }  # fmt: skip
    line = "0::/outer/inner\n" if version == 2 else "3:cpu:/x\n4:memory:/outer/inner\n"
    assert fake_machine(tmp_path, "MemAvailable:  70 kB\n", line, files).available() == 1500


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says")
def test_memory_of_a_process_is_known():
    assert 0 < resident() <= peak_resident()
    assert resident(2**30) is None


#: Runs a command within a limit on its address space.
LIMITED = """
import resource, sys
from dcf.cli import main
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


# --- out of memory --------------------------------------------------------------------------------------------------


def test_a_failed_allocation_says_what_it_wanted():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    short = shortage_of(caught.value)
    assert short["needed"] > 2**58
    assert short["who"] == "available here"
    assert shortage_of(RuntimeError("something else")) is None
    assert shortage_of(ImportError("no module named 'x'")) is None


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("libtorch_cpu.so: failed to map segment from shared object")]
)
def test_what_does_not_say_how_much_it_wanted_wanted_more_than_there_was(error):
    short = shortage_of(error)
    assert short["needed"] == short["room"] > 0


def test_a_set_that_is_itself_larger_than_memory_is_refused_before_it_is_made(monkeypatch):
    options = {"matcher": "none", "data": "digits", "device": "cpu", "evaluate": False, "iterations": 0}
    most = 2 * 4 * 64 * 10 * 3
    monkeypatch.setattr(Machine, "available", lambda self: most)
    assert len(dcf.condense(**options, ipc=3).targets) == 30
    with pytest.raises(DoesNotFitError) as caught:
        dcf.condense(**options, ipc=4)
    assert (caught.value.needed, caught.value.room) == (most // 3 * 4, most)
    assert str(caught.value).splitlines()[1].startswith("  try a smaller set (now --ipc 4): 75 % of it and less")
    told = []
    _explain(caught.value, lambda **event: told.append(event))
    assert told == [{"shortage": {"needed": most // 3 * 4, "room": most, "who": "available here"}}]


@pytest.mark.slow
def test_a_limit_below_what_the_program_itself_takes_is_a_refusal(tmp_path):
    """Libraries that find no place in the address space raise another error than what allocates in them."""
    limited = [sys.executable, "-c", LIMITED, str(500 * MIB)]
    for words, says in (
        (["estimate"], "error: this run does not fit"),
        (["condense", "--no-eval"], "error: out of memory"),
    ):
        done = subprocess.run(
            [*limited, *words, "--data", "digits", "--matcher", "none"],
            capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=ENVIRONMENT,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-2].startswith(says), done.stderr
        assert done.stderr.splitlines()[-1].startswith("  try ")


def test_a_gpu_that_is_full_says_what_it_wanted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * MIB, 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 * MIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 6 * MIB)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    assert shortage_of(error) == {"needed": 2 * 2**30 + 5 * MIB, "room": 9 * MIB, "who": "on the GPU"}


# --- advice ---------------------------------------------------------------------------------------------------------


class Unrolled(dcf.Config):
    """Options as methods that differentiate through training have them."""

    unroll: Literal["adjoint", "full"] = Field("full", description="how")
    keep: Annotated[int, Field(ge=1)] | Literal["cpu"] = Field(1, description="weights kept")
    batch_real: int = Field(256, ge=200, description="real images")
    batch_syn: int = Field(100, ge=1, description="synthetic images")
    batch_norm: bool = Field(True, description="no number")


def test_advice_follows_from_the_options_that_there_are():
    config = RunConfig(matcher="none", ipc=10)
    lines = advice_on_run(config, Unrolled(), ConvNetConfig(), chunk=8, on_gpu=True)
    starts = [line.split(" (")[0].split(":")[0] for line in lines]
    assert starts == [
        "--class-chunk 4",
        "--set matcher.unroll=adjoint",
        "--set matcher.keep=cpu",
        "--set matcher.batch_syn=50",  # not batch_real, which cannot be smaller
        "--ipc 5",
        "--set network.width=64",
        "--device cpu",
    ]
    small = advice_on_run(
        RunConfig(matcher="none", budget="bytes=9"), Unrolled(unroll="adjoint"), dcf.Config(), 1, on_gpu=False
    )
    assert [line.split(" (")[0] for line in small] == [
        *("--set matcher.keep=4", "--set matcher.batch_syn=50", "a smaller --budget"),
        "a machine with more memory",
    ]


def test_advice_for_data_and_evaluation():
    assert advice_on_data("folder:path=x", False)[0] == "smaller images: the option 'size' of --data"
    assert advice_on_data("digits", False)[0] == 'fewer images: --data "subset:base=(digits),per_class=N"'
    lines = advice_on_evaluation(RunConfig(), 256, ("random", "whole"), on_gpu=False)
    assert lines[0] == "--set protocol.batch=128 (now 256)"
    assert [line[:18] for line in lines[1:3]] == ["--baselines random", "--no-eval, and 'dc"]


# --- the measurement, with a clock of its own -----------------------------------------------------------------------


class Clock(Gauge):
    """A device whose time only passes when somebody says so, and whose memory is what somebody says."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.seconds, self.bytes, self.most = 0.0, 100, 100

    def now(self):
        return self.seconds

    def used(self):
        return self.bytes

    def peak(self):
        self.most = max(self.most, self.bytes)
        return self.most


class Slow(PullToMean):
    """Takes as long as it is told."""

    def __init__(self, clock, updates=3, first=2.0, later=1.0, rest=0.25):
        super().__init__()
        self.clock, self.count, self.first, self.later, self.rest = clock, updates, first, later, rest
        self.prepared = self.rehearsed = 0
        self.seen = []

    def prepare(self, ctx):
        self.prepared += 1

    def rehearse(self, ctx):
        self.rehearsed += 1
        self.clock.bytes = 150

    def preparation(self, ctx):
        return 77.0

    def updates(self, ctx):
        return self.count

    def outer(self, ctx, it):
        self.seen.append(it)
        self.clock.bytes = 400
        for update in range(self.count):
            self.clock.seconds += self.later if update else self.first
            yield from super().outer(ctx, it)
        self.clock.seconds += self.rest


def rehearsal(matcher, clock, overrides=None, **options):
    objects = {"matcher": matcher, "network": TinyFactory(), "data": fake_data()}
    prepared = prepare(
        resolve({"ipc": 1, "evaluate": False, "device": "cpu", **objects, **options}, overrides=overrides)
    )
    told = []
    session = Session(prepared.config, prepared.data, prepared.matcher, prepared.objects)
    return Rehearsal(session, clock, lambda **event: told.append(event)), told


def test_a_rehearsal_runs_the_real_steps_and_not_the_preparation():
    clock = Clock()
    matcher = Slow(clock, updates=3, first=2.0, later=1.0, rest=0.25)
    work, told = rehearsal(matcher, clock, iterations=7)
    facts = work.facts()
    # The first took 4.25 seconds, which is enough; it had two updates already, so that it was cut short.
    assert facts["samples"] == [{"it": 0, "updates": (2.0, 1.0), "rest": None}]
    assert (matcher.prepared, matcher.rehearsed, matcher.seen) == (0, 1, [0])
    assert facts["preparation"] == 77.0
    assert facts["peaks"] == {"preparing": 150, "condensing": 400, "evaluating": 400}
    assert facts["stored_bytes"] == 2 * 3 * 8 * 8 * 4
    assert facts["checkpoint_bytes"] == 2 * facts["stored_bytes"]  # the images and their momentum
    assert [event["part"] for event in told if "part" in event] == ["condensing", "evaluating"]


def test_quick_iterations_are_repeated_all_over_the_run():
    clock = Clock()
    matcher = Slow(clock, updates=2, first=0.5, later=0.25, rest=0.0)
    facts = rehearsal(matcher, clock, iterations=100)[0].facts()
    assert matcher.seen == [0, 50, 25, 75]
    assert [s["rest"] for s in facts["samples"]] == [0.0] * 4


def test_a_lone_update_is_measured_to_the_end_of_its_iteration():
    clock = Clock()
    facts = rehearsal(Slow(clock, updates=1, first=9.0, rest=2.0), clock, iterations=100)[0].facts()
    assert facts["samples"] == [{"it": 0, "updates": (9.0,), "rest": 2.0}]


def test_an_iteration_longer_than_it_said_is_as_long_as_it_was():
    clock = Clock()
    matcher = Slow(clock, updates=3, first=2.0, later=2.0, rest=1.0)
    matcher.updates = lambda ctx: 1
    (sample,) = rehearsal(matcher, clock, iterations=100)[0].facts()["samples"]
    assert sample == {"it": 0, "updates": (2.0, 2.0, 2.0), "rest": 1.0}


def test_a_matcher_without_a_rehearsal_is_prepared_in_earnest():
    class Plain(Slow):
        rehearse = dcf.Matcher.rehearse

        def prepare(self, ctx):
            self.clock.seconds += 5

        def preparation(self, ctx):
            return 0.0

    clock = Clock()
    assert rehearsal(Plain(clock), clock, iterations=1)[0].facts()["preparation"] == 5.0


def test_a_whole_measurement_with_its_evaluation():
    told = []
    options = {
        "matcher": PullToMean(), "network": TinyFactory(), "data": fake_data(), "ipc": 1, "iterations": 5,
        "device": "cpu", "networks": 2, "baselines": ("random", "whole"),
    }  # fmt: skip
    request = resolve(options, overrides={"protocol.epochs": 2, "protocol.steps_min": 0})
    facts = measured(request, lambda **event: told.append(event), time.perf_counter())
    found = Estimate.from_json(json.loads(json.dumps(facts)))
    assert [(row.name, row.networks, row.epochs) for row in found.evaluation] == [
        *(("sets", 2, 2), ("random", 2, 2), ("whole", 2, 2))
    ]
    assert all(row.seconds > 0 for row in found.evaluation)
    assert 0 < found.baseline_bytes <= found.peak_bytes
    assert len(found.samples) == 5
    assert {part for event in told for part in event.get("advice", ())} == {
        *("loading", "preparing", "condensing", "evaluating")
    }
    assert found.stored_bytes == 1536


def test_networks_that_are_trained_at_once_share_their_time(monkeypatch):
    clock, tested = Clock(), []

    def trained(learners, how, schedule, **settings):
        """A step of two images takes six seconds, however many networks there are."""
        clock.seconds += 6 * schedule.epochs
        return [Trained(schedule.epochs, len(one.order(0)) * schedule.epochs) for one in learners]

    def accuracies(states, how, split):
        clock.seconds += 3
        tested.append(len(states))

    monkeypatch.setattr(evaluating.Grouping, "first", lambda self, material: (2, "stacked"))
    monkeypatch.setattr(evaluating, "train_each", trained)
    monkeypatch.setattr(evaluating, "accuracies_each", accuracies)
    options = {"iterations": 1, "evaluate": True, "networks": 3, "baselines": ()}
    work, _ = rehearsal(PullToMean(), clock, overrides={"protocol.epochs": 5, "protocol.steps_min": 0}, **options)
    (row,) = work.facts()["evaluation"]
    assert (row["networks"], row["epochs"], tested) == (3, 5, [2])
    # Two of them, then the third.
    assert row["train_seconds"] == pytest.approx(2 * 5 * 6 / 3)
    assert row["test_seconds"] == pytest.approx(2 * 3 / 3)


# --- compiled kernels -----------------------------------------------------------------------------------------------


class Embed(dcf.Matcher):
    """Embeds real images."""

    def outer(self, ctx, it):
        with torch.no_grad():
            compiled.embed(ctx.network(), ctx.real(ctx.all_classes().classes, 4).flatten(0, 1))
        for chunk in ctx.chunks():
            yield dcf.Step(ctx.synthetic(chunk.classes).square().mean(), update=chunk.last)


@pytest.fixture
def work(monkeypatch):
    """Images that kernels are asked to go through in all, by kind, as it is counted; no kernel is made."""
    most = {}

    def note(kind, net, images, calls, strict):
        name = f"{kind.name}, strict" if strict else kind.name
        most[name] = max(most.get(name, 0), len(images) * calls)
        return False

    monkeypatch.setattr(compiled, "arithmetic", lambda device: "bf16")
    monkeypatch.setattr(compiled, "worthwhile", note)
    return most


def test_kernels_are_expected_to_do_as_much_as_in_the_run(work):
    options = {
        "matcher": Embed(), "network": TinyFactory(), "data": fake_data(train=40, test=600), "ipc": 1,
        "iterations": 50, "device": "cpu", "networks": 2, "baselines": ("whole",),
    }  # fmt: skip
    overrides = {"protocol.epochs": 12, "protocol.steps_min": 0}
    measured(resolve(options, overrides=overrides), lambda **event: None, time.perf_counter())
    told = dict(work)
    work.clear()
    dcf.condense(**options, overrides=overrides)
    assert set(told) == {"EMBED", "GRADIENT", "CLASSIFY"}
    assert told["EMBED"] == work["EMBED"] == 2 * 4 * 50
    # Epochs and test images are told by the few that are measured.
    assert 0.7 < told["GRADIENT"] / work["GRADIENT"] <= 1
    assert 0.7 < told["CLASSIFY"] / work["CLASSIFY"] <= 1


def test_strict_precision_is_as_in_the_run(work):
    request = resolve({
        "matcher": Embed(), "network": TinyFactory(), "data": fake_data(), "ipc": 1, "iterations": 3,
        "device": "cpu", "evaluate": False, "precision": "strict",
    })  # fmt: skip
    measured(request, lambda **event: None, time.perf_counter())
    assert set(work) == {"EMBED, strict"}


def test_the_clock_stands_still_while_kernels_are_made(monkeypatch):
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "bf16")
    monkeypatch.setattr(compiled, "worthwhile", lambda *_: True)
    monkeypatch.setattr(_kernels, "_MADE", {})
    monkeypatch.setattr(_kernels, "_SECONDS", {})
    monkeypatch.setattr(_kernels, "_make", lambda *_: time.sleep(0.4))
    request = resolve({
        "matcher": Embed(), "network": TinyFactory(), "data": fake_data(), "ipc": 1, "iterations": 2,
        "device": "cpu", "evaluate": False,
    })  # fmt: skip
    found = Estimate.from_json(measured(request, lambda **event: None, time.perf_counter()))
    assert found.kernels == compiled.seconds_spent() >= 0.4
    assert found.condensing_seconds < 0.4
    assert found.seconds == pytest.approx(found.kernels + replace(found, kernels=0.0).seconds)
    assert "compiled kernels" in [row[0] for row in estimate_rows(found)]
    assert "compiled kernels" not in [row[0] for row in estimate_rows(replace(found, kernels=0.0))]


def estimate_rows(found):
    return list(zip(*(column.cells for column in estimate_table(found).columns), strict=True))


class PullToProgram(PullToMean):
    """Its sets are programs of three steps."""

    def hints(self):
        return Hints(program=Program(((0, 1), (1,), (0,)), (0.1, 0.1, 0.1)))


def test_a_program_is_measured_as_what_is_run():
    options = {
        "matcher": PullToProgram(), "network": TinyFactory(), "data": fake_data(), "ipc": 1, "iterations": 2,
        "device": "cpu", "networks": 2, "baselines": ("random",),
    }  # fmt: skip
    # A protocol that would take very long: what runs the set as a program does not care.
    request = resolve(options, overrides={"protocol.epochs": 10**6, "protocol.steps_min": 0})
    facts = measured(request, lambda **event: None, time.perf_counter())
    found = Estimate.from_json(json.loads(json.dumps(facts)))
    assert [(row.name, row.networks, row.epochs) for row in found.evaluation] == [
        *(("replay", 2, 1), ("random-replay", 2, 1), ("random", 2, 10**6))
    ]
    assert found.evaluation[0].train_seconds < 10 < found.evaluation[2].train_seconds


# --- the process, with stand-ins for the one that measures ----------------------------------------------------------


def stand_in(monkeypatch, code):
    """Let another program measure; `say` says something."""
    head = "import json, os, sys, time\ndef say(**e): print(json.dumps(e), flush=True)\n"
    command = (sys.executable, "-S", "-c", head + textwrap.dedent(code))
    monkeypatch.setattr(watch_module, "_COMMAND", command)


def ask(**options):
    return watch_module.measure_apart(resolve({"matcher": "none", "ipc": 1, **options}))


def test_facts_stages_and_warnings_are_handed_on(monkeypatch, caplog):
    stand_in(
        monkeypatch,
        """
        head = json.loads(sys.stdin.buffer.readline())
        assert len(sys.stdin.buffer.read(head["bytes"])) == head["bytes"]
        say(stage="looking", advice={"condensing": ["less"]})
        say(log=["dcf_x", 30, "100 % odd"])
        say(facts={"a": 1})
        """,
    )
    stages = []
    facts = watch_module.measure_apart(resolve({"matcher": "none", "ipc": 1}), stages.append)
    assert facts == {"a": 1, "advice": {"condensing": ["less"]}}
    assert stages == ["looking"]
    assert "100 % odd" in caplog.text


@pytest.mark.parametrize(
    ("types", "kind"), [(["DataError", "DcfError"], dcf.DataError), (["TheirError", "DcfError"], dcf.DcfError)]
)
def test_an_error_of_the_process_is_raised_here(monkeypatch, types, kind):
    stand_in(monkeypatch, f"say(failed={{'types': {types!r}, 'message': 'no such folder'}})")
    with pytest.raises(kind, match=r"^no such folder$"):
        ask()


def test_a_crash_gives_one_line(monkeypatch):
    stand_in(monkeypatch, "sys.stderr.write('deep\\nlast\\n'); sys.stderr.flush(); os.abort()")
    with pytest.raises(dcf.RunError) as caught:
        ask()
    assert str(caught.value) == (
        "the process that measures was ended by SIGABRT while loading the data\n  its last words: last"
    )
    stand_in(monkeypatch, "sys.exit(3)")
    with pytest.raises(dcf.RunError, match="ended with status 3"):
        ask()


def test_a_process_that_the_system_ends_was_too_large(monkeypatch):
    stand_in(
        monkeypatch, "say(part='condensing', advice={'condensing': ['less']}); time.sleep(0.1); os.kill(os.getpid(), 9)"
    )
    with pytest.raises(DoesNotFitError, match="SIGKILL; stopped while condensing") as caught:
        ask()
    assert caught.value.advice == ("less",)


def test_a_shortage_is_a_refusal(monkeypatch):
    stand_in(
        monkeypatch,
        "say(part='evaluating', advice={'evaluating': ['--no-eval']})\n"
        "say(shortage={'needed': 2**31, 'room': 2**30, 'who': 'on the GPU'})",
    )
    with pytest.raises(DoesNotFitError) as caught:
        ask()
    assert str(caught.value) == (
        "this run does not fit: it needs more than 2.0 GiB of memory, there are 1.0 GiB "
        "(on the GPU; stopped while evaluating)\n  try --no-eval"
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says")
def test_a_greedy_process_is_ended_before_the_machine_is_full(monkeypatch):
    stand_in(
        monkeypatch,
        """
        say(pid=os.getpid())
        hoard = []
        while True:
            hoard.append(bytearray(b"x") * 2**21)
            time.sleep(0.002)
        """,
    )
    first, pids = 200 * MIB, []

    class Small(Machine):
        """A machine of 200 MiB."""

        def available(self):
            return first - (resident(pids[0]) or 0) if pids else first

    class Noting(watch_module._Watch):
        def __post_init__(self):
            pids.append(self.pid)
            super().__post_init__()

    monkeypatch.setattr(watch_module, "Machine", Small)
    monkeypatch.setattr(watch_module, "_Watch", Noting)
    with pytest.raises(DoesNotFitError, match="available here; stopped while loading") as caught:
        ask()
    assert 100 * MIB < caught.value.needed < first
    assert caught.value.room == pytest.approx(first, rel=0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_nothing_is_left_when_the_caller_is_interrupted(monkeypatch):
    stand_in(monkeypatch, "say(stage=str(os.getpid())); time.sleep(60)")
    pids = []

    def interrupt(text):
        pids.append(int(text))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_module.measure_apart(resolve({"matcher": "none", "ipc": 1}), interrupt)
    with pytest.raises(ProcessLookupError):  # neither running nor waiting to be collected
        os.kill(pids[0], 0)


def test_an_object_that_cannot_travel_is_refused():
    class Local(dcf.Matcher):
        """Of this function alone."""

    with pytest.raises(dcf.UsageError, match="give it as a spec"):
        ask(matcher=Local())


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_options_are_those_of_condense():
    commands = get_command(build()).commands

    def flags(name):
        return {option: (p.metavar, p.help, p.is_flag) for p in loaded(commands[name]).params for option in p.opts}

    ours, theirs = flags("estimate"), flags("condense")
    assert set(theirs) - set(ours) == {"--out", "--force", "--dry-run"}
    assert set(ours) - set(theirs) == {"--memory-limit"}
    assert all(theirs[flag] == kind for flag, kind in ours.items() if flag in theirs)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--memory-limit", "4X"], "--memory-limit 4X: expected a size above zero"),
        (["--matcher", "nope"], "no matcher named 'nope'"),
        (["--ipc", "0"], "--ipc expects"),
        (["--set", "x"], "--set x: expected key=value"),
        (["--out", "x"], "no such option: --out"),
    ],
)
def test_wrong_usage_is_said_at_once(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(watch_module, "measure_apart", None)
    assert main(["estimate", *arguments]) == 2
    assert says.lower() in capsys.readouterr().err.lower()


def test_nothing_of_it_needs_torch_here():
    code = "import dcf.estimate, dcf.cli.estimate, dcf.estimate.advice, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_the_table_says_all_of_it(monkeypatch, capsys):
    from dcf.cli.console import stdout

    stdout().print(estimate_table(an_estimate()))
    lines = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        *("what", "start, loading the data", "preparation", "10 iterations", "evaluation", "total"),
        *("memory at its peak", "stored", "a checkpoint"),
    ]


def test_the_command_refuses_and_still_shows_what_it_knows(monkeypatch, capsys):
    monkeypatch.setattr("dcf.estimate.measure_apart", lambda request, on_stage: an_estimate().to_json())
    arguments = ["-q", "estimate", "--matcher", "none", "--memory-limit", "299"]
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert "memory at its peak" in shown.out
    assert "try --class-chunk 5" in shown.err
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fits"] is False
    assert main(["-q", "estimate", "--matcher", "none"]) == 0
    shown = capsys.readouterr()
    assert "measured on 6 updates of 2 iterations" in shown.out
    assert shown.err == ""


# --- real runs ------------------------------------------------------------------------------------------------------

COMMON = [
    *("--data", "digits", "--network", "convnet:width=16", "--nets", "1", "--epochs", "20"),
    *("--baselines", "random", "--device", "cpu"),
]
#: Runs that take long enough to be told from the start of the program.
RUNS = {
    "dm": ["--matcher", "dm:batch_real=128", "--ipc", "10", "--iterations", "150"],
    "dc": ["--matcher", "dc:batch_real=64,match_steps=4,net_epochs=5", "--ipc", "10", "--iterations", "20"],
}
#: Runs a command and says at last how much memory it took.
RUNNER = """
import sys
from dcf.cli import main
from dcf.estimate.memory import peak_resident
code = main(sys.argv[1:])
print(peak_resident())
sys.exit(code)
"""


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=600,
        check=False,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_figures_are_those_of_the_real_run(name, tmp_path):
    tried = []
    for attempt in range(3):  # others use this machine, too
        done = command("-m", "dcf", "-q", "estimate", *RUNS[name], *COMMON, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        begin = time.perf_counter()
        real = command("-c", RUNNER, "-q", "condense", *RUNS[name], *COMMON, "--out", str(tmp_path / str(attempt)))
        seconds = time.perf_counter() - begin
        assert real.returncode == 0, real.stderr
        peak = int(real.stdout.split()[-1])
        tried.append((round(told["seconds"] / seconds, 2), round(told["peak_bytes"] / peak, 3)))
        if 0.5 < tried[-1][0] < 2 and 0.7 < tried[-1][1] < 1.3:
            break
    print(name, tried)
    assert 0.7 < tried[-1][1] < 1.3, tried
    if not 0.5 < tried[-1][0] < 2 and os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip(f"too much else runs here to compare times: {tried}")
    assert 0.5 < tried[-1][0] < 2, tried
    stored = json.loads((tmp_path / "0" / "report.json").read_text())["sets"][0]
    assert told["stored_bytes"] == stored.get("bytes", told["stored_bytes"])


@pytest.mark.slow
def test_a_run_above_its_limit_is_refused_with_advice(tmp_path):
    done = command("-m", "dcf", "-q", "estimate", *RUNS["dc"], *COMMON, "--memory-limit", "64MiB", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: this run does not fit: it needs" in done.stderr
    assert "there are 64.0 MiB (the limit that was given" in done.stderr
    assert "\n  try " in done.stderr
    assert "Traceback" not in done.stderr
    assert "memory at its peak" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_missing_data_are_a_data_error(tmp_path):
    done = command("-m", "dcf", "-q", "estimate", "--data", f"folder:path={tmp_path / 'none'}", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not exist" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_both_processes(tmp_path):
    arguments = [sys.executable, "-m", "dcf", "estimate", *RUNS["dc"], *COMMON]
    process = subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("measuring"):
            break
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert not Path(f"/proc/{child}").exists()


MATCHER = """
import time
import torch
import dcf

class Sleeper(dcf.Matcher):
    def updates(self, ctx):
        return 40

    def outer(self, ctx, it):
        for update in range(40):
            held = torch.ones(32 * 2**20)  # 128 MiB
            time.sleep(0.05 if update else 0.2)
            for chunk in ctx.chunks():
                yield dcf.Step(ctx.synthetic(chunk.classes).square().mean() * held[0], update=chunk.last)

class Greedy(Sleeper):
    def outer(self, ctx, it):
        torch.empty(2**50)
        yield from ()
"""


@pytest.mark.slow
def test_an_object_is_measured_as_a_spec_is(tmp_path, monkeypatch):
    (tmp_path / "sleeping.py").write_text(MATCHER)
    monkeypatch.syspath_prepend(str(tmp_path))
    sleeper = __import__("sleeping").Sleeper()
    stages = []
    found = estimate(
        matcher=sleeper, data="digits", ipc=1, iterations=3, device="cpu", evaluate=False, on_stage=stages.append
    )
    # 0.2 + 39 x 0.05 seconds, and what the steps themselves take.
    assert found.seconds_per_iteration > 2.15
    assert found.peaks["condensing"] - found.peaks["preparing"] > 64 * MIB
    assert found.evaluation == ()
    assert "measuring iterations" in stages
    with pytest.raises(DoesNotFitError, match="the limit"):
        estimate(
            matcher=sleeper, data="digits", ipc=1, iterations=1, device="cpu", evaluate=False, memory_limit="50MiB"
        )


@pytest.mark.slow
def test_what_no_machine_has_is_refused_with_advice(tmp_path, monkeypatch):
    (tmp_path / "greedily.py").write_text(MATCHER)
    monkeypatch.syspath_prepend(str(tmp_path))
    greedy = __import__("greedily").Greedy()
    with pytest.raises(DoesNotFitError, match="available here; stopped while condensing") as caught:
        estimate(matcher=greedy, data="digits", ipc=4, iterations=3, device="cpu")
    assert caught.value.needed > 2**52
    assert caught.value.estimate is None
    assert caught.value.advice[0].startswith("--class-chunk 5 (now 10)")
    assert "--ipc 2 (now 4): fewer images" in caught.value.advice
    assert caught.value.to_json()["fits"] is False
