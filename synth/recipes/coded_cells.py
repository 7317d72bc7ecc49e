"""Cells of CIFAR and ImageNet in codecs, at the bytes of images of 4 bytes a value, and a cross.

GSDD (Gaussians under MTT): the paper's table of settings (arXiv 2509.26219): 15,000 outer steps, 60
student steps, starts up to epoch 30, Adam on the numbers of all primitives, whitened images; of the
subsets of ImageNet at 128 pixels 20 student steps, starts up to epoch 40. `_dm` is the same under
DM: 20,000 steps, 1024 real images a class, all synthetic ones. Its body says a rate of 0.001 and
its appendix 0.01; these have that of the body. How long the primitives are fitted to real images
first it does not say; here 1000 steps, as in its benchmark of fitting. Figures: its tables.

HaBa (hallucinators under MTT): the released program (distill_fac.py and its scripts): 15,000 outer
steps, five hallucinators, rate 100 and momentum 0.95 of images and of hallucinators, and the losses
of a second network (`objective.views`), of whose optimiser nothing was read. Its budget counts the
images alone; here all is shipped in float16, so that images and hallucinators together take fewer
bytes than the images did there. Figures: as printed in GSDD's table.

`datm/cifar10_ipcN_quantised` is nobody's cell: images of two bits a value, learned as they are
shipped, along the trajectories of DATM with hard labels. Finished sets of DATM that are quantised
afterwards hold learned soft labels, which no budget counts.
"""

from collections.abc import Mapping
from dataclasses import replace

from buffers.steps import Sgd
from ddengine.recipe import BufferConfig, OptimConfig, Recipe, TargetConfig
from ddengine.sets.codec import Codec, Gaussians, Hallucinated, Quantised
from synth.distribution import DistributionMatching
from synth.networks import Untrained
from synth.recipes import datm, with_codecs
from synth.recipes.cells import FILES, UNTUNED, Figure, cell, figure, sentences
from synth.recipes.matching import strategy
from synth.trajectory import TrajectoryMatching, UniformWindow
from synth.views import ViewsApart

GSDD = "GSDD's table"
BODY = "The paper's body has a rate of 0.001, its appendix one of 0.01."
NO_FIGURE = "No published figure was read for ten images of a class."
NO_FLOOR = "The released learning rate is held at 0.001 at least, here at 0.000001."
EVALUATED = "How networks are trained on sets of DM was not read; it is MTT's evaluation."
BATCH = "The batch of the student was not read; these see all examples at each step."
ADAM = OptimConfig(kind="adam", lr=0.001, momentum=0.9, beta2=0.999)
# dataset, ipc: images per class, primitives of each, batch of the student, figure
GAUSSIANS: dict[tuple[str, int], tuple[int, int, int, Figure]] = {
    ("cifar10", 1): (30, 22, 300, (67.6, 0.4)),
    ("cifar10", 10): (160, 42, 380, (75.5, 0.3)),
    ("cifar10", 50): (250, 136, 360, (77.7, 0.5)),
    ("cifar100", 1): (30, 22, 512, (43.0, 0.1)),
    ("cifar100", 10): (80, 85, 512, (47.4, 0.3)),
    ("cifar100", 50): (400, 85, 640, (53.1, 0.2)),
}
# subset of ImageNet at 128 pixels and one image per class: figures under MTT and under DM, in %
OF_IMAGENET: dict[str, tuple[float, float]] = {
    "imagenette": (76.4, 74.6),
    "imagewoof": (46.4, 43.4),
    "imagefruit": (51.2, 52.0),
    "imagemeow": (53.8, 48.2),
    "imagesquawk": (73.2, 73.6),
    "imageyellow": (72.4, 69.4),
}
# images per class of these subsets: in the codec, rate of the learned rate, batch of the student
AT_128: dict[int, tuple[int, float, int]] = {1: (64, 1e-6, 150), 10: (640, 1e-5, 160)}
# ipc: student steps, one past the last start, rate of the learned rate, its start, figure
HALLUCINATED: dict[int, tuple[int, int, float, float, Figure]] = {
    1: (50, 2, 1e-7, 0.01, (48.3, 0.8)),
    10: (30, 20, 1e-5, 0.001, (69.9, 0.4)),
    50: (30, 20, 1e-5, 0.01, (74.0, 0.2)),
}
# ipc: examples of a student step (None: all 140), the aim in % (of sets of DATM with soft labels
# that are quantised, as a note of somebody else quotes the paper)
QUANTISED: dict[int, tuple[int | None, float]] = {1: (None, 68.9), 10: (500, 79.0)}


def _with(recipe: Recipe, codec: Codec, optim: Mapping[str, OptimConfig]) -> Recipe:
    """A cell of plain images with a codec in their place."""
    learned = {**optim, "lr": recipe.outer.optim["lr"]}
    return replace(recipe, codec=codec, outer=replace(recipe.outer, optim=learned))


def _gaussians(dataset: str, ipc: int) -> Recipe:
    items, primitives, batch, printed = GAUSSIANS[dataset, ipc]
    recipe = cell(
        "gsdd",
        ("jiang2025gsdd", "cazenavette2022mtt"),
        dataset,
        ipc,
        zca=True,
        lr_img=ADAM.lr,
        lr_lr=1e-5,
        steps=15000,
        buffer=BufferConfig(step=Sgd()),
        objective=TrajectoryMatching(
            inner_steps=60, expert_epochs=2, window=UniformWindow(high=30), batch=batch
        ),
        published=figure(printed, GSDD),
        note=sentences(BODY, NO_FLOOR),
    )
    return _with(recipe, Gaussians(primitives=primitives, items=items), {"primitives": ADAM})


def _of_imagenet(dataset: str, ipc: int, printed: float | None) -> Recipe:
    items, lr_lr, batch = AT_128[ipc]
    recipe = cell(
        "gsdd",
        ("jiang2025gsdd", "cazenavette2022mtt"),
        dataset,
        ipc,
        zca=False,
        lr_img=ADAM.lr,
        lr_lr=lr_lr,
        steps=15000,
        buffer=BufferConfig(step=Sgd()),
        objective=TrajectoryMatching(
            inner_steps=20, expert_epochs=2, window=UniformWindow(high=40), batch=batch
        ),
        published=figure(None if printed is None else (printed, None), GSDD),
        note=sentences(BODY, NO_FLOOR, "" if printed else NO_FIGURE),
    )
    return _with(recipe, Gaussians(primitives=170, items=items), {"primitives": ADAM})


def _under_dm(like: Recipe, printed: float) -> Recipe:
    """The cell of a subset of ImageNet in networks that are not trained."""
    objective = DistributionMatching(
        networks=Untrained(), augment=strategy(like.data.name), real_batch=1024
    )
    return replace(
        like,
        name=f"{like.name}_dm",
        cites=("jiang2025gsdd", "zhao2023dm"),
        published=figure((printed, None), GSDD),
        note=sentences(BODY, EVALUATED, FILES[like.data.name]),
        buffer=None,
        objective=objective,
        codec=Gaussians(primitives=54, items=200),
        outer=replace(like.outer, steps=20000, optim={"primitives": ADAM}),
    )


def _hallucinated(ipc: int) -> Recipe:
    steps, high, lr_lr, lr, printed = HALLUCINATED[ipc]
    recipe = cell(
        "haba",
        ("liu2022haba", "cazenavette2022mtt"),
        "cifar10",
        ipc,
        zca=True,
        lr_img=100,
        lr_lr=lr_lr,
        steps=15000,
        buffer=BufferConfig(step=Sgd()),
        objective=TrajectoryMatching(
            inner_steps=steps,
            expert_epochs=2,
            window=UniformWindow(high=high),
            lr=lr,
            views=ViewsApart(),
        ),
        published=figure(printed, GSDD),
        note=BATCH,
    )
    optim = OptimConfig(lr=100, momentum=0.95)
    learned = {"images": optim, "hallucinators": optim}
    return _with(recipe, Hallucinated(styles=5, items=ipc), learned)


def _quantised(like: Recipe) -> Recipe:
    """DATM's cell with hard labels and images of two bits."""
    batch, aim = QUANTISED[like.ipc]
    rates = like.outer.optim
    return replace(
        like,
        name=f"{like.name}_quantised",
        cites=("tran2026ptq", *like.cites),
        published=None,
        note=sentences(
            "Nobody has published this cell. Its aim is to be above "
            f"{aim} %, which sets of DATM with learned soft labels are said to reach when they are "
            "quantised, without such labels.",
            UNTUNED,
        ),
        codec=Quantised(bits=2, patch=5, groups=256),
        objective=replace(like.objective, batch=batch),
        targets=TargetConfig(),
        outer=replace(like.outer, optim={name: rates[name] for name in ("images", "lr")}),
    )


def _small() -> Recipe:
    """The small cell of MTT with hallucinators, whose views are kept apart."""
    for recipe in with_codecs.recipes():
        if recipe.name == "mtt/fashion_mnist_ipc1_haba_small":
            name = "haba/fashion_mnist_ipc1_small"
            return replace(
                recipe, name=name, objective=replace(recipe.objective, views=ViewsApart())
            )
    raise ValueError("with_codecs has no recipe of HaBa under MTT")


def recipes() -> list[Recipe]:
    """All of them."""
    cells = [_small()]
    cells += [_gaussians(dataset, ipc) for dataset, ipc in GAUSSIANS]
    for dataset, (under_mtt, under_dm) in OF_IMAGENET.items():
        of_subset = _of_imagenet(dataset, 1, under_mtt)
        cells += [of_subset, _under_dm(of_subset, under_dm), _of_imagenet(dataset, 10, None)]
    cells += [_hallucinated(ipc) for ipc in HALLUCINATED]
    for recipe in datm.recipes():
        if recipe.data.name == "cifar10" and recipe.published and recipe.ipc in QUANTISED:
            cells.append(_quantised(recipe))
    return cells
