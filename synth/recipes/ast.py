"""AST: alignment with smooth and high-quality expert trajectories. Shen et al., arXiv 2310.10541.

Values: distill.sh and the README of the released repository, the six cells they have. Its published
accuracies were not found. The released code reports the maximum over test evaluations during
training; the protocol "ast" keeps its schedule and reports the last. The optimiser of the experts,
their clipping loss and their gradient penalty are those that its README recommends.
"""

from dataclasses import replace

from buffers.smooth import Smooth
from ddengine.recipe import BufferConfig, InitConfig, OptimConfig, Recipe
from synth.ast import BalancedLoss, IntermediateMatching, WeightNoise
from synth.recipes import mtt
from synth.recipes.cells import cell
from synth.recipes.protocols import PROTOCOLS
from synth.trajectory import TrajectoryMatching, UniformWindow

BIBTEX = """
@article{shen2023ast,
  title   = {{AST}: Effective Dataset Distillation through Alignment with Smooth and High-Quality
            Expert Trajectories},
  author  = {Shen, Jiyuan and Yang, Wenzhuo and Lam, Kwok-Yan},
  journal = {arXiv preprint arXiv:2310.10541},
  year    = {2023}
}
"""

CITES = ("shen2023ast",)
NOT_FOUND = "No published figure: the paper's tables were not read, and none was found elsewhere."
REPRESENTATIVE = InitConfig(kind="representative")


def _cell(
    dataset: str,
    ipc: int,
    *,
    steps: int,
    epochs: int,
    window: int,
    batch: int | None = None,
    zca: bool,
    lr_img: float,
    lr_lr: float,
    representative: bool,
    perturb: bool = True,
    middle: bool = True,
    balanced: bool = False,
    eval_epochs: int = 1000,
    variant: str = "",
    note: str = "",
) -> Recipe:
    return cell(
        "ast",
        CITES,
        dataset,
        ipc,
        variant=variant,
        zca=zca,
        lr_img=lr_img,
        lr_lr=lr_lr,
        buffer=BufferConfig(step=Smooth()),
        objective=TrajectoryMatching(
            inner_steps=steps,
            expert_epochs=epochs,
            window=UniformWindow(high=window),
            batch=batch,
            momentum=0.9,
            perturb=WeightNoise() if perturb else None,
            loss_scale=BalancedLoss() if balanced else None,
            milestones=IntermediateMatching() if middle else None,
        ),
        init=REPRESENTATIVE if representative else InitConfig(),
        evaluation=replace(PROTOCOLS["ast"], epochs=eval_epochs),
        published=None,
        note=" ".join(filter(None, (note, NOT_FOUND))),
    )


def _published() -> list[Recipe]:
    script = "From distill.sh; the README's command for this cell differs, see the variant _readme."
    readme = (
        "From the README; distill.sh has other values for this cell, see the one without _readme."
    )
    either = (
        "The two sources give pixel rate 100 or 1000 and learning rate's rate 1e-6 or 1e-5; the "
        "smaller ones are taken."
    )
    return [
        _cell(
            "cifar10", 10, steps=30, epochs=2, window=20, zca=True, lr_img=100, lr_lr=1e-6,
            representative=False, balanced=True, note=either,
        ),
        _cell(
            "cifar100", 1, steps=40, epochs=3, window=15, zca=False, lr_img=100, lr_lr=1e-5,
            representative=True, eval_epochs=300,
            note=(
                f"{script} The released initialisation gives no image at one image per class; "
                "here one centre."
            ),
        ),
        _cell(
            "cifar100", 1, steps=20, epochs=3, window=20, zca=True, lr_img=1000, lr_lr=1e-5,
            representative=True, balanced=True,
            variant="_readme", note=readme,
        ),
        _cell("cifar100", 10, steps=20, epochs=2, window=30, batch=128, zca=False, lr_img=1000,
            lr_lr=1e-5, representative=True, eval_epochs=300),
        _cell(
            "cifar100", 50, steps=80, epochs=2, window=40, batch=700, zca=False, lr_img=1000,
            lr_lr=1e-5, representative=True, perturb=False,
            middle=False,
        ),
        _cell("tiny_imagenet", 1, steps=10, epochs=2, window=10, zca=False, lr_img=1e4, lr_lr=1e-4,
            representative=False),
    ]  # fmt: skip


def _small() -> list[Recipe]:
    """MTT's small cells with all of this method's parts.

    The clipping loss takes the same share of the shorter training; the learned rate moves slower,
    because the heavy ball multiplies its gradient.
    """
    return [
        replace(
            recipe,
            name=recipe.name.replace("mtt/", "ast/"),
            cites=CITES,
            buffer=replace(recipe.buffer, step=Smooth(clip_epochs=2)),
            init=REPRESENTATIVE,
            objective=replace(
                recipe.objective, momentum=0.9, lr=0.01, perturb=WeightNoise(),
                milestones=IntermediateMatching(),
                loss_scale=BalancedLoss(),
            ),
            outer=replace(recipe.outer, optim={**recipe.outer.optim, "lr": OptimConfig(lr=1e-5)}),
        )
        for recipe in mtt.fashion()
    ]  # fmt: skip


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
