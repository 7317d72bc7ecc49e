"""What the tables of sets of equal bytes say of what was expected of them."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# behind the tests, some of which have the same names
sys.path.append(str(ROOT / "benchmarks"))

import equal_bytes  # noqa: E402
import equal_bytes_told as told  # noqa: E402


def mean(accuracies):
    """Of networks that did not diverge."""
    counted = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(counted) / len(counted) if counted else None


def a_row(kind, accuracies, num_bytes=1000):
    networks = [{"seed": seed, "accuracy": a} for seed, a in enumerate(accuracies)]
    return {
        "set": kind, "accuracy_mean": mean(accuracies), "accuracies": networks,
        "images": 10, "bytes": num_bytes, "ledger": {"labels": 80},
    }  # fmt: skip


def a_run(form, *rows, budget="ipc1:f32", seed=0):
    cell = {"method": "dm", "budget": budget, "form": form, "seed": seed}
    return {"cell": cell, "evaluation": {"rows": list(rows)}}


def runs_of(coded, control, **cell):
    return [
        a_run("plain", a_row("distilled", [0.60, 0.61, 0.62]), **cell),
        a_run("siren", a_row("distilled", coded), a_row("random_coded", control), **cell),
    ]


@pytest.mark.parametrize(
    ("coded", "control", "wanted", "unwanted"),
    [
        (
            [0.70, 0.71, 0.72],
            [0.50, 0.51, 0.52],
            ["+10.0 points", "which came true", "by more than both intervals: siren."],
            ["did not come true", "is the codec's"],
        ),
        (
            [0.64, 0.65, 0.66],
            [0.62, 0.64, 0.66],
            [
                "+4.0 points",
                "did not come true",
                "is the codec's: siren (65.0, random images 64.0)",
            ],
            ["which came true", "by more than both intervals: siren."],
        ),
    ],
)
def test_what_was_expected_is_said_with_its_figures(coded, control, wanted, unwanted):
    text = told.text(runs_of(coded, control), of=2)
    for words in wanted:
        assert words in text
    for words in unwanted:
        assert words not in text


def test_the_best_pair_that_nobody_published_is_named():
    runs = [
        a_run("plain", a_row("distilled", [0.5, 0.5])),
        a_run("linba", a_row("distilled", [0.6, 0.6]), a_row("random_coded", [0.4, 0.4])),
        a_run("speed", a_row("distilled", [0.55, 0.55])),
        # which have published figures
        a_run("gaussians", a_row("distilled", [0.7, 0.7])),
        a_run("palettes", a_row("distilled", [0.7, 0.7])),
        a_run("reduced", a_row("distilled", [0.7, 0.7])),
    ]
    (said,) = told.crosses(told.points(runs), told.points(runs, ("random_coded",)))
    assert (
        "linba under DM does most at ipc1:f32: 60.0 (random images in the same codec 40.0" in said
    )
    assert said.endswith(
        "plain images 50.0); published are bases that are learned through training."
    )
    assert told.crosses(told.points(runs[-3:]), []) == []
    (said,) = told.crosses(told.points([a_run("quantised, 2 bits", a_row("distilled", [0.5]))]), [])
    assert said.endswith("published are sets of DM that are quantised after their distillation.")


def test_nothing_was_expected_at_other_budgets():
    text = told.text(runs_of([0.7, 0.71, 0.72], [0.5, 0.5, 0.51], budget="ipc10:f32"), of=3)
    assert "+10.0 points." in text and "Expected" not in text
    assert text.startswith("2 of 3 distillations are done.")


def test_of_several_distillations_a_point_is_their_mean():
    runs = [
        a_run("plain", a_row("distilled", [0.5 + seed / 10, 0.52 + seed / 10]), seed=seed)
        for seed in range(3)
    ]
    (point,) = told.points(runs)
    assert point.mean == pytest.approx(0.61)
    assert (point.distillations, point.networks) == (3, 2)
    low, high = point.ci95  # Student's t of three means that are 0.1 apart
    assert low < 0.4 and high > 0.78


def test_the_frontier_is_what_fewer_bytes_do_not_beat():
    rows = {"a": (0.5, 100), "b": (0.7, 300), "c": (0.6, 300), "d": (0.65, 400), "e": (0.8, 500)}
    runs = [
        a_run(name, a_row("distilled", [mean, mean], size)) for name, (mean, size) in rows.items()
    ]
    assert [point.form for point in told.frontier(told.points(runs))] == ["a", "b", "e"]


def test_the_best_codecs_go_on_each_once_and_are_chosen_once(tmp_path):
    means = {"plain": 0.9, "quantised, 2 bits": 0.8, "quantised, 4 bits": 0.7, "siren": 0.6}
    runs = [a_run(form, a_row("distilled", [mean, mean])) for form, mean in means.items()]
    screened = tmp_path / "screening.json"
    equal_bytes.files.write_json(screened, {"rows": 5, "runs": runs})
    with pytest.raises(SystemExit, match="has 4 of 5 rows"):
        equal_bytes.chosen(tmp_path / "final", screened)
    equal_bytes.files.write_json(screened, {"rows": 4, "runs": runs})
    forms = equal_bytes.chosen(tmp_path / "final", screened)
    assert forms == ["quantised, 2 bits", "siren"]
    screened.unlink()
    assert equal_bytes.chosen(tmp_path / "final", screened) == forms
    assert equal_bytes.of_cifar(["siren", "quantised, 2 bits", "fred"]) == forms


def test_a_flag_that_is_replaced_stands_once():
    flags = equal_bytes.in_place_of(("--a", "1", "2", "--b", "3"), ("--a", "4"))
    assert flags == ("--b", "3", "--a", "4")


def test_what_does_not_fit_into_few_bytes_is_left_out():
    cells = equal_bytes.final(["haba", "siren"], "dm-ipc1:u8")
    assert {cell.form for cell in cells} == {"plain", "siren"}
    assert "--codec.bounded" in cells[0].row(tiny=False).flags


def test_a_set_without_a_distillation_has_no_point(tmp_path):
    """Its line says so; what diverged is counted also where others of a distillation did not."""
    runs = [
        a_run("siren", a_row("distilled", [0.8, 0.8]), seed=1),
        a_run("siren", a_row("distilled", [None, None]), seed=2),
    ]
    assert told.points(runs) == []
    assert "| siren | 10 | 1000 | 80 | diverged | 2 x 2, 2 diverged |" in told.text(runs, 2)
    told.plot(tmp_path / "none.png", runs)
    runs.append(a_run("plain", a_row("distilled", [0.5, None, 0.7])))
    (point,) = told.points(runs)
    assert (point.form, point.diverged, point.networks) == ("plain", 1, 3)
    assert "| 1 x 3, 1 diverged |" in told.text(runs, 3)


def test_final_rows_have_other_seeds_than_the_screening():
    """Real images stand beside the first of them; fits in fewer steps are said."""
    cells = equal_bytes.final(["siren"], "dm-ipc10:f32")
    assert {cell.seed for cell in cells} == {1, 2, 3}
    assert not {cell.seed for cell in cells} & {cell.seed for cell in equal_bytes.screening()}
    with_controls = [cell for cell in cells if cell.row(tiny=False).baselines]
    assert [(cell.form, cell.seed) for cell in with_controls] == [("plain", 1), ("siren", 1)]
    (note,) = equal_bytes.fewer_fits(cells)
    assert note.endswith(": siren at ipc10 in 500 of 2000.")
    assert note in told.text([a_run("siren", a_row("distilled", [0.5]))], 1, [note])
    assert equal_bytes.fewer_fits(equal_bytes.final([], "dm-ipc10:f32")) == []


def test_rows_that_the_file_holds_are_not_made_again(tmp_path, monkeypatch):
    """So that a table goes on on a machine where no run lies."""
    monkeypatch.setattr(equal_bytes, "ROOT", tmp_path)
    monkeypatch.setattr(equal_bytes.table, "ROOT", tmp_path)
    place = equal_bytes.Place(name="screening", tiny=True)
    siren = equal_bytes.Cell(form="siren")
    run = a_run("siren", a_row("distilled", [0.8, 0.7])) | {"cell": asdict(siren)}
    equal_bytes.files.make_folder(place.results.parent)
    equal_bytes.files.write_json(place.results.with_suffix(".json"), {"rows": 2, "runs": [run]})
    asked = []

    def run_rows(name, rows, experts, jobs, where, done):
        asked.extend(row.label for row in rows)
        done()

    monkeypatch.setattr(equal_bytes.table, "run_rows", run_rows)
    equal_bytes.run(place, None, 1, {})
    assert len(asked) == len(equal_bytes.FORMS) - 1
    assert not any("siren" in label for label in asked)
    content = json.loads(place.results.with_suffix(".json").read_text())
    assert [kept["cell"]["form"] for kept in content["runs"]] == ["siren"]


def test_a_table_without_a_row_stops_no_other(tmp_path, monkeypatch, capsys):
    """`cifar` makes the folder of `final` with what was chosen alone."""
    monkeypatch.setattr(equal_bytes, "ROOT", tmp_path)
    monkeypatch.setattr(equal_bytes.table, "ROOT", tmp_path)
    content = {"screening": "none", "forms": ["siren"]}
    for name in ("final", "cifar"):
        folder = tmp_path / "runs" / f"equal_bytes_{name}"
        folder.mkdir(parents=True)
        equal_bytes.files.write_json(folder / "chosen.json", content)
    equal_bytes.main(["table"])
    said = capsys.readouterr().out
    assert "No row of final is done" in said and "No row of cifar is done" in said
