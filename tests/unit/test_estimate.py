"""The estimate: its accounting is what an evaluation does, its processes fail in a sentence, its
check refuses with numbers.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CPU, DIGITS, MODEL, new_model, tiny_data, tiny_set
from torch import nn

from ddengine.data import load_data
from ddengine.evaluation.evaluate import evaluate
from ddengine.evaluation.train import validate
from ddengine.experts import AtOnce
from ddengine.learning import memory, training
from ddengine.learning.flat import flatten
from ddengine.plan import apart, bounds, calibrate, jobs, trainings
from ddengine.system import files, runtime
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.recipes.protocols import PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
TINY_EVALUATION = replace(
    PROTOCOLS["fast"], epochs=3, batch=16, num_networks=3, lr_grid=(0.01, 0.03), full_steps=14, search_networks=2,
    baselines=("random", "random_soft", "herding", "forgetting", "el2n", "eight_bit", "full"),
)  # fmt: skip


def load(device: torch.device, **options):
    return load_data(DIGITS, device, **options)


def failing(began: float, how: str) -> str:
    """What a part may do in its process."""
    if how == "bug":
        raise ValueError("no\nsecond line")
    if how == "dies":
        os._exit(3)
    if how == "memory":
        return str(torch.ones(2**29).sum())  # 2 GB
    return how


# What is counted.


def test_noted_trainings_are_those_of_the_evaluation(monkeypatch):
    """Updates of every network, counted by the augmentation draws of a real evaluation: one a
    network and update.
    """
    data, syn = load_data(DIGITS, CPU, test=True), tiny_set(tiny_data(), lr=0.02)
    done = []
    sample = training.augment.sample
    with monkeypatch.context() as patch:
        patch.setattr(training.augment, "sample", lambda *args: done.append(1) or sample(*args))
        real = evaluate(syn, data, TINY_EVALUATION, "mlp", seed=0, device=CPU)
    calls = trainings.Calls()
    noted = evaluate(syn, data, TINY_EVALUATION, "mlp", seed=0, device=CPU, means=calls.means)
    assert [(r["set"], r["steps"], r["n"]) for r in noted["rows"]] == [
        (r["set"], r["steps"], r["n"]) for r in real["rows"]
    ]
    assert calls.num_updates() == len(done) > 500
    assert calls.num_networks() == sum(len(asked.seeds) for asked in calls.trainings)


def test_noting_trains_nothing():
    data, syn, calls = tiny_data(), tiny_set(tiny_data(), lr=0.02), trainings.Calls()
    accuracy = validate(
        syn, data, TINY_EVALUATION, MODEL, seed=0, device=CPU, precision="fp32", means=calls.means
    )
    assert accuracy == 0.5 and len(calls.trainings) == len(calls.tests) == 1
    assert calls.trainings[0].updates == training.num_updates(20, TINY_EVALUATION)
    assert trainings.seconds_of(calls) > 0


def test_seconds_follow_the_updates(monkeypatch):
    """On a clock that ticks once an update: exactly the updates, whatever is timed, and networks
    that are trained alone each count.
    """
    now = [0.0]

    def train(new_model, sets, seeds, config, lr, device, *, steps):
        images = min(config.batch, len(sets[0]))
        small = len(seeds) * images * 64 <= training.MOST_PIXELS_CPU
        now[0] += steps * (1 if small else len(seeds))  # together they take the time of one
        return []

    data = tiny_data()
    asked = trainings.Training(
        new_model(data), [data.train] * 3, [0, 1, 2], TINY_EVALUATION, 0.01, CPU, {"steps": 500}
    )
    large = replace(asked, config=replace(TINY_EVALUATION, batch=128), options={"steps": 90})
    fewer = replace(asked, options={"steps": 7})
    monkeypatch.setattr(training, "train_networks", train)
    monkeypatch.setattr(apart.time, "perf_counter", lambda: now[0])
    assert trainings.seconds_of(trainings.Calls([asked])) == 500
    assert trainings.seconds_of(trainings.Calls([large])) == 270
    assert trainings.seconds_of(trainings.Calls([asked, fewer, large])) == 777


@pytest.mark.parametrize(
    ("kind", "networks", "updates"), [("herding", 1, 100), ("forgetting", 3, 300), ("el2n", 3, 30)]
)
def test_networks_that_choose_images_are_noted(tmp_path, kind, networks, updates):
    """And not trained."""
    data, recipe = tiny_data(), find("dm/fashion_mnist_ipc1_small")
    init = replace(recipe.init, kind=kind, steps=100)
    recipe = replace(recipe, data=DIGITS, model=MODEL, init=init)
    job = jobs.Job(recipe=recipe, device="cpu", load=load)
    calls = trainings.Calls()
    run = calibrate.Run(job, recipe, data, CPU, None, tmp_path)
    syn, _ = calibrate.prepared(run, recipe, calls)
    assert len(syn.tensors["images"]) == 10
    assert (calls.num_networks(), calls.num_updates()) == (networks, updates)


@pytest.mark.parametrize(
    ("steps", "every", "pictures", "left"),
    [(250, 50, 7, 6), (240, 50, 6, 6), (10, 0, 2, 2), (0, 5, 2, 1), (3, 5, 2, 2), (5, 5, 3, 2)],
)
def test_counts_of_a_distillation(steps, every, pictures, left):
    recipe = find("mtt/digits_ipc1")
    often = calibrate.counts(
        replace(
            recipe,
            outer=replace(
                recipe.outer,
                steps=steps,
                picture_every=every,
                evaluate_every=30,
                checkpoint_every=40,
            ),
        )
    )
    assert often == {
        "validations": -(-steps // 30),
        "checkpoints": -(-steps // 40),
        "pictures": pictures,
        "files": left,
    }


# Processes of their own.


@pytest.mark.parametrize(("how", "words"), [("bug", "ValueError: no"), ("dies", "code 3")])
def test_what_goes_wrong_in_a_process_is_one_sentence(how, words):
    with pytest.raises(UserError, match=words) as caught:
        apart.apart(failing, how)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


def test_a_limit_stops_a_process():
    with pytest.raises(MemoryError):
        apart.apart(failing, "memory", limit=10**9)


# The check.


def test_saved_bytes_are_the_input_and_the_hidden_layer():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    assert memory.saved_bytes(network, (1, 8, 8), CPU) == 4 * (64 + 32)


def job(**outer):
    recipe = find("dm/fashion_mnist_ipc1_small")
    recipe = replace(
        recipe,
        data=DIGITS,
        model=MODEL,
        objective=replace(recipe.objective, real_batch=8),
        outer=replace(recipe.outer, **outer),
    )
    return jobs.Job(recipe=recipe, device="cpu", load=load)


def test_a_small_run_passes_at_once(monkeypatch):
    monkeypatch.setattr(bounds, "apart", None)  # no process is started
    data = tiny_data()
    bounds.check(job(), tiny_set(data), data, Path("runs/x"), CPU)


def test_too_little_disk_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(bounds, "free_disk", lambda path: 5000)
    data = tiny_data()
    with pytest.raises(
        UserError,
        match=r"needs about .*MB of disk and 5 kB are free where runs/x lies; .*--force\.",
    ):
        bounds.check(job(), tiny_set(data), data, Path("runs/x"), CPU)


@pytest.mark.parametrize("needed", [10**12, None])
def test_too_little_memory_is_refused_with_numbers(monkeypatch, needed):
    """The trial says how much a step needs, or failed under the limit."""

    def trial(target, *args, limit):
        assert limit == 300_000
        if needed is None:
            raise MemoryError
        return needed

    monkeypatch.setattr(bounds, "available_memory", lambda device: 300_000)
    monkeypatch.setattr(bounds, "apart", trial)
    data = tiny_data()
    words = "about 1e[+]03 GB" if needed else "more than 300 kB"
    with pytest.raises(
        UserError,
        match=rf"needs {words} of memory beyond .* and 300 kB are available; lower objective.real_batch \(now 8\) or .*--force\.",
    ):
        bounds.check(job(), tiny_set(data), data, Path("runs/x"), CPU)


def test_a_trial_that_fits_is_enough(monkeypatch):
    tried = []
    monkeypatch.setattr(bounds, "available_memory", lambda device: 300_000)
    monkeypatch.setattr(
        bounds, "apart", lambda target, *args, limit: tried.append(target) or 200_000
    )
    data = tiny_data()
    bounds.check(job(), tiny_set(data), data, Path("runs/x"), CPU)
    assert tried == [bounds.trial]


def test_the_bound_follows_the_images_of_a_step():
    """Real images a class count for every class."""
    small, large = ({"real_batch": n} for n in (8, 15))
    data, recipe = tiny_data(), job(evaluate_every=0).recipe
    found = [
        bounds.memory_bound(
            replace(recipe, objective=replace(recipe.objective, **more)),
            tiny_set(data),
            data,
            CPU,
            None,
        )
        for more in (small, large)
    ]
    assert 1.5 < (found[1] - apart.FIRST_USE) / (found[0] - apart.FIRST_USE) < 2.1


def test_a_limit_of_the_group_counts(monkeypatch):
    whole = runtime.available_memory(CPU)
    assert 10**8 < whole < 10**14
    monkeypatch.setattr(
        runtime,
        "_number",
        lambda path: {"memory.max": 3 * 10**8, "memory.current": 2 * 10**8}[path.name],
    )
    monkeypatch.setattr(runtime, "_reclaimable", lambda group: 1000)
    assert runtime.available_memory(CPU) == 10**8 + 1000


def test_free_disk_is_of_the_folder_that_is_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        bounds.shutil,
        "disk_usage",
        lambda path: asked.append(path) or type("Usage", (), {"free": 7})(),
    )
    assert bounds.free_disk(tmp_path / "runs" / "a") == 7 and asked == [tmp_path]


@pytest.mark.parametrize(("keep", "kept"), [("all", 8), ("last", 1), ((2, 5), 4)])
def test_snapshots_of_an_expert_count_three_times(tmp_path, monkeypatch, keep, kept):
    """They lie in memory until it is done, and twice more while they are written; the calibration
    itself keeps only the last.
    """
    recipe = find("mtt/digits_ipc1")
    recipe = replace(
        recipe,
        data=DIGITS,
        model="convnet-d1-w4-bn",
        buffer=replace(recipe.buffer, epochs=7, keep=keep),
    )
    network = new_model(tiny_data(), recipe.model)(generator(0))
    numbers = sum(t.numel() for t in network.parameters()) + sum(
        t.numel() for t in network.buffers()
    )
    monkeypatch.setattr(calibrate, "peak_memory", lambda device: 1000)
    given = jobs.Job(recipe=recipe, device="cpu", load=load, train_expert=lambda *args: None)
    found = calibrate.buffer(0.0, given, tmp_path, {recipe.model: 2})
    assert found["memory"] == 1000 + 3 * kept * numbers * 4


def test_experts_side_by_side_take_less_time_and_more_memory(tmp_path, monkeypatch):
    """Three of 7 epochs of 2 seconds, two at a time on one thread each: the third waits."""
    recipe = find("mtt/digits_ipc1")
    recipe = replace(
        recipe, data=DIGITS, model="mlp", buffer=replace(recipe.buffer, epochs=7, keep="last")
    )
    threads = []

    def a_little(job, model, data, config):
        threads.append(torch.get_num_threads())
        return calibrate.Trained(torch.zeros(5), torch.zeros(5), None, 2.0)

    monkeypatch.setattr(calibrate, "_a_little_trained", a_little)
    monkeypatch.setattr(calibrate, "peak_memory", lambda device: 1000)
    monkeypatch.setattr(calibrate, "started", lambda began, job: (CPU, tiny_data(), 0.5))
    alone = jobs.Job(recipe=recipe, device="cpu", load=load)
    two = replace(alone, at_once=lambda data: AtOnce(experts=2, threads=1))
    found = [calibrate.buffer(0.0, job, tmp_path, {"mlp": 3}) for job in (alone, two)]
    assert [cost["seconds"] for cost in found] == [0.5 + 42.0, 0.5 + 28.0]
    assert found[1]["memory"] == 2 * found[0]["memory"] and threads[1] == 1
    assert calibrate._side_by_side([3.0, 2.0, 2.0], 2) == 4.0
    turns = replace(alone, at_once=lambda data: AtOnce(experts=3, threads=1, cores=2))
    taking_turns = calibrate.buffer(0.0, turns, tmp_path, {"mlp": 3})
    assert taking_turns["seconds"] == 0.5 + 21.0
    assert calibrate._until_all([10.0, 1.0, 1.0], AtOnce(experts=3, threads=1, cores=2)) == 10.0
    assert taking_turns["memory"] == 3 * found[0]["memory"]
    as_one = replace(alone, at_once=lambda data: AtOnce(experts=2, as_one=2.5))
    together = calibrate.buffer(0.0, as_one, tmp_path, {"mlp": 3})
    assert together["seconds"] == 0.5 + 35.0 and together["at_once"] == 2
    assert together["memory"] == 1000 + 2 * (found[0]["memory"] - 1000)  # snapshots of two


# Stand-ins for experts.


def test_stand_ins_have_the_shapes_of_the_store(tmp_path):
    recipe, data = find("mtt/digits_ipc1"), tiny_data()
    start, end = (flatten(new_model(data, recipe.model)(generator(seed))) for seed in (0, 1))
    files.write_tensors(tmp_path / "0.safetensors", {"start": start, "end": end})
    experts = jobs.StandIns(recipe, tmp_path, data)
    assert (
        list(experts.epochs) == list(range(11))
        and experts.num_params == len(start)
        and experts.num_experts == 3
    )
    assert torch.equal(experts.snapshots(1, [0, 10])[0], start) and torch.allclose(
        experts.snapshots(1, [0, 10])[1], end
    )
    assert torch.allclose(flatten(experts.load(0, 10)), end) and not experts.load(0, 10).training


SCRIPT = """
from pathlib import Path
import torch
from sklearn.datasets import load_digits
import ddengine, synth

with Path("runs.txt").open("a") as told:
    told.write("run")
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
data = ddengine.Dataset.of((images[:300], labels[:300]), test=(images[300:400], labels[300:400]))
recipe = synth.find(
    "dm/fashion_mnist_ipc1_small",
    model="mlp",
    data={"limit": None},
    objective={"real_batch": 10},
    outer={"steps": 2, "evaluate_every": 0, "picture_every": 0},
    evaluation={"epochs": 2, "lr_grid": (0.01,), "full_steps": 5},
)
print([row["name"] for row in ddengine.estimate(data, recipe, progress=False).rows])
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    """Its work is not done again in the processes that calibrate, and images that Python holds are
    calibrated as others are.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "['buffer', 'distill', 'evaluate']" in done.stdout
    assert (tmp_path / "runs.txt").read_text() == "run"
