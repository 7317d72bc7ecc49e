"""Parquet files as people have them: which columns, whose numbering of the classes, which splits,
and what is no dataset.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import CPU
from PIL import Image

from ddengine.data import load_data
from ddengine.data.parquet import split_of
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

THREE = ("cat", "dog", "owl")


def png(value, side=6):
    """A PNG whose pixels are nearly `value`."""
    buffer = io.BytesIO()
    Image.fromarray((np.eye(side) + value).astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def pictures(classes, first=0):
    """One image a class number, from which the number can be read back: 20, 40, 60 ...; with
    `first` all differ from others.
    """
    return [png(20 * (c + 1) + (i + first) % 9) for i, c in enumerate(classes)]


def struct(contents, paths=None):
    """A column of images as Hugging Face stores it."""
    return pa.StructArray.from_arrays(
        [pa.array(contents, pa.binary()), pa.array(paths or [None] * len(contents), pa.string())],
        ["bytes", "path"],
    )


def write(path, columns, features=None, metadata=None):
    """A parquet file, with what Hugging Face's metadata say of the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features is not None:
        metadata = json.dumps({"info": {"features": features}})
    pq.write_table(
        table if metadata is None else table.replace_schema_metadata({"huggingface": metadata}),
        path,
    )


def class_label(names):
    """The feature of a column of classes."""
    return {"_type": "ClassLabel", "names": list(names)}


def load(root, **settings):
    """All splits, nothing held out for validation."""
    return load_data(
        DataConfig(name="parquet", root=str(root), validation=0.0, **settings), CPU, test=True
    )


def refused(root, **settings):
    """The sentence of the error."""
    with pytest.raises(UserError) as error:
        load(root, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def check(data, names=THREE):
    """Every image has the label that its pixels say."""
    assert data.class_names == tuple(names)
    for real in (data.train, data.test):
        assert torch.equal(real.pixels[:, 0, 0, 1].long() // 20 - 1, real.labels)


NUMBERS = [0, 1, 2] * 6
WORDS = [THREE[c] for c in NUMBERS]


# Which columns


@pytest.mark.parametrize(
    "label",
    [
        "label",
        "Labels",
        "class",
        "category",
        "categories",
        "TARGET",
        "targets",
        "species",
        "fine_label",
        "fine_labels",
        "coarse_label",
    ],
)
def test_known_names_of_labels_of_any_case(tmp_path, label):
    write(
        tmp_path / "train.parquet",
        {"fold": range(18), "image": struct(pictures(NUMBERS)), label: WORDS, "width": [6] * 18},
    )
    data = load(tmp_path)
    check(data)
    assert data.notes[0] == f"columns: images from 'image', classes from {label!r}"


@pytest.mark.parametrize(
    "values, names",
    [
        (WORDS, THREE),
        (pa.array(WORDS).dictionary_encode(), THREE),
        (pa.array(WORDS, pa.large_string()), THREE),
        (NUMBERS, ("0", "1", "2")),
        (pa.array(NUMBERS, pa.uint8()), ("0", "1", "2")),
        (pa.array([float(c) for c in NUMBERS]), ("0", "1", "2")),
        ([c + 1 for c in NUMBERS], ("1", "2", "3")),
        ([str(9 + c) for c in NUMBERS], ("9", "10", "11")),
        (pa.array([c - 1 for c in NUMBERS if c], pa.int64()), ("0", "1")),
        (pa.array([c == 2 for c in NUMBERS if c]), ("False", "True")),
    ],
)
def test_labels_of_every_type(tmp_path, values, names):
    classes = NUMBERS if len(names) == 3 else [c - 1 for c in NUMBERS if c]
    write(tmp_path / "0.parquet", {"label": values, "image": struct(pictures(classes))})
    check(load(tmp_path), names)


@pytest.mark.parametrize(
    "values, words",
    [
        ([0.5] * 18, "numbers that are not whole"),
        ([[1]] * 18, "values of type list"),
        ([None, *WORDS[1:]], "rows without a label"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, values, words):
    write(tmp_path / "0.parquet", {"label": values, "image": struct(pictures(NUMBERS))})
    assert words in refused(tmp_path)


def test_features_come_before_names(tmp_path):
    """A ClassLabel of any name before a column that only sounds like a label, and an Image before
    other bytes.
    """
    columns = {
        "thumb": pa.array([png(0)] * 18, pa.binary()),
        "shot": struct(pictures(NUMBERS)),
        "class": range(18),
        "animal": NUMBERS,
    }
    write(
        tmp_path / "0.parquet",
        columns,
        {
            "shot": {"_type": "Image"},
            "animal": class_label(THREE),
            "class": {"_type": "Value", "dtype": "int64"},
        },
    )
    data = load(tmp_path)
    check(data)
    assert data.notes[0] == "columns: images from 'shot', classes from 'animal'"


def test_fine_labels_before_coarse_ones(tmp_path):
    columns = {
        "img": struct(pictures(NUMBERS)),
        "coarse_label": [c // 2 for c in NUMBERS],
        "fine_label": NUMBERS,
    }
    write(
        tmp_path / "0.parquet",
        columns,
        {"fine_label": class_label(THREE), "coarse_label": class_label("ab")},
    )
    check(load(tmp_path))


def test_a_mask_is_not_the_image(tmp_path):
    masks = struct([png(200)] * 18)
    write(
        tmp_path / "a" / "0.parquet",
        {"mask": masks, "image": struct(pictures(NUMBERS)), "label": WORDS},
    )
    check(load(tmp_path / "a"))
    write(
        tmp_path / "b" / "0.parquet",
        {"mask": masks, "shot": struct(pictures(NUMBERS)), "label": WORDS},
    )
    check(load(tmp_path / "b"))
    write(
        tmp_path / "c" / "0.parquet",
        {"left": masks, "right": struct(pictures(NUMBERS)), "label": WORDS},
    )
    assert "left and right" in refused(tmp_path / "c") and "data.image_column" in refused(
        tmp_path / "c"
    )
    check(load(tmp_path / "c", image_column="right"))


def test_another_integer_column_is_never_the_label(tmp_path):
    write(
        tmp_path / "0.parquet",
        {"image_id": range(18), "image": struct(pictures(NUMBERS)), "fold": NUMBERS},
    )
    said = refused(tmp_path)
    assert "image_id and fold" in said and "data.label_column" in said
    check(load(tmp_path, label_column="fold"), ("0", "1", "2"))
    assert "no column 'folds', which data.label_column names" in refused(
        tmp_path, label_column="folds"
    )
    assert "no column 'x', which data.image_column names" in refused(tmp_path, image_column="x")


def test_flags_of_columns_are_for_parquet(tmp_path):
    with pytest.raises(UserError, match=r"data\.label_column"):
        load_data(DataConfig(name="digits", label_column="label"), CPU)


# Whose numbering


def test_names_of_every_file_and_shard_are_matched(tmp_path):
    """Three files, three orders, one of them with a class of its own."""
    orders = {
        "train-0.parquet": THREE,
        "train-1.parquet": ("owl", "cat", "dog"),
        "test-0.parquet": ("dog", "owl", "cat"),
    }
    for i, (name, order) in enumerate(orders.items()):
        columns = {
            "image": struct(pictures(NUMBERS, i)),
            "label": [order.index(word) for word in WORDS],
        }
        write(tmp_path / name, columns, {"label": class_label(order)})
    data = load(tmp_path)
    check(data)
    assert len(data.train) == 36 and len(data.test) == 18
    write(tmp_path / "train-2.parquet", {"image": struct([png(80)]), "label": ["emu"]})
    check(load(tmp_path), (*THREE, "emu"))


def test_other_names_in_the_test_files_are_refused(tmp_path):
    write(tmp_path / "train.parquet", {"image": struct(pictures(NUMBERS)), "label": WORDS})
    write(tmp_path / "test.parquet", {"image": struct(pictures(NUMBERS)), "label": NUMBERS})
    said = refused(tmp_path)
    assert "test.parquet has the classes 0, 1 and 2" in said and "cat, dog and owl" in said


# Which splits


def test_test_labels_that_are_kept_back_are_skipped(tmp_path):
    """All -1, all missing, or no column at all; validation stands in."""
    write(
        tmp_path / "train.parquet",
        {"image": struct(pictures(NUMBERS)), "label": NUMBERS},
        {"label": class_label(THREE)},
    )
    images = struct(pictures(NUMBERS, 3))
    for labels in ({"label": [-1] * 18}, {"label": pa.array([None] * 18, pa.int64())}, {}):
        write(tmp_path / "data" / "test-00000-of-00001.parquet", {"image": images} | labels)
        data = load(tmp_path)
        check(data)
        assert data.held_out and "test is skipped: its images have no labels" in data.notes
    write(
        tmp_path / "data" / "dev-0.parquet",
        {"image": images, "label": NUMBERS},
        {"label": class_label(THREE)},
    )
    data = load(tmp_path)
    check(data)
    assert not data.held_out and "dev stands in for the test split, which is missing" in data.notes


def test_what_is_not_used_is_said(tmp_path):
    for i, split in enumerate(("training", "Testing", "validation")):
        write(
            tmp_path / split / "0.parquet", {"image": struct(pictures(NUMBERS, i)), "label": WORDS}
        )
    data = load(tmp_path)
    check(data)
    assert (
        data.counts == {"train": 18, "validation": 0, "test": 18}
        and "not used: validation, because testing holds the test images" in data.notes
    )


def test_training_images_without_labels_are_refused(tmp_path):
    write(tmp_path / "train.parquet", {"image": struct(pictures(NUMBERS)), "label": [-1] * 18})
    assert "no labels in 'label'" in refused(tmp_path)
    write(
        tmp_path / "train.parquet",
        {"image": struct(pictures(NUMBERS)), "label": [-1, *NUMBERS[1:]]},
    )
    assert "negative labels beside others" in refused(tmp_path)


# What is no dataset


def test_images_beside_the_file(tmp_path):
    for i, content in enumerate(pictures(NUMBERS)):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.png").write_bytes(content)
    paths = [f"images/{i}.png" for i in range(18)]
    write(tmp_path / "0.parquet", {"image": struct([None] * 18, paths), "label": WORDS})
    check(load(tmp_path))
    write(tmp_path / "0.parquet", {"file_name": paths, "label": WORDS})
    check(load(tmp_path))


@pytest.mark.parametrize("path", ["gone/0.png", "/etc/hostname", "../secret.png", None])
def test_paths_that_lead_nowhere_are_refused(tmp_path, path):
    """Nor is a file read that lies elsewhere: who wrote the dataset must not choose it."""
    (tmp_path / "secret.png").write_bytes(png(0))
    write(
        tmp_path / "data" / "0.parquet", {"image": struct([None] * 18, [path] * 18), "label": WORDS}
    )
    assert "stores no bytes of its images in 'image'" in refused(tmp_path / "data")


def test_one_class_is_refused(tmp_path):
    write(tmp_path / "0.parquet", {"image": struct(pictures([0] * 6)), "label": ["cat"] * 6})
    assert "has 1 class in 'label' and at least 2 are needed" in refused(tmp_path)


def test_labels_that_cannot_count_classes_are_refused_at_once(tmp_path):
    write(
        tmp_path / "0.parquet", {"image": struct(pictures(NUMBERS)), "label": [2**40, *NUMBERS[1:]]}
    )
    assert str(2**40) in refused(tmp_path)
    write(
        tmp_path / "0.parquet",
        {"image": struct(pictures(NUMBERS)), "label": [2**40, *NUMBERS[1:]]},
        {"label": class_label(THREE)},
    )
    assert str(2**40) in refused(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        "{no json",
        "[]",
        '"text"',
        '{"info": 3}',
        '{"info": {"features": []}}',
        '{"info": {"features": {"label": {"names": 5}}}}',
        "\x00",
    ],
)
def test_metadata_of_another_form_are_a_sentence(tmp_path, metadata):
    write(
        tmp_path / "0.parquet",
        {"image": struct(pictures(NUMBERS)), "label": NUMBERS},
        metadata=metadata,
    )
    assert "metadata" in refused(tmp_path) and "0.parquet" in refused(tmp_path)


def test_files_that_are_no_data(tmp_path):
    write(tmp_path / "train.parquet", {"image": struct(pictures(NUMBERS)), "label": WORDS})
    for place in (".ipynb_checkpoints/test.parquet", "__MACOSX/train.parquet", "@eaDir/x.parquet"):
        write(tmp_path / place, {"image": struct([png(0)]), "label": ["emu"]})
    write(
        tmp_path / "test.parquet",
        {"image": pa.array([], struct([]).type), "label": pa.array([], pa.string())},
    )
    data = load(tmp_path)
    assert "test is skipped: its files have no rows" in data.notes
    check(data)
    assert all(name.startswith("train.parquet row ") for name in data.split_names["test"])
    rows = pq.read_table(tmp_path / "train.parquet").column("image")
    for name, pixels in zip(data.split_names["test"], data.test.pixels, strict=True):
        stored = Image.open(io.BytesIO(rows[int(name.rsplit(" ", 1)[1])].as_py()["bytes"]))
        assert np.array_equal(np.asarray(stored), pixels[0].numpy())


# What was found by review: the same kinds, elsewhere


def test_test_images_are_never_training_images_for_want_of_a_word(tmp_path):
    """Neither where no file is called training, nor by other words for test."""
    for i, name in enumerate(("validation", "test")):
        write(
            tmp_path / "a" / f"{name}.parquet",
            {"image": struct(pictures(NUMBERS, i)), "label": WORDS},
        )
    assert "none of training images" in refused(tmp_path / "a")
    for i, (train, test) in enumerate(
        (("train", "eval"), ("trainset", "testset"), ("x-training-0", "evaluation"))
    ):
        for name, first in ((train, 0), (test, 3)):
            write(
                tmp_path / f"b{i}" / f"{name}.parquet",
                {"image": struct(pictures(NUMBERS, first)), "label": WORDS},
            )
        assert load(tmp_path / f"b{i}").counts == {"train": 18, "validation": 0, "test": 18}
    write(tmp_path / "b0" / "more.parquet", {"image": struct(pictures(NUMBERS, 6)), "label": WORDS})
    data = load(tmp_path / "b0")
    assert data.counts["train"] == 18 and any(
        "not used: more.parquet" in note for note in data.notes
    )
    write(tmp_path / "c" / "test.PARQUET", {"image": struct(pictures(NUMBERS)), "label": WORDS})
    data = load(tmp_path / "c")
    assert (
        data.held_out
        and "there are test files only, which are taken for training images" in data.notes
    )


@pytest.mark.parametrize(
    "name, split",
    [
        ("test_of_time-train-0", "train"), ("test_of_time-test-00000-of-00001", "test"), ("train/cats-dev", "train"), ("test/cats-dev", "test"),
        ("data/train-00000-of-00001-abc123", "train"), ("default/test/0000", "test"), ("cats-validation", "validation"), ("a/b", None),
    ],
)  # fmt: skip
def test_which_word_names_the_split(tmp_path, name, split):
    assert split_of(tmp_path / f"{name}.parquet", tmp_path) == split


def test_training_files_that_hold_others_and_several_folders(tmp_path):
    for i, name in enumerate(("train", "trainval", "test")):
        write(
            tmp_path / "a" / f"{name}.parquet",
            {"image": struct(pictures(NUMBERS, i)), "label": WORDS},
        )
    data = load(tmp_path / "a")
    assert data.counts["train"] == 18 and "not used: trainval, beside train" in data.notes
    for i, name in enumerate(("small", "full")):
        write(
            tmp_path / "b" / name / "train-00000-of-00001.parquet",
            {"image": struct(pictures(NUMBERS, i)), "label": WORDS},
        )
    assert any(
        "training files of 2 folders are taken together (full and small)" in note
        for note in load(tmp_path / "b").notes
    )


def test_columns_that_are_no_images(tmp_path):
    text = ["iVBORw0KGgo" * 60] * 18  # images as text, which is no path
    write(tmp_path / "a" / "0.parquet", {"image": text, "label": WORDS})
    assert "stores no bytes of its images" in refused(tmp_path / "a")
    write(
        tmp_path / "b" / "0.parquet",
        {"image": struct(pictures(NUMBERS)), "label": WORDS, "w": range(18)},
    )
    assert "data.image_column names, has values of type int64" in refused(
        tmp_path / "b", image_column="w"
    )
    columns = {"mask": struct([png(200)] * 18), "image": struct(pictures(NUMBERS)), "label": WORDS}
    write(tmp_path / "c" / "0.parquet", columns, {"mask": {"_type": "Image"}})
    check(load(tmp_path / "c"))


def test_a_name_for_two_classes_is_refused(tmp_path):
    write(
        tmp_path / "0.parquet",
        {"image": struct(pictures(NUMBERS)), "label": NUMBERS},
        {"label": class_label(("cat", "cat", "owl"))},
    )
    assert "name a class twice in 'label'" in refused(tmp_path)


def test_a_split_may_call_its_labels_otherwise(tmp_path):
    write(tmp_path / "train.parquet", {"image": struct(pictures(NUMBERS)), "label": WORDS})
    write(tmp_path / "test.parquet", {"image": struct(pictures(NUMBERS, 3)), "labels": WORDS})
    data = load(tmp_path)
    check(data)
    assert not data.held_out and data.counts["test"] == 18
    write(tmp_path / "test.parquet", {"image": struct(pictures(NUMBERS, 3)), "label": [""] * 18})
    assert load(tmp_path).held_out
