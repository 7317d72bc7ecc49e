"""A set in the layout of the Hugging Face Hub: written, read again, uploaded."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import shipped_loader
from test_handover import META, ODD, ROW, a_set, compensated, front, soft

import ddengine
from buffers import exchange as of_buffers
from ddengine import commands
from ddengine.artefact import export, hub, results
from ddengine.artefact import folder as folders
from ddengine.recipe import DataConfig
from ddengine.sets.codec import MultiFormation, Pixels, as_bytes
from ddengine.system import files
from ddengine.system.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """The datasets library without a network and with its caches in tmp_path."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return lambda folder: datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


SETS = {
    "grey": a_set(ODD),
    "soft tiles": soft(a_set(ODD, channels=3, codec=MultiFormation(factor=2))),
    "selected": a_set(("b", "a"), channels=3, codec=Pixels()).shipped(),
    "sums": compensated(),
}


@pytest.mark.parametrize("name", SETS)
def test_what_is_exported_is_read_again(tmp_path, load, name):
    """Images, labels, names of the classes and soft labels of all decoded examples."""
    syn = SETS[name]
    folders.save(syn, tmp_path / "set", META)
    assert export.export(tmp_path / "set", "hub", tmp_path / "out") == [tmp_path / "out"]
    splits = load(tmp_path / "out")
    assert list(splits) == ["train"]
    rows = splits["train"]
    assert rows.features["label"].names == list(syn.class_names)
    assert rows["label"][:] == syn.classes[syn.source].tolist()
    images = np.stack([np.asarray(image) for image in rows["image"]])
    expected = as_bytes(syn.pixels()).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images.reshape(expected.shape), expected)
    assert ("logits" in rows.features) == (syn.target_kind == "logits")
    if syn.target_kind == "logits":
        targets = syn.batch(torch.arange(len(syn))).targets
        assert torch.equal(torch.tensor(rows["logits"][:]), targets)


def test_the_folder_has_the_card_and_the_exact_set(tmp_path, load):
    """The card keeps its results and what its owner wrote; the YAML says features and files; the
    shipped loader works; nothing says where things lay on this machine.
    """
    syn = soft(a_set(ODD))
    folders.save(syn, tmp_path / "set", META | {"merged": ["/home/me/secret/one", "two"]})
    results.add_results(tmp_path / "set", {"rows": [ROW], "command": ["run.py", "/home/me/x"]})
    card = tmp_path / "set/README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    export.export(tmp_path / "set", "hub", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "50.0 ± 10.0" in text and text.endswith("\nMine.\n")
    assert "images/" not in text and "The 8-bit pixels of the parquet file are" in text
    said = front(tmp_path / "out")
    assert said["configs"][0]["data_files"] == [{"split": "train", "path": hub.EXAMPLES}]
    assert [feature["name"] for feature in said["dataset_info"]["features"]] == [
        "image",
        "label",
        "logits",
    ]
    before = front(tmp_path / "set")
    assert {key: said[key] for key in before if key != "configs"} == {
        key: value for key, value in before.items() if key != "configs"
    }
    names = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*")}
    assert names == {"README.md", "data", hub.EXAMPLES, "meta.json", *hub.EXACT}
    images, _, info = shipped_loader(tmp_path / "out").load()
    assert torch.equal(images, syn.tensors["images"]) and tuple(info["classes"]) == ODD
    assert files.read_json(tmp_path / "out/meta.json")["merged"] == ["one", "two"]
    assert not any(
        b"/home/me" in path.read_bytes() for path in tmp_path.glob("out/*") if path.is_file()
    )
    again, _ = folders.load(tmp_path / "out", CPU)
    assert torch.equal(again.logits, syn.logits)


def test_a_folder_without_a_card_gets_one_and_nothing_is_printed(tmp_path, load, capfd):
    folders.save(a_set(), tmp_path / "set", META)
    (tmp_path / "set/README.md").unlink()
    export.export(tmp_path / "set", "hub", tmp_path / "out")
    assert front(tmp_path / "out")["license"] == "mit"
    assert capfd.readouterr() == ("", "")


def test_refusals_of_export(tmp_path, monkeypatch):
    """A full folder, no such format, no set, experts as images, and a library that is missing."""
    folders.save(a_set(), tmp_path / "set", META)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").touch()
    with pytest.raises(UserError, match="full exists already; name another folder"):
        export.export(tmp_path / "set", "hub", tmp_path / "full")
    with pytest.raises(UserError, match="no format 'zip'; choose mtt"):
        export.export(tmp_path / "set", "zip", tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="neither an expert store nor a distilled set"):
        of_buffers.export(tmp_path / "full", "mtt", tmp_path / "out")
    (tmp_path / "full/manifest.json").write_text("{}")
    with pytest.raises(UserError, match="holds experts, and format hub is one of images"):
        of_buffers.export(tmp_path / "full", "hub", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"library datasets, .*pip install ddengine\[hub\]\.$"):
        export.export(tmp_path / "set", "hub", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# push


class Hub:
    """Stands for huggingface_hub.HfApi: notes what is asked and what lies in the folder."""

    calls: list
    error: Exception | None = None

    def __init__(self, token=None):
        type(self).calls.append(("login", token))

    def create_repo(self, repo_id, **options):
        """Give back the address as huggingface_hub does, a str of its own kind."""
        if self.error is not None:
            raise self.error
        type(self).calls.append(("create", repo_id, options))
        return f"https://huggingface.co/datasets/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, repo_type, commit_message):
        """Note the files."""
        names = sorted(p.name for p in Path(folder_path).rglob("*") if p.is_file())
        type(self).calls.append(("upload", repo_id, repo_type, names))


@pytest.fixture
def fake(monkeypatch):
    """HfApi that keeps what it is told."""
    library = pytest.importorskip("huggingface_hub")
    Hub.calls, Hub.error = [], None
    monkeypatch.setattr(library, "HfApi", Hub)
    return Hub


@pytest.mark.parametrize("kind", ["set", "run", "exported"])
def test_push_uploads_the_layout_of_the_hub(tmp_path, load, fake, kind):
    """Of a run, of a set's folder, and of a folder that was exported before, as it lies there."""
    place = tmp_path / "run" / "distilled"
    place.parent.mkdir()
    folders.save(a_set(), place, META)
    path = {"set": place, "run": tmp_path / "run", "exported": tmp_path / "out"}[kind]
    if kind == "exported":
        export.export(place, "hub", path)
        (path / "notes.txt").touch()
    address = hub.push(path, "me/a-set", private=True, token="secret")
    assert address == "https://huggingface.co/datasets/me/a-set"
    login, create, upload = fake.calls
    assert login == ("login", "secret")
    options = {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert create == ("create", "me/a-set", options)
    names = ["README.md", "data.safetensors", "load.py", "meta.json"]
    names += ["notes.txt"] if kind == "exported" else []
    assert upload == ("upload", "me/a-set", "dataset", [*names, "train-00000-of-00001.parquet"])


def test_the_commands_export_and_push(tmp_path, load, fake, capsys):
    """One call each, and what came of it."""
    place = tmp_path / "set"
    folders.save(a_set(), place, META)
    out = tmp_path / "out"
    assert commands.main(["export", str(place), "--format", "hub", "--out", str(out)]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    assert len(load(out)["train"]) == 4
    assert commands.main(["push", str(out), "--repo", "me/a-set", "--private"]) == 0
    assert "uploaded to https://huggingface.co/datasets/me/a-set" in capsys.readouterr().out
    assert fake.calls[1][2]["private"] and fake.calls[2][0] == "upload"
    assert commands.main(["push", str(out)]) == 2
    assert "name it with --repo user/name" in capsys.readouterr().err


def test_push_says_in_one_sentence_what_went_wrong(tmp_path, load, fake, monkeypatch):
    """Names that are none, no set, an error of the Hub, and a library that is missing."""
    folders.save(a_set(), tmp_path / "set", META)
    for name in ("a-set", "me/a/b", "me/ä", ""):
        with pytest.raises(UserError, match="is not the name of a repository"):
            hub.push(tmp_path / "set", name)
    with pytest.raises(UserError, match="is not a distilled set"):
        hub.push(tmp_path, "me/a-set")
    fake.error = OSError("401 Client Error.\n\nInvalid username or password.")
    with pytest.raises(UserError) as refusal:
        hub.push(tmp_path / "set", "me/a-set")
    assert "\n" not in str(refusal.value) and "(401 Client Error. Invalid" in str(refusal.value)
    assert [call[0] for call in fake.calls] == ["login"] * len(fake.calls)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"library huggingface_hub, .*ddengine\[hub\]\.$"):
        hub.push(tmp_path / "set", "me/a-set")


def test_the_fake_has_the_signatures_of_the_library():
    """Arguments that HfApi has not would pass unseen."""
    import inspect

    library = pytest.importorskip("huggingface_hub")
    real = SimpleNamespace(
        create=inspect.signature(library.HfApi.create_repo).parameters,
        upload=inspect.signature(library.HfApi.upload_folder).parameters,
    )
    assert {"repo_id", "repo_type", "private", "exist_ok"} <= set(real.create)
    assert {"repo_id", "repo_type", "folder_path", "commit_message"} <= set(real.upload)
    assert "token" in inspect.signature(library.HfApi.__init__).parameters


def test_title_and_licence_of_the_owner_stand_in_the_card(tmp_path, load):
    """In the YAML, as heading and under Licence; the card of the set stays as it is."""
    folders.save(a_set(), tmp_path / "set", META | {"recipe": {"data": {"name": "folder"}}})
    before = (tmp_path / "set/README.md").read_text()
    assert "licence of the source images is not known" in before
    title = 'Tiny "birds" | *of* mine\nand more'
    words = ["--title", title, "--license", "CC BY 4.0"]
    place = str(tmp_path / "out")
    assert (
        commands.main(["export", str(tmp_path / "set"), "--format", "hub", "--out", place, *words])
        == 0
    )
    said = front(tmp_path / "out")
    assert (said["license"], said["pretty_name"]) == ("cc-by-4.0", title)
    text = (tmp_path / "out/README.md").read_text()
    assert '\n# Tiny "birds" \\| \\*of\\* mine and more\n' in text and text.count("\n# ") == 1
    assert "states its licence: CC BY 4.0." in text and "is not known" not in text
    assert (tmp_path / "set/README.md").read_text() == before
    ddengine.export(tmp_path / "set", "hub", tmp_path / "other", license="My own terms")
    said = front(tmp_path / "other")
    assert (said["license"], said["license_name"]) == ("other", "my-own-terms")
    assert said["pretty_name"] == front(tmp_path / "set")["pretty_name"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "folders", "--title", "x"], "format folders has none; set --format hub"),
        (["--format", "hub", "--license", " "], "--license is empty"),
    ],
)
def test_words_that_go_nowhere_are_refused(tmp_path, capsys, words, message):
    folders.save(a_set(), tmp_path / "set", META)
    assert (
        commands.main(["export", str(tmp_path / "set"), "--out", str(tmp_path / "x"), *words]) == 2
    )
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "x").exists()


def test_class_folders_are_called_as_the_classes_are(tmp_path, capsys):
    """Read by this program's own reader of folders, too."""
    names = ("owl", "snowy owl", "été")
    syn = a_set(names, channels=3, codec=Pixels()).shipped()
    folders.save(syn, tmp_path / "set", META)
    assert export.export(tmp_path / "set", "folders", tmp_path / "out") == [tmp_path / "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    data = ddengine.Dataset.folder(tmp_path / "out").load(
        DataConfig(name="folder", validation=0.0), CPU
    )
    assert data.class_names == names
    assert "not in alphabetical order" not in capsys.readouterr().out
    folders.save(a_set(("b", "a")), tmp_path / "unsorted", META)
    export.export(tmp_path / "unsorted", "folders", tmp_path / "unsorted folders")
    assert "not in alphabetical order" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names", [("a/b", "c"), ("..", "c"), ("Cat", "cat"), ("a\nb", "c"), ("", "c")]
)
def test_names_that_no_folder_can_have_are_refused(tmp_path, names):
    folders.save(a_set(names), tmp_path / "set", META)
    with pytest.raises(UserError, match="set --format imagefolder, which numbers the folders"):
        export.export(tmp_path / "set", "folders", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export.export(tmp_path / "set", "imagefolder", tmp_path / "out")


@pytest.mark.parametrize("format", ["hub", "webdataset"])
def test_what_was_exported_is_verified(tmp_path, format):
    folders.save(SETS["grey"], tmp_path / "set", META)
    written = ddengine.export(tmp_path / "set", format, tmp_path / "out")
    states = {row["file"]: row["damaged"] for row in ddengine.verify(tmp_path / "out").rows}
    assert not any(states.values())
    for path in written:
        several = [file for file in path.rglob("*") if file.is_file()] or [path]
        assert {str(file) for file in several} - {str(tmp_path / "out" / ".digests.json")} <= set(
            states
        )
    victims = [file for file in sorted((tmp_path / "out").rglob("*.*")) if file.name[0] != "."]
    picture = next(file for file in victims if file.suffix in (".png", ".parquet", ".tar", ".pt"))
    content = bytearray(picture.read_bytes())
    content[len(content) // 2] ^= 1
    picture.write_bytes(content)
    rows = ddengine.verify(tmp_path / "out").rows
    assert [row["file"] for row in rows if row["damaged"]] == [str(picture)]
    picture.unlink()
    (wrong,) = [row for row in ddengine.verify(tmp_path / "out").rows if row["damaged"]]
    assert "is missing" in wrong["state"]
