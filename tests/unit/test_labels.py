"""Soft labels and starting images that experts decide, with experts whose answers are written down."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import MODEL, tiny_data, tiny_set, tiny_store
from torch import nn
from torch.nn import functional

from ddengine.data import Preprocess, RealSet
from ddengine.learning import augment
from ddengine.learning.teachers import BATCH, predict
from ddengine.recipe import AugmentConfig, InitConfig, TargetConfig
from ddengine.sets import synthetic
from ddengine.sets.codec import Identity
from ddengine.sets.labels import expert_epochs, label
from ddengine.sets.start import INITIALISERS, correct_index, representative_index
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

NAMES = ("ant", "bee", "cat")
PLAIN = Preprocess(mean=torch.zeros(1), std=torch.ones(1))
CORRECT, ALL, FIRST = (
    TargetConfig(kind="logits", experts=which) for which in ("correct", "all", "first")
)


class Says(nn.Module):
    """A network that looks its answer up: the first pixel, times 255, is the number of the image."""

    def __init__(self, table, seen=None):
        super().__init__()
        self.table, self.seen = table, [] if seen is None else seen

    def forward(self, images):
        """(B, C, H, W) -> (B, K)."""
        number = (images[:, 0, 0, 0] * 255).round().long()
        self.seen.append(number.tolist())
        return self.table[number]


class Fake:
    """Experts from a table of answers: {(expert, epoch): logits (N, K)}; notes who was asked."""

    num_params = 0

    def __init__(self, answers):
        self.answers = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in answers.items()}
        self.num_experts = len({expert for expert, _ in answers})
        self.epochs = tuple(sorted({epoch for _, epoch in answers}))
        self.loaded, self.seen = [], []

    def load(self, expert, epoch):
        """The network of that answer."""
        self.loaded.append((expert, epoch))
        return Says(self.answers[expert, epoch], self.seen).eval()


def numbered(classes, names=NAMES):
    """A set whose image i has i / 255 in every pixel."""
    images = torch.arange(len(classes)).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 255
    return SyntheticSet({"images": images.clone()}, torch.tensor(classes), names, Identity(), PLAIN)


# Two images, of bee and of cat. Expert 0 is right about bee, expert 1 about both, expert 2 about
# cat.
SET = numbered([1, 2])
ANSWERS = {
    (0, 5): [[0, 4, 1], [9, 0, 0]],
    (1, 5): [[0, 2, -3], [0, 1, 5]],
    (2, 5): [[7, 1, 1], [2, 2, 3]],
}


def labels(config, answers=ANSWERS, syn=SET):
    """The logits, as lists."""
    return label(syn, Fake(answers), config).tensors["logits"].tolist()


# The mean


def test_mean_of_the_experts_that_are_right_about_the_image():
    """By hand: experts 0 and 1 for the first, 1 and 2 for the second; raw logits, not
    probabilities.
    """
    assert labels(CORRECT) == [[0, 3, -1], [1, 1.5, 4]]


def test_mean_of_all_and_of_the_first():
    """Right or not."""
    assert labels(ALL) == [pytest.approx([7 / 3, 7 / 3, -1 / 3]), pytest.approx([11 / 3, 1, 8 / 3])]
    assert labels(FIRST) == ANSWERS[0, 5]


def test_a_range_of_epochs_is_averaged_answer_by_answer():
    """An expert can be right at one epoch and wrong at another; the range includes both ends."""
    answers = {
        (0, 1): [[0, 50, 0]], (0, 2): [[0, 1, 0]], (0, 3): [[0, 3, 2]], (0, 4): [[0, 99, 0]],
        (1, 1): [[0, 50, 0]], (1, 2): [[8, 1, 0]], (1, 3): [[0, 5, 4]], (1, 4): [[0, 99, 0]],
    }  # fmt: skip
    syn = numbered([1])
    for which, wanted in (("correct", [0, 3, 2]), ("all", [2, 2.5, 1.5]), ("first", [0, 2, 1])):
        config = TargetConfig(kind="logits", experts=which, epochs=(2, 3))
        assert labels(config, answers, syn) == [pytest.approx(wanted)]
    experts = Fake(answers)
    label(syn, experts, TargetConfig(kind="logits", experts="all", epochs=(2, 3)))
    assert sorted(experts.loaded) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert labels(CORRECT, answers, syn) == [[0, 99, 0]]  # without a range: the last that is stored


def test_epochs_that_are_not_stored_are_refused():
    """Naming the flag, the first one missing, and what there is."""
    stored = (0, 1, 2, 3)
    assert expert_epochs(TargetConfig(), stored) == [3]
    assert expert_epochs(TargetConfig(kind="logits", epochs=(0, 0)), stored) == [0]
    assert expert_epochs(TargetConfig(kind="logits", epochs=(1, 3)), stored) == [1, 2, 3]
    with pytest.raises(
        UserError, match=r"targets\.epochs 2 5 .* epoch 4, .* 0 to 3.*buffer\.epochs"
    ):
        expert_epochs(TargetConfig(kind="logits", epochs=(2, 5)), stored)
    with pytest.raises(UserError, match=r"epoch 0, .* 20 to 22"):
        label(
            SET,
            Fake({(0, e): ANSWERS[0, 5] for e in (20, 21, 22)}),
            TargetConfig(kind="logits", epochs=(0, 21)),
        )


def test_an_image_nobody_is_right_about_is_refused_by_class():
    """With how many of the class there are; `all` takes them."""
    syn, wrong = numbered([0, 1, 2, 1, 2]), [9, 0, 0]
    answers = {(e, 5): [[9, 0, 0], wrong, [0, 0, 9], wrong, [0, 0, 9]] for e in (0, 1)}
    with pytest.raises(
        UserError, match=r"2 of the images of class 'bee'.*targets\.experts all.*init\.kind correct"
    ):
        labels(CORRECT, answers, syn)
    assert labels(ALL, answers, syn)[1] == wrong


def test_no_experts_is_a_sentence():
    """A recipe without a buffer cannot label."""
    with pytest.raises(UserError, match="needs experts"):
        label(SET, None, ALL)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_wrong_expert_whose_numbers_are_broken_does_not_count(bad):
    """Its weight is zero, so its NaN or infinity must not reach the mean of those that are right."""
    answers = ANSWERS | {
        (3, 5): [[50.0, 0.0, bad], [50.0, bad, 0.0]]
        if bad != math.inf
        else [[bad, 0.0, 0.0], [bad, 0.0, 0.0]]
    }
    assert labels(CORRECT, answers) == labels(CORRECT)


def test_a_diverged_expert_is_right_about_nothing():
    """The largest of three NaN is the first, which is class 0: that is no answer."""
    syn = numbered([0])
    answers = {(0, 5): [[math.nan] * 3], (1, 5): [[4.0, 1.0, 0.0]]}
    assert labels(CORRECT, answers, syn) == [[4.0, 1.0, 0.0]]


def test_labelling_leaves_the_set_as_it_was():
    """A new set with the same images and classes; the old one still has its classes for targets."""
    syn = numbered([1, 2])
    soft = label(syn, Fake(ANSWERS), CORRECT)
    assert syn.target_kind == "class" and set(syn.tensors) == {"images"}
    assert soft.target_kind == "logits" and torch.equal(soft.classes, syn.classes)
    assert (
        torch.equal(soft.tensors["images"], syn.tensors["images"])
        and not soft.tensors["logits"].requires_grad
    )
    # right is right about the class, not about older labels
    again = label(soft, Fake(ANSWERS), ALL)
    assert again.tensors["logits"].tolist() == labels(ALL)
    learned = syn.with_tensors({"images": syn.tensors["images"].clone().requires_grad_()})
    assert not label(learned, Fake(ANSWERS), ALL).tensors["logits"].requires_grad


def test_predictions_do_not_depend_on_the_batches():
    """More images than one batch: every image once, in order."""
    images = torch.arange(200).float().repeat(3).view(-1, 1, 1, 1) / 255
    table = torch.randn(200, 3, generator=generator(0))
    network = Says(table)
    assert BATCH < 600
    assert torch.equal(predict(network, images), table.repeat(3, 1))
    assert (
        max(map(len, network.seen)) <= BATCH
        and [i for part in network.seen for i in part] == list(range(200)) * 3
    )


@pytest.mark.parametrize("model", [MODEL, "convnet-d1-w4-bn"])
def test_stored_experts_look_at_the_images_as_they_are(tmp_path, model):
    """The mean over a real store's networks in evaluation mode:

    BatchNorm by its own statistics, so a single image gets the same label.
    """
    data = tiny_data()
    store, syn = tiny_store(tmp_path, data, model=model), tiny_set(data)
    soft = label(syn, store, ALL).tensors["logits"]
    with torch.no_grad():
        wanted = (
            store.load(0, 3)(syn.tensors["images"]) + store.load(1, 3)(syn.tensors["images"])
        ) / 2
    assert torch.allclose(soft, wanted, atol=1e-5) and soft.std() > 0.01
    one = SyntheticSet(
        {"images": syn.tensors["images"][:1]},
        syn.classes[:1],
        syn.class_names,
        Identity(),
        syn.preprocess,
    )
    assert torch.allclose(label(one, store, ALL).tensors["logits"], soft[:1], atol=1e-4)


# Images that an expert gets right


def real(num, num_classes=3):
    """Images numbered by their pixels; image i is of class i mod K."""
    pixels = torch.arange(num, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return RealSet(pixels, torch.arange(num) % num_classes, num_classes, PLAIN)


def answering(num, *right):
    """Experts that are right about these numbers and say the next class of the others."""
    answers = {}
    for expert, numbers in enumerate(right):
        says = [i % 3 if i in numbers else (i + 1) % 3 for i in range(num)]
        # before training: always the first class
        answers[expert, 0] = nn.functional.one_hot(torch.full((num,), 0), 3).float()
        answers[expert, 7] = nn.functional.one_hot(torch.tensor(says), 3).float()
    return Fake(answers)


def check(index, ipc, allowed, num_classes=3):
    """Class by class, `ipc` each, no image twice, all of them among `allowed`."""
    assert index.dtype == torch.int64 and index.shape == (ipc * num_classes,)
    assert (index % num_classes).tolist() == [c for c in range(num_classes) for _ in range(ipc)]
    assert len(set(index.tolist())) == len(index) and set(index.tolist()) <= set(allowed)


@pytest.mark.parametrize("batch", [256, 5, 10, 1])
@pytest.mark.parametrize("ipc", [1, 3, 4])
def test_the_first_expert_chooses_alone_where_it_can(ipc, batch):
    """Class sizes that are multiples of the batch, too; the second expert is not even loaded, and
    no empty batch is looked at.
    """
    first = set(range(6)) | {17, 20, 24, 25, 27, 28, 29}
    experts = answering(30, first, range(30))
    index = correct_index(real(30), ipc, NAMES, generator(0), experts, batch=batch)
    check(index, ipc, first)
    assert {e for e, _ in experts.loaded} == {0} and {epoch for _, epoch in experts.loaded} == {7}
    assert all(experts.seen)


@pytest.mark.parametrize("batch", [256, 4])
def test_later_experts_fill_what_is_missing(batch):
    """All that the first is right about, then others; a class that is full is not looked at again."""
    first = {0, 3, 6, 9, 1, 4, 2, 5, 8, 11}  # four of ant, two of bee, four of cat
    experts = answering(30, first, {0, 1, 7, 13}, {1, 10, 16, 19}, range(30))
    index = correct_index(real(30), 4, NAMES, generator(0), experts, batch=batch)
    check(index, 4, first | {7, 13})
    assert (
        set(index[:4].tolist()) == {0, 3, 6, 9}
        and set(index[4:8].tolist()) == {1, 4, 7, 13}
        and set(index[8:].tolist()) == {2, 5, 8, 11}
    )
    asked = {e for e, _ in experts.loaded}
    assert asked == {0, 1}
    more = answering(30, first, {0, 1, 7}, {1, 10, 16, 19})
    index = correct_index(real(30), 4, NAMES, generator(0), more, batch=batch)
    assert {1, 4, 7} < set(index[4:8].tolist()) <= {1, 4, 7, 10, 16, 19}


def test_a_whole_class_can_be_right():
    """As many images as the class has."""
    check(correct_index(real(30), 10, NAMES, generator(0), answering(30, range(30))), 10, range(30))


def test_a_class_that_stays_short_is_named():
    """With how many were found over all experts, each counted once."""
    experts = answering(30, set(range(30)) - {1, 4, 7, 10, 13, 16, 19, 22}, {1, 25, 28})
    with pytest.raises(
        UserError, match=r"found 3 images of class 'bee'.*ipc is 4.*init\.kind real"
    ):
        correct_index(real(30), 4, NAMES, generator(0), experts)
    assert {e for e, _ in experts.loaded} == {0, 1}


def test_correct_images_are_random_and_follow_the_stream():
    """Equal streams choose alike, and different ones reach every image that is right, in no fixed
    order.
    """
    chosen = [
        correct_index(real(30), 2, NAMES, generator(seed), answering(30, range(30))).tolist()
        for seed in (0, 0, *range(1, 30))
    ]
    assert chosen[0] == chosen[1]
    assert {i for index in chosen for i in index} == set(range(30))
    assert any(a > b for a, b, *_ in chosen) and any(a < b for a, b, *_ in chosen)


@pytest.mark.parametrize("which", ["correct", "representative"])
def test_more_images_than_a_class_has(which):
    """Refused, naming the class, for both selections."""
    experts = answering(32, range(32))
    with pytest.raises(UserError, match=r"ipc 11 .* 10 .*'cat'"):
        if which == "correct":
            correct_index(real(32), 11, NAMES, generator(0), experts)
        else:
            representative_index(real(32), 11, NAMES, generator(0), experts, 10)


@pytest.mark.parametrize("kind", ["correct", "representative"])
def test_starts_that_need_experts_say_so(kind):
    """A recipe without a buffer."""
    with pytest.raises(UserError, match=rf"init\.kind {kind} needs experts"):
        INITIALISERS[kind](real(30), 1, NAMES, generator(0), InitConfig(kind=kind), None)


@pytest.mark.parametrize("kind", ["correct", "representative"])
def test_an_initial_set_starts_from_these_images(tmp_path, kind):
    """Through `initial`, with a real store: real images of their class, none twice, and for
    `correct` all labelled.
    """
    from synth.catalogue import find, take

    data = tiny_data()
    experts = answering_like(data.train)
    recipe = take(
        find("mtt/digits_ipc1"),
        [f"init={'datm' if kind == 'correct' else 'ast'}/fashion_mnist_ipc1_small"],
    )
    assert recipe.init.kind == kind
    syn = synthetic.initial(
        SimpleNamespace(**vars(recipe) | {"ipc": 5}), data, generator(0), experts
    )
    everything = data.train.images(torch.arange(len(data.train))).flatten(1)
    found = torch.cdist(syn.tensors["images"].flatten(1), everything).argmin(1)
    assert torch.allclose(everything[found], syn.tensors["images"].flatten(1), atol=1e-5)
    assert len(found.unique()) == 50 and torch.equal(data.train.labels[found], syn.classes)
    if kind == "correct":
        assert (
            label(syn, experts, CORRECT).tensors["logits"].argmax(1).tolist()
            == syn.classes.tolist()
        )


def answering_like(train):
    """One expert that compares an image with the mean image of each class."""
    everything = train.images(torch.arange(len(train))).flatten(1)
    means = torch.stack([everything[m].mean(0) for m in train.members])

    class Nearest(nn.Module):
        def forward(self, images):
            return -torch.cdist(images.flatten(1), means)

    return SimpleNamespace(
        num_experts=1, epochs=(0, 1), num_params=0, load=lambda expert, epoch: Nearest().eval()
    )


# Representative images


class Shows(nn.Module):
    """Logits that are written in the image: pixel k is logit k."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, images):
        """(B, 1, 1, W) -> (B, 3)."""
        return images.flatten(1)[:, self.order]


def shown(points, num_classes=3):
    """Each class has these logits (n, 3), integers below 256."""
    pixels = torch.tensor(points, dtype=torch.uint8).view(-1, 1, 1, 3).repeat(num_classes, 1, 1, 1)
    return RealSet(
        pixels, torch.arange(num_classes).repeat_interleave(len(points)), num_classes, PLAIN
    )


def showing(*orders):
    """Experts that read the logits in these orders; notes who was asked."""
    loaded = []

    def load(expert, epoch):
        loaded.append((expert, epoch))
        return Shows(list(orders[expert]))

    return SimpleNamespace(
        num_experts=len(orders), epochs=(0, 3, 7), num_params=0, load=load, loaded=loaded
    )


SPREAD = torch.randint(0, 256, (40, 3), generator=generator(0)).tolist()


@pytest.mark.parametrize("ipc", [1, 3, 9, 10, 11, 25, 39, 40])
@pytest.mark.parametrize("clusters", [10, 1, 40])
def test_any_number_of_representative_images(ipc, clusters):
    """As many as asked for, of every class in its place, none twice; the same again from the same
    stream.
    """
    images = shown(SPREAD)
    index = representative_index(images, ipc, NAMES, generator(0), showing((0, 1, 2)), clusters)
    assert index.dtype == torch.int64 and images.labels[index].tolist() == [
        c for c in range(3) for _ in range(ipc)
    ]
    assert len(index.unique()) == 3 * ipc
    assert torch.equal(
        index, representative_index(images, ipc, NAMES, generator(0), showing((0, 1, 2)), clusters)
    )


@pytest.mark.parametrize("ipc", [1, 3, 10])
def test_one_cluster_means_the_images_nearest_the_mean(ipc):
    """In the expert's logits, class by class."""
    points = torch.tensor(SPREAD).double()
    wanted = (points - points.mean(0)).norm(dim=1).argsort()[:ipc].tolist()
    index = representative_index(shown(SPREAD), ipc, NAMES, generator(0), showing((0, 1, 2)), 1)
    assert [i % 40 for i in index.tolist()] == wanted * 3
    if ipc == 1:  # one image asked for is one cluster, whatever the setting
        assert torch.equal(
            index,
            representative_index(shown(SPREAD), 1, NAMES, generator(0), showing((0, 1, 2)), 10),
        )


# Three blobs of 12, 7 and 5 images, far apart; the middle one of a blob is its centre
BLOBS = (
    [[10 + i % 3, 10, 10 + i // 3] for i in range(12)]
    + [[120, 120 + i, 120] for i in range(7)]
    + [[240, 10, 200 + i] for i in range(5)]
)


@pytest.mark.parametrize(
    ("ipc", "shares"),
    [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (2, 2, 1)), (6, (2, 2, 2)), (14, (5, 5, 4))],
)
def test_what_does_not_divide_goes_to_the_largest_clusters(ipc, shares):
    """Blobs are clusters; a share is made of the images nearest its centre, and the largest cluster
    comes first.
    """
    index = representative_index(
        shown(BLOBS, 1), ipc, NAMES[:1], generator(0), showing((0, 1, 2)), 3
    ).tolist()
    blob = [0 if i < 12 else 1 if i < 19 else 2 for i in index]
    assert blob == [b for b, share in enumerate(shares) for _ in range(share)]
    # the middle of the second and of the third
    assert index[shares[0]] == 12 + 3 and index[shares[0] + shares[1]] == 19 + 2


def test_a_share_larger_than_its_cluster_takes_the_next_nearest():
    """21 of 24 images in shares of 7 from clusters of 12, 7 and 5."""
    index = representative_index(
        shown(BLOBS, 1), 21, NAMES[:1], generator(0), showing((0, 1, 2)), 3
    ).tolist()
    assert len(set(index)) == 21 and set(range(12, 24)) <= set(index)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_images_that_look_all_the_same():
    """Fewer different logits than clusters: still as many images as asked for."""
    index = representative_index(
        shown([[7, 7, 7]] * 12 + [[9, 9, 9]] * 3), 11, NAMES, generator(0), showing((0, 1, 2)), 10
    )
    assert len(index.unique()) == 33


def test_a_random_expert_looks_after_its_last_epoch():
    """One for the whole set; over many streams every expert has its turn, and what it sees decides."""
    asked = set()
    for seed in range(12):
        experts = showing((0, 0, 0), (2, 2, 2), (1, 1, 1))
        index = representative_index(shown(SPREAD), 1, NAMES, generator(seed), experts, 10)
        ((expert, epoch),) = experts.loaded
        assert epoch == 7
        asked.add(expert)
        column = torch.tensor(SPREAD)[:, (0, 2, 1)[expert]].double()
        nearest = (column - column.mean()).abs()
        assert nearest[int(index[0])] == nearest.min()
    assert asked == {0, 1, 2}


def test_clustering_leaves_global_random_numbers_alone():
    """Neither torch's nor numpy's global stream moves."""
    import numpy as np

    before, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    representative_index(shown(SPREAD), 3, NAMES, generator(0), showing((0, 1, 2)), 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numbers  # noqa: NPY002


# Patches


class Linear(nn.Module):
    """Logits that are linear in the image; notes what it saw."""

    def __init__(self, seed, size=64):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.randn(3, size, generator=generator(seed))), []

    def forward(self, images):
        self.seen.append(images)
        return images.flatten(1) @ self.weight.T


def looking(*seeds, size=64):
    """Teachers of that kind, asked after their last epoch only."""
    networks = [Linear(seed, size).eval() for seed in seeds]
    return SimpleNamespace(
        num_experts=len(seeds),
        num_params=0,
        epochs=(0, 4),
        load=lambda i, epoch: {4: networks[i]}[epoch],
        networks=networks,
    )


def photographs(per_class=9, side=(8, 8)):
    """Random images of three classes, not in order."""
    pixels = torch.randint(
        0, 256, (3 * per_class, 1, *side), generator=generator(9), dtype=torch.uint8
    )
    return RealSet(
        pixels,
        torch.arange(3 * per_class) % 3,
        3,
        Preprocess(mean=torch.tensor([0.5]), std=torch.tensor([0.3])),
    )


def best_crops(images, config, teachers, rng, ipc):
    """(tiles (n, 1, h, w) of each class in order of their loss, what teachers see of them): image
    after image, crop after crop.
    """
    height, width = images.image_shape[1:]
    tile = (height // config.factor, width // config.factor)
    square = AugmentConfig(ops=(), always=("resized_crop",), ratio=1.0)
    found = []
    for c, members in enumerate(images.members):
        index = members[torch.randperm(len(members), generator=rng)[: config.candidates]]
        draw = torch.rand(1, len(index) * config.crops, 1, 4, generator=rng)
        scored = []
        for number, i in enumerate(index.tolist()):
            crops = []
            for k in range(config.crops):
                own = draw[:, number * config.crops + k, None]
                cut = augment.apply(
                    square,
                    images.images(torch.tensor([i])),
                    augment.AugmentDraw(("none",), torch.zeros(1, 1, 4), own),
                )
                cut = (
                    functional.interpolate(cut, tile, mode="bilinear", align_corners=False)
                    if config.factor > 1
                    else cut
                )
                canvas = torch.zeros(1, 1, height, width)
                top, left = (height - tile[0]) // 2, (width - tile[1]) // 2
                canvas[:, :, top : top + tile[0], left : left + tile[1]] = cut
                with torch.no_grad():
                    logits = sum(teacher(canvas) for teacher in teachers) / len(teachers)
                crops.append((float(functional.cross_entropy(logits, torch.tensor([c]))), cut[0]))
            scored.append(min(crops, key=lambda pair: pair[0]))
        found.append(
            [cut for _, cut in sorted(scored, key=lambda pair: pair[0])[: ipc * config.factor**2]]
        )
    return found


@pytest.mark.parametrize(
    ("factor", "ipc", "candidates", "crops"),
    [(1, 3, 9, 5), (1, 2, 6, 1), (2, 2, 9, 4), (2, 1, 300, 3), (4, 1, 300, 2)],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_patches_are_the_crops_of_lowest_loss(factor, ipc, candidates, crops, seeds):
    """Of each image its best crop, of these the best, and the best of all at the top left of the
    images; the mean of several teachers decides.
    """
    images, config = (
        photographs(16 if factor == 4 else 9),
        InitConfig(kind="patches", candidates=candidates, crops=crops, factor=factor),
    )
    found = INITIALISERS["patches"](images, ipc, NAMES, generator(3), config, looking(*seeds), None)
    wanted = best_crops(images, config, [Linear(seed) for seed in seeds], generator(3), ipc)
    assert found.shape == (3 * ipc, 1, 8, 8)
    side = 8 // factor
    for c in range(3):
        for i in range(ipc):
            for place in range(factor**2):
                row, column = divmod(place, factor)
                tile = found[
                    c * ipc + i,
                    :,
                    row * side : (row + 1) * side,
                    column * side : (column + 1) * side,
                ]
                assert torch.allclose(tile, wanted[c][place * ipc + i], atol=1e-5), (c, i, place)


def test_patches_are_square_crops_in_the_middle_of_nothing(monkeypatch):
    """Of a non-square image too: an area of at least 8 %, no ratio; a teacher sees one tile among
    zeros, each of an image and crop once.
    """
    seen, apply = [], augment.apply
    monkeypatch.setattr(
        augment, "apply", lambda config, *rest: (seen.append(config), apply(config, *rest))[1]
    )
    teachers = looking(0, size=8 * 12)
    config = InitConfig(kind="patches", candidates=5, crops=100, factor=2)
    INITIALISERS["patches"](
        photographs(side=(8, 12)), 1, NAMES, generator(0), config, teachers, None
    )
    assert seen and all(
        (c.ratio, c.area, c.always, c.ops) == (1.0, 0.08, ("resized_crop",), ()) for c in seen
    )
    shown = torch.cat(teachers.networks[0].seen)
    assert shown.shape == (3 * 5 * 100, 1, 8, 12)
    outside = torch.ones(8, 12, dtype=torch.bool)
    outside[2:6, 3:9] = False
    assert not shown[:, :, outside].any() and shown[:, :, 2:6, 3:9].abs().amin((2, 3)).gt(0).any()


def test_patches_of_many_crops_do_not_depend_on_the_parts():
    """The teacher looks at 256 at once; each image once, whatever the number of crops."""
    images = photographs(40)
    config = InitConfig(kind="patches", candidates=40, crops=20)
    found = INITIALISERS["patches"](images, 3, NAMES, generator(1), config, looking(0), None)
    assert found.shape == (9, 1, 8, 8) and len(found.flatten(1).unique(dim=0)) == 9
    again = INITIALISERS["patches"](images, 3, NAMES, generator(1), config, looking(0), None)
    assert torch.equal(found, again)
    assert not torch.equal(
        found, INITIALISERS["patches"](images, 3, NAMES, generator(2), config, looking(0), None)
    )


@pytest.mark.parametrize(
    ("fields", "ipc", "experts", "said"),
    [
        ({"factor": 3}, 1, True, r"init\.factor 3 does not divide the 8 x 8"),
        (
            {"factor": 2, "candidates": 7},
            2,
            True,
            r"init\.candidates 7 .*8 patches.*init\.candidates",
        ),
        ({"factor": 2}, 3, True, r"12.*class 'ant'|class 'ant'.*12|ipc"),
        ({}, 1, False, r"init\.kind patches needs experts"),
    ],
)
def test_patches_that_cannot_be_cut(fields, ipc, experts, said):
    with pytest.raises(UserError, match=said) as error:
        INITIALISERS["patches"](
            photographs(),
            ipc,
            NAMES,
            generator(0),
            InitConfig(kind="patches", **fields),
            looking(0) if experts else None,
            None,
        )
    assert "\n" not in str(error.value)
