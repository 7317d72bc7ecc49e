"""Several clients, each with images of its own: one preprocessing, one merged set."""

from dataclasses import replace

import pytest
import torch
from helpers import MODEL

import buffers
import ddengine
import synth
from ddengine.data import Dataset, Preprocess, load_data
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

SHARED = Preprocess.of((0.4,), (0.3,))
NAMES = [f"digit {i}" for i in range(10)]


@pytest.fixture(scope="module")
def digits():
    """(images (N, 1, 8, 8) uint8, labels) of 400 digits."""
    data = load_data(DataConfig(name="digits", limit=400, validation=0.0), torch.device("cpu"))
    return data.train.pixels, data.train.labels


def client(digits, *classes):
    """The images of some classes, with their labels."""
    images, labels = digits
    mine = torch.isin(labels, torch.tensor(classes))
    return images[mine], labels[mine]


def small(**changes) -> ddengine.Recipe:
    """A distillation of seconds."""
    recipe = synth.find("dm/fashion_mnist_ipc1_small", model=MODEL)
    outer = replace(recipe.outer, steps=2, checkpoint_every=2, evaluate_every=0, picture_every=0)
    data = replace(recipe.data, limit=None)
    objective = replace(recipe.objective, real_batch=10)
    return replace(recipe, data=data, objective=objective, outer=outer, **changes)


def test_preprocessing_is_shared_in_every_form(digits, tmp_path):
    """As itself, by a set, by its folder, by images that it is fitted to."""
    first = ddengine.distill(client(digits, 0, 1), small(), preprocess=SHARED, progress=False)
    assert torch.equal(first.preprocess.mean, SHARED.mean)
    first.save(tmp_path / "first")
    others = [first, first.set, tmp_path / "first", str(tmp_path / "first")]
    for given in others:
        second = ddengine.distill(client(digits, 2, 3), small(), preprocess=given, progress=False)
        assert torch.equal(second.preprocess.mean, SHARED.mean)
        assert torch.equal(second.preprocess.std, SHARED.std)
    fitted = Dataset.of(digits).load(small().data, torch.device("cpu")).train.preprocess
    third = ddengine.distill(client(digits, 2, 3), small(), preprocess=digits, progress=False)
    assert torch.equal(third.preprocess.mean, fitted.mean)
    alone = ddengine.distill(client(digits, 2, 3), small(), progress=False)
    assert not torch.equal(alone.preprocess.mean, fitted.mean)
    # networks see the same pixels otherwise, so other images come of them
    assert not torch.equal(alone.tensors["images"], third.tensors["images"])


def test_a_run_with_given_preprocessing_is_another_run(digits, tmp_path):
    images = client(digits, 0, 1)
    shared = ddengine.distill(images, small(), folder=tmp_path / "run", preprocess=SHARED)
    again = ddengine.distill(images, small(), folder=tmp_path / "run", preprocess=SHARED)
    assert torch.equal(shared.tensors["images"], again.tensors["images"])
    with pytest.raises(UserError, match="other settings"):
        ddengine.distill(images, small(), folder=tmp_path / "run")
    with pytest.raises(UserError, match="other settings"):
        other = Preprocess.of((0.5,), (0.3,))
        ddengine.distill(images, small(), folder=tmp_path / "run", preprocess=other)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (Preprocess.of((0.4, 0.4, 0.4), (0.3, 0.3, 0.3)), "does not fit these images.*of shape"),
        (Preprocess.of((0.95,), (0.3,)), "does not fit these images.*mean"),
        (Preprocess.of((0.4,), (0.0,)), "does not fit these images.*standard deviation of 0"),
        (Preprocess.of((float("nan"),), (0.3,)), "does not fit these images.*not finite"),
        (
            Preprocess(torch.zeros(64), matrix=torch.eye(64), inverse=torch.eye(64)),
            "whitens images, and data.zca of the recipe is False; set it to True",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(digits, preprocess, message):
    with pytest.raises(UserError, match=message) as error:
        ddengine.distill(client(digits, 0, 1), small(), preprocess=preprocess, progress=False)
    assert str(error.value).count(". ") == 0


def test_experts_bring_theirs(digits, tmp_path):
    """Preprocessing that is not theirs is refused, and theirs taken."""
    recipe = synth.find("mtt/digits_ipc1", model=MODEL, data={"limit": 200})
    recipe = replace(
        recipe,
        buffer=replace(recipe.buffer, num_experts=1, epochs=2),
        objective=replace(
            recipe.objective,
            window=replace(recipe.objective.window, high=1),
            expert_epochs=1,
            inner_steps=2,
        ),
        outer=replace(recipe.outer, steps=1, checkpoint_every=1, evaluate_every=0),
    )
    experts = buffers.generate(digits, recipe, folder=tmp_path / "experts", progress=False)
    with pytest.raises(UserError, match="experts saw their images through another"):
        ddengine.distill(digits, recipe, experts, preprocess=SHARED, progress=False)
    theirs = experts.preprocesses()[0]
    result = ddengine.distill(digits, recipe, experts, preprocess=theirs, progress=False)
    assert torch.equal(result.preprocess.mean, theirs.mean)
