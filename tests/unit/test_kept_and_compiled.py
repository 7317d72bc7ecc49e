"""Ways to the gradient through inner training that must not change it: graphs that are kept, and
compiled graphs of the inner gradient and of its pullback.
"""

from functools import partial

import pytest
import torch
from torch.nn import functional

from ddengine.learning import augment
from ddengine.learning.flat import FlatModel, flatten
from ddengine.learning.graphs import by_inductor
from ddengine.learning.inner import (
    ByAutograd,
    Compiled,
    eager_gradient,
    inner_gradient,
    with_weight_decay,
)
from ddengine.learning.unroll import unroll
from ddengine.learning.updates import Adam, HeavyBall, Sgd
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig
from ddengine.system.rng import generator

F64 = torch.float64
SHAPE, CLASSES, STEPS = (1, 8, 8), 3, 4
UPDATES = {"sgd": Sgd(), "heavy ball": HeavyBall(momentum=0.9), "adam": Adam(eps=1e-3)}


def network(name, dtype=F64):
    """A tiny network."""
    return build_model(name, SHAPE, CLASSES, generator(1, "network")).to(dtype)


def loss_of(name="convnet-d1-w4-in", precision="fp32", dtype=F64):
    """Cross-entropy in a network, of hard or soft targets."""
    model = FlatModel(network(name, dtype), precision)

    def loss(theta, images, targets):
        return functional.cross_entropy(model(theta, images), targets)

    return loss


def reached(inner, start, *, update="sgd", hard=False, dtype=F64, by_step=False, **how):
    """(what `unroll` returns, its gradients in start, rates, images and, soft, labels)."""
    rng = generator(2, "problem")
    images = torch.randn(6, *SHAPE, generator=rng, dtype=F64).to(dtype).requires_grad_()
    logits = torch.randn(6, CLASSES, generator=rng, dtype=F64).to(dtype)
    targets = torch.arange(6) % CLASSES if hard else logits.requires_grad_()
    config = AugmentConfig()
    index = [torch.randperm(6, generator=rng)[: 4 - k % 2] for k in range(STEPS)]
    draws = [augment.sample(config, len(chosen), rng) for chosen in index]

    def batch(tensors, k):
        labels = tensors["labels"][index[k]]
        seen = augment.apply(config, tensors["images"][index[k]], draws[k])
        return seen, labels if hard else labels.softmax(1)

    theta = start.clone().requires_grad_()
    lr = torch.full((STEPS,) if by_step else (), 0.05, dtype=dtype).requires_grad_()
    inputs = {"images": images, "labels": targets}
    out = unroll(inner, batch, theta, inputs, STEPS, lr=lr, update=UPDATES[update], **how)
    learned = [theta, lr, images] if hard else [theta, lr, images, targets]
    weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
    return [out, *torch.autograd.grad((out.square() * weights).sum(), learned)]


def as_it_is(graph):
    """In place of a compiler."""
    return graph


def most_apart(ours, theirs):
    """The largest relative difference of pairs of tensors."""
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        apart = (a - b).detach().norm() / b.detach().norm().clamp(min=1e-30)
        largest = max(largest, float(apart))
    return largest


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("by_step", [False, True])
def test_any_number_of_kept_graphs_gives_one_gradient(update, by_step):
    """With comparisons on the way, learned rates and labels, and ragged batches."""
    inner, start = inner_gradient(loss_of()), flatten(network("convnet-d1-w4-in"))
    ask = partial(reached, inner, start, update=update, by_step=by_step, keep=(1, 3))
    full = ask(backprop="full")
    for kept in range(STEPS + 1):
        assert most_apart(ask(kept_graphs=kept), full) < 1e-12, kept


def test_kept_graphs_are_not_built_again():
    """The gradient of a step is asked for once where its graph is kept, else twice."""
    asked = []
    loss = loss_of()

    def counted(theta, *batch):
        asked.append(len(batch[0]))
        return loss(theta, *batch)

    inner, start = ByAutograd(eager_gradient(counted)), flatten(network("convnet-d1-w4-in"))
    for kept in (0, 1, STEPS):
        asked.clear()
        reached(inner, start, kept_graphs=kept)
        assert len(asked) == 2 * STEPS - kept
    with torch.no_grad():
        asked.clear()
        batch = (torch.zeros(2, *SHAPE, dtype=F64), torch.zeros(2, dtype=torch.long))
        unroll(inner, lambda _, k: batch, start, {}, STEPS, lr=0.1, kept_graphs=STEPS)
        assert len(asked) == STEPS


def test_detached_with_kept_graphs_is_still_detached():
    inner, start = inner_gradient(loss_of()), flatten(network("convnet-d1-w4-in"))
    plain = reached(inner, start, backprop="detached")
    assert most_apart(reached(inner, start, backprop="detached", kept_graphs=2), plain) < 1e-12
    assert most_apart(plain, reached(inner, start)) > 1e-3


@pytest.mark.parametrize("name, hard", [("convnet-d1-w4-in", False), ("convnet-d1-w4-bn-mp", True)])
def test_compiled_equals_eager(name, hard):
    """As a compiler is given it, to rounding."""
    loss, start = with_weight_decay(loss_of(name), 0.01), flatten(network(name))
    compiled = Compiled(loss, compiler=as_it_is)
    for how in ({"keep": (1, 3)}, {"backprop": "detached"}):
        theirs = reached(inner_gradient(loss), start, hard=hard, **how)
        assert most_apart(reached(compiled, start, hard=hard, **how), theirs) < 1e-12


def test_a_compiled_pullback_is_one_graph_that_is_compiled_once():
    """For each shape and each set of tensors that gradients are asked for in."""
    graphs = []

    def noted(graph):
        graphs.append(graph)
        return graph

    inner = Compiled(loss_of(), compiler=noted)
    start = flatten(network("convnet-d1-w4-in"))
    images, r = torch.randn(4, *SHAPE, dtype=F64, requires_grad=True), torch.randn_like(start)
    labels = torch.arange(4) % CLASSES
    for _ in range(3):
        pulled = inner.pullback(start, images, labels, r=r)
    assert len(graphs) == 1
    assert pulled.batch[1] is None and not pulled.batch[0].requires_grad
    fixed = inner.pullback(start, images.detach(), labels, r=r, curvature=False)
    assert fixed.curvature is None and fixed.batch == (None, None) and len(graphs) == 2
    assert torch.equal(fixed.product, pulled.product)
    inner.pullback(start, images[:3], labels[:3], r=r)
    assert len(graphs) == 3


@pytest.mark.parametrize("compiler", [as_it_is, pytest.param(by_inductor, marks=pytest.mark.slow)])
def test_bfloat16_compiled_is_as_near_to_the_exact_gradient_as_eager(compiler):
    torch._dynamo.reset()
    loss = loss_of(precision="bf16", dtype=torch.float32)
    start = flatten(network("convnet-d1-w4-in", torch.float32))
    ask = partial(reached, start=start, hard=True, dtype=torch.float32)
    exact = ask(inner_gradient(loss_of(dtype=torch.float32)))
    eager = most_apart(ask(inner_gradient(loss)), exact)
    compiled = most_apart(ask(Compiled(loss, compiler=compiler)), exact)
    assert 1e-6 < compiled < 2 * eager < 0.5


@pytest.mark.parametrize(
    ("told", "place", "mended"),
    [
        ("ImportError: {}: file too short", "the code/ab", True),
        ("ImportError: {}: file too short", "elsewhere", False),  # it was not compiled here
        ("{}", "the code/ab", False),
    ],
)
def test_compiled_code_that_a_kill_has_cut_is_compiled_again(
    tmp_path, monkeypatch, told, place, mended
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "the code"))
    library = tmp_path / place / "code.main.so"
    library.parent.mkdir(parents=True)
    library.touch()

    def compile_once(graph, **how):
        def function(*tensors):
            if library.exists():
                raise RuntimeError(told.format(library))
            return graph(*tensors)

        return function

    monkeypatch.setattr(torch, "compile", compile_once)
    if mended:
        assert by_inductor(torch.add)(torch.ones(1), torch.ones(1)) == 2
    else:
        with pytest.raises(RuntimeError):
            by_inductor(torch.add)(torch.ones(1), torch.ones(1))
    assert library.exists() is not mended


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet-d1-w4-in", "convnet-d1-w4-bn-mp"])
def test_compiled_equals_eager_with_inductor(name):
    """Through the compiler that --compile uses, with every update and rates of each step."""
    torch._dynamo.reset()
    loss, start = loss_of(name), flatten(network(name))
    compiled, eager = inner_gradient(loss, True), inner_gradient(loss)
    for update in UPDATES:
        how = {"start": start, "update": update, "keep": (2,), "by_step": True}
        assert most_apart(reached(compiled, **how), reached(eager, **how)) < 1e-12
