"""Gradient matching.

DC (Zhao et al., ICLR 2021, arXiv 2006.05929), DSA (2102.08259), DCC (Lee et al., ICML 2022) and
IDC's loss (2205.14959).

The gradient that a network gets from synthetic images should be the one it gets from real images:

    loss = sum over classes c of D(grad l(A(S_c, w_c); theta), grad l(A(B_c, w_c); theta))

(DC eq. 9, DSA eq. 4) with a batch B_c of real images of the class and the same augmentation w_c on
both sides. DCC sums the gradients over classes before the distance. Differs from the released code:
networks and real batches follow from the seed, the gradients of several classes are computed in one
pass, and BatchNorm layers get the statistics of 16 real images per class themselves, not a tenth of
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import Generator, Tensor

from ddengine.learning import augment
from ddengine.learning.graphs import computation
from ddengine.learning.inner import eager_gradient
from ddengine.learning.losses import task_loss
from ddengine.objective import VECTORS, Env, Objective, ObjectiveConfig, network_bytes
from ddengine.recipe import AugmentConfig, require
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist
from ddengine.system.errors import UserError
from synth.classes import (
    check_batches,
    class_members,
    images_per_class,
    parts,
    pays,
    say_small_classes,
    share_of,
)
from synth.networks import Networks, OuterStep, training_gradient

NetworksT = TypeVar("NetworksT", bound=Networks)

Metric = Literal["layerwise", "mse", "l1", "cos"]
Tensors = Literal["weights", "convolutions", "all"]
Share = tuple[int, int]  # so many classes, of so many
FEWEST_DIMS = {"weights": 2, "convolutions": 3, "all": 0}  # of the parameters that are compared
EPS = 1e-6  # beside the product of norms
NORM_BATCH = 16  # real images per class for the statistics of BatchNorm layers


def distance(
    real: Tensor, syn: Tensor, shapes: Sequence[torch.Size], metric: Metric, tensors: Tensors
) -> Tensor:
    """Distances (G,) between gradients real and syn (G, P), whose parameters have these shapes.

    "layerwise" (DC eq. 10): the sum over rows (output channels, classes) of 1 - cosine. "mse" and
    "l1": sums, not means, of squared and absolute differences. "cos": 1 - cosine of all numbers as
    one vector.
    """
    sizes = [shape.numel() for shape in shapes]
    chosen_real = []
    chosen_syn = []
    for r, s, shape in zip(real.split(sizes, 1), syn.split(sizes, 1), shapes, strict=True):
        if len(shape) < FEWEST_DIMS[tensors]:
            continue
        if metric == "layerwise":
            by_row = (shape[0], -1)
            r = r.unflatten(1, by_row)
            s = s.unflatten(1, by_row)
        chosen_real.append(r)
        chosen_syn.append(s)
    if metric == "layerwise":
        of_tensors = []
        for r, s in zip(chosen_real, chosen_syn, strict=True):
            of_tensors.append(_unlike(r, s).sum(1))
        return torch.stack(of_tensors).sum(0)
    a = torch.cat(chosen_real, 1)
    b = torch.cat(chosen_syn, 1)
    if metric == "cos":
        return _unlike(a, b)
    if metric == "mse":
        return (a - b).square().sum(1)
    return (a - b).abs().sum(1)


def _unlike(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine over the last dimension."""
    product = (a * b).sum(-1)
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    return 1 - product / (norms + EPS)


@dataclass(frozen=True, kw_only=True)
class GradientMatching(ObjectiveConfig, Generic[NetworksT]):
    """Gradients of real and synthetic images, class by class or summed over classes."""

    networks: NetworksT  # in which networks gradients are compared
    # layerwise: 1 - cosine, summed over output channels | mse: sum of squared differences | l1: of
    # absolute ones | cos: 1 - cosine of all as one vector
    metric: Metric = "layerwise"
    tensors: Tensors = "weights"  # parameters of at least two dimensions | at least three | all
    real_batch: int = 256  # real images per class and step
    syn_batch: int | None = None  # most decoded images per class and step, drawn anew; None: all
    augment: AugmentConfig = AugmentConfig()
    # a distance for each class, or one between sums over classes (DCC)
    classes: Literal["each", "sum"] = "each"
    warmup_networks: int = 0  # for so many networks `sum` begins with `each` ...
    warmup_steps: int = 0  # ... for so many of their steps
    # classes in one loss; None: as many as pay on the device. 1 with outer.step_after each steps
    # after every class
    classes_at_once: int | None = None

    def __post_init__(self) -> None:
        check_batches(self.real_batch, self.syn_batch, self.classes_at_once)
        networks = self.warmup_networks
        steps = self.warmup_steps
        without = networks == 0 and steps == 0
        require(
            without or (self.classes == "sum" and min(networks, steps) >= 1),
            f"objective.warmup_networks {networks} and warmup_steps {steps} are for how long "
            "objective.classes sum begins class by class, and "
            f"classes is {self.classes}; set both to at least 1 with sum, or both to 0.",
        )
        require(
            self.metric != "layerwise" or self.tensors != "all",
            (
                "objective.metric layerwise compares the rows of tensors, and objective.tensors "
                "all has tensors without; set objective.tensors weights."
            ),
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite for the parts in use."""
        if self.classes == "sum":
            return ("zhao2021dc", "lee2022dcc")
        return ("zhao2021dc",)

    @property
    def draws_networks(self) -> bool:
        """As the slot says when."""
        return True

    def network_at(self, syn: SyntheticSet, step: int) -> int:
        """Which of the networks that it draws an outer step sees, counted from 0."""
        number, _ = self.networks.round(syn, step)
        return number

    @property
    def parts_by_device(self) -> bool:
        """Whether it is left to the device into how many losses a step falls."""
        return self.classes_at_once is None and self.classes == "each"

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """Bytes of the classes that are computed together, real and decoded.

        And of a gradient of each.
        """
        num_classes = len(syn.class_names)
        each = images_per_class(syn, self.syn_batch)
        device = "cuda" if self.classes == "sum" else None
        at_once = self.classes_at_once or pays(env, each, device)
        at_once = min(at_once, num_classes)
        real_at_once = min(pays(env, self.real_batch), num_classes)
        seen = [real_at_once * self.real_batch, self.networks.images_at_once(syn)]
        if env.model.normed is not None:
            seen.append(num_classes * NORM_BATCH)
        # real gradients of a block of classes, and the decoded ones with what their distance holds
        vectors = VECTORS + max(at_once, real_at_once) + 4 * at_once
        return network_bytes(env, images=at_once * each, vectors=vectors, seen=max(seen))

    def advice(self, ipc: int) -> str:
        """Look at fewer real images."""
        return f"lower objective.real_batch (now {self.real_batch})"

    def small(self) -> Self:
        """With 8 real images a class."""
        return replace(self, real_batch=8, networks=self.networks.small())

    def build(self, env: Env) -> "GradientObjective":
        """The objective. Raises UserError when the network has nothing to compare."""
        say_small_classes(env.real, self.real_batch)
        fewest = FEWEST_DIMS[self.tensors]
        if not any(len(shape) >= fewest for shape in env.model.shapes):
            raise UserError(
                f"objective.tensors {self.tensors} compares parameters of "
                f"{fewest} dimensions or more, and the model has none; "
                "set objective.tensors weights."
            )
        return GradientObjective(self, env)

    def share(self, objective: Objective, moves: bool) -> bool:
        """Classes are shared, or where images move after each loss the real gradients alone."""
        assert isinstance(objective, GradientObjective)
        objective.shared = "real" if moves else "all"
        return True


class GradientObjective(Objective):
    """See the module."""

    def __init__(self, config: GradientMatching, env: Env):
        self.config = config
        self.env = env
        self.shared: Literal["nothing", "real", "all"] = "nothing"  # over the ranks
        self.train = training_gradient(env)

        names = statistics_of(env)

        def loss(theta: Tensor, images: Tensor, targets: Tensor, *statistics: Tensor) -> Tensor:
            named = dict(zip(names, statistics, strict=True)) if names else None
            return task_loss(env.model(theta, images, named), targets)

        self.computed = computation(env.compile)
        self.one = torch.func.grad(loss) if env.compile else eager_gradient(loss)
        apart = (None, 0, 0, *(None for _ in names))
        self.several = torch.vmap(torch.func.grad(loss), in_dims=apart)

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """What the networks keep."""
        return self.config.networks.state(self.env)

    # Functions of tensors alone, which are computed eagerly or as graphs.

    def gradients(
        self, theta: Tensor, images: Tensor, targets: Tensor, *statistics: Tensor
    ) -> Tensor:
        """The gradient of each group (G, P), differentiable in the images.

        Of images (G, B, C, H, W) and targets (G, B) or (G, B, K), with the statistics of BatchNorm
        layers.
        """
        # batch_norm under vmap wants one type of number, which bfloat16 autocast does not give it
        one_by_one = statistics and self.env.model.precision == "bf16"
        if len(images) > 1 and not one_by_one:
            return self.several(theta, images, targets, *statistics)
        gradients = []
        for group, of_group in zip(images, targets, strict=True):
            gradients.append(self.one(theta, group, of_group, *statistics))
        return torch.stack(gradients)

    def _apart(self, real: Tensor, *given: Tensor) -> Tensor:
        """The distances of these from gradients (G, P), summed."""
        return self._distance(real, self.gradients(*given)).sum()

    def _share(self, some: Share, *given: Tensor) -> Tensor:
        """What images (B, C, H, W) of some classes add to the mean gradient (P,) over all."""
        classes, of = some
        return self.one(*given) * classes / of

    def _share_apart(self, some: Share, real: Tensor, *given: Tensor) -> Tensor:
        """The distance of that from a gradient (1, P)."""
        return self._distance(real, self._share(some, *given).unsqueeze(0)).sum()

    def _share_along(self, some: Share, slope: Tensor, *given: Tensor) -> Tensor:
        """That along a direction (P,)."""
        return (slope * self._share(some, *given)).sum()

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss for each part of the classes that is computed together.

        Their sum is the step's.
        """
        config = self.config
        env = self.env
        at = OuterStep(env, self.train, syn, state, step, config.augment, rng)
        theta = config.networks.next(at)
        if self.shared != "nothing":  # ranks need not agree to the last bit
            dist.from_first([theta, *state.values()])
        statistics = batch_statistics(env, theta, rng)
        real = env.real.draw_each(config.real_batch, rng)
        members = class_members(syn, config.syn_batch, rng)
        draw = augment.sample(config.augment, 1, rng, groups=len(members), shared=True)
        seen = Seen(syn, theta, statistics, real, members, draw.to(env.device))
        network, steps = config.networks.round(syn, step)
        warming_up = network < config.warmup_networks and steps < config.warmup_steps
        if config.classes == "sum" and not warming_up:
            yield from self._summed(seen)
        else:
            yield from self._class_by_class(seen)

    def _class_by_class(self, seen: "Seen") -> Iterator[Tensor]:
        """A distance for each class, those of some classes in one loss."""
        at_once = self.config.classes_at_once or pays(self.env, seen.syn_batch)
        # real gradients do not depend on the images, so they are computed for several losses
        # together where that pays, and by ranks that share them alone for one each at least
        losses_at_once = max(1, pays(self.env, seen.real_batch) // at_once)
        if self.shared == "real":
            losses_at_once *= dist.num_ranks()
        for block in parts(self._mine(seen), at_once * losses_at_once):
            of_block = self._real_together(seen, block)
            for classes in parts(block, at_once):
                first = classes.start - block.start
                wanted = of_block[first : first + size(classes)]
                groups = grouped(size(classes), *self._decoded(seen, classes))
                given = (wanted, seen.theta, *groups, *seen.statistics)
                yield self.computed.loss("distances", self._apart, *given)

    def _mine(self, seen: "Seen") -> slice:
        """The classes whose losses this rank yields."""
        return share_of(seen.everything) if self.shared == "all" else seen.everything

    def _real_together(self, seen: "Seen", block: slice) -> Tensor:
        """The real gradients (G, P) of some classes, of which ranks may compute a part each."""
        if self.shared != "real":
            return torch.cat(list(self._real(seen, block)))
        gradients = seen.theta.new_zeros(size(block), len(seen.theta))
        first = share_of(block).start - block.start
        for part in self._real(seen, share_of(block)):
            gradients[first : first + len(part)] = part
            first += len(part)
        dist.total([gradients])
        return gradients

    def _distance(self, real: Tensor, syn: Tensor) -> Tensor:
        """The distances (G,) of the configuration between gradients (G, P)."""
        config = self.config
        return distance(real, syn, self.env.model.shapes, config.metric, config.tensors)

    def _decoded(self, seen: "Seen", classes: slice) -> tuple[Tensor, Tensor]:
        """Decoded images of some classes, augmented, and their targets."""
        index = seen.members[classes].flatten()
        images, targets = seen.syn.batch(index)
        return self._augmented(images, seen, classes), targets

    def _augmented(self, images: Tensor, seen: "Seen", classes: slice) -> Tensor:
        """Images of some classes, augmented as these are in this step."""
        draw = seen.draw.part(classes)
        return augment.apply(self.config.augment, images, draw)

    @torch.no_grad()
    def _real(self, seen: "Seen", classes: slice) -> Iterator[Tensor]:
        """The real gradients (G, P) of some classes, in parts."""
        for part in parts(classes, pays(self.env, seen.real_batch)):
            groups = grouped(size(part), *self._real_images(seen, part))
            given = (seen.theta, *groups, *seen.statistics)
            yield self.computed("gradients", self.gradients, *given)

    def _real_images(self, seen: "Seen", classes: slice) -> tuple[Tensor, Tensor]:
        """Real images of some classes, augmented, and their targets."""
        index = seen.real[classes].flatten()
        images, targets = self.env.real.batch(index)
        return self._augmented(images, seen, classes), targets

    @torch.no_grad()
    def _real_mean(self, seen: "Seen") -> Tensor:
        """The mean over all classes of the real gradients (P,)."""
        shares = [torch.zeros_like(seen.theta)]
        shared = self.shared != "nothing"
        classes = share_of(seen.everything) if shared else seen.everything
        for part in parts(classes, pays(self.env, seen.real_batch)):
            given = (seen.theta, *self._real_images(seen, part), *seen.statistics)
            some = (size(part), len(seen.real))
            shares.append(self.computed(("share", some), partial(self._share, some), *given))
        mean = torch.stack(shares).sum(0)
        if shared:
            dist.total([mean])
        return mean

    def _decoded_share(self, seen: "Seen", classes: slice) -> tuple[Share, tuple[Tensor, ...]]:
        """Which share of the classes some are, and what that of their decoded images is made of."""
        given = (seen.theta, *self._decoded(seen, classes), *seen.statistics)
        return (size(classes), len(seen.members)), given

    def _summed(self, seen: "Seen") -> Iterator[Tensor]:
        """The distance between the means over all classes; one graph alive for each block of them.

        With several blocks: the mean g without a graph first, v = d distance / d g, and then <v,
        the block's share of g>, whose gradients in the images add up to those of the distance;
        constants make the losses add up to the distance itself.
        """
        real = self._real_mean(seen).unsqueeze(0)
        # several blocks cost a pass more, so their number follows from memory alone
        in_block = self.config.classes_at_once or pays(self.env, seen.syn_batch, "cuda")
        blocks = list(parts(self._mine(seen), in_block))
        shared = self.shared == "all"
        if len(blocks) == 1 and not shared:
            some, given = self._decoded_share(seen, blocks[0])
            apart = partial(self._share_apart, some)
            yield self.computed.loss(("distance", some), apart, real, *given)
            return
        with torch.no_grad():
            shares = []
            for block in blocks:
                some, given = self._decoded_share(seen, block)
                shares.append(self.computed(("share", some), partial(self._share, some), *given))
            mean = torch.stack([torch.zeros_like(seen.theta), *shares]).sum(0)
        if shared:
            dist.total([mean])
        mean.requires_grad_()
        value = self._distance(real, mean.unsqueeze(0)).sum()
        (slope,) = torch.autograd.grad(value, mean)
        linear = (slope * mean.detach()).sum()
        constant = (value.detach() - linear) / max(1, len(blocks))
        if shared and dist.rank() != 0:  # the first rank says it, whose blocks there always are
            constant = torch.zeros_like(constant)
        for block in blocks:
            some, given = self._decoded_share(seen, block)
            along = partial(self._share_along, some)
            yield self.computed.loss(("along", some), along, slope, *given) + constant


@dataclass(frozen=True)
class Seen:
    """What one step compares: K classes of real and of decoded images in one network."""

    syn: SyntheticSet
    theta: Tensor  # (P,) of the network
    statistics: tuple[Tensor, ...]  # of its BatchNorm layers
    real: Tensor  # (K, B) indices of real images
    members: Tensor  # (K, n) indices of decoded ones
    draw: augment.AugmentDraw  # one a class, for both

    @property
    def everything(self) -> slice:
        """All classes."""
        return slice(0, len(self.members))

    @property
    def real_batch(self) -> int:
        """Real images of a class."""
        return self.real.shape[1]

    @property
    def syn_batch(self) -> int:
        """Decoded images of a class."""
        return self.members.shape[1]


def size(classes: slice) -> int:
    """How many classes these are."""
    return classes.stop - classes.start


def grouped(num: int, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Images and targets as (num groups, B, ...)."""
    apart = (num, -1)
    return images.unflatten(0, apart), targets.unflatten(0, apart)


def statistics_of(env: Env) -> tuple[str, ...]:
    """The names of what BatchNorm layers see in a batch; none of a network without."""
    if env.model.normed is None:
        return ()
    return tuple(name for name, _ in env.model.normed.named_buffers())


def batch_statistics(env: Env, theta: Tensor, rng: Generator) -> tuple[Tensor, ...]:
    """What BatchNorm layers see in real images of all classes, by `statistics_of`.

    Of networks without nothing is drawn.
    """
    names = statistics_of(env)
    if not names:
        return ()
    index = env.real.draw_each(NORM_BATCH, rng)
    seen = env.model.statistics(theta, env.real.images(index.flatten()))
    assert seen is not None
    return tuple(seen[name] for name in names)
