"""Transfer: networks pre-trained on a set, and tested on other datasets beside controls."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from helpers import CPU, DIGITS, MODEL, run, tiny_data, tiny_set, tiny_store
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

import buffers
import ddengine
import synth
from ddengine import TransferConfig
from ddengine.api.results import Distilled
from ddengine.api.transfer import by_name
from ddengine.commands.transfer import named
from ddengine.data import Dataset
from ddengine.evaluation.train import train_one
from ddengine.learning import probe
from ddengine.learning.head import embedding, head_of, with_body, without_head
from ddengine.learning.probe import Embedded
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.system import runtime
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.system.rng import generator
from ddengine.uses import transfer as testing
from ddengine.uses.transfer import compare, downstream, pretraining_of
from ddengine.uses.transfer.starts import make_ready, new_network, starts

SHAPE = (1, 8, 8)
PROTOCOL = EvalConfig(protocol="own", epochs=6, num_networks=3)
QUICK = TransferConfig(
    shots=(3,), networks=3, updates=6, few_updates=3, batch=64, limit=150, lr_grid=(0.01, 0.1),
    decay_grid=(1e-2, 1.0), validation=0.2, augment="crop",
)  # fmt: skip
DIGITS_AGAIN = Dataset.named("digits")


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    """An expert, whose features the sets of this file have."""
    return tiny_store(tmp_path_factory.mktemp("experts") / "store", data, num_experts=1)


def meta_of(data, **more):
    """What meta.json of a set says."""
    recipe = synth.find("mtt/digits_ipc1", model=MODEL, evaluation=PROTOCOL, data=DIGITS, ipc=2)
    return {"recipe": to_dict(recipe), "seed": 0, "images": data.train.digest, **more}


@pytest.fixture(scope="module")
def featured(data, store):
    """A set with features of the expert."""
    syn = tiny_set(data)
    network = store.load(0, store.epochs[-1])
    features = network.embed(syn.batch(torch.arange(len(syn))).images).detach()
    known = {"model": MODEL, "fingerprint": store.manifest["fingerprint"]}
    return Distilled(syn.with_features(features), meta_of(data, target_network=known))


def transferred(of, targets=(DIGITS_AGAIN,), **options):
    options = {"config": QUICK, "progress": False, "device": "cpu"} | options
    with runtime.on_threads(1):
        return ddengine.transfer(of, None, list(targets), **options)


@pytest.fixture(scope="module")
def outcome(featured, store):
    """A transfer with all controls."""
    return transferred(featured, experts=store)


def without_seconds(content):
    """All that does not depend on the time."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in content["rows"]]
    return {**content, "rows": rows, "seconds": None}


def context_of(of, data, tmp_path, **more):
    """What a transfer would share."""
    loaded = DIGITS_AGAIN.load(QUICK.data(SHAPE), CPU, test=True)
    brought = testing.brought_to("digits", loaded, SHAPE, SHAPE, of.set.preprocess)
    options = {"config": QUICK, "experts": (), "models": (MODEL,)} | more
    return testing.Context(
        syn=of.set,
        image_shape=SHAPE,
        source=data,
        datasets=[brought],
        pretraining=pretraining_of(PROTOCOL, of.set.targets),
        home=MODEL,
        seed=0,
        device=CPU,
        precision="fp32",
        memo=Memo(None, ""),
        folder=tmp_path / "networks",
        **options,
    )


# Heads


@pytest.mark.parametrize("model", [MODEL, "mlp", "lenet", "resnet18-bn-x10"])
def test_the_head_is_the_last_linear_layer(model):
    """What comes before it is what our networks call their embedding, to the bit."""
    network = build_model(model, (3, 16, 16), 7, generator(0)).eval()
    head = head_of(network, (3, 16, 16))
    layer = network.get_submodule(head)
    images = torch.rand(3, 3, 16, 16, generator=generator(1))
    embedded = embedding(network, head)(images)
    assert isinstance(layer, nn.Linear) and layer.out_features == 7
    assert torch.equal(embedded, network.embed(images).flatten(1))
    assert torch.equal(layer(embedded), network(images))
    body = without_head(network, head)
    assert body.keys() == {n for n in network.state_dict() if not n.startswith(f"{head}.")}


class Softmaxed(nn.Module):
    """A network whose outputs are not those of its last layer."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images):
        return self.layers(images).log_softmax(1)


class Plain(Softmaxed):
    """A network without `embed`."""

    def forward(self, images):
        return self.layers(images)


def test_networks_without_a_head_are_refused(featured):
    with pytest.raises(ddengine.UserError, match="A Softmaxed has no last linear layer"):
        transferred(featured, models=[Softmaxed])
    with pytest.raises(ddengine.UserError, match="A Linear has no last linear layer"):
        head_of(nn.Linear(8, 3), SHAPE)  # nothing would be left of it


def test_networks_of_the_user_need_no_embedding(featured):
    """A head that can be taken off is enough; nothing is copied of it."""
    config = replace(QUICK, shots=(), ways=("probe",), controls=("none",))
    rows = transferred(featured, models={"mine": Plain}, config=config).rows
    assert [row["set"] for row in rows] == ["distilled", "none"]
    assert rows[0]["accuracies"] == rows[1]["accuracies"]  # all before the head are the pixels


# Pre-training


def test_all_but_the_head_is_copied(featured, data, tmp_path):
    """Of the network that is trained towards the features; the head is that of a new network."""
    context = context_of(featured, data, tmp_path)
    made, _ = starts(context)
    start = next(one for one in made if one.name == "distilled")
    make_ready(context, start, MODEL, 1)
    trained = train_one(featured.set, MODEL, context.pretraining, seed=1, device=CPU, lr=0.1)
    assert trained.classifier.out_features == featured.set.num_outputs == 64
    fresh = build_model(MODEL, SHAPE, 10, generator(1, "network"))
    started = new_network(context, start, MODEL, 1, 10)(generator(1, "network"))
    for name, tensor in started.state_dict().items():
        wanted = fresh if name.startswith("classifier.") else trained
        assert torch.equal(tensor, wanted.state_dict()[name]), name
        if not name.startswith("classifier."):
            assert not torch.equal(tensor, fresh.state_dict()[name]), name
    assert context.path_of("distilled", MODEL, 1).is_file()
    new = next(one for one in made if one.name == "none")
    make_ready(context, new, MODEL, 1)
    assert len(list((tmp_path / "networks").iterdir())) == 1
    network = new_network(context, new, MODEL, 1, 10)(generator(1, "network"))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name])


def test_pre_training_on_features_is_that_of_the_paper():
    """Whatever the protocol of the set is, but for its epochs; the rate stays."""
    from ddengine.learning.training import schedule
    from ddengine.sets.targets import Classes, Features

    hard = EvalConfig(protocol="x", epochs=40, cutmix=0.5, weight_decay=0.3, batch=7)
    made = pretraining_of(hard, Features())
    assert (made.epochs, made.lr, made.momentum, made.weight_decay) == (40, 0.1, 0.9, 1e-3)
    assert (made.batch, made.loss, made.optimiser, made.cutmix) == (256, "mse", "sgd", 0)
    assert not made.augment.any
    points = schedule(made, made.lr)
    assert {point.lr for point in points} == {0.1} and not any(p.fresh for p in points[1:])
    assert pretraining_of(hard, Classes()) == replace(hard, baselines=())
    fine = QUICK.finetuning
    assert (fine.momentum, fine.weight_decay, fine.schedule) == (0.9, 5e-4, "cosine")
    assert fine.augment.always == ("crop",) and not fine.augment.ops


# Rows


def test_every_start_has_a_row(outcome, featured, store):
    """With all images and with few, probed and fine-tuned; new networks are what others are
    compared with.
    """
    rows = outcome.rows
    sets = ["distilled", "none", "random", "experts"]
    assert [row["set"] for row in rows] == sets * 4
    assert [row["shots"] for row in rows] == [3] * 8 + ["all"] * 8
    assert {row["images"] for row in rows if row["shots"] == 3} == {30}
    for row in rows:
        values = [network["accuracy"] for network in row["accuracies"]]
        assert len(values) == row["n"] == 3 and row["accuracy_mean"] is not None
        assert row["accuracy_mean"] == pytest.approx(sum(values) / 3)
        assert ("difference" in row) == (row["set"] != "none")
        assert ("decay" in row) == (row["way"] == "probe") and ("lr" in row) != ("decay" in row)
    distilled, none = rows[0], rows[1]
    by_seed = [
        ours["accuracy"] - theirs["accuracy"]
        for ours, theirs in zip(distilled["accuracies"], none["accuracies"], strict=True)
    ]
    assert distilled["difference"] == pytest.approx(sum(by_seed) / 3)
    assert distilled["bytes"] == featured.nbytes and none["bytes"] == 0
    # new networks, and the one expert: seeds differ in the head and its images alone
    assert not outcome.content["missing"]
    said = outcome.content["starts"]["experts"]["said"]
    assert said.startswith(f"1 of {MODEL} (store ")
    # one expert is one body, which is said
    assert "all 3 networks of a row start from one body" in said
    assert any("start from one body" in note for note in outcome.notes)
    text = str(outcome)
    assert "to none" in text and "random real images with the features that the target" in text


def test_random_images_have_features_of_the_target_network(featured, data, store, tmp_path):
    """As many as the set stores, each network with its own."""
    expert = store.load(0, store.epochs[-1])
    context = context_of(featured, data, tmp_path, experts=[expert])
    made, missing = starts(context)
    assert not missing
    random = next(one for one in made if one.name == "random")
    lessons = [random.lesson(seed) for seed in (0, 0, 1)]
    images, targets = lessons[0].of.batch(torch.arange(20))
    assert len(lessons[0].of) == len(featured.set) and lessons[0].outputs == 64
    assert torch.allclose(targets, expert.embed(images))
    assert torch.equal(images, lessons[1].of.images)
    assert not torch.equal(images, lessons[2].of.images)


def test_rows_that_cannot_be_are_said(featured, data):
    """Without the target network; and experts of another kind than the networks."""
    config = replace(QUICK, shots=(), ways=("probe",))
    rows = transferred(featured, config=config)
    assert [row["set"] for row in rows.rows] == ["distilled", "none"]
    assert any("no row random: its images need the features" in note for note in rows.notes)
    assert any("no row experts" in note for note in rows.notes)


def test_experts_of_another_kind_stand_beside_new_networks_of_theirs(featured, store):
    """Where the set says which they are; else their row is missing, and that is said."""
    config = replace(QUICK, shots=(), ways=("probe",))
    outcome = transferred(featured, config=config, models=["mlp"], experts=store)
    of_mlp = [("mlp", "distilled"), ("mlp", "none"), ("mlp", "random")]
    of_theirs = [(MODEL, "none"), (MODEL, "experts")]
    assert [(row["model"], row["set"]) for row in outcome.rows] == of_mlp + of_theirs
    none, experts = outcome.rows[3:]
    wanted = experts["accuracy_mean"] - none["accuracy_mean"]
    assert experts["difference"] == pytest.approx(wanted)
    assert f"network 2: {MODEL}" in outcome.notes and "mlp" not in str(outcome.table().title)
    unsaid = Distilled(featured.set, {**featured.meta, "target_network": None})
    outcome = transferred(unsaid, config=config, models=["mlp"], experts=store)
    assert [row["set"] for row in outcome.rows] == ["distilled", "none", "random"]
    assert any("no row experts" in note and "of that kind" in note for note in outcome.notes)


@pytest.mark.parametrize("kind", ["class", "logits"])
def test_sets_of_classes_are_tested_by_their_own_protocol(kind, data, tmp_path):
    """Random images have their classes; the learned rate is that of the set alone."""
    syn = tiny_set(data, lr=0.05)
    if kind == "logits":
        syn = syn.with_labels(torch.randn(20, 10, generator=generator(0)))
    of = Distilled(syn, meta_of(data))
    context = context_of(of, data, tmp_path)
    made, _ = starts(context)
    lessons = {one.name: one.lesson(0) for one in made if one.lesson}
    assert lessons["distilled"].lr == pytest.approx(0.05) and lessons["random"].lr is None
    assert lessons["random"].labels == "hard" and len(lessons["random"].of) == 20
    classes = lessons["random"].of.batch(torch.arange(20)).targets
    assert classes.bincount().tolist() == [2] * 10
    config = replace(QUICK, shots=(), ways=("probe",))
    outcome = transferred(of, config=config)
    assert [row["set"] for row in outcome.rows] == ["distilled", "none", "random"]
    assert outcome.content["pretraining"]["epochs"] == 6


# Choosing, drawing


def test_a_probe_is_logistic_regression(data):
    """As another program fits it, at every weight decay."""
    network = build_model(MODEL, SHAPE, 10, generator(3))
    known = Embedded(probe.features(network, data.train), data.train.labels)
    scale = known.features.std(0).clamp(min=1e-6)
    standardised = ((known.features - known.features.mean(0)) / scale).numpy()
    for decay in (1e-3, 1e-1):
        model = LogisticRegression(C=1 / (decay * len(known.labels)), max_iter=5000, tol=1e-8)
        model.fit(standardised, known.labels.numpy())
        theirs = model.predict(standardised) == known.labels.numpy()
        ours = probe.probed(known, known, 10, decay)
        assert sum(ours.right) == pytest.approx(theirs.sum(), abs=1)
    strong = probe.probed(known, known, 10, 100.0)
    assert sum(strong.right) < sum(probe.probed(known, known, 10, 1e-3).right)


def test_few_shot_draws(outcome, data):
    """Of every network its own, so many of each class, the same from every start, and stored."""
    draws = outcome.content["draws"]["digits"]["3"]
    loaded = DIGITS_AGAIN.load(QUICK.data(SHAPE), CPU, test=True)
    assert len(draws) == 3 and len({tuple(draw) for draw in draws}) == 3
    for draw in draws:
        assert loaded.train.labels[torch.tensor(draw)].bincount().tolist() == [3] * 10
    brought = testing.brought_to("digits", loaded, SHAPE, SHAPE, loaded.train.preprocess)
    assert brought.chosen(3, 0, 1).tolist() == draws[1]
    assert brought.chosen(3, 1, 1).tolist() != draws[1]
    assert [network["draw"] for network in outcome.rows[0]["accuracies"]] == [0, 1, 2]


def test_a_probe_sees_the_drawn_images_alone(outcome, featured):
    """The number in the table is that of a classifier of the stored draw."""
    loaded = DIGITS_AGAIN.load(QUICK.data(SHAPE), CPU, test=True)
    data = testing.brought_to("digits", loaded, SHAPE, SHAPE, featured.preprocess)
    row = next(row for row in outcome.rows if row["set"] == "none" and row["way"] == "probe")
    network = build_model(MODEL, SHAPE, 10, generator(1, "network"))
    known = Embedded(probe.features(network, data.train), data.train.labels)
    asked = Embedded(probe.features(network, data.test), data.test.labels)
    draw = torch.tensor(outcome.content["draws"]["digits"]["3"][1])
    wanted = probe.probed(known.at(draw), asked, 10, row["decay"])
    assert row["accuracies"][1]["accuracy"] == wanted.accuracy
    assert wanted.accuracy != probe.probed(known, asked, 10, row["decay"]).accuracy


def test_test_labels_have_no_say(outcome, featured, store, monkeypatch):
    """Permuted, they change accuracies and no chosen rate, decay or draw."""
    original = testing.brought_to

    def permuted(*args):
        made = original(*args)
        made.test.labels = made.test.labels[torch.randperm(len(made.test), generator=generator(9))]
        return made

    monkeypatch.setattr(testing, "brought_to", permuted)
    other = transferred(featured, experts=store)
    chosen = [row.get("lr") or row["decay"] for row in outcome.rows]
    assert [row.get("lr") or row["decay"] for row in other.rows] == chosen
    assert len(set(chosen)) > 2  # something was chosen
    assert other.content["draws"] == outcome.content["draws"]
    assert other.rows[-4]["accuracy_mean"] < outcome.rows[-4]["accuracy_mean"]


def test_test_images_that_were_seen_are_counted(featured, data):
    """Another split of the images that the set was made of is no other dataset."""
    config = replace(QUICK, shots=(), ways=("probe",), split_seed=3)
    outcome = transferred(featured, config=config, experts=None)
    loaded = DIGITS_AGAIN.load(config.data(SHAPE), CPU, test=True)
    trained_on = {image.numpy().tobytes() for image in data.train.pixels}
    num = sum(image.numpy().tobytes() in trained_on for image in loaded.test.pixels)
    said = f"warning: {num} of the {len(loaded.test)} test images of digits are among the images"
    assert num > 0 and any(note.startswith(said) for note in outcome.notes)
    same_split = transferred(featured, config=replace(config, split_seed=0))
    assert not any("warning" in note for note in same_split.notes)


def test_without_a_validation_split_nothing_is_chosen(featured):
    config = replace(QUICK, validation=0.0, shots=(), controls=("none",))
    outcome = transferred(featured, config=config)
    assert {row.get("lr", row.get("decay")) for row in outcome.rows} == {0.01, 1e-4}
    assert any("no validation split of digits" in note for note in outcome.notes)


# Files


class Killed(Exception):
    """What stops a command in the middle."""


@pytest.mark.parametrize("after", [23])
def test_what_is_interrupted_goes_on_to_the_bit(
    after, featured, store, outcome, tmp_path, monkeypatch
):
    """After some trainings: no finished one is done again, and all numbers are those of one go."""
    original, done = Memo.put, []

    def put(self, key, value, *, keep=True):
        if len(done) == after:
            raise Killed
        done.append(key)
        original(self, key, value, keep=keep)

    with monkeypatch.context() as patch:
        patch.setattr(Memo, "put", put)
        with pytest.raises(Killed):
            transferred(featured, experts=store, folder=tmp_path)
    assert not (tmp_path / "transfer.json").exists()
    before = list(done)
    after_all = []

    def watched(self, key, value, *, keep=True):
        after_all.append(key)
        original(self, key, value, keep=keep)

    monkeypatch.setattr(Memo, "put", watched)
    again = transferred(featured, experts=store, folder=tmp_path)
    assert not set(before) & set(after_all)
    ours, theirs = without_seconds(again.content), without_seconds(outcome.content)
    assert ours == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["transfer.json"]
    stored = json.loads((tmp_path / "transfer.json").read_text())
    assert stored["rows"][0]["accuracies"] == again.rows[0]["accuracies"]


def test_processes_find_the_same_numbers(featured, store, outcome, tmp_path, monkeypatch):
    """To the bit, each on one thread; nothing that they did is done again here."""
    monkeypatch.setattr(compare, "processes_for", lambda context, asked: 2)
    trained = []
    monkeypatch.setattr(downstream, "tested", lambda *args: trained.append(args))
    other = transferred(featured, experts=store, folder=tmp_path)
    assert other.content["processes"] == 2 and outcome.content["processes"] == 1 and not trained
    ours, theirs = without_seconds(other.content), without_seconds(outcome.content)
    assert {**ours, "processes": 1} == theirs


def test_other_settings_do_not_get_its_numbers(featured, tmp_path):
    config = replace(QUICK, shots=(), ways=("probe",), controls=("none",))
    first = transferred(featured, config=config, folder=tmp_path)
    again = transferred(featured, config=config, folder=tmp_path)
    assert again.content["seconds"] == first.content["seconds"]
    for change in (
        {"seed": 1},
        {"config": replace(config, decay_grid=(1e-2,))},
        {"protocol": {"epochs": 3}},
        {"models": ["mlp"]},
    ):
        with pytest.raises(ddengine.UserError, match="was made with other settings, images or"):
            transferred(featured, **{"config": config, "folder": tmp_path} | change)
    other = transferred(featured, config=config, folder=tmp_path, seed=1, restart=True)
    assert other.rows[0]["accuracies"] != first.rows[0]["accuracies"]


def test_the_report_shows_it(featured, tmp_path):
    featured.save(tmp_path / "set")
    config = replace(QUICK, shots=(2,), ways=("probe",), controls=("none",))
    transferred(tmp_path / "set", config=config)
    page = ddengine.report(tmp_path / "set", tmp_path / "page.html").read_text()
    assert "Transfer to other datasets" in page and "2/class" in page
    (tmp_path / "set/transfer.json").write_text('{"rows": []}')
    with pytest.raises(ddengine.UserError, match=r"it lacks datasets\); .* with --restart"):
        ddengine.report(tmp_path / "set", tmp_path / "page.html")


def test_images_are_brought_into_the_form_of_the_networks(featured):
    """Larger ones in colour are resized and made grey, which is said."""
    pixels = torch.randint(256, (60, 3, 12, 10), generator=generator(0), dtype=torch.uint8)
    labels = torch.arange(60) % 2
    dataset = Dataset.of((pixels, labels), test=(pixels[:20], labels[:20]))
    config = replace(QUICK, shots=(), ways=("probe",), controls=("none",), limit=None)
    outcome = transferred(featured, {"noise": dataset}.values(), config=config)
    facts = outcome.content["datasets"]["own images"]
    assert facts["stored_shape"] == [3, 12, 10] and facts["shape"] == [1, 8, 8]
    assert "own images: images of 12x10 were resized to 8x8, RGB made grey" in outcome.notes
    data = dataset.load(config.data(SHAPE), CPU, test=True)
    brought = testing.brought_to("x", data, (3, 12, 10), SHAPE, featured.preprocess)
    seen = data.train.pixels.float().mean(1, keepdim=True).round() / 255
    wanted = featured.preprocess.forward(seen)
    assert torch.equal(brought.train.images(torch.arange(len(seen))), wanted)


# Bad input


def folder_of_one_class(path: Path):
    """Images of one class."""
    from PIL import Image

    for part in ("train", "test"):
        for i in range(4):
            place = path / part / "only"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 40 * i).save(place / f"{i}.png")
    return path


PAIR = (torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(20, dtype=torch.long))
SHRINKING = "torchvision/resnet18"  # of small images one pixel is left
UNLABELLED = (PAIR[0], PAIR[1] - 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": []}, ["needs datasets to test on"]),
        ({"config": replace(QUICK, shots=(40,))}, ["shots 40", "class", "of digits has"]),
        ({"config": replace(QUICK, limit=3)}, ["digits cannot be tested on", "limit (now 3)"]),
        ({"config": 3}, ["ddengine.TransferConfig"]),
        ({"protocol": {"labels": "dynamic"}}, ["dynamic labels", "--experts"]),
        ({"models": [SHRINKING], "protocol": {"batch": 19}}, ["20 images", "pretraining.batch"]),
        (
            {"models": [SHRINKING], "config": replace(QUICK, batch=29)},
            ["30 images holds one", "set batch, now 29"],
        ),
        ({"targets": [Dataset.of(PAIR)]}, ["no test images"]),
        ({"targets": [Dataset.of(PAIR, test=PAIR)]}, ["own images has one class", "'0'"]),
        ({"targets": [Dataset.of(UNLABELLED, test=PAIR)]}, ["A label is -1"]),
    ],
)
def test_what_cannot_be_is_said_first(options, words, featured, monkeypatch):
    monkeypatch.setattr(testing, "run", None)  # nothing is trained
    with pytest.raises(ddengine.UserError) as error:
        transferred(featured, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).count(". ") == 0


def test_bad_settings():
    for change, words in (
        ({"ways": ("probing",)}, "way 'probing'"),
        ({"controls": ("full",)}, "control 'full'"),
        ({"shots": (0,)}, "at least 1 each"),
        ({"full": False}, "nothing is left"),
        ({"networks": 0}, "networks must be at least 1"),
        ({"lr_grid": (0.1, -1.0)}, "lr_grid must be positive"),
    ):
        with pytest.raises(ddengine.UserError, match=words):
            TransferConfig(**change)


def test_features_of_another_width(data, store, featured):
    """Than the experts give: said before anything is trained."""
    narrow = Distilled(featured.set.with_features(torch.zeros(20, 5)), featured.meta)
    with pytest.raises(ddengine.UserError, match="have 5 numbers and those of the network that"):
        transferred(narrow, experts=store)


def test_the_command(featured, store, tmp_path, capsys, monkeypatch):
    """Exit codes, one sentence, and the table."""
    monkeypatch.chdir(tmp_path)
    featured.save("set")
    one = folder_of_one_class(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["--to", "digit"], "dataset 'digit'"),
        (["--to", "nowhere/images"], "no folder of images or parquet files"),
        (["--to", str(one)], "has 1 class folder and at least 2 are needed"),
        (["--to", str(one / "train" / "only")], "has 0 class folders"),
        (["--to", str(tmp_path / "empty")], "empty"),
        ([], "needs datasets to test on"),
        (["--to", "digits", "--shots", "90"], "shots 90 asks"),
        (["--to", "digits", "--models", "resnet"], "network 'resnet'"),
    ):
        assert run("transfer", "set", *words, "--limit", "150") == 2, words
        output = capsys.readouterr()
        assert said in output.err and output.err.count("\n") == 1, output.err
    assert run("transfer", "nowhere", "--to", "digits") == 2
    assert "nowhere is not a distilled set" in capsys.readouterr().err
    flags = ["--limit", "150", "--updates", "2", "--few_updates", "1", "--pretraining.epochs", "2"]
    flags += ["--shots", "2", "--networks", "3", "--experts", str(store.folder), "--to", "digits"]
    assert run("transfer", "set", *flags) == 0
    shown = capsys.readouterr().out
    content = json.loads(Path("set/transfer.json").read_text())
    assert content["command"][-len(flags) - 2 : -len(flags)] == ["transfer", "set"]
    assert content["pretraining"]["epochs"] == 2
    assert {row["set"] for row in content["rows"]} == {"distilled", "none", "random", "experts"}
    assert "2/class" in shown and "tune" in shown
    assert max(len(line) for line in shown.splitlines() if line[:1] in "┏┡└│") <= 80
    assert run("transfer", "set", *flags) == 0
    assert "is there; --restart begins anew" in capsys.readouterr().out
    assert run("transfer", "set", *flags, "--seed", "1") == 2
    assert run("inspect", "set/transfer.json") == 0
    inspected = capsys.readouterr().out
    assert "Test accuracy on other datasets" in inspected and "experts" in inspected
    page = ddengine.report("set", "page.html").read_text()
    assert "transfer runs/set --limit 150" in page  # among the commands that make it again


def test_experts_of_a_set_are_opened(featured, store, data, tmp_path):
    """By the folder, and refused where they are of other images."""
    networks = buffers.SetExperts(store.folder).teachers(featured.meta, data, CPU, dynamic=False)
    assert len(networks) == 1
    wanted = store.load(0, store.epochs[-1]).state_dict()
    for name, tensor in networks[0].state_dict().items():
        assert torch.equal(tensor, wanted[name])
    unsaid = {**featured.meta, "target_network": None}
    assert len(buffers.SetExperts(store.folder).teachers(unsaid, data, CPU, dynamic=False)) == 1
    assert buffers.SetExperts().teachers(featured.meta, data, CPU, dynamic=False) == []
    other = ddengine.data.load_data(replace(DIGITS, limit=100), CPU)
    with pytest.raises(ddengine.UserError, match="other experts than those of the set"):
        buffers.SetExperts(store.folder).teachers(featured.meta, other, CPU, dynamic=False)


def test_a_body_keeps_the_head():
    """Nothing of another network's head goes into a network."""
    first, second = (build_model(MODEL, SHAPE, 10, generator(i)) for i in (0, 1))
    weight = second.classifier.weight.clone()
    with_body(without_head(first, "classifier"), second, "classifier")
    assert torch.equal(second.classifier.weight, weight)
    assert torch.equal(second.features[0].weight, first.features[0].weight)


def test_datasets_are_named_on_the_command_line(tmp_path, monkeypatch):
    """By themselves, or by the person, whatever reads them."""
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
    meant = {
        "digits": (None, "digits", None),
        "fashion_mnist=elsewhere": (None, "fashion_mnist", "elsewhere"),
        "mine=photos": ("mine", "folder", "photos"),
        "photos": (None, "folder", "photos"),
        "small=digits": ("small", "digits", None),
        "flowers=hub:someone/flowers": ("flowers", "hub", "someone/flowers"),
    }
    for word, (name, reader, root) in meant.items():
        called, dataset = named(word)
        assert (called, dataset.name, dataset.root) == (name, reader, root)
    for word, words in {
        "mine=": "write --to NAME=PATH", "=photos": "write --to NAME=PATH",
        "mine=no/such/folder": "no/such/folder is no folder", "mine=digit": "digits",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words):
            named(word)
    both = by_name(
        [
            ("mine", Dataset.named("digits")),
            ("mine", Dataset.named("digits")),
            (None, Dataset.named("digits")),
        ]
    )
    assert list(both) == ["mine", "mine (2)", "digits"]


def test_a_folder_of_ones_own_is_tested_on_under_a_name(featured, tmp_path, monkeypatch):
    """From the command line, by a probe."""
    monkeypatch.chdir(tmp_path)
    rng = numpy.random.default_rng(0)
    for split, num in (("train", 8), ("test", 4)):
        for label, least in (("dark", 0), ("light", 128)):
            (tmp_path / "shades" / split / label).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(least, least + 100, (9, 9), dtype="uint8")
                Image.fromarray(pixels).save(tmp_path / "shades" / split / label / f"{i}.png")
    featured.save(tmp_path / "set")
    flags = ["--to", "mine=shades", "--ways", "probe", "--controls", "none", "--device", "cpu"]
    flags += ["--shots", "2", "--pretraining.epochs", "2", "--out", "out"]
    assert run("transfer", "set", *flags) == 0
    content = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert {row["data"] for row in content["rows"]} == {"mine"} == set(content["datasets"])
