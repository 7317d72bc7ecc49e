"""Codecs of coarse images against what published programs, or plain loops, make of the numbers."""

import math

import pytest
import torch
from golden_files import load, names, shapes_of

from ddengine.sets.codec import Gaussians, fred, gaussians, siren, speed

F64 = torch.float64


def assert_close(ours, stored, tolerance):
    """To a part of the largest stored number; what is no number exactly."""
    assert ours.shape == stored.shape
    if stored.is_floating_point():
        assert (ours - stored).abs().max() <= tolerance * stored.abs().max()
    else:
        assert torch.equal(ours, stored)


def squares(images, *leaves):
    """Gradients of the sum of squares."""
    return torch.autograd.grad(images.square().sum(), leaves)


# Gaussians


def shape_of(golden):
    channels = golden["params"].shape[2] - 6
    return channels, int(golden["height"]), int(golden["width"])


CASES = {"plain": (1, False), "prefilter": (1, True), "supersampled": (2, False), "both": (2, True)}


def test_every_case_of_the_file_is_tried():
    assert set(names("gaussians", "_images")) == {*CASES, "bf16"}


@pytest.mark.parametrize("case", CASES)
def test_gaussians(case):
    golden = load("gaussians", F64)
    points, prefilter = CASES[case]
    leaf = golden["params"].requires_grad_()
    images = gaussians.rendered(leaf, shape_of(golden), points, prefilter)
    assert_close(images.detach(), golden[f"{case}_images"], 1e-11)
    (gradient,) = squares(images, leaf)
    assert_close(gradient, golden[f"{case}_grad_params"], 1e-11)


def test_gaussians_in_bfloat16():
    """Rounded numbers, their image and the gradient that passes straight through; bytes."""
    golden = load("gaussians", F64)
    shape = shape_of(golden)
    leaf = golden["params"].requires_grad_()
    rounded = gaussians.as_stored(leaf)
    assert torch.equal(rounded.detach(), golden["bf16_params"])
    images = gaussians.rendered(rounded, shape, 1, True)
    assert_close(images.detach(), golden["bf16_images"], 1e-11)
    (gradient,) = squares(images, leaf)
    assert_close(gradient, golden["bf16_grad_params"], 1e-11)
    num, each, _ = leaf.shape
    codec = Gaussians(primitives=each, items=num, shape=shape)
    assert codec.shipped_bytes(num, shape, 1) == int(golden["bf16_bytes"])
    _, shipped = codec.ship({"primitives": leaf.detach()}, None)
    assert shipped["primitives"].nbytes == int(golden["bf16_bytes"])


def test_gaussians_at_the_edges():
    golden = load("gaussians", F64)
    leaf = golden["params"].requires_grad_()
    codec = Gaussians(barrier=float(golden["boundary_weight"]))
    term = codec.penalty({"primitives": leaf})
    assert_close(term.detach(), golden["boundary"], 1e-12)
    (gradient,) = torch.autograd.grad(term, leaf)
    assert_close(gradient, golden["boundary_grad_params"], 1e-12)


def test_the_budget_of_gaussians():
    """The published numbers of Gaussians are the largest for so many images of a class."""
    for ipc, height, width, items, num in load("gaussians", F64)["budget"].tolist():
        shape = (3, height, width)
        _, held = Gaussians(primitives=num).fit(ipc, shape, 10)
        assert held >= items
        more = Gaussians(primitives=num + 1)
        assert more.shipped_bytes(items, shape, 1) > ipc * math.prod(shape) * 4


# Fields


def test_fields():
    golden = load("ddif", F64)
    shapes = shapes_of("ddif")
    _, channels, height, width = golden["images"].shape
    layers = len(shapes) // 2 - 1
    assert siren.shapes_of(shapes[0][0], layers, channels) == [tuple(shape) for shape in shapes]
    assert_close(siren.places_of(height, width, golden["params"]), golden["coordinates"], 1e-12)
    leaf = golden["params"].requires_grad_()
    shape = (channels, height, width)
    factors = (float(golden["w0_first"]), float(golden["w0"]))
    images = siren.field_images(leaf, shape, shapes, *factors)
    assert_close(images.detach(), golden["images"], 1e-11)
    (gradient,) = squares(images, leaf)
    assert_close(gradient, golden["grad_params"], 1e-11)


# Spectra


def test_spectra():
    golden = load("fred", F64)
    shape = tuple(golden["x"].shape[1:])
    spectra = fred.spectrum(golden["x"])
    assert_close(spectra, golden["spectrum"], 1e-12)
    everywhere = torch.arange(math.prod(shape[1:])).expand(len(spectra), -1)
    back = fred.images_of_values(spectra.flatten(2), everywhere, shape)
    assert_close(back, golden["recovered"], 1e-11)


def of_classes(golden):
    """Initial spectra (K, n, C, H, W), class by class."""
    num_classes = len(golden["mask"])
    assert torch.equal(golden["labels"], golden["labels"].sort().values)
    return golden["spectrum"].view(num_classes, -1, *golden["spectrum"].shape[1:])


def test_masks_are_of_what_varies_most():
    golden = load("fred", F64)
    spectra = of_classes(golden)
    variance = fred.variances(spectra)
    share = variance / variance.sum((1, 2), keepdim=True)
    assert_close(share, golden["variance_share"], 1e-11)
    assert torch.equal(fred.varying(spectra, int(golden["mask_size"])), golden["mask"])


def test_images_of_masked_spectra():
    golden = load("fred", F64)
    mask = golden["mask"]
    items = len(golden["x"]) // len(mask)
    of_item = mask.repeat_interleave(items, 0).unsqueeze(1)
    leaf = golden["spectrum"].requires_grad_()
    size = (len(leaf), leaf.shape[1], int(golden["mask_size"]))
    values = leaf.masked_select(of_item).view(size)
    positions = fred.kept_positions(mask).repeat_interleave(items, 0)
    images = fred.images_of_values(values, positions, tuple(leaf.shape[1:]))
    assert_close(images.detach(), golden["decoded"], 1e-11)
    (gradient,) = squares(images, leaf)
    assert_close(gradient, golden["grad_spectrum"], 1e-11)


# Tokens


@pytest.fixture
def tokens():
    """The file, and (shapes of the network, shape of an image, patch)."""
    golden = load("speed", F64)
    channels, height, width = golden["images"].shape[1:]
    patch, blocks = int(golden["patch"]), int(golden["blocks"])
    shapes = speed.network_shapes(golden["tokens"].shape[2], blocks, patch**2 * channels)
    return golden, shapes, (channels, height, width), patch


def test_tokens(tokens):
    golden, shapes, shape, patch = tokens
    assert shapes == [tuple(stored) for stored in shapes_of("speed")]
    leaves = [golden[name].requires_grad_() for name in ("coefficients", "tokens", "params")]
    images = speed.token_images(leaves[0], leaves[1][0], leaves[2], shapes, shape, patch)
    assert_close(images.detach(), golden["images"], 1e-11)
    gradients = squares(images, *leaves)
    for name, gradient in zip(("coefficients", "tokens", "params"), gradients, strict=True):
        assert_close(gradient, golden[f"grad_{name}"], 1e-11)


def test_a_block(tokens):
    golden, shapes, _, _ = tokens
    flat = golden["params"].split([math.prod(part) for part in shapes])
    weights = [part.view(size) for part, size in zip(flat, shapes, strict=True)]
    nothing = torch.zeros(1, dtype=F64)
    out = speed.token_block(nothing, golden["coefficients"], golden["tokens"][0], weights[:10])
    assert_close(out, golden["block0"], 1e-11)


def test_the_largest_coefficients(tokens):
    """All of the file's; of those as large as the last one not more than fit, see the codec."""
    golden, shapes, shape, patch = tokens
    kept = golden["topk_out"]
    flat = golden["topk_in"].flatten(2)
    places = speed.largest_places(flat, int(golden["topk"]))
    ours = speed.dense(flat.gather(2, places), places, flat.shape[2], kept.shape[3]).double()
    left_out = kept * (ours == 0)
    least = flat.gather(2, places).abs().amin(2)[..., None, None]
    assert torch.equal(ours, kept - left_out)
    assert torch.equal(left_out.abs(), least * (left_out != 0))
    images = speed.token_images(kept, golden["tokens"][0], golden["params"], shapes, shape, patch)
    assert_close(images, golden["topk_images"], 1e-11)
