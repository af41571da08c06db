"""Networks of torchvision: any channel count, an embedding, functions of their weights, twice differentiable."""

import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from dcf.errors import ConfigError, UsageError
from dcf.networks.base import NetworkState
from dcf.networks.preflight import preflight_double_backward
from dcf.networks.torchvision import TorchvisionFactory, TorchvisionNetwork
from dcf.seeding import generator, global_seed
from dcf.space import ValueSpace
from dcf.types import DataSpec


def data_spec(channels, height, width, classes=3):
    return DataSpec(channels, height, width, tuple(map(str, range(classes))), ValueSpace.unit(channels))


def factory(name):
    return TorchvisionFactory(TorchvisionFactory.Config(name=name))


def images(*shape):
    return torch.randn(*shape, generator=generator(1, "test"))


def tiny_transformer(channels=3):
    with global_seed(0, "test"):
        model = VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3, dropout=0.1)
        return NetworkState(TorchvisionNetwork(model, channels, "tiny"))


def second_order(state, x):
    loss = nn.functional.cross_entropy(state(x), torch.arange(len(x)) % 3)
    grads = torch.autograd.grad(loss, state.parameters(), create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in grads), x)[0]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_first_convolution_takes_any_number_of_channels(channels):
    state = factory("shufflenet_v2_x0_5").create(data_spec(channels, 32, 32), 0)
    x = images(2, channels, 32, 32)
    embedding = state.embed(x)
    assert embedding.shape == (2, 1024)
    state.eval()
    assert torch.allclose(state(x), state.module.classifier(state.embed(x)))
    assert state(x).shape == (2, 3)


def test_network_is_torchvisions_apart_from_the_split():
    from torchvision.models import resnet18

    spec = data_spec(3, 32, 32)
    with global_seed(0, "test"):
        ours = factory("resnet18").build(spec)
    theirs = resnet18(weights=None, num_classes=3)
    theirs.load_state_dict(
        {k.removeprefix("model.").replace("classifier", "fc"): v for k, v in ours.state_dict().items()}
    )
    x = images(4, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.model.bn1.running_var, theirs.bn1.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_nothing_is_in_place_or_random(name):
    state = factory(name).create(data_spec(3, 32, 32), 0)
    assert not any(getattr(m, "inplace", False) for m in state.module.modules())
    rng, x = torch.get_rng_state(), images(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(state(x), state(x))
    assert torch.equal(rng, torch.get_rng_state())


def test_same_seed_same_weights_and_global_generator_untouched():
    make, spec, rng = factory("shufflenet_v2_x0_5"), data_spec(3, 32, 32), torch.get_rng_state()
    first, again, other = make.create(spec, 0), make.create(spec, 0), make.create(spec, 1)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.params["classifier.weight"], other.params["classifier.weight"])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_vmap_over_weights_equals_the_loop(mode):
    make, spec = factory("shufflenet_v2_x0_5"), data_spec(3, 32, 32)
    state, other = make.create(spec, 0), make.create(spec, 1)
    getattr(state, mode)()
    stacked = {k: torch.stack([p, other.params[k]]).detach() for k, p in state.params.items()}
    x = images(4, 3, 32, 32)
    with torch.no_grad():
        together = torch.vmap(lambda p: state(x, p))(stacked)
        torch.testing.assert_close(together, torch.stack([state(x), state(x, other.params)]), rtol=1e-2, atol=1e-3)


def test_resnet_passes_the_preflight():
    spec = data_spec(5, 16, 16)
    preflight_double_backward(factory("resnet18").create(spec, 0), spec)


def test_mobilenet_is_refused_by_the_operation_that_it_uses():
    spec = data_spec(3, 32, 32)
    with pytest.raises(UsageError) as caught:
        preflight_double_backward(factory("mobilenet_v3_small").create(spec, 0), spec)
    assert "network 'torchvision:mobilenet_v3_small' cannot be differentiated twice: 'hardsigmoid'" in str(caught.value)


@pytest.mark.parametrize("channels", [3, 4])
def test_attention_can_be_differentiated_twice(channels):
    state = tiny_transformer(channels)
    x = images(2, channels, 16, 16).requires_grad_()
    found = second_order(state, x)
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0
    preflight_double_backward(state, data_spec(channels, 16, 16))


def test_attention_fails_without_the_unfused_kernel(monkeypatch):
    state = tiny_transformer()
    monkeypatch.setattr(state.module, "_attends", False)
    with pytest.raises(UsageError, match="'fused attention' has no second derivative"):
        preflight_double_backward(state, data_spec(3, 16, 16))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_attention_under_vmap_equals_the_loop(mode):
    state = tiny_transformer()
    getattr(state, mode)()
    params = {k: torch.stack([p, 1.1 * p]).detach() for k, p in state.params.items()}
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        together = torch.vmap(lambda p: state(x, p))(params)
        loop = [state(x, {k: p[i] for k, p in params.items()}) for i in range(2)]
    torch.testing.assert_close(together, torch.stack(loop), rtol=1e-4, atol=1e-5)


def tiny_convnext():
    with global_seed(0, "test"):
        model = ConvNeXt([CNBlockConfig(4, 6, 1), CNBlockConfig(6, None, 1)], 0.1, num_classes=3)
        return NetworkState(TorchvisionNetwork(model, 3, "tiny"))


def tiny_swin():
    with global_seed(0, "test"):
        model = SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=3, stochastic_depth_prob=0.1)
        return NetworkState(TorchvisionNetwork(model, 3, "tiny"))


@pytest.mark.parametrize("make", [tiny_transformer, tiny_convnext, tiny_swin])
def test_second_order_under_vmap_equals_the_loop(make):
    state = make()
    state.load({k: p.double() for k, p in state.params.items()})
    x = images(2, 2, 3, 16, 16).double().requires_grad_()

    def loss(params, x):
        return nn.functional.cross_entropy(state(x, params), torch.arange(2))

    grads = torch.vmap(torch.func.grad(loss), (None, 0))({k: p.detach() for k, p in state.params.items()}, x)
    (together,) = torch.autograd.grad(sum(g.square().sum() for g in grads.values()), x)
    loop = torch.stack([second_order(state, each) for each in x.detach().requires_grad_()])
    assert loop.abs().sum() > 0
    torch.testing.assert_close(together, loop, rtol=1e-7, atol=1e-10)


def test_classifier_that_starts_at_zero_is_initialised():
    assert tiny_transformer().params["classifier.weight"].abs().min() > 0


@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("vit_b_16", (1, 28, 28), "cannot take 1x28x28 images: it needs square images whose side is a multiple of 16"),
        ("vit_b_16", (3, 32, 16), "it needs square images"),
        ("alexnet", (3, 32, 32), "cannot take 3x32x32 images: "),
        ("squeezenet1_1", (3, 64, 64), "does not end in a linear layer, so it has no embedding"),
    ],
)
def test_images_or_networks_that_do_not_fit_are_refused(name, shape, part):
    with pytest.raises(UsageError) as caught:
        factory(name).build(data_spec(*shape))
    assert part in str(caught.value)
    assert "choose another" in str(caught.value)


@pytest.mark.parametrize("name", ["resnet81", "fasterrcnn_resnet50_fpn"])
def test_unknown_names_are_explained(name):
    with pytest.raises(ConfigError) as caught:
        factory(name)
    text = str(caught.value)
    assert f"torchvision has no classification network '{name}'" in text
    assert "choices: alexnet, convnext_base" in text
    assert ("did you mean 'resnet18'?" in text) == (name == "resnet81")


@pytest.mark.slow
def test_vit_passes_the_preflight():
    spec = data_spec(3, 32, 32)
    state = factory("vit_b_16").create(spec, 0)
    assert state.module.classifier.in_features == 768
    preflight_double_backward(state, spec)
