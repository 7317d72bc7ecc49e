"""DC, DM and IDC through the command line: the same bytes twice, the same after an interruption,
and mistakes that are refused.
"""

import re

import pytest
import torch
from helpers import MODEL, run
from safetensors.torch import load_file

from ddengine.artefact import folder as folders
from ddengine.system import dist
from synth.distribution import DistributionObjective
from synth.gradient import GradientObjective

SMALL = [
    "--data.name", "digits", "--data.limit", "200", "--model", MODEL, "--ipc", "2", "--objective.real_batch", "8", "--device", "cpu",
    "--outer.steps", "7", "--outer.checkpoint_every", "2", "--outer.evaluate_every", "0", "--outer.picture_every", "0",
]  # fmt: skip
METHODS = {
    "dc": [
        "dc/fashion_mnist_ipc10_small",
        *SMALL,
        "--objective.networks.epochs",
        "2",
        "--objective.networks.steps",
        "3",
    ],
    "dm": ["dm/fashion_mnist_ipc10_small", *SMALL],
    "idc": [
        "idc/fashion_mnist_ipc10_small",
        *SMALL,
        "--objective.networks.steps",
        "5",
        "--objective.networks.images",
        "40",
    ],
}
KEPT = {"dc": {"theta"}, "dm": set(), "idc": {"theta", "momentum"}}
FREPO = ["frepo/fashion_mnist_ipc1_small", *SMALL]
EACH = ["--outer.step_after", "each"]
CASES = [("dc", "all"), ("dc", "each"), ("dm", "all"), ("dm", "each"), ("idc", "each")]


def flags(method, step_after):
    return [
        *METHODS[method],
        "--outer.step_after",
        step_after,
        "--objective.classes_at_once",
        "4" if method != "idc" else "1",
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run that was left alone, made when it is first asked for."""
    made = {}

    def get(method, step_after):
        key = method, step_after
        if key not in made:
            made[key] = tmp_path_factory.mktemp("alone") / "run"
            assert run("distill", *flags(*key), "--out", str(made[key])) == 0
        return made[key]

    return get


def state(folder):
    """Every tensor of the checkpoint."""
    return load_file(folder / "checkpoint/state.safetensors")


def assert_same_run(a, b):
    """Shipped bytes, the checkpoint with what the objective keeps, and the log."""
    assert (a / "distilled/data.safetensors").read_bytes() == (
        b / "distilled/data.safetensors"
    ).read_bytes()
    first, second = state(a), state(b)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("method", "step_after"), [("dc", "all"), ("dm", "all"), ("idc", "each")])
def test_twice_gives_equal_bytes(method, step_after, alone, tmp_path):
    """And another seed others."""
    first = alone(method, step_after)
    assert run("distill", *flags(method, step_after), "--out", str(tmp_path / "again")) == 0
    assert_same_run(first, tmp_path / "again")
    if method == "dc":
        assert (
            run(
                "distill",
                *flags(method, step_after),
                "--out",
                str(tmp_path / "other"),
                "--seed",
                "1",
            )
            == 0
        )
        assert (tmp_path / "other/distilled/data.safetensors").read_bytes() != (
            first / "distilled/data.safetensors"
        ).read_bytes()


@pytest.mark.parametrize(("method", "step_after"), CASES)
def test_an_interrupted_run_ends_bit_identical(method, step_after, alone, tmp_path, monkeypatch):
    """Stopped at step 4 before its first loss, then at step 6 after one of its losses; both times a
    step after a checkpoint.
    """
    whole, broken = alone(method, step_after), tmp_path / "run"
    kind = DistributionObjective if method == "dm" else GradientObjective
    original = kind.losses

    def stops(at, after):
        def losses(self, syn, state, step, rng):
            for i, loss in enumerate(original(self, syn, state, step, rng)):
                if step == at and i == after:
                    raise KeyboardInterrupt
                yield loss

        return losses

    for at, after in ((3, 0), (5, 1))[step_after == "each" and method != "idc" :]:
        monkeypatch.setattr(kind, "losses", stops(at, after))
        assert run("distill", *flags(method, step_after), "--out", str(broken)) == 130
        assert not (broken / "distilled").exists()
        kept = {k.removeprefix("objective/") for k in state(broken) if k.startswith("objective/")}
        assert kept == KEPT[method]
        assert len((broken / "metrics.jsonl").read_text().splitlines()) == at
    monkeypatch.setattr(kind, "losses", original)
    assert run("distill", *flags(method, step_after), "--out", str(broken)) == 0
    assert_same_run(whole, broken)


@pytest.mark.parametrize("method", ["dc", "dm"])
def test_step_after_matters(method, alone):
    """Stepping after each part is another computation, and is logged as the same number of steps."""
    texts = [
        (alone(method, after) / "distilled/data.safetensors").read_bytes()
        for after in ("all", "each")
    ]
    assert texts[0] != texts[1]


def test_the_networks_of_idc_are_trained(alone):
    """The checkpoint is of step 7 of networks that serve 5: the network has been trained once, and
    has momentum.
    """
    kept = state(alone("idc", "each"))
    assert kept["objective/momentum"].any()


def test_idc_ships_pixels_and_decodes_four_to_each(alone):
    syn, meta = folders.load(alone("idc", "each") / "distilled", torch.device("cpu"))
    assert len(syn) == 80 and syn.space == "pixel" and meta["images_per_class"] == 2
    assert 0 <= syn.tensors["images"].min() and syn.tensors["images"].max() <= 1
    assert len(list((alone("idc", "each") / "distilled/images").glob("*/*.png"))) == 80


def test_an_idc_set_is_evaluated(alone, tmp_path):
    args = [
        "--epochs",
        "2",
        "--num_networks",
        "3",
        "--lr_grid",
        "0.01",
        "--baselines",
        "random",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert run("evaluate", str(alone("idc", "each")), *args) == 0


# mistakes


def contents(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def refused(capsys, work, args, *words):
    """Exit code 2, one sentence with these words, nothing written."""
    capsys.readouterr()
    assert run(*args) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*[^\s.]\.\n", said), said
    assert not re.search(r"[.!?]\)? +[A-Z]|Traceback", said), said
    assert all(word in said for word in words), said
    assert contents(work) == []


TRAJECTORY = [
    "dm/fashion_mnist_ipc10_small",
    "--take",
    "objective=mtt/digits_ipc1",
    "--data.name",
    "digits",
    "--data.limit",
    "200",
    "--model",
    MODEL,
]
BAD = {
    "factor": (
        ["distill", *METHODS["idc"], "--codec.factor", "9", "--ipc", "1", "--init.kind", "noise"],
        "codec.factor 9 is more than the 8 pixels",
    ),
    "factor 0": (
        ["distill", *METHODS["idc"], "--codec.factor", "0"],
        "codec.factor must be at least 1",
    ),
    "no experts": (["distill", *TRAJECTORY, "--outer.optim.images.lr", "1"], "needs experts"),
    "buffer": (["buffer", *METHODS["dc"]], "needs no experts"),
    "layerwise": (
        ["distill", *METHODS["dc"], "--objective.tensors", "all"],
        "objective.metric layerwise",
    ),
    "no steps": (
        ["distill", *METHODS["dc"], "--objective.networks.steps", "0"],
        "objective.networks.steps",
    ),
    "draws each": (["distill", *METHODS["idc"], "--outer.draws", "2"], "outer.draws"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_refused(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, *words = BAD[name]
    refused(capsys, tmp_path, args, *words)


def test_several_draws_are_refused_before_anything_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, tmp_path, ["distill", *METHODS["dc"], "--outer.draws", "2"], "outer.draws")


@pytest.fixture
def two_ranks(monkeypatch):
    """As the first of two ranks, which torchrun started, sees it."""
    monkeypatch.setattr(dist, "num_ranks", lambda: 2)
    monkeypatch.setattr(dist, "started_here", lambda: True)
    for shared in ("meet", "from_first", "mean"):
        monkeypatch.setattr(dist, shared, lambda *args: None)


def test_several_ranks_are_refused(two_ranks, capsys, tmp_path):
    """A method of one loss a step, which ranks share, whose images are to move after each."""
    assert run("distill", *FREPO, *EACH, "--out", str(tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: This method keeps state between steps[^\n]*without torchrun\.\n", said
    ), said


def test_refused_ranks_write_nothing(two_ranks, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, tmp_path, ["distill", *FREPO, *EACH], "without torchrun")


def test_experts_of_a_recipe_whose_objective_reads_none(tmp_path, monkeypatch):
    """A recipe with a buffer into which DM's objective is taken: its store can still be made, or is
    refused in a sentence.
    """
    monkeypatch.chdir(tmp_path)
    args = [
        "mtt/digits_ipc1",
        "--take",
        "objective=dm/fashion_mnist_ipc10_small",
        "--data.limit",
        "200",
        "--model",
        MODEL,
    ]
    assert run(
        "buffer", *args, "--buffer.num_experts", "1", "--buffer.epochs", "1", "--device", "cpu"
    ) in (0, 2)
