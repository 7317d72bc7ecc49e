"""What three users do, as they would write it: how much code it takes, and how long they wait."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
# behind the tests, some of which have the same names
sys.path.append(str(ROOT / "benchmarks"))
# own lines at most, and minutes at most on two quiet cores
LIMITS = {"photographs.py": (15, 3), "own_objective.py": (30, 8), "three_clients.py": (20, 1)}


def photographs(folder):
    """600 colour images of 64 pixels in four classes of 300, 150, 100 and 50: enlarged digits."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(0)
    for name, members, num in (
        ("a", (0, 1), 300),
        ("b", (2,), 150),
        ("c", (3,), 100),
        ("d", (4,), 50),
    ):
        (folder / name).mkdir(parents=True)
        chosen = np.flatnonzero(np.isin(digits.target, members))[:num]
        assert len(chosen) == num
        for i in chosen:
            tint = rng.uniform(0.6, 1.0, 3)
            pixels = (digits.images[i][:, :, None] * 15.9 * tint).astype("uint8")
            Image.fromarray(pixels).resize((64, 64)).save(folder / name / f"{i:04d}.jpg")


def tried(name, folder, *words):
    """What a script prints in a folder of its own, and the minutes until it ends."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    env.pop("OMP_NUM_THREADS", None)  # of the tests, of which several run at a time
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *words],
        cwd=folder, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, (time.perf_counter() - began) / 60


@pytest.mark.parametrize("name", LIMITS)
def test_a_trial_is_short(name):
    from trials import lines_of_code

    most, _ = LIMITS[name]
    assert 5 <= lines_of_code(EXAMPLES / name) <= most


@pytest.mark.slow
def test_an_engineer_with_photographs(tmp_path):
    photographs(tmp_path / "photos")
    printed, minutes = tried("photographs.py", tmp_path, "photos")
    assert "distilled" in printed and "random" in printed and "quick" in printed
    assert (tmp_path / "runs/photographs/report.html").exists()
    assert len(list((tmp_path / "sets/photographs/images").rglob("*.png"))) >= 40
    assert minutes <= LIMITS["photographs.py"][1]


@pytest.mark.slow
def test_a_student_with_an_objective(tmp_path):
    printed, minutes = tried("own_objective.py", tmp_path)
    assert "weight=0.1,seed=2" in printed
    assert (tmp_path / "runs/moments/comparison.csv").exists()
    assert minutes <= LIMITS["own_objective.py"][1]


@pytest.mark.slow
def test_a_practitioner_with_three_clients(tmp_path):
    printed, minutes = tried("three_clients.py", tmp_path)
    assert "distilled" in printed and "equal_bytes" in printed
    assert minutes <= LIMITS["three_clients.py"][1]
