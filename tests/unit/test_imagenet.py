"""Tiny ImageNet, ImageNet and its ten-class subsets on folders made here, and the decoding that
they share with the other readers.
"""

import io
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ddengine.data import decoder, imagenet, load_data
from ddengine.data.decoder import Decoder, Files
from ddengine.data.load import DATASETS
from ddengine.recipe import DataConfig
from ddengine.system.compat import torchvision
from ddengine.system.errors import UserError
from synth.recipes import mtt

CPU = torch.device("cpu")

# Class numbers of ImageNet, whose order is that of the sorted WordNet ids, in the order of the
# lists of MTT.
IDS = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}


def save(path, value, size=(6, 4), grey=False):
    """An image of one value, lossless although the name says JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size if grey else (*size, 3), value, np.uint8)).save(path, "PNG")


def load(name, root, *, test=True, validation=0.0, **settings):
    """load_data with everything in the training split unless said otherwise."""
    return load_data(
        DataConfig(
            name=name, root=None if root is None else str(root), validation=validation, **settings
        ),
        CPU,
        test=test,
    )


def refused(*words, name, root, **settings):
    """The reader must refuse, in one sentence that has the words."""
    with pytest.raises(UserError) as caught:
        load(name, root, **settings)
    message = str(caught.value)
    assert message.endswith(".") and ". " not in message and "\n" not in message
    for word in words:
        assert word in message, message


def values(part):
    """(label, value) of every image of one value."""
    assert all(len(p.unique()) == 1 for p in part.pixels)
    return [
        (label, int(p.max())) for label, p in zip(part.labels.tolist(), part.pixels, strict=True)
    ]


# Tiny ImageNet

TINY = ("n02000001", "n01000002", "n03000003")  # as wnids.txt lists them, which is not sorted
NAMES = ("ant", "n02000001", "crane")  # in sorted order; words.txt has no line for the second


def make_tiny(root):
    """The archive with 3 classes of 2 training images and 2 validation images, 64 x 64; image
    values say which is which.
    """
    for c, wnid in enumerate(sorted(TINY)):
        for i in range(2):
            save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * c + i, (64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    order = [2, 0, 1, 1, 2, 0]  # class of val_0.JPEG, ...
    for i, c in enumerate(order):
        save(root / "val" / "images" / f"val_{i}.JPEG", 100 + 10 * c + i, (64, 64))
    lines = [f"val_{i}.JPEG\t{sorted(TINY)[c]}\t0\t32\t44\t62" for i, c in enumerate(order)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("\n".join(TINY) + "\n")
    (root / "words.txt").write_text(
        "n00000001\tentity\nn01000002\tant, emmet, pismire\nn03000003\tcrane\n"
    )
    save(root / "test" / "images" / "test_0.JPEG", 255, (64, 64))
    return order


@pytest.mark.parametrize("below", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_as_distributed(tmp_path, below):
    order = make_tiny(tmp_path / below)
    data = load("tiny_imagenet", tmp_path)
    assert data.class_names == NAMES
    assert data.image_shape == (3, 64, 64)  # as stored
    assert values(data.train) == [(c, 10 * c + i) for c in range(3) for i in range(2)]
    # val; the official test images are not read
    assert values(data.test) == [(c, 100 + 10 * c + i) for i, c in enumerate(order)]
    assert data.train.preprocess.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert data.train.preprocess.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert load("tiny_imagenet", tmp_path, size=(8, 6)).test.image_shape == (3, 8, 6)


@pytest.mark.parametrize("layout", ["val/{}", "val/{}/images", "val/images/{}"])
@pytest.mark.parametrize("annotations", [True, False])
def test_tiny_imagenet_with_validation_images_in_class_folders(tmp_path, layout, annotations):
    """As ImageFolder wants them; the annotations may have stayed."""
    order = make_tiny(tmp_path)
    for i, c in enumerate(order):
        to = tmp_path / layout.format(sorted(TINY)[c])
        to.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / "images" / f"val_{i}.JPEG").rename(to / f"val_{i}.JPEG")
    if not annotations:
        (tmp_path / "val" / "val_annotations.txt").unlink()
    assert values(load("tiny_imagenet", tmp_path).test) == sorted(
        (c, 100 + 10 * c + i) for i, c in enumerate(order)
    )


def test_tiny_imagenet_has_the_labels_of_image_folder(tmp_path):
    make_tiny(tmp_path)
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "train"))
    assert load("tiny_imagenet", tmp_path, test=False).train.labels.tolist() == folder.targets


def test_tiny_imagenet_with_grey_images_among_colour_ones(tmp_path):
    """The archive has some; they get three equal channels, in either split."""
    make_tiny(tmp_path)
    save(tmp_path / "train" / TINY[0] / "images" / f"{TINY[0]}_0.JPEG", 77, (64, 64), grey=True)
    save(tmp_path / "val" / "images" / "val_1.JPEG", 78, (64, 64), grey=True)
    data = load("tiny_imagenet", tmp_path)
    assert data.image_shape == data.test.image_shape == (3, 64, 64)
    assert (1, 77) in values(data.train) and (0, 78) in values(data.test)


def test_tiny_imagenet_without_words_is_named_by_ids(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "words.txt").unlink()
    assert load("tiny_imagenet", tmp_path).class_names == tuple(sorted(TINY))


def test_tiny_imagenet_refusals(tmp_path):
    refused("data.root", "tiny-imagenet-200", name="tiny_imagenet", root=None)
    refused(str(tmp_path / "wnids.txt"), "data.root", name="tiny_imagenet", root=tmp_path)
    make_tiny(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "train" / TINY[2])
    refused(
        str(tmp_path / "a" / "train" / TINY[2]),
        "missing",
        name="tiny_imagenet",
        root=tmp_path / "a",
    )
    make_tiny(tmp_path / "b")
    (tmp_path / "b" / "val" / "images" / "val_3.JPEG").unlink()
    refused(
        "val_3.JPEG", "missing", "val_annotations.txt", name="tiny_imagenet", root=tmp_path / "b"
    )
    make_tiny(tmp_path / "c")
    (tmp_path / "c" / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn09999999\t0\t0\t1\t1\n"
    )
    refused("n09999999", "val_0.JPEG", "wnids.txt", name="tiny_imagenet", root=tmp_path / "c")
    (tmp_path / "c" / "val" / "val_annotations.txt").unlink()
    refused("val_annotations.txt", "missing", name="tiny_imagenet", root=tmp_path / "c")
    (tmp_path / "c" / "val" / TINY[0]).mkdir()  # sorting was begun and not finished
    refused(
        str(tmp_path / "c" / "val" / sorted(TINY)[0]),
        "missing",
        name="tiny_imagenet",
        root=tmp_path / "c",
    )
    (tmp_path / "c" / "wnids.txt").write_text("n01000002\n")
    refused("wnids.txt", "at least 2", name="tiny_imagenet", root=tmp_path / "c")


# ImageNet and its subsets


def test_tables_of_the_subsets_fit_the_class_numbers_of_imagenet():
    """Names by number as torchvision has them; ids ascend with the numbers, over all subsets at
    once.
    """
    assert imagenet.SUBSETS.keys() == IDS.keys()
    categories = torchvision.models.get_weight("ResNet18_Weights.DEFAULT").meta["categories"]
    wnid_of = {}
    for name, ids in IDS.items():
        assert [title for _, title in imagenet.SUBSETS[name]] == [categories[i] for i in ids]
        for number, (wnid, _) in zip(ids, imagenet.SUBSETS[name], strict=True):
            assert wnid_of.setdefault(number, wnid) == wnid
    wnids = [wnid_of[number] for number in sorted(wnid_of)]
    assert wnids == sorted(set(wnids)) and len(wnids) == 57  # banana, lemon and lion are in two


def make_imagenet(root, wnids, val=True):
    """train/WNID and val/WNID with 2 and 1 images of different sizes; the value is 10 times the
    position (train) or 1 more (val).
    """
    for c, wnid in enumerate(wnids):
        save(root / "train" / wnid / f"{wnid}_7.JPEG", 10 * c, (9, 5))
        save(root / "train" / wnid / f"{wnid}_8.JPEG", 10 * c, (12, 12), grey=c == 3)
        if val:
            save(root / "val" / wnid / "ILSVRC2012_val_00000001.JPEG", 10 * c + 1, (7, 8))


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("name", IDS)
def test_subset_labels_are_positions_in_the_list(tmp_path, name, below):
    """Not alphabetical, as an image folder's would be; other classes in the folder do not matter."""
    wnids, titles = zip(*imagenet.SUBSETS[name], strict=True)
    make_imagenet(tmp_path / below, wnids)
    make_imagenet(tmp_path / below, ["n00000000", "n15075141"])
    data = load(name, tmp_path, size=(4, 6))
    assert data.class_names == titles
    assert data.image_shape == data.test.image_shape == (3, 4, 6)
    assert values(data.train) == [(c, 10 * c) for c in range(10) for _ in range(2)]
    assert values(data.test) == [(c, 10 * c + 1) for c in range(10)]
    assert data.train.preprocess.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert data.train.preprocess.std.tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_imagenet_takes_all_class_folders_in_order(tmp_path, monkeypatch):
    wnids = ("n01440764", "n02129165", "n15075141")
    make_imagenet(tmp_path, wnids)
    (tmp_path / "train" / "n01440764.tar").write_bytes(b"")
    (tmp_path / "train" / "notes").mkdir()
    refused(
        "3 class folders",
        "1000",
        str(tmp_path / "train"),
        name="imagenet",
        root=tmp_path,
        size=(4, 4),
    )
    monkeypatch.setattr(imagenet, "NUM_CLASSES", 3)
    data = load("imagenet", tmp_path, size=(4, 4))
    assert data.class_names == wnids
    assert values(data.train) == [(0, 0), (0, 0), (1, 10), (1, 10), (2, 20), (2, 20)] and values(
        data.test
    ) == [(0, 1), (1, 11), (2, 21)]


def test_subset_refusals(tmp_path):
    wnids = [wnid for wnid, _ in imagenet.SUBSETS["imagewoof"]]
    refused("data.size", "imagewoof", name="imagewoof", root=tmp_path)
    refused("data.root", "train/WNID", name="imagewoof", root=None, size=(4, 4))
    refused(str(tmp_path), "train", name="imagewoof", root=tmp_path, size=(4, 4))
    make_imagenet(tmp_path, wnids, val=False)
    refused(str(tmp_path), "no folder val", name="imagewoof", root=tmp_path, size=(4, 4))
    save(tmp_path / "val" / "ILSVRC2012_val_00000293.JPEG", 0)
    refused(
        str(tmp_path / "val"),
        "sort them into folders by class",
        wnids[0],
        name="imagewoof",
        root=tmp_path,
        size=(4, 4),
    )
    make_imagenet(tmp_path, wnids)
    shutil.rmtree(tmp_path / "val" / wnids[6])
    refused(
        str(tmp_path / "val" / wnids[6]), "missing", name="imagewoof", root=tmp_path, size=(4, 4)
    )
    shutil.rmtree(tmp_path / "train" / wnids[4])
    refused(
        str(tmp_path / "train" / wnids[4]), "missing", name="imagewoof", root=tmp_path, size=(4, 4)
    )
    (tmp_path / "train" / wnids[4]).mkdir()
    save(tmp_path / "train" / wnids[4] / ".hidden.JPEG", 0)
    refused(
        str(tmp_path / "train" / wnids[4]),
        "no images",
        name="imagewoof",
        root=tmp_path,
        size=(4, 4),
    )


def test_recipes_name_datasets_that_are_there():
    """Every recipe of MTT reads by name; only the subsets, whose files differ in size, are resized."""
    for recipe in mtt.recipes():
        assert recipe.data.name in DATASETS
        assert recipe.data.size == ((128, 128) if recipe.data.name in imagenet.SUBSETS else None)


# Decoding


def png(image):
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def fetch_of(source_at, num, size=None):
    """A fetch of images that are called by their numbers."""
    decoder = Decoder(DataConfig(name="folder", size=size), [], published=True)
    return decoder.undecoded(Files(source_at, str, num, str)).fetch


def test_decoding_keeps_order_and_channels_over_many_chunks(monkeypatch):
    monkeypatch.setattr(decoder, "CHUNK", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 5, 7, 3), dtype=np.uint8)
    grey = np.arange(40) % 4 == 0
    threads = set()

    def source_at(i):
        threads.add(threading.get_ident())
        time.sleep(0.002 * (i % 3))
        return png(Image.fromarray(pixels[i, :, :, 0] if grey[i] else pixels[i]))

    fetch = fetch_of(source_at, 40)
    expected = np.where(grey[:, None, None, None], pixels[..., :1], pixels).transpose(0, 3, 1, 2)
    index = np.random.default_rng(1).permutation(40)[:31]
    found = fetch(index)
    assert (
        found.dtype == np.uint8
        and found.flags.c_contiguous
        and np.array_equal(found, expected[index])
    )
    only_grey = fetch(np.flatnonzero(grey))
    assert only_grey.flags.c_contiguous and np.array_equal(only_grey, expected[grey][:, :1])
    assert threading.get_ident() in threads  # the first image decides the size


@pytest.mark.parametrize(
    "unreadable, size, message",
    [
        (True, None, r"^93 cannot be read"),
        (True, (4, 4), r"^93 cannot be read"),
        (False, None, r"^93 is 5x4 and others are 4x4; set data\.size"),
    ],
)
def test_the_first_bad_image_in_order_is_named_and_what_follows_is_dropped(
    monkeypatch, unreadable, size, message
):
    """Also where a later one fails sooner."""
    monkeypatch.setattr(decoder, "CHUNK", 2)
    monkeypatch.setattr(decoder, "THREADS", 4)
    bad, opened, later_one = {93, 92, 50}, [], threading.Event()

    def source_at(i):
        opened.append(i)
        if i == 93:
            later_one.wait(2)  # in vain where there is one thread
        elif i == 92:
            later_one.set()
        else:
            # so that nowhere near all have begun when the error is seen, however many threads there
            # are
            time.sleep(0.01)
        return (
            b"no image"
            if i in bad and unreadable
            else png(Image.new("RGB", (4, 5 if i in bad else 4)))
        )

    index = np.array([99, 98, 97, 93, 96, 95, 92, *range(92), 94])
    with pytest.raises(UserError, match=message):
        fetch_of(source_at, 100, size)(index)
    assert len(opened) < 100
