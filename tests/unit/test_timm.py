"""timm's classifiers: an optional package."""

from functools import lru_cache

import pytest
import torch
from matching import close
from torch import nn

from ddengine.data import Preprocess, RealSet
from ddengine.learning import training
from ddengine.learning.flat import FlatModel, flatten
from ddengine.models import build_model, timm_models, usual_optimiser
from ddengine.recipe import EvalConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

CLASSES = 7
FAMILIES = (
    "resnet10t",
    "resnet10t-small",
    "vit_tiny_patch16_224-small",
    "convnext_atto-small",
    "mobilenetv3_small_050-small",
    "gmlp_ti16_224-small",
)
needs_timm = pytest.mark.skipif(not timm_models.installed(), reason="timm is optional")


def new(name, shape=(3, 32, 32), seed=0):
    """A freshly built network."""
    return build_model(f"timm/{name}", shape, CLASSES, generator(seed, "network"))


@lru_cache
def network(name, shape=(3, 32, 32)):
    """The same for several tests: BatchNorm on the batch, so that something of the image is left."""
    model = new(name, shape).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train().momentum = 0.0
    return model


def images(shape, num=2):
    """Normal noise."""
    return torch.randn(num, *shape, generator=generator(1))


def first_convolution(model):
    """Its sides and stride."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    return first.kernel_size[0], first.stride[0]


@needs_timm
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_logits_come_from_embed_and_the_last_linear_layer(name, shape):
    model, batch = network(name, shape), images(shape).requires_grad_()
    logits, features = model(batch), model.embed(batch)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert logits.shape == (2, CLASSES) and features.shape == (2, last.in_features)
    close(last(features), logits, 1e-3)  # rounding through deep networks
    # not of the logits: gMLP's and MLP-Mixer's last layer begins at zero
    (gradient,) = torch.autograd.grad(features.square().sum(), batch)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(1) > 0).all()


@needs_timm
@pytest.mark.parametrize("name", FAMILIES)
def test_a_generator_decides_the_parameters_and_global_generators_do_not(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    timm_models._plan.cache_clear()  # what is tried first must not move the draws
    first, second, other = new(name), new(name), new(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.training and all(p.requires_grad for p in first.parameters())
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not all(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


@needs_timm
@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("resnet18-small", 32, (3, 1)),
        ("mobilenetv3_small_050-small", 64, (3, 1)),
        ("mobilenetv3_small_050-small", 96, (3, 2)),
        ("vit_tiny_patch16_224-small", 64, (8, 8)),  # 8 patches a side
        ("vit_tiny_patch16_224-small", 96, (16, 16)),
        ("convnext_atto-small", 32, (2, 2)),  # 16 a side, halved three times
        ("mixer_s32_224-small", 32, (4, 4)),
        ("resnet18", 32, (7, 2)),
        ("mobilenetv3_small_050", 64, (3, 2)),
        ("vit_tiny_patch16_224", 64, (16, 16)),
        ("convnext_atto", 32, (4, 4)),
    ],
)
def test_small_images_meet_another_stem_and_large_ones_the_published_one(name, side, expected):
    assert first_convolution(new(name, (3, side, side))) == expected


@needs_timm
def test_resnet18_loses_its_first_pooling_on_small_images():
    assert not any(isinstance(m, nn.MaxPool2d) for m in network("resnet18-small").modules())
    for model in (network("resnet18"), new("resnet18-small", (3, 96, 96))):
        assert any(isinstance(m, nn.MaxPool2d) for m in model.modules())


@needs_timm
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_network_of_timm_is_what_timm_calls_so(name):
    """With its weights it computes what it computes there."""
    import timm

    more = {"img_size": (32, 32)} if name.startswith("vit") else {}
    theirs = timm.create_model(name, num_classes=CLASSES, **more).eval()
    ours = new(name).eval()
    state = theirs.state_dict()
    of_ours = [t for n, t in ours.state_dict().items() if not n.startswith("head.")]
    of_theirs = [t for n, t in state.items() if not n.startswith(("head.", "fc."))]
    head = [t for n, t in state.items() if n.startswith(("head.", "fc."))]
    for here, there in zip(
        [*of_ours, ours.head.weight, ours.head.bias], [*of_theirs, *head], strict=True
    ):
        here.data.copy_(there)
    batch = images((3, 32, 32))
    with torch.no_grad():
        close(ours(batch), theirs(batch), 1e-5)


@needs_timm
@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_050-small", "convnext_atto-small", "vit_tiny_patch16_224-small"],
)
def test_networks_trained_together_are_those_trained_one_by_one(name, monkeypatch):
    labels = torch.arange(8) % CLASSES
    pixels = torch.randint(0, 256, (8, 1, 8, 8), generator=generator(2), dtype=torch.uint8)
    real = RealSet(
        pixels, labels, CLASSES, Preprocess(mean=torch.tensor([0.5]), std=torch.tensor([0.3]))
    )
    config = EvalConfig(protocol="test", epochs=1, batch=8)
    reached = []
    for most in (0, 2**62):
        monkeypatch.setattr(training, "MOST_PIXELS_CPU", most)
        build = lambda rng: build_model(f"timm/{name}", real.image_shape, CLASSES, rng)  # noqa: E731
        reached.append(
            training.train_networks(
                build, [real] * 2, [0, 1], config, 0.001, torch.device("cpu"), steps=1
            )
        )
    for alone, together in zip(*reached, strict=True):
        assert (flatten(alone) - flatten(together)).norm() <= 1e-4 * (
            flatten(alone) - flatten(new(name, real.image_shape))
        ).norm()
    assert not torch.equal(flatten(reached[0][0]), flatten(reached[0][1]))


@needs_timm
def test_attention_has_second_derivatives():
    """What gradient and trajectory matching need of a network."""
    model = FlatModel(network("vit_tiny_patch16_224-small"))
    theta, batch = (
        flatten(network("vit_tiny_patch16_224-small")).requires_grad_(),
        images((3, 32, 32)).requires_grad_(),
    )
    (gradient,) = torch.autograd.grad(model(theta, batch).square().sum(), theta, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), batch)
    assert second.isfinite().all() and second.abs().max() > 0


# Errors


@needs_timm
@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("vit_tiny_patch16_224", (3, 36, 33), r"33.*data\.size"),
        (
            "vit_tiny_patch16_224",
            (3, 100, 100),
            r"100x100.*multiples of its patches of 16 pixels.*data\.size",
        ),
        ("vit_tiny_patch16_224", (3, 28, 28), "name timm/vit_tiny_patch16_224-small"),
        ("levit_128s", (3, 32, 32), "does not end in one linear layer"),
    ],
)
def test_what_cannot_be_used_says_why(name, shape, says):
    with pytest.raises(UserError, match=rf"^timm/{name} .*{says}") as error:
        new(name, shape)
    assert str(error.value).count("\n") == 0


@needs_timm
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnt18", "timm/resnet18"),
        ("resnet18-smal", "timm/resnet18-small"),
        ("resnet18.a1_in1k", "timm/resnet18"),
        ("vit_tiny_patch16_225", "timm/vit_tiny_patch16_224"),
    ],
)
def test_an_unknown_name_names_the_nearest(name, nearest):
    with pytest.raises(UserError) as error:
        new(name)
    assert nearest in str(error.value).partition("nearest:")[2]


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(timm_models, "installed", lambda: False)
    with pytest.raises(
        UserError, match=r"^timm/resnet18 needs the package timm; pip install timm, or name .*\.$"
    ):
        new("resnet18")


# Optimisers


@pytest.mark.parametrize(
    ("optimiser", "networks"),
    [
        (
            "adamw",
            (
                "torchvision/vit_b_16 torchvision/swin_t torchvision/maxvit_t "
                "torchvision/convnext_tiny timm/deit_tiny_patch16_224 timm/mixer_s32_224"
            ),
        ),
        (
            "sgd",
            (
                "convnet-d3-w128-in mlp lenet alexnet vgg11-in resnet18-bn mobilenet_v2 "
                "efficientnet_b0 shufflenet_g2"
            ),
        ),
        (
            "sgd",
            (
                "torchvision/resnet18 torchvision/mobilenet_v3_small "
                "torchvision/shufflenet_v2_x0_5-small timm/resnet10t timm/mobilenetv3_small_050"
            ),
        ),
    ],
)
def test_usual_optimiser(optimiser, networks):
    assert {usual_optimiser(name) for name in networks.split()} == {optimiser}
