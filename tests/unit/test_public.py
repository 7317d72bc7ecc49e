"""The public names: callable whatever has been imported, and one run with the command line."""

import ast
import importlib
import itertools
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from helpers import MODEL, run
from rich.table import Table
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import buffers
import ddengine
import synth
from ddengine.commands import COMMANDS
from ddengine.commands.flags import flag_of, values_of
from ddengine.commands.options import Options
from ddengine.commands.words import taken_flag, taken_name, taken_paths
from ddengine.data import Dataset, load_data
from ddengine.data.preprocess import fit_zca
from ddengine.pages.html_table import html_table
from ddengine.recipe import DataConfig
from ddengine.system import files, log, program, runtime
from ddengine.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAME = "dm/fashion_mnist_ipc1_small"
FLAGS = [
    "--data.name", "digits", "--data.limit", "200", "--model", MODEL, "--objective.real_batch", "10",
    "--outer.steps", "4", "--outer.checkpoint_every", "2", "--outer.evaluate_every", "0", "--outer.picture_every", "0",
]  # fmt: skip
QUICK = {"epochs": 2, "num_networks": 3, "lr_grid": (0.01,), "full_steps": 20}
QUICK_FLAGS = ["--epochs", "2", "--num_networks", "3", "--lr_grid", "0.01", "--full_steps", "20"]


def small() -> ddengine.Recipe:
    """The recipe that FLAGS make, but for the name of the data."""
    recipe = synth.find(NAME)
    outer = replace(recipe.outer, steps=4, checkpoint_every=2, evaluate_every=0, picture_every=0)
    return replace(
        recipe,
        model=MODEL,
        data=replace(recipe.data, limit=200),
        objective=replace(recipe.objective, real_batch=10),
        outer=outer,
    )


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_public_names_stay_callable_after_every_module_is_imported():
    """A submodule `ddengine.report` would take the place of the function once it is imported."""
    for package in (ddengine, buffers, synth):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "__main__" not in module.name:
                importlib.import_module(module.name)
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        for name in package.__all__:
            value = getattr(package, name)
            assert callable(value) or name.isupper(), name
            assert name not in modules or callable(value), name
    assert not set(ddengine.__all__) & {m.name for m in pkgutil.iter_modules(ddengine.__path__)}


@pytest.mark.parametrize("package", [ddengine, buffers, synth])
def test_type_checkers_see_the_public_names(package):
    """What is imported for them is what is loaded when it is asked for, from the same modules."""
    (block,) = (
        node
        for node in ast.parse(Path(package.__file__).read_text()).body
        if isinstance(node, ast.If)
    )
    seen = {}
    for statement in block.body:
        if isinstance(statement, ast.ImportFrom):
            seen |= {alias.asname: statement.module for alias in statement.names}
    assert seen == package._PLACES and package.__all__ == sorted(seen)
    with pytest.raises(AttributeError, match=f"{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_public_functions_show_a_call():
    for name in ddengine.__all__:
        value = getattr(ddengine, name)
        if callable(value) and not isinstance(value, type):
            assert f"ddengine.{name}(" in value.__doc__, name


@pytest.mark.parametrize("first", ["python", "command"])
def test_python_and_the_command_line_are_one_run(work, first, monkeypatch):
    """The same folder by default; each reads what the other has finished."""
    digits = Dataset.named("digits")
    if first == "python":
        result = ddengine.distill(digits, small(), folder="auto")
        assert run("distill", NAME, *FLAGS) == 0
    else:
        assert run("distill", NAME, *FLAGS) == 0
        result = ddengine.distill(digits, small(), folder="auto")
    folders = list(Path("runs").iterdir())
    assert folders == [result.run]
    assert run("distill", "--out", "again", NAME, *FLAGS) == 0
    again = load_file("again/distilled/data.safetensors")
    assert torch.equal(again["images"], result.tensors["images"])
    # and both say the same of the run
    made = files.read_json(result.run / "recipe.json")
    other = files.read_json(Path("again/recipe.json"))
    assert {k: v for k, v in made.items() if k != "command"} == {
        k: v for k, v in other.items() if k != "command"
    }


def test_the_command_line_continues_what_python_began(work, monkeypatch):
    from ddengine import loop

    step, stops = loop.outer_step, iter([False] * 3 + [True])

    def stopping(*args):
        if next(stops):
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "outer_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            ddengine.distill(Dataset.named("digits"), small(), folder="run")
    assert run("distill", NAME, *FLAGS, "--out", "run") == 0
    whole = ddengine.distill(Dataset.named("digits"), small())
    shipped = load_file("run/distilled/data.safetensors")
    assert torch.equal(shipped["images"], whole.tensors["images"])


def test_evaluate_equals_the_command(work):
    """The same accuracies; what is brought by the user has rows of its own."""
    result = ddengine.distill(Dataset.named("digits"), small(), folder="run")
    baselines = ["random", "full"]
    table = ddengine.evaluate(result, protocol=QUICK, baselines=baselines, folder="python")
    assert run("evaluate", *QUICK_FLAGS, "run", "--out", "command", "--baselines", *baselines) == 0
    command = json.loads(Path("command/evaluation.json").read_text())
    told = [[row["accuracies"] for row in rows] for rows in (table.rows, command["rows"])]
    assert told[0] == told[1]
    assert "distilled" in str(table) and "<table>" in table._repr_html_()

    def tiny(shape, num_classes):
        channels, height, width = shape
        size = channels * height * width
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, num_classes))

    digits = load_data(DataConfig(name="digits"), torch.device("cpu"), test=True)
    own_test = TensorDataset(digits.test.pixels.float() / 255, digits.test.labels)
    brought = ddengine.evaluate(
        result, models=[tiny], baselines=[], protocol=QUICK, test=own_test, folder="own"
    )
    assert {row["model"] for row in brought.rows} == {"tiny"}
    assert "command" not in json.loads(Path("own/evaluation.json").read_text())
    network = ddengine.train(result, "mlp", protocol=QUICK)
    assert network(result.batch(torch.arange(2)).images).shape == (2, 10)
    with pytest.raises(UserError, match=r"protocol\.epoch'; nearest"):
        ddengine.evaluate(result, protocol={"epoch": 2})


def test_what_is_returned_has_a_line_for_the_console_and_html_for_a_notebook(work):
    result = ddengine.distill(Dataset.named("digits"), small(), folder="run", progress=False)
    table = ddengine.evaluate(result, protocol=QUICK, baselines=["random"], progress=False)
    printed = str(table)
    assert "\n" not in repr(table) and repr(table).endswith("2 rows, in run)")
    assert f"Outcome({NAME}, test accuracy on 359 images, {MODEL}: " in repr(table)
    shown = table._repr_html_()
    assert shown.count("<tr>") == 3 and "distilled" in shown and "95 % interval" in shown
    assert table.notes[0] in printed and table.notes[0] in unescape(shown)
    for value in (result, small(), table):
        assert "\n" not in repr(value) and repr(value).startswith(f"{type(value).__name__}(")
    assert repr(small()) == (
        f"Recipe({NAME}: DistributionMatching of fashion_mnist in {MODEL}, 1 image per class, "
        "4 steps)"
    )


def test_cells_of_a_table_are_escaped_in_html():
    table = Table(title="a < b")
    table.add_column("set", justify="right")
    table.add_row("[bold]<script>[/bold]")
    shown = html_table(table, ["c & d"])
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "bold" not in shown
    assert "a &lt; b" in shown and "<p>c &amp; d</p>" in shown and 'right">&lt;' in shown


def test_bytes_are_a_number_with_a_ledger_beside_it(work):
    result = ddengine.distill(Dataset.named("digits"), small(), progress=False)
    assert result.nbytes == 10 * 64 * 4 + 10 * 8 == sum(result.ledger.values())
    assert result.ledger["images"] == 10 * 64 * 4 and result.ledger["labels"] == 80


def test_preprocessing_is_called_on_images(work):
    result = ddengine.distill(Dataset.named("digits"), small(), progress=False)
    pixels = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8)
    seen = result.preprocess(pixels)
    assert torch.equal(seen, result.preprocess.forward(pixels / 255))
    assert torch.equal(result.preprocess(pixels / 255), seen)
    assert torch.equal(result.preprocess(pixels[0]), seen[0])
    whitening = fit_zca(torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(whitening(pixels[0]), whitening(pixels)[0], atol=1e-5)


def test_a_result_prints_draws_and_is_saved(work):
    result = ddengine.distill(Dataset.named("digits"), small(), progress=False)
    assert "10 images of 10 classes" in repr(result) and "in memory" in repr(result)
    assert result._repr_png_().startswith(b"\x89PNG") and result.show().size[0] > 100
    saved = result.save("sets/mine")
    again = ddengine.load("sets/mine")
    assert torch.equal(again.tensors["images"], result.tensors["images"])
    assert "sets" in repr(saved) and "sets/mine" in repr(ddengine.inspect("sets/mine"))
    Path("other").mkdir()
    Path("other/letter").write_text("dear")
    with pytest.raises(UserError, match="holds something else than this set"):
        result.save("other")


def test_select_merge_and_report(work):
    chosen = ddengine.select(Dataset.named("digits"), small(), kind="herding", folder="chosen")
    assert run("select", NAME, *FLAGS, "--init.kind", "herding", "--out", "command") == 0
    shipped = load_file("command/distilled/data.safetensors")
    assert torch.equal(shipped["images"], chosen.tensors["images"])
    both = ddengine.merge([chosen, "command"], "both")
    assert len(both) == 20
    assert ddengine.report([chosen]).read_text().startswith("<!doctype html>")


def test_progress_off_says_nothing(work, capsys):
    ddengine.distill(Dataset.named("digits"), small(), progress=False)
    assert capsys.readouterr().out == "" and not log.console.quiet


def test_arguments_come_in_any_order(work, capsys):
    assert run("distill", "--seed", "3", *FLAGS, NAME, "--out", "run") == 0
    assert json.loads(Path("run/recipe.json").read_text())["seed"] == 3
    assert run("distill", "--seed", "3", "dm/fashion_mnist_ipc1_smal") == 2
    assert "Unknown recipe 'dm/fashion_mnist_ipc1_smal'" in capsys.readouterr().err
    assert run("evaluate", "--seed", "3", "runs/typo") == 2
    assert "runs/typo" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--restart", "--print_config", "--no_force"])
def test_a_recipe_may_follow_a_switch(work, flag, capsys, monkeypatch):
    """A switch has no value, so the word behind it is the recipe, or a mistyped one."""
    (work / "mine.py").write_text("import synth\nrecipe = synth.find('dm/cifar10_ipc1')\n")
    monkeypatch.syspath_prepend(str(work))
    assert run("distill", flag, "mine:recipe", "--print_config") == 0
    assert '"dm/cifar10_ipc1"' in capsys.readouterr().out
    assert run("distill", flag, "dm/cifar10_ipc") == 2
    assert "Unknown recipe 'dm/cifar10_ipc'; nearest: dm/cifar10_ipc1" in capsys.readouterr().err


def test_paths_may_follow_flags_with_one_value(work, capsys):
    result = ddengine.distill(Dataset.named("digits"), small(), folder="a", progress=False)
    result.save("b")
    assert run("report", "a", "--out", "page.html", "b") == 0
    assert "b" in Path("page.html").read_text()
    assert run("evaluate", "a", "--seed", "1", "b", "--out", "c") == 2
    assert "2 sets are evaluated" in capsys.readouterr().err


def test_words_of_a_line():
    values = {"--one": 1, "--switch": 0, "--several": None}
    assert taken_flag(["--a", "1", "--b", "--a=2", "--a"], "--a") == (["1", "2", ""], ["--b"])
    assert taken_name(["x", "--y"], {"z"}, values) == ("x", ["--y"])
    for flags in (["--one", "1"], ["--switch"], ["--one=1"], ["--several=1"]):
        assert taken_name([*flags, "z"], set(), values) == ("z", flags)
    for flags in (["--several", "1"], ["--new", "1"], ["--new"]):
        assert taken_name([*flags, "z"], {"z"}, values) == ("z", flags)
        assert taken_name([*flags, "z"], set(), values)[0] is None
    assert taken_name(["--one", "z"], {"z"}, values)[0] is None
    assert taken_name(["--several", "a/b", "c/d"], set(), values) == ("c/d", ["--several", "a/b"])
    assert taken_name(["--help"], set(), values) == (None, ["--help"])
    meant = {Path("runs/a"), Path("out")}.__contains__
    paths, rest = taken_paths(["--one", "out", "--several", "mlp", "runs/a"], meant, values)
    assert paths == [Path("runs/a")] and rest == ["--one", "out", "--several", "mlp"]
    several = ["--several", "c", "out"]  # a folder that is called as a baseline is one
    assert taken_paths(["a", *several], meant, values) == ([Path("a")], several)
    paths, rest = taken_paths(["a", "b", "--several", "c", "--switch", "d"], meant, values)
    assert paths == [Path("a"), Path("b"), Path("d")] and rest == ["--several", "c", "--switch"]


def test_how_many_values_flags_take():
    values = values_of(Options, ddengine.Recipe)
    assert values["--restart"] == values["--no_restart"] == values["--help"] == 0
    assert values["--seed"] == values["--out"] == values["--data.download"] == 1
    assert values["--precision"] == values["--evaluation.lr"] == values["--init.kind"] == 1
    assert values["--teachers"] is None and values["--data.size"] is None
    assert not {"--command", "--recipe", "--objective", "--data"} & values.keys()
    assert flag_of("--data.split-seed=3") == "--data.split_seed" and flag_of("-h") == "-h"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_help(command, capsys):
    """Without a recipe or a set."""
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code in (0, None)
    assert f"usage: {program.name()} {command}" in capsys.readouterr().out


def test_help_names_the_protocols(capsys):
    """By what synth.PROTOCOLS has, whose names the core does not know."""
    for args in (["distill", NAME, "--help"], ["evaluate", "--help"], ["score", "--help"]):
        with pytest.raises(SystemExit):
            run(*args)
        said = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
        assert " | ".join(synth.PROTOCOLS) in said
    core = (ROOT / "ddengine/recipe.py").read_text(encoding="utf-8")
    assert not [name for name in synth.PROTOCOLS if re.search(rf"\b{name}\b[^:]* \|", core)]
    assert not re.search(r"[a-z]+20\d\d[a-z]+", core)  # keys of papers


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *itertools.product(["cite"], ["--restart", "--force", "--tensorboard", "--seed=1"]),
        *itertools.product(["estimate"], ["--restart", "--force", "--tensorboard"]),
        *itertools.product(["select", "buffer"], ["--force", "--compile", "--tensorboard"]),
        ("demo", "--experts=x"),
        ("score", "--sort=accuracy"),
        ("score", "--baselines=random"),
        ("rank", "--sort=accuracy"),
    ],
)
def test_flags_that_a_command_does_not_read_are_refused(work, command, flag, capsys):
    of = NAME
    if command in ("score", "rank"):
        of = "set"
        ddengine.distill(Dataset.named("digits"), small(), progress=False).save("set")
    words = [] if command == "demo" else [of]
    assert run(command, *words, flag) == 2
    assert f"Unrecognized options: {flag.split('=')[0]}" in capsys.readouterr().err


def test_help_of_the_program_imports_no_torch():
    code = (
        "import sys; from ddengine.commands import main; assert main(['--help']) == 0; "
        "assert main(['--version']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/x/run.py", "run.py"),
        ("/venv/bin/ddengine", "ddengine"),
        ("/lib/ddengine/__main__.py", "python -m ddengine"),
    ],
)
def test_sentences_name_the_program_as_it_was_started(started, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [started, "distill"])
    assert run("distill") == 2
    assert f"{name} distill needs the name of a recipe" in capsys.readouterr().err
    stored = program.stored()
    assert " ".join(stored).endswith(name)
    assert tuple(stored) in program.NAMES
    assert program.as_typed("inspect", "a b").endswith("inspect 'a b'")


def test_the_commit_of_another_project_is_not_ours(tmp_path, monkeypatch):
    """Installed below the checkout of somebody else, git would answer with theirs."""
    module = tmp_path / "venv/lib/site-packages/ddengine/system/runtime.py"
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(runtime, "__file__", str(module))
    assert runtime.commit() is None


def test_version_and_licence_are_said_once():
    """The version in pyproject.toml alone, and the licence by its name: not all its text goes into
    the metadata of the package.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert settings["license"] == "MIT" and settings["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert settings["version"] not in (ROOT / "README.md").read_text(encoding="utf-8")
    assert program.version() == settings["version"]


@pytest.mark.slow
def test_the_wheel_holds_what_it_must(tmp_path):
    for name in ("ddengine", "buffers", "synth", "pyproject.toml", "README.md", "LICENSE"):
        source, target = ROOT / name, tmp_path / "source" / name
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), "./source"],
        cwd=tmp_path,
        check=True,
        env=dict(os.environ),
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    metadata = zipfile.ZipFile(wheel).read(about).decode()
    assert "License-Expression: MIT" in metadata and "Permission is hereby" not in metadata
    for package in ("ddengine", "buffers", "synth"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in names, path
    assert not {name.split("/")[0] for name in names if "dist-info" not in name} - {
        "ddengine",
        "buffers",
        "synth",
    }


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "import sys; from ddengine.commands import main; sys.exit(main(sys.argv[1:]))", "cite", "here:recipe"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "ddengine.contract.plugin", "--pyargs", "ddengine.contract", "--recipe", "here:recipe", "--collect-only"],
    ],
    ids=["command", "contract"],
)  # fmt: skip
def test_recipes_in_this_folder_are_known_however_it_was_started(words, tmp_path):
    """Also by a console script, for which Python does not look into the folder."""
    (tmp_path / "here.py").write_text("import synth\nrecipe = synth.find('mtt/digits_ipc1')\n")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
