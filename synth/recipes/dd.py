"""DD: dataset distillation. Wang et al., arXiv 1811.10959.

Values: the authors' code (github.com/ssnl/dataset-distillation): images from normal noise, seen in
mini sets of one image a class in a fixed order, over and over; a learned step size of every step,
by which networks are trained on the set too; plain gradient descent; Adam for images and step
sizes, its rate halved every 40 epochs of real batches, 400 epochs. The student is judged by 1024
real images. Differs from the released code: a network is not saved between steps (its
"unknown_init"), and the judged student normalises as it was trained. Figures of new networks are
those that others list. Recipes of this project start from real images.
"""

from ddengine.learning.updates import Sgd
from ddengine.recipe import DataConfig, InitConfig, OptimConfig, Recipe
from synth.bptt import ThroughTraining
from synth.inner_batches import InnerBatches
from synth.recipes.through_training import (
    CIFAR,
    TAKEN_OVER,
    adam,
    cell,
    compared,
    own_training,
    small,
)
from synth.windows import FromStart

BIBTEX = """
@misc{wang2018dd,
  title        = {Dataset Distillation},
  author       = {Wang, Tongzhou and Zhu, Jun-Yan and Torralba, Antonio and Efros, Alexei A.},
  howpublished = {arXiv preprint arXiv:1811.10959},
  year         = {2018}
}
"""

CITES = ("wang2018dd",)
EPOCHS = 3  # passes of the student over the images
NOISE = InitConfig(kind="noise")


def _objective(ipc: int, lr: float, epochs: int = EPOCHS, real: int = 1024) -> ThroughTraining:
    steps = epochs * ipc
    return ThroughTraining(
        inner_steps=steps,
        window=FromStart(size=steps),
        update=Sgd(),
        lr=lr,
        learned_rates=True,
        batches=InnerBatches(per_class=1, order="turns"),
        real_batch=real,
    )


def _optim(per_epoch: int) -> dict[str, OptimConfig]:
    """Of images and step sizes, with so many real batches in an epoch."""
    one = adam(0.01, momentum=0.5, schedule="steps", drop=0.5, drop_every=40 * per_epoch)
    return {"images": one, "rates": one}


def _published() -> list[Recipe]:
    of_mnist, of_cifar = _objective(1, 0.02), _objective(10, 0.001)
    return [
        cell(
            "dd/mnist_ipc1", CITES, "mnist", 1,
            objective=of_mnist, optim=_optim(59), steps=400 * 59, init=NOISE,
            evaluation=own_training(of_mnist), published=None, source="",
            note="94 % is published for networks of one fixed initialisation; nothing that was "
            "read is published for new ones.",
            model="lenet",
        ),
        cell(
            "dd/cifar10_ipc10", CITES, "cifar10", 10,
            objective=of_cifar, optim=_optim(49), steps=400 * 49, init=NOISE,
            evaluation=own_training(of_cifar), published=(36.8, 1.2), source="ATT's table",
            note="The authors' network is a variant of AlexNet of their own.",
            model="alexnet",
        ),
    ]  # fmt: skip


DIGITS = DataConfig(name="digits")
OF_IMAGES = (
    f"{compared('DD', 60, {0.02: 20.5, 0.05: 23.3})} These are rates of the images; that of the "
    "step sizes is that of Fashion-MNIST."
)


def _small() -> list[Recipe]:
    optim = {"images": adam(0.05), "rates": adam(0.02)}
    return [
        small(
            "dd/digits_ipc1", CITES, 1, objective=_objective(1, 0.1, 10, 256), steps=200,
            optim=optim, data=DIGITS, model="convnet-d2-w32-in", epochs=150,
        ),
        small(
            "dd/fashion_mnist_ipc1_small", CITES, 1, objective=_objective(1, 0.1, 20, 512),
            steps=400, optim={"images": adam(0.02), "rates": adam(0.02)},
        ),
        small(
            "dd/fashion_mnist_ipc10_small", CITES, 10, objective=_objective(10, 0.1, 3, 512),
            steps=280, optim=optim,
        ),
        small(
            "dd/cifar10_ipc1_small", CITES, 1, objective=_objective(1, 0.1, 20, 512), steps=200,
            optim={"images": adam(0.05), "rates": adam(0.02)}, data=CIFAR, note=OF_IMAGES,
        ),
        small(
            "dd/cifar10_ipc10_small", CITES, 10, objective=_objective(10, 0.1, 3, 512), steps=140,
            optim=optim, data=CIFAR, note=TAKEN_OVER, validations=2,
        ),
    ]  # fmt: skip


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
