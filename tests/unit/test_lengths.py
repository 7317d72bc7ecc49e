"""How many updates are enough by a validation curve, and how equal bytes are shared out."""

import pytest
import torch

from ddengine.evaluation.equal_bytes import counts
from ddengine.evaluation.lengths import long_enough, shorter


def test_lengths_double_up_to_the_whole_training():
    assert shorter(601) == [38, 76, 151, 301, 601]
    assert shorter(1) == [1]


def test_no_length_is_shorter_than_networks_need_to_learn_anything():
    assert shorter(241) == [16, 31, 61, 121, 241]
    assert shorter(240) == [30, 60, 120, 240]  # 15 are too few
    assert shorter(41) == [21, 41]
    assert shorter(15) == [15]  # that of the protocol is tried all the same


@pytest.mark.parametrize(
    ("reached", "enough"),
    [
        ([], None),
        ([0.5], None),
        ([0.5, 0.5], None),  # one longer training may be unlucky
        ([0.5, 0.5, 0.5], 0),
        ([0.5, 0.5, 0.6], None),
        ([0.5, 0.6, 0.6], None),
        ([0.5, 0.6, 0.6, 0.6], 1),
        ([0.5, 0.6, 0.7, 0.8], None),
        ([0.5, 0.6, 0.7, 0.8, 0.8], 3),
        ([0.5, 0.6, 0.7, 0.8, 0.9], 4),
        ([None, None, None], None),
        ([None, 0.3, 0.3, 0.3], 1),
        ([0.3, None, None], 0),
        ([None] * 5, 4),
    ],
)
def test_a_length_is_enough_when_longer_ones_are_not_better(reached, enough):
    """Of five lengths, where 10,000 images tell every tenth."""
    assert long_enough(reached, 5, 10_000) == enough


def test_a_length_at_which_networks_guess_is_not_enough():
    """0.1 is what a guess among ten classes reaches; of 10,000 images 0.103 is no better."""
    assert long_enough([0.1, 0.1, 0.1], 5, 10_000) == 0
    assert long_enough([0.1, 0.103, 0.1], 5, 10_000, chance=0.1) is None
    assert long_enough([0.1, 0.103, 0.5, 0.5, 0.5], 5, 10_000, chance=0.1) == 2
    assert long_enough([0.1] * 5, 5, 10_000, chance=0.1) == 4


def test_few_images_tell_little():
    """0.6 against 0.5 is 1.4 standard errors of 50 images, and 0.6 of 9."""
    assert long_enough([0.5, 0.6, 0.6], 5, 50) is None
    assert long_enough([0.5, 0.6, 0.6], 5, 9) == 0
    # all right, or none, is not known without error either
    assert long_enough([0.0, 0.05, 0.05], 5, 10) == 0
    assert long_enough([0.0, 0.05, 0.05], 5, 2000) is None


@pytest.mark.parametrize(
    ("num", "members", "wanted"),
    [
        (6, [10, 10, 10], [2, 2, 2]),
        (6, [1, 10, 10], [1, None, None]),  # 5 are left for two
        (21, [1, 10, 10], [1, 10, 10]),
        (2, [10, 10, 10], None),
        (0, [10], [0]),
    ],
)
def test_images_are_shared_out_as_evenly_as_classes_allow(num, members, wanted):
    draws = set()
    for seed in range(20):
        shares = counts(num, members, torch.Generator().manual_seed(seed))
        assert sum(shares) == num
        assert all(share <= most for share, most in zip(shares, members, strict=True))
        open_ones = [s for s, most in zip(shares, members, strict=True) if s < most]
        assert max(open_ones, default=0) - min(open_ones, default=0) <= 1
        if wanted is not None:
            assert all(w in (s, None) for s, w in zip(shares, wanted, strict=True))
        draws.add(tuple(shares))
    assert len(draws) == (1 if num in (0, 21) or wanted == [2, 2, 2] else 2 if wanted else 3)
