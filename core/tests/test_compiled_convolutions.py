"""Convolutions in C++: values and derivatives, in tiles and of few channels; the first block; where they are used."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from dcf import compiled
from dcf.compiled import _blocks, _convolutions, _first, _folding, _functions, _kernels, _library
from dcf.compiled._lower import Lowered
from dcf.compiled._rules import Kind
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.layers import mean_of_four
from dcf.networks.options import ConvNetConfig
from dcf.seeding import generator
from dcf.testing import fake_spec

SPEC = fake_spec(classes=3, shape=(3, 16, 16))
CPU = torch.device("cpu")

#: N, C, K, H, W. Whole tiles of 4x4; tiles beyond the border; more of them than a block; small ones. Whole tiles of
#: 8x8; beyond the border. As few channels as images have.
SMALL = [(2, 16, 32, 8, 4), (3, 32, 16, 9, 7), (9, 16, 16, 14, 11), (5, 48, 80, 3, 5), (40, 16, 16, 12, 12)]
LARGE = [(40, 16, 48, 16, 16), (70, 32, 16, 15, 7)]
TILED = SMALL + LARGE
FEW = [(2, 3, 16, 8, 5), (3, 1, 48, 6, 6), (2, 2, 32, 1, 2), (70, 4, 16, 3, 9)]


@pytest.fixture(scope="module")
def libraries():
    """Compiled, which takes some seconds."""
    with _kernels._quiet():
        if None in [_library.library(name) for name in ("_tiles", "_few")]:
            pytest.skip("no C++ compiler here")


def drawn(*shape, stream="maps"):
    return torch.randn(shape, generator=generator(0, stream, *shape))


def given(n, c, k, height, width):
    return drawn(n, c, height, width), drawn(k, c, 3, 3, stream="weight") / (9 * c) ** 0.5, drawn(k, stream="bias")


def off(found, wanted):
    pairs = list(zip(found, wanted, strict=True))
    return max(float((a.detach().double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs)


def plain(x, weight, bias=None):
    return F.conv2d(x, weight, bias, padding=1)


def derivatives(function, *tensors):
    """Value, gradients, and the gradients of the sum of their squares: each operation in each role."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    first = torch.autograd.grad(value.square().sum() / 2, leaves, create_graph=True)
    squares = torch.stack([g.square().mean() for g in first]).sum()
    second = torch.autograd.grad(squares, leaves, create_graph=True)
    third = torch.autograd.grad(torch.stack([g.square().mean() for g in second]).sum(), leaves)
    return [value, *first, *second, *third]


@pytest.mark.slow
@pytest.mark.parametrize("shape", TILED + FEW)
def test_value_and_three_derivatives_are_those_of_a_convolution(libraries, shape):
    tensors = given(*shape)
    assert _convolutions.available(tensors[0].shape, tensors[1].shape)
    found = derivatives(_convolutions.convolution, *tensors)
    error = off(found, derivatives(plain, *(t.double() for t in tensors)))
    assert 1e-5 < error < 1e-4 if shape in LARGE else error < 2e-5, "else the tiles have another size"
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SMALL[1], FEW[0]])
def test_any_layout_in_memory_will_do_and_a_bias_is_not_needed(libraries, shape):
    x, weight, _ = given(*shape)
    layouts = [x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)]
    turned = weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    first, *others = [_convolutions.convolution(each, w) for each in layouts for w in (weight, turned)]
    assert all(torch.equal(first, other) for other in others)
    assert off([first], [plain(x.double(), weight.double())]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SMALL[2], *LARGE, FEW[0], FEW[3]])
def test_results_do_not_depend_on_the_number_of_threads(libraries, shape):
    (x, weight, bias), ops = given(*shape), torch.ops.dcf
    g, before, found = drawn(shape[0], shape[2], *shape[3:], stream="g"), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4, 8):  # halves, none, and some of each; blocks that are shared
            torch.set_num_threads(threads)
            maps = [ops.convolution(x, weight, bias), ops.convolution_images(g, weight)]
            found.append([*maps, *ops.convolution_weights(x, g)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SMALL[1], LARGE[1], FEW[0]])
def test_what_is_not_a_number_stays_so_and_touches_no_other_image(libraries, shape):
    x, weight, bias = given(*shape)
    wanted = plain(x, weight, bias)
    x[1, 0, 2, 2] = float("nan")
    found = _convolutions.convolution(x, weight, bias)
    assert found[1, :, 1:4, 1:4].isnan().all()
    assert off([found[0]], [wanted[0]]) < (1e-4 if shape in LARGE else 1e-5)
    assert torch.ops.dcf.convolution_weights(x, wanted)[0][:, 0].isnan().all()


@pytest.mark.parametrize(
    ("x", "weight", "has"),
    [
        ((2, 32, 8, 8), (16, 32, 3, 3), True),
        ((2, 3, 8, 8), (16, 3, 3, 3), True),
        ((2, 4, 1, 1), (16, 4, 3, 3), True),
        ((2, 5, 8, 8), (16, 5, 3, 3), False),
        ((2, 24, 8, 8), (16, 24, 3, 3), False),
        ((2, 32, 8, 8), (24, 32, 3, 3), False),
        ((2, 32, 2, 8), (16, 32, 3, 3), False),
        ((2, 32, 8, 8), (16, 32, 5, 5), False),
        ((0, 32, 8, 8), (16, 32, 3, 3), False),
        ((32, 8, 8), (16, 32, 3, 3), False),
    ],
)
def test_shapes_that_suit_are_told_from_others(x, weight, has, monkeypatch):
    monkeypatch.setattr(_convolutions, "library", lambda name: object())
    assert _convolutions.available(x, weight) is has


def test_without_a_compiler_there_is_none(monkeypatch):
    monkeypatch.setattr(_convolutions, "library", lambda name: None)
    monkeypatch.setattr(_first, "library", lambda *_: None)
    for found in (_convolutions, _first):
        assert not found.available((2, 3, 8, 8), (16, 3, 3, 3))


def test_want_of_memory_and_of_a_compiler_are_errors_that_say_so(monkeypatch):
    class Full:
        dcf_few = staticmethod(lambda *_: 1)

    monkeypatch.setattr(_library, "library", lambda name, channels: Full)
    with pytest.raises(MemoryError, match="smaller batches"):
        _library.call("_few", "dcf_few", 0)
    monkeypatch.setattr(_library, "library", lambda name, channels: None)
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        _library.call("_few", "dcf_few", 0)


def test_a_source_is_compiled_in_one_piece_with_what_it_includes(monkeypatch):
    from torch._inductor import codecache

    seen = []
    monkeypatch.setattr(codecache.CppCodeCache, "load", lambda source, extra_flags: seen.append(source))
    _library.library.__wrapped__("_tiles")
    assert "class Room" in seen[0], "else a change of it would not be compiled"
    assert '#include "' not in seen[0]


# --- the first block --------------------------------------------------------------------------------


def three(x, weight, bias, scale, shift, eps=1e-5):
    normed = F.group_norm(plain(x, weight, bias), len(weight), scale, shift, eps)
    return F.avg_pool2d(F.relu(normed), 2)


def of_block(n, c, k, height, width):
    return (*given(n, c, k, height, width), drawn(k, stream="scale"), drawn(k, stream="shift"))


def gradients(function, x, *weights):
    leaves = [w.clone().requires_grad_() for w in weights]
    value = function(x, *leaves)
    found = torch.autograd.grad(value.square().sum() + value.sum(), leaves)
    # That of the convolution's bias is zero, as the norm takes it away again, and rounding alone.
    assert float(found[1].abs().max()) < 1e-3 * float(found[3].abs().max())
    return [value, found[0], *found[2:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(3, 3, 32, 8, 12), (2, 1, 16, 14, 6), (70, 4, 16, 2, 4), (2, 2, 48, 10, 10), (70, 2, 64, 64, 64)]
)
def test_a_first_block_is_convolution_norm_relu_and_pooling(libraries, shape):
    x, *weights = of_block(*shape)
    assert _first.available(x.shape, weights[0].shape)
    if x.numel() > 1e5:  # of so many pixels, rounding alone would turn some on or off, were zero not rare
        weights[3] = 3 * weights[2].abs() * weights[3].sign()
    wanted = gradients(three, x.double(), *(w.double() for w in weights))
    assert off(gradients(_first.first_block, x, *weights), wanted) < 1e-5


@pytest.mark.slow
def test_a_first_block_does_not_depend_on_the_number_of_threads_and_lets_nan_through(libraries):
    x, *weights = of_block(7, 3, 16, 6, 8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(gradients(_first.first_block, x, *weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    x[1, 2, 0, 0] = float("nan")
    seen = _first.first_block(x, *weights)
    assert seen[1].isnan().all()
    assert torch.equal(seen[[0, *range(2, 7)]], found[0][0][[0, *range(2, 7)]])


@pytest.mark.slow
def test_what_is_too_large_for_the_cache_is_the_same(libraries):
    """Results of 16 MB and more are written past it."""
    x, weight, bias, scale, shift = of_block(66, 16, 16, 64, 64)
    parts = [_convolutions.convolution(some, weight, bias) for some in x.split(11)]
    assert torch.equal(_convolutions.convolution(x, weight, bias), torch.cat(parts))
    x, weight, bias, scale, shift = of_block(66, 3, 64, 64, 64)
    parts = [_first.first_block(some, weight, bias, scale, shift) for some in x.split(11)]
    assert torch.equal(_first.first_block(x, weight, bias, scale, shift), torch.cat(parts))


@pytest.mark.parametrize(("shape", "has"), [((2, 3, 8, 6), True), ((2, 3, 8, 7), False), ((2, 16, 8, 8), False)])
def test_first_blocks_have_even_sides_and_few_channels(shape, has, monkeypatch):
    monkeypatch.setattr(_first, "library", lambda *_: object())
    assert _first.available(shape, (16, shape[1], 3, 3)) is has


# --- where they are used ----------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch):
    """The operations, computing nothing: what a graph of them looks like."""
    for module in (_convolutions, _first):
        monkeypatch.setattr(module, "library", lambda *_: object())
        monkeypatch.setattr(module, "call", lambda *_: None)
    monkeypatch.setattr(_blocks, "_run", lambda *_: None)
    monkeypatch.setattr(_blocks, "available", lambda channels: True)


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({"padding": 1}, True),
        ({"padding": (1, 1), "stride": [1, 1]}, True),
        ({"padding": 1, "stride": 2}, False),
        ({"padding": 1, "dilation": 2}, False),
        ({"padding": "same"}, False),
        ({}, False),
    ],
)
def test_convolutions_that_keep_sides_are_computed_in_tiles(options, used, monkeypatch):
    asked = []
    monkeypatch.setattr(_convolutions, "available", lambda *shapes: True)
    monkeypatch.setattr(_convolutions, "convolution", lambda *tensors: asked.append(1) or plain(*tensors))
    x, weight, bias = given(2, 16, 16, 8, 8)
    with Lowered("tiled"):
        found = F.conv2d(x, weight, bias, **options)
    assert len(asked) == used
    assert torch.allclose(found, F.conv2d(x, weight, bias, **options), atol=1e-5)
    with Lowered("none"):
        F.conv2d(x, weight, bias, **options)
    assert len(asked) == used, "strict precision takes sums as they are defined"


@pytest.mark.parametrize("padding", [3, (2, 1), (0, 1)])
def test_images_with_a_frame_are_computed_so_too(padding, monkeypatch):
    asked = []
    monkeypatch.setattr(_convolutions, "available", lambda *shapes: True)
    monkeypatch.setattr(_convolutions, "convolution", lambda *tensors: asked.append(tensors[0]) or plain(*tensors))
    monkeypatch.setattr(_first, "available", lambda *shapes: True)
    monkeypatch.setattr(_first, "first_block", lambda *tensors: asked.append(tensors[0]) or three(*tensors))
    x, weight, bias, scale, shift = of_block(2, 3, 16, 8, 8)
    wanted = F.conv2d(x, weight, bias, padding=padding)
    with Lowered("blocks"):
        found = F.conv2d(x, weight, bias, padding=padding)
        F.avg_pool2d(torch.relu(F.group_norm(found, 16, scale, shift)), 2)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert [t.shape[2:] for t in asked] == ([] if padding == (0, 1) else [wanted.shape[2:]] * 2)
    if asked:
        maps, weight, _ = given(2, 16, 16, 8, 8)
        with Lowered("tiled"):
            F.conv2d(maps, weight, padding=padding)
        assert len(asked) == 2, "many channels are not copied"


def test_grouped_convolutions_and_other_numbers_are_left_alone(monkeypatch):
    monkeypatch.setattr(_convolutions, "available", lambda *shapes: pytest.fail("asked for"))
    x, weight, _ = given(2, 16, 16, 8, 8)
    with Lowered("tiled"):
        F.conv2d(x, weight[:, :8].contiguous(), padding=1, groups=2)
        F.conv2d(x.double(), weight.double(), padding=1)


def traced(kind, rounded):
    net = ConvNetFactory(ConvNetConfig(width=16, depth=2)).create(SPEC, 0, "net")
    weights = [w.detach().requires_grad_() for w in net.parameters()]
    cotangent = [torch.ones_like(w) for w in weights] if kind is Kind.PRODUCTS else []
    function = _functions.FUNCTIONS[kind](net, 2 + len(cotangent))

    def lowered(*tensors):
        with Lowered(rounded):
            return function(*tensors)

    x, y = drawn(6, *SPEC.shape).requires_grad_(), torch.arange(6) % 3
    graph = make_fx(lowered)(x, y, *cotangent, *weights)
    _folding.tidy(graph)
    return graph


def count(graph, operation):
    return sum(node.target is operation.default for node in graph.graph.nodes)


def test_a_gradient_is_nothing_but_such_operations_on_maps(faked):
    graph, ops = traced(Kind.GRADIENT, "blocks"), torch.ops.dcf
    assert count(graph, ops.first_block) == count(graph, ops.first_block_backward) == 1
    assert [count(graph, ops.convolution), count(graph, ops.convolution_images)] == [1, 1]
    assert count(graph, ops.norm_relu_pool) == 1, "that of the first block is in it"
    assert _folding.nothing_to_fuse(graph)
    assert not count(graph, torch.ops.aten.convolution)


@pytest.mark.parametrize(("kind", "passes"), [(Kind.MATCHED, 1), (Kind.PRODUCTS, 3)])
def test_what_images_are_learned_through_has_no_first_block(kind, passes, faked):
    graph, ops = traced(kind, "tiled"), torch.ops.dcf
    assert [count(graph, ops.convolution), count(graph, ops.convolution_weights)] == [2 * passes - (passes > 1)] * 2
    assert [count(graph, ops.first_block), count(graph, ops.norm_relu_pool)] == [0, 2]
    assert _folding.nothing_to_fuse(graph)


def test_a_graph_that_runs_as_it_is_calls_the_functions_behind_operations(faked):
    graph = traced(Kind.GRADIENT, "blocks")
    before = [node.target for node in graph.graph.nodes if str(node.target).startswith("dcf.")]
    _folding.call_directly(graph)
    assert len(before) > 4
    assert not any(str(node.target).startswith("dcf.") for node in graph.graph.nodes)


def test_kinds_say_whether_images_are_learned_through_them():
    fp32 = {kind: kind.rounded(CPU, "fp32") for kind in Kind}
    learned = {kind for kind in Kind if kind.rounded(CPU, "bf16") == "derivatives"}
    assert {kind for kind, rounded in fp32.items() if rounded == "tiled"} == learned
    assert set(fp32.values()) == {"tiled", "blocks"}
    assert Kind.GRADIENT.rounded(torch.device("cuda"), "fp32") == "none"


@pytest.mark.parametrize("change", ["before", "between", "no bias", "stride"])
def test_only_a_convolution_of_images_begins_a_first_block(change, monkeypatch):
    monkeypatch.setattr(_blocks, "available", lambda channels: False)
    monkeypatch.setattr(_convolutions, "available", lambda *shapes: False)
    monkeypatch.setattr(_first, "available", lambda *shapes: True)
    monkeypatch.setattr(_first, "first_block", lambda *tensors: pytest.fail("fused"))
    x, weight, bias, scale, shift = of_block(2, 3, 16, 8, 8)
    learned = torch.ones(1, requires_grad=True)
    with Lowered("blocks"):
        images = x * learned if change == "before" else x
        stride = 2 if change == "stride" else 1
        maps = F.conv2d(images, weight, None if change == "no bias" else bias, stride, 1)
        maps = maps + 1 if change == "between" else maps
        mean_of_four(torch.relu(F.group_norm(maps, 16, scale, shift)))


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 128])
@pytest.mark.parametrize("kind", ["gradient", "matched", "features", "products", "step"])
def test_kernels_in_tiles_compute_what_the_plain_way_does(libraries, kind, width, monkeypatch):
    monkeypatch.setattr(compiled, "arithmetic", lambda device: "fp32")
    monkeypatch.setattr(compiled, "worthwhile", lambda *_: True)
    monkeypatch.setattr(_kernels, "_MADE", {})
    net = ConvNetFactory(ConvNetConfig(width=width, depth=2)).create(SPEC, 0, "net")
    x, y, weights = drawn(6, *SPEC.shape), torch.arange(6) % 3, net.parameters()
    cotangent = [drawn(*w.shape, stream="cotangent") for w in weights]
    with compiled.allowed("default", CPU):
        _of_kind(kind, net, x, y, weights, cotangent)
        with torch.profiler.profile() as seen:
            found = _of_kind(kind, net, x, y, weights, cotangent)
    assert not [event.name for event in seen.events() if event.name.startswith("dcf::")], "called through torch"
    assert {key[1] for key in _kernels._MADE} == {"blocks" if kind == "gradient" else "tiled"}
    assert None not in _kernels._MADE.values()
    wanted = _of_kind_plainly(kind, net, x, y, weights, cotangent)
    flat = [torch.cat([t.detach().flatten() for t in tensors]) for tensors in (found, wanted)]
    assert off(flat[:1], flat[1:]) < 1e-4


def _of_kind(kind, net, x, y, weights, cotangent):
    if kind == "gradient":
        return compiled.loss_gradients(net, x, y).gradients
    if kind == "step":
        return compiled.weight_gradients(net, weights, x, y)
    if kind == "products":
        found = compiled.gradient_products(net, weights, x, y, cotangent)
        return [*found.gradients, *found.weights, found.images]
    leaf = x.clone().requires_grad_()
    found = [compiled.embed(net, leaf)] if kind == "features" else compiled.matched_gradients(net, leaf, y)
    return [*found, *torch.autograd.grad(torch.stack([g.square().sum() for g in found]).sum(), leaf)]


def _of_kind_plainly(kind, net, x, y, weights, cotangent):
    leaf, leaves = x.clone().requires_grad_(), [w.detach().requires_grad_() for w in weights]
    params = dict(zip(net.params, leaves, strict=True))
    if kind == "features":
        found = [net(leaf, params, embed=True)]
    else:
        loss = F.cross_entropy(net(leaf, params), y)
        found = list(torch.autograd.grad(loss, leaves, create_graph=True))
    if kind in ("gradient", "step"):
        return found
    if kind == "products":
        dot = torch.stack([(g * c).sum() for g, c in zip(found, cotangent, strict=True)]).sum()
        return [*found, *torch.autograd.grad(dot, [*leaves, leaf], materialize_grads=True)]
    return [*found, *torch.autograd.grad(torch.stack([g.square().sum() for g in found]).sum(), leaf)]
