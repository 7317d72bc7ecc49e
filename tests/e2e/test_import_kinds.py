"""import on the command line: the kinds of files that other programs write, the order of their
classes, and that the printed commands work.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import CPU, MODEL, run
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from buffers import imports
from buffers.exchange import load_pt
from buffers.store import ExpertStore
from ddengine.artefact import folder as folders
from ddengine.commands import bring_in as command
from ddengine.commands import cli
from ddengine.data import Data, load_data
from ddengine.models import build_model
from ddengine.recipe import DataConfig
from ddengine.sets import synthetic
from ddengine.sets.codec import MultiFormation, Pixels
from ddengine.system.rng import generator

CLASSES = ("cat", "dog", "hen", "owl", "pig", "sea lion")  # of the digits 0 to 5
ROOT = "my images"
DATA = [
    "--data.name",
    "folder",
    "--data.root",
    ROOT,
    "--data.limit",
    "None",
    "--data.validation",
    "0.1",
]
CONFIG = DataConfig(name="folder", root=ROOT, validation=0.1)
QUICK = [
    "--evaluation.epochs", "3", "--evaluation.num_networks", "3", "--evaluation.lr_grid", "0.01", "--evaluation.full_steps", "3",
    "--evaluation.baselines", "random",
]  # fmt: skip
SET = ["import", "dm/fashion_mnist_ipc1_small", *DATA, "--model", MODEL, *QUICK]
IDC = ["import", "idc/fashion_mnist_ipc1_small", *DATA, "--model", MODEL, *QUICK]
EXPERTS = [
    "import", "mtt/digits_ipc1", *DATA, "--model", MODEL, "--buffer.epochs", "2", "--objective.window.high", "1", "--objective.expert_epochs", "1",
    "--objective.inner_steps", "2", "--outer.steps", "2", "--outer.evaluate_every", "0",
]  # fmt: skip
TEACHERS = ("convnet-d1-w8-bn", "convnet-d2-w8-bn")
INFER = [
    "import",
    "infer/fashion_mnist_ipc10_small",
    *DATA,
    "--buffer.epochs",
    "2",
    "--ipc",
    "3",
    "--outer.steps",
    "2",
    *QUICK,
]
SHIFT = torch.tensor([0, 3, 4, 5, 1, 2])  # the number that a file gives to each class
# the class that the file counts as 0, 1, 2 ...
BACK = ("cat", "pig", "sea lion", "dog", "hen", "owl")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of images with six classes of 30 digits, and one of 8."""
    where = tmp_path_factory.mktemp("kinds")
    digits = load_digits()
    for number, name in enumerate(CLASSES):
        (where / ROOT / name).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == number][:30]):
            Image.fromarray((image * 15.9375).astype(np.uint8)).save(
                where / ROOT / name / f"{i:02d}.png"
            )
    return where


@pytest.fixture
def work(made, tmp_path, monkeypatch) -> Path:
    """A working directory with the images."""
    monkeypatch.chdir(tmp_path)
    os.symlink(made / ROOT, tmp_path / ROOT)
    return tmp_path


@pytest.fixture
def data(work) -> Data:
    return load_data(CONFIG, CPU)


@cache
def parsed(words: tuple[str, ...]) -> command.ImportOptions:
    """The options of an import without files; parsing takes longer than an import."""
    from ddengine.commands.on_recipe import options_of

    return options_of("import", list(words[1:]), flags=command.ImportOptions)


def bring_in(words: Sequence[str], *given: str, out: str | None = None, **fields: Any) -> int:
    """The exit code of an import of these files with more fields of its options."""
    options = replace(
        parsed(tuple(words)),
        files=tuple(map(Path, given)),
        out=None if out is None else Path(out),
        **fields,
    )
    return cli.run(lambda: command.run(options))


def said(capsys, *args: str, do: Callable[..., int] = run, **fields: Any) -> str:
    """What a command that succeeds says; no warning of Python or torch reaches the user."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert do(*args, **fields) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *args: str, do: Callable[..., int] = run, **fields: Any) -> str:
    """The one sentence with which a command refuses; nothing is written."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert do(*args, **fields) == 2
    out = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]*[^\s.]\.\n", out.err) and "Traceback" not in out.err, out.err
    assert [path for path in sorted(Path().rglob("*")) if path != Path("experts")] == before
    return out.err


def printed(out: str) -> list[str]:
    """The words of the command that an import prints last."""
    return shlex.split(out.splitlines()[-1].partition(" run.py ")[2])


def loaded(folder: str = "set") -> tuple[synthetic.SyntheticSet, dict]:
    return folders.load(Path(folder), CPU)


def pixels_of(data: Data, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixels in [0, 1], classes) of some training images, class by class."""
    index = torch.cat([members[:each] for members in data.train.members])
    return data.train.pixels[index].float() / 255, data.train.labels[index]


def trained(
    data: Data, model: str = MODEL, renumbered: torch.Tensor | None = None, steps: int = 60
) -> tuple[torch.nn.Module, list]:
    """(a network after a short training, with other numbers for the classes where they are given;
    its parameters before, amid and after).
    """
    network = build_model(model, data.image_shape, data.num_classes, generator(1)).train()
    optimiser, rng, snapshots = (
        torch.optim.Adam(network.parameters(), 0.02),
        torch.Generator().manual_seed(0),
        [],
    )
    for step in range(steps + 1):
        if step in (0, steps // 2, steps):
            snapshots.append([p.detach().clone() for p in network.parameters()])
        images, labels = data.train.batch(torch.randint(len(data.train), (64,), generator=rng))
        optimiser.zero_grad()
        cross_entropy(
            network(images), labels if renumbered is None else renumbered[labels]
        ).backward()
        if step < steps:
            optimiser.step()
    return network.eval(), snapshots


def test_an_import_is_one_call_from_python(work, data):
    """It says what was made, as a recipe that fits; the same call again finds it there."""
    pixels, labels = pixels_of(data, 1)
    torch.save([pixels, SHIFT[labels]], "pair.pt")
    recipe = parsed(tuple(SET)).recipe
    for _ in range(2):
        made = imports.bring_in(recipe, [Path("pair.pt")], class_order=BACK, out=Path("set"))
        assert (made.kind, made.folder) == ("images", Path("set"))
        assert made.recipe.data.classes == (0, 4, 5, 1, 2, 3) and made.recipe.data.root == ROOT
    syn, meta = loaded()
    assert meta["recipe"]["data"]["classes"] == [0, 4, 5, 1, 2, 3]
    assert meta["recipe"]["data"]["root"] is None and made.recipe.codec == syn.codec


# The order of the classes


def test_experts_that_count_otherwise(work, data, capsys):
    """The numbering is printed; experts of another one are warned of with both figures; the order
    that is printed mends it, to the end.
    """
    torch.save([trained(data)[1]], "right.pt")
    torch.save([trained(data, renumbered=SHIFT)[1]], "wrong.pt")
    out = said(capsys, "right.pt", do=partial(bring_in, EXPERTS), out="right")
    assert "0 cat, 1 dog, 2 hen, 3 owl, 4 pig, 5 sea lion" in out and "warning" not in out
    right = float(re.search(r"labels checked: .* ([\d.]+) %", out)[1])
    assert right > 80
    out = said(capsys, "wrong.pt", do=partial(bring_in, EXPERTS), out="wrong")
    warning = re.search(
        (
            r"warning: .* ([\d.]+) % as numbered above, and ([\d.]+) % in another one; "
            r".*--class_order (.*)"
        ),
        out,
    )
    assert (
        float(warning[1]) < 40 and float(warning[2]) > 80 and tuple(shlex.split(warning[3])) == BACK
    )
    out = said(
        capsys,
        *EXPERTS,
        "--files",
        "wrong.pt",
        "--out",
        "mended",
        "--class_order",
        *shlex.split(warning[3]),
    )
    assert "0 cat, 1 pig, 2 sea lion, 3 dog" in out and "warning" not in out
    assert float(re.search(r"labels checked: .* ([\d.]+) %", out)[1]) == float(warning[2])
    command = printed(out)
    at = command.index("--data.classes")
    assert (
        command[at + 1 : at + 7] == ["0", "4", "5", "1", "2", "3"]
        and "--class_order" not in command
        and "--files" not in command
    )
    assert (
        command[command.index("--data.root") + 1] == ROOT
        and command[command.index("--buffer.num_experts") + 1] == "1"
    )
    said(capsys, *command, "--out", "run")
    assert loaded("run/distilled")[0].class_names == BACK
    out = said(
        capsys,
        *EXPERTS,
        "--files",
        "wrong.pt",
        "--class_order",
        *(str(CLASSES.index(name)) for name in BACK),
    )
    # by number, into a folder of its own
    assert printed(out)[printed(out).index("--experts") + 1] != "mended"
    said(capsys, *EXPERTS, "--files", "wrong.pt")
    assert len(list(Path("experts").iterdir())) == 2


def test_sets_that_count_otherwise(work, data, capsys):
    """The same of images; what is evaluated then is the set in its own numbering."""
    pixels, classes = pixels_of(data, 8)
    torch.save(data.train.preprocess.forward(pixels), "images_1.pt")
    torch.save(SHIFT[classes], "labels_1.pt")
    out = said(capsys, "images_1.pt", do=partial(bring_in, SET), out="wrong")
    warning = re.search(
        (
            r"warning: .* (-?[\d.]+) % as numbered above, and ([\d.]+) % in another one; "
            r".*--class_order (.*)"
        ),
        out,
    )
    assert (
        float(warning[1]) < 40 and float(warning[2]) > 80 and tuple(shlex.split(warning[3])) == BACK
    )
    out = said(
        capsys,
        *SET,
        "--files",
        "images_1.pt",
        "--out",
        "set",
        "--class_order",
        *shlex.split(warning[3]),
    )
    assert (
        "warning" not in out
        and loaded()[0].class_names == BACK
        and loaded()[1]["recipe"]["data"]["classes"] == [0, 4, 5, 1, 2, 3]
    )
    assert torch.equal(loaded()[0].classes, SHIFT[classes])
    said(capsys, *printed(out))
    assert "holds these files already" in said(
        capsys, "images_1.pt", do=partial(bring_in, SET), out="set", class_order=BACK
    )


def test_orders_that_do_not_go(work, data, capsys):
    """Before anything is written."""
    pixels, classes = pixels_of(data, 1)
    torch.save([pixels, classes], "data_best.pt")
    order = [*SET, "--files", "data_best.pt", "--class_order"]
    assert "knows no class 'boat' and leaves out 'sea lion'" in refused(
        capsys, *order, *CLASSES[:5], "boat"
    )
    assert "leaves out 'owl', 'pig' and 'sea lion'" in refused(capsys, *order, *CLASSES[:3])
    out = refused(capsys, *order, "0", "2", "--data.classes", "0", "2", "3")
    assert "leaves out 'owl'" in out
    some = classes < 3
    torch.save([pixels[some], classes[some]], "three.pt")
    words = [
        *SET,
        "--files",
        "three.pt",
        "--data.classes",
        "0",
        "1",
        "2",
        "--class_order",
        "2",
        "cat",
        "1",
    ]
    said(capsys, *words, "--out", "set")
    assert loaded()[0].class_names == ("hen", "cat", "dog")


# Kinds of sets


def test_pairs_are_pixels(work, data, capsys):
    """As IDC writes them: a list or tuple, soft labels, lists of each class, bytes; and what the
    command prints evaluates them.
    """
    pixels, classes = pixels_of(data, 2)
    logits = torch.randn(len(classes), 6, generator=torch.Generator().manual_seed(0))
    kinds = {
        "list": [pixels, classes],
        "tuple": (pixels.double(), classes.int()),
        "parameters": [torch.nn.Parameter(pixels), classes],
        "nested": [list(pixels.split(2)), list(classes.split(2))],
        "numbers": [pixels, classes.tolist()],
        "classes": list(pixels.split(2)),
        "bytes": [(pixels * 255).round().byte(), classes],
        "unclamped": [pixels * 1.2 - 0.1, classes],
    }
    for name, content in kinds.items():
        torch.save(content, f"{name}.pt")
        out = said(capsys, f"{name}.pt", do=partial(bring_in, SET), out=name)
        syn, meta = loaded(name)
        assert (
            syn.space == "pixel" and syn.codec == Pixels() and torch.equal(syn.classes, classes)
        ), name
        wanted = content[0] if name == "unclamped" else pixels
        assert torch.allclose(syn.pixels(), wanted, atol=1e-6) and meta["recipe"]["ipc"] == 2, name
        seen = syn.batch(torch.arange(len(syn))).images
        assert torch.allclose(seen, data.train.preprocess.forward(wanted), atol=1e-5), name
        assert "taken as pixels" in out and "labels checked" in out, name
    torch.save([pixels, logits], "soft.pt")
    out = said(capsys, *SET, "--files", "soft.pt", "--lr", "0.03", "--out", "soft")
    syn = loaded("soft")[0]
    assert (
        torch.equal(syn.logits, logits)
        and syn.target_kind == "logits"
        and syn.lr == pytest.approx(0.03)
    )
    command = printed(out)
    assert command == ["evaluate", "soft", "--data.root", ROOT]
    said(capsys, *command)
    assert json.loads(Path("soft/evaluation.json").read_text())["rows"][0]["set"] == "distilled"


def test_parameters_are_tensors(work, data, capsys):
    """Images, labels and rate that were saved as parameters: no warning of torch reaches the user,
    and nothing asks for gradients.
    """
    pixels, _ = pixels_of(data, 1)
    images, labels = data.train.preprocess.forward(pixels), torch.randn(6, 6)
    for kind, tensor in (("images", images), ("labels", labels), ("lr", torch.tensor(0.02))):
        torch.save(torch.nn.Parameter(tensor), f"{kind}_best.pt")
    said(capsys, "images_best.pt", do=partial(bring_in, SET), out="set")
    syn = loaded()[0]
    assert (
        torch.equal(syn.tensors["images"], images)
        and torch.equal(syn.logits, labels)
        and syn.lr == pytest.approx(0.02)
    )
    read = load_pt(Path("lr_best.pt"))
    assert type(read) is torch.Tensor and not read.requires_grad
    torch.save(
        {"a": [torch.nn.Parameter(images)], "b": (images.requires_grad_() * 2,)}, "nested.pt"
    )
    read = load_pt(Path("nested.pt"))
    assert (
        not read["a"][0].requires_grad
        and type(read["b"]) is tuple
        and not read["b"][0].requires_grad
    )


def test_pairs_of_what_networks_see(work, data, capsys):
    """Values that are no pixels are taken as networks see them, with a warning; --space decides for
    every .pt.
    """
    pixels, classes = pixels_of(data, 2)
    seen = data.train.preprocess.forward(pixels)
    torch.save([seen, classes], "pair.pt")
    assert re.search(
        r"warning: the values in pair.pt go from -.* no pixels",
        said(capsys, "pair.pt", do=partial(bring_in, SET), out="a"),
    )
    assert loaded("a")[0].space == "model" and torch.equal(loaded("a")[0].tensors["images"], seen)
    torch.save(pixels, "images_1.pt")
    assert "warning: all values lie within 0 and 1" in said(
        capsys, "images_1.pt", do=partial(bring_in, SET), out="b"
    )
    assert "warning" not in said(
        capsys, "images_1.pt", do=partial(bring_in, SET), space="pixel", out="c"
    )
    assert loaded("b")[0].space == "model" and loaded("c")[0].space == "pixel"
    torch.save([pixels, classes], "pixels.pt")
    said(capsys, *SET, "--files", "pixels.pt", "--space", "model", "--out", "d")
    assert loaded("d")[0].space == "model"


def test_several_images_in_one(work, data, capsys):
    """The recipe's codec says how many; labels belong to stored images."""
    pixels, classes = pixels_of(data, 2)
    logits = torch.randn(len(classes), 6)
    torch.save([pixels, logits], "data_best.pt")
    for words, factor in (([], 2), (["--codec.factor", "4"], 4)):
        out = said(capsys, *IDC, *words, "--files", "data_best.pt", "--out", f"set{factor}")
        syn, meta = loaded(f"set{factor}")
        assert (
            syn.codec == MultiFormation(factor=factor)
            and len(syn) == factor**2 * 12
            and torch.equal(syn.tensors["images"], pixels)
        )
        assert (
            f"{factor} x {factor} small images" in out
            and meta["recipe"]["codec"]["factor"] == factor
        )
        assert torch.equal(syn.batch(torch.arange(len(syn))).targets, logits.repeat(factor**2, 1))
    said(capsys, *printed(out))
    assert "codec.factor 9 is more than the 8 pixels" in refused(
        capsys, *IDC, "--codec.factor", "9", "--files", "data_best.pt"
    )


def written(
    folder: str,
    pixels: torch.Tensor,
    classes: torch.Tensor,
    names: dict[int, str],
    suffix: str = "png",
) -> None:
    """A folder for each class."""
    for i, (image, label) in enumerate(zip(pixels, classes.tolist(), strict=True)):
        place = Path(folder) / names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(
            place / f"{i:03d}.{suffix}", **({"quality": 100} if suffix == "jpg" else {})
        )


def test_folders_of_finished_images(work, data, capsys):
    """Class folders by name, as this program names them, and by number as others do; colour files
    of grey images; what is none is refused.
    """
    pixels, classes = pixels_of(data, 3)
    ours = {c: f"{c:04d}_{name.replace(' ', '_')}" for c, name in enumerate(CLASSES)}
    ways = {
        "names": dict(enumerate(CLASSES)),
        "ours": ours,
        "safe": {c: name.replace(" ", "_") for c, name in enumerate(CLASSES)},
        "numbers": {c: f"{c:05d}" for c in range(6)},
        "new": {c: f"new{c:03d}" for c in range(6)},
    }
    for way, names in ways.items():
        written(way, pixels, classes, names)
        out = said(capsys, way, do=partial(bring_in, SET), out=f"set_{way}")
        syn, meta = loaded(f"set_{way}")
        assert (
            syn.tensors["images"].dtype == torch.uint8
            and syn.codec == Pixels()
            and torch.equal(syn.classes, classes)
        ), way
        assert torch.allclose(syn.pixels(), pixels, atol=1e-6) and meta["imported"]["files"] == [
            way
        ], way
    said(capsys, *printed(out))
    written("jpg", pixels.repeat(1, 1, 1, 1), classes, ways["names"], "jpg")
    for path in Path("jpg").rglob("*.jpg"):
        Image.open(path).convert("RGB").save(path, quality=100)
    said(capsys, "jpg", do=partial(bring_in, SET), out="set_jpg")
    assert (loaded("set_jpg")[0].pixels() - pixels).abs().max() < 0.05
    said(capsys, "names", do=partial(bring_in, IDC), out="tiled")
    assert loaded("tiled")[0].codec == MultiFormation(factor=2)
    # decoded when it was exported
    out = said(capsys, "ours", do=partial(bring_in, IDC), out="whole")
    assert loaded("whole")[0].codec == Pixels() and "codec plays no role" in out

    Path("names/cow").mkdir()
    shutil.copy(next(Path("names/cat").iterdir()), "names/cow/a.png")
    assert "class cow in names is none of the dataset's (cat, dog" in refused(
        capsys, "names", do=partial(bring_in, SET)
    )
    shutil.rmtree("names/cow")
    shutil.rmtree("names/owl")
    assert "names has no image of class 'owl'" in refused(
        capsys, "names", do=partial(bring_in, SET)
    )
    Path("ours/0001_dog").rename("ours/0004_dog")
    assert "0004_dog in ours says number 4, and the class of that name is 1" in refused(
        capsys, "ours", do=partial(bring_in, SET)
    )
    Path("flat").mkdir()
    shutil.copy(next(Path("numbers").rglob("*.png")), "flat/a.png")
    assert "flat holds images and no folders" in refused(capsys, "flat", do=partial(bring_in, SET))
    assert "flat/a.png is an image (PNG)" in refused(
        capsys, "flat/a.png", do=partial(bring_in, SET)
    )
    assert "holds image files, and --labels" in refused(
        capsys, *SET, "--files", "numbers", "--labels", "flat/a.png"
    )
    resized = said(capsys, *SET, "--data.size", "4", "4", "--files", "numbers", "--out", "small")
    assert "taken as pixels" in resized and loaded("small")[0].tensors["images"].shape[2:] == (4, 4)


def test_parquet(work, data, capsys):
    """Ours, with soft labels; others' by the names of their classes, in any order, in shards; a
    class that is unknown.
    """
    pixels, classes = pixels_of(data, 3)
    logits = torch.randn(len(classes), 6, generator=torch.Generator().manual_seed(0))
    torch.save([(pixels * 255).round() / 255, logits], "soft.pt")
    said(capsys, "soft.pt", do=partial(bring_in, SET), out="soft")
    for words, name in ((SET, "again"), (IDC, "whole")):
        out = said(
            capsys, "soft/train-00000-of-00001.parquet", do=partial(bring_in, words), out=name
        )
        syn = loaded(name)[0]
        assert (
            torch.equal(syn.classes, classes)
            and torch.allclose(syn.pixels(), pixels, atol=1e-6)
            and torch.equal(syn.logits, logits)
        )
        assert syn.tensors["images"].dtype == torch.uint8 and syn.codec == Pixels()
    said(capsys, *printed(out))

    table = pq.read_table("soft/train-00000-of-00001.parquet")
    names = list(BACK)  # of another program, which counts otherwise
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    theirs = pa.table(
        {
            "image": table["image"],
            "label": pa.array([names.index(CLASSES[c]) for c in classes.tolist()]),
        }
    )
    theirs = theirs.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    order = np.random.default_rng(0).permutation(len(theirs))
    Path("shards").mkdir()
    for i, part in enumerate(np.array_split(order, 2)):
        pq.write_table(theirs.take(part), f"shards/{'ab'[i]}.parquet")
    for given in (["shards"], ["shards/a.parquet", "shards/b.parquet"]):
        out = said(capsys, *given, do=partial(bring_in, SET), out=f"set{len(given)}")
        syn = loaded(f"set{len(given)}")[0]
        assert (
            torch.equal(syn.classes, classes)
            and syn.class_names == CLASSES
            and "warning" not in out
        )
        assert torch.equal(syn.pixels().sum((0, 1, 2, 3)), syn.pixels().sum()) and torch.allclose(
            syn.pixels().mean(), pixels.mean()
        )
    # labels that tell of each image, in the file's order of classes and its own of rows
    columns = [CLASSES.index(name) for name in names]
    soft = theirs.append_column(
        "logits", pa.array(logits[:, columns].tolist(), pa.list_(pa.float32()))
    )
    pq.write_table(
        soft.take(order).replace_schema_metadata(theirs.schema.metadata), "shuffled.parquet"
    )
    said(capsys, "shuffled.parquet", do=partial(bring_in, SET), out="shuffled")
    shuffled = loaded("shuffled")[0]
    for image, label in zip(shuffled.pixels(), shuffled.logits, strict=True):
        same = [i for i in range(len(pixels)) if torch.allclose(pixels[i], image, atol=1e-6)]
        assert len(same) == 1 and torch.equal(logits[same[0]], label)
    pq.write_table(
        soft.slice(0, 6).append_column("more", pa.array(range(6))).drop_columns("more"),
        "few.parquet",
    )
    assert "few.parquet has no image of class" in refused(
        capsys, "few.parquet", do=partial(bring_in, SET)
    )
    ragged = theirs.append_column("logits", pa.array([[1.0]] + [[1.0, 2.0]] * (len(theirs) - 1)))
    pq.write_table(ragged.replace_schema_metadata(theirs.schema.metadata), "ragged.parquet")
    assert "does not hold as many numbers in every row" in refused(
        capsys, "ragged.parquet", do=partial(bring_in, SET)
    )
    unknown = {
        "image": {"_type": "Image"},
        "label": {"names": [*names[:5], "cow"], "_type": "ClassLabel"},
    }
    pq.write_table(
        theirs.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": unknown}})}
        ),
        "cow.parquet",
    )
    out = refused(capsys, "cow.parquet", do=partial(bring_in, SET))
    assert "class cow in cow.parquet is none of the dataset's" in out and "/tmp" not in out
    torch.save([pixels, classes], "pair.pt")
    assert "pair.pt is none" in refused(capsys, "cow.parquet", "pair.pt", do=partial(bring_in, SET))


FOUND = {
    "dict": (lambda: {"images": 1, "fold": [2]}, "a dict with the keys images, fold"),
    "number": (lambda: 3.5, "a value of type float"),
    "list": (
        lambda: [torch.zeros(3), torch.zeros(3)],
        "a list of 2, the first a tensor of shape (3,) (float32)",
    ),
    "empty": (lambda: [], "an empty list"),
    "words": (lambda: ["a", "b"], "a list of 2, the first a value of type str"),
    "experts": (
        lambda: [[torch.zeros(3)], [torch.zeros(3)]],
        "it is a list of 1, which is a tensor of shape (3,)",
    ),
    "vector": (lambda: torch.zeros(7), "a tensor of shape (7,) (float32)"),
    "states": (
        lambda: {"a": {"w": torch.zeros(2)}, "b": {"w": torch.zeros(2)}},
        "a dict with the keys a, b",
    ),
    "array": (lambda: np.zeros(3), "it holds a numpy array"),
    "module": (lambda: torch.nn.Linear(2, 2), "save network.state_dict()"),
}


def test_the_kind_that_was_found_is_named(work, data, capsys):
    """Whatever it is."""
    for name, (make, words) in FOUND.items():
        torch.save(make(), f"{name}.pt")
        assert words in refused(capsys, f"{name}.pt", do=partial(bring_in, EXPERTS)), name
    np.save("plain.npy", np.zeros((3, 4)))
    assert "numpy array of shape (3, 4) (float64)" in refused(
        capsys, "plain.npy", do=partial(bring_in, EXPERTS)
    )
    np.savez("several.npz", images=np.zeros(3), labels=np.zeros(3))
    assert "numpy arrays (images, labels)" in refused(
        capsys, "several.npz", do=partial(bring_in, EXPERTS)
    )
    network, snapshots = trained(data, steps=2)
    torch.save(network.state_dict(), "state.pt")
    assert "state.pt holds one network after its training" in refused(
        capsys, "state.pt", do=partial(bring_in, EXPERTS)
    )
    assert "needs none" in refused(capsys, "state.pt", do=partial(bring_in, SET))
    torch.save([snapshots], "buffer.pt")
    out = refused(capsys, "buffer.pt", "state.pt", do=partial(bring_in, EXPERTS))
    assert "state.pt holds a state dict of 6 tensors (features.0.weight," in out


def test_an_archive_that_is_damaged_is_said_to_be(work, capsys):
    """Also where a name in it is no text, or it needs a newer reader."""
    torch.save(torch.zeros(2, 1, 8, 8), "sound.pt")
    content = Path("sound.pt").read_bytes()
    entry = content.rindex(b"PK\x01\x02")  # of the last file, in the directory at the end
    for place, spoiled in ((8, b"\x00\x08"), (6, b"\xff\x00")):
        damaged = bytearray(content)
        damaged[entry + place : entry + place + 2] = spoiled
        damaged[entry + 46 : entry + 48] = b"\xff\xfe"
        Path("damaged.pt").write_bytes(damaged)
        refused(capsys, "damaged.pt", do=partial(bring_in, EXPERTS))


def test_images_that_cannot_be_images(work, data, capsys):
    """Too large for any image, in either space; constant ones are warned of."""
    pixels, classes = pixels_of(data, 1)
    reach = float(data.train.preprocess.forward(torch.ones(1, 1, 1, 1)).max())
    for name, content, bound in (
        ("images_1.pt", pixels * 1e30, 1000 * reach),
        ("pair.pt", [pixels * -1e30, classes], 1000 * reach),
    ):
        torch.save(content, name)
        out = refused(capsys, name, do=partial(bring_in, SET))
        assert "values up to 1e+30" in out and f"nothing above {bound:.3g} is taken" in out
    torch.save([pixels * 2000, classes], "pair.pt")
    assert "nothing above 1e+03" in refused(
        capsys, "pair.pt", do=partial(bring_in, SET), space="pixel"
    )
    torch.save([pixels / 0, classes], "pair.pt")
    assert "not finite" in refused(capsys, "pair.pt", do=partial(bring_in, SET))
    torch.save((pixels - 0.5) * 100 * reach, "images_2.pt")  # large, and possible
    assert "warning" not in said(capsys, "images_2.pt", do=partial(bring_in, SET), out="large")
    torch.save(pixels * 255, "images_3.pt")
    assert "as pixels of 8 bits do" in said(
        capsys, "images_3.pt", do=partial(bring_in, SET), out="bytes"
    )
    for value, name in ((0.0, "zero"), (0.3, "grey")):
        torch.save([torch.full_like(pixels, value), classes], "pair.pt")
        assert f"warning: the values in pair.pt are all {value:g}" in said(
            capsys, "pair.pt", do=partial(bring_in, SET), out=name
        )


# Teachers


def test_teachers(work, data, capsys):
    """State dicts in all their wrappings become the store of each network, statistics included, and
    the printed command distills from them.
    """
    networks = [trained(data, name)[0] for name in TEACHERS]
    first, second = (network.state_dict() for network in networks)
    torch.save(first, "plain.pt")
    torch.save(
        {
            "net": {f"module.{k}": v for k, v in second.items()},
            "acc": 0.9,
            "args": argparse.Namespace(lr=1),
        },
        "checkpoint.pth",
    )
    words = [*INFER, "--teachers", *TEACHERS, "--model", TEACHERS[1]]
    out = said(capsys, *words, "--files", "plain.pt", "checkpoint.pth", "--out", "theirs")
    accuracies = [float(found) for found in re.findall(r"labels checked: .* ([\d.]+) %", out)]
    assert (
        len(accuracies) == 2
        and min(accuracies) > 70
        and "warning" not in out
        and "validation accuracy" in out
    )
    command = printed(out)
    assert (
        command[command.index("--experts") + 1] == "theirs"
        and command[command.index("--data.root") + 1] == ROOT
    )
    said(capsys, *command, "--out", "run")
    assert loaded("run/distilled")[1]["experts"]["num"] == 2

    from ddengine.commands.on_recipe import options_of, stores_of

    options = options_of("distill", command[1:])
    stores = stores_of(options, options.experts).open(data)  # as distill opens them
    for store, network in zip(stores.stores, networks, strict=True):
        stored = store.load(0, store.epochs[-1]).state_dict()
        differing = [
            name
            for name, tensor in network.state_dict().items()
            if not torch.equal(stored[name], tensor)
        ]
        # which nothing reads
        assert all(name.endswith("num_batches_tracked") for name in differing)

    # two of the first network, two of the second
    files = ["plain.pt", "half.pt", "checkpoint.pth", "second.pt"]
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in first.items()}, "half.pt")
    torch.save({"state_dict": second}, "second.pt")
    said(capsys, *files, do=partial(bring_in, words), out="four")
    for i, name in enumerate(TEACHERS):
        store = ExpertStore(Path("four") / name)
        assert [store.metrics(k)["file"] for k in range(2)] == files[2 * i : 2 * i + 2]

    one = [*INFER, "--teachers", TEACHERS[0], "--model", TEACHERS[1]]
    ways = {
        "model": {"model": first, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
        "wrapped": {"state_dict": {f"module._orig_mod.{k}": v for k, v in first.items()}},
        "half": {k: v.half() if v.is_floating_point() else v for k, v in first.items()},
        "uncounted": {k: v for k, v in first.items() if "num_batches" not in k},
        "other_names": {
            f"layer{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(first.items())
        },
    }
    for name, content in ways.items():
        torch.save(content, f"{name}.pt")
        out = said(capsys, f"{name}.pt", do=partial(bring_in, one), out=f"store_{name}")
        assert float(re.search(r"labels checked: .* ([\d.]+) %", out)[1]) == pytest.approx(
            accuracies[0], abs=1.0
        ), name
        assert ("matched in order" in out) == (name == "other_names"), name
    save_file({k: v.contiguous() for k, v in first.items()}, "first.safetensors")
    out = said(capsys, *one, "--files", "first.safetensors", "half.pt", "--out", "two")
    assert printed(out)[-1] == "2" and "2 networks in two" in out
    assert (Path("two") / TEACHERS[0] / "expert_0001.safetensors").is_file()


def test_teachers_that_count_otherwise(work, data, capsys):
    """As experts; and the order that is named is kept to the end."""
    torch.save(trained(data, TEACHERS[0], SHIFT)[0].state_dict(), "a.pt")
    one = [*INFER, "--teachers", TEACHERS[0], "--model", TEACHERS[0]]
    out = said(capsys, "a.pt", do=partial(bring_in, one), out="wrong")
    warning = re.search(
        (
            r"warning: .* ([\d.]+) % as numbered above, and ([\d.]+) % in another one; "
            r".*--class_order (.*)"
        ),
        out,
    )
    assert (
        float(warning[1]) < 40 and float(warning[2]) > 80 and tuple(shlex.split(warning[3])) == BACK
    )
    out = said(capsys, *one, "--files", "a.pt", "--out", "right", "--class_order", *BACK)
    assert "warning" not in out
    said(capsys, *printed(out), "--out", "run")
    assert loaded("run/distilled")[0].class_names == BACK


def test_teachers_that_do_not_fit(work, data, capsys):
    """The first tensor that differs is named; so is the number of files that is wanted; nothing is
    written.
    """
    first, second = (
        build_model(name, data.image_shape, 6, generator(0)).state_dict() for name in TEACHERS
    )
    weight = first["features.0.weight"]
    one = [*INFER, "--teachers", TEACHERS[0], "--model", TEACHERS[1]]
    wrong = {
        "colour": (
            first | {"features.0.weight": weight.repeat(1, 3, 1, 1)},
            "features.0.weight is a tensor of shape (8, 3, 3, 3)",
        ),
        "classes": (
            {k: torch.cat([v, v]) if k.startswith("cl") else v for k, v in first.items()},
            "classifier.weight is a tensor of shape (12, ",
        ),
        "renamed": (
            {("first.weight" if v is weight else k): v for k, v in first.items()},
            "its features.0.weight is missing",
        ),
        "more": (first | {"extra.weight": weight}, "which has no extra.weight"),
        "no_statistics": (
            {k: v for k, v in first.items() if "running" not in k},
            "its features.1.running_mean is missing",
        ),
        "nan": (
            first | {"features.1.running_var": torch.full((8,), torch.nan)},
            "not finite in features.1.running_var",
        ),
        "integers": (
            first | {"features.0.weight": weight.long()},
            "its features.0.weight is a tensor of shape (8, 1, 3, 3) (int64)",
        ),
        "other": (
            build_model("mlp", data.image_shape, 6, generator(0)).state_dict(),
            "is not convnet-d1-w8-bn",
        ),
        "deeper": (second, "which has no features.4.weight"),
    }
    for name, (content, words) in wrong.items():
        torch.save(content, f"{name}.pt")
        out = refused(capsys, f"{name}.pt", do=partial(bring_in, one))
        assert words in out and f"{name}.pt" in out, name
    torch.save(first, "a.pt")
    torch.save(second, "b.pt")
    both = [*INFER, "--teachers", *TEACHERS, "--model", TEACHERS[1]]
    assert "is not convnet-d1-w8-bn" in refused(capsys, "b.pt", "a.pt", do=partial(bring_in, both))
    assert "--files names 1 networks for the 2 of --teachers" in refused(
        capsys, "a.pt", do=partial(bring_in, both)
    )
    assert "leave --lr out" in refused(capsys, "a.pt", do=partial(bring_in, one), lr=0.1)
    out = said(capsys, "a.pt", "b.pt", do=partial(bring_in, both), out="untrained")
    assert "hardly more than guessing" in out


def test_last_snapshots(work, data, capsys):
    """Where a recipe only looks through final networks, a state dict is enough; the printed command
    keeps them alone.
    """
    torch.save(trained(data)[0].state_dict(), "a.pt")
    words = [
        *SET,
        "--take",
        "buffer=mtt/digits_ipc1",
        "--init.kind",
        "correct",
        "--outer.steps",
        "1",
        "--objective.real_batch",
        "8",
    ]
    out = said(capsys, *words, "--files", "a.pt", "--out", "store")
    command = printed(out)
    assert (
        command[command.index("--buffer.keep") + 1] == "last"
        and command[command.index("--take") + 1] == "buffer=mtt/digits_ipc1"
    )
    said(capsys, *command, "--out", "run")
    assert loaded("run/distilled")[1]["experts"]["num"] == 1
