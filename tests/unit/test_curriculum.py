"""Experts that see easy images first (PAD)."""

from dataclasses import replace

import pytest
import torch
from helpers import DIGITS, MODEL, new_model, tiny_data

from buffers import curriculum
from buffers.curriculum import EasyFirst
from buffers.experts import Making, generate
from buffers.steps import Sgd
from buffers.store import ExpertStore
from buffers.train import train_expert
from ddengine.data import RealSet
from ddengine.recipe import BufferConfig
from ddengine.sets import coreset
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

EASY = EasyFirst(first=0.5, all_after=2, drop_after=(2,), drop=(0.25,), networks=2, updates=6)
CONFIG = BufferConfig(step=Sgd(lr=0.1), num_experts=1, epochs=3, batch=32, curriculum=EASY)


def test_the_share_of_a_class_is_the_published_one():
    published = EasyFirst()
    shares = {epoch: published.share(epoch) for epoch in (0, 10, 20, 39, 40, 59, 60, 99)}
    assert shares == {
        0: (0.0, 0.75), 10: (0.0, 0.875), 20: (0.0, 1.0), 39: (0.0, 1.0),
        40: (0.1, 1.0), 59: (0.1, 1.0), 60: (0.2, 1.0), 99: (0.2, 1.0),
    }  # fmt: skip
    with pytest.raises(UserError, match="give as many of both"):
        EasyFirst(drop=(0.1,))
    with pytest.raises(UserError, match="must be below 1"):
        EasyFirst(drop=(0.1, 1.0))


def test_images_are_ordered_within_their_class():
    scores = torch.tensor([0.3, 0.9, 0.1, 0.2, 0.3, 0.0])
    ranks = curriculum.ranks([torch.tensor([0, 1, 2, 4]), torch.tensor([3, 5])], scores)
    assert ranks.tolist() == [0.25, 0.75, 0.0, 0.5, 0.5, 0.0]
    seen = [EASY.seen(ranks, epoch).tolist() for epoch in range(3)]
    assert seen == [[0, 2, 5], [0, 2, 3, 4, 5], [0, 1, 3, 4]]


def test_experts_see_the_images_of_their_epochs(tmp_path):
    """By EL2N of networks that were trained a little; a store that is there keeps its order."""
    data = tiny_data()
    generate(data, DIGITS, CONFIG, MODEL, new_model(data), tmp_path)
    ranks = curriculum.of_store(tmp_path, EASY, data.train, new_model(data), 0)
    trained = []
    for number in range(2):
        rng = generator(0, "difficulty", number)
        trained.append(coreset.train(data.train, new_model(data), rng, steps=6, lr=0.01))
    wanted = curriculum.ranks(data.train.members, coreset.el2n_scores(data.train, trained))
    assert torch.equal(ranks, wanted)
    store = ExpertStore(tmp_path, new_model(data), 1)
    network = new_model(data)(generator(0, "expert", 0, "network"))
    seen = []
    batch = data.train.batch
    data.train.batch = lambda index: (seen.append(index), batch(index))[1]
    try:
        alone = train_expert(network, data, CONFIG, 0, ranks=ranks)
    finally:
        del data.train.batch
    assert torch.equal(alone.params, store.snapshots(0, range(4)))
    for epoch in range(3):
        images = EASY.seen(ranks, epoch)
        batches = -(-len(images) // 32)
        of_epoch, seen = seen[:batches], seen[batches:]
        assert sorted(torch.cat(of_epoch).tolist()) == images.tolist()
    # what is chosen once is kept: another order in the store would be obeyed
    before = (tmp_path / curriculum.FILE).read_bytes()
    generate(data, DIGITS, replace(CONFIG, num_experts=2), MODEL, new_model(data), tmp_path)
    assert (tmp_path / curriculum.FILE).read_bytes() == before


def test_without_a_curriculum_the_identity_is_as_it_was():
    plain = BufferConfig(step=Sgd())
    assert "curriculum" not in to_dict(plain)
    assert to_dict(CONFIG)["curriculum"]["type"] == "EasyFirst"


def few(num, classes=5):
    """Digits of which each class has so many."""
    train = tiny_data().train
    index = torch.cat([members[:num] for members in train.members[:classes]])
    of_few = RealSet(train.pixels[index], train.labels[index], classes, train.preprocess)
    return replace(tiny_data(), train=of_few, class_names=tuple("01234"[:classes]))


@pytest.mark.parametrize(
    ("easy", "num", "epoch"),
    [
        (EasyFirst(), 1, 41),
        (EasyFirst(first=0.5, drop_after=(0,), drop=(0.6,)), 10, 1),
    ],
)
def test_an_epoch_without_images_is_refused_before_there_is_a_folder(tmp_path, easy, num, epoch):
    data = few(num)
    config = replace(CONFIG, epochs=60, curriculum=easy)
    folder = tmp_path / "store"
    with pytest.raises(UserError, match=rf"^Epoch {epoch} of buffer\.curriculum sees none of the "):
        generate(data, DIGITS, config, MODEL, new_model(data), folder)
    assert not folder.exists()
    # as many epochs as see some
    counts = easy.check(data.train.members, epoch - 1)
    assert counts == ([5] if num == 1 else [])


def test_the_last_batch_of_every_epoch_is_looked_at(tmp_path):
    """By how many images the epoch sees, and not by how many there are."""
    data, model = few(4), "torchvision/resnet18"
    easy = EasyFirst(first=0.75, all_after=20, drop_after=(1,), drop=(0.25,))
    assert easy.check(data.train.members, 2) == [15]
    assert easy.check(data.train.members, 1) == [15]
    config = replace(CONFIG, epochs=2, batch=7, curriculum=easy)
    making = Making(
        data=data,
        data_config=DIGITS,
        config=config,
        model=model,
        new_model=new_model(data, model),
        folder=tmp_path / "store",
    )
    with pytest.raises(UserError, match="The last batch of 15 images holds one"):
        making.check()
    replace(making, config=replace(config, batch=19)).check()  # of all 20 one is left over
