"""Sets with soft labels from end to end: stored and shipped, in the objective, relabelled, trained
on, and the rows of an evaluation.
"""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import (
    CPU,
    DIGITS,
    MODEL,
    TINY,
    Pull,
    new_model,
    rewrite_tensors,
    run,
    shipped_loader,
    tiny_data,
    tiny_env,
    tiny_set,
    tiny_store,
)
from torch.nn import functional

from buffers.store import StoreGroup
from ddengine import loop as outer
from ddengine.artefact import folder as folders
from ddengine.artefact.folder import load
from ddengine.data import Preprocess, load_data
from ddengine.evaluation import bench
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.train import validate
from ddengine.learning import training
from ddengine.learning.losses import task_loss
from ddengine.learning.teachers import predict
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig, EvalConfig, OptimConfig, OuterConfig, TargetConfig
from ddengine.sets.codec import Compensated, Identity
from ddengine.sets.coreset import random_index
from ddengine.sets.labels import label
from ddengine.sets.synthetic import SyntheticSet, coded
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.trajectory import TrajectoryMatching, UniformWindow, student_batches

RELABEL = TargetConfig(kind="logits", experts="all", epochs=(1, 2), relabel=True)
NO_AUGMENT = AugmentConfig(ops=())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Digits and two short experts."""
    data = tiny_data()
    return data, tiny_store(tmp_path_factory.mktemp("store"), data)


@pytest.fixture(scope="module")
def tested():
    """Digits with their test split."""
    return load_data(DIGITS, CPU, test=True)


def soft_set(data, scale=3.0, ipc=2, **scalars):
    """Random label logits on random real images."""
    syn = tiny_set(data, ipc=ipc, **scalars)
    return syn.with_labels(
        scale * torch.randn(len(syn), data.num_classes, generator=generator(0, "logits"))
    )


# Stored and shipped


def test_batches_hand_out_logits(world):
    """Rows of the chosen examples, differentiable; the classes stay and are no longer the targets."""
    data, _ = world
    syn = soft_set(data)
    leaf = syn.tensors["logits"].clone().requires_grad_()
    index = torch.tensor([19, 0, 7, 7])
    images, targets = syn.with_tensors({"logits": leaf}).batch(index)
    assert torch.equal(targets, syn.tensors["logits"][index]) and torch.equal(
        images, syn.tensors["images"][index]
    )
    targets.sum().backward()
    assert leaf.grad is not None and leaf.grad.sum(1).tolist() == [
        10.0 * index.tolist().count(i) for i in range(20)
    ]
    assert (
        tiny_set(data).batch(index).targets.tolist() == [9, 0, 3, 3] == syn.classes[index].tolist()
    )


def test_soft_labels_survive_the_folder(world, tmp_path):
    """To the bit, with their kind; what is loaded trains with them."""
    data, _ = world
    syn = soft_set(data, lr=0.02)
    folders.save(syn, tmp_path / "set", {})
    again, meta = load(tmp_path / "set", CPU)
    assert again.target_kind == meta["target_kind"] == "logits" and again.lr == syn.lr
    assert again.tensors.keys() == syn.tensors.keys() and all(
        torch.equal(again.tensors[k], syn.tensors[k]) for k in syn.tensors
    )
    assert torch.equal(
        again.batch(torch.arange(20)).targets, syn.tensors["logits"]
    ) and torch.equal(again.classes, syn.classes)


@pytest.mark.parametrize("soft", [True, False])
def test_the_shipped_loader_gives_what_a_loss_wants(world, tmp_path, soft):
    """Probabilities equal to the softmax of the logits, which torch's cross-entropy takes; classes
    for a set without.
    """
    data, _ = world
    syn = soft_set(data, lr=0.02) if soft else tiny_set(data, lr=0.02)
    folders.save(syn, tmp_path / "set", {})
    images, targets, info = shipped_loader(tmp_path / "set").load()
    ours = syn.batch(torch.arange(20))
    assert torch.equal(images, ours.images) and info["lr"] == pytest.approx(0.02)
    if soft:
        assert torch.allclose(
            targets, syn.tensors["logits"].softmax(1), atol=1e-7
        ) and torch.allclose(targets.sum(1), torch.ones(20))
    else:
        assert torch.equal(targets, syn.classes)
    outputs = torch.randn(20, 10, generator=generator(1))
    assert float(functional.cross_entropy(outputs, targets)) == pytest.approx(
        float(task_loss(outputs, ours.targets)), rel=1e-6
    )


def test_labels_are_counted_in_bytes(world, tmp_path):
    """20 classes of 8 bytes and 20 x 10 logits of 4, and once in the total; the shipped folder says
    the same.
    """
    data, _ = world
    hard, soft = tiny_set(data, lr=0.02).sizes(), soft_set(data, lr=0.02).sizes()
    assert hard["labels"] == 160 and soft["labels"] == 160 + 800
    assert soft["other"] == hard["other"] == 4 and soft["images"] == hard["images"] == 20 * 64 * 4
    assert soft["total"] == soft["images"] + soft["labels"] + 4 == hard["total"] + 800
    folders.save(soft_set(data, lr=0.02), tmp_path / "set", {})
    assert json.loads((tmp_path / "set/meta.json").read_text())["bytes"] == soft


@pytest.mark.parametrize("shape", [(20, 11), (19, 10), (10, 20), (200,), (20, 10, 1)])
def test_labels_of_a_wrong_shape_are_refused(world, tmp_path, shape):
    """Naming the shape, the images and the classes there are."""
    data, _ = world
    folders.save(soft_set(data), tmp_path / "set", {})
    tensors, of = files.read_tensors(tmp_path / "set/labels.safetensors")
    assert (
        tensors.keys() == {"logits"}
        and "logits" not in files.read_tensors(tmp_path / "set/data.safetensors")[0]
    )
    meta = files.read_json(tmp_path / "set/meta.json") | {
        "labels_digest": files.tensor_digest({"logits": torch.zeros(shape)})
    }
    files.write_json(tmp_path / "set/meta.json", meta)
    rewrite_tensors(tmp_path / "set/labels.safetensors", {"logits": torch.zeros(shape)}, of)
    with pytest.raises(UserError, match=rf"\({shape[0]}.*20 images.*10 classes"):
        load(tmp_path / "set", CPU)


def test_labels_that_are_missing_are_a_sentence(world, tmp_path):
    """A folder that says logits and has none."""
    data, _ = world
    folders.save(soft_set(data), tmp_path / "set", {})
    (tmp_path / "set/labels.safetensors").unlink()
    with pytest.raises(UserError, match=r"lost its soft labels, labels\.safetensors"):
        load(tmp_path / "set", CPU)


# The loss


def test_soft_cross_entropy_by_its_formula():
    """Minus the mean over examples of sum_k softmax(z)_k log softmax(f)_k, and its gradient in
    both; sure logits are classes.
    """
    outputs, logits = (
        torch.randn(5, 4, generator=generator(i), dtype=torch.float64).requires_grad_()
        for i in range(2)
    )
    wanted = (
        -(
            logits.exp()
            / logits.exp().sum(1, keepdim=True)
            * (outputs - outputs.exp().sum(1, keepdim=True).log())
        )
        .sum(1)
        .mean()
    )
    found = task_loss(outputs, logits)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(found, (outputs, logits)),
        torch.autograd.grad(wanted, (outputs, logits)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-12) and ours.abs().max() > 1e-3
    classes = torch.tensor([1, 0, 3, 2, 2])
    sure = 1e3 * functional.one_hot(classes, 4).double()
    assert float(task_loss(outputs, sure).detach()) == pytest.approx(
        float(functional.cross_entropy(outputs, classes).detach()), rel=1e-12
    )


# The objective


def matching(**fields):
    """Three steps over one expert epoch, in batches that need an order."""
    settings = {
        "inner_steps": 3,
        "expert_epochs": 1,
        "window": UniformWindow(high=2),
        "batch": 7,
        "lr": 0.05,
        "augment": NO_AUGMENT,
    }
    return TrajectoryMatching(**(settings | fields))


def one_loss(world, config, syn, seed=0):
    """(loss, gradients by tensor) of a step."""
    data, store = world
    leaves = {k: v.clone().requires_grad_() for k, v in syn.tensors.items()}
    (loss,) = config.build(tiny_env(data, store)).losses(
        syn.with_tensors(leaves), {}, 0, generator(seed, "step")
    )
    loss.backward()
    return float(loss.detach()), {k: v.grad for k, v in leaves.items()}


def by_hand(world, config, syn, targets_of, seed=0):
    """The same, unrolled here; `targets_of(expert, start, images, logits)` -> probabilities (N, K)."""
    data, store = world
    model, rng = tiny_env(data, store).model, generator(seed, "step")
    expert = int(torch.randint(store.num_experts, (1,), generator=rng))
    start = int(torch.randint(*config.window(0), (1,), generator=rng))
    batches = student_batches(len(syn), config.batch, config.inner_steps, rng)
    leaves = {k: v.clone().requires_grad_() for k, v in syn.tensors.items()}
    theta, end = store.snapshots(expert, [start, start + config.expert_epochs])
    begin = theta = theta.clone().requires_grad_()
    probabilities = targets_of(expert, start, leaves["images"].detach(), leaves.get("logits"))
    for index in batches:
        loss = (
            -(probabilities[index] * model(theta, leaves["images"][index]).log_softmax(1))
            .sum(1)
            .mean()
        )
        theta = theta - leaves["lr"] * torch.autograd.grad(loss, theta, create_graph=True)[0]
    loss = (theta - end).square().sum() / (begin - end).square().sum()
    loss.backward()
    return float(loss.detach()), {k: v.grad for k, v in leaves.items()}, (expert, start)


def assert_same_step(ours, wanted):
    """Loss, and gradients relative to their size."""
    assert ours[0] == pytest.approx(wanted[0], rel=1e-3)
    for name, grad in wanted[1].items():
        if grad is not None:
            assert (ours[1][name] - grad).norm() <= 1e-2 * grad.norm() and grad.norm() > 0, name


@pytest.mark.parametrize("backprop", ["full", "replay"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_target_labels_are_those_of_the_segments_end(world, backprop, epochs):
    """Loss and gradients by hand, for several experts and starts: the network `expert_epochs` after
    the start looks at the images as they are.
    """
    data, store = world
    config, syn = (
        matching(labels="target", expert_epochs=epochs, backprop=backprop),
        tiny_set(data, lr=0.05),
    )

    def at_the_end(expert, start, images, logits):
        with torch.no_grad():
            return store.load(expert, start + epochs)(images).softmax(1)

    def at_the_start(expert, start, images, logits):
        with torch.no_grad():
            return store.load(expert, start)(images).softmax(1)

    seen = set()
    for seed in range(5):
        loss, grads, drawn = by_hand(world, config, syn, at_the_end, seed)
        assert_same_step(one_loss(world, config, syn, seed), (loss, grads))
        assert by_hand(world, config, syn, at_the_start, seed)[0] != pytest.approx(loss, rel=1e-3)
        seen.add(drawn)
    assert len(seen) > 2


def test_target_labels_look_past_augmentation_and_stored_labels(world, monkeypatch):
    """The expert sees each image once and unaugmented, and what the set is labelled with does not
    matter.
    """
    data, _ = world
    config, syn = (
        matching(labels="target", augment=AugmentConfig(ops=("flip", "color"))),
        tiny_set(data, lr=0.05),
    )
    seen = []
    monkeypatch.setattr(
        "synth.trajectory.predict",
        lambda network, images: seen.append((network.training, images)) or predict(network, images),
    )
    loss, grads = one_loss(world, config, syn)
    ((training_mode, images),) = seen
    assert not training_mode and torch.equal(images, syn.tensors["images"])
    soft_loss, soft_grads = one_loss(world, config, soft_set(data, lr=0.05))
    assert soft_loss == loss and torch.equal(soft_grads["images"], grads["images"])
    assert one_loss(world, replace(config, labels="stored"), syn)[0] != pytest.approx(
        loss, rel=1e-3
    )


@pytest.mark.parametrize("backprop", ["full", "replay"])
def test_learned_logits_get_the_gradient_of_the_unrolled_loss(world, backprop):
    """By hand, through the softmax, beside those of images and rate."""
    data, _ = world
    config, syn = matching(backprop=backprop), soft_set(data, lr=0.05)
    loss, grads, _ = by_hand(
        world, config, syn, lambda expert, start, images, logits: logits.softmax(1)
    )
    assert set(grads) == {"images", "lr", "logits"}
    assert_same_step(one_loss(world, config, syn), (loss, grads))


def test_learned_logits_move_as_their_optimiser_says(world, tmp_path):
    """One step is rate times gradient; several lower the loss of their segment; without an
    optimiser they stay to the bit.
    """
    data, store = world
    config, syn = matching(window=UniformWindow(high=1), batch=None), soft_set(data, lr=0.05)
    objective = config.build(tiny_env(data, store))
    optim = {
        "images": OptimConfig(lr=0.0),
        "lr": OptimConfig(lr=0.0),
        "logits": OptimConfig(lr=2.0, momentum=0.9),
    }
    one, _ = outer.distill(
        syn, objective, OuterConfig(steps=1, optim=optim), tmp_path / "one", seed=0
    )
    leaf = syn.tensors["logits"].clone().requires_grad_()
    (loss,) = objective.losses(
        syn.with_tensors({"logits": leaf}), {}, 0, generator(0, "losses", 0, 0)
    )
    (grad,) = torch.autograd.grad(loss, leaf)
    moved = one.tensors["logits"] - syn.tensors["logits"]
    assert torch.allclose(moved, -2.0 * grad, rtol=1e-3, atol=1e-6) and moved.norm() > 1e-4
    assert one.target_kind == "logits" and torch.equal(one.tensors["images"], syn.tensors["images"])
    many, _ = outer.distill(
        syn, objective, OuterConfig(steps=25, optim=optim), tmp_path / "many", seed=0
    )
    assert one_loss(world, config, many)[0] < one_loss(world, config, syn)[0]
    fixed, _ = outer.distill(
        syn,
        objective,
        OuterConfig(steps=2, optim={"images": OptimConfig(lr=1.0)}),
        tmp_path / "fixed",
        seed=0,
    )
    assert torch.equal(fixed.tensors["logits"], syn.tensors["logits"]) and not torch.equal(
        fixed.tensors["images"], syn.tensors["images"]
    )


def test_a_rate_for_labels_that_are_not_there(world, tmp_path):
    """A set of classes has no logits to learn."""
    data, _ = world
    with pytest.raises(UserError, match=r"outer\.optim has a rate for 'logits'.*stores images"):
        outer.distill(
            tiny_set(data),
            Pull(),
            OuterConfig(steps=1, optim={"logits": OptimConfig(lr=1.0)}),
            tmp_path,
            seed=0,
        )


# Labelled anew


def relabelled(world, folder, *, steps=8, stop_at=None, validate=None, ema=None, picture=None):
    """Distill by an objective that moves the images, and label the result by the experts."""
    data, store = world
    syn = label(tiny_set(data), store, RELABEL)

    class Stopping(Pull):
        def losses(self, syn, state, step, rng):
            if step == stop_at:
                raise KeyboardInterrupt
            return super().losses(syn, state, step, rng)

    config = OuterConfig(
        steps=steps,
        optim={"images": OptimConfig(lr=0.1)},
        checkpoint_every=3,
        evaluate_every=2,
        ema=ema or {},
    )
    return outer.distill(
        syn, Stopping(noise=1.0), config, folder, seed=1, finish=lambda s: label(s, store, RELABEL), validate=validate, picture=picture
    )[0]  # fmt: skip


def mean_logits(store, images):
    """What RELABEL means, written out."""
    return torch.stack(
        [predict(store.load(expert, epoch), images) for expert in (0, 1) for epoch in (1, 2)]
    ).mean(0)


def test_the_shipped_labels_are_those_of_the_shipped_images(world, tmp_path):
    """Not those of the first images; and the last picture is of what is shipped."""
    data, store = world
    pictured = {}
    result = relabelled(world, tmp_path, picture=lambda syn, step: pictured.update({step: syn}))
    assert torch.allclose(
        result.tensors["logits"], mean_logits(store, result.tensors["images"]), atol=1e-5
    )
    assert (
        result.tensors["logits"] - label(tiny_set(data), store, RELABEL).tensors["logits"]
    ).norm() > 0.1
    assert result.target_kind == "logits" and torch.equal(
        pictured[8].tensors["images"], result.tensors["images"]
    )


def test_averaged_images_are_labelled_and_not_the_last_ones(world, tmp_path):
    """With a running average, the labels belong to it; the last iterate is there beside it."""
    _, store = world
    result = relabelled(world, tmp_path, ema={"images": 0.8})
    assert (result.tensors["raw.images"] - result.tensors["images"]).norm() > 0.1
    assert torch.allclose(
        result.tensors["logits"], mean_logits(store, result.tensors["images"]), atol=1e-5
    )


@pytest.mark.parametrize("ema", [None, {"images": 0.8}])
def test_validation_sees_the_labels_of_its_moment(world, tmp_path, ema):
    """Each time those of the images reached, never the first ones."""
    _, store = world
    shown = []
    relabelled(world, tmp_path, validate=lambda syn: shown.append(syn) or 0.5, ema=ema)
    assert len(shown) == 4
    for syn in shown:
        assert torch.allclose(
            syn.batch(torch.arange(20)).targets,
            mean_logits(store, syn.tensors["images"]),
            atol=1e-5,
        )
    assert all(
        (a.tensors["logits"] - b.tensors["logits"]).norm() > 1e-3 for a, b in pairwise(shown)
    )


@pytest.mark.parametrize("stop_at", [1, 5])
@pytest.mark.parametrize("ema", [None, {"images": 0.8}])
def test_resuming_with_new_labels_is_bit_identical(world, tmp_path, stop_at, ema):
    """Tensors, labels and log but for its times; labels made for a validation on the way leave no
    trace.
    """
    whole = relabelled(world, tmp_path / "whole", validate=lambda syn: 0.5, ema=ema)
    with pytest.raises(KeyboardInterrupt):
        relabelled(world, tmp_path / "broken", stop_at=stop_at, validate=lambda syn: 0.5, ema=ema)
    again = relabelled(world, tmp_path / "broken", validate=lambda syn: 0.5, ema=ema)
    assert whole.tensors.keys() == again.tensors.keys() and all(
        torch.equal(whole.tensors[k], again.tensors[k]) for k in whole.tensors
    )
    first, second = (
        (tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")
    )
    assert (
        re.sub(r', "seconds": [0-9.]+', "", first) == re.sub(r', "seconds": [0-9.]+', "", second)
        and '"seconds"' in first
    )
    unseen = relabelled(world, tmp_path / "unseen", ema=ema)
    assert all(torch.equal(whole.tensors[k], unseen.tensors[k]) for k in whole.tensors)


def test_target_labels_and_relabelling_on_the_command_line(tmp_path, monkeypatch):
    """buffer and distill with TESLA's labels: the shipped logits are the experts' means for the
    shipped images; evaluate takes the folder.
    """
    from buffers.store import ExpertStore

    monkeypatch.chdir(tmp_path)
    flags = [
        "mtt/digits_ipc1",
        *TINY,
        "--targets.kind",
        "logits",
        "--targets.experts",
        "all",
        "--targets.epochs",
        "1",
        "2",
    ]
    flags += ["--targets.relabel", "True", "--objective.labels", "target"]
    assert run("buffer", *flags) == 0 and run("distill", *flags, "--out", "run") == 0
    syn, _ = load(tmp_path / "run/distilled", CPU)
    data = tiny_data()
    store = ExpertStore(next((tmp_path / "experts").iterdir()), new_model(data), 2)
    assert torch.allclose(
        syn.tensors["logits"], mean_logits(store, syn.tensors["images"]), atol=1e-5
    )
    assert run("evaluate", "run/distilled", "--baselines", "random_soft", "--epochs", "2", "--num_networks", "3", "--lr_grid", "0.01",
               "--full_steps", "4") == 0  # fmt: skip
    assert [
        r["set"]
        for r in json.loads((tmp_path / "run/distilled/evaluation.json").read_text())["rows"]
    ] == ["distilled", "random_soft"]


def test_relabelling_never_loses_a_finished_run(tmp_path, monkeypatch):
    """Images that drift until no expert is right about one: by right experts refused before
    anything is made, by all labelled all the same.
    """
    monkeypatch.chdir(tmp_path)
    flags = [
        "mtt/digits_ipc1",
        *TINY,
        "--targets.kind",
        "logits",
        "--targets.relabel",
        "True",
        "--outer.optim.images.lr",
        "3000",
    ]
    assert (
        run("buffer", *flags) == 2 and run("distill", *flags) == 2 and not list(tmp_path.iterdir())
    )
    flags += ["--targets.experts", "all"]
    assert run("buffer", *flags) == 0 and run("distill", *flags, "--out", "run") == 0
    assert (tmp_path / "run/distilled").exists()


# Training on soft labels

SHORT = EvalConfig(
    protocol="test",
    epochs=1,
    batch=64,
    augment=NO_AUGMENT,
    baselines=(),
    num_networks=3,
    lr_grid=(0.05,),
    full_steps=6,
)


@pytest.mark.parametrize("seeds", [[4], [4, 5, 6]])
def test_networks_learn_from_soft_labels(world, seeds):
    """Two full-batch updates, written out; one network, and three in one computation."""
    data, _ = world
    syn = soft_set(data)
    networks = training.train_networks(
        lambda rng: new_model(data)(rng), [syn] * len(seeds), seeds, SHORT, 0.05, CPU
    )
    for seed, network in zip(seeds, networks, strict=True):
        reference = build_model(MODEL, data.image_shape, 10, generator(seed, "network")).train()
        start = torch.cat([p.detach().flatten() for p in reference.parameters()])
        optimiser = torch.optim.SGD(reference.parameters(), 0.05, 0.9, weight_decay=5e-4)
        for _ in range(2):
            optimiser.zero_grad()
            outputs = reference(syn.tensors["images"])
            (-(syn.tensors["logits"].softmax(1) * outputs.log_softmax(1)).sum(1).mean()).backward()
            optimiser.step()
        wanted, found = (
            torch.cat([p.detach().flatten() for p in n.parameters()]) for n in (reference, network)
        )
        assert (found - wanted).norm() < 1e-4 * (wanted - start).norm()


def test_validation_of_a_soft_set_trains_with_its_labels(tested):
    """Labels of another class for every image turn the accuracy over."""
    settings = replace(SHORT, epochs=30)
    right = tiny_set(tested, ipc=10, lr=0.05)
    sure = right.with_labels(20.0 * functional.one_hot(right.classes, 10).float())
    wrong = right.with_labels(20.0 * functional.one_hot((right.classes + 1) % 10, 10).float())
    scores = [
        validate(s, tested, settings, MODEL, seed=0, device=CPU, precision="fp32")
        for s in (right, sure, wrong)
    ]
    assert scores[0] > 0.5 and abs(scores[1] - scores[0]) < 0.11 and scores[2] < 0.2


# The rows of an evaluation


def rows_of(syn, data, config=SHORT, **more):
    """By name."""
    rows = evaluate(syn, data, config, MODEL, seed=0, device=CPU, **more)["rows"]
    assert len({r["set"] for r in rows}) == len(rows)
    return {r["set"]: r for r in rows}


def result_of(row):
    """What a row measured."""
    return [a["accuracy"] for a in row["accuracies"]], row["lr"], row["steps"]


LONGER = replace(SHORT, epochs=12)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("validation", [True, False])
def test_the_last_iterate_has_networks_of_its_own(tested, soft, validation):
    """Its row is what its images give as a set of their own, with the same learned rate: nothing is
    trained a second time.
    """
    data = tested if validation else replace(tested, validation=None)
    averaged = soft_set(data, ipc=4, lr=0.04) if soft else tiny_set(data, ipc=4, lr=0.04)
    last = averaged.tensors["images"] * 0.5 + 0.3 * torch.randn(
        averaged.tensors["images"].shape, generator=generator(5)
    )
    rows = rows_of(averaged.with_tensors({"raw.images": last}), data, LONGER)
    assert list(rows) == ["distilled", "raw"]
    assert result_of(rows["distilled"]) == result_of(rows_of(averaged, data, LONGER)["distilled"])
    assert result_of(rows["raw"]) == result_of(
        rows_of(averaged.with_tensors({"images": last}), data, LONGER)["distilled"]
    )
    assert result_of(rows["raw"])[0] != result_of(rows["distilled"])[0]
    assert validation or rows["raw"]["lr"] == pytest.approx(0.04)
    assert rows["raw"]["n"] == 3 and [a["draw"] for a in rows["raw"]["accuracies"]] == [0, 0, 0]


def test_equal_images_give_equal_rows(tested):
    """The released program trains the network of the average further than the other; here both rows
    are the same measurement.
    """
    syn = tiny_set(tested, ipc=4, lr=0.04)
    rows = rows_of(syn.with_tensors({"raw.images": syn.tensors["images"].clone()}), tested, LONGER)
    assert result_of(rows["raw"]) == result_of(rows["distilled"])


def test_networks_of_both_rows_start_afresh(tested, monkeypatch):
    """Every training begins at the initialisation of its seed."""
    started, original = [], training.train_networks

    def watching(build, sets, seeds, *args, **kwargs):
        def noted(rng):
            network = build(rng)
            started.append(float(network.classifier.weight.detach().sum()))
            return network

        return original(noted, sets, seeds, *args, **kwargs)

    monkeypatch.setattr(training, "train_networks", watching)
    syn = tiny_set(tested, lr=0.04)
    rows_of(
        syn.with_tensors({"raw.images": syn.tensors["images"] * 0.5}),
        replace(tested, validation=None),
    )
    fresh = [
        float(
            build_model(MODEL, tested.image_shape, 10, generator(s, "network"))
            .classifier.weight.detach()
            .sum()
        )
        for s in (0, 1, 2)
    ]
    assert sorted(started) == sorted(fresh * (len(started) // 3)) and len(started) >= 6


def test_a_distilled_average_brings_its_last_iterate(world, tested, tmp_path):
    """From the outer loop through the folder to the row; without averages there is none."""
    data, _ = world
    config = OuterConfig(steps=4, optim={"images": OptimConfig(lr=0.3)}, ema={"images": 0.9})
    result, _ = outer.distill(
        tiny_set(data, ipc=4, lr=0.04), Pull(noise=2.0), config, tmp_path / "run", seed=0
    )
    folders.save(result, tmp_path / "set", {})
    again, _ = load(tmp_path / "set", CPU)
    rows = rows_of(again, tested, LONGER)
    alone = again.with_tensors({"images": again.tensors["raw.images"]})
    assert result_of(rows["raw"]) == result_of(
        rows_of(
            replace(alone, tensors={k: alone.tensors[k] for k in ("images", "lr")}), tested, LONGER
        )["distilled"]
    )
    assert "raw" not in rows_of(tiny_set(tested), tested)


SOFT = replace(SHORT, baselines=("random", "random_soft", "herding", "full"))


def spied(monkeypatch):
    """All trainings of an evaluation: (sets, seeds, networks)."""
    calls, original = [], training.train_networks

    def watching(build, sets, seeds, *args, **kwargs):
        networks = original(build, sets, seeds, *args, **kwargs)
        calls.append((list(sets), list(seeds), networks))
        return networks

    monkeypatch.setattr(training, "train_networks", watching)
    return calls


def test_random_soft_is_random_with_the_labels_of_a_trained_network(tested, monkeypatch):
    """The same draws as the row `random`; raw logits of one network trained on the full data, which
    herding looks with too.
    """
    calls = spied(monkeypatch)
    rows = rows_of(tiny_set(tested, lr=0.05), replace(tested, validation=None), SOFT)
    assert list(rows) == ["distilled", "random", "random_soft", "herding", "full"]
    teachers = [networks[0] for _, seeds, networks in calls if seeds == [2 * bench.SEARCH_SEED]]
    assert len(teachers) == 1 and not teachers[0].training
    # in the order of the rows
    _, random_sets, soft_sets, *_ = [sets for sets, _, _ in calls if len(sets) == 3]
    everything = torch.arange(20)
    for hard, soft in zip(random_sets, soft_sets, strict=True):
        (images, classes), (same, logits) = hard.batch(everything), soft.batch(everything)
        assert torch.equal(images, same) and not classes.is_floating_point()
        with torch.no_grad():
            assert torch.allclose(logits, teachers[0](images), atol=1e-5)
        index = torch.tensor([7, 0, 19])
        assert torch.equal(soft.batch(index).targets, logits[index]) and torch.equal(
            soft.batch(index).images, images[index]
        )
    assert not torch.equal(
        soft_sets[0].batch(everything).images, soft_sets[1].batch(everything).images
    )
    assert [a["draw"] for a in rows["random_soft"]["accuracies"]] == [0, 1, 2]
    assert (
        rows["random_soft"]["steps"] == rows["random"]["steps"]
        and rows["random_soft"]["lr"] == rows["random"]["lr"]
    )


def test_random_soft_has_the_rate_searched_like_the_others(tested):
    """On the validation split, from the same grid and the learned rate."""
    config = replace(
        SHORT, baselines=("random_soft",), lr_grid=(1e-6, 0.1), epochs=8, lr=0.1, full_steps=60
    )
    row = rows_of(tiny_set(tested, lr=0.05), tested, config)["random_soft"]
    assert row["lr"] > 0.04


def test_random_soft_needs_three_networks():
    """As random does: fewer draws say nothing about draws."""
    with pytest.raises(UserError, match=r"evaluation\.num_networks"):
        EvalConfig(protocol="test", num_networks=2, baselines=("random_soft",))


@pytest.mark.parametrize("stop_at", [1, 4, 5, 8])
def test_an_interrupted_evaluation_with_random_soft(tested, tmp_path, monkeypatch, stop_at):
    """Stopped before, between and after its trainings: the same numbers as without, and no finished
    training again.
    """
    config = replace(SHORT, baselines=("random", "random_soft", "full"), lr_grid=(0.02, 0.1))
    syn = tiny_set(tested, lr=0.05)
    whole = rows_of(syn, tested, config)
    calls, original = [], bench.Bench.accuracies

    def until(limit):
        def accuracies(self, asked):
            if len(calls) == limit:
                raise KeyboardInterrupt
            found = original(self, asked)
            calls.append((asked.who.name, asked.lr, asked.seeds))
            return found

        return accuracies

    memo = tmp_path / "memo.jsonl"
    monkeypatch.setattr(bench.Bench, "accuracies", until(stop_at))
    with pytest.raises(KeyboardInterrupt):
        rows_of(syn, tested, config, memo_path=memo)
    # and lines that say which networks are trained at once, on how many threads and processes
    assert memo.read_bytes().count(b"\n") == stop_at + 3
    monkeypatch.setattr(bench.Bench, "accuracies", until(-1))
    again = rows_of(syn, tested, config, memo_path=memo)
    assert list(again) == list(whole) and all(
        result_of(again[k]) == result_of(whole[k]) for k in whole
    )
    # three rates and the reported networks, for each of four sets
    assert len(calls) == len(set(calls)) == 4 * 4


# Static labels of teachers, made small


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two networks of different kinds."""
    data = tiny_data()
    names = ("convnet-d1-w4-bn", "convnet-d2-w8-bn")
    return StoreGroup(
        [
            tiny_store(tmp_path_factory.mktemp(name), data, model=name, num_experts=1, keep="last")
            for name in names
        ]
    )


def with_compensators(data, size=1.5):
    """Natural images and large compensators, as they are optimised."""
    codec = Compensated(base=2, compensators=6)
    images = data.train.images(random_index(data.train, 2, data.class_names, generator(0, "init")))
    syn = coded(codec, images, torch.arange(20) // 2, data.class_names, data.train.preprocess)
    noise = size * torch.randn(syn.tensors["compensators"].shape, generator=generator(1))
    return syn.with_tensors(
        {k: v.clone() for k, v in syn.tensors.items()} | {"compensators": noise}
    )


def best_of(logits, top):
    """Brute force: the largest stay, the others become their mean."""
    out = torch.empty_like(logits)
    for i, row in enumerate(logits.tolist()):
        largest = sorted(range(len(row)), key=lambda c: -row[c])[:top]
        rest = [v for c, v in enumerate(row) if c not in largest]
        for c, v in enumerate(row):
            out[i, c] = v if c in largest else sum(rest) / len(rest)
    return out


STATIC = TargetConfig(kind="logits", experts="all", relabel=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_static_labels_are_the_mean_of_the_teachers_raw_logits(world, teachers, dtype):
    """Of every example as it is shipped, which is not as it was optimised: bytes, half precision,
    clamped sums; no augmentation.
    """
    data, _ = world
    syn = with_compensators(data)
    result = label(syn.shipped(), teachers, replace(STATIC, dtype=dtype))
    with torch.no_grad():
        images = syn.shipped().batch(torch.arange(80)).images
        wanted = (teachers.load(0, 3)(images) + teachers.load(1, 3)(images)) / 2
        before = (
            teachers.load(0, 3)(syn.batch(torch.arange(80)).images)
            + teachers.load(1, 3)(syn.batch(torch.arange(80)).images)
        ) / 2
    assert (
        result.tensors["logits"].dtype == getattr(torch, dtype)
        and result.label_of == "decoded"
        and result.target_kind == "logits"
    )
    exact = wanted if dtype == "float32" else wanted.half().float()
    assert torch.allclose(result.logits, exact, rtol=0, atol=1e-5 if dtype == "float32" else 4e-3)
    assert (
        result.logits.dtype == torch.float32
        and result.batch(torch.tensor([79])).targets.dtype == torch.float32
    )
    assert (before[20:] - wanted[20:]).abs().max() > 0.05 > (before[:20] - wanted[:20]).abs().max()
    assert result.sizes()["labels"] == 160 + 80 * 10 * (4 if dtype == "float32" else 2)


@pytest.mark.parametrize("top", [1, 2, 3, 8, 9, 10, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_largest_logits_and_the_mean_of_the_others(world, tmp_path, top, dtype):
    """Against brute force, in memory and from the folder; where indices and mean take more than
    they save, all are stored.
    """
    data, _ = world
    logits = 5 * torch.randn(20, 10, generator=generator(2, "logits"))
    syn = tiny_set(data).with_labels(logits, dtype, top)
    size = 2 if dtype == torch.float16 else 4
    saves = (top + 1) * size + top < 10 * size
    assert saves == (top < 6 if size == 2 else top < 8)
    wanted = best_of(logits, top) if saves else logits
    assert torch.allclose(syn.logits, wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)
    if saves:
        assert (
            syn.tensors["logits"].shape == (20, top + 1)
            and syn.tensors["logits.index"].dtype == torch.uint8
        )
        assert syn.sizes()["labels"] == 160 + 20 * (size * (top + 1) + top)
        assert syn.logits.sum(1) == pytest.approx(logits.sum(1), abs=0.1)  # the mean keeps the sum
    else:
        assert "logits.index" not in syn.tensors and syn.sizes()["labels"] == 160 + 20 * size * 10
    folders.save(syn, tmp_path / "set", {})
    again, _ = load(tmp_path / "set", CPU)
    assert torch.equal(again.logits, syn.logits) and all(
        again.tensors[k].dtype == v.dtype for k, v in syn.tensors.items()
    )
    index = torch.tensor([19, 0, 7])
    assert torch.equal(again.batch(index).targets, syn.logits[index])
    assert (
        torch.equal(syn.with_labels(logits).tensors["logits"], logits)
        and "logits.index" not in syn.with_labels(logits).tensors
    )


@pytest.mark.parametrize("num_classes", [256, 257, 400])
def test_many_classes_need_wider_indices(num_classes):
    """256 numbers fit into a byte."""
    logits = torch.randn(num_classes, num_classes, generator=generator(0))
    plain = Preprocess(mean=torch.zeros(1), std=torch.ones(1))
    names = tuple(map(str, range(num_classes)))
    syn = SyntheticSet(
        {"images": torch.zeros(num_classes, 1, 1, 1)},
        torch.arange(num_classes),
        names,
        Identity(),
        plain,
    )
    soft = syn.with_labels(logits, top=5)
    assert soft.tensors["logits.index"].dtype == (
        torch.uint8 if num_classes == 256 else torch.int16
    )
    assert torch.allclose(soft.logits, best_of(logits, 5), atol=1e-5)


def test_labels_are_made_of_what_is_shipped_at_the_end_of_a_run(world, teachers, tmp_path):
    """As the command line has it: shipped, then labelled; also of the last iterate beside an
    average.
    """
    data, _ = world
    config = replace(STATIC, dtype="float16", top=3)

    class Moves(Pull):
        def losses(self, syn, state, step, rng):
            yield 0.5 * (syn.tensors["compensators"] - 2).square().sum()

    settings = OuterConfig(
        steps=4, optim={"compensators": OptimConfig(lr=0.1)}, ema={"compensators": 0.8}
    )
    result, _ = outer.distill(
        with_compensators(data), Moves(), settings, tmp_path, seed=0, finish=lambda s: label(s.shipped(), teachers, config)
    )  # fmt: skip
    assert result.tensors["compensators"].dtype == torch.float16 and result.codec.clamp

    def labels_of(syn):
        images = syn.batch(torch.arange(80)).images
        with torch.no_grad():
            return best_of((teachers.load(0, 3)(images) + teachers.load(1, 3)(images)) / 2, 3)

    assert (result.logits - labels_of(result)).abs().max() < 5e-3
    raw = result.with_tensors(
        {k.removeprefix("raw."): v for k, v in result.tensors.items() if k.startswith("raw.")}
    )
    assert not torch.equal(raw.tensors["compensators"], result.tensors["compensators"])
    assert (raw.logits - labels_of(raw)).abs().max() < 5e-3 and (
        raw.logits - result.logits
    ).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["float32", "float16", "top"])
def test_labels_of_another_set_are_refused(world, tmp_path, name):
    """Of the same shapes, of other images or of the same ones by other teachers; one sentence with
    the file, from the shipped loader too.
    """
    data, _ = world
    kind = {"float32": {}, "float16": {"dtype": torch.float16}, "top": {"top": 2}}[name]
    syn = with_compensators(data).shipped()
    logits = torch.randn(80, 10, generator=generator(4))
    for folder, said in (("a", logits), ("b", logits.roll(1, 0))):
        folders.save(syn.with_labels(said, **kind), tmp_path / folder, {})
    mine, theirs = (tmp_path / folder / "labels.safetensors" for folder in ("a", "b"))
    kept = mine.read_bytes()
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(
        UserError, match=r"labels\.safetensors holds the labels of another set"
    ) as error:
        load(tmp_path / "a", CPU)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds the labels of another set"):
        shipped_loader(tmp_path / "a").load()
    mine.unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.safetensors is missing"):
        shipped_loader(tmp_path / "a").load()
    mine.write_bytes(kept)
    assert torch.equal(load(tmp_path / "a", CPU)[0].logits, syn.with_labels(logits, **kind).logits)
