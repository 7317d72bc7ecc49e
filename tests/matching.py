"""What the tests of gradient and distribution matching share: small worlds of any dtype, and plain
references that use nn.Module alone.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional

from ddengine.data import Preprocess, RealSet
from ddengine.learning import augment
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.sets.codec import Identity
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist
from ddengine.system.rng import generator

CPU = torch.device("cpu")
NETWORK = "convnet-d2-w4-in"


def tiny_world(
    dtype=torch.float64,
    *,
    model=NETWORK,
    num_classes=10,
    shape=(1, 8, 8),
    ipc=2,
    per_class=20,
    codec=Identity(),
):
    """(env, set): random images whose classes are of different sizes and not in order, and a set of
    noise.
    """
    g = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((per_class + c % 3,), c) for c in range(num_classes)])
    labels = labels[torch.randperm(len(labels), generator=g)]
    pixels = torch.randint(0, 256, (len(labels), *shape), generator=g, dtype=torch.uint8)
    # the classes differ
    pixels = (pixels.float() * 0.5 + labels.view(-1, 1, 1, 1) * 12).to(torch.uint8)
    preprocess = Preprocess(
        mean=torch.linspace(0.4, 0.5, shape[0]).to(dtype),
        std=torch.linspace(0.3, 0.25, shape[0]).to(dtype),
    )
    real = RealSet(pixels, labels, num_classes, preprocess)

    def new_model(rng):
        return build_model(model, shape, num_classes, rng).to(dtype)

    env = Env(real, new_model, FlatModel(new_model(generator(0))), None, CPU)
    images = torch.rand(num_classes * ipc, *shape, generator=g).to(dtype)
    images = images if codec.space == "pixel" else preprocess.forward(images)
    classes = torch.arange(num_classes).repeat_interleave(ipc)
    return env, SyntheticSet(
        {"images": images},
        classes,
        tuple(map(str, range(num_classes))),
        codec,
        preprocess,
        space=codec.space,
    )


def ours(objective, syn, *, state=None, step=0, rng=None):
    """([losses], gradient in the stored images) of one step."""
    images = syn.tensors["images"].detach().clone().requires_grad_()
    state = objective.init(generator(0)) if state is None else state
    losses = []
    for loss in objective.losses(
        syn.with_tensors({"images": images}), state, step, rng or generator(1, "losses")
    ):
        assert loss.shape == ()
        loss.backward()
        losses.append(loss.detach())
    return losses, images.grad


def on_ranks(monkeypatch, ranks, work):
    """What `work` returns on each of several ranks: threads, of which one at a time computes until
    it waits for the others, because networks are built by torch's global generator.
    """
    here, barrier = threading.local(), threading.Barrier(ranks, timeout=300)
    slots, turn = [None] * ranks, threading.Lock()

    def wait():
        turn.release()
        try:
            barrier.wait()
        finally:
            turn.acquire()

    def united(how):
        def unite(tensors):
            tensors = list(tensors)
            slots[here.rank] = [tensor.detach().clone() for tensor in tensors]
            wait()
            values = [how(of_all) for of_all in zip(*slots, strict=True)]
            wait()  # all have read
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)

        return unite

    def rank(number):
        here.rank = number
        try:
            with turn:
                return work()
        except BaseException:
            barrier.abort()
            raise

    with monkeypatch.context() as patched, ThreadPoolExecutor(ranks) as threads:
        patched.setattr(dist, "num_ranks", lambda: ranks)
        patched.setattr(dist, "rank", lambda: here.rank)
        patched.setattr(dist, "total", united(sum))
        patched.setattr(dist, "from_first", united(lambda of_all: of_all[0]))
        return list(threads.map(rank, range(ranks)))


def close(a, b, relative):
    """Equal up to a part of the largest number."""
    a, b = a.detach(), b.detach()
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= relative * float(b.abs().max()), (
        f"{float((a - b).abs().max() / b.abs().max()):.3g}"
    )


def own_examples(syn, class_):
    """Indices of the decoded examples of a class, one by one."""
    source = syn.codec.source(syn.tensors).tolist()
    return [i for i, item in enumerate(source) if int(syn.classes[item]) == class_]


def plain_distance(real, syn, metric, tensors):
    """The distance between two lists of gradients, tensor by tensor and row by row."""
    fewest = {"weights": 2, "convolutions": 3, "all": 0}[tensors]
    pairs = [(r, s) for r, s in zip(real, syn, strict=True) if r.dim() >= fewest]
    if metric == "layerwise":
        total = 0.0
        for r, s in pairs:
            for a, b in zip(r.reshape(len(r), -1), s.reshape(len(s), -1), strict=True):
                total = total + 1 - torch.dot(a, b) / (a.norm() * b.norm() + 1e-6)
        return total
    if metric == "cos":
        a, b = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        return 1 - torch.dot(a, b) / (a.norm() * b.norm() + 1e-6)
    power = {"mse": lambda d: d.pow(2), "l1": lambda d: d.abs()}[metric]
    return sum(power(r - s).sum() for r, s in pairs)


def cross_entropy(logits, targets):
    """With classes or the softmax of logits, written out."""
    shares = (
        targets.softmax(1)
        if targets.is_floating_point()
        else functional.one_hot(targets, logits.shape[1]).to(logits)
    )
    return -(shares * logits.log_softmax(1)).sum(1).mean()


def set_statistics(network, images):
    """BatchNorm layers of the module get the statistics of these images and keep them."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(images)
    return network.eval()


def draws_of(config, env, syn, network, rng):
    """The random numbers of a step, in their order: statistics, real images, synthetic examples,
    augmentation.
    """
    if any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()):
        set_statistics(network, env.real.images(env.real.draw_each(16, rng).flatten()))
    real = env.real.draw_each(config.real_batch, rng)
    members = [own_examples(syn, c) for c in range(env.real.num_classes)]
    if config.syn_batch is not None and config.syn_batch < len(members[0]):
        keys = torch.rand(len(members), len(members[0]), generator=child(rng), dtype=torch.float64)
        members = [
            [m[i] for i in row.argsort(descending=True)[: config.syn_batch].tolist()]
            for m, row in zip(members, keys, strict=True)
        ]
    draw = augment.sample(config.augment, 1, rng, groups=len(members), shared=True)
    return real, members, draw


def child(rng):
    """The generator that follows from another."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=rng)))


def plain_gradient_matching(config, env, syn, network, rng, *, together=False):
    """(loss, gradient in the stored images), class by class with a module."""
    real, members, draw = draws_of(config, env, syn, network, rng)
    params = list(network.parameters())
    stored = syn.tensors["images"].detach().clone().requires_grad_()
    own = syn.with_tensors({"images": stored})
    theirs, images, targets = [], [], []
    for c, (index, examples) in enumerate(zip(real, members, strict=True)):
        batch = env.real.batch(index)
        assert (batch.targets == c).all()
        x = augment.apply(config.augment, batch.images, draw.part(slice(c, c + 1)))
        theirs.append(torch.autograd.grad(cross_entropy(network(x), batch.targets), params))
        batch = own.batch(torch.tensor(examples))
        images.append(augment.apply(config.augment, batch.images, draw.part(slice(c, c + 1))))
        targets.append(batch.targets)
    if together:
        mean = [torch.stack(parts).mean(0) for parts in zip(*theirs, strict=True)]
        mine = torch.autograd.grad(
            cross_entropy(network(torch.cat(images)), torch.cat(targets)), params, create_graph=True
        )
        loss = plain_distance(mean, mine, config.metric, config.tensors)
    else:
        loss = 0.0
        for their, x, t in zip(theirs, images, targets, strict=True):
            mine = torch.autograd.grad(cross_entropy(network(x), t), params, create_graph=True)
            loss = loss + plain_distance(their, mine, config.metric, config.tensors)
    return loss.detach(), torch.autograd.grad(loss, stored)[0]
