"""Networks of mobile devices in their 32-pixel forms, widths by percent, and the features in the
middle of networks.
"""

import hashlib

import pytest
import torch
from matching import close
from torch import nn

from ddengine.learning.flat import flatten
from ddengine.models import build_model, middle, middle_channels
from ddengine.models.dropout import is_dropout
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

FAMILIES = ("mobilenet_v2", "efficientnet_b0", "shufflenet_g2")
SHAPE = (3, 32, 32)


def new(name, shape=SHAPE, classes=10):
    """A freshly built network."""
    return build_model(name, shape, classes, generator(0, "network"))


def images(shape, num=2):
    """Normal noise."""
    return torch.randn(num, *shape, generator=generator(1))


def size(network):
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def modules(network, kind):
    """Its modules of a type, in order."""
    return [m for m in network.modules() if isinstance(m, kind)]


def shape_at(network, module, shape):
    """Of what a module gives in a forward pass."""
    found = []
    hook = module.register_forward_hook(lambda m, i, output: found.append(tuple(output.shape[1:])))
    with torch.no_grad():
        network.eval()(images(shape))
    hook.remove()
    (one,) = found
    return one


@pytest.mark.parametrize(
    ("name", "parameters", "width", "side"),
    [
        # the field's own forms have 2,296,922 and 3,599,686: see the next test
        ("mobilenet_v2", 2_236_682, 1280, 4),
        ("efficientnet_b0", 4_020_358, 1280, 2),
        ("shufflenet_g2", 887_582, 800, 4),
        ("resnet18-bn", 11_173_962, 512, 4),
    ],
)
def test_sizes(name, parameters, width, side):
    """Parameters at 10 classes, features, and the side of the last maps of 32 pixels and of 64."""
    network = new(name)
    assert size(network) == parameters
    assert network.classifier.in_features == width and network.embed(images(SHAPE)).shape == (
        2,
        width,
    )
    pooling = modules(network, nn.AdaptiveAvgPool2d)[-1]
    for factor in (1, 2):
        found = []
        hook = pooling.register_forward_hook(
            lambda m, i, o, found=found: found.append(i[0].shape[2:])
        )
        network(images((3, 32 * factor, 32 * factor)))
        hook.remove()
        assert found == [(side * factor, side * factor)]


def test_what_differs_from_the_fields_own_forms():
    """By arithmetic: one more 1x1 convolution with its norm, shortcuts where the width changes, no
    convolution to 1280 maps.
    """
    first = 32 * 32 + 2 * 32
    shortcuts = sum(a * b + 2 * b for a, b in ((32, 16), (16, 24), (64, 96), (160, 320)))
    assert size(new("mobilenet_v2")) + first + shortcuts == 2_296_922
    last = 320 * 1280 + 2 * 1280 + (1280 - 320) * 10
    assert size(new("efficientnet_b0")) + first - last == 3_599_686


@pytest.mark.parametrize(
    ("name", "strides", "sides"),
    [
        ("mobilenet_v2", 3, (32, 16, 8, 4)),
        ("efficientnet_b0", 4, (32, 16, 8, 4, 2)),
        ("shufflenet_g2", 3, (32, 16, 8, 4)),
    ],
)
def test_strides(name, strides, sides):
    """The stem has none; the sides of all convolutions' maps, in order."""
    network, seen = new(name), []
    convolutions = modules(network, nn.Conv2d)
    assert convolutions[0].stride == (1, 1)
    assert [c.stride for c in convolutions].count((2, 2)) == strides
    hooks = [
        c.register_forward_hook(lambda m, i, output: seen.append(output.shape[-1]))
        for c in convolutions
    ]
    network.eval()(images(SHAPE))
    for hook in hooks:
        hook.remove()
    maps = [side for side in seen if side > 1]  # squeeze-and-excitation gives 1x1
    assert tuple(dict.fromkeys(maps)) == sides and maps == sorted(maps, reverse=True)


@pytest.mark.parametrize("name", [*(f"{family}-x25" for family in FAMILIES), "resnet18-bn-x25"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 64, 64)])
def test_images_of_every_size(name, shape):
    """Evaluation repeats itself, does not mix images, and the last layer sees what embed gives."""
    network = new(name, shape, 7)
    with torch.no_grad():
        network(images(shape, 8))  # running statistics
        network.eval()
        logits, batch = network(images(shape)), images(shape)
        assert logits.shape == (2, 7) and logits.isfinite().all()
        assert torch.equal(logits, network(batch))
        close(network(batch[1:]), logits[1:], 1e-3)  # rounding through deep networks
        close(network.classifier(network.embed(batch)), logits, 1e-3)


def test_small_images_are_centred_in_zeros():
    small = images((1, 28, 28))
    network = new("shufflenet_g2-x25", (1, 28, 28)).eval()
    with torch.no_grad():
        close(network(small), network(nn.functional.pad(small, [2, 2, 2, 2])), 1e-3)


def test_dropout_is_where_the_family_has_it_and_is_recognised():
    """Only EfficientNet draws random numbers while training, and none when its dropout is off."""
    for family in FAMILIES:
        network = new(f"{family}-x25").train()
        drops = [m for m in network.modules() if is_dropout(m)]
        kinds = [type(m).__name__ for m in drops]
        assert bool(drops) == (family == "efficientnet_b0")
        if drops:
            assert kinds.count("Dropout") == 1 and drops[-1].p == 0.2
            assert [m.p for m in drops[:-1]] == pytest.approx([0.2 * i / 16 for i in range(16)])
            for m in drops:
                m.eval()
        batch, state = images(SHAPE), torch.get_rng_state()
        with torch.no_grad():
            assert torch.equal(network(batch), network(batch))
        assert torch.equal(torch.get_rng_state(), state)


def test_shuffle_units():
    """Groups, shuffled between; the stem's maps are not divided; pooled maps come behind those
    made.
    """
    network = new("shufflenet_g2")
    stem, first, second = network.features[0], network.features[3], network.features[4]
    assert (stem.kernel_size, stem.out_channels) == ((1, 1), 24)
    assert [len(modules(network, nn.AvgPool2d)), len(network.features)] == [3, 3 + 4 + 8 + 4 + 1]
    assert (
        first.enter[0].groups,
        first.enter[0].out_channels,
        first.leave[3].groups,
        first.leave[3].out_channels,
    ) == (1, 44, 2, 176)
    assert (
        second.enter[0].groups,
        second.enter[0].out_channels,
        second.leave[0].groups,
        second.leave[3].out_channels,
    ) == (2, 50, 50, 200)
    maps = images((24, 8, 8)).abs()
    assert torch.equal(first(maps)[:, 176:], nn.functional.avg_pool2d(maps, 3, 2, 1))
    order = second.shuffle(torch.arange(50.0).view(1, 50, 1, 1)).flatten().tolist()
    assert order[:4] == [0, 25, 1, 26]


# Widths by percent


def test_percent_scales_every_width():
    thin = {
        "mobilenet_v2": (8, 1280),
        "efficientnet_b0": (8, 320),
        "shufflenet_g2": (8, 200),
        "resnet18": (16, 128),
    }
    for family, (stem, features) in thin.items():
        network, full = new(f"{family}-x25"), new(family)
        assert (modules(network, nn.Conv2d)[0].out_channels, network.classifier.in_features) == (
            stem,
            features,
        )
        assert len(modules(network, nn.Conv2d)) == len(modules(full, nn.Conv2d))
        assert size(network) < size(full) / 8
        same = new(f"{family}-x100")
        assert all(
            torch.equal(a, b)
            for a, b in zip(full.state_dict().values(), same.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("percent", [10, 37, 130])
def test_any_percent_makes_a_network(percent):
    sizes = []
    for family in (*FAMILIES, "resnet18-ap"):
        network = new(f"{family}-x{percent}")
        assert network(images(SHAPE)).shape == (2, 10)
        sizes.append(size(network) / size(new(family)))
    assert all((s < 0.5) == (percent < 50) and (s > 1.2) == (percent > 100) for s in sizes)


def test_the_options_of_resnet18_come_in_any_order():
    for norm in ("in", "bn", "ap"):
        a, b = new(f"resnet18-{norm}-x25"), new(f"resnet18-x25-{norm}")
        assert str(a) == str(b) and torch.equal(flatten(a), flatten(b))
    assert (
        modules(new("resnet18-bn-x25"), nn.BatchNorm2d)
        and new("resnet18-ap-x25").classifier.in_features == 128 * 4 * 4
    )


def test_resnet18_is_as_it_was_without_a_percent():
    """Names, shapes and order of the parameters, and how many random numbers they took: digests of
    before there was the option.
    """
    layouts = {
        "resnet18": "e8f7b54038df019c",
        "resnet18-bn": "f3e75921f3ab7765",
        "resnet18-ap": "64fd7988443f35b4",
    }
    for name, wanted in layouts.items():
        layout = repr(
            [(key, tuple(tensor.shape)) for key, tensor in new(name).state_dict().items()]
        )
        assert hashlib.sha256(layout.encode()).hexdigest()[:16] == wanted
    network = new("resnet18-bn")
    sums = [
        float(p.detach().double().sum())
        for p in (network.features[0].weight, network.classifier.weight, network.classifier.bias)
    ]
    assert sums == pytest.approx([-5.343137, 0.649427, 0.082909], abs=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18-x9",
        "resnet18-x401",
        "resnet18-x25-x50",
        "resnet18-x",
        "mobilenet_v2-bn",
        "shufflenet_g2-x0",
        "efficientnet_b0-25",
    ],
)
def test_other_options_are_refused(name):
    with pytest.raises(UserError, match=name):
        new(name)


# The middle


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("resnet18-bn-x25", (64, 8, 8)),
        ("resnet18-ap-x25", (64, 8, 8)),
        ("mobilenet_v2-x25", (24, 8, 8)),
        ("efficientnet_b0-x25", (32, 4, 4)),
        ("shufflenet_g2-x25", (104, 8, 8)),
        ("convnet-d3-w8-bn", (8, 16, 16)),
        ("vgg11-bn", (512, 4, 4)),
        ("lenet", (6, 14, 14)),
        ("torchvision/resnet18-small", (256, 8, 8)),
        ("torchvision/shufflenet_v2_x0_5-small", (96, 8, 8)),
    ],
)
def test_middle_is_the_end_of_the_last_stage_but_one(name, maps):
    """Twice as large for images twice as large."""
    network = new(name)
    assert shape_at(network, middle(network, SHAPE), SHAPE) == maps
    assert middle_channels(network, SHAPE) == maps[0]
    if name.startswith(("resnet18-bn", "mobile", "efficient", "shuffle")):
        large = (3, 64, 64)
        assert shape_at(network, middle(network, large), large) == (
            maps[0],
            2 * maps[1],
            2 * maps[2],
        )


def test_middle_leaves_the_network_as_it_was():
    """Statistics, modes of all modules, hooks, gradients."""
    network = new("resnet18-bn-x25").train()
    network.features[1].eval()
    modes, state = (
        [m.training for m in network.modules()],
        {k: v.clone() for k, v in network.state_dict().items()},
    )
    found = middle(network, SHAPE)
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items())
    assert not any(m._forward_hooks for m in network.modules()) and found is network.features[8]
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("name", ["mlp", "convnet-d1-w4", "convnet-d3-w4-np"])
def test_networks_without_a_middle_are_refused(name):
    with pytest.raises(
        UserError, match=r"no features in the middle; name another network, such as resnet18-bn"
    ):
        middle(new(name), SHAPE)


def test_channels_last_are_not_taken_for_sides():
    """A transformer of torchvision whose maps are (B, h, w, c)."""
    shape = (3, 48, 48)
    with pytest.raises(UserError, match="no features in the middle"):
        middle(new("torchvision/swin_t-small", shape), shape)
