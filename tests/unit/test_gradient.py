"""Gradient matching against a plain loop over classes with modules, and what it looks at."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matching import (
    close,
    cross_entropy,
    ours,
    own_examples,
    plain_distance,
    plain_gradient_matching,
    tiny_world,
)

from ddengine.data import RealSet
from ddengine.learning.flat import FlatModel
from ddengine.recipe import AugmentConfig
from ddengine.sets.codec import MultiFormation
from ddengine.sets.targets import Classes
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.classes import pays
from synth.gradient import GradientMatching, distance
from synth.networks import OnReal, OnSynthetic, Untrained

F32, F64 = torch.float32, torch.float64
NONE = AugmentConfig(ops=())
DC = GradientMatching(networks=Untrained(), augment=NONE, real_batch=9)
FORMS = {
    "dc": DC,
    "dsa": replace(DC, augment=AugmentConfig()),
    "dcc": replace(DC, classes="sum"),
    "dsac": replace(DC, classes="sum", augment=AugmentConfig()),
    "idc": replace(
        DC,
        metric="l1",
        tensors="convolutions",
        augment=AugmentConfig(always=("color", "crop", "cutout"), ops=()),
    ),
    "idc-mse": replace(DC, metric="mse", tensors="convolutions"),
    "mse-all": replace(DC, metric="mse", tensors="all"),
    "l1-all": replace(DC, metric="l1", tensors="all"),
    "cos-all": replace(DC, metric="cos", tensors="all"),
    "cos-weights": replace(DC, metric="cos"),
    "layerwise-convolutions": replace(DC, tensors="convolutions"),
}
# in float32 rounding may put a unit on the other side of its kink
TOLERANCE = {F32: 1e-2, F64: 1e-9}


def network(env, seed=1):
    """The module that a step of this stream gets, and the stream after it."""
    rng = generator(seed, "losses")
    return env.new_model(rng), rng


def agree(config, env, syn, relative, *, together=False):
    """Ours and the plain loop."""
    losses, grad = ours(config.build(env), syn)
    loss, wanted = plain_gradient_matching(config, env, syn, *network(env), together=together)
    assert float(sum(losses)) == pytest.approx(float(loss), rel=relative)
    close(grad, wanted, relative)
    return losses


@pytest.mark.parametrize(
    ("form", "at_once"),
    [
        *((form, 3) for form in FORMS),
        ("dc", 1),
        ("dc", None),
        ("dsa", 1),
        ("dsac", 1),
        ("idc", None),
    ],
)
def test_loss_and_gradient_are_those_of_a_loop_over_classes(form, at_once):
    """Ten classes in parts of one, of three (the last of one), and as many as pay."""
    config = replace(FORMS[form], classes_at_once=at_once)
    together = config.classes == "sum"
    losses = agree(config, *tiny_world(F64), TOLERANCE[F64], together=together)
    assert len(losses) == {1: 10, 3: 4, None: 1}[at_once]


@pytest.mark.parametrize("form", ["dc", "dsa", "dsac", "idc", "idc-mse", "cos-all"])
def test_float32_is_as_good_as_it_can_be(form):
    config = replace(FORMS[form], classes_at_once=3)
    agree(config, *tiny_world(F32), TOLERANCE[F32], together=config.classes == "sum")


@pytest.mark.parametrize("form", ["dsac", "idc"])
def test_colour_images_that_are_not_square_several_to_a_stored_one(form):
    """With multi-formation, and pixels as what is stored."""
    config = replace(FORMS[form], classes_at_once=2)
    for codec in ({}, {"codec": MultiFormation(factor=2)}):
        env, syn = tiny_world(F64, shape=(3, 9, 12), num_classes=5, **codec)
        agree(config, env, syn, 1e-9, together=config.classes == "sum")


@pytest.mark.parametrize("form", ["dcc", "idc"])
def test_soft_labels(form):
    config = replace(FORMS[form], classes_at_once=3)
    for codec in ({}, {"codec": MultiFormation(factor=2)}):
        env, syn = tiny_world(F64, num_classes=5, **codec)
        syn = syn.with_labels(
            torch.randn(len(syn), 5, generator=generator(3), dtype=F64), dtype=F64
        )
        agree(config, env, syn, 1e-9, together=config.classes == "sum")
        hard, _ = ours(config.build(env), replace(syn, targets=Classes()))
        assert float(sum(hard)) != pytest.approx(
            float(sum(ours(config.build(env), syn)[0])), rel=1e-3
        )


@pytest.mark.parametrize("form", ["dc", "dsac", "idc"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_batch_norm_uses_statistics_of_real_images(form, at_once):
    """Frozen, the same for both sides and all classes, of 16 images of each class; nothing of the
    networks at hand changes.
    """
    env, syn = tiny_world(F64, model="convnet-d2-w4-bn")
    before = {
        k: v.clone()
        for module in (env.model.module, env.model.normed)
        for k, v in module.state_dict().items()
    }
    made = []
    env = replace(
        env, new_model=lambda rng, build=env.new_model: made.append(build(rng)) or made[-1]
    )
    config = replace(FORMS[form], classes_at_once=at_once)
    ours(config.build(env), syn)
    for name, buffer in made[0].named_buffers():
        assert (buffer == (1 if name.endswith("var") else 0)).all(), name
    agree(config, env, syn, 1e-9, together=config.classes == "sum")
    after = {
        k: v
        for module in (env.model.module, env.model.normed)
        for k, v in module.state_dict().items()
    }
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not any(m.training for m in env.model.normed.modules())


def test_batch_norm_statistics_with_few_images_per_class():
    """As many of every class as the largest has; smaller ones show some of theirs again."""
    env, syn = tiny_world(F64, model="convnet-d2-w4-bn", per_class=5)
    seen = []
    original = env.model.statistics
    env.model.statistics = lambda theta, images: seen.append(images) or original(theta, images)
    config = replace(DC, real_batch=3)
    ours(config.build(env), syn)
    assert [len(images) for images in seen] == [
        10 * max(len(members) for members in env.real.members)
    ]


def test_networks_without_batch_norm_draw_nothing_for_it():
    """So that their streams are those of the other steps."""
    env, syn = tiny_world(F64)
    rng = generator(1, "losses")
    env.new_model(rng)
    wanted = env.real.draw_each(9, rng)
    seen = []
    original = env.real.batch
    env.real.batch = lambda index: seen.append(index) or original(index)
    ours(DC.build(env), syn)
    assert torch.equal(torch.cat(seen), wanted.flatten())


@pytest.mark.parametrize("form", ["dsa", "dcc"])
@pytest.mark.parametrize("codec", [{}, {"codec": MultiFormation(factor=2)}])
def test_most_synthetic_images_of_a_class(form, codec):
    """So many of each class, drawn without repetition, anew at each step; a bound that does not
    bind changes nothing.
    """
    env, syn = tiny_world(F64, ipc=5, num_classes=4, **codec)
    config = replace(FORMS[form], syn_batch=3, classes_at_once=3)
    agree(config, env, syn, 1e-9, together=config.classes == "sum")
    num = len(syn) // 4
    free, bound, loose = (
        ours(replace(config, syn_batch=n).build(env), syn)[1] for n in (None, num, num + 1)
    )
    close(bound, free, 1e-12)
    close(loose, free, 1e-12)


def test_which_synthetic_images_are_drawn():
    """Three of the five of every class have a gradient, others at another step, and all of them in
    the end.
    """
    env, syn = tiny_world(F64, ipc=5)
    objective = replace(DC, syn_batch=3).build(env)
    seen = []
    for step in range(12):
        _, grad = ours(objective, syn, step=step, rng=generator(step))
        moved = (grad.flatten(1).abs().sum(1) > 0).view(10, 5)
        assert (moved.sum(1) == 3).all()
        seen.append(moved)
    assert torch.stack(seen).any(0).all() and not torch.equal(seen[0], seen[1])
    assert len({tuple(row.tolist()) for row in seen[0]}) > 1  # classes are drawn apart


@pytest.mark.parametrize("form", ["dsa", "dsac", "idc"])
def test_both_sides_of_a_class_are_augmented_alike(form):
    """Where every image of a class is the synthetic one, the gradients agree whatever the
    augmentation; with another draw they do not.
    """
    env, syn = tiny_world(F64, ipc=2)
    pixels = (torch.rand(10, 1, 8, 8, generator=generator(5)) * 255).to(torch.uint8)
    env = replace(
        env, real=RealSet(pixels[env.real.labels], env.real.labels, 10, env.real.preprocess)
    )
    syn = syn.with_tensors(
        {"images": env.real.preprocess.forward(pixels.float() / 255)[syn.classes]}
    )
    config = replace(FORMS[form], metric="mse", tensors="all")
    plain = float(sum(ours(replace(config, augment=NONE).build(env), syn)[0]))
    shifted = syn.with_tensors({"images": syn.tensors["images"].roll(1, 3)})
    for seed in range(3):
        losses, _ = ours(config.build(env), syn, rng=generator(seed))
        assert float(sum(losses)) < 1e-20 and plain < 1e-20
        assert float(sum(ours(config.build(env), shifted, rng=generator(seed))[0])) > 1e-6


def test_classes_have_draws_of_their_own(monkeypatch):
    """Ten groups with one set of numbers each, of which no two are equal."""
    from ddengine.learning import augment

    draws = []
    original = augment.sample
    monkeypatch.setattr(
        augment,
        "sample",
        lambda *args, **kwargs: draws.append(original(*args, **kwargs)) or draws[-1],
    )
    ours(FORMS["dsa"].build(tiny_world(F32)[0]), tiny_world(F32)[1])
    (draw,) = draws
    assert (
        len(draw.ops) == 10
        and draw.uniform.shape == (10, 1, 3)
        and len(draw.uniform.flatten().unique()) == 30
    )


def test_real_batches_hold_the_class_and_no_image_twice():
    """Fresh ones at every step, within the training split, every image in the end."""
    env, syn = tiny_world(F32, model="convnet-d1-w1-nn")
    calls = []
    original = env.real.batch
    env.real.batch = lambda index: calls.append(index) or original(index)
    objective = replace(DC, classes_at_once=3).build(env)
    steps = []
    for step in range(25):
        calls.clear()
        ours(objective, syn, rng=generator(step))
        steps.append(torch.cat(calls).view(10, 9))
    index = torch.stack(steps)
    assert 0 <= int(index.min()) and int(index.max()) < len(env.real)
    assert (env.real.labels[index] == torch.arange(10)[:, None]).all()
    assert all(len(row.unique()) == 9 for step in steps for row in step)
    assert not torch.equal(steps[0].sort(1).values, steps[1].sort(1).values)
    counts = torch.bincount(index.flatten(), minlength=len(env.real))
    assert len(index.unique()) == len(env.real)
    expected = 25 * 9 / torch.tensor([len(env.real.members[int(c)]) for c in env.real.labels])
    assert ((counts - expected).abs() < 5 * (expected * 0.6).sqrt()).all()  # uniform within a class


def test_a_real_batch_may_be_larger_than_a_class(capsys):
    """Then it holds all images of the class, equally often up to one, and the others are not forced
    down to it.
    """
    env, syn = tiny_world(F32)
    smallest = min(len(m) for m in env.real.members)
    ours(replace(DC, real_batch=smallest).build(env), syn)
    assert "real_batch" not in capsys.readouterr().out
    keep = torch.ones(len(env.real), dtype=torch.bool)
    keep[env.real.members[3][4:]] = False  # class 3 has four left
    real = RealSet(
        env.real.pixels[keep],
        env.real.labels[keep],
        10,
        env.real.preprocess,
        class_names=[f"class-{c}" for c in range(10)],
    )
    ours(replace(DC, real_batch=smallest).build(replace(env, real=real)), syn)
    assert (
        f"real_batch {smallest} is more than the training images of class 'class-3' (4)"
        in capsys.readouterr().out
    )
    for seed in range(20):
        index = real.draw_each(10, generator(seed))
        assert index.shape == (10, 10) and (real.labels[index] == torch.arange(10)[:, None]).all()
        assert torch.bincount(index[3], minlength=len(real))[
            real.members[3]
        ].sort().values.tolist() == [2, 2, 3, 3]
        assert all(len(index[c].unique()) == 10 for c in range(10) if c != 3)
    largest = max(len(members) for members in real.members)
    assert real.draw_each(10_000, generator(0)).shape == (10, largest)


@pytest.mark.parametrize(("metric", "tensors", "classes"), [
    ("layerwise", "weights", "each"), ("mse", "all", "each"), ("cos", "all", "sum"),
])  # fmt: skip
@pytest.mark.parametrize("model", ["convnet-d1-w2-in-sigmoid", "convnet-d1-w2-bn-sigmoid"])
def test_finite_differences(metric, tensors, classes, model):
    """The gradient in pixels through both gradients, in a network that is smooth."""
    env, syn = tiny_world(F64, num_classes=3, shape=(1, 4, 4), ipc=1, model=model)
    config = replace(
        DC,
        metric=metric,
        tensors=tensors,
        classes=classes,
        real_batch=4,
        augment=AugmentConfig(ops=("scale",)),
    )
    objective = config.build(env)

    def total(images):
        return sum(
            float(loss.detach())
            for loss in objective.losses(syn.with_tensors({"images": images}), {}, 0, generator(2))
        )

    _, grad = ours(objective, syn, rng=generator(2))
    images = syn.tensors["images"]
    for seed in range(3):
        way = torch.randn(images.shape, generator=generator(seed), dtype=F64)
        ahead, behind = (total(images + sign * 1e-5 * way) for sign in (1, -1))
        assert (ahead - behind) / 2e-5 == pytest.approx(
            float((grad * way).sum()), rel=1e-5, abs=1e-8
        )


SHAPES = [torch.Size(s) for s in ((4, 2, 3, 3), (4,), (2, 5), (2, 3, 3), (2,))]


@pytest.mark.parametrize("tensors", ["weights", "convolutions", "all"])
@pytest.mark.parametrize("metric", ["layerwise", "mse", "l1", "cos"])
def test_which_parameters_are_compared(metric, tensors):
    """Changing a parameter that is left out changes nothing; groups are apart."""
    if (metric, tensors) == ("layerwise", "all"):
        with pytest.raises(UserError, match=r"objective\.tensors"):
            replace(DC, metric=metric, tensors=tensors)
        return
    g = generator(0)
    lists = [
        [[torch.randn(s, generator=g, dtype=F64) for s in SHAPES] for _ in range(3)]
        for _ in range(2)
    ]
    flat = [
        torch.stack([torch.cat([t.flatten() for t in group]) for group in side]) for side in lists
    ]
    found = distance(*flat, SHAPES, metric, tensors)
    assert found.shape == (3,)
    for group, value in enumerate(found):
        assert float(value) == pytest.approx(
            float(plain_distance(lists[0][group], lists[1][group], metric, tensors)), rel=1e-12
        )
    sizes = [s.numel() for s in SHAPES]
    for i, shape in enumerate(SHAPES):
        moved = flat[1].clone()
        moved[:, sum(sizes[:i]) : sum(sizes[: i + 1])] += torch.randn(
            sizes[i], generator=g, dtype=F64
        )
        changed = not torch.allclose(distance(flat[0], moved, SHAPES, metric, tensors), found)
        assert changed == (len(shape) >= {"weights": 2, "convolutions": 3, "all": 0}[tensors])


@pytest.mark.parametrize("metric", ["layerwise", "cos", "mse", "l1"])
def test_gradients_that_are_zero_leave_the_distance_finite(metric):
    """A dead unit, and equal gradients."""
    syn = torch.zeros(1, 99, dtype=F64, requires_grad=True)
    for real in (torch.zeros(1, 99, dtype=F64), torch.ones(1, 99, dtype=F64)):
        (grad,) = torch.autograd.grad(
            distance(real, syn, [torch.Size((9, 11))], metric, "weights").sum(), syn
        )
        assert grad.isfinite().all()


def test_sum_begins_with_classes_one_by_one():
    """For the first two steps of the first two networks, then no more."""
    env, syn = tiny_world(F64, num_classes=4)
    warm = replace(
        DC,
        networks=OnSynthetic(steps=3, epochs=1),
        classes="sum",
        warmup_networks=2,
        warmup_steps=2,
        classes_at_once=2,
    )
    runs, off = {}, {"warmup_networks": 0, "warmup_steps": 0}
    for name, config in (
        ("warm", warm),
        ("each", replace(warm, classes="each", **off)),
        ("sum", replace(warm, **off)),
    ):
        objective, state, runs[name] = config.build(env), None, []
        state = objective.init(generator(0))
        for step in range(9):
            losses, grad = ours(objective, syn, state=state, step=step, rng=generator(step))
            runs[name].append((float(sum(losses)), len(losses), grad))
    for step, (loss, number, grad) in enumerate(runs["warm"]):
        other = runs["each" if step in (0, 1, 3, 4) else "sum"][step]
        assert loss == pytest.approx(other[0], rel=1e-12) and number == other[1]
        close(grad, other[2], 1e-10)
        assert runs["each"][step][0] != pytest.approx(runs["sum"][step][0], rel=1e-3)


def test_sum_is_the_distance_of_one_batch_of_everything():
    """Real gradients are averaged over classes that count alike, whatever is computed at once."""
    env, syn = tiny_world(F64)
    found = [
        ours(replace(DC, classes="sum", classes_at_once=n).build(env), syn)
        for n in (1, 3, 10, None)
    ]
    assert [len(losses) for losses, _ in found] == [10, 4, 1, 1]
    for losses, grad in found[1:]:
        assert float(sum(losses)) == pytest.approx(float(sum(found[0][0])), rel=1e-12)
        close(grad, found[0][1], 1e-10)
    model, rng = network(env)
    index = env.real.draw_each(9, rng).flatten()
    params = list(model.parameters())
    sides = [
        torch.autograd.grad(cross_entropy(model(b.images), b.targets), params)
        for b in (env.real.batch(index), syn.batch(torch.arange(len(syn))))
    ]
    assert float(sum(found[0][0])) == pytest.approx(
        float(plain_distance(*sides, "layerwise", "weights")), rel=1e-9
    )


def test_updating_after_every_class_sees_what_the_images_have_become():
    """The synthetic images of a part are decoded when their part's turn comes."""
    env, syn = tiny_world(F64)
    objective = replace(DC, classes_at_once=1).build(env)
    images = syn.tensors["images"].clone().requires_grad_()
    losses = []
    for loss in objective.losses(
        syn.with_tensors({"images": images}), {}, 0, generator(1, "losses")
    ):
        loss.backward()
        losses.append(float(loss.detach()))
        images.data.mul_(0.5)
    (first, *_), _ = ours(objective, syn)
    halved = [
        float(v)
        for v in ours(objective, syn.with_tensors({"images": syn.tensors["images"] * 0.5}))[0]
    ]
    assert losses[:2] == pytest.approx([float(first), halved[1]], rel=1e-12)


def test_a_set_whose_classes_are_not_in_order():
    """An imported one: the same loss, gradients in their places."""
    env, syn = tiny_world(F64, ipc=2)
    order = torch.randperm(20, generator=generator(0))
    mixed = replace(
        syn.with_tensors({"images": syn.tensors["images"][order]}), classes=syn.classes[order]
    )
    assert own_examples(mixed, 0) != own_examples(syn, 0)
    agree(replace(DC, classes_at_once=3), env, mixed, 1e-9)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    for form in FORMS.values():
        env, syn = tiny_world(F32, model="convnet-d1-w2-bn")
        ours(replace(form, networks=OnReal(images=5)).build(env), syn)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at_once", [1, 3])
def test_batch_norm_in_bfloat16(at_once):
    """As --precision bf16 has it, classes one by one and several at once."""
    env, syn = tiny_world(F32, model="convnet-d1-w4-bn")
    env = replace(env, model=FlatModel(env.new_model(generator(0)), "bf16"))
    losses, grad = ours(replace(DC, classes_at_once=at_once).build(env), syn)
    assert torch.stack(losses).isfinite().all() and grad.isfinite().all() and grad.any()


def test_passes_shrink_with_images_and_networks():
    """Classes in one pass follow the pixels of an image and the parameters whose gradients are
    alive, and are at least one.
    """
    small, large = (SimpleNamespace(image_shape=(3, side, side)) for side in (32, 128))
    narrow, wide = SimpleNamespace(num_params=10**5), SimpleNamespace(num_params=3 * 10**7)

    def env(real, model, device="cuda"):
        return SimpleNamespace(real=real, model=model, device=torch.device(device))

    assert (
        pays(env(small, narrow), 1) == 2**28 // (4 * 10**5)
        and pays(env(small, narrow), 10) == 2048 // 10
    )
    assert (
        pays(env(large, narrow), 10) == 2048 // 160
        and pays(env(small, wide), 1) == 2
        and pays(env(large, wide), 10**4) == 1
    )
    assert (
        pays(env(small, narrow, "cpu"), 10) == 10
        and pays(env(small, narrow, "cpu"), 10, "cuda") == 2048 // 10
    )


def test_what_cannot_be_compared_is_refused():
    """A network without a parameter of the wanted rank, a warm-up of nothing, parts that are left
    to the device and stepped after each.
    """
    env, _ = tiny_world(F64, model="mlp")
    for metric in ("layerwise", "l1", "mse", "cos"):
        with pytest.raises(
            UserError, match=r"objective\.tensors convolutions .* set objective\.tensors weights"
        ):
            GradientMatching(
                networks=Untrained(), metric=metric, tensors="convolutions", real_batch=5
            ).build(env)
    for warmup in (
        {"warmup_networks": 1},
        {"warmup_steps": 1, "classes": "sum"},
        {"warmup_networks": -1, "warmup_steps": 2, "classes": "sum"},
    ):
        with pytest.raises(UserError, match="warmup_networks"):
            GradientMatching(networks=Untrained(), **warmup)
    recipe = find("idc/fashion_mnist_ipc1_small")
    with pytest.raises(UserError, match=r"outer\.step_after each .* objective\.classes_at_once 1"):
        replace(recipe, objective=replace(recipe.objective, classes_at_once=None))
