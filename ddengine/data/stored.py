"""Preprocessing that was read from a file: can images have been fitted to its numbers?

Real images are seen through what a distilled set or an expert store says. Numbers of a damaged file
would make every network useless, those on real images too, so that the comparison would look fair.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddengine.data.preprocess import ZCA_EPS, Preprocess, pieces
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import exact_matmul

MEAN_RANGE = (-0.01, 1.01)  # pixels lie in [0, 1], and so do their means, up to rounding
STD_RANGE = (1e-4, 2.0)  # that of pixels is at most 0.5
# of a mean from that of the real images; published constants of a dataset are off by a few
# hundredths
MOST_OFF = 0.25
# that a standard deviation is larger, or smaller, than that of the real images: 1, "not divided",
# is about 5 times theirs
MOST_TIMES = 6.0
SMALLEST_STD = 1e-3  # of the real images; a smaller one is fitted as this
INVERSE_OFF = 0.05  # relative error of whitening and its inverse; in float32 it is about 1e-4
LOOKED_AT = 1000  # real images at most that the numbers are compared with
# pixel values that are turned into numbers of 64 bits at a time; sixteen times as many are compared
# with at most
AT_ONCE = 2**22
GIVEN = "preprocess="  # the origin of what a caller of Python gave
PROBES = 8  # vectors that whitening and its inverse are tried on


def read_preprocess(path: Path) -> Preprocess:
    """The preprocessing in a safetensors file.

    Raises UserError for one without, or with numbers that no images can be fitted to.
    """
    tensors, _ = files.read_tensors(path)
    if "preprocess.mean" not in tensors:
        raise UserError(
            f"{path} holds no preprocessing (preprocess.mean is missing); restore it, or make it "
            "again with the command that wrote it."
        )
    preprocess = Preprocess.from_tensors(tensors, str(path))
    check_numbers(preprocess)
    return preprocess


def check_numbers(preprocess: Preprocess, image_shape: tuple[int, ...] | None = None) -> None:
    """Raise UserError where `flaw` finds one."""
    wrong = flaw(preprocess, image_shape)
    if wrong is not None:
        raise _refusal(preprocess, wrong)


def check_stored(
    preprocess: Preprocess,
    pixels: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Raise UserError unless it can be the preprocessing of training pixels (N, C, H, W) uint8.

    `mean` and `std` are the published constants of the dataset, if it has any: these are right
    whatever the images at hand look like.
    """
    check_numbers(preprocess, tuple(pixels.shape[1:]))
    if _is_published(preprocess, mean, std):
        return
    wrong = unlike(preprocess, pixels)
    if wrong is not None:
        raise _refusal(preprocess, wrong)


def _is_published(
    preprocess: Preprocess,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> bool:
    """Whether it says the published constants of a dataset, where there are any."""
    if mean is None or std is None:
        return False
    if preprocess.std is None or preprocess.matrix is not None:
        return False
    return _same(preprocess.mean, mean) and _same(preprocess.std, std)


def _refusal(preprocess: Preprocess, wrong: str) -> UserError:
    if preprocess.origin == GIVEN:
        return UserError(
            f"preprocess= does not fit these images: {wrong}; give one of images of the same kind."
        )
    where = preprocess.origin or "the set or the experts"
    return UserError(
        f"The preprocessing in {where} is impossible: {wrong}; restore the file, or make it again "
        "with the command that wrote it."
    )


def _same(values: Tensor, constants: Sequence[float]) -> bool:
    """Whether values of the channels are these constants, up to rounding."""
    if len(values) != len(constants):
        return False
    wanted = torch.tensor(constants, dtype=torch.float64)
    return torch.allclose(values.cpu().double(), wanted, atol=1e-3)


# The numbers alone.


def flaw(preprocess: Preprocess, image_shape: tuple[int, ...] | None = None) -> str | None:
    """Why no images (C, H, W) can be fitted to these numbers, in words; None where they can.

    Without a shape of images those of any shape are meant.
    """
    named = {}
    for name, tensor in preprocess.tensors().items():
        named[name.removeprefix("preprocess.")] = tensor
    whitens = "matrix" in named or "inverse" in named
    needed = ("mean", "matrix", "inverse") if whitens else ("mean", "std")
    return (
        _not_numbers(named)
        or _missing(named, needed)
        or _wrong_shape(named, needed, image_shape)
        or _out_of_range("mean", named["mean"], MEAN_RANGE)
        or (_not_inverse(named) if whitens else _out_of_range("std", named["std"], STD_RANGE))
    )


def _not_numbers(named: dict[str, Tensor]) -> str | None:
    """Which tensor holds something else than finite floats, in words."""
    for name, tensor in named.items():
        if not tensor.is_floating_point():
            return f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}"
        if not tensor.numel():
            return f"{name} holds no numbers"
        if not tensor.isfinite().all():
            return f"{name} holds numbers that are not finite"
    return None


def _missing(named: dict[str, Tensor], needed: tuple[str, ...]) -> str | None:
    for name in needed:
        if name not in named:
            return f"{name} is missing"
    return None


def _wrong_shape(
    named: dict[str, Tensor],
    needed: tuple[str, ...],
    image_shape: tuple[int, ...] | None,
) -> str | None:
    """Which tensor has not the shape that images (C, H, W), or with None the mean, need."""
    size = named["mean"].numel()
    needs = "its mean"
    if image_shape is not None:
        size = math.prod(image_shape) if "matrix" in needed else image_shape[0]
        needs = f"images of shape {tuple(image_shape)}"
    for name in needed:
        shape = tuple(named[name].shape)
        wanted: tuple[int, ...] = (size,)
        if name in ("matrix", "inverse"):
            wanted = (size, size)
        if shape != wanted:
            return f"{name} has shape {shape}, and {needs} needs {wanted}"
    return None


def _out_of_range(
    name: str,
    values: Tensor,
    limits: tuple[float, float],
) -> str | None:
    """Which mean or standard deviation no pixels can have, in words."""
    lowest = float(values.min())
    highest = float(values.max())
    if limits[0] <= lowest <= highest <= limits[1]:
        return None
    wrong = highest
    if lowest < limits[0]:
        wrong = lowest
    what = {"mean": "mean", "std": "standard deviation"}[name]
    return f"it says a {what} of {wrong:.4g}, and pixels lie within 0 and 1"


def _not_inverse(named: dict[str, Tensor]) -> str | None:
    """How far whitening and its inverse are from undoing each other, where they do not.

    A few fixed vectors are brought there and back: the product of both matrices would take minutes
    for large images.
    """
    matrix = named["matrix"]
    inverse = named["inverse"]
    probes = torch.randn(PROBES, len(matrix), generator=generator(0, "whitening")).to(matrix)
    with exact_matmul():
        back = (probes @ matrix) @ inverse
    errors = (back - probes).norm(dim=1)
    off = float((errors / probes.norm(dim=1)).max())
    if off <= INVERSE_OFF:
        return None
    return f"matrix and inverse do not undo each other (a vector comes back {100 * off:.3g} % off)"


# The numbers beside images.


def unlike(preprocess: Preprocess, pixels: Tensor) -> str | None:
    """Why numbers without a flaw cannot be those of training pixels (N, C, H, W) uint8, in words.

    None where they can. Some images are looked at, spread over all; where these seem not to fit,
    all of them, because a few may be unlike the others.
    """
    compare = _unlike_scaled if preprocess.matrix is None else _unlike_whitened
    num = max(1, min(LOOKED_AT, 16 * AT_ONCE // pixels[0].numel()))
    if len(pixels) > num:
        spread = torch.linspace(0, len(pixels) - 1, num, device=pixels.device).long()
        if compare(preprocess, pixels[spread]) is None:
            return None
    return compare(preprocess, pixels)


def _unlike_scaled(preprocess: Preprocess, pixels: Tensor) -> str | None:
    """`unlike` for a mean and a standard deviation of each channel."""
    assert preprocess.std is not None

    def squares(part: Tensor) -> Tensor:
        return (part - mean.view(-1, 1, 1)).square()

    mean = _mean(pixels, (0, 2, 3))
    variance = _mean(pixels, (0, 2, 3), squares)
    std = variance.sqrt().clamp(min=SMALLEST_STD)
    said_mean = preprocess.mean.to(mean)
    said_std = preprocess.std.to(mean)
    off = (said_mean - mean).abs()
    if float(off.max()) > MOST_OFF:
        return _differs("mean", int(off.argmax()), said_mean, mean)
    times = said_std / std
    worst = int(times.log().abs().argmax())
    if not 1 / MOST_TIMES <= float(times[worst]) <= MOST_TIMES:
        return _differs("standard deviation", worst, said_std, std)
    return None


def _differs(
    what: str,
    channel: int,
    said: Tensor,
    real: Tensor,
) -> str:
    return (
        f"it says a {what} of {float(said[channel]):.4g} in channel {channel}, "
        f"and that of the training images is {float(real[channel]):.4g}"
    )


def _unlike_whitened(preprocess: Preprocess, pixels: Tensor) -> str | None:
    """`unlike` for whitening.

    A direction with variance v is whitened to v / (v + ZCA_EPS), so by a factor between 1 / (the
    sum of all v + ZCA_EPS) and 1 / ZCA_EPS.
    """
    mean = preprocess.mean.double().view(1, *pixels.shape[1:])
    differences = mean - _mean(pixels, (0,))
    off = float(differences.square().mean().sqrt())
    if off > MOST_OFF:
        return f"its mean image is {off:.3g} off that of the training images (root mean square)"

    def squares(part: Tensor) -> Tensor:
        return (part - mean).square()

    def whitened_squares(part: Tensor) -> Tensor:
        return preprocess.forward(part.float()).double().square()

    everything = (0, 1, 2, 3)
    before = float(_mean(pixels, everything, squares))
    after = float(_mean(pixels, everything, whitened_squares))
    root = after**0.5
    of_all = mean.numel() * before
    low = (before / (of_all + ZCA_EPS)) ** 0.5
    high = (before / ZCA_EPS) ** 0.5
    if low / MOST_TIMES <= root <= high * MOST_TIMES:
        return None
    return (
        f"it brings the training images to a root mean square of {root:.3g}, and whitening "
        f"to one between {low:.3g} and {high:.3g}"
    )


def _mean(
    pixels: Tensor,
    dims: tuple[int, ...],
    of: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """The mean over `dims`, the first among them, of a function of pixels (N, C, H, W).

    The function sees them as values in [0, 1], float64, part by part.
    """
    sums = []
    for part in pieces(pixels, AT_ONCE):
        values = of(part.double() / 255)
        sums.append(values.sum(dims))
    total = torch.stack(sums).sum(0)
    summed = pixels.numel() / max(1, total.numel())
    return total / summed
