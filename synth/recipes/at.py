"""AT-BPTT: windows that go by the gradients of a training. Li et al., NeurIPS 2025.

Values: the authors' code and README (github.com/GH209515338/AT-BPTT), which is RaT-BPTT's but for
the windows. Differs from the released code: windows that would begin before the training begin
with it. The cells of CIFAR-100 and Tiny ImageNet were published with soft labels and are not here.
Recipes of this project also have the windows of AT-BPTT++ (github.com/aether-hang/at-bptt-plus),
without its change of the inner gradient and without learned labels; its own cells have both. Its
authors ask to cite AT-BPTT for it as yet.
"""

from ddengine.learning.updates import Adam
from ddengine.recipe import DataConfig, Recipe
from synth.bptt import ThroughTraining
from synth.inner_batches import InnerBatches
from synth.recipes.rat import small_objective
from synth.recipes.through_training import (
    FLIP_ROTATE,
    cell,
    clipped_adam,
    own_training,
    small,
    unit_noise,
)
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


def _published() -> list[Recipe]:
    objective = ThroughTraining(
        inner_steps=200,
        window=Stages(size=40, spread=10, every=10),
        update=Adam(eps_as="higher"),
        lr=0.001,
        batches=InnerBatches(per_class=10),
        real_batch=5000,
        augment=FLIP_ROTATE,
    )
    return [
        cell(
            "at/cifar10_ipc10", CITES, "cifar10", 10, zca=True, objective=objective,
            optim={"images": clipped_adam(0.001)}, steps=60000 * 10, init=unit_noise(),
            evaluation=own_training(objective, updates=1000, num_networks=8),
            published=(72.4, None), source="the table of AT-BPTT++",
            note="The authors' first table prints 70.6 for this cell.",
        )
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
    ]  # fmt: skip


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
