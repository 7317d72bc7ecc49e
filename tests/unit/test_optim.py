"""Optimisers of single tensors against torch's own, as changes; clipping against torch's."""

from dataclasses import replace

import pytest
import torch
from helpers import Pull, tiny_data, tiny_set

from ddengine import loop
from ddengine.learning.optim import clipped, joint_norm, updated
from ddengine.recipe import OptimConfig, OuterConfig
from ddengine.system.configs import to_dict
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

F64 = torch.float64


def gradients(num=8):
    """Gradients of very different sizes."""
    rng = generator(3, "optim")
    return [torch.randn(4, 3, generator=rng, dtype=F64) * 10.0 ** (k % 4 - 2) for k in range(num)]


def run(config, grads, start):
    """The tensor after updates with these gradients."""
    tensor, kept = start, {}
    for grad in grads:
        new = updated(tensor, grad, kept, config, config.lr)
        tensor, kept = new.tensor, new.kept
    return tensor, kept


def torch_run(optimiser, parameter, grads, clip=None):
    """The same by torch, with the gradient clipped before each step."""
    for grad in grads:
        parameter.grad = grad.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([parameter], clip)
        optimiser.step()
    return parameter.detach()


MADE = {
    "sgd": lambda p: torch.optim.SGD([p], 0.1, momentum=0.8, weight_decay=0.02),
    "adam": lambda p: torch.optim.Adam([p], 0.1, betas=(0.8, 0.95), weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW([p], 0.1, betas=(0.8, 0.95), weight_decay=0.02),
}


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", MADE)
def test_updates_equal_torch_optim(kind, clip):
    """As changes from the start; weight decay tells adam from adamw, sizes tell clipping."""
    start = torch.randn(4, 3, generator=generator(4), dtype=F64)
    config = OptimConfig(lr=0.1, momentum=0.8, beta2=0.95, weight_decay=0.02, kind=kind, clip=clip)
    ours, _ = run(config, gradients(), start)
    parameter = start.clone().requires_grad_()
    theirs = torch_run(MADE[kind](parameter), parameter, gradients(), clip)
    assert (theirs - start).abs().max() > 0.1
    assert torch.allclose(ours - start, theirs - start, rtol=1e-9, atol=1e-12)
    others = {
        run(replace(config, kind=other), gradients(), start)[0].sum().item() for other in MADE
    }
    assert len(others) == 3


def test_clipping_by_the_running_average_of_norms():
    """Gradients are at most so many times the average, which counts norms as they were, the present
    one too.
    """
    config = OptimConfig(lr=0.1, clip_average=1.5, clip_decay=0.9)
    kept, average = {}, None
    for grad in gradients():
        ours, kept = clipped(grad, kept, config)
        norm = float(grad.norm())
        average = norm if average is None else 0.9 * average + 0.1 * norm
        assert float(ours.norm()) == pytest.approx(min(norm, 1.5 * average), rel=1e-4)
        assert torch.allclose(ours / ours.norm(), grad / grad.norm())
        assert float(kept["norm"]) == pytest.approx(average)


def test_both_clips_take_the_smaller():
    """Of a bound and of the average."""
    config = OptimConfig(lr=0.1, clip=2.0, clip_average=1.0)
    grad = torch.full((4,), 3.0)
    first, kept = clipped(grad, {}, config)
    second, _ = clipped(grad, {"norm": torch.tensor(0.5)}, config)
    assert float(first.norm()) == pytest.approx(2.0) and float(kept["norm"]) == 6.0
    assert float(second.norm()) == pytest.approx(0.9 * 0.5 + 0.1 * 6.0)


def test_gradients_that_are_clipped_together_keep_their_proportion(tmp_path):
    """Their norm is joint; that of a third tensor is its own."""
    grads = {"a": torch.full((4,), 3.0), "b": torch.full((9,), 4.0), "c": torch.full((1,), 5.0)}
    both = OptimConfig(lr=1.0, clip=2.0, clip_together=True)
    optim = {"a": both, "b": both, "c": OptimConfig(lr=1.0, clip=2.0)}
    norm = joint_norm(grads, optim)
    assert float(norm) == pytest.approx((36 + 144) ** 0.5)
    moves = {}
    for name, grad in grads.items():
        own = norm if optim[name].clip_together else None
        moves[name] = updated(torch.zeros_like(grad), grad, {}, optim[name], 1.0, own).tensor
    assert torch.cat([moves["a"], moves["b"]]).norm() == pytest.approx(2.0, rel=1e-5)
    assert torch.allclose(moves["a"] / moves["b"][:4], torch.tensor(0.75))
    assert float(moves["c"]) == pytest.approx(-2.0, rel=1e-5)
    assert joint_norm(grads, {name: OptimConfig(lr=1.0, clip=2.0) for name in grads}) is None


def test_the_loop_clips_together_what_says_so(tmp_path):
    """An update of one tensor by the loop is shorter where another one's gradient counts too."""

    class Both(Pull):
        """Pulls the rate as well."""

        def losses(self, syn, state, step, rng):
            for loss in super().losses(syn, state, step, rng):
                yield loss + 100 * syn.tensors["lr"]

    syn = tiny_set(tiny_data())
    syn = syn.with_tensors({"lr": torch.tensor(1.0)})
    moved = {}
    for together in (False, True):
        one = OptimConfig(lr=0.1, clip=1.0, momentum=0.0, clip_together=together)
        config = OuterConfig(steps=1, optim={"images": one, "lr": one})
        folder = tmp_path / str(together)
        reached, _ = loop.distill(syn, Both(target=3.0), config, folder, seed=0)
        change = reached.tensors["images"] - syn.tensors["images"]
        moved[together] = float(
            torch.cat([change.flatten(), reached.tensors["lr"][None] - 1]).norm()
        )
    assert moved[True] == pytest.approx(0.1, rel=1e-3)
    assert moved[False] == pytest.approx(0.1 * 2**0.5, rel=1e-3)


def test_the_rate_drops_in_steps():
    """As torch.optim.lr_scheduler.StepLR has it; and what does not go together is refused."""
    config = OptimConfig(lr=0.1, schedule="steps", drop_every=3)
    parameter = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 3, 0.5)
    for step in range(8):
        assert config.lr_at(step, 8) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert replace(config, drop=0.1).lr_at(6, 8) == pytest.approx(0.001)
    for change in ({"drop_every": 0}, {"drop": 0.0}):
        with pytest.raises(UserError, match="drop"):
            replace(config, **change)


def test_no_clipping_keeps_nothing_and_says_nothing():
    """The default is in no stored recipe, and adds nothing to a checkpoint."""
    grad = torch.full((4,), 1e9)
    ours, kept = clipped(grad, {}, OptimConfig(lr=0.1))
    assert ours is grad and kept == {}
    late = {"clip", "clip_average", "clip_decay", "clip_together", "drop", "drop_every"}
    assert not late & to_dict(OptimConfig(lr=0.1)).keys()
    assert to_dict(OptimConfig(lr=0.1, clip=1.0))["clip"] == 1.0


@pytest.mark.parametrize("change", [{"clip": 0.0}, {"clip_average": -1.0}, {"clip_decay": 1.0}])
def test_impossible_clips_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        OptimConfig(lr=0.1, **change)


class Loud(Pull):
    """A pull whose strength changes from step to step."""

    def losses(self, syn, state, step, rng):
        for loss in super().losses(syn, state, step, rng):
            yield loss * 10.0 ** (step % 4 - 2)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_resumed_run_goes_on_with_the_average_of_norms(tmp_path, kind):
    """To the bit; without the average in the checkpoint the first step after would not be clipped."""
    syn = tiny_set(tiny_data())
    optim = {"images": OptimConfig(lr=0.01, kind=kind, clip_average=0.5, weight_decay=0.1)}
    whole_run = OuterConfig(steps=10, optim=optim, checkpoint_every=5)
    half = replace(whole_run, steps=5)
    at_once, _ = loop.distill(syn, Loud(target=3.0), whole_run, tmp_path / "a", seed=0)
    loop.distill(syn, Loud(target=3.0), half, tmp_path / "b", seed=0)
    resumed, _ = loop.distill(syn, Loud(target=3.0), whole_run, tmp_path / "b", seed=0)
    assert torch.equal(at_once.tensors["images"], resumed.tensors["images"])
    assert not torch.equal(at_once.tensors["images"], syn.tensors["images"])


def test_progress_is_told_of_every_step(tmp_path):
    """Whoever shows it: title, steps, steps done before, and a note a step."""
    told = []

    class Shown:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            told.append("end")

        def advance(self, note=""):
            told.append(note)

    def show(title, total, done):
        told.append((title, total, done))
        return Shown()

    syn = tiny_set(tiny_data())
    config = OuterConfig(steps=3, optim={"images": OptimConfig(lr=0.01)})
    loop.distill(syn, Pull(target=3.0), config, tmp_path, seed=0, progress=show)
    assert told[0] == ("distill", 3, 0) and told[-1] == "end" and len(told) == 5
    assert all(note.startswith("loss ") for note in told[1:4])
