"""Files as strangers may make them are read, or refused in a sentence; nothing else comes of them.

The long run is `make test-fuzz` (benchmarks/faults/strangers.py).
"""

import json
import os
import pickle
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("hypothesis")

from helpers import CPU, run, tiny_data, tiny_set
from hypothesis import HealthCheck, given, settings

from buffers.exchange import load_pt
from ddengine import contents, contents_of_uses, loop
from ddengine.api import evaluate
from ddengine.api.compare import runs_in
from ddengine.api.results import opened
from ddengine.artefact import folder as folders
from ddengine.artefact import listing
from ddengine.evaluation.trainings import Trained
from ddengine.models import build_model
from ddengine.objective import Objective
from ddengine.pages.commands import commands
from ddengine.pages.reading import read
from ddengine.recipe import OuterConfig
from ddengine.sets.codec import MultiFormation
from ddengine.system import claims, files, log, typed
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.system.parsing import DEEPEST, parsed
from ddengine.system.rng import generator
from ddengine.system.visible import visible
from synth.catalogue import find

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks" / "faults"))

import strange  # noqa: E402
import used  # noqa: E402
from strange import OfHeader, OfJson, OfKind, OfPickle, OfTensors, OfText, Trial  # noqa: E402

OF_RUNS = [name for name in contents.KINDS if name not in contents_of_uses.KINDS]
ROUNDS = {"rounds": 90_000, "points": 5, "repeats": 2}
ROW = {"set": "distilled", "model": "mlp", "accuracy_mean": 0.5}  # of an evaluation
META, DATA = "run/distilled/meta.json", "run/distilled/data.safetensors"
CHECKPOINT = "unfinished/checkpoint/state.safetensors"
# what once ended in a traceback, without an end, or with a terminal that obeyed a file
ONCE = [
    Trial(CHECKPOINT, OfTensors(0.7, "flat"), "distill"),
    Trial(CHECKPOINT, OfKind("folder above"), "distill"),
    Trial(DATA, OfTensors(0.3, "no width"), "merge"),
    Trial(DATA, OfTensors(0.3, "empty"), "report"),
    Trial(DATA, OfTensors(0.3, "whole"), "evaluate"),
    Trial(META, OfKind("pipe"), "load.py"),
    Trial(META, OfJson(0.0, "rename", "\x1b[2J\x07"), "inspect"),
    Trial(META, OfText(0.5, "[" * 100_000), "export"),
    Trial(META, OfText(0.5, '"\\ud800"'), "verify"),
    Trial(META, OfText(0.1, "1e400"), "compare"),
    Trial("soft/distilled/labels.safetensors", OfTensors(0.1, "deeper"), "load.py"),
    Trial("run/evaluation.json", OfText(0.5, "9" * 6000), "report"),
    Trial("store/manifest.json", OfKind("device"), "inspect"),
    Trial("store/expert_0001.safetensors", OfKind("pipe"), "distill"),
    Trial("store/expert_0001.safetensors", OfHeader(0.5, "put", [2**62, 2**62]), "export"),
]
# files of uses and of other programs, one of each kind of reader
OF_USES = [
    Trial("pruned/prune.json", OfJson(0.5, "remove", None), "again"),
    Trial("bought/labels.json", OfText(0.5, "1e400"), "report"),
    Trial("learned/continual.json", OfJson(0.02, "put", []), "again"),
    Trial("run/transfer.json", OfKind("pipe"), "inspect"),
    Trial("foreign/data_best.pt", OfPickle(0.3, "sparse", None), "import"),
    Trial("foreign/buffers/replay_buffer_0.pt", OfPickle(0.5, "complex", None), "import"),
]


@pytest.fixture(scope="module")
def sound():
    """A store, runs and sets that are as they were written."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        strange.made(Path(name) / "sound")
        yield Path(name) / "sound"


@pytest.mark.parametrize("trial", ONCE + OF_USES, ids=lambda trial: f"{trial.file}-{trial.reader}")
def test_what_once_failed(sound, tmp_path, trial):
    """A sentence, or what was asked for."""
    assert strange.tried(trial, sound, tmp_path / "place") in ("done", "said")


def test_whatever_a_stranger_changes(sound, tmp_path):
    """The same draws every time."""

    @settings(
        max_examples=20,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    @given(strange.trials())
    def one(trial: Trial) -> None:
        assert strange.tried(trial, sound, tmp_path / "place") in ("done", "said")

    one()


def test_readers_read_what_is_sound(sound, tmp_path):
    """So that what is refused above is refused for what was changed."""
    for file in (META, "store/manifest.json"):
        for name, read_it in strange.FILES[file].items():
            if name == "distill":
                continue
            place = tmp_path / f"{Path(file).stem}-{name}"
            strange.shutil.copytree(sound, place)
            assert strange.come_of(read_it, place) == "done", name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "deep"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "deep"),
        ('{"a": 1, "a": 2}', '"a" twice'),
        ("1e400", "too large"),
        ("9" * 5000, "too large"),
        ('"\\ud800"', "half a character"),
        (b'"\xff"', "utf-8"),
    ],
)
def test_json_that_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parsed(text)


def test_whole_numbers_of_more_than_64_bits_are_read_as_other_numbers():
    """As evaluations of large networks count their FLOP."""
    assert parsed(str(2**63 - 1)) == 2**63 - 1
    value = parsed(str(26 * 10**18))
    assert isinstance(value, float) and value == 2.6e19


def test_json_that_is_read():
    """Numbers that are none, as older versions wrote them, are null; depth has room."""
    assert parsed('{"a": NaN, "b": [-Infinity, 1.5, 7, "\\ud83d\\ude00"]}') == {
        "a": None,
        "b": [None, 1.5, 7, "\N{GRINNING FACE}"],
    }
    assert parsed("[" * DEEPEST + "]" * DEEPEST)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("meta.json", {"space": "sound"}, 'space is "sound", and must be "pixel" or "model"'),
        ("meta.json", {"format": "3"}, 'format is "3", and must be a whole number'),
        ("meta.json", {"format": -1}, "format is -1, and must be a whole number of at least 0"),
        ("meta.json", {"class_names": "cat"}, 'class_names is "cat", and must be a list'),
        ("meta.json", {"codec": {"factor": 2}}, "it lacks codec.type"),
        ("meta.json", {"target_kind": None}, "target_kind is null"),
        ("meta.json", [1], "it is a list of 1, and must be an object"),
        ("recipe.json", {"recipe": {"ipc": True}}, "recipe.ipc is true"),
        ("recipe.json", {"recipe": {"data": {"name": "digits", "limit": -2}}}, "data.limit"),
        ("evaluation.json", {"rows": [ROW | {"n": 1.5}]}, r"rows\[0\].n is 1.5"),
        ("evaluation.json", {"rows": [{"set": "a"}]}, r"it lacks rows\[0\].accuracy_mean"),
        ("evaluation.json", {"rows": [ROW | {"accuracy_mean": 1.5}]}, "at most 1"),
        ("evaluation.json", {"rows": [ROW | {"ci95": [0.6, 0.4]}]}, "ends at 0.4, below 0.6"),
        ("evaluation.json", {"rows": [ROW | {"n": 3, "accuracies": []}]}, "are 0, and n and"),
        ("manifest.json", {"epochs": [0, "1"]}, r'epochs\[1\] is "1"'),
        ("choices.json", {"objectives": {}}, "objectives is an object of nothing"),
        ("choices.json", {"objectives": [], "compile": "off"}, 'compile is "off", and must be'),
        (".digests.json", {"files": {"a": 3}}, "files.a is 3, and must be text"),
        ("scores.json", {"scores": [{"model": "mlp"}]}, r"it lacks scores\[0\].scores"),
        ("ranking.json", {"sets": {}}, "sets is an object of nothing, and must be a list"),
        ("privacy.json", used.privacy() | {"train": -1}, "train is -1, and must be"),
        (
            "privacy.json",
            used.privacy() | {"neighbours": {"pixels": {}}},
            "it lacks neighbours.pix",
        ),
        (
            "transfer.json",
            used.transferred() | {"models": ["x"]},
            r"rows\[0\].model is none of mod",
        ),
        ("transfer.json", used.transferred() | {"rows": []}, "rows holds nothing"),
        ("prune.json", used.pruned() | {"teachers": []}, "teachers holds nothing"),
        (
            "labels.json",
            used.bought() | {"config": ROUNDS},
            r"rounds are 3, and config.rounds 90000",
        ),
        ("continual.json", used.learned() | {"classes_seen": [5]}, "are 2, and classes_seen 1"),
    ],
)
def test_fields_of_other_types(tmp_path, name, content, words):
    """One sentence with file, field, what it holds and what to do."""
    path = tmp_path / name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as caught:
        contents.read_json(path)
    assert str(path) in str(caught.value) and "; " in str(caught.value)


def test_a_number_is_no_truth_value():
    typed.check({"a": [1, 2.5], "b": None}, dict[str, list[float] | None])
    for value, hint in ((1, bool), (True, int), (True, float), ("1", float), (1.0, int)):
        with pytest.raises(typed.Misfit):
            typed.check(value, hint)


def test_lines_that_are_no_events_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2}\n{"step": "2"}\n[\n{"step": 3, "loss": "x"}\n{"a": 1}\n'
    )
    assert contents.events(path) == [{"step": 1, "loss": 2}]
    os.remove(path)
    os.mkfifo(path)
    assert contents.events(path) == []


def test_what_an_unfinished_evaluation_remembers_is_checked(tmp_path):
    """Where it is first looked at."""
    sound = {"accuracies": [0.5, None], "right": [[3, 1], [0, 0]], "seconds": 0.5}
    for wrong in ([], {"seconds": 1}, sound | {"accuracies": ["a"]}, sound | {"right": [3]}):
        path = tmp_path / "evaluation.partial.jsonl"
        path.unlink(missing_ok=True)
        for key, value in (("final/a", sound), ("final/b", wrong)):
            Memo(path, "it").put(key, value)
        memo = Memo(path, "it")
        assert memo.get("final/a", Trained) == sound and memo.get("final/c", Trained) is None
        with pytest.raises(UserError, match=r"partial.jsonl cannot be read \(.*; delete it"):
            memo.get("final/b", Trained)


def test_control_characters_are_shown(capsys):
    """By everything that speaks to a terminal; what people write stays."""
    assert visible("a\x1b[2J\u202eb\r\n\tKäfer") == "a\\x1b[2J\\u202eb\\r\n\tKäfer"
    log.say("escape \x1b[2J")
    log.complain("escape \x1b]0;title\x07")
    said = capsys.readouterr()
    assert said.out == "escape \\x1b[2J\n" and said.err == "escape \\x1b]0;title\\x07\n"


def test_links_out_of_a_folder_are_refused(tmp_path):
    """A folder, a file that lines are added to, a lock; nothing outside is touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    for name, target in (("checkpoint", outside), ("metrics.jsonl", outside / "file")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).symlink_to(target)
        with pytest.raises(UserError, match="symbolic link"), claims.claimed(folder, "distill"):
            raise AssertionError
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / files.LOCK).symlink_to(outside / "file")
    with pytest.raises(UserError, match="remove it"), claims.claimed(tmp_path / "locked", "x"):
        raise AssertionError
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / files.LOCK)
    with pytest.raises(UserError, match="remove it"), claims.claimed(tmp_path / "piped", "x"):
        raise AssertionError
    assert (outside / "file").read_text() == "mine" and len(list(outside.iterdir())) == 1


def test_links_that_lead_in_a_circle_are_said(tmp_path):
    """Where a folder is claimed, and where a list names one."""
    (tmp_path / "circle").symlink_to("circle")
    with (
        pytest.raises(UserError, match="cannot be written"),
        claims.claimed(tmp_path / "circle", ""),
    ):
        raise AssertionError
    for name, words in (("circle", "is missing"), ("a\0b", "lies elsewhere")):
        files.write_json(tmp_path / ".digests.json", {"files": {name: "0"}})
        with pytest.raises(UserError, match=words):
            raise UserError(dict(listing.wrong(tmp_path / ".digests.json")).popitem()[1])


@pytest.mark.parametrize("name", ["../../other", "/etc", "a/../../b"])
def test_a_sweep_has_its_own_runs_alone(tmp_path, name):
    """A page of it would show what nobody meant to give away."""
    files.write_json(tmp_path / "sweep.json", {"of": {}, "runs": {name: {}}})
    with pytest.raises(UserError, match="lies elsewhere"):
        runs_in(tmp_path)


def test_a_file_that_is_a_link_is_replaced(tmp_path):
    """And what it points to stays as it is."""
    (tmp_path / "other").write_text("mine")
    (tmp_path / "meta.json").symlink_to(tmp_path / "other")
    files.write_json(tmp_path / "meta.json", {"a": 1})
    assert (tmp_path / "other").read_text() == "mine"
    assert not (tmp_path / "meta.json").is_symlink()


def test_more_memory_than_there_is(tmp_path):
    """A codec's factor, a network's width and images' size say what they would take, and stop."""
    data = tiny_data()
    folders.save(tiny_set(data), tmp_path / "set", {})
    meta = files.read_json(tmp_path / "set" / "meta.json")
    codec = {"type": MultiFormation.__name__, "factor": 100_000}
    files.write_json(tmp_path / "set" / "meta.json", meta | {"codec": codec})
    for do in (
        lambda: folders.load(tmp_path / "set", CPU),
        lambda: build_model("convnet-d3-w99999999-in", (3, 32, 32), 10, generator(0)),
    ):
        with pytest.raises(UserError, match=r"needs [\d,.]+ GB of memory, and [\d,.]+ GB are at"):
            do()


def test_a_tensor_that_claims_more_than_its_file(tmp_path):
    """An expanded tensor is small in a file, and as large as it likes outside."""
    path = tmp_path / "images.pt"
    torch.save(torch.zeros(1).expand(10**7, 3, 512, 512), path)
    with pytest.raises(UserError, match="GB of memory"):
        load_pt(path)


def test_a_pickle_runs_nothing(tmp_path):
    """Whatever it is called and whoever reads it."""
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {shlex.quote(str(mark))}",)

    for name in ("meta.json", "data.safetensors", "images.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    for words in (["inspect", str(tmp_path)], ["verify", str(tmp_path)]):
        assert run(*words) == 2
    with pytest.raises(UserError):
        load_pt(tmp_path / "images.pt")
    assert not mark.exists()


def test_a_set_names_no_code(sound, tmp_path, capsys):
    """A network of a Python file is one that the person names, never one that a set asks for."""
    place = tmp_path / "place"
    strange.shutil.copytree(sound, place)
    (place / "evil.py").write_text("raise SystemExit(99)")
    path = place / META
    meta = files.read_json(path)
    meta["recipe"]["evaluation"]["models"] = [f"{place}/evil.py:net"]
    files.write_json(path, meta)
    asked = evaluate.protocol_of(opened(place / "run"))
    assert asked.models == () and "--models names it" in capsys.readouterr().out
    meta["recipe"]["model"] = f"{place}/evil.py:net"
    files.write_json(path, meta)
    with pytest.raises(UserError, match="file of code"):
        opened(place / "run")


def test_the_page_shows_no_words_of_a_file(sound, tmp_path):
    """Its commands are this program's, their values those of the recipe."""
    place = tmp_path / "place"
    strange.shutil.copytree(sound, place)
    path = place / "run" / "recipe.json"
    content = files.read_json(path)
    said = content["command"]
    told = commands(read(place / "run"))["text"]
    assert told.count("\n") >= 1 and " --outer.steps 4 " in told.replace("\\\n   ", "")
    for words in (
        ["sh", "-c", "rm -rf ~"],
        ["python", "run.py", "rm", "-rf"],
        [*said[:3], "$(rm -rf ~)", "--outer.steps", "9; rm", "--out", "/etc/cron.d/x", "--rm=-rf"],
    ):
        files.write_json(path, content | {"command": words})
        text = commands(read(place / "run"))["text"]
        assert "rm" not in text.replace("--targets.terms", "") and "/etc" not in text
        assert "run.py distill mtt/digits_ipc1" in text


def test_a_checkpoint_of_other_tensors(tmp_path):
    """The state of another set is told from that of this one."""
    syn = tiny_set(tiny_data())
    state = loop.State({"images": torch.zeros(3, 4)}, {}, {}, {}, step=1)
    loop.save_checkpoint(tmp_path / "state.safetensors", state, 0)
    read_state, _ = loop.load_checkpoint(tmp_path / "state.safetensors", CPU)
    with pytest.raises(UserError, match="names, shapes and types"):
        loop._check_state(tmp_path, read_state, syn, OuterConfig(steps=4, optim={}))


@dataclass(frozen=True)
class Keeps(Objective):
    """Keeps a number and a vector between steps."""

    def init(self, rng):
        return {"calls": torch.zeros((), dtype=torch.int64), "theta": torch.zeros(3)}

    def losses(self, syn, state, step, rng):
        yield syn.tensors["images"].square().sum()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"theta": torch.zeros(4)}, r"'theta', which .* is \(4,\) float32 there, and must be \(3,"),
        ({"calls": torch.zeros(())}, r"'calls', which .* is \(\) float32 there"),
        ({"theta": None}, "it lacks 'theta'"),
        ({"more": torch.zeros(1)}, "it holds 'more', which the method does not keep"),
    ],
)
def test_a_checkpoint_whose_method_keeps_something_else(tmp_path, change, words):
    syn = tiny_set(tiny_data())
    kept = Keeps().init(generator(0)) | change
    kept = {name: tensor for name, tensor in kept.items() if tensor is not None}
    state = loop.State(dict(syn.tensors), {}, {}, kept, step=1)
    (tmp_path / "checkpoint").mkdir()
    loop.save_checkpoint(tmp_path / loop.CHECKPOINT, state, 0)
    (tmp_path / "metrics.jsonl").touch()
    config = OuterConfig(steps=1, optim={}, evaluate_every=0)
    method = find("dm/cifar10_ipc1").objective  # whose state is as it was at first
    if words is None:
        loop.distill(syn, Keeps(), config, tmp_path, seed=0, kept=method.kept)
    else:
        with pytest.raises(UserError, match=words) as refused:
            loop.distill(syn, Keeps(), config, tmp_path, seed=0, kept=method.kept)
        assert "version of the program or plugin that wrote it" in str(refused.value)
        assert "--restart" in str(refused.value)
        assert not any(word in str(refused.value) for word in ("damaged", "delete"))


def test_names_do_not_move_a_page_or_a_card(sound, tmp_path, capsys):
    """Names of classes and networks are shown with their control characters, and obey nobody."""
    place = tmp_path / "place"
    strange.shutil.copytree(sound, place)
    path = place / META
    meta = files.read_json(path)
    name = "cat\x1b[2J\u202e<script>|"
    meta["class_names"][0] = name
    meta["recipe"] |= {"name": "--out=/tmp/x", "note": name, "model": f"mlp{name}"}
    files.write_json(path, meta)
    (place / "run" / "evaluation.json").unlink()
    syn, read_meta = folders.load(path.parent, CPU)
    folders.save(syn, place / "again", read_meta)
    assert run("report", str(place / "run"), "--out", str(place / "page.html")) == 0
    assert run("inspect", str(place / "run")) == 0
    card, page = (place / "again" / "README.md").read_text(), (place / "page.html").read_text()
    for text in (card, page, capsys.readouterr().out):
        assert "cat\\x1b" in text.replace("\\\\", "\\") and "\x1b" not in text
        assert "\u202e" not in text
    assert "<script>|" not in page and "distill --out=" not in page


@pytest.mark.parametrize("name", [*OF_RUNS, "prune.recipe.json"])
def test_fields_of_one_file_in_another(tmp_path, name):
    """What a file does not have is nothing that its reader looks at."""
    others = {"rows": 5, "recipe": "x", "students": "x", "protocol": "x"}
    kind = contents.KINDS.get(name, contents.RecipeFile)
    known = kind.__annotations__ | {}
    given = {key: value for key, value in others.items() if key not in known}
    needed = {"choices.json": {"objectives": []}, ".digests.json": {"files": {}}}.get(name, {})
    (tmp_path / name).write_text(json.dumps(given | needed))
    assert given.items() <= contents.read_json(tmp_path / name).items()
