"""Folders that one command at a time works in."""

import contextvars
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import run, tiny_data, tiny_set

import buffers
import ddengine
from buffers.making import _claimed, _delete
from buffers.open import Place
from ddengine.api import evaluate
from ddengine.artefact import runs
from ddengine.system import claims, files
from ddengine.system.errors import UserError
from synth.catalogue import find

ROOT = Path(__file__).resolve().parents[2]
# claims a folder, says so, and works there until it is ended
HOLDER = """
import sys
from pathlib import Path
from ddengine.system import claims
with claims.claimed(Path(sys.argv[1]), "distill"):
    print("claimed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another thread works in `tmp_path`/run until this event is set."""
    begun, over = threading.Event(), threading.Event()

    def work():
        with claims.claimed(tmp_path / "run", "distill"):
            begun.set()
            over.wait()
            (tmp_path / "run" / "done").write_text("")

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    yield over
    over.set()
    thread.join()


def test_who_works_in_a_folder_is_said(tmp_path, holder):
    with pytest.raises(UserError) as refused, claims.claimed(tmp_path / "run", "evaluate"):
        pass
    for word in (str(tmp_path / "run"), "distill", f"process {os.getpid()} on", "since", "--wait"):
        assert word in str(refused.value)


def test_a_folder_is_waited_for(tmp_path, holder, capsys):
    timer = threading.Timer(0.2, holder.set)
    timer.start()
    with ddengine.waiting(), claims.claimed(tmp_path / "run", "evaluate"):
        assert (tmp_path / "run" / "done").exists()
    assert "waiting for another command" in capsys.readouterr().out


def test_a_killed_process_leaves_no_claim(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "claimed\n"
        with pytest.raises(UserError) as refused, claims.claimed(tmp_path / "run", "evaluate"):
            pass
        assert f"process {process.pid} on" in str(refused.value)
        process.kill()
    assert (tmp_path / "run" / files.LOCK).exists() and not files.contents(tmp_path / "run")
    with claims.claimed(tmp_path / "run", "evaluate"):
        facts = json.loads((tmp_path / "run" / files.LOCK).read_text())
        assert facts["command"] == "evaluate" and facts["process"] == os.getpid()
    assert not (tmp_path / "run" / files.LOCK).exists()


def test_a_command_may_claim_again_what_it_has_and_a_thread_may_not(tmp_path):
    said = []

    def other():
        try:
            with claims.claimed(tmp_path, "evaluate"):
                said.append("claimed")
        except UserError as error:
            said.append(str(error))

    with claims.claimed(tmp_path, "demo"):
        with claims.claimed(tmp_path, "distill"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1 and "demo" in said[0]
    other()
    assert said[1] == "claimed"


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with claims.claimed(tmp_path / "parent" / "new", "distill"):
        pass
    (tmp_path / "empty").mkdir()
    with claims.claimed(tmp_path / "empty", "distill"):
        pass
    with claims.claimed(tmp_path / "kept", "distill"):
        (tmp_path / "kept" / "recipe.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept"]


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Who opened a lock file that its holder then removed, locks the file that is there now."""
    real, tried = fcntl.flock, []

    def flock(handle, kind):
        if not tried:
            (tmp_path / files.LOCK).unlink()  # the holder ends between opening and locking
        tried.append(handle)
        real(handle, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with claims.claimed(tmp_path, "distill"):
        assert len(tried) == 2 and (tmp_path / files.LOCK).exists()


def test_without_locks_it_is_said(tmp_path, monkeypatch, capsys):
    def flock(handle, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with claims.claimed(tmp_path, "distill"):
        assert "has no locks" in capsys.readouterr().out


def test_a_file_is_claimed(tmp_path):
    with claims.claimed_file(tmp_path / "report.html", "report"):
        assert (tmp_path / ".report.html.lock").exists()
    assert not list(tmp_path.iterdir())


DIGITS = ["dm/fashion_mnist_ipc1_small", "--data.name", "digits", "--data.limit", "200"]
SMALL = ["--model", "convnet-d1-w4-in", "--objective.real_batch", "8", "--outer.steps", "2"]
RUN = [*DIGITS, *SMALL, "--outer.evaluate_every", "0", "--out", "run"]


@pytest.mark.parametrize(
    "command",
    [
        ["distill", *RUN],
        ["distill", *RUN, "--restart"],
        ["select", *DIGITS, "--out", "run", "--init.kind", "real", "--restart"],
        ["buffer", "mtt/digits_ipc1", "--data.limit", "200", "--out", "run"],
        ["sweep", *RUN, "--grid", "ipc=1"],
    ],
    ids=lambda words: " ".join([words[0], *words[-1:]]),
)
def test_no_command_works_in_a_folder_of_another(tmp_path, monkeypatch, holder, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "kept").write_text("of the holder")
    if "--restart" in command:
        (tmp_path / "run" / "recipe.json").write_text("{}")
    else:
        (tmp_path / "run" / "kept").unlink()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert run(*command) == 2
    assert f"process {os.getpid()} on" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_no_set_or_store_is_written_into_a_folder_of_another(tmp_path, holder):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    torch.save(torch.randn(10, 1, 8, 8), tmp_path / "images_1.pt")
    recipe = find("dm/fashion_mnist_ipc1_small", data={"name": "digits", "limit": 200})
    out = tmp_path / "run"
    made = ddengine.Distilled(tiny_set(tiny_data()), {}, None)
    for write in (
        lambda: made.save(out),
        lambda: ddengine.merge([tmp_path / "nothing"], out),
        lambda: ddengine.quantise(tmp_path / "nothing", out),
        lambda: ddengine.thin(tmp_path / "nothing", out, items=1),
        lambda: ddengine.export(tmp_path / "nothing", "folders", out),
        lambda: buffers.export(tmp_path / "store", "mtt", out),
        lambda: buffers.bring_in(recipe, tmp_path / "images_1.pt", out=out),
    ):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            write()
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_every_command_that_writes_into_a_folder_can_wait(capsys):
    """As the sentence of the one that is refused says."""
    for words in (
        *(["export", "x"], ["merge", "x", "y"], ["quantise", "x"], ["thin", "x"], ["report", "x"]),
        *(["import", *DIGITS[:1]], ["select", *DIGITS[:1]]),
    ):
        assert run(*words, "--wait", "--unknown") == 2
        assert "options: --unknown" in capsys.readouterr().err, words


def test_an_evaluation_claims_the_set_that_it_writes_into(tmp_path):
    """Whether the run was named or the set in it."""
    distilled = tmp_path / "run" / "distilled"
    of = SimpleNamespace(run=tmp_path / "run", folder=distilled)
    asking = SimpleNamespace(of=of, is_told=True)
    with claims.claimed(distilled, "evaluate"), pytest.raises(UserError, match="Another command"):
        contextvars.Context().run(evaluate._told, asking, None, "rows", 0.0)


@pytest.mark.parametrize("name", ["a\0b", os.fsdecode(b"caf\xe9")])
def test_names_that_are_no_text_are_refused(tmp_path, name):
    """Before anything is done; libraries cannot open such files."""
    with pytest.raises(UserError, match="bytes that are no text"), claims.claimed(Path(name), "x"):
        raise AssertionError


def test_a_file_needs_a_name():
    for write in (claims.claimed_file(Path(""), "report"), files.replacing(Path(""))):
        with pytest.raises(UserError, match=r"'\.' is a folder, and a file is to be"), write:
            raise AssertionError


def test_stores_are_claimed_in_one_order(tmp_path, monkeypatch):
    """So that two commands that wait do not wait for each other."""
    claimed = []
    monkeypatch.setattr(
        claims, "claimed", lambda folder, command: nullcontext(claimed.append(folder.name))
    )
    places = [Place("mlp", tmp_path / name, {}) for name in ("a", "b")]
    for order in (places, places[::-1]):
        with _claimed(order):
            pass
    assert claimed == ["a", "b"] * 2


def test_a_store_that_another_command_reads_is_not_deleted(tmp_path):
    file = tmp_path / "manifest.json"
    claims.refuse_read(file)  # there is none
    file.write_text("{}")
    (tmp_path / "expert_0000.safetensors").write_text("")
    reader = os.open(file, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    place = Place("convnet", tmp_path, {})
    with pytest.raises(UserError, match=f"reads {tmp_path}"):
        _delete([place])
    assert (tmp_path / "expert_0000.safetensors").exists()
    os.close(reader)
    _delete([place])
    assert not list(tmp_path.iterdir())


def test_a_process_may_delete_what_it_reads_itself(tmp_path):
    file = tmp_path / "manifest.json"
    file.write_text("{}")
    reader = type("Reader", (), {})()
    claims.reads(reader, file)
    claims.refuse_read(file)
    handle = os.open(file, os.O_RDWR)
    with pytest.raises(BlockingIOError):  # it reads it still
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    del reader
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


def test_a_lock_that_went_with_its_folder_is_not_taken_for_ours(tmp_path):
    with claims.claimed(tmp_path / "run", "merge"):
        (tmp_path / "run" / ".lock").rename(tmp_path / "old")
        (tmp_path / "run" / ".lock").write_text("of another command")
    assert (tmp_path / "run" / ".lock").read_text() == "of another command"


def test_a_command_waits_and_the_next_one_does_not(tmp_path, monkeypatch, holder, capsys):
    """--wait is of its command alone; who waited for a folder of something else is refused then."""
    monkeypatch.chdir(tmp_path)
    say = claims.log.say

    def heard(line):
        say(line)
        if "waiting for another" in line:
            holder.set()  # however long the command took to come so far

    monkeypatch.setattr(claims.log, "say", heard)
    assert run("distill", *RUN, "--wait") == 2
    said = capsys.readouterr()
    assert "waiting for another" in said.out and "not a run of this program" in said.err
    assert not claims.waits()


def test_temporary_names_say_process_and_host(tmp_path):
    path = tmp_path / ("x" * 240 + ".png")
    first, second = files.temporary_name(path), files.temporary_name(path)
    assert first != second and str(os.getpid()) in first.name and first.suffix == ".png"
    assert os.uname().nodename[:32] in first.name and len(first.name) < 255


def test_what_a_kill_left_in_folders_below_is_removed(tmp_path):
    for name in ("work", "work/.writing-host-1-0~stage", "kept/deep"):
        (tmp_path / name).mkdir(parents=True)
    left = ("work/.writing-host-1-0~stage/.writing-host-1-1~a", "kept/deep/.writing-host-1-2~b")
    for name in (*left, "kept/deep/.writing-old-host-1-3~c", "kept/whole"):
        (tmp_path / name).write_text("")
    files.clean_below(tmp_path)
    stay = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert stay == {"kept/deep/c", "kept/whole"} and not list((tmp_path / "work").iterdir())


def test_what_was_put_aside_is_put_back(tmp_path):
    """A kill between the two renames that replace a folder leaves the old one under another name."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data").write_text("old")
    (tmp_path / "set").rename(files.temporary_name(tmp_path / "set", files.OLD))
    left = files.temporary_name(tmp_path / "set")
    left.mkdir()
    files.clean(tmp_path)
    assert (tmp_path / "set" / "data").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("distill", *RUN, "--outer.checkpoint_every", "1") == 0
    checkpoint = Path("run/checkpoint/state.safetensors")
    kept = checkpoint.read_bytes()
    other = ["--seed", "1", "--restart", "--outer.checkpoint_every", "1"]
    assert run("distill", *RUN, *other) == 0
    checkpoint.write_bytes(kept)
    for path in Path("run/distilled").iterdir():
        if path.is_file():
            path.unlink()
    capsys.readouterr()
    assert run("distill", *RUN, *[word for word in other if word != "--restart"]) == 2
    assert "the checkpoint of another run" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [".", "checkpoint", "progress"])
def test_what_a_kill_left_half_written_is_removed_when_the_run_goes_on(tmp_path, folder):
    """Names carry the process, so that no later write takes the place of what a kill left."""
    left = tmp_path / folder / ".writing-elsewhere-17-3~state.safetensors"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"cut")
    runs.begin(tmp_path, find("dm/digits_ipc1"), {})
    assert not left.exists()


def test_who_claims_a_folder_or_a_file_removes_what_a_kill_left_of_it(tmp_path):
    """But not what this command is writing, and of a file not what is beside it."""
    page, other = tmp_path / "page.html", tmp_path / "other.html"
    left = [files.temporary_name(path) for path in (page, other)]
    for path in left:
        path.touch()
    with claims.claimed_file(page, "report"):
        assert [path.exists() for path in left] == [False, True]
    files.lock_of(other).touch()
    with claims.claimed(tmp_path, "evaluate"):
        assert left[1].exists()  # somebody may be writing it
    files.lock_of(other).unlink()
    with claims.claimed(tmp_path, "evaluate"):
        assert not left[1].exists()
        left[1].touch()
        with claims.claimed(tmp_path, "again"):
            assert left[1].exists()


def test_what_another_command_removes_at_the_same_time_is_no_error(tmp_path, monkeypatch):
    """One that tries whether a folder can be written, and one that cleans it."""
    gone = files.temporary_name(tmp_path / "probe")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda *_: iter([gone]))
        files.clean(tmp_path)
    monkeypatch.setattr(Path, "touch", lambda path: None)
    assert files.make_folder(tmp_path) == tmp_path
