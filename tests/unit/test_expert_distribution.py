"""Distribution matching in networks of experts (TGDD, NCFM), and its distances."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matching import close, ours, tiny_world
from torch import nn

from buffers.mixed import MixedSgd
from buffers.steps import Sgd
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig, BufferConfig, EvalConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.distances import (
    SAMPLER,
    SAMPLER_MOMENTUM,
    Characteristic,
    Hyperbolic,
    LearnedCharacteristic,
    Means,
    Moments,
    first_sampler,
    sampled,
)
from synth.distribution import DistributionMatching
from synth.expert_networks import Blended, Snapshots
from synth.networks import Untrained

F64 = torch.float64
NONE = AugmentConfig(ops=())
DM = DistributionMatching(networks=Untrained(), augment=NONE, real_batch=9)


class Rows:
    """Experts whose parameters say expert and epoch."""

    def __init__(self, model, num_experts=3, last=5):
        self.num_experts, self.num_params = num_experts, model.num_params
        self.epochs = tuple(range(last + 1))
        self.drawn = []

    def snapshots(self, expert, epochs):
        """Random parameters, other ones for every expert and epoch."""
        self.drawn.append((expert, *epochs))
        rows = [
            torch.randn(self.num_params, generator=generator(0, expert, epoch), dtype=F64)
            for epoch in epochs
        ]
        return torch.stack(rows) / 10


def experts_world(last=5, **world):
    env, syn = tiny_world(**world)
    return replace(env, experts=Rows(env.model, last=last)), syn


@pytest.mark.parametrize("last", [1, 5])
def test_snapshots_are_drawn_within_their_window(last):
    """Every expert and every pair of epochs that TGDD allows, and no other."""
    experts = Rows(SimpleNamespace(num_params=3), last=last)
    rng = generator(0)
    for _ in range(900):
        Snapshots(interval=3).draw(experts, rng)
    pairs = {(j, k) for j in range(last + 1) for k in range(j, min(j + 2, last) + 1)}
    assert set(experts.drawn) == {(e, j, k) for e in range(3) for j, k in pairs}


def test_a_mixture_lies_between_the_ends_and_is_judged_by_the_last():
    experts = Rows(SimpleNamespace(num_params=3))
    first, last = experts.snapshots(0, [0, 5])
    shares = set()
    rng = generator(0)
    for _ in range(200):
        theta, judge = Blended().draw(experts, rng)
        if torch.equal(judge, last):
            share = (theta - last) / (first - last)
            assert 0 <= float(share[0]) <= 1 and torch.allclose(share, share[0].expand(3))
            shares.add(round(float(share[0]), 1))
    assert len(shares) == 11


@pytest.mark.parametrize("networks", [Snapshots(), Blended()])
def test_the_loss_is_that_of_the_extractor_and_of_the_judge(networks):
    """Class by class, with a module; the judge weighed."""
    config = replace(DM, networks=networks, judge=0.7, classes_at_once=1)
    env, syn = experts_world()
    losses, gradient = ours(config.build(env), syn)
    rng = generator(1, "losses")
    theta, judge = networks.draw(env.experts, rng)
    index = env.real.draw_each(9, rng)
    images = syn.tensors["images"].clone().requires_grad_()
    total = 0.0
    for label in range(10):
        mine = images[2 * label : 2 * label + 2]
        real = env.model.embed(theta, env.real.images(index[label])).mean(0)
        match = (real - env.model.embed(theta, mine).mean(0)).square().sum()
        loss = match - 0.7 * env.model(judge, mine).log_softmax(1)[:, label].mean()
        assert float(losses[label]) == pytest.approx(float(loss.detach()))
        total = total + loss
    close(gradient, torch.autograd.grad(total, images)[0], 1e-10)


def test_what_lacks_experts_or_epochs_is_a_sentence():
    env, _ = tiny_world()
    with pytest.raises(UserError, match="--take buffer=RECIPE"):
        replace(DM, networks=Snapshots()).build(env)
    other = replace(env, experts=Rows(SimpleNamespace(num_params=7)))
    with pytest.raises(UserError, match="have 7 parameters"):
        replace(DM, networks=Blended()).build(other)
    with pytest.raises(UserError, match=r"buffer\.keep all"):
        Snapshots().check([0, 4])
    with pytest.raises(UserError, match=r"buffer\.keep ends"):
        Blended().check([4])
    with pytest.raises(UserError, match="Untrained has none"):
        replace(DM, judge=1.0)
    with pytest.raises(UserError, match=r"objective\.networks\.interval must be at least 1"):
        Snapshots(interval=0)


# Distances


def features(*shape):
    return torch.randn(*shape, generator=generator(3, *shape), dtype=F64)


def test_moments_are_those_of_the_definition():
    real, syn = features(2, 9, 4), features(2, 5, 4)
    distance = Moments(order=3, weight=0.5)
    loss = distance.between(distance.summary(real, {}), distance.summary(syn, {}), {})
    wanted = 0.0
    for a, b in zip(real, syn, strict=True):
        wanted += (a.mean(0) - b.mean(0)).square().sum()
        for power in (2, 3):
            moments = [((x - x.mean(0)) ** power).mean(0) for x in (a, b)]
            wanted += 0.5 * (moments[0] - moments[1]).square().sum()
    assert float(loss) == pytest.approx(float(wanted))


def test_hyperbolic_distance_is_the_length_of_the_geodesic():
    """Of single points at one direction from the origin it is the difference of their lengths; of
    clouds arcosh of the Lorentz product of their centroids.
    """
    direction = torch.nn.functional.normalize(features(1, 1, 6), dim=2)
    distance = Hyperbolic(curvature=0.3, scale=2.0)
    ends = [distance.summary(length * direction, {}) for length in (0.5, 2.0)]
    assert float(distance.between(*ends, {})) == pytest.approx(2.0 * 1.5)
    real, syn = (distance.summary(features(2, n, 4), {}) for n in (7, 3))
    products = real[:, 0] * syn[:, 0] - (real[:, 1:] * syn[:, 1:]).sum(1)
    wanted = 2.0 * products.acosh().sum() / 0.3**0.5
    assert float(distance.between(real, syn, {})) == pytest.approx(float(wanted), rel=1e-6)
    assert torch.allclose(real[:, 0].square() - real[:, 1:].square().sum(1), torch.ones(2).double())


@pytest.mark.parametrize(
    ("curvature", "ends", "wanted"),
    [
        (0.001, (250.0, 275.0), 25.0),
        (1.0, (12.0, 13.2), 1.2),
        (1.0, (14.0, 17.0), 1.0),
        (1.0, (30.0, 33.0), 0.0),
    ],
)
def test_hyperbolic_distance_of_long_features_in_float32(curvature, ends, wanted):
    """Features of a real network are float32 and long; beyond the bound they count as at it."""
    distance = Hyperbolic(curvature=curvature)
    real, syn = (torch.eye(6)[None, :1] * end for end in ends)
    syn.requires_grad_()
    loss = distance.between(distance.summary(real, {}), distance.summary(syn, {}), {})
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    slope = torch.autograd.grad(loss, syn)[0]
    assert slope.dtype == torch.float32 and slope.isfinite().all()
    if ends[1] * curvature**0.5 < 15:
        assert float(slope[0, 0, 0]) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    "distance",
    [Means(), Moments(), Hyperbolic(), Characteristic(number=8)],
    ids=lambda d: str(d)[:6],
)
def test_equal_features_have_no_distance_and_a_finite_slope(distance):
    same = features(2, 5, 4)
    syn = same.clone().requires_grad_()
    draw = distance.draw({}, same, 4, generator(0))
    summaries = [distance.summary(side, draw) for side in (same, syn)]
    loss = distance.between(*summaries, draw)
    assert float(loss.detach()) < 1e-2
    assert torch.autograd.grad(loss, syn)[0].isfinite().all()


class Sampler(nn.Module):
    """The network of learned frequencies, of torch's own layers."""

    def __init__(self, width):
        super().__init__()
        layers = []
        for activation in (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2), nn.Tanh()):
            layers += [nn.Linear(width, width), nn.BatchNorm1d(width), activation]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise):
        return self.layers(noise)


@pytest.mark.parametrize("mixture", [True, False])
def test_learned_frequencies_take_the_step_of_torchs_sgd_up_the_loss(mixture):
    """Twice, so that the momentum counts."""
    width, distance = 5, LearnedCharacteristic(number=7, mixture=mixture, lr=0.1, momentum=0.5)
    network = Sampler(width).double()
    theta = torch.cat([p.detach().flatten() for p in network.parameters()])
    state = {SAMPLER: theta, SAMPLER_MOMENTUM: torch.zeros_like(theta)}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5)
    rng = generator(0)
    for _ in range(2):
        real, syn = (distance.summary(features(2, n, width), {}) for n in (6, 4))
        draw = distance.draw(state, real, width, rng)
        made = network(draw["noise"])
        assert torch.allclose(made, sampled(state[SAMPLER], draw["noise"]))
        frequencies = made * draw["normal"] if mixture else made
        assert torch.allclose(frequencies, draw["frequencies"])
        loss = distance.between(real, syn, {"frequencies": frequencies})
        optimiser.zero_grad()
        (-loss).backward()
        optimiser.step()
        distance.learn(state, real, syn, draw)
        wanted = torch.cat([p.detach().flatten() for p in network.parameters()])
        assert (wanted - theta).norm() > 0.01
        assert torch.allclose(state[SAMPLER], wanted, atol=1e-9)


def test_the_network_of_frequencies_starts_as_torchs_layers_do():
    theta = first_sampler(50, generator(0))
    network = Sampler(50)
    wanted = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert theta.shape == wanted.shape
    assert float(theta.std()) == pytest.approx(float(wanted.std()), rel=0.1)
    assert float(theta.mean()) == pytest.approx(float(wanted.mean()), abs=0.01)


def test_frequencies_are_trained_after_each_class_moved():
    """The state changes once for each loss, and follows the images as they are then."""
    config = replace(DM, distance=LearnedCharacteristic(number=8), classes_at_once=1)
    env, syn = tiny_world(torch.float32)
    objective = config.build(env)
    state = objective.init(generator(0))
    ends = []
    for moved in (0.0, 0.3):
        images = syn.tensors["images"].clone().requires_grad_()
        state, seen = objective.init(generator(0)), []
        for _ in objective.losses(syn.with_tensors({"images": images}), state, 0, generator(1)):
            seen.append(state[SAMPLER])
            images.data.add_(moved)
        ends.append(state[SAMPLER])
        assert len(seen) == 10 and len({float(theta.sum()) for theta in seen}) == 10
    assert not torch.equal(*ends)
    assert not replace(DM, distance=LearnedCharacteristic()).draws_networks and DM.draws_networks


# Experts


def test_rates_of_thirds_are_torchs_multi_step_schedule():
    network = nn.Linear(2, 2)
    for epochs in (6, 7, 60):
        step, other = Sgd(lr=0.4, thirds=0.2), torch.optim.SGD(network.parameters(), lr=0.4)
        steps = [-(-2 * epochs // 3), -(-5 * epochs // 6)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(other, steps, 0.2)
        for epoch in range(epochs):
            assert step.lr_in(epoch, epochs) == pytest.approx(other.param_groups[0]["lr"])
            other.step()
            scheduler.step()
    with pytest.raises(
        UserError, match=r"thirds 0\.2 lowers the rate, and so does buffer\.step\.decay"
    ):
        Sgd(thirds=0.2, decay=0.1)


def test_mixed_batches_go_on_to_the_bit():
    """After a step that restored what another one kept; with probability 1 every batch is mixed."""
    config = MixedSgd(sgd=Sgd(lr=0.1, momentum=0.9, thirds=0.2), cutmix=0.6)
    batches = [(features(6, 1, 8, 8).float() + i, torch.arange(6)) for i in range(6)]

    def begun():
        network = build_model("convnet-d1-w4-in", (1, 8, 8), 6, generator(0))
        torch.manual_seed(5)
        return network, config.build(network, 3)

    whole, step = begun()
    losses = [float(step(*batch, batch[0], 0)) for batch in batches]
    half, first = begun()
    for batch in batches[:3]:
        first(*batch, batch[0], 0)
    again, second = begun()
    again.load_state_dict(half.state_dict())
    second.kept.restore({name: t.clone() for name, t in first.kept.state().items()})
    assert [float(second(*batch, batch[0], 0)) for batch in batches[3:]] == losses[3:]
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    plain, _ = begun()
    unmixed = config.sgd.build(plain, 3)
    assert [float(unmixed(*batch, batch[0], 0)) for batch in batches] != losses


def test_a_store_may_keep_the_ends_alone():
    assert BufferConfig(step=Sgd(), epochs=7, keep="ends").kept_epochs() == [0, 7]
    recipe = find("ncfm/cifar10_ipc10")
    assert recipe.buffer.kept_epochs() == [0, 60]
    recipe.objective.check(recipe.buffer.kept_epochs())


# Evaluation


def test_rates_drop_at_fractions_of_the_epochs():
    config = EvalConfig(protocol="x", schedule="steps", drop_at=(0.2, 0.5), epochs=10, lr_drop=0.5)
    points = [(p.epoch, p.lr, p.fresh) for p in training.schedule(config, 1.0)]
    assert points == [(0, 1.0, True), (2, 0.5, False), (5, 0.25, False)]
    assert training.num_updates(100, config) == 10
    with pytest.raises(UserError, match="set both, or none"):
        EvalConfig(protocol="x", schedule="steps")
    with pytest.raises(UserError, match="set both, or none"):
        EvalConfig(protocol="x", drop_at=(0.5,))
    with pytest.raises(UserError, match="ascending fractions"):
        EvalConfig(protocol="x", schedule="steps", drop_at=(0.5, 0.2))
