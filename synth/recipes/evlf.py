"""Generative distillation: EVLF, and what it is built on, MGD3 and D4M's prototypes.

Values of the published cells: the released program of EVLF (github.com/wenqi-cai297/
earlyfusion-for-dd): Stable Diffusion's encoder and text tower and DiT-XL/2 at 256 pixels, all
frozen; 50 steps, guidance 0.1 towards centres of k-means for the first half of them, weight 4 of
the class. Their weights must be there: see docs/generative.md. No figure was read: a summary by
others quotes the tables.

The small recipes train encoder and denoiser here, on Fashion-MNIST, the digits and CIFAR-10. What a
generator of their size can show is little: they are for looking at each part.
"""

from dataclasses import replace

from ddengine.recipe import (
    AugmentConfig,
    BufferConfig,
    DataConfig,
    EvalConfig,
    OuterConfig,
    Recipe,
)
from ddengine.sets.codec import Identity
from synth.generative.config import DenoiserConfig, FusionConfig, VaeConfig
from synth.generative.expert import Generative
from synth.generative.method import Sampling
from synth.recipes.cells import FILES, quoted, sentences
from synth.recipes.protocols import PROTOCOLS, generative

BIBTEX = """
@inproceedings{cai2026evlf,
  title     = {{EVLF}: Early Vision-Language Fusion for Generative Dataset Distillation},
  author    = {Cai, Wenqi and Zou, Yawen and Li, Guang and Gu, Chunzhi and Zhang, Chao},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
              (CVPR)},
  year      = {2026}
}

@inproceedings{chansantiago2025mgd3,
  title     = {{MGD}$^3$: Mode-Guided Dataset Distillation using Diffusion Models},
  author    = {Chan-Santiago, Jeffrey A. and Tirupattur, Praveen and Nayak, Gaurav Kumar and Liu,
              Gaowen and Shah, Mubarak},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2025}
}

@inproceedings{su2024d4m,
  title     = {{D$^4$M}: Dataset Distillation via Disentangled Diffusion Model},
  author    = {Su, Duo and Hou, Junjie and Gao, Weizhi and Tian, Yingjie and Tang, Bowen},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
              (CVPR)},
  year      = {2024}
}

@inproceedings{gu2024minimax,
  title     = {Efficient Dataset Distillation via Minimax Diffusion},
  author    = {Gu, Jianyang and Vahidian, Saeed and Kungurtsev, Vyacheslav and Wang, Haonan and
              Jiang, Wei and You, Yang and Chen, Yiran},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
              (CVPR)},
  year      = {2024}
}

@inproceedings{peebles2023dit,
  title     = {Scalable Diffusion Models with Transformers},
  author    = {Peebles, William and Xie, Saining},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023}
}

@inproceedings{rombach2022ldm,
  title     = {High-Resolution Image Synthesis with Latent Diffusion Models},
  author    = {Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and
              Ommer, Bj{\\"o}rn},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition
              (CVPR)},
  year      = {2022}
}

@inproceedings{ho2020ddpm,
  title     = {Denoising Diffusion Probabilistic Models},
  author    = {Ho, Jonathan and Jain, Ajay and Abbeel, Pieter},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2020}
}

@article{ho2022guidance,
  title   = {Classifier-Free Diffusion Guidance},
  author  = {Ho, Jonathan and Salimans, Tim},
  journal = {arXiv preprint arXiv:2207.12598},
  year    = {2022}
}

@inproceedings{radford2021clip,
  title     = {Learning Transferable Visual Models From Natural Language Supervision},
  author    = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh,
              Gabriel and Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin,
              Pamela and Clark, Jack and Krueger, Gretchen and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2021}
}
"""

NONE = AugmentConfig(ops=())
EVLF = Sampling()
MGD3 = Sampling(fused=False)
UNGUIDED = Sampling(fused=False, guidance=0.0)
PROTOTYPES = Sampling(kind="prototypes", fused=False)

# dataset -> ImageNet's numbers of its classes, which DiT-XL/2 is told
LABELS = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
}
# (dataset, images per class) -> accuracy in % of MGD3, and of MGD3 with EVLF, by ResNetAP-10, as a
# summary by others quotes them
FIGURES = {
    ("imagewoof", 10): (36.6, 39.3),
    ("imagewoof", 50): (55.6, 59.0),
    ("imagenette", 20): (69.2, 72.5),
}
WEIGHTS = (
    "Name the folders of Stable Diffusion with --buffer.step.folder.vae and "
    "--buffer.step.folder.text, and that of DiT-XL/2 with --buffer.step.folder.denoiser."
)
DIFFERS = (
    "Differs from the released program: students see 256 pixels, not 224, without its noise of "
    "colours (lighting); several images are sampled at once; accuracies are of the last epoch."
)


def buffer_of(step: Generative) -> BufferConfig:
    """Generative parts as the experts of a recipe."""
    return BufferConfig(step=step, num_experts=1, epochs=1, augment=NONE, keep="last")


def _published(method: str, objective: Sampling, column: int) -> list[Recipe]:
    """The cells of a method, which lies in a column of FIGURES."""
    cells = []
    for (dataset, ipc), figures in FIGURES.items():
        step = Generative(denoiser=DenoiserConfig(labels=LABELS[dataset], patch=2))
        cells.append(
            Recipe(
                name=f"{method}/{dataset}_ipc{ipc}",
                cites=(*objective.cites, "kim2022idc"),
                published=None,
                note=sentences(quoted(figures[column]), WEIGHTS, DIFFERS, FILES[dataset]),
                data=DataConfig(name=dataset, size=(256, 256), fit="crop", validation=0.0),
                model="resnet10-ap",
                ipc=ipc,
                buffer=buffer_of(step),
                codec=Identity(bounded=True),
                objective=objective,
                outer=OuterConfig(steps=0, optim={}),
                evaluation=generative(ipc),
            )
        )
    return cells


SMALL_NOTE = "A recipe of this project for a CPU; nothing is published for this cell."
SMALL_VAE = VaeConfig(widths=(16, 32, 32), epochs=8)
SMALL_FUSION = FusionConfig(width=64, epochs=4, batch=64, batches=1, lr=1e-3, projector_lr=1e-3)
SMALL_DENOISER = DenoiserConfig(width=128, heads=4, layers=4, patch=2, epochs=100)
SMALL = Generative(vae=SMALL_VAE, fusion=SMALL_FUSION, denoiser=SMALL_DENOISER)
DIGITS = Generative(
    vae=replace(SMALL_VAE, widths=(16, 32), epochs=12),
    fusion=SMALL_FUSION,
    denoiser=replace(SMALL_DENOISER, width=64, layers=2, patch=1, epochs=60),
)
SIZES = {"fashion_mnist": (32, 32), "digits": (16, 16), "cifar10": None}
STEPS = {"digits": DIGITS}
LIMITS = {"fashion_mnist": 10_000, "cifar10": 10_000}


def small_evaluation(dataset: str) -> EvalConfig:
    """The short protocol, with hard labels."""
    model = "convnet-d2-w32-in" if dataset == "digits" else "convnet-d3-w16-in"
    return replace(
        PROTOCOLS["fast"],
        labels="hard",
        models=(model,),
        baselines=("random", "k_means", "full"),
        baseline_steps="updates",
        lr_grid=(0.003, 0.01, 0.03),
        full_steps=300,
    )


def small(method: str, objective: Sampling, dataset: str, ipc: int = 10) -> Recipe:
    """A cell of this project for a CPU."""
    evaluation = small_evaluation(dataset)
    return Recipe(
        name=f"{method}/{dataset}_ipc{ipc}_small",
        cites=objective.cites,
        published=None,
        note=SMALL_NOTE,
        data=DataConfig(name=dataset, limit=LIMITS.get(dataset), size=SIZES[dataset]),
        model=evaluation.models[0],
        ipc=ipc,
        buffer=buffer_of(STEPS.get(dataset, SMALL)),
        codec=Identity(bounded=True),
        objective=objective,
        outer=OuterConfig(steps=0, optim={}),
        evaluation=evaluation,
    )


def recipes() -> list[Recipe]:
    """All of them."""
    cells = []
    for dataset in SIZES:
        cells += [
            small("evlf", EVLF, dataset),
            small("mgd3", MGD3, dataset),
            small("d4m", PROTOTYPES, dataset),
        ]
    return [*cells, *_published("evlf", EVLF, 1), *_published("mgd3", MGD3, 0)]
