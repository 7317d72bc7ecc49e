"""INFER, SRe2L and RDED through the command line with tiny teachers: buffer, distill, evaluate,
interruptions, mistakes.
"""

import json
import re
import shutil
from functools import partial

import pytest
import torch
from helpers import CPU, run
from safetensors.torch import load_file

from buffers.store import ExpertStore
from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.learning.teachers import ensemble_logits
from ddengine.models import build_model
from ddengine.recipe import DataConfig
from synth.statistics import StatisticsObjective

RECIPE = "infer/fashion_mnist_ipc10_small"
TEACHERS = ("convnet-d1-w8-bn", "convnet-d2-w8-bn")
TINY = [
    "--data.name", "digits", "--data.limit", "300", "--teachers", *TEACHERS, "--model", TEACHERS[1], "--buffer.epochs", "2", "--device", "cpu",
]  # fmt: skip

SMALL = [*TINY, "--outer.steps", "6", "--outer.checkpoint_every", "2"]
SHORT = [
    "--epochs",
    "2",
    "--num_networks",
    "3",
    "--full_steps",
    "5",
    "--lr_grid",
    "0.01",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the stores of both teachers and a finished run."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("buffer", RECIPE, *TINY) == 0
        assert run("distill", RECIPE, *SMALL, "--out", "run") == 0
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    """A copy of it, where commands run."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(name="digits", limit=300), CPU)


def rows_in(folder):
    return {row["set"]: row for row in json.loads((folder / "evaluation.json").read_text())["rows"]}


# Whole runs


def test_each_teacher_has_a_store_of_its_own(made):
    """In experts/, of one network with its last epoch only."""
    manifests = [
        json.loads(path.read_text()) for path in sorted((made / "experts").glob("*/manifest.json"))
    ]
    assert sorted(m["identity"]["model"] for m in manifests) == sorted(TEACHERS)
    assert (
        all(m["epochs"] == [2] for m in manifests)
        and len(list((made / "experts").glob("*/expert_*"))) == 2
    )
    meta = json.loads((made / "run/distilled/meta.json").read_text())
    assert [s["model"] for s in meta["experts"]["stores"]] == list(TEACHERS) and meta["experts"][
        "num"
    ] == 2
    assert {s["fingerprint"] for s in meta["experts"]["stores"]} == {
        path.name for path in (made / "experts").iterdir()
    }


def test_what_a_run_ships(made, data):
    """Real pixels to the byte, half-precision compensators that were optimised, and labels of what
    is shipped, within the budget of 10.
    """
    syn, meta = folders.load(made / "run/distilled", CPU)
    images, compensators, logits = (
        syn.tensors[name] for name in ("images", "compensators", "logits")
    )
    assert (images.shape, images.dtype) == ((80, 1, 8, 8), torch.uint8) and (
        compensators.shape,
        compensators.dtype,
    ) == ((16, 1, 8, 8), torch.float16)
    assert (
        (logits.shape, logits.dtype) == ((240, 10), torch.float16)
        and syn.label_of == "decoded"
        and meta["images_per_class"] == 9.6
    )
    everything = [
        p.numpy().tobytes() + bytes([c])
        for p, c in zip(data.train.pixels, data.train.labels.tolist(), strict=True)
    ]
    assert {
        p.numpy().tobytes() + bytes([c]) for p, c in zip(images, syn.classes.tolist(), strict=True)
    } <= set(everything)
    assert (compensators.flatten(1).abs().amax(1) > 0.1).all()
    stores = [
        ExpertStore(
            made / "experts" / s["fingerprint"], partial(build_model, s["model"], (1, 8, 8), 10)
        )
        for s in meta["experts"]["stores"]
    ]
    said = ensemble_logits(
        [store.load(0, 2) for store in stores], syn.batch(torch.arange(240)).images
    )
    assert (said - syn.logits).abs().max() <= 2e-3 * said.abs().max()
    assert (
        meta["bytes"] == syn.sizes()
        and meta["bytes"]["total"] == 80 * 64 + 16 * 128 + 80 * 8 + 240 * 20 + 4
    )
    assert len((made / "run/metrics.jsonl").read_text().splitlines()) == 6


def test_static_labels_are_evaluated(work, capsys):
    """Every row, its parts, sorted as asked; a second command reads what is there."""
    assert run("evaluate", "run", *SHORT, "--sort", "accuracy_per_byte") == 0
    shown = capsys.readouterr().out
    rows = rows_in(work / "run")
    real = ["random", "equal_bytes", "random_soft"]
    assert list(rows) == ["distilled", "base", *real, "distilled_hard", "full"]
    assert (
        rows["distilled"]["images"] == 240
        and rows["base"]["images"] == 80
        and rows["random_soft"]["images"] == 100
    )
    assert rows["distilled"]["ledger"] == {
        "images": 5120,
        "compensators": 2048,
        "labels": 640 + 4800,
        "other": 4,
    }
    assert rows["base"]["ledger"] == {
        "images": 5120,
        "compensators": 0,
        "labels": 640 + 1600,
        "other": 4,
    }
    assert rows["random_soft"]["ledger"]["labels"] == 800 + 2000
    order = sorted(rows, key=lambda name: -rows[name]["accuracy_mean"] / rows[name]["bytes"])
    places = [re.search(rf"│ {name} +│", shown).start() for name in order]
    assert places == sorted(places)
    assert run("evaluate", "run", *SHORT, "--sort", "accuracy") == 0
    assert "is there" in capsys.readouterr().out and rows_in(work / "run") == rows


def test_dynamic_labels_are_evaluated(work, made):
    """Into a folder of their own, with the teachers of the store; the run stays as it was, and the
    labels count by the smaller way.
    """
    before = sorted(str(p.relative_to(work)) for p in work.rglob("*"))
    assert (
        run(
            "evaluate",
            "run",
            *SHORT,
            "--labels",
            "dynamic",
            "--out",
            "dynamic",
            "--baselines",
            "random_soft",
        )
        == 0
    )
    assert (
        sorted(
            str(p.relative_to(work))
            for p in work.rglob("*")
            if "dynamic" not in str(p.relative_to(work))
        )
        == before
    )
    rows = rows_in(work / "dynamic")
    assert list(rows) == ["distilled", "base", "random_soft"]
    weights = sum(
        t.numel() * t.element_size()
        for path in work.glob("experts/*/expert_*")
        for k, t in load_file(path).items()
        if k in ("params", "buffers")
    )
    both = rows["distilled"]["dynamic_labels"]
    assert both["stored"] == 2 * 10 * 240 * 2 and abs(both["teachers"] - weights) <= 100
    assert rows["distilled"]["ledger"]["labels"] == 640 + min(both.values())
    moved = [*SHORT, "--labels", "dynamic", "--baselines", "random_soft"]
    # under the names of the networks, in a folder that is named
    for path in (work / "experts").iterdir():
        model = json.loads((path / "manifest.json").read_text())["identity"]["model"]
        (work / "named").mkdir(exist_ok=True)
        path.rename(work / "named" / model)
    assert run("evaluate", "run", *moved, "--out", "again", "--experts", "named") == 0
    found = rows_in(work / "again")
    assert {k: v["accuracies"] for k, v in found.items()} == {
        k: v["accuracies"] for k, v in rows.items()
    }


def test_the_labels_of_real_images_are_those_of_the_teachers(work, capsys):
    """Where the store is gone a network trained on the full data labels, with a warning; static
    labels need no teachers.
    """
    shutil.rmtree(work / "experts")
    assert run("evaluate", "run", *SHORT, "--baselines", "random_soft") == 0
    assert "warning: no store of the teacher convnet-d1-w8-bn" in capsys.readouterr().out


@pytest.mark.parametrize("stop_at", [1, 4])
def test_an_interrupted_run_ends_with_the_same_bytes(work, made, monkeypatch, stop_at):
    """Images, compensators, labels, checkpoint with Adam's means and count, and the log."""
    original = StatisticsObjective.losses

    def losses(self, syn, state, step, rng):
        for number, loss in enumerate(original(self, syn, state, step, rng)):
            if step == stop_at and number == 1:
                raise KeyboardInterrupt
            yield loss

    monkeypatch.setattr(StatisticsObjective, "losses", losses)
    assert run("distill", RECIPE, *SMALL, "--out", "broken") == 130
    assert (
        not (work / "broken/distilled").exists()
        and len((work / "broken/metrics.jsonl").read_text().splitlines()) == stop_at
    )
    monkeypatch.setattr(StatisticsObjective, "losses", original)
    assert run("distill", RECIPE, *SMALL, "--out", "broken") == 0
    for name in ("distilled/data.safetensors", "distilled/labels.safetensors", "metrics.jsonl"):
        assert (work / "broken" / name).read_bytes() == (made / "run" / name).read_bytes(), name
    ends = [
        load_file(folder / "checkpoint/state.safetensors")
        for folder in (work / "broken", made / "run")
    ]
    assert {"square/compensators", "count/compensators", "momentum/compensators"} <= ends[0].keys()
    assert ends[0].keys() == ends[1].keys() and all(
        torch.equal(ends[0][k], ends[1][k]) for k in ends[0]
    )
    assert float(ends[0]["count/compensators"]) == 6


def test_small_labels_travel(work):
    """The largest logits and the mean of the others: shipped, evaluated, read by the folder itself."""
    assert run("distill", RECIPE, *SMALL, "--targets.top", "2", "--out", "top") == 0
    syn, meta = folders.load(work / "top/distilled", CPU)
    assert meta["bytes"]["labels"] == 640 + 240 * (3 * 2 + 2)
    whole, _ = folders.load(work / "run/distilled", CPU)
    assert torch.equal(syn.logits.argmax(1), whole.logits.argmax(1)) and torch.allclose(
        syn.logits.mean(1), whole.logits.mean(1), atol=5e-3
    )
    assert run("evaluate", "top", *SHORT, "--baselines", "random_soft") == 0
    assert rows_in(work / "top")["random_soft"]["ledger"]["labels"] == 800 + 100 * 8


def test_sre2l_and_dwa(work):
    """From noise, clamped, shipped as bytes; with adjusted weights another set; the same command
    ends at once.
    """
    flags = [
        "sre2l/fashion_mnist_ipc10_small",
        *(word for word in TINY if word != TEACHERS[0]),
        "--outer.steps",
        "3",
        "--ipc",
        "2",
    ]
    assert run("distill", *flags, "--out", "noise") == 0
    assert run("distill", *flags, "--objective.adjust", "0.5", "--out", "adjusted") == 0
    sets = [folders.load(work / name / "distilled", CPU)[0] for name in ("noise", "adjusted")]
    assert all(
        s.tensors["images"].dtype == torch.uint8 and len(s) == 20 and s.space == "pixel"
        for s in sets
    )
    assert not torch.equal(sets[0].tensors["images"], sets[1].tensors["images"])
    # no crops to change
    assert run("distill", *flags, "--objective.crop_until", "3", "--out", "crops") == 2
    assert (
        run(
            "distill",
            *flags,
            "--objective.crop_until",
            "3",
            "--objective.augment.always",
            "resized_crop",
            "roll",
            "--out",
            "crops",
        )
        == 0
    )


def test_rded(work):
    """Nothing is optimised: crops of real images with the labels of the teachers, evaluated with
    dynamic labels.
    """
    flags = [
        "rded/fashion_mnist_ipc10_small",
        *TINY,
        "--ipc",
        "2",
        "--init.factor",
        "2",
        "--init.candidates",
        "12",
        "--init.crops",
        "2",
    ]
    assert run("distill", *flags, "--out", "crops") == 0
    syn, meta = folders.load(work / "crops/distilled", CPU)
    assert len(syn) == 20 and syn.target_kind == "logits" and meta["distillation"]["seconds"] == 0
    assert (
        run(
            "evaluate",
            "crops",
            *SHORT,
            "--labels",
            "dynamic",
            "--baselines",
            "random_soft",
            "--out",
            "dynamic",
        )
        == 0
    )
    assert list(rows_in(work / "dynamic")) == ["distilled", "random_soft"]
    first = (work / "crops/distilled/data.safetensors").read_bytes()
    assert run("distill", *flags, "--out", "crops", "--restart") == 0
    assert (work / "crops/distilled/data.safetensors").read_bytes() == first


def test_real_images_of_a_recipe_with_teachers(work):
    """The baselines of the other recipes are there for this one too."""
    assert (
        run(
            "select",
            RECIPE,
            *TINY,
            "--ipc",
            "2",
            "--init.kind",
            "herding",
            "--init.embedding",
            "pixels",
            "--out",
            "chosen",
        )
        == 0
    )
    assert len(folders.load(work / "chosen/distilled", CPU)[0]) == 20


# Mistakes


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def refused(capsys, work, *args):
    """The one sentence of a command line that ends with exit code 2 and writes nothing."""
    before = contents(work)
    capsys.readouterr()
    assert run(*args) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*[^\s.]\.\n", said) and "Traceback" not in said, said
    assert not re.search(r"[.!?]\)? +[A-Z]", said), said
    assert contents(work) == before
    return said


DISTILL = {
    "a teacher without BatchNorm": (
        ["--teachers", "convnet-d1-w8-bn", "convnet-d1-w8-in"],
        ["convnet-d1-w8-in has no BatchNorm", "--teachers"],
    ),
    "a store that is not there": (
        ["--buffer.seed", "1"],
        ["There is no expert store in", "buffer command"],
    ),
    "one image per class": (
        ["--ipc", "1"],
        ["ipc 1 leaves no whole base image", "set ipc 2", "codec.per_set"],
    ),
    "more base images than the budget": (["--codec.base", "12"], ["codec.base 12", "ipc"]),
    "as many base images as the budget": (["--codec.base", "10"], ["codec.base 10", "ipc"]),
    "too much of both": (
        ["--codec.base", "9", "--codec.compensators", "11"],
        ["codec.base 9", "codec.compensators 11", "ipc allows 10"],
    ),
    "no labels at all": (["--targets.top", "0"], ["targets.top must be at least 1, got 0"]),
    "an update after each part": (["--outer.step_after", "each"], ["outer.step_after all"]),
    "trajectories of teachers": (
        ["--take", "objective=mtt/digits_ipc1"],
        ["teachers names 2 networks", "leave teachers out"],
    ),
    "a folder without stores": (
        ["--experts", "nowhere"],
        ["nowhere/convnet-d1-w8-bn", "buffer command"],
    ),
    "a teacher named twice": (
        ["--teachers", "convnet-d1-w8-bn", "convnet-d1-w8-bn"],
        ["names a network twice"],
    ),
    "both ways to mix": (
        ["--evaluation.mixup", "0.5", "--evaluation.cutmix", "0.5"],
        ["evaluation.mixup 0.5", "evaluation.cutmix 0.5"],
    ),
    "a tensor that is not there": (
        ["--take", "codec=sre2l/fashion_mnist_ipc10_small"],
        ["'compensators'", "--take outer"],
    ),
    "small labels that are not made anew": (["--targets.relabel", "False"], ["targets.relabel"]),
    "crops without teachers": (
        ["--init.kind", "patches", "--init.factor", "3"],
        ["init.factor 3 does not divide"],
    ),
}


@pytest.mark.parametrize("mistake", DISTILL)
def test_mistakes_of_distill(mistake, work, capsys):
    """Each in one sentence that names the flag, before anything is written."""
    flags, words = DISTILL[mistake]
    if mistake == "a teacher without BatchNorm":  # before it is trained, too
        assert "no BatchNorm" in refused(capsys, work, "buffer", RECIPE, *SMALL, *flags)
    said = refused(capsys, work, "distill", RECIPE, *SMALL, "--out", "new", *flags)
    assert all(word in said for word in words), said


EVALUATE = {
    "dynamic labels where the stores are gone": (
        ["--labels", "dynamic"],
        ["There is no expert store", "buffer command", "--experts"],
    ),
    "a wrong folder": (
        ["--labels", "dynamic", "--experts", "nowhere"],
        ["nowhere/convnet-d1-w8-bn", "--experts"],
    ),
    "other teachers": (
        ["--labels", "dynamic", "--experts", "others"],
        ["holds other experts than those of the set", "--experts"],
    ),
    "both ways to mix": (["--cutmix", "0.5"], ["evaluation.mixup 0.8", "evaluation.cutmix 0.5"]),
    "an unknown order": (["--sort", "size"], ["sort"]),
}


@pytest.mark.parametrize("mistake", EVALUATE)
def test_mistakes_of_evaluate(mistake, work, capsys):
    flags, words = EVALUATE[mistake]
    if "gone" in mistake:
        shutil.rmtree(work / "experts")
    if "others" in flags:
        for model in TEACHERS:
            (path,) = [
                p
                for p in (work / "experts").iterdir()
                if json.loads((p / "manifest.json").read_text())["identity"]["model"] != model
            ]
            shutil.copytree(path, work / "others" / model)  # of the other network
    said = refused(capsys, work, "evaluate", "run", *SHORT, "--out", "new", *flags)
    assert all(word in said for word in words), said


def test_labels_of_another_run_are_refused(work, capsys):
    """Two runs of the same shapes, whose label files were swapped."""
    assert (
        run(
            "distill",
            RECIPE,
            *SMALL,
            "--seed",
            "0",
            "--outer.optim.compensators.lr",
            "0.1",
            "--out",
            "other",
        )
        == 0
    )
    mine, theirs = (work / name / "distilled/labels.safetensors" for name in ("run", "other"))
    kept = mine.read_bytes()
    mine.write_bytes(theirs.read_bytes())
    theirs.write_bytes(kept)
    for name in ("run", "other"):
        said = refused(capsys, work, "evaluate", name, *SHORT)
        assert f"{name}/distilled/labels.safetensors" in said and "another set" in said


def test_stores_of_wrong_teachers_are_refused(work, capsys):
    """A folder whose stores are of other networks."""
    for model in TEACHERS:
        (path,) = [
            p
            for p in (work / "experts").iterdir()
            if json.loads((p / "manifest.json").read_text())["identity"]["model"] != model
        ]
        shutil.copytree(path, work / "others" / model)
    said = refused(capsys, work, "distill", RECIPE, *SMALL, "--out", "new", "--experts", "others")
    assert (
        "was made with other settings" in said
        and "model is convnet-d2-w8-bn there and convnet-d1-w8-bn here" in said
    )
