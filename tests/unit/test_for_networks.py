"""Recipes whose images are made for several networks: what changes, what it costs, what is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, run
from safetensors.torch import load_file

import ddengine
from ddengine import turns
from ddengine.data import load_data
from ddengine.objective import environments
from ddengine.plan import bounds, calibrate
from ddengine.plan.jobs import Job
from ddengine.prepare import check_networks, prepare
from ddengine.recipe import DataConfig, for_networks, resolved
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.turns import InTurn, objective_of
from synth.catalogue import find
from synth.statistics import OnePerClass, StatisticsMatching

DIGITS = DataConfig(name="digits", limit=200)
WIDE, NARROW = "convnet-d1-w16-in", "convnet-d2-w4-in"


def dm(**changes):
    """A recipe that draws networks."""
    recipe = find("dm/fashion_mnist_ipc1_small", model=NARROW, objective={"real_batch": 8})
    return replace(
        recipe, data=DIGITS, outer=replace(recipe.outer, steps=4, evaluate_every=0), **changes
    )


@pytest.fixture(scope="module")
def data():
    """200 digits."""
    return load_data(DIGITS, CPU)


# What changes


def test_networks_of_an_objective_that_draws_them():
    recipe = find("dm/cifar10_ipc10")
    several = for_networks(recipe, ["resnet18-bn", "lenet"])
    assert several.model == "resnet18-bn" and several.more_models == ("lenet",)
    assert several.networks == several.evaluation.models == ("resnet18-bn", "lenet")
    assert several.published is None and "resnet18-bn and lenet" in several.note
    assert resolved(several)["more_models"] == ["lenet"]
    assert for_networks(recipe, ()) is recipe
    assert for_networks(recipe, [recipe.model]) is recipe
    assert for_networks(recipe, "lenet").networks == ("lenet",)
    assert for_networks(recipe, "lenet").evaluation.models == ()


def test_networks_that_are_evaluated_already_stay():
    recipe = dm()
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, models=("mlp",)))
    assert for_networks(recipe, [WIDE, NARROW]).evaluation.models == ("mlp",)


def test_a_recipe_of_one_network_is_stored_as_before():
    recipe = dm()
    assert "more_models" not in to_dict(recipe) and "more_models" not in resolved(recipe)
    statistics = find("sre2l/cifar10_ipc10")
    assert "turns" not in to_dict(statistics)["objective"]
    assert "turns" in to_dict(for_networks(statistics, ["resnet18-bn", "vgg11-bn"]))["objective"]


def test_networks_of_a_recipe_with_teachers_are_its_teachers():
    recipe = for_networks(find("sre2l/cifar10_ipc10"), ["resnet18-bn", "vgg11-bn"])
    assert recipe.teachers == recipe.evaluation.models == ("resnet18-bn", "vgg11-bn")
    assert recipe.model == "resnet18-bn" and recipe.more_models == ()
    assert recipe.objective.turns == "steps"
    one = for_networks(find("sre2l/cifar10_ipc10"), ["vgg11-bn"])
    assert one.teachers == ("vgg11-bn",) and one.objective.turns == "images"
    # what belongs to one teacher by design stays there
    compensated = for_networks(find("infer/cifar10_ipc10"), ["resnet18-bn", "vgg11-bn"])
    assert compensated.objective == find("infer/cifar10_ipc10").objective
    adjusted = find("sre2l/cifar10_ipc10_dwa")
    assert for_networks(adjusted, ["resnet18-bn", "vgg11-bn"]).objective == adjusted.objective


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mtt/cifar10_ipc1", "follows the trajectories of experts, which are of one network"),
        ("datm/cifar10_ipc10", "follows the trajectories of experts"),
    ],
)
def test_what_is_of_one_network_says_so(name, says):
    with pytest.raises(UserError, match=f"^The images cannot be made for mlp and lenet.*{says}"):
        for_networks(find(name), ["mlp", "lenet"])
    assert for_networks(find(name), ["mlp"]).model == "mlp"


def test_a_network_that_is_named_twice_is_refused():
    with pytest.raises(UserError, match="name a network twice"):
        for_networks(dm(), ["mlp", "lenet", "mlp"])
    with pytest.raises(UserError, match="has teachers; name them"):
        replace(find("sre2l/cifar10_ipc10"), more_models=("mlp",))


def test_every_network_is_built_before_the_first_step(data):
    with pytest.raises(UserError, match="Unknown network 'lenett'"):
        check_networks(replace(dm(), more_models=("lenett",)), data)


# Turns of networks


def test_networks_have_equal_weight_where_a_run_starts(data):
    """Whose own distances differ by orders of magnitude."""
    recipe = for_networks(dm(), [NARROW, "lenet", WIDE])
    syn, objective = prepare(recipe, data, CPU, None, seed=0)
    assert isinstance(objective, InTurn)
    lengths = [turns._slope(one, syn, ["images"]) for one in turns.alone(objective)]
    assert max(lengths) > 100 * min(lengths)
    assert objective.scales[0] == 1.0
    weighted = [length * scale for length, scale in zip(lengths, objective.scales, strict=True)]
    assert weighted == pytest.approx([lengths[0]] * 3, rel=1e-4)
    assert turns.facts(objective) == {"scales": objective.scales}
    # and the losses have it
    for step in range(3):
        totals = []
        for of in (turns.alone(objective)[step], objective):
            rng = generator(1, "losses", step)
            totals.append(float(sum(of.losses(syn, {}, step, rng))))
        assert totals[1] == pytest.approx(totals[0] * objective.scales[step])


def test_the_rates_of_a_recipe_fit_whatever_network_its_set_is_made_for(data):
    """Its own network is the measure, whether or not the set is made for it too."""
    recipe = dm()
    for networks in (["lenet"], ["lenet", WIDE], ["lenet", NARROW]):
        changed = for_networks(recipe, networks)
        assert changed.scaled_to == NARROW
        syn, objective = prepare(changed, data, CPU, None, seed=0)
        lengths = [turns._slope(one, syn, ["images"]) for one in turns.alone(objective)]
        weighted = [length * scale for length, scale in zip(lengths, objective.scales, strict=True)]
        _, of_recipe = prepare(recipe, data, CPU, None, seed=0)
        wanted = turns._slope(of_recipe, syn, ["images"])
        assert lengths[0] < wanted / 10
        assert weighted == pytest.approx([wanted] * len(networks), rel=1e-4)


def test_the_measure_of_rates_is_kept(data):
    """Through several changes of networks, in JSON data, and in identities."""
    recipe = dm()
    assert "scaled_to" not in to_dict(recipe) and "scaled_to" not in resolved(recipe)
    assert for_networks(recipe, [NARROW, "lenet"]).scaled_to is None
    changed = for_networks(for_networks(recipe, ["lenet"]), [WIDE])
    assert changed.scaled_to == NARROW and resolved(changed)["scaled_to"] == NARROW
    back = for_networks(changed, [NARROW])
    assert resolved(back) == resolved(recipe)
    assert for_networks(find("mtt/cifar10_ipc1"), ["mlp"]).scaled_to is None
    with pytest.raises(UserError, match=r"^scaled_to mlp says nothing here: mtt/cifar10_ipc1"):
        replace(find("mtt/cifar10_ipc1"), scaled_to="mlp")
    with pytest.raises(UserError, match="Unknown network 'lenett'"):
        check_networks(replace(recipe, scaled_to="lenett"), data)


def test_a_network_that_moves_nothing_keeps_its_weight(data, monkeypatch):
    recipe = for_networks(dm(), [NARROW, "lenet", WIDE])
    lengths = iter([2.0, 0.0, 0.5])
    monkeypatch.setattr(turns, "_slope", lambda *asked: next(lengths))
    _, objective = prepare(recipe, data, CPU, None, seed=0)
    assert turns.facts(objective) == {"scales": [1.0, 1.0, 4.0]}


def test_one_network_has_no_scale(data):
    _, objective = prepare(dm(), data, CPU, None, seed=0)
    assert not isinstance(objective, InTurn) and turns.facts(objective) == {}
    assert turns.alone(objective) == [objective]

    class OfUser:  # a class of a user that has the two methods of an objective and no others
        def init(self, rng):
            return {}

        def losses(self, syn, state, step, rng):
            yield torch.zeros(())

    of_user = OfUser()
    syn = prepare(dm(), data, CPU, None, seed=0)[0]
    assert turns.balanced(dm().objective, of_user, syn, []) is of_user
    assert turns.alone(of_user) == [of_user] and turns.facts(of_user) == {}


# Turns of teachers


def test_teachers_that_take_turns_see_every_image_step_by_step(data):
    recipe = dm(ipc=2)
    syn, _ = prepare(recipe, data, CPU, None, seed=0)
    config = StatisticsMatching(batches=OnePerClass(classes=4), turns="steps")
    every = set(range(len(syn)))
    for step in range(4):
        groups = config.groups(syn, 3, step)
        assert {teacher for teacher, _ in groups} == {step % 3}
        assert {i for _, index in groups for i in index.flatten().tolist()} == every
    shared = replace(config, turns="images").groups(syn, 3, 1)
    assert {teacher for teacher, _ in shared} == {0, 1}  # two images a class: one has no part
    with pytest.raises(UserError, match=r"objective\.adjust 0\.1 .*objective\.turns steps"):
        replace(config, adjust=0.1)


# What it costs


def test_the_bound_is_that_of_the_largest_network(data):
    recipe = dm()
    syn, _ = prepare(recipe, data, CPU, None, seed=0)

    def bound(*networks):
        return bounds.memory_bound(for_networks(recipe, networks), syn, data, CPU, None)

    assert bound(NARROW) < bound(WIDE)
    assert bound(NARROW, WIDE) == bound(WIDE, NARROW) == bound(WIDE)


def test_a_calibration_times_every_network(data, monkeypatch, tmp_path):
    """And says the mean, however long the turns are."""
    recipe = for_networks(dm(), [NARROW, WIDE])
    recipe = replace(recipe, outer=replace(recipe.outer, steps=6))
    syn, objective = prepare(recipe, data, CPU, None, seed=0)
    assert isinstance(objective, InTurn)
    seconds = dict(zip(map(id, turns.alone(objective)), (1.0, 3.0), strict=True))

    def timed(device, action):
        action()
        return seconds[current[0]], None

    current = []

    def outer_step(syn, of, config, state, seed):
        current[:] = [id(of)]
        state.step += 1
        return torch.zeros(1)

    monkeypatch.setattr(calibrate, "timed", timed)
    monkeypatch.setattr(calibrate.loop, "outer_step", outer_step)
    job = Job(recipe=recipe, load=lambda device: data)
    made = calibrate.Run(job, recipe, data, CPU, None, tmp_path)
    assert calibrate._steps(made, syn, objective)[0] == 2.0


def test_the_largest_network_is_tried_where_memory_may_not_do(data, monkeypatch):
    recipe = for_networks(dm(), [NARROW, WIDE])
    seen = []
    step = bounds.loop.outer_step

    def outer_step(syn, of, config, state, seed):
        seen.append(of.env.model.num_params)
        return step(syn, of, config, state, seed)

    monkeypatch.setattr(bounds.loop, "outer_step", outer_step)
    bounds.trial(0.0, Job(recipe=recipe, load=lambda device: data, device="cpu"))
    assert len(set(seen)) == 2


def test_what_is_said_of_the_images_is_said_once(data, capsys):
    recipe = for_networks(dm(), [NARROW, WIDE])
    recipe = replace(recipe, objective=replace(recipe.objective, real_batch=100))
    objective_of(recipe.objective, environments(recipe, data, CPU, None))
    assert "".join(capsys.readouterr()).count("objective.real_batch") == 1


# Commands


def flags(*more: str) -> list[str]:
    """A tiny distillation of digits."""
    line = (
        "dm/fashion_mnist_ipc1_small --data.name digits --data.limit 200 --objective.real_batch 8 "
        "--outer.steps 4 --outer.optim.images.lr 1 --device cpu"
    )
    return ["distill", *line.split(), *more]


def test_the_command_and_python_make_the_same_set(tmp_path, monkeypatch, capsys):
    """Which says its networks, and is evaluated on them."""
    monkeypatch.chdir(tmp_path)
    assert run(*flags("--for", WIDE, NARROW, "--out", "one")) == 0
    recipe = find(
        "dm/fashion_mnist_ipc1_small",
        objective={"real_batch": 8},
        outer={"steps": 4, "optim": {"images": {"lr": 1.0}}},
        data={"name": "digits", "limit": 200},
    )
    made = ddengine.distill(None, recipe, models=[WIDE, NARROW], device="cpu", progress=False)
    stored = load_file(tmp_path / "one" / "distilled" / "data.safetensors")
    assert torch.equal(made.tensors["images"], stored["images"])
    meta = json.loads(Path("one/distilled/meta.json").read_text())
    assert meta["recipe"]["more_models"] == [NARROW]
    first, second = meta["distillation"]["scales"]
    assert 0 < first != second > 0
    assert meta["recipe"]["scaled_to"] == "convnet-d3-w16-in"
    card = Path("one/distilled/README.md").read_text()
    assert f"{WIDE}, {NARROW}, in turn" in card
    assert f"Fitted to 2 networks (`{WIDE}`, `{NARROW}`)" in card
    capsys.readouterr()
    assert run("inspect", "one") == 0
    assert NARROW in capsys.readouterr().out
    assert run(*flags("--for", WIDE, NARROW, "--out", "one")) == 0
    assert "is finished" in capsys.readouterr().out
    assert run(*flags("--for", NARROW, WIDE, "--out", "one")) == 2
    quick = "--epochs 2 --num_networks 3 --lr_grid 0.01 --baselines random --device cpu".split()
    assert run("evaluate", "one", *quick) == 0
    rows = json.loads(Path("one/evaluation.json").read_text())["rows"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == [WIDE, NARROW]


def test_a_set_for_several_networks_is_validated_on_each(tmp_path, monkeypatch, capsys):
    """And its accuracy is their mean, which is said."""
    monkeypatch.chdir(tmp_path)
    reached = {WIDE: 0.5, NARROW: 0.25}
    monkeypatch.setattr(
        "ddengine.evaluation.train.validate", lambda syn, data, config, model, **o: reached[model]
    )
    often = ("--outer.evaluate_every", "4")
    assert run(*flags("--for", WIDE, NARROW, "--out", "both", *often)) == 0
    meta = json.loads(Path("both/distilled/meta.json").read_text())
    assert meta["distillation"]["validation_accuracy"] == 0.375
    said = " ".join(capsys.readouterr().out.split())
    assert f"validation accuracy in the end 37.5 %, the mean of {WIDE} and {NARROW}" in said
    reached[NARROW] = None  # one diverged
    assert run(*flags("--for", WIDE, NARROW, "--out", "lost", *often)) == 0
    meta = json.loads(Path("lost/distilled/meta.json").read_text())
    assert meta["distillation"]["validation_accuracy"] is None


def test_teachers_are_validated_on_where_the_set_is_for_all_of_them():
    soft = find("infer/fashion_mnist_ipc10_small")
    assert soft.validated_on == (soft.model,)
    names = ["convnet-d2-w8-bn", "resnet18-bn-x12"]
    assert for_networks(soft, names).validated_on == tuple(names)
    assert dm().validated_on == (dm().model,)


def test_the_network_of_the_recipe_alone_is_the_recipe(tmp_path, monkeypatch, capsys):
    """Of another, `--for` fits the losses to the rates, and `--model` leaves both as they are."""
    monkeypatch.chdir(tmp_path)
    assert run(*flags("--model", NARROW, "--out", "one")) == 0
    assert run(*flags("--model", NARROW, "--for", NARROW, "--out", "one")) == 0
    assert "is finished" in capsys.readouterr().out
    assert run(*flags("--for", NARROW, "--out", "one")) == 2
    assert "with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("distill mtt/digits_ipc1 --for mlp lenet", "follows the trajectories of experts"),
        ("select dm/fashion_mnist_ipc1_small --for mlp lenet", "--for"),
        ("distill dm/fashion_mnist_ipc1_small --for convnet-d2 mpl", "nearest: mlp"),
        ("distill sre2l/fashion_mnist_ipc10_small --for lenet", "lenet has no BatchNorm"),
    ],
)
def test_networks_that_do_not_go_are_refused_before_the_first_step(
    line, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(*line.split(), "--data.name", "digits", "--data.limit", "200") == 2
    assert says in " ".join("".join(capsys.readouterr()).split())


def test_a_page_says_the_command_of_several_networks():
    from types import SimpleNamespace

    from ddengine.pages import commands

    def shown(of) -> list[str]:
        run: Any = SimpleNamespace(recipe=to_dict(of))
        return commands._network_flags(run)

    assert shown(for_networks(dm(), [WIDE, NARROW])) == ["--for", WIDE, NARROW]
    assert shown(dm()) == ["--model", NARROW]
