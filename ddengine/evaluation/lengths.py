"""How many updates are enough: by a validation curve, and by the time that there is."""

import math
from collections.abc import Sequence

PARTS = (16, 8, 4, 2, 1)  # of a whole training, that are tried
PATIENCE = 2  # longer trainings that must not be better
FEWEST = 16  # updates of a training: with fewer most networks have learned nothing yet


def shorter(updates: int) -> list[int]:
    """Lengths of trainings, ascending, each about twice the one before, up to all updates.

    None is shorter than FEWEST updates, where there are so many.
    """
    lengths = {math.ceil(updates / part) for part in PARTS}
    return sorted(length for length in lengths if length >= min(FEWEST, updates))


def long_enough(
    reached: Sequence[float | None], num: int, images: int, chance: float | None = None
) -> int | None:
    """The shortest training that longer ones are not clearly better than; None: try the next.

    Longer ones are the next two, or what is left of the lengths. Clearly better is by more than a
    standard error of an accuracy on that many images, below which they can hardly tell. A training
    that diverged, or is not clearly better than chance, is not enough unless it is the longest.

    Args:
        reached: accuracies (fractions) on the validation split after the lengths tried so far,
            None where the network diverged.
        num: how many lengths there are.
        images: of the validation split.
        chance: the accuracy of a guess; None: that is no matter.
    """
    for place, accuracy in enumerate(reached):
        longer = reached[place + 1 : place + 1 + PATIENCE]
        if len(longer) < min(PATIENCE, num - place - 1):
            return None
        if not longer:
            return place
        if accuracy is None:
            continue
        margin = math.sqrt(_spread(accuracy, images) / images)
        if chance is not None and accuracy <= chance + margin:
            continue
        best = max(-1.0 if other is None else other for other in longer)
        if best <= accuracy + margin:
            return place
    return None


def _spread(accuracy: float, images: int) -> float:
    """The variance of being right about an image; never 0, as two images more would not be."""
    share = (accuracy * images + 1) / (images + 2)
    return share * (1 - share)


def in_time(seconds: float, rounds: int, each: float, once: float) -> int:
    """Updates of each network that take so many seconds in all, at least 1.

    Args:
        seconds: that there are.
        rounds: networks that are trained one after another.
        each: seconds of an update.
        once: seconds of what a network needs beside, such as being judged.
    """
    return max(1, int((seconds / rounds - once) / each))
