"""What only a CUDA device can show. Run with `make test-gpu`."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, TINY_CROSS, Pull, run, tiny_data, tiny_set
from safetensors.torch import load_file
from torch.nn import functional

from buffers import together
from buffers.experts import generate_all
from buffers.filling import Making, network_maker
from buffers.making import generate
from buffers.steps import Sgd
from buffers.store import shard_path
from ddengine import loop as outer
from ddengine.data import Subset, load_data
from ddengine.learning import augment, training
from ddengine.learning.flat import FlatModel, flatten
from ddengine.learning.inner import ByAutograd, eager_gradient, inner_gradient
from ddengine.learning.unroll import unroll
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import (
    DSA_OPS,
    AugmentConfig,
    BufferConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    OuterConfig,
)
from ddengine.sets.synthetic import initial
from ddengine.system import runtime
from ddengine.system.rng import generator
from synth.catalogue import find

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def set_up():
    """As the commands do, with deterministic kernels, whichever test is the first."""
    runtime.setup("cuda")


def problem(width=128, batch=50):
    """(loss, start, images, labels) of a ConvNet-D3 on random 32x32 images."""
    stream = generator(0, "gpu")
    net = build_model(f"convnet-d3-w{width}-in", (3, 32, 32), 10, stream).to(CUDA)
    model = FlatModel(net)
    images = torch.randn(batch, 3, 32, 32, generator=stream).to(CUDA)
    labels = torch.randint(10, (batch,), generator=stream).to(CUDA)
    return (
        (lambda theta, x, y: functional.cross_entropy(model(theta, x), y)),
        flatten(net),
        images,
        labels,
    )


def cost(backprop, num_steps):
    """(peak bytes added, gradient) of one unroll."""
    loss, theta, images, labels = problem()
    leaf = images.clone().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    end = unroll(
        ByAutograd(eager_gradient(loss)),
        lambda i, k: (i["x"], labels),
        theta,
        {"x": leaf},
        num_steps,
        lr=0.01,
        backprop=backprop,
    )
    end.square().sum().backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, leaf.grad


def test_replay_is_flat_in_memory():
    """T = 32 needs at most 1.3 times what T = 4 needs, and gives the gradient of full."""
    (short, _), (long, _) = cost("replay", 4), cost("replay", 32)
    assert long < 1.3 * short
    exact, ours = cost("full", 4)[1], cost("replay", 4)[1]
    assert (exact - ours).norm() / exact.norm() < 1e-3


def test_compiled_equals_eager():
    """Through Inductor, on the device, each graph launched by one call."""
    loss, theta, images, labels = problem(width=16)
    grads = []
    for way in (inner_gradient(loss), inner_gradient(loss, True)):
        leaf = images.clone().requires_grad_()
        unroll(
            way, lambda i, k: (i["x"], labels), theta, {"x": leaf}, 3, lr=0.01, backprop="replay"
        ).square().sum().backward()
        grads.append(leaf.grad)
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 1e-3


@pytest.mark.parametrize("kept", [2, 4])
def test_kept_graphs_change_nothing(kept):
    """The gradient of replay, some of whose graphs are kept, on the device."""
    loss, theta, images, labels = problem(width=16)
    grads = []
    for kept_graphs in (0, kept):
        leaf = images.clone().requires_grad_()
        unroll(
            inner_gradient(loss), lambda i, k: (i["x"], labels), theta, {"x": leaf}, 4, lr=0.01,
            backprop="replay", kept_graphs=kept_graphs,
        ).square().sum().backward()  # fmt: skip
        grads.append(leaf.grad)
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 1e-4


@pytest.mark.parametrize("op", DSA_OPS)
def test_augmentation_equals_the_cpu(op):
    """The same draw on both devices."""
    config = AugmentConfig(ops=(op,))
    images = torch.randn(8, 3, 32, 32, generator=generator(0))
    draw = augment.sample(config, 8, generator(1))
    ours = augment.apply(config, images.to(CUDA), draw.to(CUDA)).cpu()
    assert torch.allclose(ours, augment.apply(config, images, draw), atol=1e-4)


def test_networks_trained_together_equal_networks_trained_alone():
    """One computation for all on CUDA; the accuracy of a seed does not depend on its neighbours."""
    data = load_data(DataConfig(name="digits"), CUDA)
    sets = [Subset(data.train, torch.arange(i, 1000, 20)) for i in range(3)]
    config = EvalConfig(protocol="fast", epochs=20, batch=64)

    def new_model(rng):
        return build_model("convnet-d2-w16-in", data.image_shape, 10, rng)

    together = training.train_networks(new_model, sets, [0, 1, 2], config, 0.01, CUDA)
    alone = [
        training.train_networks(new_model, [s], [i], config, 0.01, CUDA)[0]
        for i, s in enumerate(sets)
    ]
    for a, b in zip(together, alone, strict=True):
        assert (
            abs(training.accuracy(a, data.validation) - training.accuracy(b, data.validation))
            < 0.03
        )


@pytest.mark.parametrize("model", ["convnet-d2-w16-in", "convnet-d2-w16-bn"])
def test_experts_trained_together_equal_experts_trained_alone(model, tmp_path, monkeypatch):
    """Three as one computation, as the manifest says, with their running statistics."""
    recipe = find("mtt/digits_ipc1")
    step = Sgd(lr=0.02, momentum=0.5)
    buffer = replace(recipe.buffer, step=step, num_experts=3, epochs=2, batch=64)
    recipe = replace(recipe, model=model, buffer=buffer)
    stores = []
    for seconds in ({1: 1.0, 2: 1.0, 3: 1.0}, {1: 1.0, 2: 2.0, 3: 3.0}):
        monkeypatch.setattr(together, "measured", lambda make, seconds=seconds: seconds)
        folder = tmp_path / str(seconds[3])
        stores.append(generate(None, recipe, folder=folder, device="cuda", progress=False))
    assert [store.manifest.get("together", 1) for store in stores] == [3, 1]
    for expert in range(3):
        ours, wanted = (store.snapshots(expert, [0, 1, 2]) for store in stores)
        assert torch.equal(ours[0], wanted[0])
        assert (ours - wanted).norm() < 0.02 * (wanted[2] - wanted[0]).norm()
        end, alone = (store.load(expert, 2) for store in stores)
        for a, b in zip(end.buffers(), alone.buffers(), strict=True):
            assert torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02)


def test_how_many_experts_are_trained_together_is_measured(tmp_path):
    """On the device, when a store is begun; the same store goes on with as many."""
    data = load_data(DataConfig(name="digits"), CUDA)
    config = BufferConfig(step=Sgd(lr=0.02), num_experts=4, epochs=1, batch=64)
    making = Making(
        data=data,
        data_config=DataConfig(name="digits"),
        config=config,
        model="convnet-d2-w16-in",
        new_model=network_maker(config, "convnet-d2-w16-in", data),
        folder=tmp_path / "store",
        is_named=True,
    )
    seconds = together.measured(making)
    assert list(seconds) == [1, 2, 4] and min(seconds.values()) > 0
    generate_all([making])
    assert together.chosen(making) == making.together in seconds
    wanted = load_file(shard_path(making.folder, 1))["params"]
    shard_path(making.folder, 1).unlink()
    generate_all([making])
    assert torch.equal(load_file(shard_path(making.folder, 1))["params"], wanted)


class Shrink(Pull):
    """Needs nothing from the host; not finite in its fourth step."""

    def losses(self, syn, state, step, rng):
        loss = 0.5 * syn.tensors["images"].square().sum() + syn.tensors["lr"]
        yield loss / 0 if step == 3 else loss


def on_device(device):
    """A set and the loop's settings, with everything the guard and the optimisers do."""
    syn = tiny_set(tiny_data(), lr=0.01)
    syn = replace(
        syn,
        tensors={k: v.to(device) for k, v in syn.tensors.items()},
        classes=syn.classes.to(device),
    )
    optim = {
        "images": OptimConfig(lr=0.1, momentum=0.5, weight_decay=0.01),
        "lr": OptimConfig(lr=0.002),
    }
    return syn, OuterConfig(steps=15, optim=optim, ema={"images": 0.9}, max_loss=1e6)


@pytest.mark.parametrize("step_after", ["all", "each"])
def test_an_outer_step_never_waits_for_the_device(step_after):
    """Guard, optimisers, running average and learned rate included."""
    syn, config = on_device(CUDA)
    state = outer.State(dict(syn.tensors), {}, {"images": syn.tensors["images"].clone()}, {})
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            outer.outer_step(syn, Shrink(), replace(config, step_after=step_after), state, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.guard.tolist() == [0, 1, 0, 1] and state.step == 5


def test_results_read_every_ten_steps_are_those_of_the_cpu(tmp_path):
    """The log, the counters and the images."""
    found = []
    for device in (CUDA, torch.device("cpu")):
        syn, config = on_device(device)
        result, counters = outer.distill(syn, Shrink(), config, tmp_path / device.type, seed=0)
        log = [
            json.loads(line)
            for line in (tmp_path / device.type / "metrics.jsonl").read_text().splitlines()
        ]
        found.append(
            (
                result.tensors["images"].cpu(),
                [(e["step"], e["applied"]) for e in log],
                [getattr(counters, n) for n in outer.COUNTS],
            )
        )
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5) and found[0][1:] == found[1][1:]


def test_runs_repeat_themselves_to_the_bit(tmp_path, monkeypatch):
    """Deterministic kernels: two runs from nothing give the same images, of as many experts
    together.
    """
    monkeypatch.setattr(together, "measured", lambda making: {1: 2.0, 2: 1.0})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert run("buffer", "mtt/digits_ipc1", *TINY, "--device", "cuda") == 0
        assert run("distill", "mtt/digits_ipc1", *TINY, "--device", "cuda", "--out", "run") == 0
    first, second = (
        load_file(tmp_path / name / "run/distilled/data.safetensors") for name in ("a", "b")
    )
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("init", ["real", "correct", "representative"])
def test_a_cross_runs_on_the_device(init, tmp_path, monkeypatch):
    """Smooth experts, every start, learned labels, intermediate losses, and evaluation with soft
    labels.
    """
    monkeypatch.chdir(tmp_path)
    flags = [
        *TINY_CROSS,
        "--device",
        "cuda",
        "--buffer.epochs",
        "8",
        "--buffer.step.sgd.lr",
        "0.03",
        "--buffer.batch",
        "16",
        "--init.kind",
        init,
    ]
    assert run("buffer", *flags) == 0
    assert run("distill", *flags, "--out", "cross") == 0
    few = ["--epochs", "2", "--num_networks", "3", "--full_steps", "5", "--lr_grid", "0.01"]
    assert run("evaluate", "cross", "--device", "cuda", *few) == 0


def test_expert_made_labels_on_the_device(tmp_path, monkeypatch):
    """TESLA's labels, made anew of the shipped images."""
    monkeypatch.chdir(tmp_path)
    soft = [
        "--objective.labels",
        "target",
        "--targets.kind",
        "logits",
        "--targets.experts",
        "all",
        "--targets.relabel",
        "True",
    ]
    assert run("buffer", "mtt/digits_ipc1", *TINY, "--device", "cuda") == 0
    assert (
        run(
            "distill",
            "mtt/digits_ipc1",
            *TINY,
            *soft,
            "--objective.backprop",
            "detached",
            "--device",
            "cuda",
            "--out",
            "run",
        )
        == 0
    )
    assert load_file("run/distilled/data.safetensors")["logits"].isfinite().all()


MATCHING = ["dc", "dsa", "dcc", "dm", "idc"]


def matching(method, compiles=False, **objective):
    """(objective, its set, the outer loop's settings) of a small cell on digits, on the device."""
    recipe = find(f"{method}/fashion_mnist_ipc10_small")
    networks = {"dm": {}, "idc": {"steps": 3, "images": 64}}.get(method, {"steps": 3, "epochs": 2})
    recipe = replace(
        recipe, data=DataConfig(name="digits"), model="convnet-d2-w32-in", ipc=2, outer=replace(recipe.outer, steps=6, checkpoint_every=3),
        objective=replace(recipe.objective, real_batch=16, networks=replace(recipe.objective.networks, **networks), **objective),
    )  # fmt: skip
    data = load_data(recipe.data, CUDA)

    def new_model(rng):
        return build_model(recipe.model, data.image_shape, data.num_classes, rng)

    model = FlatModel(new_model(generator(0))).to(CUDA)
    env = Env(data.train, new_model, model, None, CUDA, compiles)
    return recipe.objective.build(env), initial(recipe, data, generator(0, "init")), recipe.outer


def never_waits(objective, syn, config):
    """Outer steps after the first three, which make tables and compile."""
    state = outer.State(dict(syn.tensors), {}, {}, objective.init(generator(0)))
    for step in range(6):
        torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
        try:
            outer.outer_step(syn, objective, config, state, 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert state.step == 6


@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("method", MATCHING)
def test_a_step_of_a_matching_method_never_waits_for_the_device(method, compiles):
    """Drawing, augmenting, the networks' own training and the comparison included."""
    never_waits(*matching(method, compiles))


@pytest.mark.parametrize("method", MATCHING)
def test_class_passes_by_cuda_graphs_are_the_eager_ones(method):
    """Losses and slopes of steps, of which the later ones launch what the first recorded."""
    found = []
    for compiles in (False, True):
        objective, syn, _ = matching(method, compiles)
        state, of_steps = objective.init(generator(0)), []
        for step in range(3):
            images = syn.tensors["images"].clone().requires_grad_()
            seen = syn.with_tensors({"images": images})
            losses = list(objective.losses(seen, state, step, generator(1, step)))
            total = torch.stack([loss.detach() for loss in losses]).sum()
            of_steps.append((total, torch.autograd.grad(sum(losses), images)[0]))
        found.append(of_steps)
    for (loss, slope), (other, other_slope) in zip(*found, strict=True):
        assert torch.allclose(loss, other, rtol=1e-3)
        assert (slope - other_slope).norm() / slope.norm() < 1e-2


class Line:
    """Two networks and the line between them, in place of an expert."""

    num_experts, epochs = 1, tuple(range(51))

    def __init__(self, start, end):
        self.ends, self.num_params = (start, end), len(start)

    def snapshots(self, expert, epochs):
        start, end = self.ends
        return torch.stack([start.lerp(end, epoch / 50) for epoch in epochs])


@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["mtt/digits_ipc1", "rat/digits_ipc1"])
def test_a_step_through_inner_training_never_waits_for_the_device(name, compiles):
    """Segments, batches, augmentation, the way forwards and the way back."""
    recipe = find(name)
    data = load_data(recipe.data, CUDA)

    def new_model(rng):
        return build_model(recipe.model, data.image_shape, data.num_classes, rng)

    experts = Line(flatten(new_model(generator(1))), flatten(new_model(generator(2))))
    model = FlatModel(new_model(generator(0))).to(CUDA)
    env = Env(data.train, new_model, model, experts, CUDA, compiles)
    syn = initial(recipe, data, generator(0, "init"))
    never_waits(recipe.objective.build(env), syn, recipe.outer)


@pytest.mark.parametrize("method", MATCHING)
def test_classes_together_are_classes_one_by_one_on_the_device(method):
    """The sum of the losses and the gradient, from the same draws."""
    found = []
    for at_once in (1, 3, None):
        objective, syn, _ = matching(method, classes_at_once=at_once)
        images = syn.tensors["images"].clone().requires_grad_()
        losses = list(
            objective.losses(
                syn.with_tensors({"images": images}), objective.init(generator(0)), 0, generator(1)
            )
        )
        found.append((sum(losses), torch.autograd.grad(sum(losses), images)[0]))
    for loss, grad in found[1:]:
        assert torch.allclose(loss, found[0][0], rtol=1e-4)
        assert (grad - found[0][1]).norm() / found[0][1].norm() < 1e-3


@pytest.mark.parametrize("method", MATCHING)
def test_matching_runs_repeat_themselves_to_the_bit(method, tmp_path):
    """Deterministic kernels, and a resumed run is the uninterrupted one."""
    objective, syn, config = matching(method)
    whole, _ = outer.distill(syn, objective, config, tmp_path / "whole", seed=0)
    outer.distill(syn, objective, replace(config, steps=3), tmp_path / "parts", seed=0)
    again, _ = outer.distill(syn, objective, config, tmp_path / "parts", seed=0)
    assert torch.equal(whole.tensors["images"], again.tensors["images"])


# Statistics matching, with teachers that were never trained: their statistics are 0 and 1.

TAUGHT = {"infer": "compensators", "sre2l": "images"}  # what each method learns


def taught(method, **objective):
    """(objective, set, outer configuration) of a small recipe with two teachers on digits of 32 x
    32, on the device.
    """
    recipe = find(f"{method}/fashion_mnist_ipc10_small")
    names = ("convnet-d2-w32-bn", "resnet18-bn-x12")
    recipe = replace(
        recipe, data=DataConfig(name="digits", size=(32, 32)), teachers=names, model=names[0], ipc=4,
        outer=replace(recipe.outer, steps=6, checkpoint_every=3), objective=replace(recipe.objective, **objective),
    )  # fmt: skip
    data = load_data(recipe.data, CUDA)

    def network(number, epoch=0):
        return build_model(
            names[number], data.image_shape, data.num_classes, generator(number)
        ).eval()

    experts = SimpleNamespace(num_experts=2, num_params=0, epochs=(0,), load=network)
    env = Env(data.train, lambda rng: network(0), FlatModel(network(0)).to(CUDA), experts, CUDA)
    return recipe.objective.build(env), initial(recipe, data, generator(0, "init")), recipe.outer


@pytest.mark.parametrize("method", TAUGHT)
def test_a_step_of_statistics_matching_never_waits_for_the_device(method):
    """Decoding, shifting, statistics and Adam included."""
    objective, syn, config = taught(method)
    state = outer.State(dict(syn.tensors), {}, {}, objective.init(generator(0)))
    outer.outer_step(syn, objective, config, state, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            outer.outer_step(syn, objective, config, state, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.step == 5


@pytest.mark.parametrize("method", TAUGHT)
def test_batches_together_are_batches_one_by_one_on_the_device(method):
    """All in one pass, one after another, and each in parts: the same gradient."""
    found = []
    for at_once in (10**6, 10, 3):
        objective, syn, _ = taught(method, images_at_once=at_once)
        learned = syn.tensors[TAUGHT[method]].clone().requires_grad_()
        for loss in objective.losses(
            syn.with_tensors({TAUGHT[method]: learned}), {}, 0, generator(1)
        ):
            loss.backward()
        found.append(learned.grad)
    for grad in found[1:]:
        assert (grad - found[0]).norm() / found[0].norm() < 1e-3


@pytest.mark.parametrize("method", TAUGHT)
def test_statistics_matching_repeats_itself_to_the_bit(method, tmp_path):
    """Deterministic kernels, and a resumed run is the uninterrupted one, Adam's means included."""
    objective, syn, config = taught(method)
    # of any number of steps
    config = replace(
        config,
        optim={name: replace(own, schedule="constant") for name, own in config.optim.items()},
    )
    whole, _ = outer.distill(syn, objective, config, tmp_path / "whole", seed=0)
    outer.distill(syn, objective, replace(config, steps=3), tmp_path / "parts", seed=0)
    again, _ = outer.distill(syn, objective, config, tmp_path / "parts", seed=0)
    assert torch.equal(whole.tensors[TAUGHT[method]], again.tensors[TAUGHT[method]])
