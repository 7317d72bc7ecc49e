"""Numbers that are none: damaged sets, stores and preprocessing are refused, networks that diverged
are marked, files stay JSON.
"""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    DIGITS,
    MODEL,
    Pull,
    new_model,
    rewrite_tensors,
    tiny_data,
    tiny_set,
    tiny_store,
)
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import ddengine
from buffers.store import ExpertStore, stored_preprocess
from ddengine import loop
from ddengine.artefact import describe, results
from ddengine.artefact import folder as folders
from ddengine.data import Preprocess, load_data
from ddengine.data.preprocess import fit_zca
from ddengine.data.stored import check_stored, flaw, unlike
from ddengine.evaluation import bench, ranking, scores, tables
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.rates import best_rate
from ddengine.evaluation.train import validate
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.pages import figures, of_continual, overview, page
from ddengine.plan.trainings import Calls
from ddengine.recipe import EvalConfig, OptimConfig, OuterConfig
from ddengine.sets import synthetic
from ddengine.sets.codec import Compensated, Identity
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import coded
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.system.rng import generator
from ddengine.uses import continual, privacy
from ddengine.uses.continual.summary import statistics

pytestmark = pytest.mark.pictures
SHORT = EvalConfig(
    protocol="fast",
    epochs=3,
    batch=32,
    num_networks=3,
    full_steps=3,
    baselines=("random", "full"),
    lr_grid=(0.01,),
)
META = {"recipe": {"data": {"name": "digits"}, "model": MODEL}}


@pytest.fixture(scope="module")
def data():
    return load_data(DIGITS, CPU, test=True)


@pytest.fixture(scope="module")
def whitened(data):
    """The digits' own whitening."""
    return fit_zca(data.train.pixels.float() / 255)


# Sets


@pytest.fixture
def folder(data, tmp_path):
    """A set with soft labels, a learned rate and a running average."""
    syn = tiny_set(data, lr=0.02).with_labels(torch.randn(20, 10, generator=generator(0)), top=3)
    folders.save(
        syn.with_tensors({"raw.images": syn.tensors["images"].clone()}), tmp_path / "set", META
    )
    return tmp_path / "set"


def change(folder, name, value, file="data.safetensors"):
    """Put a value into a stored tensor: its last element, or the whole."""
    tensors = load_file(folder / file)
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    else:
        tensors[name].view(-1)[-1] = value
    metadata = None
    if file == "labels.safetensors":  # as a program that wrote it would have
        metadata = {"digest": files.tensor_digest(tensors)}
        meta = files.read_json(folder / "meta.json") | {"labels_digest": metadata["digest"]}
        files.write_json(folder / "meta.json", meta)
    rewrite_tensors(folder / file, tensors, metadata)


NOT_SETS = [
    *(("images", value, "'images' are not finite") for value in (math.nan, math.inf, -math.inf)),
    ("raw.images", math.nan, "'raw.images' are not finite"),
    ("lr", math.nan, "'lr' are not finite"),
    ("lr", -0.1, "learning rate of -0.1"),
    ("lr", 0.0, "learning rate of 0"),
    ("lr", torch.ones(2), "learning rate of 2 numbers"),
    ("classes", 10, "classes 0 to 10"),
    ("classes", -1, "classes -1 to 9"),
    ("preprocess.mean", math.nan, "mean holds numbers that are not finite"),
    ("preprocess.mean", 1e6, r"a mean of 1e\+06"),
    ("preprocess.mean", -3.0, "a mean of -3"),
    ("preprocess.mean", torch.full((3,), 0.3), "mean has shape"),
    ("preprocess.mean", torch.tensor([1]), "mean is of type int64"),
    ("preprocess.std", 0.0, "a standard deviation of 0"),
    ("preprocess.std", -0.4, "a standard deviation of -0.4"),
    ("preprocess.std", math.nan, "std holds numbers"),
    ("preprocess.std", 66.0, "a standard deviation of 66"),
    ("preprocess.std", torch.full((2,), 0.3), "std has shape"),
]


def test_a_set_with_numbers_that_are_none_is_refused_when_read(folder):
    """Every reader refuses it, naming file and number; the sound set is read."""
    folders.load(folder, CPU)
    assert not dict(describe.describe(folder)[0].rows).get("damaged")
    sound = load_file(folder / "data.safetensors")
    for name, value, words in NOT_SETS:
        change(folder, name, value)
        for read in (partial(folders.load, device=CPU), page.read, ddengine.load):
            with pytest.raises(UserError, match=words) as found:
                read(folder)
            assert "data.safetensors" in str(found.value), name
        assert "data.safetensors" in dict(describe.describe(folder)[0].rows)["damaged"], name
        rewrite_tensors(folder / "data.safetensors", sound)
    for name, value, words in (
        ("logits", math.inf, "'logits' are not finite"),
        ("logits.index", 200, "classes 0 to 200 in 'logits.index'"),
    ):
        change(folder, name, value, "labels.safetensors")
        with pytest.raises(UserError, match=f"labels.safetensors.*{words}"):
            folders.load(folder, CPU)
        change(folder, name, 1, "labels.safetensors")


def test_compensators_and_their_units_are_checked(data, tmp_path):
    images = data.train.images(random_index(data.train, 2, data.class_names, generator(0, "init")))
    syn = coded(
        Compensated(base=2, compensators=6),
        images,
        torch.arange(20) // 2,
        data.class_names,
        data.train.preprocess,
    ).shipped()
    folders.save(syn, tmp_path / "set", META)
    folders.load(tmp_path / "set", CPU)
    for name, value, words in (
        ("compensators", math.nan, "'compensators' are not finite"),
        ("unit", 0.0, "units of"),
    ):
        sound = load_file(tmp_path / "set/data.safetensors")
        change(tmp_path / "set", name, value)
        with pytest.raises(UserError, match=words):
            folders.load(tmp_path / "set", CPU)
        rewrite_tensors(tmp_path / "set/data.safetensors", sound)


# Preprocessing


def test_whitening_that_is_none_has_a_flaw(data, whitened):
    assert flaw(whitened, data.image_shape) is None and unlike(whitened, data.train.pixels) is None
    broken = whitened.matrix.clone()
    broken[3, 5] = math.nan
    large = whitened.matrix.clone()
    large[3, 5] = 1e4
    for wrong, words in (
        (replace(whitened, matrix=broken), "matrix holds numbers that are not finite"),
        (replace(whitened, inverse=torch.zeros_like(whitened.inverse)), "do not undo each other"),
        (replace(whitened, inverse=2 * whitened.inverse), "do not undo each other"),
        (replace(whitened, matrix=large), "do not undo each other"),
        (replace(whitened, inverse=None), "inverse is missing"),
        (replace(whitened, mean=whitened.mean + 7), "a mean of"),
        (replace(whitened, matrix=whitened.matrix[:9, :9]), "matrix has shape"),
    ):
        assert words in flaw(wrong, data.image_shape), words
        with pytest.raises(UserError, match=words):
            check_stored(wrong, data.train.pixels)
    assert "mean has shape" in flaw(whitened, (3, 8, 8))
    assert flaw(Preprocess(mean=torch.zeros(1))) == "std is missing"


def test_preprocessing_is_compared_with_the_training_images(data, whitened):
    """Constants that are a little off pass, as do published ones of any size; others are of other
    images.
    """
    own, pixels = data.train.preprocess, data.train.pixels
    for off, times in ((0.0, 1.0), (0.1, 0.6), (-0.2, 1.5)):
        check_stored(replace(own, mean=own.mean + off, std=own.std * times), pixels)
    far = Preprocess(
        mean=torch.tensor([0.9]),
        std=torch.tensor([0.02]),
        origin="somewhere/preprocess.safetensors",
    )
    check_stored(far, pixels, (0.9,), (0.02,))
    with pytest.raises(
        UserError,
        match=r"somewhere/preprocess.safetensors is impossible.*mean of 0.9 in channel 0.*images is 0.3",
    ):
        check_stored(far, pixels)
    with pytest.raises(UserError, match=r"standard deviation of 0.02"):
        check_stored(replace(far, mean=own.mean), pixels)
    for times in (1e-3, 1e3):  # a whitening that its inverse undoes, and that whitens nothing
        wrong = replace(whitened, matrix=whitened.matrix * times, inverse=whitened.inverse / times)
        assert flaw(wrong) is None
        with pytest.raises(UserError, match="root mean square"):
            check_stored(wrong, pixels)
    with pytest.raises(UserError, match="mean image is"):
        check_stored(replace(whitened, mean=1 - whitened.mean), pixels)


def test_all_images_are_looked_at_before_a_refusal():
    """Of 3,000 images a few are not black: a sample of them says nothing."""
    pixels = torch.zeros(3000, 1, 2, 2, dtype=torch.uint8)
    pixels[1:30:2] = 255
    values = pixels.double() / 255
    fitted = Preprocess(mean=values.mean().view(1).float(), std=values.std().view(1).float())
    assert unlike(fitted, pixels) is None
    assert "standard deviation" in unlike(replace(fitted, std=torch.tensor([1.5])), pixels)


def test_real_images_are_never_seen_through_an_impossible_file(data):
    """The splits of data refuse it, also where another channel count would broadcast."""
    for wrong in (
        Preprocess(mean=torch.tensor([0.3]), std=torch.tensor([0.0])),
        Preprocess(mean=torch.tensor([math.nan]), std=torch.tensor([0.3])),
        Preprocess(mean=torch.tensor([0.3, 0.3, 0.3]), std=torch.tensor([0.3, 0.3, 0.3])),
        Preprocess(mean=torch.tensor([0.99]), std=torch.tensor([0.3])),
    ):
        with pytest.raises(UserError, match="is impossible"):
            load_data(DIGITS, CPU, test=True, stored=lambda digest, wrong=wrong: wrong)


# Stores


def test_a_damaged_store_names_shard_and_epoch(tmp_path):
    """A row is judged when it is read: parameters and running statistics; other rows are fine."""
    data, name = tiny_data(), "convnet-d1-w4-bn"
    tiny_store(tmp_path, data, model=name)
    shard = tmp_path / "expert_0001.safetensors"
    tensors = load_file(shard)
    with files.reading_tensors(shard) as file:
        metadata = file.metadata()
    for key, epoch, value in (
        ("params", 2, math.nan),
        ("params", 0, math.inf),
        ("buffers", 3, math.nan),
    ):
        broken = {k: v.clone() for k, v in tensors.items()}
        broken[key][epoch, -1] = value
        rewrite_tensors(shard, broken, metadata)
        store = ExpertStore(tmp_path, new_model(data, name), 2)
        assert (
            store.snapshots(0, [0, 1, 2, 3]).isfinite().all()
            and store.snapshots(1, [1]).isfinite().all()
        )
        store.load(1, 1)
        with pytest.raises(
            UserError, match=rf"expert_0001.safetensors is damaged: epoch {epoch} holds"
        ):
            store.load(1, epoch)
        if key == "params":
            with pytest.raises(
                UserError, match=rf"expert_0001.safetensors is damaged: epoch {epoch} holds"
            ):
                store.snapshots(1, [1, epoch])


def test_a_store_with_impossible_preprocessing_is_refused(tmp_path):
    tiny_store(tmp_path, tiny_data())
    path = tmp_path / "preprocess.safetensors"
    assert (
        stored_preprocess(tmp_path).origin == str(path)
        and stored_preprocess(tmp_path / "none") is None
    )
    for tensors, words in (
        (
            {"preprocess.mean": torch.tensor([0.3]), "preprocess.std": torch.tensor([0.0])},
            "standard deviation of 0",
        ),
        (
            {"preprocess.mean": torch.tensor([1e6]), "preprocess.std": torch.tensor([0.3])},
            "mean of 1e",
        ),
        ({"mean": torch.tensor([0.3])}, "preprocess.mean is missing"),
    ):
        rewrite_tensors(path, tensors)
        with pytest.raises(UserError, match=f"preprocess.safetensors .*{words}"):
            stored_preprocess(tmp_path)
        assert "preprocess.safetensors" in dict(describe.describe(tmp_path)[0].rows)["damaged"]


# Networks that diverged


class Broken(nn.Module):
    """A network that is right about nothing but class 0, with a parameter, a buffer or an answer
    that is not finite.
    """

    def __init__(self, parameter=0.0, buffer=0.0, answer=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([parameter]))
        self.register_buffer("mean", torch.tensor([buffer]))
        self.answer = answer

    def forward(self, images):
        logits = torch.zeros(len(images), 10)
        logits[:, 0] = 1
        logits[-1, 5] += self.answer
        return logits


def test_what_counts_as_diverged(data):
    assert not training.diverged(Broken()) and training.accuracy(Broken(), data.test) > 0
    for wrong in (
        Broken(parameter=math.nan),
        Broken(parameter=math.inf),
        Broken(buffer=math.nan),
        Broken(answer=math.nan),
        Broken(answer=-math.inf),
    ):
        found = training.classified(wrong, data.test)
        assert (
            found.diverged
            and found.accuracy is None
            and training.accuracy(wrong, data.test) is None
        )


@pytest.fixture
def some_diverge(monkeypatch):
    """Networks trained at a rate above 1 diverge, and at 0.5 those of the given seeds; by their own
    parameters, as in truth.
    """
    real, lost = training.train_networks, set()

    def train_networks(new_model, sets, seeds, config, lr, device, **options):
        networks = real(new_model, sets, seeds, config, min(lr, 0.01), device, **options)
        for network, seed in zip(networks, seeds, strict=True):
            if lr > 1 or (lr == 0.5 and seed in lost):
                next(network.parameters()).data.fill_(math.nan)
        return networks

    monkeypatch.setattr(training, "train_networks", train_networks)
    return lost


def test_true_divergence_is_marked(data):
    """Plain SGD at a rate of 1e20, together in one computation and one after another."""
    for batch in (8, 64):
        config = replace(SHORT, batch=batch, rate="learned", lr=1e20, baselines=())
        (row,) = evaluate(tiny_set(data), data, config, MODEL, seed=0, device=CPU)["rows"]
        assert (
            row["accuracy_mean"],
            row["accuracy_std"],
            row["ci95"],
            row["n"],
            row["diverged"],
        ) == (None, None, None, 0, 3)
        assert row["accuracies"] == [
            {"seed": i, "draw": 0, "accuracy": None, "diverged": True} for i in range(3)
        ]
        assert set(row["per_class"].values()) == {None} and row["balanced_accuracy_mean"] is None
        json.dumps(row, allow_nan=False)


def test_a_row_averages_the_networks_that_count(data, some_diverge, tmp_path):
    """One of three diverged: mean, interval and classes are of the other two; a resumed evaluation
    says the same.
    """
    some_diverge |= {1}
    config, syn = replace(SHORT, rate="learned", lr=0.5), tiny_set(data)
    found = evaluate(syn, data, config, MODEL, seed=0, device=CPU, memo_path=tmp_path / "memo")
    for row in found["rows"]:
        known = [a["accuracy"] for a in row["accuracies"]]
        assert (
            known[1] is None
            and row["accuracies"][1]["diverged"]
            and row["n"] == 2
            and row["diverged"] == 1
        )
        assert (
            row["accuracy_mean"] == pytest.approx((known[0] + known[2]) / 2)
            and 0 <= row["ci95"][0] <= row["ci95"][1] <= 1
        )
    lines = tables.notes(found)
    assert "warning: 1 of 3 networks trained on distilled diverged and do not count" in lines
    original, times = bench.Bench.accuracies, []

    def until(limit):
        def accuracies(self, *args):
            if len(times) == limit:
                raise KeyboardInterrupt
            times.append(args)
            return original(self, *args)

        return accuracies

    (tmp_path / "memo").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.Bench, "accuracies", until(2))
        with pytest.raises(KeyboardInterrupt):
            evaluate(syn, data, config, MODEL, seed=0, device=CPU, memo_path=tmp_path / "memo")
        patch.setattr(bench.Bench, "accuracies", until(-1))
        again = evaluate(syn, data, config, MODEL, seed=0, device=CPU, memo_path=tmp_path / "memo")
    assert len(times) == 3
    assert [r["accuracies"] for r in again["rows"]] == [r["accuracies"] for r in found["rows"]]
    assert [r["per_class"] for r in again["rows"]] == [r["per_class"] for r in found["rows"]]


def test_a_rate_at_which_networks_diverge_is_not_chosen():
    assert best_rate([(0.1, [0.2]), (1.0, [None]), (2.0, [0.1])]) == (0.1, False)
    assert best_rate([(0.1, [0.2, 0.2]), (1.0, [0.9, None])]) == (0.1, False)
    assert best_rate([(0.1, [None, None]), (1.0, [0.3, None]), (2.0, [0.2, None])]) == (1.0, True)
    assert best_rate([(0.1, [0.3]), (1.0, [0.3])]) == (0.1, False)
    assert best_rate([(0.1, [None]), (1.0, [None])]) == (0.1, True)
    assert best_rate([(0.1, [0.0]), (1.0, [None])]) == (0.1, False)


def test_the_search_passes_over_rates_that_diverge_and_says_where_all_do(
    data, some_diverge, capsys
):
    config = replace(SHORT, num_networks=1, baselines=(), lr_grid=(0.01, 5.0))
    (row,) = evaluate(tiny_set(data), data, config, MODEL, seed=0, device=CPU)["rows"]
    assert row["lr"] == 0.01 and row["n"] == 1 and "diverged" not in capsys.readouterr().out
    (row,) = evaluate(
        tiny_set(data), data, replace(config, lr_grid=(5.0, 7.0)), MODEL, seed=0, device=CPU
    )["rows"]
    assert row["lr"] == 5.0 and row["diverged"] == 1
    said = capsys.readouterr().out
    assert (
        said.count(
            "distilled on convnet-d1-w4-in: networks diverged at every learning rate that was tried"
        )
        == 1
    )


def test_a_network_that_chooses_images_and_diverged_is_named(data, some_diverge):
    config = replace(SHORT, rate="learned", lr=5.0, baselines=("herding",))
    with pytest.raises(UserError, match=r"looks at the full data.*diverged at rate 5"):
        evaluate(tiny_set(data), data, config, MODEL, seed=0, device=CPU)


def test_validation_of_a_network_that_diverged(data, some_diverge, tmp_path, capsys):
    """None, null in the log, and a warning; never chance."""
    config = replace(SHORT, lr=5.0)
    assert (
        validate(tiny_set(data), data, config, MODEL, seed=0, device=CPU, precision="fp32") is None
    )
    assert (
        validate(tiny_set(data, lr=0.01), data, config, MODEL, seed=0, device=CPU, precision="fp32")
        > 0
    )
    outer = OuterConfig(
        steps=4, optim={"images": OptimConfig(lr=0.01)}, evaluate_every=2, checkpoint_every=2
    )
    loop.distill(tiny_set(data), Pull(), outer, tmp_path, seed=0, validate=lambda syn: None)
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e.get("validation_accuracy", "none") for e in events] == ["none", None, "none", None]
    assert "set of step 2 diverged" in capsys.readouterr().out


def told(name, model="mlp", accuracies=(0.5, 0.6), **more):
    """A row as evaluation.json has it."""
    finite = [a for a in accuracies if a is not None]
    entries = [
        {"seed": i, "draw": 0, "accuracy": a, **({"diverged": True} if a is None else {})}
        for i, a in enumerate(accuracies)
    ]
    mean = float(np.mean(finite)) if finite else None
    facts = {
        "accuracy_mean": mean,
        "accuracy_std": None,
        "ci95": None,
        "n": len(finite),
        "diverged": len(accuracies) - len(finite),
    }
    plain = {
        "set": name,
        "model": model,
        "lr": 0.1,
        "steps": 3,
        "seconds": 1.0,
        "bytes": 10,
        **facts,
        "accuracies": entries,
    }
    return plain | {"per_class": {"cat": mean, "dog": mean}} | more


LOST = {
    "rows": [
        told("distilled", accuracies=(None, None)),
        told("random"),
        told("distilled", "lenet"),
        told("random", "lenet", (None, 0.4)),
    ]
}


def test_rows_without_accuracy_are_shown(tmp_path):
    """Table, sorting, cross table, heat map, page, card, inspect."""
    console = Console(width=100, record=True)
    for sort in ("none", "accuracy", "accuracy_per_byte"):
        assert len(tables.sorted_rows(LOST["rows"], sort)) == 4
        assert sort == "none" or tables.sorted_rows(LOST["rows"], sort)[-1]["accuracy_mean"] is None
    console.print(tables.table(LOST, "digits"))
    console.print(overview.cross_table([("a", LOST)]))
    assert console.export_text().count("diverged") == 2
    figures.heat_map(tmp_path / "heat_map.png", [("a", LOST)])
    figures.heat_map(tmp_path / "none.png", [("a", {"rows": LOST["rows"][:1]})])
    (tmp_path / "evaluation.json").write_text(json.dumps(LOST, allow_nan=False))
    text = page.write([tmp_path, tmp_path], tmp_path / "report.html").read_text()
    assert (
        "distilled diverged" in text
        and 'title="all networks diverged"' in text
        and "<td>diverged</td>" in text
    )
    table = results.results_table(LOST)
    assert (
        "| distilled | mlp | diverged | - | 0, 2 diverged |" in table
        and "| 40.0 | - | 1, 1 diverged |" in table
    )
    assert any("diverged" in cell for row in describe.describe(tmp_path)[1].rows for cell in row)
    with pytest.raises(UserError, match="has no rows"):
        page.write([bad(tmp_path)], tmp_path / "other.html")


def bad(folder):
    """An evaluation whose accuracy is missing although nothing diverged."""
    row = told("distilled") | {"accuracy_mean": None}
    (folder / "bad").mkdir()
    (folder / "bad/evaluation.json").write_text(json.dumps({"rows": [row]}))
    return folder / "bad"


def test_the_picture_of_a_run_shows_rows_without_accuracy(data, tmp_path):
    figures.real_vs_distilled(tmp_path / "picture.png", data.train, tiny_set(data), LOST)
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_scores_leave_out_seeds_that_diverged():
    augmented = {
        "rows": [
            told("distilled", accuracies=(0.5, None, 0.6)),
            told("random", accuracies=(0.4, 0.4, 0.4)),
            told("full", accuracies=(0.9,) * 3),
        ]
    }
    plain = {
        "rows": [
            told("distilled", accuracies=(0.5, 0.5, 0.6)),
            told("random", accuracies=(0.3, 0.3, None)),
        ]
    }
    (found,) = scores.of(augmented, plain)
    assert found["diverged"] == 2 and found["scores"]["improvement_over_random"][
        "mean"
    ] == pytest.approx(0.1)
    augmented["rows"][0] = told("distilled", accuracies=(None,) * 3)
    (none,) = scores.of(augmented, plain)
    assert none["scores"]["label_robust_score"] == {"mean": None, "std": None, "ci95": None, "n": 0}
    console = Console(width=100, record=True)
    console.print(scores.table([none], "digits"))
    assert console.export_text().count("diverged") == 5
    json.dumps([found, none], allow_nan=False)


def test_splits_leave_out_networks_that_diverged():
    """Crossed where seeds are the same: a seed that diverged in one run counts in none."""
    recipe = {"name": "mtt/digits", "model": "mlp"}
    lists = [(0.5, 0.6, 0.7), (0.4, None, 0.6)]
    runs = [
        (f"r{i}", {"recipe": recipe, "seed": i}, {"rows": [told("distilled", accuracies=a)]})
        for i, a in enumerate(lists)
    ]
    (found,) = scores.splits(runs)
    assert found["split"] == scores.variance_split([[0.5, 0.7], [0.4, 0.6]], paired=True)
    runs[1][2]["rows"][0] = told("distilled", accuracies=(None, None, 0.6))
    assert scores.splits(runs) == []


def test_ranking_leaves_out_networks_that_diverged():
    models = ("a", "b", "c", "d")
    rows = [
        told(s, m, (0.1 * i + 0.1, 0.1 * i + 0.12))
        for s in ("distilled", "full")
        for i, m in enumerate(models)
    ]
    rows[1] = told("distilled", "b", (None, 0.2))
    rows[3] = told("distilled", "d", (None, None))
    found = ranking.correlations({"rows": rows}, seed=0, resamples=50)
    assert (
        found["networks"] == ["a", "b", "c"]
        and found["diverged"] == ["d"]
        and found["sets"][0]["kendall"] == pytest.approx(1)
    )
    assert "d." in found["note"] and "diverged" in found["note"]
    json.dumps(found, allow_nan=False)
    rows[0] = told("distilled", "a", (None,))
    with pytest.raises(
        UserError, match=r"2 networks on all sets .without a, d, which diverged on a set."
    ):
        ranking.correlations({"rows": rows}, seed=0)


def test_continual_learning_marks_stages_that_diverged(tmp_path):
    """Statistics, forgetting, table, picture and notes of repeats of which one diverged, and of a
    memory with none left.
    """
    assert (
        continual.forgetting([[0.9], [0.5, 0.8]]) == pytest.approx(0.4)
        and continual.forgetting([[0.9], [None, None]]) is None
    )
    some, none = (statistics(values) for values in ([0.5, None, 0.6], [None] * 3))
    assert (
        some["mean"] == pytest.approx(0.55)
        and some["diverged"] == 1
        and some["values"] == [0.5, None, 0.6]
    )
    assert none["mean"] is None and none["ci95"] is None and none["diverged"] == 3
    memory = {
        "accuracy": [some, some],
        "final": some,
        "forgetting": some,
        "images_per_class": 3,
        "bytes": 100,
    }
    lost = memory | {"accuracy": [some, none], "final": none, "forgetting": none}
    config = {"repeats": 3, "stages": 2, "strategy": "memory", "budget": 1000}
    result = {
        "config": config,
        "model": "mlp",
        "classes_seen": [5, 10],
        "memories": {"distilled": lost, "random": memory},
    }
    console = Console(width=100, record=True)
    console.print(of_continual.table(result))
    assert console.export_text().count("diverged") == 3
    of_continual.plot(tmp_path / "continual.png", result)
    assert (
        "warning: 3 of 3 networks of memory distilled diverged at stage 2 and do not count"
        in of_continual.notes(result)
    )


def test_privacy_through_networks_that_diverged(data, capsys):
    """An embedding that is not finite is refused; a network on the set that is not loses its
    attack, said.
    """
    syn, network = (
        tiny_set(data),
        build_model(MODEL, data.image_shape, data.num_classes, generator(0)),
    )
    with pytest.raises(UserError, match="says nothing finite of some"):
        privacy.measure(syn, data, lambda images: images.flatten(1) * math.nan, None, seed=0)
    next(network.parameters()).data.fill_(math.nan)
    found = privacy.measure(syn, data, lambda images: images.flatten(1), network, seed=0)
    assert len(found["membership"]) == 2 and "diverged" in capsys.readouterr().out
    json.dumps(found, allow_nan=False)


def test_an_estimate_still_counts_its_tests(data):
    calls, options = Calls(), {"seed": 0, "device": CPU}
    syn = tiny_set(data)
    accuracy = validate(syn, data, SHORT, MODEL, precision="fp32", means=calls.means, **options)
    assert accuracy == 0.5
    rows = evaluate(syn, data, SHORT, MODEL, means=calls.means, **options)["rows"]
    assert len(calls.tests) == 1 + 3 * (1 + 3) and {row["accuracy_mean"] for row in rows} == {0.5}


# What was skipped, and files


class Sometimes(Pull):
    """Losses that are not finite, or too high, at some steps."""

    def losses(self, syn, state, step, rng):
        for loss in super().losses(syn, state, step, rng):
            yield loss * (math.nan if step in (1, 4) else 1.0) + (1e9 if step == 2 else 0.0)


def test_skipped_updates_are_said_at_the_end_and_the_log_is_json(data, tmp_path, capsys):
    """Also where they are few; metrics.jsonl has null in place of NaN, and its readers go on."""
    outer = OuterConfig(
        steps=20, optim={"images": OptimConfig(lr=0.001)}, max_loss=1e8, checkpoint_every=5
    )
    loop.distill(tiny_set(data), Sometimes(), outer, tmp_path, seed=0)
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith(
        "warning: 2 of 20 updates were skipped because the loss or its gradient was not finite"
    )
    assert last[1].startswith(
        "1 of 20 updates were skipped because the loss was above outer.max_loss 1e+08"
    )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [e["step"] for e in events if e["loss"] is None] == [2, 5] and len(events) == 20
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": {"name": "mtt/digits"}}))
    assert (
        "Loss of the distillation" in page.write([tmp_path], tmp_path / "report.html").read_text()
    )
    assert "at step 20" in dict(describe.describe(tmp_path)[0].rows)["last loss"]
    loop.distill(
        tiny_set(data), Pull(), replace(outer, max_loss=math.inf), tmp_path / "none", seed=0
    )
    assert "skipped" not in capsys.readouterr().out


NOT_JSON = {
    "a": math.nan,
    "b": [1.0, math.inf, (-math.inf, {"c": np.float64("nan")})],
    "d": None,
    "e": True,
    "f": "NaN",
    "é": 3,
}
CLEAN = {"a": None, "b": [1.0, None, [None, {"c": None}]], "d": None, "e": True, "f": "NaN", "é": 3}


def test_every_json_file_is_json(tmp_path):
    """Whole files, lines of a log, what a memo remembers; a board gets the numbers alone."""
    files.write_json(tmp_path / "file.json", NOT_JSON)
    written = json.loads((tmp_path / "file.json").read_text(), parse_constant=pytest.fail)
    assert written.pop("blake2b") and written == CLEAN == files.read_json(tmp_path / "file.json")
    written = []

    class Board(log.Board):
        def write(self, step, numbers):
            written.append((step, numbers))

    events = log.EventLog(tmp_path / "metrics.jsonl", board=Board(tmp_path / "board"))
    events.write(step=1, loss=math.nan, validation_accuracy=None)
    events.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "validation_accuracy": None,
    }
    assert (
        written[0][0] == 1 and set(written[0][1]) == {"loss"} and math.isnan(written[0][1]["loss"])
    )
    memo = Memo(tmp_path / "memo", "me")
    memo("a", lambda: {"accuracies": [0.5, math.nan]})
    assert json.loads((tmp_path / "memo").read_text(), parse_constant=pytest.fail)["value"] == {
        "accuracies": [0.5, None]
    }


def test_a_set_that_is_not_plain_is_read_as_before(data, tmp_path):
    """Real preprocessing of every kind passes: mean and deviation, whitening, one image set in
    bytes.
    """
    whitening = fit_zca(data.train.pixels.float() / 255)
    images = whitening.forward(data.train.pixels[:20].float() / 255)
    syn = synthetic.SyntheticSet(
        {"images": images}, torch.arange(20) % 10, data.class_names, Identity(), whitening
    )
    folders.save(syn, tmp_path / "whitened", META)
    again, _ = folders.load(tmp_path / "whitened", CPU)
    assert torch.equal(
        again.preprocess.matrix, whitening.matrix
    ) and again.preprocess.origin.endswith("data.safetensors")
    check_stored(again.preprocess, data.train.pixels)
    bounded = replace(tiny_set(data), codec=Identity(bounded=True)).shipped()
    folders.save(bounded, tmp_path / "bytes", META)
    assert folders.load(tmp_path / "bytes", CPU)[0].tensors["images"].dtype == torch.uint8
