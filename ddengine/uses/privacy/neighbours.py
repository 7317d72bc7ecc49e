"""The nearest real images of each image of a set, and the nearest of the set to each real one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.uses.privacy.spaces import Points

CELLS = 2**24  # float64 values in a block of distances or rows, 128 MiB
MOST_POINTS = 2**26  # float64 values of the points that are compared at a time, 512 MiB
MOST_ROWS = 8192  # pool images that are compared at a time


@dataclass(frozen=True)
class Near:
    """Nearest pool images of each point, and nearest points of each pool image.

    All lie on the CPU; distances are Euclidean in float64. The first points are the set, the rest
    controls.
    """

    index: Tensor  # (P,) int64
    distance: Tensor  # (P,)
    drawn: Tensor  # (draws, P): distance to the nearest pool image of each draw
    to_set: Tensor  # (N,): from each pool image to the nearest point of the set
    to_control: Tensor  # (N,): to the nearest of the other points; inf where there are none


@torch.no_grad()
def neighbours(
    points: Points,
    pool: Points,
    draws: Tensor,
    num_set: int,
    *,
    block: int | None = None,
    chunk: int | None = None,
) -> Near:
    """Compare all points with all pool images, a block of distances at a time.

    Distances come from a float64 matrix product, exact to about 1e-7 per root of a value; those of
    the nearest are computed once more from differences, so that a copy is at distance 0.

    Args:
        points: P points.
        pool: N points.
        draws: (draws, N) bool on the CPU, parts of the pool.
        num_set: how many of the points, the first ones, are the set; the rest are controls.
        block: pool images at a time; None: as many as suit the memory.
        chunk: points at a time; the pool is gone through once for each chunk.
    """
    dim = points.rows(torch.arange(1)).shape[1]
    chunk = chunk or max(1, MOST_POINTS // dim)
    near = Near(
        index=torch.zeros(points.num, dtype=torch.long),
        distance=_infinite(points.num),
        drawn=_infinite(len(draws), points.num),
        to_set=_infinite(pool.num),
        to_control=_infinite(pool.num),
    )
    for part in torch.arange(points.num).split(chunk):
        rows = points.rows(part)
        num_of_set = int((part < num_set).sum())
        suit_memory = max(1, min(CELLS // max(dim, len(part)), MOST_ROWS))
        for place in torch.arange(pool.num).split(block or suit_memory):
            distances = _distances(rows, pool.rows(place))
            _note_points(near, part, place, distances, draws)
            _note_pool(near, num_of_set, place, distances)
        for few in part.split(max(1, CELLS // dim)):
            nearest = pool.rows(near.index[few])
            difference = points.rows(few) - nearest
            near.distance[few] = difference.norm(dim=1).cpu()
    return near


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """(P, N) Euclidean distances of rows (P, D) from others (N, D), on the CPU."""
    lengths = rows.square().sum(1)[:, None] + others.square().sum(1)
    squared = torch.addmm(lengths, rows, others.T, alpha=-2)
    return squared.clamp_(min=0).sqrt_().cpu()


def _infinite(*shape: int) -> Tensor:
    return torch.full(shape, torch.inf, dtype=torch.float64)


def _note_points(near: Near, part: Tensor, place: Tensor, distances: Tensor, draws: Tensor) -> None:
    """Take `distances` (points `part` x pool images `place`) into what is known of the points."""
    for drawn, members in zip(near.drawn, draws, strict=True):
        inside = members[place]
        if inside.any():
            nearest_drawn = distances[:, inside].amin(1)
            drawn[part] = torch.minimum(drawn[part], nearest_drawn)
    nearest, column = distances.min(1)
    before = near.distance[part]
    nearer = nearest < before
    near.distance[part] = torch.where(nearer, nearest, before)
    near.index[part] = torch.where(nearer, place[column], near.index[part])


def _note_pool(near: Near, num_set: int, place: Tensor, distances: Tensor) -> None:
    """Take `distances` into what is known of the pool; the first `num_set` rows are of the set."""
    _note_nearest(near.to_set, place, distances[:num_set])
    _note_nearest(near.to_control, place, distances[num_set:])


def _note_nearest(nearest: Tensor, place: Tensor, distances: Tensor) -> None:
    """Take `distances` (points x pool images `place`) into the least of each pool image so far."""
    if len(distances):
        nearest[place] = torch.minimum(nearest[place], distances.amin(0))
