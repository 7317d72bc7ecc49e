"""The settings of buying labels: by which rules, how many, in how many rounds, how often wrong."""

from dataclasses import dataclass

from ddengine.recipe import require, require_at_least
from ddengine.system.errors import unknown

RULES = ("rad", "uniform", "margin", "entropy", "facility")
CITES = {"facility": ("nemhauser1978submodular",)}


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Which labels are bought, and of whom."""

    # how points are chosen. rad: robust against wrong answers | uniform: at random | margin: the
    # two likeliest classes are nearest | entropy: the network is least sure | facility: they stand
    # for the others
    rules: tuple[str, ...] = RULES
    # shares of wrong answers that are simulated, each for all rules; not used where a teacher or a
    # file answers
    wrong: tuple[float, ...] = (0.0, 0.2, 0.4)
    # share of a round's answers that rad takes to be wrong; None: as is simulated, else 0.2
    errors: float | None = None
    first_per_class: int = 5  # points of each class that are known from the start
    rounds: int = 3
    points: int = 100  # bought in each round
    steps: int = 500  # updates of each network, which is new in every round
    repeats: int = 3  # each with other first points, draws and networks
    # network that answers, trained on some other images of the pool; None: the classes, simulated
    # to be wrong
    teacher: str | None = None
    teacher_images: int = 500  # random images of the pool, with their classes
    teacher_steps: int = 500  # updates of the teacher

    def __post_init__(self) -> None:
        for name in self.rules:
            if name not in RULES:
                raise unknown("rule", name, RULES)
        require(
            0 < len(self.rules) == len(set(self.rules)),
            f"Name at least one rule, each once, got {', '.join(self.rules) or 'none'}.",
        )
        require(len(self.wrong) > 0, "wrong must hold one share at least, got none; 0 errs never.")
        for share in self.wrong:
            require(
                0 <= share <= 1,
                f"wrong are shares of the answers and must lie within 0 and 1, got {share:g}.",
            )
        require(
            len(set(self.wrong)) == len(self.wrong),
            f"wrong must hold each share once, got {' '.join(map(str, self.wrong))}.",
        )
        require(
            self.errors is None or 0 <= self.errors < 0.5,
            f"errors {self.errors} of the answers are more than rad can guard against; set it to "
            "at least 0 and below 0.5.",
        )
        names = ("first_per_class", "rounds", "points", "steps", "repeats", "teacher_steps")
        for name in (*names, "teacher_images"):
            require_at_least(name, self.__dict__[name])

    def guarded(self, wrong: float | None) -> int:
        """How many answers of a round rad takes to be wrong, of which the share `wrong` is.

        None: nobody knows how many.
        """
        share = 0.2 if wrong is None else min(wrong, 0.49)
        if self.errors is not None:
            share = self.errors
        return round(share * self.points)


def cites(config: LabelsConfig) -> tuple[str, ...]:
    """Works to cite for what these settings use."""
    keys = ["baykal2023rad"]
    for rule in config.rules:
        keys.extend(CITES.get(rule, ()))
    return tuple(keys)
