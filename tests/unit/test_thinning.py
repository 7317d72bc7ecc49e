"""Sets of which some stored images are left out, by how well networks learn them."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import run, shipped_loader
from loops import for_each

import ddengine
import synth
from ddengine.api import thin
from ddengine.data import Preprocess
from ddengine.sets.codec import (
    Codec,
    Compensated,
    Gaussians,
    Identity,
    LinearBases,
    Mixed,
    MultiFormation,
    Pixels,
    Quantised,
    Reduced,
    Siren,
    SparseTokens,
    Spectra,
)
from ddengine.sets.thinning import Margins, item_areas, items_left
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.recipes.with_codecs import CODED

SHAPE, CLASSES = (1, 8, 8), 2
SEEN = Preprocess(mean=torch.tensor([0.4]), std=torch.tensor([0.3]))
CODECS: dict[str, Codec] = {
    **{name: codec for name, codec, _ in CODED if name != "haba"},
    "identity": Identity(),
    "pixels": Pixels(),
    "tiles": MultiFormation(),
    "quantised": Quantised(bits=3, patch=3),
    "haba": dict((name, codec) for name, codec, _ in CODED)["haba"],
}
SMALLER = {
    Gaussians: {"primitives": 3, "fit_steps": 1},
    Siren: {"width": 3, "fit_steps": 1},
    Spectra: {"kept": 9},
    SparseTokens: {"tokens": 4, "dim": 4, "kept": 3, "fit_steps": 1},
    LinearBases: {"bases": 3},
    Reduced: {},
}


def packed(name):
    """A codec with five items of each class, and its tensors."""
    codec = replace(CODECS[name], **SMALLER.get(type(CODECS[name]), {}))
    needed = codec.shipped_bytes(5, SHAPE, CLASSES)
    codec, items = codec.within(needed, SHAPE, CLASSES)
    assert items == 5
    num = CLASSES * items * codec.per_item
    images = torch.rand(num, *SHAPE, generator=generator(0, "images"))
    return codec, codec.pack(images, CLASSES, SEEN, generator(0, "codec"))


@for_each("name", CODECS)
def test_what_stays_decodes_as_before(name):
    """To the bit, while it is learned and as it is shipped; what goes takes no bytes."""
    codec, tensors = packed(name)
    items = torch.tensor([1, 3, 4, 5, 6, 9])
    for _ in range(2):
        every = torch.arange(len(codec.source(tensors)))
        stays = torch.isin(codec.source(tensors), items)
        fewer, left = codec.only(tensors, items, CLASSES)
        source = fewer.source(left)
        assert torch.equal(items[source], codec.source(tensors)[stays])
        wanted = codec.decode(tensors, every[stays])
        assert torch.equal(fewer.decode(left, torch.arange(len(source))), wanted)
        assert fewer.flaw(left) is None
        codec, tensors = codec.ship(tensors, SEEN)
    _, shipped = fewer.ship(left, SEEN)
    assert sum(t.nbytes for t in shipped.values()) <= fewer.shipped_bytes(3, SHAPE, CLASSES)


@pytest.mark.parametrize(
    "codec",
    [Compensated(), Mixed(items=4), Quantised(groups=2), LinearBases(rows=6, items=2)],
    ids=lambda codec: type(codec).__name__,
)
def test_items_that_do_not_stand_alone_are_not_left_out(codec):
    with pytest.raises(UserError, match=f"{type(codec).__name__} cannot be left out one by one"):
        codec.only({"images": torch.rand(4, *SHAPE)}, torch.tensor([0]), CLASSES)


def test_the_area_under_the_margin():
    margins = Margins(torch.tensor([0, 1, 1]))
    margins.see(torch.tensor([0, 1]), torch.tensor([[3.0, 1.0, 2.0], [4.0, 1.0, 0.0]]))
    margins.see(torch.tensor([1, 0]), torch.tensor([[0.0, 1.0, 0.0], [0.0, 5.0, 2.0]]))
    assert margins.areas().tolist() == [(1 - 5) / 2, (-3 + 1) / 2, 0.0]
    areas = item_areas(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1, 0, 1]), 2)
    assert areas.tolist() == [2.0, 3.5]


def test_both_ends_of_each_class_go():
    areas = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0, 50.0, 10.0, 30.0, 20.0, 40.0])
    classes = torch.tensor([0] * 5 + [1] * 5)

    def left(hardest):
        return items_left(areas, classes, 3, hardest).tolist()

    assert left(0.0) == [1, 2, 3, 6, 7, 8]  # the lowest stay
    assert left(1.0) == [0, 2, 4, 5, 7, 9]
    assert left(0.5) == [2, 3, 4, 7, 8, 9]


@pytest.fixture(scope="module")
def two_of_each():
    """A set in memory that is evaluated with dynamic labels, of which its teachers are gone."""
    recipe = synth.find(
        "dm/digits_ipc1",
        model="mlp",
        ipc=2,
        data={"limit": 100},
        objective={"real_batch": 2},
        outer={"steps": 0, "evaluate_every": 0, "picture_every": 0},
        evaluation={"epochs": 2},
    )
    distilled = ddengine.distill(None, recipe, progress=False)
    meta = copy.deepcopy(distilled.meta)
    meta["recipe"]["evaluation"]["labels"] = "dynamic"
    return replace(distilled, meta=meta)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"items": "3"}, "items is '3'; give a whole number"),
        ({"items": 2.5}, r"items is 2\.5; give a whole number"),
        ({"items": True}, "items is True; give a whole number"),
        ({"budget": "x"}, "budget is 'x'; give a whole number"),
        ({"items": 1, "networks": 1.5}, r"networks is 1\.5; give a whole number"),
        ({"items": 1, "hardest": "a"}, "hardest is 'a'; give a number between"),
    ],
)
def test_what_is_no_number_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        ddengine.thin("a set that is not looked for", **wrong)


def test_teachers_are_not_asked_and_networks_have_streams_of_their_own(two_of_each, monkeypatch):
    """Two seeds next to each other have no network in common; one of each class cannot go."""
    seeds = []
    train_one = thin.train_one

    def trained(*args, seed, **how):
        seeds.append(seed)
        return train_one(*args, seed=seed, **how)

    monkeypatch.setattr(thin, "train_one", trained)
    for seed in (0, 1):
        one = ddengine.thin(two_of_each, items=1, networks=2, seed=seed, progress=False)
        assert one.classes.tolist() == list(range(10))
    assert len(set(seeds)) == 4
    with pytest.raises(UserError, match="one stored image of a class, so none can go"):
        ddengine.thin(one, items=1, progress=False)


def test_a_set_is_thinned_by_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--model", "mlp", "--data.limit", "200", "--ipc", "4", "--outer.steps", "1",
        "--outer.evaluate_every", "0", "--outer.picture_every", "0", "--objective.real_batch", "4",
        "--evaluation.epochs", "3",
    ]  # fmt: skip
    assert run("distill", "dm/digits_ipc1", *flags, "--out", "more") == 0
    capsys.readouterr()
    assert run("thin", "more", "--bytes", "1999", "--networks", "2", "--out", "fewer") == 0
    assert "40 stored images of" in capsys.readouterr().out
    more, fewer = ddengine.load("more"), ddengine.load("fewer")
    assert len(fewer) == 30 and fewer.ledger["images"] == 30 * 64
    assert fewer.classes.tolist() == sorted(fewer.classes.tolist())
    images, every = fewer.pixels(), more.pixels()
    assert all(any(torch.equal(image, other) for other in every) for image in images)
    read, _, _ = shipped_loader(Path("fewer")).load()
    assert torch.equal(read, fewer.batch(torch.arange(30)).images)
    again = ddengine.thin("more", items=3, networks=2, progress=False)
    assert torch.equal(again.pixels(), images)
    other = ddengine.thin("more", items=3, networks=2, hardest=1.0, progress=False)
    assert not torch.equal(other.pixels(), images)
    for wrong, says in (
        (("--items", "4"), "ask for 1 to 3"),
        (("--bytes", "9"), "holds no image of each of 10 classes"),
        ((), "either items"),
        (("--items", "2", "--hardest", "2"), "between 0 and 1"),
    ):
        assert run("thin", "more", *wrong, "--out", "none") == 2
        assert says in capsys.readouterr().err and not Path("none").exists()
    assert run("thin", "more", "--items", "2", "--out", "fewer") == 2
