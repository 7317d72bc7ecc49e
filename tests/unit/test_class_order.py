"""The order in which files count the classes: what a user names, and when networks and images say
that another one fits far better.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CPU, DIGITS, MODEL, new_model, tiny_data

from ddengine.artefact import class_order
from ddengine.artefact.class_order import (
    fit_of_means,
    fit_of_networks,
    fit_of_predictions,
    fit_of_set,
    in_order,
    likely_orders,
    resolve,
    with_numbers,
)
from ddengine.data import load_data
from ddengine.data.subset import class_subset
from ddengine.sets.codec import Identity
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

ANIMALS = ("cat", "dog", "owl", "sea lion")
AS_WORDS = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2 ...
SHIFT = np.array([0, 1, 5, 6, 7, 8, 9, 2, 3, 4])  # the number that a file gives to each class
BACK = (0, 1, 7, 8, 9, 2, 3, 4, 5, 6)  # the class that the file counts as 0, 1, 2 ...


# What a user names


def test_the_numbering_in_words():
    """All of up to twenty classes, then the first and the last."""
    assert with_numbers(ANIMALS) == "0 cat, 1 dog, 2 owl, 3 sea lion"
    assert with_numbers([f"c{i}" for i in range(20)]).count(",") == 19
    many = with_numbers([f"c{i}" for i in range(1000)])
    assert (
        many.startswith("0 c0, 1 c1,")
        and many.endswith("998 c998, 999 c999")
        and "..." in many
        and len(many) < 200
    )


def test_orders_by_name_and_by_number():
    """Names come first, also where they are numerals in another order; numbers are those of the
    dataset.
    """
    assert resolve(["owl", "cat", "sea lion", "dog"], ANIMALS, range(4)) == (2, 0, 3, 1)
    assert resolve(["2", "0", "3", "1"], ANIMALS, range(4)) == (2, 0, 3, 1)
    assert resolve(["2", "cat", "3", "dog"], ANIMALS, range(4)) == (2, 0, 3, 1)
    assert resolve(["70", "cat", "10", "owl"], ANIMALS, (50, 70, 90, 10)) == (1, 0, 3, 2)
    assert resolve([str(i) for i in range(12)], AS_WORDS, range(12)) == (
        0,
        1,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        2,
        3,
    )
    # a name that two classes share says nothing
    assert resolve(["1", "0", "2"], ("crane", "crane", "owl"), range(3)) == (1, 0, 2)
    for names, numbers in (
        (ANIMALS, (50, 70, 90, 10)),
        (AS_WORDS, range(12)),
        (("crane", "crane", "-owl"), range(3)),
    ):
        order = tuple(np.random.default_rng(0).permutation(len(names)).tolist())
        assert resolve(in_order(names, numbers, order), names, numbers) == order


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["cat", "dog", "owl"], "leaves out 'sea lion'"),
        (["cat", "dog", "owl", "cat"], "leaves out 'sea lion' and names 'cat' more than once"),
        (["cat", "dog", "owl", "sealion"], "knows no class 'sealion' and leaves out 'sea lion'"),
        (["cat", "dog", "owl", "4"], "knows no class '4'"),
        (["0", "1", "1", "2"], "leaves out 'sea lion' and names 'dog' more than once"),
        (["1", "2", "3", "4"], "knows no class '4' and leaves out 'cat'"),
    ],
)
def test_orders_that_are_none(words, complaint):
    """What is unknown, missing and named twice is said, and what the classes are."""
    with pytest.raises(UserError) as refused:
        resolve(words, ANIMALS, range(4))
    assert complaint in str(refused.value) and "0 cat, 1 dog, 2 owl, 3 sea lion" in str(
        refused.value
    )


def test_an_order_is_what_data_classes_makes_of_it():
    """Loaded data in another order are those that data.classes reads, to the digest, so that later
    commands agree.
    """
    subset, read = class_subset(tiny_data(), BACK), load_data(replace(DIGITS, classes=BACK), CPU)
    assert (
        subset.class_names == read.class_names
        and subset.train.digest == read.train.digest != tiny_data().train.digest
    )
    assert torch.equal(subset.train.labels, read.train.labels) and torch.equal(
        subset.train.preprocess.mean, read.train.preprocess.mean
    )


def test_likely_orders():
    """As words, without regard to capitals, and by the numbers in the names; the order in use is
    not among them.
    """
    # 0, 1, 2 ...
    assert [order.tolist() for order in likely_orders(AS_WORDS)] == [
        [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]
    ]
    numbers = [str(i) for i in range(12)]
    assert [[numbers[k] for k in order] for order in likely_orders(numbers)] == [list(AS_WORDS)]
    names = ["img10", "Img2", "b", "img3"]
    assert [[names[k] for k in order] for order in likely_orders(names)] == [
        ["Img2", "b", "img10", "img3"], ["b", "img10", "Img2", "img3"], ["Img2", "b", "img3", "img10"]
    ]  # fmt: skip
    assert likely_orders(ANIMALS) == []


# Classified one by one


def predictions(num, num_classes, accuracy, rng):
    """(predicted, true) classes of images, class by class, that a network gets right so often, with
    other classes at random.
    """
    true = np.repeat(np.arange(num_classes), num // num_classes)
    return np.where(
        rng.random(len(true)) < accuracy, true, rng.integers(0, num_classes, len(true))
    ), true


def test_another_order_is_found():
    """A shift of most classes, two of a hundred, two of two; the figures are those of both orders."""
    rng = np.random.default_rng(0)
    predicted, true = predictions(500, 10, 0.9, rng)
    fit = fit_of_predictions(SHIFT[predicted], true, 10)
    assert fit.order == BACK
    assert (
        fit.reordered == (predicted == true).mean()
        and fit.as_numbered == (SHIFT[predicted] == true).mean() < 0.3
    )
    predicted, true = predictions(4000, 100, 0.8, rng)
    swapped = np.arange(100)
    swapped[[17, 63]] = 63, 17
    assert fit_of_predictions(swapped[predicted], true, 100).order == tuple(swapped.tolist())
    predicted, true = predictions(100, 2, 0.9, rng)
    assert fit_of_predictions(1 - predicted, true, 2).order == (1, 0)


@pytest.mark.slow
def test_no_alarm_without_reason():
    """Right orders, guesses, networks that see one class or mix up similar ones, and few images:
    nothing is said but the accuracy.
    """
    rng = np.random.default_rng(1)
    for num_classes in (2, 3, 10, 100):
        for accuracy in (0.0, 0.1, 0.3, 0.6, 1.0):
            for _ in range(10):
                predicted, true = predictions(20 * num_classes, num_classes, accuracy, rng)
                assert fit_of_predictions(predicted, true, num_classes).order is None
    true = np.repeat(np.arange(10), 20)
    assert fit_of_predictions(np.full(200, 4), true, 10).order is None
    assert fit_of_predictions(true // 2 * 2, true, 10).order is None  # 1 looks like 0, 3 like 2 ...
    # every 9 looks like a 4
    assert fit_of_predictions(np.where(true == 9, 4, true), true, 10).order is None
    nines, fours = (true == 9) & (rng.random(200) < 0.7), (true == 4) & (rng.random(200) < 0.4)
    assert fit_of_predictions(np.where(nines, 4, np.where(fours, 9, true)), true, 10).order is None
    few = np.arange(4)
    assert fit_of_predictions((few + 1) % 4, few, 4).order is None
    # one image a class, which looks like any; ten different ones are rare, and an alarm
    looks = [rng.integers(10, size=10) for _ in range(200)]
    assert (
        sum(fit_of_predictions(np.arange(10), found, 10).order is not None for found in looks) <= 2
    )


def test_one_image_a_class_shows_another_order_of_many_classes():
    """That so many images look like as many different classes is no chance; folders 0 to 11 sorted
    as words are 16.7 % right.
    """
    names = list(map(str, range(12)))
    counted_as = np.array([sorted(names).index(name) for name in names])
    fit = fit_of_predictions(counted_as, np.arange(12), 12, likely_orders(names))
    assert fit.as_numbered == pytest.approx(2 / 12) and fit.reordered == 1.0
    assert [names[k] for k in fit.order] == sorted(names)
    few = np.repeat(np.arange(4), 2)
    assert fit_of_predictions((few + 1) % 4, few, 4).order == (3, 0, 1, 2)


def test_untrained_networks_raise_no_alarm():
    """Their outputs tell classes apart in some order, as random features do."""
    data = tiny_data()
    for seed in range(12):
        fit, num = fit_of_networks(
            [new_model(data, model)(generator(seed)).eval() for model in (MODEL, "mlp")],
            data.train,
            data.class_names,
        )
        assert (
            fit.order is None
            and 0 <= fit.as_numbered < 0.5
            and num == len(class_order.sample(data.train, 1000))
        )


def test_the_sample_is_bounded_and_holds_every_class():
    """Evenly from each class."""
    data = tiny_data()
    index = class_order.sample(data.train, 50)
    assert (
        len(index) == 50
        and torch.bincount(data.train.labels[index]).tolist() == [5] * 10
        and len(set(index.tolist())) == 50
    )
    assert len(class_order.sample(data.train, 10**6)) in (len(data.train), len(data.train) - 1)


# Class means


def class_means(images, labels, num_classes=10):
    return np.stack([images[labels == c].mean(0) for c in range(num_classes)])


def test_class_means_find_the_order():
    """At any contrast, with noise as strong as distilled images have; a set in the right order, or
    of noise, raises no alarm.
    """
    data = tiny_data()
    pixels, labels = (
        data.train.images(torch.arange(len(data.train))).flatten(1).double().numpy(),
        data.train.labels.numpy(),
    )
    real = class_means(pixels, labels)
    rng = np.random.default_rng(0)
    for contrast, noise in ((1.0, 0.0), (20.0, 5.0), (0.1, 0.02)):
        own = contrast * (real - real.mean(0)) + noise * rng.normal(size=real.shape)
        right, wrong = fit_of_means(own, real), fit_of_means(own[np.argsort(SHIFT)], real)
        assert right.order is None and right.as_numbered > 0.8
        assert (
            wrong.order == BACK
            and wrong.reordered == pytest.approx(right.as_numbered)
            and wrong.as_numbered < 0.3
        )
    assert fit_of_means(real, real).as_numbered > 0.99
    for _ in range(20):
        assert fit_of_means(rng.normal(size=real.shape), real).order is None
        # nothing but brightness
        assert fit_of_means(rng.normal(size=(10, 1)) * np.ones(64), real).order is None
    assert fit_of_means(np.zeros_like(real), real) == class_order.Fit(0.0)
    half = real.copy()  # of a weak set half of the classes are noise
    half[5:] = real.mean(0) + rng.normal(size=(5, 64))
    assert fit_of_means(half, real).order is None


def test_a_likely_order_is_named_where_it_fits_as_well():
    """Of a few images similar classes change places for no reason; an order that programs count in
    is the better guess, unless it fits worse.
    """
    rng = np.random.default_rng(0)
    real = rng.normal(size=(12, 64))
    real[9] = real[5] + 0.3 * rng.normal(size=64)
    words = np.array([AS_WORDS.index(str(i)) for i in range(12)])  # AS_WORDS[words] is 0, 1, 2 ...
    muddled = words.copy()
    muddled[[5, 9]] = words[[9, 5]]
    means = real[np.argsort(words)]  # of the dataset, which has its folders as words
    assert fit_of_means(means[muddled], means).order == tuple(muddled.tolist())
    assert fit_of_means(means[muddled], means, likely_orders(AS_WORDS)).order == tuple(
        words.tolist()
    )
    other = rng.permutation(12)
    assert fit_of_means(means[other], means, likely_orders(AS_WORDS)).order == tuple(other.tolist())
    counted = np.repeat(np.arange(12), 20)
    found = np.where(rng.random(240) < 0.05, 0, muddled[counted])
    found[(counted == 5) & (np.arange(240) % 3 > 0)] = words[5]
    found[(counted == 9) & (np.arange(240) % 3 > 0)] = words[9]
    assert fit_of_predictions(counted, found, 12, likely_orders(AS_WORDS)).order == tuple(
        words.tolist()
    )


def random_set(data, ipc, renumbered=None):
    """Random real images as a set, with other numbers where they are given."""
    index = random_index(data.train, ipc, data.class_names, generator(0, "set"))
    classes = data.train.labels[index]
    classes = classes if renumbered is None else torch.from_numpy(renumbered)[classes]
    return SyntheticSet(
        {"images": data.train.images(index)},
        classes,
        data.class_names,
        Identity(),
        data.train.preprocess,
    )


def test_sets_of_real_images():
    """By class means, with one image of a class too; of few classes and of two that are swapped
    image by image.
    """
    data = tiny_data()
    for ipc in (1, 10):
        assert fit_of_set(random_set(data, ipc), data.train)[0].order is None
    assert fit_of_set(random_set(data, 10, SHIFT), data.train)[0].order == BACK
    swap = np.array([0, 1, 2, 3, 7, 5, 6, 4, 8, 9])
    fit, compared = fit_of_set(random_set(data, 12, swap), data.train)
    assert fit.order == tuple(swap.tolist()) and "nearest to the mean" in compared
    few = class_subset(data, (0, 4, 6))
    cycle = np.array([1, 2, 0])
    assert fit_of_set(random_set(few, 12), few.train)[0].order is None
    assert fit_of_set(random_set(few, 12, cycle), few.train)[0].order == (2, 0, 1)
    # three images prove nothing
    assert fit_of_set(random_set(few, 1, cycle), few.train)[0].order is None
