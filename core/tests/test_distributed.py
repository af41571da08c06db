"""Several processes on one run: shares, sums, replicas, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import dcf
from dcf.distributed import ALONE, World, joined
from dcf.engine import Engine
from dcf.matcher import Matcher
from dcf.processes import local_rank, processes_asked_for, rank
from dcf.runtime import select_device
from dcf.testing import fake_context, fake_data
from dcf.types import Step


class Noisy(Matcher):
    """Pulls every image to noise that each draw has of its own; two updates an iteration."""

    def outer(self, ctx, it):
        every = torch.arange(len(ctx.param.view_class))
        for step in range(2):
            images = ctx.param.images(every)
            target = torch.randn(images.shape, generator=dcf.seeding.generator(ctx.seed, "noise", it, step))
            yield Step((images - target).square().sum(), log={"target": target.mean()})


class Forgetless(Noisy):
    """Keeps a tensor that it does not learn."""

    def state_dict(self):
        return {"memory": torch.zeros(3)}


class Sharded(Noisy):
    shards = True


class Uneven(Noisy):
    """Other draws have other numbers of steps."""

    def outer(self, ctx, it):
        steps = list(super().outer(ctx, it))
        yield from steps[: 1 if ctx.seed == 0 else 2]


def engine(matcher, replicas=1, world=ALONE, classes=2):
    ctx = fake_context(data=fake_data(classes=classes))
    ctx.world = world
    return Engine(ctx, matcher, lr=0.1, momentum=0.0, replicas=replicas)


@pytest.mark.parametrize(("items", "size"), [(10, 3), (2, 2), (7, 4), (1, 1)])
def test_shares_are_all_items_once_in_order(items, size):
    shares = [list(World(rank, size).share(range(items))) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_exchanged():
    tensor = torch.ones(2)
    ALONE.sum_([tensor])
    ALONE.wait()
    assert tensor.tolist() == [1, 1]
    assert (ALONE.gather(3), ALONE.from_first("x"), ALONE.any(False), ALONE.first) == ([3], "x", False, True)


def test_sum_in_order_is_that_of_a_loop_and_changes_no_part():
    parts = [[torch.full((2,), 0.1 * n)] for n in range(1, 4)]
    (total,) = ALONE.sum_in_order(parts)
    assert torch.equal(total, (parts[0][0] + parts[1][0]) + parts[2][0])
    (alone,) = ALONE.sum_in_order(parts[:1])
    alone.zero_()
    assert parts[0][0].tolist() == pytest.approx([0.1, 0.1])


def test_numbers_come_from_the_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (processes_asked_for(), rank(), local_rank()) == (1, 0, 0)
    monkeypatch.setenv("RANK", "5")
    assert rank() == 0, "a rank without a world is no rank"
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (processes_asked_for(), rank(), local_rank()) == (8, 5, 1)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert select_device("auto") == select_device("cuda:0") == torch.device("cuda:2")
    assert select_device("cpu") == torch.device("cpu")


def test_without_others_nothing_is_joined(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(torch.device("cpu")) as world:
        assert world is ALONE


# --- replicas -------------------------------------------------------------------------------------


def moved(matcher, replicas=1, seeds=None):
    """Images after one iteration of two updates; with `seeds`, the average over runs with these seeds."""
    if seeds is None:
        one = engine(matcher, replicas)
        one.iterate(0)
        return one.ctx.param.images(torch.arange(2)).detach()
    runs = []
    for seed in seeds:
        one = engine(matcher)
        one.ctx.seed = seed
        one.iterate(0)
        runs.append(one.ctx.param.images(torch.arange(2)).detach())
    return torch.stack(runs).mean(0)


def test_updates_are_averaged_over_replicas():
    # The objective is quadratic, so the average over runs with the draws of each is the run with averaged updates.
    ctx = fake_context()
    seeds = [ctx.replica(number).seed for number in range(3)]
    assert len(set(seeds)) == 3
    assert torch.allclose(moved(Noisy(), replicas=3), moved(Noisy(), seeds=seeds), atol=1e-6)


def test_one_replica_is_the_plain_run():
    ctx = fake_context()
    assert ctx.replica(0).seed == ctx.seed
    assert torch.equal(moved(Noisy(), replicas=1), moved(Noisy(), seeds=[ctx.seed]))


def test_loss_is_averaged_over_replicas():
    values = []
    for number in range(2):
        one = engine(Noisy())
        one.ctx.seed = one.ctx.replica(number).seed
        values.append(float(next(Noisy().outer(one.ctx, 0)).loss.detach()))
    both = engine(Noisy(), replicas=2)
    first = next(both._rounds(0))
    assert sum(float(step.loss.detach()) for step in first) / 2 == pytest.approx(sum(values) / 2)


def test_processes_divide_the_replicas():
    shares = [engine(Noisy(), replicas=3, world=World(number, 2)).views for number in range(2)]
    assert [len(part) for part in shares] == [1, 2]
    assert len({view.seed for part in shares for view in part}) == 3


def test_processes_divide_the_classes_of_a_matcher_that_sums_over_them():
    for number in range(2):
        one = engine(Sharded(), world=World(number, 2), classes=3)
        found = [int(c) for chunk in one.ctx.chunks() for c in chunk.classes]
        assert found == [[0], [1, 2]][number]
        assert (one.ctx.processes, len(one.views)) == (2, 1)


@pytest.mark.parametrize("matcher", [Sharded(), Noisy()])
def test_more_processes_than_work_are_refused(matcher):
    with pytest.raises(dcf.UsageError, match=r"3 processes divide .*start at most \d"):
        engine(matcher, replicas=1 if matcher.shards else 2, world=World(0, 3))


def test_matchers_that_remember_are_not_averaged():
    with pytest.raises(dcf.UsageError, match="remembers more"):
        engine(Forgetless(), replicas=2).prepare()
    engine(Forgetless(), replicas=1).prepare()


def test_draws_that_go_different_ways_are_a_mistake_of_the_matcher():
    with pytest.raises(RuntimeError, match="other steps for other draws"):
        engine(Uneven(), replicas=2).iterate(0)


# --- real processes -------------------------------------------------------------------------------

EXCHANGE = """
import torch
from dcf.distributed import joined
with joined(torch.device("cpu")) as world:
    mine = [torch.full((2,), 0.1 * (world.rank + 1)), torch.ones(1)]
    world.sum_(mine)
    assert torch.allclose(mine[0], torch.full((2,), 0.3)) and mine[1].item() == 2, mine
    parts = [[torch.tensor([0.1 * n])] for n in world.share(range(1, 8))]
    (total,) = world.sum_in_order(parts)
    wanted = torch.zeros(1)
    for n in range(1, 8):
        wanted = wanted + torch.tensor([0.1 * n])
    assert torch.equal(total, wanted), (total, wanted)
    assert world.gather(world.rank) == [0, 1] and world.from_first(world.rank) == 0
    assert world.any(world.rank == 1) and not world.any(False)
    world.wait()
"""


@pytest.mark.slow
def test_two_processes_exchange():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [*command, sys.executable, "-c", EXCHANGE], capture_output=True, text=True, timeout=110, env=environ
    )
    assert done.returncode == 0, done.stderr
