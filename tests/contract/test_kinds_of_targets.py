"""Every kind of targets goes through every door: the folder, load.py, the exports, the pages."""

import io
import json
import tarfile
import typing
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from helpers import CPU, DIGITS, MODEL, shipped_loader, tiny_data, tiny_set
from rich.console import Console
from safetensors import safe_open

import ddengine
import synth
from ddengine.api.results import Distilled
from ddengine.artefact import folder as folders
from ddengine.artefact import tars
from ddengine.artefact.describe import describe, shown
from ddengine.artefact.parquet import PARQUET
from ddengine.data.subset import class_subset
from ddengine.recipe import EvalConfig
from ddengine.sets.merge import merge
from ddengine.sets.targets import targets_of
from ddengine.system.configs import to_dict
from ddengine.system.rng import generator
from ddengine.types import TargetKind

KINDS = typing.get_args(TargetKind)
QUICK = EvalConfig(
    protocol="own", epochs=4, num_networks=3, lr_grid=(0.05,), full_steps=5, search_networks=1,
    baselines=("random",),
)  # fmt: skip
TARGET_NETWORK = {"model": MODEL, "fingerprint": "abc"}


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def set_with(kind, data, dtype=torch.float32, ipc=2):
    """Images of these data with drawn targets of a kind, one number more than there are classes
    where the kind lets a set have as many as it likes.
    """
    syn, targets = tiny_set(data, ipc), targets_of(kind, "stored")
    width = data.num_classes + int(targets.regressed)
    values = torch.randn(len(syn), width, generator=generator(3)).to(dtype).float()
    if not targets.names:
        return syn
    return syn.with_targets(targets, values, dtype)


def meta_of(syn):
    """What meta.json of such a set says."""
    recipe = synth.find("mtt/digits_ipc1", model=MODEL, evaluation=QUICK, data=DIGITS, ipc=2)
    network = {"target_network": TARGET_NETWORK} if syn.targets.regressed else {}
    return {"recipe": to_dict(recipe), "seed": 0} | network


@pytest.fixture(params=KINDS)
def syn(request, data):
    return set_with(request.param, data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_back_what_was_put_in(kind, dtype, data, tmp_path):
    """To the bit, here and by load.py; the ledger is what the files hold."""
    syn = set_with(kind, data, dtype)
    folders.save(syn, tmp_path / "set", meta_of(syn))
    again, meta = folders.load(tmp_path / "set", CPU)
    index = torch.tensor([3, 0, 19])
    ours, theirs = syn.batch(index), again.batch(index)
    assert again.targets == syn.targets and meta["target_kind"] == kind
    assert torch.equal(theirs.targets, ours.targets) and torch.equal(theirs.images, ours.images)
    images, targets, info = shipped_loader(tmp_path / "set").load()
    every = syn.batch(torch.arange(len(syn)))
    wanted = every.targets.softmax(1) if syn.targets.soft else every.targets
    assert torch.equal(targets, wanted) and torch.equal(images, every.images)
    stored = syn.classes.nbytes
    if syn.targets.names:
        with safe_open(tmp_path / "set/labels.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        assert all(tensor.dtype == dtype for tensor in tensors.values())
        stored += sum(tensor.nbytes for tensor in tensors.values())
        assert torch.equal(info[syn.targets.column], every.targets)
    assert meta["bytes"]["labels"] == stored == again.ledger["labels"]


def test_load_py_trains_towards_the_targets(syn, tmp_path):
    """A network with as many outputs as the set asks for comes nearer to them."""
    folders.save(syn, tmp_path / "set", meta_of(syn))
    module = shipped_loader(tmp_path / "set")
    images, targets, info = module.load()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, syn.num_outputs))
    torch.nn.init.zeros_(network[1].weight)
    loss = torch.nn.functional.cross_entropy
    if syn.targets.regressed:
        loss = torch.nn.functional.mse_loss
        assert info["protocol"]["loss"] == "squared_error_of_features"
    before = float(loss(network(images), targets).detach())
    rng = torch.Generator().manual_seed(0)
    lr = 0.1 if syn.targets.regressed else 0.01
    trained = module.train(network, tmp_path / "set", lr=lr, generator=rng)
    after = float(loss(trained(images), targets).detach())
    # features of zero are far from those of the set; a training towards the classes stays there
    most = 0.9 if syn.targets.regressed else 1.0
    assert after < most * before, (before, after)


def test_exports_hold_the_targets(syn, tmp_path):
    """Under one name, in the order of the examples."""
    folders.save(syn, tmp_path / "set", meta_of(syn))
    rows = pq.read_table(tmp_path / "set" / PARQUET)
    (path, index) = tars.write_webdataset(syn, tmp_path / "tars/train.tar")
    with tarfile.open(path) as archive:
        names = [name.partition(".")[2] for name in archive.getnames()]
    said = json.loads(index.read_text())
    column = syn.targets.column
    if column is None:
        assert rows.column_names == ["image", "label"] and set(names) == {"png", "cls"}
        return
    assert rows.column_names == ["image", "label", column] and said[column] is True
    assert names.count(f"{column}.npy") == len(syn)
    exact = syn.batch(torch.arange(len(syn))).targets
    assert torch.equal(torch.tensor(rows[column].to_pylist()), exact)


def test_card_inspect_and_report_name_the_targets(syn, tmp_path):
    """Each in its words; of features whose they are, and that they say no classes."""
    folders.save(syn, tmp_path / "set", meta_of(syn))
    card = (tmp_path / "set/README.md").read_text()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown(describe(tmp_path / "set")))
    inspected = console.export_text()
    page = ddengine.report(tmp_path / "set", tmp_path / "page.html").read_text()
    assert syn.targets.words in inspected and syn.targets.words in card
    regressed = syn.targets.regressed
    numbers = tuple(str(number + 1) for number in range(len(syn.class_names)))
    assert syn.row_names == (numbers if regressed else syn.class_names)
    assert all(f"<strong>{name}</strong>" in page for name in syn.row_names)
    assert ("no class accuracy" in card) == regressed == ("image-feature-extraction" in card)
    for text in (card, inspected, page):
        assert ("features of convnet-d1-w4-in (store abc)" in text) == regressed
        assert ("% of the bytes" in text or "% of it" in text) == regressed


def test_sets_of_one_kind_are_merged(syn, data):
    """Side by side with another of other classes, and refused beside another kind."""
    halves = [class_subset(data, classes) for classes in ([0, 1, 2], [3, 4])]
    sets = [set_with(syn.target_kind, half, ipc=1) for half in halves]
    if syn.targets.regressed:
        values = torch.randn(5, 7, generator=generator(4)).split([3, 2])
        sets = [one.with_features(part) for one, part in zip(sets, values, strict=True)]
    both = merge(sets, [[0, 1, 2], [3, 4]], list("abcde"))
    assert both.targets == syn.targets and len(both) == 5
    for place, one in ((0, sets[0]), (3, sets[1])):
        ours = both.batch(torch.arange(place, place + len(one))).targets
        theirs = one.batch(torch.arange(len(one))).targets
        if syn.target_kind == "class":
            theirs = theirs + place
        if syn.targets.of_classes:
            ours = ours[:, place : place + len(one)]
        assert torch.equal(ours, theirs)
    others = [kind for kind in KINDS if kind != syn.target_kind]
    for other in others:
        with pytest.raises(ddengine.UserError, match="another kind of labels"):
            merge([sets[0], set_with(other, halves[1], ipc=1)], [[0, 1, 2], [3, 4]], list("abcde"))


def test_a_set_is_evaluated_and_its_folder_says_so(syn, data, tmp_path):
    """By its own targets; the protocol in meta.json and load.py is that of the evaluation."""
    folders.save(syn, tmp_path / "set", meta_of(syn) | {"images": data.train.digest})
    outcome = ddengine.evaluate(tmp_path / "set", progress=False)
    assert outcome.rows[0]["accuracy_mean"] is not None
    assert ("judged_by" in outcome.content) == syn.targets.regressed
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    wanted = {"class": "cross_entropy", "logits": "cross_entropy"}
    wanted["weights"] = "weighted_cross_entropy"
    loss = wanted.get(syn.target_kind, "squared_error_of_features")
    assert meta["protocol"]["loss"] == loss and meta["protocol"]["lr"] == 0.05
    assert "def train" in (tmp_path / "set/load.py").read_text()


def test_privacy_of_every_kind(syn, data):
    """A network that says no classes has no loss by which members could be told."""
    of = Distilled(syn, meta_of(syn) | {"images": data.train.digest})
    content = ddengine.privacy(of, full_steps=3, progress=False).content
    attacks = [attack["score"] for attack in content["membership"]]
    assert ("loss of the network" in attacks) == (not syn.targets.regressed)
    assert len(attacks) >= 2


def test_score_and_memories_are_of_classes(syn):
    """Sets with features are refused in a sentence that says what judges them."""
    from ddengine.uses.continual import kept

    of = Distilled(syn, meta_of(syn))
    if syn.targets.regressed:
        with pytest.raises(ddengine.UserError, match="targets of this set are features; evaluate"):
            ddengine.score(of, progress=False)
    if not syn.targets.names:
        assert len(kept(syn, "uint8")) == len(syn)
        return
    with pytest.raises(ddengine.UserError, match=f"the set has {syn.targets.words} in codec"):
        kept(syn, "uint8")


def test_features_of_different_networks_are_not_merged(data, tmp_path):
    """Nor such of which nobody knows whose they are."""
    syn = set_with("features", data)
    metas = [meta_of(syn), meta_of(syn) | {"target_network": {"model": "mlp"}}, meta_of(syn)]
    metas[2].pop("target_network")
    for i, meta in enumerate(metas):
        folders.save(syn, tmp_path / str(i), meta)
    both = ddengine.merge([tmp_path / "0", tmp_path / "0"], tmp_path / "both", progress=False)
    assert both.meta["target_network"] == TARGET_NETWORK and len(both) == 2 * len(syn)
    with pytest.raises(ddengine.UserError, match=r"set 2 are of mlp and those of set 1 of convnet"):
        ddengine.merge([tmp_path / "0", tmp_path / "1"], progress=False)
    with pytest.raises(ddengine.UserError, match="Set 2 has features and does not say of which"):
        ddengine.merge([tmp_path / "0", tmp_path / "2"], progress=False)
    folders.save(set_with("class", data), tmp_path / "classes", metas[2])
    for others in (["0", "classes"], ["classes", "0"]):
        with pytest.raises(ddengine.UserError, match=r"Set 2 has another kind of labels"):
            ddengine.merge([tmp_path / name for name in others], progress=False)
    narrow = replace(syn).with_features(torch.zeros(len(syn), 3))
    folders.save(narrow, tmp_path / "narrow", metas[0])
    with pytest.raises(ddengine.UserError, match=r"another width of features \(3\) than set 1"):
        ddengine.merge([tmp_path / "0", tmp_path / "narrow"], progress=False)
