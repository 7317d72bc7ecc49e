"""No changed byte of a file that decides a number goes unnoticed."""

import importlib.util
import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers import CPU, MODEL, new_model, run, tiny_data, tiny_set, tiny_store
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import ddengine
from buffers import store
from buffers.store import ExpertStore
from ddengine import contents, loop
from ddengine.api import compare
from ddengine.artefact import describe, finished, listing, parquet, plain, results
from ddengine.artefact import folder as folders
from ddengine.artefact.eight_bit import exported
from ddengine.artefact.results import check_of_set
from ddengine.artefact.verify import verify
from ddengine.pages import reading
from ddengine.system import digests, files, log
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.system.rng import generator

META = {"recipe": {"name": "dm/digits", "model": MODEL, "data": {"name": "digits"}}, "seed": 0}
FOUND_OUT = {"accuracies": [0.25, 0.5]}
PLACES = 9  # of a file in which a bit is flipped


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, a set with soft labels and its evaluation, a checkpoint and a memo."""
    folder, data = tmp_path_factory.mktemp("made"), tiny_data()
    tiny_store(folder / "store", data)
    labels = torch.randn(20, 10, generator=generator(0))
    syn = tiny_set(data, lr=0.02).with_labels(labels, top=3)
    folders.save(syn, folder / "run" / "distilled", META)
    row = {"set": "distilled", "model": MODEL, "accuracy_mean": 0.5, "n": 1}
    content = {"rows": [row], "set_digest": files.tensor_digest(syn.tensors)}
    files.write_json(folder / "run" / "evaluation.json", content)
    files.write_json(folder / "run" / "recipe.json", META)
    state = loop.State({"images": torch.rand(3, 4)}, {}, {}, {}, step=7)
    loop.save_checkpoint(folder / "state.safetensors", state, 0, "me")
    memo = Memo(folder / "memo.jsonl", "me")
    memo.put("search", FOUND_OUT)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy of all of it."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def rows_of(folder):
    """All rows of all experts of a store, and what they saw their images through."""
    opened = ExpertStore(folder, new_model(tiny_data()), 2)
    rows = [opened.snapshots(expert, [0, 1, 2, 3]) for expert in (0, 1)]
    return [*rows, opened.metrics(0), *opened.preprocess.tensors().values()]


def set_of(folder):
    """All that decides a number in a set."""
    syn, meta = folders.load(folder, CPU)
    return [syn.tensors, syn.classes, syn.class_names, syn.codec, syn.targets, meta]


def shipped(folder):
    """What the load.py of a set gives."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, targets, info = module.load()
    return [images, targets, info["lr"], info["classes"]]


def checkpoint_of(path):
    """All that a checkpoint holds."""
    state, log_bytes = loop.load_checkpoint(path, CPU, "me")
    return [state.tensors, state.step, vars(state.counters), log_bytes]


READERS = {
    "store/expert_0000.safetensors": lambda at: rows_of(at / "store"),
    "store/expert_0001.safetensors": lambda at: rows_of(at / "store"),
    "store/preprocess.safetensors": lambda at: rows_of(at / "store"),
    "store/manifest.json": lambda at: rows_of(at / "store"),
    "run/distilled/data.safetensors": lambda at: set_of(at / "run/distilled"),
    "run/distilled/labels.safetensors": lambda at: set_of(at / "run/distilled"),
    "run/distilled/meta.json": lambda at: set_of(at / "run/distilled"),
    "run/evaluation.json": lambda at: files.read_json(at / "run/evaluation.json"),
    "state.safetensors": lambda at: checkpoint_of(at / "state.safetensors"),
    # a line that is cut off is found out again
    "memo.jsonl": lambda at: Memo(at / "memo.jsonl", "me")("search", lambda: FOUND_OUT, keep=False),
}


def same(a, b):
    """Whether two readings are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def flipped(path, place, bit):
    """Flip a bit of a file at a place between 0 and 1."""
    content = bytearray(path.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 1 << bit
    put(path, content)


def put(path, content):
    """Give a file other bytes; who has mapped the old ones keeps them."""
    beside = path.with_name("beside")
    beside.write_bytes(content)
    beside.replace(path)


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_noticed_or_changes_nothing(copy, name):
    sound, whole = READERS[name](copy), (copy / name).read_bytes()
    noticed = 0
    for number in range(PLACES):
        flipped(copy / name, number / (PLACES - 1), number % 8)
        try:
            assert same(READERS[name](copy), sound), f"{name} at {number / PLACES} is not noticed"
        except UserError as error:
            assert Path(name).name in str(error) or "memo" in name
            noticed += 1
        put(copy / name, whole)
    assert noticed >= PLACES - 3


@pytest.mark.parametrize("name", ["data.safetensors", "labels.safetensors", "meta.json"])
def test_the_shipped_program_notices_too(copy, name):
    folder = copy / "run" / "distilled"
    sound, whole = shipped(folder), (folder / name).read_bytes()
    for number in range(PLACES):
        flipped(folder / name, (number + 0.5) / PLACES, number % 8)
        try:
            assert same(shipped(folder), sound)
        except (ValueError, KeyError, SafetensorError):
            pass
        put(folder / name, whole)
    if name != "meta.json":  # a header that is to be longer than memory
        put(folder / name, whole[:7] + b"\x7f" + whole[8:])
        with pytest.raises((ValueError, SafetensorError)):
            shipped(folder)
        put(folder / name, whole)
    edited = json.loads(whole) if name == "meta.json" else None
    if edited is not None:
        (folder / name).write_text(json.dumps(edited | {"class_names": ["x"] * 10}))
        with pytest.raises(ValueError, match=r"meta\.json was changed"):
            shipped(folder)


def test_the_shipped_program_and_the_engine_mean_the_same_digest(copy):
    path = copy / "run/distilled/data.safetensors"
    stated, computed = digests.stated_and_computed(path)
    assert stated == computed == plain.digest_of_file(path) == files.check_tensors(path)
    facts = {"b": [1, 0.1], "a": None}
    assert digests.of_facts(facts) == plain.digest_of(facts)


def test_a_file_of_another_set_is_refused(copy):
    """Each is sound by itself, and they do not belong together."""
    folder = copy / "run" / "distilled"
    other = load_file(folder / "data.safetensors")
    other["images"] += 0.01
    files.write_tensors(folder / "data.safetensors", other)
    with pytest.raises(UserError, match=r"not the file that meta\.json"):
        folders.load(folder, CPU)
    with pytest.raises(ValueError, match="is damaged"):
        shipped(folder)


def test_preprocessing_of_another_store_is_refused(copy):
    path = copy / "store" / "preprocess.safetensors"
    changed = {name: value + 0.01 for name, value in load_file(path).items()}
    files.write_tensors(path, changed)
    with pytest.raises(UserError, match="not the file that the manifest"):
        store.stored_preprocess(copy / "store")


def test_an_evaluation_of_another_set_is_shown_by_nobody(copy):
    path = copy / "run" / "evaluation.json"
    files.write_json(path, files.read_json(path) | {"set_digest": "0123456789ab"})
    for read in (reading.read, compare.evaluated):
        with pytest.raises(UserError, match=r"evaluation\.json is the evaluation of another set"):
            read(copy / "run")
    rows = dict(describe.describe(copy / "run" / "distilled")[0].rows)
    assert "of another set" in rows["accuracy %"]
    ((_, *_, accuracy, _size),) = describe.describe(copy)[0].rows
    assert accuracy == "-"
    check_of_set(path, {"rows": []}, {"set_digest": "abc"})  # one of before says nothing


def test_edited_accuracies_are_not_believed(copy):
    """A plain edit is noticed; one that makes the digest anew is not, and cannot be."""
    path = copy / "run" / "evaluation.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    for read in (reading.read, compare.evaluated):
        with pytest.raises(UserError, match=r"evaluation\.json was changed"):
            read(copy / "run")
    path = copy / "memo.jsonl"
    path.write_text(path.read_text().replace("0.25", "0.95"))
    with pytest.raises(UserError, match=r"memo\.jsonl is damaged"):
        Memo(path, "me")


def test_verify_names_what_is_damaged_and_buffer_trains_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make = ["buffer", "mtt/digits_ipc1", "--data.limit", "200", "--model", MODEL, "--out", "store"]
    make += ["--buffer.num_experts", "3", "--buffer.epochs", "2", "--objective.window.high", "1"]
    assert run(*make, "--objective.expert_epochs", "1") == 0
    assert run("verify", "store") == 0
    folder = Path("store")
    before = {path.name: load_file(path)["params"].clone() for path in folder.glob("expert_*")}
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("expert_*")}
    flipped(folder / "expert_0002.safetensors", 0.7, 3)
    (folder / "expert_0001.safetensors").unlink()
    capsys.readouterr()
    assert run("verify", "store") == 2
    said = capsys.readouterr()
    assert "2 of 5 files" in said.err and "expert_0000" not in said.err
    for name in ("expert_0001.safetensors", "expert_0002.safetensors"):
        assert name in said.err
    assert run(*make, "--objective.expert_epochs", "1") == 0
    assert "expert 2 in store is damaged, and is trained again" in capsys.readouterr().out
    for path in folder.glob("expert_*"):
        assert torch.equal(load_file(path)["params"], before[path.name])
        assert (path.stat().st_mtime_ns == times[path.name]) == (path.name[7:11] == "0000")
    assert run("verify", "store") == 0


def test_verify_looks_at_everything_below_a_folder(copy):
    outcome = ddengine.verify(copy)
    assert not any(row["damaged"] for row in outcome.rows)
    names = {Path(row["file"]).name for row in outcome.rows}
    assert names >= {Path(name).name for name in READERS}
    path = copy / "run" / "evaluation.json"
    files.write_json(path, files.read_json(path) | {"set_digest": "0123456789ab"})
    (copy / "run/distilled/labels.safetensors").unlink()
    flipped(copy / "state.safetensors", 0.99, 0)
    damaged = {Path(row["file"]).name for row in ddengine.verify(copy).rows if row["damaged"]}
    assert damaged == {"evaluation.json", "labels.safetensors", "state.safetensors"}
    with pytest.raises(UserError, match="no file of this program"):
        ddengine.verify(copy / "run/distilled/images")


def test_pictures_card_parquet_and_load_py_are_listed(copy):
    folder = copy / "run/distilled"
    (picture,) = itertools.islice(folder.glob("images/*/*.png"), 1)
    (parquet,) = folder.glob("*.parquet")
    assert not any(row["damaged"] for row in ddengine.verify(copy).rows)
    for path in (picture, parquet, folder / "README.md", folder / "load.py"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (row,) = [row for row in ddengine.verify(copy).rows if row["damaged"]]
        assert row["file"] == str(path) and "is not as it was written; restore" in row["state"]
        path.unlink()
        (row,) = [row for row in ddengine.verify(copy).rows if row["damaged"]]
        assert row["file"] == str(path) and "is missing; restore" in row["state"]
        path.write_bytes(content)


def test_a_list_leads_nowhere_else(copy):
    listed = copy / "run/distilled" / listing.LISTING
    (copy / "outside").touch()
    files.write_json(listed, {"files": {"../../outside": "0"}})
    (row,) = [row for row in ddengine.verify(copy).rows if row["damaged"]]
    assert row["file"] == str(listed) and "which lies elsewhere" in row["state"]


def test_a_card_with_accuracies_is_listed_anew(copy):
    folder = copy / "run/distilled"
    row = {"set": "distilled", "model": "mlp", "accuracy_mean": 0.5, "accuracy_std": None}
    row |= {"ci95": None, "n": 1, "images": 10, "bytes": 9, "diverged": 0, "lr": 0.1, "steps": 3}
    before = (folder / "README.md").read_bytes()
    results.add_results(folder, {"rows": [row], "protocol": {}})
    assert (folder / "README.md").read_bytes() != before
    assert not any(row["damaged"] for row in ddengine.verify(folder).rows)


def test_files_of_before_open_with_one_warning(copy, capsys):
    log.say_once.cache_clear()
    for path in copy.rglob("*.safetensors"):
        tensors = load_file(path)
        with files.reading_tensors(path) as file:
            metadata = dict(file.metadata())
        metadata.pop(digests.KEY)
        save_file(tensors, path, metadata)
    for path in copy.rglob(listing.LISTING):
        path.unlink()
    for path in [*copy.rglob("*.json")]:
        content = files.read_json(path)
        for key in ("digests", "set_digest"):
            content.pop(key, None)
        path.write_text(json.dumps(content))
    (copy / "memo.jsonl").write_text('{"identity": "me", "key": "search", "value": 3}\n')
    for read in READERS.values():
        read(copy)
        read(copy)
    shipped(copy / "run" / "distilled")
    said = capsys.readouterr().out
    assert said.count("before stores had digests") == said.count("before sets had digests") == 1
    states = {row["state"] for row in ddengine.verify(copy).rows}
    assert states == {"says no digest"}


def test_a_shard_is_checked_once_and_before_its_first_row(made, monkeypatch):
    checked = []
    monkeypatch.setattr(store, "check_shard", lambda folder, n, has_digest: checked.append(n))
    opened = ExpertStore(made / "store", new_model(tiny_data()), 2)
    assert not checked
    for expert in (1, 0, 1, 0):
        opened.snapshots(expert, [0, 2])
        opened.load(expert, 1)
    assert checked == [1, 0]


def test_a_shard_that_is_cut_while_it_is_mapped_is_a_sentence(copy):
    """Reading on would end the process by SIGBUS."""
    opened = ExpertStore(copy / "store", new_model(tiny_data()), 2)
    opened.snapshots(0, [0])
    path = copy / "store" / "expert_0000.safetensors"
    with path.open("r+b") as file:
        file.truncate(1000)
    for read in (partial(opened.snapshots, 0, [3]), partial(opened.load, 0, 3)):
        with pytest.raises(UserError, match=r"expert_0000.* and has 1000 now; run the buffer"):
            read()
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        opened.snapshots(0, [3])


def test_curves_of_a_log_that_was_changed_are_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["dm/fashion_mnist_ipc1_small", "--data.name", "digits", "--data.limit", "200"]
    words += ["--model", MODEL, "--objective.real_batch", "8", "--outer.steps", "4"]
    assert run("distill", *words, "--outer.evaluate_every", "0", "--out", "run") == 0
    capsys.readouterr()
    events = reading.read(Path("run")).events
    assert len(events) == 4 and "warning" not in capsys.readouterr().out
    path = Path("run/metrics.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    assert len(reading.read(Path("run")).events) == 3
    assert "is not as the run left it" in capsys.readouterr().out
    assert run("verify", "run") == 2 and "metrics.jsonl" in capsys.readouterr().err


def test_no_bit_of_the_labels_in_a_parquet_file_changes_unnoticed(tmp_path):
    """Pages have checksums: they are read by `import`, and one by one where files are large."""
    syn = tiny_set(tiny_data())
    labels = torch.linspace(-1, 1, 10 * len(syn.classes)).view(-1, 10)
    path = tmp_path / "train.parquet"
    labelled = syn.with_labels(labels)
    parquet.write_parquet(path, labelled, exported(labelled))
    assert torch.equal(finished._logits([path]), labels)
    sound, noticed = path.read_bytes(), 0
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
    columns = map(group.column, range(group.num_columns))
    column = next(one for one in columns if one.path_in_schema.startswith("logits"))
    begin = column.dictionary_page_offset or column.data_page_offset
    for place in range(begin, begin + column.total_compressed_size, 13):
        changed = bytearray(sound)
        changed[place] ^= 4
        path.write_bytes(changed)
        try:
            assert torch.equal(finished._logits([path]), labels)  # statistics, which nobody reads
        except UserError as error:
            assert "cannot be read" in str(error)
            noticed += 1
    assert noticed > 5


def test_a_tensor_that_does_not_fit_is_refused(tmp_path):
    """Such as what another store keeps beside it under the same name, whose digest is sound."""
    path = tmp_path / "difficulty.safetensors"
    files.write_tensors(path, {"ranks": torch.arange(6).view(3, 2)})
    for shape in ((3, 2), (-1, 2)):
        assert torch.equal(files.read_tensor(path, "ranks", shape), torch.arange(6).view(3, 2))
    for name, shape in (("ranks", (3,)), ("ranks", (4, 2)), ("ranks", (3, 2, -1)), ("other", (3,))):
        with pytest.raises(UserError, match=r"is damaged .*delete it and run the command"):
            files.read_tensor(path, name, shape)


def test_a_set_that_forgot_its_digests_is_damaged(copy, capsys):
    """Where its tensors say theirs: no set was written so, as an old one may have been."""
    folder = copy / "run" / "distilled"
    meta = folder / "meta.json"
    whole = json.loads(meta.read_text())
    for broken in ("{}", '{"a": NaN}'):
        meta.write_text(broken)
        (state,) = [one.state for one in verify(folder) if one.path == meta]
        assert "is damaged (it does not say what data.safetensors beside it is)" in state
    (folder / "labels.safetensors").unlink()
    with pytest.raises(UserError, match=r"meta\.json was not written by .*it lacks 'codec'"):
        folders.load(folder, CPU)
    del whole["blake2b"]
    meta.write_text(json.dumps(whole))
    assert [one.state for one in verify(folder) if one.path == meta] == ["says no digest"]
    evaluation = copy / "run" / "evaluation.json"
    contents.read_json(evaluation)
    assert "evaluation.json says no digest" not in capsys.readouterr().out
    edited = json.loads(evaluation.read_text())
    del edited["blake2b"]
    evaluation.write_text(json.dumps(edited))
    contents.read_json(evaluation)
    assert "evaluation.json says no digest, so damage to it would not" in capsys.readouterr().out
