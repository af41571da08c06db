"""Networks as functions of explicit weights: `vmap`, second derivatives, statistics, loading, preflight."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcf.config import validate
from dcf.errors import UsageError
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.densenet import DenseNetFactory
from dcf.networks.layers import LayerSequence
from dcf.networks.literature import (
    AlexNetFactory,
    LeNetFactory,
    MLPFactory,
    ResNet10Factory,
    ResNet18Factory,
    VGGFactory,
)
from dcf.networks.preflight import missing_second_derivative, preflight_double_backward
from dcf.seeding import generator
from dcf.space import ValueSpace
from dcf.spec import parse_one
from dcf.types import DataSpec

FACTORIES = {
    "convnet": ConvNetFactory,
    "mlp": MLPFactory,
    "lenet": LeNetFactory,
    "alexnet": AlexNetFactory,
    "vgg": VGGFactory,
    "resnet10": ResNet10Factory,
    "densenet": DenseNetFactory,
    "resnet18": ResNet18Factory,
}

#: Every branch of every network once, small where it can be.
VARIANTS = [
    "convnet:width=8,depth=2",
    "convnet:width=8,depth=2,norm=batch,activation=swish",
    "convnet:width=8,depth=2,norm=layer,activation=sigmoid",
    "convnet:width=8,depth=2,norm=group,activation=leakyrelu,pooling=max",
    "convnet:width=8,depth=2,norm=none,pooling=none",
    "mlp",
    "lenet",
    "alexnet",
    "alexnet:norm=batch",
    "vgg",
    "vgg:norm=batch",
    "resnet10:norm=batch",
    "resnet18",
    "resnet18:norm=batch",
    "resnet18:downsample=avgpool",
]


def data_spec(channels, height, width, classes=10):
    return DataSpec(channels, height, width, tuple(map(str, range(classes))), ValueSpace.unit(channels))


def factory(text):
    spec = parse_one(text)
    kind = FACTORIES[spec.name]
    return kind(validate(kind.Config, spec))


def images(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(1, "test"), dtype=dtype)


def loss_of(state, x, params=None):
    logits = state(x, params)
    labels = torch.arange(len(x)) % logits.shape[1]
    return F.cross_entropy(logits, labels)


# --- functions of explicit weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", VARIANTS)
def test_vmap_over_weights_equals_the_loop(text):
    make, spec = factory(text), data_spec(3, 8, 8, classes=3)
    first, second = make.create(spec, 0), make.create(spec, 1)
    stacked = {k: torch.stack([p, second.params[k]]).detach() for k, p in first.params.items()}
    x = images(3, 3, 8, 8)
    for mode in ("train", "eval"):
        getattr(first, mode)()
        with torch.no_grad():
            together = torch.vmap(lambda params: first(x, params))(stacked)
            torch.testing.assert_close(together, torch.stack([first(x), first(x, second.params)]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("text", VARIANTS)
def test_vmap_over_images_equals_the_loop_to_second_order(text):
    state = factory(text).create(data_spec(3, 8, 8, classes=3), 0)
    # In float64: a second derivative that leaves a term out can be as close as a float32 one that does not.
    state.load({k: p.double() for k, p in state.params.items()})
    held = {k: p.detach() for k, p in state.params.items() if p.numel() > 200_000}  # their gradients only cost time
    weights = {k: p for k, p in state.params.items() if k not in held}
    x = images(2, 2, 3, 8, 8, dtype=torch.float64).requires_grad_()
    gradient = torch.func.grad(lambda p, x: loss_of(state, x, held | p))
    together = torch.vmap(gradient, (None, 0))({k: p.detach() for k, p in weights.items()}, x)
    loop = [torch.autograd.grad(loss_of(state, e, held | weights), weights.values(), create_graph=True) for e in x]
    (found,) = torch.autograd.grad(sum(g.square().sum() for g in together.values()), x)
    (expected,) = torch.autograd.grad(sum(g.square().sum() for each in loop for g in each), x)
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0
    assert (found - expected).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
def test_second_derivative_agrees_with_finite_differences(norm):
    state = factory(f"convnet:width=4,depth=2,norm={norm},activation=swish").create(data_spec(2, 6, 5, classes=3), 0)
    state.load({k: p.double() for k, p in state.params.items()})

    def gradient_norm(x):
        grads = torch.autograd.grad(loss_of(state, x), state.parameters(), create_graph=True)
        return sum(g.square().sum() for g in grads)

    x = images(3, 2, 6, 5, dtype=torch.float64).requires_grad_()
    direction = torch.randn(x.shape, generator=generator(2, "test"), dtype=torch.float64)
    slope = (torch.autograd.grad(gradient_norm(x), x)[0] * direction).sum()
    h = 1e-5
    difference = (gradient_norm(x + h * direction) - gradient_norm(x - h * direction)) / (2 * h)
    torch.testing.assert_close(slope, difference.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("text", VARIANTS)
def test_create_depends_on_the_seed_only_and_leaves_global_generators_alone(text):
    make, spec = factory(text), data_spec(1, 8, 8)
    torch.manual_seed(5)
    rng = torch.get_rng_state()
    first = make.create(spec, 3, "network", 1)
    assert torch.equal(rng, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = make.create(spec, 3, "network", 1), make.create(spec, 3, "network", 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.parameters()[0], other.parameters()[0])


def test_initialisation_is_pytorchs_default():
    state = factory("convnet").create(data_spec(3, 32, 32), 0)
    bound = 1 / math.sqrt(128 * 9)
    weight = state.params["conv2.weight"]
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert state.params["norm1.weight"].eq(1).all()
    assert state.params["norm1.bias"].eq(0).all()


# --- batch norm --------------------------------------------------------------------------------------------------


def batch_norm_state():
    return factory("convnet:width=4,depth=1,norm=batch").create(data_spec(3, 4, 4, classes=2), 0)


def test_training_forward_moves_the_statistics_of_the_handle_by_the_momentum():
    state, x = batch_norm_state(), images(5, 3, 4, 4)
    module_before = {k: b.clone() for k, b in state.module.named_buffers()}
    handle = state.buffers["norm1.running_mean"]
    state(x)
    maps = F.conv2d(x, state.params["conv1.weight"], state.params["conv1.bias"], padding=1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(handle, 0.1 * maps.mean(1))
    torch.testing.assert_close(state.buffers["norm1.running_var"], 0.9 + 0.1 * maps.var(1))
    assert state.buffers["norm1.num_batches_tracked"] == 1
    assert set(module_before) == set(state.buffers)


def test_evaluation_and_frozen_batch_norms_leave_the_statistics_alone():
    state, x = batch_norm_state(), images(5, 3, 4, 4)
    state(x)
    before = {k: b.clone() for k, b in state.buffers.items()}
    state.eval()
    state(x)
    state.train()
    state.freeze_batch_norms()
    state(x)
    assert all(torch.equal(b, before[k]) for k, b in state.buffers.items())
    assert state.module.training


def test_transforms_leave_captured_statistics_alone():
    state, x = batch_norm_state(), images(2, 5, 3, 4, 4)
    params = {k: p.detach() for k, p in state.params.items()}
    before = {k: b.clone() for k, b in state.buffers.items()}
    torch.vmap(state)(x)
    torch.func.grad(lambda p: loss_of(state, x[0], p))(params)
    assert all(torch.equal(b, before[k]) for k, b in state.buffers.items())


# --- loading ---------------------------------------------------------------------------------------------------


def test_load_takes_values_by_name_and_their_dtype():
    state = factory("convnet:width=4,depth=1,norm=batch").create(data_spec(3, 4, 4), 0)
    values = {k: torch.full_like(p, 0.5, dtype=torch.float64) for k, p in state.params.items()}
    mean = torch.ones(4, dtype=torch.float64)
    state.load(dict(reversed(values.items())) | {"norm1.running_mean": mean})
    assert list(state.params) == list(values)
    assert all(p.dtype == torch.float64 and p.is_leaf and p.requires_grad for p in state.parameters())
    assert state.buffers["norm1.running_var"].dtype == torch.float64
    state(images(2, 3, 4, 4, dtype=torch.float64))
    assert mean.eq(1).all()
    assert state.buffers["norm1.running_mean"].ne(1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("conv1.bias"), "missing or unknown: conv1.bias"),
        (lambda v: v.update(conv9=torch.ones(1)), "missing or unknown: conv9"),
        (lambda v: v.update({"conv1.bias": torch.ones(5)}), r"'conv1.bias': expected shape \(4,\), got \(5,\)"),
    ],
)
def test_load_refuses_what_does_not_fit(change, message):
    state = factory("convnet:width=4,depth=1").create(data_spec(3, 4, 4), 0)
    values = dict(state.params)
    change(values)
    with pytest.raises(UsageError, match=message):
        state.load(values)


# --- preflight -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["convnet:width=4,norm=batch", "lenet", "convnet:width=4,pooling=max"])
def test_preflight_accepts_ours_and_changes_nothing(text):
    spec = data_spec(3, 8, 8)
    state, rng = factory(text).create(spec, 0), torch.get_rng_state()
    before = {k: b.clone() for k, b in state.buffers.items()}
    preflight_double_backward(state, spec)
    assert all(torch.equal(b, before[k]) for k, b in state.buffers.items())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in state.parameters())


class _Hard(LayerSequence):
    def __init__(self, shape):
        super().__init__(shape)
        self.append("conv1", nn.Conv2d(shape[0], 4, 3))
        self.append("gate", nn.Hardsigmoid())
        self.close(2)


def test_preflight_names_the_operation_and_the_way_out():
    from dcf.networks.base import NetworkState

    with pytest.raises(UsageError) as caught:
        preflight_double_backward(NetworkState(_Hard((3, 8, 8))), data_spec(3, 8, 8, classes=2))
    text = str(caught.value)
    assert "network '_Hard' cannot be differentiated twice: 'hardsigmoid' has no second derivative" in text
    assert "choose another network, such as 'convnet'" in text
    assert "no double backward" in text


def test_preflight_repeats_other_reasons():
    state = factory("mlp").create(data_spec(3, 8, 8), 0)
    with pytest.raises(UsageError, match=r"'MLP' cannot be differentiated twice on these images: .*shapes"):
        preflight_double_backward(state, data_spec(3, 9, 9))


@pytest.mark.parametrize(
    ("message", "operation"),
    [
        ("derivative for aten::hardsigmoid_backward is not implemented", "hardsigmoid"),
        (
            "derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented",
            "fused attention",
        ),
        ("the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is", "cudnn_rnn"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_missing_derivatives_are_read_from_torchs_message(message, operation):
    assert missing_second_derivative(message) == operation
