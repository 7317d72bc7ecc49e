"""FRePo: neural feature regression with a pool (Zhou et al., NeurIPS 2022, arXiv 2206.00719).

Images and their labels, which start as centred one-hot classes, are learned such that kernel ridge
regression on them, in the features f of a network from the pool, says the classes of real images:

    loss = mean of (K_ts (K_ss + lambda I)^-1 Y_s - y_t)^2 - mean of min(m, 1 / K),
    K_ab = f(X_a) f(X_b)^T,   lambda = 1e-6 trace(K_ss) / S

with y_t the centred one-hot classes of a batch of real images, and m by how much the largest number
of a label is above the next. With `flip` the images are regressed on together with their mirrored
selves. Networks are in evaluation mode, as in `synth.krr_st`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from ddengine.learning.kernel_ridge import RIDGE, predictions
from ddengine.learning.teachers import BATCH
from ddengine.objective import Env, network_bytes
from ddengine.recipe import AugmentConfig, OptimConfig, require_at_least
from ddengine.sets.labels import centred
from ddengine.sets.synthetic import SyntheticSet
from synth.pool import OnPool, Pool, PoolObjective, State, constant, embedded, real_images

NONE = AugmentConfig(ops=())
ADAM = OptimConfig(kind="adam", lr=3e-4, momentum=0.9, beta2=0.999)


def margin_loss(labels: Tensor) -> Tensor:
    """Minus the mean of how far labels (S, K) are above their second largest, at most 1 / K."""
    first, second = labels.topk(2, dim=1).values.unbind(1)
    return -(first - second).clamp(max=1 / labels.shape[1]).mean()


@dataclass(frozen=True, kw_only=True)
class Frepo(OnPool):
    """See the module."""

    pool: Pool = field(default_factory=lambda: Pool(steps=100, optim=ADAM, batch=1000))
    real_batch: int = 1024  # real images per step, of any class
    flip: bool = True  # mirrored images lie beside the images

    def __post_init__(self) -> None:
        require_at_least("objective.real_batch", self.real_batch)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("zhou2022frepo",)

    @property
    def target_kinds(self) -> tuple[str, ...]:
        """Centred classes."""
        return ("centred",)

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the graph of all decoded images, mirrored ones too, and of the pool."""
        decoded = len(syn) * (2 if self.flip else 1)
        images = max(decoded, min(BATCH, self.real_batch))
        return network_bytes(env, images=images, vectors=self.pool.vectors)

    def build(self, env: Env) -> "FrepoObjective":
        """The objective."""
        return FrepoObjective(self, env)


class FrepoObjective(PoolObjective):
    """See the module."""

    def __init__(self, config: Frepo, env: Env):
        super().__init__(config.pool, env)
        self.config = config

    def losses(
        self, syn: SyntheticSet, state: State, step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """The loss of a batch of real images in one network, of which ranks have a part each.

        The margin between labels is the first rank's.
        """
        config, env = self.config, self.env
        network = self.networks.next(syn, state, rng)
        index, batch = real_images(env, config.real_batch, NONE, rng)
        mine = self.mine(batch)
        images = batch[mine]
        if not len(images):
            return
        decoded, labels = syn.batch(torch.arange(len(syn), device=env.device))
        margin = margin_loss(labels)
        if config.flip:
            decoded = torch.cat([decoded, decoded.flip(3)])
            labels = torch.cat([labels, labels])
        of_decoded = embedded(env, network, decoded)
        real = constant(env, network, images)
        said = predictions(real, of_decoded, labels, RIDGE / len(decoded))
        wanted = centred(env.real.labels[index[mine]], labels.shape[1])
        loss = (said - wanted).square().mean() * (len(images) / len(batch))
        yield loss + margin if mine.start == 0 else loss
