"""People's own photographs: a folder with a folder for each class, 200 to 20,000 images.

The method is DM, which needs no experts and does most in the shortest time of those measured here
on a CPU. Images are cut to a square of 64 pixels; pixels stay within what 8 bits hold, so that
the PNG files of the set are the set. The rate of the images was looked at on 600 images of CIFAR-10
in four unequal classes, by networks tested on other training images: of 0.1, 1, 3 and 10 each was
above the one before it there, and at 10 the loss of images of 8 pixels rises, so 3 is taken.
"""

from dataclasses import replace

from ddengine.recipe import DSA_OPS, AugmentConfig, DataConfig, OptimConfig, OuterConfig, Recipe
from ddengine.sets.codec import Identity
from synth.distribution import DistributionMatching
from synth.networks import Untrained
from synth.recipes.protocols import PROTOCOLS

STEPS = 200
AUGMENT = AugmentConfig(ops=DSA_OPS)


def recipes() -> list[Recipe]:
    """The recipe of a folder of photographs; --data.root says where they lie."""
    return [
        Recipe(
            name="own/folder",
            cites=("zhao2023dm",),
            published=None,
            note="A recipe of this project for one's own images, for which nothing is published.",
            data=DataConfig(name="folder", size=(64, 64), fit="crop"),
            model="convnet-d4-w32-in",
            ipc=10,
            buffer=None,
            codec=Identity(bounded=True),
            objective=DistributionMatching(networks=Untrained(), augment=AUGMENT, real_batch=64),
            outer=OuterConfig(
                steps=STEPS,
                optim={"images": OptimConfig(lr=3.0)},
                checkpoint_every=10,
                evaluate_every=STEPS,  # once, of what comes out
                picture_every=STEPS // 4,
            ),
            # half the epochs and three rates: minutes on two cores at this size
            evaluation=replace(
                PROTOCOLS["fast"], epochs=150, lr_grid=(0.003, 0.01, 0.03), augment=AUGMENT
            ),
        )
    ]
