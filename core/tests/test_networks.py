"""The networks of core: published sizes, any image size, layers, options and names."""

import logging

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from dcf.config import validate
from dcf.errors import ConfigError, UsageError
from dcf.networks.convnet import ConvNet, ConvNetFactory, auto_depth
from dcf.networks.densenet import DenseNetFactory
from dcf.networks.layers import GroupNorm, Pool, activation_layer, dry_shape, norm_layer
from dcf.networks.literature import (
    AlexNetFactory,
    LeNetFactory,
    MLPFactory,
    ResNet10Factory,
    ResNet18Factory,
    VGGFactory,
)
from dcf.networks.names import POOLS, REFERENCE_NAMES, from_published_names, published_spec
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


def data_spec(channels, height, width, classes=10):
    return DataSpec(channels, height, width, tuple(map(str, range(classes))), ValueSpace.unit(channels))


def factory(text):
    spec = parse_one(text)
    kind = FACTORIES[spec.name]
    return kind(validate(kind.Config, spec))


def hollow(text, *shape):
    """The network without memory for its weights."""
    with torch.device("meta"):
        return factory(text).build(data_spec(*shape))


def count(module):
    return sum(p.numel() for p in module.parameters())


def images(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(1, "test"), dtype=dtype)


# --- sizes -------------------------------------------------------------------------------------------------------

# name: 3x32x32 with 10 classes, 1x28x28 with 10, 3x32x32 with 100 (None: not published), parameter tensors
COUNTS = {
    "MLP": (411_146, 118_282, 422_756, 6),
    "ConvNet": (320_010, 317_706, 504_420, 14),
    "ConvNetIN": (320_010, 317_706, 504_420, 14),
    "ConvNetD1": (331_530, 329_226, 3_280_740, 6),
    "ConvNetD2": (233_610, 231_306, 970_980, 10),
    "ConvNetD3": (320_010, 317_706, 504_420, 14),
    "ConvNetD4": (452_490, 450_186, 498_660, 18),
    "ConvNetW32": (24_714, 24_138, 70_884, 14),
    "ConvNetW64": (86_282, 85_130, 178_532, 14),
    "ConvNetW256": (1_229_834, 1_225_226, 1_598_564, 14),
    "ConvNetNN": (319_242, 316_938, 503_652, 8),
    "ConvNetBN": (320_010, 317_706, 504_420, 14),
    "ConvNetLN": (663_306, 661_002, 847_716, 14),
    "ConvNetGN": (320_010, 317_706, 504_420, 14),
    "ConvNetNP": (1_610_250, 1_607_946, 13_406_820, 14),
    "ConvNetMP": (320_010, 317_706, 504_420, 14),
    "ConvNetAP": (320_010, 317_706, 504_420, 14),
    "LeNet": (62_006, 61_706, 69_656, 10),
    "AlexNet": (1_872_202, 1_865_802, 2_148_772, 12),
    "AlexNetBN": (1_874_122, 1_867_722, 2_150_692, 22),
    "VGG11": (9_231_114, 9_229_962, 9_277_284, 34),
    "VGG11BN": (9_231_114, 9_229_962, 9_277_284, 34),
    "ResNet18": (11_173_962, 11_172_810, 11_220_132, 62),
    "ResNet18BN": (11_173_962, 11_172_810, 11_220_132, 62),
    "ResNet18BN_AP": (11_250_762, 11_213_770, 11_988_132, 62),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    colour, grey, hundred, tensors = COUNTS[name]
    net = hollow(REFERENCE_NAMES[name], 3, 32, 32, 10)
    assert (count(net), len(list(net.parameters()))) == (colour, tensors)
    assert count(hollow(REFERENCE_NAMES[name], 1, 28, 28, 10)) == grey
    assert count(hollow(REFERENCE_NAMES[name], 3, 32, 32, 100)) == hundred


def test_published_counts_at_64_pixels_and_of_the_unregistered_network():
    assert count(hollow(REFERENCE_NAMES["ConvNet"], 3, 64, 64, 200)) == 1_938_120
    assert count(hollow(REFERENCE_NAMES["ConvNetD4"], 3, 64, 64, 200)) == 857_160
    assert count(hollow("vgg:depth=16", 3, 32, 32, 10)) == 14_728_266


EMBEDDINGS = {
    "ConvNet": (2048, 2048),
    "ConvNetNP": (131_072, None),
    "ConvNetD1": (32_768, None),
    "ConvNetD2": (8192, None),
    "ConvNetD4": (512, None),
    "ConvNetW32": (512, None),
    "ConvNetW64": (1024, None),
    "ConvNetW256": (4096, None),
    "MLP": (128, 128),
    "LeNet": (84, 84),
    "AlexNet": (3072, 3072),
    "VGG11": (512, 512),
    "ResNet18": (512, 512),
    "ResNet18BN_AP": (8192, 4608),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embedding_has_the_published_size_and_is_what_the_classifier_sees(name):
    colour, grey = EMBEDDINGS[name]
    net = hollow(REFERENCE_NAMES[name], 3, 32, 32)
    assert dry_shape(net, (3, 32, 32), embed=True) == (colour,) == (net.classifier.in_features,)
    if grey is not None:
        assert hollow(REFERENCE_NAMES[name], 1, 28, 28).classifier.in_features == grey


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_every_published_name_builds(name, shape):
    spec = parse_one(REFERENCE_NAMES[name])
    assert str(spec) == REFERENCE_NAMES[name]
    assert dry_shape(hollow(REFERENCE_NAMES[name], *shape), shape) == (10,)


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_builds_and_names_no_network_twice(pool):
    assert len(set(POOLS[pool])) == len(POOLS[pool]) > 1
    for text in POOLS[pool]:
        assert str(parse_one(text)) == text
        assert dry_shape(hollow(text, 3, 32, 32), (3, 32, 32)) == (10,)


def test_pools_are_the_published_ones():
    nets = {pool: [hollow(text, 3, 32, 32) for text in POOLS[pool]] for pool in POOLS}
    published = {
        "vico-m": ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"],
        "vico-b": ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"],
        "width": ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"],
        "depth": ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"],
        "activation": ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"],
        "pooling": ["ConvNetNP", "ConvNetMP", "ConvNetAP"],
        "norm": ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"],
        "haba": ["ConvNet", "AlexNet", "VGG11", "ResNet18"],
    }
    for pool, names in published.items():
        assert [repr(n) for n in nets[pool]] == [repr(hollow(REFERENCE_NAMES[name], 3, 32, 32)) for name in names]


def test_smaller_relatives_have_the_size_of_torchvisions_apart_from_the_stem():
    from torchvision.models import DenseNet, ResNet
    from torchvision.models.resnet import BasicBlock

    with torch.device("meta"):
        residual = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
        dense = DenseNet(12, (6, 12, 24, 16), 24, num_classes=10)
    smaller_stem = 3 * 64 * (7 * 7 - 3 * 3)
    assert count(hollow("resnet10:norm=batch", 3, 32, 32)) == count(residual) - smaller_stem
    assert count(hollow("densenet", 3, 32, 32)) == count(dense) - 3 * 24 * (7 * 7 - 3 * 3) - 2 * 24  # no norm after it


ODD_SHAPES = [(1, 8, 8), (3, 20, 50), (2, 5, 7), (3, 1, 1), (1, 1, 1), (4, 1, 9), (3, 33, 31)]


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_convnet_takes_any_image_size(shape, norm, pooling):
    state = factory(f"convnet:width=4,norm={norm},pooling={pooling}").create(data_spec(*shape, classes=3), 0)
    x = images(2, *shape).requires_grad_()
    assert state(x).shape == (2, 3)
    assert state.embed(x).shape == (2, state.module.classifier.in_features)
    torch.autograd.grad(state(x).sum(), x)


@pytest.mark.parametrize(
    "text",
    ["mlp", "lenet", "alexnet", "vgg", "resnet10", "resnet18", "resnet18:downsample=avgpool", "densenet:growth=2"],
)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 50), (2, 5, 7), (3, 64, 64)])
def test_other_networks_take_any_image_size(text, shape):
    assert dry_shape(hollow(text, *shape), shape) == (10,)


@pytest.mark.parametrize("text", ["convnet:width=8,depth=4", "vgg", "resnet18"])
def test_small_images_reach_the_output(text):
    # Instance norm of a 1x1 map would be constant, and so would be the logits.
    state = factory(text).create(data_spec(3, 8, 8), 0)
    x = images(2, 3, 8, 8).requires_grad_()
    assert torch.autograd.grad(state(x).square().sum(), x)[0].abs().max() > 1e-6


def test_auto_depth_follows_the_smaller_side():
    assert [auto_depth(side, side) for side in (1, 28, 32, 48, 63, 64, 127, 128, 256)] == [3, 3, 3, 3, 3, 4, 4, 5, 6]
    assert auto_depth(32, 128) == auto_depth(128, 32) == 3
    assert count(hollow("convnet", 3, 64, 64)) == count(hollow("convnet:depth=4", 3, 64, 64))


def test_dry_shape_changes_nothing_and_draws_nothing():
    net = factory("convnet:width=4,norm=batch").build(data_spec(3, 8, 8))
    before, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert dry_shape(net, (3, 8, 8)) == (10,)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


# --- layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pool_halves_axes_and_keeps_single_pixels(kind):
    x = images(2, 3, 1, 5)
    pairs = x[..., :4].unflatten(-1, (2, 2))
    expected = pairs.mean(-1) if kind == "avg" else pairs.amax(-1)
    torch.testing.assert_close(Pool(kind)(x), expected)
    assert torch.equal(Pool(kind)(x[..., :1]), x[..., :1])


def test_instance_norm_is_over_the_pixels_of_each_channel():
    x = images(2, 6, 4, 5, dtype=torch.float64)
    layer = norm_layer("instance", (6, 4, 5)).double()
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(layer(x), (x - mean) / (var + 1e-5).sqrt())
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_group_norm_has_four_groups_and_layer_norm_one_weight_a_value():
    x = images(2, 8, 3, 3, dtype=torch.float64)
    grouped = x.reshape(2, 4, -1)
    expected = (grouped - grouped.mean(-1, keepdim=True)) / (grouped.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm_layer("group", (8, 3, 3)).double()(x), expected.reshape(x.shape))
    assert norm_layer("layer", (8, 3, 3)).weight.shape == (8, 3, 3)


def test_group_norm_passes_a_lone_value_on():
    layer = GroupNorm(3, 3)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 0.5)
    x = images(1, 3, 1, 1)
    torch.testing.assert_close(layer(x), 2 * x + 0.5)


def test_activations_follow_their_formulas():
    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(activation_layer("relu")(x), x.clamp(min=0))
    torch.testing.assert_close(activation_layer("sigmoid")(x), 1 / (1 + torch.exp(-x)))
    torch.testing.assert_close(activation_layer("leakyrelu")(x), torch.where(x > 0, x, 0.01 * x))
    torch.testing.assert_close(activation_layer("swish")(x), x / (1 + torch.exp(-x)))


def test_convnet_is_its_published_formula():
    state = factory("convnet:width=8,depth=2").create(data_spec(1, 8, 8, classes=3), 0)
    w = state.params
    x = images(2, 1, 8, 8)
    y = x
    for block, padding in ((1, 3), (2, 1)):
        y = F.conv2d(y, w[f"conv{block}.weight"], w[f"conv{block}.bias"], padding=padding)
        y = F.instance_norm(y) * w[f"norm{block}.weight"][:, None, None] + w[f"norm{block}.bias"][:, None, None]
        y = F.avg_pool2d(y.relu(), 2)
    torch.testing.assert_close(state.embed(x), y.reshape(2, -1))
    torch.testing.assert_close(state(x), y.reshape(2, -1) @ w["classifier.weight"].T + w["classifier.bias"])
    assert list(w) == [f"{m}{b}.{p}" for b in (1, 2) for m in ("conv", "norm") for p in ("weight", "bias")] + [
        "classifier.weight",
        "classifier.bias",
    ]


def test_lenet_pads_small_images_to_32():
    def padding(side):
        return hollow("lenet", 1, side, side).conv1.padding

    assert [padding(side) for side in (8, 28, 31, 32, 40)] == [(12, 12), (2, 2), (1, 1), (0, 0), (0, 0)]


# --- options and names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("convnet:depth=0", "convnet.depth: expected 'auto' or an integer of at least 1, got '0'"),
        ("convnet:depth=deep", "convnet.depth: expected 'auto' or an integer of at least 1, got 'deep'"),
        ("convnet:width=6,norm=group", "norm=group needs a width that is a multiple of 4, got 6"),
        ("convnet:width=0", "option 'width' expects int >= 1 and <= 16384, got '0'"),
        ("convnet:norm=batchnorm", "option 'norm' expects 'instance' | 'batch' | 'layer' | 'group' | 'none'"),
        ("vgg:depth=12", "option 'depth' expects 11 | 13 | 16 | 19, got '12'"),
        ("resnet18:norm=none", "option 'norm' expects 'instance' | 'batch', got 'none'"),
        ("mlp:width=3", "mlp has no option 'width'"),
    ],
)
def test_wrong_options_are_explained(text, part):
    with pytest.raises(ConfigError) as caught:
        factory(text)
    assert part in str(caught.value)


def test_options_round_trip_and_take_python_values():
    config = ConvNetFactory.Config(depth=4, width=16)
    assert ConvNetFactory.Config.model_validate_json(config.model_dump_json()) == config
    assert VGGFactory.Config(depth=16) == VGGFactory.Config(depth="16")
    with pytest.raises(ValidationError):
        ConvNetFactory.Config(depth=2.5)


def test_published_description_becomes_a_spec():
    net = {"arch": "convnet", "width": 8, "depth": 2, "act": "swish", "norm": "batchnorm", "pool": "maxpooling"}
    assert published_spec(net) == "convnet:width=8,depth=2,norm=batch,activation=swish,pooling=max"
    assert published_spec({"arch": "lenet"}) == "lenet"
    with pytest.raises(UsageError, match="unknown norm 'spectral', expected one of instancenorm"):
        published_spec({**net, "norm": "spectral"})


def test_published_names_are_those_of_our_weights_in_any_order():
    names = ["norm2.running_var", "conv1.weight", "classifier.bias"]
    state = factory("convnet:depth=2,norm=batch").create(data_spec(3, 8, 8), 0)
    assert from_published_names(names) == names
    assert set(names) <= {*state.params, *state.buffers}
    published = [f"{m}.{p}" for m in ("conv1", "conv2", "fc1", "fc2", "fc3") for p in ("weight", "bias")]
    ours = from_published_names(published, "lenet")
    assert ours == list(factory("lenet").create(data_spec(1, 28, 28), 0).params)


def test_networks_are_silent(caplog):
    with caplog.at_level(logging.DEBUG):
        ConvNet((3, 8, 8), 2, width=4)
    assert not caplog.records


# --- blocks ---

BLOCKS = {
    "convnet:width=4,depth=2": [(4, 4, 4), (4, 2, 2)],
    "convnet:width=4,depth=2,pooling=none,norm=none": [(4, 8, 8), (4, 8, 8)],
    "mlp": [(128,), (128,)],
    "lenet": [(6, 14, 14), (16, 5, 5), (120,), (84,)],
    "resnet10": [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)],
    "densenet:growth=2": [(16, 8, 8), (32, 4, 4), (64, 2, 2), (64, 1, 1)],
    "resnet18": [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)],
}


@pytest.mark.parametrize(("text", "shapes"), BLOCKS.items())
def test_blocks_are_what_the_layers_between_them_give(text, shapes):
    state = factory(text).create(data_spec(3, 8, 8), 0)
    x = images(2, 3, 8, 8)
    blocks = state.blocks(x)
    assert [tuple(block.shape[1:]) for block in blocks] == shapes
    if not text.startswith(("resnet", "densenet")):  # which average their last block
        assert torch.equal(blocks[-1].flatten(1), state.embed(x))
    heavier = {name: 2 * p for name, p in state.params.items()}
    assert not torch.equal(state.blocks(x, heavier)[0], blocks[0])


def test_first_block_of_a_convnet_is_convolution_norm_activation_and_pooling():
    state = factory("convnet:width=4,depth=2").create(data_spec(3, 8, 8), 0)
    x, p = images(2, 3, 8, 8), state.params
    by_hand = F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=1)
    by_hand = F.group_norm(by_hand, 4, p["norm1.weight"], p["norm1.bias"])
    assert torch.allclose(state.blocks(x)[0], F.avg_pool2d(by_hand.relu(), 2), atol=1e-6)


def test_blocks_of_a_network_without_any_are_its_embedding():
    from dcf.testing.fakes import TinyFactory

    state = TinyFactory().create(data_spec(3, 8, 8), 0)
    x = images(2, 3, 8, 8)
    (only,) = state.blocks(x)
    assert torch.equal(only, state.embed(x))
