"""What pre-training on a set is worth on other datasets.

Networks are pre-trained on the set, all but their last layer is copied, and the copy is tested on
other datasets: by a linear classifier of its features, and fine-tuned as a whole, with all of their
training images or a few of each class. Beside it stand networks without pre-training, such that
were pre-trained on random real images with the same kind of targets, and the experts of the set,
trained on all of its source images.
"""

from ddengine.uses.transfer.compare import identity, run
from ddengine.uses.transfer.config import CONTROLS, WAYS, TransferConfig, pretraining_of
from ddengine.uses.transfer.context import Context
from ddengine.uses.transfer.images import Downstream, brought_to, check_shots, stored_shape
from ddengine.uses.transfer.starts import Start, check_networks, starts

__all__ = [
    "CONTROLS",
    "WAYS",
    "Context",
    "Downstream",
    "Start",
    "TransferConfig",
    "brought_to",
    "check_networks",
    "check_shots",
    "identity",
    "pretraining_of",
    "run",
    "starts",
    "stored_shape",
]
