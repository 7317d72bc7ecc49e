"""Files as strangers may make them: what is changed in them, and who reads them afterwards.

`made` writes a folder with an expert store, two runs and their sets, what uses of them wrote
(`used.py`) and files of other programs. A `Change` spoils one of its
files, and a reader, which is a command in this process or the load.py of a set, is asked to read
what has become of it. It must do its work or say a sentence: `come_of` tells. Digests are made
anew, so that readers see what is behind them, as a stranger who means it would do.
"""

import faulthandler
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import used
from hypothesis import strategies as st
from torch import Tensor

from ddengine import commands
from ddengine.artefact import folder as folders
from ddengine.evaluation import evaluate
from ddengine.pages import figures
from ddengine.system import digests, files

SECONDS = 10  # of computation that a reader may take
WAITING = 60  # seconds in which a reader that computes less than STILL waits for something
STILL = 0.01  # seconds; a busy machine gives more
ENDLESS = 1800  # seconds of waiting that no signal ends, such as Rust's for a pipe
MODEL = "convnet-d1-w4-in"
DIGITS = ("--data.name", "digits", "--data.limit", "200", "--model", MODEL)
SMALL = (
    *("--buffer.num_experts", "2", "--buffer.epochs", "3", "--objective.window.high", "2"),
    *("--objective.expert_epochs", "1", "--objective.inner_steps", "2", "--outer.steps", "4"),
    *("--outer.checkpoint_every", "2", "--outer.evaluate_every", "0", "--outer.picture_every", "0"),
)
EXPERTS = ("mtt/digits_ipc1", *DIGITS, *SMALL)
CPU = torch.device("cpu")


class Reached(Exception):
    """Everything was read, and a training would begin."""


class Hung(BaseException):
    """A reader took too long."""


# What lies there.


def made(place: Path) -> None:
    """A store, a run that is finished and evaluated, another one, and one that is not finished."""
    with patch.object(figures, "real_vs_distilled", lambda path, *_: path.touch()):
        _make(place)


def _make(place: Path) -> None:
    commands.main(["buffer", *EXPERTS, "--out", str(place / "store")])
    told = ("distill", *EXPERTS, "--experts", str(place / "store"), "--force")
    assert commands.main([*told, "--out", str(place / "run")]) == 0
    files.write_json(place / "run" / "evaluation.json", _evaluation(place / "run"))
    shutil.copytree(place / "run", place / "other")
    syn, meta = folders.load(place / "run" / "distilled", CPU)
    labels = torch.linspace(-1, 1, 10 * len(syn.classes)).view(-1, 10)
    folders.save(syn.with_labels(labels, top=3), place / "soft" / "distilled", meta)
    shutil.copy(place / "run" / "recipe.json", place / "soft" / "recipe.json")
    for name in ("a", "b"):
        few = shutil.ignore_patterns("images", "progress", "checkpoint", "*.parquet")
        shutil.copytree(place / "run", place / "swept" / "runs" / name, ignore=few)
    files.write_json(place / "swept" / "sweep.json", {"of": {}, "runs": {"a": {}, "b": {}}})
    shutil.copytree(place / "run", place / "unfinished")
    shutil.rmtree(place / "unfinished" / "distilled")
    (place / "unfinished" / "evaluation.json").unlink()
    used.made(place, DIGITS)
    told = ("export", str(place / "store"), "--out", str(place / "foreign" / "buffers"))
    assert commands.main(list(told)) == 0


def _evaluation(run: Path) -> dict[str, Any]:
    """What an evaluation of a run would say; networks would take minutes."""
    meta = files.read_json(run / "distilled" / "meta.json")
    names = meta["class_names"]
    rows = []
    for name, accuracy in (("distilled", 0.5), ("random", 0.4), ("full", None)):
        networks = [{"seed": i, "draw": 0, "accuracy": accuracy} for i in range(3)]
        none = accuracy is None
        row: dict[str, Any] = {
            **{"set": name, "model": MODEL, "images": 10, "bytes": 2640, "lr": 0.01, "steps": 9},
            "ledger": {"images": 2560, "compensators": 0, "labels": 80, "other": 0},
            **{"accuracy_mean": accuracy, "accuracy_std": None if none else 0.01},
            **{"ci95": None if none else [0.4, 0.6]},
            **{
                "n": 0 if none else 3,
                "diverged": 3 if none else 0,
                "seconds": 1.5,
                "accuracies": networks,
            },
            **{"balanced_accuracy_mean": accuracy, "balanced_accuracy_std": None},
            **{"per_class": dict.fromkeys(names, accuracy), "optimiser": "sgd"},
            **{"examples_seen": 90, "training_flops": 1000},
        }
        rows.append(row)
    said = {key: meta[key] for key in ("set_digest", "machine", "versions", "commit")}
    return said | {
        **{"format": 3, "protocol": meta["recipe"]["evaluation"], "rows": rows, "seed": 0},
        **{"precision": "fp32", "seconds": 3.5, "num_images": {"train": 180, "test": 359}},
        "test_images_per_class": dict.fromkeys(names, 36),
        "interval": "Student's t on the logit scale",
        "command": ["python", "run.py", "evaluate", "run"],
    }


# Who reads it. A reader gets the folder with everything, and what it writes lies beside that.

Reader = Callable[[Path], int]


def command(*words: str) -> Reader:
    """A command, in whose words {} is the folder."""

    def read(place: Path) -> int:
        return commands.main([word.format(place) for word in words])

    return read


def loaded(name: str) -> Reader:
    """The load.py of a set, which must say what is wrong as a ValueError or an OSError."""

    def read(place: Path) -> int:
        path = place / name / "distilled" / "load.py"
        spec = importlib.util.spec_from_file_location("load", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            module.load()
        except (ValueError, OSError) as error:
            print(repr(str(error)))
            return 2
        return 0

    return read


def of_set(name: str) -> dict[str, Reader]:
    """Who reads a run with a set."""
    out = "{}/out"
    run = f"{{}}/{name}"
    return {
        "inspect": command("inspect", run),
        "verify": command("verify", run),
        "report": command("report", run, "--out", f"{out}.html"),
        "export": command("export", run, "--out", out),
        "merge": command("merge", run, "{}/other", "--out", out),
        "compare": command("compare", run, "{}/other"),
        "evaluate": command("evaluate", run, "--out", out),
        "evaluate again": command("evaluate", run),
        "load.py": loaded(name),
    }


OF_STORE = {
    "inspect": command("inspect", "{}/store"),
    "verify": command("verify", "{}/store"),
    "export": command("export", "{}/store", "--out", "{}/out"),
    "distill": command(
        "distill", *EXPERTS, "--experts", "{}/store", "--force", "--out", "{}/unfinished"
    ),
}
OF_RUN = {
    "inspect": command("inspect", "{}/unfinished"),
    "verify": command("verify", "{}/unfinished"),
    "report": command("report", "{}/unfinished", "--out", "{}/out.html"),
    "distill": OF_STORE["distill"],
}


def of_use(name: str, *words: str) -> dict[str, Reader]:
    """Who reads a file that a use has written into a folder; the words are those of its command."""
    readers = {
        "verify": command("verify", f"{{}}/{name}"),
        "report": command("report", f"{{}}/{name}", "--out", "{}/out.html"),
    }
    return readers | ({"again": command(*words)} if words else {})


def imported(name: str, *words: str) -> dict[str, Reader]:
    """Who reads a file of another program."""
    told = ("--files", f"{{}}/foreign/{name}", *words, "--out", "{}/out")
    return {"import": command("import", *EXPERTS, *told)}


# the files, and who reads each
FILES: Mapping[str, Mapping[str, Reader]] = {
    "run/distilled/meta.json": of_set("run"),
    "run/distilled/data.safetensors": of_set("run"),
    "run/distilled/.digests.json": {
        name: read for name, read in of_set("run").items() if name in ("verify", "export")
    },
    "run/evaluation.json": of_set("run"),
    "run/recipe.json": of_set("run"),
    "run/metrics.jsonl": of_set("run"),
    "run/samples.safetensors": of_set("run"),
    "swept/sweep.json": {"compare": command("compare", "{}/swept")},
    "soft/distilled/meta.json": of_set("soft"),
    "soft/distilled/labels.safetensors": of_set("soft"),
    "store/manifest.json": OF_STORE,
    "store/preprocess.safetensors": OF_STORE,
    "store/expert_0001.safetensors": OF_STORE,
    "unfinished/recipe.json": OF_RUN,
    "unfinished/choices.json": OF_RUN,
    "unfinished/metrics.jsonl": OF_RUN,
    "unfinished/checkpoint/state.safetensors": OF_RUN,
    "run/scores.json": of_use("run"),
    "run/ranking.json": of_use("run"),
    "run/privacy.json": of_use("run"),
    "run/transfer.json": of_use("run", *used.of_set())
    | {"inspect": command("inspect", "{}/run/transfer.json")},
    "pruned/prune.json": of_use("pruned", *used.of_dataset("prune", DIGITS)),
    "pruned/prune.recipe.json": of_use("pruned", *used.of_dataset("prune", DIGITS)),
    "bought/labels.json": of_use("bought", *used.of_dataset("buy_labels", DIGITS)),
    "learned/continual.json": of_use("learned", *used.of_dataset("continual", DIGITS)),
    "foreign/images_best.pt": imported("images_best.pt"),
    "foreign/labels_best.pt": imported("images_best.pt"),
    "foreign/lr_best.pt": imported("images_best.pt"),
    "foreign/data_best.pt": imported("data_best.pt"),
    "foreign/res.pt": imported("res.pt"),
    "foreign/buffers/replay_buffer_0.pt": imported("buffers/replay_buffer_0.pt"),
}


def come_of(read: Reader, place: Path) -> str:
    """What comes of a reader: done, said, or what is wrong (`fault: ...`, `hang`)."""
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said), limited(), _no_training():
            code = read(place)
    except Reached:
        return "done"
    except Hung:
        return "hang"
    except BaseException as error:
        return f"fault: {kind_of(error)}"
    if code not in (0, 2):
        return f"fault: exit code {code}"
    if code == 2 and len(said.getvalue().strip().splitlines()[-1:]) != 1:
        return "fault: nothing was said"
    if any(not (c.isprintable() or c == "\n") for c in said.getvalue()):
        return "fault: control characters were printed"
    return "said" if code else "done"


def kind_of(error: BaseException) -> str:
    """What an error is, and which lines of the program it came through."""
    through = []
    for frame in traceback.extract_tb(error.__traceback__):
        if any(f"/{room}/" in frame.filename for room in ("ddengine", "buffers", "synth")):
            through.append(f"{Path(frame.filename).name}:{frame.lineno}")
    return f"{type(error).__name__} {' '.join(through[-4:])} ({str(error)[:80]})"


@contextmanager
def limited() -> Iterator[None]:
    """Within the block so many seconds of computation, or of nothing but waiting, raise Hung."""
    computed = [time.process_time()]

    def hung(*_: Any) -> None:
        raise Hung

    def look(*_: Any) -> None:
        computed.append(time.process_time())
        if computed[-1] - computed[-2] < STILL:
            raise Hung

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    # the program says where it waits, and ends
    faulthandler.dump_traceback_later(ENDLESS, exit=True, file=sys.__stderr__)
    before = {number: signal.getsignal(number) for number in timers}
    signal.signal(signal.SIGPROF, hung)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING, WAITING)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextmanager
def _no_training() -> Iterator[None]:
    """Within the block evaluations and uses end where their first network would be trained."""

    def reached(*_: Any, **__: Any) -> Any:
        raise Reached

    with patch.object(evaluate, "_rows", reached), used.without_work(reached):
        yield


# What is changed. Each strategy gives a function that spoils one file.

Change = Callable[[Path], None]

VALUES = (
    *(None, True, False, 0, 1, -1, 3, 10**6, 10**12, 2**62, 0.5, -0.5, 1e-300, 1e308),
    *("", "x", "inf", "nan", "\x1b[2J\x07", "\u202eevil", "../../outside", "/etc/passwd"),
    *("a" * 9000, "<script>alert(1)</script>", "rm -rf ~; echo", "evil.py:net", "|x\n- y"),
    *("convnet-d3-w99999999-in", "Identity", "MultiFormation", "logits", "decoded", "pixel"),
    *([], [[]], {}, [None], ["x"], [0, 1], [1e9], {"type": "Nope"}, {"type": "Identity"}),
    *({"type": "MultiFormation", "factor": 100000}, {"a": {"b": []}}),
)


def nodes(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all parts of JSON data."""
    if path:
        yield path
    parts: Any = ()
    if isinstance(content, dict):
        parts = content.items()
    elif isinstance(content, list):
        parts = enumerate(content[:5])
    for key, part in parts:
        yield from nodes(part, (*path, key))


def changed(content: Any, place: float, action: str, value: Any) -> Any:
    """JSON data with one part in another form; `place` is a fraction of its parts."""
    places = list(nodes(content))
    if not places:
        return value
    *above, key = places[int(place * len(places))]
    parent = content
    for step in above:
        parent = parent[step]
    if action == "remove":
        del parent[key]
    elif action == "wrap":
        parent[key] = [parent[key]]
    elif action == "rename" and isinstance(parent, dict):
        parent[str(value)[:80]] = parent.pop(key)
    elif action == "scale" and isinstance(parent[key], int | float):
        parent[key] = parent[key] * -7
    else:
        parent[key] = value
    return content


@dataclass(frozen=True)
class OfJson:
    """A part of a JSON file, or of a line of one, becomes another."""

    place: float
    action: str
    value: Any

    def __call__(self, path: Path) -> None:
        """Write the file anew, with a digest that fits."""
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = int(self.place * len(lines) * 7) % len(lines)
        content = changed(json.loads(lines[number]), self.place, self.action, self.value)
        if path.suffix == ".jsonl":
            lines[number] = json.dumps(content)
            path.write_text("\n".join(lines) + "\n")
        elif isinstance(content, dict):
            content.pop(digests.KEY, None)
            content[digests.KEY] = digests.of_facts(content)
            path.write_text(json.dumps(content))
        else:
            path.write_text(json.dumps(content))


@dataclass(frozen=True)
class OfText:
    """A JSON file gets something that JSON does not have, or too much of it, at a comma."""

    place: float
    text: str

    def __call__(self, path: Path) -> None:
        """Put it behind a comma, in place of the value there where one fits."""
        content = path.read_bytes()
        commas = [i for i, letter in enumerate(content) if letter == ord(",")]
        at = commas[int(self.place * len(commas))]
        put = self.text.encode("utf-8", "surrogatepass")
        path.write_bytes(content[: at + 1] + b'"new": ' + put + b"," + content[at + 1 :])


TEXTS = (
    *("NaN", "-Infinity", "1e400", "9" * 30, "9" * 6000, '"\\ud800"', '"\\u0000"', "[" * 100_000),
    *('{"a":' * 100_000, "[" * 500 + "]" * 500, '"' + "x" * 10**6 + '"', "1, 2", "}", '"'),
    *("0x10", "True", '{"a": 1, "a": 2}', "[1,]", '"\udc80"'),
)


@dataclass(frozen=True)
class OfBytes:
    """Some bytes of a file are others, or the file ends there."""

    place: float
    content: bytes
    cut: bool

    def __call__(self, path: Path) -> None:
        """Overwrite them."""
        before = path.read_bytes()
        at = int(self.place * len(before))
        after = b"" if self.cut else before[at + len(self.content) :]
        path.write_bytes(before[:at] + self.content + after)


@dataclass(frozen=True)
class OfKind:
    """Something else lies where a file should."""

    kind: str

    def __call__(self, path: Path) -> None:
        """Put it there."""
        if self.kind == "folder above":
            shutil.rmtree(path.parent)
            path.parent.write_bytes(b"")
            return
        path.unlink()
        if self.kind == "folder":
            path.mkdir()
        elif self.kind == "pipe":
            os.mkfifo(path)
        elif self.kind == "empty":
            path.touch()
        elif self.kind == "loop":
            path.symlink_to(path.name)
        elif self.kind == "device":
            path.symlink_to("/dev/zero")


KINDS = ("folder", "pipe", "empty", "loop", "device", "missing", "folder above")


@dataclass(frozen=True)
class OfHeader:
    """The header of a safetensors file says something else of its tensors; digests fit."""

    place: float
    action: str
    value: Any

    def __call__(self, path: Path) -> None:
        """Write header and bytes anew."""
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = changed(json.loads(content[8:start]), self.place, self.action, self.value)
        data = content[start:]
        if isinstance(header, dict) and isinstance(header.get(digests.METADATA, {}), dict):
            stated = header.setdefault(digests.METADATA, {})
            stated.pop(digests.KEY, None)
            stated[digests.KEY] = digests.of_header(header, [data])
            told_beside(path, stated[digests.KEY])
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)


OF_HEADERS = (
    *VALUES,
    *([0, 2**50], [-1, 4], [2**62, 2**62], [1, 1, 1, 1, 1, 1, 1, 1], [0], "F64", "I8", "BOOL"),
    *("F8_E4M3", "C64", "U64", "BF16", "F16"),
)


@dataclass(frozen=True)
class OfTensors:
    """A tensor of a safetensors file is another one; digests fit."""

    place: float
    action: str

    def __call__(self, path: Path) -> None:
        """Write the file anew."""
        tensors, metadata = files.read_tensors(path)
        names = sorted(tensors)
        name = names[int(self.place * len(names))]
        other = TENSORS[self.action](tensors[name])
        if other is None:
            del tensors[name]
        else:
            tensors[name] = other
        metadata.pop(digests.KEY, None)
        if path.name == folders.LABELS_FILE:
            metadata["digest"] = files.tensor_digest(tensors)
            said_beside(path.with_name("meta.json"), ("labels_digest",), metadata["digest"])
        told_beside(path, files.write_tensors(path, tensors, metadata))


TENSORS: Mapping[str, Callable[[Tensor], Tensor | None]] = {
    "lost": lambda tensor: None,
    "empty": lambda tensor: tensor[:0] if tensor.dim() else tensor.new_zeros(0),
    "flat": lambda tensor: tensor.flatten(),
    "deeper": lambda tensor: tensor[None],
    "fewer": lambda tensor: tensor[:-1] if tensor.dim() else tensor[None],
    "one number": lambda tensor: torch.tensor(1.0),
    "nan": lambda tensor: torch.full(tensor.shape, float("nan")),
    "large": lambda tensor: torch.full(tensor.shape, 1e30),
    "negative": lambda tensor: -tensor.abs() - 1,
    "whole": lambda tensor: tensor.to(torch.int64),
    "bytes": lambda tensor: tensor.to(torch.uint8),
    "truths": lambda tensor: tensor > 0,
    "half": lambda tensor: tensor.to(torch.float16),
    "double": lambda tensor: tensor.to(torch.float64),
    "zeros": lambda tensor: torch.zeros_like(tensor),
    "no width": lambda tensor: tensor.new_zeros(*tensor.shape, 0),
}


@dataclass(frozen=True)
class OfPickle:
    """A part of what torch.save wrote is another one; `value` is what a part becomes, or how."""

    place: float
    action: str
    value: Any

    def __call__(self, path: Path) -> None:
        """Write the file anew."""
        content = [torch.load(path, weights_only=True)]
        places = list(nodes(content))
        *above, key = places[int(self.place * len(places))]
        parent: Any = content
        for step in above:
            parent = parent[step]
        if isinstance(parent[key], Tensor) and self.action in OF_PICKLES:
            parent[key] = OF_PICKLES[self.action](parent[key])
        else:
            content = changed(content, self.place, self.action, self.value)
        torch.save(content[0] if content else None, path)


OF_PICKLES: Mapping[str, Callable[[Tensor], Any]] = {
    **TENSORS,
    "expanded": lambda tensor: torch.zeros(1).expand(10**6, *tensor.shape),
    "infinite": lambda tensor: torch.full(tensor.shape, float("inf")),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "sparse": lambda tensor: tensor.to_sparse(),
    "parameter": lambda tensor: torch.nn.Parameter(tensor.float()),
    "meta": lambda tensor: tensor.to("meta"),
    "turned": lambda tensor: tensor.permute(list(range(tensor.dim()))[::-1]),
}


def told_beside(path: Path, digest: str) -> None:
    """Let meta.json or manifest.json say the digest of a file beside it."""
    for beside in (path.with_name("meta.json"), path.with_name("manifest.json")):
        said_beside(beside, ("digests", path.name), digest)


def said_beside(path: Path, keys: Sequence[str], value: Any) -> None:
    """Let a JSON file say something under keys that it has."""
    if not path.is_file():
        return
    content = files.read_json(path)
    part = content
    for key in keys[:-1]:
        part = part.get(key, {})
    if keys[-1] in part:
        part[keys[-1]] = value
        files.write_json(path, content)


# hypothesis draws floats and integers near the ends of their range more often than others
_places = st.sampled_from(range(1000)).map(lambda number: number / 1000)
_actions = st.sampled_from(("put", "put", "put", "remove", "wrap", "rename", "scale"))
_values = st.sampled_from(VALUES)
_bytes = st.builds(OfBytes, _places, st.binary(min_size=1, max_size=9), st.booleans())
_kinds = st.builds(OfKind, st.sampled_from(KINDS))
_of_json = st.builds(OfJson, _places, _actions, _values)
_json = st.one_of(
    *[_of_json] * 5, st.builds(OfText, _places, st.sampled_from(TEXTS)), _bytes, _kinds
)
_headers = st.builds(OfHeader, _places, _actions, st.sampled_from(OF_HEADERS))
_tensors = st.builds(OfTensors, _places, st.sampled_from(sorted(TENSORS)))
_of_tensors = st.one_of(*[_headers, _tensors] * 3, _bytes, _kinds)
_pickle_actions = st.one_of(_actions, st.sampled_from(sorted(OF_PICKLES)))
_of_pickles = st.one_of(
    *[st.builds(OfPickle, _places, _pickle_actions, _values)] * 5, _bytes, _kinds
)


@dataclass(frozen=True)
class Trial:
    """A file, how it is spoiled, and who reads it then."""

    file: str
    change: Change
    reader: str


CHANGES = {".safetensors": _of_tensors, ".pt": _of_pickles, ".json": _json, ".jsonl": _json}


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    """Any trial."""
    file = draw(st.sampled_from(sorted(FILES)))
    change = draw(CHANGES[Path(file).suffix])
    return Trial(file, change, draw(st.sampled_from(sorted(FILES[file]))))


def tried(trial: Trial, sound: Path, place: Path) -> str:
    """What comes of a trial, in a copy of what lies in `sound` at `place`, which is removed."""
    shutil.copytree(sound, place)
    try:
        trial.change(place / trial.file)
        return come_of(FILES[trial.file][trial.reader], place)
    finally:
        shutil.rmtree(place)
