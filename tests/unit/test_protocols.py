"""Protocols as published, and what an evaluation says of sets whose codec decodes more examples
than it stores.
"""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU, MODEL, tiny_set
from rich.console import Console

from ddengine.data import load_data
from ddengine.evaluation import tables
from ddengine.evaluation.bench import Bench
from ddengine.evaluation.contenders import most_within, of_codec
from ddengine.evaluation.decoded import freeze
from ddengine.evaluation.evaluate import evaluate
from ddengine.learning import training
from ddengine.recipe import DSA_OPS, AugmentConfig, DataConfig, EvalConfig
from ddengine.sets.codec import CODECS, MultiFormation, Quantised
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import coded
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.recipes.protocols import PROTOCOLS

DIGITS = DataConfig(name="digits", limit=400)
SHORT = EvalConfig(
    protocol="test",
    epochs=3,
    batch=32,
    augment=AugmentConfig(ops=()),
    baselines=("random",),
    num_networks=3,
    lr_grid=(0.05,),
    full_steps=6,
)


@pytest.fixture(scope="module")
def data():
    """400 digits with their test split."""
    return load_data(DIGITS, CPU, test=True)


def tiled(data, ipc=2, factor=2, **scalars):
    """Random real images, packed."""
    codec = MultiFormation(factor=factor)
    index = random_index(data.train, ipc * factor**2, data.class_names, generator(0, "init"))
    classes = torch.arange(data.num_classes).repeat_interleave(ipc)
    learned = {k: torch.tensor(v) for k, v in scalars.items()}
    return coded(
        codec, data.train.images(index), classes, data.class_names, data.train.preprocess, learned
    )


def rows_of(syn, data, config=SHORT):
    """By name."""
    return {
        row["set"]: row for row in evaluate(syn, data, config, MODEL, seed=0, device=CPU)["rows"]
    }


# Protocols


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "lr_drop", "schedule", "cutmix", "always", "ops"),
    [
        ("mtt", 1000, 256, 0.1, "half", 0.0, (), DSA_OPS),
        ("dc", 300, 256, 0.1, "half", 0.0, (), ()),
        ("dsa", 1000, 256, 0.1, "half", 0.0, (), DSA_OPS),
        ("idc", 1000, 64, 0.2, "thirds", 0.5, ("flip", "color"), ("crop", "scale", "rotate")),
    ],
)
def test_protocols_hold_the_published_numbers(
    name, epochs, batch, lr_drop, schedule, cutmix, always, ops
):
    config = PROTOCOLS[name]
    assert config.protocol == name
    assert (config.epochs, config.batch, config.lr_drop, config.schedule, config.cutmix) == (
        epochs,
        batch,
        lr_drop,
        schedule,
        cutmix,
    )
    assert (config.augment.always, config.augment.ops) == (always, ops)
    assert (config.lr, config.momentum, config.momentum_after, config.weight_decay) == (
        0.01,
        0.9,
        0.9,
        5e-4,
    )


def test_when_the_published_rates_drop():
    points = {
        name: [(p.epoch, pytest.approx(p.lr)) for p in training.schedule(PROTOCOLS[name], 0.01)]
        for name in ("dc", "dsa", "idc")
    }
    assert points == {
        "dc": [(0, 0.01), (152, 0.001)],
        "dsa": [(0, 0.01), (502, 0.001)],
        "idc": [(0, 0.01), (666, 0.002), (833, 0.0004)],
    }
    assert [training.num_updates(100, PROTOCOLS[name]) for name in points] == [301, 1001, 2000]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_probability_that_is_none_is_refused_in_a_sentence(value):
    with pytest.raises(
        UserError,
        match=r"evaluation\.cutmix is a probability and must lie within 0 and 1, got .*; 0 mixes no batch\.",
    ):
        replace(PROTOCOLS["idc"], cutmix=value)


# Images and bytes


def test_rows_say_what_is_stored(data):
    """Digits are 64 bytes and 8 of a class; a distilled value is 4, its learned rate 4 more; logits
    4 a class.
    """
    config = replace(SHORT, baselines=("random", "random_soft", "full"))
    rows = rows_of(tiny_set(data, ipc=2, lr=0.05), data, config)
    num = len(data.train)
    assert {name: (row["images"], row["bytes"]) for name, row in rows.items()} == {
        "distilled": (20, 20 * (64 * 4 + 8) + 4), "random": (20, 20 * (64 + 8)), "random_soft": (20, 20 * (64 + 8 + 40)), "full": (num, num * 72),
    }  # fmt: skip


# Codecs


def test_a_set_of_tiles_is_also_trained_for_the_steps_of_a_plain_set_and_beside_random_tiles(data):
    """20 stored images, 80 decoded, batches of 32: 3 updates an epoch in place of 1."""
    syn = tiled(data, lr=0.04)
    rows = rows_of(syn, data)
    assert list(rows) == ["distilled", "distilled_same_steps", "random_coded", "random"]
    assert {name: (row["images"], row["steps"]) for name, row in rows.items()} == {
        "distilled": (80, 12), "distilled_same_steps": (80, 4), "random_coded": (80, 12), "random": (20, 4)
    }  # fmt: skip
    plain = 20 * (64 * 4 + 8)
    assert [
        rows[name]["bytes"] for name in ("distilled", "distilled_same_steps", "random_coded")
    ] == [plain + 4, plain + 4, plain]
    assert [a["draw"] for a in rows["random_coded"]["accuracies"]] == [0, 1, 2]


def test_a_plain_set_and_one_of_equal_steps_have_no_such_rows(data):
    assert list(rows_of(tiny_set(data), data)) == ["distilled", "random"]
    assert list(rows_of(tiled(data), data, replace(SHORT, batch=128))) == [
        "distilled",
        "random_coded",
        "random",
    ]
    assert list(rows_of(tiled(data, factor=1), data)) == ["distilled", "random"]


def test_random_images_are_coded_once_a_draw(data, monkeypatch):
    """Not again at each learning rate, because a codec may be fitted to them for minutes."""
    num_images = []
    pack = MultiFormation.pack

    def counted(self, images, *rest):
        num_images.append(len(images))
        return pack(self, images, *rest)

    syn = tiled(data)
    monkeypatch.setattr(MultiFormation, "pack", counted)
    config = replace(SHORT, baselines=(), lr_grid=(0.01, 0.03, 0.1), num_networks=3)
    rows_of(syn, data, config)
    assert num_images == [80, 80, 80]


def test_random_tiles_are_what_the_codec_makes_of_random_images(data):
    """The networks of the row are those trained on random images that were packed by hand, each on
    its own draw.
    """
    config = replace(SHORT, baselines=(), epochs=20)
    row = rows_of(tiled(data), data, config)["random_coded"]
    for i, found in enumerate(row["accuracies"]):
        syn = tiled(data)
        index = random_index(data.train, 8, data.class_names, generator(0, "random_coded", i))
        pixels = data.train.pixels[index].float() / 255
        small = pixels[:, :, ::2, ::2]  # the nearest pixels of half as many
        quarters = small.view(20, 4, 1, 4, 4)
        upper, lower = (
            torch.cat((quarters[:, 0], quarters[:, 1]), 3),
            torch.cat((quarters[:, 2], quarters[:, 3]), 3),
        )
        syn = syn.with_tensors({"images": torch.cat((upper, lower), 2)})
        again = evaluate(syn, data, replace(config, num_networks=i + 1), MODEL, seed=0, device=CPU)[
            "rows"
        ][0]
        assert abs(again["accuracies"][i]["accuracy"] - found["accuracy"]) < 0.02
    assert row["accuracy_mean"] > 0.3


@pytest.mark.parametrize("name", [name for name, of in CODECS.items() if of().small().approximates])
def test_real_images_in_a_codec_are_what_it_ships(data, name):
    """A codec may learn more than it ships: beside a set stands what as many bytes decode to."""
    codec, items = CODECS[name]().small().fit(2, data.image_shape, data.num_classes)

    def in_codec(codec, items, *seed):
        index = random_index(data.train, items * codec.per_item, data.class_names, generator(*seed))
        images, preprocess = data.train.images(index), data.train.preprocess
        classes = torch.arange(data.num_classes).repeat_interleave(items)
        return coded(codec, images, classes, data.class_names, preprocess).shipped()

    syn = in_codec(codec, items, 0, "init")
    bench = SimpleNamespace(data=data, config=SHORT, seed=0, device=CPU)
    (row,) = [
        who for who in of_codec(bench, syn, freeze(syn, CPU), None) if who.name == "random_coded"
    ]
    beside = syn.codec.of_real_images()
    if beside.holding(1) is not None:  # other images are compressed otherwise
        items = len(row.sets(0)) // data.num_classes
        one_more = in_codec(beside.holding(items + 1), items + 1, 0, "random_coded", 0)
        assert row.sets(0).ledger != one_more.ledger and one_more.nbytes > syn.nbytes
        assert sum(row.sets(0).ledger.values()) <= syn.nbytes
        assert len(row.sets(0)) == len(row.sets(1)) == len(row.sets(2))
        beside = beside.holding(items)
    shipped = in_codec(beside, items, 0, "random_coded", 0)
    found = row.sets(0)
    assert torch.equal(found.images, shipped.batch(torch.arange(len(shipped))).images)
    assert found.ledger == shipped.ledger


def test_networks_on_draws_of_compressed_images_are_trained_together(data):
    """All draws have as many images, those of a coreset too, for the updates of the set."""
    codec, items = Quantised(bits=8).fit(3, data.image_shape, data.num_classes)
    index = random_index(data.train, items, data.class_names, generator(0, "init"))
    classes = torch.arange(data.num_classes).repeat_interleave(items)
    noise = torch.randn(len(index), *data.image_shape, generator=generator(1))
    syn = coded(codec, noise, classes, data.class_names, data.train.preprocess).shipped()
    config = replace(SHORT, baselines=("herding",), num_networks=4)
    rows = rows_of(syn, data, config)
    for name in ("random_coded", "herding_coded"):
        assert rows[name]["images"] > rows["distilled"]["images"]
        assert rows[name]["steps"] == rows["distilled"]["steps"]
        assert rows[name]["n"] == 4


@pytest.mark.parametrize("power", [0.9, 1.5])
@pytest.mark.parametrize("num_bytes", [5, 105, 150, 1000])
@pytest.mark.parametrize("most", [15, 99])
@pytest.mark.parametrize("first", [1, 10, 17, 60])
def test_the_largest_number_within_some_bytes(first, most, num_bytes, power):
    """Of bytes that do not grow evenly; 1 where even that has more."""
    tried = []

    def size(number):
        tried.append(number)
        return int(90 + 12 * number**power)

    within = [number for number in range(1, most + 1) if size(number) <= num_bytes]
    tried.clear()
    assert most_within(num_bytes, size, first, most) == max(within, default=1)
    assert len(tried) == len(set(tried)) < 25 and max(tried) <= most


def test_without_a_validation_split_the_learned_rate_is_that_of_the_distilled_set_only(data):
    rows = rows_of(tiled(data, lr=0.04), replace(data, validation=None))
    assert {name: row["lr"] for name, row in rows.items()} == pytest.approx(
        {"distilled": 0.04, "distilled_same_steps": 0.04, "random_coded": 0.01, "random": 0.01}
    )


def test_the_rate_is_the_best_on_average_over_the_search_networks(data, monkeypatch):
    """Not that of the luckiest network; of rates that are equally good the smallest."""
    found = {0.05: (0.5, 0.5), 0.1: (0.9, 0.3), 0.2: (0.6, 0.6)}  # mean 0.5, 0.6, 0.6

    def accuracies(self, asked):
        said = [0.5] * len(asked.seeds)
        if asked.split == "validation":
            said = [found[asked.lr][draw] for draw in asked.draws]
        return [training.Classified((accuracy * 10,) * 10, (10,) * 10) for accuracy in said]

    monkeypatch.setattr(Bench, "accuracies", accuracies)
    config = replace(SHORT, baselines=(), lr_grid=tuple(found), search_networks=2)
    assert rows_of(tiny_set(data), data, config)["distilled"]["lr"] == 0.1
    found[0.2] = (0.61, 0.61)
    assert rows_of(tiny_set(data), data, config)["distilled"]["lr"] == 0.2


# The table


def row_of(name, **more):
    """A row of evaluation.json."""
    return {
        "set": name, "model": "mlp", "images": 20, "bytes": 5280, "accuracy_mean": 0.712, "accuracy_std": 0.021, "ci95": [0.691, 0.733],
        "n": 5, "lr": 0.03, "steps": 5000, "seconds": 12.0,
    } | more  # fmt: skip


def shown(*rows):
    """What a terminal of 80 characters shows."""
    console = Console(width=80, file=io.StringIO())
    console.print(tables.table({"rows": rows}, "title"))
    return console.file.getvalue()


def test_the_table_has_the_columns_that_80_characters_have_room_for():
    usual = shown(row_of("full"), row_of("random_soft"))
    assert all(
        text in usual
        for text in ("71.2 ± 2.1", "69.1 to 73.3", "0.03", "5000", "5.28 kB", "random_soft")
    )
    long = shown(row_of("full"), row_of("distilled_same_steps"))
    assert "12 s" not in usual + long and all(
        text in long
        for text in ("71.2 ± 2.1", "69.1 to 73.3", "0.03", "5000", "distilled_same_steps")
    )
    several = shown(row_of("distilled_same_steps"), row_of("full", model="convnet-d3-w128-in"))
    assert (
        "5000" not in several
        and "5.28" not in several
        and all(text in several for text in ("71.2 ± 2.1", "69.1 to 73.3", "convnet-d3-w128-in"))
    )
    assert "…" not in usual + long + several
