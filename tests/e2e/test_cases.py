"""Data as people have them (tests/cases/make.py): every case is read rightly, or refused with the
reason, from the command line.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from cases import make
from helpers import CPU, run

from ddengine.artefact import folder as folders
from ddengine.data import load_data
from ddengine.recipe import DataConfig
from ddengine.system import files

# What must be said of each case, beside what right.json lets be checked by number.
SAID = {
    "capital_splits": [],
    "train_valid": ["valid stands in for the test split"],
    "checkpoints": [],
    "numbers": [],
    "suffixes": ["3 files that are no images were left out"],
    "fold_column": ["images from 'image', classes from 'label'"],
    "id_column": ["images from 'image', classes from 'category'"],
    "own_orders": ["images from 'image', classes from 'label'"],
    "float_tiff": ["floats, from 0 to 1: 1 is taken as white"],
    "int32_tiff": ["from 0 to 255: 255 is taken as white"],
    "uint8_in_16_bits": ["from 0 to 255: 255 is taken as white"],
    "transparent": [],
    "long_tail": ["no test image of class 'd'"],
    "no_label": ["fold and width", "data.label_column"],
    "only_splits": ["test and train", "no class folders"],
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    """The folder of all cases."""
    root = tmp_path_factory.mktemp("cases")
    make.main(root)
    return root


def test_no_case_is_forgotten(cases):
    assert set(SAID) == set(json.loads((cases / "right.json").read_text()))


@pytest.mark.parametrize("case", SAID)
def test_case_is_read_rightly_or_refused(cases, case, tmp_path, capsys):
    """Classes in their order, images of each class by split, and the brightness of what is
    selected, which says its class.
    """
    right, out = json.loads((cases / "right.json").read_text())[case], tmp_path / "set"
    config = DataConfig(name=right["reader"], root=str(cases / case), validation=0.0)
    flags = [
        "--data.name",
        config.name,
        "--data.root",
        str(config.root),
        "--data.validation",
        "0.0",
        "--data.limit",
        "None",
    ]
    flags += ["--outer.evaluate_every", "0", "--init.kind", "real", "--out", str(out)]
    code = run("select", "dm/fashion_mnist_ipc1_small", *flags)
    printed = capsys.readouterr()
    for words in SAID[case]:
        assert words in printed.out + printed.err
    if "refuse" in right:
        assert code == 2 and not out.exists()
        return
    assert code == 0
    data = load_data(config, CPU, test=True)
    names = tuple(right.get("classes", map(str, range(right.get("num_classes", 0)))))
    assert data.class_names == names
    train, test = ([len(m) for m in real.members] for real in (data.train, data.test))
    if "all" in right:
        assert [a + b for a, b in zip(train, test, strict=True)] == [right["all"]] * len(
            names
        ) and min(test) > 0
    elif "counts" in right:
        assert [a + b for a, b in zip(train, test, strict=True)] == [
            right["counts"][name] for name in names
        ]
        assert [held > 0 for held in test] == [right["counts"][name] > 1 for name in names]
    else:
        assert train == [right["train"]] * len(names) and test == [right["test"]] * len(names)
    splits = json.loads((out / "distilled" / "splits.json").read_text())
    assert splits == files.sealed(data.split_names)
    syn, _ = folders.load(out / "distilled", CPU)
    brightness = 255 * syn.pixels().flatten(1).mean(1)
    expected = torch.tensor([40 + 160 * k / (len(names) - 1) for k in range(len(names))])
    if "mean_of_255" in right:
        expected = torch.tensor([float(right["mean_of_255"][name]) for name in names])
    if case == "transparent":  # black drawings on white, on one half each
        expected = torch.tensor([127.5, 127.5])
        halves = [
            (255 * syn.pixels()[c, ..., half]).mean().item()
            for c, half in ((0, slice(0, 8)), (1, slice(8, 16)))
        ]
        assert halves == pytest.approx([0, 0], abs=1)
    assert torch.allclose(brightness, expected, atol=6)


def test_labels_that_each_file_counts_in_its_own_order_are_learned(cases, tmp_path, capsys):
    """By number instead of by name no test image would be right."""
    flags = [
        "--data.name",
        "parquet",
        "--data.root",
        str(cases / "own_orders"),
        "--data.validation",
        "0.0",
        "--data.limit",
        "None",
    ]
    flags += [
        "--outer.evaluate_every",
        "0",
        "--init.kind",
        "real",
        "--ipc",
        "5",
        "--model",
        "mlp",
        "--out",
        str(tmp_path / "set"),
    ]
    assert run("select", "dm/fashion_mnist_ipc1_small", *flags) == 0
    quick = [
        "--epochs",
        "60",
        "--num_networks",
        "3",
        "--lr",
        "0.01",
        "--baselines",
        "random",
        "--augment.ops",
        "flip",
    ]
    assert run("evaluate", str(tmp_path / "set"), *quick) == 0
    rows = json.loads((tmp_path / "set" / "evaluation.json").read_text())["rows"]
    assert all(row["accuracy_mean"] > 0.9 for row in rows)
    assert re.search(
        r"90 images of the test split are in the training split too", capsys.readouterr().out
    )
