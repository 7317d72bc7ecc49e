"""Comparisons of settings on made-up accuracies, against calculations by hand."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image

import ddengine
from ddengine.commands import main
from ddengine.evaluation import settings
from ddengine.evaluation.comparison import ESTIMATOR, compare, holm, paired, spread
from ddengine.evaluation.settings import Evaluated
from ddengine.pages import accuracies, comparing, comparison_figure
from ddengine.pages.reading import Run
from ddengine.pages.words import NONE
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from synth.catalogue import find
from synth.recipes.protocols import PROTOCOLS

T_2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom, from tables
# (seeds, networks): settings of three distillations
HIGH = [[0.80, 0.82], [0.84, 0.88], [0.79, 0.81]]
LOW = [[0.70, 0.71], [0.77, 0.78], [0.72, 0.70]]
RECIPE = "dm/fashion_mnist_ipc1_small"


def told(accuracies, first=0):
    """What a row says of its networks."""
    return [{"seed": first + i, "draw": 0, "accuracy": a} for i, a in enumerate(accuracies)]


def row(name, accuracies, model="mlp", first=0, **more):
    """A row of an evaluation."""
    known = [a for a in accuracies if a is not None]
    mean = sum(known) / len(known) if known else None
    return {
        "set": name,
        "model": model,
        "accuracy_mean": mean,
        "bytes": 1000,
        "accuracies": told(accuracies, first),
        **more,
    }


def a_run(name, accuracies, seed=0, lr=1.0, protocol=None, rows=None, meta=None, **changes):
    """A run as its files tell it; `accuracies` are of the networks trained on its set."""
    recipe = find(RECIPE, outer={"optim": {"images": {"lr": lr}}}, **changes)
    facts = {
        "recipe": to_dict(recipe),
        "seed": seed,
        "precision": "fp32",
        "images": "abc",
        "class_names": ["a", "b"],
        "distillation": {"seconds": 10.0 + seed},
    }
    evaluation = {
        "rows": rows or [row("distilled", accuracies), row("random", [0.5, 0.5])],
        "protocol": to_dict(recipe.evaluation) | {"models": ["mlp"]} | (protocol or {}),
        "test_images_per_class": {"a": 50, "b": 50},
        "precision": "fp32",
        "seed": 0,
    }
    return Evaluated(name, facts | (meta or {}), evaluation)


def two_settings():
    """Two rates over three seeds."""
    high = [a_run(f"high{s}", a, s, lr=10) for s, a in enumerate(HIGH)]
    return high + [a_run(f"low{s}", a, s, lr=100) for s, a in enumerate(LOW)]


def mean(values):
    return sum(values) / len(values)


def test_a_field_that_came_late_shows_its_default():
    """Stored recipes leave it out, and it is a setting all the same."""
    clipped = [a_run(f"c{s}", a, s) for s, a in enumerate(HIGH)]
    for run in clipped:
        run.meta["recipe"]["outer"]["optim"]["images"]["clip"] = 2.0
        run.meta["recipe"]["more_models"] = ["lenet"]
    plain = [a_run(f"p{s}", a, s) for s, a in enumerate(LOW)]
    made = compare([*clipped, *plain])
    assert set(made.fields) == {"outer.optim.images.clip", "more_models"}
    one, other = (row["settings"] for row in made.rows)
    assert one == {"outer.optim.images.clip": 2.0, "more_models": ["lenet"]}
    assert other == {"outer.optim.images.clip": None, "more_models": []}
    for row in made.rows:
        assert NONE not in comparing.settings_in_words(row, made.fields)


# Numbers.


def test_spreads_of_crossed_networks_are_those_by_hand():
    """Two-way random effects: networks have the same seeds on every set."""
    made = spread([told(a) for a in HIGH])
    grand = mean([mean(a) for a in HIGH])
    of_sets = [mean(a) for a in HIGH]
    of_networks = [mean([a[j] for a in HIGH]) for j in range(2)]
    ms_sets = 2 * sum((m - grand) ** 2 for m in of_sets) / 2
    ms_networks = 3 * sum((m - grand) ** 2 for m in of_networks)
    rest = 0.0
    for i, a in enumerate(HIGH):
        for j in range(2):
            rest += (a[j] - of_sets[i] - of_networks[j] + grand) ** 2
    ms_rest = rest / 2
    network = max(0.0, (ms_networks - ms_rest) / 3)
    assert made["accuracy_mean"] == pytest.approx(grand)
    assert made["between_std"] == pytest.approx(math.sqrt((ms_sets - ms_rest) / 2))
    assert made["within_std"] == pytest.approx(math.sqrt(network + ms_rest))
    assert (made["num_distillations"], made["num_networks"]) == (3, 2)
    low, high = made["ci95"]
    assert low < grand < high


def test_spreads_of_other_networks_on_each_set_are_those_by_hand():
    """One-way random effects: each set has networks of its own."""
    made = spread([told(a, first=10 * i) for i, a in enumerate(HIGH)])
    of_sets = [mean(a) for a in HIGH]
    grand = mean(of_sets)
    squares = sum((x - mean(a)) ** 2 for a in HIGH for x in a)
    within = squares / 3
    between = 2 * sum((m - grand) ** 2 for m in of_sets) / 2
    assert made["within_std"] == pytest.approx(math.sqrt(within))
    assert made["between_std"] == pytest.approx(math.sqrt((between - within) / 2))


def test_one_distillation_and_one_network_have_no_spreads():
    one = spread([told(HIGH[0])])
    deviation = math.sqrt(2 * 0.01**2)
    assert one["between_std"] is None and one["within_std"] == pytest.approx(deviation)
    assert one["ci95"] is not None and one["accuracy_mean"] == pytest.approx(0.81)
    single = spread([told([a[0]]) for a in HIGH])
    assert single["between_std"] is None and single["within_std"] is None
    assert single["accuracy_mean"] == pytest.approx(mean([a[0] for a in HIGH]))
    # a network that diverged does not count
    assert spread([told([0.8, None, 0.6])])["accuracy_mean"] == pytest.approx(0.7)


def test_a_paired_difference_is_the_one_by_hand():
    """With three seeds Student's t has 2 degrees of freedom, whose p-value has a closed form."""
    mine = {seed: mean(a) for seed, a in enumerate(HIGH)}
    theirs = {seed: mean(a) for seed, a in enumerate(LOW)}
    differences = [mine[s] - theirs[s] for s in range(3)]
    average = mean(differences)
    deviation = math.sqrt(sum((d - average) ** 2 for d in differences) / 2)
    error = deviation / math.sqrt(3)
    t = average / error
    made = paired(mine, theirs)
    assert made["difference"] == pytest.approx(average) and made["paired"] == 3
    assert made["difference_ci95"] == pytest.approx([average - T_2 * error, average + T_2 * error])
    assert made["p"] == pytest.approx(1 - t / math.sqrt(2 + t**2))
    # seeds that only one of them has do not count, whatever their order
    more = {7: 0.1, 2: theirs[2], 0: theirs[0], 1: theirs[1]}
    assert paired(mine, more) == made
    assert paired(theirs, mine)["difference"] == pytest.approx(-average)


def test_differences_without_a_p_value():
    assert paired({0: 0.8}, {0: 0.7})["p"] is None
    assert paired({0: 0.8}, {0: 0.7})["difference"] == pytest.approx(0.1)
    assert paired({0: 0.8}, {0: 0.7})["difference_ci95"] is None
    assert paired({0: 0.8}, {1: 0.7})["difference"] is None
    equal = paired({0: 0.8, 1: 0.9}, {0: 0.7, 1: 0.8})
    assert equal["difference"] == pytest.approx(0.1) and equal["p"] is None


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, None, 0.02], [0.5, None, 0.04]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.04, 0.01, 0.01, 0.2], [0.08, 0.04, 0.04, 0.2]),
        ([], []),
        ([None], [None]),
    ],
)
def test_holm_is_that_by_hand(given, corrected):
    assert holm(given) == pytest.approx(corrected)


# Rows.


def test_runs_of_one_setting_are_one_row():
    made = compare(two_settings())
    assert made.fields == ["outer.optim.images.lr"] and made.to == 1
    first, second = made.rows
    assert first["settings"] == {"outer.optim.images.lr": 10.0}
    assert second["settings"] == {"outer.optim.images.lr": 100.0}
    assert first["seeds"] == second["seeds"] == [0, 1, 2]
    assert first["difference"] is None and first["p_holm"] is None
    assert second["difference"] == pytest.approx(-mean([0.105, 0.085, 0.09]))
    assert second["p_holm"] == second["p"]
    assert second["runs"] == ["low0", "low1", "low2"]
    assert first["seconds"] == pytest.approx(11.0) and first["bytes"] == 1000
    assert ESTIMATOR in made.notes


def test_all_comparisons_are_corrected_together():
    third = [a_run(f"x{s}", [a - 0.05 for a in b], s, lr=1000) for s, b in enumerate(LOW)]
    made = compare([*two_settings(), *third])
    p = [made_row["p"] for made_row in made.rows]
    smaller, larger = sorted(p[1:])
    wanted = {smaller: 2 * smaller, larger: max(2 * smaller, larger)}
    for made_row in made.rows[1:]:
        assert made_row["p_holm"] == pytest.approx(wanted[made_row["p"]])
    assert any("2 comparisons (Holm)" in note for note in made.notes)


def test_the_chosen_row_is_compared_with():
    runs = two_settings()
    for to in (2, runs[4]):
        made = compare(runs, to=to)
        assert made.to == 2 and made.rows[1]["difference"] is None
        assert made.rows[0]["difference"] == pytest.approx(mean([0.105, 0.085, 0.09]))
    with pytest.raises(
        UserError, match="--to 3 names no row: of settings, counted from 1, there are 2"
    ):
        compare(runs, to=3)
    with pytest.raises(
        UserError, match="--to 7 names no row: of settings, counted from 1, there are 1"
    ):
        compare(runs[:1], to=7)


def test_one_seed_says_so():
    made = compare([a_run("a", HIGH[0]), a_run("b", LOW[0], lr=10)])
    assert made.rows[1]["p"] is None and made.rows[1]["difference"] is not None
    assert any("one distillation" in note for note in made.notes)
    head, lines = comparing.head(made), comparing.lines(made)
    assert [line[head.index("distillations")] for line in lines] == ["one", "one"]
    assert "between distillations" not in head
    assert lines[1][head.index("p (Holm)")] == NONE


def test_every_network_has_rows():
    def on_two(name, seed, lr, high):
        rows = [row("distilled", [high, high + 0.01]), row("random", [0.4, 0.5])]
        rows += [row("distilled", [0.5, 0.6 + seed / 10], "lenet")]
        return a_run(name, [], seed, lr=lr, rows=rows)

    made = compare([on_two(f"{lr}{s}", s, lr, 0.7 + s / 10) for lr in (1, 2) for s in (0, 1)])
    assert [(r["model"], r["row"]) for r in made.rows] == [
        ("mlp", 1),
        ("mlp", 2),
        ("lenet", 1),
        ("lenet", 2),
    ]
    assert "network" in comparing.head(made)


def test_the_row_of_the_set_is_found_by_its_name():
    """Wherever it stands; a selection has the name of its kind, unless a baseline has it."""
    rows = [row("full", [0.9, 0.9]), row("distilled", [0.6, 0.8])]
    assert compare([a_run("a", [], rows=rows)]).rows[0]["accuracy_mean"] == pytest.approx(0.7)
    rows = [row("herding", [0.9, 0.9]), row("selected herding", [0.6, 0.8])]
    chosen = a_run("a", [], rows=rows, meta={"selected": {"kind": "herding"}})
    assert compare([chosen]).rows[0]["accuracy_mean"] == pytest.approx(0.7)
    rows = [row("random", [0.9, 0.9]), row("herding", [0.6, 0.8])]
    chosen = a_run("a", [], rows=rows, meta={"selected": {"kind": "herding"}})
    assert compare([chosen]).rows[0]["accuracy_mean"] == pytest.approx(0.7)


def test_a_seed_counts_once_and_experts_are_told_apart():
    def follows(name, seed, fingerprint):
        return a_run(name, [0.7, 0.8], seed, meta={"experts": {"fingerprint": fingerprint}})

    made = compare([follows("a", 0, "x"), follows("again", 0, "x"), follows("b", 1, "x")])
    assert made.rows[0]["runs"] == ["a", "b"]
    assert any(note.startswith("again: the same setting and seed") for note in made.notes)
    assert not any("different experts" in note for note in made.notes)
    made = compare([follows("a", 0, "x"), follows("b", 1, "y")])
    assert any("different experts" in note for note in made.notes)


def test_networks_that_diverged_are_counted():
    made = compare([a_run("a", [0.7, None, 0.8])])
    assert made.rows[0]["diverged"] == 0, "the row did not say it"
    rows = [row("distilled", [0.7, None, 0.8], diverged=1)]
    made = compare([a_run("a", [], rows=rows)])
    assert made.rows[0]["diverged"] == 1
    assert any("1 networks diverged" in note for note in made.notes)


# Settings.


def test_what_the_recipe_says_is_no_column():
    """Of two recipes the name stands for all that it decides; what is set beside it is shown."""
    other = find("dc/fashion_mnist_ipc1_small")
    runs = two_settings()
    facts = runs[0].meta | {"recipe": to_dict(other) | {"ipc": 2}}
    runs.append(Evaluated("dc", facts, runs[0].evaluation))
    made = compare(runs)
    assert made.fields[:2] == ["name", "ipc"] and "outer.optim.images.lr" in made.fields
    assert "objective.type" in made.said and "objective.type" not in comparing.head(made)
    assert any("more fields" in note and "objective.type" in note for note in made.notes)
    assert "objective.type" in comparing.csv_text(made).splitlines()[0]


def test_names_are_as_short_as_they_can_be():
    known = ["init.lr", "outer.optim.images.lr", "outer.optim.lr.lr", "ipc", "outer.steps"]
    short = settings.short_names(known, known)
    assert short == {
        "init.lr": "init.lr",
        "outer.optim.images.lr": "images.lr",
        "outer.optim.lr.lr": "lr.lr",
        "ipc": "ipc",
        "outer.steps": "steps",
    }


DIFFERENT = {
    "another dataset": ({"data": {"name": "mnist"}}, {}, "data.name is fashion_mnist in a"),
    "another test split": ({"data": {"split_seed": 1}}, {}, "data.split_seed is 0 in a and 1 in b"),
    "other images": ({}, {"meta": {"images": "abd"}}, "a and b were made of different images"),
    "another protocol": ({}, {"protocol": {"epochs": 7}}, "evaluation.epochs is"),
    "other augmentation": (
        {},
        {"protocol": {"augment": {"ops": ["flip"]}}},
        "evaluation.augment.ops is",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_runs_that_cannot_be_compared_are_apart(what):
    changes, more, says = DIFFERENT[what]
    first, other = a_run("a", HIGH[0]), a_run("b", LOW[0], seed=1, **changes, **more)
    assert settings.groups([first, other, first]) == [[first, first], [other]]
    assert says in settings.difference([first], other, across=False)
    across = settings.difference([first], other, across=True)
    assert (across is None) == ("protocol" in more)


def test_what_decides_nothing_of_the_set_is_compared():
    """Baselines, their number of updates, the number of networks, the number of images."""
    first = a_run("a", HIGH[0])
    for protocol in ({"baselines": []}, {"full_steps": 3}, {"num_networks": 9}, {"models": []}):
        assert len(settings.groups([first, a_run("b", LOW[0], protocol=protocol)])) == 1
    fewer = a_run("b", LOW[0], data={"limit": 50}, meta={"images": "few"})
    assert len(settings.groups([first, fewer])) == 1
    assert compare([first, fewer]).fields == ["data.limit"]


def test_protocols_are_columns_across_them():
    made = compare([a_run("a", HIGH[0]), a_run("b", LOW[0], protocol={"epochs": 7})], across=True)
    assert made.fields == ["evaluation.epochs"] and len(made.rows) == 2
    assert PROTOCOLS["fast"].epochs != 7


# Files.


@pytest.fixture
def folders(tmp_path, monkeypatch) -> list[str]:
    """Runs in folders, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return [written(run) for run in two_settings()]


def written(run: Evaluated) -> str:
    """The folder of a run, as far as a comparison reads it."""
    folder = Path("runs", run.name)
    (folder / "distilled").mkdir(parents=True)
    (folder / "distilled" / "meta.json").write_text(json.dumps(run.meta))
    (folder / "evaluation.json").write_text(json.dumps(run.evaluation))
    return str(folder)


def test_the_command_and_python_say_the_same(folders, capsys):
    flags = ["--to", folders[3], "--csv", "out/a.csv", "--latex", "out/a.tex", "--x", "seconds"]
    assert main(["compare", *folders, *flags]) == 0
    shown = capsys.readouterr().out
    outcome = ddengine.compare(folders, to=folders[3], csv="b.csv", latex="b.tex")
    assert Path("out/a.csv").read_text() == Path("b.csv").read_text()
    assert Path("out/a.tex").read_text() == Path("b.tex").read_text()
    assert Image.open("comparison.png").width > 300
    for line in comparing.lines(compare(two_settings(), to=2)):
        assert all(cell in shown for cell in line)
    assert ESTIMATOR in " ".join(shown.split()) and "images.lr" in shown
    assert [r["difference"] for r in outcome.rows] == pytest.approx([0.0933333, None], abs=1e-5)
    assert outcome.content["to"] == 2


def test_csv_holds_every_number(folders):
    ddengine.compare(folders, csv="table.csv")
    first, second = csv.DictReader(io.StringIO(Path("table.csv").read_text()))
    assert first["outer.optim.images.lr"] == "10.0" and first["seeds"] == "0 1 2"
    made = compare(two_settings())
    assert float(first["accuracy_mean"]) == made.rows[0]["accuracy_mean"]
    assert float(second["p_holm"]) == made.rows[1]["p_holm"]
    assert float(second["difference_ci95_low"]) == made.rows[1]["difference_ci95"][0]
    assert first["difference"] == "" and len(set(first)) == len(first)


def test_latex_has_a_row_for_each_setting_and_no_bare_sign(folders):
    ddengine.compare(folders, latex="table.tex")
    text = Path("table.tex").read_text()
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 2 and all(line.endswith(r" \\") for line in body)
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    assert {line.count("&") for line in body} == {len(columns) - 1}
    assert r"95 \% interval" in text and comparing.escaped("a_b%") == r"a\_b\%"


def test_a_figure_joins_what_differs_in_its_axis_alone(tmp_path):
    runs = []
    for ipc in (1, 10):
        runs += [a_run(f"{ipc}-{lr}", HIGH[0], lr=lr, ipc=ipc) for lr in (10, 100)]
    made = compare(runs)
    assert comparison_figure.axis_of(made, None) == "ipc"
    assert comparison_figure.axis_of(made, "images.lr") == "outer.optim.images.lr"
    with pytest.raises(UserError, match=r"Unknown axis in --x 'bites'; nearest: bytes"):
        comparison_figure.axis_of(made, "bites")
    series = comparison_figure.series(made, "ipc")
    assert list(series) == ["images.lr 10", "images.lr 100"]
    assert [row["ipc"] for row in series["images.lr 10"]] == [1, 10]
    comparison_figure.draw(tmp_path / "a.png", made, "ipc")
    assert Image.open(tmp_path / "a.png").height > 200


REFUSED = {
    "no runs": ([], "compare needs the folders of runs"),
    "no run": (["nowhere"], "nowhere holds no distilled set"),
    "not evaluated": (["runs/bare"], "runs/bare was not evaluated; run evaluate runs/bare first"),
    "another dataset": (["runs/high0", "runs/mnist"], "cannot be compared"),
    "another protocol": (["runs/high0", "runs/longer"], "or all of them with --across"),
    "no such row": (["runs/high0", "runs/low0", "--to", "5"], "--to 5 names no row"),
    "none of the runs": (["runs/high0", "--to", "runs/low0"], "none of the runs"),
    "an unknown axis": (["runs/high0", "--x", "bites"], "Unknown axis in --x 'bites'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_one_sentence_says_why_runs_are_not_compared(what, folders, capsys):
    args, says = REFUSED[what]
    written(a_run("mnist", HIGH[0], data={"name": "mnist"}))
    written(a_run("longer", HIGH[0], seed=1, protocol={"epochs": 7}))
    Path(written(a_run("bare", HIGH[0])), "evaluation.json").unlink()
    assert main(["compare", *args]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not Path("comparison.png").exists()


def on_a_page(run: Evaluated) -> Run:
    """A run as a page reads it, without its images."""
    return Run(
        name=run.name,
        path=Path(run.name),
        recipe=dict(run.meta["recipe"]),
        settings={},
        meta=dict(run.meta),
        syn=None,
        evaluation=dict(run.evaluation),
        events=[],
        progress=[],
        samples={},
        extra={},
    )


def test_a_page_shows_settings():
    """Runs that cannot be compared have tables of their own, a single distillation has none."""
    runs = two_settings()
    (table,) = accuracies.by_setting(list(map(on_a_page, runs)))
    assert table["rows"] == comparing.lines(compare(runs))
    assert "row 1: high0, high1, high2" in table["notes"]
    longer = [a_run(f"longer{s}", a, s, protocol={"epochs": 7}) for s, a in enumerate(LOW)]
    tables = accuracies.by_setting(list(map(on_a_page, [*runs, *longer])))
    assert [len(table["rows"]) for table in tables] == [2, 1]
    assert len(accuracies.by_setting(list(map(on_a_page, [*runs, longer[0]])))) == 1
    older = a_run("older", [], rows=[{"set": "distilled", "model": "mlp", "accuracy_mean": 0.5}])
    assert accuracies.by_setting([on_a_page(older), on_a_page(older)]) == []
