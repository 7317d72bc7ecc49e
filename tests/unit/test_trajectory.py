"""The slots of the trajectory objective, each through the objective itself, and the order of the
student's batches.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from helpers import tiny_data, tiny_env, tiny_set, tiny_store

from ddengine.learning import unroll as unrolling
from ddengine.learning.updates import Adam, HeavyBall
from ddengine.recipe import AugmentConfig
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.pad import DeepLayers, LargestErrors
from synth.trajectory import (
    TrajectoryMatching,
    UniformWindow,
    matching_loss,
    nearest,
    student_batches,
)

BASE = TrajectoryMatching(
    inner_steps=4,
    expert_epochs=2,
    window=UniformWindow(high=2),
    batch=7,
    lr=0.05,
    augment=AugmentConfig(ops=()),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    data = tiny_data()
    return data, tiny_store(tmp_path_factory.mktemp("store"), data)


def loss(world, config, seed=0, step=0, lr=None):
    """The one loss of a step."""
    data, store = world
    syn = tiny_set(data, lr=lr or config.lr)
    (value,) = config.build(tiny_env(data, store)).losses(syn, {}, step, generator(seed, "step"))
    return float(value.detach())


@dataclass(frozen=True)
class Scale:
    factor: float

    def __call__(self, start, end):
        return self.factor


@dataclass(frozen=True)
class At:
    milestones: tuple

    def __call__(self, num_steps, length):
        return self.milestones


@dataclass(frozen=True)
class Move:
    amount: float

    def __call__(self, theta, shapes, rng):
        return theta + self.amount * torch.randn(theta.shape, generator=rng)


def test_loss_is_the_normalised_distance(world):
    """Written out for one expert and start: |theta_N - target|^2 / |start - target|^2."""
    data, store = world
    config = replace(BASE, window=UniformWindow(high=1), batch=None)
    env = tiny_env(data, store)
    syn = tiny_set(data, lr=config.lr)
    rng = generator(0, "step")
    expert = int(torch.randint(store.num_experts, (1,), generator=rng))
    start, target = store.snapshots(expert, [0, 2])
    theta = start.clone()
    images, labels = syn.batch(torch.arange(len(syn)))
    for _ in range(4):
        leaf = theta.clone().requires_grad_()
        theta = (
            theta
            - 0.05
            * torch.autograd.grad(
                torch.nn.functional.cross_entropy(env.model(leaf, images), labels), leaf
            )[0]
        )
    expected = float((theta - target).square().sum() / (start - target).square().sum())
    assert loss(world, config) == pytest.approx(expected, rel=1e-4)


def test_scaling_the_inner_loss_is_scaling_the_step(world):
    """A factor of 2 on the loss moves plain SGD as twice the rate does."""
    assert loss(world, replace(BASE, loss_scale=Scale(2.0))) == pytest.approx(
        loss(world, BASE, lr=0.1), rel=1e-4
    )
    assert loss(world, replace(BASE, loss_scale=Scale(2.0))) != pytest.approx(
        loss(world, BASE), rel=1e-4
    )


def test_milestones_add_weighted_distances(world):
    """Weight 0 adds nothing, weights add linearly, and a milestone is the loss of a shorter
    segment.
    """
    plain, none, one, two = (
        loss(world, replace(BASE, milestones=At(((2, 1, w),)) if w is not None else None))
        for w in (None, 0.0, 1.0, 2.0)
    )
    assert none == pytest.approx(plain, rel=1e-6) and two - plain == pytest.approx(
        2 * (one - plain), rel=1e-4
    )
    short = replace(BASE, inner_steps=2, expert_epochs=1, batch=None)
    long = replace(BASE, batch=None, milestones=At(((2, 1, 1.0),)))
    assert loss(world, long) - loss(world, replace(BASE, batch=None)) == pytest.approx(
        loss(world, short), rel=1e-3
    )


def test_perturbation_moves_the_start_and_the_reference(world):
    """It draws from the step's stream; a large one makes start and target far apart, so the loss
    goes to 1.
    """
    # batches come after its draws
    assert loss(world, replace(BASE, perturb=Move(0.0))) != pytest.approx(loss(world, BASE))
    assert loss(world, replace(BASE, perturb=Move(100.0))) == pytest.approx(1.0, abs=0.05)


def test_starts_stay_in_the_window(world):
    """All of it, and nothing else."""
    data, store = world
    seen, original = set(), store.snapshots
    watched = type(
        "Watched", (), {"num_experts": 2, "num_params": store.num_params, "epochs": store.epochs}
    )()
    watched.snapshots = lambda expert, epochs: (
        seen.add((expert, *epochs)) or original(expert, epochs)
    )
    objective = replace(BASE, expert_epochs=1, window=UniformWindow(low=1, high=3)).build(
        tiny_env(data, watched)
    )
    syn = tiny_set(data, lr=0.05)
    for step in range(40):
        list(objective.losses(syn, {}, step, generator(step)))
    assert seen == {(expert, start, start + 1) for expert in (0, 1) for start in (1, 2)}


@pytest.mark.parametrize("steps", [((4, 1, 1.0),), ((0, 1, 1.0),), ((3, 1, 1.0), (2, 1, 1.0))])
def test_impossible_milestones_are_refused(world, steps):
    data, store = world
    with pytest.raises(UserError, match=r"objective\.milestones"):
        replace(BASE, milestones=At(steps)).build(tiny_env(data, store))


@pytest.mark.parametrize("backprop", ["replay", "full"])
def test_a_student_can_step_by_adam(world, backprop):
    """It reaches what torch's own Adam reaches from the same start on the same examples."""
    data, store = world
    config = replace(
        BASE, window=UniformWindow(high=1), batch=None, student=Adam(), backprop=backprop
    )
    env = tiny_env(data, store)
    syn = tiny_set(data, lr=config.lr)
    expert = int(torch.randint(store.num_experts, (1,), generator=generator(0, "step")))
    start, target = store.snapshots(expert, [0, 2])
    theta = start.clone().requires_grad_()
    images, labels = syn.batch(torch.arange(len(syn)))
    # the rate learned is the student's, and not that of the configuration
    optimiser = torch.optim.Adam([theta], lr=0.01)
    for _ in range(config.inner_steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(env.model(theta, images), labels).backward()
        optimiser.step()
    theta = theta.detach()
    expected = float((theta - target).square().sum() / (start - target).square().sum())
    assert loss(world, config, lr=0.01) == pytest.approx(expected, rel=2e-3)
    assert loss(world, replace(config, student=None), lr=0.01) != pytest.approx(expected, rel=0.1)


def test_the_student_of_a_configuration(world):
    """It came late, so a stored recipe without one still equals; momentum is of SGD alone."""
    data, store = world
    assert "student" not in to_dict(BASE)
    assert to_dict(replace(BASE, student=Adam()))["student"]["type"] == "Adam"
    with pytest.raises(UserError, match=r"objective\.momentum 0\.5 is of SGD.*Adam"):
        replace(BASE, student=Adam(), momentum=0.5)
    env, syn = tiny_env(data, store), tiny_set(data, lr=0.05)
    assert replace(BASE, student=Adam()).cost(env, syn) > BASE.cost(env, syn)


def test_slots_are_part_of_the_configuration(world):
    """A filled slot says its kind and its values, so it decides the run's identity."""
    assert to_dict(replace(BASE, loss_scale=Scale(2.0)))["loss_scale"] == {
        "type": "Scale",
        "factor": 2.0,
    }
    assert to_dict(BASE)["loss_scale"] is None


def test_momentum_reaches_the_student(world, monkeypatch):
    """The heavy-ball coefficient of the configuration is what unroll is given."""
    given = {}
    original = unrolling.unroll
    monkeypatch.setattr(
        "synth.trajectory.unroll",
        lambda *args, **kwargs: given.update(kwargs) or original(*args, **kwargs),
    )
    loss(world, replace(BASE, momentum=0.7, backprop="full"))
    assert given["update"] == HeavyBall(momentum=0.7) and given["backprop"] == "full"


@pytest.mark.parametrize(("num", "batch"), [(20, 7), (20, 20), (5, 2), (3, 10)])
def test_student_batches(num, batch):
    """Every example once per round; a ragged chunk comes first; rounds differ."""
    per_round = -(-num // batch)
    batches = student_batches(num, batch, 3 * per_round, generator(0))
    rounds = [
        torch.cat(batches[i : i + per_round]).tolist() for i in range(0, len(batches), per_round)
    ]
    assert all(sorted(r) == list(range(num)) for r in rounds)
    assert len(batches[0]) == (num % batch or min(batch, num))
    assert num < 4 or rounds[0] != rounds[1]


# Nearest steps and parameters left out


def gradients(world, config):
    """The loss of a step, and its gradients in images and rate."""
    data, store = world
    syn = tiny_set(data, lr=config.lr)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in syn.tensors.items()}
    objective = config.build(tiny_env(data, store))
    (value,) = objective.losses(syn.with_tensors(leaves), {}, 0, generator(0, "step"))
    value.backward()
    return float(value.detach()), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("backprop", ["auto", "full", "replay"])
@pytest.mark.parametrize(("lr", "fewest", "most"), [(3.0, 1, 2), (1e-5, 6, 6)])
def test_the_nearest_step_is_that_of_a_student_that_ends_there(world, backprop, lr, fewest, most):
    """A student that leaves its way early is compared there, one that only begins after its last."""
    config = replace(BASE, batch=None, inner_steps=6, lr=lr, backprop=backprop)
    (start, target), by_steps = world[1].snapshots(0, [0, 2]), []
    for steps in range(1, 7):
        by_steps.append(gradients(world, replace(config, inner_steps=steps)))
    value, slopes = gradients(world, replace(config, match="nearest"))
    equal = [n for n, (one, _) in enumerate(by_steps, 1) if one == pytest.approx(value, rel=1e-5)]
    assert start.shape == target.shape and equal and fewest <= equal[-1] <= most
    for name, slope in slopes.items():
        wanted = by_steps[equal[-1] - 1][1][name]
        assert (slope - wanted).norm() <= 1e-3 * wanted.norm(), name


def test_of_equally_near_steps_the_last_counts():
    reached = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0], [4.0, 0.0]])
    assert nearest(reached, torch.zeros(2)) == 4
    assert nearest(reached[:3], torch.zeros(2)) == 2
    assert nearest(reached + 20000, torch.zeros(2)) == 4


def test_the_nearest_step_goes_with_no_milestones():
    with pytest.raises(UserError, match=r"objective\.match nearest compares after one step"):
        replace(BASE, match="nearest", milestones=At(((1, 1, 1.0),)))
    assert "liu2024att" in replace(BASE, match="nearest").cites
    assert "match" not in to_dict(BASE)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.75])
def test_parameters_that_are_left_out_are_in_neither_sum(drop):
    """The paper's first ones, and the released program's nearest ones, of each comparison."""
    rng = generator(0)
    reached, targets = (torch.randn(2, 20, generator=rng).double() for _ in range(2))
    start = torch.randn(20, generator=rng).double()
    errors = (reached - targets).square()
    for coordinates in (DeepLayers(drop=drop), LargestErrors(drop=drop)):
        value = matching_loss(reached, targets, start, [1.0, 0.5], coordinates=coordinates)
        wanted = 0.0
        for row, weight in enumerate([1.0, 0.5]):
            order = list(range(20))
            if isinstance(coordinates, LargestErrors):
                order.sort(key=lambda i: float(errors[row, i]))
            kept = order[int(drop * 20) :]
            way = (start[kept] - targets[row, kept]).square().sum()
            wanted += weight * float(errors[row, kept].sum() / way)
        assert float(value) == pytest.approx(wanted)
        assert coordinates.cites == ("li2024pad",)
    with pytest.raises(UserError, match="the share that is left out"):
        DeepLayers(drop=1.0)


def test_parameters_that_are_left_out_change_the_objective(world):
    losses = {loss(world, BASE)}
    for coordinates in (DeepLayers(drop=0.5), LargestErrors(drop=0.5)):
        losses.add(loss(world, replace(BASE, coordinates=coordinates)))
    assert len(losses) == 3
    assert loss(world, replace(BASE, coordinates=DeepLayers(drop=0.0))) == pytest.approx(
        loss(world, BASE)
    )
