"""Training and measuring networks, and the selections and statistics of an evaluation.

Images and networks are float64, so that two computations of the same thing differ by the rounding
of the float32 logits alone: a parameter whose true gradient is zero then stays where it is, instead
of wandering by rounding that Adam makes as large as any step.
"""

import copy
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import assert_same_move
from torch import nn

from ddengine.data import Preprocess, RealSet
from ddengine.data.realset import Subset
from ddengine.evaluation.intervals import interval
from ddengine.learning import augment, training
from ddengine.learning.losses import uskd
from ddengine.models import build_model
from ddengine.recipe import AugmentConfig, EvalConfig
from ddengine.sets.coreset import herding_index, random_index
from ddengine.system.memo import Memo
from ddengine.system.rng import generator, scoped
from ddengine.types import Batch

CPU = torch.device("cpu")
SHAPE, CLASSES = (1, 8, 8), 3
IN, BN = "convnet-d2-w4-in", "convnet-d2-w4-bn"
NN = "convnet-d2-w4-nn"
CONFIG = EvalConfig(
    protocol="test",
    epochs=4,
    batch=8,
    momentum=0.9,
    momentum_after=0.5,
    weight_decay=0.01,
    lr_drop=0.2,
)
LR = 0.05


def real_set(num=21, seed=0):
    """Noise whose brightness tells its class."""
    labels = torch.arange(num) % CLASSES
    noise = torch.randint(0, 80, (num, *SHAPE), generator=generator(seed, "pixels"))
    pixels = (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return RealSet(
        pixels,
        labels,
        CLASSES,
        Preprocess(mean=torch.tensor([0.5]).double(), std=torch.tensor([0.3]).double()),
    )


def maker(name):
    """Builds networks from generators."""
    return lambda rng: build_model(name, SHAPE, CLASSES, rng).double()


def train(name, seeds, sets=None, config=CONFIG, **more):
    """train_networks at the usual rate."""
    return training.train_networks(
        maker(name), sets or [real_set()] * len(seeds), seeds, config, LR, CPU, **more
    )


def state(network):
    """Parameters and running statistics by name, copied."""
    return {k: v.detach().clone().double() for k, v in network.state_dict().items()}


def assert_same_change(name, seed, network, expected, tolerance):
    """Both moved alike from the start of that seed, running statistics included; and every weight
    moved.
    """
    start, reached, wanted = (
        state(n) for n in (maker(name)(generator(seed, "network")), network, expected)
    )
    assert_same_move(start, reached, wanted, tolerance)
    still = [key for key in start if start[key].dim() > 1 and torch.equal(start[key], reached[key])]
    assert not still, f"{still} did not move"


def one_after_another(monkeypatch):
    """Train one network after another, however small the batches."""
    monkeypatch.setattr(training, "MOST_PIXELS_CPU", 0)


def batched(monkeypatch):
    """Train all networks in one computation, however large the batches."""
    monkeypatch.setattr(training, "MOST_PIXELS_CPU", 2**62)


# train_networks


def plain_loop(name, real, config, lr, seed):
    """The published evaluation loop, written down once more:

    E + 1 epochs, after epoch E // 2 + 1 a new optimiser with a smaller rate.
    """
    network = maker(name)(generator(seed, "network")).train()
    sgd, decay = torch.optim.SGD, config.weight_decay
    optimiser = sgd(network.parameters(), lr=lr, momentum=config.momentum, weight_decay=decay)
    for epoch in range(config.epochs + 1):
        order = torch.randperm(len(real), generator=generator(seed, "order", epoch))
        for step, begin in enumerate(range(0, len(real), config.batch)):
            index = order[begin : begin + config.batch]
            draw = augment.sample(
                config.augment, len(index), generator(seed, "augment", epoch, step)
            )
            images = augment.apply(config.augment, real.images(index), draw)
            optimiser.zero_grad()
            nn.CrossEntropyLoss()(network(images).float(), real.labels[index]).backward()
            optimiser.step()
        if epoch == config.epochs // 2 + 1:
            optimiser = sgd(
                network.parameters(),
                lr=lr * config.lr_drop,
                momentum=config.momentum_after,
                weight_decay=decay,
            )
    return network


@pytest.mark.parametrize("name", [IN, BN])
def test_one_network_is_trained_as_by_a_plain_loop(name):
    """21 images in batches of 8: the ragged last one counts too."""
    real = real_set()
    (network,) = train(name, [5], [real])
    assert_same_change(name, 5, network, plain_loop(name, real, CONFIG, LR, 5), 1e-5)
    assert not network.training


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_rate_drops_where_the_plain_loop_drops_it(epochs):
    config = EvalConfig(
        protocol="test", epochs=epochs, batch=32, lr_drop=0.01, augment=AugmentConfig(ops=())
    )
    (network,) = train(IN, [0], config=config)
    assert_same_change(IN, 0, network, plain_loop(IN, real_set(), config, LR, 0), 1e-5)


@pytest.mark.parametrize("name", [IN, BN])
def test_all_in_one_computation_is_one_after_another(monkeypatch, name):
    """Networks, each on its own set, to 1e-4 of the change; running statistics included."""
    seeds, sets = [3, 1, 2], [real_set(seed=i) for i in range(3)]
    one_after_another(monkeypatch)
    single = train(name, seeds, sets)
    batched(monkeypatch)
    together = train(name, seeds, sets)
    assert len({tuple(n.classifier.bias.tolist()) for n in together}) == 3
    for seed, a, b in zip(seeds, single, together, strict=True):
        assert_same_change(name, seed, b, a, 1e-4)
        assert not b.training


def test_a_batched_network_depends_on_its_own_seed_and_set_alone(monkeypatch):
    batched(monkeypatch)
    sets = [real_set(seed=i) for i in range(3)]
    first = train(BN, [7, 1, 2], sets)[0]
    second = train(BN, [4, 7, 9], [sets[2], sets[0], sets[1]])[1]
    assert_same_change(BN, 7, first, second, 1e-4)


@pytest.mark.parametrize("name", [IN, BN])
def test_neighbours_do_not_matter_at_all_one_after_another(monkeypatch, name):
    one_after_another(monkeypatch)
    real, other = real_set(), real_set(seed=1)
    (alone,) = train(name, [7], [real])
    third = train(name, [1, 2, 7], [other, other, real])[2]
    for key, value in alone.state_dict().items():
        assert torch.equal(value, third.state_dict()[key]), key
    assert training.accuracy(alone, other) == training.accuracy(third, other)


MIXED = EvalConfig(
    protocol="test", epochs=5, batch=8, weight_decay=0.01, lr_drop=0.2, schedule="thirds", cutmix=0.6,
    augment=AugmentConfig(always=("flip", "color"), ops=("crop", "scale", "rotate")),
)  # fmt: skip


def mixing_loop(real, config, lr, seed):
    """IDC's evaluation loop, with torch's own schedule:

    E epochs, the rate drops at two thirds and five sixths, batches are mixed or not.
    """
    network = maker(IN)(generator(seed, "network")).train()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    drops = torch.optim.lr_scheduler.MultiStepLR(
        optimiser, [2 * config.epochs // 3, 5 * config.epochs // 6], config.lr_drop
    )
    mixed = 0
    for epoch in range(config.epochs):
        order = torch.randperm(len(real), generator=generator(seed, "order", epoch))
        for step, begin in enumerate(range(0, len(real), config.batch)):
            index = order[begin : begin + config.batch]
            images, labels = real.images(index), real.labels[index]
            images = augment.apply(
                config.augment,
                images,
                augment.sample(config.augment, len(index), generator(seed, "augment", epoch, step)),
            )
            cross_entropy = nn.CrossEntropyLoss()
            draw = augment.sample_cutmix(
                config.cutmix, len(index), SHAPE[1:], generator(seed, "cutmix", epoch, step)
            )
            if draw is None:
                loss = cross_entropy(network(images).float(), labels)
            else:
                mixed += 1
                outputs = network(augment.cutmix(images, draw)).float()
                loss = cross_entropy(outputs, labels) * draw.share + cross_entropy(
                    outputs, labels[draw.partner]
                ) * (1 - draw.share)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        drops.step()
    assert 0 < mixed < config.epochs * 3
    return network


def test_thirds_and_cutmix_are_idcs_loop():
    real = real_set()
    (network,) = train(IN, [5], [real], config=MIXED)
    assert_same_change(IN, 5, network, mixing_loop(real, MIXED, LR, 5), 1e-5)


def test_networks_trained_together_mix_each_its_own(monkeypatch):
    """Each as alone: the draws of its neighbours, and whether they are mixed, do not matter."""
    batched(monkeypatch)
    seeds, sets = [3, 1, 2], [real_set(seed=i) for i in range(3)]
    together = train(IN, seeds, sets, config=MIXED)
    for seed, own, network in zip(seeds, sets, together, strict=True):
        assert_same_change(IN, seed, network, train(IN, [seed], [own], config=MIXED)[0], 1e-4)


@pytest.mark.parametrize("epochs", [2, 3, 4, 7, 12, 1000])
def test_thirds_are_torchs_multi_step_schedule(epochs):
    config = EvalConfig(protocol="test", epochs=epochs, lr_drop=0.2, schedule="thirds")
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimiser, [2 * epochs // 3, 5 * epochs // 6], 0.2
    )
    points = training.schedule(config, LR)
    assert [p.fresh for p in points] == [True, False, False]
    for epoch in range(epochs):
        in_force = [p for p in points if p.epoch <= epoch][-1]
        assert in_force.lr == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12), epoch
        optimiser.step()
        scheduler.step()


def test_thirds_of_one_epoch_never_drop():
    """A schedule that full data stretch to one epoch trains at the rate it was given."""
    assert [(p.epoch, p.lr) for p in training.schedule(MIXED, LR, epochs=1)] == [(0, LR)]


@pytest.mark.parametrize(
    ("max_steps", "updates"), [(None, 15), (15, 15), (14, 14), (9, 9), (4, 4), (1, 1)]
)
def test_updates_of_thirds_respect_max_steps(max_steps, updates):
    """21 images in batches of 8 are 3 updates an epoch, of E = 5 epochs."""
    counting = Counting(real_set())
    steps = max_steps and min(training.num_updates(21, MIXED), max_steps)
    train(IN, [0], [counting], config=MIXED, steps=steps)
    assert counting.batches == updates == (steps or training.num_updates(21, MIXED))
    assert training.num_epochs(21, MIXED, steps) == math.ceil(updates / 3)


def test_training_leaves_global_generators_alone():
    before = torch.get_rng_state()
    train(IN, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_follows_the_seed_and_not_the_global_generator():
    def with_dropout(rng):
        network = build_model("mlp", SHAPE, CLASSES, rng)
        network.features.append(nn.Dropout(0.5))
        return network.double()

    reached = []
    for state_before in (1, 2):
        torch.manual_seed(state_before)
        before = torch.get_rng_state()
        (network,) = training.train_networks(with_dropout, [real_set()], [3], CONFIG, LR, CPU)
        reached.append(network.classifier.weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*reached)


# How long


@dataclass
class Counting:
    """A set that counts what is asked of it."""

    real: RealSet
    batches: int = 0
    images: int = 0

    def __len__(self):
        """Number of images."""
        return len(self.real)

    def batch(self, index):
        """The examples at `index`."""
        self.batches += 1
        self.images += len(index)
        return self.real.batch(index)


@pytest.mark.parametrize(
    ("max_steps", "updates"), [(None, 15), (1000, 15), (15, 15), (14, 14), (9, 9), (4, 4), (1, 1)]
)
def test_updates_respect_max_steps(max_steps, updates):
    """21 images in batches of 8 are 3 updates an epoch, E + 1 = 5 epochs; the last epoch may be cut
    short.
    """
    counting = Counting(real_set())
    steps = max_steps and min(training.num_updates(21, CONFIG), max_steps)
    train(IN, [0], [counting], steps=steps)
    assert counting.batches == updates == (steps or training.num_updates(21, CONFIG))
    assert training.num_epochs(21, CONFIG, steps) + 1 == math.ceil(updates / 3)


def test_shortened_training_drops_its_rate_in_its_own_middle():
    points = training.schedule(EvalConfig(protocol="test", epochs=1000), 0.1, epochs=10)
    assert [(p.epoch, p.lr) for p in points] == [(0, 0.1), (7, pytest.approx(0.01))]


@pytest.mark.parametrize("schedule", ["half", "thirds", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 11, 12, 13, 40])
def test_exactly_so_many_updates_are_made(schedule, steps):
    """Fewer and more than the 12 (half: 15) of 4 epochs; the schedule is that of a protocol of as
    many epochs, wherever the last one ends.
    """
    config, counting = replace(CONFIG, schedule=schedule), Counting(real_set())
    (network,) = train(IN, [0], [counting], config=config, steps=steps)
    assert counting.batches == steps
    epochs = training.num_epochs(21, config, steps)
    assert epochs + (schedule == "half") == math.ceil(steps / 3)
    if epochs > 0 and steps % 3 == 0:
        (natural,) = train(IN, [0], config=replace(config, epochs=epochs))
        assert all(
            torch.equal(a, b)
            for a, b in zip(network.parameters(), natural.parameters(), strict=True)
        )


def test_the_natural_number_of_updates_changes_nothing():
    for config in (CONFIG, replace(CONFIG, schedule="cosine")):
        a, b = (
            train(IN, [0], config=config, steps=steps)[0]
            for steps in (None, training.num_updates(21, config))
        )
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# Optimisers and rates


@pytest.mark.parametrize("epochs", [1, 2, 7, 400])
@pytest.mark.parametrize("stretch", [1.0, 2.0])
def test_cosine_is_torchs_annealing(epochs, stretch):
    """Torch's own, set after each epoch, down to 0 after `stretch` times as many; one optimiser
    throughout.
    """
    config = EvalConfig(protocol="test", epochs=epochs, schedule="cosine", stretch=stretch)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, int(stretch * epochs))
    points = training.schedule(config, LR)
    assert [p.epoch for p in points] == list(range(epochs))
    assert [p.fresh for p in points] == [True] + [False] * (epochs - 1)
    for point in points:
        assert point.lr == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        assert (point.momentum, point.weight_decay) == (config.momentum, config.weight_decay)
        optimiser.step()
        scheduler.step()
    assert [p.lr for p in training.schedule(config, LR, epochs=3)] == pytest.approx(
        [LR * (1 + math.cos(math.pi * t / (3 * stretch))) / 2 for t in range(3)]
    )


def spared_by_hand(network):
    """Biases and the parameters of normalisation layers, by their names."""
    norms = {
        name
        for name, m in network.named_modules()
        if isinstance(m, nn.GroupNorm | nn.BatchNorm2d | nn.LayerNorm)
    }
    return {
        name
        for name, _ in network.named_parameters()
        if name.endswith("bias") or name.rpartition(".")[0] in norms
    }


def modern_loop(name, real, config, lr, seed, loss):
    """AdamW or SGD with torch's cosine schedule; `loss` of the logits, the indices and the images
    that the network saw.
    """
    network = maker(name)(generator(seed, "network")).train()
    named = dict(network.named_parameters())
    spared = set() if config.decay_norms else spared_by_hand(network)
    groups = [
        {"params": [p for n, p in named.items() if n not in spared]},
        {"params": [p for n, p in named.items() if n in spared], "weight_decay": 0.0},
    ]
    if config.optimiser == "adamw":
        optimiser = torch.optim.AdamW(
            groups, lr=lr, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
    else:
        optimiser = torch.optim.SGD(
            groups, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: (1 + math.cos(math.pi * t / (config.stretch * config.epochs))) / 2
    )
    for epoch in range(config.epochs):
        order = torch.randperm(len(real), generator=generator(seed, "order", epoch))
        for step, begin in enumerate(range(0, len(real), config.batch)):
            index = order[begin : begin + config.batch]
            draw = augment.sample(
                config.augment, len(index), generator(seed, "augment", epoch, step)
            )
            images, mixing = augment.apply(config.augment, real.images(index), draw), None
            if config.mixup:
                mixing = augment.sample_mixup(
                    config.mixup, len(index), generator(seed, "mixup", epoch, step)
                )
                images = mixing.share * images + (1 - mixing.share) * images[mixing.partner]
            optimiser.zero_grad()
            loss(network(images).float(), index, images, mixing).backward()
            optimiser.step()
        scheduler.step()
    return network


MODERN = EvalConfig(
    protocol="test", epochs=4, batch=8, weight_decay=0.5, optimiser="adamw", schedule="cosine", decay_norms=False,
    augment=AugmentConfig(always=("resized_crop", "flip"), ops=()),
)  # fmt: skip


@pytest.mark.parametrize("name", [IN, BN, "convnet-d2-w4-ln"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_optimisers_and_cosine_are_a_plain_loop(name, optimiser, decay_norms):
    """A weight decay strong enough that one too many shows."""
    config, real = replace(MODERN, optimiser=optimiser, decay_norms=decay_norms), real_set()
    (network,) = train(name, [5], [real], config=config)
    wanted = modern_loop(
        name, real, config, LR, 5, lambda s, index, *_: nn.CrossEntropyLoss()(s, real.labels[index])
    )
    assert_same_change(name, 5, network, wanted, 1e-5)
    (other,) = train(name, [5], [real], config=replace(config, decay_norms=not decay_norms))
    assert not torch.allclose(network.classifier.bias, other.classifier.bias, rtol=1e-3)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_weight_decay_of_stacked_networks_spares_the_same(monkeypatch, optimiser, decay_norms):
    """A stacked bias has two dimensions."""
    config = replace(MODERN, optimiser=optimiser, decay_norms=decay_norms)
    one_after_another(monkeypatch)
    single = train(NN, [3, 1, 2], config=config)
    batched(monkeypatch)
    together = train(NN, [3, 1, 2], config=config)
    for seed, a, b in zip([3, 1, 2], single, together, strict=True):
        assert_same_change(NN, seed, b, a, 1e-4)


def test_stacked_scales_of_normalisation_are_spared_as_well(monkeypatch):
    """The scale of BatchNorm, whose steps are not of rounding as those of the bias before it are."""
    config = replace(MODERN, optimiser="sgd", weight_decay=2.0)
    one_after_another(monkeypatch)
    (single,) = train(BN, [3], config=config)
    batched(monkeypatch)
    together = train(BN, [3, 1], config=config)[0]
    for key in (
        "features.0.weight",
        "features.1.weight",
        "features.1.bias",
        "classifier.bias",
        "features.0.bias",
    ):
        assert torch.allclose(together.state_dict()[key], single.state_dict()[key], atol=1e-5), key
    # which that much decay would have brought near 0
    assert (single.features[1].weight - 1).abs().max() < 0.3


# Labels and losses


class Soft:
    """Images with the logits of teachers for targets, and their classes beside them or not."""

    def __init__(self, real, teachers, classes=True):
        self.real, self.classes = real, classes
        self.logits = torch.stack(
            [
                teacher.eval()(real.images(torch.arange(len(real)))).detach().float()
                for teacher in teachers
            ]
        ).mean(0)

    def __len__(self):
        return len(self.real)

    def batch(self, index):
        """The examples at `index`."""
        given = self.real.batch(index)
        return Batch(given.images, self.logits[index], given.targets if self.classes else None)


def teacher(seed, name=BN):
    """A network with running statistics that are not at their start, and logits that are not small."""
    network = maker(name)(generator(seed, "teacher")).train()
    with torch.no_grad():
        for _ in range(20):
            network(real_set(seed=seed).images(torch.arange(21)))
        network.classifier.weight.mul_(5)
    return network.eval()


TEACHERS = [teacher(100), teacher(101), teacher(102, IN)]
INFER = EvalConfig(
    protocol="test", epochs=4, batch=8, weight_decay=0.01, optimiser="adamw", schedule="cosine", loss="kl", temperature=30.0, mixup=0.8,
    augment=AugmentConfig(always=("crop", "flip"), ops=()),
)  # fmt: skip


def test_static_labels_are_infers_loop():
    """Logits interpolated as the images, the divergence of the whole at T = 30, AdamW, cosine."""
    real = real_set()
    soft = Soft(real, TEACHERS)

    def loss(said, index, images, mixing):
        wanted = (
            mixing.share * soft.logits[index]
            + (1 - mixing.share) * soft.logits[index][mixing.partner]
        )
        return nn.functional.kl_div(
            (said / 30).log_softmax(1), (wanted / 30).softmax(1), reduction="batchmean"
        )

    (network,) = train(NN, [5], [soft], config=INFER)
    assert_same_change(NN, 5, network, modern_loop(NN, real, INFER, LR, 5, loss), 1e-4)
    # whose steps, unlike Adam's, are as small as the gradient
    sgd = replace(INFER, optimiser="sgd", squared=True)
    (network,) = train(NN, [5], [soft], config=sgd)
    assert_same_change(
        NN, 5, network, modern_loop(NN, real, sgd, LR, 5, lambda *a: 900 * loss(*a)), 1e-4
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_dynamic_labels_are_what_teachers_say_of_the_batch_as_it_is_seen(mode):
    real, config = (
        real_set(),
        replace(
            INFER, labels="dynamic", teacher_mode=mode, optimiser="sgd", loss="mse", hard_weight=0.2
        ),
    )

    def loss(said, index, images, mixing):
        with torch.no_grad():
            wanted = torch.stack(
                [copy.deepcopy(t).train(mode == "train")(images).float() for t in TEACHERS]
            ).mean(0)
        cross_entropy, classes = nn.CrossEntropyLoss(), real.labels[index]
        hard = mixing.share * cross_entropy(said, classes) + (1 - mixing.share) * cross_entropy(
            said, classes[mixing.partner]
        )
        return ((said - wanted) ** 2).mean() + 0.2 * hard

    for given in (real, Soft(real, [TEACHERS[0]])):  # whatever labels of its own the set has
        (network,) = train(IN, [5], [given], config=config, teachers=TEACHERS)
        assert_same_change(IN, 5, network, modern_loop(IN, real, config, LR, 5, loss), 1e-4)


@pytest.mark.parametrize("loss", ["kl", "ce", "mse", "nkd"])
@pytest.mark.parametrize("together", [False, True])
def test_static_and_dynamic_labels_are_the_same_where_images_stay_as_they_are(
    monkeypatch, loss, together
):
    """Without augmentation and mixing a teacher says of a batch what it said of its images."""
    (batched if together else one_after_another)(monkeypatch)
    config = EvalConfig(
        protocol="test",
        epochs=5,
        batch=8,
        loss=loss,
        temperature=4.0,
        schedule="cosine",
        augment=AugmentConfig(ops=()),
    )
    seeds, real = [4, 5], real_set()
    seen = []
    for given, labels in ((Soft(real, TEACHERS), "own"), (real, "dynamic")):
        told = []
        networks = train(
            IN,
            seeds,
            [given] * 2,
            config=config,
            teachers=TEACHERS,
            labels=labels,
            observe=lambda i, s, told=told: told.append(s),
        )
        seen.append((networks, torch.stack([t for t in told if len(t) == 8])))
    (static, of_static), (dynamic, of_dynamic) = seen
    assert (of_static - of_dynamic).abs().max() < 1e-5
    for seed, a, b in zip(seeds, static, dynamic, strict=True):
        assert_same_change(IN, seed, b, a, 1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_teachers_stay_as_they_are(mode):
    config = replace(INFER, labels="dynamic", teacher_mode=mode, cutmix=0.0)
    teachers = [teacher(100).train(), teacher(101)]
    before = [{k: v.clone() for k, v in t.state_dict().items()} for t in teachers]
    train(IN, [0, 1], config=config, teachers=teachers)
    assert [t.training for t in teachers] == [True, False]
    assert all(p.requires_grad and p.grad is None for t in teachers for p in t.parameters())
    for was, network in zip(before, teachers, strict=True):
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in was.items())


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("loss", ["kl", "nkd"])
def test_dynamic_labels_of_networks_trained_together_are_each_its_own(monkeypatch, mode, loss):
    """In training mode a teacher normalises by the batch of one network, not by all of them at
    once.
    """
    config = replace(
        INFER,
        labels="dynamic",
        teacher_mode=mode,
        loss=loss,
        temperature=2.0,
        optimiser="sgd",
        mixup=0.0,
        cutmix=0.7,
        decay_norms=False,
    )
    seeds, sets = [3, 1, 2], [real_set(seed=i) for i in range(3)]
    one_after_another(monkeypatch)
    single = train(NN, seeds, sets, config=config, teachers=TEACHERS)
    batched(monkeypatch)
    together = train(NN, seeds, sets, config=config, teachers=TEACHERS)
    for seed, a, b in zip(seeds, single, together, strict=True):
        assert_same_change(NN, seed, b, a, 1e-4)


def test_dropout_of_a_teacher_is_off_in_either_mode():
    dropping = teacher(100)
    dropping.features.append(nn.Dropout(0.5))
    for mode in ("eval", "train"):
        config = replace(INFER, labels="dynamic", teacher_mode=mode)
        (with_dropout,) = train(IN, [0], config=config, teachers=[dropping])
        (without,) = train(IN, [0], config=config, teachers=[teacher(100)])
        assert all(
            torch.equal(a, b)
            for a, b in zip(with_dropout.parameters(), without.parameters(), strict=True)
        )


def test_hard_labels_are_the_classes_beside_soft_ones():
    """As a set of classes would train, whatever loss there is for soft labels."""
    real = real_set()
    soft, config = Soft(real, TEACHERS), replace(INFER, hard_weight=0.3)
    (hard,) = train(IN, [5], [soft], config=config, labels="hard")
    (by_config,) = train(IN, [5], [soft], config=replace(config, labels="hard"))
    (plain,) = train(IN, [5], [real], config=replace(config, loss="ce"))
    for a, b, c in zip(hard.parameters(), by_config.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c)
    (own,) = train(IN, [5], [soft], config=replace(config, labels="hard"), labels="own")
    assert not torch.equal(own.classifier.bias, plain.classifier.bias)


def test_dynamic_labels_need_teachers():
    with pytest.raises(AssertionError, match="dynamic labels need teachers"):
        train(IN, [0], config=INFER, labels="dynamic")


# USKD


@pytest.mark.parametrize("mixup", [0.0, 0.8])
@pytest.mark.parametrize("soft", [False, True])
def test_uskd_trains_a_weak_head_beside_the_network(mixup, soft):
    """By a plain loop with a second linear layer on the first of two blocks; labels other than the
    classes are not looked at.
    """
    config = replace(MODERN, loss="uskd", mixup=mixup, optimiser="sgd", weight_decay=0.05)
    real = real_set()
    with scoped(generator(5, "weak head")):
        head = nn.Linear(4, CLASSES)
    network = maker(IN)(generator(5, "network")).train()
    spared = spared_by_hand(network)
    named = dict(network.named_parameters())
    optimiser = torch.optim.SGD([
        {"params": [p for n, p in named.items() if n not in spared] + [head.weight], "weight_decay": 0.05},
        {"params": [p for n, p in named.items() if n in spared] + [head.bias]},
    ], lr=LR, momentum=0.9)  # fmt: skip
    for epoch in range(config.epochs):
        order = torch.randperm(21, generator=generator(5, "order", epoch))
        for group in optimiser.param_groups:
            group["lr"] = LR * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
        for step, begin in enumerate(range(0, 21, 8)):
            index = order[begin : begin + 8]
            images = augment.apply(
                config.augment,
                real.images(index),
                augment.sample(config.augment, len(index), generator(5, "augment", epoch, step)),
            )
            pairs = [(1.0, real.labels[index])]
            if mixup:
                draw = augment.sample_mixup(mixup, len(index), generator(5, "mixup", epoch, step))
                images = augment.mix(images, draw)
                pairs = [
                    (draw.share, real.labels[index]),
                    (1 - draw.share, real.labels[index][draw.partner]),
                ]
            early = network.features[:3](images)
            weak, said = (
                head(early.float().mean((2, 3))),
                network.classifier(network.features[3:](early).flatten(1)).float(),
            )
            optimiser.zero_grad()
            sum(
                share * (nn.CrossEntropyLoss()(said, c) + uskd(said, weak, c)) for share, c in pairs
            ).backward()
            optimiser.step()
    (found,) = train(IN, [5], [Soft(real, TEACHERS) if soft else real], config=config)
    assert_same_change(IN, 5, found, network, 1e-5)
    assert set(found.state_dict()) == set(network.state_dict())
    assert not found.features[2]._forward_hooks


def test_networks_with_a_weak_head_are_trained_one_after_another(monkeypatch):
    batched(monkeypatch)
    config, before = replace(MODERN, loss="uskd"), torch.get_rng_state()
    pair = train(BN, [3, 1], config=config)
    assert torch.equal(torch.get_rng_state(), before)
    (alone,) = train(BN, [1], config=config)
    assert all(
        torch.equal(value, pair[1].state_dict()[key]) for key, value in alone.state_dict().items()
    )
    (other,) = train(BN, [1], config=replace(config, loss="ce"))
    assert not torch.equal(other.classifier.bias, alone.classifier.bias)


# accuracy


class Answers(nn.Module):
    """Answers with the pixel's value, or with a constant; notes the mode it was asked in."""

    def __init__(self, constant=None):
        super().__init__()
        self.constant, self.modes = constant, set()

    def forward(self, images):
        """(B, 1, 1, 1) -> one-hot logits (B, K)."""
        self.modes.add(self.training)
        told = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(
            told if self.constant is None else torch.full_like(told, self.constant), CLASSES
        ).float()


def test_accuracy_of_a_perfect_and_of_constant_networks():
    """2,300 images, more than two batches of a test."""
    labels = torch.cat((torch.zeros(1150), torch.ones(230), torch.full((920,), 2))).long()[
        torch.randperm(2300, generator=generator(0))
    ]
    real = RealSet(
        labels.to(torch.uint8).view(-1, 1, 1, 1),
        labels,
        CLASSES,
        Preprocess(mean=torch.zeros(1), std=torch.ones(1)),
    )
    perfect = Answers().train()
    assert training.accuracy(perfect, real) == 1.0
    assert perfect.modes == {False}
    for constant, share in enumerate((0.5, 0.1, 0.4)):
        assert training.accuracy(Answers(constant), real) == pytest.approx(share, abs=1e-12)


# Statistics


def test_interval_is_students_on_the_logit_scale():
    for values in ([0.3, 0.5], [0.61, 0.58, 0.66, 0.6, 0.7], list(np.linspace(0.2, 0.4, 30))):
        mean, std, (low, high) = interval(values)
        assert mean == pytest.approx(np.mean(values)) and std == pytest.approx(
            np.std(values, ddof=1)
        )
        plain = np.array(
            scipy.stats.t.interval(0.95, len(values) - 1, loc=mean, scale=scipy.stats.sem(values))
        )
        logit = np.log(mean / (1 - mean)) + (plain - mean) / (mean * (1 - mean))
        assert (low, high) == pytest.approx(1 / (1 + np.exp(-logit)))


def test_interval_of_one_value_and_of_equal_values():
    assert interval([0.4]) == (0.4, None, None)
    mean, std, bounds = interval([0.5, 0.5, 0.5])
    assert (mean, std, bounds) == (0.5, 0.0, (0.5, 0.5))


# Selections


def features_of(real):
    """An embedding that is not the identity: two sums of pixels and a product."""

    def embed(images):
        flat = images.flatten(1)
        return torch.stack(
            (flat[:, :30].sum(1), flat[:, 30:].sum(1) * 0.5, flat[:, 3] * flat[:, 40]), 1
        )

    return embed, embed(real.images(torch.arange(len(real)))).double().numpy()


@pytest.mark.parametrize("batch", [1000, 4])
def test_herding_is_the_greedy_choice(batch):
    """Each image brings the mean of the chosen ones as near the class mean as any other would."""
    real, names = real_set(30), ("a", "b", "c")
    embed, features = features_of(real)
    wanted = []
    for c in range(CLASSES):
        members, chosen = np.flatnonzero(real.labels.numpy() == c).tolist(), []
        centre = features[members].mean(0)
        while len(chosen) < 4:
            distance = {
                i: np.linalg.norm(centre - features[[*chosen, i]].mean(0))
                for i in members
                if i not in chosen
            }
            chosen.append(min(distance, key=distance.get))
        wanted += chosen
    assert herding_index(real, 4, names, embed, batch=batch).tolist() == wanted


def test_herding_of_a_whole_class_takes_every_image_once():
    real = real_set(12)
    index = herding_index(real, 4, ("a", "b", "c"), features_of(real)[0])
    assert sorted(index.tolist()) == list(range(12))
    assert real.labels[index].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_random_selection_is_class_by_class_without_repetition():
    real = real_set(30)
    index = random_index(real, 4, ("a", "b", "c"), generator(0))
    assert len(index.unique()) == 12 and real.labels[index].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not torch.equal(index, random_index(real, 4, ("a", "b", "c"), generator(1)))
    (network,) = train(IN, [0], [Subset(real, index)])
    assert training.accuracy(network, real) > 0.4


# Memo


class Once:
    """Computes a value and counts how often."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        """The value."""
        self.calls += 1
        return self.value


def known(path, identity, key):
    """What a new Memo has stored under `key`, None for nothing."""
    return Memo(path, identity)(key, lambda: None)


def test_memo_computes_once_and_resumes(tmp_path):
    path, compute = tmp_path / "memo.jsonl", Once({"accuracies": [0.1, 0.30000000000000004]})
    memo = Memo(path, "me")
    assert (
        memo("a", compute) == memo("a", compute) == Memo(path, "me")("a", compute) == compute.value
    )
    assert compute.calls == 1
    assert Memo(path, "me")("b", Once(2)) == 2 and known(path, "me", "a") == compute.value


def test_memo_ignores_other_identities_and_keeps_their_lines(tmp_path):
    path = tmp_path / "memo.jsonl"
    Memo(path, "me")("a", Once(1))
    assert Memo(path, "you")("a", Once(2)) == 2
    assert known(path, "me", "a") == 1 and known(path, "you", "a") == 2


def test_memo_ignores_a_torn_last_line_and_goes_on_after_it(tmp_path):
    """What is computed after the kill must survive a second kill."""
    path = tmp_path / "memo.jsonl"
    memo = Memo(path, "me")
    memo("a", Once(1))
    whole = path.stat().st_size
    memo("b", Once(2))
    path.write_bytes(path.read_bytes()[: whole + 15])
    again, compute = Memo(path, "me"), Once(3)
    assert again("a", Once(9)) == 1
    assert again("b", compute) == 3 and compute.calls == 1
    assert known(path, "me", "b") == 3


def test_memo_without_a_file(tmp_path):
    compute = Once(1)
    memo = Memo(None, "me")
    assert memo("a", compute) == memo("a", compute) == 1 and compute.calls == 1
    path = tmp_path / "memo.jsonl"
    stored = Memo(path, "me")
    stored("a", compute)
    assert json.loads(path.read_text())["key"] == "a"
