"""The outer loop on an objective whose answer is known: optimisers, guard, averages, checkpoints."""

import json
import math

import pytest
import torch
from helpers import Pull, tiny_data, tiny_set

from ddengine import distill as outer
from ddengine.errors import UserError
from ddengine.files import read_tensors
from ddengine.recipe import OptimConfig, OuterConfig


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def config(**fields):
    """20 steps of plain SGD on the images."""
    return OuterConfig(**({"steps": 20, "optim": {"images": OptimConfig(lr=0.1, momentum=0.0)}, "checkpoint_every": 5} | fields))


def test_steps_equal_torch_sgd(data, tmp_path):
    """Momentum, weight decay and cosine schedule, against torch.optim on the same gradients, as changes from the start."""
    syn = tiny_set(data)
    optim = OptimConfig(lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine")
    result, _ = outer.distill(syn, Pull(target=3.0), config(optim={"images": optim}), tmp_path, seed=0)
    theirs = syn.tensors["images"].clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], 0.05, momentum=0.9, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.5 * (1 + math.cos(math.pi * step / 20)))
    for _ in range(20):
        sgd.zero_grad()
        (0.5 * (theirs - 3.0).square().sum()).backward()
        sgd.step()
        cosine.step()
    change = theirs.detach() - syn.tensors["images"]
    assert change.abs().max() > 0.1
    assert torch.allclose(result.tensors["images"] - syn.tensors["images"], change, atol=1e-5)


def test_step_after_each_loss(data, tmp_path):
    """Two parts of the images, each with its own update, take momentum of zero where the other part is."""
    syn = tiny_set(data)
    both, _ = outer.distill(syn, Pull(num_losses=2), config(steps=1), tmp_path / "all", seed=0)
    each, _ = outer.distill(syn, Pull(num_losses=2), config(steps=1, step_after="each"), tmp_path / "each", seed=0)
    assert torch.allclose(both.tensors["images"], each.tensors["images"], atol=1e-6)  # plain SGD: the parts do not overlap
    momentum = {"optim": {"images": OptimConfig(lr=0.1, momentum=0.5)}}
    both, _ = outer.distill(syn, Pull(num_losses=2), config(steps=1, **momentum), tmp_path / "all2", seed=0)
    each, _ = outer.distill(syn, Pull(num_losses=2), config(steps=1, step_after="each", **momentum), tmp_path / "each2", seed=0)
    first = slice(0, 10)
    expected = syn.tensors["images"][first] * (1 - 0.1) - 0.05 * syn.tensors["images"][first]  # the second update repeats half of the first
    assert torch.allclose(each.tensors["images"][first], expected, atol=1e-6)
    assert not torch.allclose(both.tensors["images"], each.tensors["images"], atol=1e-3)


def test_draws_are_averaged(data, tmp_path):
    """Two draws give the mean of the gradients that the two alone give."""
    syn = tiny_set(data)
    result, _ = outer.distill(syn, Pull(noise=1.0), config(steps=1, draws=2), tmp_path, seed=0)
    moves = []
    for draw in range(2):
        state = outer.State({"images": syn.tensors["images"].clone()}, {}, {}, {"calls": torch.zeros(())})
        rng_losses = list(Pull(noise=1.0).losses(leaf := syn.with_tensors({"images": state.tensors["images"].requires_grad_()}), state.objective, 0,
                                                 outer.generator(0, "losses", 0, draw)))  # fmt: skip
        rng_losses[0].backward()
        moves.append(leaf.tensors["images"].grad)
    assert not torch.allclose(moves[0], moves[1])
    assert torch.allclose(result.tensors["images"], syn.tensors["images"] - 0.1 * (moves[0] + moves[1]) / 2, atol=1e-6)


def test_running_average(data, tmp_path):
    """The average starts at the initial images and is what is shipped; the last iterate is kept as raw."""
    syn = tiny_set(data)
    result, _ = outer.distill(syn, Pull(), config(steps=2, ema={"images": 0.9}), tmp_path, seed=0)
    x = syn.tensors["images"]
    average = 0.9 * (0.9 * x + 0.1 * 0.9 * x) + 0.1 * 0.81 * x
    assert torch.allclose(result.tensors["images"], average, atol=1e-6)
    assert torch.allclose(result.tensors["raw.images"], 0.81 * x, atol=1e-6)


@pytest.mark.parametrize("stop_at", [1, 7, 10])
def test_resume_is_bit_identical(data, tmp_path, stop_at):
    """A run broken off after any step ends with the same tensors, momentum, state and log as one that was not."""
    fields = {"optim": {"images": OptimConfig(lr=0.1, momentum=0.5)}, "ema": {"images": 0.9}, "draws": 2}
    syn = tiny_set(data)
    whole, _ = outer.distill(syn, Pull(noise=1.0), config(**fields), tmp_path / "whole", seed=3)

    class Killed(Pull):
        def losses(self, syn, state, step, rng):
            if step == stop_at:
                raise KeyboardInterrupt
            return super().losses(syn, state, step, rng)

    with pytest.raises(KeyboardInterrupt):
        outer.distill(syn, Killed(noise=1.0), config(**fields), tmp_path / "broken", seed=3)
    again, _ = outer.distill(syn, Pull(noise=1.0), config(**fields), tmp_path / "broken", seed=3)
    assert {k: v.tolist() for k, v in again.tensors.items()} == {k: v.tolist() for k, v in whole.tensors.items()}
    checkpoints = [read_tensors(tmp_path / name / "checkpoint/state.safetensors")[0] for name in ("whole", "broken")]
    assert checkpoints[0].keys() == checkpoints[1].keys() and "objective/calls" in checkpoints[0]
    assert all(torch.equal(checkpoints[0][k], checkpoints[1][k]) for k in checkpoints[0])
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == list(range(1, 21))


class Sometimes(Pull):
    """Non-finite at the given steps."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def losses(self, syn, state, step, rng):
        for loss in super().losses(syn, state, step, rng):
            yield loss * (math.nan if step in self.bad else 1.0)


def test_guard_skips_what_is_not_finite(data, tmp_path):
    """Skipped steps change nothing; fewer than 10 in a row do not stop the run."""
    syn = tiny_set(data)
    result, counters = outer.distill(syn, Sometimes(set(range(9))), config(), tmp_path, seed=0)
    assert counters.not_finite == 9
    assert torch.allclose(result.tensors["images"], syn.tensors["images"] * 0.9**11, atol=1e-6)


def test_guard_stops_after_ten_in_a_row(data, tmp_path):
    """With the flag to turn in the sentence."""
    with pytest.raises(UserError, match=r"10 steps in a row.*--outer\.optim\.images\.lr"):
        outer.distill(tiny_set(data), Sometimes(set(range(5, 30))), config(), tmp_path, seed=0)


def test_guard_skips_above_max_loss_and_never_stops(data, tmp_path, capsys):
    """The gate counts, warns when most were skipped, and leaves the images alone."""
    syn = tiny_set(data)
    result, counters = outer.distill(syn, Pull(), config(max_loss=1e-9), tmp_path, seed=0)
    assert counters.above_max_loss == 20
    assert torch.equal(result.tensors["images"], syn.tensors["images"])
    assert "20 of 20 updates were skipped" in capsys.readouterr().out


class Down(Pull):
    """Drives the learned rate below zero."""

    def losses(self, syn, state, step, rng):
        yield syn.tensors["lr"] * 1.0


def test_learned_rate_stays_positive(data, tmp_path, capsys):
    """Held at 1e-6, with a warning; published runs crash there."""
    result, counters = outer.distill(tiny_set(data, lr=0.01), Down(), config(optim={"lr": OptimConfig(lr=0.1)}), tmp_path, seed=0)
    assert result.lr == pytest.approx(outer.SMALLEST_LR)
    assert counters.lr_held > 0 and "learning rate was held" in capsys.readouterr().out


def test_unknown_tensor_is_refused(data, tmp_path):
    """Before the first step, naming the tensors there are."""
    with pytest.raises(UserError, match=r"outer\.optim names 'imges'.*images"):
        outer.distill(tiny_set(data), Pull(), config(optim={"imges": OptimConfig(lr=1.0)}), tmp_path, seed=0)
