"""AT-BPTT: windows that go by the gradients of a training. Li et al., NeurIPS 2025.

Values: the authors' code and README (github.com/GH209515338/AT-BPTT), which is RaT-BPTT's but for
the windows. Differs from the released code: windows that would begin before the training begin
with it; and a block's accuracy is the mean over its batches, where the released code averages the
running means of every tenth batch, rounded. The cells of CIFAR-100 and Tiny ImageNet have labels
that are learned without being normalised, and never leave the second stage, as in the released
code, which waits there for 37.5 calm epochs exactly. Of one image per class no settings are
printed. Recipes of this project also have the windows of AT-BPTT++
(github.com/aether-hang/at-bptt-plus), without its change of the inner gradient and without learned
labels; its own cells have both. Its authors ask to cite AT-BPTT for it as yet.
"""

from functools import partial

from ddengine.recipe import DataConfig, Recipe
from synth.recipes.rat import CHOSEN, WHITENED, published, small_objective, student
from synth.recipes.through_training import CIFAR, clipped_adam, small
from synth.selector import Selector
from synth.stages import Stages

BIBTEX = """
@inproceedings{li2025atbptt,
  title     = {Beyond Random: Automatic Inner-loop Optimization in Dataset Distillation},
  author    = {Li, Muquan and Gou, Hang and Zhang, Dongyang and Liang, Shuang and Xie, Xiurui
      and Ouyang, Deqiang and Qin, Ke},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2025}
}
"""

CITES = ("li2025atbptt", "feng2024rat", "wang2018dd")


PLUS = "the table of AT-BPTT++"


def _published() -> list[Recipe]:
    long = partial(Stages, size=100, early_calm=45, middle_calm=None)
    return [
        published(
            "at/cifar10_ipc10", CITES, "cifar10", 10,
            student(200, Stages(size=40, spread=10, every=10), per_class=10, real=5000),
            lr=0.001, per_epoch=10, learned=False, figure=(72.4, None), source=PLUS,
            note="The authors' first table prints 70.6 for this cell.",
        ),
        published(
            "at/cifar100_ipc10", CITES, "cifar100", 10,
            student(300, long(spread=20, every=50), per_class=1, real=1000),
            lr=0.001, per_epoch=50, figure=(49.0, None), source=PLUS,
        ),
        published(
            "at/tiny_imagenet_ipc10", CITES, "tiny_imagenet", 10,
            student(300, long(spread=30, every=100), per_class=1, real=1000, classes=50),
            lr=3e-4, per_epoch=100, figure=(32.7, None), source=PLUS, note=WHITENED,
        ),
    ]  # fmt: skip


def _small() -> list[Recipe]:
    window = Stages(size=8, spread=2, every=5, early_calm=4, middle_calm=4)
    return [
        small(
            "at/digits_ipc1", CITES, 1, steps=200, data=DataConfig(name="digits"),
            objective=small_objective(window, 30, 256), optim={"images": clipped_adam(0.05)},
            model="convnet-d2-w32-in", epochs=150,
        ),
        small(
            "at/fashion_mnist_ipc1_small", CITES, 1, steps=600,
            objective=small_objective(window, 30), optim={"images": clipped_adam(0.1)},
        ),
        small(
            "at/fashion_mnist_ipc10_small", CITES, 10, steps=150,
            objective=small_objective(window, 30), optim={"images": clipped_adam(0.05)},
        ),
        small(
            "at/fashion_mnist_ipc1_selector_small", CITES, 1, steps=500,
            objective=small_objective(Selector(size=8, radius=2), 30),
            optim={"images": clipped_adam(0.05)},
        ),
        small(
            "at/cifar10_ipc1_small", CITES, 1, steps=300, data=CIFAR, note=CHOSEN[1],
            objective=small_objective(window, 30), optim={"images": clipped_adam(0.03)},
        ),
        small(
            "at/cifar10_ipc10_small", CITES, 10, steps=80, data=CIFAR, note=CHOSEN[10],
            objective=small_objective(window, 30), optim={"images": clipped_adam(0.05)},
            validations=2,
        ),
    ]  # fmt: skip


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
