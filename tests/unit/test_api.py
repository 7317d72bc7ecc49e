"""The library call: any dataset in, the set out; the same numbers as the command line's; experts
that fit; nothing left behind.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, MODEL, TINY, rewrite_tensors, run
from PIL import Image
from safetensors.torch import load_file
from torch import Generator
from torch.utils.data import Dataset, Subset, TensorDataset

import buffers
import ddengine
from buffers.store import StoreGroup
from ddengine import loop as outer
from ddengine.api import distill
from ddengine.data import load_data
from ddengine.data.torch_dataset import data_of
from ddengine.experts import ExpertSource
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.system.errors import UserError
from synth.catalogue import find

ROOT = Path(__file__).resolve().parents[2]
OWN = DataConfig(name="own")
MTT = find("mtt/digits_ipc1")
MTT = replace(
    MTT, data=OWN, model=MODEL, buffer=replace(MTT.buffer, num_experts=2, epochs=3),
    objective=replace(MTT.objective, window=replace(MTT.objective.window, high=2), expert_epochs=1, inner_steps=3),
    outer=replace(MTT.outer, steps=8, checkpoint_every=2, evaluate_every=0, picture_every=0),
)  # fmt: skip
DM = find("dm/fashion_mnist_ipc1_small")
DM = replace(
    DM, data=OWN, model=MODEL, objective=replace(DM.objective, real_batch=10),
    outer=replace(DM.outer, steps=6, checkpoint_every=2, evaluate_every=3, picture_every=3),
)  # fmt: skip


class Examples(Dataset):
    """A list as a Dataset, with what datasets say of themselves."""

    def __init__(self, examples, **attributes):
        self.examples = examples
        vars(self).update(attributes)

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


@pytest.fixture(scope="module")
def digits():
    """The 200 digits of the tests, none held out: (uint8 pixels, labels)."""
    real = load_data(DataConfig(name="digits", limit=200, validation=0.0), CPU).train
    return real.pixels, real.labels


@pytest.fixture(scope="module")
def experts(digits, tmp_path_factory):
    """The experts of MTT on them."""
    return buffers.generate(
        TensorDataset(*digits), MTT, folder=tmp_path_factory.mktemp("experts") / "store"
    )


def same(a, b):
    """Whether two sets are equal to the bit."""
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(v, b.tensors[k]) for k, v in a.tensors.items()
    )


# Datasets


def noise(num=12, size=(6, 4), channels=3, seed=0):
    """uint8 pixels (num, channels, H, W) and labels 0, 1, 2, 0, ..."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num, channels, *size), dtype=np.uint8)
    return torch.from_numpy(pixels), torch.arange(num) % 3


def forms(pixels, labels):
    """The same images in every form that a dataset may give."""
    floats, last = pixels.float() / 255, pixels.permute(0, 2, 3, 1).numpy()
    grey = pixels.shape[1] == 1
    pil = [Image.fromarray(image[..., 0] if grey else image) for image in last]
    numbers = labels.tolist()
    found = {
        "uint8 tensors": TensorDataset(pixels, labels),
        "float tensors": TensorDataset(floats, labels),
        "double tensors": TensorDataset(floats.double(), labels),
        "pair": (pixels, labels),
        "pair of arrays": (last, labels.numpy()),
        "PIL": Examples(list(zip(pil, numbers, strict=True))),
        "PIL with targets": Examples(list(zip(pil, numbers, strict=True)), targets=numbers),
        "numpy": Examples([(image, np.int64(n)) for image, n in zip(last, numbers, strict=True)]),
        "float numpy": Examples(
            [(image.astype(np.float64) / 255, n) for image, n in zip(last, numbers, strict=True)]
        ),
        "subset": Subset(
            TensorDataset(pixels.flip(0), labels.flip(0)), list(range(len(pixels)))[::-1]
        ),
        "one-element labels": TensorDataset(pixels, labels[:, None]),
    }
    if grey:
        found |= {
            "(H, W) tensors": TensorDataset(pixels[:, 0], labels),
            "(H, W) arrays": (last[..., 0], labels.numpy()),
        }
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_gives_the_same_data(channels):
    pixels, labels = noise(channels=channels)
    for name, dataset in forms(pixels, labels).items():
        data = data_of(dataset, replace(OWN, validation=0.0), CPU)
        assert torch.equal(data.train.pixels, pixels) and torch.equal(data.train.labels, labels), (
            name
        )
        assert data.class_names == ("0", "1", "2") and data.validation is None and data.test is None
    config = replace(OWN, validation=0.25, limit=9, size=(5, 5))
    digests = {
        data_of(dataset, config, CPU).train.digest for dataset in forms(pixels, labels).values()
    }
    assert len(digests) == 1
    nearest = data_of([(torch.full((channels, 2, 2), 99.7 / 255), 0)], OWN, CPU).train.pixels
    assert nearest.unique().tolist() == [100]


def test_splits_are_those_of_load_data(digits):
    """The same images by name and as a dataset: the same splits, preprocessing and digest."""
    named, own = (
        DataConfig(name="digits", validation=0.2, limit=150, split_seed=3),
        replace(OWN, validation=0.2, split_seed=3),
    )
    first = load_data(replace(named, validation=0.0), CPU, test=True)
    for zca in (False, True):
        one = load_data(replace(named, zca=zca), CPU)
        two = data_of(
            (first.train.pixels, first.train.labels),
            replace(own, zca=zca),
            CPU,
            test=(first.test.pixels, first.test.labels),
        )
        assert one.train.digest == two.train.digest and torch.equal(
            one.validation.pixels, two.validation.pixels
        )
        assert torch.equal(two.test.pixels, first.test.pixels) and torch.equal(
            two.test.labels, first.test.labels
        )
        tensors = (one.train.preprocess.tensors(), two.train.preprocess.tensors())
        assert all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])


def test_labels_are_renumbered_and_names_kept():
    """A client's classes: ascending, from 0; the names are those of classes=, of the dataset, or
    the numbers.
    """
    pixels, _ = noise(9)
    labels = torch.tensor([7, 3, 9] * 3)
    data = data_of((pixels, labels), replace(OWN, validation=0.0), CPU)
    assert data.class_names == ("3", "7", "9") and data.train.labels.tolist() == [1, 0, 2] * 3
    letters = [*"abcdefghij"]
    examples = Examples(
        [(p, int(n)) for p, n in zip(pixels, labels, strict=True)],
        classes=[(letter, "other") for letter in letters],
    )
    assert data_of(examples, OWN, CPU).class_names == ("d", "h", "j")
    assert data_of(Subset(examples, [0, 1, 3]), OWN, CPU).class_names == ("d", "h")
    assert data_of(examples, OWN, CPU, classes=[f"class {i}" for i in range(10)]).class_names == (
        "class 3",
        "class 7",
        "class 9",
    )
    examples.classes = ["a", "b"]  # too few to be of these labels
    assert data_of(examples, OWN, CPU).class_names == ("3", "7", "9")
    test = data_of((pixels, labels), OWN, CPU, test=(pixels[:2], labels[:2])).test
    assert test.labels.tolist() == [1, 0]


def test_listed_targets_spare_decoding_and_are_checked():
    """With a limit only the chosen images are asked for; a list of targets that is not what the
    dataset gives is refused.
    """
    pixels, labels = noise(30)
    asked = []

    class Watched(Examples):
        def __getitem__(self, i):
            asked.append(i)
            return super().__getitem__(i)

    examples = [(p, int(n)) for p, n in zip(pixels, labels, strict=True)]
    data_of(Watched(examples, targets=labels.tolist()), replace(OWN, limit=6), CPU)
    assert len(asked) == 6
    with pytest.raises(UserError, match="list of targets"):
        data_of(Watched(examples, targets=labels.flip(0).tolist()), OWN, CPU)
    moved = Watched(
        [(p, n + 1) for p, n in examples], targets=labels.tolist(), target_transform=lambda n: n + 1
    )
    assert data_of(moved, OWN, CPU).class_names == ("1", "2", "3")


def test_colour_and_grey_and_sizes():
    """One image in colour makes all colour; sizes that differ want a size."""
    grey, colour = (
        torch.full((4, 4), 100, dtype=torch.uint8),
        torch.full((3, 4, 4), 50, dtype=torch.uint8),
    )
    data = data_of([(grey, 0), (colour, 1)], replace(OWN, validation=0.0), CPU)
    assert data.image_shape == (3, 4, 4) and data.train.pixels[0].unique().tolist() == [100]
    mixed = [(grey, 0), (torch.full((6, 5), 9, dtype=torch.uint8), 1)]
    with pytest.raises(UserError, match="differ in size, such as 4x4 and 6x5"):
        data_of(mixed, OWN, CPU)
    assert data_of(mixed, replace(OWN, size=(3, 3), validation=0.0), CPU).train.pixels.flatten(
        1
    ).unique(dim=1).tolist() == [[100], [9]]


P = torch.zeros(3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([(P.float() - 1, 0)], "the engine normalises"),
        ([(P.float() + 1.01, 0)], "the engine normalises"),
        ([(P.float() * torch.nan, 0)], "the engine normalises"),
        ([(P.long(), 0)], "uint8 or as floats"),
        ([(P.permute(1, 2, 0), 0)], r"1 or 3 channels, as \(C, H, W\)"),
        ([(P.numpy(), 0)], r"1 or 3 channels, as \(H, W, C\)"),
        ([("a.png", 0)], "PIL images"),
        ([(P, 0.5)], "label of example 0 is 0.5"),
        ([(P, torch.tensor([0, 1]))], "int64 array of shape"),
        ([(P, 0, 1)], "not a pair"),
        ([{"image": P, "label": 0}], "is a dict"),
        ([], "empty"),
        (iter([(P, 0)]), "map-style"),
        ((P[None], torch.zeros(2)), "1 images and 2 labels"),
    ],
)
def test_what_is_no_dataset_is_said(dataset, words):
    with pytest.raises(UserError, match=words):
        data_of(dataset, OWN, CPU)


def test_classes_and_test_labels_are_checked():
    pixels, labels = noise()
    with pytest.raises(UserError, match="label 2, and classes names 2"):
        data_of((pixels, labels), OWN, CPU, classes=["a", "b"])
    with pytest.raises(UserError, match="test images have label 3"):
        data_of((pixels, labels), OWN, CPU, test=(pixels, labels + 3))


def test_random_transforms_leave_the_global_generator_alone():
    """A dataset that draws from torch's generator gives the same images each time."""
    pixels, labels = noise()

    class Noisy(Examples):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return torch.rand(image.shape), label

    dataset = Noisy([(p, int(n)) for p, n in zip(pixels, labels, strict=True)])
    before = torch.get_rng_state()
    one, two = data_of(dataset, OWN, CPU), data_of(dataset, OWN, CPU)
    assert one.train.digest == two.train.digest and torch.equal(torch.get_rng_state(), before)


# Distillation


def test_distil_equals_the_command_line(digits, tmp_path, monkeypatch):
    """Digits as a TensorDataset, dm and mtt: the tensors that run.py ships for these images."""
    monkeypatch.chdir(tmp_path)
    # what is left when the test images are held out
    first = load_data(DataConfig(name="digits", validation=0.0), CPU).train
    dataset = TensorDataset(first.pixels.float() / 255, first.labels)
    config = replace(OWN, limit=200)
    assert run("buffer", "mtt/digits_ipc1", *TINY) == 0
    assert run("distill", "mtt/digits_ipc1", *TINY, "--out", "mtt") == 0
    recipe = replace(MTT, data=config)
    store = buffers.generate(dataset, recipe, folder="own")
    shipped = load_file("mtt/distilled/data.safetensors")
    syn = ddengine.distill(dataset, recipe, store)
    assert {"images", "lr"} <= syn.tensors.keys() and all(
        torch.equal(v, shipped[k]) for k, v in syn.tensors.items()
    )
    assert torch.equal(syn.classes, shipped["classes"])
    flags = [
        "--data.name",
        "digits",
        "--data.limit",
        "200",
        "--model",
        MODEL,
        "--objective.real_batch",
        "10",
    ]
    steps = ["--outer.steps", "6", "--outer.evaluate_every", "0"]
    assert run("distill", DM.name, *flags, *steps, "--out", "dm", "--seed", "5") == 0
    syn = ddengine.distill(dataset, replace(DM, data=config), seed=5)
    assert torch.equal(syn.tensors["images"], load_file("dm/distilled/data.safetensors")["images"])


def test_distil_data_is_the_core_of_distil(digits):
    data = data_of(digits, OWN, CPU)
    assert same(
        ddengine.distill(digits, DM, device="cpu"), distill.distill_data(data, DM, device=CPU)
    )
    assert not same(
        ddengine.distill(digits, DM, seed=1), distill.distill_data(data, DM, device=CPU)
    )


def test_nothing_is_left_and_the_global_generator_is_as_it_was(
    digits, experts, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    ddengine.distill(digits, DM)
    ddengine.distill(digits, MTT, experts)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_of_groups_goes_when_the_finished_run_is_read(digits, tmp_path):
    folder = tmp_path / "run"
    wanted = ddengine.distill(digits, DM, folder=folder)
    left = folder / "groups" / "0001" / "metrics.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    assert same(ddengine.distill(digits, DM, folder=folder), wanted)
    assert not (folder / "groups").exists() and (folder / "metrics.jsonl").exists()


def test_an_interrupted_folder_resumes_to_the_bit(digits, tmp_path, monkeypatch):
    """Stopped after four steps, continued, read when finished; other settings are refused."""
    folder, wanted = tmp_path / "run", ddengine.distill(digits, DM)
    step, stops = outer.outer_step, iter([False] * 5 + [True])

    def stopping(*args):
        if next(stops):
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(outer, "outer_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            ddengine.distill(digits, DM, folder=folder)
    assert not (folder / "distilled").exists()
    made = []
    monkeypatch.setattr(outer, "outer_step", lambda *args: made.append(args[3].step) or step(*args))
    assert same(ddengine.distill(digits, DM, folder=str(folder)), wanted) and made == [4, 5]
    assert same(ddengine.distill(digits, DM, folder=folder), wanted) and made == [4, 5]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ] and "validation_accuracy" in lines[2]
    assert len(list((folder / "progress").glob("*.png"))) == 3
    assert same(ddengine.load(folder), wanted) and same(ddengine.load(folder / "distilled"), wanted)
    with pytest.raises(
        UserError,
        match=r"other settings \(seed is 0 there and 1 here\); name another folder with --out, or",
    ):
        ddengine.distill(digits, DM, seed=1, folder=folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and not a run"):
        ddengine.distill(digits, DM, folder=tmp_path / "full")


def test_a_client_with_two_classes(digits, tmp_path):
    """Alone it has classes 0 and 1, called 3 and 7; with classes= the ids of all, and the same
    images.
    """
    pixels, labels = digits
    mine = (labels == 3) | (labels == 7)
    client = TensorDataset(pixels[mine], labels[mine])
    alone = ddengine.distill(client, DM)
    assert alone.class_names == ("3", "7") and alone.classes.tolist() == [0, 1]
    names = [f"digit {i}" for i in range(10)]
    syn = ddengine.distill(client, DM, classes=names)
    assert (
        syn.class_names == tuple(names)
        and syn.classes.tolist() == [3, 7]
        and torch.equal(syn.tensors["images"], alone.tensors["images"])
    )
    assert syn.batch(torch.arange(2)).targets.tolist() == [3, 7]
    soft = replace(MTT, targets=replace(MTT.targets, kind="logits", experts="all", relabel=True))
    store = buffers.generate(client, soft, folder=tmp_path / "store")
    with pytest.raises(UserError, match="2 of the 10 classes"):
        ddengine.distill(client, soft, store, classes=names)
    for twice in (["same"] * 10, [*"0123456789", 3]):
        with pytest.raises(UserError, match="names a class twice"):
            ddengine.distill(object(), DM, classes=twice)  # before the dataset is looked at
    with pytest.raises(UserError, match="give a list of names"):
        ddengine.distill(client, DM, classes="0123456789")
    assert ddengine.distill(client, DM, classes=range(10)).class_names == tuple("0123456789")


def test_the_folder_has_the_ids_of_the_set_that_is_returned(digits, tmp_path):
    pixels, labels = digits
    mine = (labels == 3) | (labels == 7)
    client, folder = TensorDataset(pixels[mine], labels[mine]), tmp_path / "run"
    syn = ddengine.distill(client, DM, classes=range(10), folder=folder)
    for other in (
        ddengine.load(folder),
        ddengine.distill(client, DM, classes=range(10), folder=folder),
    ):
        assert (
            same(other, syn)
            and other.classes.tolist() == syn.classes.tolist() == [3, 7]
            and other.class_names == syn.class_names
        )
    with pytest.raises(UserError, match="other settings"):
        ddengine.distill(client, DM, folder=folder)
    assert sorted(p.name for p in (folder / "distilled" / "images").iterdir()) == [
        "0003_3",
        "0007_7",
    ]


def test_what_is_kept_does_not_say_the_dataset_of_the_recipe(digits, tmp_path, capsys):
    """Nor its licence, nor its published figure; and sets of such data have no classes that could
    be matched.
    """
    fashion = replace(
        DM,
        data=DataConfig(name="fashion_mnist", root="somewhere"),
        published=find("dm/fashion_mnist_ipc1_small").published,
    )
    ddengine.distill(digits, fashion, folder=tmp_path / "run")
    for path in ("recipe.json", "distilled/meta.json"):
        recipe = json.loads((tmp_path / "run" / path).read_text())["recipe"]
        assert (
            recipe["data"]["name"] == "own"
            and recipe["data"]["root"] is None
            and recipe["published"] is None
        )
    card = (tmp_path / "run/distilled/README.md").read_text()
    assert "license: unknown" in card and "Fashion-MNIST" not in card
    again, both = str(tmp_path / "run"), str(tmp_path / "both")
    assert run("merge", again, again, "--out", both) == 0  # by the names of the classes
    assert len(ddengine.load(both)) == 20
    store = buffers.generate(
        digits, replace(MTT, data=DataConfig(name="fashion_mnist")), folder=tmp_path / "store"
    )
    assert store.manifest["identity"]["dataset"] == "own"


def test_settings_that_do_not_go_are_a_sentence(digits, tmp_path):
    (tmp_path / "file").write_text("dear")
    few = replace(DM, data=replace(OWN, classes=(3, 7)))
    for call, words in (
        (lambda: ddengine.distill(digits, few), r"data.classes 3 7 .*torch\.utils\.data\.Subset"),
        (
            lambda: buffers.generate(digits, replace(MTT, data=few.data), folder=tmp_path / "s"),
            r"data.classes 3 7",
        ),
        (
            lambda: ddengine.distill(object(), DM, folder=tmp_path / "file"),
            "is a file and cannot be written; name a folder",
        ),
        (
            lambda: ddengine.distill(object(), DM, precision="fp16"),
            "Unknown precision 'fp16'.*bf16",
        ),
        (
            lambda: buffers.generate(object(), MTT, precision="half"),
            "Unknown precision 'half'.*bf16",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert str(error.value).count(". ") == 0


def test_start_from_given_images(digits):
    """With no steps they come back; their form is checked."""
    still = replace(DM, ipc=2, outer=replace(DM.outer, steps=0))
    images = torch.rand(20, 1, 8, 8, generator=Generator().manual_seed(1))
    syn = ddengine.distill(digits, still, images=images)
    assert torch.allclose(syn.pixels(), images, atol=1e-6) and syn.classes.tolist() == [
        c for c in range(10) for _ in range(2)
    ]
    assert syn.meta["distillation"]["peak_memory_bytes"] > 1e6
    for wrong, words in (
        (images[:10], "shape"),
        (images * 2, r"in \[0, 1\]"),
        ((images * 255).byte(), "torch.uint8"),
    ):
        with pytest.raises(UserError, match=words):
            ddengine.distill(digits, still, images=wrong)


def test_the_snippet_of_the_readme(tmp_path, monkeypatch):
    """Those that load their images themselves run as they stand there."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    snippets = [block for block in blocks if "load_digits" in block]
    for snippet in snippets:
        space: dict = {}
        exec(snippet, space)
        assert len(space["result"]) == 10 and isinstance(space["network"], torch.nn.Module)
    assert snippets


# Experts


def test_experts_are_asked_for(digits):
    with pytest.raises(UserError, match=r"needs experts.*buffers\.generate\(data, recipe\)"):
        ddengine.distill(digits, MTT)
    with pytest.raises(UserError, match="is a str"):
        ddengine.distill(digits, "dm/cifar10_ipc1")


def test_experts_of_something_else_are_refused(digits, experts):
    pixels, labels = digits
    refused = [
        ((pixels.flip(0), labels), MTT, "trained on other images"),
        (digits, replace(MTT, data=replace(OWN, validation=0.2)), "trained on other images"),
        (digits, replace(MTT, data=replace(OWN, zca=True)), "trained with data.zca False"),
        (digits, replace(MTT, model="mlp"), f"The experts are {MODEL}, and the recipe wants mlp"),
    ]
    for dataset, recipe, words in refused:
        with pytest.raises(UserError, match=words):
            ddengine.distill(dataset, recipe, experts)
    data = data_of(digits, OWN, CPU, stored=lambda digest: ddengine_shifted(experts.preprocess))
    with pytest.raises(UserError, match="another preprocessing"):
        distill.distill_data(data, MTT, experts=experts, device=CPU)


def ddengine_shifted(preprocess):
    """The same with another mean."""
    return replace(preprocess, mean=preprocess.mean + 0.1)


def test_the_preprocessing_of_experts_is_kept(digits, experts, tmp_path):
    """Experts that saw their images through published constants: the set is seen through these too."""
    folder = tmp_path / "store"
    folder.mkdir()
    for path in experts.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    rewrite_tensors(
        folder / "preprocess.safetensors", ddengine_shifted(experts.preprocess).tensors()
    )
    store = buffers.generate(digits, MTT, folder=folder)
    assert torch.equal(
        ddengine.distill(digits, MTT, store).preprocess.mean, experts.preprocess.mean + 0.1
    )


def test_experts_that_nobody_reads_are_ignored(digits, experts, capsys):
    assert same(ddengine.distill(digits, DM, experts), ddengine.distill(digits, DM))
    assert "reads no experts" in capsys.readouterr().out


def test_generate_takes_what_distill_takes(digits, experts, tmp_path, monkeypatch):
    """Images and a recipe, by the same names; the store has the name that the command line gives
    it. What is missing is said.
    """
    monkeypatch.chdir(tmp_path)
    one = buffers.generate(digits, MTT)
    two = buffers.generate(data=digits, recipe=MTT)
    assert one.folder == two.folder == Path("experts") / one.manifest["fingerprint"]
    assert experts.manifest["fingerprint"] == one.manifest["fingerprint"]
    assert torch.equal(one.snapshots(1, [0, 3]), experts.snapshots(1, [0, 3]))
    names = [
        list(inspect.signature(call).parameters)[:2]
        for call in (buffers.generate, ddengine.distill)
    ]
    assert names[0] == names[1] == ["data", "recipe"]
    named = replace(MTT, buffer=replace(MTT.buffer, model=MTT.model))
    assert buffers.generate(digits, named).folder == one.folder
    with pytest.raises(UserError, match=r"recipe is a BufferConfig"):
        buffers.generate(digits, MTT.buffer)
    with pytest.raises(UserError, match="needs no experts"):
        buffers.generate(digits, DM)
    with pytest.raises(UserError, match="recipe is a dict"):
        buffers.generate(digits, {"epochs": 3})


def test_experts_lie_where_a_base_class_says(digits, experts):
    """`open` is all that a place of one's own must say; a class that only has its names is none."""

    class Mine(ExpertSource):
        def open(self, data):
            return experts

    made = ddengine.distill(digits, MTT, Mine(), progress=False)
    assert same(made, ddengine.distill(digits, MTT, experts, progress=False))
    names = {name: lambda *args: None for name in vars(ExpertSource) if not name.startswith("_")}
    alike = type("Alike", (), names)()
    assert not isinstance(alike, ExpertSource)
    with pytest.raises(TypeError, match="abstract"):
        ExpertSource()


def test_teachers_are_a_group(digits, tmp_path):
    """A recipe with teachers: one store each, whose networks start and label the set."""
    recipe = find("rded/cifar10_ipc10")
    recipe = replace(
        recipe, data=OWN, model=MODEL, ipc=1, teachers=("mlp", MODEL),
        buffer=BufferConfig(step=MTT.buffer.step, num_experts=1, epochs=1, keep="last"),
        init=replace(recipe.init, factor=1, candidates=5, crops=1), evaluation=replace(recipe.evaluation, models=()),
    )  # fmt: skip
    group = buffers.generate(digits, recipe, folder=tmp_path / "teachers")
    assert isinstance(group, StoreGroup) and sorted(
        p.name for p in (tmp_path / "teachers").iterdir()
    ) == [MODEL, "mlp"]
    assert len(ddengine.distill(digits, recipe, group)) == 10
    with pytest.raises(UserError, match="recipe wants"):
        ddengine.distill(digits, recipe, group.stores[0])


# The package


def test_importing_a_part_does_not_import_the_whole():
    program = (
        "import sys, ddengine, buffers, ddengine.system.errors, buffers.steps; print([m for m in "
        "('ddengine.api', 'ddengine.sets.synthetic', 'torchvision', "
        "'kornia', 'buffers.making', 'ddengine.evaluation.evaluate') if m in sys.modules]); assert "
        "not hasattr(ddengine, 'no_such_name')\n"
        "from ddengine import Recipe, UserError, distill, load, loop; from buffers import "
        "generate, store\n"
        "assert callable(distill) and callable(generate) and callable(loop.distill) and "
        "'torchvision' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr


# TensorBoard


def scalars(folder, tag):
    """(step, value) of what TensorBoard would show, after files of interrupted runs are taken back."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)], accumulator


QUICK = ["dm/fashion_mnist_ipc1_small", "--data.name", "digits", "--data.limit", "200", "--model", MODEL, "--objective.real_batch", "10",
         "--outer.steps", "6", "--outer.checkpoint_every", "2", "--outer.evaluate_every", "3", "--outer.picture_every", "3"]  # fmt: skip


def test_tensorboard_shows_what_metrics_jsonl_says(tmp_path, monkeypatch):
    """Interrupted between checkpoints and resumed: each step once; without the flag no file and the
    same metrics.
    """
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    step, stops = outer.outer_step, iter([False] * 5 + [True])

    def stopping(*args):
        if next(stops):
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(outer, "outer_step", stopping)
        try:
            run("distill", *QUICK, "--out", "a", "--tensorboard")
        except KeyboardInterrupt:
            pass
    before = [json.loads(line)["step"] for line in Path("a/metrics.jsonl").read_text().splitlines()]
    assert before == [1, 2, 3, 4, 5]  # of which the fifth is after the last checkpoint
    assert run("distill", *QUICK, "--out", "a", "--tensorboard") == 0
    lines = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    shown, accumulator = scalars("a/tensorboard", "loss")
    assert [s for s, _ in shown] == [1, 2, 3, 4, 5, 6] and np.allclose(
        [v for _, v in shown], [line["loss"] for line in lines]
    )
    assert [s for s, _ in scalars("a/tensorboard", "validation_accuracy")[0]] == [3, 6]
    assert {event.step for event in accumulator.Images("progress")} == {0, 3, 6}
    assert run("distill", *QUICK, "--out", "b") == 0
    assert not Path("b/tensorboard").exists()
    plain = [json.loads(line) for line in Path("b/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in plain] == [line["loss"] for line in lines]


def test_tensorboard_that_is_not_installed_is_said_before_the_first_step(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("torch.utils.tensorboard", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run("distill", *QUICK, "--out", "a", "--tensorboard") == 2
    assert "pip install tensorboard" in capsys.readouterr().err and not Path("a").exists()


def test_every_run_has_its_metrics(tmp_path, monkeypatch):
    """Empty where there is no step: of a selection, and of a set that stays as it starts."""
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            "select",
            "mtt/digits_ipc1",
            *TINY,
            "--init.kind",
            "k_means",
            "--init.embedding",
            "pixels",
            "--out",
            "a",
        )
        == 0
    )
    assert (
        run("distill", *QUICK, "--outer.steps", "0", "--outer.evaluate_every", "0", "--out", "b")
        == 0
    )
    assert Path("a/metrics.jsonl").read_bytes() == Path("b/metrics.jsonl").read_bytes() == b""


def test_the_last_line_says_what_came_out_and_what_it_took(digits, tmp_path, monkeypatch, capsys):
    """Validations and pictures are in the time, and the accuracy is that of the end."""
    real = distill.validate_on_each

    def slow(*args, **options):
        time.sleep(0.3)
        return real(*args, **options)

    monkeypatch.setattr(distill, "validate_on_each", slow)
    result = ddengine.distill(digits, DM, folder=tmp_path / "run", seconds_before=20_000.0)
    cost = result.meta["distillation"]
    events = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    reached = json.loads(events[-1])["validation_accuracy"]
    assert cost["validation_accuracy"] == reached is not None
    assert cost["wall_seconds"] >= 20_000.6 + cost["seconds"]
    last = " ".join(capsys.readouterr().out.split()).rpartition("distilled 10 images in ")[2]
    assert last.startswith("5.6 h, ") and "outer steps" in last
    assert f"validation accuracy in the end {100 * reached:.1f} %" in last
    assert last.endswith(str(tmp_path / "run" / "distilled"))
