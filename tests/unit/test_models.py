"""Networks: published sizes, options, and what every network promises."""

from functools import lru_cache

import pytest
import torch
from matching import close
from torch import nn

from ddengine.models import EXAMPLES, build_model
from ddengine.models.convolution import Convolution
from ddengine.models.instance_norm import InstanceNorm
from ddengine.models.pooling import AveragePool
from ddengine.system.compat import torchvision
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

NAMES = (
    *EXAMPLES,
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/resnet18-small",
    "torchvision/mobilenet_v2-small",
    "torchvision/shufflenet_v2_x0_5-small",
    "torchvision/efficientnet_b0-small",
)
SHAPES = ((3, 32, 32), (1, 28, 28))
CLASSES = 7


def new(name, shape=(3, 32, 32), classes=CLASSES, seed=0):
    """A freshly built network."""
    return build_model(name, shape, classes, generator(seed, "network"))


@lru_cache
def network(name, shape=(3, 32, 32)):
    """The same network for several tests: no dropout, BatchNorm on the batch (a new network's
    running statistics leave nothing of the image).
    """
    model = new(name, shape).eval()
    for norm in modules(model, nn.BatchNorm2d):
        norm.train().momentum = 0.0
    return model


def modules(model, kind):
    """Its modules of a type, in order."""
    return [m for m in model.modules() if isinstance(m, kind)]


def images(shape, num=2):
    """Normal noise."""
    return torch.randn(num, *shape, generator=generator(1))


# Sizes


@pytest.mark.parametrize(
    ("name", "side", "classes", "parameters"),
    [
        ("convnet-d3-w128-in", 32, 10, 320_010),
        ("convnet-d3-w128x2-bn", 32, 10, 1_562_634),
        ("convnet-d3-w128-in", 32, 100, 504_420),
        ("convnet-d4-w128-in", 64, 200, 857_160),
        ("convnet-d5-w128-in", 128, 10, 615_690),
        ("convnet-d4-w128-in", 64, 1000, 2_496_360),
    ],
)
def test_published_parameter_counts(name, side, classes, parameters):
    assert sum(p.numel() for p in new(name, (3, side, side), classes).parameters()) == parameters


def test_alexnet_vgg_and_resnet_end_in_one_linear_layer_of_the_published_width():
    for name, width in (
        ("alexnet", 192 * 4 * 4),
        ("vgg11-in", 512),
        ("resnet18-in", 512),
        ("resnet18-ap", 512 * 4 * 4),
        ("lenet", 84),
        ("mlp", 128),
    ):
        assert modules(network(name), nn.Linear)[-1].in_features == width
    assert (
        len(modules(network("alexnet"), nn.Linear))
        == len(modules(network("vgg11-in"), nn.Linear))
        == 1
    )
    assert not modules(network("alexnet"), nn.Dropout)


# Options of the ConvNet


@pytest.mark.parametrize("depth", range(1, 6))
def test_convnet_depth(depth):
    model = new(f"convnet-d{depth}-w8", (3, 32, 32))
    assert len(modules(model, nn.Conv2d)) == len(modules(model, nn.AvgPool2d)) == depth
    assert model.classifier.in_features == 8 * (32 // 2**depth) ** 2


def test_convnet_of_the_largest_depth_without_pooling():
    model = new("convnet-d8-w4-np")
    assert len(modules(model, nn.Conv2d)) == 8
    assert model.classifier.in_features == 4 * 32 * 32


@pytest.mark.parametrize("width", [4, 12, 200])
def test_convnet_width(width):
    assert {c.out_channels for c in modules(new(f"convnet-w{width}-d2"), nn.Conv2d)} == {width}


@pytest.mark.parametrize(
    ("option", "kind", "groups"),
    [
        ("in", InstanceNorm, 8),
        ("gn", nn.GroupNorm, 4),
        ("bn", nn.BatchNorm2d, None),
        ("ln", nn.LayerNorm, None),
        ("nn", None, None),
    ],
)
def test_convnet_norm(option, kind, groups):
    norms = modules(new(f"convnet-d2-w8-{option}"), nn.GroupNorm | nn.BatchNorm2d | nn.LayerNorm)
    assert [type(n) for n in norms] == ([kind] * 2 if kind else [])
    if groups:
        assert all(n.num_groups == groups and n.affine and n.eps == 1e-5 for n in norms)
    if option == "ln":
        assert [tuple(n.normalized_shape) for n in norms] == [(8, 32, 32), (8, 16, 16)]


@pytest.mark.parametrize(
    ("option", "kind"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid), ("leaky", nn.LeakyReLU)]
)
def test_convnet_activation(option, kind):
    found = modules(new(f"convnet-d2-w8-{option}"), nn.ReLU | nn.Sigmoid | nn.LeakyReLU)
    assert [type(m) for m in found] == [kind] * 2
    if option == "leaky":
        assert found[0].negative_slope == 0.01


@pytest.mark.parametrize(
    ("option", "kind", "width"),
    [("ap", AveragePool, 8 * 64), ("mp", nn.MaxPool2d, 8 * 64), ("np", None, 8 * 1024)],
)
def test_convnet_pooling(option, kind, width):
    model = new(f"convnet-d2-w8-{option}")
    assert [type(m) for m in modules(model, nn.AvgPool2d | nn.MaxPool2d)] == (
        [kind] * 2 if kind else []
    )
    assert model.classifier.in_features == width


def test_convnet_defaults_and_order_of_options():
    usual, bare, mixed = (
        new("convnet-d3-w128-in-relu-ap"),
        new("convnet"),
        new("convnet-ap-in-w128-relu-d3"),
    )
    for a, b, c in zip(
        usual.state_dict().values(),
        bare.state_dict().values(),
        mixed.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert str(usual) == str(bare) == str(mixed)


def test_convnet_block_order():
    """Convolution with bias, norm, activation, pooling."""
    block = list(new("convnet-d1-w8").features)
    assert [type(m) for m in block] == [Convolution, InstanceNorm, nn.ReLU, AveragePool]
    assert (
        block[0].bias is not None and block[0].stride == (1, 1) and block[0].kernel_size == (3, 3)
    )


@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        ((1, 28, 28), 3),
        ((3, 28, 28), 1),
        ((1, 32, 32), 1),
        ((1, 28, 32), 1),
        ((1, 27, 28), 1),
        ((1, 8, 8), 1),
    ],
)
def test_first_convolution_pads_one_channel_28_to_32_and_nothing_else(shape, padding):
    model = new("convnet-d2-w8-ln", shape)
    assert [c.padding[0] for c in modules(model, nn.Conv2d)] == [padding, 1]
    assert model(images(shape)).shape == (2, CLASSES)


def test_other_networks_see_small_images_centred_in_zeros():
    shape = (1, 28, 28)
    small = images(shape)
    for name in ("lenet", "torchvision/shufflenet_v2_x0_5-small"):
        same = network(name, (1, 32, 32))
        close(network(name, shape)(small), same(nn.functional.pad(small, [2, 2, 2, 2])), 1e-3)


# What every network promises

every = pytest.mark.parametrize("name", NAMES)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@every
@every_shape
def test_logits_come_from_embed_and_the_last_linear_layer(name, shape):
    model, batch = network(name, shape), images(shape)
    with torch.no_grad():
        logits, features = model(batch), model.embed(batch)
        last = modules(model, nn.Linear)[-1]
        assert logits.shape == (2, CLASSES)
        assert features.shape == (2, last.in_features)
        close(last(features), logits, 1e-3)  # rounding through deep networks
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()  # the image matters


@every
@every_shape
def test_gradients_reach_every_image(name, shape):
    batch = images(shape).requires_grad_()
    loss = nn.functional.cross_entropy(network(name, shape)(batch), torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(loss, batch)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(1) > 0).all()


@every
def test_a_generator_decides_the_parameters_and_global_generators_do_not(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = new(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.training and all(p.requires_grad for p in again.parameters())
    other = new(name, seed=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.parameters(), network(name).parameters(), strict=True)
    )
    assert not all(
        torch.equal(a, b) for a, b in zip(again.parameters(), other.parameters(), strict=True)
    )


def test_the_norm_option_of_vgg_and_resnet():
    for family, layers in (("vgg11", 8), ("resnet18", 20)):
        assert len(modules(network(f"{family}-in"), nn.GroupNorm)) == layers
        assert all(
            m.num_groups == m.num_channels for m in modules(network(f"{family}-in"), nn.GroupNorm)
        )
        assert len(modules(network(f"{family}-bn"), nn.BatchNorm2d)) == layers
        assert not modules(network(f"{family}-bn"), nn.GroupNorm)


def test_resnet18_ap_pools_where_resnet18_strides():
    model = network("resnet18-ap")
    assert {c.stride for c in modules(model, nn.Conv2d)} == {(1, 1)}
    assert not modules(model, nn.AdaptiveAvgPool2d)
    assert len(modules(model, nn.AvgPool2d)) >= 3
    assert {c.stride for c in modules(network("resnet18-in"), nn.Conv2d)} == {(1, 1), (2, 2)}


# torchvision


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "efficientnet_b0"]
)
def test_small_images_meet_a_stem_without_stride_and_max_pooling(name):
    small = f"torchvision/{name}-small"
    for model in (network(small), new(small, (3, 64, 64))):
        stem = modules(model, nn.Conv2d)[0]
        assert stem.stride == (1, 1) and stem.kernel_size == (3, 3) and stem.padding == (1, 1)
        assert not modules(model, nn.MaxPool2d)


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 8), ("resnet18", 32), ("resnet18", 96), ("resnet18-small", 96)],
)
def test_the_stem_as_it_is(name, side):
    """Of torchvision's own network for every image, and of the small one for large images."""
    model = new(f"torchvision/{name}", (1, side, side))
    stem = modules(model, nn.Conv2d)[0]
    assert (stem.in_channels, stem.kernel_size, stem.stride, stem.padding) == (
        1,
        (7, 7),
        (2, 2),
        (3, 3),
    )
    assert len(modules(model, nn.MaxPool2d)) == 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 32, 32)),
        ("mobilenet_v2", (3, 28, 28)),
        ("shufflenet_v2_x0_5", (3, 64, 48)),
        ("vgg11", (3, 64, 64)),
        ("vit_b_16", (3, 32, 32)),
    ],
)
def test_a_network_of_torchvision_is_what_torchvision_calls_so(name, shape):
    """With its weights it computes what it computes there, from images as they are."""
    more = {"image_size": 32} if name.startswith("vit") else {}
    theirs = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **more).eval()
    ours = new(f"torchvision/{name}", shape).eval()
    assert ours.small is False
    ours.load_torchvision(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    batch = images(shape)
    with torch.no_grad():
        assert torch.equal(ours(batch), theirs(batch))


def test_vision_transformer_has_its_own_patches_and_small_ones_eight_a_side():
    assert new("torchvision/vit_b_16", (3, 32, 32)).body.conv_proj.kernel_size == (16, 16)
    model = new("torchvision/vit_b_16-small", (3, 32, 32))
    assert model.body.conv_proj.kernel_size == (4, 4)
    assert model.body.seq_length == 65
    for name, says in (
        ("vit_b_16", r"patches of 16 pixels.*data\.size.*vit_b_16-small"),
        ("vit_b_16-small", r"multiples of 8.*data\.size"),
    ):
        with pytest.raises(UserError, match=says):
            new(f"torchvision/{name}", (3, 36, 36))


def test_a_network_that_small_images_are_too_small_for_names_the_one_they_are_not():
    with pytest.raises(
        UserError, match=r"vgg11 cannot take images of 28x28.*torchvision/vgg11-small"
    ):
        new("torchvision/vgg11", (1, 28, 28))
    new("torchvision/vgg11-small", (1, 28, 28))
    with pytest.raises(UserError, match=r"maxvit_t cannot take images of 96x96.*set data.size\.$"):
        new("torchvision/maxvit_t", (3, 96, 96))


# Names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("convnt-d3-w128-in", "convnet-d3-w128-in"),
        ("convnet-d3-w128-inn", "convnet-d3-w128-in"),
        ("resnet18-an", "resnet18-ap"),
        ("resnet19", "resnet18"),
        ("vgg11-xn", "vgg11-bn"),
        ("lenet-d3", "lenet"),
        ("torchvision/resnet17", "torchvision/resnet18"),
        ("torchvision/mobilenet-v2", "torchvision/mobilenet_v2"),
        ("torchvision/resnet18-smal", "torchvision/resnet18-small"),
    ],
)
def test_an_unknown_name_names_the_nearest(name, nearest):
    with pytest.raises(UserError) as error:
        new(name)
    assert nearest in str(error.value).partition("nearest:")[2]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("convnet-d3-d4", "second"),
        ("convnet-in-bn", "second"),
        ("convnet-d9", "depth"),
        ("convnet-d0", "depth"),
        ("convnet-w0", "width"),
        ("convnet-w8-w8x2", "second"),
        ("convnet-w8x3", "not an option"),
        ("convnet-gn-w6", "multiple of 4"),
        ("convnet-d6", "smaller depth"),
    ],
)
def test_options_that_make_no_network_say_why(name, says):
    with pytest.raises(UserError, match=says):
        new(name)
