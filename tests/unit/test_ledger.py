"""Bytes: what a set stores part by part, what each row of an evaluation stores, and the order of
rows by what they are worth.
"""

import math
from dataclasses import replace

import pytest
import torch
from helpers import CPU, tiny_set
from safetensors import safe_open

from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.evaluation import tables
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.ledger import label_bytes
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.pages import overview
from ddengine.recipe import AugmentConfig, DataConfig, EvalConfig
from ddengine.sets.codec import Compensated, Identity, MultiFormation
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import coded
from ddengine.system import log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

MODEL = "convnet-d1-w4-bn"
ROWS = EvalConfig(
    protocol="test", epochs=2, batch=32, augment=AugmentConfig(ops=()), baselines=("random", "random_soft", "hard_labels", "full"), num_networks=3,
    lr_grid=(0.05,), full_steps=3,
)  # fmt: skip
PARTS = ("images", "compensators", "labels", "other")


@pytest.fixture(scope="module")
def data():
    """300 digits with their test split."""
    return load_data(DataConfig(name="digits", limit=300), CPU, test=True)


def teacher(data, seed=0):
    return (
        build_model(MODEL, data.image_shape, data.num_classes, generator(seed))
        .eval()
        .requires_grad_(False)
    )


def compensated(data, soft=True, dtype=torch.float16, top=None):
    """Shipped: 20 natural images, 6 compensators, 80 examples."""
    codec = Compensated(base=2, compensators=6)
    images = data.train.images(random_index(data.train, 2, data.class_names, generator(0, "init")))
    syn = coded(codec, images, torch.arange(20) // 2, data.class_names, data.train.preprocess)
    noise = 0.1 * torch.randn(syn.tensors["compensators"].shape, generator=generator(1))
    syn = syn.with_tensors(
        {k: v.clone() for k, v in syn.tensors.items()} | {"compensators": noise}
    ).shipped()
    return syn.with_labels(torch.randn(80, 10, generator=generator(2)), dtype, top) if soft else syn


def rows_of(syn, data, config=ROWS, **fields):
    """By name."""
    result = evaluate(syn, data, config, MODEL, seed=0, device=CPU, **fields)
    for row in result["rows"]:
        assert row["bytes"] == sum(row["ledger"].values()) and tuple(row["ledger"]) == PARTS
    return {row["set"]: row for row in result["rows"]}


# Of a set


def kinds(data):
    own = replace(tiny_set(data), preprocess=data.train.preprocess)
    codec = MultiFormation(factor=2)
    tiles = coded(
        codec, data.train.images(random_index(data.train, 8, data.class_names, generator(0))), torch.arange(20) // 2, data.class_names,
        data.train.preprocess, {"lr": torch.tensor(0.02)},
    )  # fmt: skip
    logits = torch.randn(80, 10, generator=generator(2))
    return {
        "classes": own,
        "learned rate": tiny_set(data, lr=0.02),
        "bytes": coded(
            Identity(bounded=True),
            own.tensors["images"],
            own.classes,
            data.class_names,
            data.train.preprocess,
        ).shipped(),
        "soft": own.with_labels(logits[:20]),
        "tiles": tiles.with_labels(logits, torch.float16, 4),
        "compensated": compensated(data),
        "compensated, top": compensated(data, top=2),
        "average": compensated(data).with_tensors(
            {"raw.compensators": torch.zeros(6, 1, 8, 8), "raw.logits": torch.zeros(80, 10)}
        ),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "classes",
        "learned rate",
        "bytes",
        "soft",
        "tiles",
        "compensated",
        "compensated, top",
        "average",
    ],
)
def test_the_ledger_is_what_the_files_hold(data, tmp_path, kind):
    """Images, compensators, labels and other are the tensors in the files, each once; preprocessing
    and last iterates are counted apart.
    """
    syn = kinds(data)[kind]
    folders.save(syn, tmp_path / "set", {})
    found = dict.fromkeys((*PARTS, "preprocess", "raw"), 0)
    sizes = {"F32": 4, "F16": 2, "U8": 1, "I64": 8, "I16": 2}
    for name in ("data", "labels"):
        path = tmp_path / "set" / f"{name}.safetensors"
        if not path.exists():
            assert name == "labels" and syn.target_kind == "class"
            continue
        with safe_open(path, "pt") as file:
            total = 0
            for key in file.keys():
                num = (
                    math.prod(file.get_slice(key).get_shape())
                    * sizes[str(file.get_slice(key).get_dtype())]
                )
                part = key.split(".")[0] if key.split(".")[0] in ("preprocess", "raw") else None
                part = part or {
                    "images": "images",
                    "compensators": "compensators",
                    "classes": "labels",
                    "logits": "labels",
                }.get(key.split(".")[0], "other")
                found[part] += num
                total += num
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size == 8 + header + total
    ledger = syn.sizes()
    assert ledger == found | {"total": sum(found[part] for part in PARTS)}
    assert (ledger["raw"] > 0) == (kind == "average") and ledger["preprocess"] == 8
    assert (ledger["compensators"] > 0) == (kind[:4] in ("comp", "aver"))
    shown = overview.ledger(ledger, data.bytes, data.dataset_bytes)
    assert (
        all((f"{part} " in shown) == (ledger[part] > 0) for part in PARTS)
        and f"{100 * ledger['total'] / data.bytes:.3g} %" in shown
    )


def test_bytes_in_words():
    assert [log.size(n) for n in (0, 999, 1000, 12_345, 7_200_000, 3.6e9)] == [
        "0 B",
        "999 B",
        "1 kB",
        "12.3 kB",
        "7.2 MB",
        "3.6 GB",
    ]


# Of rows


@pytest.mark.parametrize(
    ("dtype", "top", "each"),
    [(torch.float16, None, 20), (torch.float32, None, 40), (torch.float16, 2, 8)],
)
def test_rows_with_static_labels(data, dtype, top, each):
    """Each row's parts by hand: 80 labels of the set, 20 of its natural images, as many bytes a
    label for random images, none for classes.
    """
    syn = compensated(data, dtype=dtype, top=top)
    assert label_bytes(syn) == each
    rows = rows_of(syn, data, teachers=[teacher(data)])
    assert list(rows) == ["distilled", "base", "random", "random_soft", "distilled_hard", "full"]
    wanted = {
        "distilled": (20 * 64, 6 * 128, 160 + 80 * each, 4),
        "base": (20 * 64, 0, 160 + 20 * each, 4),
        "random": (30 * 64, 0, 30 * 8, 0),  # round(2.6) images a class
        "random_soft": (30 * 64, 0, 30 * 8 + 30 * each, 0),
        "distilled_hard": (20 * 64, 6 * 128, 160, 4),
        "full": (len(data.train) * 64, 0, len(data.train) * 8, 0),
    }
    assert {name: tuple(row["ledger"].values()) for name, row in rows.items()} == wanted
    assert {name: row["images"] for name, row in rows.items()} == {
        "distilled": 80, "base": 20, "random": 30, "random_soft": 30, "distilled_hard": 80, "full": len(data.train)
    }  # fmt: skip
    assert not any("dynamic_labels" in row for row in rows.values())
    steps = {name: row["steps"] for name, row in rows.items()}
    assert (
        steps["distilled"] == steps["base"] == steps["distilled_hard"] == 3 * 3
        and steps["random"] == steps["random_soft"] == 3
    )


def test_baselines_with_as_many_updates(data):
    """The full data too, but for what their epochs are fewer of; else with as many epochs."""
    rows = rows_of(
        compensated(data), data, replace(ROWS, baseline_steps="updates"), teachers=[teacher(data)]
    )
    assert {row["steps"] for row in rows.values()} == {9}
    longer = rows_of(
        compensated(data),
        data,
        replace(ROWS, baseline_steps="updates", full_steps=12),
        teachers=[teacher(data)],
    )
    assert longer["full"]["steps"] == 12 and longer["random"]["steps"] == 9


def test_the_base_row_is_natural_images_with_their_own_labels(data):
    """Networks trained on the 20 real images by themselves, for as many updates, are just as right."""
    syn = compensated(data)
    row = rows_of(syn, data)["base"]

    class Base:
        def __len__(self):
            return 20

        def batch(self, index):
            return syn.batch(index)

    def new_model(rng):
        return build_model(MODEL, data.image_shape, 10, rng)

    for seed, told in enumerate(row["accuracies"]):
        (network,) = training.train_networks(
            new_model, [Base()], [seed], ROWS, row["lr"], CPU, steps=9
        )
        assert training.accuracy(network, data.test) == told["accuracy"]


def test_sets_of_classes(data):
    """No soft labels are counted, nothing is compared with its own classes, and soft labels of
    random images count four bytes a class.
    """
    rows = rows_of(compensated(data, soft=False), data)
    assert (
        "distilled_hard" not in rows
        and rows["distilled"]["ledger"]["labels"] == rows["base"]["ledger"]["labels"] == 160
    )
    assert (
        rows["random_soft"]["ledger"]["labels"] == 30 * 8 + 30 * 40
        and rows["random"]["ledger"]["labels"] == 240
    )
    hard = rows_of(compensated(data), data, replace(ROWS, labels="hard"))
    assert (
        "distilled_hard" not in hard
        and hard["distilled"]["ledger"]["labels"] == hard["base"]["ledger"]["labels"] == 160
    )


def seen_in(steps, num, batch):
    """Examples in so many updates, batch by batch."""
    sizes = [min(batch, num - first) for first in range(0, num, batch)]
    return sum(sizes[i % len(sizes)] for i in range(steps))


@pytest.mark.parametrize("updates", ["epochs", "updates"])
@pytest.mark.parametrize(("epochs", "smaller"), [(0, "stored"), (12, "teachers")])
def test_dynamic_labels_count_by_the_smaller_of_both_ways(data, epochs, smaller, updates):
    """The weights and statistics of all teachers, or two bytes a class for each example ever seen;
    beside classes, without static labels.
    """
    teachers = [teacher(data, seed) for seed in (0, 1)]
    weights = sum(v.numel() * v.element_size() for t in teachers for v in t.state_dict().values())
    assert weights == 2 * (4 * sum(p.numel() for p in teachers[0].parameters()) + 4 * 4 * 2 + 8)
    config = replace(
        ROWS,
        labels="dynamic",
        epochs=max(1, epochs),
        baseline_steps=updates,
        schedule="cosine",
        full_steps=2,
    )
    rows = rows_of(compensated(data), data, config, teachers=teachers)
    assert {"distilled", "base", "random", "random_soft", "distilled_hard"} <= rows.keys()
    for name, num, classes in (("distilled", 80, 160), ("base", 20, 160), ("random_soft", 30, 240)):
        row = rows[name]
        stored = 2 * 10 * seen_in(row["steps"], num, 32)
        assert row["dynamic_labels"] == {"teachers": weights, "stored": stored}, name
        assert row["ledger"]["labels"] == classes + min(weights, stored), name
    assert rows["distilled"]["steps"] == config.epochs * 3 == rows["base"]["steps"]
    both = rows["distilled"]["dynamic_labels"]
    assert min(both, key=both.get) == smaller
    assert all("dynamic_labels" not in rows[name] for name in ("random", "distilled_hard", "full"))
    assert (
        rows["distilled_hard"]["ledger"]["labels"] == 160
        and rows["random"]["ledger"]["labels"] == 240
    )


def test_dynamic_labels_need_teachers(data):
    with pytest.raises(UserError, match=r"labels dynamic needs the teachers.*--experts"):
        evaluate(
            compensated(data), data, replace(ROWS, labels="dynamic"), MODEL, seed=0, device=CPU
        )


def test_order_of_rows():
    """By accuracy, or by accuracy per byte, the best first; as they are without a wish; rows of one
    order stay in theirs.
    """
    rows = [
        {"set": n, "accuracy_mean": a, "bytes": b}
        for n, a, b in (("a", 0.5, 1000), ("b", 0.9, 9000), ("c", 0.2, 100), ("d", 0.5, 1000))
    ]
    assert [r["set"] for r in tables.sorted_rows(rows, "none")] == ["a", "b", "c", "d"]
    assert [r["set"] for r in tables.sorted_rows(rows, "accuracy")] == ["b", "a", "d", "c"]
    assert [r["set"] for r in tables.sorted_rows(rows, "accuracy_per_byte")] == ["c", "a", "d", "b"]
    assert [r["set"] for r in rows] == ["a", "b", "c", "d"]
