"""The settings of distillation on pruned data: how much is kept, by which rules, who learns how."""

from dataclasses import dataclass

from ddengine.recipe import require, require_at_least
from ddengine.sets.pruning import check_windows
from ddengine.system.errors import unknown

RANDOM, ALL = "random", "all"
# by a network that is trained on all images; by the features of the teacher; by its losses
BY_TRAINING = ("forgetting", "el2n", "cad")
BY_FEATURES = ("herding", "k_centre", "facility")
BY_LOSS = ("easy", "middle", "hard")
SELECTIONS = (RANDOM, *BY_FEATURES, *BY_TRAINING, *BY_LOSS)
LOSSES = ("kd", "reshaped", "nkd", "uskd")
MIXING = ("kd", "reshaped")  # losses that have an alpha

# works to cite for a selection, and for a loss
CITES = {
    "herding": ("welling2009herding",),
    "k_centre": ("sener2018kcentre",),
    "forgetting": ("toneva2019forgetting",),
    "el2n": ("paul2021el2n",),
    "cad": ("dey2026hard",),
    "facility": ("dey2026hard", "nemhauser1978submodular"),
    "middle": ("chen2025mdslr",),
    "kd": ("hinton2015kd",),
    "reshaped": ("chen2025mdslr",),
    "nkd": ("yang2023nkd",),
    "uskd": ("yang2023nkd",),
}


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """What is kept of a dataset, and how students are trained on it."""

    # of the training images; 1 keeps all
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    # rules by which images are kept. random | nearest to the class mean (herding) | far from each
    # other (k_centre) | that stand for the others (facility) | by forgetting events | by the error
    # of early networks (el2n) | that a network keeps changing its mind about (cad) | of low
    # (easy), middling (middle: MDSLR) or high (hard) loss of the teacher
    selections: tuple[str, ...] = (RANDOM, "middle")
    # share of the loss that is distillation from the teacher, the rest is cross-entropy with the
    # classes: 0 needs no teacher. For random images, all images and distilled sets
    alphas: tuple[float, ...] = (0.0, 0.5, 0.9, 1.0)
    other_alphas: tuple[float, ...] = (0.0, 0.9)  # the same for all other selections
    # kd: KL divergence from the teacher | reshaped: the same from logits that are brought to the
    # spread of their class | nkd: normalised distillation | uskd: without a teacher
    losses: tuple[str, ...] = ("kd",)
    temperature: float = 4.0  # of kd and reshaped, whose KL counts that squared times
    # networks that teach; the first one's losses and features choose images, and students of all
    # selections learn from it, of the others only those of random and of all images. None: the
    # recipe's network
    teachers: tuple[str, ...] = ()
    teacher_steps: int = 2000  # updates of a teacher, on all training images
    steps: int = 1000  # updates of every student, whatever is kept
    repeats: int = 3  # each with another teacher, other scores, draws and students
    # epochs that the networks have whose training scores images, on all of them
    looking_epochs: int = 10
    early_epochs: int = 2  # after which the error of el2n is taken
    cad_window: int = 6  # epochs of a window of cad
    cad_windows: int = 2  # windows that cad averages
    # write also each selection of the first repeat as a set, which opens as a dataset
    write_sets: bool = False

    def __post_init__(self) -> None:
        _check_names("selection", self.selections, SELECTIONS)
        _check_names("loss", self.losses, LOSSES)
        for fraction in self.fractions:
            require(
                0 < fraction <= 1,
                f"fractions must be above 0 and at most 1, got {fraction:g}; 1 keeps all images.",
            )
        require(len(self.fractions) > 0, "fractions must hold one number at least, got none.")
        require(
            len(set(self.fractions)) == len(self.fractions),
            f"fractions must differ, got {_listed(self.fractions)}.",
        )
        _check_alphas("alphas", self.alphas)
        _check_alphas("other_alphas", self.other_alphas)
        require(
            0 < self.temperature < float("inf"),
            f"temperature must be positive and finite, got {self.temperature:g}; 4 is usual.",
        )
        for name in ("teacher_steps", "steps", "repeats", "early_epochs"):
            require_at_least(name, self.__dict__[name])
        require_at_least("looking_epochs", self.looking_epochs, 2)
        require(
            self.early_epochs < self.looking_epochs,
            f"early_epochs {self.early_epochs} must be below looking_epochs {self.looking_epochs}; "
            "lower the one or raise the other.",
        )
        if {"cad", "facility"} & set(self.selections):
            check_windows(self.looking_epochs, self.cad_window, self.cad_windows)

    @property
    def looks(self) -> bool:
        """Whether networks are trained to score images."""
        return bool({*BY_TRAINING, "facility"} & set(self.selections))


def _check_names(what: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise UserError for no name, one that does not exist, and one that is given twice."""
    for name in given:
        if name not in known:
            raise unknown(what, name, known)
    require(
        0 < len(given) == len(set(given)),
        f"Name at least one {what}, each once, got {', '.join(given) or 'none'}.",
    )


def _check_alphas(name: str, alphas: tuple[float, ...]) -> None:
    """Raise UserError for no share, one outside 0 to 1, and one that is given twice."""
    for alpha in alphas:
        require(
            0 <= alpha <= 1,
            f"{name} are shares of the loss and must lie within 0 and 1, got {alpha:g}; 0 is "
            "cross-entropy alone, 1 distillation alone.",
        )
    require(
        0 < len(alphas) == len(set(alphas)),
        f"{name} must hold at least one share, each once, got {_listed(alphas) or 'none'}.",
    )


def _listed(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def cites(config: PruningConfig) -> tuple[str, ...]:
    """Works to cite for what these settings use."""
    keys = ["benbaruch2025pruning"]
    for name in (*config.selections, *config.losses):
        keys.extend(CITES.get(name, ()))
    return tuple(dict.fromkeys(keys))
