"""The codec of shared bases: how it starts, its budget, what it ships."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from ddengine.data import Preprocess
from ddengine.sets.codec import LinearBases, codec_of, resize
from ddengine.sets.codec.linear_bases import combined, principal
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

SHAPE, CLASSES, IPC = (2, 8, 12), 3, 2
PREPROCESS = Preprocess(mean=torch.zeros(2), std=torch.ones(2))


def packed(**options):
    """(codec of the budget, its images, its tensors)."""
    codec, items = LinearBases(**options).fit(IPC, SHAPE, CLASSES)
    num = CLASSES * items * codec.per_item
    images = torch.randn(num, *SHAPE, generator=generator(0, "images"))
    return codec, images, codec.pack(images, CLASSES, PREPROCESS, generator(1))


def test_a_random_start_has_the_published_sizes():
    """Uniform numbers up to the bound of each matrix, from the stream that is given."""
    codec, _, tensors = packed(bases=6)
    values = 2 * 4 * 6
    assert tensors["bases"].shape == (6, 2, 4, 6)
    assert tensors["coefficients"].shape == (CLASSES * codec.rows, 6)
    for tensor, rows, columns in (
        (tensors["bases"], 6, values),
        (tensors["coefficients"], codec.rows, 6),
    ):
        bound = (6 / (rows + columns)) ** 0.5
        assert 0.9 * bound < tensor.abs().max() <= bound
    again = packed(bases=6)[2]
    assert torch.equal(again["bases"], tensors["bases"])
    other = codec.pack(torch.zeros(CLASSES * IPC, *SHAPE), CLASSES, PREPROCESS, generator(2))
    assert not torch.equal(other["coefficients"], tensors["coefficients"])


def test_a_start_from_images_is_nearest_to_them():
    """With as many bases as there are components, each row is the image of its item and place."""
    codec, images, tensors = packed(bases=8, start="images")
    assert codec.per_item > 1
    small = functional.avg_pool2d(images, 2).flatten(1)
    by_item = small.view(CLASSES, codec.items, codec.per_item, -1)
    wanted = []
    for class_ in range(CLASSES):
        for row in range(codec.rows):
            wanted.append(by_item[class_, row % codec.items, row // codec.items])
    wanted = torch.stack(wanted)
    made = tensors["coefficients"] @ tensors["bases"].flatten(1)
    lengths = torch.linalg.svdvals(wanted)
    missed = (made - wanted).square().sum()
    assert missed == pytest.approx(float(lengths[8:].square().sum()), rel=1e-3)
    assert torch.allclose(tensors["coefficients"].std(0, correction=0), torch.ones(8), atol=0.2)
    item = codec.source(tensors)
    assert torch.equal(item[: codec.rows], torch.arange(codec.rows) % codec.items)
    assert torch.equal(item[codec.rows :][:2], torch.tensor([codec.items, codec.items + 1]))


def test_more_bases_than_components():
    """Those left over are ready to be used, and used by nobody yet."""
    images = torch.randn(3, 10, generator=generator(0))
    others = torch.rand(5, 10, generator=generator(1))
    bases, coefficients = principal(images, others)
    assert torch.allclose(coefficients @ bases, images, atol=1e-5)
    assert torch.equal(bases[3:], others[3:]) and not coefficients[:, 3:].any()


def test_enlarging_is_bilinear():
    """As torch enlarges, and as the engine resizes."""
    bases = torch.randn(4, *SHAPE, generator=generator(0))
    rows = torch.randn(5, 4, generator=generator(1))
    for times in (1, 2, 3):
        made = combined(bases, rows, times)
        small = torch.einsum("nk,kchw->nchw", rows, bases)
        theirs = functional.interpolate(small, scale_factor=times, mode="bilinear")
        assert torch.allclose(made, theirs, atol=1e-5)
        assert torch.allclose(made, resize(small, theirs.shape[2:]), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shrink": 3}, r"codec.shrink 3 does not divide images of 8 x 12"),
        ({"bases": 24}, r"codec.bases 24 leave no coefficients within ipc 2 .*; set ipc 3 or"),
        ({"bases": 8, "rows": 99}, r"codec.rows 99 do not fit"),
        ({"bases": 0}, "codec.bases"),
        ({"bases": 8, "items": 3}, r"codec.items 3 is no choice.* it is 2; leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    """In a sentence."""
    with pytest.raises(UserError, match=words):
        LinearBases(**{"shrink": 2, **options}).fit(IPC, SHAPE, CLASSES)
    assert LinearBases(bases=24).fit(3, SHAPE, CLASSES)


def test_what_is_shipped_reads_itself_and_starts_from_images():
    """The numbers as they are; random real images are packed anew from themselves."""
    codec, _, tensors = packed(bases=6)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert all(torch.equal(shipped[name], tensors[name]) for name in tensors)
    assert codec_of({"type": "LinearBases", **to_dict(reader)}) == reader
    real = torch.randn(CLASSES * IPC * reader.per_item, *SHAPE, generator=generator(3))
    of_real = reader.pack(real, CLASSES, PREPROCESS)
    near = reader.decode(of_real, torch.arange(CLASSES * reader.rows))
    noise = reader.decode(tensors, torch.arange(CLASSES * reader.rows))
    assert near.std() > 2 * noise.std()
    assert reader.of_all_classes == "bases"


@pytest.mark.parametrize("name", ["rows", "items"])
def test_a_file_that_does_not_say_the_rows_is_told(name):
    codec, _, tensors = packed(bases=6)
    with pytest.raises(UserError, match="does not say how many rows and items"):
        replace(codec, **{name: None}).source(tensors)
