"""Which training images a selection keeps, and at which sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.sets import coreset
from ddengine.sets.pruning import (
    by_features,
    facility_location,
    number_kept,
    ranked,
    shuffled,
    similarities,
    teacher_losses,
)
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.types import Json
from ddengine.uses.pruning.config import BY_FEATURES, BY_LOSS, RANDOM
from ddengine.uses.pruning.context import Context
from ddengine.uses.pruning.looking import scores_of
from ddengine.uses.pruning.teacher import Teacher


@dataclass(frozen=True)
class Size:
    """How many images of each class are kept."""

    name: str  # a fraction, or the name of a distilled set of as many bytes
    images_per_class: int
    fraction: float  # of the training images, before rounding


@dataclass(frozen=True)
class Kept:
    """What a selection keeps in a repeat."""

    selection: str
    size: Size
    repeat: int
    index: Tensor  # (S,) of training images, those of a class together

    @property
    def name(self) -> str:
        """Names its file."""
        size = self.size.name.replace("/", "_").replace(" ", "_")
        return f"{self.selection}_{size}_repeat{self.repeat}"


def sizes_of(context: Context) -> list[Size]:
    """The sizes by the fractions. Raises UserError for a fraction that keeps no image of a class.

    A fraction of 1, which keeps everything, is not among them.
    """
    data = context.data
    sizes = []
    for fraction in sorted(context.config.fractions):
        num = number_kept(len(data.train), data.num_classes, fraction)
        if num < 1:
            least = data.num_classes / len(data.train)
            raise UserError(
                f"fraction {fraction:g} of {len(data.train)} training images of "
                f"{data.num_classes} classes keeps no image of a class; set it to {least:.2g} at "
                "least."
            )
        if fraction < 1:
            sizes.append(Size(f"{fraction:g}", num, fraction))
    return sizes


def kept_of(
    context: Context, selection: str, sizes: Sequence[Size], repeat: int, teacher: Teacher
) -> list[Kept]:
    """What a selection keeps at each size, chosen once and remembered."""

    def choose() -> Json:
        most = max(size.images_per_class for size in sizes)
        order = [] if selection in BY_LOSS else _order(context, selection, most, repeat, teacher)
        index = {}
        for size in sizes:
            if selection in BY_LOSS:
                chosen = _by_loss(context, selection, size.images_per_class, teacher)
            else:
                chosen = [of_class[: size.images_per_class] for of_class in order]
            index[size.name] = torch.cat(chosen).tolist()
        return {"index": index}

    label = f"choosing images, {selection}, repeat {repeat + 1}"
    result = context.pieces.remember(f"kept/{selection}/{repeat}", label, choose)
    made = []
    for size in sizes:
        index = torch.tensor(result["index"][size.name], dtype=torch.int64)
        made.append(Kept(selection, size, repeat, index))
    return made


def _by_loss(context: Context, selection: str, num: int, teacher: Teacher) -> list[Tensor]:
    real = context.data.train
    losses = teacher_losses(teacher.logits.double(), real.labels).cpu()
    return ranked(real.members, losses, num, selection)  # type: ignore[arg-type]


def _order(
    context: Context, selection: str, num: int, repeat: int, teacher: Teacher
) -> list[Tensor]:
    """Of each class the first `num` images in the order of a selection.

    What is kept of fewer images is the beginning of that.
    """
    members = context.data.train.members
    rng = generator(context.seed, "pruning", selection, repeat)
    if selection == RANDOM:
        return shuffled(members, rng)
    if selection == "facility":
        return _facility(context, num, repeat, teacher)
    if selection in BY_FEATURES:
        order = coreset.herding_order if selection == "herding" else coreset.k_centre_order
        return by_features(members, teacher.features, num, order)
    scores = scores_of(context, repeat)[selection]
    easiest = context.recipe.init.order == "easiest" and selection != "cad"
    # many are forgotten equally often, and of these some are drawn
    drawn = shuffled(members, rng)
    return ranked(drawn, scores, num, "easy" if easiest else "hard")


def _facility(context: Context, num: int, repeat: int, teacher: Teacher) -> list[Tensor]:
    """Images of each class that stand for those that CAD is high of.

    Similarity is that of the teacher's features. Not a published selection: its parts are.
    """
    scores = scores_of(context, repeat)["cad"]
    features = teacher.features
    chosen = []
    for of_class in context.data.train.members:
        kernel = similarities(features[of_class])
        rows, _ = facility_location(kernel, min(num, len(of_class)), scores[of_class])
        chosen.append(of_class[rows])
    return chosen
