"""What shows how far long work is: a terminal, a notebook, a function, a file, or nothing."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ddengine
import synth
from ddengine.data import Dataset
from ddengine.system import bars, log
from ddengine.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def small(steps: int = 5) -> ddengine.Recipe:
    """A distillation of seconds."""
    recipe = synth.find("dm/fashion_mnist_ipc1_small", model="convnet-d1-w4-in")
    outer = replace(
        recipe.outer, steps=steps, checkpoint_every=2, evaluate_every=0, picture_every=0
    )
    data = replace(recipe.data, limit=200)
    objective = replace(recipe.objective, real_batch=10)
    return replace(recipe, data=data, objective=objective, outer=outer)


def test_a_function_is_told_of_every_step_in_place_of_bars(capsys):
    told = []
    ddengine.distill(Dataset.named("digits"), small(), progress=lambda *step: told.append(step))
    assert [step[:3] for step in told] == [("distill", done, 5) for done in range(6)]
    assert told[0][3] == "" and "loss" in told[-1][3]
    assert "distill" not in capsys.readouterr().out
    log.say("a line")
    assert capsys.readouterr().out == "a line\n"


def test_what_the_function_raises_stops_the_run_and_the_same_call_continues(tmp_path):
    """As a button does that says stop."""

    def stop(title: str, done: int, total: int, note: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ddengine.distill(Dataset.named("digits"), small(), folder=folder, progress=stop)
    seen = []
    continued = ddengine.distill(
        Dataset.named("digits"), small(), folder=folder, progress=lambda *step: seen.append(step)
    )
    assert seen[0][:2] == ("distill", 2)
    uninterrupted = ddengine.distill(Dataset.named("digits"), small(), progress=False)
    assert torch.equal(continued.tensors["images"], uninterrupted.tensors["images"])


def test_other_values_are_refused():
    with pytest.raises(UserError, match=r"'no'; give True, False or a function of \(title"):
        ddengine.distill(Dataset.named("digits"), small(), progress="no")  # type: ignore[arg-type]


def test_false_hides_what_a_function_around_it_would_see(capsys):
    told = []
    with log.shown(lambda *step: told.append(step)), log.shown(False):
        with log.progress("inner", 3) as bar:
            bar.advance()
        log.say("a line")
    assert not told and capsys.readouterr().out == ""
    with log.shown(lambda *step: told.append(step)), log.shown(True):
        with log.progress("inner", 3) as bar:
            bar.advance("so far")
    assert told == [("inner", 0, 3, ""), ("inner", 1, 3, "so far")]


def test_a_file_has_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(log, "PLAIN_EVERY", -1.0)
    with log.progress("work", 4, done=1) as bar:
        bar.advance("well")
    assert capsys.readouterr().out == "work: 2/4, about 0 s left well\n"
    monkeypatch.setenv("RANK", "1")
    with log.progress("work", 4) as bar:
        bar.advance("well")
    assert capsys.readouterr().out == ""


def test_a_pause_is_forgotten_in_the_time_left(monkeypatch):
    """It counts while it is among the last steps, and slow steps are as many as needed."""
    now = 0.0
    monkeypatch.setattr(bars.time, "monotonic", lambda: now)
    left = bars.TimeLeft(1000, 100)
    assert left.after(100) is None
    for done in range(101, 201):  # of 10 s
        now += 10.0
        assert left.after(done) == pytest.approx(10.0 * (1000 - done))
    now += 3600.0
    assert left.after(201) > 2 * 10.0 * 799
    for done in range(202, 302):
        now += 10.0
        estimate = left.after(done)
    assert estimate == pytest.approx(10.0 * 699)
    slow = bars.TimeLeft(1000, 0)
    for done in range(1, 31):  # longer each than what is recent
        now += 1000.0
        assert slow.after(done) == pytest.approx(1000.0 * (1000 - done))
    assert [bars.clock(s) for s in (None, 59.6, 125, 86400)] == [
        "-:--:--", "0:01:00", "0:02:05", "24:00:00",
    ]  # fmt: skip


def test_a_notebook_has_tqdms_bar_where_it_is_installed(monkeypatch):
    """Without ipywidgets a line moves, and other lines stand above it."""
    pytest.importorskip("tqdm")
    monkeypatch.setattr(bars, "in_notebook", lambda: True)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with log.progress("work", 10, done=4) as bar:
        bar.advance("well")
        log.say("a line")
        assert "work:  50%|" in out.getvalue() or "work:  40%|" in out.getvalue()
    assert "a line\n" in out.getvalue()
    # the bar is wiped away before the line, and at the end
    before = out.getvalue().split("a line\n")[0]
    assert before.endswith("\r") and out.getvalue().rstrip(" ").endswith("\r")
    monkeypatch.setattr(bars, "has_tqdm", lambda: False)
    assert isinstance(log._display("work", 10, 0), log.PlainLines)


def test_a_running_notebook_shows_a_bar_and_plain_lines(tmp_path):
    """In a real kernel; what is saved has no HTML of single lines."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("tqdm")
    code = (
        "from ddengine.system import bars, log\n"
        "assert bars.in_notebook()\n"
        "with log.progress('work', 3) as bar:\n"
        "    assert type(bar._display).__name__ == 'NotebookBar'\n"
        "    log.say('a line')\n"
        "    bar.advance('well')\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": tmp_path}}, coalesce_streams=True
    )
    client.execute(env=environment)
    outputs = notebook.cells[0].outputs
    streams = [output.text for output in outputs if output.output_type == "stream"]
    assert "a line\n" in "".join(streams)
    assert len(streams) == len(outputs), outputs


def test_tqdm_is_not_needed():
    code = (
        "import sys; sys.modules['tqdm'] = None; sys.modules['tqdm.auto'] = None\n"
        "from ddengine.system import bars, log\n"
        "bars.in_notebook = lambda: True\n"
        "assert not bars.has_tqdm()\n"
        "with log.progress('work', 3) as bar: bar.advance(); log.say('a line')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a line\n"), done.stderr
