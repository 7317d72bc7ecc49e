"""Finding a recipe and changing it from Python."""

import pytest

import synth
from ddengine.recipe import OptimConfig, resolved
from ddengine.system.errors import UserError

NAME = "dm/cifar10_ipc10"


def test_changes_reach_fields_parts_and_entries():
    recipe = synth.find(NAME, ipc=5, outer={"steps": 7, "optim": {"images": {"lr": 2}}})
    before = synth.find(NAME)
    assert recipe.ipc == 5 and recipe.outer.steps == 7
    assert recipe.outer.optim["images"].lr == 2.0 and isinstance(
        recipe.outer.optim["images"].lr, float
    )
    assert recipe.outer.optim["images"].momentum == before.outer.optim["images"].momentum
    assert recipe.data == before.data and before.outer.steps != 7


def test_new_entries_and_whole_parts():
    rate = OptimConfig(lr=1e-5)
    recipe = synth.find("mtt/cifar10_ipc1", outer={"ema": {"images": 0.99}, "optim": {"lr": rate}})
    assert recipe.outer.ema == {"images": 0.99} and recipe.outer.optim["lr"] == rate
    assert recipe.outer.optim.keys() == {"images", "lr"}
    data = synth.find("dm/cifar100_ipc1").data
    assert synth.find(NAME, data=data).data == data


def test_a_changed_cell_has_no_published_figure():
    assert synth.find(NAME).published is not None
    assert synth.find(NAME, ipc=5).published is None
    assert "nothing is published" in synth.find(NAME, ipc=5).note
    looked_at_otherwise = synth.find(NAME, outer={"picture_every": 10})
    assert looked_at_otherwise.published is not None
    assert resolved(synth.find(NAME)) == resolved(synth.find(NAME, ipc=synth.find(NAME).ipc))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"icp": 5}, "icp.*did you mean|icp.*ipc"),
        ({"outer": {"step": 5}}, "outer.step"),
        ({"ipc": "5"}, "ipc is of type int, and '5' is not"),
        ({"ipc": 0}, "ipc must be at least 1"),
        ({"outer": {"optim": {"images": {"rate": 1}}}}, "outer.optim.images.rate"),
        (
            {"data": {"size": "32"}},
            r"data.size is of type tuple\[int, int\] \| None, and '32' is not",
        ),
        ({"data": {"size": (32,)}}, "data.size"),
        ({"outer": {"step_after": "some"}}, "outer.step_after"),
        ({"evaluation": {"lr": True}}, "evaluation.lr is of type float"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        synth.find(NAME, **changes)


def test_recipes_of_other_packages(tmp_path, monkeypatch):
    (tmp_path / "other_recipes.py").write_text(
        "import synth\none = synth.find('dm/cifar10_ipc1')\ndef several():\n    return [one]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert synth.find("other_recipes:one").name == "dm/cifar10_ipc1"
    assert synth.find("other_recipes:several:dm/cifar10_ipc1", ipc=2).ipc == 2
    with pytest.raises(UserError, match="cannot be imported"):
        synth.find("no_such_package:recipe")
    with pytest.raises(UserError, match="has no 'two'"):
        synth.find("other_recipes:two")
    with pytest.raises(UserError, match="recipe in other_recipes:several"):
        synth.find("other_recipes:several:dm/cifar10_ipc9")
