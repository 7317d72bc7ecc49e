"""What a run leaves to the machine: chosen once, stored, and obeyed when the run goes on."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU, DIGITS, MODEL, tiny_data, tiny_env, tiny_set, tiny_store
from torch.utils._pytree import tree_map

import ddengine
import synth
from ddengine.api import checks, choices, compiling
from ddengine.commands.words import with_values
from ddengine.learning import inner, memory
from ddengine.recipe import resolved
from ddengine.system import dist, files, pool, runtime
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from synth import trajectory

STEPS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images and experts of them."""
    data = tiny_data()
    return data, tiny_store(tmp_path_factory.mktemp("store"), data)


def recipe(**changes):
    """A short distillation that follows these experts."""
    found = synth.find("mtt/digits_ipc1", model=MODEL)
    objective = replace(found.objective, inner_steps=STEPS, expert_epochs=1, batch=None, **changes)
    objective = replace(objective, window=replace(objective.window, high=2))
    outer = replace(found.outer, steps=6, checkpoint_every=2, evaluate_every=0, picture_every=0)
    return replace(found, objective=objective, outer=outer, data=DIGITS)


def objective_of(world, **changes):
    data, store = world
    return recipe(**changes).objective.build(tiny_env(data, store))


def graph_of_one(world):
    """Bytes of the graph of an inner step."""
    syn = tiny_set(world[0], lr=0.05)
    objective = objective_of(world)
    return memory.graph_bytes(lambda: objective.reached_by_one_step(syn))


def test_as_many_graphs_are_kept_as_a_share_of_the_memory_holds(world):
    """All of a segment, some, or none: replay."""
    syn, objective = tiny_set(world[0], lr=0.05), objective_of(world)
    one = int(graph_of_one(world) / memory.KEPT_SHARE)
    for room, kept in ((10**15, STEPS), (2.5 * one, 2), (0.9 * one, 0)):
        assert objective.config.choices(objective, syn, int(room)) == {"kept_graphs": kept}
    for named in ("replay", "full", "detached"):
        objective = objective_of(world, backprop=named)
        assert objective.config.choices(objective, syn, 10**15) == {}


def test_the_measured_graph_is_what_keeping_takes(world):
    """Twice the images, nearly twice the graph; the parameters count once."""
    small, large = tiny_set(world[0], ipc=2, lr=0.05), tiny_set(world[0], ipc=4, lr=0.05)
    objective = objective_of(world)
    sizes = [
        memory.graph_bytes(lambda syn=syn: objective.reached_by_one_step(syn))
        for syn in (small, large)
    ]
    assert 1.5 < sizes[1] / sizes[0] < 2.05


def test_identities_are_those_of_replay():
    """Which was the default; what is stored of a recipe says auto."""
    assert digest(resolved(recipe())) == digest(resolved(recipe(backprop="replay")))
    assert digest(resolved(recipe())) != digest(resolved(recipe(backprop="detached")))
    assert recipe().objective.backprop == "auto"


def distilled(world, folder, room, monkeypatch, *, stop_at=None):
    """A distillation where so many bytes are available, which may be stopped as a kill would."""
    _, store = world

    def told(title, done, total, note):
        if done == stop_at and title == "distill":
            raise KeyboardInterrupt

    monkeypatch.setattr(dist, "available_memory", lambda device: room)
    return ddengine.distill(None, recipe(), store, folder=folder, progress=told)


@pytest.mark.parametrize("begun, resumed", [(10**15, 0), (0, 10**15)])
def test_a_killed_run_goes_on_as_it_began(world, tmp_path, monkeypatch, begun, resumed):
    """With the memory on the other side of the threshold."""
    at_once = distilled(world, tmp_path / "once", begun, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        distilled(world, tmp_path / "killed", begun, monkeypatch, stop_at=3)
    again = distilled(world, tmp_path / "killed", resumed, monkeypatch)
    kept = STEPS if begun else 0
    stored = files.read_json(tmp_path / "killed" / choices.CHOICES)
    assert stored == {"objectives": [{"kept_graphs": kept}]}
    assert torch.equal(again.tensors["images"], at_once.tensors["images"])
    other = distilled(world, tmp_path / "other", resumed, monkeypatch)
    assert torch.allclose(other.tensors["images"], at_once.tensors["images"], atol=1e-4)


def test_a_run_that_was_begun_before_there_was_a_choice_goes_on_by_replay(
    world, tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        distilled(world, tmp_path / "old", 0, monkeypatch, stop_at=3)
    (tmp_path / "old" / choices.CHOICES).unlink()
    old = distilled(world, tmp_path / "old", 10**15, monkeypatch)
    assert files.read_json(tmp_path / "old" / choices.CHOICES) == {"objectives": [{}]}
    replayed = distilled(world, None, 0, monkeypatch)
    assert torch.equal(old.tensors["images"], replayed.tensors["images"])


# Whether it is compiled.

SLOW, QUICK = (100.0, 0.0), (1e-3, 0.0)  # seconds of a step, and what the first takes more


def rounding(graph):
    """In place of a compiler."""
    return lambda *tensors: tree_map(lambda tensor: tensor * (1 + 1e-6), graph(*tensors))


def timings(monkeypatch, eager, compiled=(50.0, 7.0)):
    """Steps take so long; the list says what was timed. What compiles rounds as a compiler may."""
    seen = []

    def stand_in(asked, syn, objective, *, twice):
        seen.append("compiled" if objective.env.compile else "eager")
        return compiled if objective.env.compile else eager

    def inner_gradient(loss, compile=False):
        if compile:
            return inner.Compiled(loss, compiler=rounding)
        return inner.inner_gradient(loss)

    monkeypatch.setattr(compiling, "_seconds", stand_in)
    monkeypatch.setattr(trajectory, "inner_gradient", inner_gradient)
    return seen


def automatic(world, folder, *, stop_at=None):
    """A distillation that chooses whether it is compiled, which may be stopped."""
    _, store = world

    def told(title, done, total, note):
        if done == stop_at and title == "distill":
            raise KeyboardInterrupt

    return ddengine.distill(
        None, recipe(), store, folder=folder, compile="auto", progress=told
    ).tensors["images"]


@pytest.mark.parametrize("begun, resumed", [(SLOW, QUICK), (QUICK, SLOW)])
def test_a_killed_run_goes_on_compiled_or_not(world, tmp_path, monkeypatch, begun, resumed):
    """With steps on the other side of the threshold."""
    timings(monkeypatch, begun)
    at_once = automatic(world, tmp_path / "a" / "once")
    with pytest.raises(KeyboardInterrupt):
        automatic(world, tmp_path / "b" / "killed", stop_at=3)
    seen = timings(monkeypatch, resumed)
    again = automatic(world, tmp_path / "b" / "killed")
    assert not seen
    stored = files.read_json(tmp_path / "b" / "killed" / choices.CHOICES)
    assert stored["compile"] == (begun == SLOW)
    assert stored["objectives"] == [{"kept_graphs": 0 if begun == SLOW else STEPS}]
    assert torch.equal(again, at_once)


def test_what_compiling_takes_is_measured_once(world, tmp_path, monkeypatch):
    """And another run of the same shapes goes by it: 6 steps that save half of 3 s, or of 2 s."""
    seen = timings(monkeypatch, SLOW)
    automatic(world, tmp_path / "first")
    assert seen == ["eager", "compiled"]
    (kept,) = (tmp_path / compiling.FOLDER).glob("*.json")
    assert files.read_json(kept)["seconds"] == 7.0 and files.read_json(kept)["share"] == 0.5
    for seconds, pays in ((3.0, True), (2.0, False)):
        seen = timings(monkeypatch, (seconds, 0.0))
        automatic(world, tmp_path / f"later_{seconds}")
        assert seen == ["eager"]
        stored = files.read_json(tmp_path / f"later_{seconds}" / choices.CHOICES)
        assert stored["compile"] is pays


def test_what_compiling_saves_is_measured_again_where_other_graphs_are_kept(
    world, tmp_path, monkeypatch
):
    """Because that is what a compiled step is compared with."""
    for number, room in enumerate((10**15, 0, 10**15)):
        monkeypatch.setattr(dist, "available_memory", lambda device, room=room: room)
        seen = timings(monkeypatch, SLOW)
        automatic(world, tmp_path / f"run_{number}")
        assert seen == (["eager"] if number == 2 else ["eager", "compiled"])


def test_processes_of_the_same_work_share_the_memory(monkeypatch):
    """Runs of a sweep, and ranks, which have a CUDA device each."""
    monkeypatch.setattr(dist, "available_memory", lambda device: 1200)
    assert dist.share_of_memory(CPU) == 1200
    monkeypatch.setattr(dist, "ranks_here", lambda: 2)
    with pool.environment(**{dist.AT_A_TIME: "3"}):
        assert dist.share_of_memory(CPU) == 200
        assert dist.share_of_memory(torch.device("cuda")) == 400


def processes_at_a_time(report):
    """A task of a pool."""
    return os.environ[dist.AT_A_TIME]


def test_a_pool_says_how_many_run_at_a_time():
    said = {}
    watcher = SimpleNamespace(ended=said.__setitem__, progress=lambda *_: None)
    pool.run_all(dict.fromkeys("ab", processes_at_a_time), watcher, jobs=4, threads=1)
    assert {name: end.value for name, end in said.items()} == {"a": "2", "b": "2"}
    assert dist.AT_A_TIME not in os.environ


def test_code_lies_beside_each_run_and_the_environment_stays(world, tmp_path, monkeypatch):
    """Unless the user has named a place."""
    monkeypatch.delenv(compiling.CODE, raising=False)
    places = []

    def stand_in(asked, syn, objective, *, twice):
        places.append(os.environ[compiling.CODE])
        return QUICK

    monkeypatch.setattr(compiling, "_seconds", stand_in)
    for name in ("one", "other"):
        automatic(world, tmp_path / name / "run")
        assert compiling.CODE not in os.environ
    monkeypatch.setenv(compiling.CODE, "mine")
    automatic(world, tmp_path / "third" / "run")
    code = Path(compiling.FOLDER) / "code"
    assert places == [str(tmp_path / "one" / code), str(tmp_path / "other" / code), "mine"]
    assert os.environ[compiling.CODE] == "mine"


def test_the_first_rank_measures_for_all(world, monkeypatch):
    """By itself, so that nothing waits for ranks that measure nothing."""
    asked = SimpleNamespace(recipe=recipe(), data=world[0], device=CPU, compile="auto")
    asked.precision, seen = "fp32", []
    monkeypatch.setattr(dist.td, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.td, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "told", lambda value: True)
    monkeypatch.setattr(compiling, "compiled", lambda *_: "compiled")
    monkeypatch.setattr(compiling, "_if_it_pays", lambda *_: seen.append(dist.num_ranks()))
    for rank in range(2):
        monkeypatch.setattr(dist.td, "get_rank", lambda rank=rank: rank)
        settled = compiling.settled(asked, None, None, None, None)
        assert settled == ("compiled", {"compile": True}) and dist.num_ranks() == 2
    assert seen == [1]


def test_ranks_go_by_what_the_first_one_read(tmp_path, monkeypatch):
    """Also one that comes when the first has stored its choice: both are told as often."""
    asked = SimpleNamespace(compile="auto")
    asked.recipe = asked.data = asked.device = asked.precision = None
    said, heard = [], []

    def told(value):
        (heard if dist.rank() else said).append(value)
        return said[len(heard) - 1] if dist.rank() else value

    monkeypatch.setattr(dist, "told", told)
    monkeypatch.setattr(compiling, "compiled", lambda *_: "compiled")
    monkeypatch.setattr(compiling, "_if_it_pays", lambda *_: "compiled")
    for _ in range(2):  # the second time as a run that goes on
        for rank in range(2):
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            settled = compiling.settled(asked, None, None, None, tmp_path)
            assert settled == ("compiled", {"compile": True})
            files.write_json(tmp_path / choices.CHOICES, {"objectives": [], "compile": True})
        assert len(said) == len(heard)


@pytest.mark.parametrize("said", ['{"seconds": "7", "share": 0.5}', "[", '{"share": -1}'])
def test_what_was_measured_of_compiling_and_is_damaged_is_measured_again(
    world, tmp_path, monkeypatch, capsys, said
):
    seen = timings(monkeypatch, SLOW)
    automatic(world, tmp_path / "first")
    (kept,) = (tmp_path / compiling.FOLDER).glob("*.json")
    kept.write_text(said)
    automatic(world, tmp_path / "second")
    assert seen == ["eager", "compiled"] * 2 and "is damaged" in capsys.readouterr().out
    assert files.read_json(kept)["seconds"] == 7.0


def test_a_compiler_that_fails_or_is_slower_is_left_out(world, tmp_path, monkeypatch, capsys):
    timings(monkeypatch, SLOW, compiled=(101.0, 7.0))
    automatic(world, tmp_path / "slower")
    assert files.read_json(tmp_path / "slower" / choices.CHOICES)["compile"] is False

    def broken(asked, syn, objective, *, twice):
        if objective.env.compile:
            raise RuntimeError("no compiler")
        return SLOW

    monkeypatch.setattr(compiling, "_seconds", broken)
    _, store = world
    ddengine.distill(None, recipe(), store, folder=tmp_path / "x" / "run", compile="auto")
    assert files.read_json(tmp_path / "x" / "run" / choices.CHOICES)["compile"] is False
    assert "not compiled, as that failed: no compiler" in capsys.readouterr().out


def test_a_step_is_timed_as_it_would_be_made(world):
    """Of a set and an objective that remember nothing of it."""
    syn, objective = tiny_set(world[0], lr=0.05), objective_of(world)
    before = {name: tensor.clone() for name, tensor in syn.tensors.items()}
    asked = SimpleNamespace(recipe=recipe(), device=CPU)
    assert compiling._left_to_the_machine(asked, syn, objective) == [{"kept_graphs": True}]
    seconds, more = compiling._seconds(asked, syn, objective, twice=True)
    assert 0 < seconds < 60 and more >= 0 and objective.kept_graphs == STEPS
    assert all(torch.equal(syn.tensors[name], before[name]) for name in before)
    assert all(tensor.grad is None for tensor in syn.tensors.values())


def test_the_flag_of_compiling_stands_alone_or_with_a_value():
    for words, value in ((["--compile"], "on"), (["--no-compile"], "off")):
        assert with_values([*words, "mtt/digits_ipc1"]) == ["--compile", value, "mtt/digits_ipc1"]
    line = ["mtt/digits_ipc1", "--compile", "auto", "--seed", "1"]
    assert with_values(line) == line and with_values(["--compile=auto"]) == ["--compile=auto"]


def test_networks_that_take_turns_choose_each(world):
    """By what they are told in their order."""
    from ddengine.turns import InTurn

    data, store = world
    config = recipe().objective
    both = InTurn(config, [config.build(tiny_env(data, store)) for _ in range(2)])
    chosen = choices.choose(config, both, tiny_set(data, lr=0.05), CPU)
    assert chosen == [{"kept_graphs": STEPS}] * 2
    assert [one.kept_graphs for one in both.objectives] == [STEPS, STEPS]


@pytest.mark.parametrize("seconds, said", [(3.0, "takes 3.0 times as long as fp32"), (0.4, "")])
def test_bfloat16_that_is_slower_is_said(monkeypatch, capsys, seconds, said):
    """Measured; of other precisions nothing is."""
    measured = {"fp32": 1.0, "bf16": seconds}
    monkeypatch.setattr(runtime, "_layer_seconds", measured.get)
    checks.say_slow_precision("bf16", CPU)
    told = capsys.readouterr().out
    assert said in told and bool(said) == bool(told)
    monkeypatch.setattr(runtime, "_layer_seconds", None)
    checks.say_slow_precision("fp32", CPU)


def test_a_layer_is_measured_in_both_precisions():
    assert runtime._layer_seconds("fp32") > 0 and runtime._layer_seconds("bf16") > 0


def test_scales_of_networks_are_those_of_the_beginning(world, tmp_path):
    """Stored when a run begins, and obeyed when it goes on, whatever would be measured then."""
    from ddengine.turns import InTurn

    data, store = world
    config = recipe().objective
    networks = [config.build(tiny_env(data, store)) for _ in range(2)]
    syn = tiny_set(data, lr=0.05)
    choices.choose(config, InTurn(config, networks, [1.0, 0.25]), syn, CPU, tmp_path)
    measured_again = InTurn(config, networks, [1.0, 0.2501])
    choices.choose(config, measured_again, syn, CPU, tmp_path)
    assert measured_again.scales == [1.0, 0.25]


@pytest.mark.parametrize("seed", [2**63, -(2**63)])
def test_seeds_that_no_file_holds_are_refused(seed):
    checks.check_run(seed // 2, "fp32")
    with pytest.raises(UserError, match="63 bits"):
        checks.check_run(seed, "fp32")
