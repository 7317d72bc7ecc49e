"""`Dataset`: a handle to where images come from gives what the command line reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CPU
from PIL import Image

from ddengine.data import Dataset, load_data
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

RECIPE = DataConfig(name="cifar10", download=True, validation=0.25, zca=True, split_seed=3)


@pytest.fixture
def photos(tmp_path):
    """Twelve images of two classes in a folder each."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    "dataset, changed",
    [
        (Dataset.folder("photos"), {"name": "folder", "root": "photos"}),
        (Dataset.parquet("rows"), {"name": "parquet", "root": "rows"}),
        (
            Dataset.parquet("rows", image_column="photo", label_column="kind"),
            {"name": "parquet", "root": "rows", "image_column": "photo", "label_column": "kind"},
        ),
        (Dataset.named("svhn"), {"name": "svhn", "root": None}),
        (Dataset.named("svhn", root="data"), {"name": "svhn", "root": "data"}),
        (Dataset.of([]), {"name": "own", "root": None, "download": False}),
    ],
)
def test_settings_are_those_of_name_and_root_alone(dataset, changed):
    """All else that a recipe says of its data stays, or another run would come of it."""
    assert dataset.settings(replace(RECIPE, root="elsewhere")) == replace(RECIPE, **changed)
    assert dataset.settings(dataset.settings(RECIPE)) == dataset.settings(RECIPE)


def test_columns_of_the_recipe_stay_where_none_are_named():
    named = replace(RECIPE, image_column="photo")
    assert Dataset.parquet("rows").settings(named).image_column == "photo"


def test_a_folder_is_what_the_command_line_reads(photos):
    config = DataConfig(name="digits", validation=0.25)
    one = Dataset.folder(photos).load(config, CPU, test=True)
    two = load_data(replace(config, name="folder", root=str(photos)), CPU, test=True)
    assert one.train.digest == two.train.digest and one.class_names == two.class_names
    assert one.test is not None and two.test is not None
    assert torch.equal(one.test.pixels, two.test.pixels)
    assert Dataset.folder(photos).load(config, CPU).test is None


def test_stored_preprocessing_is_asked_for(photos):
    asked = []
    data = Dataset.folder(photos).load(DataConfig(name="digits"), CPU, stored=asked.append)
    assert asked == [data.train.digest]


def examples(num=6):
    pixels = torch.randint(256, (num, 3, 4, 4), generator=torch.Generator().manual_seed(num))
    return pixels.to(torch.uint8), torch.arange(num) % 2


def test_test_images_of_ones_own_are_counted_and_read_when_asked_for():
    config = DataConfig(name="own", validation=0.0)
    both = Dataset.of(examples(), classes=["cat", "dog"], test=examples(4))
    data = both.load(config, CPU)
    assert data.test is None and data.num_test == 4 and data.class_names == ("cat", "dog")
    assert torch.equal(both.load(config, CPU, test=True).test.pixels, examples(4)[0])
    with pytest.raises(UserError, match="has no test images"):
        Dataset.of(examples()).load(config, CPU, test=True)


def test_a_dataset_of_a_dataset_is_itself():
    one = Dataset.folder("photos")
    assert Dataset.of(one) is one
    with pytest.raises(UserError, match="has its own"):
        Dataset.of(one, classes=["cat", "dog"])


def test_wrong_names_are_sentences():
    with pytest.raises(UserError, match="cifar10"):
        Dataset.named("cifar")
    with pytest.raises(UserError, match="names a class twice"):
        Dataset.of(examples(), classes=["cat", "cat"])


def test_the_handle_is_a_line_and_does_not_print_its_images():
    pair = (torch.zeros(5, 1, 4, 4), torch.zeros(5, dtype=torch.long))
    assert repr(Dataset.of(pair, classes=["a"])) == "Dataset.of(5 images, classes=1 names)"
    some = Dataset.of(list(zip(*pair, strict=True)), test=(pair[0][:2], pair[1][:2]))
    assert repr(some) == "Dataset.of(5 images, test=2 images)"
    assert repr(Dataset.of(object())) == "Dataset.of(? images)"
    assert repr(Dataset.folder("photos")) == "Dataset.folder('photos')"
    assert repr(Dataset.named("digits")) == "Dataset.named('digits')"
    assert repr(Dataset.named("cifar10", root="x")) == "Dataset.named('cifar10', 'x')"


def test_a_notebook_shows_what_is_known_without_reading(tmp_path):
    """Names hold anything, and files are not opened."""
    pair = (torch.zeros(5, 1, 8, 6), torch.zeros(5, dtype=torch.long))
    shown = Dataset.of(pair, classes=["<b>", "dog"], test=pair)._repr_html_()
    assert "<table>" in shown and "1 x 8 x 6" in shown and "&lt;b&gt;, dog" in shown
    assert shown.count("<td>5</td>") == 2
    (tmp_path / "photos").mkdir()
    there = Dataset.folder(tmp_path / "photos")._repr_html_()
    assert "<td>photos</td>" in there and "<td>yes</td>" in there
    assert "<td>no</td>" in Dataset.folder(tmp_path / "nowhere")._repr_html_()
