"""The engine against inputs and outputs of the published implementations."""

import json
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from golden_files import GOLDEN, convnet, load, names, shapes_of
from torch.nn import functional

from buffers.flat_step import Gsam, perturbation
from buffers.smooth import Smooth, gradient_penalty
from buffers.steps import Sgd
from ddengine import loop as outer
from ddengine.data import Preprocess, RealSet
from ddengine.data.preprocess import fit_zca
from ddengine.learning import augment
from ddengine.learning.augment import MixUp
from ddengine.learning.flat import FlatModel, flatten, unflatten_into
from ddengine.learning.inner import eager_gradient, inner_gradient
from ddengine.learning.losses import kl, mixed_logits, nkd, task_loss
from ddengine.learning.optim import ADAM_EPS
from ddengine.learning.training import schedule, teacher_logits
from ddengine.learning.unroll import unroll
from ddengine.learning.updates import HeavyBall
from ddengine.objective import Env
from ddengine.recipe import AugmentConfig, EvalConfig, OptimConfig, OuterConfig
from ddengine.sets.codec import Compensated, Identity, MultiFormation
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from synth.ast import BalancedLoss, IntermediateMatching, perturbed
from synth.compensator import BaseSets
from synth.datm import GrowingWindow
from synth.distances import Means
from synth.gradient import distance as gradient_distance
from synth.statistics import StatisticsMatching, distance, inputs_of_norms, weighted
from synth.trajectory import matching_loss

DTYPES = {"float64": torch.float64, "float32": torch.float32}
# of gradients in float32: another processor's rounding may put a unit on the other side of its
# kink; float64 holds the formula
KINKS = 1e-2


def assert_close(ours: torch.Tensor, stored: torch.Tensor, tolerance: float) -> None:
    """Norm of the difference over the norm of the stored tensor."""
    error = (ours.double() - stored.double()).norm() / stored.double().norm()
    assert ours.shape == stored.shape
    assert error <= tolerance, f"error {error:.3g}, tolerance {tolerance:g}"


@pytest.fixture(params=DTYPES)
def dtype(request) -> torch.dtype:
    """float64 and float32."""
    return DTYPES[request.param]


@pytest.mark.parametrize("file", ["convnet_rgb32", "convnet_gray28"])
@pytest.mark.parametrize(("norm", "suffix"), [("in", ""), ("nn", "_nonorm"), ("bn", "_bn")])
def test_convnet(file, norm, suffix, dtype):
    """Logits and embedding of the ConvNet; for instance norm the cross-entropy and the flat form
    too.
    """
    golden, tolerance = load(file, dtype), {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    shapes = shapes_of(file, f"shapes{suffix}")
    net = convnet(shapes, golden["x"].shape[1:], norm).to(dtype).eval()
    unflatten_into(net, golden[f"params{suffix}"])
    if norm == "bn":
        layers = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for layer, mean, var in zip(
            layers, golden["bn_running_mean"], golden["bn_running_var"], strict=True
        ):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var)
    assert_close(net(golden["x"]), golden[f"logits{suffix}"], tolerance)
    assert_close(net.embed(golden["x"]), golden[f"embedding{suffix}"], tolerance)
    if norm == "in":
        logits = FlatModel(net)(golden["params"], golden["x"])
        assert_close(logits, golden["logits"], tolerance)
        assert_close(functional.cross_entropy(logits, golden["labels"]), golden["ce"], tolerance)


def inner_loss(shapes, images, dtype):
    """The student's loss on golden inputs: classes or label logits as targets, and a factor."""
    model = FlatModel(convnet(shapes, images.shape[1:]).to(dtype))

    def loss(theta, images, targets, factor):
        return task_loss(model(theta, images), targets) * factor

    return loss


def student(file, golden, backprop, dtype, *, logits=None):
    """(loss, gradients of x, lr and label logits, end) of the student of mtt_step,
    tesla_step and datm_step.
    """
    leaves = {"x": golden["x"].clone().requires_grad_()} | (
        {"z": logits.clone().requires_grad_()} if logits is not None else {}
    )
    lr = golden["lr"].clone().requires_grad_()

    def batch(inputs, k):
        index = golden["indices"][k]
        targets = inputs["z"][index] if "z" in inputs else golden["labels"][index]
        return inputs["x"][index], targets, torch.ones((), dtype=dtype)

    gradient = inner_gradient(inner_loss(shapes_of(file), golden["x"], dtype))
    steps = len(golden["indices"])
    end = unroll(gradient, batch, golden["start"], leaves, steps, lr=lr, backprop=backprop)
    loss = matching_loss(end, golden["target"][None], golden["start"], [1.0])
    return loss, torch.autograd.grad(loss, [*leaves.values(), lr]), end[0]


@pytest.mark.parametrize("backprop", ["full", "replay"])
def test_mtt_step(backprop, dtype):
    """The exact gradients of one outer step."""
    golden, tolerance = load("mtt_step", dtype), {torch.float64: 1e-10, torch.float32: KINKS}[dtype]
    loss, (grad_x, grad_lr), end = student("mtt_step", golden, backprop, dtype)
    assert_close(loss, golden["loss"], tolerance)
    assert_close(end, golden["thetas"][-1], tolerance)
    assert_close(grad_x, golden["grad_x"], tolerance)
    assert_close(grad_lr, golden["grad_lr"], tolerance)


def test_tesla_step(dtype):
    """`detached` is TESLA's formula, which is away from the exact gradient."""
    golden, tolerance = (
        load("tesla_step", dtype),
        {torch.float64: 1e-10, torch.float32: KINKS}[dtype],
    )
    loss, (grad_x, grad_lr), _ = student("tesla_step", golden, "detached", dtype)
    assert_close(loss, golden["loss"], tolerance)
    assert_close(grad_x, golden["grad_x"], tolerance)
    assert_close(grad_lr, golden["grad_lr"], tolerance)
    bias = (grad_x - golden["grad_x_exact"]).norm() / golden["grad_x_exact"].norm()
    assert bias > 1e-3
    exact = student("tesla_step", golden, "replay", dtype)[1]
    assert_close(exact[0], golden["grad_x_exact"], 1e-6 if dtype == torch.float64 else KINKS)


@pytest.mark.parametrize("backprop", ["full", "replay", "detached"])
def test_datm_step(backprop, dtype):
    """The same step with learned label logits: gradients reach them too, in the exact and the
    truncated form.
    """
    golden, tolerance = (
        load("datm_step", dtype),
        {torch.float64: 1e-10, torch.float32: KINKS}[dtype],
    )
    loss, (grad_x, grad_z, grad_lr), end = student(
        "datm_step", golden, backprop, dtype, logits=golden["label_logits"]
    )
    assert_close(loss, golden["loss"], tolerance)
    assert_close(end, golden["theta_end"], tolerance)
    if backprop == "detached":
        first = golden["truncated_grad_x_first2"]
        assert_close(grad_x[: len(first)], first, tolerance)
        assert_close(grad_z, golden["truncated_grad_label_logits"], tolerance)
        assert_close(grad_lr, golden["truncated_grad_lr"], tolerance)
    else:
        assert_close(grad_x, golden["grad_x"], tolerance)
        assert_close(grad_z, golden["grad_label_logits"], tolerance)
        assert_close(grad_lr, golden["grad_lr"], tolerance)


@pytest.mark.parametrize("backprop", ["full", "replay"])
@pytest.mark.parametrize("case", ["agg", "adaptive", "final_only", "balanced"])
def test_heavy_ball_and_intermediate_losses(case, backprop, dtype):
    """Momentum, ragged batches, losses after some steps too, and a factor on the inner loss (AST's
    student).
    """
    golden, tolerance = (
        load("ast_terms", dtype),
        {torch.float64: 1e-10, torch.float32: KINKS}[dtype],
    )
    num_steps, length = int(golden["hb_steps"]), int(golden["hb_expert_epochs"])
    start = int(golden["hb_balanced_start_epoch"]) if case == "balanced" else 0
    high = int(golden["hb_balanced_max_start"])
    factor = torch.tensor(BalancedLoss()(start, high) if case == "balanced" else 1.0, dtype=dtype)
    weights: Literal["equal", "rising"] = "rising" if case == "adaptive" else "equal"
    last = (num_steps, length, 1.0)
    milestones = (
        (last,)
        if case == "final_only"
        else (*IntermediateMatching(weights=weights)(num_steps, length), last)
    )
    x, lr = golden["hb_x"].clone().requires_grad_(), golden["hb_lr"].clone().requires_grad_()

    def batch(inputs, k):
        index = golden["hb_indices"][k, : int(golden["hb_batch_sizes"][k])]
        return inputs["x"][index], golden["hb_labels"][index], factor

    reached = unroll(
        inner_gradient(inner_loss(shapes_of("ast_terms", "shapes5"), x, dtype)), batch, golden["hb_snapshots"][start], {"x": x}, num_steps,
        lr=lr, update=HeavyBall(momentum=float(golden["hb_momentum"])), keep=[k for k, _, _ in milestones[:-1]], backprop=backprop,
    )  # fmt: skip
    targets = golden["hb_snapshots"][[start + j for _, j, _ in milestones]]
    loss = matching_loss(
        reached, targets, golden["hb_snapshots"][start], [weight for _, _, weight in milestones]
    )
    grad_x, grad_lr = torch.autograd.grad(loss, [x, lr])
    assert_close(loss, golden[f"hb_{case}_loss"], tolerance)
    assert_close(grad_x, golden[f"hb_{case}_grad_x"], tolerance)
    assert_close(grad_lr, golden[f"hb_{case}_grad_lr"], tolerance)
    if case == "agg":
        assert_close(reached[-1], golden["hb_thetas"][-1], tolerance)
        middle = (reached[:-1] - targets[:-1]).square().sum(1) / (
            golden["hb_snapshots"][start] - targets[:-1]
        ).square().sum(1)
        assert_close(middle, golden["hb_middle_losses"], tolerance)


def test_gradient_penalty(dtype):
    """The penalty, the expert's loss with a clipping coefficient, and its gradient in the
    parameters: a second derivative of the network.
    """
    golden, tolerance = (
        load("ast_terms", dtype),
        {torch.float64: 1e-10, torch.float32: KINKS}[dtype],
    )
    net = convnet(shapes_of("ast_terms", "shapes10"), golden["gp_x"].shape[1:]).to(dtype)
    unflatten_into(net, golden["gp_params"])
    penalty = gradient_penalty(net, golden["gp_x"], 2.0)
    ce = functional.cross_entropy(net(golden["gp_x"]), golden["gp_labels"])
    total = golden["gp_coefficient"] * ce + penalty
    assert_close(penalty, golden["gp_value"], tolerance)
    assert_close(ce, golden["gp_ce"], tolerance)
    assert_close(total, golden["gp_total"], tolerance)
    grads = torch.autograd.grad(total, list(net.parameters()))
    assert_close(torch.cat([g.flatten() for g in grads]), golden["gp_total_grad_params"], tolerance)


def test_smooth_step(dtype):
    """One step of the expert is SGD on that total."""
    golden, tolerance = (
        load("ast_terms", dtype),
        {torch.float64: 1e-10, torch.float32: KINKS}[dtype],
    )
    net = convnet(shapes_of("ast_terms", "shapes10"), golden["gp_x"].shape[1:]).to(dtype)
    unflatten_into(net, golden["gp_params"])
    coefficients = golden["clip_coefficients"].tolist()
    epoch = min(
        range(len(coefficients)),
        key=lambda e: abs(coefficients[e] - float(golden["gp_coefficient"])),
    )
    step = Smooth(sgd=Sgd(lr=0.1)).build(net, 50)
    loss = step(golden["gp_x"], golden["gp_labels"], golden["gp_x"], epoch)
    assert_close(loss, golden["gp_total"], tolerance)
    assert_close(
        flatten(net), golden["gp_params"] - 0.1 * golden["gp_total_grad_params"], tolerance
    )


def test_clipping_coefficients():
    """By epoch."""
    golden = load("ast_terms", torch.float64)
    ours = torch.tensor(
        [Smooth().coefficient(epoch) for epoch in range(len(golden["clip_coefficients"]))],
        dtype=torch.float64,
    )
    assert_close(ours, golden["clip_coefficients"], 1e-12)


def test_balanced_loss():
    """By window and start epoch; starts beyond the window are not defined."""
    golden = load("ast_terms", torch.float64)
    for high, factors in zip(
        golden["balance_max_start"].tolist(), golden["balance_factor"], strict=True
    ):
        inside = golden["balance_start_epoch"] < high
        ours = [
            BalancedLoss()(start, high) for start in golden["balance_start_epoch"][inside].tolist()
        ]
        assert_close(torch.tensor(ours, dtype=torch.float64), factors[inside], 1e-12)


def test_weight_perturbation(dtype):
    """4-D weights by their draws, all others untouched."""
    golden, tolerance = load("ast_terms", dtype), {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    shapes = list(map(torch.Size, shapes_of("ast_terms", "shapes5")))
    ours = perturbed(
        golden["perturb_weights"], shapes, golden["perturb_normal"], float(golden["perturb_alpha"])
    )
    assert_close(ours, golden["perturb_result"], tolerance)


@pytest.mark.parametrize("case", names("ftd_gsam", "_rho"))
def test_gsam_step(case, dtype):
    """Gradient, perturbation, direction, and the parameters after one step of the expert."""
    golden, tolerance = load("ftd_gsam", dtype), {torch.float64: 1e-10, torch.float32: KINKS}[dtype]
    net = convnet(shapes_of("ftd_gsam"), golden["x"].shape[1:]).to(dtype)
    unflatten_into(net, golden["params"])
    params = list(net.parameters())
    rho, alpha, adaptive = (
        float(golden[f"{case}_rho"]),
        float(golden[f"{case}_alpha"]),
        bool(golden[f"{case}_adaptive"]),
    )
    grads = torch.autograd.grad(
        functional.cross_entropy(net(golden["x"]), golden["labels"]), params
    )
    assert_close(torch.cat([g.flatten() for g in grads]), golden["grad"], tolerance)
    if f"{case}_perturbation" in golden:
        moved = perturbation(
            golden["params"], torch.cat([g.flatten() for g in grads]), rho, adaptive
        )
        assert_close(moved, golden[f"{case}_perturbation"], tolerance)
    step = Gsam(sgd=Sgd(lr=float(golden["lr"])), rho=rho, alpha=alpha, adaptive=adaptive).build(
        net, 50
    )
    loss = step(golden["x"], golden["labels"], golden["x"], 0)
    assert_close(loss, golden[f"{case}_loss"], tolerance)
    assert_close(flatten(net), golden[f"{case}_params_after"], tolerance)
    if f"{case}_direction" in golden:
        made = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
        assert_close(made, golden[f"{case}_direction"], tolerance)


def test_growing_window():
    """The end of the start epochs by iteration."""
    golden = load("datm_step", torch.float64)
    for (first, high, grow), bounds in zip(
        golden["bound_config"].tolist(), golden["bound_value"].tolist(), strict=True
    ):
        window = GrowingWindow(first=first, high=high, grow=grow)
        assert [window(step) for step in golden["bound_iteration"].tolist()] == [
            (0, bound) for bound in bounds
        ]


DSA = {
    "brightness": lambda x, p: augment.brightness(x, p("u") - 0.5),
    "saturation": lambda x, p: augment.saturation(x, 2 * p("u")),
    "contrast": lambda x, p: augment.contrast(x, p("u") + 0.5),
    "color": lambda x, p: augment.OPS["color"](AugmentConfig(), x, p("u").T),
    "crop": lambda x, p: augment.crop(x, p("shift_rows"), p("shift_cols")),
    "cutout": lambda x, p: augment.cutout(
        x, p("centre_row"), p("centre_col"), (int(p("size")), int(p("size")))
    ),
    "flip": lambda x, p: augment.flip(x, p("u") < 0.5),
    "scale": lambda x, p: augment.scale(x, p("sx"), p("sy")),
    "rotate": lambda x, p: augment.rotate(x, p("angle")),
}


@pytest.mark.parametrize("case", names("dsa_ops", ".x"))
@pytest.mark.parametrize("op", DSA)
def test_dsa_ops(op, case, dtype):
    """Each augmentation with the stored parameters."""
    golden = load("dsa_ops", dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 5e-5 if op in ("scale", "rotate") else 1e-5
    ours = DSA[op](golden[f"{case}.x"], lambda name: golden[f"{case}.{op}.{name}"])
    assert_close(ours, golden[f"{case}.{op}.out"], tolerance)


def test_zca(dtype):
    """Fitting, whitening, and the way back."""
    golden, tolerance = load("zca", dtype), {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]
    zca = fit_zca(golden["x"], float(golden["eps"]))
    assert zca.matrix is not None
    whitened = zca.forward(golden["x"])
    for ours, name in (
        (zca.mean, "mean"), (zca.matrix, "matrix"), (whitened, "whitened"),
        (zca.backward(whitened), "recovered"), (zca.forward(golden["x_held"]), "whitened_held"),
    ):  # fmt: skip
        assert_close(ours, golden[name], tolerance)


SCHEDULE = json.loads((GOLDEN / "eval_schedule.json").read_text())
CASES = [
    (method, i)
    for method in ("mtt", "tesla", "dc_dsa_dm", "ast")
    for i in range(len(SCHEDULE[method]))
]


@pytest.mark.parametrize(("method", "i"), CASES)
def test_eval_schedule(method, i):
    """Learning rate, momentum and new optimisers by epoch; AST's values as fields."""
    case = SCHEDULE[method][i]
    values = (
        {"lr_drop": 0.5, "momentum_after": 0.8, "weight_decay": 1e-3} if method == "ast" else {}
    )
    config = EvalConfig(protocol="mtt", epochs=case["argument_epochs"], **values)
    assert config.epochs + 1 == case["epochs_run"]
    points = schedule(config, case["lr_initial"])
    assert len(points) == len(case["change_points"])
    for ours, theirs in zip(points, case["change_points"], strict=True):
        assert theirs["new_optimizer"]
        assert ours.epoch == theirs["epoch"]
        for name in ("lr", "momentum", "weight_decay"):
            assert getattr(ours, name) == pytest.approx(theirs[name], rel=1e-12)


@pytest.mark.parametrize("metric", ["layerwise", "mse", "cos"])
def test_dc_distance(metric, dtype):
    """The three distances between two lists of gradients, and their gradients."""
    golden, tolerance = (
        load("dc_distance", dtype),
        {torch.float64: 1e-12, torch.float32: 1e-5}[dtype],
    )
    real, syn = (
        [golden[k] for k in sorted(golden) if k.startswith(f"{side}.")] for side in ("real", "syn")
    )
    flat = [torch.cat([t.flatten() for t in side])[None] for side in (real, syn)]
    flat[1].requires_grad_()
    loss = gradient_distance(
        *flat, [t.shape for t in real], metric, "weights" if metric == "layerwise" else "all"
    )
    name = "ours" if metric == "layerwise" else metric
    assert_close(loss[0], golden[f"distance_{name}"], tolerance)
    assert_close(
        torch.autograd.grad(loss.sum(), flat[1])[0][0], golden[f"grad_syn_{name}"], tolerance
    )


def test_dm_loss(dtype):
    """Embeddings, the loss of three classes and its gradient."""
    golden, tolerance = load("dm_loss", dtype), {torch.float64: 1e-11, torch.float32: KINKS}[dtype]
    model = FlatModel(convnet(shapes_of("dm_loss"), golden["x_syn"].shape[2:]).to(dtype))
    x_syn = golden["x_syn"].clone().requires_grad_()
    real, syn = (
        model.embed(golden["params"], x.flatten(0, 1)).unflatten(0, x.shape[:2])
        for x in (golden["x_real"], x_syn)
    )
    assert_close(real, golden["features_real"], tolerance)
    assert_close(syn, golden["features_syn"], tolerance)
    means = Means()
    loss = means.between(means.summary(real, {}), means.summary(syn, {}), {})
    assert_close(loss, golden["loss"], tolerance)
    assert_close(torch.autograd.grad(loss, x_syn)[0], golden["grad_x_syn"], tolerance)


@pytest.mark.parametrize("case", names("idc_decode", ".stored"))
def test_idc_decode(case, dtype):
    """Decoding where the factor divides the image and where it does not, by the codec and by the
    source that is shipped.
    """
    golden, tolerance = (
        load("idc_decode", dtype),
        {torch.float64: 1e-11, torch.float32: 1e-4}[dtype],
    )
    codec = MultiFormation(factor=int(case.rpartition("_f")[2]))
    tensors = {"images": golden[f"{case}.stored"]}
    source = codec.source(tensors)
    assert torch.equal(source, golden[f"{case}.source_image"])
    assert_close(
        codec.decode(tensors, torch.arange(len(source))), golden[f"{case}.decoded"], tolerance
    )
    images, item = codec.loader()(tensors, to_dict(codec))
    assert torch.equal(item, source)
    assert_close(images, golden[f"{case}.decoded"], tolerance)


@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_idc_matching(metric, dtype):
    """Gradients of a real and a synthetic batch, their distance over convolution weights, and its
    gradient in the images.
    """
    golden, tolerance = (
        load("idc_decode", dtype),
        {torch.float64: 1e-11, torch.float32: KINKS}[dtype],
    )
    parts = names("idc_decode", prefix="match.real.")
    shapes = [list(golden[f"match.real.{part}"].shape) for part in parts]
    model = FlatModel(convnet(shapes, golden["match.x_real"].shape[1:]).to(dtype))
    gradient = eager_gradient(
        lambda theta, images, targets: task_loss(model(theta, images), targets)
    )
    x_syn = golden["match.x_syn"].clone().requires_grad_()
    grads = [
        gradient(golden["match.params"], x, golden[f"match.y_{side}"])
        for side, x in (("real", golden["match.x_real"]), ("syn", x_syn))
    ]
    for side, flat in zip(("real", "syn"), grads, strict=True):
        for i, (part, shape) in enumerate(zip(flat.split(model.sizes), model.shapes, strict=True)):
            stored, absolute = (
                golden[f"match.{side}.{i:02d}"],
                {torch.float64: 1e-12, torch.float32: 1e-5}[dtype],
            )
            # the gradient of a bias before a normalisation is nothing but rounding
            if len(shape) == 1:
                assert (part.detach() - stored).abs().max() <= max(
                    absolute, tolerance * stored.abs().max()
                )
            else:
                assert_close(part.detach().view(shape), stored, tolerance)
    loss = gradient_distance(
        grads[0].detach()[None], grads[1][None], model.shapes, metric, "convolutions"
    )[0]
    assert_close(loss, golden[f"match.distance_{metric}"], tolerance)
    assert_close(
        torch.autograd.grad(loss, x_syn)[0], golden[f"match.grad_x_syn_{metric}"], tolerance
    )


def test_infer_labels(dtype):
    """Static labels: the teachers' mean logits, mixed as logits; the divergence at T = 30 and its
    gradient in the student's logits.
    """
    golden, tolerance = load("infer_bn", dtype), {torch.float64: 1e-10, torch.float32: 1e-4}[dtype]
    stored = golden["label_teacher_logits"]
    index = torch.arange(stored.shape[1])

    class Says(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, images):
            return self.logits[images[:, 0, 0, 0].long()]

    static = teacher_logits([Says(logits) for logits in stored], index.view(-1, 1, 1, 1).float())
    assert_close(static, golden["label_static_logits"], 1e-6)  # labels are float32
    batch = golden["label_static_logits"][golden["label_batch_index"]]
    draw = MixUp(golden["label_mix_index"], golden["label_lambda"].item())
    mixed = mixed_logits(batch, draw, "logits")
    assert_close(mixed, golden["label_interpolated"], tolerance)
    student = golden["label_student_logits"].clone().requires_grad_()
    loss = kl(student, mixed, golden["label_temperature"].item())
    assert_close(loss, golden["label_kl"], tolerance)
    assert_close(torch.autograd.grad(loss, student)[0], golden["label_grad_student"], tolerance)


def infer_world(golden, dtype, monkeypatch, *, u, roll, **fields):
    """(objective, set): one compensator under the golden network, of pixels within [0, 1], each
    step shifted by its own roll.
    """
    std = golden["clip_std"] * 2 / golden["x"].abs().max()
    preprocess = Preprocess(mean=golden["clip_mean"], std=std)
    shapes, num = shapes_of("infer_bn"), len(golden["x"])
    num_classes = shapes[-1][0]
    network = convnet(shapes, golden["x"].shape[1:], "bn").eval()
    pixels = torch.zeros(golden["x"].shape, dtype=torch.uint8)
    real = RealSet(pixels, golden["labels"], num_classes, preprocess)
    experts = SimpleNamespace(
        num_experts=1, num_params=0, epochs=(0,), load=lambda expert, epoch: network
    )
    env = Env(real, lambda rng: network, FlatModel(network), experts, torch.device("cpu"))  # type: ignore[arg-type]
    alpha = fields.pop("alpha", golden["alpha"].item())
    objective = StatisticsMatching(
        batches=BaseSets(), alpha=alpha, first=golden["first_bn_multiplier"].item(), **fields
    ).build(env)
    network.to(dtype)
    unflatten_into(network, golden["params"])
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm, mean, var in zip(
        norms, golden["bn_running_mean"], golden["bn_running_var"], strict=True
    ):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    tensors = {
        "images": preprocess.backward(golden["x"]),
        "compensators": u,
        "unit": preprocess.std,
    }
    syn = SyntheticSet(
        tensors, golden["labels"], tuple(map(str, range(num_classes))),
        Compensated(base=num // num_classes, compensators=1), preprocess, space="pixel",
    )  # fmt: skip
    rolls = iter(roll.tolist())

    def stored(config, num, rng, *, groups, shared):
        uniform = (torch.tensor([*next(rolls), 0]) + 0.5) / (config.roll + 1)
        return augment.AugmentDraw(("none",), torch.zeros(1, 1, 3), uniform.view(1, 1, 1, 3))

    monkeypatch.setattr(augment, "sample", stored)
    return objective, syn


@pytest.mark.parametrize("at_once", [None, 4])
def test_infer_objective(at_once, dtype, monkeypatch):
    """Cross-entropy, terms, total, and its gradient in the compensator, in one pass and in three
    parts of a batch.
    """
    golden, tolerance = load("infer_bn", dtype), {torch.float64: 1e-10, torch.float32: KINKS}[dtype]
    fields = {
        "u": golden["u"].clone().requires_grad_(),
        "roll": golden["roll"].expand(2, 2),
        "images_at_once": at_once,
    }
    objective, syn = infer_world(golden, dtype, monkeypatch, **fields)
    losses = list(objective.losses(syn, {}, 0, torch.Generator()))
    num = len(golden["x"])
    assert len(losses) == (-(-num // at_once) if at_once else 1)
    assert_close(sum(losses).detach(), golden["total"], tolerance)
    assert_close(
        torch.autograd.grad(sum(losses), syn.tensors["compensators"])[0],
        golden["grad_u"],
        tolerance,
    )
    terms = []

    def see(norm, x):
        terms.append(
            distance(norm, x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0), 1.0).detach()
        )

    with inputs_of_norms(objective.teachers[0], see):
        images = syn.batch(torch.arange(num, 2 * num)).images.roll(golden["roll"].tolist(), (2, 3))
        objective.teachers[0](images)
    assert_close(torch.stack(terms), golden["bn_terms"], tolerance)
    assert_close(
        weighted(terms, golden["first_bn_multiplier"].item()), golden["bn_term"], tolerance
    )
    plain, syn = infer_world(golden, dtype, monkeypatch, **fields, alpha=0.0)
    assert_close(sum(plain.losses(syn, {}, 0, torch.Generator())).detach(), golden["ce"], tolerance)


def test_infer_run(dtype, monkeypatch, tmp_path):
    """Some steps of the outer loop's Adam from nothing, with its cosine and the stored rolls."""
    golden, tolerance = load("infer_bn", dtype), {torch.float64: 1e-10, torch.float32: KINKS}[dtype]
    objective, syn = infer_world(
        golden, dtype, monkeypatch, u=torch.zeros_like(golden["u"]), roll=golden["run_rolls"]
    )
    steps = len(golden["run_rolls"])
    momentum, beta2 = golden["run_beta1"].item(), golden["run_beta2"].item()
    optim = OptimConfig(
        kind="adam",
        lr=golden["run_lr"].item(),
        momentum=round(momentum, 6),
        beta2=round(beta2, 6),
        schedule="cosine",
    )
    assert golden["run_eps"].item() == pytest.approx(ADAM_EPS, rel=1e-6)
    assert_close(
        torch.tensor([optim.lr_at(step, steps) for step in range(steps)], dtype=torch.float64),
        golden["run_lr_per_step"],
        1e-6,
    )
    result, _ = outer.distill(
        syn, objective, OuterConfig(steps=steps, optim={"compensators": optim}), tmp_path, seed=0
    )
    assert_close(result.tensors["compensators"], golden["run_u_final"], tolerance)


def test_infer_clip(dtype):
    """To what pixels in [0, 1] are, channel by channel."""
    golden, tolerance = load("infer_bn", dtype), {torch.float64: 1e-10, torch.float32: 1e-4}[dtype]
    preprocess = Preprocess(mean=golden["clip_mean"], std=golden["clip_std"])
    assert_close(preprocess.clamp(golden["clip_in"]), golden["clip_out"], tolerance)
    tensors = {"images": golden["clip_in"].clone()}
    Identity(bounded=True).project(tensors, preprocess)
    assert_close(tensors["images"], golden["clip_out"], tolerance)


def test_infer_budget():
    """Base images, compensators, examples; 0 is refused.

    Where binary fractions fall short of a whole number, the exact one.
    """
    golden = load("infer_bn", torch.float64)
    for ipc, num_classes, per_set, n, count, num in golden["budget"].tolist():
        if n:
            assert Compensated(per_set=per_set).budget(ipc, num_classes) == (n, count, num)
        else:
            with pytest.raises(UserError, match="no whole base image"):
                Compensated(per_set=per_set).budget(ipc, num_classes)
    for ipc, num_classes, per_set, _, exact in golden["budget_rounding"].tolist():
        assert Compensated(per_set=per_set).budget(ipc, num_classes)[0] == exact


@pytest.mark.parametrize("temperature", [int(t) for t in names("nkd", prefix="grad_student_t")])
def test_nkd(temperature, dtype):
    """Normalised distillation, its gradient, and two-dimensional targets by their largest entry."""
    golden, tolerance = load("nkd", dtype), {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    student, gamma = golden["student_logits"].clone().requires_grad_(), golden["gamma"].item()
    loss = nkd(student, golden["teacher_logits"], golden["targets"], gamma, float(temperature))
    assert_close(loss, golden[f"loss_t{temperature}"], tolerance)
    assert_close(
        torch.autograd.grad(loss, student)[0], golden[f"grad_student_t{temperature}"], tolerance
    )
    soft = nkd(
        student,
        golden["teacher_logits"],
        golden["soft_targets"].argmax(1),
        gamma,
        float(temperature),
    )
    assert_close(soft, golden[f"loss_soft_t{temperature}"], tolerance)
