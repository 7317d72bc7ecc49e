"""What is told where something natural does not go, or is not what it seems."""

from types import SimpleNamespace

import pytest
import torch

import ddengine
import synth
from ddengine.commands.recipes import here, wants
from ddengine.data import Preprocess
from ddengine.evaluation import comparison
from ddengine.system.errors import UserError


def test_a_set_that_diverged_is_not_written(tmp_path):
    """The rate is named, and no folder that nobody could read is left."""
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = synth.find(
        "dm/digits_ipc1",
        model="mlp",
        codec={"bounded": False},
        data={"validation": 0.0},
        outer={"steps": 2, "evaluate_every": 0, "optim": {"images": {"lr": 1e30}}},
    )
    with pytest.raises(UserError, match=r"diverged; lower outer.optim.images.lr \(now 1e\+30\)"):
        ddengine.distill(
            (images, torch.arange(40) % 2), recipe, folder=tmp_path / "run", progress=False
        )
    assert not (tmp_path / "run" / "distilled").exists()


@pytest.mark.parametrize("networks", [["convnet-d2-w8-in", "nets.py:build"], [lambda shape, k: 1]])
def test_images_are_not_made_for_networks_of_a_file(networks):
    with pytest.raises(UserError, match="Images cannot be made for"):
        ddengine.for_networks(synth.find("dm/digits_ipc1"), networks)


def test_a_preprocessing_has_a_mean_and_a_deviation_for_each_channel():
    with pytest.raises(UserError, match="one of each for every channel"):
        Preprocess.of((0.3, 0.2), (0.37,))


def test_what_is_no_images_is_told():
    seen_through = Preprocess.of((0.3,), (0.37,))
    with pytest.raises(UserError, match="give torch"):
        seen_through(torch.zeros(1, 1, 8, 8).numpy())
    with pytest.raises(UserError, match=r"shape \(8, 8\)"):
        seen_through(torch.zeros(8, 8))


def test_a_recipe_for_ones_own_folder_is_for_a_cpu():
    assert wants(synth.find("own/folder")) == "CPU"
    assert wants(synth.find("dm/cifar10_ipc1")) == here(synth.find("dm/cifar10_ipc1")) == "GPU"
    assert here(synth.find("mtt/fashion_mnist_ipc1_small")) == "69.9"  # as its table says
    assert here(synth.find("ftd/fashion_mnist_ipc1_small")) == "CPU"  # measured with other steps


@pytest.mark.parametrize("quick", [False, True])
def test_a_comparison_of_quick_evaluations_says_so(quick):
    evaluation = {"rows": [], **({"quick": True} if quick else {})}
    run = SimpleNamespace(name="a", evaluation=evaluation, has_diverged=False, meta={})
    notes = comparison._notes_on_runs([SimpleNamespace(runs=[run], values={})], [])
    assert any(note.startswith("quick:") for note in notes) == quick
