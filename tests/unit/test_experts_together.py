"""Experts as one computation: the numbers of each, going on, and how many are chosen."""

import os
import shutil
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import MODEL, new_model, tiny_data, tiny_making
from safetensors.torch import load_file

from buffers import pace, store, together, train
from buffers.curriculum import EasyFirst
from buffers.experts import generate_all
from buffers.flat_step import Gsam
from buffers.steps import Sgd
from buffers.store import ExpertStore
from buffers.train import train_expert, train_experts
from buffers.unfinished import path_of
from ddengine.data import RealSet
from ddengine.experts import AtOnce
from ddengine.plan import calibrate
from ddengine.recipe import BufferConfig
from ddengine.system import dist, files, log, signals
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

DATA = tiny_data()
STEP = Sgd(lr=0.05, momentum=0.9, weight_decay=1e-3, decay=0.5)
CONFIG = BufferConfig(step=STEP, num_experts=5, epochs=3, batch=64)
BATCH_NORM = "convnet-d1-w4-bn"


def making(folder, model=BATCH_NORM, **changes):
    """A store that is to be filled."""
    return tiny_making(DATA, replace(CONFIG, **changes), model, folder)


def filled(make):
    """The store of three together, filled."""
    make.open(together=3)
    generate_all([make])
    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of five experts, of which nothing was interrupted."""
    return filled(making(tmp_path_factory.mktemp("whole") / "store"))


def check_equal(make, other):
    """Two stores hold the same numbers, and the first has nothing unfinished."""
    assert store.finished(make.folder) == list(range(5))
    for expert in range(5):
        found, wanted = (load_file(store.shard_path(at.folder, expert)) for at in (make, other))
        assert found.keys() == wanted.keys() == {"params", "buffers"}
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not path_of(make.folder, expert).exists()


def networks(model, experts, dtype=torch.float32):
    """Those of experts, as they start."""
    build = new_model(DATA, model)
    return {i: build(generator(CONFIG.seed, "expert", i, "network")).to(dtype) for i in experts}


CASES = [(MODEL, None), (BATCH_NORM, None), (MODEL, EasyFirst(drop_after=(1,), drop=(0.1,)))]


@pytest.mark.parametrize(("model", "order"), CASES)
def test_they_are_those_alone(model, order, monkeypatch):
    """In float64 but for its rounding, with the running statistics, and of any images."""
    images = RealSet.images
    monkeypatch.setattr(RealSet, "images", lambda self, index: images(self, index).double())
    config = replace(CONFIG, curriculum=order, epochs=5)
    ranks = None if order is None else torch.linspace(0, 0.99, len(DATA.train))
    how = {"data": DATA, "config": config, "ranks": ranks}
    one_by_one = networks(model, (2, 3, 4), torch.float64)
    as_one = train_experts(networks(model, (2, 3, 4), torch.float64), [2, 4], **how)
    assert list(as_one) == [2, 4]
    for expert, found in as_one.items():
        wanted = train_expert(one_by_one[expert], expert=expert, **how)
        assert found.params.shape == wanted.params.shape and found.params.dtype == torch.float64
        assert (wanted.params[5] - wanted.params[0]).norm() > 0.1
        assert torch.allclose(found.params, wanted.params, rtol=0, atol=1e-10)
        assert (found.buffers is None) == (wanted.buffers is None) == (model == MODEL)
        if wanted.buffers is not None and found.buffers is not None:
            assert torch.allclose(found.buffers, wanted.buffers, rtol=0, atol=1e-10)
        losses = found.metrics["train_loss"]
        assert losses == pytest.approx(wanted.metrics["train_loss"], rel=1e-6)
        accuracies = found.metrics["validation_accuracy"]
        assert accuracies == wanted.metrics["validation_accuracy"] and len(accuracies) == 5


def test_a_store_of_several_together_is_nearly_that_of_one_by_one(whole, tmp_path):
    """And says how many: what is made of it reads it as any other."""
    alone = making(tmp_path / "store", num_experts=2)
    generate_all([alone])
    assert files.read_json(whole.folder / store.MANIFEST)["together"] == 3
    assert "together" not in files.read_json(alone.folder / store.MANIFEST)
    assert (whole.together, alone.together) == (3, 1)
    found, wanted = (ExpertStore(make.folder, make.new_model) for make in (whole, alone))
    for expert in range(2):
        ours, theirs = (each.snapshots(expert, [0, 1, 2, 3]) for each in (found, wanted))
        assert torch.allclose(ours, theirs, atol=1e-3) and torch.equal(ours[0], theirs[0])
        assert len(found.metrics(expert)["validation_accuracy"]) == 3


def test_a_store_that_grows_is_that_of_all_at_once(whole, tmp_path):
    """Also where the last group is not complete; progress counts the epochs that are asked for."""
    told = []
    make = making(tmp_path / "store")
    with log.shown(lambda *progress: told.append(progress)):
        filled(replace(make, config=replace(CONFIG, num_experts=4)))
    assert store.finished(make.folder) == [0, 1, 2, 3]
    assert {total for _, _, total, _ in told} == {12} and told[-1][1] == 12
    generate_all([make])
    check_equal(make, whole)


def test_one_that_is_damaged_is_made_again_as_it_was(whole, tmp_path):
    """Together with the others of its group, which stay as they are."""
    make = making(tmp_path / "store")
    shutil.copytree(whole.folder, make.folder)
    shard = store.shard_path(make.folder, 1)
    shard.write_bytes(shard.read_bytes()[:-5])
    times = {path: path.stat().st_mtime_ns for path in make.folder.glob("expert_*")}
    generate_all([make])
    check_equal(make, whole)
    assert [path for path in times if path.stat().st_mtime_ns != times[path]] == [shard]


def test_they_go_on_within_their_training(whole, tmp_path, monkeypatch, capsys):
    """Stopped in an epoch after the rate has dropped, and then while shards are written."""
    real, made, write = train._Training._batch, [], store.write_expert
    monkeypatch.setattr("buffers.unfinished.EVERY", 0.0)

    def batch(self, index):
        made.append((self._experts[0], self.progress.epoch, self.progress.batch))
        if made.count((3, 2, 1)) == 1 and made[-1] == (3, 2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, index)

    def killed(folder, expert, *args):
        if expert == 1:
            raise KeyboardInterrupt
        write(folder, expert, *args)

    monkeypatch.setattr(train._Training, "_batch", batch)
    make = making(tmp_path / "store")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write_expert", killed)
        filled(make)
    assert store.finished(make.folder) == [0] and path_of(make.folder, 2).is_file()
    with pytest.raises(signals.Stopped, match="in epoch 3 of experts 3, 4"), signals.heard():
        generate_all([make])
    assert store.finished(make.folder) == [0, 1, 2] and path_of(make.folder, 4).is_file()
    generate_all([make])
    assert "experts 3, 4 go on in epoch 3 of 3" in capsys.readouterr().out
    assert len(made) == len(set(made))  # nothing was trained twice
    check_equal(make, whole)


def test_they_go_on_where_more_are_asked_for(whole, tmp_path, monkeypatch):
    """The checkpoint is called after an expert that is the last one no more."""
    real, made = train._Training._batch, []
    monkeypatch.setattr("buffers.unfinished.EVERY", 0.0)

    def batch(self, index):
        made.append((self._experts[0], self.progress.epoch, self.progress.batch))
        if made == [(0, 0, 0), (0, 0, 1)]:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, index)

    monkeypatch.setattr(train._Training, "_batch", batch)
    with pytest.raises(signals.Stopped, match="experts 0, 1"), signals.heard():
        filled(making(tmp_path / "store", num_experts=2))
    assert path_of(tmp_path / "store", 1).is_file()
    make = making(tmp_path / "store")
    generate_all([make])
    assert len(made) == len(set(made))  # nothing was trained twice
    check_equal(make, whole)


def test_a_checkpoint_is_of_as_many_networks(tmp_path, monkeypatch):
    """One of another number of networks, which nothing of this program writes, is refused."""
    make = making(tmp_path / "store", num_experts=3)
    make.open()
    monkeypatch.setattr("buffers.unfinished.EVERY", 0.0)
    tensors = {"model/" + k: v for k, v in networks(BATCH_NORM, [0])[0].state_dict().items()}
    kept = store.checkpoint(make.folder, 2)
    kept.write(tensors, train.Progress(batch=1))
    with pytest.raises(UserError, match="not of this network"):
        train_experts(networks(BATCH_NORM, range(3)), [2], DATA, CONFIG, checkpoint=kept)


@torch.no_grad()
def lost(expert):
    """Three networks, of which one is not finite."""
    of_experts = networks(MODEL, range(3))
    for parameter in of_experts[expert].parameters():
        parameter.fill_(float("nan"))
    return of_experts


def test_one_that_is_not_finite_is_named():
    with pytest.raises(UserError, match=r"^The loss of expert 1 was not finite in epoch 1; lower"):
        train_experts(lost(1), [0, 1], DATA, CONFIG)


def test_one_that_nobody_asked_for_may_be_anything(tmp_path, monkeypatch):
    """Its neighbours are as they are, and go on beside it."""
    monkeypatch.setattr("buffers.unfinished.EVERY", 0.0)
    make = making(tmp_path / "store", MODEL, num_experts=2)
    make.open()
    kept = store.checkpoint(make.folder, 1)
    found = train_experts(lost(2), [0, 1], DATA, CONFIG, checkpoint=kept)
    wanted = train_experts(networks(MODEL, range(3)), [0, 1], DATA, CONFIG)
    written = kept.read()
    assert written is not None and len(written[1].losses) == 6
    for expert in (0, 1):
        assert torch.equal(found[expert].params, wanted[expert].params)


# How many.


@pytest.mark.parametrize(
    ("seconds", "experts", "ranks", "wanted"),
    [
        ({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0}, 8, 1, 8),
        ({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.55}, 8, 1, 4),  # 2 % faster is about equal
        ({1: 1.0, 2: 2.0, 4: 4.1}, 4, 1, 1),
        ({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0}, 9, 1, 4),  # 3 groups of 4, or 2 of 8
        ({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0}, 8, 4, 2),  # a group for each rank
    ],
)
def test_the_fastest_is_chosen(seconds, experts, ranks, wanted):
    assert together.fastest(seconds, experts, ranks) == wanted


def timed(make, num):
    """A device that has time for six networks."""
    return max(1.0, num / 6)


def test_as_many_are_tried_as_there_are_and_memory_holds(tmp_path, monkeypatch):
    make = making(tmp_path, MODEL, num_experts=6)
    assert together.measured(make, timed) == {1: 1.0, 2: 1.0, 4: 1.0, 6: 1.0}

    failing: Exception = torch.OutOfMemoryError()

    def short(make, num):
        if num > 2:
            raise failing
        return timed(make, num)

    assert together.measured(make, short) == {1: 1.0, 2: 1.0}
    failing = RuntimeError("CUDNN_STATUS_ALLOC_FAILED")  # of a library, which says it otherwise
    assert together.measured(make, short) == {1: 1.0, 2: 1.0}
    monkeypatch.setattr(dist, "num_ranks", lambda: 2)
    assert list(together.measured(make, timed)) == [1, 2, 3]
    monkeypatch.setattr(dist, "num_ranks", lambda: 1)
    monkeypatch.setattr(dist, "share_of_memory", lambda device: 2**23)
    assert 1 < max(together.measured(make, timed)) < 6
    monkeypatch.setattr(dist, "share_of_memory", lambda device: 2**10)
    assert together.measured(make, timed) == {1: 1.0}


@dataclass(frozen=True, kw_only=True)
class Own(Sgd):
    """A step that a user wrote."""


def test_some_are_trained_one_by_one(tmp_path):
    """Those that draw at random, those of other steps, and what nobody knows."""
    alone = [
        making(tmp_path, step=Own()),
        making(tmp_path, step=Gsam()),
        making(tmp_path, num_experts=1),
        replace(making(tmp_path), is_named=False),
        replace(making(tmp_path), new_model=lambda rng: torch.nn.Dropout()),
    ]
    for make in alone:
        assert together.measured(make, lambda *_: pytest.fail("timed")) == {1: 1.0}
    with pytest.raises(TypeError, match="Gsam trains one network at a time"):
        Gsam().build_for_several(None, 1)  # type: ignore[arg-type]


def test_a_cpu_trains_one_by_one_and_obeys(whole, tmp_path, monkeypatch):
    """A new store; one that another device has begun goes on as it is."""
    monkeypatch.setattr(together, "seconds_together", timed)
    new = making(tmp_path / "store", MODEL)
    assert together.chosen(new) == 1 and together.at_once(new) == AtOnce()
    assert together.chosen(whole) == 3


def test_a_step_is_timed(tmp_path):
    assert together.seconds_together(making(tmp_path), 3) > 0


def test_an_estimate_counts_groups(whole, monkeypatch):
    """Of three together where experts 5 to 8 are missing: the one with 5, and the one after it."""
    monkeypatch.setattr(together, "seconds_together", lambda make, num: 1 + num / 3)
    grown = replace(whole, config=replace(CONFIG, num_experts=9))
    assert pace.at_once([whole]) == AtOnce()  # nothing is missing
    found = pace.at_once([grown])
    assert found.experts == 3 and found.threads is None
    assert found.as_one == pytest.approx(2 * 2 / (4 / 3))
    assert calibrate._until_all([10.0] * 4, found) == pytest.approx(30.0)
