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
from dataclasses import dataclass, replace
from functools import cache

import scipy.special
import torch
from torch import Generator, Tensor
from torch.nn import functional

from ddengine.recipe import AugmentConfig
from ddengine.system.runtime import exact_matmul, sent


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
        uniform = sent(self.uniform, device)
        if self.always is None:
            return AugmentDraw(self.ops, uniform)
        always = sent(self.always, device)
        return AugmentDraw(self.ops, uniform, always)

    def part(self, groups: slice) -> "AugmentDraw":
        """The draw of some of its groups."""
        ops = self.ops[groups]
        uniform = self.uniform[groups]
        if self.always is None:
            return AugmentDraw(ops, uniform)
        return AugmentDraw(ops, uniform, self.always[groups])


def sample(
    config: AugmentConfig, num: int, rng: Generator, *, groups: int = 1, shared: bool = False
) -> AugmentDraw:
    """A draw for `groups` groups of `num` images each.

    `shared`: one parameter set per group, for any number of images.
    """
    per_group = 1 if shared else num
    used = (*config.ops, *config.always)
    # the fourth only where it is used, which keeps older streams
    numbers = 4 if "resized_crop" in used else 3
    ops = ("none",) * groups
    uniform = torch.zeros(groups, 1, numbers)
    if config.ops:
        chosen = torch.randint(len(config.ops), (groups,), generator=rng)
        ops = tuple(config.ops[number] for number in chosen.tolist())
        uniform = torch.rand(groups, per_group, numbers, generator=rng)
    if not config.always:
        return AugmentDraw(ops, uniform)
    always = torch.rand(groups, per_group, len(config.always), numbers, generator=rng)
    return AugmentDraw(ops, uniform, always)


def concatenate(draws: list[AugmentDraw]) -> AugmentDraw:
    """One draw of all groups of `draws`.

    They must be of one configuration and have equally many images a group.
    """
    ops: list[str] = []
    uniform: list[Tensor] = []
    always: list[Tensor] = []
    for draw in draws:
        ops += draw.ops
        uniform.append(draw.uniform)
        if draw.always is not None:
            always.append(draw.always)
    joined = AugmentDraw(tuple(ops), torch.cat(uniform))
    if always:
        joined = replace(joined, always=torch.cat(always))
    return joined


def apply(config: AugmentConfig, images: Tensor, draw: AugmentDraw) -> Tensor:
    """Augmented images (B, C, H, W). B is split evenly over the groups of the draw, in order."""
    groups = len(draw.ops)
    per_group = images.shape[0] // groups
    assert per_group * groups == len(images), (
        f"{len(images)} images do not split into {groups} groups"
    )
    if draw.always is None:
        return _apply_drawn(config, images, draw)
    always = draw.always.to(images)
    always = always.expand(groups, per_group, -1, -1).flatten(0, 1)
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
    groups = len(draw.ops)
    per_group = len(images) // groups
    uniform = draw.uniform.to(images)
    uniform = uniform.expand(groups, per_group, -1).flatten(0, 1)
    kinds = sorted(set(draw.ops))
    if len(kinds) == 1:
        operation = OPS[kinds[0]]
        return operation(config, images, uniform)
    out = torch.empty_like(images)
    for op in kinds:  # at most one call per kind of operation, however many groups
        operation = OPS[op]
        index = _images_of(op, draw, per_group, images.device)
        part = images.index_select(0, index)
        numbers = uniform.index_select(0, index)
        out = out.index_copy(0, index, operation(config, part, numbers))
    return out


def _images_of(op: str, draw: AugmentDraw, per_group: int, device: torch.device) -> Tensor:
    """Indices (n,) of the images whose groups have drawn `op`."""
    groups = [group for group, drawn in enumerate(draw.ops) if drawn == op]
    chosen = sent(torch.tensor(groups), device)
    first = chosen.unsqueeze(1) * per_group
    within = torch.arange(per_group, device=device)
    return (first + within).flatten()


@dataclass(frozen=True)
class CutMix:
    """Each image of a batch gets one box of pixels, the same for all, from its partner."""

    partner: Tensor  # (B,) int64, a permutation
    box: tuple[int, int, int, int]  # rows from, to, columns from, to; the ends excluded
    # of the pixels that stay, exactly: 1 less the part of the image that the box covers
    share: float

    def to(self, device: torch.device) -> "CutMix":
        """The same draw with its permutation on `device`."""
        return CutMix(sent(self.partner, device), self.box, self.share)


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
    height, width = size
    side = math.sqrt(covered)
    top, bottom = _span(row, side, height)
    left, right = _span(column, side, width)
    area = (bottom - top) * (right - left)
    share = 1 - area / (height * width)
    partner = torch.randperm(num, generator=rng)
    return CutMix(partner, (top, bottom, left, right), share)


def _span(centre: float, side: float, length: int) -> tuple[int, int]:
    """From where to where a box reaches along a line of pixels; both are fractions of the line."""
    middle = int(centre * length)
    half = int(length * side) // 2
    return max(0, middle - half), min(length, middle + half)


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
        return MixUp(sent(self.partner, device), self.share)


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
    in_rows = (rows >= 0) & (rows < height)
    in_columns = (columns >= 0) & (columns < width)
    weights = weights * (in_rows & in_columns)
    rows = rows.clamp(0, height - 1)
    columns = columns.clamp(0, width - 1)
    index = rows * width + columns
    flat = images.flatten(2)
    total: Tensor | None = None
    for tap_index, tap_weight in zip(index, weights, strict=True):
        of_image = tap_index.view(num, 1, -1)
        pixels = flat.gather(2, of_image.expand(-1, channels, -1))
        tap = pixels * tap_weight.view(num, 1, -1)
        total = tap if total is None else total + tap
    assert total is not None
    return total.view_as(images)


def _line(length: int, like: Tensor) -> Tensor:
    """The numbers 0, 1, ... below `length`, int64, on the device of `like`."""
    return torch.arange(length, device=like.device)


def crop(images: Tensor, shift_rows: Tensor, shift_columns: Tensor) -> Tensor:
    """out[r, c] = x[r + shift_rows, c + shift_columns], zero outside; shifts int64."""
    num, _, height, width = images.shape
    shape = (num, height, width)
    rows = _line(height, images) + shift_rows.unsqueeze(1)
    columns = _line(width, images) + shift_columns.unsqueeze(1)
    every_row = rows.unsqueeze(2).expand(shape).unsqueeze(0)
    every_column = columns.unsqueeze(1).expand(shape).unsqueeze(0)
    return _gather_pixels(images, every_row, every_column, images.new_ones(1))


def rearrange(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[b, :, r, c] = x[b, :, rows[b, r], columns[b, c]].

    rows (B, H) and columns (B, W) are int64.
    """
    num, channels, _, width = images.shape
    index = rows.unsqueeze(2) * width + columns.unsqueeze(1)
    of_channels = index.view(num, 1, -1).expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, of_channels)
    return moved.view_as(images)


def roll(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shift cyclically, down by `rows` and right by `columns` (int64), as torch.roll does."""
    height, width = images.shape[2:]
    from_rows = _line(height, images) - rows.unsqueeze(1)
    from_columns = _line(width, images) - columns.unsqueeze(1)
    return rearrange(images, from_rows % height, from_columns % width)


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """The box of each image (int64, inside it) stretched to the size of the image.

    It is bilinear, with half-pixel centres, the edge of the box repeated. Two batched matrix
    products, whose backward is deterministic on CUDA as that of functional.interpolate is not.
    """
    down = _stretching(top, height, images.shape[2], images.dtype)
    across = _stretching(left, width, images.shape[3], images.dtype)
    with exact_matmul():
        return down @ images @ across.mT


def _stretching(first: Tensor, side: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Weights (B, 1, length, length) of linear interpolation along one side.

    A line of `side` pixels from `first` on becomes one of `length`.
    """
    line = torch.arange(length, device=first.device, dtype=dtype)
    side = side.unsqueeze(1).to(dtype)
    centres = (line + 0.5) * (side / length) - 0.5
    in_box = centres.clamp(min=0).minimum(side - 1)
    in_image = in_box + first.unsqueeze(1)
    distances = (in_image.unsqueeze(2) - line).abs()
    return (1 - distances).clamp(min=0).unsqueeze(1)


@cache
def _strip_orders(length: int, patches: int) -> Tensor:
    """The lines of one side, cut into strips, in each order of the strips.

    (patches!, length) int64; the last strip takes what is left over.
    """
    size = length // patches
    before = size * (patches - 1)
    sizes = [size] * (patches - 1) + [length - before]
    strips = torch.arange(length).split(sizes)
    orders = [torch.cat(order) for order in itertools.permutations(strips)]
    return torch.stack(orders)


def shuffle(images: Tensor, patches: int, row_order: Tensor, column_order: Tensor) -> Tensor:
    """Put `patches` vertical strips in another order, then as many horizontal ones.

    Orders (B,) int64 count the permutations of 0..patches-1 in lexicographic order: place i gets
    strip permutation[i].
    """
    height, width = images.shape[2:]
    row_orders = sent(_strip_orders(height, patches), images.device)
    column_orders = sent(_strip_orders(width, patches), images.device)
    rows = row_orders.index_select(0, row_order)
    columns = column_orders.index_select(0, column_order)
    return rearrange(images, rows, columns)


def cutout(
    images: Tensor, centre_rows: Tensor, centre_columns: Tensor, size: tuple[int, int]
) -> Tensor:
    """Zero a rectangle of `size` around each centre (int64), truncated at the border."""
    height, width = images.shape[2:]
    rows = _covered(centre_rows, size[0], height)
    columns = _covered(centre_columns, size[1], width)
    hidden = rows.unsqueeze(2) & columns.unsqueeze(1)
    return images * ~hidden.unsqueeze(1)


def _covered(centre: Tensor, side: int, length: int) -> Tensor:
    """Which pixels of a line (B, length) lie within `side` pixels around each centre (int64).

    The ends are clamped to the image one by one, so a square beyond the border still covers the
    border's line.
    """
    start = centre - side // 2
    first = start.clamp(0, length - 1)
    last = (start + side - 1).clamp(0, length - 1)
    line = _line(length, centre)
    return (line >= first.unsqueeze(1)) & (line <= last.unsqueeze(1))


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
    y = _from_minus_one(height, images).unsqueeze(1)
    x = _from_minus_one(width, images).unsqueeze(0)
    entries = matrix.unsqueeze(3).unsqueeze(4)
    to_x, to_y = entries.unbind(1)
    column = (_read_at(to_x, x, y) + 1) * (width - 1) / 2
    row = (_read_at(to_y, x, y) + 1) * (height - 1) / 2
    top = row.floor()
    left = column.floor()
    rows = torch.stack((top, top, top + 1, top + 1))
    columns = torch.stack((left, left + 1, left, left + 1))
    # how much the lower and the right neighbours count, and the upper and the left ones
    down = row - top
    right = column - left
    up = 1 - down
    across = 1 - right
    weights = torch.stack((up * across, up * right, down * across, down * right))
    return _gather_pixels(images, rows.long(), columns.long(), weights)


def _from_minus_one(length: int, like: Tensor) -> Tensor:
    """Where the pixels of a line (length,) are, in [-1, 1]."""
    return torch.linspace(-1, 1, length, device=like.device, dtype=like.dtype)


def _read_at(to_coordinate: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A row (B, 2, 1, 1) of each matrix times (X, Y): a coordinate (B, H, W)."""
    by_x, by_y = to_coordinate.unbind(1)
    return by_x * x + by_y * y


def scale(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Stretch by separate factors for columns and rows; above 1 shrinks the content."""
    factors = torch.stack((columns, rows), 1)
    return warp(images, torch.diag_embed(factors))


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate by `angle` in radians."""
    cos = angle.cos()
    sin = angle.sin()
    first = torch.stack((cos, -sin), 1)
    second = torch.stack((sin, cos), 1)
    return warp(images, torch.stack((first, second), 1))


# From uniform numbers (B, 3 or 4) to parameters.


def _side(length: int, fraction: float) -> int:
    return int(length * fraction + 0.5)


def _integer(uniform: Tensor, low: int, high: int) -> Tensor:
    """Uniform over low..high, both included."""
    steps = high - low
    drawn = (uniform * (steps + 1)).floor().long()
    return drawn.clamp(max=steps) + low


def _offset(uniform: Tensor, free: Tensor) -> Tensor:
    """Uniform over 0..free, both included, which differs between images."""
    drawn = (uniform * (free + 1)).floor().long()
    return drawn.minimum(free)


def _color(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    shift, factor, gain, *_ = u.unbind(1)
    images = brightness(images, (shift - 0.5) * config.brightness)
    images = saturation(images, factor * config.saturation)
    return contrast(images, gain + config.contrast)


def _crop(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    height, width = images.shape[2:]
    most_rows = _side(height, config.crop)
    most_columns = _side(width, config.crop)
    down, right, *_ = u.unbind(1)
    rows = _integer(down, -most_rows, most_rows)
    columns = _integer(right, -most_columns, most_columns)
    return crop(images, rows, columns)


def _cutout(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows = _side(height, config.cutout)
    columns = _side(width, config.cutout)
    down, right, *_ = u.unbind(1)
    # an even square may be centred on the line after the last one
    centre_rows = _integer(down, 0, height - rows % 2)
    centre_columns = _integer(right, 0, width - columns % 2)
    return cutout(images, centre_rows, centre_columns, (rows, columns))


def _flip(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    which, *_ = u.unbind(1)
    return flip(images, which < config.flip)


def _scale(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    smallest = 1 / config.scale
    factors = smallest + u * (config.scale - smallest)
    columns, rows, *_ = factors.unbind(1)
    return scale(images, columns, rows)


def _rotate(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    turn, *_ = u.unbind(1)
    most = math.radians(config.rotate)
    return rotate(images, (turn - 0.5) * 2 * most)


def _roll(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    down, right, *_ = u.unbind(1)
    rows = _integer(down, 0, config.roll)
    columns = _integer(right, 0, config.roll)
    return roll(images, rows, columns)


def _resized_crop(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    """As torchvision draws it, but for a side longer than the image's.

    That is cut to the image's, where torchvision draws area and ratio again.
    """
    height, width = images.shape[2:]
    of_area, of_ratio, down, right = u.unbind(1)
    fraction = config.area + of_area * (1 - config.area)
    area = height * width * fraction
    exponent = (2 * of_ratio - 1) * math.log(config.ratio)
    ratio = exponent.exp()  # of width to height
    box_width = _whole_side(area * ratio, width)
    box_height = _whole_side(area / ratio, height)
    top = _offset(down, height - box_height)
    left = _offset(right, width - box_width)
    return resized_crop(images, top, left, box_height, box_width)


def _whole_side(square: Tensor, most: int) -> Tensor:
    """Sides of squares of these areas, in whole pixels from 1 to `most`: int64."""
    side = square.sqrt().round()
    return side.clamp(1, most).long()


def _shuffle(config: AugmentConfig, images: Tensor, u: Tensor) -> Tensor:
    last = math.factorial(config.patches) - 1
    of_columns, of_rows, *_ = u.unbind(1)
    row_order = _integer(of_rows, 0, last)
    column_order = _integer(of_columns, 0, last)
    return shuffle(images, config.patches, row_order, column_order)


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
