"""Distribution matching against its definition with modules, class by class."""

from dataclasses import replace

import pytest
import torch
from matching import close, draws_of, on_ranks, ours, own_examples, tiny_world

from ddengine import loop
from ddengine.data import RealSet
from ddengine.learning import augment
from ddengine.recipe import AugmentConfig, OptimConfig, OuterConfig
from ddengine.sets.codec import MultiFormation
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.distances import Characteristic, LearnedCharacteristic, Means
from synth.distribution import DistributionMatching
from synth.networks import OnReal, OnSynthetic, Untrained

F32, F64 = torch.float32, torch.float64
NONE, IDC = AugmentConfig(ops=()), AugmentConfig(always=("color", "crop", "cutout"), ops=())
DM = DistributionMatching(networks=Untrained(), augment=NONE, real_batch=9)


def definition(config, env, syn, *, seed=1, norm=False):
    """(loss, gradient in the stored images): the module's input of its last layer, averaged by
    class.
    """
    rng = generator(seed, "losses")
    network = env.new_model(rng).train()
    real, members, draw = draws_of(config, env, syn, torch.nn.Identity(), rng)
    stored = syn.tensors["images"].detach().clone().requires_grad_()
    own = syn.with_tensors({"images": stored})
    caught = []
    network.classifier.register_forward_hook(
        lambda module, inputs, output: caught.append(inputs[0])
    )

    def embedded(batches):
        """Means by class; with BatchNorm all classes are one batch."""
        if norm:
            network(torch.cat(batches))
            return [part.mean(0) for part in caught.pop().split([len(b) for b in batches])]
        return [(network(b), caught.pop().mean(0))[1] for b in batches]

    parts = [draw.part(slice(c, c + 1)) for c in range(len(members))]
    theirs = [
        augment.apply(config.augment, env.real.images(index), part)
        for index, part in zip(real, parts, strict=True)
    ]
    mine = [
        augment.apply(config.augment, own.batch(torch.tensor(m)).images, part)
        for m, part in zip(members, parts, strict=True)
    ]
    loss = sum(
        ((a.detach() - b) ** 2).sum() for a, b in zip(embedded(theirs), embedded(mine), strict=True)
    )
    return float(loss.detach()), torch.autograd.grad(loss, stored)[0]


def agree(config, env, syn, relative, **kind):
    losses, grad = ours(config.build(env), syn)
    loss, wanted = definition(config, env, syn, **kind)
    assert float(sum(losses)) == pytest.approx(loss, rel=relative)
    close(grad, wanted, relative)
    return losses


@pytest.mark.parametrize("config", [NONE, AugmentConfig(), IDC], ids=["none", "dsa", "always"])
@pytest.mark.parametrize(("dtype", "at_once"), [(F32, 3), (F64, 1), (F64, 3), (F64, None)])
def test_loss_and_gradient_are_those_of_the_definition(dtype, at_once, config):
    losses = agree(
        replace(DM, augment=config, classes_at_once=at_once),
        *tiny_world(dtype),
        {F32: 1e-2, F64: 1e-10}[dtype],
    )
    assert len(losses) == {1: 10, 3: 4, None: 1}[at_once]


@pytest.mark.parametrize("model", ["convnet-d2-w4-in", "mlp", "lenet"])
def test_colour_that_is_not_square_tiles_and_other_networks(model):
    for codec in ({}, {"codec": MultiFormation(factor=2)}):
        env, syn = tiny_world(F64, shape=(3, 9, 12), num_classes=5, model=model, **codec)
        agree(replace(DM, augment=AugmentConfig(), classes_at_once=2), env, syn, 1e-10)


def test_batch_norm_sees_all_classes_at_once():
    """One batch of real and one of synthetic images, and classes_at_once is refused; the network at
    hand keeps its buffers.
    """
    env, syn = tiny_world(F64, model="convnet-d2-w4-bn")
    before = {
        k: v.clone()
        for module in (env.model.module, env.model.normed)
        for k, v in module.state_dict().items()
    }
    config = replace(DM, augment=AugmentConfig())
    with pytest.raises(UserError, match=r"objective\.classes_at_once 1 parts the classes"):
        replace(config, classes_at_once=1).build(env)
    seen, objective = [], config.build(env)
    original = objective.embed
    objective.embed = lambda theta, images: seen.append(len(images)) or original(theta, images)
    losses, _ = ours(objective, syn)
    assert len(losses) == 1 and seen == [90, 20]
    agree(config, env, syn, 1e-10, norm=True)
    # one by one is something else
    assert definition(config, env, syn)[0] != pytest.approx(
        definition(config, env, syn, norm=True)[0], rel=1e-3
    )
    after = {
        k: v
        for module in (env.model.module, env.model.normed)
        for k, v in module.state_dict().items()
    }
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("config", [NONE, AugmentConfig(), IDC], ids=["none", "dsa", "always"])
def test_the_gradient_is_zero_when_means_agree(config):
    """Every real image of a class is its synthetic one: also when augmented, because both sides are
    augmented alike.
    """
    env, syn = tiny_world(F64)
    pixels = (torch.rand(10, 1, 8, 8, generator=generator(5)) * 255).to(torch.uint8)
    env = replace(
        env, real=RealSet(pixels[env.real.labels], env.real.labels, 10, env.real.preprocess)
    )
    same = syn.with_tensors(
        {"images": env.real.preprocess.forward(pixels.float() / 255)[syn.classes]}
    )
    other = same.with_tensors({"images": same.tensors["images"].roll(1, 2)})
    for seed in range(6):
        losses, grad = ours(replace(DM, augment=config).build(env), same, rng=generator(seed))
        assert float(sum(losses)) < 1e-20 and float(grad.abs().max()) < 1e-12
        losses, grad = ours(replace(DM, augment=config).build(env), other, rng=generator(seed))
        assert float(sum(losses)) > 1e-3 and float(grad.abs().max()) > 1e-5


def test_only_the_mean_of_a_class_matters():
    """Two images on either side of the mean in the embedding: no gradient in a network that is
    linear up to it.
    """
    g = generator(0)
    real, middle = (
        torch.randn(3, 5, 7, generator=g, dtype=F64),
        torch.randn(3, 1, 7, generator=g, dtype=F64),
    )
    syn = (real.mean(1, keepdim=True) + torch.cat((middle, -middle), 1)).requires_grad_()
    loss = Means().between(real.mean(1), syn.mean(1), {})
    assert (
        float(loss.detach()) < 1e-25
        and float(torch.autograd.grad(loss, syn)[0].abs().max()) < 1e-12
    )
    moved = (syn.detach() + 0.5).requires_grad_()
    loss = Means().between(real.mean(1), moved.mean(1), {})
    assert float(loss.detach()) == pytest.approx(3 * 7 * 0.25)
    assert torch.allclose(
        torch.autograd.grad(loss, moved)[0], torch.full((3, 2, 7), 0.5, dtype=F64)
    )


def test_most_synthetic_images_of_a_class():
    """Three of five of each class have a gradient; the mean is over those."""
    env, syn = tiny_world(F64, ipc=5)
    config = replace(DM, syn_batch=3, classes_at_once=3)
    agree(config, env, syn, 1e-10)
    _, grad = ours(config.build(env), syn)
    assert ((grad.flatten(1).abs().sum(1) > 0).view(10, 5).sum(1) == 3).all()


@pytest.mark.parametrize(
    "networks", [OnSynthetic(steps=3, epochs=1), OnReal(steps=3, images=20, batch=8)]
)
def test_other_networks_fit(networks):
    """The slot: trained networks, whose embedding the loss sees."""
    env, syn = tiny_world(F64)
    seen = []
    objective = replace(DM, networks=networks).build(env)
    original = objective.embed
    objective.embed = lambda theta, images: seen.append(theta.clone()) or original(theta, images)
    state = objective.init(generator(0))
    for step in range(4):
        _, grad = ours(objective, syn, state=state, step=step, rng=generator(step))
        assert torch.equal(seen[-1], state["theta"]) and grad.abs().sum() > 0


def test_labels_play_no_role():
    """Soft labels change nothing, and get no gradient."""
    env, syn = tiny_world(F64)
    logits = torch.randn(20, 10, generator=generator(0), dtype=F64).requires_grad_()
    soft = syn.with_labels(logits)
    hard, labelled = ours(DM.build(env), syn), ours(DM.build(env), soft)
    assert (
        hard[0][0] == labelled[0][0] and torch.equal(hard[1], labelled[1]) and logits.grad is None
    )


def test_real_images_are_of_their_class():
    env, syn = tiny_world(F32)
    seen, original = [], env.real.images
    env.real.images = lambda index: seen.append(index) or original(index)
    ours(replace(DM, classes_at_once=4).build(env), syn)
    index = torch.cat(seen).view(10, 9)
    assert (env.real.labels[index] == torch.arange(10)[:, None]).all() and all(
        len(row.unique()) == 9 for row in index
    )


def test_finite_differences():
    env, syn = tiny_world(
        F64, num_classes=3, shape=(1, 4, 4), ipc=2, model="convnet-d1-w2-bn-sigmoid"
    )
    objective = replace(DM, real_batch=4, augment=AugmentConfig(ops=("rotate",))).build(env)
    _, grad = ours(objective, syn)
    way = torch.randn(syn.tensors["images"].shape, generator=generator(0), dtype=F64)
    ends = [
        syn.with_tensors({"images": syn.tensors["images"] + sign * 1e-5 * way}) for sign in (1, -1)
    ]
    ahead, behind = (float(sum(ours(objective, end)[0])) for end in ends)
    assert (ahead - behind) / 2e-5 == pytest.approx(float((grad * way).sum()), rel=1e-6)


def test_a_set_whose_classes_are_not_in_order_and_bad_values():
    env, syn = tiny_world(F64)
    order = torch.randperm(20, generator=generator(0))
    mixed = replace(
        syn.with_tensors({"images": syn.tensors["images"][order]}), classes=syn.classes[order]
    )
    assert own_examples(mixed, 0) != own_examples(syn, 0)
    agree(replace(DM, classes_at_once=3), env, mixed, 1e-10)
    for wrong in ({"real_batch": 0}, {"syn_batch": 0}, {"classes_at_once": 0}):
        with pytest.raises(UserError, match=f"objective.{next(iter(wrong))}"):
            replace(DM, **wrong)


NORMAL, LEARNED = Characteristic(number=6), LearnedCharacteristic(number=6, lr=0.1)


@pytest.mark.parametrize(
    ("distance", "step_after", "at_once", "real"),
    [
        (Means(), "each", 1, [5, 5]),
        (NORMAL, "each", 3, [6, 4]),
        (NORMAL, "all", None, [5, 5]),
        (LEARNED, "all", 3, [6, 4]),
        (LEARNED, "each", 1, [5, 5]),
    ],
)
def test_ranks_share_classes_whatever_moves(distance, step_after, at_once, real, monkeypatch):
    """Images, network and frequencies become those of one rank; each sees a part of real images."""
    trained = OnReal(steps=3, images=20, batch=10)
    config = replace(DM, distance=distance, networks=trained, classes_at_once=at_once)
    outer = OuterConfig(steps=2, optim={"images": OptimConfig(lr=0.1)}, step_after=step_after)

    def reached(shared):
        env, syn = tiny_world(F64)
        seen = []
        objective = config.build(env)
        monkeypatch.setattr(objective, "embed", seen_by(seen, objective.embed))
        assert not shared or config.share(objective, step_after == "each")
        state = loop.first_state(syn, objective, outer, 0)
        for _ in range(outer.steps):
            loop.outer_step(syn, objective, outer, state, 0, shared)
        return state.tensors | state.objective, sum(seen) / config.real_batch / outer.steps

    one, everything = reached(shared=False)
    ranks = on_ranks(monkeypatch, 2, lambda: reached(shared=True))
    assert everything == 10 and [classes for _, classes in ranks] == real
    for several, _ in ranks:
        for name, tensor in one.items():
            close(several[name], tensor, 1e-9)


def seen_by(seen, embed):
    """As `embed`, which notes how many images it was given that need no gradient."""

    def noted(theta, images):
        if not torch.is_grad_enabled() and len(images) % DM.real_batch == 0:
            seen.append(len(images))
        return embed(theta, images)

    return noted
