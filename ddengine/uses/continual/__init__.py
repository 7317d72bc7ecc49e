"""Class-incremental learning with a memory of a fixed number of bytes.

The classes come in stages. After each, a memory of the stage's images, distilled ones or real ones
that are drawn or chosen, joins that of earlier stages, and a network is tested on the test images
of all classes seen so far. The network is not told the stage of an image, and its last layer has
all classes from the start. What is made at a stage, distilled images as well as choices of real
ones, is made of the training images of that stage alone. Preprocessing is that of all training
images, fixed before.
"""

from ddengine.uses.continual.compare import NETWORKS, run
from ddengine.uses.continual.config import (
    JOINT,
    MEMORIES,
    ContinualConfig,
    check,
    class_order,
    image_bytes,
    images_per_class,
    within_pixels,
)
from ddengine.uses.continual.context import Distill
from ddengine.uses.continual.memories import kept
from ddengine.uses.continual.summary import forgetting

__all__ = [
    "JOINT",
    "MEMORIES",
    "NETWORKS",
    "ContinualConfig",
    "Distill",
    "check",
    "class_order",
    "forgetting",
    "image_bytes",
    "images_per_class",
    "kept",
    "run",
    "within_pixels",
]
