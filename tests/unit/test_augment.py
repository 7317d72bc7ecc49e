"""Differentiable augmentation: one draw for many groups, the same draw twice, gradients of
gradients, and the ranges of the parameters.
"""

import itertools
import math
import random

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional

from ddengine.learning import augment
from ddengine.learning.augment import AugmentDraw
from ddengine.learning.losses import mixed_loss, task_loss
from ddengine.recipe import DSA_OPS, OPS, AugmentConfig
from ddengine.system.compat import torchvision
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

F64 = torch.float64
ALL = AugmentConfig()
each_op = pytest.mark.parametrize("op", OPS)


def noise(*shape, seed=0, dtype=torch.float32):
    """Normal images."""
    return torch.randn(*shape, generator=generator(seed, "noise"), dtype=dtype)


def equal(a, b):
    """Equal up to rounding: float64, computed in batches of other sizes or by other functions."""
    return torch.allclose(a, b, rtol=0, atol=1e-12)


def apply_many(op, image, num, **settings):
    """One image (C, H, W) under `num` different draws of one operation."""
    config = AugmentConfig(ops=(op,), **settings)
    draw = augment.sample(config, num, generator(5, op))
    return augment.apply(config, image.expand(num, *image.shape), draw)


# Groups


def test_groups_get_what_each_would_get_alone():
    """12 groups of 3 images, every operation among them."""
    draw = augment.sample(ALL, 3, generator(1), groups=12)
    assert set(draw.ops) == set(DSA_OPS)
    images = noise(36, 3, 8, 6, dtype=F64)
    together = augment.apply(ALL, images, draw)
    alone = [
        augment.apply(ALL, images[3 * i : 3 * i + 3], AugmentDraw((op,), draw.uniform[i : i + 1]))
        for i, op in enumerate(draw.ops)
    ]
    assert equal(together, torch.cat(alone))
    assert not equal(together, images)


def test_groups_of_one_operation_keep_their_own_parameters():
    config = AugmentConfig(ops=("color",))
    draw = augment.sample(config, 2, generator(2), groups=3)
    images = noise(1, 3, 4, 4, dtype=F64).expand(6, 3, 4, 4)
    out = augment.apply(config, images, draw)
    for i in range(3):
        alone = augment.apply(config, images[:2], AugmentDraw(("color",), draw.uniform[i : i + 1]))
        assert equal(out[2 * i : 2 * i + 2], alone)
    assert not any(equal(a, b) for a, b in itertools.combinations(out, 2))


def test_gradients_of_groups_stay_in_their_group():
    draw = augment.sample(ALL, 2, generator(1), groups=12)
    images = noise(24, 1, 6, 6).requires_grad_()
    out = augment.apply(ALL, images, draw)
    (gradient,) = torch.autograd.grad(out[6:8].square().sum(), images)
    assert gradient[6:8].abs().max() > 0
    assert gradient[:6].abs().max() == 0 and gradient[8:].abs().max() == 0


def test_concatenated_draws_act_as_each_does():
    """As the networks of one evaluation: a draw of their own each."""
    draws = [augment.sample(ALL, 4, generator(seed)) for seed in range(8)]
    images = noise(32, 3, 6, 6, dtype=F64)
    together = augment.apply(ALL, images, augment.concatenate(draws))
    assert equal(
        together,
        torch.cat(
            [augment.apply(ALL, part, d) for part, d in zip(images.split(4), draws, strict=True)]
        ),
    )


# The same draw twice


@each_op
def test_a_shared_draw_has_one_parameter_set_a_group_for_batches_of_any_size(op):
    config = AugmentConfig(ops=(op,))
    draw = augment.sample(config, 2, generator(7), groups=3, shared=True)
    first = noise(1, 3, 8, 8, dtype=F64)
    few, many = (
        augment.apply(config, first.expand(3 * num, 3, 8, 8), draw).view(3, num, 3, 8, 8)
        for num in (2, 5)
    )
    for group in range(3):
        for out in (*few[group], *many[group]):
            assert equal(out, few[group, 0])


def test_a_shared_draw_differs_between_groups():
    config = AugmentConfig(ops=("color",))
    out = augment.apply(
        config,
        noise(1, 3, 4, 4).expand(3, 3, 4, 4),
        augment.sample(config, 1, generator(0), groups=3, shared=True),
    )
    assert not torch.equal(out[0], out[1]) and not torch.equal(out[1], out[2])


def test_an_unshared_draw_differs_between_images():
    for op in ("color", "crop", "cutout", "scale", "rotate", "roll", "resized_crop", "shuffle"):
        out = apply_many(op, noise(3, 8, 8), 12)
        assert len({tuple(o.flatten().tolist()) for o in out}) > 1, op


def test_one_generator_one_draw_and_no_global_generator():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    draws = [augment.sample(ALL, 4, generator(3), groups=5) for _ in range(2)]
    assert draws[0].ops == draws[1].ops and torch.equal(draws[0].uniform, draws[1].uniform)
    other = augment.sample(ALL, 4, generator(4), groups=5)
    assert not torch.equal(other.uniform, draws[0].uniform)
    images = noise(20, 3, 6, 6)
    assert torch.equal(augment.apply(ALL, images, draws[0]), augment.apply(ALL, images, draws[1]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


def test_no_operations_is_the_identity():
    images = noise(6, 3, 5, 5)
    for groups, shared in ((1, False), (3, False), (2, True)):
        draw = augment.sample(
            AugmentConfig(ops=()), 6 // groups, generator(0), groups=groups, shared=shared
        )
        assert torch.equal(augment.apply(AugmentConfig(ops=()), images, draw), images)


# Derivatives


@each_op
def test_second_derivatives(op):
    config = AugmentConfig(ops=(op,))
    draw = augment.sample(config, 2, generator(11))
    images = noise(2, 2, 4, 3, dtype=F64).requires_grad_()
    out = augment.apply(config, images, draw)
    (gradient,) = torch.autograd.grad(out.square().sum(), images, create_graph=True)
    assert gradient.requires_grad
    assert torch.autograd.gradcheck(lambda x: augment.apply(config, x, draw), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(config, x, draw), (images,))


def test_second_derivatives_of_the_warp_by_gather():
    matrix = torch.tensor([[[0.9, -0.2], [0.3, 1.1]]], dtype=F64)
    images = noise(1, 2, 4, 5, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.warp_by_gather(x, matrix), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment.warp_by_gather(x, matrix), (images,))


# Random streams


@pytest.mark.parametrize("shared", [False, True])
def test_three_numbers_are_drawn_as_ever_and_four_only_for_a_resized_crop(shared):
    """What older runs drew stays: the operations, three numbers an image, three for each that is
    always applied.
    """
    num = 1 if shared else 5
    for always, ops, numbers in (
        (("flip", "color"), DSA_OPS, 3), ((), ("crop", "flip"), 3), (("roll",), ("shuffle", "roll"), 3),
        (("flip", "color"), ("resized_crop", "color"), 4), (("resized_crop", "roll"), ("color",), 4), (("resized_crop",), (), 4),
    ):  # fmt: skip
        draw = augment.sample(
            AugmentConfig(always=always, ops=ops), 5, generator(6), groups=9, shared=shared
        )
        by_hand = generator(6)
        if ops:
            assert draw.ops == tuple(
                ops[i] for i in torch.randint(len(ops), (9,), generator=by_hand).tolist()
            )
            assert torch.equal(draw.uniform, torch.rand(9, num, numbers, generator=by_hand))
        if always:
            assert torch.equal(
                draw.always, torch.rand(9, num, len(always), numbers, generator=by_hand)
            )
        else:
            assert draw.always is None


# Operations


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_roll_is_torchs(height, width):
    """Each image by its own shift, longer than a side too."""
    images = noise(6, 3, height, width)
    rows, columns = torch.tensor([0, 1, 4, 5, 9, 2]), torch.tensor([3, 0, 8, 9, 1, 20])
    out = augment.roll(images, rows, columns)
    for i in range(6):
        assert torch.equal(out[i], torch.roll(images[i], (int(rows[i]), int(columns[i])), (1, 2)))


@pytest.mark.parametrize("largest", [0, 1, 4])
def test_rolled_shifts_are_uniform_down_and_to_the_right(largest):
    image = torch.zeros(1, 8, 8)
    image[0, 0, 0] = 1
    at = apply_many("roll", image, 4000, roll=largest).flatten(1).argmax(1)
    counts = torch.bincount(at, minlength=64).view(8, 8)
    expected = 4000 / (largest + 1) ** 2
    assert counts[: largest + 1, : largest + 1].sum() == 4000
    assert (counts[: largest + 1, : largest + 1] - expected).abs().max() <= 5 * math.sqrt(expected)


def boxes_by_hand(area, uniform, height, width):
    """Boxes of a resized crop one by one: (top, left, height, width)."""
    boxes = []
    for a, r, row, column in uniform.double().tolist():
        pixels, ratio = (
            height * width * (area + a * (1 - area)),
            math.exp(math.log(3 / 4) + r * (math.log(4 / 3) - math.log(3 / 4))),
        )
        w, h = (
            min(max(round(math.sqrt(side)), 1), most)
            for side, most in ((pixels * ratio, width), (pixels / ratio, height))
        )
        boxes.append((int(row * (height - h + 1)), int(column * (width - w + 1)), h, w))
    return boxes


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (7, 12)])
def test_resized_crop_is_torchvisions(height, width):
    """Drawn ones against the box made by hand and resized by torchvision."""
    num, config = 60, AugmentConfig(ops=("resized_crop",))
    images, draw = noise(num, 3, height, width), augment.sample(config, num, generator(8))
    out = augment.apply(config, images, draw)
    boxes = boxes_by_hand(0.08, draw.uniform[0], height, width)
    assert len(set(boxes)) > 30
    for image, found, (top, left, h, w) in zip(images, out, boxes, strict=True):
        for antialias in (False, True):  # which changes nothing where nothing shrinks
            wanted = torchvision.transforms.functional.resized_crop(
                image, top, left, h, w, [height, width], antialias=antialias
            )
            assert torch.allclose(found, wanted, atol=1e-5)


def test_resized_crop_of_explicit_boxes_and_of_everything():
    images = noise(3, 2, 6, 9)
    top, left, height, width = torch.tensor([[0, 5, 2], [0, 8, 3], [6, 1, 3], [9, 1, 4]])
    out = augment.resized_crop(images, top, left, height, width)
    assert torch.allclose(out[0], images[0], atol=1e-6)  # the whole image
    assert torch.allclose(out[1], images[1, :, 5:6, 8:9].expand(2, 6, 9), atol=1e-6)  # one pixel
    wanted = torchvision.transforms.functional.resized_crop(images[2], 2, 3, 3, 4, [6, 9])
    assert torch.allclose(out[2], wanted, atol=1e-5)


def test_drawn_boxes_are_those_of_torchvision_but_for_the_longest():
    """Area uniform, ratio log-uniform, everywhere equally likely; where torchvision draws again, a
    side is as long as the image.

    In an image of coordinates the corners of the result are those of the box, because its edge is
    repeated.
    """
    side = 96
    line = torch.arange(float(side))
    out = apply_many(
        "resized_crop", torch.stack(torch.meshgrid(line, line, indexing="ij")), 2000, area=0.25
    )
    first, last = out[:, :, 0, 0].round(), out[:, :, -1, -1].round()
    assert (
        torch.allclose(first, out[:, :, 0, 0], atol=1e-3) and 0 <= first.min() and last.max() < side
    )
    height, width = (last - first + 1).T
    free = (height < side) & (width < side)
    assert 0.6 < free.float().mean() < 0.95
    ratio = (width / height)[free]
    assert (
        0.73 < ratio.min() < 0.77 and 1.30 < ratio.max() < 1.37 and abs(ratio.log().mean()) < 0.02
    )
    area = (height * width) / side**2
    small = area < 0.5  # a box of so little area is never too long, so none is missing
    assert (
        0.24 < area.min() < 0.26
        and abs(area[small].mean() - 0.375) < 0.01
        and abs(small.float().mean() - 1 / 3) < 0.03
    )
    for axis, length in enumerate((height, width)):
        at = (first[:, axis] / (side - length))[length < side - 20]
        assert at.min() == 0 and at.max() == 1 and abs(at.mean() - 0.5) < 0.025
    assert abs(np.corrcoef(first[small].T.numpy())[0, 1]) < 0.1


def strips_by_hand(image, patches, row_order, column_order):
    """One image (C, H, W), cut and put together with concatenations: vertical strips, then
    horizontal ones.
    """
    for axis, order in ((2, column_order), (1, row_order)):
        length = image.shape[axis]
        ends = [*(i * (length // patches) for i in range(patches)), length]
        strips = [image.narrow(axis, begin, end - begin) for begin, end in itertools.pairwise(ends)]
        image = torch.cat([strips[i] for i in order], axis)
    return image


@pytest.mark.parametrize(
    ("patches", "height", "width"),
    [(1, 4, 4), (2, 6, 8), (2, 5, 7), (3, 9, 6), (3, 8, 10), (4, 8, 4), (4, 7, 11), (4, 3, 5)],
)
def test_shuffle_is_strips_in_another_order(patches, height, width):
    """Where the strips are equal, where the last is wider, and where there are more of them than
    pixels.
    """
    orders = list(itertools.permutations(range(patches)))
    images = noise(30, 2, height, width)
    rows, columns = torch.randint(len(orders), (2, 30), generator=generator(0))
    out = augment.shuffle(images, patches, rows, columns)
    for image, found, row, column in zip(images, out, rows.tolist(), columns.tolist(), strict=True):
        assert torch.equal(found, strips_by_hand(image, patches, orders[row], orders[column]))


@pytest.mark.parametrize("patches", [1, 2, 3, 4])
def test_every_order_of_strips_is_drawn_about_equally_often(patches):
    image = torch.arange(16.0).view(1, 4, 4)
    out = apply_many("shuffle", image, 6000, patches=patches)[:, 0]
    number = math.factorial(patches)
    for line in (out[:, 0] % 4, out[:, :, 0] // 4):
        orders, counts = line.unique(dim=0, return_counts=True)
        assert len(orders) == number and (counts - 6000 / number).abs().max() <= 5 * math.sqrt(
            6000 / number
        )
    # rows and columns independently
    assert len(out.flatten(1).unique(dim=0)) == number**2 or patches == 4


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 1, 5, 9)])
def test_warp_is_grid_sample_with_aligned_corners_and_so_is_its_gathered_form(shape):
    """Random matrices, images that are not square too; values and gradients."""
    images = noise(*shape, dtype=F64).requires_grad_()
    matrix = torch.eye(2, dtype=F64) + 0.4 * noise(6, 2, 2, seed=1, dtype=F64)
    grid = functional.affine_grid(
        torch.cat((matrix, torch.zeros(6, 2, 1, dtype=F64)), 2), list(shape), align_corners=True
    )
    expected = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )
    weights = noise(*shape, seed=2, dtype=F64)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), images)
    for warped in (augment.warp(images, matrix), augment.warp_by_gather(images, matrix)):
        assert torch.allclose(warped, expected, atol=1e-12)
        assert torch.allclose(
            torch.autograd.grad((warped * weights).sum(), images)[0], gradient, atol=1e-12
        )


def test_saturation_of_one_channel_is_the_identity():
    images = noise(2, 1, 4, 4)
    assert torch.equal(augment.saturation(images, torch.tensor([0.0, 1.7])), images)


def test_crop_moves_and_fills_with_zeros():
    image = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    out = augment.crop(image, torch.tensor([1]), torch.tensor([-2]))
    assert out[0, 0].tolist() == [[0, 0, 5, 6], [0, 0, 9, 10], [0, 0, 0, 0]]


# Ranges of the parameters, over many draws


def test_operations_are_drawn_about_equally():
    ops = augment.sample(ALL, 1, generator(0), groups=6000).ops
    for op in DSA_OPS:
        assert abs(ops.count(op) - 1000) < 150  # 5 standard deviations
    assert set(
        augment.sample(AugmentConfig(ops=("flip", "crop")), 1, generator(0), groups=50).ops
    ) == {"flip", "crop"}


def test_uniform_numbers_fill_the_unit_interval():
    uniform = augment.sample(ALL, 2000, generator(0)).uniform
    assert uniform.shape == (1, 2000, 3)
    assert 0 <= uniform.min() < 0.01 and 0.99 < uniform.max() < 1
    assert (uniform.mean((0, 1)) - 0.5).abs().max() < 0.04
    assert np.abs(np.corrcoef(uniform[0].T.numpy()) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 28), (8, 8)])
def test_crop_shifts_cover_minus_s_to_s(height, width):
    """s = int(side / 8 + 0.5): 4 at 32, 2 at 16, 4 at 28, 1 at 8; all shifts about equally often."""
    num, rows, columns = 6000, int(height / 8 + 0.5), int(width / 8 + 0.5)
    image = torch.arange(height)[:, None] * 100.0 + torch.arange(width) + 1
    out = apply_many("crop", image[None], num)[:, 0, height // 2, width // 2].long() - 1
    for shifts, s in ((out // 100 - height // 2, rows), (out % 100 - width // 2, columns)):
        counts = torch.bincount(shifts + s)
        assert shifts.min() == -s and len(counts) == 2 * s + 1
        expected = num / (2 * s + 1)
        assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("side", [32, 10])
def test_cutout_centres_cover_the_image(side):
    """Half of the side, centred uniformly in 0..side for an even square and 0..side - 1 for an odd
    one, truncated at the border.
    """
    num, size = 6000, int(side / 2 + 0.5)
    out = apply_many("cutout", torch.ones(1, side, side), num)[:, 0]
    hidden = out == 0
    spans = {}
    for axis in (1, 2):
        lines = hidden.any(3 - axis)
        first, last = lines.int().argmax(1), side - 1 - lines.flip(1).int().argmax(1)
        # one rectangle
        assert torch.equal(hidden.sum((1, 2)), lines.sum(1) * hidden.any(axis).sum(1))
        for span in zip(first.tolist(), last.tolist(), strict=True):
            spans[span] = spans.get(span, 0) + 1
    centres = range(side + 1 - size % 2)
    expected = {}
    for centre in centres:
        span = (max(0, centre - size // 2), min(side - 1, centre - size // 2 + size - 1))
        expected[span] = expected.get(span, 0) + 2 * num / len(centres)
    assert set(spans) == set(expected)
    assert all(abs(spans[s] - expected[s]) < 6 * math.sqrt(expected[s]) for s in spans)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flip_mirrors_columns_as_often_as_asked(probability):
    image = noise(1, 3, 4)
    out = apply_many("flip", image, 2000, flip=probability)
    mirrored = (out == image.flip(2)).all(3).all(2).all(1)
    assert (mirrored | (out == image).all(3).all(2).all(1)).all()
    assert abs(mirrored.float().mean() - probability) <= (0.06 if 0 < probability < 1 else 0)


def coordinates(side=33):
    """An image (2, H, W) whose channels are the horizontal and the vertical position in [-1, 1],
    and the index of +1/2.
    """
    line = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(line, line, indexing="xy")), side // 4 * 3


def test_scale_factors_lie_between_the_inverse_and_the_factor():
    image, half = coordinates()
    out = apply_many("scale", image, 4000)[:, :, half, half] / 0.5
    for factors in out.T:
        assert (
            1 / 1.2 - 1e-4 <= factors.min() < 1 / 1.2 + 0.002
            and 1.2 - 0.002 < factors.max() <= 1.2 + 1e-4
        )
        assert abs(factors.mean() - (1.2 + 1 / 1.2) / 2) < 0.01
    assert abs(np.corrcoef(out.T.numpy())[0, 1]) < 0.1  # columns and rows independently
    assert (apply_many("scale", image, 50, scale=1.5)[:, 0, half, half] / 0.5).max() > 1.25


def test_rotation_angles_lie_within_fifteen_degrees():
    image, half = coordinates()
    middle = 16
    out = apply_many("rotate", image, 4000)[:, :, middle, half]
    # a rotation and nothing else
    assert torch.allclose(out.norm(dim=1), torch.tensor(0.5), atol=1e-4)
    degrees = torch.rad2deg(torch.atan2(out[:, 1], out[:, 0]))
    assert -15.01 <= degrees.min() < -14.9 and 14.9 < degrees.max() <= 15.01
    assert abs(degrees.mean()) < 0.7 and abs(degrees.std() - 15 / math.sqrt(3)) < 0.3


def test_colour_changes_brightness_saturation_and_contrast_in_that_order():
    """Two pixels of three channels: the mean of all shows the brightness, the pixels' distance the
    contrast, the channels' the saturation.
    """
    channels = torch.tensor([-1.0, 0.0, 1.0])
    image = torch.stack((3 + channels, 7 + channels), 1)[:, None]  # pixel means 3 and 7
    out = apply_many("color", image, 4000)[:, :, 0]  # (num, channel, pixel)
    means = out.mean(1)
    shift = means.mean(1) - 5
    contrast = (means[:, 1] - means[:, 0]) / 4
    saturation = (out[:, 2, 0] - out[:, 1, 0]) / contrast
    for values, low, high in ((shift, -0.5, 0.5), (saturation, 0.0, 2.0), (contrast, 0.5, 1.5)):
        assert low - 1e-4 <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high + 1e-4
        assert abs(values.mean() - (low + high) / 2) < 0.04 * (high - low)
    assert (
        np.abs(np.corrcoef(torch.stack((shift, saturation, contrast)).numpy()) - np.eye(3)).max()
        < 0.1
    )


# Operations that are always applied


def numbers(uniform, num):
    """The uniform numbers of one group, one row an image."""
    return uniform[0].expand(num, 3)


@pytest.mark.parametrize("shared", [False, True])
def test_always_operations_come_in_order_before_the_drawn_one_and_cutout_after_it(shared):
    config = AugmentConfig(always=("color", "cutout", "flip"), ops=("crop",))
    images = noise(4, 3, 8, 8, dtype=F64)
    draw = augment.sample(config, 4, generator(3), shared=shared)
    assert draw.always.shape == (1, 1 if shared else 4, 3, 3)
    by_hand = images
    for op, uniform in (
        ("color", draw.always[:, :, 0]),
        ("flip", draw.always[:, :, 2]),
        ("crop", draw.uniform),
        ("cutout", draw.always[:, :, 1]),
    ):
        by_hand = augment.OPS[op](config, by_hand, numbers(uniform, 4).double())
    assert equal(augment.apply(config, images, draw), by_hand)


def test_the_order_of_always_matters():
    """A crop first moves zeros in, which colour then changes."""
    images = noise(4, 3, 8, 8)
    orders = [
        AugmentConfig(always=always, ops=()) for always in (("color", "crop"), ("crop", "color"))
    ]
    draw = augment.sample(orders[0], 4, generator(1))
    swapped = AugmentDraw(draw.ops, draw.uniform, draw.always.flip(2))
    assert not torch.allclose(
        augment.apply(orders[0], images, draw), augment.apply(orders[1], images, swapped)
    )


def test_always_without_a_drawn_operation_is_siamese_for_batches_of_any_size():
    """As IDC matches: colour, crop, cutout with the same numbers for real and synthetic images of a
    class.
    """
    config = AugmentConfig(always=("color", "crop", "cutout"), ops=())
    draw = augment.sample(config, 1, generator(4), groups=2, shared=True)
    image = noise(1, 3, 8, 8, dtype=F64)
    few, many = (
        augment.apply(config, image.expand(2 * num, 3, 8, 8), draw).view(2, num, 3, 8, 8)
        for num in (2, 5)
    )
    for group in range(2):
        for out in (*few[group], *many[group]):
            assert equal(out, few[group, 0])
    assert not equal(few[0, 0], few[1, 0])


def test_always_leaves_the_drawn_operation_as_it_was():
    with_always = AugmentConfig(always=("color", "flip"))
    plain, extended = (
        augment.sample(config, 5, generator(6), groups=9) for config in (ALL, with_always)
    )
    assert (
        plain.always is None
        and plain.ops == extended.ops
        and torch.equal(plain.uniform, extended.uniform)
    )


def test_concatenated_draws_with_always_act_as_each_does():
    config = AugmentConfig(always=("flip", "color"), ops=("crop", "scale", "rotate"))
    draws = [augment.sample(config, 4, generator(seed)) for seed in range(12)]
    assert {op for d in draws for op in d.ops} == {"crop", "scale", "rotate"}
    images = noise(48, 3, 6, 6, dtype=F64)
    together = augment.apply(config, images, augment.concatenate(draws).to(torch.device("cpu")))
    alone = torch.cat(
        [augment.apply(config, part, d) for part, d in zip(images.split(4), draws, strict=True)]
    )
    assert equal(together, alone)


def test_always_is_differentiable_twice():
    config = AugmentConfig(always=("flip", "color", "cutout"), ops=("scale",))
    draw = augment.sample(config, 2, generator(11))
    images = noise(2, 2, 4, 3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.apply(config, x, draw), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(config, x, draw), (images,))


def test_what_changes_images_at_all():
    assert ALL.any and AugmentConfig(ops=(), always=("flip",)).any and not AugmentConfig(ops=()).any
    with pytest.raises(UserError, match="augmentation 'flop'"):
        AugmentConfig(always=("flop",))


# CutMix


def box_by_hand(draw, images):
    """The box pixel by pixel."""
    mixed, (top, bottom, left, right) = images.clone(), draw.box
    for i, partner in enumerate(draw.partner.tolist()):
        for row in range(top, bottom):
            for column in range(left, right):
                mixed[i, :, row, column] = images[partner, :, row, column]
    return mixed


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_cutmix_takes_the_box_of_the_partner_and_counts_its_pixels(height, width):
    images = noise(6, 3, height, width)
    before, shares = images.clone(), []
    for seed in range(60):
        draw = augment.sample_cutmix(1.0, 6, (height, width), generator(seed))
        assert sorted(draw.partner.tolist()) == list(range(6))
        mixed = augment.cutmix(images, draw)
        assert torch.equal(mixed, box_by_hand(draw, images))
        covered = torch.zeros(height, width)
        covered[draw.box[0] : draw.box[1], draw.box[2] : draw.box[3]] = 1
        assert draw.share == pytest.approx(1 - covered.mean().item(), abs=1e-6)
        moved = draw.partner != torch.arange(6)
        changed = (mixed != images).any(1).float().mean((1, 2))
        assert torch.allclose(changed, moved * (1 - draw.share), atol=1e-6)
        shares.append(draw.share)
    assert min(shares) < 0.5 and max(shares) > 0.9
    assert torch.equal(images, before)


def test_cutmix_ratio_is_uniform_before_the_border_cuts_the_box():
    """Of boxes that lie inside, the side is 2 floor(length sqrt(1 - ratio) / 2); centres are
    uniform.
    """
    draws = [augment.sample_cutmix(1.0, 1, (1000, 1000), generator(7, i)) for i in range(2000)]
    sides = torch.tensor([(d.box[1] - d.box[0], d.box[3] - d.box[2]) for d in draws]).double()
    inside = torch.tensor(
        [d.box[0] > 0 and d.box[1] < 1000 and d.box[2] > 0 and d.box[3] < 1000 for d in draws]
    )
    assert torch.equal(sides[inside, 0], sides[inside, 1])
    # a box of covered part c lies inside with probability (1 - sqrt(c))^2: E over uniform c is 1/6
    assert abs(inside.double().mean() - 1 / 6) < 0.03
    # and then E[c] = int c (1 - sqrt(c))^2 / (1/6) = 6 (1/2 - 4/5 + 1/3) = 1/5
    assert abs((sides[inside].prod(1) / 1e6).mean() - 0.2) < 0.04


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_cutmix_is_drawn_as_often_as_asked(probability):
    drawn = [
        augment.sample_cutmix(probability, 2, (4, 4), generator(i)) is not None for i in range(1000)
    ]
    assert abs(np.mean(drawn) - probability) <= (0.06 if 0 < probability < 1 else 0)


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_a_mixed_batch_weighs_both_targets_by_their_pixels(soft):
    draw = augment.CutMix(torch.tensor([2, 0, 1]), (0, 2, 1, 4), 1 - 6 / 16)
    outputs = noise(3, 4, dtype=F64)
    targets = noise(3, 4, seed=1, dtype=F64) if soft else torch.tensor([3, 0, 1])
    wanted = 0.0
    for i, partner in enumerate((2, 0, 1)):
        for target, weight in ((targets[i], 10 / 16), (targets[partner], 6 / 16)):
            shares = target.softmax(0) if soft else functional.one_hot(target, 4).double()
            wanted -= weight * (shares * outputs[i].log_softmax(0)).sum().item() / 3
    assert mixed_loss(outputs, targets, draw).item() == pytest.approx(wanted, rel=1e-12)
    assert torch.equal(mixed_loss(outputs, targets, None), task_loss(outputs, targets))


def test_cutmix_is_differentiable_twice():
    draw = augment.CutMix(torch.tensor([1, 0]), (0, 2, 1, 3), 0.5)
    images = noise(2, 2, 3, 3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.cutmix(x, draw).square(), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment.cutmix(x, draw).square(), (images,))


# mixup


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_mixup_shares_are_beta_distributed(alpha):
    draws = [augment.sample_mixup(alpha, 5, generator(7, i)) for i in range(3000)]
    shares = np.array([d.share for d in draws])
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert abs(shares.mean() - 0.5) < 0.03 and shares.var() == pytest.approx(
        1 / (4 * (2 * alpha + 1)), rel=0.1
    )
    assert all(sorted(d.partner.tolist()) == list(range(5)) for d in draws[:50])
    assert len({tuple(d.partner.tolist()) for d in draws}) == 120


def test_mixup_is_the_weighted_sum_of_partners_and_mix_takes_either_draw():
    images = noise(4, 3, 5, 6)
    before = images.clone()
    draw = augment.sample_mixup(0.8, 4, generator(2)).to(torch.device("cpu"))
    wanted = torch.stack(
        [
            draw.share * images[i] + (1 - draw.share) * images[p]
            for i, p in enumerate(draw.partner.tolist())
        ]
    )
    assert torch.equal(augment.mix(images, draw), wanted)
    box = augment.sample_cutmix(1.0, 4, (5, 6), generator(2))
    assert torch.equal(augment.mix(images, box), augment.cutmix(images, box))
    assert torch.equal(images, before)


def test_mixup_is_differentiable_twice_and_follows_its_generator_alone():
    first, second = (augment.sample_mixup(0.8, 6, generator(3)) for _ in range(2))
    assert first.share == second.share and torch.equal(first.partner, second.partner)
    assert augment.sample_mixup(0.8, 6, generator(4)).share != first.share
    draw = augment.MixUp(torch.tensor([1, 0]), 0.3)
    images = noise(2, 2, 3, 3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.mix(x, draw).square(), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment.mix(x, draw).square(), (images,))
