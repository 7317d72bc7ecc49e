"""Several clients, each with images of its own: one preprocessing, one merged set."""

from dataclasses import replace

import pytest
import torch
from helpers import MODEL, run

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
        (3, "preprocess= is a int; give a ddengine.Preprocess, a set, or images"),
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


# One merged set of several clients.


def named(digits, *classes) -> tuple:
    """The images of some classes, with labels from 0 on, and the names of these classes."""
    images, labels = client(digits, *classes)
    numbers = torch.searchsorted(torch.tensor(sorted(classes)), labels)
    return (images, numbers), [f"digit {label}" for label in sorted(classes)]


def distilled(data, names=None, **options) -> ddengine.Distilled:
    """What a client distills, whose classes have names or numbers."""
    given = data if names is None else Dataset.of(data, classes=names)
    return ddengine.distill(given, small(), preprocess=SHARED, progress=False, **options)


@pytest.fixture(scope="module")
def two(digits):
    """Sets of two clients, who share a class; the second has one class more."""
    return [distilled(*named(digits, 0, 7)), distilled(*named(digits, 7, 1, 9))]


def test_sets_in_memory_are_merged_by_the_names_of_their_classes(two):
    merged = ddengine.merge(two)
    # as labels ascend within a client, and clients follow each other
    assert merged.class_names == ("digit 0", "digit 7", "digit 1", "digit 9")
    assert torch.bincount(merged.classes).tolist() == [1, 2, 1, 1]
    assert torch.equal(merged.tensors["images"][:2], two[0].tensors["images"])
    assert merged.meta["merged"] == ["in memory"] * 2 and "images" not in merged.meta
    assert merged.meta["recipe"]["data"]["name"] == "own"


def test_classes_without_names_are_matched_by_number_and_it_is_said(digits, capsys):
    parts = [distilled(client(digits, 7, 8)), distilled(client(digits, 0, 8))]
    merged = ddengine.merge(parts)
    assert merged.class_names == ("0", "7", "8")
    assert "equal numbers were taken for one class" in capsys.readouterr().out


def test_the_command_merges_runs_of_peoples_own_images(two, tmp_path, capsys):
    for i, part in enumerate(two):
        part.save(tmp_path / f"client{i}")
    paths = [str(tmp_path / f"client{i}") for i in range(2)]
    assert run("merge", *paths, "--out", str(tmp_path / "both")) == 0
    said = capsys.readouterr().out
    assert "evaluate cannot check that no test image was seen" in said.replace("\n", " ")
    both = ddengine.load(tmp_path / "both")
    assert torch.equal(both.tensors["images"], ddengine.merge(two).tensors["images"])
    assert run("evaluate", str(tmp_path / "both")) == 2
    told = capsys.readouterr().err
    assert f"ddengine.evaluate('{tmp_path / 'both'}', data) in Python" in told.replace("\n", " ")


def test_the_command_brings_all_sets_under_the_preprocessing_that_is_named(two, tmp_path, capsys):
    """That of a set, which need not be one of them; the pictures stay."""
    paths = [str(tmp_path / f"set{i}") for i in range(2)]
    for one, path in zip(two, paths, strict=True):
        one.save(path)
    other = replace(two[0].set, preprocess=Preprocess.of((0.25,), (0.5,)))
    ddengine.Distilled(other, two[0].meta).save(tmp_path / "other")
    words = ("--preprocess", str(tmp_path / "other"), "--out", str(tmp_path / "both"))
    assert run("merge", *paths, *words) == 0
    capsys.readouterr()
    both = ddengine.load(tmp_path / "both")
    assert both.preprocess.mean.item() == 0.25 and both.preprocess.std.item() == 0.5
    index = torch.arange(len(two[0]))
    assert torch.allclose(both.pixels(index), two[0].pixels(index), atol=1e-6)
    whitened = Preprocess(torch.zeros(64), matrix=torch.eye(64), inverse=torch.eye(64))
    with pytest.raises(UserError, match="whitens images"):
        ddengine.merge(two, preprocess=whitened)


def test_folders_of_two_people_are_merged_and_one_of_other_classes_is_not(tmp_path, digits):
    from PIL import Image

    results = []
    for person, classes in (("anna", (1, 2)), ("ben", (2, 3, 4))):
        for label in classes:
            images, _ = client(digits, label)
            for i, image in enumerate(images[:6]):
                path = tmp_path / person / f"digit {label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0].numpy()).save(path)
        photos = Dataset.folder(tmp_path / person)
        folder = tmp_path / f"run of {person}"
        recipe = replace(small(), data=replace(small().data, validation=0.0))
        results.append(ddengine.distill(photos, recipe, folder=folder, progress=False))
    merged = ddengine.merge(results)
    assert merged.class_names == ("digit 1", "digit 2", "digit 3", "digit 4")
    known = ddengine.distill(Dataset.named("digits"), small(), progress=False)
    with pytest.raises(UserError, match="Set 2 is of dataset digits and set 1 of folder"):
        ddengine.merge([results[0], known])


@pytest.mark.parametrize(
    ("sets", "message"),
    [([], "at least one"), ("runs/one", "takes a list")],
)
def test_what_is_no_list_of_sets_is_refused(sets, message):
    with pytest.raises(UserError, match=message):
        ddengine.merge(sets)


def test_a_merged_set_is_evaluated_on_images_that_python_holds(digits, two):
    """Whatever the order of its classes; a class that no client had is never answered."""
    quick = {"epochs": 30, "num_networks": 3, "lr_grid": (0.03,)}
    images, labels = client(digits, 0, 1, 7, 9)
    data = Dataset.of((images, labels), classes=NAMES, test=(images, labels))
    merged = ddengine.merge(two)
    table = ddengine.evaluate(
        merged, data, models=["convnet-d1-w16-in"], protocol=quick, baselines=[], progress=False
    )
    assert list(table.rows[0]["per_class"]) == ["digit 0", "digit 1", "digit 7", "digit 9"]
    assert table.rows[0]["accuracy_mean"] > 0.6  # of four classes, from images of the right ones
    more = Dataset.of(client(digits, 0, 1, 7, 9, 4), classes=NAMES, test=client(digits, 4))
    table = ddengine.evaluate(merged, more, protocol=quick, baselines=[], progress=False)
    assert table.rows[0]["per_class"]["digit 4"] < 0.2
    less = Dataset.of(client(digits, 0, 1), classes=NAMES, test=client(digits, 0, 1))
    with pytest.raises(UserError, match=r"was distilled from other images than data\.name own"):
        ddengine.evaluate(merged, less, protocol=quick, baselines=[], progress=False)


def test_a_run_of_some_classes_is_evaluated_on_its_own_images(digits, tmp_path):
    """Kept in a folder, read again by its path; what lies there is of the set."""
    quick = {"epochs": 2, "num_networks": 3, "lr_grid": (0.03,)}
    images = client(digits, 3, 8)
    data = Dataset.of(images, classes=NAMES, test=images)
    distilled(images, NAMES, folder=tmp_path / "run")
    for restart in (True, False):
        table = ddengine.evaluate(
            tmp_path / "run", data, protocol=quick, baselines=["random"], restart=restart,
            progress=False,
        )  # fmt: skip
        assert list(table.rows[0]["per_class"]) == ["digit 3", "digit 8"]
    assert run("score", str(tmp_path / "run")) == 2
