"""`run.py select`: a selection of real images as a set that evaluate and export take, and how it
treats folders.
"""

import json
from pathlib import Path

import pytest
import torch
from helpers import CPU, TINY, run

from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.recipe import DataConfig
from ddengine.system.rng import generator

RECIPE = "mtt/digits_ipc1"
SMALL = [*TINY, "--ipc", "2", "--init.steps", "8", "--init.lr", "0.05", "--init.networks", "2"]
QUICK = ["--epochs", "2", "--num_networks", "3", "--lr_grid", "0.01", "0.03", "--full_steps", "20"]
KINDS = (
    "real",
    "correct",
    "representative",
    "herding",
    "k_centre",
    "k_means",
    "forgetting",
    "el2n",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A working directory with a store of experts, a tiny distilled run and a herding selection."""
    where = tmp_path_factory.mktemp("select")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert (
            run(
                "buffer",
                RECIPE,
                *TINY,
                "--buffer.batch",
                "16",
                "--buffer.epochs",
                "8",
                "--buffer.step.lr",
                "0.1",
                "--out",
                "store",
            )
            == 0
        )
        assert run("buffer", RECIPE, *TINY, "--out", "plain") == 0
        assert (
            run(
                "distill",
                RECIPE,
                *SMALL,
                "--init.kind",
                "herding",
                "--experts",
                "plain",
                "--out",
                "distilled",
            )
            == 0
        )
        assert run("select", RECIPE, *SMALL, "--init.kind", "herding", "--out", "herding") == 0
    return where


@pytest.fixture
def work(done, monkeypatch):
    """That directory as the working one."""
    monkeypatch.chdir(done)
    return done


def images(folder: str) -> torch.Tensor:
    """The images as networks see them."""
    syn, _ = folders.load(Path(folder) / "distilled", CPU)
    return syn.batch(torch.arange(len(syn))).images


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_what_distill_would_start_from(work, kind):
    """The images named in meta.json, which are those of the initial set of the same command; no
    learned rate, class labels.
    """
    from ddengine.commands.on_recipe import options_of, stores_of
    from ddengine.prepare import prepare

    asks = [
        "--experts",
        "store",
        "--buffer.batch",
        "16",
        "--buffer.epochs",
        "8",
        "--buffer.step.lr",
        "0.1",
    ]
    flags = [*SMALL, "--init.kind", kind, *(asks if kind in ("correct", "representative") else [])]
    assert run("select", RECIPE, *flags, "--out", f"runs/{kind}") == 0
    syn, meta = folders.load(Path(f"runs/{kind}/distilled"), CPU)
    data = load_data(DataConfig(name="digits", limit=200), CPU)
    assert meta["selected"]["kind"] == kind and len(set(meta["selected"]["index"])) == 20
    assert torch.equal(
        images(f"runs/{kind}"), data.train.images(torch.tensor(meta["selected"]["index"]))
    )
    assert set(syn.tensors) == {"images"} and syn.classes.tolist() == [
        c for c in range(10) for _ in range(2)
    ]
    options = options_of("distill", [RECIPE, *flags])
    stores = stores_of(options, Path("store" if asks[0] in flags else "plain"))
    start, _ = prepare(options.recipe, data, CPU, stores.open(data), seed=0)
    assert torch.equal(start.tensors["images"], images(f"runs/{kind}"))
    assert (meta["experts"] is not None) == (kind in ("correct", "representative"))


def test_meta_has_the_keys_of_a_distilled_set(work):
    """But for how it was distilled; no path of the machine, and pictures lie beside the tensors."""
    meta, like = (
        json.loads((work / run / "distilled/meta.json").read_text())
        for run in ("herding", "distilled")
    )
    assert set(meta) - {"selected"} == set(like) - {"distillation"}
    assert (
        meta["recipe"]["init"]["kind"] == "herding"
        and meta["seed"] == 0
        and meta["bytes"]["other"] == 0
    )
    assert len(list((work / "herding/distilled/images").glob("*/*.png"))) == 20
    assert str(work) not in (work / "herding/distilled/meta.json").read_text()


def test_the_default_folder_names_kind_and_settings(work, tmp_path, monkeypatch):
    """What plays no role makes no other folder; the seed does."""
    monkeypatch.chdir(tmp_path)
    for extra in (
        ["--init.kind", "k_means"],
        ["--init.kind", "k_means", "--outer.steps", "9"],
        ["--seed", "1"],
        ["--ipc", "3"],
    ):
        assert run("select", RECIPE, *SMALL, "--init.embedding", "pixels", *extra) == 0
    names = sorted(p.name.rsplit("-", 1)[0] for p in Path("runs").iterdir())
    assert names == ["select-k_means", "select-real", "select-real"]


def test_finished_restart_and_an_interrupted_one(work, capsys):
    before = images("herding")
    flags = [*SMALL, "--init.kind", "herding"]
    assert run("select", RECIPE, *flags, "--out", "herding") == 0
    assert "herding is finished; --restart begins anew" in capsys.readouterr().out
    stamp = (work / "herding/distilled/meta.json").stat().st_mtime_ns
    assert run("select", RECIPE, *flags, "--out", "herding", "--restart") == 0
    assert (
        torch.equal(images("herding"), before)
        and (work / "herding/distilled/meta.json").stat().st_mtime_ns > stamp
    )
    (work / "herding/distilled/meta.json").unlink()  # as if it had been killed while it wrote
    assert run("select", RECIPE, *flags, "--out", "herding") == 0
    assert torch.equal(images("herding"), before)


REFUSED = [
    (
        ["select", RECIPE, *SMALL, "--init.kind", "noise"],
        ("init.kind is noise", "--init.kind to one of real"),
    ),
    (["select", RECIPE, *SMALL, "--init.kind", "herdin"], ("--init.kind", "herding")),
    (
        ["select", RECIPE, *SMALL, "--init.kind", "herding", "--ipc", "500"],
        ("ipc 500", "class '0'", "lower ipc"),
    ),
    (
        ["select", RECIPE, *SMALL, "--init.kind", "forgetting", "--init.steps", "1"],
        ("fewer than two epochs", "init.steps", "to 2"),
    ),
    (
        ["select", RECIPE, *SMALL, "--init.kind", "el2n", "--init.networks", "0"],
        ("init.networks", "at least 1"),
    ),
    (
        ["select", RECIPE, *SMALL, "--init.kind", "correct", "--experts", "nowhere"],
        ("no expert store in nowhere",),
    ),
    (
        ["select", RECIPE, *SMALL, "--init.kind", "herding", "--model", "covnet-d1"],
        ("network 'covnet-d1'", "convnet"),
    ),
    (
        ["select", RECIPE, *SMALL, "--init.kind", "k_means", "--out", "herding"],
        ("herding holds a run", "other settings", "--out", "--restart"),
    ),
    (
        ["select", RECIPE, *SMALL, "--init.kind", "herding", "--out", "distilled"],
        ("distilled holds a run", "other settings"),
    ),
    (
        [
            "distill",
            RECIPE,
            *SMALL,
            "--init.kind",
            "herding",
            "--experts",
            "plain",
            "--out",
            "herding",
        ],
        ("herding holds a run", "other settings"),
    ),
    (["select", RECIPE, *SMALL, "--out", "store"], ("store is not empty and not a run", "--out")),
    (["select", RECIPE, *SMALL, "--out", "store", "--restart"], ("--restart would delete store",)),
    (
        ["select", RECIPE, *SMALL, "--out", "store/manifest.json"],
        ("manifest.json is a file", "name a folder"),
    ),
]


@pytest.mark.parametrize(("command", "words"), REFUSED)
def test_refusals_leave_everything_as_it_was(work, command, words, capsys):
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    assert run(*command) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("error: ") and said.count("\n") == 1 and all(word in said for word in words)
    ), said
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before


def test_evaluate_beside_every_baseline(work, capsys):
    """The row is named after the selection, and beside a baseline of that name `selected`; the same
    again after an interruption.
    """
    every = ["herding", "k_centre", "k_means", "forgetting", "el2n", "cad", "facility"]
    assert run("evaluate", "herding", *QUICK, "--baselines", "random", *every, "--out", "all") == 0
    rows = json.loads((work / "all/evaluation.json").read_text())["rows"]
    assert [r["set"] for r in rows] == ["selected herding", "random", *every]
    assert all(r["n"] == 3 for r in rows) and "selected herding" in capsys.readouterr().out
    assert run("evaluate", "herding", *QUICK, "--baselines", "random", "--out", "one") == 0
    (own, random) = json.loads((work / "one/evaluation.json").read_text())["rows"]
    assert own["set"] == "herding" and random["set"] == "random"
    assert (own["accuracies"], random["accuracies"]) == (
        rows[0]["accuracies"],
        rows[1]["accuracies"],
    )
    assert run("evaluate", "distilled", *QUICK, "--baselines", "k_centre", "--out", "other") == 0
    assert [r["set"] for r in json.loads((work / "other/evaluation.json").read_text())["rows"]] == [
        "distilled",
        "k_centre",
    ]


def test_without_a_validation_split_a_selection_trains_at_the_usual_rate(
    work, tmp_path, monkeypatch
):
    """It has no learned rate, so none of its own."""
    monkeypatch.chdir(tmp_path)
    flags = ["--data.validation", "0", "--outer.evaluate_every", "0"]
    assert run("select", RECIPE, *SMALL, *flags, "--init.kind", "herding", "--out", "run") == 0
    assert run("evaluate", "run", *QUICK, "--baselines", "random", "--lr", "0.02") == 0
    assert [r["lr"] for r in json.loads(Path("run/evaluation.json").read_text())["rows"]] == [
        0.02,
        0.02,
    ]


def test_forgetting_as_a_baseline_needs_two_epochs(work, capsys):
    assert (
        run(
            "evaluate",
            "herding",
            *QUICK,
            "--full_steps",
            "1",
            "--baselines",
            "forgetting",
            "--out",
            "none",
        )
        == 2
    )
    assert "evaluation.full_steps" in capsys.readouterr().err


def test_export_names_it_selected(work):
    assert run("export", "herding", "--format", "mtt", "--out", "theirs") == 0
    assert (work / "theirs/images_selected.pt").is_file()


def test_herding_of_one_image_says_what_it_is(work, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        *SMALL,
        "--ipc",
        "1",
        "--init.kind",
        "herding",
        "--init.embedding",
        "pixels",
        "--out",
        "run",
    ]
    assert run("select", RECIPE, *flags) == 0
    assert "takes the image nearest to the class mean" in capsys.readouterr().out
    data = load_data(DataConfig(name="digits", limit=200), CPU).train
    wanted = [
        m[(data.images(m) - data.images(m).mean(0)).flatten(1).norm(dim=1).argmin()]
        for m in data.members
    ]
    assert torch.equal(images("run"), data.images(torch.stack(wanted)))


def test_a_selection_follows_the_seed(work):
    """A random one differs, and is the draw of its stream."""
    for seed in ("0", "1"):
        assert run("select", RECIPE, *SMALL, "--seed", seed, "--out", f"seeds/{seed}") == 0
    assert not torch.equal(images("seeds/0"), images("seeds/1"))
    data = load_data(DataConfig(name="digits", limit=200), CPU).train
    rng = generator(1, "init")
    assert torch.equal(images("seeds/1"), torch.cat([data.draw(c, 2, rng) for c in range(10)]))
