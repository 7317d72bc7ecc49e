"""What another rank is told of the sets that its networks are trained on."""

import io
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_data

from ddengine.data import Subset
from ddengine.evaluation import beside
from ddengine.evaluation.bench import Contender, Selection, Training
from ddengine.evaluation.decoded import Decoded
from ddengine.system import workers

CHOSEN = Selection("selection/herding/1", "herding", list, looks=True)


def decoded(draw):
    """Images that differ from draw to draw."""
    images = torch.full((3, 1, 8, 8), float(draw))
    return Decoded(images, torch.arange(3), torch.arange(3) + draw, ledger={})


@pytest.fixture(scope="module")
def bench():
    return SimpleNamespace(data=tiny_data(), train=None)


def sent(bench, who):
    """The request for two networks on a contender, as it arrives at a rank."""
    asked = Training(who, "mlp", 0.1, (5, 6), (0, 2), "test", 7)
    stream = io.BytesIO()
    workers.write(stream, beside.request_of_rank(bench, asked))
    stream.seek(0)
    return workers.read(stream)


def test_a_coreset_that_a_network_chose_goes_along(bench):
    """In its codec, so that no rank chooses another one."""
    who = Contender("herding_coded", decoded, selection=CHOSEN)
    message = sent(bench, who)
    asked = beside._asked(message, bench.data.train, known={})
    assert (asked.model, asked.lr, asked.seeds, asked.steps) == ("mlp", 0.1, (5, 6), 7)
    for number, draw in enumerate((0, 2)):
        told, wanted = asked.who.sets(asked.draws[number]), decoded(draw)
        for name in ("images", "targets", "classes"):
            assert torch.equal(getattr(told, name), getattr(wanted, name))


def test_what_a_rank_has_decoded_itself_is_named(bench):
    """With its draw, and without an image."""
    made = {draw: decoded(draw) for draw in (0, 2)}
    who = Contender("random_coded", made.__getitem__)
    message = sent(bench, who)
    assert not message.tensors
    asked = beside._asked(message, bench.data.train, {"random_coded": who})
    for number, draw in enumerate((0, 2)):
        assert asked.who.sets(asked.draws[number]) is made[draw]


@pytest.mark.parametrize("selection", [None, CHOSEN])
def test_real_images_are_told_by_their_places(bench, selection):
    real = bench.data.train

    def chosen(draw):
        return Subset(real, torch.tensor([4, 1]) + draw)

    who = Contender("herding", chosen, selection=selection)
    asked = beside._asked(sent(bench, who), real, known={})
    for number, draw in enumerate((0, 2)):
        told = asked.who.sets(asked.draws[number])
        assert told.real is real and told.index.tolist() == [4 + draw, 1 + draw]
