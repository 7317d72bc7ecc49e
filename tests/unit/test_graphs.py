"""Functions as graphs: objectives by compiled graphs are those computed eagerly, and recordings
give what was asked of them last.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from matching import close, ours, tiny_world
from test_gradient import DC, FORMS
from torch.fx import Node

from ddengine.learning import graphs
from ddengine.learning.flat import flatten
from ddengine.learning.graphs import Eager, Graphs, Launched, Recording
from ddengine.recipe import AugmentConfig
from ddengine.system.rng import generator
from synth import distances
from synth.distribution import DistributionMatching
from synth.networks import OnSynthetic, Untrained

F64 = torch.float64
DM = DistributionMatching(networks=Untrained(), real_batch=9)
OBJECTIVES = {
    **{name: FORMS[name] for name in ("dsa", "dcc", "idc", "cos-all")},
    "dc-by-class": replace(DC, classes_at_once=1),
    "dc-in-parts": replace(DC, classes_at_once=4),
    "dc-trained": replace(DC, networks=OnSynthetic(steps=3, epochs=2, batch=15)),
    "dcc-in-parts": replace(FORMS["dcc"], classes_at_once=4),
    "dm-in-parts": replace(DM, classes_at_once=4, augment=AugmentConfig()),
    "moments": replace(DM, distance=distances.Moments()),
    "characteristic": replace(DM, distance=distances.Characteristic()),
    "hyperbolic": replace(DM, distance=distances.Hyperbolic()),
}
INSTANCE, BATCH = "convnet-d1-w4-in", "convnet-d1-w4-bn"  # normalisation
CASES = [(name, INSTANCE) for name in OBJECTIVES] + [("dsa", BATCH), ("dcc", BATCH), ("dm", BATCH)]


class Counted:
    """In place of a compiler, which says how many graphs it was given."""

    def __init__(self):
        self.number = 0

    def __call__(self, graph):
        self.number += 1
        return graph


def steps_of(config, compiles, compiler, **world):
    """(losses and gradient in the images of each of three steps, graphs made until then)."""
    env, syn = tiny_world(**world)
    objective = config.build(replace(env, compile=compiles))
    assert type(objective.computed) is (Graphs if compiles else Eager)
    state, found, made = objective.init(generator(0)), [], []
    for step in range(3):
        rng = generator(1, "losses", step)
        found.append(ours(objective, syn, state=state, step=step, rng=rng))
        made.append(compiler.number)
    return found, made


@pytest.mark.parametrize(("name", "model"), CASES)
def test_an_objective_by_graphs_is_the_eager_one(name, model, monkeypatch):
    """Losses and gradients in the images, to rounding, in steps that draw other networks."""
    config = OBJECTIVES.get(name, DM)
    compiler = Counted()
    monkeypatch.setattr(graphs, "by_inductor", compiler)
    eager, none = steps_of(config, False, compiler, model=model)
    by_graphs, made = steps_of(config, True, compiler, model=model)
    for (losses, slope), (theirs, their_slope) in zip(by_graphs, eager, strict=True):
        assert len(losses) == len(theirs)
        for loss, other in zip(losses, theirs, strict=True):
            assert float(loss) == pytest.approx(float(other), rel=1e-9)
        close(slope, their_slope, 1e-9)
    # networks are trained from the second step on; then there is nothing new to compile
    assert none[-1] == 0 < made[0] <= made[1] == made[2]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [("dsa", INSTANCE), ("dcc", BATCH), ("dm", BATCH)])
def test_an_objective_by_inductor_is_the_eager_one(name, model):
    """Through the compiler that --compile uses."""
    torch._dynamo.reset()
    config = OBJECTIVES.get(name, DM)
    eager, _ = steps_of(config, False, Counted(), model=model)
    compiled, _ = steps_of(config, True, Counted(), model=model)
    for (losses, slope), (theirs, their_slope) in zip(compiled, eager, strict=True):
        assert torch.allclose(torch.stack(losses), torch.stack(theirs), rtol=1e-9)
        close(slope, their_slope, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Judged(Untrained):
    """With another network that judges."""

    judges = True

    def with_judge(self, at):
        return self.next(at), flatten(at.env.new_model(generator(5)))


def test_a_judge_is_told_the_classes_of_a_part(monkeypatch):
    """Which class a loss begins with is not written into a graph."""
    compiler = Counted()
    monkeypatch.setattr(graphs, "by_inductor", compiler)
    config = replace(DM, networks=Judged(), classes_at_once=4, judge=0.5)
    found = []
    for compiles in (False, True):
        env, syn = tiny_world(model=INSTANCE)
        found.append(ours(config.build(replace(env, compile=compiles)), syn))
    (losses, slope), (theirs, their_slope) = found
    assert torch.allclose(torch.stack(losses), torch.stack(theirs), rtol=1e-9)
    close(slope, their_slope, 1e-9)
    # features, distances and judgements, each of 4 classes and of the last 2
    assert compiler.number == 6


# Recordings.


def stand_in(function, given):
    """In place of a CUDA graph: what is done again fills the memory of the first time."""
    outputs = function(*given)

    def again():
        for place, made in zip(outputs, function(*given), strict=True):
            place.copy_(made)

    return Recording(again, outputs)


def test_a_recording_gives_what_it_is_asked_for():
    """Of the tensors of the call, and what it gave before stays as it was."""

    def function(a, b):
        return a + b, a * b

    a, b = torch.ones(3), torch.arange(3.0)
    launched = Launched(function, (a, b), stand_in)
    first = launched(a, b)
    second = launched(2 * a, b)
    for numbers, (x, y) in ((first, (a, b)), (second, (2 * a, b))):
        assert all(map(torch.equal, numbers, function(x, y)))
    assert torch.equal(a, torch.ones(3))  # what is given is not written to


def test_a_graph_is_of_one_layout():
    """Numbers that lie otherwise in memory are given to another one."""
    computed, made = Graphs(Counted()), []
    images = torch.arange(24.0).view(1, 2, 3, 4)
    for seen in (images, images.to(memory_format=torch.channels_last)):
        made.append(computed("flat", lambda x: x.view(2, 12) if x.is_contiguous() else x, seen))
    assert made[0].shape == (2, 12) and made[1].shape == images.shape


def test_slopes_of_what_wants_none_are_not_computed():
    """Nor anything but the value where autograd is off."""
    wanted = []

    def noted(graph):
        (output,) = graph.graph.find_nodes(op="output")
        wanted.append(1 if isinstance(output.args[0], Node) else len(output.args[0]))
        return graph

    computed = Graphs(noted)
    a, b = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    loss = computed.loss("sum", lambda a, b: (a * b).sum(), a, b)
    (2 * loss).backward()
    assert a.grad.tolist() == [4.0] * 3
    with torch.no_grad():
        assert not computed.loss("sum", lambda a, b: (a * b).sum(), a, b).requires_grad
    assert wanted == [2, 1]  # the value and one slope, the value
