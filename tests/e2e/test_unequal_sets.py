"""Sets that others made by hand: of unequal classes, with test images among them; what is said of
them, and commands as they are printed.
"""

import json
import shlex

import numpy as np
import pytest
import torch
from helpers import rewrite_tensors, run
from PIL import Image

from ddengine.system import program

NAMES, COUNTS = ("ant", "bee", "cat"), (20, 8, 5)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of pictures of three classes of different sizes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for c, (name, count) in enumerate(zip(NAMES, COUNTS, strict=True)):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(
                rng.normal(60 + 60 * c, 9, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            ).save(tmp_path / "my photos" / name / f"{i}.png")
    return tmp_path


FLAGS = [
    "--data.name",
    "folder",
    "--data.root",
    "my photos",
    "--data.limit",
    "None",
    "--model",
    "mlp",
]
QUICK = ["--epochs", "3", "--num_networks", "3", "--lr_grid", "0.01", "--full_steps", "10"]


def printed_command(out, name):
    """The words of the command that a line of the output ends in, behind the program."""
    line = next(line for line in out.splitlines() if f"run.py {name} " in line)
    words = shlex.split(line[line.index(" with ") + 6 :])
    return words[words.index(next(word for word in words if word.endswith("run.py"))) + 1 :]


def test_a_set_with_test_images_is_found_out_and_its_classes_may_be_unequal(photos, capsys):
    assert (
        run("import", "dm/fashion_mnist_ipc1_small", *FLAGS, "--files", "my photos", "--out", "set")
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "folder: 23 train, 3 validation, 7 test images (held out" in said
        and "0 ant, 1 bee, 2 cat" in said
    )
    assert len(json.loads((photos / "set" / "splits.json").read_text())["test"]) == 7
    assert run(*printed_command(said, "evaluate"), *QUICK, "--baselines", "random", "herding") == 0
    said = capsys.readouterr().out
    assert (
        "warning: 7 of the 33 images of the set are test images" in said
        and "3 of the 33 images of the set are validation images" in said
    )
    assert "baselines have 4 per class" in said
    rows = {
        row["set"]: row
        for row in json.loads((photos / "set" / "evaluation.json").read_text())["rows"]
    }
    assert (rows["distilled"]["images"], rows["random"]["images"], rows["herding"]["images"]) == (
        33,
        12,
        12,
    )


def test_a_selection_holds_no_test_image_and_names_its_files(photos, capsys):
    assert (
        run(
            "select",
            "dm/fashion_mnist_ipc1_small",
            *FLAGS,
            "--init.kind",
            "real",
            "--ipc",
            "2",
            "--out",
            "chosen",
        )
        == 0
    )
    meta = json.loads((photos / "chosen" / "distilled" / "meta.json").read_text())
    splits = json.loads((photos / "chosen" / "distilled" / "splits.json").read_text())
    names = meta["selected"]["names"]
    assert [name.split("/")[0] for name in names] == ["ant", "ant", "bee", "bee", "cat", "cat"]
    assert not set(names) & {*splits["test"], *splits["validation"]}
    assert run("evaluate", "chosen", *QUICK, "--baselines", "random") == 0
    assert "images of the set are" not in capsys.readouterr().out


def test_a_dictionary_of_images_and_labels_is_a_pair(photos, capsys):
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(3).repeat_interleave(2)
    torch.save({"images": images, "labels": labels}, "named.pt")
    assert (
        run("import", "dm/fashion_mnist_ipc1_small", *FLAGS, "--files", "named.pt", "--out", "set")
        == 0
    )
    assert "6 images with classes" in capsys.readouterr().out


def test_a_wrong_order_of_three_classes_is_found(photos, capsys):
    """By few images, too."""
    images = [
        [Image.open(f"my photos/{name}/{i}.png") for i in range(5)]
        for name in ("cat", "ant", "bee")
    ]
    tensor = torch.stack(
        [
            torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
            for some in images
            for image in some
        ]
    )
    torch.save([tensor, torch.arange(3).repeat_interleave(5)], "pair.pt")
    flags = [
        *FLAGS,
        "--data.validation",
        "0.0",
        "--outer.evaluate_every",
        "0",
        "--files",
        "pair.pt",
    ]
    assert run("import", "dm/fashion_mnist_ipc1_small", *flags, "--out", "wrong") == 0
    said = capsys.readouterr().out
    assert (
        "warning: the files seem to count the classes in another order" in said
        and "--class_order cat ant bee" in said
    )
    assert (
        run(
            "import",
            "dm/fashion_mnist_ipc1_small",
            *flags,
            "--class_order",
            "cat",
            "ant",
            "bee",
            "--out",
            "right",
        )
        == 0
    )
    assert "warning: the files seem" not in capsys.readouterr().out


def test_a_folder_of_parquet_files_is_imported_without_its_test_files(photos, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(path, num):
        path.parent.mkdir(parents=True, exist_ok=True)
        contents = [
            (photos / "my photos" / name / f"{i}.png").read_bytes()
            for name in NAMES
            for i in range(num)
        ]
        pq.write_table(
            pa.table({"image": contents, "label": [name for name in NAMES for _ in range(num)]}),
            path,
        )

    write(photos / "files" / "train.parquet", 2)
    write(photos / "files" / "test.parquet", 3)
    write(photos / "files" / ".cache" / "train.parquet", 1)
    assert (
        run("import", "dm/fashion_mnist_ipc1_small", *FLAGS, "--files", "files", "--out", "set")
        == 0
    )
    said = capsys.readouterr().out
    assert "6 images with classes" in said and "not imported: test.parquet" in said


def test_a_set_with_values_that_no_image_has_is_refused(photos, capsys):
    from safetensors.torch import load_file

    flags = [*FLAGS, "--outer.steps", "1", "--outer.evaluate_every", "0", "--out", "run"]
    assert run("distill", "dm/fashion_mnist_ipc1_small", *flags) == 0
    path = photos / "run" / "distilled" / "data.safetensors"
    tensors = load_file(path)
    tensors["images"][0, 0, 0, 0] = 1e30
    rewrite_tensors(path, tensors)
    assert run("evaluate", "run", *QUICK) == 2
    assert "holds values up to 1e+30 in 'images'" in capsys.readouterr().err


def test_commands_are_printed_as_they_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr("sys.argv", ["run.py", "import"])
    assert program.as_typed("evaluate", "my set") == ".venv/bin/python run.py evaluate 'my set'"
    monkeypatch.setattr("sys.argv", ["/else where/run.py", "import"])
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    assert program.as_typed("evaluate", "x") == "/usr/bin/python3 '/else where/run.py' evaluate x"
