"""prune and buy_labels from the command line: mistakes, sets of what is kept, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import run

import ddengine

RUN = Path(__file__).resolve().parents[2] / "run.py"
TINY = [
    "mtt/digits_ipc1", "--data.limit", "200", "--model", "convnet-d1-w4-in", "--device", "cpu",
    "--evaluation.rate", "learned", "--evaluation.epochs", "2",
]  # fmt: skip
PRUNE = [
    *TINY, "--pruning.fractions", "0.1", "1", "--pruning.steps", "4", "--pruning.teacher_steps", "4",
    "--pruning.repeats", "2", "--pruning.selections", "random", "el2n", "--init.networks", "1",
]  # fmt: skip
LABELS = [
    *TINY, "--labels.points", "5", "--labels.steps", "3", "--labels.first_per_class", "1",
    "--labels.repeats", "2", "--labels.wrong", "0.3",
]  # fmt: skip

SAID_OTHERWISE = ("seconds", "command", "blake2b")  # of two runs that are alike

WRONG = {
    ("prune", *PRUNE, "--pruning.alphas", "1.5"): "must lie within 0 and 1, got 1.5",
    ("prune", *PRUNE, "--pruning.fractions", "0.001"): "keeps no image of a class",
    ("prune", *PRUNE, "--pruning.selections", "herdin"): "nearest: herding",
    ("prune", *PRUNE, "--sets", "nowhere"): "nowhere",
    ("prune",): "needs the name of a recipe first",
    ("buy_labels", *LABELS, "--labels.points", "100"): "the pool has 180",
    ("buy_labels", *LABELS, "--labels.wrong", "-0.1"): "must lie within 0 and 1",
    ("buy_labels", *LABELS, "--labels.first_per_class", "99"): "first_per_class 99 is more than",
    ("buy_labels", *LABELS, "--answers", "a.csv"): "A file answers one course",
}


def without_twice(words):
    """A line whose later flags stand in place of earlier ones, which may stand once."""
    line: list[str] = []
    for word in words:
        if word.startswith("--") and word in line:
            at = line.index(word)
            end = at + 1
            while end < len(line) and not line[end].startswith("--"):
                end += 1
            del line[at:end]
        line.append(word)
    return line


def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, said in WRONG.items():
        assert run(*without_twice(words)) == 2, words
        printed = " ".join("".join(capsys.readouterr()).split())
        assert said in printed and printed.count("error: ") == 1, (words, printed)
        assert not (tmp_path / "runs").exists()


def test_what_is_kept_is_a_set_as_any_other(tmp_path, monkeypatch, capsys):
    """It is evaluated, beside random images, and exported; the command says where it lies."""
    monkeypatch.chdir(tmp_path)
    assert run("prune", *PRUNE, "--out", "pruned") == 0
    assert not list((tmp_path / "pruned" / "kept").glob("*/"))
    assert run("prune", *PRUNE, "--pruning.write_sets", "--out", "pruned") == 0  # of what is done
    assert "which images were kept: pruned/kept" in capsys.readouterr().out
    kept = "pruned/kept/el2n_0.1_repeat0"
    assert len(ddengine.load(kept)) == 10
    flags = ["--baselines", "random", "--num_networks", "3", "--device", "cpu"]
    assert run("evaluate", kept, *flags) == 0
    rows = json.loads((tmp_path / kept / "evaluation.json").read_text())["rows"]
    assert [row["set"] for row in rows] == ["el2n", "random"]
    assert run("export", kept, "--format", "folders", "--out", "images") == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 10


def test_commands_are_cited(capsys):
    for command, key in (("prune", "chen2025mdslr"), ("buy_labels", "baykal2023rad")):
        assert run("cite", command) == 0
        assert key in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "flags", "partial", "made"),
    [
        ("prune", PRUNE, "prune.partial.jsonl", "prune.json"),
        ("buy_labels", LABELS, "labels.partial.jsonl", "labels.json"),
    ],
)
def test_a_killed_command_goes_on_to_the_bit(command, flags, partial, made, tmp_path, monkeypatch):
    """What was finished stays, and the numbers are those of a command that was left alone."""
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, str(RUN), command, *flags, "--out", "killed"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    lines = tmp_path / "killed" / partial
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and killed.poll() is None:
        if lines.is_file() and lines.read_bytes().count(b"\n") >= 8:
            break
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "killed" / made).exists()
    contents = []
    for name in ("killed", "alone"):
        assert run(command, *flags, "--out", name) == 0
        contents.append(timeless(json.loads((tmp_path / name / made).read_text())))
    assert contents[0] == contents[1]


def timeless(content):
    """Without what a clock says, the command, which names the folder, and the seal of both."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k not in SAID_OTHERWISE}
    return [timeless(v) for v in content] if isinstance(content, list) else content
