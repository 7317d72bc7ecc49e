"""What the contract suite says of a method that is broken: what is meant, and what to do.

The method is broken.py beside this file, in a package of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("broken.py")
ROOT = Path(__file__).resolve().parents[2]
# the way in which a method is broken -> a test that fails, and what its sentence says
SAID = {
    "draws elsewhere": ("losses_follow", "torch's own generator.*give every random function"),
    "draws nothing": ("losses_follow", "nothing is drawn from rng: draw the real images"),
    "reads images": (
        "every_codec_works",
        "Under the codec Compensated: .*no gradient in compensators.*take images from syn.batch",
    ),
    "detaches": ("losses_follow", "depends on nothing that is learned.*syn.batch"),
    "keeps a number": ("losses_follow", "same random stream gave .*keep what changes between"),
    "wrong gradient": ("the_loss_falls", "Thirty steps did not lower the loss, which was .*rates"),
    "no bound": ("gradients_lie", "The gradient of images holds numbers that are not finite"),
    "no dependence": ("gradients_lie", "gradient of images is zero everywhere.*use it"),
    "many": ("losses_follow", r"a loss of shape \(2,\): a loss is a scalar; take the sum"),
    "yields nothing": ("losses_follow", "yielded nothing in the first step: yield at least one"),
    "learns a ghost": ("gradients_lie", "learns weight, and the set holds images: correct the"),
    "says nothing": ("recipes_are_complete", "no published figure and does not say why"),
    "cites nothing": ("recipes_are_complete", "cites nothing: name the keys of the works"),
}
RESUMING = "did not end where one ends that was not stopped. Keep what changes between steps"


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> list[tuple[str, str, str]]:
    """(test, recipe, what was said) of every failure of the suite on all ways, in one run."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "broken.py").write_text(SOURCE.read_text())
    words = [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider"]
    words += ["-p", "no:randomly", "-p", "ddengine.contract.plugin"]
    # of all codecs the one that a sentence is of
    words += [
        "--pyargs",
        "ddengine.contract",
        "-k",
        "not ships and not shipp and (not codec or Compensated)",
    ]
    for way in ("means", *SAID):
        words += ["--recipe", f"mine.broken:recipes:{way}"]
    path = os.pathsep.join([str(folder), str(ROOT)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "2000"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    pattern = r"^FAILED \S*::test_(\w+)\[([^\]]*?)\] - (.*)$"
    return re.findall(pattern, done.stdout, re.MULTILINE)


@pytest.mark.parametrize("way", SAID)
def test_a_broken_method_is_told_what_is_wrong_and_what_to_do(failures, way):
    test, wanted = SAID[way]
    said = [
        sentence for name, recipe, sentence in failures if name.startswith(test) and way in recipe
    ]
    assert said, [failure for failure in failures if way in failure[1]]
    assert any(re.search(wanted, sentence) for sentence in said), said


def test_a_method_that_forgets_fails_where_a_run_resumes(failures):
    said = [sentence for name, recipe, sentence in failures if name.startswith("resuming")]
    assert any(RESUMING in sentence for sentence in said), said


def test_every_failure_is_a_sentence_and_the_sound_method_has_none(failures):
    assert len(failures) > 20
    for name, recipe, sentence in failures:
        assert "means" not in recipe.split("-"), (name, sentence)
        words = sentence.removeprefix("AssertionError: ")
        assert len(words) > 60 and words.rstrip().endswith("."), (name, recipe, sentence)
