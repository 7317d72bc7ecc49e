"""What sets are trained towards: classes, logits, features."""

from dataclasses import replace

import pytest
import torch

from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.train import train_one, validate
from ddengine.learning.probe import linear_probe
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.sets.targets import Classes, Features, Logits, targets_of
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from tests.helpers import CPU, DIGITS, MODEL, shipped_loader, tiny_set

QUICK = EvalConfig(
    protocol="own", epochs=60, num_networks=3, lr_grid=(0.05,), full_steps=60,
    search_networks=1, baselines=("random", "hard_labels"),
)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return load_data(DIGITS, CPU, test=True)


@pytest.fixture(scope="module")
def teacher(data):
    """A network whose features are regressed on."""
    return build_model(MODEL, data.image_shape, 10, generator(7)).eval()


@pytest.fixture
def featured(data, teacher):
    """A set of real images with the features that a network gives them."""
    syn = tiny_set(data, ipc=2)
    with torch.no_grad():
        features = teacher.embed(syn.batch(torch.arange(len(syn))).images).flatten(1)
    return syn.with_features(features)


def test_features_are_saved_loaded_and_shipped(featured, tmp_path):
    assert featured.targets == Features("stored") and featured.target_kind == "features"
    folders.save(featured, tmp_path / "set", {})
    again, meta = folders.load(tmp_path / "set", CPU)
    assert meta["target_kind"] == "features" and "protocol" not in meta
    index = torch.tensor([3, 0])
    batch = again.batch(index)
    assert torch.equal(batch.targets, featured.tensors["features"][index])
    assert torch.equal(batch.classes, featured.classes[index])
    assert meta["bytes"]["labels"] == 20 * 8 + featured.tensors["features"].nbytes
    _, targets, info = shipped_loader(tmp_path / "set").load()
    assert torch.equal(targets, featured.tensors["features"])
    assert torch.equal(info["image_classes"], featured.classes) and info["protocol"] is None
    assert "loss" not in info


def test_features_of_decoded_examples_are_told_from_those_of_items(featured, tmp_path):
    """Rows belong to the examples in their order; half precision is read as numbers."""
    halves = featured.with_features(featured.tensors["features"], torch.float16)
    assert halves.batch(torch.tensor([1])).targets.dtype == torch.float32
    assert halves.num_outputs == featured.tensors["features"].shape[1]


def test_lost_and_foreign_features_are_refused(featured, tmp_path):
    folders.save(featured, tmp_path / "set", {})
    path = tmp_path / "set/labels.safetensors"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="has lost its features"):
        folders.load(tmp_path / "set", CPU)
    path.write_bytes(content)
    short = featured.with_features(featured.tensors["features"])
    short.tensors["features"] = short.tensors["features"][:5]
    folders.save(short, tmp_path / "short", {})
    with pytest.raises(UserError, match=r"has features of shape \(5, 64\) for 20 images"):
        folders.load(tmp_path / "short", CPU)
    with files.reading_tensors(path) as file:
        assert set(file.keys()) == {"features"}


def test_protocols_by_kind():
    """Features are regressed on, whatever the protocol has for classes; others change nothing."""
    assert Classes().trained_by(QUICK) == Logits().trained_by(QUICK) == QUICK
    hard = replace(QUICK, loss="kl", hard_weight=0.5)
    assert Features().trained_by(hard) == replace(QUICK, loss="mse", hard_weight=0.0)
    with pytest.raises(KeyError):
        targets_of("words", "stored")


def test_a_network_is_trained_and_validated_on_features(data, featured):
    """It has D outputs, near the features of its images; the probe says how good it is. Fails
    where features are taken for logits, which have no place for D of them.
    """
    network = train_one(featured, MODEL, QUICK, seed=0, device=CPU)
    images, wanted = featured.batch(torch.arange(len(featured)))
    error = (network(images) - wanted).square().mean()
    assert error < 0.5 * wanted.square().mean()
    accuracy = validate(
        featured,
        replace(data, validation=data.test),
        QUICK,
        MODEL,
        seed=0,
        device=CPU,
        precision="fp32",
    )
    assert accuracy is not None
    assert accuracy > 0.6


def test_a_linear_probe_learns_what_features_say(data):
    """Near the accuracy of a classifier of the same random features by another program, and the
    network is left as it is.
    """
    from sklearn.linear_model import LogisticRegression

    from ddengine.learning.probe import features

    network = build_model(MODEL, data.image_shape, 10, generator(3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ours = linear_probe(network, data.train, data.test)
    known, asked = features(network, data.train), features(network, data.test)
    scale = known.std(0).clamp(min=1e-6)
    model = LogisticRegression(C=1e4 / len(known), max_iter=2000)
    model.fit(((known - known.mean(0)) / scale).numpy(), data.train.labels.numpy())
    theirs = model.score(((asked - known.mean(0)) / scale).numpy(), data.test.labels.numpy())
    assert ours.accuracy == pytest.approx(theirs, abs=0.01) and ours.accuracy > 0.6
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_sets_of_features_are_evaluated_by_a_probe(data, featured, monkeypatch):
    """Their networks have D outputs and are never asked for classes; others are as before. Fails
    where features are taken for logits of classes, or where outputs are counted as classes.
    """
    rows = evaluate(featured, data, QUICK, MODEL, seed=0, device=CPU)["rows"]
    by_name = {row["set"]: row for row in rows}
    assert by_name["distilled"]["accuracy_mean"] > 0.6  # 20 images; the classes come by the probe
    hard = evaluate(replace(featured, targets=Classes()), data, QUICK, MODEL, seed=0, device=CPU)
    wanted = {row["set"]: row["accuracy_mean"] for row in hard["rows"]}
    assert by_name["random"]["accuracy_mean"] == wanted["random"]
