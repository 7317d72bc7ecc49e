"""Benchmarks within hours or seconds that are said go on where they were stopped."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ddengine.recipe import Published
from ddengine.system import files
from ddengine.system.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import cells
import common
import gpu
import measured as measured_tables
import scale

EXPECTED = {"distill": 5000.0, "evaluate": 100.0}


@pytest.fixture
def commands(monkeypatch):
    """Stand-ins for the commands of run.py; `said` gives exit codes that are not 0, in turn."""
    seen, said = [], {}

    def stand_in(words, seconds, log):
        _, _, verb, *rest = words
        seen.append(verb)
        log.write_text(f"about to {verb}\nthe end of {verb} in {log.parent}/run.\n")
        if said.get(verb):
            return said[verb].pop()
        if verb == "estimate":
            parts = [{"name": name, "seconds": value} for name, value in EXPECTED.items()]
            files.write_json(Path(rest[rest.index("--json") + 1]), {"parts": parts})
        if verb in ("select", "distill"):
            Path(rest[rest.index("--out") + 1], "distilled").mkdir(parents=True)
            files.write_json(Path(rest[rest.index("--out") + 1], "distilled", "meta.json"), {})
        if verb == "evaluate":
            networks = int(rest[rest.index("--num_networks") + 1])
            reached = [0.2 + 0.01 * number for number in range(networks)]
            rows = [{"accuracies": [{"accuracy": value} for value in reached]}]
            where = {"machine": {}, "versions": {}, "commit": "c"}
            files.write_json(Path(rest[0], "evaluation.json"), {"rows": rows, **where})
        return 0

    monkeypatch.setattr(common, "stopped_after", stand_in)
    return seen, said


def settings(tmp_path, *names, hours=1.0):
    return cells.Settings(
        hours=hours, cells=names, runs=tmp_path / "runs", out=tmp_path / "out", device="cpu"
    )


def rows_in(asked):
    content = json.loads((asked.out / "published_cells.json").read_text())
    return {row["cell"]: row for row in content["rows"]}


def test_cells_are_run_once_and_told_beside_their_figures(tmp_path, commands):
    """Random images have a set for each network, herding has one; a second call runs nothing."""
    seen, _ = commands
    asked = settings(tmp_path, "random_dc_ipc1", "herding_dc_ipc1")
    assert cells.main(asked) == 0
    assert seen == ["select", "evaluate"] * 6
    rows = rows_in(asked)
    random, herding = rows["random_dc_ipc1"], rows["herding_dc_ipc1"]
    assert random["ours"]["accuracies"] == [0.2] * 5
    assert random["published"]["accuracy"] == pytest.approx(0.144)
    assert random["ours"]["within_1_std"] is False
    assert herding["ours"]["n"] == 5 and herding["ours"]["accuracy"] == pytest.approx(0.22)
    assert herding["ours"]["within_1_std"] is True  # 21.5 with a deviation of 1.2
    assert cells.main(asked) == 0 and len(seen) == 12
    table = (asked.out / "published_cells.md").read_text()
    assert "| 21.5 ± 1.2 | 22.0 ± 1.6 (" in table and "| yes |" in table and "| no |" in table


def test_hours_that_are_over_stop_the_cells_which_go_on(tmp_path, commands):
    """The row of a cell that was stopped says that it is not finished."""
    seen, said = commands
    said["distill"] = [common.UNFINISHED]
    asked = settings(tmp_path, "dsa/cifar10_ipc1", "dc/cifar10_ipc1")
    assert cells.main(asked) == common.UNFINISHED
    assert seen == ["distill"]
    assert rows_in(asked)["dsa/cifar10_ipc1"]["ours"] is None
    assert "not finished" in (asked.out / "published_cells.md").read_text()
    assert cells.main(asked) == 0
    assert seen == ["distill", *("distill", "evaluate") * 2]
    figure = rows_in(asked)["dsa/cifar10_ipc1"]["published"]
    assert figure["accuracy"] == pytest.approx(0.288) and figure["source"]
    assert cells.main(settings(tmp_path, "dc/fashion_mnist_ipc1", hours=0)) == common.UNFINISHED


def test_seconds_are_counted_through_kills(tmp_path, commands, monkeypatch):
    """Of this program, by what the run says; and where this program is asked to end."""
    asked = settings(tmp_path, "dsa/cifar10_ipc1")
    stand_in = common.stopped_after

    def interrupted(words, seconds, log):
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "stopped_after", interrupted)
    ticks = iter(range(0, 10**6, 100))
    monkeypatch.setattr(cells.time, "monotonic", lambda: float(next(ticks)))
    with pytest.raises(KeyboardInterrupt):
        cells.main(asked)
    of_set = asked.runs / "dsa_cifar10_ipc1" / "seed_0"
    assert files.read_json(of_set / cells.TOOK)["set"] >= 100
    monkeypatch.undo()
    monkeypatch.setattr(common, "stopped_after", stand_in)
    assert cells.main(asked) == 0
    row = rows_in(asked)["dsa/cifar10_ipc1"]
    assert row["seconds"]["set"] >= 100 and row["seconds"]["set"] < 10**5
    meta = of_set / "run" / "distilled" / "meta.json"
    files.write_json(meta, {"distillation": {"wall_seconds": 1e5, "peak_memory_bytes": 7}})
    cell = cells.chosen(asked)[0]
    assert cells.row_of(cell, asked)["seconds"]["set"] == 1e5


def test_cells_that_the_file_holds_are_kept_on_another_machine(tmp_path, commands):
    """Where no run lies, a finished cell is not made again, and stands beside what is made there."""
    seen, _ = commands
    first = settings(tmp_path, "herding_dc_ipc1")
    assert cells.main(first) == 0
    before = rows_in(first)["herding_dc_ipc1"]
    seen.clear()
    there = replace(
        first, cells=("dc/cifar10_ipc1", "herding_dc_ipc1"), runs=tmp_path / "elsewhere"
    )
    assert cells.main(there) == 0
    assert seen == ["distill", "evaluate"]
    assert list(rows_in(there)) == ["herding_dc_ipc1", "dc/cifar10_ipc1"]
    assert rows_in(there)["herding_dc_ipc1"] == before


def test_a_finished_cell_stays_where_it_was_only_begun(tmp_path, commands):
    """As where another machine has finished it since, and its results came here."""
    _, said = commands
    asked = settings(tmp_path, "dsa/cifar10_ipc1")
    said["distill"] = [common.UNFINISHED]
    assert cells.main(asked) == common.UNFINISHED
    assert cells.main(replace(asked, runs=tmp_path / "elsewhere")) == 0
    finished = rows_in(asked)["dsa/cifar10_ipc1"]
    assert finished["ours"] is not None
    assert cells.main(replace(asked, cells=("dc/cifar10_ipc1",))) == 0
    assert rows_in(asked)["dsa/cifar10_ipc1"] == finished


def test_a_cell_that_fails_is_said_and_others_run(tmp_path, commands, capsys):
    _, said = commands
    said["distill"] = [1]
    asked = settings(tmp_path, "dsa/cifar10_ipc1", "dc/cifar10_ipc1")
    assert cells.main(asked) == 1
    assert "ended with 1: the end of distill" in capsys.readouterr().out
    rows = rows_in(asked)
    assert rows["dc/cifar10_ipc1"]["ours"] is not None
    assert (
        rows["dsa/cifar10_ipc1"]["failed"] == "the end of distill in dsa_cifar10_ipc1/seed_0/run."
    )
    assert str(tmp_path) not in (asked.out / "published_cells.json").read_text()


def test_outer_steps_are_cut_to_the_hours_once(tmp_path, commands):
    """A second of 5000 steps of a second, beside 100 of the evaluation; the row says what is cut."""
    seen, said = commands
    said["distill"] = [common.UNFINISHED]
    asked = settings(tmp_path, "mtt/cifar10_ipc1", hours=0.5)
    assert cells.main(asked) == common.UNFINISHED and seen == ["buffer", "estimate", "distill"]
    assert cells.main(settings(tmp_path, "mtt/cifar10_ipc1", hours=2)) == 0
    assert seen[3:] == ["buffer", "distill", "evaluate"]
    experts, steps = rows_in(asked)["mtt/cifar10_ipc1"]["cut"]
    assert experts == "4 experts of 3 epochs for 100 of 50"
    number = int(steps.split()[0])
    assert 1340 < number <= 0.8 * (1800 - 100) and steps.endswith("outer steps for 5000")
    assert cells.fitting(5000, EXPECTED, 10**6) == 5000 and cells.fitting(5000, EXPECTED, 90) == 0


def test_what_is_estimated_is_what_is_evaluated(tmp_path, commands, monkeypatch):
    """As many networks, without baselines, whose time outer steps have instead."""
    stand_in, asked = common.stopped_after, {}

    def noting(words, seconds, log):
        asked[words[2]] = words
        return stand_in(words, seconds, log)

    monkeypatch.setattr(common, "stopped_after", noting)
    cells.main(settings(tmp_path, "mtt/cifar10_ipc1"))
    text, evaluated = " ".join(asked["estimate"]), " ".join(asked["evaluate"])
    assert "--evaluation.baselines --evaluation.num_networks 5 --" in text
    assert "--baselines --num_networks 5" in evaluated


def test_a_folder_with_a_blank_and_others_are_cut_from_a_line(tmp_path):
    asked = settings(tmp_path / "a b")
    line = f"no '/else where/x', see {asked.runs}/log, https://x.org/a/b and/or 1 / 2 of /data."
    said = "no 'else where/x', see log, https://x.org/a/b and/or 1 / 2 of data."
    assert cells.without_folders(line, asked) == said


def test_images_are_read_where_the_settings_say(tmp_path):
    """Each cell those of its dataset; without a folder as the recipe has it."""
    asked = replace(settings(tmp_path), cifar10=tmp_path / "c", fashion_mnist=tmp_path / "f")
    flags = {cell.name: cells.where_images_lie(cell, asked) for cell in cells.CELLS}
    parquet = ("--data.name", "parquet", "--data.root", str(tmp_path / "c"))
    assert flags["dsa/cifar10_ipc1"] == flags["random_dc_ipc10"] == parquet
    assert flags["dc/fashion_mnist_ipc1"] == ("--data.root", str(tmp_path / "f"))
    assert {cells.where_images_lie(cell, settings(tmp_path)) for cell in cells.CELLS} == {()}


def test_published_cells_are_measured_where_they_were_run_whole():
    """Beside real images of the same recipe; what was cut, or has no figure, is left out."""
    ours = {"accuracy": 0.3, "std": 0.01, "n": 5}
    row = {
        "recipe": "dsa/cifar10_ipc1", "set": "distilled", "cut": [], "ours": ours,
        "seconds": {"set": 9.0}, "peak_memory": 7, "machine": {"device": "CPU"},
    }  # fmt: skip
    random = row | {"set": "real", "ours": ours | {"accuracy": 0.2}}
    cut = row | {"recipe": "mtt/cifar10_ipc1", "cut": ["2 outer steps for 5000"]}
    begun = row | {"recipe": "dc/cifar10_ipc1", "ours": None}
    (entry,) = measured_tables.cells([random, row, cut, begun])
    assert entry["recipe"] == "dsa/cifar10_ipc1" and entry["beside"] == {"random": 0.2}
    assert (entry["accuracy"], entry["ipc"], entry["images"]) == (0.3, 1, 50_000)


def test_a_share_that_holds_no_step_ends_no_other_cell(tmp_path, commands, monkeypatch):
    """Two cells share 300 s: half of them are fewer than an evaluation and a step of 40 s take."""
    seen, _ = commands
    monkeypatch.setitem(EXPECTED, "distill", 5000 * 45.0)
    asked = settings(tmp_path, "mtt/cifar10_ipc1", "mtt/cifar10_ipc10", hours=300 / 3600)
    assert cells.main(asked) == common.UNFINISHED
    assert seen == ["buffer", "estimate", *("buffer", "estimate", "distill", "evaluate")]
    rows = rows_in(asked)
    assert rows["mtt/cifar10_ipc1"]["ours"] is None
    assert rows["mtt/cifar10_ipc10"]["ours"] is not None


def test_a_rehearsal_leaves_results_alone_and_a_refused_call_too(tmp_path, commands):
    asked = settings(tmp_path, "random_dsa_ipc1")
    rehearsal = cells.Settings(**{**vars(asked), "rehearse": True, "out": None})
    cells.main(rehearsal)
    assert json.loads((rehearsal.runs / "published_cells.json").read_text())["rehearsal"]
    with pytest.raises(UserError, match="other settings"):
        cells.main(asked)
    assert not asked.out.exists()
    real = cells.Settings(**{**vars(rehearsal), "rehearse": False})
    assert real.results == common.ROOT / "docs" / "results"


def test_cells_of_other_settings_and_unknown_ones_are_refused(tmp_path, commands):
    asked = settings(tmp_path, "random_dsa_ipc1")
    cells.main(asked)
    with pytest.raises(UserError, match="other settings"):
        cells.main(cells.Settings(**{**vars(asked), "rehearse": True}))
    with pytest.raises(UserError, match="random_dsa_ipc1"):
        cells.main(settings(tmp_path, "mtt/none"))


def test_every_cell_has_a_figure_and_a_name_of_its_own():
    every = [*cells.CELLS, *cells.MORE]
    assert len({cell.name.replace("/", "_") for cell in every}) == len(every)
    assert all(isinstance(cell.figure, Published) for cell in every)


# What is done with a GPU.

WRITES = "open({!r}, 'a').write('x'); raise SystemExit({})"


def part(folder, name, code=0, share=1.0):
    """A part that notes that it ran."""
    script = WRITES.format(str(folder / f"{name}.ran"), code)
    return gpu.Part(name, share, (sys.executable, "-S", "-c", script))


def ran(folder, name):
    path = folder / f"{name}.ran"
    return len(path.read_text()) if path.is_file() else 0


def test_parts_go_on_in_a_second_call(tmp_path):
    """What is done is not run again; what was stopped is, and last what failed."""
    waits = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
    first = [part(tmp_path, "fails", 1), gpu.Part("long", 0.02, waits), part(tmp_path, "quick")]
    asked = gpu.Settings(seconds=60, out=tmp_path)
    assert gpu.main(asked, first) == 1
    states = {
        name: of["state"] for name, of in files.read_json(tmp_path / gpu.PARTS)["parts"].items()
    }
    assert states == {"fails": "failed", "long": "stopped", "quick": "done"}
    assert gpu.in_order(first, files.read_json(tmp_path / gpu.PARTS)["parts"]) == [
        first[1],
        first[0],
    ]
    second = [part(tmp_path, name) for name in ("fails", "long", "quick")]
    assert gpu.main(asked, second) == 0
    rehearsal = gpu.Settings(seconds=60, out=tmp_path, rehearse=True)
    with pytest.raises(SystemExit, match="holds results of a GPU; name another folder"):
        gpu.main(rehearsal, second)
    # what a rehearsal has done, or a program that did not say so, is not done on a GPU
    for said in ({"rehearsal": True}, {}):
        files.write_json(tmp_path / gpu.PARTS, {"parts": {}} | said)
        with pytest.raises(SystemExit, match="holds a rehearsal; name another folder"):
            gpu.main(asked, second)
    assert [ran(tmp_path, name) for name in ("fails", "long", "quick")] == [2, 1, 1]


def test_what_has_passed_is_not_run_again(tmp_path):
    """As the log of the call before says."""
    said = "tests/gpu/a.py::one[x] PASSED [ 50%]\ntests/gpu/a.py::two FAILED [100%]\n"
    (tmp_path / "tests.log").write_text(said)
    script = "import sys; print('given', *sys.argv[1:])"
    told = gpu.Part("tests", 1.0, (sys.executable, "-S", "-c", script))
    assert gpu.run(told, 60, tmp_path) == ("done", 0)
    assert "given --deselect tests/gpu/a.py::one[x]\n" in (tmp_path / "tests.log").read_text()


def test_no_part_is_begun_with_seconds_that_do_not_do(tmp_path):
    assert gpu.main(gpu.Settings(seconds=gpu.LEAST - 1, out=tmp_path), [part(tmp_path, "a")]) == 0
    assert not ran(tmp_path, "a")


def test_a_box_is_a_share_of_what_is_left():
    every = gpu.parts(gpu.Settings(seconds=540, out=Path("out")))
    assert every[0].name == "tests" and gpu.box(every, 1600) == pytest.approx(150)
    assert gpu.box(every[-1:], 70) == 70
    assert all("cuda" in one.words for one in every if "pytest" not in one.words)
    known = {cell.name for cell in [*cells.CELLS, *cells.MORE]}
    assert set(gpu.CELLS) <= known


@pytest.mark.slow
def test_a_command_that_is_stopped_ends_what_it_started(tmp_path):
    """And a command that ends by itself says its exit code."""
    log = tmp_path / "log"
    sleeps = "import time; print('begun', flush=True); time.sleep(60)"
    began = time.monotonic()
    code = common.stopped_after([sys.executable, "-S", "-c", sleeps], 1.5, log)
    assert common.was_stopped(code) and time.monotonic() - began < 30
    assert "begun" in log.read_text()
    code = common.stopped_after([sys.executable, "-S", "-c", "raise SystemExit(7)"], 30, log)
    assert code == 7 and not common.was_stopped(code)


def test_a_command_that_does_not_end_is_killed_within_its_seconds(tmp_path):
    """It is stopped; one that others kill has failed."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()
    code = common.stopped_after([sys.executable, "-S", "-c", deaf], 1.0, tmp_path / "log")
    assert common.was_stopped(code) and 0.9 < time.monotonic() - began < 30
    killed = "import os; os.kill(os.getpid(), 9)"
    code = common.stopped_after([sys.executable, "-S", "-c", killed], 60, tmp_path / "log")
    assert code == -9 and not common.was_stopped(code)


# What time and memory grow with.


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Stand-ins for what `scale.py` measures, noted in the list that is returned."""
    seen = []
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(scale, "measured", lambda one, settings: seen.append(one) or {"x": 1})
    monkeypatch.setattr(scale.runtime, "commit", lambda: "c")
    return seen


def test_a_rehearsal_of_scale_goes_on_with_rows_of_the_same_commit(tmp_path, measured, monkeypatch):
    """It lies below runs; rows of another commit are measured again."""
    asked = scale.Settings(tiny=True)
    points = len(list(scale.asked(tiny=True)))
    scale.main(asked)
    written = tmp_path / "runs" / "scale_tiny.json"
    assert len(files.read_json(written)["rows"]) == len(measured) == points
    scale.main(asked)
    assert len(measured) == points
    monkeypatch.setattr(scale.runtime, "commit", lambda: "d")
    scale.main(asked)
    assert len(measured) == 2 * points
    content = files.read_json(written)
    assert content["commit"] == "d" and len(content["rows"]) == points
