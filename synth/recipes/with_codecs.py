"""Coarse images in the bytes of one image of a class: the codecs under DM and MTT.

Nothing is published for these cells; their datasets and networks are those of this project's other
small cells. Rates are for each codec what its numbers need, and were not tuned.
"""

from collections.abc import Mapping
from dataclasses import replace

from ddengine.recipe import InitConfig, OptimConfig, Recipe
from ddengine.sets.codec import (
    Codec,
    Gaussians,
    Hallucinated,
    LinearBases,
    Mixed,
    Reduced,
    Siren,
    SparseTokens,
    Spectra,
)
from synth.recipes import dm, mtt
from synth.recipes.cells import UNTUNED, sentences

BIBTEX = """
@misc{jiang2025gsdd,
  title         = {Beyond Pixels: Efficient Dataset Distillation via Sparse {Gaussian}
                  Representation},
  author        = {Jiang, Chenyang and Li, Zhengcen and Zhao, Hang and Shan, Qiben and Wu, Shaocong
                  and Su, Jingyong},
  howpublished  = {arXiv 2509.26219},
  year          = {2025}
}

@inproceedings{shin2025ddif,
  title     = {Distilling Dataset into Neural Field},
  author    = {Shin, Donghyeok and Bae, HeeSun and Sim, Gyuwon and Kang, Wanmo and Moon, Il-Chul},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2025}
}

@inproceedings{shin2023fred,
  title     = {Frequency Domain-based Dataset Distillation},
  author    = {Shin, Donghyeok and Shin, Seungjae and Moon, Il-Chul},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023}
}

@inproceedings{wei2023speed,
  title     = {Sparse Parameterization for Epitomic Dataset Distillation},
  author    = {Wei, Xing and Cao, Anjia and Yang, Funing and Ma, Zhiheng},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023}
}

@inproceedings{liu2022haba,
  title     = {Dataset Distillation via Factorization},
  author    = {Liu, Songhua and Wang, Kai and Yang, Xingyi and Ye, Jingwen and Wang, Xinchao},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022}
}
"""


def _adam(lr: float) -> OptimConfig:
    return OptimConfig(lr=lr, kind="adam", momentum=0.9, beta2=0.999)


# name, codec, optimisers under both methods
CODED: list[tuple[str, Codec, Mapping[str, OptimConfig]]] = [
    ("reduced", Reduced(shrink=2), {"images": _adam(0.01)}),
    ("palettes", Reduced(shrink=1, colours=4), {"images": _adam(0.01), "palettes": _adam(0.01)}),
    ("gaussians", Gaussians(primitives=22), {"primitives": _adam(0.01)}),
    ("siren", Siren(width=6, fit_steps=2000), {"fields": _adam(1e-4)}),
    ("fred", Spectra(kept=64), {"spectra": _adam(1.0)}),
    (
        "speed",
        SparseTokens(tokens=16, dim=16, heads=2, kept=24, sparse_while_learned=True),
        {name: _adam(1e-3) for name in ("tokens", "network", "coefficients")},
    ),
    (
        "haba",
        Hallucinated(styles=5),
        {"images": _adam(0.01), "hallucinators": _adam(1e-3)},
    ),
    (
        "linba",
        LinearBases(bases=16, start="images"),
        {"bases": _adam(0.01), "coefficients": _adam(0.01)},
    ),
]


def _coded(like: Recipe, method: str) -> list[Recipe]:
    """The cell in every codec."""
    cells = []
    for name, codec, optim in CODED:
        if "lr" in like.outer.optim:
            optim = {**optim, "lr": like.outer.optim["lr"]}
        cells.append(
            replace(
                like,
                name=f"{method}/fashion_mnist_ipc1_{name}_small",
                codec=codec,
                outer=replace(like.outer, optim=optim),
                note=sentences(like.note, UNTUNED),
            )
        )
    return cells


def _mixed(like: Recipe, method: str) -> Recipe:
    """The harder half of ten images stays real, the easier half is learned.

    Before them the five hardest are passed over, the share published for 250 images of a class.
    """
    init = InitConfig(kind="el2n", order="hardest", skip=0.5)
    name = f"{method}/fashion_mnist_ipc10_mixed_small"
    optim = {**like.outer.optim, "images": OptimConfig(lr=like.outer.optim["images"].lr / 10)}
    outer = replace(like.outer, optim=optim)
    note = sentences(like.note, UNTUNED)
    codec = Mixed(learned=0.5)
    return replace(like, name=name, codec=codec, init=init, outer=outer, note=note)


def recipes() -> list[Recipe]:
    """All of them."""
    cells = []
    for method, known in (("dm", dm.recipes()), ("mtt", mtt.recipes())):
        by_name = {recipe.name: recipe for recipe in known}
        cells += _coded(by_name[f"{method}/fashion_mnist_ipc1_small"], method)
        cells.append(_mixed(by_name[f"{method}/fashion_mnist_ipc10_small"], method))
    return cells
