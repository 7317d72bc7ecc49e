"""Networks that a file of the user defines, from the command line and from Python."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run
from loops import for_each

import ddengine
from ddengine.evaluation.user_file import FromFile, from_file, names_file
from ddengine.system.errors import UserError

BEFORE = Path(__file__).resolve().parents[1] / "data" / "before_names" / "runs"
OLD = BEFORE / "dm-fashion_mnist_ipc1_small-637f7834fe65"
QUICK = "--epochs 3 --num_networks 3 --full_steps 3 --lr_grid 0.01 --baselines random".split()
TEXT = """
from beside import linear
from torch import nn


class Net(nn.Module):
    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.body = nn.Flatten()
        self.head = linear(image_shape, num_classes)

    def forward(self, images):
        return self.head(self.body(images))


def build(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), linear(image_shape, num_classes))


def one_too_many(image_shape, num_classes):
    return build(image_shape, num_classes + 1)


def broken(image_shape, num_classes):
    raise TypeError("a layer is missing.")


def mute(image_shape, num_classes):
    return nn.Linear(5, num_classes)


def none(image_shape, num_classes):
    return None


WIDTH = 3
"""
BESIDE = """
from math import prod

from torch import nn


def linear(shape, classes):
    return nn.Linear(prod(shape), classes)
"""


@pytest.fixture
def where(tmp_path, monkeypatch) -> Path:
    """A working directory with a run, and a file of networks beside a file that it imports."""
    shutil.copytree(OLD, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text(TEXT)
    (tmp_path / "nets" / "beside.py").write_text(BESIDE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluated(*models: str) -> int:
    """The command, on the networks."""
    return run("evaluate", "run", *QUICK, "--device", "cpu", "--models", *models)


def said(capsys) -> str:
    """What was printed, in one line."""
    return " ".join("".join(capsys.readouterr()).split())


def test_a_file_is_evaluated_kept_and_told_by_its_digest(where, capsys):
    """The card of the set says what the other networks do, for nobody else has the file."""
    assert evaluated("convnet-d1-w4-in", "nets/mine.py:build", "nets/mine.py:Net") == 0
    content = json.loads((where / "run" / "evaluation.json").read_text())
    models = list(dict.fromkeys(row["model"] for row in content["rows"]))
    assert models == ["convnet-d1-w4-in", "nets/mine.py:build", "nets/mine.py:Net"]
    assert content["protocol"]["models"] == models
    digest = from_file("nets/mine.py:build").digest
    assert content["brought"] == {
        "network nets/mine.py:build": f"build@{digest}",
        "network nets/mine.py:Net": f"Net@{digest}",
    }
    card = (where / "run" / "distilled" / "README.md").read_text()
    assert "| distilled | convnet-d1-w4-in |" in card and "mine" not in card
    for path in (where / "run" / "distilled").glob("*.json"):
        assert "mine.py" not in path.read_text()
    assert f"nets/mine.py:build: build of a file with the digest {digest}" in said(capsys)
    assert evaluated(*models) == 0
    assert "evaluation.json is there" in said(capsys)
    # another text of the file is another network
    with (where / "nets" / "mine.py").open("a") as file:
        file.write("# changed\n")
    assert evaluated(*models) == 2
    assert "other settings" in said(capsys)


def test_python_takes_the_same_string_and_gives_the_same_numbers(where):
    assert evaluated("nets/mine.py:build") == 0
    content = json.loads((where / "run" / "evaluation.json").read_text())
    protocol = {"epochs": 3, "num_networks": 3, "full_steps": 3, "lr_grid": (0.01,)}
    asked = {"protocol": protocol, "baselines": ["random"], "device": "cpu", "progress": False}
    again = ddengine.evaluate("run", models=["nets/mine.py:build"], folder="other", **asked)
    for row, wanted in zip(again.rows, content["rows"], strict=True):
        assert row["accuracies"] == wanted["accuracies"]
    network = ddengine.train("run", "nets/mine.py:Net", device="cpu", progress=False)
    assert type(network).__name__ == "Net" and not network.training
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 2)


def test_finished_trainings_of_a_file_are_remembered(where, monkeypatch):
    """By their digest, so that another process finds them."""
    from ddengine.evaluation.bench import Bench

    result = Bench.result
    trained = []

    def two(self, asked):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(asked)
        return result(self, asked)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "result", two)
        with pytest.raises(KeyboardInterrupt):
            ddengine.evaluate("run", **_asked())
    digest = from_file("nets/mine.py:build").digest
    lines = (where / "run" / "evaluation.partial.jsonl").read_text().splitlines()
    assert sum(f"build@{digest}" in line for line in lines) == 2

    def count(self, asked):
        trained.append(asked)
        return result(self, asked)

    monkeypatch.setattr(Bench, "result", count)
    ddengine.evaluate("run", **_asked())
    whole = len(trained)
    ddengine.evaluate("run", **_asked(), restart=True)
    assert len(trained) - whole == whole, "the two that were finished were trained again"


def _asked() -> dict:
    """An evaluation of the network of the file."""
    protocol = {"epochs": 3, "num_networks": 3, "full_steps": 3, "lr_grid": (0.01,)}
    options = {"protocol": protocol, "baselines": ["random"], "device": "cpu", "progress": False}
    return {"models": ["nets/mine.py:build"], **options}


@for_each(
    "network, says",
    [
        (
            "nets/other.py:build",
            r"^nets/other\.py, which .* names, cannot be read; correct the path",
        ),
        ("nets/mine.py", r"^nets/mine\.py names a file alone; write nets/mine\.py:NAME"),
        ("nets/mine.py:bild", r"^Unknown function in mine\.py 'bild'; nearest: build\.$"),
        ("nets/mine.py:WIDTH", r"^Unknown function in mine\.py 'WIDTH'"),
        ("nets/wrong.py:build", r"wrong\.py cannot be imported \(SyntaxError: .*\); mend it\.$"),
        ("nets/lost.py:build", r"lost\.py cannot be imported \(ModuleNotFoundError: .*nowhere"),
    ],
)
def test_a_file_that_does_not_do_is_refused_in_a_sentence(where, network, says):
    (where / "nets" / "wrong.py").write_text("def build(:\n")
    (where / "nets" / "lost.py").write_text("import nowhere_to_be_imported\n")
    with pytest.raises(UserError, match=says):
        from_file(network)
    assert names_file(network)


@for_each(
    "name, says",
    [
        ("one_too_many", r"gives \(2, 3\) for two images .* logits of 2 classes are \(2, 2\)"),
        ("broken", r"fails for images \(1, 8, 8\) of 2 classes \(TypeError: a layer is missing\)"),
        ("mute", r"fails for images .*\(RuntimeError: .*\); mend its function, or set data\.size"),
        ("none", "returned NoneType"),
    ],
)
def test_a_function_that_does_not_do_is_refused_before_training(where, capsys, name, says):
    import re

    assert evaluated(f"nets/mine.py:{name}") == 2
    shown = said(capsys)
    assert re.search(says, shown), shown
    assert not (where / "run" / "evaluation.json").exists()


def test_names_of_networks_are_no_files():
    for name in ("convnet-d3-w128-in", "torchvision/resnet18", "timm/resnet18.a1_in1k", "a:b"):
        assert not names_file(name)


def test_a_function_of_a_file_goes_to_another_process(where):
    """And is refused where the file is another one by then."""
    brought = pickle.loads(pickle.dumps(from_file("nets/mine.py:build")))
    assert brought == from_file("nets/mine.py:build")
    assert brought((1, 8, 8), 4)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    changed = FromFile(brought.path, brought.name, "0" * 12)
    with pytest.raises(UserError, match="has changed since"):
        changed((1, 8, 8), 4)
