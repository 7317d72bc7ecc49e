"""What a set is worth and its hand-over, on the command line."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import CPU, MODEL, run
from PIL import Image
from safetensors.torch import load_file

import ddengine
from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

DM = "dm/fashion_mnist_ipc1_small"
DIGITS = [
    "--data.name", "digits", "--data.limit", "300", "--model", MODEL, "--objective.real_batch", "8", "--outer.steps", "4",
    "--outer.evaluate_every", "0", "--outer.picture_every", "2",
]  # fmt: skip
QUICK = ["--epochs", "3", "--num_networks", "3", "--lr_grid", "0.03", "--full_steps", "6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Runs of one recipe with two seeds, the first evaluated on two networks, and one of some
    classes.
    """
    where = tmp_path_factory.mktemp("worth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert run("distill", DM, *DIGITS, "--out", "a") == 0
        assert run("distill", DM, *DIGITS, "--seed", "1", "--out", "b") == 0
        for name, classes in (("few", ("7", "2")), ("more", ("2", "0", "5"))):
            assert (
                run(
                    "distill",
                    DM,
                    *DIGITS,
                    "--data.limit",
                    "None",
                    "--data.classes",
                    *classes,
                    "--out",
                    name,
                )
                == 0
            )
    return where


@pytest.fixture
def work(made, tmp_path, monkeypatch) -> Path:
    """A working directory with a copy of what `made` holds."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def read(path: str):
    return json.loads(Path(path).read_text())


def test_several_sets_on_several_networks(work, capsys):
    assert run("evaluate", "a", "b", *QUICK, "--models", MODEL, "mlp", "--baselines", "random") == 0
    said = capsys.readouterr().out
    assert "2 distillations" in said and "between distillations" in said
    rows = read("b/evaluation.json")["rows"]
    assert [(r["set"], r["model"]) for r in rows] == [
        (s, m) for m in (MODEL, "mlp") for s in ("distilled", "random")
    ]
    assert Image.open("a/heat_map.png").size[0] > 100
    assert (
        "distilled" in Path("a/distilled/README.md").read_text()
        and "mlp" in Path("a/distilled/README.md").read_text()
    )


def test_several_sets_from_python(work, capsys):
    """The table, the spreads and the heat map of the command, and rows in the order asked for."""
    flags = ["--models", MODEL, "mlp", "--baselines", "random"]
    assert run("evaluate", "a", "b", *QUICK, *flags) == 0
    said = " ".join(capsys.readouterr().out.split())
    Path("a/heat_map.png").unlink()
    table = ddengine.evaluate_all(["a", ddengine.load("b")], strict=False, progress=False)
    assert len(table.notes) == 2 and all(note in said for note in table.notes)
    assert " ".join(str(table).split("\n")[0].split()) in said
    assert [row["evaluation"] for row in table.rows] == ["a"] * 4 + ["b"] * 4
    assert len(table.content["evaluations"]) == len(table.content["spreads"]) == 2
    assert Path("a/heat_map.png").is_file()
    best = ddengine.evaluate("a", strict=False, sort="accuracy", progress=False)
    accuracies = [float(cell.split()[0]) for cell in best.table().columns[2].cells]
    assert accuracies == sorted(accuracies, reverse=True) and len(accuracies) == 4
    with pytest.raises(UserError, match="folder names one folder, and 2 sets"):
        ddengine.evaluate_all(["a", "b"], folder="c")
    with pytest.raises(UserError, match="takes a list of sets"):
        ddengine.evaluate_all("a")


def test_scores_are_those_of_their_evaluations(work):
    assert run("score", "a", *QUICK) == 0
    (found,) = read("a/scores.json")["scores"]
    mean = {
        r["set"]: r["accuracy_mean"] for r in read("a/scores/augmented/evaluation.json")["rows"]
    }
    bare = {r["set"]: r["accuracy_mean"] for r in read("a/scores/plain/evaluation.json")["rows"]}
    assert found["scores"]["improvement_over_random"]["mean"] == pytest.approx(
        mean["distilled"] - mean["random"]
    )
    assert found["scores"]["hard_label_recovery"]["mean"] == pytest.approx(
        mean["full"] - mean["distilled"]
    )
    assert found["scores"]["improvement_without_augmentation"]["mean"] == pytest.approx(
        bare["distilled"] - bare["random"]
    )
    assert not read("a/scores/plain/evaluation.json")["protocol"]["augment"]["ops"]
    assert not Path("a/evaluation.json").exists()
    assert run("score", "a", *QUICK, "--epochs", "4") == 2  # other settings than what is there
    assert run("score", "a", *QUICK, "--epochs", "4", "--restart") == 0


def test_ranking(work, capsys):
    assert (
        run("rank", "a", *QUICK, "--models", MODEL, "mlp", "convnet-d2-w4-in", "--rate", "learned")
        == 0
    )
    found = read("a/ranking.json")
    assert [s["set"] for s in found["sets"]] == ["distilled", "random", "herding"] and len(
        found["networks"]
    ) == 3
    assert "often does not work" in " ".join(capsys.readouterr().out.split())
    assert Path("a/ranking.png").is_file() and not Path("a/evaluation.json").exists()


def test_privacy(work, capsys):
    assert run("privacy", "a", "--full_steps", "6") == 0
    found = read("a/privacy.json")
    assert found["training"]["full_updates"] == 6 and found["training"]["model"] == MODEL
    assert found["images"] == 10 and {m["score"] for m in found["membership"]} >= {
        "distance, pixels"
    }
    assert (
        "Distilled is not anonymous" in " ".join(capsys.readouterr().out.split())
        and Path("a/privacy.png").is_file()
    )


def test_continual_learning_is_resumed_and_its_folder_is_its_own(work, capsys):
    flags = [
        *DIGITS,
        "--data.limit",
        "None",
        "--evaluation.epochs",
        "3",
        "--evaluation.lr_grid",
        "0.03",
        "--evaluation.full_steps",
        "6",
    ]
    flags += [
        "--continual.stages",
        "2",
        "--continual.budget",
        "2000",
        "--continual.repeats",
        "1",
        "--continual.memories",
        "distilled",
        "random",
    ]
    assert run("continual", DM, *flags, "--out", "stages") == 0
    found = read("stages/continual.json")
    assert found["classes_seen"] == [5, 10] and set(found["memories"]) == {
        "distilled",
        "random",
        "joint",
    }
    assert all(found["memories"][name]["bytes"] <= 2000 for name in ("distilled", "random"))
    assert (
        Path("stages/continual.png").is_file()
        and not Path("stages/continual.partial.jsonl").exists()
    )
    capsys.readouterr()
    assert (
        run("continual", DM, *flags, "--out", "stages") == 0
        and "is there" in capsys.readouterr().out
    )
    assert (
        run("continual", DM, *flags, "--seed", "1", "--out", "stages") == 2
        and "other settings" in capsys.readouterr().err
    )
    assert (
        run("continual", DM, *flags, "--out", "a") == 2
        and run("continual", DM, *flags, "--restart", "--out", "a") == 2
    )
    assert Path("a/distilled/data.safetensors").is_file()
    assert (
        run("continual", "mtt/digits_ipc1", "--out", "experts") == 2
        and "needs experts" in capsys.readouterr().err
    )


def test_sets_of_some_classes_become_one(work, capsys):
    assert run("merge", "few", "more", "--out", "both") == 0
    syn, meta = folders.load(Path("both"), CPU)
    assert syn.class_names == ("7", "2", "0", "5") and syn.classes.tolist() == [0, 1, 1, 2, 3]
    few, _ = folders.load(Path("few/distilled"), CPU)
    assert torch.allclose(syn.pixels()[:2], few.pixels(), atol=1e-5)
    assert meta["recipe"]["data"]["classes"] == [7, 2, 0, 5]
    assert (
        meta["images"]
        == load_data(DataConfig(name="digits", classes=(7, 2, 0, 5)), CPU).train.digest
    )
    card = Path("both/README.md").read_text()
    assert (
        "# Merged from 2 sets of digits, 1.25 images per class" in card
        and "| digest of the training images |" in card
    )
    assert run("inspect", "both") == 0 and "merged from 2 sets" in capsys.readouterr().out
    assert run("evaluate", "both", *QUICK, "--baselines", "random", "--out", "judged") == 0
    assert (
        run("merge", "few", "--out", "both") == 2
        and run("merge", "few", "more") == 2
        and run("merge") == 2
    )


def test_a_merged_set_is_not_tested_on_images_it_saw(work, capsys):
    """Other splits than those of its parts: refused, as of any set; and so are parts with different
    splits.
    """
    assert run("merge", "few", "more", "--out", "both") == 0
    assert run("evaluate", "both", *QUICK, "--data.split_seed", "1", "--out", "judged") == 2
    assert "so its test images may have been seen" in capsys.readouterr().err
    assert (
        run(
            "distill",
            DM,
            *DIGITS,
            "--data.limit",
            "None",
            "--data.split_seed",
            "1",
            "--data.classes",
            "3",
            "4",
            "--out",
            "other",
        )
        == 0
    )
    Path("file.txt").write_text("dear")
    for sets, out, words in (
        (("few", "other"), "no", "data.split_seed 1"),
        (("few", "more"), "file.txt/x", "file.txt/x cannot be written"),
    ):
        assert run("merge", *sets, "--out", out) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not Path("no").exists()


def test_merged_sets_of_a_limit_have_the_same_classes(work):
    assert run("merge", "a", "b", "--out", "ab") == 0
    meta = read("ab/meta.json")
    assert (
        meta["recipe"]["data"].get("classes") is None
        and meta["images"] == read("a/distilled/meta.json")["images"]
    )
    assert run("evaluate", "ab", *QUICK, "--baselines", "random", "--out", "judged") == 0


def test_some_classes_of_a_dataset(work, capsys):
    syn, meta = folders.load(Path("few/distilled"), CPU)
    assert (
        syn.class_names == ("7", "2")
        and len(syn) == 2
        and meta["recipe"]["data"]["classes"] == [7, 2]
    )
    assert run("distill", DM, *DIGITS, "--data.classes", "3", "11", "--out", "no") == 2
    assert "11" in capsys.readouterr().err and not Path("no").exists()


def test_report_of_runs(work, capsys):
    assert run("report", "a", "b") == 0 and "a/report.html" in capsys.readouterr().out
    page = Path("a/report.html").read_text()
    assert (
        page.count("<html") == 1
        and "samples" not in page
        and load_file("a/samples.safetensors")["pixels"].dtype == torch.uint8
    )
    assert run("report", "a", "--out", "page.html") == 0 and Path("page.html").is_file()
    for mistake in ([], ["nowhere"], ["a", "--what", "1"]):
        assert run("report", *mistake) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("kind", ["webdataset", "imagefolder"])
def test_other_forms(work, kind, capsys):
    assert run("export", "a", "--format", kind, "--out", "files") == 0
    if kind == "imagefolder":
        assert len(list(Path("files").rglob("*.png"))) == 10
    else:
        with tarfile.open("files/train.tar") as tar:
            assert (
                sorted(tar.getnames())[:2] == ["000000.cls", "000000.png"]
                and len(tar.getnames()) == 20
            )
    assert (
        run("export", "a", "--format", kind, "--out", "files") == 2
        and "exist" in capsys.readouterr().err
    )


def test_inspect(work, capsys):
    for path, words in (
        ("a", "finished"),
        ("a/distilled", "Distilled set"),
        (".", "Runs in"),
        ("a/distilled/data.safetensors", "1x8x8"),
    ):
        assert run("inspect", path) == 0 and words in capsys.readouterr().out
    for mistake in (["nowhere"], [], ["a", "b"]):
        assert run("inspect", *mistake) == 2 and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("command", ["score", "rank", "privacy", "evaluate"])
def test_mistakes_are_one_sentence(work, command, capsys):
    for mistake in (
        [],
        ["nowhere"],
        ["--epochs", "3"],
        ["a", "--modles", "mlp"],
        ["a", "--models", "mpl"],
    ):
        assert run(command, *mistake) == 2, mistake
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert {p.name for p in Path("a").iterdir()} >= {"distilled"} and not Path(
        "a/evaluation.json"
    ).exists()


def test_a_quick_evaluation_is_marked_and_gives_way(work, capsys):
    """It is shown again as quick, another one takes its place, and it does not take another's."""
    flags = [*QUICK, "--baselines", "random"]
    assert run("evaluate", "a", *flags, "--quick") == 0
    assert "(quick)" in capsys.readouterr().out and read("a/evaluation.json")["quick"]
    assert "quick: few networks" in Path("a/distilled/README.md").read_text()
    assert run("evaluate", "a", *flags, "--quick") == 0
    assert "--restart evaluates again" in capsys.readouterr().out
    assert run("evaluate", "a", *flags) == 0
    assert "in whose place this one comes" in " ".join(capsys.readouterr().out.split())
    assert "quick" not in read("a/evaluation.json")
    assert run("evaluate", "a", *flags, "--quick") == 0
    assert "quick" not in read("a/evaluation.json")
    assert run("evaluate", "a", *flags, "--full_seconds", "0") == 2
    assert "full_seconds must be positive" in capsys.readouterr().err


def test_baselines_lie_beside_the_runs(work, capsys):
    flags = [*QUICK, "--baselines", "random"]
    assert run("evaluate", "a", *flags, "--no-reuse_baselines") == 0
    alone = read("a/evaluation.json")["rows"]
    assert not (work / ".baselines").exists()
    assert run("evaluate", "a", *flags, "--restart") == 0 and (work / ".baselines").is_dir()
    assert run("evaluate", "b", *flags) == 0
    (row,) = [row for row in read("b/evaluation.json")["rows"] if row["set"] == "random"]
    assert row["remembered"] and row["accuracies"] == alone[1]["accuracies"]
    assert "remembered from an earlier evaluation: random" in capsys.readouterr().out
    result = ddengine.load("b")
    in_memory = ddengine.Distilled(result.set, result.meta)
    changes = {"epochs": 3, "lr_grid": (0.03,), "full_steps": 6}
    shutil.rmtree(work / ".baselines")
    ddengine.evaluate(in_memory, baselines=["random"], protocol=changes, progress=False)
    assert not (work / ".baselines").exists()
