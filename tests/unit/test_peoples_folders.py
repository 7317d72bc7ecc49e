"""Folders of images as people have them: names of splits, files that are no data, values of more
than 8 bits, transparency, shapes.
"""

import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU
from PIL import Image

from ddengine.data import fit_preprocess, load_data, preprocess
from ddengine.data.splits import sorted_classes, split_word_in
from ddengine.data.torch_dataset import data_of, own_config, reordered
from ddengine.recipe import DataConfig
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator


def load(root, **settings):
    """All splits, nothing held out for validation."""
    return load_data(
        DataConfig(**({"name": "folder", "root": str(root), "validation": 0.0} | settings)),
        CPU,
        test=True,
    )


def refused(root, **settings):
    """The sentence of the error."""
    with pytest.raises(UserError) as error:
        load(root, **settings)
    return str(error.value)


def write(path, value, **options):
    """An image file: of one colour, or of an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (
        Image.fromarray(value)
        if isinstance(value, np.ndarray)
        else Image.new("RGB", (6, 6), (value,) * 3)
    )
    image.save(path, **options)


def classes(folder, names=("cat", "dog"), num=4, first=0):
    """Class folders; every image of a dataset differs from the others when `first` does."""
    for c, name in enumerate(names):
        for i in range(num):
            write(
                folder / name / f"{i}.png",
                np.full((6, 6), 100 * c + first + i, np.uint8) + np.eye(6, dtype=np.uint8),
            )


# Splits


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("TRAIN", "Test"),
        ("Training", "Testing"),
        ("train", "VAL"),
        ("training", "dev"),
        ("Train", "Validation"),
    ],
)
def test_splits_in_every_spelling(tmp_path, train, test):
    classes(tmp_path / train, num=4)
    classes(tmp_path / test, num=3, first=20)
    data = load(tmp_path)
    assert (
        data.class_names == ("cat", "dog")
        and data.counts == {"train": 8, "validation": 0, "test": 6}
        and not data.held_out
    )
    stands_in = test.lower() not in ("test", "testing")
    assert any("stands in for the test split" in note for note in data.notes) == stands_in
    assert data.split_names["test"] == "the test split of the dataset"


@pytest.mark.parametrize(
    "train, test",
    [
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("train-images", "val-images"),
        ("trainset", "testset"),
        ("trainval", "test"),
    ],
)
def test_splits_whose_names_have_more_words(tmp_path, train, test):
    """As widespread datasets have them."""
    classes(tmp_path / train, num=4)
    classes(tmp_path / test, num=3, first=20)
    for more in ("", "annotations"):  # also beside a folder that is no split
        (tmp_path / more).mkdir(exist_ok=True)
        data = load(tmp_path)
        assert (
            data.class_names == ("cat", "dog")
            and data.counts == {"train": 8, "validation": 0, "test": 6}
            and not data.held_out
        )


def test_splits_in_folders_of_their_own_name_and_beside_others(tmp_path):
    """As archives are unpacked; beside exact words; beside classes; and without class folders."""
    for i, name in enumerate(("seg_train", "seg_test")):
        classes(tmp_path / "a" / name / name, first=20 * i)
    for i in range(3):
        write(tmp_path / "a" / "seg_pred" / "seg_pred" / f"{i}.png", i)
    data = load(tmp_path / "a")
    assert (
        data.class_names == ("cat", "dog")
        and data.counts["test"] == 8
        and any("not used: seg_pred" in note for note in data.notes)
    )
    classes(tmp_path / "b" / "train")
    classes(tmp_path / "b" / "validation_set", first=20)
    classes(tmp_path / "c")
    classes(tmp_path / "c" / "my_test", first=20)
    for kind in ("b", "c"):
        data = load(tmp_path / kind)
        assert (
            data.class_names == ("cat", "dog")
            and data.counts == {"train": 8, "validation": 0, "test": 8}
            and not data.held_out
        )
    classes(tmp_path / "d", ("train_images", "test_images"))
    assert "hold images and no class folders" in refused(tmp_path / "d")
    classes(tmp_path / "e", ("TrainData", "TestData"))
    assert "hold images and no class folders" in refused(tmp_path / "e")
    for name in ("car", "plane", "train"):
        classes(tmp_path / "f" / name, ("2019", "2020"))
    assert "may be a split or a class" in refused(tmp_path / "f")


def test_classes_whose_names_have_the_word_of_a_split(tmp_path):
    """Images of theirs may lie in folders."""
    for name in ("bus_stop", "train_station", "test_track"):
        classes(tmp_path / "years" / name, ("day", "night"))
    assert load(tmp_path / "years").class_names == ("bus_stop", "test_track", "train_station")
    (tmp_path / "years" / "loop").symlink_to(tmp_path / "years")
    assert len(load(tmp_path / "years").class_names) == 3
    for name in ("bus_station", "train_station", "test_site"):
        classes(tmp_path / "flat", (name,))
        classes(tmp_path / "deep" / name, ("2019" if name == "test_site" else name,))
    for kind in ("flat", "deep"):
        assert load(tmp_path / kind).class_names == ("bus_station", "test_site", "train_station")


def test_empty_folders_in_a_test_split_are_no_classes(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test", first=20)
    (tmp_path / "test" / "leftover").mkdir()
    write(tmp_path / "test" / "__pycache__" / "x.png", 9)
    assert load(tmp_path).counts["test"] == 8


def test_what_is_not_used_is_said(tmp_path):
    for i, split in enumerate(("train", "test", "valid", "masks")):
        classes(tmp_path / split, first=10 * i)
    write(tmp_path / "train" / "loose.png", 1)
    said = " | ".join(load(tmp_path).notes)
    assert (
        "not used: masks" in said
        and "not used: valid, because test holds the test images" in said
        and "beside the class folders, are not used" in said
    )


def test_test_images_without_labels_are_skipped(tmp_path):
    """As competitions hand them out."""
    classes(tmp_path / "train")
    for i in range(3):
        write(tmp_path / "test" / f"{i}.png", i)
    data = load(tmp_path)
    assert (
        data.held_out
        and data.counts["test"] == 2
        and any("test is skipped" in note for note in data.notes)
    )
    classes(tmp_path / "val", first=20)
    data = load(tmp_path)
    assert (
        not data.held_out
        and data.counts["test"] == 8
        and any("val stands in" in note for note in data.notes)
    )


def test_classes_of_the_test_split_are_matched_by_name(tmp_path):
    classes(tmp_path / "train", ("cat", "dog", "owl"))
    classes(tmp_path / "test", ("dog", "owl"), first=20)
    data = load(tmp_path)
    assert data.test.labels.tolist() == [1] * 4 + [2] * 4 and any(
        "no test image of class 'cat' (training images: 4)" in note for note in data.notes
    )
    classes(tmp_path / "test", ("fox",))
    assert "fox is not among the training classes" in refused(tmp_path)


def test_an_accent_is_one_letter_on_every_file_system(tmp_path):
    """Archives made on a Mac have it as two."""
    classes(tmp_path / "train", ("caf\u00e9", "dog"))
    classes(tmp_path / "test", ("cafe\u0301", "dog"), first=20)
    data = load(tmp_path)
    assert data.class_names == ("caf\u00e9", "dog") and data.counts == {
        "train": 8,
        "validation": 0,
        "test": 8,
    }


def test_splits_that_are_not_class_folders_are_refused(tmp_path):
    classes(tmp_path / "a" / "test")
    classes(tmp_path / "a" / "val")
    assert "test and val, and no train" in refused(tmp_path / "a")
    classes(tmp_path / "b" / "Train")
    classes(tmp_path / "b" / "training")
    assert "both mean the training images" in refused(tmp_path / "b")
    classes(tmp_path / "c", ("train", "test", "annotations"))
    assert "hold images and no class folders" in refused(tmp_path / "c")
    classes(tmp_path / "d" / "flowers", ("rose", "tulip"))
    assert str(tmp_path / "d" / "flowers") in refused(tmp_path / "d")


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    """Where it lies beside others; but a folder that holds the classes once more is a split."""
    classes(tmp_path / "a", ("car", "plane", "train"))
    assert load(tmp_path / "a").class_names == ("car", "plane", "train")
    classes(tmp_path / "b", ("car", "plane"))
    classes(tmp_path / "b" / "test", ("car", "plane"), first=20)
    data = load(tmp_path / "b")
    assert data.class_names == ("car", "plane") and data.counts["test"] == 8 and not data.held_out


def test_names_that_are_numbers_are_in_their_order():
    assert sorted_classes(["10", "9", "0"]) == ("0", "9", "10")
    assert sorted_classes(["-1", "1", "0"]) == ("-1", "0", "1") and sorted_classes(
        ["01", "00", "10"]
    ) == ("00", "01", "10")
    assert sorted_classes(["10", "9", "x"]) == ("10", "9", "x")


def test_words_in_file_names():
    words = {
        "seg_train": "train",
        "TestImages": "test",
        "train-00000-of-00001": "train",
        "flowers-Test-0": "test",
        "my_validation_2": "validation",
        "data.dev": "dev",
        "testament": None,
    }
    assert {name: split_word_in(name) for name in words} == words


class Named(list):
    """A dataset of pairs that names its classes, as torchvision's do."""

    def __init__(self, classes):
        super().__init__(
            (torch.full((1, 4, 4), 0.1 * c + 0.01 * i), c) for c in range(2) for i in range(3)
        )
        self.classes = classes


def test_test_datasets_that_count_their_classes_otherwise_are_refused():
    config = own_config(DataConfig(name="own", validation=0.0))
    assert data_of(Named(["cat", "dog"]), config, CPU, test=Named(["cat", "dog"])).class_names == (
        "cat",
        "dog",
    )
    with pytest.raises(
        UserError,
        match=r"\(dog and cat\) are not those of the training images in their order \(cat and dog\)",
    ):
        data_of(Named(["cat", "dog"]), config, CPU, test=Named(["dog", "cat"]))


# Files that are no data


def test_what_systems_and_editors_leave_is_not_read(tmp_path):
    classes(tmp_path, num=5)
    for place in (
        ".hidden/cat",
        "@eaDir/cat",
        "__MACOSX/cat",
        "cat/.ipynb_checkpoints",
        "cat/@eaDir",
        "dog/__MACOSX/deep",
        "cat/sub/.cache",
    ):
        write(tmp_path / place / "9.png", 250)
    write(tmp_path / "cat" / "._0.png", 250)
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog") and data.counts["train"] + data.counts["test"] == 10
    assert max(data.train.pixels.max(), data.test.pixels.max()) < 200 and data.notes == ()


def test_images_of_odd_names_are_read_and_others_counted(tmp_path):
    classes(tmp_path, num=2)
    write(tmp_path / "cat" / "a.jfif", 7, format="JPEG")
    write(tmp_path / "cat" / "b.JPE", 8, format="JPEG")
    write(tmp_path / "cat" / "photo", 9, format="PNG")
    write(tmp_path / "dog" / "c.picture", 10, format="WEBP")
    for name in ("notes.txt", "boxes.xml", "empty"):
        (tmp_path / "dog" / name).write_text("" if name == "empty" else "%!PS-Adobe words")
    data = load(tmp_path)
    assert data.counts["train"] + data.counts["test"] == 8
    assert any(
        note.startswith("3 files that are no images were left out (dog/") for note in data.notes
    )


def test_pipes_and_sockets_are_not_opened(tmp_path, monkeypatch):
    """A pipe would be waited for for ever."""
    classes(tmp_path, num=3)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    monkeypatch.chdir(tmp_path / "dog")  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nothing.png")
        data = load(tmp_path)
    assert (
        data.counts["train"] + data.counts["test"] == 6
        and "3 files that are no images" in data.notes[0]
    )


def test_images_in_two_splits_are_counted(tmp_path):
    classes(tmp_path / "train", num=4)
    classes(tmp_path / "test", num=4, first=20)
    assert load(tmp_path).notes == ()
    for i in range(3):
        write(
            tmp_path / "test" / "dog" / f"copy{i}.png",
            np.asarray(Image.open(tmp_path / "train" / "cat" / f"{i}.png")),
        )
    assert any(
        note.startswith("warning: 3 images of the test split are in the training split too")
        for note in load(tmp_path).notes
    )


# Values and colours


@pytest.mark.parametrize(
    "kind, low, high, white, suffix",
    [
        (np.float32, 0, 1, 1, "tif"),
        (np.float64, 0.0, 255.0, 255, "tiff"),
        (np.float32, 3, 60000, 65535, "tif"),
        (np.uint16, 0, 255, 255, "png"),
        (np.uint16, 0, 4095, 4095, "png"),
        (np.uint16, 100, 65535, 65535, "tif"),
        (np.int32, 0, 65535, 65535, "tif"),
        (np.int32, 0, 1, 1, "tif"),
    ],
)
def test_values_of_more_than_8_bits_have_one_scale(tmp_path, kind, low, high, white, suffix):
    """One white for all images, also for those whose own range is small."""
    ramp = np.linspace(low, high, 36).reshape(6, 6)
    for name, array in (("dark", ramp / 4), ("full", ramp)):
        for i in range(3):
            write(tmp_path / name / f"{i}.{suffix}", array.astype(kind))
    data = load(tmp_path)
    expected = {"dark": ramp / 4, "full": ramp}
    for c, name in enumerate(data.class_names):
        pixels = data.train.pixels[data.train.labels == c].double()
        wanted = torch.from_numpy(expected[name].astype(kind).astype(np.float64) * 255 / white)
        assert (pixels - wanted).abs().max() <= 0.5 + 1e-9
    assert any(f"{white} is taken as white in the whole dataset" in note for note in data.notes)
    own = [
        (Image.fromarray(expected[name].astype(kind)), c)
        for c, name in enumerate(("dark", "full"))
        for _ in range(2)
    ]
    as_dataset = data_of(own, own_config(DataConfig(name="own", validation=0.0)), CPU)
    assert torch.equal(as_dataset.train.pixels[-1], data.train.pixels[-1]) and torch.equal(
        as_dataset.train.pixels[0], data.train.pixels[0]
    )


def png_of_16_bits(values):
    """The bytes of a PNG of values (H, W, 3 or 4) of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_colour_of_16_bits_keeps_its_values(tmp_path, white):
    """Pillow reads the high bytes alone, which are 0 where 8-bit values are stored in 16 bits."""
    colours = np.linspace(0, white, 6 * 6 * 3).reshape(6, 6, 3).astype(np.uint16)
    clear = np.dstack([colours, np.full((6, 6), 65535 if white == 65535 else white, np.uint16)])
    clear[:3, :, 3] = 0
    clear[:3, :, :3] = 65535  # hidden, so no part of the range
    for name, values in (("a", colours), ("b", clear)):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(png_of_16_bits(values))
    data = load(tmp_path)
    wanted = torch.from_numpy(np.rint(colours * (255 / white))).permute(2, 0, 1)
    first, last = data.train.pixels[0].double(), data.train.pixels[-1].double()
    assert (
        torch.equal(first, wanted)
        and torch.equal(last[:, 3:], wanted[:, 3:])
        and (last[:, :3] == 255).all()
    )
    assert any(f"{white} is taken as white" in note for note in data.notes)
    half = np.dstack([np.full((6, 6, 3), white // 2), np.full((6, 6), 32768)]).astype(np.uint16)
    for i in range(3):
        (tmp_path / "b" / f"{i}.png").write_bytes(png_of_16_bits(half))
    # half of a middle grey, and half of the white ground
    assert (load(tmp_path).train.pixels[-1].float() - 191).abs().max() <= 2


@pytest.mark.parametrize(
    "array, words",
    [
        (np.linspace(-1, 1, 36, dtype=np.float32), "floats from -1 to 1"),
        (np.array([0, np.nan] * 18, np.float32), "floats that are not finite"),
        (np.linspace(0, 1e6, 36, dtype=np.float32), "floats from 0 to 1e+06"),
        (np.arange(-5, 31, dtype=np.int32), "whole numbers of more than 8 bits from -5 to 30"),
        (
            np.arange(36, dtype=np.int32) * 10000,
            "whole numbers of more than 8 bits from 0 to 3.5e+05",
        ),
    ],
)
def test_values_that_no_scale_fits_are_refused(tmp_path, array, words):
    classes(tmp_path, num=3)
    write(tmp_path / "cat" / "0.tif", array.reshape(6, 6))
    said = refused(tmp_path)
    assert said.startswith(f"{tmp_path}/cat/0.tif has {words}")


def test_the_scale_is_that_of_the_training_images(tmp_path):
    """Test images are cut there; 8-bit files beside others keep their values."""
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            write(
                tmp_path / "train" / name / f"{i}.png",
                np.full((6, 6), 1000 * c + 50 + i, np.uint16),
            )
        write(tmp_path / "train" / name / "eight.png", np.full((6, 6), 77, np.uint8))
        write(tmp_path / "test" / name / "0.png", np.full((6, 6), 3000 * c + 512, np.uint16))
    data = load(tmp_path)
    assert any("from 50 to 1052: 4095" in note for note in data.notes)
    assert (data.train.pixels == 77).flatten(1).all(1).sum() == 2
    assert data.test.pixels[:, 0, 0, 0].tolist() == [
        round(512 * 255 / 4095),
        round(3512 * 255 / 4095),
    ]


def test_test_images_beyond_the_scale_are_warned_of(tmp_path):
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            write(
                tmp_path / "train" / name / f"{i}.png",
                np.arange(36, dtype=np.uint16).reshape(6, 6) * 5 + c + i,
            )
            write(
                tmp_path / "test" / name / f"{i}.png",
                np.arange(36, dtype=np.uint16).reshape(6, 6) * 1500 + i,
            )
    said = [
        note for note in load(tmp_path).notes if "outside the range of the training images" in note
    ]
    assert (
        len(said) == 1
        and said[0].startswith("warning: 6 images have values")
        and "such as 5.25e+04 in test/" in said[0]
    )


def test_test_images_that_are_no_numbers_are_refused(tmp_path):
    """Also where only test images are such."""
    for name in ("cat", "dog"):
        write(
            tmp_path / "train" / name / "0.tif",
            np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6),
        )
        write(
            tmp_path / "test" / name / "0.tif", np.array([0, np.nan] * 18, np.float32).reshape(6, 6)
        )
    assert "test/cat/0.tif has floats that are not finite" in refused(tmp_path)


def test_a_transparent_colour_of_16_bits_shows_the_ground(tmp_path):
    """A grey and a coloured one, and grey with alpha, which Pillow cannot read whole."""
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            grey = np.full((6, 6), 3000 + 100 * i, np.uint16)
            grey[:, 3:] = 100 + c
            (tmp_path / "a" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey).save(tmp_path / "a" / name / f"{i}.png", transparency=100 + c)
    pixels = load(tmp_path / "a").train.pixels
    assert (pixels[:, :, :, 3:] == 255).all() and (pixels[:, :, :, :3] < 255).all()
    classes(tmp_path / "b")
    with_alpha = np.dstack([np.full((6, 6), 150, np.uint16), np.full((6, 6), 65535, np.uint16)])
    (tmp_path / "b" / "cat" / "x.png").write_bytes(png_of_16_bits(with_alpha))
    assert "cat/x.png has grey values of 16 bits with transparency" in refused(tmp_path / "b")


def test_a_tiff_that_cannot_be_read_is_refused_by_its_kind(tmp_path):
    """Half floats in three channels."""
    classes(tmp_path)
    values = np.ones((6, 6, 3), np.float16)
    entries = [
        (256, 6),
        (257, 6),
        (258, 16),
        (259, 1),
        (262, 2),
        (273, 8 + 2 + 12 * 10 + 4),
        (277, 3),
        (278, 6),
        (279, values.nbytes),
        (339, 3),
    ]
    directory = (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        + b"\0" * 4
    )
    (tmp_path / "cat" / "x.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 8) + directory + values.tobytes()
    )
    assert "cat/x.tif cannot be read as an image (a TIFF of floats of 16 bits" in refused(tmp_path)


def test_the_ground_under_what_is_transparent(tmp_path):
    drawing = np.zeros((6, 6, 4), np.uint8)
    drawing[:, :3, 3] = 255
    for name in ("a", "b"):
        for i in range(3):
            write(tmp_path / name / f"{i}.png", drawing)
    for ground, value in (("white", 255), ("black", 0), ("#0a0a0a", 10)):
        pixels = load(tmp_path, background=ground).train.pixels[0, 0]
        assert (pixels[:, :3] == 0).all() and (pixels[:, 3:] == value).all()
    own = [(Image.open(tmp_path / "a" / "0.png"), 0), (Image.open(tmp_path / "b" / "0.png"), 1)] * 2
    assert data_of(own, own_config(DataConfig(name="own", validation=0.0)), CPU).train.pixels[
        0, 0, 0
    ].tolist() == [0, 0, 0, 255, 255, 255]
    with pytest.raises(UserError, match="'nothing' is no colour"):
        DataConfig(name="folder", background="nothing")


def test_the_first_of_several_frames_is_read_and_said_once(tmp_path):
    frames = [Image.new("L", (6, 6), value) for value in (30, 90, 150)]
    for name in ("a", "b"):
        for i, suffix in enumerate(("gif", "tif", "gif")):
            (tmp_path / name).mkdir(exist_ok=True)
            frames[0].save(
                tmp_path / name / f"{i}.{suffix}", save_all=True, append_images=frames[1:]
            )
    data = load(tmp_path, split_seed=3)
    assert (data.train.pixels == 30).all() and (data.test.pixels == 30).all()
    assert sum("several frames" in note for note in data.notes) == 1


def test_images_of_one_colour_are_warned_of(tmp_path):
    for i in range(4):
        write(tmp_path / "blank" / f"{i}.png", 9)
        write(
            tmp_path / "dog" / f"{i}.png",
            np.random.default_rng(i).integers(0, 255, (6, 6, 3), np.uint8),
        )
    assert any(
        "every training image of class 'blank' is of a single colour" in note
        for note in load(tmp_path).notes
    )
    for i in range(4):
        write(tmp_path / "dog" / f"{i}.png", 8)
    assert any(
        "every image of the training and test split is of a single colour" in note
        for note in load(tmp_path).notes
    )


# Shapes


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_how_other_shapes_are_brought_into_form(tmp_path, grey, turned):
    """A wide or high picture with a white square in its middle and black bands at its ends."""
    picture = np.full((8, 16), 0, np.uint8)
    picture[:, 4:12] = 255
    picture = picture.T if turned else picture
    for name in ("a", "b"):
        for i in range(2):
            write(tmp_path / name / f"{i}.png", picture if grey else np.dstack([picture] * 3))
    images = np.stack([picture] * 4)
    own = (torch.from_numpy(images), torch.tensor([0, 0, 1, 1]))
    for fit, mean in (("squash", 255 / 2), ("crop", 255.0), ("pad", 255 / 4)):
        pixels = load(tmp_path, size=(8, 8), fit=fit, background="black").train.pixels
        assert pixels.shape == (2, 1 if grey else 3, 8, 8)
        assert pixels.float().mean().item() == pytest.approx(mean, abs=2)
        config = own_config(
            DataConfig(name="own", size=(8, 8), fit=fit, background="black", validation=0.0)
        )
        assert data_of(own, config, CPU).train.pixels.float().mean().item() == pytest.approx(
            mean, abs=2
        )
    padded = load(tmp_path, size=(8, 8), fit="pad", background="red").train.pixels[0]
    assert padded[:, 0, 0].tolist() == [255, 0, 0]


# The long tail


def test_every_class_of_two_images_has_a_test_image(tmp_path):
    for name, num in (("many", 30), ("three", 3), ("two", 2), ("one", 1)):
        for i in range(num):
            write(
                tmp_path / name / f"{i}.png",
                np.random.default_rng(i + 100 * num).integers(0, 255, (6, 6), np.uint8),
            )
    data = load(tmp_path, validation=0.1)
    tested = torch.bincount(data.test.labels, minlength=4).tolist()
    assert data.class_names == ("many", "one", "three", "two") and tested == [6, 0, 1, 1]
    assert torch.bincount(data.validation.labels, minlength=4).tolist() == [2, 0, 0, 0]
    assert torch.bincount(data.train.labels, minlength=4).tolist() == [22, 1, 2, 1]
    assert [note for note in data.notes if "no test image" in note] == [
        "warning: there is no test image of class 'one' (training images: 1), so test accuracies "
        "say nothing about it"
    ]
    names = data.split_names
    assert (
        len(names["test"]) == 8
        and len(names["validation"]) == 2
        and not set(names["test"]) & set(names["validation"])
    )
    # who tests on these files tests on the same images
    for name, pixels in zip(names["test"], data.test.pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), pixels[0].numpy())


# Memory


@pytest.mark.parametrize("dataset", ["(images, labels)", "Plain()"])
def test_fitting_takes_little_more_memory_than_the_pixels(dataset):
    """In a process of its own: all pixels as numbers of 64 bits would be eight times as many bytes.

    `Plain` does not list its labels, so all of it is read to learn them.
    """
    code = """
import torch
from pathlib import Path
from ddengine.data.dataset import data_of, own_config
from ddengine.recipe import DataConfig
images, labels = torch.randint(0, 256, (8000, 3, 64, 64), dtype=torch.uint8), torch.arange(8000) % 2
Path("/proc/self/clear_refs").write_text("5")
status = lambda key: next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
class Plain:
    __len__ = lambda self: len(labels)
    __getitem__ = lambda self, i: (images[i], labels[i])
before = status("VmRSS")
data_of(DATASET, own_config(DataConfig(name="own")), torch.device("cpu"))
print((status("VmHWM") - before) / images.numel())
"""
    done = subprocess.run(
        [sys.executable, "-c", code.replace("DATASET", dataset)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert float(done.stdout.splitlines()[-1]) < 1.8


def test_images_are_put_into_another_order_in_their_own_memory():
    for num in (1, 2, 7, 50):
        images, order = (
            np.arange(3 * num).reshape(num, 3),
            np.random.default_rng(num).permutation(num),
        )
        wanted = images[order].copy()
        assert np.array_equal(reordered(images, order), wanted)


def test_mean_and_std_are_those_of_all_pixels():
    """From the histogram, in float64, as the sample mean and standard deviation of every channel."""
    pixels = torch.randint(0, 256, (7, 3, 5, 4), generator=generator(0), dtype=torch.uint8)
    pixels[:, 1] = 9
    fitted = fit_preprocess(pixels, zca=False)
    values = pixels.transpose(0, 1).flatten(1).double() / 255
    assert torch.allclose(fitted.mean.double(), values.mean(1), atol=1e-7)
    assert torch.allclose(fitted.std.double(), values.std(1).clamp(min=1e-3), atol=1e-7)


def test_whitening_that_does_not_fit_is_refused_before_it_begins(monkeypatch):
    pixels = torch.randint(0, 256, (50, 1, 8, 8), generator=generator(0), dtype=torch.uint8)
    monkeypatch.setattr(preprocess, "available_memory", lambda device: 10_000)
    with pytest.raises(UserError, match=r"^data\.zca needs about .* GB of memory .* to 50 images"):
        fit_preprocess(pixels, zca=True)
    monkeypatch.setattr(preprocess, "available_memory", lambda device: 10**9)
    fit_preprocess(pixels, zca=True)


def test_names_that_are_no_text_can_be_written(tmp_path):
    """Linux takes any bytes as names, such as those of archives of old; JSON and terminals do not."""
    name = os.fsdecode(b"caf\xe9")
    classes(tmp_path / "images", names=(name, "dog"))
    data = load(tmp_path / "images")
    assert data.class_names == ("caf?", "dog") and len(data.train) == 6
    files.write_json(tmp_path / "a.json", {"command": ["distill", name], "é": "é"})
    assert files.read_json(tmp_path / "a.json") == {"command": ["distill", "caf?"], "é": "é"}
