"""Back-propagation through training against the published implementations."""

import pytest
import torch
from golden_files import convnet, load, names, shapes_of
from torch.nn import functional

from ddengine.learning.by_higher import ByHigher
from ddengine.learning.flat import FlatModel
from ddengine.learning.inner import inner_gradient, with_weight_decay
from ddengine.learning.optim import clipped
from ddengine.learning.through import ByUnroll
from ddengine.learning.unroll import unroll
from ddengine.learning.updates import Adam, HeavyBall
from ddengine.recipe import OptimConfig
from ddengine.sets.codec import LinearBases
from synth.stages import early, late, position

F64 = torch.float64
TOLERANCE = 1e-10
STUDENTS = ("full", "replay", "higher")


def assert_close(ours, stored, tolerance=TOLERANCE):
    """Largest difference over the largest stored value."""
    assert ours.shape == stored.shape
    error = (ours - stored).abs().max() / stored.abs().max()
    assert error <= tolerance, f"error {error:.3g}, tolerance {tolerance:g}"


def network(name, x):
    """The network of a file, as a function of flat parameters."""
    return FlatModel(convnet(shapes_of(name), x.shape[1:]).to(F64))


def trained_by(how, model, update, weight_decay):
    """A student of the file's network."""
    if how == "higher":
        return ByHigher(model, functional.cross_entropy, update, weight_decay)

    def loss(theta, images, targets):
        return functional.cross_entropy(model(theta, images), targets)

    return ByUnroll(inner_gradient(with_weight_decay(loss, weight_decay)), update, how)


def rat(golden, case, how, eps_as):
    """(loss, logits, gradients by input) of a run."""
    model = network("rat_bptt", golden["x"])
    update, weight_decay = Adam(eps_as=eps_as), 0.0
    if f"{case}_momentum" in golden:
        update = HeavyBall(momentum=float(golden[f"{case}_momentum"]))
        weight_decay = float(golden[f"{case}_weight_decay"])
    inputs = {"x": golden["x"].clone().requires_grad_()}
    if f"{case}_grad_labels" in golden:
        inputs["rows"] = golden["label_weights"].clone().requires_grad_()

    def batch(tensors, k):
        index = golden[f"{case}_indices"][k]
        targets = tensors["rows"] if "rows" in tensors else golden["labels"]
        return tensors["x"][index], targets[index]

    warm, window = int(golden[f"{case}_warm_steps"]), int(golden[f"{case}_window"])
    rates = golden["lr"].expand(warm + window)
    student = trained_by(how, model, update, weight_decay)
    reached = student.through(batch, golden["params"], inputs, warm, window, rates)
    logits = model(reached, golden["x_real"])
    loss = functional.cross_entropy(logits, golden["labels_real"])
    grads = torch.autograd.grad(loss, list(inputs.values()))
    return loss.detach(), logits.detach(), dict(zip(inputs, grads, strict=True))


@pytest.mark.parametrize("how", STUDENTS)
@pytest.mark.parametrize("case", names("rat_bptt", "_warm_steps"))
def test_rat_bptt(case, how):
    """Warm steps, and a window through which gradients flow, with the eps that was published."""
    golden = load("rat_bptt", F64)
    loss, logits, grads = rat(golden, case, how, "higher")
    assert_close(loss, golden[f"{case}_loss"])
    assert_close(logits, golden[f"{case}_logits_real"])
    assert_close(grads["x"], golden[f"{case}_grad_x"])
    if "rows" in grads:
        assert_close(grads["rows"], golden[f"{case}_grad_labels"])


@pytest.mark.parametrize("how", ["full", "replay"])
@pytest.mark.parametrize("case", names("rat_bptt", "_torch_eps_loss"))
def test_rat_bptt_with_the_eps_of_torch(case, how):
    """The same runs where eps stands beside the corrected root in the window too."""
    golden = load("rat_bptt", F64)
    loss, _, grads = rat(golden, case, how, "torch")
    assert_close(loss, golden[f"{case}_torch_eps_loss"])
    assert_close(grads["x"], golden[f"{case}_torch_eps_grad_x"])


def test_clipping_by_the_running_average():
    """The average counts the present norm, and gradients are at most twice as long."""
    golden = load("rat_bptt", F64)
    decay = float(golden["ema_coefficient"])
    config = OptimConfig(lr=1.0, clip_average=2.0, clip_decay=decay)
    direction = torch.tensor([0.6, 0.8], dtype=F64)
    kept = {}
    rows = zip(golden["ema_norms"], golden["ema_shadow"], golden["ema_clip_factor"], strict=True)
    for norm, shadow, factor in rows:
        ours, kept = clipped(norm * direction, kept, config)
        assert_close(kept["norm"], shadow)
        assert_close(ours, factor * norm * direction)


def plans(golden, name):
    """(row, number, stage, start, size) of every plan of a configuration, as stored."""
    starts = golden[f"{name}_start"]
    for row, stage, number in torch.cartesian_prod(*map(torch.arange, starts.shape)).tolist():
        at = (row, stage, number)
        yield row, number, stage, int(starts[at]), int(golden[f"{name}_window_size"][at])


@pytest.mark.parametrize("name", names("at_bptt", "_steps"))
def test_at_bptt(name):
    """Windows of the three stages; where the program's start is below 0 it makes no warm step."""
    golden = load("at_bptt", F64)
    size, spread = int(golden[f"{name}_window"]), int(golden[f"{name}_d"])
    steps = int(golden[f"{name}_steps"])
    for row, number, stage, start, chosen in plans(golden, name):
        norms = golden[f"{name}_norms"][row]
        assert len(norms) == steps
        at = position(norms, float(golden[f"{name}_uniform"][row, number]))
        assert at == int(golden[f"{name}_position"][row, number])
        if stage == 1:
            assert chosen == size + spread
            continue
        plan = early(norms, at, size, spread) if stage == 0 else late(steps, at, size, spread)
        assert plan == (max(start, 0), chosen)


def decoded(golden, shrink):
    """(leaves, images) of the stored bases and coefficients."""
    leaves = {name: golden[name].clone().requires_grad_() for name in ("bases", "coefficients")}
    rows = torch.arange(len(leaves["coefficients"]))
    codec = LinearBases(bases=len(leaves["bases"]), shrink=shrink)
    return leaves, codec.decode(leaves, rows)


def enlargements():
    """How many times images are enlarged in linba."""
    return [int(key.rpartition("_")[2]) for key in names("linba", "") if "decoded_" in key]


@pytest.mark.parametrize("shrink", enlargements())
def test_linba(shrink):
    """Combination, enlargement, and gradients of the sum of squares."""
    golden = load("linba", F64)
    leaves, images = decoded(golden, shrink)
    assert_close(images.detach(), golden[f"decoded_{shrink}"], 1e-12)
    images.square().sum().backward()
    for name, leaf in leaves.items():
        assert_close(leaf.grad, golden[f"grad_{name}_{shrink}"], 1e-12)
    _, small = decoded(golden, 1)
    assert_close(small.detach(), golden["combined"], 1e-12)


def test_the_budget_of_linba():
    """Rows of coefficients per class, and the numbers that they and the bases are."""
    golden = load("linba", F64)
    for row, exact in zip(golden["budget"].tolist(), golden["budget_real_valued"], strict=True):
        ipc, side, channels, classes, bases, shrink, rows, used, allowed = row
        codec = LinearBases(bases=bases, shrink=shrink)
        fitted, _ = codec.fit(ipc, (channels, side, side), classes)
        assert fitted.rows == rows == int(exact)
        values = bases * channels * (side // shrink) ** 2 + classes * rows * bases
        assert values == used <= allowed == ipc * channels * side**2 * classes


@pytest.mark.parametrize("how", STUDENTS)
def test_rtp(how):
    """All steps in the graph, images made of bases; the coefficient term plays no part."""
    golden = load("rtp_adjoint", F64)
    steps = len(golden["indices"])
    model = network("rtp_adjoint", golden["x_real"])
    codec = LinearBases(bases=len(golden["bases"]), shrink=int(golden["upsample"]))
    leaves = {name: golden[name].clone().requires_grad_() for name in ("bases", "coefficients")}
    theta = golden["params"].clone().requires_grad_()

    def batch(tensors, k):
        index = golden["indices"][k]
        return codec.decode(tensors, index), golden["labels"][index]

    update = HeavyBall(momentum=float(golden["momentum"]))
    student = trained_by(how, model, update, 0.0)
    reached = student.through(batch, theta, leaves, 0, steps, golden["lr"])
    assert_close(reached.detach(), golden["params_end"])
    loss = functional.cross_entropy(model(reached, golden["x_real"]), golden["labels_real"])
    assert_close(loss.detach(), golden["loss"])
    for name, gradient in zip(
        leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True
    ):
        assert_close(gradient, golden[f"grad_{name}"])
    if how == "higher":
        return
    ends = unroll(
        student.gradient, batch, theta, leaves, steps,
        lr=golden["lr"], update=update, backprop=how,
    )  # fmt: skip
    loss = functional.cross_entropy(model(ends[0], golden["x_real"]), golden["labels_real"])
    (by_start,) = torch.autograd.grad(loss, theta)
    assert_close(by_start, golden["grad_params"])
