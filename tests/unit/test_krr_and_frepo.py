"""KRR-ST and FRePo: the pool of networks, learned targets, and that labels are never read."""

import time
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers import CPU, DIGITS, tiny_data, tiny_store

from buffers.barlow import BarlowTwins
from ddengine import loop, turns
from ddengine.contract.test_method import StopsAt
from ddengine.data import Data, RealSet
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.learning.teachers import features, target_network
from ddengine.models import build_model
from ddengine.objective import environments
from ddengine.plan import apart, calibrate, jobs
from ddengine.prepare import prepare
from ddengine.recipe import InitConfig, OptimConfig, Recipe, TargetConfig
from ddengine.sets.labels import centred
from ddengine.system import dist
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.frepo import margin_loss
from synth.pool import Networks, Pool

STUDENT, TARGET = "convnet-d1-w4-bn", "convnet-d1-w6-bn"
WIDTH = 6 * 4 * 4  # of the target network's features


def small(name: str, pool: Pool | None = None, **outer) -> Recipe:
    """A recipe at the size of a test."""
    recipe = find(name)
    objective = replace(recipe.objective.small(), real_batch=32)
    objective = replace(objective, pool=pool or Pool(size=3, steps=4))
    return replace(
        recipe,
        data=DIGITS,
        model=STUDENT,
        ipc=2,
        objective=objective,
        outer=replace(recipe.outer, steps=10, checkpoint_every=3, evaluate_every=0, **outer),
    )


@pytest.fixture(scope="module")
def data() -> Data:
    return tiny_data()


@pytest.fixture(scope="module")
def experts(data, tmp_path_factory):
    """A target network that is trained without labels."""
    step = BarlowTwins(widths=(16,))
    folder = tmp_path_factory.mktemp("experts")
    return tiny_store(
        folder, data, model=TARGET, epochs=1, num_experts=1, step=step, batch=32, keep="last"
    )


def started(recipe: Recipe, data: Data, experts):
    """(initial set, objective)."""
    return prepare(recipe, data, CPU, experts, seed=0)


# Targets that are learned


def test_the_set_starts_with_the_features_of_the_target_network(data, experts):
    """And networks of the pool have as many outputs."""
    syn, objective = started(small("krr_st/digits_ipc5_small"), data, experts)
    network = target_network(experts, CPU)
    images = syn.batch(torch.arange(len(syn))).images
    assert torch.equal(syn.tensors["features"], features(network, images))
    assert syn.num_outputs == WIDTH == objective.env.new_model(generator(0)).classifier.out_features
    assert not network.training


def test_features_are_learned_beside_images(data, experts, tmp_path):
    """Each by its own optimiser: without a rate they stay."""
    recipe = small("krr_st/digits_ipc5_small")
    syn, objective = started(recipe, data, experts)
    learned, _ = loop.distill(syn, objective, recipe.outer, tmp_path / "both", seed=0)
    for name in ("images", "features"):
        assert not torch.equal(learned.tensors[name], syn.tensors[name])
    images_alone = {"images": recipe.outer.optim["images"]}
    outer = replace(recipe.outer, optim=images_alone)
    fixed, _ = loop.distill(syn, objective, outer, tmp_path / "images", seed=0)
    assert torch.equal(fixed.tensors["features"], syn.tensors["features"])
    assert not torch.equal(fixed.tensors["images"], syn.tensors["images"])


def test_no_label_is_read(data, experts, tmp_path):
    """Permuted and equal labels give the same images and features, to the bit.

    The target network is trained without labels (test_barlow), and is the same here.
    """
    recipe = small("krr_st/digits_ipc5_small")
    learned = []
    order = torch.randperm(len(data.train), generator=generator(5))
    others = (data.train.labels, data.train.labels[order], torch.zeros_like(data.train.labels))
    for number, labels in enumerate(others):
        real = RealSet(data.train.pixels, labels, 10, data.train.preprocess)
        syn, objective = started(recipe, replace(data, train=real), experts)
        folder = tmp_path / str(number)
        result, _ = loop.distill(syn, objective, recipe.outer, folder, seed=0)
        learned.append(result)
    for other in learned[1:]:
        for name, tensor in learned[0].tensors.items():
            assert torch.equal(other.tensors[name], tensor)


def test_images_that_start_unlabelled_are_drawn_without_repetition(data, experts):
    """Of all classes; more than there are is refused."""
    syn, _ = started(small("krr_st/digits_ipc5_small"), data, experts)
    stored = syn.batch(torch.arange(len(syn))).images.flatten(1)
    real = data.train.images(torch.arange(len(data.train))).flatten(1)
    nearest = torch.cdist(stored.double(), real.double()).argmin(1)
    assert len(nearest.unique()) == len(syn) == 20
    kept = syn.classes == data.train.labels[nearest]
    assert not kept.all()
    with pytest.raises(UserError, match="starts from 190 images, and there are 180"):
        started(replace(small("krr_st/digits_ipc5_small"), ipc=19), data, experts)


# The pool


def counts(recipe: Recipe, data: Data, experts, steps: int):
    """Of each outer step (the ages of the pool, which network it saw, its parameters)."""
    syn, objective = started(recipe, data, experts)
    state = objective.init(generator(0, "objective"))
    seen = []
    for step in range(steps):
        list(objective.losses(syn, state, step, generator(0, "losses", step)))
        number = int(state["last"])
        seen.append((state["ages"].tolist(), number, state[f"theta.{number}"].clone()))
    return seen


def test_ages_start_apart_and_count_steps(data, experts):
    """The drawn network has a step more after the next begins, and 0 where it was replaced."""
    pool = Pool(size=3, steps=4)
    seen = counts(small("krr_st/digits_ipc5_small", pool), data, experts, 60)
    assert all(1 <= age < 4 for age in seen[0][0])
    replaced = 0
    for (before, number, theta), (after, *_) in pairwise(seen):
        wanted = list(before)
        wanted[number] = 0 if before[number] == 4 else before[number] + 1
        replaced += wanted[number] == 0
        assert after == wanted
        assert theta.isfinite().all()
    assert replaced >= 5


def test_the_released_counter_ends_in_random_networks(data, experts):
    """Once replaced, a network is replaced at each draw, so that none is trained in the end."""
    pool = Pool(size=2, steps=4, restart_count=False)
    seen = counts(small("krr_st/digits_ipc5_small", pool), data, experts, 40)
    assert seen[-1][0] == [4, 4]
    for before, after in pairwise(seen[-12:]):
        if before[1] != after[1]:
            continue
        drawn = build_model(STUDENT, data.image_shape, WIDTH, generator(0))
        # a fresh network's BatchNorm still has its initial weights
        ones = slice(drawn.features[0].weight.numel() + 4, drawn.features[0].weight.numel() + 8)
        assert torch.equal(after[2][ones], torch.ones(4))
        assert not torch.equal(after[2], before[2])


def test_a_step_of_a_network_is_sgd_on_squared_error(data, experts):
    """As torch.optim.SGD makes it, running statistics included, over three steps."""
    pool = Pool(size=1, steps=9, optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-2))
    recipe = small("krr_st/digits_ipc5_small", pool)
    syn, objective = started(recipe, data, experts)
    networks = objective.networks
    state = networks.state(generator(1))
    theirs = build_model(STUDENT, data.image_shape, WIDTH, generator(0))
    theirs.load_state_dict(networks._filled(state, 0).state_dict())
    optimiser = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    images, targets = syn.batch(torch.arange(len(syn)))
    for _ in range(3):
        networks._train(syn, state, 0, generator(2))
        optimiser.zero_grad()
        (theirs.train()(images) - targets).square().mean().backward()
        optimiser.step()
    ours = networks._filled(state, 0)
    assert torch.allclose(flatten(ours), flatten(theirs), atol=1e-6)
    for name, buffer in theirs.named_buffers():
        assert torch.allclose(dict(ours.named_buffers())[name], buffer, atol=1e-6), name
    networks._renew(state, 0, generator(3))
    assert "momentum.0" not in state and not torch.allclose(state["theta.0"], flatten(theirs))


def test_networks_are_seen_in_evaluation_mode_and_untouched(data, experts):
    """What the loss sees is not trained by it, and no statistics are updated."""
    recipe = small("krr_st/digits_ipc5_small", Pool(size=1, steps=4))
    syn, objective = started(recipe, data, experts)
    state = objective.init(generator(0))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in syn.tensors.items()}
    (loss,) = objective.losses(syn.with_tensors(leaves), state, 0, generator(0))
    loss.backward()
    network = objective.networks._module
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert torch.equal(flatten(network), state["theta.0"])
    statistics = flatten_buffers(network)
    assert torch.equal(statistics, state["statistics.0"])
    assert statistics[-1] == state["ages"][0]  # batches that the statistics have seen


@pytest.mark.parametrize("name", ["krr_st/digits_ipc5_small", "frepo/fashion_mnist_ipc1_small"])
def test_what_ranks_share_adds_up(name, data, experts, monkeypatch):
    """A batch of 32 real images on one rank, and on five."""
    recipe = small(name)

    def gradients(ranks):
        total = 0.0
        slopes = {}
        for rank in range(ranks):
            monkeypatch.setattr(dist, "num_ranks", lambda: ranks)
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(dist, "from_first", lambda tensors: None)
            syn, objective = started(recipe, data, experts)
            assert recipe.objective.share(objective, False) and ranks > 0
            leaves = {k: v.clone().requires_grad_() for k, v in syn.tensors.items()}
            state = objective.init(generator(1))
            for loss in objective.losses(syn.with_tensors(leaves), state, 0, generator(2)):
                loss.backward()
                total += loss.item()
            for key, leaf in leaves.items():
                if leaf.grad is not None:
                    slopes[key] = slopes.get(key, 0) + leaf.grad
        return total, slopes

    (one, slopes), (several, sums) = gradients(1), gradients(5)
    assert one == pytest.approx(several, rel=1e-5) and slopes.keys() == sums.keys() >= {"images"}
    for key, slope in slopes.items():
        assert torch.allclose(slope, sums[key], rtol=1e-4, atol=1e-7), key


@pytest.mark.parametrize("name", ["krr_st/digits_ipc5_small", "frepo/fashion_mnist_ipc1_small"])
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_pool_is_resumed_to_the_bit(name, stop, data, experts, tmp_path):
    """Wherever a run stops: the set, and all that the pool holds."""
    recipe = small(name)
    recipe = replace(recipe, outer=replace(recipe.outer, checkpoint_every=2))
    syn, objective = started(recipe, data, experts)
    one, two = tmp_path / "one", tmp_path / "two"
    uninterrupted, _ = loop.distill(syn, objective, recipe.outer, one, seed=0)
    with pytest.raises(KeyboardInterrupt):
        loop.distill(syn, StopsAt(objective, stop), recipe.outer, two, seed=0)
    _, again = started(recipe, data, experts)  # as a new process has it
    kept = partial(turns.kept, recipe.objective)
    resumed, _ = loop.distill(syn, again, recipe.outer, two, seed=0, kept=kept)
    for name_of, tensor in uninterrupted.tensors.items():
        assert torch.equal(resumed.tensors[name_of], tensor)
    states = [
        loop.load_checkpoint(folder / loop.CHECKPOINT, CPU)[0].objective for folder in (one, two)
    ]
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert torch.equal(states[1][key], tensor), key


def test_updates_of_a_part_of_the_images(data, experts):
    """At most `batch` of them, drawn from the stream of the step."""
    pool = Pool(size=1, steps=9, batch=7)
    syn, objective = started(small("krr_st/digits_ipc5_small", pool), data, experts)
    asked = []

    class Watched:
        """The set, which keeps what is asked of it."""

        def __len__(self):
            return len(syn)

        def batch(self, index):
            asked.append(sorted(index.tolist()))
            return syn.batch(index)

    networks: Networks = objective.networks
    state = networks.state(generator(0))
    for seed in (1, 1, 2):
        networks._train(Watched(), state, 0, generator(seed))
    assert all(len(set(index)) == 7 for index in asked)
    assert asked[0] == asked[1] != asked[2]


def test_networks_of_published_frepo_see_a_thousand_images_at_most():
    """In one of their updates, as in the released code."""
    assert find("frepo/cifar100_ipc50").objective.pool.batch == 1000


def test_an_estimate_does_not_train_the_whole_pool(data, experts, monkeypatch, tmp_path):
    """A step of each network, and the seconds of the first step as many times as it would have."""
    recipe = small("krr_st/digits_ipc5_small", Pool(size=3, steps=5000))
    trained, now = [], [0.0]
    train = Networks._train

    def counted(*args):
        trained.append(1)
        now[0] += 1.0
        train(*args)

    monkeypatch.setattr(Networks, "_train", counted)
    monkeypatch.setattr(apart.time, "perf_counter", lambda: now[0])
    job = jobs.Job(recipe=recipe, device="cpu", load=lambda *args, **kw: data)
    job = replace(job, open_store=lambda of: experts)
    result = calibrate.distill(time.time(), job, tmp_path, None)
    assert len(trained) == 3 + 5  # as many seconds of later steps as are timed
    assert result["step"] == pytest.approx(1.0)
    # three updates in the first step, one in each later one
    assert result["initial"] == pytest.approx(2.0 * 5000 / 2)
    assert find("dm/fashion_mnist_ipc1_small").objective.quick_start()[1] == 0.0


# FRePo


def test_labels_start_as_centred_classes(data):
    """Divided by the root of a tenth of their number, which is 1 for ten classes."""
    syn, _ = started(small("frepo/fashion_mnist_ipc1_small"), data, None)
    assert torch.allclose(syn.tensors["logits"], centred(syn.classes, 10))
    assert torch.allclose(syn.tensors["logits"].sum(1), torch.zeros(len(syn)), atol=1e-6)
    assert centred(torch.tensor([1]), 4).tolist() == [[-0.25, 0.75, -0.25, -0.25]]


def test_margin_counts_up_to_one_over_the_classes():
    """How far the largest number is above the next."""
    labels = torch.tensor([[0.9, 0.0, -0.9], [0.2, 0.1, -0.3]])
    assert margin_loss(labels) == pytest.approx(-(1 / 3 + 0.1) / 2)


def test_frepo_regresses_on_mirrored_images_too(data):
    """Of images that are their own mirrors only lambda differs, which counts in pairs then."""
    recipe = small("frepo/fashion_mnist_ipc1_small")
    syn, _ = started(recipe, data, None)
    even = syn.tensors["images"] + syn.tensors["images"].flip(3)
    losses = {}
    for flip in (True, False):
        objective = replace(recipe.objective, flip=flip)
        for kind, images in (("own", syn.tensors["images"]), ("even", even)):
            env = environments(recipe, data, CPU, None)[0]
            built = objective.build(env)
            state = built.init(generator(0))
            state["last"] = torch.zeros_like(state["last"])
            built.networks._go_on = lambda *args: None
            same = syn.with_tensors({"images": images})
            (loss,) = built.losses(same, state, 1, generator(0))
            losses[flip, kind] = float(loss)
    assert losses[True, "even"] == pytest.approx(losses[False, "even"], rel=1e-3)
    assert losses[True, "own"] != pytest.approx(losses[False, "own"], rel=1e-2)


# What does not go together


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"targets": TargetConfig()}, "targets.kind class is nothing that this objective can"),
        ({"buffer": None}, "those of a trained network, and buffer is empty"),
        ({"targets": TargetConfig(kind="centred")}, "set targets.kind features"),
        ({"init": InitConfig(kind="noise")}, "it says nothing; set init.kind unlabelled"),
    ],
)
def test_recipes_that_do_not_go_are_refused(changes, sentence):
    """In one sentence, before anything is done."""
    with pytest.raises(UserError, match=sentence):
        replace(find("krr_st/digits_ipc5_small"), **changes)


def test_other_methods_refuse_features():
    """Cross-entropy of features means nothing."""
    recipe = find("mtt/digits_ipc1")
    with pytest.raises(UserError, match=r"set targets\.kind class or logits"):
        replace(recipe, targets=TargetConfig(kind="features"))
    outer = find("krr_st/digits_ipc5_small").outer
    with pytest.raises(UserError, match=r"has a rate for 'features', and targets\.kind class"):
        replace(recipe, outer=outer)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"size": 0}, "objective.pool.size must be at least 1"),
        ({"steps": 1}, "objective.pool.steps must be at least 2"),
        ({"batch": 0}, "objective.pool.batch must be at least 1"),
        ({"optim": OptimConfig(lr=0.1, schedule="linear")}, "has no end to fall to"),
    ],
)
def test_pools_that_do_not_go_are_refused(setting, sentence):
    """In one sentence."""
    with pytest.raises(UserError, match=sentence):
        Pool(**setting)


def test_a_diverged_target_network_is_refused(data, experts):
    """Before the first step."""

    class Diverged:
        """Says nothing finite."""

        epochs = (0,)
        num_experts = 1

        def load(self, expert, epoch):
            network = target_network(experts, CPU)
            for parameter in network.parameters():
                parameter.fill_(torch.nan)
            return network

    with pytest.raises(UserError, match="gives some that are not finite"):
        started(small("krr_st/digits_ipc5_small"), data, Diverged())
    assert InitConfig(kind="unlabelled").kind == find("krr_st/digits_ipc5_small").init.kind
