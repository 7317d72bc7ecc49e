"""A method is added by one file: NCFM's loss, written into a package of its own, passes the suite.

The file is ncfm.py beside this one; its loss is compared with the published implementation's.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_files import GOLDEN, load, names
from ncfm import distance, matched

SOURCE = Path(__file__).with_name("ncfm.py")
ROOT = Path(__file__).resolve().parents[2]
CASES = names("ncfm", "_alpha") if (GOLDEN / "ncfm.safetensors").is_file() else []
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A program in `folder`, in which the package with the method can be imported."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def run_suite(folder: Path, recipe: str) -> subprocess.CompletedProcess[str]:
    """The contract suite on a recipe of the package in `folder`."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "ddengine.contract.plugin"]
    words += ["--pyargs", "ddengine.contract", "--recipe", recipe]
    return run(folder, sys.executable, *words)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with the package `mine`, which has one file with the method in it."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "ncfm.py").write_text(SOURCE.read_text())
    return folder


def test_the_method_is_one_short_file():
    assert len(SOURCE.read_text().splitlines()) < 130


def test_it_passes_the_contract_suite(package):
    done = run_suite(package, "mine.ncfm:recipe")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    # what is asked of methods that draw networks, or have teachers, is not asked of this one
    assert " passed, 3 skipped" in done.stdout


@pytest.mark.slow
def test_a_broken_method_fails_it(package):
    """A loss that draws from torch's own generator, as the published scripts do."""
    text = SOURCE.read_text().replace("torch.randn(shape, generator=rng)", "torch.randn(shape)")
    (package / "mine" / "broken.py").write_text(text)
    done = run_suite(package, "mine.broken:recipe")
    assert done.returncode == 1 and "test_losses_follow_from_their_stream" in done.stdout


def test_a_recipe_that_is_not_there_is_one_sentence(package):
    done = run_suite(package, "mine:no")
    assert done.returncode == 2 and "has no 'no'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_it_runs_from_the_command_line(package):
    flags = ["--data.name", "digits", "--data.size", "None", "--data.limit", "200"]
    flags += ["--objective.real_batch", "8", "--outer.steps", "3"]
    flags += ["--model", "convnet-d1-w4-in", "--out", "runs/a"]
    done = run(package, sys.executable, str(ROOT / "run.py"), "distill", "mine.ncfm:recipe", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (package / "runs/a/distilled/meta.json").is_file()
    cited = run(package, sys.executable, str(ROOT / "run.py"), "cite", "mine.ncfm:recipe")
    assert "wang2025ncfm" in cited.stdout


@pytest.mark.skipif(not (GOLDEN / "ncfm.safetensors").is_file(), reason="no such vectors")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_published_one(case, dtype):
    file = load("ncfm", dtype)
    weights = {name: float(file[f"{case}_{name}"]) for name in ("alpha", "beta")}
    syn = file["features_syn"].requires_grad_()
    loss = distance(file["features_real"], syn, file["frequencies"], **weights)
    (gradient,) = torch.autograd.grad(loss, syn)
    assert_near(loss, file[f"{case}_loss"], TOLERANCE[dtype])
    assert_near(gradient, file[f"{case}_grad_features_syn"], TOLERANCE[dtype])
    if f"{case}_matched_loss" in file:
        loss = matched(file["features_real"], syn, file["frequencies"], **weights)
        (gradient,) = torch.autograd.grad(loss, syn)
        assert_near(loss, file[f"{case}_matched_loss"], TOLERANCE[dtype])
        assert_near(gradient, file[f"{case}_matched_grad_features_syn"], TOLERANCE[dtype])


def assert_near(ours: torch.Tensor, stored: torch.Tensor, tolerance: float) -> None:
    """The norm of the difference is a small part of the stored norm."""
    assert (ours - stored).norm() <= tolerance * stored.norm()
