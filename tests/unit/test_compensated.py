"""Natural images with compensators: budget, decoding, what is shipped and read again, and the
bounded codecs beside it.
"""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import CPU, shipped_loader, tiny_data
from safetensors.torch import load_file

from ddengine.artefact import folder as folders
from ddengine.data import Preprocess, load_data
from ddengine.recipe import DataConfig
from ddengine.sets.codec import Compensated, Identity, Pixels
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import SyntheticSet, coded
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def natural(data, per_class, seed=0):
    """(indices, preprocessed images) of random real images."""
    index = random_index(data.train, per_class, data.class_names, generator(seed, "init"))
    return index, data.train.images(index)


def compensated(data, *, sets=2, compensators=6, size=2.0, clamp=False):
    """A set whose compensators are large enough for sums to leave [0, 1]."""
    codec = Compensated(base=sets, compensators=compensators, clamp=clamp)
    index, images = natural(data, sets)
    syn = coded(
        codec,
        images,
        torch.arange(10).repeat_interleave(sets),
        data.class_names,
        data.train.preprocess,
    )
    noise = size * torch.randn(syn.tensors["compensators"].shape, generator=generator(1))
    own = {k: v.clone() for k, v in syn.tensors.items()}  # as the outer loop has them
    return index, syn.with_tensors(own | {"compensators": noise})


def by_hand(pixels, compensators, std, sets, clamp):
    """(examples, stored item of each), one by one."""
    examples, items = list(pixels), list(range(len(pixels)))
    for k, u in enumerate(compensators):
        for c in range(len(pixels) // sets):
            item = c * sets + k % sets
            summed = pixels[item] + u * std.view(-1, 1, 1)
            examples.append(summed.clamp(0, 1) if clamp else summed)
            items.append(item)
    return torch.stack(examples), items


# Budget

# ipc, classes, teachers, base images, compensators, examples a class, stored images a class (the
# table of the paper's program)
BUDGETS = [
    (10, 10, 4, 7, 28, 35, 9.8), (50, 10, 4, 35, 140, 175, 49.0), (10, 100, 4, 9, 36, 45, 9.36), (50, 100, 4, 48, 192, 240, 49.92),
    (100, 100, 4, 96, 384, 480, 99.84), (10, 200, 4, 9, 36, 45, 9.18), (50, 200, 4, 49, 196, 245, 49.98), (10, 1000, 3, 9, 27, 36, 9.027),
    (50, 1000, 3, 49, 147, 196, 49.147), (100, 1000, 3, 99, 297, 396, 99.297),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ipc", "num_classes", "teachers", "n", "count", "num", "effective"), BUDGETS
)
def test_published_budgets(ipc, num_classes, teachers, n, count, num, effective):
    """Row by row, and what a set of that size says of itself, labels too."""
    codec = Compensated(per_set=teachers)
    assert (
        codec.budget(ipc, num_classes) == (n, count, num) == (n, teachers * n, n * (teachers + 1))
    )
    fitted, items = codec.fit(ipc, (1, 8, 8), num_classes)
    assert items == n and fitted == replace(codec, base=n, compensators=count)
    assert fitted.fit(ipc, (1, 8, 8), num_classes) == (fitted, n)
    tensors = fitted.pack(
        torch.zeros(n * num_classes, 1, 1, 1),
        num_classes,
        Preprocess(mean=torch.zeros(1), std=torch.ones(1)),
    )
    names = tuple(map(str, range(num_classes)))
    classes = torch.arange(num_classes).repeat_interleave(n)
    syn = SyntheticSet(
        tensors,
        classes,
        names,
        fitted,
        Preprocess(mean=torch.zeros(1), std=torch.ones(1)),
        space="pixel",
    )
    assert (
        len(syn) == num * num_classes
        and syn.images_per_class() == pytest.approx(effective)
        and effective <= ipc
    )
    assert torch.equal(syn.classes[syn.source].bincount(), torch.full((num_classes,), num))
    if num_classes <= 100:
        half = syn.with_labels(torch.zeros(len(syn), num_classes), torch.float16).sizes()
        assert half["labels"] - 8 * len(classes) == 2 * num * num_classes**2


@pytest.mark.parametrize("per_set", [1, 2, 3, 4, 7, 10, 25])
@pytest.mark.parametrize("num_classes", [2, 10, 37])
def test_the_budget_is_used_and_held(per_set, num_classes):
    """n + K / C within ipc, and one base image more would not be; what IPC 1 is told to be is the
    smallest that works.
    """
    codec = Compensated(per_set=per_set)
    first = None
    for ipc in range(1, 60):
        if ipc * num_classes < per_set + num_classes:
            with pytest.raises(UserError, match=rf"ipc {ipc} leaves no whole base image") as error:
                codec.fit(ipc, (1, 8, 8), num_classes)
            told = int(str(error.value).split("set ipc ")[1].split(",")[0])
            assert (
                told > ipc
                and codec.fit(told, (1, 8, 8), num_classes)[1] >= 1
                and "codec.per_set" in str(error.value)
            )
            with pytest.raises(UserError):
                codec.fit(told - 1, (1, 8, 8), num_classes)
            continue
        n, count, num = codec.budget(ipc, num_classes)
        first = first or ipc
        assert n * num_classes + count <= ipc * num_classes < (n + 1) * (
            num_classes + per_set
        ) and (count, num) == (per_set * n, n + count)
    assert first is not None


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"base": 9}, (9, 10, 19)),  # all that is left
        ({"base": 9, "compensators": 3}, (9, 3, 12)),
        ({"compensators": 25}, (7, 25, 32)),  # the base images that they leave room for
        ({"compensators": 20}, (8, 20, 28)),
        ({"base": 1}, (1, 90, 91)),
    ],
)
def test_free_numbers(fields, wanted):
    assert Compensated(**fields).budget(10, 10) == wanted
    assert Compensated(**fields).fit(10, (1, 8, 8), 10)[1] == wanted[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"base": 12},
        {"base": 11},
        {"base": 10},
        {"base": 9, "compensators": 11},
        {"base": 1, "compensators": 91},
    ],
)
def test_more_than_the_budget_is_refused(fields):
    """In one sentence that names the flag and the budget."""
    with pytest.raises(UserError) as error:
        Compensated(**fields).fit(10, (1, 8, 8), 10)
    said = str(error.value)
    assert (
        all(f"codec.{name} {value}" in said for name, value in fields.items())
        and "ipc" in said
        and "\n" not in said
    )
    with pytest.raises(UserError):
        Compensated(**fields).budget(10, 10)


@pytest.mark.parametrize(
    ("count", "smallest"), [(91, 11), (95, 11), (100, 11), (101, 12), (500, 51)]
)
def test_compensators_that_leave_no_image(count, smallest):
    """With the smallest ipc that holds them and an image of each class."""
    with pytest.raises(
        UserError, match=rf"{count} compensators take .*; set ipc {smallest}, .*codec\.compensators"
    ):
        Compensated(compensators=count).fit(10, (1, 8, 8), 10)
    assert Compensated(compensators=count).fit(smallest, (1, 8, 8), 10)[1] == 1
    with pytest.raises(UserError):
        Compensated(compensators=count).fit(smallest - 1, (1, 8, 8), 10)


@pytest.mark.parametrize("fields", [{"per_set": 0}, {"base": 0}, {"compensators": 0}])
def test_numbers_that_mean_nothing(fields):
    with pytest.raises(UserError, match=rf"codec\.{next(iter(fields))} must be at least 1"):
        Compensated(**fields)


# Decoding


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("sets", "compensators"), [(2, 6), (3, 3), (1, 4), (3, 7), (4, 1)])
def test_decoding_is_adding(data, sets, compensators, clamp):
    """Natural images first, then compensator after compensator, one image of every class in order;
    any part of them.
    """
    index, syn = compensated(data, sets=sets, compensators=compensators, clamp=clamp)
    pixels, std = data.train.pixels[index].float() / 255, data.train.preprocess.std
    wanted, items = by_hand(pixels, syn.tensors["compensators"], std, sets, clamp)
    assert (
        syn.codec.natural(syn.tensors) == 10 * sets
        and syn.source.tolist() == items
        and len(syn) == len(wanted)
    )
    found = syn.codec.decode(syn.tensors, torch.arange(len(syn)))
    assert (
        torch.allclose(found, wanted, rtol=0, atol=1e-6)
        and ((wanted < 0).any() and (wanted > 1).any()) != clamp
    )
    part = torch.randperm(len(syn), generator=generator(3))[:17]
    batch = syn.batch(part)
    assert torch.allclose(batch.images, data.train.preprocess.forward(wanted[part]), atol=1e-4)
    assert (
        batch.targets.tolist()
        == [syn.classes[items[i]].item() for i in part.tolist()]
        == batch.classes.tolist()
    )
    assert torch.allclose(syn.pixels(), wanted, atol=1e-6)


def test_a_compensator_is_in_units_of_normalised_pixels(data):
    """Without clamping, the network sees the normalised image plus the compensator."""
    index, syn = compensated(data)
    seen = syn.batch(torch.arange(20, 80)).images.view(6, 10, 1, 8, 8)
    images = data.train.images(index).view(10, 2, 1, 8, 8)
    for k, u in enumerate(syn.tensors["compensators"]):
        assert torch.allclose(seen[k], images[:, k % 2] + u, atol=1e-5)


def test_gradients_reach_every_compensator(data):
    """Each the sum over its images; base images that are natural are not changed by projection."""
    _, syn = compensated(data, size=0.1)
    leaf = syn.tensors["compensators"].clone().requires_grad_()
    batch = syn.with_tensors({"compensators": leaf}).batch(torch.arange(len(syn)))
    weights = torch.randn(batch.images.shape, generator=generator(2))
    (batch.images * weights).sum().backward()
    assert leaf.grad is not None and torch.allclose(
        leaf.grad, weights[20:].view(6, 10, 1, 8, 8).sum(1), atol=1e-4
    )
    before = {k: v.clone() for k, v in syn.tensors.items()}
    syn.codec.project(syn.tensors, syn.preprocess)
    assert all(torch.equal(before[k], v) for k, v in syn.tensors.items())


def test_the_start_is_natural_images_and_nothing(data):
    """Compensators of 0 decode to the natural images, normalised as they were."""
    _, images = natural(data, 2)
    syn = coded(
        Compensated(base=2, compensators=6),
        images,
        torch.arange(10).repeat_interleave(2),
        data.class_names,
        data.train.preprocess,
    )
    seen = syn.batch(torch.arange(len(syn))).images
    assert (
        syn.tensors["compensators"].shape == (6, 1, 8, 8) and not syn.tensors["compensators"].any()
    )
    assert torch.allclose(seen, images[syn.source], atol=1e-5) and torch.equal(
        syn.tensors["unit"], data.train.preprocess.std
    )


def test_whitened_images_have_compensators_in_pixels():
    """There is no deviation of a channel; the sum is whitened as a whole, and the folder reads the
    same.
    """
    data = load_data(DataConfig(name="digits", limit=200, zca=True), CPU)
    index, syn = compensated(data, size=0.2)
    assert syn.tensors["unit"].tolist() == [1.0]
    pixels = data.train.pixels[index].float() / 255
    wanted, _ = by_hand(pixels, syn.tensors["compensators"], torch.ones(1), 2, False)
    assert torch.allclose(
        syn.batch(torch.arange(80)).images, data.train.preprocess.forward(wanted), atol=1e-3
    )


# Shipped


def test_what_is_shipped(data):
    """The dataset's own bytes, half-precision compensators, clamped sums of just these; the same
    again for what is shipped.
    """
    index, syn = compensated(data)
    done = syn.shipped()
    assert done.tensors["images"].dtype == torch.uint8 and torch.equal(
        done.tensors["images"], data.train.pixels[index]
    )
    assert done.tensors["compensators"].dtype == torch.float16
    assert (
        torch.equal(done.tensors["compensators"], syn.tensors["compensators"].half())
        and done.space == "pixel"
    )
    assert (
        torch.equal(done.tensors["unit"], data.train.preprocess.std)
        and done.tensors["unit"].dtype == torch.float32
    )
    assert syn.tensors["images"].is_floating_point() and not syn.codec.clamp  # as they were
    wanted, _ = by_hand(
        data.train.pixels[index].float() / 255,
        syn.tensors["compensators"].half().float(),
        data.train.preprocess.std,
        2,
        True,
    )
    assert torch.allclose(done.pixels(), wanted, rtol=0, atol=1e-6) and torch.allclose(
        done.batch(torch.arange(20)).images, data.train.images(index), rtol=0, atol=1e-6
    )
    again = done.shipped()
    assert again.codec == done.codec and all(
        torch.equal(again.tensors[k], v) for k, v in done.tensors.items()
    )
    sizes = done.sizes()
    assert {k: sizes[k] for k in ("images", "compensators", "labels", "other", "total")} == {
        "images": 20 * 64, "compensators": 6 * 64 * 2, "labels": 160, "other": 4, "total": 20 * 64 + 6 * 64 * 2 + 164
    }  # fmt: skip


LOADER = (
    "import sys; sys.path.insert(0, '.'); import torch; from load import load; images, targets, "
    "info = load();"
    "assert not any(m.split('.')[0] in ('ddengine', 'buffers', 'synth') for m in sys.modules);"
    "torch.save([images, targets, info['lr'], info['preprocess'](torch.full((1, 1, 8, 8), "
    "0.25))], 'out.pt')"
)


@pytest.mark.parametrize("labels", ["class", "float16", "top 3", "top 9", "top 1 of float32"])
def test_the_folder_reads_itself(data, tmp_path, labels):
    """Its own load.py against the engine: images to 1e-6 and the targets of every decoded example."""
    _, syn = compensated(data)
    syn, top = syn.shipped(), int(labels.split()[1]) if labels.startswith("top") else None
    if labels != "class":
        logits = 4 * torch.randn(80, 10, generator=generator(5))
        syn = syn.with_labels(
            logits, torch.float32 if labels.endswith("32") else torch.float16, top
        )
        assert syn.label_of == "decoded" and ("logits.index" in syn.tensors) == (top in (1, 3))
    folders.save(syn, tmp_path / "set", {})
    data_file = load_file(tmp_path / "set/data.safetensors")
    assert {k for k in data_file if not k.startswith("preprocess.")} == {
        "images",
        "compensators",
        "unit",
        "classes",
    }
    assert (tmp_path / "set/labels.safetensors").exists() == (labels != "class")
    pictures = [path.parent.name for path in (tmp_path / "set/images").glob("*/*.png")]
    assert len(pictures) == 26 and pictures.count("compensators") == 6  # sums are nowhere written
    again, meta = folders.load(tmp_path / "set", CPU)
    whole, repeat = syn.batch(torch.arange(80)), again.batch(torch.arange(80))
    assert (
        torch.equal(whole.images, repeat.images)
        and torch.equal(whole.targets, repeat.targets)
        and again.codec == syn.codec
    )
    assert meta["codec"] == {
        "type": "Compensated",
        "per_set": 4,
        "base": 2,
        "compensators": 6,
        "clamp": True,
    }
    assert meta["bytes"] == syn.sizes() and meta["images_per_class"] == 2.6

    if labels == "top 3":  # the longest of the loaders, in a process of its own too
        subprocess.run([sys.executable, "-I", "-c", LOADER], cwd=tmp_path / "set", check=True)
        images, targets, lr, shown = torch.load(tmp_path / "set/out.pt", weights_only=True)
    else:
        images, targets, info = shipped_loader(tmp_path / "set").load()
        lr, shown = info["lr"], info["preprocess"](torch.full((1, 1, 8, 8), 0.25))
    assert torch.allclose(images, whole.images, rtol=0, atol=1e-6) and lr is None
    if labels == "class":
        assert (
            torch.equal(targets, whole.targets)
            and targets.tolist() == syn.classes[syn.source].tolist()
        )
    else:
        assert (
            torch.allclose(targets, whole.targets.softmax(1), rtol=0, atol=1e-6)
            and targets.dtype == torch.float32
        )
        assert torch.equal(targets.argmax(1), logits.argmax(1))
    assert torch.allclose(shown, data.train.preprocess.forward(torch.full((1, 1, 8, 8), 0.25)))


def test_a_set_that_was_never_optimised_is_written(data, tmp_path):
    """Its tensors are its own, and no other's memory."""
    syn = coded(
        Compensated(base=2, compensators=2),
        natural(data, 2)[1],
        torch.arange(20) // 2,
        data.class_names,
        data.train.preprocess,
    ).shipped()
    folders.save(syn, tmp_path / "set", {})
    assert len(folders.load(tmp_path / "set", CPU)[0]) == 40


def test_a_set_without_compensators_left(data, tmp_path):
    """What deletes them all leaves the natural images."""
    _, syn = compensated(data, compensators=1)
    none = syn.with_tensors({"compensators": syn.tensors["compensators"][:0]}).shipped()
    assert len(none) == 20
    images, item = none.codec.loader()(none.tensors, to_dict(none.codec))
    assert torch.equal(images, none.pixels()) and item.tolist() == list(range(20))


# Bounded images


def test_bounded_images_are_clamped_and_become_bytes(data):
    """After each update to what pixels can be; shipped as bytes within half a step of that, as
    codec Pixels.
    """
    noise = torch.randn(20, 1, 8, 8, generator=generator(0)) * 4
    codec, preprocess = Identity(bounded=True), data.train.preprocess
    syn = coded(codec, noise, torch.arange(10).repeat_interleave(2), data.class_names, preprocess)
    assert syn.space == "model" and torch.equal(syn.tensors["images"], noise)
    syn.tensors["images"] = noise.clone()
    kept = syn.tensors["images"]
    codec.project(syn.tensors, preprocess)
    pixels = preprocess.backward(kept)
    assert syn.tensors["images"] is kept and pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    assert torch.allclose(pixels, preprocess.backward(noise).clamp(0, 1), atol=1e-5)
    done = syn.shipped()
    assert (
        done.codec == Pixels()
        and done.space == "pixel"
        and done.tensors["images"].dtype == torch.uint8
    )
    assert (done.pixels() - pixels).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(done.shipped().tensors["images"], done.tensors["images"])
    free = coded(Identity(), noise, syn.classes, data.class_names, preprocess)
    Identity().project(free.tensors, preprocess)
    assert (
        torch.equal(free.tensors["images"], noise)
        and torch.equal(free.shipped().tensors["images"], noise)
        and free.shipped().space == "model"
    )
    whitened = load_data(DataConfig(name="digits", limit=200, zca=True), CPU).train.preprocess
    with pytest.raises(UserError, match=r"codec\.bounded.*data\.zca"):
        coded(codec, noise, syn.classes, data.class_names, whitened)


def test_pixels_of_real_images_are_exact(data, tmp_path):
    """Byte for byte, through the folder and its load.py."""
    index, images = natural(data, 2)
    syn = coded(
        Pixels(),
        images,
        torch.arange(10).repeat_interleave(2),
        data.class_names,
        data.train.preprocess,
    ).shipped()
    assert torch.equal(syn.tensors["images"], data.train.pixels[index])
    assert torch.allclose(syn.batch(torch.arange(20)).images, images, atol=1e-6)
    folders.save(syn, tmp_path / "set", {})
    again, _ = folders.load(tmp_path / "set", CPU)
    assert again.tensors["images"].dtype == torch.uint8 and torch.equal(
        again.tensors["images"], syn.tensors["images"]
    )
    assert json.loads((tmp_path / "set/meta.json").read_text())["bytes"]["images"] == 20 * 64
    tensors = {"images": torch.tensor([-0.5, 0.25, 1.5]).view(3, 1, 1, 1)}
    Pixels().project(tensors, data.train.preprocess)
    assert tensors["images"].flatten().tolist() == [0, 0.25, 1]
