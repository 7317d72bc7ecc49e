"""Several processes:

R ranks with one draw each equal one rank with R draws, and experts are shared out.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from helpers import CPU, Pull, tiny_data, tiny_set, tiny_store
from safetensors.torch import load_file
from torch import Tensor

import ddengine
import synth
from ddengine import loop
from ddengine.evaluation import beside
from ddengine.recipe import OptimConfig, OuterConfig, Recipe
from ddengine.system import dist
from synth.distances import LearnedCharacteristic
from synth.networks import OnReal

TESTS = Path(__file__).resolve().parents[1]
PROGRAM = f"""
import sys
sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}, {str(TESTS / "contract")!r}]
import conftest, test_ranks
test_ranks.work(test_ranks.Path(sys.argv[1]), int(sys.argv[2]))
"""


class Stateless(Pull):
    """A loss known beforehand, without a state, which several ranks could not share."""

    def init(self, rng):
        """Nothing."""
        return {}

    def losses(self, syn, state, step, rng):
        """Those of Pull."""
        return super().losses(syn, {"calls": torch.zeros(())}, step, rng)


def work(folder: Path, draws: int) -> None:
    """What every rank does: six steps of a distillation, and its share of three experts."""
    dist.start(CPU)
    data = tiny_data()
    config = OuterConfig(
        steps=6, draws=draws, optim={"images": OptimConfig(lr=0.1)}, checkpoint_every=6
    )
    result, _ = loop.distill(
        tiny_set(data), Stateless(noise=1.0), config, folder / f"rank{dist.rank()}", seed=0
    )
    tiny_store(folder / "store", data, num_experts=3, epochs=1)
    torch.save(result.tensors["images"], folder / f"images{dist.rank()}.pt")
    if dist.num_ranks() > 1:
        share_messages(folder)
    evaluated(folder)
    torch.save(
        {name: images_of(recipe) for name, recipe in shared().items()},
        folder / f"shared{dist.rank()}.pt",
    )
    dist.end(0)


def small(name: str, **objective: Any) -> Recipe:
    """A recipe on a few digits."""
    changes = {
        "data": {"name": "digits", "limit": 200},
        "model": "convnet-d1-w4-in",
        "ipc": 2,
        "outer": {"steps": 4},
        "objective": {"real_batch": 8, **objective},
    }
    return synth.find(name, **changes)


def shared() -> dict[str, Recipe]:
    """Methods that keep a network between steps: ranks share the classes of each."""
    networks = {"steps": 3, "epochs": 2}
    dm = small("dm/fashion_mnist_ipc10_small")
    trained = OnReal(steps=3, images=40)
    learned = replace(
        dm.objective, distance=LearnedCharacteristic(number=8), classes_at_once=4, networks=trained
    )
    each = replace(dm.objective, networks=trained, classes_at_once=1)
    moving = replace(dm.outer, step_after="each")
    return {
        "dc": small("dc/fashion_mnist_ipc10_small", networks=networks),
        "dc by class": small("dc/fashion_mnist_ipc10_small", networks=networks, classes_at_once=1),
        "dsa": small("dsa/fashion_mnist_ipc10_small", networks=networks, classes_at_once=5),
        "dcc": small("dcc/fashion_mnist_ipc10_small", networks=networks),
        "idc": small("idc/fashion_mnist_ipc10_small", networks={"steps": 3, "images": 40}),
        "frepo": small("frepo/fashion_mnist_ipc1_small", pool={"size": 2, "steps": 3}),
        "dm": replace(dm, objective=replace(dm.objective, networks=trained)),
        "dm each": replace(dm, objective=each, outer=moving),
        "learned": replace(dm, objective=learned),
        "learned each": replace(dm, objective=learned, outer=moving),
    }


# whose losses are of the same classes on two ranks as on one, and so to the bit
EXACTLY = {"dc by class", "dsa", "idc", "dm each", "learned", "learned each"}


def images_of(recipe: Recipe) -> Tensor:
    """The images that come of it, of which nothing is kept."""
    return ddengine.distill(None, recipe, progress=False).set.tensors["images"]


def evaluated(folder: Path) -> None:
    """An evaluation of the set beside this folder, which the ranks share."""
    real, done = beside._result, []

    def result(*asked):
        made = real(*asked)
        done.append(asked[-1].facts["who"])
        return made

    beside._result = result
    outcome = ddengine.evaluate(
        folder.parent / "run",
        models=["convnet-d1-w4-in", "mlp"],
        baselines=["random", "herding", "full"],
        protocol={"epochs": 3, "num_networks": 3, "lr_grid": (0.01, 0.1), "search_networks": 1},
        folder=folder / "evaluation",
        full_seconds=None,
        reuse_baselines=False,
        progress=False,
    )
    beside._result = real
    (folder / f"done{dist.rank()}.json").write_text(json.dumps(done))
    rows = [
        {name: row[name] for name in ("set", "model", "lr", "accuracies")} for row in outcome.rows
    ]
    (folder / f"rows{dist.rank()}.json").write_text(json.dumps(rows))


def share_messages(folder: Path) -> None:
    """What ranks tell each other beside tensors; rank 1 writes what it has seen."""
    number = dist.rank()
    facts = dist.told({"of": number, "text": "x" * (dist.CHUNK + 1)})
    assert facts["of"] == 0 and len(facts["text"]) == dist.CHUNK + 1
    assert dist.most(number) == 1
    taken = list(dist.shared_out(range(5), "numbers"))
    (folder / f"taken{number}.json").write_text(json.dumps(taken))
    dist.meet()
    both = [json.loads((folder / f"taken{one}.json").read_text()) for one in range(2)]
    assert sorted(both[0] + both[1]) == [0, 1, 2, 3, 4]
    if number == 0:
        dist.put("letter", b"\0one")
    else:
        assert dist.removed("letter") == b"\0one" and not dist.is_there("letter")


def work_together(folder: Path, draws: int, ranks: int, port: int) -> None:
    """The same in a process a rank."""
    processes = []
    for rank in range(ranks):
        several = {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(folder), str(draws)], env=os.environ | several
            )
        )
    assert [p.wait(timeout=600) for p in processes] == [0] * ranks


def free_port() -> int:
    """A port nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_ranks_equal_one_rank_with_two_draws(tmp_path):
    """The images, and the experts, whichever way the work is shared."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one_draw = small("dm/fashion_mnist_ipc1_small")
    ddengine.distill(None, one_draw, folder=tmp_path / "run", progress=False)
    work(tmp_path / "one", draws=2)
    work_together(tmp_path / "two", draws=1, ranks=2, port=free_port())
    images = [
        torch.load(tmp_path / name, weights_only=True)
        for name in ("one/images0.pt", "two/images0.pt", "two/images1.pt")
    ]
    assert torch.equal(images[1], images[2])
    assert torch.allclose(images[0], images[1], atol=1e-6)
    shards = [sorted((tmp_path / name / "store").glob("expert_*")) for name in ("one", "two")]
    assert [p.name for p in shards[0]] == [p.name for p in shards[1]] and len(shards[0]) == 3
    for a, b in zip(*shards, strict=True):
        assert torch.equal(load_file(a)["params"], load_file(b)["params"])
    assert len((tmp_path / "two/rank0/metrics.jsonl").read_text().splitlines()) == 6
    assert not (tmp_path / "two/rank1").exists() or not any(
        (tmp_path / "two/rank1").rglob("*.jsonl")
    )
    together = [
        torch.load(tmp_path / name, weights_only=True)
        for name in ("one/shared0.pt", "two/shared0.pt", "two/shared1.pt")
    ]
    for name, alone in together[0].items():
        assert torch.equal(together[1][name], together[2][name]), name
        assert torch.allclose(alone, together[1][name], atol=1e-5), name
        if name in EXACTLY:
            assert torch.equal(alone, together[1][name]), name
    rows = [(tmp_path / name).read_text() for name in ("one/rows0.json", "two/rows0.json")]
    assert rows[0] == rows[1] == (tmp_path / "two/rows1.json").read_text()
    files = sorted(path.name for path in (tmp_path / "two/evaluation").iterdir())
    assert files == ["evaluation.json", "heat_map.png", "real_vs_distilled.png"]
    made = json.loads((tmp_path / "two/evaluation/evaluation.json").read_text())
    assert made["processes"] == 2
    done = [json.loads((tmp_path / f"two/done{i}.json").read_text()) for i in range(2)]
    assert done[0] == [] and len(done[1]) > 3, "both ranks trained networks"
    assert json.loads((tmp_path / "two/store/manifest.json").read_text())["epochs"] == [0, 1]
