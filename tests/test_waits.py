"""What happens within an iteration on a GPU, seen without one: no wait for the device, no loop over classes, one graph.

Where there is a GPU, the same iterations run on it, and waits are errors there.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests.stand_in import CUDA, Card, Far
from torch.fx.experimental.proxy_tensor import make_fx

from dcf import compiled
from dcf.compiled import _kernels
from dcf.matching import class_embedding_means, class_gradients, gradient_distance
from dcf.networks.base import NetworkState
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.runconfig import RunConfig
from dcf.runtime import precision_of
from dcf.schedule import Schedule
from dcf.sending import send
from dcf.session import Session
from dcf.testing import fake_data, fake_spec
from dcf.together import Learner, train_together
from dcf.training import shuffled, train
from dcf.types import Batch
from dcf_idc.distance import block_means

MATCHERS = {
    "dm": {"matcher": "dm:batch_real=4"},
    "dc": {"matcher": "dc:batch_real=4,match_steps=2,net_epochs=1", "augment": "none"},
    "dsa": {"matcher": "dc:batch_real=4,match_steps=2,net_epochs=1"},
    "dcc": {"matcher": "dcc:batch_real=4,match_steps=2,net_epochs=1,outer_warmup=0,inner_warmup=0"},
    "mtt": {"matcher": "mtt:experts=1,train_epochs=1,max_start_epoch=1,expert_epochs=1,syn_steps=2"},
    "idc": {
        "matcher": "idc:inner_loop=2,n_data=8,batch_real=4,batch_train=4", "param": "multiformation", "augment": "idc",
    },
    "low-rank": {"matcher": "dc:batch_real=4,match_steps=2,net_epochs=1", "param": "lowrank:r=2"},
}  # fmt: skip
#: Waits of an iteration that stay: the orders of student batches are put together on the host before any work is begun,
#: and whether an update is made depends on the loss.
ALLOWED = {"mtt": ["cpu() at dcf_mtt/matcher.py", "_local_scalar_dense at dcf/engine.py"]}

#: Operations that only look at a tensor another way.
VIEWS = {
    "view", "_unsafe_view", "detach", "permute", "unsqueeze", "squeeze", "unbind", "transpose", "t", "expand", "split",
    "split_with_sizes", "select", "slice", "as_strided", "alias",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def session(name, device, classes=3, **changes):
    common = {"data": "digits", "augment": "dsa", "init": "noise", "network": "convnet:width=4,depth=2", "ipc": 2}
    run = {"iterations": 3, "lr": 0.1, "momentum": 0.5, "device": "cpu", "protocol": "dcf-std@1"}
    config = RunConfig(**{**common, **run, **MATCHERS[name], "class_chunk": classes, **changes})
    made = Session(config, fake_data(classes=classes, shape=(3, 8, 8), train=8).to(device))
    made.engine.prepare()
    made.initialise()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", MATCHERS)
def test_no_iteration_waits_for_the_device_and_results_are_those_of_a_cpu(name):
    wanted = session(name, "cpu").engine.iterate(0).read()[0]
    with Card() as card:
        far = session(name, CUDA)
        assert far.ctx.device == CUDA
        with card.watched():
            tally = far.engine.iterate(0)
        assert [text for text in card.waits if not any(text.startswith(a) for a in ALLOWED.get(name, []))] == []
        assert tally.read()[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MATCHERS)
def test_captured_iterations_do_not_wait_either_and_launch_less(name, monkeypatch):
    monkeypatch.setattr(_kernels, "_MADE", {})
    near = session(name, "cpu").engine
    wanted = [near.iterate(it).read()[0] for it in range(2)]
    with Card() as card:
        plain, far = session(name, CUDA).engine, session(name, CUDA).engine
        plain.iterate(0)
        with card.watched():
            plain.iterate(1)
        before = sum(count for operation, count in card.operations.items() if operation not in VIEWS)
        with compiled.allowed("strict", CUDA), compiled.expected(1000):
            first = far.iterate(0).read()[0]
            with card.watched():
                tally = far.iterate(1)
        after = sum(count for operation, count in card.operations.items() if operation not in VIEWS)
        assert [text for text in card.waits if not any(text.startswith(a) for a in ALLOWED.get(name, []))] == []
        assert [first, tally.read()[0]] == pytest.approx(wanted, rel=1e-4)
        assert card.launches >= 2
        assert after + card.launches < before


def test_the_log_finds_what_waits():
    with Card() as card, card.watched():
        far = torch.ones(3).to("cuda", non_blocking=True)
        assert not card.waits
        for wait in (
            lambda: float(far.sum()), lambda: far.cpu(), lambda: torch.nonzero(far), lambda: far[far > 0],
            lambda: torch.ones(3).to("cuda"), lambda: torch.tensor([1.0], device="cuda"), lambda: far.tolist(),
            lambda: far[torch.tensor([0])], lambda: bool((far > 0).any()), lambda: torch.unique(far),
        ):  # fmt: skip
            card.waits.clear()
            wait()
            assert card.waits.total() >= 1


def test_what_is_sent_is_pinned_where_it_is_large():
    with Card() as card, card.watched():
        small, large = torch.ones(1 << 14), torch.ones((1 << 14) + 1)
        assert [type(send(t, CUDA)) for t in (small, large)] == [Far, Far]
        assert [t.numel() for t in card.pinned] == [large.numel()]
        assert not card.waits
        large.clone().to(CUDA, non_blocking=True)
        assert card.waits.total() == 1
    assert send(large, "cpu") is large


@pytest.mark.parametrize("name", ["dm", "dc"])
def test_operations_do_not_grow_with_classes(name, monkeypatch):
    monkeypatch.setitem(MATCHERS, name, {**MATCHERS[name], "augment": "none"})
    counts = []
    for classes in (2, 8):
        with Card() as card:
            made = session(name, CUDA, classes)
            made.engine.iterate(0)
            with card.watched():
                # The training between two steps visits more images where there are more classes: matching alone.
                steps = made.matcher.outer(made.ctx, 0)
                made.ctx.begin(0)
                next(steps).loss.backward()
            counts.append(card.operations.total())
    assert counts[0] == counts[1]


def gradients(classes, strategy):
    """Operations of the gradients of some classes, of those in the images included."""
    net = ConvNetFactory(ConvNetConfig(width=4, depth=2)).create(fake_spec(10, (3, 8, 8)), 0)
    with Card() as card:
        net.params = {k: Far(p.detach()).requires_grad_() for k, p in net.params.items()}
        images = Far(torch.randn(classes, 2, 3, 8, 8)).requires_grad_()
        labels = Far(torch.arange(classes)[:, None].expand(-1, 2).contiguous())
        with card.watched():
            found = class_gradients(net, images, labels, create_graph=True, strategy=strategy)
            torch.autograd.grad(sum(g.square().sum() for g in found), images)
        return card.operations.total()


def test_classes_in_one_call_take_as_many_operations_as_one_class():
    assert gradients(2, "vmap") == gradients(8, "vmap")
    loop = [gradients(n, "loop") for n in (2, 4, 8)]
    assert loop[2] - loop[1] == 2 * (loop[1] - loop[0]) > 0
    assert gradients(8, "vmap") < loop[2] / 4


def trainings(networks, together, captured=False):
    """Launches of two epochs, of two steps each, of some networks, without what only looks at a tensor."""
    schedule, factory = Schedule.constant(0.1, 2), ConvNetFactory(ConvNetConfig(width=4, depth=2))
    nets = [factory.create(fake_spec(3, (3, 8, 8)), 0, number) for number in range(networks)]
    with Card() as card:
        x, y = Far(torch.randn(8, 3, 8, 8)), Far(torch.arange(8) % 3)

        def fetch(index):
            return Batch(x[index], y[index])

        for net in nets:
            net.params = {k: Far(p.detach()).requires_grad_() for k, p in net.params.items()}

        def train_all():
            made = [Learner(net, fetch, shuffled(8, torch.Generator().manual_seed(0), CUDA)) for net in nets]
            if together:
                train_together(made, schedule, batch=4, momentum=0.9)
            for one in () if together else made:
                train(one.state, one.fetch, one.order, schedule, batch=4, momentum=0.9)

        with compiled.allowed("strict", CUDA) if captured else nullcontext(), compiled.expected(1000):
            if captured:
                train_all()
            with card.watched():
                train_all()
        assert card.waits.total() == 0
        return card.launches + sum(count for name, count in card.operations.items() if name not in VIEWS)


def test_an_optimiser_moves_all_weights_in_one_operation():
    def moves(depth):
        net = ConvNetFactory(ConvNetConfig(width=4, depth=depth)).create(fake_spec(3, (3, 8, 8)), 0)
        with Card() as card:
            net.params = {k: Far(p.detach()).requires_grad_() for k, p in net.params.items()}
            x, y = Far(torch.randn(4, 3, 8, 8)), Far(torch.arange(4) % 3)
            with card.watched():
                order = shuffled(4, torch.Generator().manual_seed(0), CUDA)
                train(net, lambda index: Batch(x[index], y[index]), order, Schedule.constant(0.1, 1))
            return sum(count for name, count in card.operations.items() if name.startswith(("_foreach_add", "add_")))

    assert moves(1) == moves(2)


def test_networks_of_an_evaluation_share_their_operations():
    alone, two, eight = trainings(1, together=False), trainings(2, together=True), trainings(8, together=True)
    assert trainings(2, together=False) == 2 * alone
    # What each network adds: its order of every epoch, and its weights at both ends.
    assert (eight - two) / 6 < alone / 8
    assert eight < 8 * alone / 2
    assert trainings(8, together=True, captured=True) < 8 * alone / 5


def test_blocks_of_all_classes_are_one_pass():
    counts = []
    for classes in (2, 8):
        with Card() as card:
            made = session("idc", CUDA, classes, matcher="idc:match=feat,inner_loop=1,n_data=0,batch_real=4")
            made.ctx.begin(0)
            with card.watched():
                block_means(made.ctx.network(), made.ctx.real(made.ctx.all_classes().classes, 4), [0, 1])
            counts.append(card.operations.total())
    assert counts[0] == counts[1]


def test_a_matching_step_is_one_graph():
    net = ConvNetFactory(ConvNetConfig(width=4, depth=2)).create(fake_spec(3, (3, 8, 8)), 0)
    labels = torch.arange(3)[:, None].expand(-1, 2)

    def step(params, real, syn):
        state = NetworkState(net.module)
        state.params = params
        wanted = class_gradients(state, real, labels, strategy="vmap")
        found = class_gradients(state, syn, labels, create_graph=True, strategy="vmap")
        means = (class_embedding_means(state, real) - class_embedding_means(state, syn)).square().sum()
        loss = gradient_distance(found, [g.detach() for g in wanted]).sum() + means
        return (loss, *torch.autograd.grad(loss, syn))

    draw = torch.Generator().manual_seed(0)
    real, syn = (torch.randn(3, 2, 3, 8, 8, generator=draw) for _ in range(2))
    given = (dict(net.params), real, syn.requires_grad_())
    graph = make_fx(step)(*given)  # fails where the step depends on values
    assert not [node for node in graph.graph.nodes if "scalar_dense" in str(node.target)]
    other = (dict(net.params), real.flip(0), (2 * syn.detach()).requires_grad_())
    for captured, plain in zip(graph(*other), step(*other), strict=True):
        assert torch.allclose(captured, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", [name for name in MATCHERS if name not in ALLOWED])
def test_a_gpu_is_not_waited_for(name, captured):
    near = session(name, "cpu").engine
    wanted = [near.iterate(it).read()[0] for it in range(2)]
    made = session(name, "cuda")
    allowed = compiled.allowed("strict", made.ctx.device) if captured else nullcontext()
    with precision_of("strict"), allowed, compiled.expected(1000):
        first = made.engine.iterate(0).read()[0]
        torch.cuda.set_sync_debug_mode("error")
        try:
            tally = made.engine.iterate(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [first, tally.read()[0]] == pytest.approx(wanted, rel=1e-3)
