"""RTP: images made of bases that all classes share. Deng & Russakovsky, NeurIPS 2022.

Values: the authors' code and README (github.com/princetonvisualai/RememberThePast-
DatasetDistillation): 150 steps of gradient descent with momentum, all of them differentiated, on 32
images of each class; one draw of the augmentation, mirrored or turned, for all of them and the real
batch (the printed command has none, and says these are to be added); gradients of bases and
coefficients clipped by their joint norm. Its term in the coefficients has no effect and is left
out. The real batch, 64 images a class, is drawn from all classes together here. Networks are
trained on the set in epochs of batches of 640 images. Figures: mean ± std over networks of the best
iterate on the test images. Bases are given for one image per class only.
"""

from ddengine.learning.updates import HeavyBall
from ddengine.recipe import DataConfig, InitConfig, OptimConfig, Recipe
from ddengine.sets.codec import LinearBases
from synth.bptt import ThroughTraining
from synth.inner_batches import InnerBatches
from synth.recipes.through_training import (
    CIFAR,
    FLIP_ROTATE,
    TAKEN_OVER,
    adam,
    cell,
    compared,
    own_training,
    small,
)
from synth.windows import FromStart

BIBTEX = """
@inproceedings{deng2022rtp,
  title     = {Remember the Past: Distilling Datasets into Addressable Memories for Neural
      Networks},
  author    = {Deng, Zhiwei and Russakovsky, Olga},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022}
}
"""

CITES = ("deng2022rtp", "wang2018dd")


def _both(one: OptimConfig) -> dict[str, OptimConfig]:
    """The same optimiser for bases and coefficients."""
    return {"bases": one, "coefficients": one}


def _published() -> list[Recipe]:
    objective = ThroughTraining(
        inner_steps=150,
        window=FromStart(size=150),
        update=HeavyBall(momentum=0.9),
        lr=0.01,
        batches=InnerBatches(per_class=32),
        real_batch=640,
        augment=FLIP_ROTATE,
        one_draw=True,
    )
    one = OptimConfig(lr=0.1, momentum=0.5, clip=2.0, clip_together=True)
    evaluation = own_training(
        objective, as_students=False, optimiser="sgd", epochs=300, batch=640, num_networks=10,
        baselines=("random",),
    )  # fmt: skip
    return [
        cell(
            "rtp/cifar10_ipc1", CITES, "cifar10", 1, objective=objective,
            optim=_both(one), steps=500_000, init=InitConfig(kind="noise"),
            evaluation=evaluation, published=(66.4, 0.4), source="GSDD's table",
            codec=LinearBases(bases=16, shrink=2),
        )
    ]  # fmt: skip


def _objective(steps: int, per_class: int, real: int) -> ThroughTraining:
    return ThroughTraining(
        inner_steps=steps,
        window=FromStart(size=steps),
        update=HeavyBall(momentum=0.9),
        lr=0.02,
        batches=InnerBatches(per_class=per_class),
        real_batch=real,
    )


def _small() -> list[Recipe]:
    optim = _both(adam(0.01, clip=2.0, clip_together=True))
    return [
        small(
            "rtp/digits_ipc1", CITES, 1, objective=_objective(20, 5, 256), steps=200, optim=optim,
            data=DataConfig(name="digits"), model="convnet-d2-w32-in", epochs=150,
            codec=LinearBases(bases=8, start="images"),
        ),
        small(
            "rtp/fashion_mnist_ipc1_small", CITES, 1, objective=_objective(30, 3, 512), steps=200,
            optim=optim, codec=LinearBases(bases=16, start="images"),
        ),
        small(
            "rtp/fashion_mnist_ipc10_small", CITES, 10, objective=_objective(30, 3, 512),
            steps=200, optim=optim, codec=LinearBases(bases=128, start="images"), validations=2,
        ),
        small(
            "rtp/cifar10_ipc1_small", CITES, 1, objective=_objective(30, 3, 512), steps=100,
            optim=optim, codec=LinearBases(bases=32, start="images"), data=CIFAR,
            note=compared("RTP", 30, {0.01: 30.9, 0.03: 30.3}), validations=2,
        ),
        small(
            "rtp/cifar10_ipc10_small", CITES, 10, objective=_objective(30, 3, 512), steps=100,
            optim=optim, codec=LinearBases(bases=256, start="images"), data=CIFAR, note=TAKEN_OVER,
            validations=1,
        ),
    ]  # fmt: skip


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
