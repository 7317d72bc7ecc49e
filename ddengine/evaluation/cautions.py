"""In which networks a set is worth less than as many random images."""

from collections.abc import Iterator
from dataclasses import dataclass

from ddengine.types import Evaluation, Row

# what a quick evaluation is
QUICK = (
    "quick: few networks, two learning rates, and no more updates than the validation split showed "
    "to be needed"
)
FORMS = {"distilled": "the set", "distilled_8bit": "its 8-bit form"}


@dataclass(frozen=True)
class Caution:
    """A network in which a form of a set reaches less than random images do."""

    form: str  # which form of the set, in words
    model: str  # name of the network
    accuracy: float  # mean over networks, a fraction
    random: float  # that of random images
    meet: bool  # the 95 % intervals of both have accuracies in common

    @property
    def verdict(self) -> str:
        """What it is beside random images, as far as the intervals say."""
        if self.meet:
            return "is not above random images"
        return "is worth less than random images"

    @property
    def words(self) -> str:
        """The figures of both, in percent."""
        figures = f"{100 * self.accuracy:.1f} against {100 * self.random:.1f} %"
        return f"{figures}, within the intervals" if self.meet else figures


def below_random(evaluation: Evaluation) -> Iterator[Caution]:
    """The forms of a set and the networks in which random images reach more, in the rows' order."""
    random = {}
    for row in evaluation["rows"]:
        if row["set"] == "random" and row["accuracy_mean"] is not None:
            random[row["model"]] = row
    for row in evaluation["rows"]:
        rival = random.get(row["model"])
        if row["set"] not in FORMS or row["accuracy_mean"] is None or rival is None:
            continue
        if row["accuracy_mean"] < rival["accuracy_mean"]:
            yield Caution(
                FORMS[row["set"]],
                row["model"],
                row["accuracy_mean"],
                rival["accuracy_mean"],
                _meet(row, rival),
            )


def _meet(lower: Row, higher: Row) -> bool:
    """Whether the intervals of two rows meet; not where one has none."""
    if not lower["ci95"] or not higher["ci95"]:
        return False
    return lower["ci95"][1] >= higher["ci95"][0]
