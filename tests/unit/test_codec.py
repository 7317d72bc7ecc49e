"""Multi-formation: tiles in their places, resizing, sets that are stored and shipped with it, and
the parts that read such sets.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace

import higher
import pytest
import torch
from helpers import CPU, shipped_loader, tiny_data, tiny_env, tiny_store
from matching import tiny_world
from safetensors.torch import load_file
from torch.nn import functional

from ddengine.artefact import folder as folders
from ddengine.artefact.exchange import export_set
from ddengine.data import Preprocess, load_data
from ddengine.learning.flat import unflatten_into
from ddengine.recipe import AugmentConfig, DataConfig, TargetConfig
from ddengine.sets.codec import PADDING, Identity, MultiFormation, resize
from ddengine.sets.labels import label
from ddengine.sets.synthetic import SyntheticSet, coded
from ddengine.sets.targets import Logits
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.trajectory import TrajectoryMatching, UniformWindow

F64 = torch.float64
SIZES = [(8, 8), (9, 12), (28, 28), (5, 11)]


PLAIN = Preprocess(mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25))


def pack(codec, images):
    """The stored images, which are all that is stored."""
    packed = codec.pack(images, 1, PLAIN)
    assert packed.keys() == {"images"}
    return packed["images"]


def everything(codec, images):
    """All examples."""
    tensors = {"images": images}
    return codec.decode(tensors, torch.arange(len(codec.source(tensors))))


def by_hand(images, factor):
    """Tile after tile, all items of a place in a row."""
    height, width = images.shape[2:]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    canvas = torch.full(
        (*images.shape[:2], rows * factor, columns * factor), 0.5, dtype=images.dtype
    )
    canvas[:, :, :height, :width] = images
    out = []
    for r in range(factor):
        for c in range(factor):
            for image in canvas:
                tile = image[:, r * rows : (r + 1) * rows, c * columns : (c + 1) * columns]
                out.append(
                    functional.interpolate(
                        tile[None], (height, width), mode="bilinear", align_corners=False
                    )[0]
                )
    return torch.stack(out)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_decoding_is_cutting_and_resizing(size, channels, factor):
    """Tile by tile with functional.interpolate, in float64 and float32; a part is that part of all."""
    codec = MultiFormation(factor=factor)
    images = torch.rand(5, channels, *size, generator=generator(0), dtype=F64)
    wanted = by_hand(images, factor)
    found = everything(codec, images)
    assert found.shape == (5 * factor**2, channels, *size) and codec.per_item == factor**2
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(everything(codec, images.float()), wanted.float(), rtol=0, atol=2e-6)
    index = torch.tensor([len(wanted) - 1, 0, 0, 3])
    assert torch.allclose(
        codec.decode({"images": images}, index), wanted[index], rtol=0, atol=1e-12
    )
    assert codec.source({"images": images}).tolist() == list(range(5)) * factor**2


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (10, 12), (28, 28), (16, 8)])
def test_packed_constants_come_back(size, channels, factor):
    """Image i * n^2 + t becomes tile t of item i; where the factor divides the image it comes back
    whole, else but for what padding touches.
    """
    codec, items = MultiFormation(factor=factor), 3
    values = torch.rand(items * factor**2, channels, generator=generator(0))
    packed = pack(codec, values[:, :, None, None].expand(-1, -1, *size))
    assert packed.shape == (items, channels, *size) and packed.is_contiguous()
    found = everything(codec, packed)
    divides = all(side % factor == 0 for side in size)
    for i in range(items):
        for t in range(factor**2):
            example, value = found[t * items + i], values[i * factor**2 + t]
            shown = example if divides else example[:, : size[0] // 9, : size[1] // 9]
            assert torch.allclose(shown, value[:, None, None].expand_as(shown), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_factor_of_one_is_the_identity(size):
    images = torch.rand(4, 3, *size, generator=generator(0))
    codec = MultiFormation(factor=1)
    assert torch.equal(pack(codec, images), images)
    assert torch.allclose(everything(codec, images), everything(Identity(), images), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 12), (7, 5)])
def test_packing_takes_nearest_pixels(size, factor):
    """As functional.interpolate, pasted tile by tile, cut to the size of the image."""
    images = torch.rand(2 * factor**2, 3, *size, generator=generator(0))
    rows, columns = (math.ceil(side / factor) for side in size)
    canvas = torch.zeros(2, 3, rows * factor, columns * factor)
    for k, image in enumerate(images):
        item, (r, c) = k // factor**2, divmod(k % factor**2, factor)
        for i in range(rows):
            for j in range(columns):
                canvas[item, :, r * rows + i, c * columns + j] = image[
                    :, i * size[0] // rows, j * size[1] // columns
                ]
    assert torch.equal(
        pack(MultiFormation(factor=factor), images), canvas[:, :, : size[0], : size[1]]
    )


def test_what_a_class_packs_it_decodes():
    """The initial set: ipc * n^2 images of each class in a row; every decoded example is one of its
    own class.
    """
    env, _ = tiny_world(torch.float32)
    codec, ipc = MultiFormation(factor=2), 3
    values = torch.arange(10).repeat_interleave(ipc * 4).float() / 10 + 0.02
    pixels = values[:, None, None, None].expand(-1, 1, 8, 8)
    classes = torch.arange(10).repeat_interleave(ipc)
    syn = coded(
        codec,
        env.real.preprocess.forward(pixels),
        classes,
        tuple(map(str, range(10))),
        env.real.preprocess,
    )
    assert (
        syn.space == "pixel"
        and syn.codec == codec
        and syn.tensors.keys() == {"images"}
        and torch.equal(syn.classes, classes)
    )
    images, targets = syn.batch(torch.arange(len(syn)))
    assert (
        len(syn) == 120 and torch.equal(targets, classes.repeat(4)) and syn.images_per_class() == 3
    )
    shown = env.real.preprocess.backward(images)
    assert torch.allclose(
        shown, targets[:, None, None, None].expand_as(shown) / 10 + 0.02, atol=1e-5
    )
    assert torch.allclose(syn.pixels(), shown, atol=1e-6)


def test_images_that_are_packed_are_clamped():
    """Noise of the networks' space becomes pixels in [0, 1]; so does what a step makes."""
    env, _ = tiny_world(torch.float32)
    codec = MultiFormation()
    noise = torch.randn(8, 1, 8, 8, generator=generator(0)) * 5
    stored = coded(codec, noise, torch.tensor([0, 1]), ("a", "b"), env.real.preprocess).tensors[
        "images"
    ]
    assert 0 <= stored.min() and stored.max() <= 1 and (stored == 0).any() and (stored == 1).any()
    tensors = {"images": torch.tensor([-0.5, 0.25, 1.5]).view(3, 1, 1, 1), "lr": torch.tensor(7.0)}
    kept = tensors["images"]
    codec.project(tensors, env.real.preprocess)
    assert (
        tensors["images"] is kept and kept.flatten().tolist() == [0, 0.25, 1] and tensors["lr"] == 7
    )


@pytest.mark.parametrize("size", [(8, 8), (2, 9), (9, 2)])
def test_a_factor_larger_than_the_image_is_refused(size):
    factor = min(size) + 1
    with pytest.raises(UserError) as error:
        pack(MultiFormation(factor=factor), torch.rand(factor**2, 1, *size))
    assert (
        "codec.factor" in str(error.value)
        and str(error.value).count(".") <= 4
        and str(error.value).endswith(".")
    )
    with pytest.raises(UserError, match=r"codec\.factor must be at least 1, got 0"):
        MultiFormation(factor=0)


@pytest.mark.parametrize(("side", "factor"), [(8, 5), (8, 7), (28, 9), (5, 4)])
def test_no_example_is_nothing_but_padding(side, factor):
    """Such examples are grey, are trained on with a label, and nothing that is stored can change
    them.
    """
    codec = MultiFormation(factor=factor)
    try:
        packed = pack(codec, torch.rand(factor**2, 1, side, side, generator=generator(0)))
    except UserError:
        return
    assert (everything(codec, packed) != PADDING).flatten(1).any(1).all()


@pytest.mark.parametrize("old", [(4, 4), (3, 7), (1, 5), (14, 10), (9, 9)])
@pytest.mark.parametrize("new", [(8, 8), (28, 28), (9, 4), (1, 1), (3, 7)])
def test_resize_is_interpolate(old, new):
    """Up, down and not at all, and its gradient."""
    images = torch.randn(2, 3, *old, generator=generator(0), dtype=F64, requires_grad=True)
    found, wanted = (
        resize(images, new),
        functional.interpolate(images, new, mode="bilinear", align_corners=False),
    )
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    way = torch.randn(wanted.shape, generator=generator(1), dtype=F64)
    grads = [torch.autograd.grad(out, images, way)[0] for out in (found, wanted)]
    assert torch.allclose(*grads, rtol=0, atol=1e-12)
    assert torch.allclose(resize(images.float(), new), wanted.float(), atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_decoding_is_differentiable_twice(factor):
    codec = MultiFormation(factor=factor)
    images = torch.rand(2, 1, 4, 5, generator=generator(0), dtype=F64, requires_grad=True)
    index = torch.tensor([2 * factor**2 - 1, 0])

    def curved(x):
        return codec.decode({"images": x}, index).pow(3)

    assert torch.autograd.gradcheck(curved, (images,)) and torch.autograd.gradgradcheck(
        curved, (images,)
    )


# sets


def tiles(data, *, ipc=2, factor=2, **tensors):
    """Random tiles as a set for these data."""
    images = torch.rand(data.num_classes * ipc, *data.image_shape, generator=generator(0))
    classes = torch.arange(data.num_classes).repeat_interleave(ipc)
    codec = MultiFormation(factor=factor)
    return SyntheticSet(
        {"images": images, **tensors},
        classes,
        data.class_names,
        codec,
        data.train.preprocess,
        space="pixel",
    )


@pytest.fixture(scope="module", params=[False, True], ids=["normalised", "zca"])
def data(request):
    return load_data(DataConfig(name="digits", limit=200, zca=request.param), CPU)


@pytest.mark.parametrize(("factor", "soft"), [(2, False), (2, True), (3, True)])
def test_a_set_is_shipped_and_read_again(soft, factor, data, tmp_path):
    """By the engine, and by its own load.py where there is no engine: images and targets of every
    decoded example.
    """
    syn = tiles(data, factor=factor, lr=torch.tensor(0.02))
    num = 20 * factor**2
    if soft:
        logits = torch.randn(num, 10, generator=generator(1))
        syn = syn.with_labels(logits)
        assert syn.label_of == "decoded"
    assert len(syn) == num
    batch = syn.batch(torch.arange(num))
    assert torch.allclose(
        batch.images,
        data.train.preprocess.forward(by_hand(syn.tensors["images"], factor)),
        atol=1e-4,
    )
    assert torch.equal(batch.targets, logits if soft else syn.classes.repeat(factor**2))
    index = torch.tensor([num - 1, 1])
    assert torch.equal(syn.batch(index).targets, batch.targets[index])

    folders.save(syn, tmp_path / "set", {"own": 1})
    again, meta = folders.load(tmp_path / "set", CPU)
    assert (
        again.codec == syn.codec
        and again.space == "pixel"
        and len(again) == num
        and again.label_of == syn.label_of
    )
    assert (
        all(torch.equal(again.tensors[k], syn.tensors[k]) for k in syn.tensors)
        and again.tensors.keys() == syn.tensors.keys()
    )
    repeat = again.batch(torch.arange(num))
    assert torch.allclose(repeat.images, batch.images, atol=1e-6) and torch.equal(
        repeat.targets, batch.targets
    )
    pictures = sorted((tmp_path / "set/images").glob("*/*.png"))
    assert len(pictures) == num and meta["codec"] == {"type": "MultiFormation", "factor": factor}

    if factor == 3 and data.train.preprocess.matrix is not None:
        program = (
            "import sys; sys.path.insert(0, '.'); import torch; from load import load; images, "
            "targets, info = load();"
            "assert not any(m.split('.')[0] in ('ddengine', 'buffers', 'synth') for m in "
            "sys.modules);"
            "torch.save([images, targets, info['lr']], 'out.pt')"
        )
        subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path / "set", check=True)
        images, targets, lr = torch.load(tmp_path / "set/out.pt", weights_only=True)
    else:
        images, targets, info = shipped_loader(tmp_path / "set").load()
        lr = info["lr"]
    assert torch.allclose(
        images, batch.images, atol=1e-4 if data.train.preprocess.matrix is not None else 1e-5
    )
    assert (
        torch.allclose(targets, logits.softmax(1)) if soft else torch.equal(targets, batch.targets)
    )
    assert lr == pytest.approx(0.02)


def test_bytes_and_images_per_class_are_what_is_stored(data, tmp_path):
    """Not what it decodes to; soft labels are one for each decoded example."""
    syn = tiles(data, ipc=3, lr=torch.tensor(0.02))
    plain = syn.sizes()
    assert (
        plain["images"] == 30 * 64 * 4
        and plain["labels"] == 30 * 8
        and plain["other"] == 4
        and syn.images_per_class() == 3
    )
    soft = syn.with_labels(torch.zeros(120, 10)).sizes()
    assert (
        soft["images"] == plain["images"]
        and soft["labels"] == 30 * 8 + 120 * 10 * 4
        and soft["total"] == sum(soft[k] for k in ("images", "labels", "other"))
    )
    folders.save(syn, tmp_path / "set", {})
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert meta["bytes"] == plain and meta["images_per_class"] == 3
    assert load_file(tmp_path / "set/data.safetensors")["images"].shape == (30, 1, 8, 8)


def test_labels_of_the_wrong_number_are_refused(data, tmp_path):
    """One of each stored image instead of each example."""
    syn = tiles(data)
    wrong = replace(syn.with_tensors({"logits": torch.zeros(20, 10)}), targets=Logits("decoded"))
    folders.save(wrong, tmp_path / "set", {})
    with pytest.raises(UserError, match="for 80 images"):
        folders.load(tmp_path / "set", CPU)


def test_soft_labels_of_stored_items_are_repeated(data, tmp_path):
    """The other way a set may be labelled."""
    logits = torch.randn(20, 10, generator=generator(0))
    syn = replace(tiles(data).with_tensors({"logits": logits}), targets=Logits("stored"))
    assert torch.equal(syn.batch(torch.arange(80)).targets, logits.repeat(4, 1))
    folders.save(syn, tmp_path / "set", {})
    assert torch.equal(
        folders.load(tmp_path / "set", CPU)[0].batch(torch.arange(80)).targets,
        logits.repeat(4, 1),
    )
    assert torch.allclose(
        shipped_loader(tmp_path / "set").load()[1], logits.repeat(4, 1).softmax(1)
    )


def test_exported_for_published_programs_decoded(data, tmp_path):
    """They know no tiles: images as networks see them, one label each."""
    syn = tiles(data, lr=torch.tensor(0.02))
    export_set(syn, "8", tmp_path / "out")
    images, labels = (
        torch.load(tmp_path / f"out/{kind}_8.pt", weights_only=True)
        for kind in ("images", "labels")
    )
    assert torch.allclose(images, syn.batch(torch.arange(80)).images, atol=1e-5) and torch.equal(
        labels, syn.classes.repeat(4)
    )


# who reads such sets


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    digits = tiny_data()
    return digits, tiny_store(tmp_path_factory.mktemp("store"), digits)


@pytest.mark.parametrize("backprop", ["replay", "full"])
def test_trajectories_are_matched_on_tiles(world, backprop):
    """Loss, and gradients in stored pixels and rate, as `higher` has them."""
    digits, store = world
    config = TrajectoryMatching(
        inner_steps=3, expert_epochs=1, window=UniformWindow(high=1), lr=0.05, augment=AugmentConfig(ops=()), backprop=backprop
    )  # fmt: skip
    env = tiny_env(digits, store)
    syn = tiles(digits, lr=torch.tensor(0.05))

    def leaves():
        return {k: v.clone().requires_grad_() for k, v in syn.tensors.items()}

    own = leaves()
    (loss,) = config.build(env).losses(syn.with_tensors(own), {}, 0, generator(4))
    loss.backward()

    rng = generator(4)
    expert = int(torch.randint(store.num_experts, (1,), generator=rng))
    start, end = store.snapshots(expert, [0, 1])
    network = env.new_model(generator(0))
    unflatten_into(network, start)
    plain = leaves()
    images = digits.train.preprocess.forward(by_hand(plain["images"], 2))
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    with higher.innerloop_ctx(network, optimiser, override={"lr": [plain["lr"]]}) as (
        net,
        differentiable,
    ):
        for _ in range(3):
            differentiable.step(functional.cross_entropy(net(images), syn.classes.repeat(4)))
        theta = torch.cat([p.flatten() for p in net.parameters()])
        wanted = (theta - end).square().sum() / (start - end).square().sum()
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    for name in ("images", "lr"):
        assert (own[name].grad - plain[name].grad).norm() <= 1e-2 * plain[name].grad.norm()


def test_experts_label_every_decoded_example(world):
    """The mean over experts of their logits for the example as networks see it."""
    digits, store = world
    syn = tiles(digits)
    labelled = label(syn, store, TargetConfig(kind="logits", experts="all"))
    images = syn.batch(torch.arange(80)).images
    with torch.no_grad():
        wanted = torch.stack([store.load(i, 3)(images) for i in range(store.num_experts)]).mean(0)
    assert (
        labelled.target_kind == "logits"
        and labelled.label_of == "decoded"
        and labelled.tensors["logits"].shape == (80, 10)
    )
    assert torch.allclose(labelled.tensors["logits"], wanted, atol=1e-5)
    assert torch.equal(
        labelled.batch(torch.tensor([79, 3])).targets, labelled.tensors["logits"][[79, 3]]
    )
    nonsense = r"No expert is right about \d+ of the images of class"
    # noise; the class is that of the stored item of each example
    with pytest.raises(UserError, match=nonsense):
        label(syn, store, TargetConfig(kind="logits", experts="correct"))
