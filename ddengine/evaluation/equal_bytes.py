"""Real images in as many bytes as a set has: what else its bytes could have been spent on."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ddengine.data import RealSet

CLASS_BYTES = 8  # of the class of an image, as a set stores it
FORM = "8 bits a value"  # in which the real images count


def num_images(num_bytes: int, real: RealSet) -> int:
    """Real images that so many bytes hold, at most all: a byte a value, and their class."""
    each = math.prod(real.image_shape) + CLASS_BYTES
    return min(num_bytes // each, len(real))


def counts(num: int, members: Sequence[int], rng: Generator) -> list[int]:
    """Images of each class when `num` are shared out as evenly as the classes allow.

    `members` are the images that each class has, together no fewer than `num`. Where the last ones
    do not go round, `rng` draws the classes that get them.
    """
    taken = [0] * len(members)
    left = num
    while left:
        open_classes = [c for c, most in enumerate(members) if taken[c] < most]
        share = left // len(open_classes)
        if share == 0:
            order = torch.randperm(len(open_classes), generator=rng).tolist()
            for place in order[:left]:
                taken[open_classes[place]] += 1
            break
        for c in open_classes:
            more = min(share, members[c] - taken[c])
            taken[c] += more
            left -= more
    return taken


def random_index(real: RealSet, num: int, rng: Generator) -> Tensor:
    """Indices (num,) of random images, class by class, shared out evenly."""
    shares = counts(num, list(map(len, real.members)), rng)
    return torch.cat([real.draw_index(c, share, rng) for c, share in enumerate(shares)])
