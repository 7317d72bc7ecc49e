"""Paired features (CIM) against their definition."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matching import close, ours, tiny_world

from ddengine.data import RealSet
from ddengine.learning import augment
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig
from ddengine.sets.codec import Identity, MultiFormation
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.paired import ANCHORS, PairedFeatures, anchors, made_places

NONE = AugmentConfig(ops=())
CONFIG = PairedFeatures(candidates=7, augment=NONE)
NAME = "convnet-d2-w4-in"


def observer():
    return build_model(NAME, (1, 8, 8), 10, generator(5)).double().eval()


def world(codec=Identity()):
    env, syn = tiny_world(codec=codec)
    experts = SimpleNamespace(epochs=(3,), load=lambda expert, epoch: observer())
    return replace(env, experts=experts), syn


def test_anchors_are_the_surest_of_the_first_images():
    env, _ = world()
    network = observer()
    index = anchors(env, network, 7, 9)
    for label, members in enumerate(env.real.members):
        first = members[:7]
        logits = network(env.real.images(first))
        surest = first[logits.log_softmax(1)[:, label].argsort(descending=True)]
        assert index[label].tolist() == [*surest.tolist(), *surest[:2].tolist()]


def test_a_set_starts_as_its_anchors_and_every_example_knows_its_own():
    """Of tiles too: without augmentation and at full size the first loss of plain images is 0."""
    env, syn = world()
    made = CONFIG.make_images(env, 2, generator(0))
    assert made.shape == (20, 1, 8, 8) and 0 <= float(made.min()) <= float(made.max()) <= 1
    started = syn.with_tensors({"images": env.real.preprocess.forward(made)})
    losses, _ = ours(CONFIG.build(env), started)
    assert sum(losses) < 1e-6
    codec = MultiFormation(factor=2)
    pictures = torch.arange(8.0).div(8).view(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
    stored = codec.pack(pictures, 1, env.real.preprocess)
    source = codec.source(stored)
    decoded = codec.decode(stored, torch.arange(8))[:, 0, 4, 4]
    assert torch.allclose(decoded, pictures[made_places(source), 0, 0, 0])


def test_a_set_starts_from_pixels_wherever_they_lie(monkeypatch):
    """They may lie on the CPU beside a network on a device: `stored` alone knows."""
    env, _ = world()
    made = CONFIG.make_images(env, 2, generator(0))
    asked, stored = [], RealSet.stored

    def noticed(self, index):
        asked.append(index.tolist())
        return stored(self, index)

    index = anchors(env, observer(), 7, 2).flatten()
    monkeypatch.setattr(RealSet, "stored", noticed)
    assert torch.equal(CONFIG.make_images(env, 2, generator(0)), made)
    assert asked[-1] == index.tolist()


@pytest.mark.parametrize("features", ["middle", "last"])
def test_the_loss_is_the_mean_difference_of_features(features):
    """With the same augmentation on both sides, and its gradient."""
    config = replace(CONFIG, features=features, augment=AugmentConfig(ops=("crop", "flip")))
    env, syn = world()
    objective, state = config.build(env), {}
    losses, gradient = ours(objective, syn, state=state)
    assert len(losses) == 10 and state[ANCHORS].shape == (10, 2)
    network = observer()
    images = syn.tensors["images"].clone().requires_grad_()
    draw = augment.sample(config.augment, 2, generator(1, "losses"), groups=10)
    total = 0.0
    for label in range(10):
        part = draw.part(slice(label, label + 1))
        pair = [env.real.images(state[ANCHORS][label]), images[2 * label : 2 * label + 2]]
        seen = []
        for side in pair:
            side = augment.apply(config.augment, side, part)
            if features == "last":
                seen.append(network.embed(side))
            else:
                seen.append(objective.features(side))
        loss = (seen[0].flatten(1) - seen[1].flatten(1)).abs().mean(1).sum()
        assert float(losses[label]) == pytest.approx(float(loss.detach()))
        total = total + loss
    close(gradient, torch.autograd.grad(total, images)[0], 1e-9)


def test_without_an_observer_it_is_a_sentence():
    env, _ = tiny_world()
    with pytest.raises(UserError, match="--take buffer=RECIPE"):
        CONFIG.build(env)
