"""A method in one file, as somebody else would add it: the loss of NCFM with normal frequencies.

Wang et al., Dataset Distillation with Neural Characteristic Function, CVPR 2025. Real and synthetic
features of a class are compared by their characteristic functions, the means of exp(i <t, f>), at
frequencies t that are drawn anew. `test_new_method.py` writes this file into a package of its own
and runs the contract suite on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

import synth
from ddengine.learning import augment
from ddengine.learning.flat import flatten
from ddengine.objective import Env, ObjectiveConfig
from ddengine.recipe import AugmentConfig, OptimConfig, Recipe
from ddengine.sets.codec import MultiFormation
from ddengine.sets.synthetic import SyntheticSet

BIBTEX = """
@inproceedings{wang2025ncfm,
  title     = {Dataset Distillation with Neural Characteristic Function: A Minmax Perspective},
  author    = {Wang, Shaobo and Yang, Yicun and Liu, Zhiyuan and Sun, Chenghao and Hu, Xuming
               and He, Conghui and Zhang, Linfeng},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2025}
}
"""
SCALE = 300.0  # the loss as published is so many times the mean distance
SMALLEST = 1e-12  # added under the root, whose slope at 0 has no bound


def characteristic(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine and mean sine (m,) of features (B, D) at frequencies (m, D)."""
    angles = frequencies @ features.T
    return angles.cos().mean(1), angles.sin().mean(1)


def distance(
    real: Tensor, syn: Tensor, frequencies: Tensor, *, alpha: float = 0.5, beta: float = 0.5
) -> Tensor:
    """The mean over frequencies of the root of alpha times the squared difference of amplitudes
    and beta times that of phases; real (R, D), syn (B, D), frequencies (m, D).
    """
    real_cos, real_sin = characteristic(real, frequencies)
    syn_cos, syn_sin = characteristic(syn, frequencies)
    real_size = (real_cos.square() + real_sin.square()).sqrt()
    syn_size = (syn_cos.square() + syn_sin.square()).sqrt()
    amplitude = (real_size - syn_size).square()
    phase = 2 * (real_size * syn_size - real_cos * syn_cos - real_sin * syn_sin)
    return (alpha * amplitude + beta * phase.clamp(min=SMALLEST)).sqrt().mean()


def matched(
    real: Tensor, syn: Tensor, frequencies: Tensor, *, alpha: float = 0.5, beta: float = 0.5
) -> Tensor:
    """The published loss of features, whose rows are divided by their norms first."""
    real = real / real.norm(dim=1, keepdim=True)
    syn = syn / syn.norm(dim=1, keepdim=True)
    return SCALE * distance(real, syn, frequencies, alpha=alpha, beta=beta)


@dataclass(frozen=True, kw_only=True)
class CharacteristicMatching(ObjectiveConfig):
    """Characteristic functions of real and synthetic features, class by class."""

    real_batch: int = 64  # real images per class and step
    frequencies: int = 256  # drawn per class and step
    augment: AugmentConfig = AugmentConfig(ops=("color", "crop", "cutout"))

    @property
    def cites(self) -> tuple[str, ...]:
        """The paper."""
        return ("wang2025ncfm",)

    def small(self) -> "CharacteristicMatching":
        """A few images and frequencies."""
        return replace(self, real_batch=8, frequencies=32)

    def build(self, env: Env) -> "CharacteristicObjective":
        """The objective."""
        return CharacteristicObjective(self, env)


@dataclass(frozen=True)
class CharacteristicObjective:
    """See the module."""

    config: CharacteristicMatching
    env: Env

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """Nothing is kept between steps."""
        return {}

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss for each class, in a new network of random weights."""
        config, env = self.config, self.env
        theta = flatten(env.new_model(rng)).to(env.device)
        class_of = syn.classes.index_select(0, syn.source)
        for label in range(len(syn.class_names)):
            draw = augment.sample(config.augment, 1, rng, groups=1, shared=True).to(env.device)
            with torch.no_grad():
                images = env.real.draw(label, config.real_batch, rng)
                real = env.model.embed(theta, augment.apply(config.augment, images, draw))
            members = (class_of == label).nonzero().flatten()
            images = augment.apply(config.augment, syn.batch(members).images, draw)
            shape = (config.frequencies, real.shape[1])
            frequencies = torch.randn(shape, generator=rng).to(real)
            yield matched(real, env.model.embed(theta, images), frequencies)


_LIKE = synth.find("dm/fashion_mnist_ipc1_small")
recipe: Recipe = replace(
    _LIKE,
    name="ncfm/fashion_mnist_ipc1_small",
    cites=("wang2025ncfm",),
    note="A recipe of a test, for which nothing is published.",
    codec=MultiFormation(factor=2),
    objective=CharacteristicMatching(),
    outer=replace(_LIKE.outer, optim={"images": OptimConfig(lr=0.1)}),
)
