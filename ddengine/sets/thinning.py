"""Sets of which some stored items are left out, by how well networks learn what these decode to."""

from dataclasses import replace

import torch
from torch import Tensor

from ddengine.sets.synthetic import RAW, SyntheticSet
from ddengine.system.errors import UserError

CITES = ("pleiss2020aum", "zheng2024hmn")  # works to cite for `thin`


class Margins:
    """The area under the margin of N examples while networks are trained on them.

    A margin is the logit of the class of an example less the largest other one, and the area its
    mean over all updates that saw the example (AUM; Pleiss et al., NeurIPS 2020). What is learnt
    late or never has the lowest.
    """

    def __init__(self, classes: Tensor):
        """`classes` (N,) of the examples."""
        self.classes = classes.cpu()
        self.sums = torch.zeros(len(classes), dtype=torch.float64)
        self.shown = torch.zeros(len(classes), dtype=torch.float64)

    def see(self, index: Tensor, logits: Tensor) -> None:
        """Examples `index` (B,), without repetition, have the logits (B, K)."""
        rows = index.cpu()
        said = logits.detach().double().cpu()
        of_class = self.classes[rows].unsqueeze(1)
        own = said.gather(1, of_class).squeeze(1)
        others = said.scatter(1, of_class, -torch.inf).max(1).values
        self.sums[rows] += own - others
        self.shown[rows] += 1

    def areas(self) -> Tensor:
        """(N,) float64; 0 of examples that were not shown."""
        return self.sums / self.shown.clamp(min=1)


def item_areas(areas: Tensor, source: Tensor, num_items: int) -> Tensor:
    """(S,) float64: the mean area of what each stored item decodes to; `source` (N,) says whose."""
    sums = torch.zeros(num_items, dtype=torch.float64).index_add(0, source.cpu(), areas.double())
    return sums / source.cpu().bincount(minlength=num_items)


def items_left(areas: Tensor, classes: Tensor, num: int, hardest: float) -> Tensor:
    """The stored items, ascending, that stay when each class keeps `num`.

    Of those that go, a share `hardest` are the ones with the lowest areas (S,) of their class, and
    the others those with the highest; both ends are cut (HMN, ECCV 2024).
    """
    left = []
    for label in classes.unique().tolist():
        members = (classes == label).nonzero().flatten().cpu()
        order = members[areas[members].argsort(stable=True)]
        low = round((len(members) - num) * hardest)
        left.append(order[low : low + num])
    return torch.cat(left).sort().values


def thinned(syn: SyntheticSet, items: Tensor) -> SyntheticSet:
    """The set with these stored items (S',) alone, as many of each class.

    Raises UserError for a codec whose items do not stand alone.
    """
    tensors = {name: t for name, t in syn.tensors.items() if not name.startswith(RAW)}
    if syn.targets.soft:
        raise UserError(
            "The images of this set have soft labels, and which to leave out is told by the "
            "margins of classes; thin a set with hard labels."
        )
    items = items.to(syn.classes.device)
    codec, left = syn.codec.only(tensors, items, len(syn.class_names))
    return replace(syn, codec=codec, tensors=left, classes=syn.classes[items])
