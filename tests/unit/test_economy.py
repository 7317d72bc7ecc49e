"""What an evaluation need not spend: the order of its rows, full data cut to a time, quick answers,
baselines that others have trained, networks in other processes; and real images of equal bytes.
"""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers import CPU, MODEL, tiny_set

from ddengine.artefact import results
from ddengine.data import load_data
from ddengine.evaluation import bench, pace, settings, tables, work
from ddengine.evaluation.bench import Economy
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.pace import Pace
from ddengine.pages import accuracies, overview
from ddengine.pages.reading import Run
from ddengine.recipe import AugmentConfig, DataConfig, EvalConfig
from ddengine.system import files, log

SHORT = EvalConfig(
    protocol="test",
    epochs=5,
    batch=32,
    augment=AugmentConfig(ops=("flip",)),
    baselines=("random", "equal_bytes", "herding", "full", "eight_bit"),
    num_networks=3,
    lr=0.02,
    lr_grid=(0.01, 0.02, 0.05),
    full_steps=30,
)
OTHERS = ("random", "equal_bytes", "herding", "full")


@pytest.fixture(scope="module")
def data():
    """400 digits with their test split."""
    return load_data(DataConfig(name="digits", limit=400), CPU, test=True)


@pytest.fixture(scope="module")
def usual(data):
    """The evaluation of a set that nothing is spared."""
    return evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU)


def a_set(data, scale=1.0):
    """Real images as float32, four times the bytes of a byte a value; beyond the range of pixels."""
    syn = tiny_set(data)
    return syn.with_tensors({"images": syn.tensors["images"] * 1.5 * scale})


def trainings(monkeypatch, limit=None):
    """What networks are trained and judged from now on; interrupted after so many."""
    asked, original = [], bench.Bench.accuracies

    def watching(self, training):
        if len(asked) == limit:
            raise KeyboardInterrupt
        asked.append(training)
        return original(self, training)

    monkeypatch.setattr(bench.Bench, "accuracies", watching)
    return asked


def numbers(evaluation, *names):
    """Rows without what is not of networks, those of `names` or all."""
    told = {}
    for row in evaluation["rows"]:
        if not names or row["set"] in names:
            kept = {k: v for k, v in row.items() if k not in ("seconds", "remembered")}
            told[row["set"], row["model"]] = kept
    return told


# The order


def test_what_is_asked_comes_first_and_the_full_data_last(data, monkeypatch):
    """On every network; the rows are told network by network, as ever."""
    asked = trainings(monkeypatch)
    config = replace(SHORT, models=(MODEL, "mlp"))
    evaluation = evaluate(a_set(data), data, config, MODEL, seed=0, device=CPU)
    finals = [(a.who.name, a.model) for a in asked if a.split == "test"]
    assert list(dict.fromkeys(finals)) == [
        *((name, model) for model in (MODEL, "mlp") for name in ("distilled", "random")),
        *(
            (name, model)
            for model in (MODEL, "mlp")
            for name in ("distilled_8bit", "equal_bytes", "herding")
        ),
        *(("full", model) for model in (MODEL, "mlp")),
    ]
    assert [(row["set"], row["model"]) for row in evaluation["rows"]] == [
        (name, model)
        for model in (MODEL, "mlp")
        for name in ("distilled", "distilled_8bit", *OTHERS)
    ]


def test_rows_are_said_as_they_come_and_what_they_take_before(data, capsys):
    evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU, economy=Economy(looks=True))
    lines = capsys.readouterr().out.splitlines()
    for name in ("distilled", *OTHERS):
        (begins,) = [i for i, line in enumerate(lines) if f"{name} on {MODEL}: 6 networks" in line]
        (comes,) = [
            i for i, line in enumerate(lines) if f"{name} on {MODEL}: " in line and "±" in line
        ]
        assert begins < comes
    assert "about" in lines[0]  # the first row has been timed


def test_a_table_grows_in_a_terminal(monkeypatch):
    """Above the bar, in place of lines."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(log, "console", console)
    row = {"set": "distilled", "model": MODEL, "accuracy_mean": 0.5, "accuracy_std": 0.1}
    row |= {"ci95": None, "lr": 0.01, "n": 3, "steps": 7, "seconds": 1.0}
    with log.progress("evaluate", 3) as bar:
        bar.announce("what comes next")
        bar.grow(lambda: tables.table({"rows": [row]}, "so far"), "a line")
    shown = console.file.getvalue()
    assert "so far" in shown and "50.0 ± 10.0" in shown and "what comes next" in shown
    assert "a line" not in shown


def test_a_first_number_comes_soon(data, monkeypatch, capsys):
    """Of a network of its own on the validation split, where the first one would take long."""
    monkeypatch.setattr(pace, "measured", lambda bench, asked: Pace(1.0, 0.0))
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(1.0, 0.0))
    evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU, economy=Economy(looks=True))
    first = capsys.readouterr().out.splitlines()[0]
    assert "a first look, one network after 3 of 6 updates on distilled" in first
    assert "% of the validation images" in first


# Full data


def test_full_data_are_cut_to_the_time_and_marked(data, usual, monkeypatch, tmp_path):
    """An update takes a second: 3 rates, 3 networks and the one that looks have 21 seconds."""
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(1.0, 0.5))
    monkeypatch.setattr(pace, "WORTH", 1e9)  # other processes would measure for themselves
    economy = Economy(full_seconds=21.0)
    evaluation = evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU, economy=economy)
    rows = {row["set"]: row for row in evaluation["rows"]}
    assert rows["full"]["cut"] == {"updates": 2, "of": 30, "by": "time"}
    assert rows["full"]["steps"] == 2 and evaluation["full_seconds"] == 21.0
    assert rows["herding"]["looked_cut"] == 2 and "cut" not in rows["herding"]
    apart = ("distilled", "distilled_8bit", "random", "equal_bytes")
    assert numbers(evaluation, *apart) == numbers(usual, *apart)
    notes = " ".join(tables.notes(evaluation))
    assert "full on convnet-d1-w4-in was cut to 2 of 30 updates" in notes
    assert "herding: chosen or labelled by a network whose updates were cut" in notes
    assert tables.set_of(rows["full"]) == "full (cut)" and tables.set_of(rows["random"]) == "random"
    card = results.results_table(evaluation)
    assert "| full (cut) |" in card and "was cut to 2 of 30 updates" in card


def test_full_data_with_time_enough_are_those_of_before(data, usual):
    economy = Economy(full_seconds=1000.0)
    evaluation = evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU, economy=economy)
    assert numbers(evaluation) == numbers(usual)


def test_the_cut_is_chosen_once(data, monkeypatch, tmp_path):
    """A resumed evaluation obeys it, however fast the machine is then."""
    syn, path, economy = a_set(data), tmp_path / "memo", Economy(full_seconds=21.0)
    options = {"seed": 0, "device": CPU, "economy": economy}
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(1.0, 0.0))
    whole = evaluate(syn, data, SHORT, MODEL, **options)
    assert whole["rows"][-1]["cut"]["updates"] == 3
    with pytest.MonkeyPatch.context() as patch:
        trainings(patch, limit=18)
        with pytest.raises(KeyboardInterrupt):
            evaluate(syn, data, SHORT, MODEL, memo_path=path, **options)
    assert any("updates/full" in line for line in path.read_text().splitlines())
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(0.001, 0.0))
    again = evaluate(syn, data, SHORT, MODEL, memo_path=path, **options)
    assert numbers(again) == numbers(whole)


# Quick


def test_a_quick_evaluation(data, monkeypatch, tmp_path):
    """Few networks, two rates, updates by the validation split, tests of reported networks alone;
    marked wherever it is shown, and the same after an interruption.
    """
    config = replace(SHORT, num_networks=5, epochs=100)
    options = {"seed": 0, "device": CPU, "economy": Economy(quick=True)}
    with pytest.MonkeyPatch.context() as patch:
        asked = trainings(patch)
        quick = evaluate(a_set(data), data, config, MODEL, **options)
    tested = [(a.who.name, seed) for a in asked if a.split == "test" for seed in a.seeds]
    assert sorted(tested) == sorted(
        (name, seed) for name in ("distilled", "distilled_8bit", *OTHERS) for seed in (0, 1, 2)
    )
    assert {a.lr for a in asked} == {0.02, 0.05} == set(quick["protocol"]["lr_grid"])
    rows = {row["set"]: row for row in quick["rows"]}
    tried = {a.steps or 101 for a in asked if a.who.name == "random" and a.split == "validation"}
    assert rows["random"]["steps"] in tried <= {26, 51, 101}
    cut = {row["set"]: row["cut"] for row in quick["rows"] if "cut" in row}
    assert cut  # which is marked
    for name, facts in cut.items():
        assert facts["updates"] == rows[name]["steps"] < facts["of"]
        assert facts["by"] == "validation"
    assert rows["distilled"]["steps"] == rows["distilled_8bit"]["steps"]
    assert rows["equal_bytes"]["lr"] == rows["random"]["lr"]
    assert quick["quick"] and len(rows["full"]["accuracies"]) == 3
    # marks
    assert tables.marked("a", quick) == "a (quick)"
    assert any(note.startswith("quick:") for note in tables.notes(quick))
    assert "quick: few networks" in results.results_table(quick)
    label = overview.cross_table([("a", quick)]).columns[0]._cells[0]
    assert label == "a (quick)"
    run = Run("a", tmp_path, {}, {}, {}, None, quick, [], [], {}, {})
    page = accuracies.accuracies(run)
    assert any(note.startswith("quick:") for note in page["notes"])
    # interrupted
    with pytest.MonkeyPatch.context() as patch:
        trainings(patch, limit=7)
        with pytest.raises(KeyboardInterrupt):
            evaluate(a_set(data), data, config, MODEL, memo_path=tmp_path / "memo", **options)
    again = evaluate(a_set(data), data, config, MODEL, memo_path=tmp_path / "memo", **options)
    assert numbers(again) == numbers(quick)


@pytest.mark.parametrize("remembered", [False, True])
def test_a_quick_evaluation_asks_what_rows_take_before_their_images_are_chosen(
    data, tmp_path, remembered
):
    """Where processes may share the work, and baselines are shared with other evaluations."""
    options = {"seed": 0, "device": CPU}
    if remembered:
        economy = Economy(quick=True, baselines=tmp_path)
        evaluate(a_set(data, 0.9), data, SHORT, MODEL, economy=economy, **options)
    alone = evaluate(a_set(data), data, SHORT, MODEL, economy=Economy(quick=True), **options)
    economy = Economy(quick=True, baselines=tmp_path, looks=True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pace, "WORTH", 1e-3 if remembered else 1e6)
            quick = evaluate(a_set(data), data, SHORT, MODEL, economy=economy, **options)
    finally:
        torch.set_num_threads(before)
    assert quick["processes"] == (3 if remembered else 1)
    assert numbers(quick) == numbers(alone)


def test_a_quick_evaluation_ends_in_the_time_that_it_says(data, monkeypatch, tmp_path):
    """Updates take as long as on a slow machine; what was chosen holds where it is resumed."""
    config = replace(SHORT, epochs=399, baselines=("random", "eight_bit"))
    economy = Economy(quick=True, quick_seconds=120.0)
    options = {"seed": 0, "device": CPU, "memo_path": tmp_path / "memo"}
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(0.5, 0.0))
    with pytest.MonkeyPatch.context() as patch:
        asked = trainings(patch, limit=3)
        with pytest.raises(KeyboardInterrupt):
            evaluate(a_set(data), data, config, MODEL, economy=economy, **options)
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(0.001, 0.0))
    asked += trainings(monkeypatch)
    quick = evaluate(a_set(data), data, config, MODEL, economy=economy, **options)
    distilled = [a for a in asked if a.who.name == "distilled"]
    # 40 updates at 0.5 s: a curve, two rates and three networks are 120 s
    assert max(a.steps for a in distilled) == 40 and min(a.steps for a in distilled) >= 16
    assert sum(0.5 * a.steps * len(a.seeds) for a in distilled) <= 120.0
    rows = {row["set"]: row for row in quick["rows"]}
    assert rows["distilled"]["cut"]["of"] == 400
    assert rows["distilled_8bit"]["steps"] == rows["distilled"]["steps"]
    assert quick["quick_seconds"] == 120.0
    assert any("no more than 120 s of training" in line for line in tables.notes(quick))


def test_a_slow_machine_makes_no_training_shorter_than_networks_need(data, monkeypatch):
    config = replace(SHORT, epochs=399, baselines=("random",))
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(100.0, 0.0))
    asked = trainings(monkeypatch)
    economy = Economy(quick=True, quick_seconds=1.0)
    evaluate(a_set(data), data, config, MODEL, seed=0, device=CPU, economy=economy)
    assert {a.steps for a in asked} == {16}


def test_a_quick_evaluation_tries_the_learned_rate_beside_the_usual_one(data, monkeypatch):
    asked = trainings(monkeypatch)
    config = replace(SHORT, baselines=("random",))
    syn, economy = tiny_set(data, lr=0.03), Economy(quick=True)
    evaluate(syn, data, config, MODEL, seed=0, device=CPU, economy=economy)
    assert {round(a.lr, 6) for a in asked} == {0.02, 0.03}


def test_a_quick_evaluation_is_not_compared_with_another(data, usual):
    meta = {"recipe": {"name": "a", "data": {"name": "digits"}}, "seed": 0, "images": "x"}
    one = settings.Evaluated("one", meta, usual)
    other = settings.Evaluated("other", meta, {**usual, "quick": True})
    assert settings.difference([one], one, across=True) is None
    assert "quick" in settings.difference([one], other, across=True)


# Baselines of others


def test_baselines_are_trained_once(data, usual, monkeypatch, tmp_path):
    """Whichever set asks: the same numbers as without, to the bit."""
    options = {"seed": 0, "device": CPU, "economy": Economy(baselines=tmp_path)}
    first = evaluate(a_set(data), data, SHORT, MODEL, **options)
    assert numbers(first) == numbers(usual) and not any("remembered" in r for r in first["rows"])
    other = a_set(data, 1.1)
    alone = evaluate(other, data, SHORT, MODEL, seed=0, device=CPU)
    asked = trainings(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        chosen = []
        patch.setattr("ddengine.sets.coreset.choose", lambda *a, **k: chosen.append(a))
        second = evaluate(other, data, SHORT, MODEL, **options)
    assert not chosen and {a.who.name for a in asked} == {"distilled", "distilled_8bit"}
    assert numbers(second) == numbers(alone)
    remembered = [row["set"] for row in second["rows"] if row.get("remembered")]
    assert remembered == list(OTHERS)
    notes = tables.notes(second)
    assert "remembered from an earlier evaluation: random, equal_bytes, herding, full" in notes


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"config": replace(SHORT, epochs=6)},
        {"config": replace(SHORT, weight_decay=1e-3)},
        {"precision": "bf16"},
        {"renew": True},
        {"own": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_baselines_are_not_taken_for_these(data, monkeypatch, tmp_path, change):
    config = replace(SHORT, baselines=("full",))
    options = {"device": CPU, "economy": Economy(baselines=tmp_path)}
    evaluate(a_set(data), data, config, MODEL, seed=0, **options)
    config = replace(change.get("config", config), baselines=("full",))
    if "renew" in change:
        options["economy"] = Economy(baselines=tmp_path, renew=True)
    if "precision" in change:
        options["precision"] = change["precision"]
    if "own" in change:
        options["train"] = lambda network, examples, **rest: network.eval()
    asked = trainings(monkeypatch)
    evaluate(a_set(data), data, config, MODEL, seed=change.get("seed", 0), **options)
    assert "full" in {a.who.name for a in asked}


def test_learned_rates_share_what_the_grid_has(data, monkeypatch, tmp_path):
    """Of another run only the networks at its own learned rate are trained, unless that is best."""
    config = replace(SHORT, baselines=("random",))
    options = {"seed": 0, "device": CPU, "economy": Economy(baselines=tmp_path)}
    evaluate(tiny_set(data, lr=0.03), data, config, MODEL, **options)
    asked = trainings(monkeypatch)
    evaluate(tiny_set(data, lr=1e-6), data, config, MODEL, **options)
    searched = [a.lr for a in asked if a.who.name == "random" and a.split == "validation"]
    assert len(searched) == 1 and searched[0] == pytest.approx(1e-6)


def test_the_cut_of_full_data_is_shared(data, monkeypatch, tmp_path):
    """Another run on a faster machine of the kind takes what was trained, with its mark."""
    economy = Economy(full_seconds=21.0, baselines=tmp_path)
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(1.0, 0.0))
    first = evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU, economy=economy)
    monkeypatch.setattr(work, "measured", lambda bench, asked: Pace(0.1, 0.0))
    asked = trainings(monkeypatch)
    other = a_set(data, 1.1)
    second = evaluate(other, data, SHORT, MODEL, seed=0, device=CPU, economy=economy)
    assert {a.who.name for a in asked} == {"distilled", "distilled_8bit"}
    assert numbers(second, *OTHERS) == numbers(first, *OTHERS)


# Equal bytes


def test_equal_bytes_is_as_many_images_as_the_bytes_hold(data):
    """20 images of 64 float32 and a class: 5,280 bytes, which are 73 of 64 bytes and a class."""
    syn, config = a_set(data), replace(SHORT, baselines=("random", "equal_bytes"))
    rows = {
        row["set"]: row for row in evaluate(syn, data, config, MODEL, seed=0, device=CPU)["rows"]
    }
    assert rows["distilled"]["bytes"] == 20 * (64 * 4 + 8) == 5280
    assert rows["equal_bytes"]["images"] == 5280 // 72 == 73
    assert rows["equal_bytes"]["bytes"] == 73 * 72
    assert rows["random"]["images"] == 20
    assert [told["draw"] for told in rows["equal_bytes"]["accuracies"]] == [0, 1, 2]
    told = tables.notes({"rows": list(rows.values())})
    assert any("the 73 random images, at 8 bits a value" in line for line in told)


def test_equal_bytes_is_no_row_where_it_is_random(data):
    """A set of bytes has as many bytes as as many real images."""
    from ddengine.sets.codec import Pixels
    from ddengine.sets.synthetic import SyntheticSet

    chosen = torch.cat([members[:2] for members in data.train.members])
    syn = SyntheticSet(
        {"images": data.train.pixels[chosen]},
        data.train.labels[chosen],
        data.class_names,
        Pixels(),
        data.train.preprocess,
        space="pixel",
    )
    config = replace(SHORT, baselines=("random", "equal_bytes"))
    evaluation = evaluate(syn, data, config, MODEL, seed=0, device=CPU)
    assert [row["set"] for row in evaluation["rows"]] == ["distilled", "random"]


# Processes


@pytest.fixture
def two_threads():
    """As on a machine with two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_other_processes_train_the_same_networks(data, usual, two_threads, monkeypatch, tmp_path):
    """To the bit, and their number is stored; one that ends, and one that fails, lose nothing."""
    monkeypatch.setattr(pace, "WORTH", 0.0)
    monkeypatch.setattr("ddengine.learning.training.MOST_PIXELS_CPU", 0)
    here = evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU)
    assert here["threads"] == 1 and here["processes"] == 3  # of three networks, on two cores
    monkeypatch.setattr(pace, "WORTH", 1e9)
    alone = evaluate(a_set(data), data, SHORT, MODEL, seed=0, device=CPU)
    assert alone["threads"] == alone["processes"] == 1
    assert torch.get_num_threads() == 2
    assert numbers(here) == numbers(alone)


def test_a_process_that_ends_loses_nothing(data, two_threads, monkeypatch, capsys):
    monkeypatch.setattr(pace, "WORTH", 0.0)
    killed, original = [], work._Work._take

    def killing(self, *answered):
        original(self, *answered)
        if self.running and not killed:
            killed.append(next(iter(self.running)))
            killed[0].process.kill()

    monkeypatch.setattr(work._Work, "_take", killing)
    config = replace(SHORT, baselines=("random",))
    broken = evaluate(a_set(data), data, config, MODEL, seed=0, device=CPU)
    monkeypatch.setattr(pace, "WORTH", 1e9)
    assert killed and numbers(broken) == numbers(
        evaluate(a_set(data), data, config, MODEL, seed=0, device=CPU)
    )
    assert "a process could not do its part" in capsys.readouterr().out


def test_the_number_of_processes_and_threads_is_chosen_once(data, monkeypatch, tmp_path):
    """A resumed evaluation obeys its memory, not the machine it is resumed on."""
    path, options = tmp_path / "memo", {"seed": 0, "device": CPU}
    with pytest.MonkeyPatch.context() as patch:
        trainings(patch, limit=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate(a_set(data), data, SHORT, MODEL, memo_path=path, **options)
    text = path.read_text()
    lines = list(map(json.loads, text.splitlines()))
    assert {"threads": 1, "processes": 1}.items() <= {e["key"]: e["value"] for e in lines}.items()
    for entry in lines:
        if entry["key"] == "threads":
            entry["value"] = 2
    path.write_text("".join(json.dumps(files.sealed(entry)) + "\n" for entry in lines))
    asked = []
    monkeypatch.setattr(work.runtime, "on_threads", lambda num: asked.append(num) or nullcontext())
    result = evaluate(a_set(data), data, SHORT, MODEL, memo_path=path, **options)
    assert asked == [2] and result["threads"] == 2


def test_what_the_user_brings_stays_in_this_process(data, two_threads, monkeypatch):
    monkeypatch.setattr(pace, "WORTH", 0.0)
    config = replace(SHORT, baselines=("random",))

    def mine(image_shape, classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))

    asked = trainings(monkeypatch)
    evaluate(a_set(data), data, config, MODEL, seed=0, device=CPU, factories={"mine": mine})
    assert {a.model for a in asked} == {"mine"}
