"""The networks that gradient and distribution matching look through, against torch.optim.SGD on
modules.
"""

from dataclasses import replace

import pytest
import torch
from matching import child, close, cross_entropy, tiny_world

from ddengine.learning import augment
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.recipe import AugmentConfig, OptimConfig
from ddengine.sets.codec import MultiFormation
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.gradient import GradientMatching
from synth.networks import (
    PUBLISHED_EPOCHS,
    OnReal,
    OnSynthetic,
    OuterStep,
    Untrained,
    loop_counts,
    training_gradient,
)

F64 = torch.float64
NONE = AugmentConfig(ops=())
KINDS = {
    "untrained": Untrained(),
    "synthetic": OnSynthetic(steps=3, epochs=2, batch=7),
    "real": OnReal(steps=3, images=30, batch=16),
}


def walk(networks, env, syns, config=NONE, state=None, first=0):
    """The parameters at each step, on a set of its own each."""
    gradient = training_gradient(env)
    state = networks.state(env) if state is None else state
    return [
        networks.next(OuterStep(env, gradient, syn, state, step, config, generator(step))).clone()
        for step, syn in enumerate(syns, first)
    ], state


def moving(syn, num):
    """The set at several steps, each time a little different."""
    return [syn.with_tensors({"images": syn.tensors["images"] + 0.1 * step}) for step in range(num)]


def plain_on_synthetic(networks, steps, epochs, env, syns, config=NONE):
    """As a loop over modules."""
    found, net, optimiser = [], None, None
    for step, syn in enumerate(syns):
        rng = generator(step)
        if step % steps == 0:
            net = env.new_model(rng).train()
            optimiser = torch.optim.SGD(net.parameters(), lr=networks.lr)
        else:
            with torch.no_grad():
                images, targets = syn.batch(torch.arange(len(syn)))
            order = child(rng)
            for _ in range(epochs):
                left = torch.randperm(len(syn), generator=order).tolist()
                while left:
                    index, left = left[: networks.batch], left[networks.batch :]
                    x = augment.apply(
                        config, images[index], augment.sample(config, len(index), rng)
                    )
                    optimiser.zero_grad()
                    cross_entropy(net(x), targets[index]).backward()
                    optimiser.step()
        found.append(flatten(net))
    return found


@pytest.mark.parametrize(
    "config", [NONE, AugmentConfig(), AugmentConfig(always=("color", "crop"), ops=())]
)
@pytest.mark.parametrize("batch", [7, 20, 64])
def test_on_synthetic_is_sgd_on_a_module(batch, config):
    """The same parameters at seven steps of three networks; 20 images in batches of 7, 7 and 6."""
    env, syn = tiny_world(F64)
    networks = OnSynthetic(steps=3, epochs=2, batch=batch, lr=0.1)
    syns = moving(syn, 7)
    found, _ = walk(networks, env, syns, config)
    for ours, theirs in zip(
        found, plain_on_synthetic(networks, 3, 2, env, syns, config), strict=True
    ):
        close(ours, theirs, 1e-12)
    stale, _ = walk(networks, env, [syn] * 7, config)
    # trained on what the images have become
    assert torch.equal(stale[0], found[0]) and not torch.allclose(stale[1], found[1], rtol=1e-3)


@pytest.mark.parametrize("kind", ["soft", "tiles", "norm"])
def test_on_synthetic_with_soft_labels_tiles_and_batch_norm(kind):
    env, syn = tiny_world(
        F64,
        **{
            "soft": {},
            "tiles": {"codec": MultiFormation(factor=2)},
            "norm": {"model": "convnet-d2-w4-bn"},
        }[kind],
    )
    if kind == "soft":
        syn = syn.with_labels(
            torch.randn(len(syn), 10, generator=generator(0), dtype=F64), dtype=F64
        )
    before = env.model.normed and flatten_buffers(env.model.normed)
    networks = OnSynthetic(steps=3, epochs=2, batch=7, lr=0.1)
    found, _ = walk(networks, env, [syn] * 5)
    for ours, theirs in zip(found, plain_on_synthetic(networks, 3, 2, env, [syn] * 5), strict=True):
        close(ours, theirs, 1e-12)
    assert before is None or torch.equal(flatten_buffers(env.model.normed), before)


def test_on_synthetic_loses_nothing():
    """Every image once an epoch with its own label, in an order of its own; the last batch is as
    large as what is left.
    """
    env, syn = tiny_world(F64)
    seen = []

    def gradient(theta, images, targets, mix=None):
        assert mix is None
        seen.append((images, targets))
        return torch.zeros_like(theta)

    networks, state = OnSynthetic(steps=5, epochs=3, batch=7), {}
    for step in (0, 1):
        networks.next(OuterStep(env, gradient, syn, state, step, NONE, generator(step)))
    assert [len(images) for images, _ in seen] == [7, 7, 6] * 3
    orders = []
    for epoch in range(3):
        images, targets = (
            torch.cat(parts) for parts in zip(*seen[3 * epoch : 3 * epoch + 3], strict=True)
        )
        which = (
            (images.flatten(1)[:, None] == syn.tensors["images"].flatten(1))
            .all(2)
            .float()
            .argmax(1)
        )
        assert which.sort().values.tolist() == list(range(20)) and torch.equal(
            targets, syn.classes[which]
        )
        orders.append(which.tolist())
    assert orders[0] != orders[1] != orders[2]


def plain_on_real(networks, env, num):
    """As a loop over modules with an optimiser that lives as long as its network."""
    found, optim = [], networks.optim
    for step in range(num):
        rng = generator(step)
        if step % networks.steps == 0:
            net = env.new_model(rng).train()
            optimiser = torch.optim.SGD(
                net.parameters(),
                lr=optim.lr,
                momentum=optim.momentum,
                weight_decay=optim.weight_decay,
            )
        else:
            left = torch.randperm(len(env.real), generator=child(rng))[: networks.images].tolist()
            while left:
                index, left = left[: networks.batch], left[networks.batch :]
                images, targets = env.real.batch(torch.tensor(index))
                images = augment.apply(
                    networks.augment, images, augment.sample(networks.augment, len(index), rng)
                )
                mix = augment.sample_cutmix(
                    networks.cutmix, len(index), tuple(images.shape[2:]), rng
                )
                mixed = images.clone()
                if mix is not None:
                    top, bottom, left_, right = mix.box
                    for i, partner in enumerate(mix.partner.tolist()):
                        mixed[i, :, top:bottom, left_:right] = images[
                            partner, :, top:bottom, left_:right
                        ]
                logits = net(mixed)
                loss = cross_entropy(logits, targets)
                if mix is not None:
                    loss = mix.share * loss + (1 - mix.share) * cross_entropy(
                        logits, targets[mix.partner]
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        found.append(flatten(net))
    return found


@pytest.mark.parametrize("cutmix", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("size", [(30, 16), (1000, 70), (5, 64)])
def test_on_real_is_sgd_with_momentum_and_weight_decay(size, cutmix):
    """The same parameters at seven steps of three networks: momentum lives as long as the network."""
    env, syn = tiny_world(F64)
    networks = OnReal(
        steps=3,
        images=size[0],
        batch=size[1],
        cutmix=cutmix,
        optim=OptimConfig(lr=0.05, momentum=0.9, weight_decay=0.01),
    )
    found, state = walk(networks, env, [syn] * 7)
    assert set(state) == {"theta", "momentum"}
    for ours, theirs in zip(found, plain_on_real(networks, env, 7), strict=True):
        close(ours, theirs, 1e-12)


@pytest.mark.parametrize(
    "optim",
    [
        OptimConfig(lr=0.1, momentum=0.0),
        OptimConfig(lr=0.1, momentum=0.5),
        OptimConfig(lr=0.01, weight_decay=0.1),
    ],
)
def test_on_real_with_other_optimisers_and_batch_norm(optim):
    env, syn = tiny_world(F64, model="convnet-d2-w4-bn", shape=(3, 8, 9))
    buffers = flatten_buffers(env.model.normed)
    networks = OnReal(steps=4, images=40, batch=16, cutmix=0.0, optim=optim)
    for ours, theirs in zip(
        walk(networks, env, [syn] * 4)[0], plain_on_real(networks, env, 4), strict=True
    ):
        close(ours, theirs, 1e-12)
    assert torch.equal(flatten_buffers(env.model.normed), buffers)


def test_on_real_sees_other_images_each_time_and_none_twice():
    """Of the training split; all of it where more are asked for than there are."""
    env, syn = tiny_world(F64)
    calls, original = [], env.real.batch
    env.real.batch = lambda index: calls.append(index) or original(index)
    walk(OnReal(steps=3, images=40, batch=16), env, [syn] * 3)
    assert [len(index) for index in calls] == [16, 16, 8] * 2
    one, two = torch.cat(calls[:3]), torch.cat(calls[3:])
    assert len(one.unique()) == len(two.unique()) == 40 and one.tolist() != two.tolist()
    calls.clear()
    walk(OnReal(steps=3, images=10**6, batch=50), env, [syn] * 2)
    assert torch.cat(calls).sort().values.tolist() == list(range(len(env.real)))


def test_momentum_is_carried_and_cleared():
    """It is zero when a network is new, and then what torch.optim.SGD has."""
    env, syn = tiny_world(F64)
    networks, gradient = OnReal(steps=3, images=30, batch=16, cutmix=0.0), training_gradient(env)
    state = networks.state(env)
    moments = []
    for step in range(5):
        networks.next(OuterStep(env, gradient, syn, state, step, NONE, generator(step)))
        moments.append(state["momentum"].clone())
    assert (
        not moments[0].any()
        and moments[1].any()
        and not torch.equal(moments[1], moments[2])
        and not moments[3].any()
        and moments[4].any()
    )


def test_networks_are_trained_at_all():
    """The loss on real images falls."""
    env, syn = tiny_world(F64)
    networks = OnReal(
        steps=20,
        images=200,
        batch=32,
        cutmix=0.0,
        augment=NONE,
        optim=OptimConfig(lr=0.05, momentum=0.9),
    )
    thetas, _ = walk(networks, env, [syn] * 8)
    images, targets = env.real.batch(torch.arange(len(env.real)))
    levels = [
        float(cross_entropy(env.model(theta, images), targets)) for theta in (thetas[0], thetas[-1])
    ]
    assert levels[1] < 0.7 * levels[0]


@pytest.mark.parametrize("kind", KINDS)
def test_when_networks_are_new(kind):
    """A new network is what the builder makes of the step's stream; the others are not."""
    env, syn = tiny_world(F64)
    found, _ = walk(KINDS[kind], env, [syn] * 7)
    new = [
        torch.equal(theta, flatten(env.new_model(generator(step))))
        for step, theta in enumerate(found)
    ]
    assert new == [kind == "untrained" or step % 3 == 0 for step in range(7)]
    assert len({tuple(theta.tolist()) for theta in found}) == 7
    rounds = [KINDS[kind].round(syn, step) for step in range(7)]
    assert rounds == [
        (step, 0) if kind == "untrained" else (step // 3, step % 3) for step in range(7)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_decides_the_network_and_the_state_all_that_is_kept(kind):
    """Going on from a copy of the state gives the same numbers; the global generator is not
    touched, nor are earlier parameters.
    """
    env, syn = tiny_world(F64, model="convnet-d2-w4-bn")
    before = torch.get_rng_state()
    torch.manual_seed(1)
    syns = moving(syn, 6)
    whole, _ = walk(KINDS[kind], env, syns, AugmentConfig())
    torch.manual_seed(2)
    first, state = walk(KINDS[kind], env, syns[:2], AugmentConfig())
    copied = {k: v.clone() for k, v in state.items()}
    rest, _ = walk(KINDS[kind], env, syns[2:], AugmentConfig(), copied, first=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, first + rest, strict=True))
    torch.manual_seed(3)
    kept = torch.get_rng_state()
    walk(KINDS[kind], env, syns[:2])
    assert torch.equal(torch.get_rng_state(), kept)
    torch.set_rng_state(before)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_a_step_are_not_changed_by_the_next(kind):
    """A graph or a log may still hold them."""
    env, syn = tiny_world(F64)
    gradient, networks = training_gradient(env), KINDS[kind]
    state = networks.state(env)
    held = [
        networks.next(OuterStep(env, gradient, syn, state, step, NONE, generator(step)))
        for step in range(3)
    ]
    copies, _ = walk(networks, env, [syn] * 3)
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
    assert not any(theta.requires_grad for theta in held)


@pytest.mark.parametrize(("networks", "names"), [
    (Untrained(), set()), (OnSynthetic(steps=1), set()), (OnReal(steps=1), set()),
    (OnSynthetic(steps=2), {"theta"}), (OnSynthetic(), {"theta"}), (OnReal(steps=2), {"theta", "momentum"}),
])  # fmt: skip
def test_state_holds_what_is_kept(networks, names):
    """At ipc 2, before the first step and after some: {} exactly where each network serves a single
    step.
    """
    env, syn = tiny_world(F64)
    state = networks.state(env)
    assert set(state) == names and all(v.shape == (env.model.num_params,) for v in state.values())
    _, state = walk(networks, env, [syn] * 3, state=state)
    assert set(state) == names
    assert (
        GradientMatching(networks=networks, real_batch=5).build(env).init(generator(0)).keys()
        == names
    )


def test_nothing_is_kept_of_networks_of_one_step():
    """So that several draws and ranks can share the work."""
    env, syn = tiny_world(F64, ipc=1)
    networks = OnSynthetic(steps=1)
    assert networks.counts(syn)[0] == 1
    state = networks.state(env)
    walk(networks, env, [syn] * 3, state=state)
    assert state == {}


def test_loop_counts():
    """The published table, what lies between, and beyond."""
    assert {ipc: loop_counts(ipc) for ipc in (1, 10, 20, 30, 40, 50)} == {
        1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10),
    }  # fmt: skip
    assert (
        loop_counts(2) == (2, round(1 + 49 / 9))
        and loop_counts(15) == (15, round(37.5))
        and loop_counts(45) == (45, round(12.5))
    )
    assert loop_counts(51) == loop_counts(1000) == (50, 10)
    assert list(PUBLISHED_EPOCHS) == sorted(PUBLISHED_EPOCHS) and all(
        loop_counts(ipc)[1] >= 1 for ipc in range(1, 60)
    )


def test_counts_are_by_stored_images():
    """Two stored images per class decode to eight, and count as two; what is set goes before."""
    _, syn = tiny_world(F64, codec=MultiFormation(factor=2))
    assert len(syn) == 80
    assert OnSynthetic().counts(syn) == loop_counts(2)
    assert OnSynthetic(steps=4).counts(syn) == (4, loop_counts(2)[1]) and OnSynthetic(
        epochs=9
    ).counts(syn) == (2, 9)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: OnSynthetic(steps=0), "networks.steps must be at least 1, got 0"),
    (lambda: OnSynthetic(epochs=0), "networks.epochs must be at least 1"),
    (lambda: OnSynthetic(batch=0), "networks.batch must be at least 1"),
    (lambda: OnSynthetic(lr=0.0), "networks.lr must be positive"),
    (lambda: OnReal(images=0), "networks.images must be at least 1"),
    (lambda: OnReal(cutmix=1.5), "networks.cutmix is a probability"),
])  # fmt: skip
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert words in str(error.value)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_of_the_network_is_followed_or_refused(schedule):
    env, syn = tiny_world(F64)
    plain = OnReal(steps=4, images=30, batch=16, optim=OptimConfig(lr=0.05, momentum=0.9))
    try:
        scheduled = replace(plain, optim=replace(plain.optim, schedule=schedule))
    except UserError:
        return
    pairs = zip(
        walk(plain, env, [syn] * 4)[0][1:], walk(scheduled, env, [syn] * 4)[0][1:], strict=True
    )
    assert not all(torch.equal(a, b) for a, b in pairs)
