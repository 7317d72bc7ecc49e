"""Differentiable siamese augmentation (DSA), CutMix and mixup, sampling apart from applying.

DSA is of Zhao & Bilen (ICML 2021, arXiv 2102.08259). A draw names one operation per group of images
(a batch, a class, a network) and holds a few uniform numbers per image (or per group), from which
each operation makes its parameters; operations that are always applied have as many of their own
each. So one draw can be applied twice (siamese), to batches of different sizes too, and an unrolled
step can be replayed. Everything is differentiable in the images as often as wanted, works in the
images' own units (normalised or whitened, no clamp) and has no loop over images.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import scipy.special
import torch
from torch import Generator, Tensor
from torch.nn import functional

from ddengine.recipe import AugmentConfig
from ddengine.system.runtime import exact_matmul


@dataclass(frozen=True)
class AugmentDraw:
    """One operation per group, and uniform numbers in [0, 1)."""

    ops: tuple[str, ...]  # one a group; "none" where there is nothing to draw from
    # (groups, images per group | 1, numbers); 3 numbers, or 4 where an operation of the
    # configuration needs so many
    uniform: Tensor
    # (groups, images per group | 1, operations applied always, numbers); None without such
    # operations
    always: Tensor | None = None

    def to(self, device: torch.device) -> "AugmentDraw":
        """The same draw with its numbers on `device`."""
        always = None if self.always is None else self.always.to(device, non_blocking=True)
        return AugmentDraw(self.ops, self.uniform.to(device, non_blocking=True), always)

    def part(self, groups: slice) -> "AugmentDraw":
        """The draw of some of its groups."""
        return AugmentDraw(
            self.ops[groups],
            self.uniform[groups],
            None if self.always is None else self.always[groups],
        )


def sample(
    config: AugmentConfig, num: int, rng: Generator, *, groups: int = 1, shared: bool = False
) -> AugmentDraw:
    """A draw for `groups` groups of `num` images each.

    `shared`: one parameter set per group, for any number of images.
    """
    per_group = 1 if shared else num
    # the fourth only where it is used, which keeps older streams
    numbers = 4 if "resized_crop" in (*config.ops, *config.always) else 3
    ops, uniform = ("none",) * groups, torch.zeros(groups, 1, numbers)
    if config.ops:
        chosen = torch.randint(len(config.ops), (groups,), generator=rng)
        ops = tuple(map(config.ops.__getitem__, chosen.tolist()))
        uniform = torch.rand(groups, per_group, numbers, generator=rng)
    always = None
    if config.always:
        always = torch.rand(groups, per_group, len(config.always), numbers, generator=rng)
    return AugmentDraw(ops, uniform, always)


def concatenate(draws: list[AugmentDraw]) -> AugmentDraw:
    """One draw of all groups of `draws`.

    They must be of one configuration and have equally many images a group.
    """
    ops: list[str] = []
    always: list[Tensor] = []
    for draw in draws:
        ops += draw.ops
        if draw.always is not None:
            always.append(draw.always)
    uniform = torch.cat([draw.uniform for draw in draws])
    return AugmentDraw(tuple(ops), uniform, torch.cat(always) if always else None)


def apply(config: AugmentConfig, images: Tensor, draw: AugmentDraw) -> Tensor:
    """Augmented images (B, C, H, W). B is split evenly over the groups of the draw, in order."""
    groups = len(draw.ops)
    per_group = images.shape[0] // groups
    assert per_group * groups == len(images), (
        f"{len(images)} images do not split into {groups} groups"
    )
    if draw.always is None:
        return _apply_drawn(config, images, draw)
    always = draw.always.to(images).expand(groups, per_group, -1, -1).flatten(0, 1)
    numbers = list(zip(config.always, always.unbind(1), strict=True))
    for op, uniform in numbers:
        if op != "cutout":
            images = OPS[op](config, images, uniform)
    images = _apply_drawn(config, images, draw)
    for op, uniform in numbers:
        if op == "cutout":  # last, so that what was hidden is not moved out of its place
            images = OPS[op](config, images, uniform)
    return images


def _apply_drawn(config: AugmentConfig, images: Tensor, draw: AugmentDraw) -> Tensor:
    """The operation drawn for each group."""
    groups, per_group = len(draw.ops), len(images) // len(draw.ops)
    uniform = draw.uniform.to(images).expand(groups, per_group, -1).flatten(0, 1)
    if len(set(draw.ops)) == 1:
        return OPS[draw.ops[0]](config, images, uniform)
    out = torch.empty_like(images)
    for op in sorted(set(draw.ops)):  # at most one call per kind of operation, however many groups
        chosen = torch.tensor([i for i, other in enumerate(draw.ops) if other == op])
        first = chosen.to(images.device, non_blocking=True)[:, None] * per_group
        index = (first + torch.arange(per_group, device=images.device)).flatten()
        part, numbers = images.index_select(0, index), uniform.index_select(0, index)
        out = out.index_copy(0, index, OPS[op](config, part, numbers))
    return out


@dataclass(frozen=True)
class CutMix:
    """Each image of a batch gets one box of pixels, the same for all, from its partner."""

    partner: Tensor  # (B,) int64, a permutation
    box: tuple[int, int, int, int]  # rows from, to, columns from, to; the ends excluded
    # of the pixels that stay, exactly: 1 less the part of the image that the box covers
    share: float

    def to(self, device: torch.device) -> "CutMix":
        """The same draw with its permutation on `device`."""
        return CutMix(self.partner.to(device, non_blocking=True), self.box, self.share)


def sample_cutmix(
    probability: float, num: int, size: tuple[int, int], rng: Generator
) -> CutMix | None:
    """With `probability` a draw for a batch, else None (CutMix; Yun et al., ICCV 2019).

    The batch has `num` images of `size` (height, width). The ratio that stays is Beta(1, 1), which
    is uniform (as IDC takes it). The box has the image's proportions and a uniform centre, and is
    cut off at the border; the share is counted after that. All numbers are drawn on the CPU, so
    nothing waits for a device.
    """
    use, covered, row, column = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
    if use >= probability:
        return None
    spans = []
    for length, at in zip(size, (row, column), strict=True):
        centre, half = int(at * length), int(length * math.sqrt(covered)) // 2
        spans += [max(0, centre - half), min(length, centre + half)]
    top, bottom, left, right = spans
    share = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    return CutMix(torch.randperm(num, generator=rng), (top, bottom, left, right), share)


def cutmix(images: Tensor, draw: CutMix) -> Tensor:
    """Images (B, C, H, W) with the box of each taken from its partner.

    The given images stay as they are.
    """
    top, bottom, left, right = draw.box
    boxes = images[:, :, top:bottom, left:right]
    result = images.clone()
    result[:, :, top:bottom, left:right] = boxes.index_select(0, draw.partner)
    return result


@dataclass(frozen=True)
class MixUp:
    """Each image of a batch is mixed with its partner, all in one ratio."""

    partner: Tensor  # (B,) int64, a permutation
    share: float  # of the image itself

    def to(self, device: torch.device) -> "MixUp":
        """The same draw with its permutation on `device`."""
        return MixUp(self.partner.to(device, non_blocking=True), self.share)


Mix = CutMix | MixUp


def sample_mixup(alpha: float, num: int, rng: Generator) -> MixUp:
    """A draw for a batch of `num` images (mixup; Zhang et al., ICLR 2018).

    Its share is Beta(alpha, alpha). The share is the quantile of one uniform number, because
    torch's own Beta takes no generator.
    """
    at = torch.rand((), generator=rng, dtype=torch.float64).item()
    partner = torch.randperm(num, generator=rng)
    return MixUp(partner, float(scipy.special.betaincinv(alpha, alpha, at)))


def mix(images: Tensor, draw: Mix) -> Tensor:
    """Images (B, C, H, W) mixed with their partners.

    That is by `cutmix`, or share x + (1 - share) x[partner].
    """
    if isinstance(draw, CutMix):
        return cutmix(images, draw)
    return draw.share * images + (1 - draw.share) * images.index_select(0, draw.partner)


def mixed(images: Tensor, draw: Mix | None) -> Tensor:
    """Images (B, C, H, W) mixed with their partners; as they are without a draw."""
    return images if draw is None else mix(images, draw)


# Operations with explicit parameters. Images (B, C, H, W), parameters (B,).


def _column(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)


def brightness(images: Tensor, shift: Tensor) -> Tensor:
    """X + shift."""
    return images + _column(shift)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """M + (x - m) factor, m the mean over channels of each pixel (identity for one channel)."""
    mean = images.mean(1, keepdim=True)
    return mean + (images - mean) * _column(factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """M + (x - m) factor, m the mean of each image."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * _column(factor)


def _gather_pixels(images: Tensor, rows: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Sum over taps of weight * x[row, column], zero outside.

    rows, columns: int64 (taps, B, H, W); weights (taps, B, H, W).
    """
    num, channels, height, width = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    flat, out = images.flatten(2), None
    for tap_index, tap_weight in zip(index, weights * inside, strict=True):
        values = flat.gather(2, tap_index.view(num, 1, -1).expand(-1, channels, -1))
        tap = values * tap_weight.view(num, 1, -1)
        out = tap if out is None else out + tap
    assert out is not None
    return out.view_as(images)


def crop(images: Tensor, shift_rows: Tensor, shift_columns: Tensor) -> Tensor:
    """out[r, c] = x[r + shift_rows, c + shift_columns], zero outside; shifts int64."""
    num, _, height, width = images.shape
    shape = (num, height, width)
    rows = torch.arange(height, device=images.device) + shift_rows[:, None]
    columns = torch.arange(width, device=images.device) + shift_columns[:, None]
    return _gather_pixels(
        images,
        rows[:, :, None].expand(shape)[None],
        columns[:, None, :].expand(shape)[None],
        torch.ones(1, device=images.device, dtype=images.dtype),
    )


def rearrange(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[b, :, r, c] = x[b, :, rows[b, r], columns[b, c]].

    rows (B, H) and columns (B, W) are int64.
    """
    num, channels, _, width = images.shape
    index = (rows[:, :, None] * width + columns[:, None, :]).view(num, 1, -1)
    return images.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(images)


def roll(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shift cyclically, down by `rows` and right by `columns` (int64), as torch.roll does."""
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device)
    right = torch.arange(width, device=images.device)
    return rearrange(images, (down - rows[:, None]) % height, (right - columns[:, None]) % width)


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """The box of each image (int64, inside it) stretched to the size of the image.

    It is bilinear, with half-pixel centres, the edge of the box repeated. Two batched matrix
    products, whose backward is deterministic on CUDA as that of functional.interpolate is not.
    """

    def weights(first: Tensor, side: Tensor, length: int) -> Tensor:
        """(B, 1, length, length): of linear interpolation along one side."""
        line = torch.arange(length, device=images.device, dtype=images.dtype)
        side = side[:, None].to(images.dtype)
        at = ((line + 0.5) * (side / length) - 0.5).clamp(min=0).minimum(side - 1) + first[:, None]
        return (1 - (at[:, :, None] - line).abs()).clamp(min=0)[:, None]

    down = weights(top, height, images.shape[2])
    across = weights(left, width, images.shape[3])
    with exact_matmul():
        return down @ images @ across.mT


@cache
def _strip_orders(length: int, patches: int) -> Tensor:
    """The lines of one side, cut into strips, in each order of the strips.

    (patches!, length) int64; the last strip takes what is left over.
    """
    size = length // patches
    sizes = [size] * (patches - 1) + [length - size * (patches - 1)]
    strips = torch.arange(length).split(sizes)
    return torch.stack(list(map(torch.cat, itertools.permutations(strips))))


def shuffle(images: Tensor, patches: int, row_order: Tensor, column_order: Tensor) -> Tensor:
    """Put `patches` vertical strips in another order, then as many horizontal ones.

    Orders (B,) int64 count the permutations of 0..patches-1 in lexicographic order: place i gets
    strip permutation[i].
    """
    height, width = images.shape[2:]
    rows = _strip_orders(height, patches).to(images.device, non_blocking=True)
    columns = _strip_orders(width, patches).to(images.device, non_blocking=True)
    return rearrange(images, rows.index_select(0, row_order), columns.index_select(0, column_order))


def cutout(
    images: Tensor, centre_rows: Tensor, centre_columns: Tensor, size: tuple[int, int]
) -> Tensor:
    """Zero a rectangle of `size` around each centre (int64), truncated at the border."""

    def covered(centre: Tensor, side: int, length: int) -> Tensor:
        # indices are clamped to the image one by one, so a square beyond the border still covers
        # the border's line
        first = (centre - side // 2).clamp(0, length - 1)
        last = (centre - side // 2 + side - 1).clamp(0, length - 1)
        line = torch.arange(length, device=images.device)
        return (line >= first[:, None]) & (line <= last[:, None])

    height, width = images.shape[2:]
    rows = covered(centre_rows, size[0], height)[:, :, None]
    columns = covered(centre_columns, size[1], width)[:, None, :]
    return images * ~(rows & columns)[:, None]


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the columns of the images where `mirrored` (bool)."""
    return torch.where(_column(mirrored), images.flip(3), images)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear resampling.

    The output pixel at (X = columns, Y = rows) in [-1, 1], corners at -1 and 1, reads at matrix
    (X, Y); it is zero outside. matrix: (B, 2, 2). On CUDA made of `gather`, because the backward of
    grid_sample has no deterministic kernel there and a resumed run must repeat itself; on a CPU
    grid_sample is deterministic and twice as fast.
    """
    if images.is_cuda:
        return warp_by_gather(images, matrix)
    affine = functional.pad(matrix, (0, 1))
    grid = functional.affine_grid(affine, list(images.shape), align_corners=True)
    return functional.grid_sample(images, grid, align_corners=True)


def warp_by_gather(images: Tensor, matrix: Tensor) -> Tensor:
    """`warp` as a weighted sum of four gathered neighbours."""
    height, width = images.shape[2:]
    y = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype)
    x = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype)
    y, x = y[:, None].expand(height, width), x.expand(height, width)
    m = matrix[:, :, :, None, None]
    column = (m[:, 0, 0] * x + m[:, 0, 1] * y + 1) * (width - 1) / 2
    row = (m[:, 1, 0] * x + m[:, 1, 1] * y + 1) * (height - 1) / 2
    top, left = row.floor(), column.floor()
    down, right = row - top, column - left
    rows = torch.stack((top, top, top + 1, top + 1)).long()
    columns = torch.stack((left, left + 1, left, left + 1)).long()
    up, across = 1 - down, 1 - right
    weights = torch.stack((up * across, up * right, down * across, down * right))
    return _gather_pixels(images, rows, columns, weights)


def scale(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Stretch by separate factors for columns and rows; above 1 shrinks the content."""
    return warp(images, torch.diag_embed(torch.stack((columns, rows), 1)))


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate by `angle` in radians."""
    cos, sin = angle.cos(), angle.sin()
    first, second = torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)
    return warp(images, torch.stack((first, second), 1))


# From uniform numbers (B, 3 or 4) to parameters.


def _side(length: int, fraction: float) -> int:
    return int(length * fraction + 0.5)


def _integer(uniform: Tensor, low: int, high: int) -> Tensor:
    """Uniform over low..high, both included."""
    return (uniform * (high - low + 1)).floor().long().clamp(max=high - low) + low


def _offset(uniform: Tensor, free: Tensor) -> Tensor:
    """Uniform over 0..free, both included, which differs between images."""
    return (uniform * (free + 1)).floor().long().minimum(free)


def _color(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    images = brightness(images, (u[:, 0] - 0.5) * config.brightness)
    images = saturation(images, u[:, 1] * config.saturation)
    return contrast(images, u[:, 2] + config.contrast)


def _crop(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    rows, columns = _side(images.shape[2], config.crop), _side(images.shape[3], config.crop)
    return crop(images, _integer(u[:, 0], -rows, rows), _integer(u[:, 1], -columns, columns))


def _cutout(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    height, width = images.shape[2:]
    size = (_side(height, config.cutout), _side(width, config.cutout))
    # an even square may be centred on the line after the last one
    centre_rows = _integer(u[:, 0], 0, height - size[0] % 2)
    centre_columns = _integer(u[:, 1], 0, width - size[1] % 2)
    return cutout(images, centre_rows, centre_columns, size)


def _flip(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    return flip(images, u[:, 0] < config.flip)


def _scale(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    smallest = 1 / config.scale
    factors = smallest + u[:, :2] * (config.scale - smallest)
    return scale(images, factors[:, 0], factors[:, 1])


def _rotate(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    return rotate(images, (u[:, 0] - 0.5) * 2 * math.radians(config.rotate))


def _roll(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    return roll(images, _integer(u[:, 0], 0, config.roll), _integer(u[:, 1], 0, config.roll))


def _resized_crop(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    """As torchvision draws it, but for a side longer than the image's.

    That is cut to the image's, where torchvision draws area and ratio again.
    """
    height, width = images.shape[2:]
    area = height * width * (config.area + u[:, 0] * (1 - config.area))
    ratio = ((2 * u[:, 1] - 1) * math.log(config.ratio)).exp()  # of width to height
    box_width = (area * ratio).sqrt().round().clamp(1, width).long()
    box_height = (area / ratio).sqrt().round().clamp(1, height).long()
    return resized_crop(
        images,
        _offset(u[:, 2], height - box_height),
        _offset(u[:, 3], width - box_width),
        box_height,
        box_width,
    )


def _shuffle(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    last = math.factorial(config.patches) - 1
    return shuffle(images, config.patches, _integer(u[:, 1], 0, last), _integer(u[:, 0], 0, last))


OPS = {
    "none": lambda config, images, u: images,
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
    "roll": _roll,
    "resized_crop": _resized_crop,
    "shuffle": _shuffle,
}
