"""TESLA: trajectory matching with a truncated gradient in constant memory.

Cui et al., ICML 2023, arXiv 2211.10586.

Its gradient drops how early steps move later ones; the paper calls it exact and it is not
(docs/results/tesla_bias.md measures the angle along a run). `_exact` is the same recipe with the
exact gradient, in the same memory. Values: the README of the released repository, the three cells
it has; 10000 outer steps, 3 networks.
"""

from dataclasses import replace

from buffers.steps import Sgd
from ddengine.recipe import BufferConfig, Recipe, TargetConfig
from synth.recipes import mtt
from synth.recipes.cells import cell, figure
from synth.recipes.protocols import PROTOCOLS
from synth.trajectory import TrajectoryMatching, UniformWindow

BIBTEX = """
@inproceedings{cui2023tesla,
  title     = {Scaling Up Dataset Distillation to {ImageNet-1K} with Constant Memory},
  author    = {Cui, Justin and Wang, Ruochen and Si, Si and Hsieh, Cho-Jui},
  booktitle = {Proceedings of the International Conference on Machine Learning (ICML)},
  pages     = {6565--6590},
  year      = {2023}
}
"""

CITES = ("cui2023tesla",)
SOURCE = "TESLA's table of results as quoted in later papers"
SOFT = TargetConfig(kind="logits", experts="all", epochs=(3, 12), relabel=True)


def _cell(
    dataset: str,
    ipc: int,
    *,
    steps: int,
    epochs: int,
    window: int,
    batch: int | None,
    zca: bool,
    lr_img: float,
    lr_lr: float,
    published: tuple[float, float],
    note: str = "",
    soft: bool = False,
    num_experts: int = 100,
) -> Recipe:
    return cell(
        "tesla",
        CITES,
        dataset,
        ipc,
        zca=zca,
        lr_img=lr_img,
        lr_lr=lr_lr,
        steps=10000,
        buffer=BufferConfig(step=Sgd(), num_experts=num_experts),
        objective=TrajectoryMatching(
            inner_steps=steps,
            expert_epochs=epochs,
            window=UniformWindow(high=window),
            batch=batch,
            backprop="detached",
            labels="target" if soft else "stored",
        ),
        targets=SOFT if soft else TargetConfig(),
        evaluation=replace(PROTOCOLS["mtt"], num_networks=3),
        published=figure(published, SOURCE),
        note=note,
    )


def exact(recipe: Recipe) -> Recipe:
    """The same with the exact gradient."""
    return replace(
        recipe,
        name=f"{recipe.name}_exact",
        published=None,
        note=f"{recipe.name} with the exact gradient; nothing is published for that.",
        objective=replace(recipe.objective, backprop="replay"),
    )


def _published() -> list[Recipe]:
    relabelled = (
        "Each segment trains on the labels of the expert it follows; the shipped labels are the "
        "mean over all experts and target epochs, where the "
        "released program keeps those of its last random segment."
    )
    cells = [
        _cell(
            "cifar10",
            1,
            steps=50,
            epochs=2,
            window=5,
            batch=None,
            zca=False,
            lr_img=1000,
            lr_lr=1e-7,
            published=(48.5, 0.8),
        ),
        _cell(
            "cifar100",
            50,
            steps=80,
            epochs=2,
            window=40,
            batch=125,
            zca=True,
            lr_img=1000,
            lr_lr=1e-5,
            published=(47.9, 0.3),
        ),
        _cell(
            "imagenet",
            1,
            steps=10,
            epochs=3,
            window=10,
            batch=100,
            zca=False,
            lr_img=1e4,
            lr_lr=1e-4,
            published=(7.7, 0.2),
            soft=True,
            num_experts=50,
            note=relabelled,
        ),
    ]
    return [recipe for c in cells for recipe in (c, exact(c))]


def _small() -> list[Recipe]:
    """MTT's small cells with this method's gradient."""
    recipes = []
    for mtt_recipe in mtt.fashion():
        changed = replace(
            mtt_recipe,
            name=mtt_recipe.name.replace("mtt/", "tesla/"),
            cites=CITES,
            objective=replace(mtt_recipe.objective, backprop="detached"),
        )
        recipes.append(changed)
    return recipes


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
