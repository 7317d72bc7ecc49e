"""Selections of real images against brute force on tiny sets."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ddengine.data import Preprocess, RealSet
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import BASELINES, InitConfig
from ddengine.sets import coreset, start
from ddengine.sets.coreset import (
    Forgetting,
    el2n_scores,
    facility_index,
    forgetting_scores,
    k_centre_index,
    k_means_index,
    ranked_index,
    watched,
)
from ddengine.sets.pruning import cad_scores, facility_location, similarities
from ddengine.sets.start import INITIALISERS, SELECTIONS, selected_index
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

SHAPE, NAMES = (1, 8, 8), ("ant", "bee", "cat")
PLAIN = Preprocess(mean=torch.tensor([0.0]), std=torch.tensor([1.0]))
QUICK = dict(steps=6, lr=0.05, networks=2)
CORESETS = ("herding", "k_centre", "k_means", "forgetting", "el2n", "cad", "facility")


def real_set(num=30, seed=0):
    """Noise whose brightness hints at its class, classes in turn."""
    labels = torch.arange(num) % 3
    noise = torch.randint(0, 200, (num, *SHAPE), generator=generator(seed, "pixels"))
    return RealSet((noise + 20 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, 3, PLAIN)


def points(*classes):
    """Images (1, 1, 2) that are points with integer coordinates below 256, and an embedding that
    gives them back.
    """
    pixels = torch.tensor([p for c in classes for p in c], dtype=torch.uint8).view(-1, 1, 1, 2)
    labels = torch.tensor([i for i, c in enumerate(classes) for _ in c])
    return RealSet(pixels, labels, len(classes), PLAIN), lambda images: 255 * images.flatten(1)


def embed(images):
    """An embedding that is not the identity."""
    flat = images.flatten(1)
    return torch.stack(
        (flat[:, :30].sum(1), flat[:, 30:].sum(1) * 0.5, 9 * flat[:, 3] * flat[:, 40]), 1
    )


def new_model(rng):
    """A small network."""
    return build_model("convnet-d1-w4-in", SHAPE, 3, rng)


def config(kind, **options):
    """A kind at its smallest."""
    return InitConfig(**({"kind": kind, "steps": 6, "lr": 0.05, "networks": 2} | options))


def class_by_class(real, index, ipc):
    """Whether `ipc` different images of every class are in their places."""
    return (
        index.dtype == torch.int64
        and len(index.unique()) == 3 * ipc
        and real.labels[index].tolist() == [c for c in range(3) for _ in range(ipc)]
    )


# k-centre


@pytest.mark.parametrize("batch", [1000, 4])
def test_k_centre_takes_the_farthest_point(batch):
    real = real_set()
    features = embed(real.images(torch.arange(30))).double().numpy()
    wanted = []
    for c in range(3):
        members = np.flatnonzero(real.labels.numpy() == c).tolist()
        mean = features[members].mean(0)
        chosen = [min(members, key=lambda i: np.linalg.norm(features[i] - mean))]
        while len(chosen) < 5:
            rest = [i for i in members if i not in chosen]
            chosen.append(
                max(
                    rest,
                    key=lambda i: min(np.linalg.norm(features[i] - features[j]) for j in chosen),
                )
            )
        wanted += chosen
    assert k_centre_index(real, 5, NAMES, embed, batch=batch).tolist() == wanted


def test_k_centre_covers_within_twice_the_optimum():
    """The greedy radius is at most twice the best of all choices, and the chosen ones are at least
    that radius apart.
    """
    real = real_set(27)
    index = k_centre_index(real, 3, NAMES, embed)
    features = embed(real.images(torch.arange(27))).double()
    for c, members in enumerate(real.members):
        chosen = index[3 * c : 3 * c + 3]
        distance = torch.cdist(features[members], features[members])
        radius = torch.cdist(features[members], features[chosen]).min(1).values.max()
        best = min(
            distance[:, list(some)].min(1).values.max()
            for some in itertools.combinations(range(9), 3)
        )
        apart = torch.cdist(features[chosen], features[chosen]) + torch.eye(3) * 1e9
        assert best <= radius <= 2 * best + 1e-6 and apart.min() >= radius - 1e-6


def test_k_centre_of_points_on_a_line():
    real, place = points([(10, 0), (11, 0), (12, 0), (200, 0), (90, 0)])
    assert k_centre_index(real, 4, ("a",), place).tolist() == [4, 3, 0, 2]  # the mean is 64.6
    same, place = points([(7, 7)] * 4)
    # where all are equal, each once
    assert sorted(k_centre_index(same, 4, ("a",), place).tolist()) == [0, 1, 2, 3]


# k-means


def test_k_means_takes_the_middle_of_each_blob():
    """Three blobs of 7, 5 and 3 images; the image nearest to each centre, large clusters first."""
    blobs = (
        [(10 + i, 10) for i in range(7)]
        + [(120 + i, 200) for i in range(5)]
        + [(240, 20 + i) for i in range(3)]
    )
    real, place = points(blobs, blobs[::-1])
    index = k_means_index(real, 3, ("a", "b"), place, generator(0))
    assert index.tolist() == [3, 9, 13, 15 + 11, 15 + 5, 15 + 1]


def test_k_means_of_one_image_is_the_one_nearest_the_mean():
    real = real_set()
    features = embed(real.images(torch.arange(30))).double()
    wanted = [
        int(m[(features[m] - features[m].mean(0)).norm(dim=1).argmin()]) for m in real.members
    ]
    assert k_means_index(real, 1, NAMES, embed, generator(0)).tolist() == wanted
    assert (
        coreset.herding_index(real, 1, NAMES, embed).tolist() == wanted
        and k_centre_index(real, 1, NAMES, embed).tolist() == wanted
    )


@pytest.mark.parametrize("ipc", [2, 7, 10])
def test_k_means_images_are_different(ipc):
    """Each is the nearest to a centre that no other one has taken."""
    real = real_set()
    assert class_by_class(real, k_means_index(real, ipc, NAMES, embed, generator(0)), ipc)


# Scores


def test_forgetting_counts_of_a_hand_made_sequence():
    """Right then wrong counts, wrong then wrong does not; what is never right counts as the most
    showings.
    """
    showings = {0: "1111", 1: "1010", 2: "0011", 3: "0101", 4: "0000", 5: "110", 6: "1001"}
    counter = Forgetting(7)
    for turn in range(4):
        shown = [i for i, s in showings.items() if turn < len(s)]
        for part in (shown[turn:], shown[:turn]):
            counter.see(
                torch.tensor(part, dtype=torch.long),
                torch.tensor([showings[i][turn] == "1" for i in part], dtype=torch.bool),
            )
    assert counter.scores().tolist() == [0, 2, 0, 1, 4, 1, 1]


def test_forgetting_scores_count_what_the_training_saw(monkeypatch):
    """Every answer that the networks gave while they were trained, counted in plain Python."""
    monkeypatch.setattr(coreset, "LOOKING", replace(coreset.LOOKING, batch=8))
    real, said = real_set(), []
    train = training.train_networks

    def spy(*args, observe, **options):
        answers = []
        said.append(answers)

        def both(index, logits):
            answers.extend(zip(index.tolist(), logits.argmax(1).tolist(), strict=True))
            observe(index, logits)

        return train(*args, observe=both, **options)

    monkeypatch.setattr(training, "train_networks", spy)
    scores = forgetting_scores(real, new_model, generator(0), steps=22, lr=0.3, networks=2)
    wanted = torch.zeros(30, dtype=torch.float64)
    for answers in said:
        assert len(answers) == 5 * 30 + 16  # 4 batches an epoch, the last of 6
        seen = {i: [answer == i % 3 for j, answer in answers if j == i] for i in range(30)}
        most = max(map(len, seen.values()))
        wanted += (
            torch.tensor(
                [
                    sum(a and not b for a, b in itertools.pairwise(s)) if any(s) else most
                    for s in seen.values()
                ]
            )
            / 2
        )
    assert len(said) == 2 and torch.equal(scores, wanted) and len(scores.unique()) > 2


def test_forgetting_needs_two_showings():
    with pytest.raises(
        UserError,
        match=r"1 updates with 256 of 30 images are fewer than two epochs; raise init\.steps .* to 2 at least\.",
    ):
        coreset.choose(
            "forgetting", real_set(), 1, NAMES, generator(0),
            embed=lambda: coreset.pixels, new_model=new_model, steps=1, lr=0.1,
        )  # fmt: skip


class Says(nn.Module):
    """Logits that are written in the image: its first three pixels."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        """(B, C, H, W) -> (B, 3)."""
        return self.factor * images.flatten(1)[:, :3]


@pytest.mark.parametrize("batch", [1000, 7])
def test_el2n_is_the_mean_length_of_the_error(batch):
    real = real_set()
    scores = el2n_scores(real, [Says(1.0), Says(-4.0)], batch=batch)
    for i in range(30):
        lengths = []
        for factor in (1.0, -4.0):
            logits = factor * (real.pixels[i].flatten()[:3].double().numpy() / 255)
            error = np.exp(logits) / np.exp(logits).sum()
            error[i % 3] -= 1
            lengths.append(np.sqrt((error**2).sum()))
        assert float(scores[i]) == pytest.approx(np.mean(lengths), rel=1e-5)


def test_el2n_looks_at_networks_after_as_many_updates():
    """The chosen images are those of the highest error of networks trained apart, with seeds from
    the stream.
    """
    real, rng = real_set(), generator(0)
    seeds = [int(torch.randint(2**31, (1,), generator=rng)) for _ in range(2)]
    networks = [
        training.train_networks(
            new_model, [real], [s], coreset.LOOKING, 0.05, real.device, steps=6
        )[0]
        for s in seeds
    ]
    scores = el2n_scores(real, networks)
    for order, sign in (("hardest", -1), ("easiest", 1)):
        for skip in (0, 2):
            index = coreset.choose(
                "el2n", real, 3, NAMES, generator(0), embed=lambda: coreset.pixels,
                new_model=new_model, steps=60, lr=0.05, networks=2, order=order, skip=skip,
            )  # fmt: skip
            assert index.tolist() == [
                int(m[i]) for m in real.members for i in (sign * scores[m]).argsort()[skip:][:3]
            ]


def test_equal_scores_are_drawn():
    """The one that stands out always, of the others each now and then."""
    real, scores = real_set(), torch.zeros(30, dtype=torch.float64)
    scores[[6, 7, 8]] = 1.0
    chosen = [
        ranked_index(real, 3, NAMES, lambda: scores, "hardest", generator(seed)).tolist()
        for seed in range(30)
    ]
    assert all(
        class_by_class(real, torch.tensor(c), 3) and c[0] == 6 and c[3] == 7 and c[6] == 8
        for c in chosen
    )
    assert {i for c in chosen for i in c} == set(range(30))
    easy = [
        ranked_index(real, 9, NAMES, lambda: scores, "easiest", generator(seed)).tolist()
        for seed in range(5)
    ]
    assert all(not {6, 7, 8} & set(c) for c in easy)


def test_images_are_passed_over_where_they_are_ranked():
    """A share of those that are chosen, cut to whole images, which must be there beside them."""
    config = InitConfig(kind="el2n", skip=0.7, steps=10, networks=1)
    assert (config.num_skipped(4), config.num_skipped(10)) == (2, 7)
    more = replace(config, skip=0.8)
    words = r"init\.skip passes over 5 .* ipc 7 .* has 10 .*; lower init\.skip to 0\.42, or"
    with pytest.raises(UserError, match=words):
        selected_index(real_set(), 7, NAMES, generator(0), more, new_model=new_model)
    less = replace(config, skip=0.42)
    assert len(selected_index(real_set(), 7, NAMES, generator(0), less, new_model=new_model)) == (
        7 * len(NAMES)
    )
    with pytest.raises(UserError, match=r"init\.skip passes over .* init\.kind herding has none"):
        InitConfig(kind="herding", skip=0.5)
    with pytest.raises(UserError, match=r"init\.skip is a share of ipc"):
        InitConfig(kind="el2n", skip=-0.5)


# All kinds


@pytest.mark.parametrize("ipc", [1, 4, 10])
@pytest.mark.parametrize("kind", CORESETS)
def test_every_kind_chooses_class_by_class(kind, ipc):
    """The same again from the same stream, global generators untouched, and the images are those of
    the indices.
    """
    real = real_set()
    torch.manual_seed(3)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    index = selected_index(real, ipc, NAMES, generator(0), config(kind), None, new_model)
    assert class_by_class(real, index, ipc)
    assert torch.equal(
        index, selected_index(real, ipc, NAMES, generator(0), config(kind), None, new_model)
    )
    images = INITIALISERS[kind](real, ipc, NAMES, generator(0), config(kind), None, new_model)
    assert torch.equal(images, real.images(index))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numbers  # noqa: NPY002


@pytest.mark.parametrize("kind", ["herding", "k_centre", "k_means"])
def test_pixels_need_no_network(kind):
    real = real_set()
    index = selected_index(real, 3, NAMES, generator(0), config(kind, embedding="pixels"))
    assert class_by_class(real, index, 3)
    assert not torch.equal(
        index, selected_index(real, 3, NAMES, generator(0), config(kind), None, new_model)
    )


@pytest.mark.parametrize("kind", SELECTIONS)
def test_more_images_than_a_class_has(kind):
    """Refused before a network is built or an expert asked."""
    with pytest.raises(
        UserError, match=r"ipc 11 is more than the 10 training images of class 'cat'"
    ):
        selected_index(real_set(32), 11, NAMES, generator(0), config(kind))


@pytest.mark.parametrize("kind", ["herding", "forgetting", "el2n"])
def test_a_network_that_diverges_says_so(kind):
    with pytest.raises(
        UserError, match=r"not finite after 6 updates at rate 1e\+30; lower init\.lr"
    ):
        steps = {"el2n": 60}.get(kind, 6)  # it looks after a tenth of them
        selected_index(
            real_set(), 1, NAMES, generator(0), config(kind, lr=1e30, steps=steps), None, new_model
        )


def test_noise_chooses_nothing():
    with pytest.raises(
        UserError, match=r"init\.kind noise chooses no real images; set init\.kind to one of real, "
    ):
        selected_index(real_set(), 1, NAMES, generator(0), config("noise"))


def test_every_coreset_is_a_start_and_a_baseline():
    assert {*CORESETS} <= {*SELECTIONS} & {*BASELINES} and {*INITIALISERS} == {
        *SELECTIONS,
        "noise",
        "patches",
        "unlabelled",
    }
    assert [start.cites(config(kind)) for kind in ("herding", "real")] == [
        ("welling2009herding",),
        (),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("networks", 0), ("lr", 0.0), ("lr", float("nan")), ("lr", float("inf"))],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(UserError, match=rf"init\.{field} must be"):
        config("herding", **{field: value})


def test_cad_takes_the_images_whose_error_varies_most():
    """By the scores of `prune`, of as many whole epochs as the updates begin."""
    real = real_set(30)
    index = selected_index(
        real, 3, NAMES, generator(1), config("cad", steps=7, lr=0.05, networks=1), None, new_model
    )
    seen = watched(real, new_model, generator(1), epochs=7, lr=0.05)
    scores = cad_scores(seen.el2n, 5, 2)
    for number, members in enumerate(real.members):
        hardest = set(members[scores[members].argsort(descending=True)[:3]].tolist())
        assert set(index[3 * number : 3 * number + 3].tolist()) == hardest
    with pytest.raises(UserError, match=r"are fewer; raise init\.steps .* to 4 at least"):
        selected_index(real, 3, NAMES, generator(1), config("cad", steps=3), None, new_model)


def test_facility_takes_the_images_that_stand_for_all_others():
    """By the rule of `prune`, of features of the class, all images of equal weight."""
    real = real_set(30)
    index = facility_index(real, 2, NAMES, embed)
    for number, members in enumerate(real.members):
        kernel = similarities(embed(real.images(members)).double())
        rows, _ = facility_location(kernel, 2)
        assert index[2 * number : 2 * number + 2].tolist() == members[rows].tolist()
