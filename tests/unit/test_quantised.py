"""The codec of few bits: its budget, its gradients, and what it ships."""

import lzma
import math
from dataclasses import replace

import pytest
import torch
from helpers import tiny_data, tiny_set

import ddengine
from ddengine.data import Preprocess
from ddengine.sets.codec import Quantised, codec_of, quantised
from ddengine.sets.quantising import refined
from ddengine.system import log
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

SHAPE, CLASSES, IPC = (3, 11, 13), 2, 1
PREPROCESS = Preprocess(mean=torch.zeros(3), std=torch.ones(3))
FORMS = [
    {"bits": bits, "region": region, "groups": groups}
    for bits in (2, 3, 4, 8)
    for region, groups in (("patch", None), ("patch", 5), ("channel", None), ("image", None))
]


def packed(**options):
    """(codec of the budget, its tensors) of smooth images, one of them with a patch of one value."""
    codec, items = Quantised(**options).fit(IPC, SHAPE, CLASSES)
    coarse = torch.randn(CLASSES * items, 3, 4, 4, generator=generator(0, "images"))
    images = torch.nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear")
    images[0, :, :5, :5] = -0.3
    return codec, codec.pack(images, CLASSES, PREPROCESS, generator(1))


def everything(codec, tensors):
    return codec.decode(tensors, torch.arange(len(codec.source(tensors))))


def stored_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_what_is_shipped_is_what_was_learned_to_the_bit(options):
    codec, tensors = packed(**options)
    learned = everything(codec, tensors)
    reader, shipped = codec.ship({**tensors, "lr": torch.tensor(0.1)}, PREPROCESS)
    assert "images" not in shipped and shipped.pop("lr") == torch.tensor(0.1)
    assert torch.equal(everything(reader, shipped), learned)
    kinds = {"codes": torch.uint8, "scales": torch.float16, "zeros": torch.int16}
    kinds |= {"groups": torch.uint8} if codec.groups else {}
    assert {name: tensor.dtype for name, tensor in shipped.items()} == kinds
    stored = codec_of({"type": "Quantised", **to_dict(reader)})
    assert stored == reader and reader.flaw(shipped) is None
    alone, items = reader.loader()(shipped, to_dict(reader))
    assert torch.equal(alone, learned) and torch.equal(items, torch.arange(len(learned)))
    values = learned.flatten(2).unbind(0)[1]
    regions = quantised.num_regions(SHAPE, codec.region, codec.patch)
    assert len(values.unique()) <= regions * 2**codec.bits
    # coarser in fewer bits, and never off by more than half a step of the coarsest region
    low, high = quantised.extremes(tensors["images"], to_dict(codec))
    step = (high.max() - low.min()) / (2**codec.bits - 1)
    assert (learned - tensors["images"]).abs().max() <= 0.51 * step + 1e-3
    flat = learned[0, :, :5, :5]
    assert codec.region != "patch" or codec.groups or (flat + 0.3).abs().max() < 2e-4


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_bytes_are_within_the_budget(options):
    codec, tensors = packed(**options)
    _, shipped = codec.ship(tensors, PREPROCESS)
    num = len(tensors["images"])
    budget = IPC * CLASSES * math.prod(SHAPE) * 4
    assert stored_bytes(shipped) <= codec.bytes_of(num, SHAPE) <= budget
    assert codec.bytes_of(num + CLASSES, SHAPE) > budget
    assert codec.num_images(tensors) <= IPC * CLASSES
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert reader.num_images(shipped) == stored_bytes(shipped) / math.prod(SHAPE) / 4
    assert sum(reader.bytes_by_part(shipped).values()) == stored_bytes(shipped)


def test_the_gradient_passes_straight_through_also_twice():
    codec, tensors = packed(bits=2)
    images = tensors["images"].double().requires_grad_()
    tensors = {"images": images}
    index = torch.tensor([2, 0, 2])
    decoded = codec.decode(tensors, index)
    loss = decoded.pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
    of_values = 3 * decoded.detach().double().square()
    wanted = torch.zeros_like(images).index_add(0, index, of_values)
    assert torch.allclose(gradient, wanted) and wanted[1].eq(0).all()
    (again,) = torch.autograd.grad(gradient.square().sum(), images)
    assert again[0].abs().sum() > 0


def test_where_rounding_put_a_value_out_of_range_it_has_no_gradient():
    """Of 8 bits the float16 scale can be so short that the largest value has no code."""
    codec = Quantised(bits=8, region="image")
    images = torch.randn(200, 1, 4, 4, generator=generator(0)).requires_grad_()
    settings = to_dict(codec)
    scales, zeros = quantised.current_ranges(images.detach(), None, settings)
    _, in_range = quantised.codes_of(images.detach(), scales, zeros, settings)
    decoded = codec.decode({"images": images}, torch.arange(200))
    (gradient,) = torch.autograd.grad(decoded.sum(), images)
    assert torch.equal(gradient, in_range.float()) and 0 < (~in_range).sum() < 100


def test_values_are_those_of_the_code_to_the_bit_while_learned():
    """No rounding is left of what makes the gradient."""
    codec, tensors = packed(bits=3)
    tensors["images"].requires_grad_()
    decoded = everything(codec, tensors)
    scales, zeros = quantised.current_ranges(tensors["images"].detach(), None, to_dict(codec))
    codes, _ = quantised.codes_of(tensors["images"].detach(), scales, zeros, to_dict(codec))
    assert torch.equal(decoded, quantised.dequantised(codes, scales, zeros, to_dict(codec)))


def test_groups_are_alike():
    """Regions of two clearly different kinds are told apart, and each group has one scale."""
    low = torch.tensor([[0.0, -4.0, 0.1], [-4.1, 0.0, -4.0]])
    high = torch.tensor([[1.0, 4.0, 1.1], [4.0, 1.2, 4.2]])
    groups = quantised.grouped(low, high, 2, 2, generator(0))
    assert groups.dtype == torch.uint8
    kinds = torch.tensor([[0, 1, 0], [1, 0, 1]], dtype=torch.uint8)
    assert torch.equal(groups, kinds) or torch.equal(groups, 1 - kinds)
    assert torch.equal(groups, quantised.grouped(low, high, 2, 2, generator(0)))
    # no more groups than there are different regions
    assert len(quantised.grouped(low[:, :1], high[:, :1], 2, 9, None).unique()) == 2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_smaller_stream_is_taken(bits):
    noise = torch.randint(2**bits, (3, 1, 16, 16), generator=generator(0)).to(torch.uint8)
    even = torch.zeros_like(noise)
    assert quantised.smallest(noise, bits)[0] == "bits"
    packing, stream = quantised.smallest(even, bits)
    assert packing == "lzma" and len(stream) < 40
    for codes in (noise, even):
        packing, stream = quantised.smallest(codes, bits)
        settings = {"bits": bits, "packing": packing, "shape": (1, 16, 16)}
        data = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
        assert torch.equal(quantised.unpacked(data, settings, 3), codes)


def test_extreme_values_are_stored_as_they_can_be():
    """Narrow regions far from 0, tiny ones and huge ones."""
    low = torch.tensor([[5.0, 0.0, 1e-12, -9e5, 3.0]])
    high = torch.tensor([[5.00001, 0.0, 2e-12, 9e5, 3.0]])
    scales, zeros = quantised.storable(low, high, 2)
    assert scales.isfinite().all() and (scales >= 0).all()
    images = torch.stack([low, high], -1).view(1, 1, 1, 10)
    settings = {"bits": 2, "region": "patch", "patch": 2}
    codes, _ = quantised.codes_of(images, scales, zeros, settings)
    decoded = quantised.dequantised(codes, scales, zeros, settings)
    assert decoded.isfinite().all()
    off = (decoded - images).abs().view(5, 2).amax(1)
    assert off[0] < 1e-3 and off[1] == 0 and off[2] < 1e-7 and off[4] < 2e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": 300}, "codec.groups is 300"),
        ({"patch": 0}, "codec.patch must be at least 1"),
        (
            {"patch": 99},
            r"codec.patch 99 is larger than images of \d+ x \d+ pixels; set \d+ at most",
        ),
        ({"items": 99}, "codec.items 99 do not fit into 3432 bytes, which hold"),
        ({"bits": 8, "region": "patch", "patch": 2, "budget": "u8"}, "whose smallest set takes"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        Quantised(**options).fit(IPC, SHAPE, CLASSES)


def test_the_smallest_budget_that_would_do_is_named():
    codec = Quantised(bits=8, patch=2, budget="u8")
    with pytest.raises(UserError) as refused:
        codec.fit(1, SHAPE, CLASSES)
    needed = codec.bytes_of(CLASSES, SHAPE)
    assert f"takes {needed};" in str(refused.value) and needed > CLASSES * math.prod(SHAPE)


def test_damaged_codes_are_told():
    codec, tensors = packed(bits=2, groups=4)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert "of which there are no" in reader.flaw({**shipped, "scales": shipped["scales"][:1]})
    short = {**shipped, "codes": shipped["codes"][:-9]}
    assert "not those of" in reader.flaw(short)
    assert reader.packing == "lzma"
    with pytest.raises(lzma.LZMAError):
        lzma.decompress(b"\x00\x01", lzma.FORMAT_XZ)
    assert "no image has" in codec.flaw({"images": torch.full((1, *SHAPE), 1e9)})


@pytest.fixture
def observer():
    """Features (B, 6) of images (B, 3, 11, 13)."""
    weights = torch.randn(6, 3, 5, 5, generator=generator(0, "observer"))
    return lambda images: torch.nn.functional.conv2d(images, weights).relu().mean((2, 3))


def errors_of_features(images, wanted, codec, observer):
    decoded = codec.decode({"images": images}, torch.arange(len(images)))
    return (observer(decoded) - observer(wanted)).square().mean(1)


def test_refined_images_keep_their_features(observer):
    """Each at least as well as before, all together clearly better, and groups come afterwards."""
    codec, tensors = packed(bits=2, groups=5)
    images = tensors["images"]
    given = images.clone()
    alone = Quantised(bits=2)
    before = errors_of_features(images, given, alone, observer)
    change = refined(images, codec, observer, steps=20, lr=0.01)
    after = errors_of_features(change, given, alone, observer)
    assert (after <= before).all() and after.sum() < 0.7 * before.sum()
    assert torch.equal(images, given) and not change.requires_grad
    assert torch.equal(change, refined(images, codec, observer, steps=20, lr=0.01, batch=7))
    left = []
    with log.shown(lambda title, done, total, note: left.append(total - done)):
        assert torch.equal(refined(images, codec, observer, steps=0, lr=0.01), given)
    assert left == [1, 0]


def test_a_set_without_its_recipe_is_refused_before_a_network_is_trained():
    """By whom it is to be trained, and how, is not known."""
    made = ddengine.Distilled(tiny_set(tiny_data()), {}, None)
    with pytest.raises(UserError, match="does not say the recipe"):
        ddengine.quantise(made, refine=1, progress=False)


DAMAGES = {
    "ranges of one image more": lambda t: {"zeros": torch.cat([t["zeros"], t["zeros"][:1]])},
    "ranges of fewer regions": lambda t: {n: t[n][:, 1:] for n in ("scales", "zeros")},
    "codes of more images": lambda t: {"codes": torch.cat([t["codes"], t["codes"]])},
    "codes of fewer images": lambda t: {"codes": t["codes"][:-9]},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("even", [False, True])
def test_ranges_and_codes_that_do_not_fit_are_told(damage, even):
    """Packed by bits, and, of even images, compressed."""
    codec, tensors = packed(bits=2, region="channel")
    noise = torch.rand(tensors["images"].shape, generator=generator(2))
    tensors["images"] = (noise > 0.99).float() if even else noise
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert reader.packing == ("lzma" if even else "bits") and reader.flaw(shipped) is None
    if even and damage == "codes of more images":
        return  # what follows a compressed stream is not read
    assert "holds" in reader.flaw({**shipped, **DAMAGES[damage](shipped)})


def test_codes_of_another_shape_are_told():
    codec, tensors = packed(bits=2)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert "holds 'codes'" in replace(reader, shape=(1, *SHAPE[1:])).flaw(shipped)
    assert "holds 'scales'" in replace(reader, patch=4).flaw(shipped)
    assert "holds 'scales'" in replace(reader, region="image").flaw(shipped)
