"""Statistics matching against plain loops with modules: batches together and in parts, groups,
curriculum, adjusted weights.
"""

import copy
import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU
from matching import close, set_statistics
from torch import nn
from torch.nn import functional

from ddengine import in_groups
from ddengine import loop as outer
from ddengine.api import distill
from ddengine.data import Preprocess, RealSet
from ddengine.learning import augment
from ddengine.learning.flat import FlatModel, flatten
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import AugmentConfig, OptimConfig, OuterConfig
from ddengine.sets.codec import (
    Compensated,
    Gaussians,
    Identity,
    MultiFormation,
    Pixels,
    Quantised,
)
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import digests, dist
from ddengine.system.errors import UserError
from ddengine.system.files import read_tensors
from ddengine.system.rng import generator
from synth.compensator import BaseSets
from synth.statistics import OnePerClass, StatisticsMatching, crop_at, why_together

F32, F64 = torch.float32, torch.float64
NARROW = ("convnet-d2-w4-bn", "convnet-d1-w4-bn")
SHAPE = (3, 16, 16)
ROLL = AugmentConfig(ops=(), always=("roll",), roll=3)


def teacher_of(name, num_classes, number=0, shape=SHAPE):
    """A network whose BatchNorm layers know statistics that noise does not have."""
    network = build_model(name, shape, num_classes, generator(number, name))
    images = torch.randn(60, *shape, generator=generator(number, "images")) * 1.5 + torch.linspace(
        -1, 1, shape[0]
    ).view(-1, 1, 1)
    return set_statistics(network, images)


def world(
    config,
    names=NARROW,
    *,
    num_classes=5,
    dtype=F64,
    codec=None,
    sets=2,
    compensators=4,
    shape=SHAPE,
):
    """(objective, set, teachers): natural images with compensators that are not 0, or plain images
    of another codec.
    """
    g = generator(0, "world")
    preprocess = Preprocess(
        mean=torch.linspace(0.4, 0.5, shape[0]).to(dtype),
        std=torch.linspace(0.3, 0.2, shape[0]).to(dtype),
    )
    real = RealSet(
        torch.zeros(num_classes, *shape, dtype=torch.uint8),
        torch.arange(num_classes),
        num_classes,
        preprocess,
    )
    teachers = [teacher_of(name, num_classes, i, shape) for i, name in enumerate(names)]
    experts = SimpleNamespace(
        num_experts=len(teachers),
        num_params=0,
        epochs=(0, 4),
        load=lambda i, epoch: {4: teachers[i]}[epoch],
    )
    env = Env(real, lambda rng: teachers[0], FlatModel(teachers[0]), experts, CPU)
    objective = config.build(env)
    for teacher in teachers:
        teacher.to(dtype)
    pixels = torch.rand(num_classes * sets, *shape, generator=g).to(dtype)
    tensors = {"images": pixels}
    codec = codec or Compensated(base=sets, compensators=compensators)
    if isinstance(codec, Compensated):
        tensors |= {
            "compensators": torch.randn(compensators, *shape, generator=g).to(dtype) * 0.5,
            "unit": preprocess.std,
        }
    elif codec.space == "model":
        tensors = {"images": preprocess.forward(pixels)}
    classes = torch.arange(num_classes).repeat_interleave(sets)
    return (
        objective,
        SyntheticSet(
            tensors,
            classes,
            tuple("abcdefghij"[:num_classes]),
            codec,
            preprocess,
            space=codec.space,
        ),
        teachers,
    )


def ours(objective, syn, learned="compensators", state=None, step=0, seed=1):
    """([losses], gradient) of one step."""
    leaf = syn.tensors[learned].clone().requires_grad_()
    state = objective.init(generator(0)) if state is None else state
    losses = []
    for loss in objective.losses(
        syn.with_tensors({learned: leaf}), state, step, generator(seed, "losses")
    ):
        loss.backward()
        losses.append(loss.detach())
    return losses, leaf.grad


def plain_loss(network, images, classes, config):
    """Of one batch, with hooks of its own, layer by layer."""
    inputs = []
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [
        norm.register_forward_hook(lambda module, args, out: inputs.append((module, args[0])))
        for norm in norms
    ]
    loss = functional.cross_entropy(network(images), classes)
    for hook in hooks:
        hook.remove()
    assert len(inputs) == len(norms) > 0
    for number, (norm, x) in enumerate(inputs):
        mean = x.mean(dim=(0, 2, 3))
        var = (x - mean[None, :, None, None]).pow(2).mean(dim=(0, 2, 3))
        term = (norm.running_mean - mean).pow(2).sum().sqrt() + config.variance * (
            norm.running_var - var
        ).pow(2).sum().sqrt()
        loss = loss + config.alpha * (config.first if number == 0 else 1.0) * term
    return loss


def shifts_of(num, config, seed=1):
    """The cyclic shift of each batch, from the draw of the step."""
    uniform = torch.rand(num, 1, 1, 3, generator=generator(seed, "losses"))
    return [[int(v * (config.augment.roll + 1)) for v in row[0, 0, :2]] for row in uniform]


def one_by_one(syn, teachers, config, seed=1):
    """(losses, gradient): compensator after compensator, each with the images of its own set."""
    num, sets, num_classes = len(syn.tensors["compensators"]), syn.codec.base, len(syn.class_names)
    leaf = syn.tensors["compensators"].clone().requires_grad_()
    natural, losses = syn.preprocess.forward(syn.tensors["images"]), []
    for k, shift in enumerate(shifts_of(num, config, seed)):
        base = torch.stack([natural[c * sets + k % sets] for c in range(num_classes)])
        images = torch.roll(base + leaf[k], shift, (2, 3))
        losses.append(
            plain_loss(
                teachers[(k // sets) % len(teachers)], images, torch.arange(num_classes), config
            )
        )
        losses[-1].backward()
    return [loss.detach() for loss in losses], leaf.grad


# Together and one by one


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("names", "at_once"),
    [(NARROW, None), (NARROW, 5), (("resnet18-bn-x12",), None)],
    ids=["convnet", "two passes", "resnet"],
)
def test_compensators_together_equal_one_by_one(names, at_once, dtype):
    """Losses and gradients, each compensator with the statistics of its own batch; teachers stay as
    they are.
    """
    config = StatisticsMatching(
        batches=BaseSets(),
        alpha=0.7,
        first=10.0,
        variance=3.0,
        augment=ROLL,
        images_at_once=at_once,
    )
    objective, syn, teachers = world(config, names, dtype=dtype)
    before = [{k: v.clone() for k, v in t.state_dict().items()} for t in teachers]
    losses, grad = ours(objective, syn)
    assert all(
        torch.equal(v, old[k])
        for t, old in zip(teachers, before, strict=True)
        for k, v in t.state_dict().items()
    )
    assert not any(
        m._forward_pre_hooks or m._forward_hooks or m.training
        for t in teachers
        for m in t.modules()
    )
    wanted, theirs = one_by_one(syn, teachers, config)
    assert len(losses) == (4 if at_once else len(names))
    assert float(sum(losses)) == pytest.approx(
        float(sum(wanted)), rel=1e-4 if dtype == F32 else 1e-12
    )
    assert theirs.flatten(1).norm(dim=1).min() > 1e-3
    # in float32 rounding may put a unit on the other side of its kink
    tolerance = 1e-10 if dtype == F64 else 3e-2
    for mine, other in zip(grad, theirs, strict=True):
        assert (mine - other).norm() <= tolerance * other.norm()


def test_batches_do_not_see_each_other():
    """What another compensator is does not change a gradient; that of merged statistics would
    differ.
    """
    config = StatisticsMatching(batches=BaseSets(), alpha=1.0, augment=ROLL)
    objective, syn, _ = world(config, NARROW[:1])
    _, grad = ours(objective, syn)
    moved = syn.tensors["compensators"].clone()
    moved[1:] *= 3
    _, other = ours(objective, syn.with_tensors({"compensators": moved}))
    close(other[0], grad[0], 1e-12)
    assert (other[1] - grad[1]).abs().max() > 0.01 * grad[1].abs().max()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("name", ["convnet-d2-w4-bn", "resnet18-bn-x12"])
def test_parts_equal_one_batch(name, size):
    """A batch of 7 in parts, one image a part too: values and gradients add up; 1e-9."""
    config = StatisticsMatching(batches=BaseSets(), alpha=0.7, variance=2.0, augment=ROLL)
    small = {"num_classes": 7, "sets": 2, "compensators": 2, "shape": (3, 8, 8)}
    whole, syn, _ = world(config, (name,), **small)
    parts, _, _ = world(replace(config, images_at_once=size), (name,), **small)
    (losses, wanted), (pieces, grad) = ours(whole, syn), ours(parts, syn)
    assert len(losses) == 1 and len(pieces) == 2 * math.ceil(7 / size)
    assert float(sum(pieces)) == pytest.approx(float(sum(losses)), rel=1e-9)
    close(grad, wanted, 1e-9)


def test_parts_lose_nothing_to_rounding():
    """Means a thousand times the deviation, in float32: sums about the running mean keep the
    variance.
    """
    config = StatisticsMatching(batches=BaseSets(), alpha=1.0, augment=AugmentConfig(ops=()))
    small = {"num_classes": 6, "sets": 1, "compensators": 1, "shape": (3, 8, 8)}
    found = {}
    for dtype, size in ((F32, 2), (F64, None)):
        objective, syn, (teacher,) = world(
            replace(config, images_at_once=size), ("convnet-d2-w4-bn",), dtype=dtype, **small
        )
        first = next(m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d))
        teacher.get_submodule(
            next(n for n, m in teacher.named_modules() if isinstance(m, nn.Conv2d))
        ).bias.data += 1000
        first.running_mean += 1000
        found[dtype] = float(sum(ours(objective, syn)[0])), ours(objective, syn)[1]
    assert found[F32][0] == pytest.approx(found[F64][0], rel=1e-3)
    close(found[F32][1].double(), found[F64][1], 2e-3)


@pytest.mark.parametrize("at_once", [None, 2])
def test_images_of_a_plain_set_one_per_class(at_once):
    """SRe2L: the j-th image of every class, in batches of three and two classes, by plain loops;
    each has a gradient of its own batch alone.
    """
    config = StatisticsMatching(
        batches=OnePerClass(classes=3), alpha=0.3, augment=ROLL, images_at_once=at_once
    )
    objective, syn, teachers = world(config, codec=Identity(), sets=3)
    losses, grad = ours(objective, syn, "images")
    leaf, wanted, batches = syn.tensors["images"].clone().requires_grad_(), [], []
    for m in range(2):
        for classes in ((0, 1, 2), (3, 4)):
            batches += [(m, j, classes) for j in range(3) if j % 2 == m]
    order = [
        (m, j, c) for m in range(2) for c in ((0, 1, 2), (3, 4)) for j in range(3) if j % 2 == m
    ]
    assert sorted(batches) == sorted(order)
    for (m, j, classes), shift in zip(order, shifts_of(6, config), strict=True):
        images = torch.roll(torch.stack([leaf[c * 3 + j] for c in classes]), shift, (2, 3))
        wanted.append(plain_loss(teachers[m], images, torch.tensor(classes), config))
        wanted[-1].backward()
    assert float(sum(losses)) == pytest.approx(float(sum(wanted).detach()), rel=1e-9)
    close(grad, leaf.grad, 1e-9)
    assert (grad.flatten(1).norm(dim=1) > 0).all()


def test_weights_of_the_terms():
    """alpha 0 is cross-entropy alone, whatever the network; the rest is linear in alpha and in the
    first layer's weight.
    """
    base = StatisticsMatching(batches=BaseSets(), alpha=0.0, augment=ROLL)

    def level(**fields):
        objective, syn, _ = world(replace(base, **fields), NARROW[:1])
        return float(sum(ours(objective, syn)[0]))

    none, ten, one, zero = (
        level(),
        level(alpha=1.0),
        level(alpha=1.0, first=1.0),
        level(alpha=1.0, first=0.0),
    )
    assert ten - zero == pytest.approx(10 * (one - zero)) and one > zero > none
    assert level(alpha=0.5) - none == pytest.approx((ten - none) / 2)
    objective, syn, (teacher,) = world(base, ("convnet-d2-w4-in",))
    natural, u = syn.preprocess.forward(syn.tensors["images"]), syn.tensors["compensators"]
    wanted = 0.0
    for k, shift in enumerate(shifts_of(4, base)):
        wanted += functional.cross_entropy(
            teacher(torch.roll(natural[k % 2 :: 2] + u[k], shift, (2, 3))), torch.arange(5)
        )
    assert float(sum(ours(objective, syn)[0])) == pytest.approx(float(wanted.detach()))


def test_several_hundred_updates_lower_the_loss(tmp_path):
    """Adam on compensators from nothing, by the outer loop."""
    config = StatisticsMatching(batches=BaseSets(), alpha=1.0, augment=ROLL)
    objective, syn, _ = world(config, dtype=F32, shape=(3, 8, 8))
    syn = syn.with_tensors({"compensators": torch.zeros_like(syn.tensors["compensators"])})
    optim = OptimConfig(kind="adam", lr=0.25, momentum=0.5, beta2=0.9, schedule="cosine")
    result, counters = outer.distill(
        syn, objective, OuterConfig(steps=100, optim={"compensators": optim}), tmp_path, seed=0
    )
    levels = [float(sum(ours(objective, s)[0])) for s in (syn, result)]
    assert levels[1] < 0.6 * levels[0] and counters.not_finite == 0
    assert torch.equal(result.tensors["images"], syn.tensors["images"])


# Groups


@pytest.mark.parametrize(
    ("sets", "compensators", "num_teachers"),
    [(2, 4, 2), (3, 12, 4), (2, 8, 2), (3, 7, 2), (4, 3, 2), (1, 5, 3), (2, 4, 1)],
)
def test_compensators_meet_their_images_and_teachers(sets, compensators, num_teachers):
    """Compensator k: image k mod n of every class, in order, and teacher k M // K, which is k // n
    as published; brute force over all examples.
    """
    _, syn, _ = world(
        StatisticsMatching(batches=BaseSets(), alpha=0.0),
        NARROW[:1],
        sets=sets,
        compensators=compensators,
        shape=(3, 8, 8),
    )
    found = [
        (m, row.tolist()) for m, index in BaseSets().groups(syn, num_teachers) for row in index
    ]
    assert len(found) == compensators
    for k, (m, row) in enumerate(found):
        assert m == k * num_teachers // compensators and (
            compensators != sets * num_teachers or m == k // sets
        )
        images, classes = (
            syn.codec.decode(syn.tensors, torch.tensor(row)),
            syn.batch(torch.tensor(row)).classes,
        )
        assert classes.tolist() == list(range(5))
        for c in range(5):
            wanted = syn.tensors["images"][c * sets + k % sets] + syn.tensors["compensators"][
                k
            ] * syn.tensors["unit"].view(-1, 1, 1)
            assert torch.allclose(images[c], wanted, rtol=0, atol=1e-12)
    everyone = sorted(i for _, row in found for i in row)
    assert everyone == list(range(5 * sets, 5 * (sets + compensators)))


@pytest.mark.parametrize("codec", [Identity(), MultiFormation(factor=2)])
@pytest.mark.parametrize(("most", "num_teachers"), [(100, 1), (5, 2), (2, 1), (3, 3), (1, 2)])
def test_one_of_each_class(codec, most, num_teachers):
    """Every decoded example once, in batches of the same number of different classes; teachers take
    turns image by image.
    """
    _, syn, _ = world(
        StatisticsMatching(batches=BaseSets(), alpha=0.0), NARROW[:1], codec=codec, sets=3
    )
    classes = syn.classes[syn.source].tolist()
    members = [[i for i, c in enumerate(classes) if c == wanted] for wanted in range(5)]
    groups = OnePerClass(classes=most).groups(syn, num_teachers)
    seen = []
    for m, index in groups:
        for row in index.tolist():
            found = [classes[i] for i in row]
            number = {members[c].index(i) for i, c in zip(row, found, strict=True)}
            assert (
                len(number) == 1
                and found == list(range(found[0], found[0] + len(found)))
                and len(found) <= most
            )
            assert found[0] % most == 0 and next(iter(number)) % num_teachers == m
            seen += row
    assert sorted(seen) == list(range(len(syn)))
    assert [g.tolist() for _, g in BaseSets().groups(syn, 1)] == [
        g.tolist() for _, g in OnePerClass(classes=5).groups(syn, 1)
    ]


# Curriculum


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (
            "cosine",
            [
                1.0,
                0.08 + 0.92 * (1 + math.sqrt(0.5)) / 2,
                0.54,
                0.08 + 0.92 * (1 - math.sqrt(0.5)) / 2,
                0.08,
                0.08,
            ],
        ),
        ("linear", [1.0, 0.77, 0.54, 0.31, 0.08, 0.08]),
        ("step", [1.0, 1.0, 1.0, 1.0, 0.08, 0.08]),
    ],
)
def test_curriculum_of_crops(kind, wanted):
    """Lower bound of the area at 0, 1/4, 1/2, 3/4 and all of the milestone, and after it."""
    crops = AugmentConfig(ops=(), always=("resized_crop", "flip"), area=0.08)
    config = StatisticsMatching(
        batches=OnePerClass(), augment=crops, crop_until=400, curriculum=kind
    )
    assert [crop_at(config, step).area for step in (0, 100, 200, 300, 400, 999)] == pytest.approx(
        wanted, abs=1e-12
    )
    assert crop_at(replace(config, crop_until=0), 100) is crops
    assert replace(crop_at(config, 100), area=0.08) == crops


def test_the_curriculum_is_what_images_are_cut_by(monkeypatch):
    """Sampling and applying see the area of the step."""
    crops = AugmentConfig(ops=(), always=("resized_crop",), area=0.5)
    config = StatisticsMatching(
        batches=BaseSets(), alpha=0.1, augment=crops, crop_until=10, curriculum="linear"
    )
    objective, syn, _ = world(config, NARROW[:1])
    seen, apply, sample = [], augment.apply, augment.sample
    monkeypatch.setattr(
        augment, "apply", lambda c, *rest: (seen.append(c.area), apply(c, *rest))[1]
    )
    monkeypatch.setattr(
        augment,
        "sample",
        lambda c, *rest, **more: (seen.append(c.area), sample(c, *rest, **more))[1],
    )
    for step, area in ((0, 1.0), (4, 0.8), (10, 0.5)):
        seen.clear()
        ours(objective, syn, step=step)
        assert len(seen) > 1 and seen == pytest.approx([area] * len(seen))


# Adjusted weights


def adjusted(teacher, images, classes, config):
    """DWA's ascent on a copy of the module."""
    network = copy.deepcopy(teacher).requires_grad_(True).eval()
    for _ in range(config.adjust_steps):
        grads = torch.autograd.grad(
            functional.cross_entropy(network(images), classes), list(network.parameters())
        )
        norm = math.sqrt(sum(float(g.pow(2).sum()) for g in grads))
        with torch.no_grad():
            for parameter, grad in zip(network.parameters(), grads, strict=True):
                parameter += config.adjust / config.adjust_steps * grad / norm
    return network.requires_grad_(False)


@pytest.mark.parametrize("at_once", [None, 2])
def test_weights_are_adjusted_for_each_batch(at_once):
    """Once, before the first step, without augmentation, each batch from the teacher as it is; the
    loss is that of these weights.
    """
    config = StatisticsMatching(
        batches=OnePerClass(), alpha=0.4, variance=11.0, augment=ROLL, adjust=0.3, adjust_steps=3, images_at_once=at_once
    )  # fmt: skip
    objective, syn, teachers = world(config, ("convnet-d2-w4-bn",) * 2, codec=Identity(), sets=3)
    state = objective.init(generator(0))
    assert list(state) == ["theta.0", "theta.1"] and not any(v.numel() for v in state.values())
    losses, grad = ours(objective, syn, "images", state)
    order = [(0, 0), (0, 2), (1, 1)]  # (teacher, image) in the order of the groups
    leaf, wanted, rows = syn.tensors["images"].clone().requires_grad_(), [], []
    assert not torch.equal(flatten(teachers[0]), flatten(teachers[1]))
    for (m, j), shift in zip(order, shifts_of(3, config), strict=True):
        images, classes = torch.stack([leaf[c * 3 + j] for c in range(5)]), torch.arange(5)
        network = adjusted(teachers[m], images.detach(), classes, config)
        rows.append(flatten(network))
        wanted.append(plain_loss(network, torch.roll(images, shift, (2, 3)), classes, config))
        wanted[-1].backward()
    assert [len(v) for v in state.values()] == [2, 1]
    for (m, _), row, found in zip(order, rows, torch.cat(list(state.values())), strict=True):
        assert (
            torch.allclose(found, row, rtol=0, atol=1e-12)
            and 0.05 < (row - flatten(teachers[m])).norm() < 0.31
        )
    assert float(sum(losses)) == pytest.approx(float(sum(wanted).detach()), rel=1e-9)
    close(grad, leaf.grad, 1e-9)
    kept = {k: v.clone() for k, v in state.items()}
    ours(
        objective, syn.with_tensors({"images": syn.tensors["images"] * 2}), "images", state, step=1
    )
    assert all(torch.equal(state[k], v) for k, v in kept.items())


def test_teachers_of_different_kinds_are_adjusted():
    """Their weights are not equally many."""
    config = StatisticsMatching(
        batches=BaseSets(), alpha=0.4, augment=ROLL, adjust=0.3, adjust_steps=2
    )
    objective, syn, teachers = world(config)
    assert len(flatten(teachers[0])) != len(flatten(teachers[1]))
    losses, _ = ours(objective, syn)
    wanted = 0.0
    natural, u = syn.preprocess.forward(syn.tensors["images"]), syn.tensors["compensators"]
    for k, shift in enumerate(shifts_of(4, config)):
        images, classes = natural[k % 2 :: 2] + u[k], torch.arange(5)
        wanted += plain_loss(
            adjusted(teachers[k // 2], images, classes, config),
            torch.roll(images, shift, (2, 3)),
            classes,
            config,
        )
    assert float(sum(losses)) == pytest.approx(float(wanted.detach()), rel=1e-9)


def test_adjusted_weights_survive_a_stop(tmp_path):
    """They are state: a run that goes on at step 3 does not adjust anew to images that have moved."""
    config = StatisticsMatching(
        batches=OnePerClass(), alpha=0.1, augment=ROLL, adjust=0.3, adjust_steps=3
    )
    objective, syn, _ = world(
        config, NARROW[:1], codec=Identity(bounded=True), dtype=F32, shape=(3, 8, 8)
    )
    optim = OptimConfig(kind="adam", lr=0.1, momentum=0.5, beta2=0.9, schedule="cosine")
    settings = OuterConfig(steps=6, optim={"images": optim}, checkpoint_every=3)

    class Stop:
        init = staticmethod(objective.init)

        @staticmethod
        def losses(s, state, step, rng):
            if step == 4:
                raise KeyboardInterrupt
            return objective.losses(s, state, step, rng)

    whole, _ = outer.distill(syn, objective, settings, tmp_path / "whole", seed=0)
    with pytest.raises(KeyboardInterrupt):
        outer.distill(syn, Stop(), settings, tmp_path / "broken", seed=0)
    assert (
        read_tensors(tmp_path / "broken/checkpoint/state.safetensors")[0][
            "objective/theta.0"
        ].shape[0]
        == 2
    )
    again, _ = outer.distill(
        syn, objective, settings, tmp_path / "broken", seed=0, kept=config.kept
    )
    assert torch.equal(whole.tensors["images"], again.tensors["images"])
    ends = [
        read_tensors(tmp_path / name / "checkpoint/state.safetensors")[0]
        for name in ("whole", "broken")
    ]
    assert ends[0].keys() == ends[1].keys() and all(
        torch.equal(ends[0][k], ends[1][k]) for k in ends[0]
    )


# Refusals


def test_teachers_that_cannot_be_used():
    """None, one without BatchNorm, one of other classes: one sentence each, with the flag."""
    config = StatisticsMatching(batches=BaseSets())
    with pytest.raises(UserError, match=r"teacher ConvNet has no BatchNorm.*--teachers") as error:
        world(config, ("convnet-d1-w4-bn", "convnet-d1-w4-in"))
    assert "\n" not in str(error.value)
    world(replace(config, alpha=0.0), ("convnet-d1-w4-in",))  # looks at no statistics
    network = teacher_of("convnet-d1-w4-bn", 4)
    real = RealSet(
        torch.zeros(5, *SHAPE, dtype=torch.uint8),
        torch.arange(5),
        5,
        Preprocess(mean=torch.zeros(3), std=torch.ones(3)),
    )
    experts = SimpleNamespace(
        num_experts=1, num_params=0, epochs=(1,), load=lambda i, epoch: network
    )
    env = Env(real, lambda rng: network, FlatModel(network), experts, CPU)
    with pytest.raises(UserError, match="tells 4 classes apart, and the data have 5"):
        config.build(env)
    with pytest.raises(UserError, match="needs teachers"):
        config.build(replace(env, experts=None))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"alpha": -1.0}, "objective.alpha"),
        ({"first": math.inf}, "objective.first"),
        ({"variance": math.nan}, "objective.variance"),
        ({"adjust": -0.1}, "objective.adjust"),
        ({"adjust_steps": 0}, "objective.adjust_steps"),
        ({"images_at_once": 0}, "objective.images_at_once"),
        ({"crop_until": -1}, "objective.crop_until"),
        ({"crop_until": 5}, "resized_crop"),
    ],
)
def test_settings_that_mean_nothing(fields, said):
    with pytest.raises(UserError, match=said):
        StatisticsMatching(batches=BaseSets(), **fields)
    with pytest.raises(UserError, match=r"objective\.batches\.classes must be at least 1"):
        OnePerClass(classes=0)


# Groups of images, each optimised to its last step.


def optimised(config, folder, fields=None, names=NARROW, most=None, board=None):
    """(the images that come out, the log) of a few steps; in groups of at most so many images."""
    objective, syn, _ = world(config, names, dtype=F32, codec=Identity(), sets=7)
    config.choose(objective, {} if most is None else {"images_in_group": most})
    optim = {"images": OptimConfig(kind="adam", lr=0.1)}
    steps = OuterConfig(steps=4, optim=optim, evaluate_every=0, picture_every=0, **(fields or {}))
    made, counters = in_groups.distill(
        syn,
        objective,
        objective.groups(syn, steps),
        steps,
        folder,
        seed=1,
        run="run",
        board=board,
        kept=config.kept,
    )
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert counters.log_digest == digests.of_bytes((folder / "metrics.jsonl").read_bytes())
    return made.tensors["images"], log


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"turns": "steps"},
        {"batches": OnePerClass(classes=2), "images_at_once": 2},
        {"adjust": 0.1, "adjust_steps": 2},
        {"images_at_once": 2},
    ],
    ids=str,
)
def test_groups_have_the_bits_of_all_images_together(tmp_path, fields):
    usual = {"batches": OnePerClass(), "augment": ROLL, "images_at_once": 5}
    config = StatisticsMatching(**{**usual, **fields})
    whole, log = optimised(config, tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    parted, of_groups = optimised(config, tmp_path / "a", most=20)
    num = len(list((tmp_path / "a" / "groups").iterdir()))
    assert num > 1 and torch.equal(parted, whole)
    assert [event["step"] for event in of_groups] == [1, 2, 3, 4]
    assert [event["loss"] for event in of_groups] == pytest.approx([e["loss"] for e in log])
    assert torch.equal(optimised(replace(config, images_in_group=1), tmp_path / "b")[0], whole)


def test_groups_go_on_where_they_were(tmp_path, monkeypatch):
    config = StatisticsMatching(
        batches=OnePerClass(), augment=ROLL, images_at_once=5, images_in_group=10
    )
    whole, _ = optimised(config, tmp_path)
    made = []
    step = outer.outer_step

    def stopping(*args, **more):
        if len(made) == 6:
            raise KeyboardInterrupt
        made.append(1)
        return step(*args, **more)

    (tmp_path / "again").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(outer, "outer_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            optimised(config, tmp_path / "again", {"checkpoint_every": 1})
    made.clear()
    monkeypatch.setattr(
        outer, "outer_step", lambda *args, **more: made.append(1) or step(*args, **more)
    )
    again, _ = optimised(config, tmp_path / "again", {"checkpoint_every": 1})
    assert torch.equal(again, whole) and len(made) == 4 * 4 - 6


def test_the_log_of_a_group_that_was_cut_is_said(tmp_path, capsys):
    """And metrics.jsonl tells of the steps that all groups tell of."""
    config = StatisticsMatching(
        batches=OnePerClass(), augment=ROLL, images_at_once=5, images_in_group=10
    )
    whole, events = optimised(config, tmp_path)
    cut = tmp_path / "groups" / "0002" / "metrics.jsonl"
    lines = cut.read_bytes().splitlines(keepends=True)
    cut.write_bytes(lines[0] + b'{"step": 2}\n' + lines[2] + lines[3][:9])
    again, left = optimised(config, tmp_path)
    assert torch.equal(again, whole) and f"{cut} was cut or changed" in capsys.readouterr().out
    assert [event["step"] for event in left] == [1, 2, 3] and left[1]["loss"] is None
    assert [left[0], left[2]] == [events[0], events[2]] and not left[1]["applied"]


def test_ranks_share_forward_passes(monkeypatch):
    """In teachers whose weights were adjusted for each batch, which are state."""
    config = StatisticsMatching(
        batches=OnePerClass(), augment=ROLL, adjust=0.3, adjust_steps=2, images_at_once=2
    )
    objective, syn, _ = world(config, ("convnet-d2-w4-bn",) * 2, codec=Identity(), sets=3)
    (one, slope), several = ours(objective, syn, "images"), []
    assert not config.share(objective, True) and config.share(objective, False)
    monkeypatch.setattr(dist, "num_ranks", lambda: 2)
    monkeypatch.setattr(dist, "from_first", lambda tensors: None)
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        several.append(ours(objective, syn, "images"))
    (first, of_first), (second, of_second) = several
    assert first and second and len(first) + len(second) == len(one)
    assert float(sum(first) + sum(second)) == pytest.approx(float(sum(one)), rel=1e-9)
    close(of_first + of_second, slope, 1e-9)


def test_groups_share_where_ranks_do(monkeypatch):
    """Also where the objective is another one than was made first, such as the compiled one."""
    config = StatisticsMatching(batches=OnePerClass(), adjust=0.3, images_in_group=10)
    recipe = SimpleNamespace(objective=config, outer=OuterConfig(steps=1, optim={}))
    made = [world(config, codec=Identity(), sets=3)[0] for _ in range(2)]
    job = SimpleNamespace(recipe=recipe, data=None, device=CPU, seed=0, experts=lambda: None)
    syn = world(config, codec=Identity(), sets=3)[1]
    job.start = lambda experts: (syn, made[0], 0.0)
    job.shares = lambda objective: config.share(objective, False)
    monkeypatch.setattr(distill, "check_networks", lambda *_: None)
    monkeypatch.setattr(distill, "settled", lambda *_: (made[1], {}))
    given = []

    def stand_in(syn, objective, groups, *_, **named):
        given.extend((named["shared"], group.objective.shared) for group in groups)
        raise KeyboardInterrupt

    monkeypatch.setattr(distill.in_groups, "distill", stand_in)
    with pytest.raises(KeyboardInterrupt):
        distill._in_memory(job, None, 0.0)
    assert len(given) > 1 and set(given) == {(True, True)}


class Board:
    """Remembers what a board is told."""

    def __init__(self, told, name="run"):
        self.told, self.name = told, name

    def part(self, name):
        return Board(self.told, name)

    def event(self, event):
        self.told.setdefault(self.name, []).append((event["step"], event["loss"]))

    def close(self):
        self.told.setdefault("closed", []).append(self.name)


def test_a_board_shows_each_group_and_then_all(tmp_path):
    """Each while it is optimised; in the end what metrics.jsonl says, the sums of their losses."""
    config = StatisticsMatching(batches=OnePerClass(), images_at_once=5, images_in_group=10)
    told = {}
    _, log = optimised(config, tmp_path, board=Board(told))
    parts = [f"group_000{number}" for number in (1, 2, 3, 4)]
    assert told.pop("closed") == parts and [*told] == [*parts, "run"]
    assert told["run"] == [(event["step"], event["loss"]) for event in log] and len(log) == 4
    for number, (_, loss) in enumerate(told["run"]):
        assert loss == sum(told[part][number][1] for part in parts)


def test_groups_add_their_time_over_sessions(tmp_path, monkeypatch):
    """By a clock that only steps, and what comes before and after the groups, let go on."""
    config = StatisticsMatching(batches=OnePerClass(), images_at_once=5, images_in_group=10)
    objective, syn, _ = world(config, dtype=F32, codec=Identity(), sets=7)
    optim = {"images": OptimConfig(lr=0.1)}
    steps = OuterConfig(steps=2, optim=optim, evaluate_every=0, checkpoint_every=1)
    now, made, step = [100.0], [], outer.outer_step

    def ticking(*args):
        if len(made) == 5:
            made.append("killed")
            raise KeyboardInterrupt
        made.append("step")
        now[0] += 10
        return step(*args)

    def finish(syn):
        now[0] += 3
        return syn

    def session(before, finish):
        groups = objective.groups(syn, steps)
        began = now[0] - before
        return in_groups.distill(
            syn, objective, groups, steps, tmp_path, seed=1, finish=finish, began=began
        )[1]

    monkeypatch.setattr(outer, "outer_step", ticking)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        session(5, finish)
    now[0] += 1000  # while nothing runs
    counters = session(7, finish)
    assert made.count("step") == 2 * 4
    assert counters.wall_seconds == 2 * 4 * 10 + 5 + 7 + 3
    assert counters.ranks == 1


def test_groups_are_asked_for_by_memory():
    config = StatisticsMatching(batches=OnePerClass(), augment=ROLL)
    objective, syn, _ = world(config, dtype=F32, codec=Identity(), sets=7)
    needed = 4 * 32 * syn.tensors["images"].numel()  # bytes, of a quarter of the memory
    assert config.choices(objective, syn, needed) == {}
    assert config.choices(objective, syn, needed * 10 // 35) == {"images_in_group": 10}
    assert replace(config, images_in_group=3).choices(objective, syn, 1) == {}


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"max_loss": 9.0}, "max_loss"),
        ({"ema": {"images": 0.5}}, "ema"),
        ({"optim": {"images": OptimConfig(lr=1, clip=1.0)}}, "clip"),
    ],
    ids=str,
)
def test_groups_that_cannot_be(fields, said):
    objective, syn, _ = world(
        StatisticsMatching(batches=OnePerClass(), images_in_group=5),
        dtype=F32,
        codec=Identity(),
    )
    steps = OuterConfig(**{"steps": 1, "optim": {"images": OptimConfig(lr=1)}, **fields})
    with pytest.raises(UserError, match=f"images_in_group 5 cannot be: .*{said}"):
        objective.groups(syn, steps)
    chosen, syn, _ = world(StatisticsMatching(batches=OnePerClass()), dtype=F32, codec=Identity())
    chosen.in_group = 5
    assert chosen.groups(syn, steps) == ()


@pytest.mark.parametrize(
    ("codec", "why"),
    [
        (Quantised(groups=2), "of all its images together"),
        (Gaussians(primitives=2, fit_steps=0), "of all its images together"),
        (Quantised(), None),
        (Pixels(), None),
    ],
    ids=str,
)
def test_images_that_share_scales_or_a_penalty_are_no_groups(codec, why):
    """Each of their tensors has one row an image all the same."""
    _, syn, _ = world(StatisticsMatching(batches=OnePerClass()), dtype=F32, codec=Identity())
    tensors = codec.pack(syn.tensors["images"], 5, syn.preprocess, generator(0))
    syn = replace(syn, codec=codec, tensors=tensors)
    said = why_together(syn, OuterConfig(steps=1, optim={"images": OptimConfig(lr=1)}))
    assert said is None if why is None else why in said


def test_images_that_share_compensators_are_no_groups():
    with pytest.raises(UserError, match="share what is stored"):
        StatisticsMatching(batches=BaseSets(), images_in_group=5)
