"""KRR-ST: self-supervised distillation for transfer (Lee et al., ICLR 2024, arXiv 2310.06511).

Images X_s and target vectors Y_s are learned such that a network that is fitted to them by squared
error says of real images what a self-supervised network g says of them. No label is read. Of a
network from the pool only the last layer is fitted, in closed form, with f its features and a
constant 1 behind them, in evaluation mode:

    loss = mean of (K_ts (K_ss + lambda I)^-1 Y_s - g(X_t))^2,   K_ab = f(X_a) f(X_b)^T,
    lambda = 1e-6 trace(K_ss), a constant in the gradient

over a batch X_t of real images, which both networks see augmented alike. Gradients reach X_s
through f, and Y_s. The set starts as real images with Y_s = g(X_s), which `targets.kind` features
says; g is the first expert, which `buffer` trains (`buffers.barlow`).

Differs from the released program: the images start, and stay, in the space that networks see (there
they start as plain pixels beside normalised real ones), and the pool counts the steps of a new
network from 0 (`pool.restart_count`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from ddengine.learning.kernel_ridge import RIDGE, predictions, with_constant
from ddengine.learning.teachers import BATCH, target_network
from ddengine.objective import Env, network_bytes
from ddengine.recipe import AugmentConfig, require, require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from synth.pool import OnPool, Pool, PoolObjective, State, constant, embedded, real_images

SHIFT_FLIP = AugmentConfig(always=("crop", "flip"), ops=())


def regression_loss(
    real: Tensor, syn: Tensor, targets: Tensor, wanted: Tensor, ridge: float = RIDGE
) -> Tensor:
    """The loss () of features real (T, D) and syn (S, D), targets (S, K) and wanted (T, K)."""
    said = predictions(with_constant(real), with_constant(syn), targets, ridge)
    return (said - wanted).square().mean()


@dataclass(frozen=True, kw_only=True)
class KrrSt(OnPool):
    """See the module."""

    pool: Pool = field(default_factory=Pool)  # the networks whose features are regressed on
    real_batch: int = 1024  # real images per step, of any class
    augment: AugmentConfig = SHIFT_FLIP  # of real images
    ridge: float = RIDGE  # lambda in units of the trace

    def __post_init__(self) -> None:
        require_at_least("objective.real_batch", self.real_batch)
        require(
            0 < self.ridge < float("inf"),
            f"objective.ridge must be positive and finite, got {self.ridge}; 1e-6 is usual.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("lee2024krrst",)

    @property
    def reads_experts(self) -> bool:
        """The target network."""
        return True

    @property
    def target_kinds(self) -> tuple[str, ...]:
        """Features."""
        return ("features",)

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the graph of all decoded images, and of the pool."""
        images = max(len(syn), min(BATCH, self.real_batch))
        return network_bytes(env, images=images, vectors=self.pool.vectors)

    def build(self, env: Env) -> "KrrStObjective":
        """The objective. Raises UserError without a target network."""
        if env.experts is None:
            raise UserError(
                "KRR-ST needs the network whose features are its targets; give the recipe a buffer."
            )
        return KrrStObjective(self, env)


class KrrStObjective(PoolObjective):
    """See the module."""

    def __init__(self, config: KrrSt, env: Env):
        assert env.experts is not None
        super().__init__(config.pool, env)
        self.config = config
        self.target = target_network(env.experts, env.device)

    def losses(
        self, syn: SyntheticSet, state: State, step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """The loss of a batch of real images in one network, of which ranks have a part each."""
        config, env = self.config, self.env
        network = self.networks.next(syn, state, rng)
        _, batch = real_images(env, config.real_batch, config.augment, rng)
        images = batch[self.mine(batch)]
        if not len(images):
            return
        wanted = constant(env, self.target, images)
        real = constant(env, network, images)
        decoded, targets = syn.batch(torch.arange(len(syn), device=env.device))
        of_decoded = embedded(env, network, decoded)
        loss = regression_loss(real, of_decoded, targets, wanted, config.ridge)
        yield loss * (len(images) / len(batch))
