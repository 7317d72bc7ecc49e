"""The codec of few bits against codes and values that were computed apart from it."""

import pytest
import torch
from golden_files import load, names

from ddengine.sets.codec import quantised

F64 = torch.float64
BITS = [int(bits) for bits in names("quantised", "_bytes_stream", "b")]


@pytest.fixture(scope="module")
def golden():
    return load("quantised", F64)


def settings(golden, bits):
    shape = tuple(golden["x"].shape[1:])
    patch = int(golden["patch"])
    return {"bits": bits, "region": "patch", "patch": patch, "shape": shape, "packing": "bits"}


def assert_same(ours, stored):
    """To 1e-12 of the largest stored number; whole numbers exactly."""
    assert ours.shape == stored.shape
    if stored.is_floating_point():
        assert (ours - stored).abs().max() <= 1e-12 * stored.abs().max()
    else:
        assert torch.equal(ours.to(stored.dtype), stored)


def varied(flat, *values):
    """Values without those of regions of one value, which are stored in another way here."""
    return [value[~flat] for value in values]


def test_widths_of_codes_are_told():
    assert BITS


@pytest.mark.parametrize("bits", BITS)
def test_each_patch_has_its_scale(golden, bits):
    options = settings(golden, bits)
    low, high = quantised.extremes(golden["x"], options)
    assert_same(low, golden[f"b{bits}_minimum"])
    scale = quantised.scale_of(low, high, bits)
    zero = quantised.zero_of(low, high, scale)
    assert_same(*varied(low == high, scale, golden[f"b{bits}_scale"]))
    assert_same(*varied(low == high, zero, golden[f"b{bits}_zero"]))
    codes, in_range = quantised.codes_of(golden["x"], scale, zero, options)
    assert_same(codes, golden[f"b{bits}_codes"])
    assert in_range.all()
    assert_same(quantised.dequantised(codes, scale, zero, options), golden[f"b{bits}_decoded"])


@pytest.mark.parametrize("bits", BITS)
def test_patches_of_a_group_share_one(golden, bits):
    options, groups = settings(golden, bits), golden["group_ids"]
    low, high = quantised.extremes(golden["x"], options)
    low, high = quantised.extremes_of_groups(low, high, groups)
    scale = quantised.scale_of(low, high, bits)
    zero = quantised.zero_of(low, high, scale)
    assert_same(*varied(low == high, scale, golden[f"b{bits}_group_scale"]))
    assert_same(*varied(low == high, zero, golden[f"b{bits}_group_zero"]))
    codes, _ = quantised.codes_of(golden["x"], scale[groups], zero[groups], options)
    assert_same(codes, golden[f"b{bits}_group_codes"])
    decoded = quantised.dequantised(codes, scale[groups], zero[groups], options)
    assert_same(decoded, golden[f"b{bits}_group_decoded"])


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_passes_where_codes_are_in_range(golden, bits):
    options = settings(golden, bits) | {"region": "image"}
    num = len(golden["x"])
    scale = golden[f"b{bits}_fixed_scale"].expand(num, 1)
    zero = golden[f"b{bits}_fixed_zero"].expand(num, 1)
    codes, in_range = quantised.codes_of(golden["x"], scale, zero, options)
    assert_same(codes, golden[f"b{bits}_fixed_codes"])
    assert_same(in_range, golden[f"b{bits}_fixed_mask"])
    assert_same(
        quantised.dequantised(codes, scale, zero, options), golden[f"b{bits}_fixed_decoded"]
    )


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_one_stream_of_bits(golden, bits):
    codes = golden[f"b{bits}_codes"]
    stream = quantised.bit_packed(codes.flatten(), bits)
    assert len(stream) == int(golden[f"b{bits}_bytes_stream"])
    padded = sum(len(quantised.bit_packed(image.flatten(), bits)) for image in codes)
    assert padded == int(golden[f"b{bits}_bytes_per_image"])
    back = quantised.unpacked(stream, settings(golden, bits), len(codes))
    assert torch.equal(back, codes)
