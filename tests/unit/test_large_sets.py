"""Sets whose decoded images are too large for memory are decoded part by part into a file."""

import os

import pytest
import torch

from ddengine.data import Preprocess, preprocess
from ddengine.evaluation import decoded
from ddengine.evaluation.decoded import eight_bit, freeze
from ddengine.sets.codec import Identity
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def syn():
    """Nine images of three classes, with pixels that 8 bits do not hold."""
    images = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scaled = Preprocess.of((0.5, 0.4, 0.5), (0.5, 0.4, 0.5))
    classes = torch.arange(9) % 3
    return SyntheticSet({"images": images}, classes, ("a", "b", "c"), Identity(), scaled)


def both(syn, monkeypatch, make):
    """What is made in memory, and part by part."""
    held = make(syn)
    monkeypatch.setattr(decoded, "LARGE", 100)
    monkeypatch.setattr(decoded, "PART", 2 * 48)
    return held, make(syn)


def forms(syn):
    """The set as it is, and as its PNG files say it."""
    frozen = freeze(syn, CPU)
    return frozen, eight_bit(syn, frozen, CPU)


def test_parts_give_the_bits_of_the_whole(syn, monkeypatch):
    held, in_parts = both(syn, monkeypatch, forms)
    for one, other in zip(held, in_parts, strict=True):
        index = torch.tensor([8, 0, 3])
        pairs = zip(one.batch(index), other.batch(index), strict=True)
        for first, second in pairs:
            assert torch.equal(first, second)
        assert torch.equal(one.images, other.images) and one.ledger == other.ledger
        assert torch.equal(one.targets, other.targets) and one.hard_bytes == other.hard_bytes
    as_bytes = syn.with_tensors({"images": syn.preprocess.forward(torch.ones(9, 3, 4, 4))})
    assert eight_bit(as_bytes, in_parts[0], CPU) is None


def test_a_full_disk_is_said(syn, monkeypatch):
    def full(handle, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded, "LARGE", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"has no room for them .* TMPDIR"):
        freeze(syn, CPU)


def test_whitening_in_parts_is_that_of_all(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 3, 2, 2), generator=rng, dtype=torch.uint8)
    pixels[:, 1] = pixels[:, 0] // 2
    at_once = preprocess.fit_zca(pixels)
    monkeypatch.setattr(preprocess, "ZCA_IN_PARTS", 100)
    monkeypatch.setattr(preprocess, "pieces", lambda images: images.split(7))
    in_parts = preprocess.fit_zca(pixels)
    assert not torch.equal(in_parts.matrix, at_once.matrix)  # another way was taken
    for name, tensor in at_once.tensors().items():
        assert torch.allclose(in_parts.tensors()[name], tensor, rtol=1e-4, atol=1e-5), name
