"""Windows of a training: our policies against each other, against `higher`, against differences."""

import pytest
import torch
from test_unroll import F64, network, problem, relative
from torch.nn import functional

from ddengine.learning.by_higher import ByHigher, TorchOptimiser, check
from ddengine.learning.flat import FlatModel
from ddengine.learning.inner import inner_gradient, with_weight_decay
from ddengine.learning.through import ByUnroll
from ddengine.learning.torch_steps import DIFFERENTIABLE
from ddengine.learning.updates import Adam, HeavyBall, Sgd, Update
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

WARM, WINDOW = 3, 4
UPDATES = {"sgd": Sgd(), "heavy ball": HeavyBall(momentum=0.9), "adam": Adam(eps_as="higher")}
DECAY = 0.1
NAME = "convnet-d1-w4-nn"  # whose biases have gradients that are not rounding


def students(update):
    """Everything that trains by an update: by name."""
    loss, _, _, _ = problem(1, NAME)
    ours = inner_gradient(with_weight_decay(loss, DECAY))
    model = FlatModel(network(NAME))
    return {
        "full": ByUnroll(ours, update, "full"),
        "replay": ByUnroll(ours, update, "replay"),
        "higher": ByHigher(model, functional.cross_entropy, update, DECAY),
    }


def rates():
    """A step size for each step."""
    return torch.linspace(0.03, 0.06, WARM + WINDOW, dtype=F64)


def reached(student, warm=WARM, start=None):
    """Where training ends, and the gradients of a function of that in inputs and step sizes.

    These start as given, or as one of each step.
    """
    _, batch, theta, inputs = problem(WARM + WINDOW, NAME)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    steps = (rates() if start is None else start).requires_grad_()
    end = student.through(batch, theta, leaves, warm, WINDOW, steps)
    weights = torch.linspace(-1, 1, len(end), dtype=F64)
    value = (end * weights).sum() + end.square().sum()
    return end.detach() - theta, torch.autograd.grad(value, [*leaves.values(), steps])


def agrees(function, leaves):
    """Whether gradients are those of finite differences; `higher` takes no undefined ones."""
    return torch.autograd.gradcheck(
        function,
        leaves,
        eps=1e-6,
        atol=1e-6,
        rtol=1e-4,
        fast_mode=True,
        check_undefined_grad=False,
    )


@pytest.mark.parametrize("warm", [0, WARM])
@pytest.mark.parametrize("name", UPDATES)
def test_all_three_give_one_gradient(name, warm):
    """In images, labels and the rate of each step, from the start and after warm steps."""
    made = {how: reached(student, warm) for how, student in students(UPDATES[name]).items()}
    moved, exact = made.pop("full")
    assert moved.norm() > 0.05
    for how, (other, gradients) in made.items():
        assert relative(other, moved) < 1e-9, how
        for ours, theirs in zip(gradients, exact, strict=True):
            assert relative(ours, theirs) < 1e-9, how
    rate_gradients = exact[-1]
    assert torch.equal(rate_gradients[:warm], torch.zeros(warm, dtype=F64))
    assert (rate_gradients[warm : warm + WINDOW] != 0).all()


@pytest.mark.parametrize("name", UPDATES)
def test_one_step_size_of_all_steps(name):
    """Its gradient, too, with what the warm steps left in the velocity."""
    made = []
    for student in students(UPDATES[name]).values():
        moved, gradients = reached(student, start=torch.tensor(0.05, dtype=F64))
        made.append((moved, *gradients))
    exact, *others = made
    assert exact[-1].shape == ()
    for other in others:
        for ours, theirs in zip(other, exact, strict=True):
            assert relative(ours, theirs) < 1e-9


@pytest.mark.parametrize("how", ["full", "replay", "higher"])
@pytest.mark.parametrize("name", UPDATES)
def test_windows_equal_finite_differences(name, how):
    """Of the window alone: what the warm steps reached does not move with what is differentiated."""
    _, batch, theta, inputs = problem(WARM + WINDOW, NAME)
    fixed = {key: tensor.clone() for key, tensor in inputs.items()}
    student = students(UPDATES[name])[how]

    def function(images, logits, steps):
        leaves = {"images": images, "logits": logits}

        def of_window(tensors, k):
            return batch(fixed if k < WARM else tensors, k)

        all_steps = torch.cat([rates()[:WARM], steps])
        return student.through(of_window, theta, leaves, WARM, WINDOW, all_steps).square().sum()

    leaves = [inputs["images"], inputs["logits"], rates()[WARM:]]
    leaves = [tensor.clone().requires_grad_() for tensor in leaves]
    assert agrees(function, leaves)


def test_the_two_places_of_eps_are_nearer_after_warm_steps():
    """A large eps, so that it can be told; from the start the first update is almost a sign."""
    far = {}
    for warm in (0, WARM):
        ends = []
        for eps_as in ("torch", "higher"):
            student = students(Adam(eps_as=eps_as, eps=1e-5))["replay"]
            ends.append(reached(student, warm)[1][0])
        far[warm] = relative(*ends)
    assert 1e-3 < 3 * far[WARM] < far[0]


def test_warm_steps_are_those_of_torch():
    """The gradients that are watched are the same ones, weight decay among them."""
    _, batch, theta, inputs = problem(WARM, NAME)
    norms = {}
    for how, student in students(Adam(eps=0.1)).items():
        seen = []
        student.watched(batch, theta, inputs, WARM, rates(), seen.append)
        norms[how] = torch.stack(seen)
    assert norms["full"].shape == (WARM, len(theta))
    assert relative(norms["higher"], norms["full"]) < 1e-9
    assert not torch.allclose(norms["higher"][1], norms["higher"][0])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_other_optimisers_of_torch(name):
    """A window of each, against the difference along a direction."""
    model = FlatModel(network(NAME))
    student = ByHigher(model, functional.cross_entropy, TorchOptimiser(name=name), 0.0)
    _, batch, theta, inputs = problem(3, NAME)

    def function(images):
        leaves = {**inputs, "images": images}
        return student.through(batch, theta, leaves, 0, 3, rates()).square().sum()

    images = inputs["images"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(images), images)
    direction = torch.randn(images.shape, generator=generator(0), dtype=F64)
    step = 1e-5 * direction
    difference = (function(images + step) - function(images - step)) / 2e-5
    assert float((slope * direction).sum().detach()) == pytest.approx(float(difference), rel=1e-4)


def test_what_higher_does_not_know_is_refused():
    """In a sentence that names what to do."""
    for update in UPDATES.values():
        check(update)
    with pytest.raises(UserError, match=r"AdamW.*unroll"):
        check(TorchOptimiser(name="AdamW"))
    with pytest.raises(UserError, match="RMSprop"):
        TorchOptimiser(name="RMSprop")

    class Mine(Update):
        """An update that torch does not have."""

    with pytest.raises(UserError, match=r"Mine.*unroll"):
        check(Mine())
