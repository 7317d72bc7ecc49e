"""A codec with a learned decoder, written here as anybody would: nothing else knows of it."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor

from ddengine import loop
from ddengine.artefact import folder as folders
from ddengine.data import Preprocess
from ddengine.evaluation.evaluate import evaluate
from ddengine.recipe import EvalConfig, OptimConfig, OuterConfig
from ddengine.sets.codec import Codec, Loader, Tensors
from ddengine.sets.synthetic import SyntheticSet, coded
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.distribution import DistributionMatching
from synth.networks import Untrained
from tests.helpers import CPU, MODEL, shipped_loader, tiny_data, tiny_env


@dataclass(frozen=True, kw_only=True)
class Sketched(Codec):
    """Images are latent codes through a small decoder that all share: a linear layer, and one
    convolution.
    """

    size: int = 6  # numbers in a code
    shape: tuple[int, ...] = (1, 8, 8)  # of an image

    def fit(
        self, ipc: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> tuple[Codec, int]:
        """Three codes in the place of an image."""
        return replace(self, shape=image_shape), 3 * ipc

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The codes that fit the images best through an orthogonal layer."""
        channels, height, width = self.shape
        values = channels * height * width
        layer = torch.randn(values, self.size, generator=rng or generator(0, "codec"))
        layer = torch.linalg.qr(layer)[0]
        kernel = torch.zeros(channels, channels, 3, 3)
        kernel[range(channels), range(channels), 1, 1] = 1
        return {
            "codes": images.flatten(1) @ layer,
            "decoder.layer": layer,
            "decoder.kernel": kernel,
            "decoder.bias": torch.full((channels,), 0.1),
        }

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """Codes, and the decoder."""
        names = tuple(name for name in tensors if name.startswith("decoder."))
        return {"codes": ("codes",), "decoder": names}

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["codes"]), device=tensors["codes"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Through the decoder."""
        return sketch(tensors["codes"].index_select(0, index), tensors, self.shape)

    def loader(self) -> Loader:
        """All codes through the decoder."""
        return sketches


def sketch(codes, tensors, shape):
    """Images of codes (B, size)."""
    flat = codes @ tensors["decoder.layer"].T
    images = flat.view(-1, *shape)
    kernel, bias = tensors["decoder.kernel"], tensors["decoder.bias"]
    return torch.nn.functional.conv2d(images, kernel, bias, padding=1)


def sketches(tensors, settings):
    """(examples, the stored item of each): all codes through the decoder."""
    images = sketch(tensors["codes"], tensors, settings["shape"])
    return images, torch.arange(len(images))


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture
def start(data) -> SyntheticSet:
    codec, items = Sketched().fit(1, data.image_shape, data.num_classes)
    index = torch.cat([members[:items] for members in data.train.members])
    classes = torch.arange(data.num_classes).repeat_interleave(items)
    images = data.train.images(index)
    return coded(codec, images, classes, data.class_names, data.train.preprocess, {}, generator(0))


def outer(**optim: OptimConfig) -> OuterConfig:
    return OuterConfig(steps=4, optim=optim, evaluate_every=0, checkpoint_every=2)


def test_it_is_distilled_saved_counted_evaluated_and_shipped(data, start, tmp_path):
    """Fails where a tensor's name is wired in: in the optimiser, the guard, the checkpoint, the
    ledger, the size, the folder, the card, load.py or the evaluation.
    """
    objective = DistributionMatching(networks=Untrained(), real_batch=16).build(
        tiny_env(data, None)
    )
    config = outer(codes=OptimConfig(lr=0.1), decoder=OptimConfig(lr=0.01))
    made, _ = loop.distill(start, objective, config, tmp_path / "run", seed=0)
    for name, tensor in start.tensors.items():
        assert not torch.equal(made.tensors[name], tensor), name
    values = 30 * 6 + 64 * 6 + 9 + 1
    assert made.images_per_class() == values / 64 / 10
    assert len(made) == 30 and made.image_shape == (1, 8, 8)

    folders.save(made, tmp_path / "set", {})
    again, meta = folders.load(tmp_path / "set", CPU)
    assert again.codec == made.codec and torch.equal(again.pixels(), made.pixels())
    assert meta["bytes"] == {
        "images": 0, "compensators": 0, "labels": 240, "other": 0,
        "codes": 30 * 6 * 4, "decoder": (64 * 6 + 10) * 4,
        "total": 240 + values * 4, "preprocess": meta["bytes"]["preprocess"], "raw": 0,
    }  # fmt: skip
    card = (tmp_path / "set/README.md").read_text()
    assert "codes 720 B" in card and "Sketched" in card

    images, targets, _ = shipped_loader(tmp_path / "set").load()
    batch = made.batch(torch.arange(30))
    assert torch.allclose(images, batch.images, atol=1e-6) and torch.equal(targets, batch.targets)

    quick = EvalConfig(
        protocol="own", epochs=3, num_networks=3, lr_grid=(0.01,), full_steps=5,
        search_networks=1, baselines=("random",),
    )  # fmt: skip
    rows = evaluate(again, data_with_test(), quick, MODEL, seed=0, device=CPU)["rows"]
    assert rows[0]["images"] == 30 and rows[0]["bytes"] == 240 + values * 4


def data_with_test():
    """The digits with their test split."""
    from ddengine.data import load_data
    from tests.helpers import DIGITS

    return load_data(DIGITS, CPU, test=True)


def test_a_group_is_the_tensors_in_it(data, start, tmp_path):
    """By the group or by each tensor: the same set; a tensor that is not named stays."""
    env, rate = tiny_env(data, None), OptimConfig(lr=0.01)
    objective = DistributionMatching(networks=Untrained(), real_batch=16).build(env)
    by_group, _ = loop.distill(start, objective, outer(decoder=rate), tmp_path / "a", seed=0)
    names = {name: rate for name in start.tensors if name.startswith("decoder.")}
    by_name, _ = loop.distill(start, objective, outer(**names), tmp_path / "b", seed=0)
    for name, tensor in by_group.tensors.items():
        assert torch.equal(tensor, by_name.tensors[name]), name
    assert torch.equal(by_group.tensors["codes"], start.tensors["codes"])
    with pytest.raises(UserError, match="a rate for 'decoders', and codec Sketched stores codes"):
        loop.distill(start, objective, outer(decoders=rate), tmp_path / "c", seed=0)


def test_averages_of_a_group(data, start, tmp_path):
    """The last iterate lies beside the average of each tensor of the group."""
    objective = DistributionMatching(networks=Untrained(), real_batch=16).build(
        tiny_env(data, None)
    )
    config = replace(outer(decoder=OptimConfig(lr=0.01)), ema={"decoder": 0.9})
    made, _ = loop.distill(start, objective, config, tmp_path / "run", seed=0)
    raw = {name for name in made.tensors if name.startswith("raw.")}
    assert raw == {"raw.decoder.layer", "raw.decoder.kernel", "raw.decoder.bias"}
    assert made.sizes()["raw"] == made.sizes()["decoder"]


def test_the_shipped_settings_are_those_of_the_codec(start):
    """`load.py` decodes by the settings at the time of writing, not by what a meta.json says."""
    text = folders.load_py(start, None)
    assert f"CODEC = {to_dict(start.codec)!r}" in text and "def sketch(" in text
