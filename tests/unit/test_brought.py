"""What users bring to an evaluation: networks, a training function, test images; one network
trained alone; and the rule by which networks are trained at once, kept on resume.
"""

import json
from dataclasses import replace

import pytest
import torch
from helpers import CPU, MODEL, tiny_set
from torch import nn

from ddengine.data import load_data
from ddengine.data.realset import RealSet
from ddengine.evaluation import bench, brought, protocol
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.train import train_one
from ddengine.learning import training
from ddengine.learning.training import AtOnce
from ddengine.recipe import AugmentConfig, DataConfig, EvalConfig
from ddengine.sets.targets import Classes
from ddengine.system import files
from ddengine.system.errors import UserError

SHORT = EvalConfig(
    protocol="test",
    epochs=3,
    batch=32,
    augment=AugmentConfig(ops=("flip",)),
    baselines=("random",),
    num_networks=3,
    lr_grid=(0.02, 0.05),
    full_steps=6,
)


@pytest.fixture(scope="module")
def data():
    """400 digits with their test split."""
    return load_data(DataConfig(name="digits", limit=400), CPU, test=True)


class Small(nn.Module):
    """A network of the user, which draws random numbers in training by a function."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.out = nn.Linear(inputs, classes)

    def forward(self, images):
        flat = nn.functional.dropout(images.flatten(1), 0.2, self.training)
        return self.out(self.norm(flat))


def small(image_shape, classes):
    """As `evaluate` asks for it."""
    return Small(image_shape[0] * image_shape[1] * image_shape[2], classes)


def plainly(network, examples, *, lr, updates, generator):
    """A training loop of the user, which also uses torch's global generators."""
    optimiser = torch.optim.SGD(network.parameters(), lr=lr)
    batches = examples.batches(16, generator)
    for _ in range(updates):
        images, targets = next(batches)
        noise = torch.randn(images.shape) / 100
        loss = nn.functional.cross_entropy(network(images + noise), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def rows_of(syn, data, config=SHORT, **options):
    """By set and network, without times."""
    found = evaluate(syn, data, config, MODEL, seed=0, device=CPU, **options)["rows"]
    for row in found:
        del row["seconds"]
    return {(row["set"], row["model"]): row for row in found}


# Networks


def test_a_network_of_the_user_is_a_row_and_repeats_itself(data):
    """Its dropout draws from no global stream that goes on, and global streams stay where they are."""
    syn = tiny_set(data)
    before = torch.get_rng_state()
    first = rows_of(syn, data, factories={"mine": small})
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again = rows_of(syn, data, factories={"mine": small})
    assert list(first) == [("distilled", "mine"), ("random", "mine")] and first == again
    row = first["distilled", "mine"]
    accuracies = [a["accuracy"] for a in row["accuracies"]]
    assert len(set(accuracies)) > 1, "the seeds of the networks do not matter"
    assert row["training_flops"] == 3 * row["examples_seen"] * 2 * 64 * 10
    assert row["optimiser"] == "sgd" and "trained_by" not in row


def test_networks_of_the_user_stand_beside_ours_without_moving_them(data):
    syn = tiny_set(data)
    config = replace(SHORT, models=(MODEL,))
    both = rows_of(syn, data, config, factories={"mine": small})
    ours = rows_of(syn, data, config)
    assert [model for _, model in both] == [MODEL, MODEL, "mine", "mine"]
    assert {key: both[key] for key in ours} == ours


@pytest.mark.parametrize(
    ("factories", "said"),
    [
        ({"resnet18-mine": small}, "'resnet18-mine' that you bring has the name of one of ours"),
        ({"mine": lambda shape, classes: "network"}, "returned str"),
        ({"mine": lambda shape, classes: small(shape, classes + 1)}, r"gives \(2, 11\)"),
        ({"mine": lambda shape, classes, one=Small(64, 10): one}, "the same network twice"),
    ],
)
def test_what_is_no_factory_is_refused_in_a_sentence(data, factories, said):
    with pytest.raises(UserError, match=said):
        evaluate(tiny_set(data), data, SHORT, MODEL, seed=0, device=CPU, factories=factories)


def test_layers_without_a_size_are_initialised_from_the_seed(data):
    def lazy(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

    made = [
        brought.build(lazy, data.image_shape, 10, torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    weights = [network[1].weight for network in made]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    rows = rows_of(tiny_set(data), data, factories={"lazy": lazy})
    assert rows["distilled", "lazy"]["n"] == 3


# A training function


def test_a_training_function_of_the_user_trains_every_network_and_is_named(data):
    calls = []

    def counting(network, examples, **rest):
        calls.append((len(examples), rest["lr"], rest["updates"]))
        return plainly(network, examples, **rest)

    syn = tiny_set(data)
    rows = rows_of(syn, data, train=counting)
    assert rows == rows_of(syn, data, train=counting), "the function draws other numbers each time"
    for row in rows.values():
        assert row["trained_by"] == "counting"
        # what it does is not known
        assert not {"optimiser", "examples_seen", "training_flops"} & row.keys()
    # two rates by one network, then three networks, for both sets, twice
    assert len(calls) == 2 * 2 * (2 + 3)
    assert {lr for _, lr, _ in calls} == {0.02, 0.05}
    assert {updates for _, _, updates in calls} == {training.num_updates(20, SHORT)}
    assert (
        rows["distilled", MODEL]["accuracy_mean"]
        != rows_of(syn, data)["distilled", MODEL]["accuracy_mean"]
    )


def test_images_are_chosen_alike_whatever_trains_the_reported_networks(data):
    """Herding looks through a network of our loop, so its images are the same."""
    config, seen = replace(SHORT, baselines=("herding",)), []

    def watching(network, examples, **rest):
        seen.append(examples.of)
        return plainly(network, examples, **rest)

    rows_of(tiny_set(data), data, config, train=watching)
    mine = seen[-1].index if hasattr(seen[-1], "index") else seen[-1].batch(torch.arange(20)).images
    asked, real = [], training.train_networks

    def spy(new_model, sets, *args, **options):
        asked.append(sets[-1])
        return real(new_model, sets, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_networks", spy)
        rows_of(tiny_set(data), data, config)
    ours = asked[-1]
    theirs = ours.index if hasattr(ours, "index") else ours.batch(torch.arange(20)).images
    assert torch.equal(mine, theirs)


def test_soft_labels_and_classes_reach_the_function(data):
    syn = tiny_set(data).with_labels(
        torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    )
    kinds = set()

    def looking(network, examples, **rest):
        _, targets = examples.batch(torch.arange(2))
        kinds.add((tuple(targets.shape), targets.dtype))
        return plainly(network, examples, **rest)

    rows_of(syn, data, replace(SHORT, baselines=("hard_labels",)), train=looking)
    assert kinds == {((2, 10), torch.float32), ((2,), torch.int64)}


def test_a_function_that_returns_nothing_and_dynamic_labels_are_refused(data):
    with pytest.raises(UserError, match="returned NoneType"):
        rows_of(tiny_set(data), data, train=lambda network, examples, **rest: None)
    config = replace(SHORT, labels="dynamic")
    teacher = small(data.image_shape, 10)
    with pytest.raises(UserError, match="a training function of your own"):
        rows_of(tiny_set(data), data, config, train=plainly, teachers=[teacher])


def test_a_set_evaluated_by_a_function_of_the_user_says_no_protocol_of_ours(data):
    """Its load.py must not train as if it were ours."""
    result = evaluate(tiny_set(data), data, SHORT, MODEL, seed=0, device=CPU, train=plainly)
    assert protocol.of_evaluation(result, MODEL, targets=Classes(), learned=None) is None
    ours = evaluate(tiny_set(data), data, SHORT, MODEL, seed=0, device=CPU)
    assert protocol.of_evaluation(ours, MODEL, targets=Classes(), learned=None) is not None


# What is remembered


def interrupted(syn, data, path, after, **options):
    """The keys in the memory of an evaluation that was stopped after so many trainings."""
    original, calls = bench.Bench.accuracies, []

    def stopping(self, *args):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(args)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.Bench, "accuracies", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate(syn, data, SHORT, MODEL, seed=0, device=CPU, memo_path=path, **options)
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_only_what_has_a_name_and_a_file_is_remembered(data, tmp_path):
    """A closure may be another one in the next process, and a changed file computes other numbers."""
    syn = tiny_set(data)
    named = interrupted(syn, data, tmp_path / "named", 2, train=plainly)
    chosen = ["at_once", "threads", "processes"]
    assert [key.rpartition("/")[2].split("@")[0] for key in named] == [*chosen, *["plainly"] * 2]
    closure = interrupted(
        syn, data, tmp_path / "closure", 2, train=lambda *a, **k: plainly(*a, **k)
    )
    assert closure == chosen
    networks = interrupted(syn, data, tmp_path / "networks", 2, factories={"mine": small})
    assert [key.rpartition("/")[2].split("@")[0] for key in networks] == [*chosen, *["small"] * 2]
    assert brought.stable_name(Small).startswith("Small@")
    assert rows_of(syn, data, memo_path=tmp_path / "named", train=plainly) == rows_of(
        syn, data, train=plainly
    )


def test_keys_of_what_is_ours_are_those_of_before(data, tmp_path):
    keys = interrupted(tiny_set(data), data, tmp_path / "memo", 4)
    assert keys == [
        "at_once",
        "threads",
        "processes",
        f"search/distilled/{MODEL}/0.02",
        f"search/distilled/{MODEL}/0.05",
        keys[5],
        f"search/random/{MODEL}/0.02",
    ]
    assert keys[5] in (f"final/distilled/{MODEL}/0.02", f"final/distilled/{MODEL}/0.05")


def test_test_images_of_the_user_take_the_place_of_the_splits(data, tmp_path):
    """And what is remembered of an interrupted evaluation belongs to them."""
    syn, wrong = tiny_set(data), data.test
    shifted = RealSet(
        wrong.pixels, (wrong.labels + 1) % 10, 10, wrong.preprocess, class_names=data.class_names
    )
    path = tmp_path / "memo"
    interrupted(syn, data, path, 3)
    result = evaluate(syn, data, SHORT, MODEL, seed=0, device=CPU, test=shifted, memo_path=path)
    usual = evaluate(syn, data, SHORT, MODEL, seed=0, device=CPU)
    assert result["own_test"] == shifted.digest and "own_test" not in usual
    row, other = result["rows"][0], usual["rows"][0]
    assert row["lr"] == other["lr"] and row["accuracy_mean"] < other["accuracy_mean"]
    half = RealSet(
        wrong.pixels[::2], wrong.labels[::2], 10, wrong.preprocess, class_names=data.class_names
    )
    counted = evaluate(syn, data, SHORT, MODEL, seed=0, device=CPU, test=half)
    assert counted["num_images"]["test"] == len(half)


# At once


def test_networks_are_trained_at_once_as_the_evaluation_began(data, tmp_path):
    """A resumed one obeys the memory, not the machine it is resumed on."""
    syn, path, asked = tiny_set(data), tmp_path / "memo", []
    interrupted(syn, data, path, 2)
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    assert first["value"] == {"below": 0, "pixels": training.MOST_PIXELS_CPU}
    first["value"] = {"below": 0, "pixels": 7}
    path.write_text("\n".join([json.dumps(files.sealed(first)), *lines[1:]]) + "\n")
    original = training.train_networks

    def spy(*args, at_once=None, **options):
        asked.append(at_once)
        return original(*args, at_once=at_once, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_networks", spy)
        result = evaluate(syn, data, SHORT, MODEL, seed=0, device=CPU, memo_path=path)
    assert asked and set(asked) == {AtOnce(0, 7)}
    assert result["at_once"] == {"below": 0, "pixels": 7}


def test_a_memory_from_before_goes_on(data, tmp_path):
    """One without the rule: the device of now decides it, and finished trainings count."""
    syn, path = tiny_set(data), tmp_path / "memo"
    interrupted(syn, data, path, 3)
    lines = path.read_text().splitlines()[1:]
    path.write_text("\n".join(lines) + "\n")
    calls, original = [], bench.Bench.accuracies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bench.Bench, "accuracies", lambda self, *a: (calls.append(a), original(self, *a))[1]
        )
        evaluate(syn, data, SHORT, MODEL, seed=0, device=CPU, memo_path=path)
    assert len(calls) == 3, "of two searches and a row for each of two sets"


@pytest.mark.parametrize(
    ("rule", "together"),
    [
        (AtOnce(32, 0), False),
        (AtOnce(33, 0), True),
        (AtOnce(0, 191), False),
        (AtOnce(0, 192), True),
    ],
)
def test_the_rule_counts_images_and_pixels(rule, together):
    """Three networks, 32 images of 2 pixels each."""
    assert rule.together(3, 32, 2) is together


# One network


@pytest.mark.parametrize("model", [MODEL, "mlp"])
def test_one_network_is_that_of_the_evaluation(data, model):
    """Of the same seed and rate, to the bit, where networks are trained one after another."""
    syn = tiny_set(data, ipc=4)
    config = replace(SHORT, models=(model,), batch=40)
    row = rows_of(syn, data, config)["distilled", model]
    for told in row["accuracies"]:
        network = train_one(syn, model, config, seed=told["seed"], device=CPU, lr=row["lr"])
        assert not network.training
        assert training.accuracy(network, data.test) == told["accuracy"]


def test_one_network_of_the_user_is_that_of_the_evaluation(data):
    syn = tiny_set(data)
    row = rows_of(syn, data, factories={"mine": small})["distilled", "mine"]
    for told in row["accuracies"]:
        network = train_one(syn, small, SHORT, seed=told["seed"], device=CPU, lr=row["lr"])
        assert training.accuracy(network, data.test) == told["accuracy"]
    given = Small(64, 10)
    start = {key: value.clone() for key, value in given.state_dict().items()}
    trained = train_one(syn, given, SHORT, seed=0, device=CPU)
    assert all(torch.equal(start[key], value) for key, value in given.state_dict().items())
    assert not torch.equal(trained.out.weight, given.out.weight)


def test_one_network_has_the_learned_rate_where_it_belongs(data, monkeypatch):
    rates, original = [], training.train_networks

    def spy(*args, **options):
        rates.append(args[4])
        return original(*args, **options)

    monkeypatch.setattr(training, "train_networks", spy)
    syn = tiny_set(data, lr=0.07)
    for options in (
        {"home": MODEL},
        {},
        {"home": "mlp"},
        {"home": MODEL, "lr": 0.3},
    ):
        train_one(syn, MODEL, SHORT, seed=0, device=CPU, **options)
    assert rates == pytest.approx([0.07, 0.01, 0.01, 0.3])


def test_real_images_are_trained_on_as_well(data):
    network = train_one(
        data.train, "mlp", replace(SHORT, epochs=4), seed=0, device=CPU, num_classes=10
    )
    assert training.accuracy(network, data.test) > 0.3
