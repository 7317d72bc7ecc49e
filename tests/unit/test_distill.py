"""The outer loop on an objective whose answer is known: optimisers, guard, averages, checkpoints."""

import json
import math
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import Pull, tiny_data, tiny_set

from ddengine import loop as outer
from ddengine.recipe import OptimConfig, OuterConfig
from ddengine.sets.codec import Identity
from ddengine.system.errors import UserError
from ddengine.system.files import read_tensors


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def config(**fields):
    """20 steps of plain SGD on the images."""
    return OuterConfig(
        **(
            {
                "steps": 20,
                "optim": {"images": OptimConfig(lr=0.1, momentum=0.0)},
                "checkpoint_every": 5,
            }
            | fields
        )
    )


class Stateless(Pull):
    """Keeps nothing between steps, so that there may be several draws."""

    def init(self, rng):
        return {}

    def losses(self, syn, state, step, rng):
        return super().losses(syn, {"calls": torch.zeros(())}, step, rng)


def log_of(folder):
    """The events of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def bits(tensors):
    """Something that is equal only for tensors equal to the bit."""
    return {k: v.numpy().tobytes() for k, v in tensors.items()}


def test_steps_equal_torch_sgd(data, tmp_path):
    """Momentum, weight decay and cosine schedule, against torch.optim on the same gradients, as
    changes from the start.
    """
    syn = tiny_set(data)
    optim = OptimConfig(lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine")
    result, _ = outer.distill(
        syn, Pull(target=3.0), config(optim={"images": optim}), tmp_path, seed=0
    )
    theirs = syn.tensors["images"].clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], 0.05, momentum=0.9, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        sgd, lambda step: 0.5 * (1 + math.cos(math.pi * step / 20))
    )
    for _ in range(20):
        sgd.zero_grad()
        (0.5 * (theirs - 3.0).square().sum()).backward()
        sgd.step()
        cosine.step()
    change = theirs.detach() - syn.tensors["images"]
    assert change.abs().max() > 0.1
    assert torch.allclose(result.tensors["images"] - syn.tensors["images"], change, atol=1e-5)


ADAM = OptimConfig(
    kind="adam", lr=0.05, momentum=0.5, beta2=0.9, weight_decay=0.02, schedule="cosine"
)


class Scaled(Pull):
    """Gradients of very different sizes, and steps that are not finite or above the guard."""

    def __init__(self, bad=(), high=()):
        super().__init__(target=3.0)
        self.bad, self.high = bad, high

    def losses(self, syn, state, step, rng):
        for loss in super().losses(syn, state, step, rng):
            yield (loss * 10.0 ** (step % 4 - 2)) * (math.nan if step in self.bad else 1.0) + (
                1e9 if step in self.high else 0.0
            )


def torch_adam(start, steps, made, optim=ADAM):
    """(images, state) after the updates of the steps `made` of `steps`, by torch.optim.Adam with
    the rate of the step.
    """
    theirs = start.clone().requires_grad_()
    adam = torch.optim.Adam(
        [theirs],
        optim.lr,
        betas=(optim.momentum, optim.beta2),
        eps=1e-8,
        weight_decay=optim.weight_decay,
    )
    for step in made:
        rate = {
            "cosine": 0.5 * (1 + math.cos(math.pi * step / steps)),
            "linear": 1 - step / steps,
            "constant": 1.0,
        }[optim.schedule]
        adam.param_groups[0]["lr"] = optim.lr * rate
        adam.zero_grad()
        (0.5 * (theirs - 3.0).square().sum() * 10.0 ** (step % 4 - 2)).backward()
        adam.step()
    return theirs.detach(), adam.state[theirs]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_equal_torch_adam(data, tmp_path, dtype, schedule):
    """Both means, bias correction, weight decay and schedule, over 20 steps, as changes from the
    start.
    """
    syn, optim = tiny_set(data), replace(ADAM, schedule=schedule)
    syn = syn.with_tensors({"images": syn.tensors["images"].to(dtype)})
    result, _ = outer.distill(syn, Scaled(), config(optim={"images": optim}), tmp_path, seed=0)
    start = syn.tensors["images"]
    theirs, state = torch_adam(start, 20, range(20), optim)
    assert (theirs - start).abs().max() > 0.2 and result.tensors["images"].dtype == dtype
    assert torch.allclose(
        result.tensors["images"] - start,
        theirs - start,
        rtol=0,
        atol=1e-5 if dtype == torch.float32 else 1e-12,
    )
    kept, _ = read_tensors(tmp_path / "checkpoint/state.safetensors")
    assert float(kept["count/images"]) == 20 == float(state["step"])
    for group, name in (("momentum", "exp_avg"), ("square", "exp_avg_sq")):
        error = (kept[f"{group}/images"] - state[name]).abs().max() / state[name].abs().max()
        assert error <= (1e-5 if dtype == torch.float32 else 1e-12), group


def test_skipped_steps_do_not_count_for_adam(data, tmp_path):
    """Neither in the bias correction nor in the means, whether not finite or above max_loss; the
    schedule goes on.
    """
    syn, bad, high = tiny_set(data), {0, 1, 7}, {4, 12}
    fields = {"optim": {"images": ADAM}, "max_loss": 1e8}
    result, counters = outer.distill(syn, Scaled(bad, high), config(**fields), tmp_path, seed=0)
    made = [step for step in range(20) if step not in bad | high]
    start = syn.tensors["images"]
    theirs, state = torch_adam(start, 20, made)
    assert (counters.not_finite, counters.above_max_loss) == (3, 2)
    assert torch.allclose(result.tensors["images"] - start, theirs - start, rtol=0, atol=1e-5)
    kept, _ = read_tensors(tmp_path / "checkpoint/state.safetensors")
    assert float(kept["count/images"]) == 15 and kept["square/images"].isfinite().all()
    assert torch.allclose(kept["square/images"], state["exp_avg_sq"], rtol=1e-3, atol=1e-6)
    # other steps would be seen
    assert (torch_adam(start, 20, range(5, 20))[0] - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("stop_at", [1, 5, 7, 13])
def test_adam_resumes_to_the_bit(data, tmp_path, stop_at):
    """Interrupted and killed, with the means and the count of the checkpoint; SGD on a second
    tensor beside it.
    """
    fields = {
        "optim": {"images": ADAM, "lr": OptimConfig(lr=1e-4, momentum=0.5)},
        "ema": {"images": 0.9},
    }
    syn = tiny_set(data, lr=0.02)

    class Both(Scaled):
        def losses(self, syn, state, step, rng):
            if step == stop_at and not (tmp_path / "killed").exists():
                shutil.copytree(tmp_path / "whole", tmp_path / "killed")
            yield sum(super().losses(syn, state, step, rng)) + syn.tensors["lr"]

    class Interrupted(Both):
        def losses(self, syn, state, step, rng):
            if step == stop_at:
                raise KeyboardInterrupt
            return super().losses(syn, state, step, rng)

    whole, _ = outer.distill(syn, Both(bad={3, 6}), config(**fields), tmp_path / "whole", seed=3)
    with pytest.raises(KeyboardInterrupt):
        outer.distill(
            syn, Interrupted(bad={3, 6}), config(**fields), tmp_path / "interrupted", seed=3
        )
    expected, _ = read_tensors(tmp_path / "whole/checkpoint/state.safetensors")
    assert {
        "square/images",
        "count/images",
        "momentum/images",
        "momentum/lr",
    } <= expected.keys() and "square/lr" not in expected
    for name in ("interrupted", "killed"):
        again, _ = outer.distill(syn, Both(bad={3, 6}), config(**fields), tmp_path / name, seed=3)
        assert bits(again.tensors) == bits(whole.tensors)
        assert bits(read_tensors(tmp_path / name / "checkpoint/state.safetensors")[0]) == bits(
            expected
        )


def test_adam_with_an_update_after_each_loss(data, tmp_path):
    """Every part is an update of its own: two a step."""
    syn = tiny_set(data)
    fields = {
        "optim": {"images": replace(ADAM, schedule="constant")},
        "step_after": "each",
        "steps": 3,
    }
    outer.distill(syn, Pull(num_losses=2), config(**fields), tmp_path, seed=0)
    assert float(read_tensors(tmp_path / "checkpoint/state.safetensors")[0]["count/images"]) == 6


@pytest.mark.parametrize(
    "fields",
    [{"beta2": 1.0}, {"beta2": -0.1}, {"lr": math.inf}, {"momentum": 1.0}, {"weight_decay": -1.0}],
)
def test_optimisers_that_mean_nothing(fields):
    with pytest.raises(UserError, match=r"in outer\.optim must"):
        OptimConfig(**({"lr": 0.1, "kind": "adam"} | fields))


def test_step_after_each_loss(data, tmp_path):
    """Two parts of the images, each with its own update, take momentum of zero where the other part
    is.
    """
    syn = tiny_set(data)
    both, _ = outer.distill(syn, Pull(num_losses=2), config(steps=1), tmp_path / "all", seed=0)
    each, _ = outer.distill(
        syn, Pull(num_losses=2), config(steps=1, step_after="each"), tmp_path / "each", seed=0
    )
    # plain SGD: the parts do not overlap
    assert torch.allclose(both.tensors["images"], each.tensors["images"], atol=1e-6)
    momentum = {"optim": {"images": OptimConfig(lr=0.1, momentum=0.5)}}
    both, _ = outer.distill(
        syn, Pull(num_losses=2), config(steps=1, **momentum), tmp_path / "all2", seed=0
    )
    each, _ = outer.distill(
        syn,
        Pull(num_losses=2),
        config(steps=1, step_after="each", **momentum),
        tmp_path / "each2",
        seed=0,
    )
    first = slice(0, 10)
    # the second update repeats half of the first
    expected = syn.tensors["images"][first] * (1 - 0.1) - 0.05 * syn.tensors["images"][first]
    assert torch.allclose(each.tensors["images"][first], expected, atol=1e-6)
    assert not torch.allclose(both.tensors["images"], each.tensors["images"], atol=1e-3)


def test_draws_are_averaged(data, tmp_path):
    """Two draws give the mean of the gradients that the two alone give."""
    syn = tiny_set(data)
    result, _ = outer.distill(syn, Stateless(noise=1.0), config(steps=1, draws=2), tmp_path, seed=0)
    moves = []
    for draw in range(2):
        state = outer.State(
            {"images": syn.tensors["images"].clone()}, {}, {}, {"calls": torch.zeros(())}
        )
        rng_losses = list(Pull(noise=1.0).losses(leaf := syn.with_tensors({"images": state.tensors["images"].requires_grad_()}), state.objective, 0,
                                                 outer.generator(0, "losses", 0, draw)))  # fmt: skip
        rng_losses[0].backward()
        moves.append(leaf.tensors["images"].grad)
    assert not torch.allclose(moves[0], moves[1])
    assert torch.allclose(
        result.tensors["images"], syn.tensors["images"] - 0.1 * (moves[0] + moves[1]) / 2, atol=1e-6
    )


def test_state_and_several_draws_are_refused(data, tmp_path):
    """Before the first step: each draw would advance the state."""
    with pytest.raises(UserError, match=r"keeps state.*outer\.draws, now 2"):
        outer.distill(tiny_set(data), Pull(), config(draws=2), tmp_path, seed=0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_loss_of_a_step_is_the_sum_of_its_parts(data, tmp_path):
    """Averaged over draws; max_loss compares with it, or with each part where each has its update."""
    syn = tiny_set(data)

    def first(name, objective=Stateless, **fields):
        outer.distill(
            syn,
            objective(noise=1.0, num_losses=fields.pop("parts", 1)),
            config(steps=1, **fields),
            tmp_path / name,
            seed=0,
        )
        return log_of(tmp_path / name)[0]

    whole = first("whole")
    parts = first("parts", parts=4)
    assert parts["loss"] == pytest.approx(whole["loss"]) and parts["loss"] > 100
    draws = [0.5 * (syn.tensors["images"] - torch.randn(syn.tensors["images"].shape, generator=outer.generator(0, "losses", 0, i))).square().sum()
             for i in range(2)]  # fmt: skip
    assert first("draws", parts=4, draws=2)["loss"] == pytest.approx(float(draws[0] + draws[1]) / 2)
    between = {"parts": 4, "max_loss": 0.5 * whole["loss"]}  # above every part, below their sum
    assert not first("skipped", **between)["applied"]
    each = first("each", step_after="each", **between)
    # the parts do not overlap
    assert each["applied"] and each["loss"] == pytest.approx(whole["loss"])


def test_running_average(data, tmp_path):
    """The average starts at the initial images and is what is shipped; the last iterate is kept as
    raw.
    """
    syn = tiny_set(data)
    result, _ = outer.distill(syn, Pull(), config(steps=2, ema={"images": 0.9}), tmp_path, seed=0)
    x = syn.tensors["images"]
    average = 0.9 * (0.9 * x + 0.1 * 0.9 * x) + 0.1 * 0.81 * x
    assert torch.allclose(result.tensors["images"], average, atol=1e-6)
    assert torch.allclose(result.tensors["raw.images"], 0.81 * x, atol=1e-6)


@pytest.mark.parametrize("interval", [1, 7])
@pytest.mark.parametrize("objective, draws", [(Pull, 1), (Stateless, 2)])
@pytest.mark.parametrize("stop_at", [1, 7, 10, 13])
def test_resume_is_bit_identical(data, tmp_path, monkeypatch, stop_at, objective, draws, interval):
    """A run broken off after any step ends with the same tensors, momentum, state and log as one
    that was not.

    Interrupted, with the log of every step made; and killed, with what lies on the disk just then.
    """
    monkeypatch.setitem(outer.READ_EVERY, "cpu", interval)
    fields = {
        "optim": {"images": OptimConfig(lr=0.1, momentum=0.5)},
        "ema": {"images": 0.9},
        "draws": draws,
    }
    syn = tiny_set(data)

    class Watched(objective):
        def losses(self, syn, state, step, rng):
            if step == stop_at and not (tmp_path / "killed").exists():
                shutil.copytree(tmp_path / "whole", tmp_path / "killed")
            return super().losses(syn, state, step, rng)

    class Interrupted(objective):
        def losses(self, syn, state, step, rng):
            if step == stop_at:
                raise KeyboardInterrupt
            return super().losses(syn, state, step, rng)

    whole, _ = outer.distill(syn, Watched(noise=1.0), config(**fields), tmp_path / "whole", seed=3)
    with pytest.raises(KeyboardInterrupt):
        outer.distill(
            syn, Interrupted(noise=1.0), config(**fields), tmp_path / "interrupted", seed=3
        )
    assert [e["step"] for e in log_of(tmp_path / "interrupted")] == list(range(1, stop_at + 1))
    assert [e["step"] for e in log_of(tmp_path / "whole")] == list(range(1, 21))
    expected, _ = read_tensors(tmp_path / "whole/checkpoint/state.safetensors")
    assert ("objective/calls" in expected) == (objective is Pull)
    for name in ("interrupted", "killed"):
        again, _ = outer.distill(
            syn, objective(noise=1.0), config(**fields), tmp_path / name, seed=3
        )
        assert bits(again.tensors) == bits(whole.tensors)
        assert bits(read_tensors(tmp_path / name / "checkpoint/state.safetensors")[0]) == bits(
            expected
        )
        assert (tmp_path / name / "metrics.jsonl").read_text() == (
            tmp_path / "whole/metrics.jsonl"
        ).read_text()


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


def test_a_loss_of_exactly_max_loss_is_taken(data, tmp_path):
    """Only what is above it is not."""
    outer.distill(tiny_set(data), Pull(), config(steps=1), tmp_path / "free", seed=0)
    loss = json.loads((tmp_path / "free/metrics.jsonl").read_text())["loss"]
    for bound, skipped in ((loss, 0), (loss * (1 - 1e-6), 1)):
        _, counters = outer.distill(
            tiny_set(data), Pull(), config(steps=1, max_loss=bound), tmp_path / str(skipped), seed=0
        )
        assert counters.above_max_loss == skipped


class Rough(Pull):
    """Everything the guard knows: parts that are not finite, parts far above the others, and a
    learned rate that falls below zero.
    """

    def losses(self, syn, state, step, rng):
        for i, part in enumerate(super().losses(syn, state, step, rng)):
            loss = part + syn.tensors["lr"]
            if i == 1 and step in (0, 3, 4, 8, 15):
                loss = loss / 0  # infinite, and its gradient with it
            yield loss + 1e6 if i == 0 and step in (1, 3, 9, 17) else loss


ROUGH = {
    "optim": {
        "images": OptimConfig(lr=0.1, momentum=0.5, weight_decay=0.01),
        "lr": OptimConfig(lr=0.002, momentum=0.0),
    },
    "max_loss": 1e5,
}


def seen(counters):
    """What the guard counted."""
    return {name: getattr(counters, name) for name in outer.COUNTS}


def test_what_is_skipped_leaves_no_trace(data, tmp_path):
    """Images, momentum and running average go on as if the skipped steps had not been."""
    syn = tiny_set(data, lr=0.01)
    _, counters = outer.distill(
        syn, Rough(num_losses=2), config(**ROUGH, ema={"images": 0.8}), tmp_path, seed=0
    )
    x = syn.tensors["images"].clone().requires_grad_()
    average = x.detach().clone()
    sgd = torch.optim.SGD([x], 0.1, momentum=0.5, weight_decay=0.01)
    made = [step for step in range(20) if step not in (0, 1, 3, 4, 8, 9, 15, 17)]
    for _ in made:
        sgd.zero_grad()
        (0.5 * x.square().sum()).backward()
        sgd.step()
        average.lerp_(x.detach(), 0.2)
    reached, _ = read_tensors(tmp_path / "checkpoint/state.safetensors")
    theirs = {
        "tensors/images": x.detach(),
        "momentum/images": sgd.state[x]["momentum_buffer"],
        "ema/images": average,
    }
    assert all(torch.allclose(reached[k], v, atol=1e-5) for k, v in theirs.items())
    assert [e["step"] - 1 for e in log_of(tmp_path) if e["applied"]] == made
    # both parts push the rate down by 0.002, so that it is held from the third update on
    assert seen(counters) == {
        "not_finite_in_a_row": 0,
        "not_finite": 5,
        "above_max_loss": 3,
        "lr_held": len(made) - 2,
    }


@pytest.mark.parametrize("step_after", ["all", "each"])
@pytest.mark.parametrize("ema", [{}, {"images": 0.9, "lr": 0.5}])
def test_read_late_is_read_the_same(data, tmp_path, monkeypatch, capsys, step_after, ema):
    """Tensors, checkpoint, log, counters and warnings do not depend on when the host reads the
    results.
    """
    found, reads = [], []
    original = outer._read
    # the log tells the seconds at each validation
    monkeypatch.setattr(outer.time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(
        outer,
        "_read",
        lambda pending, *rest: (reads.append(len(pending)), original(pending, *rest))[1],
    )
    fields = config(**ROUGH, ema=ema, step_after=step_after, checkpoint_every=16, evaluate_every=9)
    for interval in (1, 7):
        monkeypatch.setitem(outer.READ_EVERY, "cpu", interval)
        syn, folder = tiny_set(data, lr=0.01), tmp_path / str(interval)
        result, counters = outer.distill(
            syn,
            Rough(num_losses=2),
            fields,
            folder,
            seed=0,
            validate=lambda s: float(s.tensors["images"].mean()),
        )
        checkpoint, metadata = read_tensors(folder / "checkpoint/state.safetensors")
        saved = json.loads(metadata["state"])
        assert {k: saved["counters"][k] for k in outer.COUNTS} == seen(counters)
        text = (folder / "metrics.jsonl").read_text()
        found.append(
            (
                bits(result.tensors),
                bits(checkpoint),
                text,
                seen(counters),
                saved["step"],
                saved["log_bytes"],
                capsys.readouterr().out,
            )
        )
    assert reads == [1] * 20 + [7, 2, 5, 2, 2, 2]  # at 7, 9, 14, 16, 18, 20
    assert found[0] == found[1]
    assert found[0][3]["not_finite"] and found[0][3]["above_max_loss"] and found[0][3]["lr_held"]


def test_the_warning_of_the_first_steps_when_read_late(data, tmp_path, monkeypatch, capsys):
    """That all were above max_loss is said of step 20, although the guard had counted on when it
    was read.
    """
    monkeypatch.setitem(outer.READ_EVERY, "cpu", 7)
    outer.distill(
        tiny_set(data),
        Pull(),
        config(steps=40, max_loss=1e-9, checkpoint_every=100),
        tmp_path,
        seed=0,
    )
    assert "none of 20 updates" in capsys.readouterr().out


@pytest.mark.parametrize("step_after, stops", [("all", 15), ("each", 15)])
@pytest.mark.parametrize("interval", [1, 7])
def test_a_stop_read_late_is_a_stop_at_its_step(
    data, tmp_path, monkeypatch, interval, step_after, stops
):
    """Steps after the stop are finite again, and must change nothing before the host has read of
    it.
    """
    monkeypatch.setitem(outer.READ_EVERY, "cpu", interval)
    states, step = [], outer.outer_step
    monkeypatch.setattr(outer, "outer_step", lambda *args: (states.append(args[3]), step(*args))[1])
    fields = {
        "step_after": step_after,
        "optim": {"images": OptimConfig(lr=0.1, momentum=0.5)},
        "ema": {"images": 0.9},
    }
    fields |= {"steps": 30, "checkpoint_every": 50}
    objective = Sometimes(set(range(5, stops)))
    objective.num_losses = 2
    with pytest.raises(UserError, match=rf"for 10 steps in a row, up to step {stops};"):
        outer.distill(tiny_set(data), objective, config(**fields), tmp_path / "stopped", seed=0)
    assert states[0].step == (stops if interval == 1 else -(-stops // 7) * 7)
    assert [e["step"] for e in log_of(tmp_path / "stopped")] == list(range(1, stops))
    outer.distill(
        tiny_set(data),
        Pull(num_losses=2),
        config(**fields | {"steps": 5}),
        tmp_path / "five",
        seed=0,
    )
    before, _ = read_tensors(tmp_path / "five/checkpoint/state.safetensors")
    groups = states[0].groups()
    reached = {
        f"{kind}/{name}": v
        for kind in ("tensors", "momentum", "ema")
        for name, v in groups[kind].items()
    }
    assert bits(reached) == {k: v for k, v in bits(before).items() if k != "objective/calls"}


def test_a_stop_before_an_error_is_told(data, tmp_path, monkeypatch):
    """What the objective makes of a run that the guard has stopped is not the error to read."""
    monkeypatch.setitem(outer.READ_EVERY, "cpu", 50)

    class Fails(Sometimes):
        def losses(self, syn, state, step, rng):
            if step == 17:
                raise ValueError
            return super().losses(syn, state, step, rng)

    with pytest.raises(UserError, match="up to step 15"):
        outer.distill(
            tiny_set(data), Fails(set(range(5, 30))), config(checkpoint_every=50), tmp_path, seed=0
        )


@pytest.mark.parametrize("step_after", ["all", "each"])
def test_a_step_reads_nothing_from_the_device(data, monkeypatch, step_after):
    """No tensor becomes a number; and on the meta device, where there are no numbers to read, a
    step runs all the same.
    """
    syn = tiny_set(data, lr=0.01)
    fields = config(**ROUGH, step_after=step_after, ema={"images": 0.9})
    reads = []
    for name in ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda *args, name=name, method=method: (reads.append(name), method(*args))[1],
        )
    state = outer.State(
        {k: v.clone() for k, v in syn.tensors.items()},
        {},
        {"images": syn.tensors["images"].clone()},
        {"calls": torch.zeros(())},
    )
    for _ in range(5):
        outer.outer_step(syn, Rough(num_losses=2), fields, state, 0)
    assert reads == [] and state.step == 5
    assert not torch.equal(state.tensors["images"], syn.tensors["images"])
    assert float(state.tensors["lr"]) < 0.01 and reads  # now one was read: the count counts
    meta = {k: v.to("meta") for k, v in syn.tensors.items()}
    state = outer.State(
        dict(meta), {}, {"images": meta["images"].clone()}, {"calls": torch.zeros(())}
    )

    class OnMeta(Rough):
        def losses(self, syn, state, step, rng):
            for i, part in enumerate(syn.tensors["images"].chunk(2)):
                yield part.square().sum() + syn.tensors["lr"] * i

    assert outer.outer_step(syn, OnMeta(), fields, state, 0).is_meta and state.step == 1


@dataclass(frozen=True, kw_only=True)
class Penalised(Identity):
    """With half the sum of squares as its penalty."""

    def penalty(self, tensors):
        return 0.5 * tensors["images"].square().sum()


def stepped(syn, fields, objective, shared=False):
    """(the loss of a step, the images after it)."""
    state = outer.State(dict(syn.tensors), {}, {}, {"calls": torch.zeros(())})
    results = outer.outer_step(syn, objective, fields, state, 0, shared)
    return float(results[0]), state.tensors["images"]


def test_ranks_that_share_a_draw_count_the_penalty_once(data, monkeypatch):
    """The losses of two ranks, each with a part of the images, add up to those of one."""
    syn = replace(tiny_set(data), codec=Penalised())
    fields = config()
    whole, moved = stepped(syn, fields, Pull(target=1.0))

    class Half(Pull):
        def losses(self, syn, state, step, rng):
            yield 0.5 * (syn.tensors["images"].chunk(2)[outer.dist.rank()] - 1).square().sum()

    monkeypatch.setattr(outer.dist, "total", lambda tensors: None)
    parts, moves = [], torch.zeros_like(moved)
    for rank in range(2):
        monkeypatch.setattr(outer.dist, "rank", lambda rank=rank: rank)
        loss, images = stepped(syn, fields, Half(), shared=True)
        parts.append(loss)
        moves += images - syn.tensors["images"]
    assert sum(parts) == pytest.approx(whole)
    assert torch.allclose(syn.tensors["images"] + moves, moved, atol=1e-6)


def test_the_penalty_is_part_of_the_first_loss_that_moves_the_images(data):
    """Both gradients are those before the step; an update of its own would see what moved."""
    syn = replace(tiny_set(data), codec=Penalised())
    images = syn.tensors["images"]
    loss, moved = stepped(syn, config(step_after="each"), Pull(target=1.0, num_losses=2))
    assert torch.allclose(moved, images - 0.1 * ((images - 1) + images), atol=1e-6)
    together, _ = stepped(syn, config(), Pull(target=1.0, num_losses=2))
    assert loss == pytest.approx(together)


class Down(Pull):
    """Drives the learned rate below zero."""

    def losses(self, syn, state, step, rng):
        yield syn.tensors["lr"] * 1.0


def test_learned_rate_stays_positive(data, tmp_path, capsys):
    """Held at 1e-6, with a warning; published runs crash there."""
    result, counters = outer.distill(
        tiny_set(data, lr=0.01), Down(), config(optim={"lr": OptimConfig(lr=0.1)}), tmp_path, seed=0
    )
    assert result.lr == pytest.approx(outer.SMALLEST_LR)
    assert counters.lr_held > 0 and "learning rate was held" in capsys.readouterr().out


def test_unknown_tensor_is_refused(data, tmp_path):
    """Before the first step, naming the tensors there are."""
    with pytest.raises(UserError, match=r"outer\.optim has a rate for 'imges'.*stores images"):
        outer.distill(
            tiny_set(data), Pull(), config(optim={"imges": OptimConfig(lr=1.0)}), tmp_path, seed=0
        )


def test_what_comes_out_is_validated(data, tmp_path):
    """The last step is, where any is, and the counters say it; in other runs none is."""
    shown = {}
    for every in (9, 0):
        result, counters = outer.distill(
            tiny_set(data),
            Pull(target=1.0),
            config(evaluate_every=every),
            tmp_path / str(every),
            seed=0,
            validate=lambda syn: float(syn.tensors["images"].mean()),
        )
        events = [e for e in log_of(tmp_path / str(every)) if "validation_accuracy" in e]
        shown[every] = [e["step"] for e in events], counters.validation_accuracy
        if every:
            assert counters.validation_accuracy == float(result.tensors["images"].mean())
            assert events[-1]["validation_accuracy"] == counters.validation_accuracy
            assert outer.summary(counters)["validation_accuracy"] == counters.validation_accuracy
    assert shown[9][0] == [9, 18, 20] and shown[0] == ([], None)


def test_wall_time_is_that_of_all_sessions(data, tmp_path, monkeypatch):
    """With what was done before the loop and with validations, without the time between sessions
    and what an interrupted one did after its last checkpoint.
    """
    now = [1000.0]
    monkeypatch.setattr(outer.time, "perf_counter", lambda: now[0])
    fields = config(evaluate_every=9)

    def validate(syn):
        now[0] += 100
        return 0.5

    class Stopping(Pull):
        def losses(self, syn, state, step, rng):
            if step == 12:
                now[0] += 10_000
                raise KeyboardInterrupt
            return super().losses(syn, state, step, rng)

    where = {"seed": 0, "validate": validate}
    with pytest.raises(KeyboardInterrupt):
        outer.distill(tiny_set(data), Stopping(), fields, tmp_path, began=950.0, **where)
    _, counters = outer.distill(tiny_set(data), Pull(), fields, tmp_path, began=now[0] - 7, **where)
    # 50 before the loop, validations at steps 9, 18, 20, and 7 before the second session
    assert counters.wall_seconds == 50 + 3 * 100 + 7
    assert counters.seconds == 0


def two_of_one_graph(images):
    doubled = images.sigmoid()
    yield doubled.sum()
    yield doubled.square().sum()


@pytest.mark.parametrize(
    "losses, word",
    [
        (two_of_one_graph, "yield their sum"),
        (lambda images: [images.detach().sum()], "has no gradient"),
        (lambda images: [images.square()], "yield scalars"),
    ],
)
def test_losses_that_cannot_be_are_told_in_a_sentence(data, tmp_path, losses, word):
    class Mine(Stateless):
        def losses(self, syn, state, step, rng):
            return losses(syn.tensors["images"])

    with pytest.raises(UserError, match=word):
        outer.distill(tiny_set(data), Mine(), config(), tmp_path, seed=0)
