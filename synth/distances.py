"""How distribution matching compares the features of real and synthetic images of a class.

A slot of `synth.distribution`: the mean embedding (DM), moments, the characteristic function (NCFM,
Wang et al., CVPR 2025, at commit de92fb8 of gszfwsb/NCFM) and centroids in hyperbolic space (HDD,
NeurIPS 2025). A distance first makes a summary of the features of each side, because those of many
real images are summarised in parts, and then compares the two.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ddengine.objective import Env
from ddengine.recipe import require, require_at_least
from ddengine.system.rng import on_device

State = dict[str, Tensor]
Draw = State  # what a distance has drawn for one loss, by name

SCALE = 300.0  # by which NCFM multiplies its loss
FLOOR = 1e-12  # least value under a root, whose slope at 0 has no bound
LAYERS = 3  # of the network of NCFM's learned frequencies
NEGATIVE_SLOPE = 0.2  # of LeakyReLU in it
NORM_EPS = 1e-5  # beside the variance in its BatchNorm layers
LARGEST_ANGLE = 15.0  # its cosh squared, 3e12, leaves float64 four digits of what is about 1
SAMPLER = "frequencies.sampler"  # its parameters in an objective's state
SAMPLER_MOMENTUM = "frequencies.momentum"  # of their training


class Distance(Protocol):
    """A frozen dataclass that subclasses this and compares features (G, n, D) of G classes."""

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ()

    @property
    def learns(self) -> bool:
        """Whether it keeps something that is trained between outer steps."""
        return False

    def state(self, env: Env, rng: Generator) -> State:
        """What is kept between steps, before the first; nothing by default."""
        return {}

    def small(self) -> Self:
        """The same at the size of a test."""
        return self

    def draw(self, state: State, like: Tensor, width: int, rng: Generator) -> Draw:
        """What is drawn for one loss of features of `width` numbers; nothing by default.

        `like` has their type and lies on their device.
        """
        return {}

    def summary(self, features: Tensor, draw: Draw) -> Tensor:
        """What is kept (G, ...) of the features (G, n, D) of n images of each of G classes."""
        ...

    def between(self, real: Tensor, syn: Tensor, draw: Draw) -> Tensor:
        """The sum over classes of the distances of two summaries (G, ...)."""
        ...

    def learn(self, state: State, real: Tensor, syn: Tensor, draw: Draw) -> None:
        """Train what is kept on two summaries, after the images have moved."""


@dataclass(frozen=True, kw_only=True)
class Means(Distance):
    """|mean of real features - mean of synthetic ones|^2 (DM; Zhao & Bilen, eq. 6)."""

    def summary(self, features: Tensor, draw: Draw) -> Tensor:
        """(G, D)."""
        return features.mean(1)

    def between(self, real: Tensor, syn: Tensor, draw: Draw) -> Tensor:
        """The squared norms, summed."""
        return (real - syn).square().sum()


@dataclass(frozen=True, kw_only=True)
class Moments(Distance):
    """Squared differences of the means and of the central moments of each feature.

    One synthetic image of a class has no spread, so this wants several. It is of this project;
    nothing is published for it.
    """

    order: int = 2  # the highest moment: 1 is the mean, 2 the variance
    weight: float = 1.0  # of each central moment beside the mean

    def __post_init__(self) -> None:
        require_at_least("objective.distance.order", self.order)
        require(
            0 <= self.weight < math.inf,
            f"objective.distance.weight must be finite and not negative, got {self.weight}.",
        )

    def summary(self, features: Tensor, draw: Draw) -> Tensor:
        """(G, order, D)."""
        mean = features.mean(1)
        moments = [mean]
        apart = features - mean[:, None]
        for power in range(2, self.order + 1):
            moments.append(apart.pow(power).mean(1))
        return torch.stack(moments, 1)

    def between(self, real: Tensor, syn: Tensor, draw: Draw) -> Tensor:
        """The squares, those of central moments weighted, summed."""
        squares = (real - syn).square().sum((0, 2))
        return squares[0] + self.weight * squares[1:].sum()


def characteristic(features: Tensor, frequencies: Tensor) -> Tensor:
    """The characteristic function (G, 2, m) of features (G, n, D) at frequencies (m, D).

    That is the mean of exp(i <t, f>): its real parts, and its imaginary ones.
    """
    angles = features @ frequencies.T
    return torch.stack([angles.cos().mean(1), angles.sin().mean(1)], 1)


def characteristic_distance(real: Tensor, syn: Tensor, alpha: float, beta: float) -> Tensor:
    """Mean over frequencies of sqrt(alpha amplitude + beta phase), summed over classes.

    `real` and `syn` are characteristic functions (G, 2, m). The amplitude is the squared difference
    of their absolute values, the phase 2 (|r| |s| - Re r Re s - Im r Im s). As both add up to
    |r - s|^2, the root is of beta |r - s|^2 + (alpha - beta) amplitude, in which nothing cancels
    where alpha is beta. What is below FLOOR under the root counts as FLOOR, without a gradient; the
    released code holds the phase alone there.
    """
    under = beta * (real - syn).square().sum(1)
    if alpha != beta:
        sizes = [side.square().sum(1).clamp(min=FLOOR).sqrt() for side in (real, syn)]
        under = under + (alpha - beta) * (sizes[0] - sizes[1]).square()
    return under.clamp(min=FLOOR).sqrt().mean(1).sum()


def _check_characteristic(number: int, alpha: float, beta: float, scale: float) -> None:
    """Raise UserError for settings of a characteristic function that cannot be."""
    require_at_least("objective.distance.number", number)
    require(
        min(alpha, beta) >= 0 and max(alpha, beta) > 0,
        f"objective.distance.alpha {alpha} and beta {beta} must not be negative, and not both 0.",
    )
    require(
        0 < scale < math.inf,
        f"objective.distance.scale must be positive and finite, got {scale}.",
    )


@dataclass(frozen=True, kw_only=True)
class Characteristic(Distance):
    """Characteristic functions at frequencies that are drawn normally for each loss (NCFM).

    The rows of features have norm 1. The loss is `scale` times the mean over frequencies.
    """

    number: int = 4096  # frequencies; published configurations: 4096, the paper: 1024
    alpha: float = 0.5  # weight of the amplitudes
    beta: float = 0.5  # weight of the phases
    scale: float = SCALE

    def __post_init__(self) -> None:
        _check_characteristic(self.number, self.alpha, self.beta, self.scale)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("wang2025ncfm",)

    def small(self) -> Self:
        """With 32 frequencies."""
        return replace(self, number=min(self.number, 32))

    def draw(self, state: State, like: Tensor, width: int, rng: Generator) -> Draw:
        """The frequencies (m, D)."""
        return {"frequencies": _normal((self.number, width), like, rng)}

    def summary(self, features: Tensor, draw: Draw) -> Tensor:
        """The characteristic function (G, 2, m)."""
        return characteristic(functional.normalize(features, dim=2), draw["frequencies"])

    def between(self, real: Tensor, syn: Tensor, draw: Draw) -> Tensor:
        """The published loss, summed over classes."""
        return self.scale * characteristic_distance(real, syn, self.alpha, self.beta)


@dataclass(frozen=True, kw_only=True)
class LearnedCharacteristic(Distance):
    """Characteristic functions at frequencies that a network makes the worst case (NCFM's psi).

    The network (`sampled`) sees normal rows, one for each frequency, and is trained to raise the
    loss after each update of the images. Differs from the released code, which draws 4 rows and
    repeats them, so that it has 4 different frequencies; here all are different. With `mixture` the
    output of the network is the scale of normal draws, which is the mixture of Gaussians of the
    paper and stands unused in the code.
    """

    number: int = 1024  # frequencies, at least 2, because BatchNorm is among the layers
    alpha: float = 0.5  # weight of the amplitudes
    beta: float = 0.5  # weight of the phases
    scale: float = SCALE
    mixture: bool = True
    lr: float = 0.001  # of the network, which is trained by SGD
    momentum: float = 0.5

    def __post_init__(self) -> None:
        _check_characteristic(self.number, self.alpha, self.beta, self.scale)
        require(
            self.number >= 2,
            f"objective.distance.number {self.number} is one row, and the network of learned "
            "frequencies normalises over rows; set it to at least 2.",
        )
        require(
            0 < self.lr < math.inf and 0 <= self.momentum < 1,
            f"objective.distance.lr {self.lr} must be positive and finite, and momentum "
            f"{self.momentum} at least 0 and below 1.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("wang2025ncfm",)

    @property
    def learns(self) -> bool:
        """The network of the frequencies."""
        return True

    def state(self, env: Env, rng: Generator) -> State:
        """The network as it starts, and the momentum of its training."""
        theta = first_sampler(feature_width(env), rng).to(env.device)
        return {SAMPLER: theta, SAMPLER_MOMENTUM: torch.zeros_like(theta)}

    def small(self) -> Self:
        """With 32 frequencies."""
        return replace(self, number=min(self.number, 32))

    def draw(self, state: State, like: Tensor, width: int, rng: Generator) -> Draw:
        """The noise (m, D) that the network sees, its output with it, and what that scales."""
        noise = _normal((self.number, width), like, rng)
        drawn = {"noise": noise}
        if self.mixture:
            drawn["normal"] = _normal((self.number, width), like, rng)
        with torch.no_grad():
            frequencies = self.frequencies(state[SAMPLER].to(like), drawn)
        return drawn | {"frequencies": frequencies}

    def frequencies(self, theta: Tensor, draw: Draw) -> Tensor:
        """The frequencies (m, D) of a network with parameters `theta` (P,)."""
        made = sampled(theta, draw["noise"])
        return made * draw["normal"] if self.mixture else made

    def summary(self, features: Tensor, draw: Draw) -> Tensor:
        """The features (G, n, D), of norm 1, because the frequencies change between two uses."""
        return functional.normalize(features, dim=2)

    def between(self, real: Tensor, syn: Tensor, draw: Draw) -> Tensor:
        """The published loss, summed over classes."""
        return self._loss(real, syn, draw["frequencies"])

    def _loss(self, real: Tensor, syn: Tensor, frequencies: Tensor) -> Tensor:
        of_real = characteristic(real, frequencies)
        of_syn = characteristic(syn, frequencies)
        return self.scale * characteristic_distance(of_real, of_syn, self.alpha, self.beta)

    def learn(self, state: State, real: Tensor, syn: Tensor, draw: Draw) -> None:
        """One step of SGD up the loss."""
        theta = state[SAMPLER].detach().to(real).requires_grad_()
        with torch.enable_grad():
            loss = self._loss(real, syn.detach(), self.frequencies(theta, draw))
            (up,) = torch.autograd.grad(loss, theta)
        momentum = state[SAMPLER_MOMENTUM].to(real).mul(self.momentum).sub(up)
        state[SAMPLER] = theta.detach().sub(momentum, alpha=self.lr)
        state[SAMPLER_MOMENTUM] = momentum


def sampled(theta: Tensor, noise: Tensor) -> Tensor:
    """The rows (m, D) that the network of learned frequencies makes of noise (m, D).

    Three times a linear layer, BatchNorm over the rows, and an activation: LeakyReLU twice, then
    tanh. `theta` (P,) holds weight and bias of the linear layer and of BatchNorm, layer by layer.
    """
    width = noise.shape[1]
    sizes = [width * width, width, width, width]
    rows = noise
    for layer, flat in enumerate(theta.split(sum(sizes))):
        weight, bias, scale, shift = flat.split(sizes)
        rows = functional.linear(rows, weight.view(width, width), bias)
        rows = functional.batch_norm(rows, None, None, scale, shift, training=True, eps=NORM_EPS)
        rows = rows.tanh() if layer == LAYERS - 1 else functional.leaky_relu(rows, NEGATIVE_SLOPE)
    return rows


def first_sampler(width: int, rng: Generator) -> Tensor:
    """Parameters (P,) of a new network for `sampled`, as torch initialises such layers."""
    bound = 1 / math.sqrt(width)
    parts = []
    for _ in range(LAYERS):
        linear = torch.empty(width * width + width).uniform_(-bound, bound, generator=rng)
        parts += [linear, torch.ones(width), torch.zeros(width)]
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class Hyperbolic(Distance):
    """The distance of centroids in hyperbolic space (HDD).

    Features are carried by the exponential map at the origin of the Lorentz model, so features of
    long vectors weigh more; a centroid is the mean, brought back onto the hyperboloid (Law et al.,
    2019). The settings of the paper were not read; these are of this project.

    It is computed in float64, because inner products of points far from the origin are small
    differences of large numbers. Features of a norm above LARGEST_ANGLE / sqrt(c) count as of that
    norm: 474 at the default curvature.
    """

    curvature: float = 0.001  # c of the space, whose curvature is -c
    scale: float = 1.0  # on the loss

    def __post_init__(self) -> None:
        for name, value in (("curvature", self.curvature), ("scale", self.scale)):
            require(
                0 < value < math.inf,
                f"objective.distance.{name} must be positive and finite, got {value}.",
            )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("li2025hdd",)

    def summary(self, features: Tensor, draw: Draw) -> Tensor:
        """The centroids (G, D + 1) in float64 on the hyperboloid of curvature -1, time first."""
        features = features.double()
        lengths = features.norm(dim=2, keepdim=True).clamp(min=FLOOR)
        angles = (math.sqrt(self.curvature) * lengths).clamp(max=LARGEST_ANGLE)
        points = torch.cat([angles.cosh(), angles.sinh() * features / lengths], 2)
        mean = points.mean(1)
        size = -_lorentz(mean, mean)
        return mean / size.clamp(min=FLOOR).sqrt()[:, None]

    def between(self, real: Tensor, syn: Tensor, draw: Draw) -> Tensor:
        """The distances, summed, in float64.

        arcosh(1 + u) as 2 arsinh(sqrt(u / 2)) with u = <m - n, m - n> / 2, in which nothing cancels
        for near centroids.
        """
        apart = real.double() - syn.double()
        half = (_lorentz(apart, apart) / 4).clamp(min=FLOOR)
        distances = 2 * half.sqrt().asinh() / math.sqrt(self.curvature)
        return self.scale * distances.sum()


def _lorentz(a: Tensor, b: Tensor) -> Tensor:
    """The inner products (G,) of points (G, D + 1): of space minus of time."""
    products = a * b
    return products[:, 1:].sum(1) - products[:, 0]


def feature_width(env: Env) -> int:
    """D, the width of the input of the last linear layer."""
    images = torch.zeros(2, *env.real.image_shape, device=env.device)
    theta = torch.zeros(env.model.num_params, device=env.device)
    with torch.no_grad():
        return env.model.embed(theta, images).shape[1]


def _normal(shape: tuple[int, int], like: Tensor, rng: Generator) -> Tensor:
    """Normal numbers of the type and on the device of `like`."""
    source = on_device(rng, like.device)
    return torch.randn(shape, generator=source, device=like.device, dtype=like.dtype)
