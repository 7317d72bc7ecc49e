"""torchvision's weights as an expert: out of a file of randomly initialised networks here."""

import json
import re
from functools import lru_cache

import pytest
import torch
from helpers import CPU, DIGITS
from torch import nn

from buffers import pretrained, store
from buffers.experts import generate
from buffers.pretrained import Pretrained
from buffers.steps import Sgd
from buffers.store import ExpertStore
from ddengine.artefact.exchange import sha256
from ddengine.data import load_data
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.system.compat import torchvision
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, scoped

NAME = "shufflenet_v2_x0_5"  # the smallest
FILE = "shufflenetv2_x0.5-f707e7126e.pth"
SHAPE = (3, 96, 96)


def images(shape=SHAPE, num=2):
    """Normal noise."""
    return torch.randn(num, *shape, generator=generator(1))


def settled(network, shape=SHAPE):
    """With the running statistics of a few images, without which nothing is left of them, in
    evaluation mode.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images(shape, 4))
    return network.eval()


@lru_cache
def theirs(name=NAME):
    """A network of torchvision."""
    with scoped(generator(3)):
        return settled(torchvision.models.get_model_builder(name)(weights=None))


def ours(name=NAME, shape=SHAPE, classes=1000):
    """The same network of this program, with other weights."""
    return build_model(f"torchvision/{name}", shape, classes, generator(0))


@pytest.fixture(autouse=True)
def taken_for_published(request, monkeypatch):
    """The files here have torchvision's names and not their content."""
    if "as_published" not in request.node.name:
        monkeypatch.setattr(pretrained, "is_published", lambda path, digest: True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file like that of torchvision's weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(theirs().state_dict(), folder / FILE)
    return folder


def agree(one, other):
    """Whether two networks say the same of images."""
    with torch.no_grad():
        a, b = one.eval()(images()), other.eval()(images())
    return (a - b).abs().max() < 1e-3 * (a[0] - a[1]).abs().max()


# The weights of torchvision's networks


@pytest.mark.parametrize(
    ("name", "head"),
    [
        (NAME, "fc"),
        ("resnet18", "fc"),
        ("densenet121", "classifier"),
        ("mnasnet0_5", "classifier.1"),
    ],
)
def test_weights_of_torchvision_make_its_network(name, head):
    network, source = ours(name), theirs(name)
    assert network.head_path == head
    assert not agree(network, source)
    network.load_torchvision(source.state_dict())
    assert agree(network, source)


def test_files_of_old():
    """Without the counters of BatchNorm; and the layers of DenseNet had other names."""
    source = theirs("densenet121")
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v
        for k, v in source.state_dict().items()
        if "num_batches" not in k
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    network = ours("densenet121")
    network.load_torchvision(state)
    assert agree(network, source)


def test_a_file_of_the_right_name_is_read(folder):
    """And said, with its digest."""
    network = ours()
    facts = Pretrained(folder=str(folder)).load(network, f"torchvision/{NAME}")
    assert facts == {"file": FILE, "sha256": sha256(folder / FILE)}
    assert agree(network, theirs())


def test_without_a_folder_torchs_cache_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    cache = tmp_path / "hub" / "checkpoints"
    with pytest.raises(UserError, match=str(cache)):
        Pretrained().load(ours(), f"torchvision/{NAME}")
    cache.mkdir(parents=True)
    (cache / FILE).symlink_to(folder / FILE)
    network = ours()
    Pretrained().load(network, f"torchvision/{NAME}")
    assert agree(network, theirs())


# What is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": 10}, r"for 1000 classes and the data have 10; .*data\.name"),
        (
            {"name": f"{NAME}-small", "shape": (3, 64, 64)},
            rf"-small has .*stem for images of up to 64 pixels.*name torchvision/{NAME}, or set data",
        ),
        ({"shape": (1, 96, 96)}, r"images of 3 channels and the data have 1; .*data\.name"),
    ],
)
def test_data_that_the_weights_are_not_for(settings, says):
    """Refused before anything is changed."""
    network = ours(**settings)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match=f"torchvision/{NAME}.*{says}"):
        network.load_torchvision(theirs().state_dict())
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: s.pop("conv5.0.weight"),
            (
                r"body\.conv5\.0\.weight is not there in the file and \(1024, 192, 1, 1\) in the "
                r"network"
            ),
        ),
        (
            lambda s: s.update({"aux.weight": torch.zeros(2)}),
            r"body\.aux\.weight is \(2,\) in the file and not there in the network",
        ),
        (
            lambda s: s.update({"fc.weight": torch.zeros(1000, 3)}),
            r"head\.weight is \(1000, 3\) in the file and \(1000, 1024\)",
        ),
    ],
)
def test_weights_of_another_network(change, says):
    state = theirs().state_dict()
    change(state)
    with pytest.raises(UserError, match=f"torchvision/{NAME}: its {says}.*choose another network"):
        ours().load_torchvision(state)


def test_other_networks_weights_and_files(folder, tmp_path):
    """In one sentence each, that says what to do."""
    name = f"torchvision/{NAME}"
    plain = build_model("convnet-d1-w4", (3, 32, 32), 10, generator(0))
    with pytest.raises(
        UserError, match=r"convnet-d1-w4 is none; choose one, such as torchvision/resnet18"
    ):
        Pretrained(folder=str(folder)).load(plain, "convnet-d1-w4")
    with pytest.raises(
        UserError, match=r"no weights V9 of resnet18; set buffer\.step\.weights to IMAGENET1K_V1\.$"
    ):
        Pretrained(weights="V9", folder=str(folder)).load(ours("resnet18"), "torchvision/resnet18")
    with pytest.raises(UserError, match="IMAGENET1K_V1 or IMAGENET1K_V2"):
        # means another with each version
        Pretrained(weights="DEFAULT", folder=str(folder)).load(
            ours("mobilenet_v2"), "torchvision/mobilenet_v2"
        )
    with pytest.raises(
        UserError, match=rf"not in {tmp_path}; download https://\S+/{FILE} .*buffer\.step\.folder"
    ):
        Pretrained(folder=str(tmp_path)).load(ours(), name)
    for content in ([torch.zeros(2)], {"fc.weight": 3.0}, {1: torch.zeros(2)}):
        torch.save(content, tmp_path / FILE)
        with pytest.raises(UserError, match=f"{FILE} does not hold the weights"):
            Pretrained(folder=str(tmp_path)).load(ours(), name)
    (tmp_path / FILE).write_bytes(b"no weights")
    with pytest.raises(UserError, match="damaged"):
        Pretrained(folder=str(tmp_path)).load(ours(), name)


# As experts


def digits_and_weights(folder):
    """(digits of 80 pixels, their configuration, a builder, a network), with the network's weights
    in the place of torchvision's.
    """
    with scoped(generator(3)):
        network = torchvision.models.get_model_builder(NAME)(weights=None, num_classes=10)
        network.conv1[0] = nn.Conv2d(1, network.conv1[0].out_channels, 3, 2, 1, bias=False)
    settled(network, (1, 80, 80))
    torch.save(network.state_dict(), folder / FILE)
    config = DataConfig(name="digits", limit=60, size=(80, 80))
    data = load_data(config, CPU)
    return (
        data,
        config,
        lambda rng: build_model(f"torchvision/{NAME}", data.image_shape, 10, rng),
        network,
    )


def test_a_store_of_pretrained_weights(tmp_path):
    """One expert, one snapshot, running statistics included; what is measured, and where it came
    from.
    """
    data, config, build, network = digits_and_weights(tmp_path)
    buffer = BufferConfig(
        step=Pretrained(folder=str(tmp_path)), num_experts=1, keep="last", epochs=1
    )
    generate(data, config, buffer, f"torchvision/{NAME}", build, tmp_path / "store")
    experts = ExpertStore(tmp_path / "store", build)
    assert list(experts.epochs) == [1] and experts.num_experts == 1
    sample = data.train.images(torch.arange(8))
    with torch.no_grad():
        loaded, wanted = experts.load(0, 1)(sample), network(sample)
    assert (loaded - wanted).abs().max() < 1e-3 * (wanted[0] - wanted[1]).abs().max()
    metrics = experts.metrics(0)
    assert metrics["validation_accuracy"] == [
        pytest.approx(training.accuracy(network, data.validation))
    ]
    assert metrics["train_loss"] == [] and metrics["seconds"] > 0
    assert (metrics["file"], metrics["sha256"]) == (FILE, sha256(tmp_path / FILE))
    assert str(tmp_path) not in json.dumps(experts.manifest["identity"])


def test_where_the_files_lie_is_no_part_of_a_store_and_the_weights_are():
    """The fingerprint of other steps says all there is."""
    steps = (Pretrained(), Pretrained(folder="elsewhere"), Pretrained(weights="IMAGENET1K_V2"))
    one, moved, other = (
        store.identity("images", DIGITS, BufferConfig(step=step), NAME, "fp32") for step in steps
    )
    assert one == moved != other
    assert one["buffer"]["step"] == {"type": "Pretrained", "weights": "IMAGENET1K_V1"}
    assert (
        len(
            store.identity("images", DIGITS, BufferConfig(step=Sgd()), NAME, "fp32")["buffer"][
                "step"
            ]
        )
        > 4
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_experts": 2, "keep": "last"}, r"set buffer\.num_experts 1"),
        ({"num_experts": 1}, r"set buffer\.keep last"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, fields, says):
    data = load_data(DIGITS, CPU)
    buffer = BufferConfig(step=Pretrained(folder=str(tmp_path)), **fields)
    with pytest.raises(UserError, match=says):
        generate(
            data,
            DIGITS,
            buffer,
            f"torchvision/{NAME}",
            lambda rng: ours(),
            tmp_path / "store",
        )
    assert not (tmp_path / "store").exists()


def test_only_files_as_published_are_read(folder):
    """Another file under the name would make the same store of other teachers."""
    with pytest.raises(
        UserError,
        match=rf"{FILE} is not the file that torchvision publishes .* download https://.*{FILE}",
    ):
        Pretrained(folder=str(folder)).load(ours(), f"torchvision/{NAME}")
    assert pretrained.is_published(
        folder / FILE, "f707e7126e" + "0" * 54
    ) and not pretrained.is_published(folder / FILE, "0" * 64)
