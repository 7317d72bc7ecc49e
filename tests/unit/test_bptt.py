"""Back-propagation through training: windows, what a student sees, the objective."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_data, tiny_env, tiny_set

from ddengine import loop
from ddengine.contract.test_method import StopsAt
from ddengine.learning import inner, memory
from ddengine.learning.by_higher import TorchOptimiser
from ddengine.learning.updates import Adam, HeavyBall, Sgd, Update
from ddengine.recipe import AugmentConfig, InitConfig, OptimConfig, OuterConfig, TargetConfig
from ddengine.sets.labels import label
from ddengine.sets.start import INITIALISERS
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.bptt import ThroughTraining
from synth.inner_batches import InnerBatches, draws
from synth.selector import Selector
from synth.stages import Stages, late
from synth.windows import FromStart, Last, Plan, RandomWindow

T = 10


def no_probe(another):
    """For windows that ask for none."""
    raise AssertionError("asked for a probe")


def planned(window, steps, probe=no_probe, state=None):
    """The plans of the first outer steps."""
    state = window.state(T) if state is None else state
    return [window.plan(state, k, T, probe, generator(k, "plan")) for k in range(steps)]


def test_windows_that_do_not_move():
    """DD's whole training, and the last steps of one."""
    assert planned(FromStart(size=4), 2) == [Plan(0, 4), Plan(0, 4)]
    assert planned(Last(size=4), 1) == [Plan(6, 4)]


def test_a_random_window_is_anywhere_and_is_shared():
    """All places occur, up to the last; with `every` the place changes then and only then."""
    places = {plan.warm for plan in planned(RandomWindow(size=4, fewest=2), 200)}
    assert places == set(range(2, T - 4 + 1))
    plans = planned(RandomWindow(size=4, every=5), 60)
    blocks = [set(plans[k : k + 5]) for k in range(0, 60, 5)]
    assert all(len(block) == 1 for block in blocks)
    assert len(set.union(*blocks)) > 2
    # a run that begins in the middle of a block draws its own
    late_start = RandomWindow(size=4, every=5)
    assert late_start.plan(late_start.state(T), 7, T, no_probe, generator(0)).size == 4


def test_stages_follow_each_other():
    """Calm blocks end the first two stages; the third stays, and asks another student's norms."""
    window = Stages(size=4, spread=2, every=2, early_calm=2, middle_calm=3)
    state = window.state(T)
    asked, seen = [], []

    def probe(another):
        asked.append(another)
        return torch.arange(T).float()

    accuracies = [0.2, 0.3, 0.5, 0.6] + [0.6] * 20
    for step, accuracy in enumerate(accuracies):
        plan = window.plan(state, step, T, probe, generator(step))
        stage = int(state["stage"][0])
        seen.append((stage, plan.size))
        assert 0 <= plan.warm <= T - plan.size
        window.judged(state, torch.tensor(accuracy))
    stages = [stage for stage, _ in seen]
    # means of blocks: 0.25 and 0.55 are gains, 0.6 is one, then all are calm
    assert stages == [0] * 10 + [1] * 6 + [2] * 8
    assert {size for stage, size in seen if stage == 1} == {6}
    assert {size for stage, size in seen if stage == 2} == {2}
    assert asked and all(asked)
    assert late(T, T - 1, 4, 2) == Plan(0, 2)


def test_the_selector_ends_windows_where_its_policy_says():
    """Large norms are preferred when their mean is the largest so far, avoided at the least."""
    window = Selector(size=4, radius=2)
    state = window.state(T)
    norms = torch.tensor([1.0] * 9 + [5.0], dtype=torch.float64)
    first = window.policy(state, norms)
    assert first.argmax() == T - 1 and first.sum() == pytest.approx(1)
    assert torch.allclose(state["policy"], 0.95 * torch.full((T,), 0.1).double() + 0.05 * first)
    least = window.policy(state, norms / 10)
    assert least.argmin() == T - 1
    asked = []

    def probe(another):
        asked.append(another)
        return norms.float()

    for plan in planned(window, 50, probe, state):
        assert plan.warm >= 0 and 1 <= plan.size <= 6 and sum(plan) <= T
    assert not any(asked)
    assert window.ending(norms, 9) == Plan(4, 6)  # the change at the end is the largest
    assert window.ending(norms, 0) == Plan(0, 1)  # no room for more
    assert replace(window, temperature=0.1).ending(norms, 5).size == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": FromStart(size=T + 1)}, r"11 steps.*inner_steps 10"),
        ({"window": Stages(size=8, spread=3)}, r"11 steps.*inner_steps 10"),
        ({"window": RandomWindow(size=6, fewest=5)}, r"11 steps.*inner_steps 10"),
        ({"inner": "unroll", "update": TorchOptimiser()}, r"inner unroll.*set objective.inner"),
        ({"lr": 0.0}, "objective.lr"),
        ({"weight_decay": -1.0}, "objective.weight_decay"),
        ({"weight_decay": float("inf")}, "objective.weight_decay must be finite"),
        ({"real_batch": 0}, "objective.real_batch"),
    ],
)
def test_impossible_options_are_refused(change, words):
    """In a sentence, as the recipe is made."""
    options = {"inner_steps": T, "window": Last(size=2), "update": Sgd()}
    with pytest.raises(UserError, match=words):
        ThroughTraining(**options | change)


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "RAdam", "RMSprop"])
def test_an_optimiser_that_higher_does_not_know_is_refused(name):
    """As it is named, with those that there are and with what to do."""
    with pytest.raises(UserError, match=f"higher cannot differentiate torch's {name}.*unroll"):
        TorchOptimiser(name=name)
    with pytest.raises(UserError, match=r"Frog is no optimiser of torch.optim; set one of SGD"):
        TorchOptimiser(name="Frog")


class Own(Update):
    """An update that torch has not."""

    def step(self, theta, grad, state, lr, k):
        """Half of plain descent."""
        return theta - lr / 2 * grad, ()


def test_an_update_that_torch_has_not():
    """Higher refuses it before the first step; nobody but us can train networks so."""
    config = ThroughTraining(inner_steps=T, window=Last(size=2), update=Own())
    env, syn = environment()
    assert config.students(syn) is None
    config.build(env)
    with pytest.raises(UserError, match=r"Own is none of them; set objective.inner unroll"):
        replace(config, inner="higher").build(env)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FromStart(size=0),
        lambda: RandomWindow(size=1, every=0),
        lambda: Stages(size=2, spread=2),
        lambda: Selector(size=2, radius=-1),
        lambda: Selector(size=2, radius=1, mix=2.0),
        lambda: Selector(size=2, radius=1, temperature=0.0),
        lambda: InnerBatches(per_class=0),
        lambda: InitConfig(norm=0.0),
    ],
)
def test_impossible_parts_are_refused(make):
    with pytest.raises(UserError):
        make()


def test_batches_of_some_images_of_each_class():
    """Random ones without repetition, or one after another; of all classes or of some."""
    syn = tiny_set(tiny_data(), ipc=4)
    classes = syn.classes
    num = len(syn.class_names)
    drawn = InnerBatches(per_class=2).draw(syn, 30, generator(0))
    assert drawn.shape == (30, 2 * num)
    for row in drawn:
        assert torch.equal(classes[row], torch.arange(num).repeat_interleave(2))
        assert len(row.unique()) == len(row)
    assert len(drawn.unique(dim=0)) > 20
    turns = InnerBatches(per_class=3, order="turns").draw(syn, 8, generator(0))
    assert (turns[:, :3] % 4).tolist()[:3] == [[0, 1, 2], [3, 0, 1], [2, 3, 0]]
    assert torch.equal(turns[0], turns[4])
    some = InnerBatches(per_class=2, classes=2)
    rows = some.draw(syn, 40, generator(0))
    assert rows.shape == (40, 4) and some.images(syn) == 4
    chosen = {tuple(classes[row].unique().tolist()) for row in rows}
    assert all(len(pair) == 2 for pair in chosen) and len(chosen) > 2
    everything = InnerBatches().draw(syn, 1, generator(0))
    assert sorted(everything[0].tolist()) == list(range(len(syn)))


def test_one_draw_augments_everything_alike():
    """Or each batch has its own."""
    config = AugmentConfig(ops=("crop", "rotate"))
    images = torch.rand(1, 1, 8, 8, generator=generator(0)).repeat(3, 1, 1, 1)
    same = draws(config, [3, 3, 3], generator(1), torch.device("cpu"), one=True)
    assert torch.equal(same.apply(images, 0), same.apply(images, 2))
    assert torch.equal(same.apply(images, 0)[0], same.apply(images, -1)[1])
    own = draws(config, [3, 3, 3], generator(1), torch.device("cpu"), one=False)
    assert not torch.equal(own.apply(images, 0), own.apply(images, 2))


def environment():
    """Tiny images and a tiny network."""
    data = tiny_data()
    return tiny_env(data, None), tiny_set(data)


SLOTS = {
    "random": (RandomWindow(size=2, every=3), Adam(eps_as="higher")),
    "stages": (Stages(size=2, spread=1, every=2, early_calm=1, middle_calm=1), HeavyBall()),
    "selector": (Selector(size=2, radius=1), Sgd()),
    "higher": (Last(size=2), TorchOptimiser()),
}


@pytest.mark.parametrize("name", SLOTS)
def test_a_resumed_run_goes_on_to_the_bit(name, tmp_path):
    """With the state of the window, wherever it stopped."""
    window, update = SLOTS[name]
    env, syn = environment()
    config = ThroughTraining(
        inner_steps=5, window=window, update=update, lr=0.05, real_batch=16,
        batches=InnerBatches(per_class=1),
    )  # fmt: skip
    objective = config.build(env)
    optim = {"images": OptimConfig(lr=0.05, kind="adam", clip_average=2.0)}
    outer = OuterConfig(steps=9, optim=optim, checkpoint_every=1)
    at_once, _ = loop.distill(syn, objective, outer, tmp_path / "at once", seed=0)
    for stop in (4, 7):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            loop.distill(syn, StopsAt(objective, stop), outer, folder, seed=0)
        resumed, _ = loop.distill(syn, config.build(env), outer, folder, seed=0)
        assert torch.equal(at_once.tensors["images"], resumed.tensors["images"])
    assert not torch.equal(at_once.tensors["images"], syn.tensors["images"])


def gradient(config, seed=0):
    """The gradient of the images in the first step."""
    env, syn = environment()
    leaf = syn.tensors["images"].clone().requires_grad_()
    objective = config.build(env)
    state = objective.init(generator(0))
    (loss,) = objective.losses(syn.with_tensors({"images": leaf}), state, 0, generator(seed))
    loss.backward()
    return float(loss.detach()), leaf.grad


def test_all_ways_back_give_one_gradient():
    """Of the objective: full, replay and higher, with augmentation and weight decay."""
    config = ThroughTraining(
        inner_steps=6, window=Last(size=3), update=HeavyBall(momentum=0.5), lr=0.05,
        weight_decay=0.1, real_batch=16, augment=AugmentConfig(), backprop="full",
    )  # fmt: skip
    loss, exact = gradient(config)
    for change in ({"backprop": "replay"}, {"inner": "higher"}, {"backprop": "auto"}):
        other, ours = gradient(replace(config, **change))
        assert other == pytest.approx(loss, rel=1e-5)
        assert torch.allclose(ours, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    without, _ = gradient(replace(config, weight_decay=0.0))
    assert without != pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_as_many_graphs_of_a_window_are_kept_as_memory_holds(learned, monkeypatch):
    """Whatever the number, the gradient is that of replay, and kept steps are not made again."""
    config = ThroughTraining(
        inner_steps=4, window=Last(size=3), update=Adam(eps=1e-3), lr=0.05, real_batch=16,
        batches=InnerBatches(per_class=1), learned_rates=learned,
    )  # fmt: skip
    env, syn = environment()
    if learned:
        rates = torch.tensor(config.initial()["rates"])
        syn = replace(syn, tensors={**syn.tensors, "rates": rates})
    objective = config.build(env)
    assert config.choices(objective, syn, 10**15) == {"kept_graphs": 3}
    assert objective.student.kept_graphs == 0
    config.choose(objective, {"kept_graphs": 1})
    one = memory.graph_bytes(lambda: objective.reached_by_one_step(syn)) / memory.KEPT_SHARE
    assert config.choices(objective, syn, int(2.5 * one)) == {"kept_graphs": 2}
    assert config.choices(objective, syn, int(0.9 * one)) == {"kept_graphs": 0}
    assert replace(config, backprop="replay").choices(objective, syn, 10**15) == {}
    made = []
    keep = inner.KeptGraph.__init__

    def noted(*given):
        made.append(given)
        keep(*given)

    monkeypatch.setattr(inner.KeptGraph, "__init__", noted)
    found = []
    for number in (0, 2, 3):
        config.choose(objective, {"kept_graphs": number})
        leaf = syn.tensors["images"].clone().requires_grad_()
        tensors = {**syn.tensors, "images": leaf}
        (loss,) = objective.losses(syn.with_tensors(tensors), {}, 0, generator(0))
        made.clear()
        loss.backward()
        assert len(made) == 3 - number
        found.append(leaf.grad)
    assert all(torch.allclose(other, found[0], rtol=1e-4, atol=1e-7) for other in found[1:])
    assert found[0].abs().sum() > 0


def test_a_longer_window_reaches_the_first_steps():
    """Images that only the first step sees have a gradient when that is in the window."""
    turns = InnerBatches(per_class=1, order="turns")
    config = ThroughTraining(
        inner_steps=2, window=Last(size=1), update=Sgd(), lr=0.1, batches=turns, real_batch=16
    )
    _, short = gradient(config)
    _, long = gradient(replace(config, window=Last(size=2)))
    of_first, of_second = short[0::2], short[1::2]
    assert of_first.abs().sum() == 0 and of_second.abs().sum() > 0
    assert long[0::2].abs().sum() > 0


def test_the_step_size_of_each_step_is_learned():
    """It starts as it is set, and each has a gradient; gradients are those of differences."""
    config = ThroughTraining(
        inner_steps=3, window=FromStart(size=3), update=Sgd(), lr=0.3, learned_rates=True,
        real_batch=16,
    )  # fmt: skip
    env, syn = environment()
    raw = torch.tensor(config.initial()["rates"])
    assert raw.shape == (3,)
    assert torch.allclose(config.rates({"rates": raw}, raw.device), torch.full((3,), 0.3))
    objective = config.build(env)

    def loss(rates):
        learned = syn.with_tensors({"rates": rates})
        (value,) = objective.losses(learned, {}, 0, generator(0))
        return value

    leaf = raw.clone().requires_grad_()
    loss(leaf).backward()
    for k in range(3):
        step = torch.zeros(3)
        step[k] = 0.05
        difference = float(loss(raw + step) - loss(raw - step)) / 0.1
        assert float(leaf.grad[k]) == pytest.approx(difference, rel=0.05)


@pytest.mark.parametrize("lr", [1e-30, 0.001, 0.3, 5.0, 1000.0])
def test_learned_step_sizes_start_where_they_are_set(lr):
    """However small or large that is."""
    config = ThroughTraining(
        inner_steps=2, window=FromStart(size=2), update=Sgd(), lr=lr, learned_rates=True
    )
    raw = torch.tensor(config.initial()["rates"])
    assert config.rates({"rates": raw}, raw.device).tolist() == pytest.approx([lr, lr], rel=1e-4)


def test_a_set_with_learned_rates_is_distilled(tmp_path):
    """They are stored beside the images, counted, and move."""
    config = ThroughTraining(
        inner_steps=3, window=FromStart(size=3), update=Sgd(), lr=0.3, learned_rates=True,
        real_batch=16,
    )  # fmt: skip
    env, syn = environment()
    syn = syn.with_tensors({"rates": torch.tensor(config.initial()["rates"])})
    optim = {"rates": OptimConfig(lr=0.1, kind="adam")}
    outer = OuterConfig(steps=2, optim=optim)
    reached, _ = loop.distill(syn, config.build(env), outer, tmp_path, seed=0)
    assert not torch.equal(reached.tensors["rates"], syn.tensors["rates"])
    assert reached.ledger["other"] == 12


def test_noise_of_a_norm():
    """Each image has it, and is the same noise otherwise."""
    data = tiny_data()
    images = []
    for norm in (None, 1.0):
        config = InitConfig(kind="noise", norm=norm)
        noise = INITIALISERS["noise"]
        images.append(noise(data.train, 2, data.class_names, generator(0), config))
    free, unit = images
    assert torch.allclose(unit.flatten(1).norm(dim=1), torch.ones(len(unit)))
    assert torch.allclose(free / free.flatten(1).norm(dim=1).view(-1, 1, 1, 1), unit)


def test_labels_are_learned_without_experts(tmp_path):
    """They start at the class of each image, and gradients move them."""
    env, syn = environment()
    targets = TargetConfig(kind="logits", start="class")
    labelled = label(syn, None, targets)
    said = labelled.logits.softmax(1)
    own = said.gather(1, syn.classes[:, None])
    assert torch.allclose(own, torch.full_like(own, 0.9))
    assert torch.equal(said.argmax(1), syn.classes)
    config = ThroughTraining(
        inner_steps=3, window=Last(size=2), update=Sgd(), lr=0.3, real_batch=16
    )
    outer = OuterConfig(steps=2, optim={"logits": OptimConfig(lr=0.1, kind="adam")})
    reached, _ = loop.distill(labelled, config.build(env), outer, tmp_path, seed=0)
    assert not torch.equal(reached.tensors["logits"], labelled.tensors["logits"])
    with pytest.raises(UserError, match=r"relabel.*start"):
        replace(targets, relabel=True, experts="all")
