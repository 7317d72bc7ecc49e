"""docs/add_a_method.md as a reader follows it: its files written, its commands run, twice.

Once in a package of one's own, once in a copy of this repository's synthesizers.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/add_a_method.md").read_text(encoding="utf-8")
OUTSIDE, INSIDE = PAGE.split("## In this repository")


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def write_files(text: str, folder: Path) -> dict[str, str]:
    """Write the blocks that name a file in their first line; their contents by path."""
    written = {}
    for code in blocks(text, "python") + blocks(text, "toml"):
        first, _, rest = code.partition("\n")
        written[first.removeprefix("# ")] = rest
    for path, content in written.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return written


def run(folder: Path, line: str) -> str:
    """What a line of a shell prints, in a folder whose packages come first."""
    words = shlex.split(line)
    program = {"pytest": ["-m", "pytest", "-p", "no:cacheprovider"], "ddengine": ["-m", "ddengine"]}
    command = [sys.executable, *program[words[0]], *words[1:]]
    path = os.pathsep.join([str(folder), str(ROOT)])  # the former is looked into first
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stdout[-3000:], done.stderr[-2000:])
    return done.stdout


def commands(text: str) -> list[str]:
    """The lines of all shell blocks."""
    return [line for code in blocks(text, "bash") for line in code.strip().split("\n")]


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """A folder with the package of the page."""
    folder = tmp_path_factory.mktemp("outside")
    assert set(write_files(OUTSIDE, folder)) == {
        "mine/mean_images.py",
        "test_mean_images.py",
        "pyproject.toml",
    }
    (folder / "mine/__init__.py").write_text("")
    return folder


def test_the_objective_is_short():
    (code,) = [code for code in blocks(OUTSIDE, "python") if "class MeanImages" in code]
    objective = code[code.index("@dataclass") : code.index("recipe = ")]
    assert len([line for line in objective.splitlines() if line.strip()]) <= 15
    assert len([line for line in code.splitlines() if line.strip()]) <= 36


@pytest.mark.slow
@pytest.mark.parametrize("line", commands(OUTSIDE))
def test_the_commands_for_a_package_of_ones_own(outside, line):
    said = run(outside, line)
    if "cite" in line:
        assert "me2026means" in said
    if "distill" in line:
        assert (outside / "runs/mean/distilled/load.py").is_file()


def test_an_installed_package_has_its_recipes_listed(outside):
    """The entry point of the page, as pip writes it beside an installed package."""
    project = tomllib.loads((outside / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["ddengine.recipes"]
    beside = outside / "mine-1.0.dist-info"
    beside.mkdir()
    (beside / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines = [f"{name} = {place}\n" for name, place in points.items()]
    (beside / "entry_points.txt").write_text("[ddengine.recipes]\n" + "".join(lines))
    listed = run(outside, "ddengine recipes")
    assert "mean_images/fashion_mnist_ipc1_small is of the package mine" in listed
    shown = run(outside, "ddengine distill mean_images/fashion_mnist_ipc1_small --print_config")
    assert '"MeanImages"' in shown


@pytest.mark.slow
def test_in_the_repository(tmp_path):
    """In a copy of the packages."""
    for package in ("ddengine", "buffers", "synth"):
        shutil.copytree(ROOT / package, tmp_path / package)
    write_files(INSIDE, tmp_path)
    for line in commands(INSIDE):
        said = run(tmp_path, line)
    listed = run(tmp_path, "ddengine recipes")
    assert "mean_images/fashion_mnist_ipc1_small" in listed and " passed" in said
