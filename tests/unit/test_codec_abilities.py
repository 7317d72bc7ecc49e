"""What is asked of a codec is asked of anybody's: continual memories, merging and the note before
a run take a codec that they do not know by what it says.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from helpers import CPU, tiny_data, tiny_set

from ddengine.prepare import prepare
from ddengine.sets.codec import Compensated, Identity, Pixels
from ddengine.sets.codec.protocol import Codec
from ddengine.sets.merge import merge
from ddengine.system.errors import UserError
from ddengine.uses.continual import ContinualConfig, check, kept
from ddengine.uses.continual.config import within_pixels
from synth.catalogue import find


@dataclass(frozen=True)
class Mine(Codec):
    """Images as networks see them, by another name than those of the engine."""

    bounded: bool = False
    warned: bool = False

    space = Identity.space
    parameters = Identity.parameters
    source = Identity.source
    decode = Identity.decode

    def pack(self, images, num_classes, preprocess, rng=None):
        return {"images": images}

    @property
    def keeps_images(self) -> bool:
        return True

    @property
    def keeps_pixels(self) -> bool:
        return self.bounded

    def within_pixels(self) -> "Mine":
        return replace(self, bounded=True)

    def warning(self, recipe):
        return f"this is {recipe.name}" if self.warned else None


@dataclass(frozen=True)
class Shared(Mine):
    """Such images, and a palette of all classes."""

    @property
    def of_all_classes(self) -> str:
        return "palettes"


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def recipe(codec):
    return replace(find("dm/fashion_mnist_ipc1_small"), model="convnet-d1-w4-in", codec=codec)


def test_memories_keep_images_of_any_codec(data):
    config = ContinualConfig(stages=2, budget=2000, store="uint8")
    assert within_pixels(recipe(Mine()), config).codec == Mine(bounded=True)
    assert within_pixels(recipe(Pixels()), config) == recipe(Pixels())
    assert check(replace(data, test=data.train), recipe(Mine()), config) == [5, 5]
    with pytest.raises(UserError, match="a memory keeps plain images"):
        check(replace(data, test=data.train), recipe(Compensated()), config)
    syn = replace(tiny_set(data, ipc=1), codec=Mine())
    assert kept(syn, "uint8").tensors["images"].dtype == torch.uint8


def test_sets_of_any_codec_are_merged_unless_they_share(data):
    syn = replace(tiny_set(data, ipc=1), codec=Mine())
    order = list(range(10))
    other = replace(syn.preprocess, mean=syn.preprocess.mean + 0.1)
    merged = merge([syn, syn], [order, order], syn.class_names, preprocess=other)
    assert len(merged) == 20 and merged.codec == Mine()
    shared = replace(syn, codec=Shared())
    with pytest.raises(UserError, match="holds palettes, which belong to all its classes"):
        merge([shared, shared], [order, order], syn.class_names)


def test_a_codec_says_what_to_know_before_a_run(data, capsys):
    for warned in (False, True):
        prepare(recipe(Mine(warned=warned)), data, CPU, None, seed=0)
        said = capsys.readouterr().out
        assert ("warning: this is dm/fashion_mnist_ipc1_small" in said) == warned


def test_unequal_compensators_are_warned_of():
    published = find("infer/cifar10_ipc10")
    networks = len(published.teachers) * published.buffer.num_experts
    codec = Compensated(per_set=networks)
    assert codec.warning(published) is None
    assert "is not the number of teachers" in replace(codec, per_set=networks + 1).warning(
        published
    )
    assert replace(codec, per_set=networks + 1, base=2).warning(published) is None
