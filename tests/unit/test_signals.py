"""Commands that a signal asks to end: they finish a step, and go on where they were."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, MODEL, new_model, run, tiny_data
from safetensors.torch import load_file

from buffers import store, train
from buffers.barlow import BarlowTwins
from buffers.experts import generate
from buffers.flat_step import Gsam
from buffers.smooth import Smooth
from buffers.steps import Sgd
from buffers.unfinished import Checkpoint, Progress, path_of
from ddengine import loop
from ddengine.commands import cli
from ddengine.recipe import BufferConfig
from ddengine.system import files, log, signals

ROOT = Path(__file__).resolve().parents[2]
RUN = ["dm/fashion_mnist_ipc1_small", "--data.name", "digits", "--data.limit", "200"]
RUN += ["--model", MODEL, "--objective.real_batch", "8", "--outer.steps", "6"]
RUN += ["--outer.evaluate_every", "0", "--outer.checkpoint_every", "100", "--out", "run"]


@pytest.fixture(autouse=True)
def heeded():
    """Signals as in a terminal; in the background of a shell, or under nohup, some are ignored."""
    before = {number: signal.getsignal(number) for number in signals.ASKING}
    for number in signals.ASKING:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.ASKING, ids=lambda number: number.name)
def test_a_distillation_finishes_its_step_and_goes_on(tmp_path, monkeypatch, capsys, number):
    """No step is lost although no checkpoint was due, and the set is that of an unbroken run."""
    monkeypatch.chdir(tmp_path)
    real, made = loop.outer_step, []

    def outer_step(*args):
        made.append(1)
        if len(made) == 3:
            os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(loop, "outer_step", outer_step)
    before = [signal.getsignal(one) for one in signals.ASKING]
    assert run("distill", *RUN) == 128 + number
    said = capsys.readouterr().err
    assert f"stopped by {number.name} at step 3 of 6; the same command continues" in said
    assert [signal.getsignal(one) for one in signals.ASKING] == before
    assert run("distill", *RUN) == 0 and len(made) == 6
    assert "continuing at step 3 of 6" in capsys.readouterr().out
    if number == signal.SIGTERM:
        assert run("distill", *RUN[:-1], "whole") == 0
        found, wanted = (
            load_file(f"{name}/distilled/data.safetensors") for name in ("run", "whole")
        )
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        lines = [Path(name, "metrics.jsonl").read_text() for name in ("run", "whole")]
        assert lines[0] == lines[1]


def test_a_second_signal_ends_at_once(tmp_path):
    program = (
        "import os, signal, sys, time\n"
        "from ddengine.system import signals\n"
        "with signals.heard(), signals.at_step_ends():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert signals.is_asked()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: this step is finished first" in ended.stderr


def test_without_steps_a_signal_ends_the_command_where_it_is(capsys):
    def command():
        os.kill(os.getpid(), signal.SIGHUP)
        raise AssertionError("it went on")

    assert cli.run(command) == 128 + signal.SIGHUP
    assert "stopped by SIGHUP; the same command continues" in capsys.readouterr().err
    assert not signals.is_asked()


def test_a_signal_in_the_last_step_ends_after_it():
    with pytest.raises(signals.Stopped) as stop, signals.heard(), signals.at_step_ends():
        os.kill(os.getpid(), signal.SIGUSR1)
        done = True
    assert done and stop.value.code == 128 + signal.SIGUSR1


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.heard():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.is_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


STEPS = {
    "momentum": Sgd(lr=0.05, momentum=0.9, decay=0.5),
    "plain": Sgd(lr=0.05, cosine=True),
    "gsam": Gsam(sgd=Sgd(lr=0.05, momentum=0.5)),
    "smooth": Smooth(penalty=0.0),
    "barlow": BarlowTwins(widths=(16, 16)),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_expert_goes_on_within_its_training(tmp_path, monkeypatch, name):
    """Stopped in the middle of an epoch, after the rate has dropped: the same to the bit."""
    data = tiny_data()
    config = BufferConfig(step=STEPS[name], num_experts=1, epochs=5, batch=64)
    build = new_model(data, "convnet-d1-w4-bn")
    make = [data, DIGITS, config, "convnet-d1-w4-bn", build]
    generate(*make, tmp_path / "whole")
    real, made = train._Training._batch, []

    def batch(self, index):
        made.append((self.progress.epoch, self.progress.batch))
        if made[-1] == (4, 1) and made.count((4, 1)) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, index)

    monkeypatch.setattr(train._Training, "_batch", batch)
    with pytest.raises(signals.Stopped, match="in epoch 5 of expert 0"), signals.heard():
        generate(*make, tmp_path / "stopped")
    assert not store.finished(tmp_path / "stopped")
    assert path_of(tmp_path / "stopped", 0).is_file()
    generate(*make, tmp_path / "stopped")
    assert len(made) == len(set(made))
    found, wanted = (
        load_file(tmp_path / at / "expert_0000.safetensors") for at in ("stopped", "whole")
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not path_of(tmp_path / "stopped", 0).exists()


def test_an_expert_is_kept_now_and_then(tmp_path, monkeypatch):
    """A kill loses what is newer than the last checkpoint, and what lies there is of this store."""
    data = tiny_data()
    config = BufferConfig(step=Sgd(lr=0.05), num_experts=1, epochs=2, batch=64)
    make = [data, DIGITS, config, MODEL, new_model(data)]
    monkeypatch.setattr("buffers.unfinished.EVERY", 0.0)
    real = train._Training._batch

    def batch(self, index):
        if self.progress.epoch == 1:
            raise KeyboardInterrupt
        real(self, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train._Training, "_batch", batch)
        generate(*make, tmp_path)
    written = path_of(tmp_path, 0)
    _, progress = store.checkpoint(tmp_path, 0).read()
    assert (progress.epoch, len(progress.losses)) == (0, 0) and progress.batch > 0
    assert Checkpoint(written, "another store").read() is None
    written.write_bytes(written.read_bytes()[:-5])
    assert store.checkpoint(tmp_path, 0).read() is None
    generate(*make, tmp_path)
    assert store.finished(tmp_path) == [0] and not written.exists()
    Checkpoint(written, "left by a kill").write({"a": torch.ones(1)}, Progress())
    generate(*make[:2], replace(config, num_experts=2), *make[3:], tmp_path)
    assert not written.exists()


def test_what_is_replaced_is_on_the_disk_first(tmp_path, monkeypatch):
    """The file before the rename, its folder after it; nothing where nothing is replaced."""
    flushed, path = [], tmp_path / "a.json"
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    files.write_json(path, {"a": 1})
    assert not flushed
    files.write_json(path, {"a": 2})
    assert [Path(name).name.partition("~")[2] or name for name in flushed] == [
        "a.json",
        str(tmp_path),
    ]
    folder = tmp_path / "set"
    for _ in range(2):
        flushed.clear()
        with files.replacing(folder) as temporary:
            (temporary / "below").mkdir(parents=True)
            (temporary / "below" / "file").write_text("")
    assert [Path(name).name for name in flushed[:-2]] == ["below", "file"]
    assert flushed[-1] == str(tmp_path)


@pytest.mark.parametrize(
    "number",
    [errno.EFBIG, errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EISDIR, errno.EBUSY],
    ids=errno.errorcode.get,
)
def test_errors_of_the_file_system_name_the_file(tmp_path, monkeypatch, capsys, number):
    """Writing says no name by itself."""

    def command():
        with files.replacing(tmp_path / "evaluation.json"):
            raise OSError(number, os.strerror(number))

    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'evaluation.json'} could not be" in said and os.strerror(number) in said


def test_a_vanished_folder_and_a_long_name_are_sentences(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(lambda: files.write_json(tmp_path / "gone" / "a.json", {})) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'gone' / 'a.json'} could not be" in said and "moved or removed" in said
    assert run("distill", *RUN[:-1], "x" * 300) == 2
    assert "File name too long" in capsys.readouterr().err


def test_a_log_that_was_cut_is_said_and_goes_on(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    events = log.EventLog(path)
    for step in (1, 2, 3):
        events.write(step=step)
    kept, digest = events.size(), events.digest()
    events.close()
    log.EventLog(path, kept, digest=digest).close()
    assert "warning" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-4])
    again = log.EventLog(path, kept, digest=digest)
    assert "was cut or changed since the checkpoint" in capsys.readouterr().out
    again.write(step=4)
    again.close()
    assert path.read_text().split() == ['{"step":', "1}", '{"step":', "2}", '{"step":', "4}"]


QUICK = ["--epochs", "2", "--num_networks", "3", "--lr_grid", "0.01", "--baselines", "random"]


def test_a_kill_before_the_evaluation_is_written_loses_no_training(tmp_path, monkeypatch):
    """Its picture comes first and the evaluation last, so the next command makes both good."""
    monkeypatch.chdir(tmp_path)
    assert run("distill", *RUN) == 0
    real = files.write_json

    def killed(path, value, **options):
        if path.name == "evaluation.json":
            raise KeyboardInterrupt
        real(path, value, **options)

    drawn = Path("run/real_vs_distilled.png").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        assert run("evaluate", "run", *QUICK) == 130
    partial = Path("run/evaluation.partial.jsonl")
    assert Path("run/real_vs_distilled.png").stat().st_mtime_ns > drawn
    before = partial.read_text()
    assert "distilled" in before and not Path("run/evaluation.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("ddengine.evaluation.bench.Bench.accuracies", None)  # nothing is trained
        assert run("evaluate", "run", *QUICK) == 0
    assert not partial.exists()
    partial.write_text(before)  # a kill right after evaluation.json
    assert run("evaluate", "run", *QUICK) == 0 and not partial.exists()
