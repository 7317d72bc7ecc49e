"""Labels bought in rounds from a teacher that errs.

A network learns the few points whose classes are known; a rule chooses which points to ask a
teacher about; the network learns these too, and so on. *Robust Active Distillation* (RAD, Baykal
et al., ICLR 2023) chooses so that as much as possible is gained whichever answers are wrong.
"""

from ddengine.uses.labels.answers import Answers, OfFile, OfNetwork, Simulated
from ddengine.uses.labels.config import RULES, LabelsConfig, cites
from ddengine.uses.labels.context import Context, Pool
from ddengine.uses.labels.distribution import MaxMin, inclusion, max_min
from ddengine.uses.labels.rounds import check, identity, run

__all__ = [
    "RULES",
    "Answers",
    "Context",
    "LabelsConfig",
    "MaxMin",
    "OfFile",
    "OfNetwork",
    "Pool",
    "Simulated",
    "check",
    "cites",
    "identity",
    "inclusion",
    "max_min",
    "run",
]
