"""Knowledge distillation on pruned data.

A fraction of the images of a dataset is kept, at random or by a rule, and networks are trained on
it by their classes, by what a teacher says that was trained on all images, or by both. All have as
many updates, and distilled sets of the user stand beside selections of as many bytes. Each repeat
has a teacher, scores, random draws and students of its own. The question is that of *Distilling
the Knowledge in Data Pruning* (Ben-Baruch et al., ICML 2025), with the selection and the reshaped
labels of MDSLR (Chen et al., ICLR 2025) and CAD-Prune (CVPR 2026).
"""

from ddengine.uses.pruning.compare import Beside, identity, run
from ddengine.uses.pruning.config import LOSSES, SELECTIONS, PruningConfig, cites
from ddengine.uses.pruning.context import Context
from ddengine.uses.pruning.keep import Kept, sizes_of

__all__ = [
    "LOSSES",
    "SELECTIONS",
    "Beside",
    "Context",
    "Kept",
    "PruningConfig",
    "cites",
    "identity",
    "run",
    "sizes_of",
]
