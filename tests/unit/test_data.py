"""Readers on files made here, splits, preprocessing, and sets that live on the device."""

import gzip
import io
import json
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddengine.data import Preprocess, RealSet, fit_preprocess, load_data, stratified
from ddengine.data.load import data_from
from ddengine.data.preprocess import fit_zca
from ddengine.data.realset import Subset
from ddengine.data.source import Source, hold_out, part_of_array
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

CPU = torch.device("cpu")
PLAIN = Preprocess(mean=torch.zeros(1), std=torch.ones(1))  # pixels as they are


def random_pixels(seed, *shape):
    """uint8 noise as a numpy array."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
    """An image file of an array (H, W) or (H, W, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def load(name="folder", root=None, *, validation=0.0, test=True, **settings):
    """load_data with everything in the training split unless said otherwise."""
    config = DataConfig(
        name=name, root=None if root is None else str(root), validation=validation, **settings
    )
    return load_data(config, CPU, test=test)


def rows(*sets):
    """Every image of some sets as bytes, in order."""
    return [p.numpy().tobytes() for s in sets for p in s.pixels]


# Image folders


def make_folder(root, classes=("ant", "bee"), each=5, size=(6, 4), seed=0):
    """class/0.png ... of colour noise; returns the arrays (class, image, H, W, 3)."""
    arrays = random_pixels(seed, len(classes), each, *size, 3)
    for name, images in zip(classes, arrays, strict=True):
        for i, array in enumerate(images):
            save(root / name / f"{i}.png", array)
    return arrays


def test_flat_folder_is_read_exactly_and_its_test_split_is_cut_from_it(tmp_path):
    """Non-square images keep height and width; classes in alphabetical order; a fifth of each class
    is the test split.
    """
    arrays = make_folder(tmp_path, classes=("bee", "ant"))
    data = load(root=tmp_path)
    assert data.class_names == ("ant", "bee")
    assert data.image_shape == (3, 6, 4)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.test.labels.tolist() == [0, 1]
    by_label = {0: arrays[1], 1: arrays[0]}
    found = {0: [], 1: []}
    for part in (data.train, data.test):
        for pixels, label in zip(part.pixels, part.labels.tolist(), strict=True):
            found[label].append(pixels.permute(1, 2, 0).numpy().tobytes())
    for label in (0, 1):
        assert sorted(found[label]) == sorted(a.tobytes() for a in by_label[label])
    assert data.bytes == 8 * 3 * 6 * 4


@pytest.mark.parametrize("split", ["test", "val"])
def test_folder_with_an_official_test_split(tmp_path, split):
    make_folder(tmp_path / "train", seed=1)
    held = make_folder(tmp_path / split, each=2, seed=2)
    data = load(root=tmp_path)
    assert len(data.train) == 10  # nothing is cut from train
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), held.reshape(4, 6, 4, 3))


def test_the_test_split_is_loaded_only_when_asked_for(tmp_path):
    make_folder(tmp_path)
    assert load(root=tmp_path, test=False).test is None


def test_grey_files_give_one_channel_and_one_colour_file_gives_three_to_all(tmp_path):
    grey = random_pixels(0, 2, 6, 5, 5)
    for name, images in zip(("a", "b"), grey, strict=True):
        for i, array in enumerate(images):
            save(tmp_path / "train" / name / f"{i}.png", array)
            save(tmp_path / "test" / name / f"{i}.png", array)
    assert load(root=tmp_path).image_shape == (1, 5, 5)
    colour = random_pixels(1, 5, 5, 3)
    save(tmp_path / "train" / "b" / "6.png", colour)
    data = load(root=tmp_path, validation=0.3)
    assert (
        data.train.image_shape == data.validation.image_shape == data.test.image_shape == (3, 5, 5)
    )
    assert torch.equal(data.test.pixels[0], torch.from_numpy(grey[0, 0]).expand(3, 5, 5))
    assert np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes() in rows(
        data.train, data.validation
    )


def test_images_of_different_sizes_need_data_size_which_is_height_and_width(tmp_path):
    for name in ("a", "b"):
        for i, size in enumerate([(8, 8), (12, 6), (6, 9), (8, 8), (5, 5)]):
            save(tmp_path / name / f"{i}.png", np.full((*size, 3), 40 * i, np.uint8))
    with pytest.raises(UserError, match=r"data\.size"):
        load(root=tmp_path)
    data = load(root=tmp_path, size=(4, 7))
    assert data.image_shape == data.test.image_shape == (3, 4, 7)
    # one value an image survives a resize
    values = sorted(int(p.unique().item()) for s in (data.train, data.test) for p in s.pixels)
    assert values == sorted([0, 40, 80, 120, 160] * 2)


def test_palette_and_alpha(tmp_path):
    """A palette image shows its palette's colours also among its own kind, alpha 255 changes
    nothing, grey with alpha stays grey.
    """
    index = random_pixels(0, 4, 4) % 2
    table = np.array([[250, 10, 20], [0, 200, 100]], np.uint8)
    palette = Image.fromarray(index).convert("P")
    palette.putpalette(table.flatten().tolist())
    for name in ("a", "b"):
        for i in range(2):
            save(tmp_path / "colour" / name / f"rgb{i}.png", table[index])
            save(
                tmp_path / "colour" / name / f"rgba{i}.png",
                np.dstack((table[index], np.full((4, 4), 255, np.uint8))),
            )
            (tmp_path / "palette" / name).mkdir(parents=True, exist_ok=True)
            palette.save(tmp_path / "palette" / name / f"p{i}.png")
            palette.save(
                tmp_path / "palette" / name / f"opaque{i}.png", transparency=bytes([255, 255])
            )
    for kind in ("colour", "palette"):
        data = load(root=tmp_path / kind)
        assert len(data.train) + len(data.test) == 8
        for pixels in (*data.train.pixels, *data.test.pixels):
            assert torch.equal(pixels, torch.from_numpy(table[index]).permute(2, 0, 1))
    grey = random_pixels(3, 4, 4)
    for name in ("c", "d"):
        for i in range(3):
            save(
                tmp_path / "grey" / name / f"{i}.png",
                np.dstack((grey, np.full((4, 4), 255, np.uint8))),
            )
    assert torch.equal(load(root=tmp_path / "grey").train.pixels[0, 0], torch.from_numpy(grey))


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    """65535 is white and half of it is grey, within rounding."""
    values = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    for name in ("a", "b"):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", values)
    pixels = load(root=tmp_path).train.pixels[0, 0].int()
    assert (pixels - torch.from_numpy(values.astype(np.int32)) // 257).abs().max() <= 1


# Parquet


def png(array):
    """An array as the bytes of a PNG file."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def write_parquet(path, arrays, labels, *, label="label", image="image", names=None, struct=True):
    """A file as Hugging Face `datasets` writes it (struct), or with a plain column of bytes."""
    content = [png(a) for a in arrays]
    column = (
        pa.array([{"bytes": b, "path": None} for b in content])
        if struct
        else pa.array(content, pa.binary())
    )
    table = pa.table({image: column, label: pa.array(labels, pa.int64())})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_parquet_of_hugging_face_with_names_shards_and_test_split(tmp_path):
    arrays, labels = random_pixels(0, 9, 5, 4, 3), [0, 1, 2] * 3
    write_parquet(
        tmp_path / "data" / "train-00000-of-00002.parquet",
        arrays[:6],
        labels[:6],
        names=("cat", "dog", "eel"),
    )
    write_parquet(
        tmp_path / "data" / "train-00001-of-00002.parquet",
        arrays[6:],
        labels[6:],
        names=("cat", "dog", "eel"),
    )
    held = random_pixels(1, 4, 5, 4, 3)
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        held,
        [2, 0, 1, 1],
        names=("cat", "dog", "eel"),
    )
    data = load("parquet", tmp_path)
    assert data.class_names == ("cat", "dog", "eel")
    assert data.train.labels.tolist() == labels and data.test.labels.tolist() == [2, 0, 1, 1]
    assert np.array_equal(data.train.pixels.permute(0, 2, 3, 1).numpy(), arrays)
    assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), held)


def test_parquet_with_a_plain_column_and_no_test_split(tmp_path):
    arrays = random_pixels(0, 10, 4, 4)
    write_parquet(tmp_path / "some.parquet", arrays, [0, 1] * 5, struct=False)
    data = load("parquet", tmp_path)
    assert data.class_names == ("0", "1")
    assert data.image_shape == (1, 4, 4)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert sorted(rows(data.train, data.test)) == sorted(a.tobytes() for a in arrays)


def test_parquet_takes_the_fine_label_of_cifar100(tmp_path):
    """Columns img, fine_label and coarse_label, as CIFAR-100 has them."""
    arrays = random_pixels(0, 6, 4, 4, 3)
    table = pa.table(
        {
            "coarse_label": [0] * 6,
            "img": pa.array([{"bytes": png(a), "path": "x"} for a in arrays]),
            "fine_label": [0, 1, 2] * 2,
        }
    )
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table, tmp_path / "test.parquet")
    assert load("parquet", tmp_path).train.labels.tolist() == [0, 1, 2] * 2


# Named datasets


def write_idx(path, array):
    """A gzip IDX file of bytes."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()))


def make_idx(root, each=3):
    """The four files of MNIST with `each` training images and one test image a class."""
    images, labels = random_pixels(0, 10 * each, 28, 28), np.arange(10 * each, dtype=np.uint8) % 10
    write_idx(root / "train-images-idx3-ubyte.gz", images)
    write_idx(root / "train-labels-idx1-ubyte.gz", labels)
    write_idx(root / "t10k-images-idx3-ubyte.gz", images[:10] ^ 255)
    write_idx(root / "t10k-labels-idx1-ubyte.gz", labels[:10])
    return images, labels


def test_mnist_from_gzip_idx_files(tmp_path):
    images, labels = make_idx(tmp_path)
    data = load("mnist", tmp_path)
    assert data.class_names == tuple("0123456789")
    assert np.array_equal(data.train.pixels[:, 0].numpy(), images) and np.array_equal(
        data.train.labels.numpy(), labels
    )
    assert np.array_equal(data.test.pixels[:, 0].numpy(), images[:10] ^ 255)
    assert load("mnist", tmp_path, size=(14, 16)).train.image_shape == (1, 14, 16)


def test_published_normalisation_constants(tmp_path):
    """Fashion-MNIST and both CIFARs are normalised by the constants their papers use, not by a fit."""
    make_idx(tmp_path)
    fashion = load("fashion_mnist", tmp_path)
    assert fashion.train.preprocess.mean.tolist() == pytest.approx([0.2861])
    assert fashion.train.preprocess.std.tolist() == pytest.approx([0.3530])
    assert fashion.class_names[9] == "Ankle boot"
    folder = tmp_path / "cifar"
    for split in ("train", "test"):
        write_parquet(
            folder / f"{split}.parquet",
            random_pixels(0, 4, 32, 32, 3),
            [0, 1, 0, 1],
            names=("airplane", "automobile"),
        )
    for name in ("cifar10", "cifar100"):
        preprocess = load(name, folder).train.preprocess
        assert preprocess.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
        assert preprocess.std.tolist() == pytest.approx([0.2023, 0.1994, 0.2010])


def test_digits():
    data = load("digits", validation=0.1)
    assert data.image_shape == (1, 8, 8) and data.class_names == tuple("0123456789")
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    # the whole range of a byte is used
    assert data.train.pixels.max() == 255 and data.train.pixels.min() == 0


# Index arithmetic


@pytest.mark.parametrize("num", [4, 7, 20, 100, 299, 300])
def test_stratified_is_exact_complete_and_proportional(num):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [150, 90, 50, 10]))
    index = stratified(labels, num, seed=3)
    assert (
        len(index) == num and len(np.unique(index)) == num and np.array_equal(index, np.sort(index))
    )
    taken = np.bincount(labels[index], minlength=4)
    assert taken.min() >= 1
    if num >= 30:  # no class is below one by its share alone
        assert np.abs(taken - num * np.array([150, 90, 50, 10]) / 300).max() < 1


def test_stratified_gives_the_largest_classes_what_does_not_suffice_for_all():
    labels = np.repeat([0, 1, 2], [50, 30, 2])
    assert labels[stratified(labels, 2, seed=0)].tolist() == [0, 1]


def test_stratified_depends_on_the_seed_only():
    labels = np.repeat([0, 1, 2], 30)
    first = stratified(labels, 20, seed=1)
    np.random.seed(5)  # noqa: NPY002 - the global state must not matter
    torch.manual_seed(5)
    random.seed(5)
    assert np.array_equal(first, stratified(labels, 20, seed=1))
    assert not np.array_equal(first, stratified(labels, 20, seed=2))


def test_hold_out_takes_the_fraction_of_each_class_but_never_the_last_image():
    labels = np.repeat([0, 1, 2, 3], [20, 10, 2, 1])
    kept, out = hold_out(labels, 0.3, seed=0)
    assert np.array_equal(np.sort(np.concatenate((kept, out))), np.arange(33))
    assert np.bincount(labels[out], minlength=4).tolist() == [6, 3, 1, 0]
    kept, out = hold_out(labels, 0.9, seed=0)
    assert np.bincount(labels[kept], minlength=4).tolist() == [2, 1, 1, 1]


def test_splits_are_disjoint_and_stratified_and_have_the_right_sizes():
    """Digits, which have no official test split: 20 % test, then 10 % of the rest for validation."""
    data = load("digits", validation=0.1)
    parts = [set(rows(s)) for s in (data.train, data.validation, data.test)]
    assert sum(len(p) for p in parts) == 1797  # all digits differ
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    train, validation, test = (
        np.bincount(s.labels.numpy(), minlength=10)
        for s in (data.train, data.validation, data.test)
    )
    total = train + validation + test
    assert np.abs(test - 0.2 * total).max() <= 0.5
    assert np.abs(validation - 0.1 * (train + validation)).max() <= 0.5


def test_splits_follow_split_seed_alone():
    config = DataConfig(name="digits")
    first = load_data(config, CPU, test=True)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again = load_data(config, CPU, test=True)
    other = load_data(replace(config, split_seed=1), CPU, test=True)
    for name in ("train", "validation", "test"):
        assert (
            getattr(first, name).digest
            == getattr(again, name).digest
            != getattr(other, name).digest
        )


@pytest.mark.parametrize(
    ("official", "settings", "drawn"),
    [
        (False, {"validation": 0.0}, "test"),
        (True, {"validation": 0.0, "limit": 40}, "train"),
        (True, {"validation": 0.3}, "validation"),
    ],
)
def test_each_draw_of_a_split_follows_split_seed(official, settings, drawn):
    """One at a time: the test split where there is no official one, the limit, and the validation
    split.
    """
    numbered = part_of_array(
        np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), np.arange(100) % 4
    )
    source = Source(numbered, numbered if official else None, tuple("abcd"))
    splits = [
        getattr(
            data_from(source, DataConfig(name="own", split_seed=s, **settings), CPU, test=True),
            drawn,
        )
        for s in (0, 0, 1)
    ]
    first, again, other = (set(split.pixels.flatten().tolist()) for split in splits)
    assert first == again != other and len(first) == len(other)


def test_a_limit_and_a_validation_fraction_leave_the_test_split_as_it_is():
    """The test split is cut first, so that no setting moves images between test and training."""
    whole = load("digits")
    limited = load("digits", limit=200, validation=0.25)
    assert limited.test.digest == whole.test.digest
    assert len(limited.train) + len(limited.validation) == 200
    assert np.abs(np.bincount(limited.validation.labels.numpy(), minlength=10) - 5).max() <= 0.5
    assert set(rows(limited.train, limited.validation)) <= set(rows(whole.train))


def test_a_class_of_one_image_stays_in_training(tmp_path):
    make_folder(tmp_path, classes=("a", "b"), each=10)
    make_folder(tmp_path, classes=("c",), each=1, seed=5)
    data = load(root=tmp_path, validation=0.5)
    assert (data.train.labels == 2).sum() == 1
    assert 2 not in data.validation.labels and 2 not in data.test.labels


def test_too_few_images_for_a_test_split_are_refused_in_words(tmp_path):
    """Of two images one is a test image; of one there is nothing to test on."""
    make_folder(tmp_path / "two", each=2)
    assert load(root=tmp_path / "two").counts == {"train": 2, "validation": 0, "test": 2}
    make_folder(tmp_path / "one", each=1)
    assert len(load(root=tmp_path / "one", test=False).train) == 2
    with pytest.raises(UserError, match="test"):
        load(root=tmp_path / "one")


# Preprocessing


def test_mean_std_is_fitted_on_the_training_split_alone():
    data = load("digits", validation=0.2)
    pixels = data.train.pixels.double() / 255
    assert data.train.preprocess.mean.item() == pytest.approx(pixels.mean().item(), abs=1e-6)
    assert data.train.preprocess.std.item() == pytest.approx(pixels.std().item(), abs=1e-6)
    images = data.train.images(torch.arange(len(data.train)))
    assert images.mean().abs() < 1e-4 and abs(images.std() - 1) < 1e-4
    assert data.validation.preprocess is data.train.preprocess is data.test.preprocess


def test_mean_std_are_by_channel():
    pixels = torch.from_numpy(
        random_pixels(0, 50, 3, 4, 4) // np.array([1, 2, 4], np.uint8)[:, None, None]
    )
    images = fit_preprocess(pixels, zca=False).forward(pixels.float() / 255)
    assert (
        images.mean((0, 2, 3)).abs().max() < 1e-5 and (images.std((0, 2, 3)) - 1).abs().max() < 1e-5
    )


@pytest.mark.parametrize("zca", [False, True])
def test_backward_is_the_inverse_of_forward_also_after_storage(zca):
    pixels = torch.from_numpy(random_pixels(1, 80, 3, 4, 5))
    fitted = fit_preprocess(pixels, zca=zca)
    values = pixels.float() / 255
    images = fitted.forward(values)
    assert (images - values).abs().max() > 0.1
    assert torch.allclose(fitted.backward(images), values, atol=1e-5)
    noise = torch.randn(6, 3, 4, 5, generator=generator(0))
    assert torch.allclose(fitted.forward(fitted.backward(noise)), noise, atol=1e-4)
    again = Preprocess.from_tensors(fitted.tensors() | {"images": noise})
    assert torch.equal(again.forward(values), images) and torch.equal(
        again.backward(images), fitted.backward(images)
    )


def correlated(num):
    """Grey 3x3 images in [0, 1] whose pixels correlate."""
    rng = generator(4)
    return torch.sigmoid(
        torch.randn(num, 9, generator=rng) @ torch.randn(9, 9, generator=rng)
    ).view(num, 1, 3, 3)


def test_zca_whitens_the_training_covariance_apart_from_eps():
    """Eigenvalues s of the covariance become s / (s + eps), on the same axes; with a small eps that
    is the identity.
    """
    pixels = correlated(600)
    for eps in (0.1, 1e-5):
        white = fit_zca(pixels, eps).forward(pixels).flatten(1).double()
        values, axes = torch.linalg.eigh(pixels.flatten(1).double().T.cov())
        expected = axes @ torch.diag(values / (values + eps)) @ axes.T
        assert (white.T.cov() - expected).abs().max() < 1e-3
        assert white.mean(0).abs().max() < 1e-3
    assert (white.T.cov() - torch.eye(9)).abs().max() < 0.01


def test_zca_turns_nothing_around():
    """ZCA, unlike other whitenings, has a symmetric matrix, so that images stay images; the default
    eps is 0.1.
    """
    fitted = fit_zca(correlated(200))
    assert torch.allclose(fitted.matrix, fitted.matrix.T, atol=1e-5)
    assert torch.linalg.eigvalsh(fitted.matrix).max() <= 0.1**-0.5 + 1e-4


def test_zca_of_a_dataset_is_fitted_on_its_training_split():
    data = load("digits", validation=0.2, zca=True)
    expected = fit_zca(data.train.pixels.float() / 255)
    assert torch.allclose(data.test.preprocess.matrix, expected.matrix, atol=1e-5)
    assert torch.allclose(data.test.preprocess.mean, expected.mean, atol=1e-6)


def test_a_stored_preprocess_is_used_instead_of_a_fit():
    asked = []
    kept = Preprocess(mean=torch.tensor([0.25]), std=torch.tensor([2.0]))

    def stored(digest):
        asked.append(digest)
        return kept

    data = load_data(DataConfig(name="digits"), CPU, test=True, stored=stored)
    assert asked == [data.train.digest]
    for part in (data.train, data.validation, data.test):
        assert torch.allclose(
            part.images(torch.tensor([3])), (part.pixels[3:4].float() / 255 - 0.25) / 2
        )


# Sets on the device


def small_set():
    """12 images of 3 classes; every pixel of image i is i."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 0, 0])
    return RealSet(
        torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 2, 2).clone(),
        labels,
        3,
        PLAIN,
    )


def test_draw_is_without_repetition_and_of_the_right_class():
    real = small_set()
    seen = set()
    for seed in range(30):
        images = real.draw(0, 4, generator(seed))
        index = (images[:, 0, 0, 0] * 255).round().long()
        assert len(index.unique()) == 4 and (real.labels[index] == 0).all()
        assert torch.equal(images, real.images(index))
        seen |= set(index.tolist())
    assert seen == {0, 3, 6, 7, 10, 11}  # every image of the class comes at some time
    assert sorted(real.draw_index(1, 3, generator(0)).tolist()) == [1, 4, 8]
    assert torch.equal(real.draw_index(0, 4, generator(7)), real.draw_index(0, 4, generator(7)))


def test_draw_of_too_many_names_the_class_and_its_size():
    with pytest.raises(UserError, match=r"4 images of class 1 .* 3 training images"):
        small_set().draw_index(1, 4, generator(0))
    assert small_set().draw(1, 4, generator(0)).shape == (3, 1, 2, 2)


def test_batches_of_a_set_and_of_a_subset():
    real = small_set()
    batch = real.batch(torch.tensor([5, 0]))
    assert batch.targets.tolist() == [2, 0]
    assert torch.allclose(batch.images[:, 0, 0, 0] * 255, torch.tensor([5.0, 0.0]))
    subset = Subset(real, torch.tensor([9, 4, 2]))
    assert len(subset) == 3
    assert subset.batch(torch.tensor([2, 0])).targets.tolist() == [2, 2]
    assert (subset.batch(torch.tensor([1])).images[0, 0, 0, 0] * 255).round() == 4


def test_digest_changes_with_one_pixel_one_label_and_the_order():
    real = small_set()
    pixels, labels = real.pixels.clone(), real.labels.clone()
    assert RealSet(pixels, labels, 3, PLAIN).digest == real.digest
    pixels[7, 0, 1, 1] += 1
    labels[3] = 2
    swapped = torch.tensor([1, 0, *range(2, 12)])
    digests = {
        real.digest,
        RealSet(pixels, real.labels, 3, PLAIN).digest,
        RealSet(real.pixels, labels, 3, PLAIN).digest,
    }
    digests.add(RealSet(real.pixels[swapped], real.labels[swapped], 3, PLAIN).digest)
    assert len(digests) == 4
