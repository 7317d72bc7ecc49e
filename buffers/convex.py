"""Trajectories of experts as a few waypoints with straight lines between them.

MCT, Zhong et al., CVPR 2025, arXiv 2406.19827. Between two waypoints each tensor of the network
moves along a line, as far as its share of the path that the expert went there. Two waypoints are
the first and the last epoch; of more, the published program (commit e959363 of Zhong0x29a/MCT)
moves all but the first: an inner one to the middle of the epochs before and after it, one after
another, and the last halfway to the epoch before it. Shares are those of the path as it was.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.recipe import require


@dataclass(frozen=True)
class Convex:
    """What is stored of a trajectory."""

    waypoints: Tensor  # (W, P)
    # (R, L) of L tensors: how far each is between two waypoints, at every epoch from one to the
    # other, both included, piece after piece
    shares: Tensor


@dataclass(frozen=True)
class Place:
    """Where an epoch lies, which need not be whole."""

    piece: int  # it lies between the waypoints of this number and the next
    row: int  # of the shares, at or before it
    fraction: float  # of the way to the next row


def waypoint_epochs(num_epochs: int, num_waypoints: int) -> list[int]:
    """The places of the waypoints among so many epochs, the first and the last among them.

    The others are as far apart as fits, num_epochs // (num_waypoints - 1). Raises UserError for
    more waypoints than epochs.
    """
    require(
        2 <= num_waypoints <= num_epochs,
        f"buffer.waypoints {num_waypoints} must be at least 2 and at most the {num_epochs} epochs "
        "that an expert has, the initialisation among them; change buffer.waypoints or "
        "buffer.epochs.",
    )
    apart = num_epochs // (num_waypoints - 1)
    return [*(apart * i for i in range(num_waypoints - 1)), num_epochs - 1]


def path_shares(points: Tensor, sizes: Sequence[int]) -> Tensor:
    """How far along its path each tensor is at every point (T, L), from 0 to 1.

    Of points (T, P) of tensors of these sizes. A tensor that does not move stays at 0.
    """
    steps = points.diff(dim=0)
    lengths = torch.stack([part.norm(dim=1) for part in steps.split(list(sizes), 1)], 1)
    walked = torch.cat([lengths.new_zeros(1, len(sizes)), lengths.cumsum(0)])
    whole = walked[-1]
    return torch.where(whole > 0, walked / whole, torch.zeros_like(walked))


def along(first: Tensor, last: Tensor, shares: Tensor, sizes: Sequence[int]) -> Tensor:
    """The parameters (P,) between two waypoints (P,), each tensor at its share (L,)."""
    of_numbers = shares.repeat_interleave(torch.tensor(sizes, device=shares.device))
    return torch.lerp(first, last, of_numbers)


def convexified(points: Tensor, sizes: Sequence[int], num_waypoints: int) -> Convex:
    """The trajectory through points (T, P), as few waypoints."""
    at = waypoint_epochs(len(points), num_waypoints)
    shares = [path_shares(points[a : b + 1], sizes) for a, b in itertools.pairwise(at)]
    moved = list(points.unbind())
    if num_waypoints > 2:
        for i in at[1:-1]:
            moved[i] = (moved[i - 1] + moved[i + 1]) / 2
        moved[-1] = (moved[-2] + moved[-1]) / 2
    return Convex(torch.stack([moved[i] for i in at]), torch.cat(shares))


def place(epoch: float, at: Sequence[int]) -> Place:
    """Where an epoch lies among waypoints at these epochs, 0 <= epoch <= at[-1]."""
    piece = min(bisect.bisect_right(at, epoch) - 1, len(at) - 2)
    rows_before = at[piece] + piece  # pieces have both their ends
    whole = int(epoch)
    return Place(piece, rows_before + whole - at[piece], epoch - whole)


def share_at(rows: Tensor, fraction: float) -> Tensor:
    """The shares (L,) that far between the first row and the second, which the last lacks."""
    return rows[0] if fraction == 0 else torch.lerp(rows[0], rows[1], fraction)


def point(trajectory: Convex, epoch: float, at: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The parameters (P,) at an epoch, of a trajectory that lies in memory."""
    found = place(epoch, at)
    shares = share_at(trajectory.shares[found.row : found.row + 2], found.fraction)
    first, last = trajectory.waypoints[found.piece : found.piece + 2]
    return along(first, last, shares, sizes)
