"""Instance norm, ReLU and pooling as one operation in C++: values, both derivatives, and where it takes their place."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from dcf import compiled
from dcf.compiled import _blocks, _folding, _functions, _kernels, _lower
from dcf.compiled._library import DIRECT
from dcf.compiled._lower import Lowered
from dcf.compiled._rules import Kind
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.layers import mean_of_four
from dcf.networks.options import ConvNetConfig
from dcf.seeding import generator
from dcf.testing import fake_spec

SPEC = fake_spec(classes=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def library():
    """Compiled, which takes some seconds."""
    with _kernels._quiet():
        if not _blocks.available(5) or not _blocks.available(16):
            pytest.skip("no C++ compiler here")


def drawn(*shape, stream="maps"):
    return torch.randn(shape, generator=generator(0, stream, *shape))


def plain(x, weight, bias, eps=1e-5):
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias, eps)), 2)


def off(found, wanted):
    return max(float((a.detach() - b.detach()).norm() / b.detach().norm()) for a, b in zip(found, wanted, strict=True))


def derivatives(function, x, weight, bias):
    """Value, gradients, and the gradients of something that is not linear in those."""
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    value = function(*leaves)
    first = torch.autograd.grad(value.square().sum() + value.sin().sum(), leaves, create_graph=True)
    mixed = torch.stack([(g * torch.linspace(-1, 2, g.numel()).view_as(g)).sum() + g.pow(3).sum() for g in first])
    return [value, *first, *torch.autograd.grad(mixed.sum(), leaves)]


@pytest.mark.slow
def test_loops_over_channels_are_vectorised_with_avx2_too(tmp_path):
    """Where a loop is not, the operation takes ten times as long."""
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("no g++ for x86 here")
    source = Path(_blocks.__file__).with_name("_blocks.cpp")
    # What the flags that the library compiles with come to: comparisons may trap, so that they stay branches.
    as_usual = "-O3 -ftrapping-math -fno-signed-zeros -fmath-errno -ffp-contract=fast -fopenmp -std=c++20"
    flags = [*as_usual.split(), "-mavx2", "-mfma", "-DDCF_CHANNELS=128", "-fopt-info-vec-optimized"]
    command = [compiler, *flags, "-c", source, "-o", tmp_path / "blocks.o"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {int(line) for line in re.findall(r"_blocks.cpp:(\d+):\d+: optimized: loop vectorized", told)}
    lines = source.read_text(encoding="ascii").splitlines()
    starts = [number for number, line in enumerate(lines, 1) if line.startswith("OF_ROWS")]
    assert len(starts) == 7
    for start in starts:
        assert found & set(range(start, lines.index("}", start) + 1)), lines[start - 1]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 16, 8, 6), (1, 5, 2, 2), (4, 5, 12, 4), (2, 5, 7, 7), (3, 16, 2, 5)])
def test_value_and_both_derivatives_are_those_of_the_three_layers(library, shape):
    given = drawn(*shape), drawn(shape[1], stream="weight"), drawn(shape[1], stream="bias")
    assert off(derivatives(_blocks.norm_relu_pool, *given), derivatives(plain, *given)) < 1e-4


@pytest.mark.slow
def test_maps_may_be_in_bf16_on_either_side(library):
    x, weight, bias = drawn(3, 16, 8, 6).to(torch.bfloat16), drawn(16, stream="weight"), drawn(16, stream="bias")
    wide = x.float().requires_grad_()
    wanted = plain(wide, weight, bias)
    low, mean, rstd = _blocks.FORWARD(x, weight, bias, 1e-5, True)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, _blocks.FORWARD(x, weight, bias, 1e-5, False)[0].to(torch.bfloat16))
    assert off([low], [wanted]) < 4e-3
    g = drawn(*wanted.shape, stream="g").to(torch.bfloat16)
    (gradient,) = torch.autograd.grad(wanted, wide, g.float())
    found = [_blocks.BACKWARD(g, x, weight, bias, mean, rstd, low)[0] for low in (False, True)]
    assert off([found[0]], [gradient]) < 1e-5
    assert torch.equal(found[1], found[0].to(torch.bfloat16))
    assert found[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_what_is_not_a_number_stays_so_and_touches_no_other_map(library):
    x, weight, bias = drawn(3, 16, 8, 6), drawn(16, stream="weight"), drawn(16, stream="bias")
    wanted = plain(x, weight, bias)
    x[1, 2, 0, 0] = float("nan")
    for low in (False, True):
        found, mean, rstd = _blocks.FORWARD(x, weight, bias, 1e-5, low)
        assert found[1, 2].isnan().all()
        assert off([found[[0, 2]].float()], [wanted[[0, 2]]]) < 4e-3
        assert _blocks.BACKWARD(torch.ones_like(found), x, weight, bias, mean, rstd, low)[0][1, 2].isnan().all()


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_threads(library):
    given = drawn(7, 16, 8, 6), drawn(16, stream="weight"), drawn(16, stream="bias")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(derivatives(_blocks.norm_relu_pool, *given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["default", "strict"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_kernels_with_fused_norms_compute_what_others_do(library, precision, differentiable, monkeypatch):
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "bf16")
    monkeypatch.setattr(compiled, "worthwhile", lambda *_: True)
    net = ConvNetFactory(ConvNetConfig(width=16, depth=2)).create(SPEC, 0, "net")
    x, y = drawn(6, *SPEC.shape), torch.arange(6) % 3

    def gradients():
        monkeypatch.setattr(_kernels, "_MADE", {})
        with compiled.allowed(precision, CPU):
            if not differentiable:
                return compiled.loss_gradients(net, x, y).gradients
            leaf = x.clone().requires_grad_()
            found = compiled.matched_gradients(net, leaf, y)
            of_images = torch.autograd.grad(torch.stack([g.square().sum() for g in found]).sum(), leaf)
        return [*(g.detach() for g in found), *of_images]

    seen = []
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: seen.append(graph) or graph)
    fused = gradients()
    assert seen == [], "what has nothing to fuse any more need not be compiled"
    monkeypatch.setattr(_blocks, "available", lambda channels: False)
    wanted = gradients()
    flat = [torch.cat([t.flatten() for t in found]) for found in (fused, wanted)]
    # Of bf16, one in some hundreds is rounded the other way by what fp32 rounds.
    assert off(flat[:1], flat[1:]) < (1e-4 if precision == "strict" else 0.01)


# --- where it takes their place, without C++ --------------------------------------------------------


@pytest.fixture
def named(monkeypatch):
    """The operation replaced by the layers, under a name; how often it was asked for."""
    asked = []
    monkeypatch.setattr(_blocks, "available", lambda channels: True)
    monkeypatch.setattr(_blocks, "norm_relu_pool", lambda *given: asked.append(1) or plain(*given))
    return asked


def three(x, groups, weight, bias, between=lambda x: x):
    return mean_of_four(torch.relu(between(F.group_norm(x, groups, weight, bias))))


@pytest.mark.parametrize(
    ("change", "fused"),
    [
        ({}, 1),
        ({"groups": 2}, 0),
        ({"weight": None}, 0),
        ({"bias": None}, 0),
        ({"between": lambda x: x + 1}, 0),
        ({"x": torch.ones(2, 4, 6, 8, dtype=torch.float64)}, 0),
    ],
)
def test_only_instance_norm_relu_and_pooling_in_a_row_are_fused(named, change, fused):
    given = {"x": drawn(2, 4, 6, 8), "groups": 4, "weight": torch.full((4,), 2.0), "bias": torch.ones(4)} | change
    if given["x"].dtype == torch.float64:
        given |= {"weight": given["weight"].double(), "bias": given["bias"].double()}
    with Lowered("none"):
        found = three(**given)
    assert len(named) == fused
    assert torch.allclose(found, three(**given), atol=1e-6)


def test_means_of_four_are_those_of_even_sides(named):
    with Lowered("none"), pytest.raises(RuntimeError, match="shape"):
        three(drawn(2, 4, 5, 8), 4, torch.ones(4), torch.ones(4))
    assert named == []


@pytest.mark.parametrize(
    ("sides", "window", "options", "fused"),
    [
        ((5, 8), (2, 2), {}, 1),
        ((7, 7), 2, {}, 1),
        ((7, 7), 3, {}, 0),
        ((7, 7), 2, {"ceil_mode": True}, 0),
        ((1, 8), (1, 2), {}, 0),
    ],
)
def test_pooling_that_leaves_an_odd_row_out_is_fused_too(named, sides, window, options, fused):
    x, weight, bias = drawn(2, 4, *sides), torch.full((4,), 2.0), torch.ones(4)
    with Lowered("none"):
        found = F.avg_pool2d(torch.relu(F.group_norm(x, 4, weight, bias)), window, **options)
    assert len(named) == fused
    assert torch.allclose(found, F.avg_pool2d(F.relu(F.group_norm(x, 4, weight, bias)), window, **options), atol=1e-6)


def test_an_operation_that_is_not_to_be_had_is_not_used(named, monkeypatch):
    monkeypatch.setattr(_blocks, "available", lambda channels: False)
    with Lowered("none"):
        three(drawn(2, 4, 6, 8), 4, torch.ones(4), torch.ones(4))
    assert named == []


def test_a_compiler_that_is_not_there_is_no_error(monkeypatch):
    from torch._inductor import codecache

    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(codecache.CppCodeCache, "load", broken)
    assert _blocks.available(7919) is False


def faked(monkeypatch):
    """The operations, computing nothing: what a graph of them looks like."""
    monkeypatch.setattr(_blocks, "_run", lambda *_: None)
    monkeypatch.setattr(_blocks, "available", lambda channels: True)


def traced(rounded, monkeypatch, norm="instance", kind=Kind.GRADIENT):
    faked(monkeypatch)
    net = ConvNetFactory(ConvNetConfig(width=8, depth=2, norm=norm)).create(SPEC, 0, "net")
    plain = _functions.FUNCTIONS[kind](net, 2)

    def lowered(*given):
        with Lowered(rounded):
            return plain(*given)

    x, y = drawn(6, *SPEC.shape).requires_grad_(), torch.arange(6) % 3
    data = (x, y)[: 1 + (kind is not Kind.FEATURES)]
    graph = make_fx(lowered)(*data, *(w.detach().requires_grad_() for w in net.parameters()))
    _folding.tidy(graph)
    return graph


def test_no_map_is_cast_between_convolutions_and_fused_norms(monkeypatch):
    graph = traced("all", monkeypatch)
    sizes = [n.meta["val"].shape for n in graph.graph.nodes if n.target is torch.ops.aten._to_copy.default]
    assert not [s for s in sizes if len(s) == 4 and s[0] == 6 and s[1] == 8]
    forward = [n.args[-1] for n in graph.graph.nodes if n.target is _blocks.FORWARD]
    backward = [n.args[-1] for n in graph.graph.nodes if n.target is _blocks.BACKWARD]
    assert forward == [True, False], "the last one goes into a linear layer in fp32"
    assert backward == [True, True]


def test_in_fp32_nothing_is_folded(monkeypatch):
    graph = traced("none", monkeypatch)
    assert not any(n.args[-1] for n in graph.graph.nodes if n.target in (_blocks.FORWARD, _blocks.BACKWARD))


def test_gradients_that_nobody_takes_are_not_computed(monkeypatch):
    """Those in the images, of gradients in the weights that are differentiated further."""
    graph = traced("derivatives", monkeypatch, kind=Kind.MATCHED)
    masks = [n.args[-1] for n in graph.graph.nodes if n.target is torch.ops.aten.convolution_backward.default]
    assert masks == [[True, True, True], [False, True, True]]


def test_the_derivative_of_a_kernel_is_tidied_too(monkeypatch):
    graph = traced("derivatives", monkeypatch, kind=Kind.FEATURES)
    parts = []
    monkeypatch.setattr(_kernels, "tidy", lambda part: parts.append(part) or _folding.tidy(part))
    kernel = _kernels._as_it_is(graph, differentiable=True)
    x = drawn(6, *SPEC.shape).requires_grad_()
    net = ConvNetFactory(ConvNetConfig(width=8, depth=2)).create(SPEC, 0, "net")
    kernel(x, *(w.detach() for w in net.parameters()))[0].sum().backward()
    assert x.grad is not None
    backward = [n for part in parts for n in part.graph.nodes if n.target is DIRECT[str(_blocks.BACKWARD)]]
    assert [n.args[-1] for n in backward] == [True, True], "in bf16, as the convolutions that take them"
    assert not [n for n in backward[1].all_input_nodes if n.target is torch.ops.aten._to_copy.default]


@pytest.mark.parametrize(("norm", "whole"), [("instance", True), ("group", False)])
def test_graphs_with_loops_over_maps_are_compiled(norm, whole, monkeypatch):
    assert _folding.nothing_to_fuse(traced("all", monkeypatch, norm)) is whole


@pytest.mark.parametrize("channels", [1, 3])
def test_an_exact_convolution_has_derivatives_in_bf16(channels):
    x, weight, bias = drawn(2, channels, 8, 8), drawn(4, channels, 3, 3, stream="weight"), drawn(4, stream="bias")

    def gradients(convolution):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        value = convolution(*leaves)
        return value.detach(), torch.autograd.grad(value.square().sum(), leaves)

    wanted = gradients(lambda *given: F.conv2d(*given, stride=2, padding=1))
    found = gradients(lambda *given: _lower._forward_in_fp32(*given, stride=2, padding=1))
    assert off([found[0]], [wanted[0]]) < 1e-6
    assert all(1e-5 < off([a], [b]) < 0.02 for a, b in zip(found[1][:2], wanted[1][:2], strict=True))
    assert off([found[1][2]], [wanted[1][2]]) < 0.02
