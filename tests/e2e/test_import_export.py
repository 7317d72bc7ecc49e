"""import and export on the command line: files of the published programs to stores and folders and
back, and what is refused.
"""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, TINY, run
from safetensors.torch import load_file

import buffers
import ddengine
from ddengine.commands.on_recipe import options_of
from ddengine.data import load_data
from ddengine.system import files
from ddengine.system.errors import UserError

RECIPE = "mtt/digits_ipc1"
QUICK = ["--epochs", "5", "--num_networks", "3", "--lr_grid", "0.01", "--full_steps", "5"]
IMPORT = ["import", RECIPE, *TINY]

generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(20, 1, 8, 8, generator=generator)
LOGITS = torch.randn(20, 10, generator=generator)
CLASSES = torch.arange(10).repeat_interleave(2)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a store, the same store as two files in pt, and a run distilled from it."""
    where = tmp_path_factory.mktemp("exchange")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert run("buffer", RECIPE, *TINY, "--out", "store") == 0
        assert run("export", "store", "--format", "mtt", "--out", "pt", "--per_file", "1") == 0
        assert run("distill", RECIPE, *TINY, "--experts", "store", "--out", "run") == 0
    return where


@pytest.fixture
def work(made, tmp_path, monkeypatch) -> Path:
    """A working directory with a copy of what `made` holds."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def shards(folder: Path | str) -> list[torch.Tensor]:
    return [load_file(p)["params"] for p in sorted(Path(folder).glob("expert_*.safetensors"))]


def only(pattern: str) -> Path:
    """The one path that matches."""
    (path,) = Path().glob(pattern)
    return path


def test_experts_out_and_in(work, capsys):
    """The files of a folder become a store of the same numbers, with a name of its own, and
    distillation from it gives the same images.
    """
    assert [p.name for p in sorted((work / "pt").iterdir())] == [
        ".digests.json",
        "replay_buffer_0.pt",
        "replay_buffer_1.pt",
    ]
    assert run(*IMPORT, "--files", "pt") == 0
    folder = only("experts/imported-*")
    assert (
        re.fullmatch(r"imported-[0-9a-f]{12}", folder.name)
        and "2 experts of 3 epochs" in capsys.readouterr().out
    )
    assert all(
        torch.equal(a, b) for a, b in zip(shards(folder), shards(Path("store")), strict=True)
    )
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    # the same files by name: nothing to do
    assert run(*IMPORT, "--files", "pt/replay_buffer_0.pt", "pt/replay_buffer_1.pt") == 0
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times

    assert run("distill", RECIPE, *TINY, "--experts", str(folder), "--out", "again") == 0
    first, second = (
        load_file(Path(name) / "distilled/data.safetensors") for name in ("run", "again")
    )
    assert all(torch.equal(first[k], second[k]) for k in first)
    # their seed is nobody's
    assert (
        run("distill", RECIPE, *TINY, "--experts", str(folder), "--seed", "1", "--out", "seed1")
        == 0
    )
    capsys.readouterr()
    assert (
        run(
            "distill",
            RECIPE,
            *TINY,
            "--experts",
            str(folder),
            "--buffer.batch",
            "32",
            "--out",
            "other",
        )
        == 2
    )
    assert "buffer.batch is 64 there and 32 here" in capsys.readouterr().err


def test_python_takes_strings_and_sets(work, capsys):
    """Paths may be strings, one alone as well as several, and a set is exported as itself."""
    recipe = options_of("distill", [RECIPE, *TINY]).recipe
    both = buffers.bring_in(recipe, [f"pt/replay_buffer_{i}.pt" for i in (0, 1)], out="both")
    assert both.folder == Path("both") and all(map(torch.equal, shards("both"), shards("store")))
    assert buffers.bring_in(recipe, "pt/replay_buffer_0.pt").recipe.buffer.num_experts == 1
    assert [path.name for path in buffers.export("store", "mtt", "theirs")] == [
        "replay_buffer_0.pt"
    ]
    result = ddengine.load("run")
    written = buffers.export(result, "mtt", "set")
    assert {path.parent for path in written} == {Path("set")}
    with pytest.raises(UserError, match=r"store holds experts.*call buffers\.export"):
        ddengine.export("store", "mtt", "no")


def test_files_of_images_that_python_holds(work):
    """The same store as by the name of the dataset, and a store of images without a name."""
    recipe = options_of("distill", [RECIPE, *TINY]).recipe
    named = buffers.bring_in(recipe, "pt", data=ddengine.Dataset.named("digits"), out="named")
    assert named.recipe == buffers.bring_in(recipe, "pt", out="named").recipe
    real = load_data(replace(recipe.data, limit=None, validation=0.0), CPU).train
    held = ddengine.Dataset.of((real.pixels, real.labels))
    own = buffers.bring_in(recipe, "pt", data=held, out="own")
    experts = buffers.stores(own.recipe, folder=own.folder)
    made = ddengine.distill(held, own.recipe, experts, progress=False)
    again = ddengine.distill(None, named.recipe, buffers.stores(named.recipe, folder="named"))
    assert torch.equal(made.tensors["images"], again.tensors["images"])
    with pytest.raises(UserError, match="labels as the files count them"):
        backwards = [str(number) for number in reversed(range(10))]
        buffers.bring_in(recipe, "pt", data=held, class_order=backwards, out="no")


def test_number_of_experts_is_not_the_recipes(work, capsys):
    """Fewer are imported and said; a run asks for what there is."""
    assert run(*IMPORT, "--files", "pt/replay_buffer_1.pt", "--out", "one") == 0
    assert "1 experts" in capsys.readouterr().out
    assert torch.equal(shards(Path("one"))[0], shards(Path("store"))[1])
    assert run("distill", RECIPE, *TINY, "--experts", "one", "--out", "new") == 2
    assert "1 of the 2 experts" in capsys.readouterr().err
    assert (
        run(
            "distill",
            RECIPE,
            *TINY,
            "--experts",
            "one",
            "--buffer.num_experts",
            "1",
            "--out",
            "new",
        )
        == 0
    )


def test_set_out_and_in(work, capsys):
    """A run as images_8.pt and its labels and rate; imported again it evaluates to the same
    accuracies, and goes out as the same bits.
    """
    assert run("export", "run", "--format", "mtt", "--out", "sets") == 0
    assert {p.name for p in Path("sets").iterdir()} == {
        ".digests.json",
        "images_8.pt",
        "labels_8.pt",
        "lr_8.pt",
    }
    assert run(*IMPORT, "--files", "sets/images_8.pt") == 0
    folder = only("runs/imported-*")
    meta = json.loads((folder / "meta.json").read_text())
    assert (
        meta["imported"]["files"] == ["images_8.pt", "labels_8.pt", "lr_8.pt"]
        and len(meta["imported"]["sha256"]["lr_8.pt"]) == 64
    )
    assert meta["recipe"]["ipc"] == 1 and meta["recipe"]["data"]["root"] is None
    assert {"seed", "images", "raw_bytes", "versions", "machine", "commit"} <= meta.keys()
    assert str(work) not in (folder / "meta.json").read_text()
    accuracies = []
    for path in ("run", str(folder)):
        assert run("evaluate", path, *QUICK, "--out", f"evaluation-{Path(path).name}") == 0
        accuracies.append(
            [
                r["accuracies"]
                for r in json.loads(
                    only(f"evaluation-{Path(path).name}/evaluation.json").read_text()
                )["rows"]
            ]
        )
    assert accuracies[0] == accuracies[1]
    capsys.readouterr()
    assert run(*IMPORT, "--files", "sets/images_8.pt") == 0
    assert "holds these files already" in capsys.readouterr().out
    assert run("export", str(folder), "--out", "more") == 0
    for kind in ("images", "labels", "lr"):
        assert torch.equal(torch.load(f"more/{kind}_imported.pt"), torch.load(f"sets/{kind}_8.pt"))


@pytest.mark.parametrize("labels", [LOGITS, LOGITS.softmax(1)], ids=["logits", "probabilities"])
def test_soft_labels(work, labels):
    """Networks train on the soft labels; out again they are raw logits."""
    torch.save(IMAGES, "images_best.pt")
    torch.save(labels, "labels_best.pt")
    assert run(*IMPORT, "--files", "images_best.pt", "--lr", "0.03", "--out", "soft") == 0
    meta = json.loads(Path("soft/meta.json").read_text())
    assert (
        meta["target_kind"] == "logits"
        and meta["recipe"]["ipc"] == 2
        and meta["imported"]["lr"] == 0.03
    )
    assert run("evaluate", "soft", *QUICK, "--baselines", "random") == 0
    assert [r["set"] for r in json.loads(Path("soft/evaluation.json").read_text())["rows"]] == [
        "distilled",
        "random",
    ]
    assert run("export", "soft", "--out", "pt2") == 0
    assert torch.allclose(
        torch.load("pt2/labels_imported.pt").softmax(1), LOGITS.softmax(1), atol=1e-6
    )
    assert torch.equal(torch.load("pt2/images_imported.pt"), IMAGES) and float(
        torch.load("pt2/lr_imported.pt")
    ) == pytest.approx(0.03)


def test_result_of_dc(work, capsys):
    """The experiment asked for, with accuracies of numpy beside it; another one is another set."""
    pairs = [[IMAGES + i, CLASSES] for i in range(2)]
    torch.save(
        {"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}},
        "res_DC_digits_ConvNet_2ipc.pt",
    )
    args = [*IMPORT, "--files", "res_DC_digits_ConvNet_2ipc.pt"]
    for extra, wanted in (([], 1), (["--experiment", "0"], 0)):
        assert run(*args, *extra, "--out", f"dc{wanted}") == 0
        assert torch.equal(load_file(f"dc{wanted}/data.safetensors")["images"], pairs[wanted][0])
    assert "no learned rate" in capsys.readouterr().out
    assert run("evaluate", "dc1", *QUICK) == 0
    assert run(*args, "--experiment", "1", "--out", "dc0") == 2
    assert "dc0 is not empty" in capsys.readouterr().err


class Command:
    """An object whose pickle makes the file `ran` when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def contents() -> dict[Path, bytes | None]:
    """Everything in the working directory, but the bare folder of stores: experts are checked while
    they are written.
    """
    return {
        p: p.read_bytes() if p.is_file() else None
        for p in Path().rglob("*")
        if p != Path("experts")
    }


def refuse(args: list[str], words: tuple[str, ...], capsys) -> None:
    """Exit code 2, one sentence with these words, and nothing written."""
    before = contents()
    capsys.readouterr()
    assert run(*args) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*[^\s.]\.\n", said), said
    assert not re.search(r"[.!?]\)? +[A-Z]|Traceback", said), said
    for word in words:
        assert word in said, said
    assert contents() == before


REFUSED = {
    "no-recipe": (["import", "--files", "pt"], "name of a recipe first"),
    "unknown-recipe": (["import", "mtt/digit_ipc1", "--files", "pt"], "nearest"),
    "no-files": (IMPORT, "--files"),
    "not-there": ([*IMPORT, "--files", "nowhere"], "nowhere does not exist"),
    "empty-folder": ([*IMPORT, "--files", "empty"], "empty", "no replay_buffer_*.pt"),
    "own-run": (
        [*IMPORT, "--files", "run"],
        "run holds a distilled set of this program already",
        "needs no import",
    ),
    "own-set": (
        [*IMPORT, "--files", "run/distilled"],
        "distilled holds a distilled set of this program already",
        "needs no import",
    ),
    "own-store": (
        [*IMPORT, "--files", "store"],
        "store is an expert store of this program already",
        "--experts store",
    ),
    "malicious": (
        [*IMPORT, "--files", "bad.pt"],
        "bad.pt asks for posix.system to be run",
        "was not read",
    ),
    "malicious-labels": (
        [*IMPORT, "--files", "images_1.pt", "--labels", "bad.pt"],
        "bad.pt asks for posix.system",
    ),
    "malicious-second": ([*IMPORT, "--files", "pt", "bad.pt"], "bad.pt asks for posix.system"),
    "text": ([*IMPORT, "--files", "note.pt"], "note.pt is damaged"),
    "truncated": ([*IMPORT, "--files", "half.pt"], "half.pt is damaged"),
    "epochs": (
        [*IMPORT, "--buffer.epochs", "5", "--files", "pt"],
        "replay_buffer_0.pt has 4 snapshots",
        "set buffer.epochs 3",
    ),
    "network": ([*IMPORT, "--model", "mlp", "--files", "pt"], "is not of mlp", "--model"),
    "images": (
        [*IMPORT, "--files", "images_1.pt", "--data.size", "9", "9"],
        "(1, 8, 8)",
        "(1, 9, 9)",
        "data.size",
    ),
    "several-sets": ([*IMPORT, "--files", "images_1.pt", "images_1.pt"], "one file with --files"),
    "set-among-experts": (
        [*IMPORT, "--files", "pt", "images_1.pt"],
        "images_1.pt holds a tensor",
        "not a list of experts",
    ),
    "labels-of-experts": (
        [*IMPORT, "--files", "pt", "--labels", "images_1.pt"],
        "holds experts",
        "leave --labels out",
    ),
    "lr-of-experts": ([*IMPORT, "--files", "pt", "--lr", "0.1"], "leave --lr out"),
    "labels-not-there": (
        [*IMPORT, "--files", "images_1.pt", "--labels", "nowhere"],
        "nowhere is not a file",
    ),
    "labels-wrong": (
        [*IMPORT, "--files", "images_1.pt", "--labels", "images_1.pt"],
        "shape (20, 1, 8, 8)",
        "(20, 10)",
        "--labels",
    ),
    "lr-zero": ([*IMPORT, "--files", "images_1.pt", "--lr", "0"], "--lr says a learning rate of 0"),
    "experiment": ([*IMPORT, "--files", "images_1.pt", "--experiment", "1"], "--experiment 1"),
    "out-is-foreign": (
        [*IMPORT, "--files", "images_1.pt", "--out", "photos"],
        "photos is not empty",
        "--out",
    ),
    "out-is-foreign-store": (
        [*IMPORT, "--files", "pt", "--out", "photos"],
        "photos is not empty",
        "--out",
    ),
    "out-is-a-file": (
        [*IMPORT, "--files", "images_1.pt", "--out", "note.pt"],
        "note.pt is a file",
        "name a folder",
    ),
    "out-is-a-store": (
        [*IMPORT, "--files", "pt", "--out", "store"],
        "expert store store",
        "imported",
    ),
    "out-is-a-run": (
        [*IMPORT, "--files", "images_1.pt", "--out", "run/distilled"],
        "run/distilled is not empty",
        "--out",
    ),
    "out-below-a-file": (
        [*IMPORT, "--files", "pt", "--out", "note.pt/a"],
        "cannot be written",
        "--out",
    ),
    "unknown-flag": ([*IMPORT, "--file", "pt"], "did you mean --files"),
    "export-what": (["export", "--format", "mtt"], "export needs the folder"),
    "export-where": (["export", "run", "--format", "mtt"], "--out"),
    "export-format": (["export", "run", "--format", "dc", "--out", "new"], "--format", "mtt"),
    "export-nothing": (
        ["export", "photos", "--out", "new"],
        "photos is neither an expert store nor a distilled set",
    ),
    "export-existing": (
        ["export", "store", "--out", "pt"],
        "replay_buffer_0.pt exists already",
        "--out",
    ),
    "export-per-file": (
        ["export", "store", "--per_file", "0", "--out", "new"],
        "--per_file must be at least 1",
    ),
    "export-below-a-file": (
        ["export", "store", "--out", "note.pt/a"],
        "cannot be written",
        "--out",
    ),
}


@pytest.mark.parametrize("args", REFUSED.values(), ids=REFUSED)
def test_refused(args, work, capsys):
    """Mistakes of a user, and files that are not what they should be."""
    torch.save([[torch.zeros(3)], Command()], "bad.pt")
    torch.save(IMAGES, "images_1.pt")
    Path("note.pt").write_text("a note")
    Path("half.pt").write_bytes(Path("images_1.pt").read_bytes()[:3000])
    Path("photos").mkdir()
    Path("empty").mkdir()
    Path("photos/cat.png").write_text("precious")
    command, *words = args
    refuse(command, tuple(words), capsys)
    assert not Path("ran").exists()


def test_damaged_meta_is_refused(work, capsys):
    """What is there already is not taken for an import, and a set that does not say its recipe has
    no name.
    """
    torch.save(IMAGES, "images_1.pt")
    assert run(*IMPORT, "--files", "images_1.pt", "--out", "set") == 0
    meta = files.read_json(Path("set/meta.json"))
    kept = {k: v for k, v in meta.items() if k not in ("imported", "recipe")}
    files.write_json(Path("set/meta.json"), kept)
    refuse(
        [*IMPORT, "--files", "images_1.pt", "--out", "set"], ("set is not empty", "--out"), capsys
    )
    refuse(["export", "set", "--out", "new"], ("set/meta.json", "recipe"), capsys)
    Path("set/meta.json").write_text("{")
    refuse(
        [*IMPORT, "--files", "images_1.pt", "--out", "set"],
        ("set/meta.json cannot be read",),
        capsys,
    )


def test_imported_experts_are_not_grown(work, capsys):
    """buffer refuses to train experts beside them."""
    assert run(*IMPORT, "--files", "pt", "--out", "in") == 0
    refuse(
        ["buffer", RECIPE, *TINY, "--buffer.num_experts", "3", "--out", "in"],
        ("imported from files", "--out"),
        capsys,
    )
