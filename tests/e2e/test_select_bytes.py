"""`run.py select`: bytes are stored as bytes, and nothing is asked that only a distillation needs."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import CPU, TINY, run
from PIL import Image
from safetensors.torch import load_file

from ddengine.artefact import folder as folders
from ddengine.artefact import parquet
from ddengine.data import load_data
from ddengine.data.realset import Subset
from ddengine.recipe import DataConfig
from ddengine.sets.codec import Identity, Pixels
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files

RECIPE = "mtt/digits_ipc1"
SMALL = [
    "--data.limit",
    "200",
    "--model",
    "convnet-d1-w4-in",
    "--ipc",
    "2",
    "--init.embedding",
    "pixels",
]
QUICK = ["--epochs", "2", "--num_networks", "3", "--lr_grid", "0.01", "--full_steps", "20"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A working directory with a selection, of mean and standard deviation, and a whitened one."""
    where = tmp_path_factory.mktemp("bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert run("select", RECIPE, *SMALL, "--out", "plain") == 0
        assert run("select", RECIPE, *SMALL, "--data.zca", "True", "--out", "white") == 0
    return where


@pytest.fixture
def work(done, monkeypatch):
    """That directory as the working one."""
    monkeypatch.chdir(done)
    return done


@pytest.mark.parametrize(("name", "zca"), [("plain", False), ("white", True)])
def test_a_selection_stores_the_bytes_and_trains_as_the_images_do(work, name, zca):
    """Networks see to the bit what they see of these images as a baseline, by the engine and by
    load.py; PNGs and parquet hold the bytes.
    """
    data = load_data(DataConfig(name="digits", limit=200, zca=zca), CPU)
    syn, meta = folders.load(Path(name, "distilled"), CPU)
    index = torch.tensor(meta["selected"]["index"])
    assert load_file(Path(name, "distilled/data.safetensors"))["images"].dtype == torch.uint8
    assert (
        torch.equal(syn.tensors["images"], data.train.pixels[index])
        and syn.codec == Pixels()
        and syn.space == "pixel"
    )
    some = torch.tensor([3, 19, 0])
    ours, baseline = syn.batch(some), Subset(data.train, index).batch(some)
    assert torch.equal(ours.images, baseline.images) and torch.equal(ours.targets, baseline.targets)
    space: dict = {}
    text = (
        Path(name, "distilled/load.py")
        .read_text()
        .replace("Path(__file__).resolve().parent", repr(f"{name}/distilled"))
    )
    exec(text, space)
    assert torch.equal(space["load"]()[0], syn.batch(torch.arange(20)).images)
    table = pq.read_table(Path(name, "distilled", parquet.PARQUET))
    assert table.num_rows == 20
    pictures = sorted(Path(name, "distilled/images").rglob("*.png"), key=lambda p: p.name)
    for picture, pixels in zip(pictures, syn.tensors["images"], strict=True):
        assert np.array_equal(np.asarray(Image.open(picture)), pixels[0].numpy())
    assert "are those of data.safetensors" in Path(name, "distilled/README.md").read_text()


def test_its_bytes_are_counted_as_those_of_the_baseline(work):
    """A byte a value and 8 for the class, in meta.json and in the row; and the same accuracies as
    the baseline that has chosen the same images.
    """
    meta = json.loads((work / "plain/distilled/meta.json").read_text())
    assert (
        meta["bytes"]["images"] == 20 * 64
        and meta["bytes"]["labels"] == 20 * 8
        and meta["bytes"]["other"] == 0
    )
    flags = [*SMALL, "--init.kind", "k_means"]
    assert run("select", RECIPE, *flags, "--out", "k_means") == 0
    assert (
        run("evaluate", "k_means", *QUICK, "--baselines", "random", "eight_bit", "--out", "table")
        == 0
    )
    # no row for the 8 bits: they are what is stored
    own, random = json.loads((work / "table/evaluation.json").read_text())["rows"]
    assert (
        own["set"] == "k_means"
        and own["bytes"] == random["bytes"] == 20 * 64 + 20 * 8
        and own["ledger"] == random["ledger"]
    )


def test_everything_takes_such_a_set(work, capsys):
    """Merge, export, report, privacy, inspect; evaluation puts a copy and the protocol into the
    folder of a run and into a set's own.
    """
    assert run("merge", "plain", "plain", "--out", "both") == 0
    both, _ = folders.load(Path("both"), CPU)
    assert both.tensors["images"].dtype == torch.uint8 and len(both) == 40
    evaluations = (
        ("plain", "plain/distilled", ["--baselines", "random"], 0),
        ("plain", "plain/distilled", ["--seed", "1", "--restart", "--baselines", "random"], 1),
        # the card says nothing of that one either
        (
            "plain",
            "plain/distilled",
            ["--seed", "2", "--out", "elsewhere", "--baselines", "random"],
            1,
        ),
        ("both", "both", ["--seed", "3", "--baselines", "random"], 3),
    )
    for path, folder, flags, seed in evaluations:
        assert run("evaluate", path, *QUICK, *flags) == 0
        shipped = json.loads(Path(folder, "evaluation.json").read_text())
        assert (
            shipped == json.loads(Path(path, "evaluation.json").read_text())
            and shipped["seed"] == seed
        )
        assert folders.load(Path(folder), CPU)[1]["protocol"]["epochs"] == 3
    for form in ("mtt", "webdataset", "imagefolder"):
        assert run("export", "plain", "--format", form, "--out", f"out/{form}") == 0
    assert run("report", "plain") == 0
    assert run("privacy", "plain", "--full_steps", "5") == 0
    capsys.readouterr()
    assert run("inspect", "plain") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "images 1.28 kB, labels 160 B" in said
        and "0.01, the best on the validation split" in said
        and "shipped with the set" in said
    )
    # another selection into the same place has no evaluation of the old one
    assert run("select", RECIPE, *SMALL, "--out", "plain", "--restart") == 0
    assert (
        not (work / "plain/distilled/evaluation.json").exists()
        and not (work / "plain/evaluation.json").exists()
    )


def test_an_older_selection_still_loads(work):
    """Of float32 images as networks see them."""
    data = load_data(DataConfig(name="digits", limit=200), CPU)
    _, meta = folders.load(Path("plain/distilled"), CPU)
    index = torch.tensor(meta["selected"]["index"])
    old = SyntheticSet(
        {"images": data.train.images(index)},
        data.train.labels[index],
        data.class_names,
        Identity(),
        data.train.preprocess,
    )
    kept = ("recipe", "seed", "precision", "images", "selected")
    folders.save(
        old,
        Path("old"),
        {k: meta[k] for k in kept} | {"recipe": meta["recipe"] | {"codec": {"type": "Identity"}}},
    )
    meta = files.read_json(Path("old/meta.json"))
    del meta["protocol"]
    files.write_json(Path("old/meta.json"), meta)
    again, _ = folders.load(Path("old"), CPU)
    assert torch.equal(again.tensors["images"], old.tensors["images"]) and again.codec == Identity()
    assert run("evaluate", "old", *QUICK, "--baselines", "random") == 0
    row = json.loads(Path("old/evaluation.json").read_text())["rows"][0]
    assert row["set"] == "real" and row["ledger"]["images"] == 20 * 64 * 4


SELECTS = [
    ["--data.validation", "0"],  # the recipe looks at a validation split while it distills
    ["--data.validation", "0", "--outer.evaluate_every", "7"],
    ["--evaluation.protocol", "rded"],  # whose labels teachers make, and the recipe has none
    # no segment would fit
    ["--buffer.epochs", "1", "--objective.window.high", "9", "--targets.kind", "logits"],
]


def test_select_asks_for_nothing_that_only_distillation_needs(work, monkeypatch, tmp_path):
    """Flags that a distillation refuses together, and recipes whose codec or teachers would not do."""
    monkeypatch.chdir(tmp_path)
    for i, flags in enumerate(SELECTS):
        assert run("select", RECIPE, *SMALL, *flags, "--out", str(i)) == 0, flags
        syn, meta = folders.load(Path(str(i), "distilled"), CPU)
        assert len(syn) == 20 and meta["recipe"]["codec"]["type"] == "Pixels"
    small = [
        "--data.name",
        "digits",
        "--data.limit",
        "200",
        "--data.zca",
        "False",
        "--model",
        "convnet-d1-w4-in",
    ]
    for i, recipe in enumerate(
        (
            "infer/fashion_mnist_ipc10_small",
            "idc/fashion_mnist_ipc1_small",
            "sre2l/fashion_mnist_ipc10_small",
        )
    ):
        # one image per class holds no base image with compensators, and this network has no
        # BatchNorm
        assert (
            run("select", recipe, *small, "--ipc", "1", "--init.kind", "real", "--out", f"of{i}")
            == 0
        ), recipe
    assert run("select", RECIPE, *SMALL, "--ipc", "0", "--out", "none") == 2


def test_distill_still_refuses_what_does_not_fit(work, capsys):
    for flags, words in (
        (SELECTS[1], "outer.evaluate_every"),
        (SELECTS[2], "evaluation.labels dynamic"),
    ):
        assert run("distill", RECIPE, *TINY, *flags, "--out", "never") == 2
        assert words in capsys.readouterr().err and not (work / "never").exists()


def test_the_names_of_experts_are_sorted_by_number(tmp_path):
    """From the 10,000th on they have a digit more."""
    from buffers.store import finished, shard_path
    from ddengine.artefact import describe

    numbers = [3, 9_999, 10_000, 100_000]
    for number in reversed(numbers):
        files.write_tensors(shard_path(tmp_path, number), {"params": torch.zeros(1, 1)})
    assert finished(tmp_path) == numbers
    assert describe._shards(tmp_path) == [shard_path(tmp_path, number) for number in numbers]
