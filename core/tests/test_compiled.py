"""Compiled kernels: when there is one, that it computes the same, and what happens where there can be none."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import dcf
from dcf import compiled
from dcf.compiled import _blocks, _folding, _kernels, _rules
from dcf.compiled._lower import Lowered, RoundedMaps
from dcf.compiled._rules import Kind, multiplications, worthwhile
from dcf.data.real import Split
from dcf.matching import class_embedding_means, class_gradients, gradient_distance
from dcf.networks.base import NetworkState
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.layers import Pool
from dcf.networks.options import ConvNetConfig
from dcf.seeding import generator
from dcf.side_by_side import side_by_side
from dcf.testing import fake_spec
from dcf.testing.fakes import TinyFactory
from dcf.training import Schedule, evaluate_accuracy, train
from dcf.types import Batch
from dcf.unroll import _training, stateless, train_on

SPEC = fake_spec(classes=3)
CPU = torch.device("cpu")


def net_of(**options):
    return ConvNetFactory(ConvNetConfig(width=8, depth=2, **options)).create(SPEC, 0, "net")


def images(n, *stream):
    return torch.randn(n, *SPEC.shape, generator=generator(0, "images", *stream))


@pytest.fixture
def anywhere(monkeypatch):
    """A processor that suits, and kernels that pay however little there is to do; norms are left to the compiler."""
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "bf16")
    monkeypatch.setattr(compiled, "worthwhile", lambda *_: True)
    monkeypatch.setattr(_kernels, "_MADE", {})
    monkeypatch.setattr(_kernels, "_TOLD", set())
    monkeypatch.setattr(_blocks, "available", lambda channels: False)


@pytest.fixture
def uncompiled(anywhere, monkeypatch):
    """Kernels that are traced and lowered, but not compiled."""
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: graph)


@pytest.fixture
def exact(uncompiled, monkeypatch):
    """Kernels that round nothing, so that what is around them can be held to fp32."""
    monkeypatch.setattr(_kernels, "Lowered", lambda rounded: contextlib.nullcontext())


@pytest.fixture(params=["default", "strict"])
def precise(request, uncompiled, monkeypatch):
    """A precision in which kernels are to agree with fp32: strict, or any where nothing is rounded on purpose."""
    if request.param == "default":
        monkeypatch.setattr(_kernels, "Lowered", lambda rounded: contextlib.nullcontext())
    return request.param


# --- whether there is one ---------------------------------------------------------------------------


def test_without_permission_there_is_none(anywhere):
    net, x = net_of(), images(4)
    assert compiled.loss_gradients(net, x, torch.zeros(4, dtype=torch.long)) is None


def test_other_devices_and_processors_have_none(monkeypatch, uncompiled):
    y = torch.zeros(4, dtype=torch.long)
    with compiled.allowed("default", torch.device("cuda")):
        assert compiled.loss_gradients(net_of(), images(4), y) is None
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "other")
    with compiled.allowed("default", CPU):
        assert compiled.loss_gradients(net_of(), images(4), y) is None


def test_a_processor_without_wide_registers_is_told_once_and_only_where_it_matters(monkeypatch, uncompiled, caplog):
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "other")
    compiled._tell_of_processor.cache_clear()
    y = torch.zeros(4, dtype=torch.long)
    with compiled.allowed("default", CPU), caplog.at_level(logging.INFO):
        monkeypatch.setattr(compiled, "worthwhile", lambda *_: False)
        assert compiled.loss_gradients(net_of(), images(4), y) is None
        assert not caplog.records
        monkeypatch.setattr(compiled, "worthwhile", lambda *_: True)
        assert [compiled.loss_gradients(net_of(), images(4), y) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "AMX" in caplog.text
    compiled._tell_of_processor.cache_clear()


def test_work_is_counted_as_published():
    spec = SimpleNamespace(channels=3, height=32, width=32, shape=(3, 32, 32), num_classes=10)
    state = NetworkState(ConvNetFactory().build(spec))
    # 101.5 million operations a forward pass of the standard network, of which half are multiplications.
    assert 2 * multiplications(state, (3, 32, 32)) == pytest.approx(101.5e6, rel=0.02)


@pytest.mark.parametrize("strict", [False, True])
def test_what_pays_follows_the_number_of_calls(strict):
    net, x = net_of(), images(100)
    each = 100 * multiplications(net, SPEC.shape)
    enough = int(Kind.EMBED.least(strict) / each) + 1
    assert worthwhile(Kind.EMBED, net, x, enough, strict)
    assert not worthwhile(Kind.EMBED, net, x, enough - 1, strict)


def test_a_kernel_in_fp32_saves_less_so_there_must_be_more_to_do():
    assert all(kind.least(strict=True) >= 3 * kind.least(strict=False) for kind in Kind)


def test_expected_repetitions_multiply_the_calls(monkeypatch, uncompiled):
    asked = []
    monkeypatch.setattr(compiled, "worthwhile", lambda kind, net, x, calls, strict: asked.append(calls) or False)
    with compiled.allowed("default", CPU), compiled.expected(7), torch.no_grad():
        compiled.embed(net_of(), images(2), calls=3)
        with compiled.expected(2):
            compiled.embed(net_of(), images(2), calls=3)
    assert asked == [21, 42]


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(net_of(norm="batch"), id="state"),
        pytest.param(NetworkState(net_of().module), id="unknown-origin"),
    ],
)
def test_networks_that_do_not_suit_have_none(net, uncompiled):
    with compiled.allowed("default", CPU):
        assert compiled.loss_gradients(net, images(4), torch.zeros(4, dtype=torch.long)) is None


def test_networks_that_are_watched_have_none():
    net, seen = net_of(), []
    net.module.conv1.register_forward_hook(lambda *_: seen.append(1))
    assert not worthwhile(Kind.GRADIENT, net, images(4), 10**9)
    assert seen == [], "counting must not be watched either"


class Random(TinyFactory):
    def build(self, spec):
        net = super().build(spec)
        net.conv = nn.Sequential(net.conv, nn.Dropout())
        return net


def test_networks_that_draw_have_none(uncompiled):
    with compiled.allowed("default", CPU):
        net = Random().create(SPEC, 0, "net")
        assert compiled.loss_gradients(net, images(4), torch.zeros(4, dtype=torch.long)) is None


def test_a_compiler_that_fails_is_told_once_and_the_run_goes_on(anywhere, monkeypatch, caplog):
    def broken(graph, dynamic):
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with compiled.allowed("default", CPU), caplog.at_level(logging.WARNING):
        for n in (4, 4, 5):
            assert compiled.loss_gradients(net_of(), images(n), torch.zeros(n, dtype=torch.long)) is None
    assert len(_kernels._MADE) == 2, "two kernels could not be made"
    assert [r.message for r in caplog.records] == [
        "no compiled kernels: RuntimeError: no compiler here; computing the plain way"
    ]


def test_a_kernel_that_computes_something_else_is_not_used(anywhere, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: lambda *t: [2 * r for r in graph(*t)])
    with compiled.allowed("default", CPU), caplog.at_level(logging.WARNING):
        assert compiled.loss_gradients(net_of(), images(4), torch.zeros(4, dtype=torch.long)) is None
    assert "is off by" in caplog.text


def test_a_kernel_in_fp32_is_held_to_less(anywhere, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: lambda *t: [1.05 * r for r in graph(*t)])
    y = torch.zeros(4, dtype=torch.long)
    with compiled.allowed("default", CPU):
        assert compiled.loss_gradients(net_of(), images(4), y) is not None
    with compiled.allowed("strict", CPU), caplog.at_level(logging.WARNING):
        assert compiled.loss_gradients(net_of(), images(4), y) is None
    assert "is off by 0.05" in caplog.text


def test_processor_is_looked_up_without_failing(monkeypatch):
    _rules.processor.cache_clear()
    monkeypatch.setattr(_rules.platform, "machine", lambda: "riscv64")
    assert _rules.processor() == "other"
    _rules.processor.cache_clear()


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("avx2 avx512f amx_bf16", "bf16"),
        ("avx2 avx512f avx512_bf16", "fp32"),
        ("avx2 avx512f avx512_vnni", "fp32"),
        ("sse4_2 avx2", "fp32"),
        ("sse4_2 avx", "other"),
    ],
)
def test_processors_are_told_apart(flags, has, monkeypatch):
    monkeypatch.setattr(_rules.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(_rules.Path, "read_text", lambda self, encoding: f"flags : {flags}\n")
    assert _rules.processor.__wrapped__() == has


@pytest.mark.parametrize(("precision", "rounded", "strict"), [("default", "blocks", False), ("strict", "none", True)])
def test_without_matrix_units_kernels_are_in_fp32_and_that_is_said_once(
    precision, rounded, strict, anywhere, monkeypatch, caplog
):
    made = []
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "fp32")
    monkeypatch.setattr(compiled, "kernel_for", lambda kind, rounded, *_: made.append(rounded) or [1, 2, 3])
    asked = []
    monkeypatch.setattr(compiled, "worthwhile", lambda *given: asked.append(given[-1]) or True)
    compiled._tell_of_processor.cache_clear()
    with compiled.allowed(precision, CPU), compiled.noticed() as usage, caplog.at_level(logging.INFO):
        for _ in range(2):
            compiled.loss_gradients(net_of(), images(4), torch.zeros(4, dtype=torch.long))
    assert made == [rounded] * 2
    assert asked == [strict] * 2, "in tiles a kernel saves as much as in bf16"
    assert not usage.kernels
    said = ["this processor has no matrix units for bf16 (AMX): kernels compute in fp32"]
    assert [r.message for r in caplog.records if "AMX" in r.message] == (said if precision == "default" else [])
    compiled._tell_of_processor.cache_clear()


# --- what it computes -------------------------------------------------------------------------------


def close(found, wanted, tolerance=0.05):
    apart = torch.cat([(a.detach() - b.detach()).flatten() for a, b in zip(found, wanted, strict=True)]).norm()
    return float(apart / torch.cat([b.detach().flatten() for b in wanted]).norm()) < tolerance


@pytest.mark.parametrize("relu", [torch.relu, F.relu, nn.ReLU(), torch.Tensor.relu])
def test_relus_are_products_with_a_mask_of_numbers(relu):
    x = torch.tensor([-2.0, 0.0, 3.0, float("nan")], requires_grad=True)

    def both(x):
        found = relu(x)
        return (found, *torch.autograd.grad(found[:3].square().sum(), [x]))

    with Lowered():
        found = both(x)
        graph = make_fx(both)(x).graph
    for a, b in zip(found, both(x), strict=True):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    assert not any("relu" in str(node.target) or "threshold" in str(node.target) for node in graph.nodes)


def test_with_strict_precision_nothing_is_rounded():
    x, weight, bias = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)

    def gradient():
        leaf = x.clone().requires_grad_()
        found = F.conv2d(leaf, weight, bias, padding=1)
        return [found.detach(), *torch.autograd.grad(found.square().sum(), leaf)]

    wanted = gradient()
    with Lowered("none"):
        found = gradient()
    assert all(close([a], [b], 1e-6) for a, b in zip(found, wanted, strict=True))
    with Lowered("derivatives"):
        value, derivative = gradient()
    assert close([value], [wanted[0]], 1e-6)
    assert not close([derivative], [wanted[1]], 1e-4)


def test_pooling_is_the_mean_of_four():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    with Lowered():
        found = Pool("avg")(x)
    assert torch.allclose(found, F.avg_pool2d(x, 2), atol=1e-12)


def test_maps_between_convolutions_are_rounded_for_a_gpu_and_nothing_else():
    net, seen = net_of(), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func.__name__ in ("conv2d", "group_norm", "relu", "linear"):
                seen.append((func.__name__, args[0].dtype, found.dtype))
            return found

    # The inner one sees what the outer one makes of it.
    with Watch(), RoundedMaps():
        found = net(images(4))
    low, wide = torch.bfloat16, torch.float32
    assert set(seen) == {
        ("conv2d", low, low), ("group_norm", low, low), ("relu", low, low), ("linear", wide, wide),
    }  # fmt: skip
    assert found.dtype == wide
    assert close([found], [net(images(4))], 0.02)


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (F.relu, True), (nn.ReLU(), True), (nn.LeakyReLU(), True), (nn.SiLU(), True), (nn.AvgPool2d(2), True),
        (Pool("avg"), True), (nn.Sigmoid(), False), (nn.LayerNorm(6), False), (lambda x: x.flatten(1), False),
    ],
)  # fmt: skip
def test_layers_that_take_maps_in_bf16_get_them_and_others_do_not(layer, kept):
    x = torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)
    with RoundedMaps():
        found = layer(x)
        assert (x.dtype, x.shape[0]) == (torch.bfloat16, 2)
    assert found.dtype == (torch.bfloat16 if kept else torch.float32)


def test_only_convolutions_are_rounded():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with Lowered():
        rounded, linear = F.conv2d(x, weight, padding=1), F.linear(x.flatten(1), torch.ones(1, 192))
    wanted = F.conv2d(x, weight, padding=1)
    assert rounded.dtype == torch.float32
    assert 1e-4 < float((rounded - wanted).norm() / wanted.norm()) < 1e-2
    assert torch.equal(linear, F.linear(x.flatten(1), torch.ones(1, 192)))


@pytest.mark.parametrize("rounded", ["all", "none"])
@pytest.mark.parametrize(("channels", "apart"), [(1, True), (3, False)])
def test_the_bias_of_grey_images_is_added_apart(channels, apart, rounded):
    x, weight = torch.randn(2, channels, 8, 8), torch.randn(4, channels, 3, 3, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)

    def gradients(weight, bias):
        with Lowered(rounded):
            found = F.conv2d(x, weight, bias, padding=1)
        return (found, *torch.autograd.grad(found.square().sum(), (weight, bias)))

    wanted = F.conv2d(x, weight, bias, padding=1)
    wanted = (wanted, *torch.autograd.grad(wanted.square().sum(), (weight, bias)))
    assert all(close([a], [b], 0.02) for a, b in zip(gradients(weight, bias), wanted, strict=True))
    graph = make_fx(gradients)(weight, bias).graph
    (mask,) = [node.args[-1] for node in graph.nodes if "convolution_backward" in str(node.target)]
    assert mask[2] is not apart


@pytest.mark.parametrize("soft", [False, True])
def test_training_and_matching_use_kernels_and_agree(precise, soft):
    net = net_of()
    x = torch.stack([images(6, c) for c in range(3)])
    y = torch.arange(3)[:, None].expand(-1, 6)
    y = F.one_hot(y, 3) * 0.8 + 0.1 if soft else y
    wanted = class_gradients(net, x, y)
    means = class_embedding_means(net, x)
    with compiled.allowed(precise, CPU):
        assert close(class_gradients(net, x, y), wanted, 1e-5)
        with torch.no_grad():
            assert close([class_embedding_means(net, x)], [means], 1e-5)
    assert len(_kernels._MADE) == 2
    assert all(_kernels._MADE.values())


def test_threads_that_ask_at_once_make_one_kernel(uncompiled, monkeypatch):
    make, made = _kernels._make, []

    def slowly(*args):
        made.append(args[0])
        time.sleep(0.05)
        return make(*args)

    monkeypatch.setattr(_kernels, "_make", slowly)
    net, data = net_of(), (images(6), torch.arange(6) % 3)
    with compiled.allowed("strict", CPU):
        found = side_by_side([lambda: compiled.loss_gradients(net, *data)] * 3)
    assert made == [Kind.GRADIENT]
    assert all(one is not None and torch.equal(one.logits, found[0].logits) for one in found)


def matched(net, x, y, wanted):
    """What matching needs: the gradients of some images, and what a distance of them comes to in images and labels."""
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_(y.is_floating_point())]
    found = class_gradients(net, *leaves, create_graph=True)
    loss = gradient_distance(found, wanted).sum()
    return [g.detach() for g in found], torch.autograd.grad(loss, [t for t in leaves if t.requires_grad])


@pytest.mark.parametrize("soft", [False, True])
def test_gradients_that_are_differentiated_further_have_a_kernel(precise, soft):
    net, x = net_of(), torch.stack([images(6, c) for c in range(3)])
    y = torch.arange(3)[:, None].expand(-1, 6)
    y = F.one_hot(y, 3) * 0.8 + 0.1 if soft else y
    target = class_gradients(net, torch.stack([images(8, c) for c in range(3)]), torch.arange(3)[:, None].expand(-1, 8))
    wanted = matched(net, x, y, target)
    with compiled.allowed(precise, CPU):
        found = matched(net, x, y, target)
    assert [key[0] for key, kernel in _kernels._MADE.items() if kernel] == [Kind.MATCHED]
    assert all(close(some, others, 1e-4) for some, others in zip(found, wanted, strict=True))


class Detaching(TinyFactory):
    """Makes networks that hold a part of themselves constant."""

    def build(self, spec):
        net = super().build(spec)
        forward = net.features
        net.features = lambda x: forward(x) + forward(x).detach()
        return net


@pytest.mark.parametrize("precision", ["default", "strict"])
def test_what_a_network_detaches_itself_stays_detached(precision, uncompiled):
    net, x = Detaching().create(SPEC, 0), torch.stack([images(6, c) for c in range(3)])
    y = torch.arange(3)[:, None].expand(-1, 6)
    target = class_gradients(net, torch.stack([images(8, c) for c in range(3)]), torch.arange(3)[:, None].expand(-1, 8))
    wanted = matched(net, x, y, target)
    with compiled.allowed(precision, CPU):
        found = matched(net, x, y, target)
    assert [key[0] for key, kernel in _kernels._MADE.items() if kernel] == [Kind.MATCHED]
    tolerance = 0.02 if precision == "default" else 1e-4
    assert all(close(some, others, tolerance) for some, others in zip(found, wanted, strict=True))


def test_what_autograd_detached_is_attached_again():
    """A version of torch that detaches what it saves writes the first of two factors so."""
    graph = symbolic_trace(lambda x: torch.ops.aten.mul(torch.ops.aten.detach.default(x), x))
    _folding.attach(graph)
    graph.recompile()
    x = torch.full((1,), 3.0, requires_grad=True)
    assert float(torch.autograd.grad(graph(x).sum(), x)[0]) == 6.0


def test_a_kernel_whose_image_gradient_alone_is_wrong_is_not_used(exact, monkeypatch, caplog):
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return 0.5 * g

    whole = _kernels._compiled

    def halved(plain, inputs, rounded, differentiable):
        kernel = whole(plain, inputs, rounded, differentiable)
        return lambda x, *rest: kernel(Cut.apply(x), *rest)

    monkeypatch.setattr(_kernels, "_compiled", halved)
    y = torch.zeros(1, 6, dtype=torch.long)
    with compiled.allowed("default", CPU), caplog.at_level(logging.WARNING):
        class_gradients(net_of(), images(6)[None].requires_grad_(), y, create_graph=True)
    assert "its derivative by 0.5" in caplog.text
    assert list(_kernels._MADE.values()) == [None]


def test_a_kernel_whose_gradient_in_weights_alone_is_wrong_is_not_used(exact, monkeypatch, caplog):
    whole = _kernels._compiled

    def without(plain, inputs, rounded, differentiable):
        kernel = whole(plain, inputs, rounded, differentiable)
        return lambda x, y, first, *rest: kernel(x, y, first.detach().requires_grad_(), *rest)

    monkeypatch.setattr(_kernels, "_compiled", without)
    net, x = net_of(), images(6).requires_grad_()
    with compiled.allowed("default", CPU), caplog.at_level(logging.WARNING):
        found = compiled.recorded_gradients(net, net.parameters(), x, torch.zeros(6, dtype=torch.long))
    assert found is None
    assert "its derivative by" in caplog.text


def test_without_images_to_learn_gradients_are_computed_the_plain_way(uncompiled):
    y = torch.full((1, 6, 3), 1 / 3, requires_grad=True)
    with compiled.allowed("default", CPU):
        found = class_gradients(net_of(), images(6)[None], y, create_graph=True)
    assert _kernels._MADE == {}
    assert torch.autograd.grad(found[0].sum(), y)[0].isfinite().all()


def test_images_are_differentiated_through_a_forward_pass_that_is_not_rounded(uncompiled, monkeypatch):
    """Else ReLUs near their kinks flip, which turns the gradient by much more than rounding does."""
    net, x, y = net_of(), images(16)[None], torch.zeros(1, 16, dtype=torch.long)
    target = class_gradients(net, images(16, "real")[None], y)
    _, (wanted,) = matched(net, x, y, target)

    def error():
        monkeypatch.setattr(_kernels, "_MADE", {})
        with compiled.allowed("default", CPU):
            _, (found,) = matched(net, x, y, target)
        return float((found - wanted).norm() / wanted.norm())

    careful = error()
    monkeypatch.setattr(Kind, "rounded", lambda kind, strict, device: "all")
    assert 1e-5 < careful < 0.01, "derivatives of convolutions are rounded"
    assert error() > 3 * careful


def test_embeddings_of_images_that_are_learned_have_a_kernel_with_the_images_gradient(precise):
    net, x = net_of(), torch.stack([images(6, c) for c in range(3)])

    def gradient():
        leaf = x.clone().requires_grad_()
        means = class_embedding_means(net, leaf)
        return means.detach(), torch.autograd.grad(means.square().sum(), leaf)[0]

    wanted = gradient()
    with compiled.allowed(precise, CPU):
        found = gradient()
        assert compiled.embed(net, x.flatten(0, 1)) is None, "whose gradient is asked for, if not that of images?"
    assert [key[0] for key, kernel in _kernels._MADE.items() if kernel] == [Kind.FEATURES]
    assert all(close([a], [b], 1e-5) for a, b in zip(found, wanted, strict=True))


def trained():
    net, x, y = net_of(), images(12), torch.arange(12) % 3
    result = train(net, lambda i: Batch(x[i], y[i]), lambda _: torch.arange(12), Schedule.constant(0.05, 3), tally=True)
    return net, result


def test_use_of_kernels_is_noticed_where_they_computed_something(exact):
    with compiled.noticed() as outer:
        with compiled.noticed() as plain:
            trained()
        with compiled.allowed("default", CPU), compiled.noticed() as used:
            trained()
        with compiled.noticed(used):
            trained()
        with compiled.allowed("strict", CPU), compiled.noticed() as strict:
            trained()
    assert (plain.kernels, used.kernels, outer.kernels) == (False, True, True)
    assert {key[0] for key in _kernels._MADE if key[1] == "none"} == {Kind.GRADIENT}
    assert not strict.kernels, "in fp32 nothing is to be told"


def test_rows_and_files_say_in_which_precision_networks_were_trained(exact):
    how = {
        "data": "digits",
        "matcher": "none",
        "iterations": 0,
        "ipc": 1,
        "networks": 1,
        "baselines": ["random"],
        "device": "cpu",
    }
    quick = {"protocol.epochs": 1, "protocol.steps_min": 0}
    fast, slow = (dcf.condense(**how, precision=mode, overrides=quick) for mode in ("default", "strict"))
    for one, said in ((fast, "bf16 kernels"), (slow, "fp32")):
        results = one.metadata["results"]
        assert results["env"]["precision"] == said
        assert [row["precision"] for row in (*results["rows"], *results["baselines"])] == [said, said]
        assert "precision" not in one.metadata["environment"], "no network was trained to make it"


def test_training_with_kernels_is_training(precise):
    plain, told = trained()
    with compiled.allowed(precise, CPU):
        net, found = trained()
    assert len(_kernels._MADE) == 1
    assert close(net.parameters(), plain.parameters(), 1e-5)
    assert float(found.loss) == pytest.approx(float(told.loss), rel=1e-4)
    assert all(p.grad is None for p in net.parameters())


def split_of(n):
    pixels = torch.randint(0, 256, (n, *SPEC.shape), generator=generator(0, "pixels"), dtype=torch.uint8)
    return Split(pixels, torch.arange(n) % 3, SPEC.space, 3)


def test_testing_with_a_kernel_fills_the_last_batch_up_and_counts_the_same(precise):
    net, split = net_of(), split_of(22)
    wanted = evaluate_accuracy(net, split, batch=8)
    with compiled.allowed(precise, CPU):
        assert evaluate_accuracy(net, split, batch=8) == wanted
    ((key, kernel),) = _kernels._MADE.items()
    assert key[0] is Kind.CLASSIFY
    assert kernel is not None, "one kernel for the two full batches and the one of six"


def test_batches_of_a_split_decide_alike(monkeypatch, uncompiled):
    sizes = []
    monkeypatch.setattr(
        compiled, "worthwhile", lambda kind, net, x, calls, strict: sizes.append((len(x), calls)) or False
    )
    with compiled.allowed("default", CPU):
        evaluate_accuracy(net_of(), split_of(22), batch=8)
    assert sizes == [(8, 3)] * 3


def unrolled(mode, momentum=0.0, steps=4):
    """Gradients of something of the weights after some steps: in images, labels, step sizes and the start."""
    net, x = net_of(), images(6).requires_grad_()
    y = (F.one_hot(torch.arange(6) % 3, 3) * 0.8 + 0.1).requires_grad_()
    lr = torch.full((steps,), 0.1, requires_grad=True)
    drawn = [torch.tensor([s % 6, (s + 1) % 6, (s + 3) % 6]) for s in range(steps)]
    start = {name: p.detach().requires_grad_() for name, p in net.params.items()}
    final = train_on(
        stateless(net), start, Batch(x, y), drawn, lr, momentum=momentum, mode=mode,
        augment=lambda batch, s: Batch(batch.x * (1 + 0.1 * s), batch.y),
    )  # fmt: skip
    torch.stack([(w - 1).square().sum() for w in final.values()]).sum().backward()
    return [x.grad, y.grad, lr.grad, torch.cat([w.grad.flatten() for w in start.values()])]


@pytest.mark.parametrize(
    ("precision", "mode", "momentum", "kinds"),
    [
        ("default", "adjoint", 0.0, {Kind.STEP, Kind.PRODUCTS}),
        ("default", "adjoint", 0.5, {Kind.STEP, Kind.PRODUCTS}),
        ("default", "tesla", 0.5, {Kind.STEP, Kind.PRODUCTS}),
        ("strict", "adjoint", 0.5, {Kind.STEP, Kind.PRODUCTS}),
        ("strict", "auto", 0.0, {Kind.RECORDED}),
        ("strict", "auto", 0.5, {Kind.RECORDED}),
        ("strict", "full", 0.5, set()),
    ],
)
def test_unrolled_training_with_kernels_has_the_gradients(exact, precision, mode, momentum, kinds):
    wanted = unrolled(mode, momentum)
    with compiled.allowed(precision, CPU), compiled.noticed() as used:
        found = unrolled(mode, momentum)
    rounded = "derivatives" if precision == "default" else "none"
    assert {key[:2] for key in _kernels._MADE} == {(kind, rounded) for kind in kinds}
    assert all(_kernels._MADE.values())
    assert used.kernels is (precision == "default"), "in fp32 nothing is to be told"
    assert kinds or mode == "full", "which can be differentiated twice, so not by kernels"
    for a, b in zip(found, wanted, strict=True):
        assert close([a], [b], 1e-4)


def test_the_quickest_way_through_training_keeps_all_steps_where_they_are_small(exact, monkeypatch):
    chosen = []

    def noted(*given, mode, **options):
        chosen.append(mode)
        return dict(given[1])

    monkeypatch.setattr(dcf.unroll, "unroll", noted)

    def asked(precision):
        net, x, y = net_of(), images(6), torch.arange(6) % 3
        with compiled.allowed(precision, CPU):
            train_on(stateless(net), net.params, Batch(x, y), [torch.arange(3)] * 4, torch.ones(4), mode="auto")
        return chosen[-1]

    assert asked("strict") == "full"
    assert asked("default") == "adjoint", "kernels in bf16 make up for computing each step twice"
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "fp32")
    assert asked("default") == "adjoint", "so do tiles"
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "bf16")
    monkeypatch.setattr(_kernels, "_MADE", {})
    monkeypatch.setattr(_kernels, "_make", lambda *_: None)
    assert asked("default") == "full", "where kernels cannot be made they make up for nothing"
    monkeypatch.setattr(_training, "_KEPT", 1000)
    assert asked("strict") == "adjoint"
    # 12 images, and the values of two convolutions and a linear layer each.
    values = 8 * 8 * 8 + 8 * 4 * 4 + 3
    assert compiled.activations(net_of(), SPEC.shape) == values
    monkeypatch.setattr(_training, "_KEPT", 12 * values * _training._BYTES_A_VALUE)
    assert asked("strict") == "full"


@pytest.mark.slow
def test_really_compiled_kernels_agree_and_are_the_same_each_time(anywhere, tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    net, x, y = net_of(), images(6), torch.arange(6) % 3
    with Lowered():
        wanted = torch.autograd.grad(F.cross_entropy(net(x), y), net.parameters())
    with compiled.allowed("default", CPU):
        first = compiled.loss_gradients(net, x, y)
        again = compiled.loss_gradients(net, x, y)
    if first is None:
        pytest.skip("no C++ compiler here")
    assert close(first.gradients, wanted, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(first.gradients, again.gradients, strict=True))
    assert any((tmp_path / "compiled").iterdir())


@pytest.mark.parametrize(("given", "kept"), [("torchinductor_me", False), ("elsewhere", True)])
def test_compiled_things_go_to_the_folder_of_caches_unless_one_was_chosen(given, kept, tmp_path, monkeypatch):
    """Importing torchvision makes the compiler set a default of its own."""
    monkeypatch.setattr(_kernels.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "caches"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / given))
    with _kernels._quiet():
        found = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert found == str(tmp_path / given if kept else tmp_path / "caches" / "compiled")
