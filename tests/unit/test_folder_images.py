"""Images as users have them: broken ones, of many sizes, from telephones, in all of Pillow's modes."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddengine.data import load_data
from ddengine.data.images import open_image
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError


def load(root, name="folder", **settings):
    """All in the training split."""
    return load_data(
        DataConfig(name=name, root=str(root), validation=0.0, **settings),
        torch.device("cpu"),
        test=True,
    )


def save(path, image, **options):
    """A file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def pictures(root, side=8, num=3):
    """Two classes of grey squares."""
    for i in range(num):
        for name in ("cat", "dog"):
            save(root / name / f"{i}.png", Image.new("RGB", (side, side), (20 * i,) * 3))


def noise(height, width):
    """A JPEG worth cutting."""
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def cut(path):
    """The file without its end."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refused(root, *args, **settings):
    """The sentence of the error."""
    with pytest.raises(UserError) as error:
        load(root, *args, **settings)
    return str(error.value)


# Broken files


def test_one_unreadable_file_is_named(tmp_path):
    pictures(tmp_path)
    (tmp_path / "dog" / "3.png").write_text("no image")
    said = refused(tmp_path)
    assert said.startswith(f"{tmp_path}/dog/3.png cannot be read as an image (") and said.endswith(
        "; repair or remove it."
    )


def test_all_unreadable_files_are_named_at_once(tmp_path):
    """Counted, three by name; those of the test split too, which would be read later."""
    pictures(tmp_path / "train")
    pictures(tmp_path / "test")
    for name in ("train/cat/4.png", "train/dog/3.gif", "test/cat/9.png"):
        (tmp_path / name).write_text("no image")
    save(tmp_path / "train/cat/5.jpg", noise(40, 40))
    cut(tmp_path / "train/cat/5.jpg")
    cut(tmp_path / "train/dog/1.png")
    said = refused(tmp_path)
    names = ", ".join(
        f"{tmp_path}/train/{name}" for name in ("cat/4.png", "cat/5.jpg", "dog/1.png")
    )
    assert said.startswith(f"5 files cannot be read as images: {names} and 2 more (the first: ")
    assert said.endswith("; repair or remove them.") and "test/cat" not in said
    for name in ("train/cat/4.png", "train/cat/5.jpg", "train/dog/3.gif"):
        (tmp_path / name).unlink()
    said = refused(tmp_path)
    assert said.startswith(
        f"2 files cannot be read as images: {tmp_path}/train/dog/1.png, {tmp_path}/test/cat/9.png "
        "(the first: "
    )


def test_rows_of_parquet_that_cannot_be_read_are_named_at_once(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    images = [
        {"bytes": b"no image" if i in (1, 4) else buffer.getvalue(), "path": None} for i in range(6)
    ]
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 3}), tmp_path / "train.parquet")
    said = refused(tmp_path, "parquet")
    assert said.startswith(
        "2 files cannot be read as images: Row 1 of train.parquet, Row 4 of train.parquet (the "
        "first: "
    )


# Sizes


@pytest.mark.parametrize(
    ("sizes", "suggested"),
    [
        ([(30, 41), (33, 40), (50, 20)], "32 40"),  # the median 33 x 40
        ([(300, 400), (500, 300), (200, 200)], "64 64"),
        ([(5, 3), (4, 3), (4, 2)], "8 8"),
    ],
)
def test_images_of_different_sizes_are_told_a_size(tmp_path, sizes, suggested):
    for i, (height, width) in enumerate(sizes):
        for name in ("cat", "dog"):
            save(tmp_path / name / f"{i}.png", Image.new("RGB", (width, height)))
    said = refused(tmp_path)
    assert said.endswith(
        f"; set data.size to a height and width for all, such as --data.size {suggested}."
    )
    height, width = map(int, suggested.split())
    assert load(tmp_path, size=(height, width)).image_shape == (3, height, width)


# Photographs

MARKED = np.zeros((24, 40, 3), np.uint8)
MARKED[:8, :8] = 255  # white corner at the top left
TOP = {
    1: (0, 0),
    2: (0, 1),
    3: (1, 1),
    4: (1, 0),
    5: (0, 0),
    6: (0, 1),
    7: (1, 1),
    8: (1, 0),
}  # where it lies as EXIF's orientation has it: (row, column)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_photograph_is_turned_as_its_orientation_says(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("cat", "dog"):
        for i in range(3):
            save(tmp_path / name / f"{i}.{suffix}", Image.fromarray(MARKED), exif=exif)
    pixels = load(tmp_path).train.pixels[0, 0]
    assert tuple(pixels.shape) == ((40, 24) if orientation >= 5 else (24, 40))
    corners = pixels[:: pixels.shape[0] - 1, :: pixels.shape[1] - 1] > 128
    assert corners.nonzero().tolist() == [list(TOP[orientation])]


def test_turned_photographs_of_one_size_have_one_size(tmp_path):
    """Upright photographs beside those that were held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        save(tmp_path / name / "0.jpg", noise(24, 40), exif=exif)
        save(tmp_path / name / "1.jpg", noise(40, 24))
        save(tmp_path / name / "2.jpg", noise(40, 24))
    assert load(tmp_path).image_shape == (3, 40, 24)
    save(tmp_path / "dog" / "3.jpg", noise(48, 24))
    assert refused(tmp_path).endswith("--data.size 40 24.")


def test_an_orientation_that_is_none_is_ignored(tmp_path):
    for value in (0, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        save(tmp_path / "a.jpg", noise(24, 40), exif=exif)
        assert open_image(tmp_path / "a.jpg", "a", upright=True).size == (40, 24)


def test_published_sets_are_read_as_they_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", noise(24, 40), exif=exif)
    assert open_image(tmp_path / "a.jpg", "a").size == (40, 24)


# Modes

COLOUR = (200, 60, 20)
GREY = 90


def of_colour(mode, **options):
    """An image of one colour, in another mode."""
    return Image.new("RGB", (16, 16), COLOUR).convert(mode, **options)


@pytest.mark.parametrize(
    ("image", "suffix", "tolerance"),
    [
        (of_colour("P", palette=Image.Palette.ADAPTIVE), "png", 0),
        (of_colour("P", palette=Image.Palette.ADAPTIVE), "gif", 0),
        (of_colour("CMYK"), "jpg", 4),
        (of_colour("RGBA"), "png", 0),
        (of_colour("YCbCr"), "jpg", 4),
    ],
    ids=["palette", "gif", "cmyk", "rgba", "ycbcr"],
)
def test_every_mode_of_colour_shows_its_colour_beside_grey_images(
    tmp_path, image, suffix, tolerance
):
    for name in ("cat", "dog"):
        for i in range(2):
            save(tmp_path / name / f"a{i}.{suffix}", image)
            save(tmp_path / name / f"z{i}.png", Image.new("L", (16, 16), GREY))
    data = load(tmp_path)
    for part in (data.train, data.test):
        assert part.image_shape == (3, 16, 16)
    rows = torch.cat([data.train.pixels, data.test.pixels]).flatten(2)
    assert (rows == rows[:, :, :1]).all()  # each of one colour
    found = rows[:, :, 0].tolist()
    grey = [pixel for pixel in found if pixel == [GREY] * 3]
    assert len(grey) == 4 and len(found) == 8
    assert all(
        np.abs(np.subtract(pixel, COLOUR)).max() <= tolerance
        for pixel in found
        if pixel not in grey
    )


def test_what_is_transparent_shows_the_ground_and_never_its_hidden_colour(tmp_path):
    """Of every mode that can be transparent, wholly and by half."""
    grey, clear = Image.new("LA", (4, 4), (50, 0)), Image.new("RGBA", (4, 4), (*COLOUR, 0))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*COLOUR, 9, 9, 9])
    of_colour, of_grey = Image.new("RGB", (4, 4), COLOUR), Image.new("L", (4, 4), 50)
    files = {
        "clear": (clear, {}),
        "grey": (grey, {}),
        "palette": (palette, {"transparency": 1}),
        "key": (of_colour, {"transparency": COLOUR}),
        "grey key": (of_grey, {"transparency": 50}),
    }
    for name, (image, options) in files.items():
        save(tmp_path / f"{name}.png", image, **options)
        seen = open_image(tmp_path / f"{name}.png", name)
        assert seen.mode == ("L" if "grey" in name else "RGB"), name
        assert np.all(np.asarray(seen) == 255), name
        assert np.all(
            np.asarray(open_image(tmp_path / f"{name}.png", name, ground=(0, 0, 9))) == (0, 0, 9)
        ), name
    half = Image.new("RGBA", (4, 4), (200, 60, 20, 51))  # a fifth
    save(tmp_path / "half.png", half)
    assert (
        np.abs(
            np.asarray(open_image(tmp_path / "half.png", "half")).astype(int) - (244, 216, 208)
        ).max()
        <= 1
    )


@pytest.mark.parametrize(("train", "test"), [("RGB", "L"), ("L", "RGB")])
def test_the_test_split_gets_the_channels_of_the_training_split(tmp_path, train, test):
    for split, mode in (("train", train), ("test", test)):
        for name in ("cat", "dog"):
            for i in range(2):
                save(
                    tmp_path / split / name / f"{i}.png",
                    Image.new(mode, (8, 8), GREY if mode == "L" else (30, 60, 90)),
                )
    data = load(tmp_path)
    assert data.train.image_shape == data.test.image_shape == (3 if train == "RGB" else 1, 8, 8)
    assert data.test.pixels.unique().tolist() == [GREY if test == "L" else 60]
