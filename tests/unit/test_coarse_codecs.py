"""Codecs of coarse images: their bytes, what they ship, what they start from, what they refuse."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import tiny_data, tiny_set
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ddengine.data import Preprocess
from ddengine.sets.codec import (
    CODECS,
    Compensated,
    Gaussians,
    Hallucinated,
    Identity,
    LinearBases,
    Mixed,
    MultiFormation,
    Pixels,
    Quantised,
    Reduced,
    Siren,
    SparseTokens,
    Spectra,
    codec_of,
    gaussians,
    reduced,
    within_bytes,
)
from ddengine.sets.codec.within_bytes import decoded_in_parts, fitted
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find

SHAPE, CLASSES = (3, 12, 8), 2  # sides differ
PREPROCESS = Preprocess(mean=torch.full((3,), 0.4), std=torch.full((3,), 0.5))
COARSE = {
    "smaller": Reduced(),
    "uneven": Reduced(shrink=5),
    "learned": Reduced(enlarging="learned"),
    "palettes": Reduced(shrink=1, colours=16, enlarging="learned"),
    "gaussians": Gaussians(primitives=5, fit_steps=2),
    "grey points": Gaussians(primitives=5, fit_steps=2, supersampling=False, prefilter=False),
    "siren": Siren(width=3, layers=3, fit_steps=2),
    "fred": Spectra(kept=9),
    "speed": SparseTokens(tokens=4, dim=4, blocks=2, kept=5, fit_steps=2),
    "haba": Hallucinated(styles=3),
    "mixed": Mixed(learned=0.4),
}


def packed(codec, ipc=3, shape=SHAPE):
    """(codec of the budget, its tensors) of smooth images."""
    codec, items = codec.fit(ipc, shape, CLASSES)
    coarse = torch.rand(CLASSES * items, shape[0], 3, 3, generator=generator(0, "images"))
    images = functional.interpolate(coarse, shape[1:], mode="bilinear")
    return codec, codec.pack(images, CLASSES, PREPROCESS, generator(1))


def everything(codec, tensors):
    return codec.decode(tensors, torch.arange(len(codec.source(tensors))))


def stored_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_shipped_is_what_the_ledger_and_the_budget_say(name, channels):
    """To the byte, of grey and of coloured images whose sides differ; load.py has the same bits."""
    shape = (channels, *SHAPE[1:])
    codec, tensors = packed(COARSE[name], shape=shape)
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert reader.flaw(shipped) is None
    expected = codec.shipped_bytes(codec.items, shape, CLASSES)
    assert stored_bytes(shipped) == expected == sum(reader.bytes_by_part(shipped).values())
    assert expected <= 3 * CLASSES * math.prod(shape) * 4
    if name != "mixed":
        assert (
            codec.shipped_bytes(codec.items + 1, shape, CLASSES)
            > 3 * CLASSES * math.prod(shape) * 4
        )
    stored = codec_of({"type": type(reader).__name__, **to_dict(reader)})
    alone, items = reader.loader()(shipped, to_dict(stored))
    assert torch.equal(alone, everything(stored, shipped))
    assert torch.equal(items, stored.source(shipped)) and alone.shape[1:] == shape


@pytest.mark.parametrize("name", ["smaller", "uneven", "learned", "palettes", "gaussians"])
def test_what_networks_saw_is_what_is_shipped_to_the_bit(name):
    """Rounding is part of learning; its gradient passes straight through, also twice."""
    codec, tensors = packed(COARSE[name])
    codec.project(tensors, PREPROCESS)
    learned = everything(codec, tensors)
    assert torch.equal(everything(*codec.ship(tensors, PREPROCESS)), learned)
    for tensor in tensors.values():
        tensor.requires_grad_()
    loss = everything(codec, tensors).pow(3).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
    again = sum(gradient.square().sum() for gradient in gradients)
    for gradient in (*gradients, *torch.autograd.grad(again, list(tensors.values()))):
        assert gradient.isfinite().all() and gradient.any()


FITTED = {
    "gaussians": (Gaussians(primitives=8, items=2, fit_steps=200), 0.3),
    "siren": (Siren(width=10, items=2, fit_steps=200, fit_lr=5e-3), 0.3),
    "speed": (
        SparseTokens(tokens=8, dim=8, kept=24, items=2, fit_steps=200, sparse_while_learned=True),
        0.3,
    ),
    "fred": (Spectra(kept=30, items=2), 0.1),
    "smaller": (Reduced(items=2), 0.1),
    "palettes": (Reduced(shrink=1, colours=16, items=2), 0.1),
    "haba": (Hallucinated(spread=0.0), 1.1),
}


@pytest.mark.parametrize("name", FITTED)
def test_it_starts_from_real_images(name, capfd):
    """The part of their variance that is missing in what is shipped; the same images start alike."""
    codec, most = FITTED[name]
    codec, tensors = packed(codec)
    items = CLASSES * codec.items
    coarse = torch.rand(items, 3, 3, 3, generator=generator(0, "images"))
    images = functional.interpolate(coarse, SHAPE[1:], mode="bilinear")
    decoded = everything(*codec.ship(tensors, PREPROCESS))[:items]
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    off = (decoded - images)[inside].square().mean() / images[inside].var()
    assert off < most
    if name == "haba":  # hallucinators that change nothing keep all but the border
        assert torch.allclose(decoded[inside], images[inside], atol=1e-3)
    _, again = packed(FITTED[name][0])
    for key, tensor in tensors.items():
        assert torch.equal(tensor, again[key])
    if codec in (FITTED["gaussians"][0], FITTED["siren"][0]):
        assert "images into the codec" in capfd.readouterr().err


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_enlarging_is_bicubic(times):
    images = torch.rand(2, 3, 5, 7, generator=generator(0))
    taps = reduced.bicubic_taps(times, images).repeat(2, 1, 1)
    ours = reduced.enlarged(images, taps, (3, 5 * times, 7 * times))
    torchs = functional.interpolate(images, scale_factor=times, mode="bicubic")
    assert torch.allclose(ours, torchs, atol=2e-6)
    cut = reduced.enlarged(images, taps, (3, 5 * times, 6 * times + 1))
    assert torch.equal(cut, ours[..., : 6 * times + 1])


def test_an_image_has_as_many_colours_as_its_palette():
    codec, tensors = packed(Reduced(shrink=1, colours=5))
    shipped = codec.ship(tensors, PREPROCESS)[1]
    small = reduced.small_images(shipped, to_dict(codec), torch.arange(4))
    for image in small:
        assert 2 <= len(image.flatten(1).T.unique(dim=0)) <= 5
    flat = torch.full((1, 3, 12, 8), 0.2)
    assert torch.equal(reduced.palettes_of(flat, 3, generator(0)), torch.full((1, 3, 3), 0.2))


def test_parts_are_the_whole_with_the_same_gradients():
    """Rows are decoded in parts where they are many, and parts are computed again."""
    rows = torch.randn(5, 7, 9, dtype=torch.float64, generator=generator(0)).requires_grad_()

    def images_of(part):
        return gaussians.rendered(part, (3, 6, 5), 2, True)

    for numbers in (1, 2**24):
        images = decoded_in_parts(images_of, rows, numbers)
        (gradient,) = torch.autograd.grad(images.pow(3).sum(), rows, create_graph=True)
        (twice,) = torch.autograd.grad(gradient.square().sum(), rows)
        if numbers == 1:
            kept = images, gradient, twice
    for one, other in zip(kept, (images, gradient, twice), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_what_hallucinators_make_is_made_in_parts_again(monkeypatch):
    """Memory does not grow with the examples of a batch: each part is computed again."""
    codec, tensors = packed(Hallucinated(styles=3, items=2))
    for tensor in tensors.values():
        tensor.requires_grad_()
    again = []

    def one_by_one(function, rows, numbers):
        return torch.cat([function(part) for part in rows.split(1)])

    def counted(function, part, **options):
        again.append(len(part))
        return checkpoint(function, part, **options)

    monkeypatch.setattr(within_bytes, "checkpoint", counted)
    whole = torch.autograd.grad(everything(codec, tensors).pow(2).sum(), list(tensors.values()))
    assert not again
    monkeypatch.setattr(within_bytes, "in_parts", one_by_one)
    parts = torch.autograd.grad(everything(codec, tensors).pow(2).sum(), list(tensors.values()))
    assert sum(again) == len(codec.source(tensors)) == len(again)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_gaussians_without_a_prefilter_keep_a_width():
    """Of no width their exponent would be 0 / 0."""
    codec, tensors = packed(Gaussians(primitives=5, fit_steps=0, prefilter=False))
    tensors["primitives"][..., 2:5] = 0.0
    codec.project(tensors, PREPROCESS)
    assert everything(codec, tensors).isfinite().all()


def test_penalties():
    """A barrier that grows towards the edge, beyond which no centre gets; a sum of magnitudes."""
    codec, tensors = packed(Gaussians(primitives=5, fit_steps=0, barrier=0.5))
    primitives = tensors["primitives"]
    term = codec.penalty(tensors)
    primitives[..., 0] = 1.5
    codec.project(tensors, PREPROCESS)
    assert primitives[..., 0].max() < 1 and codec.penalty(tensors) > 2 * term
    assert replace(codec, barrier=0.0).penalty(tensors) is None
    codec, tensors = packed(SparseTokens(tokens=4, dim=4, kept=5, fit_steps=0, sparsity=0.1))
    assert codec.penalty(tensors) == 0.1 * tensors["coefficients"].abs().sum()


def test_tokens_may_be_as_sparse_while_they_are_learned_as_they_are_shipped():
    """Only coefficients that are kept have a gradient then; else all of them have one."""
    for sparse in (True, False):
        codec = SparseTokens(
            tokens=4, dim=4, kept=5, items=2, fit_steps=0, sparse_while_learned=sparse
        )
        codec, tensors = packed(codec)
        shipper, shipped = codec.ship(tensors, PREPROCESS)
        coefficients = tensors["coefficients"].requires_grad_()
        learned = everything(codec, tensors)
        (gradient,) = torch.autograd.grad(learned.square().sum(), coefficients)
        reached = gradient.flatten(2).count_nonzero(2)
        of_all = coefficients[0, 0].numel()
        assert reached.unique().tolist() == [5 if sparse else of_all]
        off = (learned - everything(shipper, shipped)).abs().max()
        assert off < 0.01 if sparse else off > 0.1


def test_real_images_stay_in_a_mixed_set():
    """The first of each class, to the bit of their bytes; the others are learned."""
    codec, tensors = packed(Mixed(learned=0.4), ipc=5)
    assert len(tensors["frozen"]) == 6 and len(tensors["images"]) == 4
    assert codec.parameters(tensors) == {"images": ("images",)}
    before = everything(codec, tensors)
    tensors["images"] += 0.1
    moved = (everything(codec, tensors) - before).flatten(1).abs().amax(1) > 0
    assert moved.tolist() == 2 * [False, False, False, True, True]


# Budgets of bytes


def test_the_bytes_of_every_codec_are_known():
    """At most those of what it ships, for the codecs that are there."""
    for name, kind in CODECS.items():
        codec, items = kind().small().fit(6, (3, 8, 8), CLASSES)
        images = torch.rand(CLASSES * items * codec.per_item, 3, 8, 8, generator=generator(0))
        _, shipped = codec.ship(codec.pack(images, CLASSES, PREPROCESS), PREPROCESS)
        num = codec.rows if isinstance(codec, LinearBases) else items
        num = 6 if isinstance(codec, Compensated) else num
        most = codec.shipped_bytes(num, (3, 8, 8), CLASSES)
        assert stored_bytes(shipped) <= most, name
        assert isinstance(codec, Quantised) or stored_bytes(shipped) == most, name


BUDGETS = {
    "ipc1:f32": (12288, {Identity: 1, Pixels: 4, MultiFormation: 1, Reduced: 16, Quantised: 12}),
    "ipc2:u8": (6144, {Pixels: 2, Reduced: 8, Quantised: 6}),
    "61440": (6144, {Pixels: 2, Identity: None, Reduced: 8, Quantised: 6}),
}


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_says_how_many_images(budget):
    of_class, wanted = BUDGETS[budget]
    like = find("dm/cifar10_ipc10")
    for kind, items in wanted.items():
        recipe = replace(like, codec=kind(), budget=budget)
        assert recipe.ipc == (int(budget[3]) if "ipc" in budget else 10)
        if items is None:
            with pytest.raises(UserError, match="--budget 122880"):
                fitted(recipe, (3, 32, 32), 10)
            continue
        codec, held = fitted(recipe, (3, 32, 32), 10)
        assert held == items
        assert codec.shipped_bytes(held, (3, 32, 32), 10) <= 10 * of_class
        assert codec.shipped_bytes(held + 1, (3, 32, 32), 10) > 10 * of_class


def test_budgets_of_codecs_with_parts_of_all_classes():
    """Bases and coefficients, images and compensators."""
    like = replace(find("dm/cifar10_ipc10"), budget="ipc1:f32")
    codec, items = fitted(replace(like, codec=LinearBases()), (3, 32, 32), 10)
    assert (codec.rows, codec.items, items) == (115, 115, 115)  # the published number
    codec, base = fitted(replace(like, codec=Compensated()), (3, 32, 32), 10)
    # 3072 bytes an image, 6144 a compensator
    assert base * 3072 * 10 + codec.compensators * 6144 + 12 <= 122880
    assert base == 2 and codec.compensators == 8
    codec, base = fitted(replace(like, codec=Compensated(base=1)), (3, 32, 32), 10)
    assert base == 1 and codec.compensators == 10
    codec, base = fitted(replace(like, codec=Compensated(base=1, compensators=3)), (3, 32, 32), 10)
    assert base == 1 and codec.compensators == 3


@pytest.mark.parametrize("budget", ["ipc0:f32", "ipc1", "ipc1:f16", "12:u8", "1.5", "-3", "many"])
def test_a_budget_of_another_form_is_refused(budget):
    with pytest.raises(UserError, match="ipcN:f32, ipcN:u8 or a number of bytes"):
        replace(find("dm/cifar10_ipc10"), budget=budget)


@pytest.mark.parametrize("name", [name for name in COARSE if name != "mixed"])
def test_the_smallest_budget_that_would_do_is_named(name):
    codec = COARSE[name]
    needed = codec.shipped_bytes(1, SHAPE, CLASSES)
    with pytest.raises(
        UserError, match=f"whose smallest set takes {needed}; set --budget {needed},"
    ):
        codec.within(needed - 1, SHAPE, CLASSES)
    assert codec.within(needed, SHAPE, CLASSES)[1] == 1


def test_a_codec_that_does_not_say_its_bytes_has_no_budget():
    class Mine(Identity):
        shipped_bytes = Identity.__mro__[1].shipped_bytes

    recipe = replace(find("dm/cifar10_ipc10"), codec=Mine(), budget="ipc1:f32")
    with pytest.raises(UserError, match="Mine does not say how many bytes"):
        fitted(recipe, (3, 32, 32), 10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Reduced(shrink=9).fit(9, SHAPE, 2), "codec.shrink 9 is more than the 8 pixels"),
        (lambda: Reduced(colours=1), "codec.colours must be 2 to 256, got 1"),
        (lambda: Gaussians(primitives=0), "codec.primitives must be at least 1"),
        (lambda: Gaussians(fit_steps=-1), "codec.fit_steps is -1"),
        (lambda: Siren(layers=0), "codec.layers must be at least 1"),
        (lambda: Spectra(kept=97).fit(9, SHAPE, 2), "is more than the 96 frequencies"),
        (lambda: SparseTokens(dim=5), "codec.heads 2 do not share codec.dim 5"),
        (lambda: SparseTokens(patch=5).fit(9, SHAPE, 2), "codec.patch 5 does not divide"),
        (lambda: SparseTokens(tokens=4).fit(9, SHAPE, 2), "more than the 24 coefficients"),
        (lambda: SparseTokens(tokens=9999).fit(9, SHAPE, 2), "15 bits tell 32768 apart"),
        (lambda: Hallucinated(styles=0), "codec.styles must be at least 1"),
        (lambda: Mixed(learned=1.0), "a share between 0 and 1"),
        (lambda: Mixed(learned=0.1).fit(5, SHAPE, 2), "set ipc 10 or more"),
        (lambda: Mixed(learned=0.8).fit(1, SHAPE, 2), "set ipc 2 or more"),
        (lambda: Mixed(learned=0.8).within(384, SHAPE, 2), "the 2 images of .* set --budget 1152"),
        (lambda: Spectra(items=999).fit(1, SHAPE, 2), "do not fit into 2304 bytes, which hold"),
    ],
)
def test_what_does_not_fit_is_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("learned", [0.1, 0.2, 1 / 3, 0.45, 0.5, 0.7, 0.8, 0.95])
def test_the_budget_that_is_named_is_the_least_that_does(learned):
    codec = Mixed(learned=learned)
    least = codec.shipped_bytes(codec.least_items, SHAPE, 2)
    _, items = codec.within(least, SHAPE, 2)
    assert items == codec.least_items
    with pytest.raises(UserError, match=f"set --budget {least}, "):
        codec.within(least - 1, SHAPE, 2)


def test_equally_large_coefficients_take_no_more_bytes():
    codec = COARSE["speed"]
    codec, tensors = packed(codec)
    tensors["coefficients"] = torch.ones_like(tensors["coefficients"])
    _, shipped = codec.ship(tensors, PREPROCESS)
    assert stored_bytes(shipped) == codec.shipped_bytes(codec.items, SHAPE, CLASSES)


DAMAGES = {
    "smaller": lambda tensors: {"images": tensors["images"].float() * 1e9},
    "palettes": lambda tensors: {"numbers": tensors["numbers"][:-1]},
    "gaussians": lambda tensors: {"primitives": tensors["primitives"][:, 1:]},
    "siren": lambda tensors: {"fields": tensors["fields"][:, 1:]},
    "fred": lambda tensors: {"masks": ~tensors["masks"]},
    "speed": lambda tensors: {"places": tensors["places"] + 99},
    "haba": lambda tensors: {"maps": tensors["maps"][1:]},
    "mixed": lambda tensors: {"frozen": tensors["frozen"][1:]},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_tensors_that_do_not_suit_the_codec_are_told(name):
    codec, tensors = packed(COARSE[name])
    reader, shipped = codec.ship(tensors, PREPROCESS)
    assert reader.flaw(shipped) is None
    assert "holds" in reader.flaw({**shipped, **DAMAGES[name](shipped)})


def test_a_set_in_a_codec_knows_its_images_per_class():
    data = tiny_data()
    syn = tiny_set(data, ipc=2)
    images = syn.tensors["images"]
    codec = Gaussians(primitives=4, fit_steps=0, items=2, shape=data.image_shape)
    tensors = codec.pack(images, 10, data.train.preprocess)
    coded = replace(syn, codec=codec, tensors=tensors, space=codec.space)
    assert coded.images_per_class() == 2 * 4 * 7 * 2 / 64 / 4
    assert coded.shipped().ledger["primitives"] == 20 * 4 * 7 * 2
