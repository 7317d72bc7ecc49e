"""FTD: experts in flat minima, and running averages of the images.

Du et al., CVPR 2023, arXiv 2211.11004.

Values: the table of the released repository (docs/parameters.png, the paper's Table 7) and, for the
ImageNet subsets, the authors' answer in its issue 3. 100 experts of 50 epochs in all cells, rho
0.01. Figures are of the averaged images, in the released code on networks that were trained on the
plain images first; here each set has networks of its own, and the row "raw" is the last iterate.
"""

from dataclasses import replace
from typing import Any

from buffers.flat_step import Gsam
from ddengine.recipe import BufferConfig, Recipe
from synth.recipes import mtt
from synth.recipes.cells import SUBSETS, cell, figure
from synth.trajectory import TrajectoryMatching, UniformWindow

BIBTEX = """
@inproceedings{du2023ftd,
  title     = {Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation},
  author    = {Du, Jiawei and Jiang, Yidi and Tan, Vincent Y. F. and Zhou, Joey Tianyi and Li,
      Haizhou},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
              (CVPR)},
  pages     = {3749--3758},
  year      = {2023}
}

@inproceedings{zhuang2022gsam,
  title     = {Surrogate Gap Minimization Improves Sharpness-Aware Training},
  author    = {Zhuang, Juntang and Gong, Boqing and Yuan, Liangzhe and Cui, Yin and Adam,
      Hartwig and Dvornek, Nicha C. and Tatikonda, Sekhar and
               Duncan, James S. and Liu, Ting},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2022}
}
"""

CITES = ("du2023ftd",)
SOURCE = "FTD's table of results"
ZCA_AS_MTT = "Whether images are whitened is not printed; as in MTT's cell."


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
    lr: float,
    alpha: float,
    ema: float,
    published: tuple[float, float] | None,
    note: str,
) -> Recipe:
    return cell(
        "ftd",
        CITES,
        dataset,
        ipc,
        zca=zca,
        lr_img=lr_img,
        lr_lr=lr_lr,
        buffer=BufferConfig(step=Gsam(rho=0.01, alpha=alpha)),
        objective=TrajectoryMatching(
            inner_steps=steps,
            expert_epochs=epochs,
            window=UniformWindow(high=window),
            batch=batch,
            lr=lr,
        ),
        ema={"images": ema},
        published=figure(published, SOURCE),
        note=note,
    )


# dataset, ipc, N, M, T+, batch, zca, lr pixel, lr lr, lr, alpha, decay, figure, whether ZCA is as
# MTT has it (else as the released script), figure in DATM's list
Row = tuple[Any, ...]
TABLE: list[Row] = [
    ("cifar10", 1, 50, 2, 2, None, True, 100, 1e-7, 0.01, 0.3, 0.9999, (46.8, 0.3), True,
        "46.0 ± 0.4"),
    ("cifar10", 10, 30, 2, 20, None, True, 100, 1e-5, 0.001, 0.3, 0.9995, (66.6, 0.3), False,
        "65.3 ± 0.4"),
    ("cifar10", 50, 30, 2, 40, None, False, 1000, 1e-5, 0.01, 1.0, 0.999, (73.8, 0.2), True,
        "73.2 ± 0.2"),
    ("cifar100", 1, 40, 3, 20, None, True, 1000, 1e-5, 0.01, 1.0, 0.9995, (25.2, 0.2), True,
        "24.4 ± 0.4"),
    ("cifar100", 10, 20, 2, 40, None, True, 1000, 1e-5, 0.01, 1.0, 0.9995, (43.4, 0.3), False,
        "42.5 ± 0.2"),
    ("cifar100", 50, 80, 2, 40, 1000, True, 1000, 1e-5, 0.01, 1.0, 0.999, (50.7, 0.3), True,
        "48.5 ± 0.3"),
    ("tiny_imagenet", 1, 30, 2, 10, None, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (10.4, 0.3), True,
        "10.5 ± 0.2"),
    ("tiny_imagenet", 10, 20, 2, 40, 500, False, 1e4, 1e-4, 0.01, 1.0, 0.999, (24.5, 0.2), True,
        "23.4 ± 0.3"),
]  # fmt: skip
# of ImageNet's subsets at one and at ten images per class
FIGURES = {
    "imagenette": ((52.2, 1.0), (67.7, 0.7)),
    "imagewoof": ((30.1, 1.0), (38.8, 1.4)),
    "imagefruit": ((29.1, 0.9), (44.9, 1.5)),
    "imagemeow": ((33.8, 1.5), (43.3, 0.6)),
}


def _published() -> list[Recipe]:
    cells = []
    for dataset, ipc, steps, epochs, window, batch, zca, *rates, figures, as_mtt, listed in TABLE:
        lr_img, lr_lr, lr, alpha, ema = rates
        source = ZCA_AS_MTT if as_mtt else "ZCA as in the released script."
        cells.append(
            _cell(
                dataset,
                ipc,
                steps=steps,
                epochs=epochs,
                window=window,
                batch=batch,
                zca=zca,
                lr_img=lr_img,
                lr_lr=lr_lr,
                lr=lr,
                alpha=alpha,
                ema=ema,
                published=figures,
                note=f"{source} DATM lists {listed} for FTD in this cell.",
            )
        )
    for dataset in SUBSETS:
        one, ten = FIGURES.get(dataset, (None, None))
        cells.append(_of_subset(dataset, 1, None, 0.01, one))
        cells.append(_of_subset(dataset, 10, 64, 0.001, ten))
    return cells


def _of_subset(
    dataset: str, ipc: int, batch: int | None, lr: float, printed: tuple[float, float] | None
) -> Recipe:
    """A cell of a subset of ImageNet."""
    note = "The authors' answer gives the starting rate as 0.01/0.001, read as IPC 1/10."
    if printed is None:
        note += " No published figure: none was found for this subset."
    return _cell(
        dataset,
        ipc,
        steps=20,
        epochs=2,
        window=10,
        batch=batch,
        zca=False,
        lr_img=1e4,
        lr_lr=1e-4,
        lr=lr,
        alpha=1.0,
        ema=0.999,
        published=printed,
        note=note,
    )


def _small() -> list[Recipe]:
    """MTT's small cells with this method's parts; the decay is shorter, as the run is."""
    recipes = []
    for recipe in mtt.fashion():
        assert recipe.buffer is not None
        changed = replace(
            recipe,
            name=recipe.name.replace("mtt/", "ftd/"),
            cites=CITES,
            buffer=replace(recipe.buffer, step=Gsam(sgd=recipe.buffer.step)),
            outer=replace(recipe.outer, ema={"images": 0.98}),
        )
        recipes.append(changed)
    return recipes


def recipes() -> list[Recipe]:
    """All of them."""
    return [*_small(), *_published()]
