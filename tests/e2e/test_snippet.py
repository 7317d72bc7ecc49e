"""The README's lines as a user runs them: what is trained with the shipped folder beside what
`evaluate` reports; the flags for data of one's own.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import scipy.stats
import torch
from helpers import CPU, run

from ddengine.data import load_data
from ddengine.recipe import DataConfig
from synth.catalogue import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/files.md", "docs/data.md")
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
NETWORKS = 6


def block(start: str, language: str) -> str:
    """The first block of code of the README in which `start` stands."""
    return next(
        code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if start in code
    )


def test_the_snippet_reaches_what_evaluate_reports(tmp_path, monkeypatch):
    """On digits, the demo's recipe and network, but for images that are chosen and a shorter
    protocol: the means of both agree.

    The protocol of the evaluation, with another rate, number of epochs and augmentation than the
    recipe's, comes with the folder.
    """
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            "select",
            "mtt/digits_ipc1",
            "--init.kind",
            "herding",
            "--init.embedding",
            "pixels",
            "--ipc",
            "2",
            "--out",
            "runs/demo",
        )
        == 0
    )
    flags = [
        "--epochs",
        "40",
        "--lr_grid",
        "0.03",
        "--num_networks",
        str(NETWORKS),
        "--baselines",
        "herding",
        "--augment.ops",
        "crop",
        "scale",
    ]
    flags += ["--augment.scale", "1.6", "--full_steps", "5"]
    assert run("evaluate", "runs/demo", *flags) == 0
    evaluation = json.loads(Path("runs/demo/distilled/evaluation.json").read_text())
    ours = [entry["accuracy"] for entry in evaluation["rows"][0]["accuracies"]]
    test = load_data(DataConfig(name="digits"), CPU, test=True).test
    assert test is not None
    snippet = compile(block("from load import load, train", "python"), "README.md", "exec")

    def accuracy(seed: int) -> float:
        monkeypatch.setattr(sys, "path", [*sys.path])
        sys.modules.pop("load", None)
        space: dict = {}
        torch.manual_seed(seed)
        exec(snippet, space)
        assert space["info"]["protocol"]["epochs"] == 41 and space["info"]["protocol"]["lr"] == 0.03
        assert space["images"].shape == (20, 1, 8, 8) and space["classes"].shape == (5,)
        with torch.no_grad():
            said = space["network"](space["info"]["preprocess"](test.pixels.float() / 255)).argmax(
                1
            )
        return float((said == test.labels).float().mean())

    theirs = [accuracy(seed) for seed in range(NETWORKS)]
    sys.modules.pop("load", None)
    compared = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    between = compared.confidence_interval(0.999)
    assert between.low < 0 < between.high, (ours, theirs)
    assert between.high - between.low < 0.2, "too wide to tell anything"
    assert min(theirs) > 0.4  # of ten classes


def test_what_the_readme_says_of_the_demo_is_in_it():
    """The network of the snippet is that of the demo's recipe: as many parameters, of the same
    shapes.
    """
    from ddengine.models import build_model
    from ddengine.system.rng import generator

    text = block("from load import load, train", "python")
    network = eval(re.search(r"network = (torch\.nn\.Sequential\(.*?\n\))", text, re.DOTALL)[1])  # type: ignore[index]
    wanted = build_model(RECIPES["mtt/digits_ipc1"].model, (1, 8, 8), 10, generator(0))
    assert [p.shape for p in network.parameters()] == [p.shape for p in wanted.parameters()]
    network.load_state_dict(
        dict(zip(network.state_dict(), wanted.state_dict().values(), strict=True))
    )
    images = torch.rand(3, 1, 8, 8, generator=generator(1))
    assert torch.allclose(network(images), wanted(images), atol=1e-6)


def test_the_flags_for_own_data_fit_every_trajectory_recipe():
    """They are parsed with each family, and the segments of each recipe lie within the epochs of
    its experts, which they leave alone.
    """
    from ddengine.commands.on_recipe import options_of

    text = re.search(r'flags="(--data\.name folder.*?)"', README, re.DOTALL)
    assert text is not None
    flags = shlex.split(text[1])
    assert not {
        "--buffer.epochs",
        "--buffer.keep",
        "--objective.window.high",
        "--objective.expert_epochs",
    } & set(flags)
    names = [name for name, recipe in RECIPES.items() if recipe.objective.follows_experts]
    for name in names:
        RECIPES[name].objective.check(RECIPES[name].buffer.kept_epochs())
    families = sorted({name.split("/")[0] for name in names})
    first = ["ast", "att", "datm", "ftd", "gsdd", "haba"]
    assert families == [*first, "mct", "mtt", "ncfm", "pad", "tesla", "tgdd"]
    for name in (
        "ast/cifar10_ipc10",
        "datm/cifar10_ipc10",
        "ftd/cifar10_ipc10",
        "mtt/cifar10_ipc10",
        "tesla/fashion_mnist_ipc10_small",
    ):
        recipe = options_of("distill", [name, *flags]).recipe
        recipe.objective.check(recipe.buffer.kept_epochs())
        assert (
            recipe.data.limit is None
            and recipe.data.root == "path/to/images"
            and recipe.evaluation.protocol == "fast"
        ), name
