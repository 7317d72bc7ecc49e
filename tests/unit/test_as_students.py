"""Networks that are trained on a set as its students were: optimiser, step sizes, batches."""

import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import CPU, MODEL, shipped_loader, tiny_data, tiny_set
from torch.nn import functional

import ddengine
from ddengine.api.evaluate import asked_protocol
from ddengine.api.results import Distilled
from ddengine.artefact import folder as folders
from ddengine.evaluation import protocol, settings
from ddengine.evaluation.decoded import freeze
from ddengine.learning.by_higher import TorchOptimiser
from ddengine.learning.class_batches import class_batch
from ddengine.learning.training import train_networks
from ddengine.learning.updates import Adam, HeavyBall, Sgd
from ddengine.models import build_model
from ddengine.recipe import ClassBatches, EvalConfig, as_students, check_students_decide
from ddengine.system.configs import from_dict, to_dict
from ddengine.system.rng import generator
from synth.bptt import ThroughTraining
from synth.inner_batches import InnerBatches
from synth.recipes.protocols import PROTOCOLS
from synth.windows import FromStart

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

SHORT = replace(PROTOCOLS["fast"], epochs=1, rate="learned")
UPDATES = {
    "sgd": (Sgd(), 0.3, lambda p: torch.optim.SGD(p, 0.3, weight_decay=0.01)),
    "heavy ball": (
        HeavyBall(momentum=0.7),
        0.1,
        lambda p: torch.optim.SGD(p, 0.1, 0.7, weight_decay=0.01),
    ),
    "adam": (
        Adam(beta1=0.8, beta2=0.9, eps=1e-3, eps_as="higher"),
        0.05,
        lambda p: torch.optim.Adam(p, 0.05, (0.8, 0.9), 1e-3, weight_decay=0.01),
    ),
    "torch": (
        TorchOptimiser(name="Adagrad"),
        0.05,
        lambda p: torch.optim.Adagrad(p, 0.05, weight_decay=0.01),
    ),
}


def objective(update, lr, **options):
    """Four steps of students on some images."""
    chosen = {"weight_decay": 0.01, "batches": InnerBatches(per_class=1, order="turns"), **options}
    return ThroughTraining(
        inner_steps=4, window=FromStart(size=4), update=update, lr=lr, real_batch=16, **chosen
    )


def told(config, syn):
    """The protocol bptt, as the set says it."""
    return as_students(PROTOCOLS["bptt"], config.students(syn))


def trained(protocol_of_set, syn, seed=0):
    """The flat parameters of a network that is trained on the set."""
    data = tiny_data()
    new_model = partial(build_model, MODEL, data.image_shape, data.num_classes)
    lr = protocol_of_set.lr
    (network,) = train_networks(new_model, [freeze(syn, CPU)], [seed], protocol_of_set, lr, CPU)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def by_hand(make, syn, rates, seed=0):
    """The same by a loop of plain torch, on one image of each class in turn."""
    data = tiny_data()
    network = build_model(MODEL, data.image_shape, data.num_classes, generator(seed, "network"))
    network.train()
    optimiser = make(network.parameters())
    images, classes = syn.batch(torch.arange(len(syn)))
    for step, rate in enumerate(rates):
        index = torch.arange(0, len(syn), 2) + step % 2
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        functional.cross_entropy(network(images[index]), classes[index]).backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("name", UPDATES)
def test_networks_step_as_students_do(name):
    """By the update of the objective, with its settings and its rate, for as many steps."""
    update, lr, make = UPDATES[name]
    syn = tiny_set(tiny_data())
    ours = trained(told(objective(update, lr), syn), syn)
    assert torch.allclose(ours, by_hand(make, syn, [lr] * 4), atol=1e-5)


def test_learned_step_sizes_are_those_of_the_updates():
    """One after another, and over again in longer trainings."""
    syn = tiny_set(tiny_data())
    raw = torch.tensor([-2.0, -1.0, 0.0, 0.5])
    learned = syn.with_tensors({"rates": raw})
    config = told(objective(Sgd(), 0.3, learned_rates=True), learned)
    rates = functional.softplus(raw).tolist()
    assert config.students.rates == pytest.approx(rates)
    ours = trained(config, syn)
    assert torch.allclose(ours, by_hand(UPDATES["sgd"][2], syn, rates), atol=1e-5)
    longer = trained(replace(config, updates=6), syn)
    by_loop = by_hand(UPDATES["sgd"][2], syn, [*rates, *rates[:2]])
    assert torch.allclose(longer, by_loop, atol=1e-5)
    assert not torch.allclose(ours, longer, atol=1e-3)
    half = trained(replace(config, lr=config.lr / 2), syn)
    halves = [rate / 2 for rate in rates]
    assert torch.allclose(half, by_hand(UPDATES["sgd"][2], syn, halves), atol=1e-5)


def test_commands_that_are_written_down_change_what_may_be_changed():
    """Those by this protocol, of the tables and of the documentation."""
    from table import OWN_TRAINING

    syn = tiny_set(tiny_data())
    config = told(objective(Sgd(), 0.3), syn)
    methods = (ROOT / "docs" / "methods.md").read_text()
    written = re.findall(r"run evaluate .*--protocol bptt[^#\n]*", methods)
    assert written
    for line in [*written, " ".join(OWN_TRAINING)]:
        check_students_decide(config, re.findall(r"--(\w+)", line))


def test_several_networks_in_one_computation_are_those_of_each_alone():
    """Whatever they are trained by."""
    data = tiny_data()
    syn = tiny_set(data)
    config = told(objective(Adam(), 0.01, batches=InnerBatches(per_class=1)), syn)
    new_model = partial(build_model, MODEL, data.image_shape, data.num_classes)
    of = freeze(syn, CPU)
    both = train_networks(new_model, [of, of], [3, 4], config, config.lr, CPU)
    for network, seed in zip(both, (3, 4), strict=True):
        alone = trained(config, syn, seed)
        together = torch.cat([p.detach().flatten() for p in network.parameters()])
        assert torch.allclose(alone, together, atol=1e-5)
    assert not torch.allclose(trained(config, syn, 3), trained(config, syn, 4), atol=1e-3)


def test_batches_of_some_images_of_each_class_of_any_set():
    """At random or in turns, of all classes or of some; all of a class that has too few."""
    classes = torch.tensor([2, 0, 1, 0, 2, 2, 0, 2])
    for step in range(3):
        drawn = class_batch(classes, ClassBatches(per_class=2), step, generator(step))
        assert classes[drawn].bincount().tolist() == [2, 1, 2]
        assert len(drawn.unique()) == 5
    one = ClassBatches(per_class=1)
    sets = {tuple(class_batch(classes, one, 0, generator(k)).tolist()) for k in range(30)}
    assert len(sets) > 3
    turns = ClassBatches(per_class=1, order="turns")
    seen = [class_batch(classes, turns, step, generator(0)).tolist() for step in range(4)]
    assert seen == [[1, 2, 0], [3, 2, 4], [6, 2, 5], [1, 2, 7]]
    some = ClassBatches(per_class=1, classes=2)
    drawn = [class_batch(classes, some, 0, generator(k)) for k in range(30)]
    pairs = {tuple(classes[index].tolist()) for index in drawn}
    assert pairs == {(0, 1), (0, 2), (1, 2)}
    assert len(class_batch(classes, ClassBatches(), 0, generator(0))) == len(classes)


def distilled(**options):
    """A set that says how its students were trained."""
    data = tiny_data()
    syn = tiny_set(data)
    config = objective(HeavyBall(), 0.1, **options)
    if config.learned_rates:
        syn = syn.with_tensors({"rates": torch.tensor(config.initial()["rates"]) + 0.1})
    recipe = {
        "name": "test", "model": MODEL, "data": {"name": "digits", "limit": 200},
        "evaluation": to_dict(PROTOCOLS["fast"]),
    }  # fmt: skip
    students = to_dict(config.students(syn))
    meta = {"recipe": recipe, "images": data.train.digest, "students": students}
    return Distilled(syn, meta)


def test_a_protocol_asks_the_set():
    """Changes by name hold whatever it says; a set that says nothing leaves it as it is."""
    of = distilled()
    config = asked_protocol(of, PROTOCOLS["bptt"])
    assert (config.updates, config.lr, config.batch) == (4, 0.1, 10)
    assert config.students.step.momentum == 0.9
    assert from_dict(EvalConfig, to_dict(config)) == config
    changed = asked_protocol(of, {"as_students": True, "lr": 0.5, "updates": 9})
    assert (changed.updates, changed.lr) == (9, 0.5)
    assert changed.students == config.students
    old = replace(of, meta={k: v for k, v in of.meta.items() if k != "students"})
    assert asked_protocol(old, PROTOCOLS["bptt"]) == PROTOCOLS["bptt"]
    assert asked_protocol(of, PROTOCOLS["mtt"]) == PROTOCOLS["mtt"]


def test_an_evaluation_says_how_networks_were_trained(capsys, tmp_path):
    """Its rows have the updates of students, the full data all epochs; what a set does not say is
    told.
    """
    of = distilled(learned_rates=True)
    asked = {
        "protocol": replace(PROTOCOLS["bptt"], full_steps=8), "baselines": ["random", "full"],
        "models": [MODEL],
    }  # fmt: skip
    table = ddengine.evaluate(of, folder=tmp_path / "own", **asked)
    steps = {row["set"]: row["steps"] for row in table.rows}
    assert steps["distilled"] == steps["random"] == 4
    assert steps["full"] > 4
    assert table.content["protocol"]["students"]["rates"] == pytest.approx(
        list(of.meta["students"]["steps"]["rates"])
    )
    again = ddengine.evaluate(of, folder=tmp_path / "own", **asked)
    assert again.content == table.content
    old = replace(of, meta={k: v for k, v in of.meta.items() if k != "students"})
    asked["protocol"] = replace(PROTOCOLS["bptt"], epochs=2)
    ddengine.evaluate(old, folder=tmp_path / "old", **{**asked, "baselines": []})
    assert "does not say how its students were trained" in capsys.readouterr().out
    one, other = (
        settings.Evaluated(name, of.meta, ddengine.evaluate(
            of, folder=tmp_path / name, **{**asked, "protocol": used, "baselines": []}
        ).content)
        for name, used in (("a", PROTOCOLS["bptt"]), ("b", SHORT))
    )  # fmt: skip
    assert "evaluation." in settings.difference([one], other, across=False)


@pytest.mark.parametrize("learned_rates", [False, True])
def test_the_shipped_folder_trains_so_too(tmp_path, learned_rates):
    """load.py makes the same network as the engine, from the facts that the folder says."""
    of = distilled(learned_rates=learned_rates)
    config = asked_protocol(of, PROTOCOLS["bptt"])
    recipe = of.meta["recipe"] | {"evaluation": to_dict(PROTOCOLS["bptt"])}
    folders.save(of.set, tmp_path / "set", of.meta | {"recipe": recipe})
    module = shipped_loader(tmp_path / "set")
    data = tiny_data()
    network = build_model(MODEL, data.image_shape, data.num_classes, generator(0, "network"))
    ours = torch.cat([p.detach().flatten() for p in module.train(network).parameters()])
    assert torch.allclose(ours, trained(config, of.set), atol=1e-5)
    _, meta = folders.load(tmp_path / "set", CPU)
    said = dict(protocol.words(meta["protocol"]))
    assert said["training"] == "as students of the set, 4 updates of at most 10 images"
    assert said["optimiser"] == "SGD, momentum 0.9, weight decay 0.01"
    assert ("of each update" in said["learning rate"]) == learned_rates
    text = (tmp_path / "set" / "load.py").read_text()
    assert "class_batch" in text and "cosine_rate" not in text
