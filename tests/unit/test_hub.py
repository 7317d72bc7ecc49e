"""Datasets of the Hub, here as folders in its layout: the same pixels and classes as the readers of
files give; splits, columns and configurations by name; sentences for what cannot be had.
"""

import sys

import numpy as np
import pytest
import torch
from helpers import CPU, run
from PIL import Image

from ddengine.data import Dataset, load_data
from ddengine.data.hub import by_word
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

datasets = pytest.importorskip("datasets")

THREE = ("wolf", "cat", "owl")  # not in alphabetical order


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """Nothing is asked of a network, and nothing is kept in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(label, i, mode="RGB"):
    """An image from whose first pixel its class can be read."""
    rng = np.random.default_rng(100 * label + i)
    pixels = rng.integers(0, 256, (6, 6, 4 if mode == "RGBA" else 3), dtype=np.uint8)
    pixels[0, 0] = 20 * (label + 1)
    return Image.fromarray(pixels).convert(mode)


def rows(num, first=0, label="label", image="image", names=THREE, mode="RGB"):
    """A split with the features of images and classes."""
    features = datasets.Features(
        {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    )
    labels = [i % len(names) for i in range(num)]
    images = [picture(c, first + i, mode) for i, c in enumerate(labels)]
    return datasets.Dataset.from_dict({image: images, label: labels}, features=features)


def write(root, splits, folder="data", shards=1):
    """Shards of parquet whose names say their splits."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        for i in range(shards):
            shard = table.shard(shards, i, contiguous=True)
            shard.to_parquet(root / folder / f"{split}-{i:05d}-of-{shards:05d}.parquet")
    return root


def load(root, name="hub", **settings):
    return load_data(
        DataConfig(name=name, root=str(root), validation=0.0, **settings), CPU, test=True
    )


def refused(root, **settings):
    """The sentence of the error."""
    with pytest.raises(UserError) as error:
        load(root, **settings)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


def check(data, names=THREE):
    """Every image has the label that its first pixel says."""
    assert data.class_names == tuple(names)
    for real in (data.train, data.test):
        assert torch.equal(real.pixels[:, 0, 0, 0].long() // 20 - 1, real.labels)


def same(one, two):
    """The same images, classes and splits, and what decides the identities of stores and runs."""
    assert one.train.digest == two.train.digest and one.class_names == two.class_names
    assert torch.equal(one.test.pixels, two.test.pixels)
    assert torch.equal(one.test.labels, two.test.labels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pixels_are_those_of_the_parquet_reader(tmp_path, mode):
    """Transparency shows data.background in both; `datasets` itself would give four channels."""
    tables = {"train": rows(9, mode=mode), "test": rows(6, first=9, mode=mode)}
    root = write(tmp_path, tables, shards=2)
    same(load(root), load(root, name="parquet"))
    if mode == "RGB":
        check(load(root))
    padded = {"size": (8, 9), "fit": "pad", "background": "red"}
    same(load(root, **padded), load(root, name="parquet", **padded))


def test_a_folder_of_images_is_read_as_the_folder_reader_does(tmp_path):
    names = sorted(THREE)
    for split, num in (("train", 9), ("test", 6)):
        for i in range(num):
            file = tmp_path / split / names[i % 3] / f"{num}_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(i % 3, num + i).save(file)
    data = load(tmp_path)
    check(data, names)
    plain = load(tmp_path, name="folder")
    assert torch.equal(data.test.labels.sort().values, plain.test.labels.sort().values)
    ours = sorted(image.numpy().tobytes() for image in data.train.pixels)
    assert ours == sorted(image.numpy().tobytes() for image in plain.train.pixels)


def test_nothing_is_printed_of_the_library(tmp_path, capfd):
    """Not its bars, of a split that it generates; they are as before afterwards."""
    root = write(tmp_path, {"train": rows(9), "test": rows(6, first=9)})
    datasets.enable_progress_bars()
    capfd.readouterr()
    load(root)
    assert capfd.readouterr().err == "" and not datasets.are_progress_bars_disabled()


def test_photographs_are_turned_upright(tmp_path):
    """The decoder is that of people's own images; `datasets` does so only since 2.15."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for c in ("cat", "dog"):
        for i in range(3):
            (tmp_path / c).mkdir(exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / c / f"{i}.png", exif=exif)
    assert load(tmp_path).image_shape == load(tmp_path, name="folder").image_shape == (3, 6, 4)


def test_metadata_of_an_image_folder_name_the_classes(tmp_path):
    lines = ["file_name,species"]
    for i in range(9):
        picture(i % 3, i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{sorted(THREE)[i % 3]}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    check(load(tmp_path), sorted(THREE))


def test_features_of_the_card_name_the_classes(tmp_path):
    """README.md declares what the files do not say: that the number is a class, and its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents = rows(9).data.column("image").combine_chunks()
    table = pa.table({"photo": contents, "kind": [i % 3 for i in range(9)], "mask": contents})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000.parquet")
    names = "".join(f"\n          '{i}': {name}" for i, name in enumerate(THREE))
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: photo\n    dtype: image\n"
        f"  - name: kind\n    dtype:\n      class_label:\n        names:{names}\n"
        "  - name: mask\n    dtype: image\n---\n"
    )
    data = load(tmp_path)
    check(data)
    assert data.notes[0] == "columns: images from 'photo', classes from 'kind'"


def test_columns_may_be_named(tmp_path):
    """Of two features of classes the one that is asked for is taken."""
    table = rows(12, label="fine").add_column("coarse", [i % 2 for i in range(12)])
    table = table.cast_column("coarse", datasets.ClassLabel(names=["even", "odd"]))
    root = write(tmp_path, {"train": table})
    assert "data.label_column" in refused(root)
    assert load(root, label_column="coarse").class_names == ("even", "odd")
    check(load(root, label_column="fine", image_column="image"))
    assert "has no column 'colour'" in refused(root, label_column="colour")


def test_splits_by_name(tmp_path):
    tables = {"validation": rows(6, 30), "train": rows(9), "test": rows(6, 20)}
    data = load(write(tmp_path / "all", tables))
    check(data)
    assert not data.held_out and torch.equal(
        data.test.pixels, load(write(tmp_path / "two", {k: tables[k] for k in ("train", "test")})).test.pixels
    )  # fmt: skip
    assert "not used: validation, because test holds the test images" in data.notes
    del tables["test"]
    data = load(write(tmp_path / "stand_in", tables))
    assert "validation stands in for the test split, which is missing" in data.notes
    data = load(write(tmp_path / "alone", {"train": rows(15)}))
    assert data.held_out and data.train_names[0].startswith("train row ")


def test_hidden_test_labels_are_skipped(tmp_path):
    hidden = rows(6, 20).remove_columns("label").add_column("label", [-1] * 6)
    hidden = hidden.cast_column("label", datasets.ClassLabel(names=list(THREE)))
    data = load(write(tmp_path, {"train": rows(15), "test": hidden}))
    assert data.held_out and "test is skipped: its images have no labels" in data.notes


def test_which_words_splits_are_named_after():
    assert by_word(["train", "train_small", "test_clean", "test_noisy", "extra"]) == {
        "train": ["train"],
        None: ["train_small", "extra"],
        "test": ["test_clean", "test_noisy"],
    }


def configured(tmp_path):
    """A dataset of two configurations."""
    write(tmp_path, {"train": rows(9)}, folder="three")
    write(tmp_path, {"train": rows(8, names=("a", "b"))}, folder="two")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: three\n  data_files: three/*.parquet\n"
        "- config_name: two\n  data_files: two/*.parquet\n---\n"
    )
    return tmp_path


def test_a_configuration_follows_a_colon(tmp_path):
    root = configured(tmp_path)
    check(load(f"{root}:three"))
    assert load(f"{root}:two").class_names == ("a", "b")
    for place in (root, f"{root}:four"):
        said = refused(place)
        assert "three" in said and "two" in said and "user/name:configuration" in said


def test_the_handle_points_at_it(tmp_path):
    root = write(tmp_path, {"train": rows(9), "test": rows(6, 9)})
    config = DataConfig(name="digits", validation=0.0)
    same(Dataset.hub(str(root)).load(config, CPU, test=True), load(root))


def test_what_cannot_be_had_is_a_sentence(tmp_path, monkeypatch):
    assert "nobody/nothing cannot be read" in refused("nobody/nothing")
    assert "check the network" in refused("nobody/nothing:configuration")
    with pytest.raises(UserError, match=r"needs data\.root"):
        load_data(DataConfig(name="hub"), CPU)
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in refused(tmp_path / "empty")
    (tmp_path / "broken" / "data").mkdir(parents=True)
    (tmp_path / "broken" / "data" / "train-00000.parquet").write_bytes(b"PAR1 no more")
    assert "cannot be read" in refused(tmp_path / "broken")
    odd = write(tmp_path / "odd", {"validation": rows(6), "test": rows(6)})
    assert "none of training images" in refused(odd)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install ddengine[hub]" in refused("nobody/nothing")


def test_paths_lead_to_the_datasets_own_files_only(tmp_path):
    """A row that names a file elsewhere is not opened, whatever its name promises."""
    outside = tmp_path / "outside.png"
    picture(0, 0).save(outside)
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(THREE))}
    )
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": None, "path": str(outside)} for _ in range(6)],
            "label": [i % 3 for i in range(6)],
        },
        features=features,
    )
    (tmp_path / "set" / "data").mkdir(parents=True)
    import pyarrow.parquet as pq

    pq.write_table(table.data.table, tmp_path / "set" / "data" / "train-00000.parquet")
    assert "stores no bytes of its images" in refused(tmp_path / "set")


def test_the_command_line_says_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = run("distill", "dm/fashion_mnist_ipc1_small", "--data.name", "hub", "--data.root", "a/b")
    said = capsys.readouterr().err
    assert code == 2 and "data.root a/b cannot be read" in said and "Traceback" not in said


def test_the_command_line_reads_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = str(write(tmp_path / "set", {"train": rows(30), "test": rows(6, 30)}))
    assert run("select", "dm/fashion_mnist_ipc1_small", "--data.name", "hub", "--data.root", root,
               "--data.limit", "None", "--data.size", "8", "8", "--device", "cpu", "--out", "selected") == 0  # fmt: skip
    assert (tmp_path / "selected" / "distilled" / "meta.json").is_file()
