"""What the public calls make of arguments that are wrong, and of such that changed since a call."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import MODEL
from torch.utils.data import TensorDataset

import ddengine
import synth
from ddengine.data import Dataset, load_data
from ddengine.recipe import DataConfig
from ddengine.system.errors import UserError

QUICK = {"epochs": 2, "num_networks": 2, "lr_grid": (0.01,), "full_steps": 10}
DIGITS = Dataset.named("digits")


def recipe() -> ddengine.Recipe:
    """A distillation of a second."""
    return synth.find(
        "dm/fashion_mnist_ipc1_small",
        model=MODEL,
        data={"limit": 200},
        objective={"real_batch": 10},
        outer={"steps": 2, "evaluate_every": 0, "picture_every": 0},
    )


@pytest.fixture(scope="module")
def result():
    """A set in memory."""
    return ddengine.distill(DIGITS, recipe(), progress=False)


@pytest.mark.parametrize("wrong", ["on", "yes", 1, None])
def test_compile_is_one_of_three(wrong):
    """What is none of them is refused, and not taken for a no."""
    with pytest.raises(UserError, match=f"compile is {wrong!r}; give True, False or 'auto'"):
        ddengine.distill(DIGITS, recipe(), compile=wrong, progress=False)


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """An empty folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def linear(shape, num_classes):
    """The smallest network."""
    channels, height, width = shape
    flat = channels * height * width
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(flat, num_classes))


def test_other_test_images_are_evaluated_on(work, result):
    """What lies in the folder is of other test images, so it is not the answer."""
    digits = load_data(DataConfig(name="digits"), torch.device("cpu"), test=True)
    few = TensorDataset(digits.test.pixels[:40].float() / 255, digits.test.labels[:40])
    asked = partial(
        ddengine.evaluate, result, models=["mlp"], baselines=[], protocol=QUICK, progress=False
    )
    usual = asked(folder="both")
    with pytest.raises(UserError, match="made with other settings"):
        asked(folder="both", test=few)
    own = asked(folder="few", test=few)
    assert own.rows[0]["accuracies"] != usual.rows[0]["accuracies"]
    assert asked(folder="few", test=few).rows == own.rows
    with pytest.raises(UserError, match="made with other settings"):
        asked(folder="few")


def test_what_is_brought_leaves_the_run_alone(work):
    """A run's own evaluation is not replaced by one on other networks, and not taken for it."""
    run = ddengine.distill(DIGITS, recipe(), folder="run", progress=False)
    asked = partial(ddengine.evaluate, run, baselines=[], protocol=QUICK, progress=False)
    asked(models=[linear])
    assert not Path("run/evaluation.json").exists()
    usual = asked(models=["mlp"])

    def refuses(network, examples, *, lr, updates, generator):
        raise RuntimeError("asked to train")

    with pytest.raises(RuntimeError, match="asked to train"):
        asked(models=["mlp"], train=refuses)
    with pytest.raises(RuntimeError, match="asked to train"):
        asked(models=["mlp"], train=refuses, folder="run")
    assert asked(models=["mlp"]).rows == usual.rows


def test_networks_of_the_user_have_names(result):
    """Functions with values are called after the function; two of one name are not one row."""
    asked = partial(ddengine.evaluate, result, baselines=[], protocol=QUICK, progress=False)
    rows = asked(models=[partial(linear)]).rows
    assert [row["model"] for row in rows] == ["linear"]
    with pytest.raises(UserError, match="are called '<lambda>'; give them as a dictionary"):
        asked(models=[lambda s, k: linear(s, k), lambda s, k: linear(s, k)])
    named = asked(models={"first": linear, "second": partial(linear)}).rows
    assert [row["model"] for row in named] == ["first", "second"]


def test_changes_of_a_protocol_are_checked_as_those_of_a_recipe(result):
    asked = partial(ddengine.evaluate, result, baselines=[], progress=False)
    with pytest.raises(UserError, match=r"protocol\.epochs is of type int, and '5' is not"):
        asked(protocol={"epochs": "5"})
    with pytest.raises(UserError, match=r"protocol\.epoch.*nearest: protocol\.epochs"):
        asked(protocol={"epoch": 5})
    changed = asked(models=["mlp"], protocol=QUICK | {"augment": {"ops": ["flip"]}})
    assert changed.content["protocol"]["augment"]["ops"] == ["flip"]


def test_a_set_in_the_hand_stays_what_it_is(work, result):
    """Another set in the folder that it was saved in does not take its place, nor does saving
    replace anything: neither a file of the user's nor another set.
    """
    saved = result.save("set")
    assert torch.equal(result.save("set").tensors["images"], saved.tensors["images"])
    Path("set/mine.txt").write_text("mine")
    result.save("set")
    assert Path("set/mine.txt").read_text() == "mine"
    other = ddengine.distill(DIGITS, recipe(), seed=1, progress=False)
    with pytest.raises(UserError, match="set exists already and holds something else"):
        other.save("set")
    protocol = QUICK | {"baselines": []}
    trained = ddengine.train(saved, "mlp", protocol=protocol, progress=False)
    data = Path("set/data.safetensors")
    data.write_bytes(Path(other.save("other").folder, "data.safetensors").read_bytes())
    again = ddengine.train(saved, "mlp", protocol=protocol, progress=False)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


WRONG = {
    "experts is 'x'": lambda of: ddengine.distill(DIGITS, recipe(), "x"),
    "experts is 5": lambda of: ddengine.distill(DIGITS, recipe(), 5, progress=False),
    "experts is 'y'": lambda of: ddengine.evaluate(of, experts="y"),
    "experts is 'z'": lambda of: ddengine.train(of, experts="z"),
    "folder is 5": lambda of: ddengine.distill(DIGITS, recipe(), folder=5),
    "folder is 6": lambda of: ddengine.evaluate(of, folder=6),
    "seed is 'x'": lambda of: ddengine.distill(DIGITS, recipe(), seed="x"),
    "seed is 1.5": lambda of: ddengine.evaluate(of, seed=1.5),
    "images is a list": lambda of: ddengine.distill(DIGITS, recipe(), images=[1]),
    "lr is -1": lambda of: ddengine.train(of, lr=-1),
    "scores and rankings are of networks by name": lambda of: ddengine.score(of, models=[linear]),
    "give a ddengine.ContinualConfig": lambda of: ddengine.continual(DIGITS, recipe(), {"a": 1}),
    "There is no recipe|Unknown recipe": lambda of: synth.bibtex("nothing"),
    "must have the form PART=RECIPE, e.g": lambda of: synth.take(recipe(), "codec"),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_arguments_are_told_in_a_sentence(work, result, sentence):
    with pytest.raises(UserError, match=sentence):
        WRONG[sentence](result)


def test_names_serve_where_recipes_do():
    name = "dm/fashion_mnist_ipc1_small"
    assert synth.bibtex(name) == synth.bibtex(synth.find(name))
    other = "init=mtt/cifar10_ipc1"
    assert synth.take(recipe(), other) == synth.take(recipe(), [other])
    assert synth.find(name, model=MODEL) == replace(synth.find(name), model=MODEL)


def test_images_without_a_test_split_are_evaluated_on_those_given(work):
    """`test=` stands in place of the split; without either it is asked for."""
    digits = load_data(DataConfig(name="digits"), torch.device("cpu"), test=True)
    images, labels = digits.train.pixels[:200].float() / 255, digits.train.labels[:200]
    few = TensorDataset(digits.test.pixels[:40].float() / 255, digits.test.labels[:40])
    data = Dataset.of(TensorDataset(images, labels))
    result = ddengine.distill(data, recipe(), progress=False)
    asked = partial(ddengine.evaluate, result, data, models="mlp", protocol=QUICK, progress=False)
    assert asked(baselines="hard_labels", test=few).rows[0]["model"] == "mlp"
    with pytest.raises(UserError, match="no test images"):
        asked(baselines=())


def test_a_misspelt_network_is_told_as_one(work):
    """Also where an evaluation with other networks lies in the folder."""
    run = ddengine.distill(DIGITS, recipe(), folder="run", progress=False)
    asked = partial(ddengine.evaluate, run, baselines=[], protocol=QUICK, progress=False)
    asked(models=["mlp"])
    with pytest.raises(UserError, match="Unknown network 'mpl'"):
        asked(models=["mpl"])


def test_networks_that_do_not_fit_are_told_before_training(result):
    """Also a network that was made already, not only functions that make one."""
    asked = partial(ddengine.train, result, progress=False)
    with pytest.raises(UserError, match=r"The network gives \(2, 3\) for two images"):
        asked(linear((1, 8, 8), 3))
    with pytest.raises(UserError, match="The network 'network' that you bring fails"):
        asked(torch.nn.Linear(3, 3))
    with pytest.raises(UserError, match="The network 'wrong' that you bring fails"):
        ddengine.evaluate(
            result, models={"wrong": lambda shape, num: torch.nn.Linear(3, 3)}, progress=False
        )


def test_labels_beside_images():
    """A list of numbers serves as an array does; words and missing labels do not."""
    images = torch.rand(20, 1, 8, 8)
    numbers = [0, 1] * 10
    given = ddengine.distill((images, numbers), small_of_two(), progress=False)
    same = ddengine.distill((images, torch.tensor(numbers)), small_of_two(), progress=False)
    assert torch.equal(given.tensors["images"], same.tensors["images"])
    with pytest.raises(UserError, match="The labels beside the images are no whole numbers"):
        ddengine.distill((images, ["a", "b"] * 10), small_of_two())
    with pytest.raises(UserError, match="A label is -1, which often means that an image has none"):
        ddengine.distill((images, torch.tensor(numbers) - 1), small_of_two())


def small_of_two() -> ddengine.Recipe:
    """As `recipe`, for few images."""
    return replace(recipe(), data=replace(recipe().data, limit=None, validation=0.0))


def test_too_many_images_a_class_names_the_smallest():
    labels = torch.tensor([0] * 12 + [1] * 5 + [2] * 9)
    images = torch.rand(len(labels), 1, 8, 8)
    with pytest.raises(UserError, match="more than the 5 training images of class '1'"):
        ddengine.distill((images, labels), replace(small_of_two(), ipc=11), progress=False)


def test_a_second_set_in_the_place_of_a_folder_is_told(result):
    with pytest.raises(UserError, match="give the path of a folder"):
        ddengine.merge([result], result)
    with pytest.raises(UserError, match="merge takes a list of sets"):
        ddengine.merge(result, result)
