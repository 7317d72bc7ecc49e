"""Expert stores: contents, partial reading, resume, damage."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CPU, DIGITS, MODEL, new_model, tiny_data, tiny_store

from buffers import store
from buffers.experts import generate
from buffers.steps import Sgd
from buffers.store import ExpertStore, StoreGroup
from buffers.train import train_expert
from ddengine.learning import augment, training
from ddengine.learning.flat import flatten
from ddengine.learning.teachers import ensemble_logits, load_all, predict
from ddengine.recipe import AugmentConfig, BufferConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

NO_AUGMENT = AugmentConfig(ops=())


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def buffer_config(**fields):
    return BufferConfig(
        **({"step": Sgd(lr=0.05), "num_experts": 2, "epochs": 3, "batch": 64} | fields)
    )


def fill(folder, data, model=MODEL, **fields):
    config = buffer_config(**fields)
    generate(data, DIGITS, config, model, new_model(data, model), folder)
    return ExpertStore(folder, new_model(data, model))


def test_snapshots_are_independent_of_later_training(data, tmp_path):
    """Every epoch differs from every other, and equals a training that stopped there."""
    long = fill(tmp_path / "long", data)
    rows = long.snapshots(0, [0, 1, 2, 3])
    assert rows.dtype == torch.float32 and rows.shape == (4, long.num_params)
    assert all((rows[i] - rows[j]).norm() > 1e-3 for i in range(4) for j in range(i))
    short = fill(tmp_path / "short", data, epochs=2)
    assert torch.equal(short.snapshots(0, [0, 1, 2]), rows[:3])


def test_expert_equals_a_plain_loop(data):
    """The changes of one epoch against torch.optim.SGD written out, with the same order and
    augmentation.
    """
    config = buffer_config(epochs=1, step=Sgd(lr=0.05, momentum=0.9, weight_decay=1e-3), seed=7)
    network = new_model(data)(generator(5))
    start = flatten(network)
    trajectory = train_expert(network, data, config, expert=1)
    theirs = new_model(data)(generator(5))
    sgd = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    for i, index in enumerate(
        training.epoch_batches(len(data.train), 64, generator(7, "expert", 1, "order", 0))
    ):
        draw = augment.sample(
            config.augment, len(index), generator(7, "expert", 1, "augment", 0, i)
        )
        images, labels = data.train.batch(index)
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(
            theirs(augment.apply(config.augment, images, draw)), labels
        ).backward()
        sgd.step()
    assert (flatten(theirs) - start).norm() > 0.01
    assert torch.allclose(trajectory.params[1] - start, flatten(theirs) - start, atol=1e-6)


def test_experts_learn_and_say_so(data, tmp_path):
    """Accuracy and loss by epoch are in the shard."""
    metrics = fill(tmp_path, data, epochs=6, augment=NO_AUGMENT, step=Sgd(lr=0.3)).metrics(0)
    assert len(metrics["validation_accuracy"]) == len(metrics["train_loss"]) == 6
    assert metrics["train_loss"][-1] < 0.8 * metrics["train_loss"][0]
    assert metrics["seconds"] > 0


@pytest.mark.parametrize(
    ("keep", "epochs"), [("last", [3]), ((1, 2), [1, 2]), ("all", [0, 1, 2, 3])]
)
def test_keep(data, tmp_path, keep, epochs):
    """Only the epochs asked for are stored, with their own numbers."""
    full, part = fill(tmp_path / "all", data), fill(tmp_path / "part", data, keep=keep)
    assert list(part.epochs) == epochs
    assert torch.equal(part.snapshots(1, epochs), full.snapshots(1, epochs))


def test_decay_lowers_the_rate_after_the_middle(data):
    """MTT's --decay: epochs 0..E//2+1 are as without it, later ones smaller."""
    runs = [
        train_expert(
            new_model(data)(generator(5)),
            data,
            buffer_config(epochs=4, step=Sgd(lr=0.05, decay=d)),
            0,
        ).params
        for d in (1.0, 0.1)
    ]
    assert torch.equal(runs[0][:5], runs[1][:5])  # E = 4: the drop would come in epoch 4
    runs = [
        train_expert(
            new_model(data)(generator(5)),
            data,
            buffer_config(epochs=5, step=Sgd(lr=0.05, decay=d)),
            0,
        ).params
        for d in (1.0, 0.1)
    ]
    assert torch.equal(runs[0][:5], runs[1][:5])
    moves = [(r[5] - r[4]).norm() for r in runs]
    assert moves[1] < 0.3 * moves[0]


def test_bfloat16_halves_the_shard(data, tmp_path):
    """Half the bytes, values within bfloat16 rounding, read as float32."""
    exact, half = fill(tmp_path / "a", data), fill(tmp_path / "b", data, dtype="bfloat16")
    sizes = [store.shard_path(s.folder, 0).stat().st_size for s in (exact, half)]
    assert sizes[1] < 0.6 * sizes[0]
    a, b = exact.snapshots(0, [2]), half.snapshots(0, [2])
    assert b.dtype == torch.float32 and 0 < (a - b).abs().max() <= a.abs().max() / 128


def test_batchnorm_buffers_travel(data, tmp_path):
    """`load` gives the network as it was, in evaluation mode: same logits as the trained one."""
    model = "convnet-d1-w4-bn"
    config = buffer_config(epochs=2)
    network = new_model(data, model)(generator(0, "expert", 0, "network"))
    train_expert(network, data, config, 0)
    loaded = fill(tmp_path, data, model=model, epochs=2).load(0, 2)
    images = data.train.images(torch.arange(20))
    assert not loaded.training
    assert torch.allclose(loaded(images), network.eval()(images), atol=1e-6)
    assert any("running_mean" in name for name, _ in loaded.named_buffers())


def test_finished_experts_are_not_trained_again(data, tmp_path):
    """A second call leaves the files alone, a larger number adds to them, and a lost one is made
    the same.
    """
    first = fill(tmp_path, data)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("expert_*")}
    wanted = first.snapshots(0, [3])
    fill(tmp_path, data, num_experts=3)
    assert len(store.finished(tmp_path)) == 3
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    store.shard_path(tmp_path, 0).unlink()
    (tmp_path / ".writing-expert_0000.safetensors").write_bytes(b"half")
    assert torch.equal(fill(tmp_path, data).snapshots(0, [3]), wanted)
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 4},
        {"batch": 32},
        {"step": Sgd(lr=0.04)},
        {"augment": NO_AUGMENT},
        {"keep": "last"},
        {"dtype": "bfloat16"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_are_another_store(data, tmp_path, change):
    """Everything that decides the content is in the fingerprint, and the refusal names what
    differs.
    """
    tiny_store(tmp_path, data)
    with pytest.raises(UserError, match=f"buffer.*{next(iter(change))}"):
        fill(tmp_path, data, **change)


def test_a_different_image_seed_or_network_is_another_store():
    """Images, how they are seen, seed and network decide too; the number of experts does not."""
    base = store.identity("abc", DIGITS, buffer_config(), MODEL, "fp32")
    assert base == store.identity("abc", DIGITS, buffer_config(num_experts=9), MODEL, "fp32")
    others = [
        ("abd", 0, MODEL, "fp32"),
        ("abc", 0, "mlp", "fp32"),
        ("abc", 1, MODEL, "fp32"),
        ("abc", 0, MODEL, "bf16"),
    ]
    for images, seed, *rest in others:
        assert store.identity(images, DIGITS, buffer_config(seed=seed), *rest) != base
    for seen in (replace(DIGITS, zca=True), replace(DIGITS, name="mnist")):
        assert store.identity("abc", seen, buffer_config(), MODEL, "fp32") != base


def test_a_store_that_has_grown_gives_the_same_experts(data, tmp_path):
    """A run asks for a number and gets exactly those; too few are refused."""
    fill(tmp_path, data, num_experts=3)
    assert ExpertStore(tmp_path, num_experts=2).experts == [0, 1]
    with pytest.raises(UserError, match=r"3 of the 4 experts.*buffer"):
        ExpertStore(tmp_path, num_experts=4)


def test_a_shard_of_another_store_is_refused(data, tmp_path):
    """Same network, other settings: the fingerprint in the shard tells."""
    fill(tmp_path / "a", data)
    fill(tmp_path / "b", data, batch=32)
    store.shard_path(tmp_path / "a", 1).write_bytes(
        store.shard_path(tmp_path / "b", 1).read_bytes()
    )
    with pytest.raises(UserError, match=r"expert_0001.*another store"):
        ExpertStore(tmp_path / "a")


def test_truncated_shard_is_named(data, tmp_path):
    """One sentence with the path and what to do."""
    tiny_store(tmp_path, data)
    path = store.shard_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"expert_0001.*damaged.*run the buffer command"):
        ExpertStore(tmp_path)


def test_only_the_rows_asked_for_are_read(tmp_path):
    """Drawing a segment from a 200 MB shard does not bring the file into memory."""
    epochs, num_params = 50, 1_000_000
    (tmp_path / "manifest.json").write_text(
        json.dumps({"fingerprint": "x", "identity": {}, "epochs": list(range(epochs))})
    )
    values = torch.arange(epochs, dtype=torch.float32)[:, None].expand(-1, num_params).contiguous()
    store.write_expert(tmp_path, 0, values, None, "float32", {})
    reader = ExpertStore(tmp_path)
    rows = reader.snapshots(0, [3, 17])
    assert rows[:, 0].tolist() == [3.0, 17.0]
    assert 4e6 < mapped(tmp_path) < 40e6  # two rows are 8 MB
    reader.snapshots(0, range(epochs))
    assert mapped(tmp_path) > 150e6  # the measure does see a file that is read whole


def mapped(folder) -> int:
    """Bytes of the folder's shards that this process has mapped into memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_preprocess_is_stored(data, tmp_path):
    """Experts and images must be seen through the same numbers."""
    tiny_store(tmp_path, data)
    kept = store.stored_preprocess(tmp_path)
    assert kept is not None and torch.equal(kept.mean, data.train.preprocess.mean.to(CPU))


# Several stores as one


def test_a_group_is_its_stores_in_order(data, tmp_path):
    """Networks of different kinds, those of the first store first, each with its own weights and
    statistics.
    """
    a = tiny_store(tmp_path / "a", data, model="convnet-d1-w4-bn", num_experts=2, keep="last")
    b = tiny_store(tmp_path / "b", data, model="convnet-d2-w8-bn", num_experts=1, keep="last")
    group = StoreGroup([a, b])
    assert group.num_experts == 3 and list(group.epochs) == [3] and group.num_params == a.num_params
    images = data.train.images(torch.arange(10))
    for number, (store_, own) in enumerate(((a, 0), (a, 1), (b, 0))):
        network = group.load(number, 3)
        assert torch.equal(network(images), store_.load(own, 3)(images)) and not network.training
        assert torch.equal(group.snapshots(number, [3]), store_.snapshots(own, [3]))
    assert group.snapshots(2, [3]).shape == (1, b.num_params) != (1, a.num_params)
    summary = group.summary()
    assert summary["num"] == 3 and summary["stores"] == [a.summary(), b.summary()]
    assert [s["model"] for s in summary["stores"]] == ["convnet-d1-w4-bn", "convnet-d2-w8-bn"]
    assert summary["seconds"] == pytest.approx(
        sum(s["seconds"] for s in summary["stores"]), abs=0.011
    )
    assert [s["num"] for s in StoreGroup([b, a]).summary()["stores"]] == [1, 2]
    assert torch.equal(StoreGroup([b, a]).load(0, 3)(images), b.load(0, 3)(images))


def test_the_epochs_of_a_group_are_those_of_all(data, tmp_path):
    """Ascending; none in common is refused with the flags."""
    whole, part = tiny_store(tmp_path / "a", data), tiny_store(tmp_path / "b", data, keep=(1, 2))
    last, fewer = (
        tiny_store(tmp_path / "c", data, keep="last"),
        tiny_store(tmp_path / "d", data, epochs=2, keep="last"),
    )
    assert (
        list(StoreGroup([whole, part]).epochs) == list(StoreGroup([part, whole]).epochs) == [1, 2]
    )
    assert list(StoreGroup([whole, last]).epochs) == [3] and list(StoreGroup([whole]).epochs) == [
        0,
        1,
        2,
        3,
    ]
    with pytest.raises(UserError, match=r"no epoch in common.*buffer\.epochs.*buffer\.keep"):
        StoreGroup([last, fewer])


def test_teachers_are_loaded_after_their_last_epoch(data, tmp_path):
    """Frozen and in evaluation mode; what they say together is the mean of their logits."""
    stores = [
        tiny_store(tmp_path / name, data, model=name, num_experts=1)
        for name in ("convnet-d1-w4-bn", "convnet-d2-w8-bn")
    ]
    teachers = load_all(StoreGroup(stores), CPU)
    assert (
        not any(t.training or any(p.requires_grad for p in t.parameters()) for t in teachers)
        and len(teachers) == 2
    )
    images = data.train.images(torch.arange(150).repeat(4))  # in several parts
    with torch.no_grad():
        wanted = [store_.load(0, 3)(images) for store_ in stores]
    assert torch.allclose(ensemble_logits(teachers, images), (wanted[0] + wanted[1]) / 2, atol=1e-5)
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-2)
    assert predict(teachers[0], images[:0]).shape == (0, 10)
