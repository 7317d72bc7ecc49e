"""Mistakes of a user, given to the command line: exit code 2, one sentence that helps, nothing
half-written.
"""

import gzip
import io
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import rewrite_tensors
from PIL import Image
from safetensors.torch import load_file

from ddengine import commands
from ddengine.system import files

RECIPE = "mtt/digits_ipc1"
NETWORK = "convnet-d2-w8-in"
TINY = (
    "--data.limit 200 --buffer.num_experts 1 --buffer.epochs 3 --objective.window.high 1 "
    "--objective.expert_epochs 1 --objective.inner_steps 2"
    " --outer.steps 3 --evaluation.epochs 1 --evaluation.full_steps 10"
)
SETTINGS = f"{RECIPE} --model {NETWORK} {TINY}"
SAME = f"{SETTINGS} --experts store"  # distills from the store of the fixture
DATM, AST = "datm/fashion_mnist_ipc1_small", "ast/fashion_mnist_ipc1_small"
# another network, epochs 1 and 2 only
LATE = f"{RECIPE} {TINY} --buffer.model convnet-d1-w8-in --buffer.keep 1 2"

Prepare = Callable[[Path], object]

# outside pytest it would be a second line on standard error
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two expert stores, `store` and `late`, and a finished `run`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            f"buffer {SETTINGS} --out store",
            f"buffer {LATE} --out late",
            f"distill {SAME} --out run",
        ):
            assert commands.main(command.split()) == 0
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty working directory of a test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def filled(made: Path, work: Path) -> Path:
    """The working directory with a copy of what `made` holds, pictures left out."""
    shutil.copytree(
        made, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("images", "*.png")
    )
    return work


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with its bytes, None for a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def refuse(
    command: str,
    words: tuple[str, ...],
    work: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    untouched: bool = True,
) -> None:
    """Run a command line that must be refused in one sentence with these words; `untouched`: before
    anything is written or deleted.
    """
    before = contents(work)
    capsys.readouterr()
    code = commands.main(command.split())
    said = capsys.readouterr().err
    assert code == 2, said
    assert re.fullmatch(r"error: [^\n]*[^\s.]\.\n", said), said
    assert not re.search(r"[.!?]\)? +[A-Z]|Traceback|\x1b|[│╭╮╰╯─]|-----|\[bold\]", said), said
    assert not said.startswith("error: recipe."), (
        f"the flags of a recipe do not start with recipe.: {said}"
    )
    for word in words:
        assert word in said, said
    after = contents(work)
    assert not [path for path in after if ".writing-" in path]
    if untouched:
        assert sorted(after) == sorted(before)
        assert after == before


def case(name: str, command: str, *words: str, prepare: Prepare | None = None) -> object:
    """A command line, the words that its refusal must hold, and what makes its files."""
    return pytest.param(command, words, prepare, id=name)


def cut(path: str, keep: float = 0.5) -> Prepare:
    """Truncates a file to this fraction."""

    def prepare(work: Path) -> None:
        content = (work / path).read_bytes()
        (work / path).write_bytes(content[: int(keep * len(content))])

    return prepare


def text(path: str, content: str) -> Prepare:
    """Writes a file."""

    def prepare(work: Path) -> None:
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(content)

    return prepare


def copied(source: str, target: str) -> Prepare:
    """Copies a file."""
    return lambda work: shutil.copy(work / source, work / target)


def gone(path: str) -> Prepare:
    """Deletes a file."""
    return lambda work: (work / path).unlink()


def without(path: str, *keys: str) -> Prepare:
    """Takes a key out of a JSON file."""

    def prepare(work: Path) -> None:
        content = inner = files.read_json(work / path)
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        files.write_json(work / path, content)

    return prepare


def all_of(*steps: Prepare) -> Prepare:
    """One after the other."""
    return lambda work: [step(work) for step in steps]


def pictures(folder: str, *, count: int = 6, side: int = 8) -> Prepare:
    """Writes grey PNG files into a folder."""

    def prepare(work: Path) -> None:
        (work / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((side, side), 20 * i, np.uint8)).save(
                work / folder / f"{side}px_{i}.png"
            )

    return prepare


CATS_DOGS = all_of(pictures("pics/cat"), pictures("pics/dog"))
TRAIN = all_of(pictures("pics/train/cat"), pictures("pics/train/dog"))


def idx(images: int = 20, labels: int = 20) -> Prepare:
    """Writes the four gzip IDX files of MNIST into `idx`."""

    def prepare(work: Path) -> None:
        (work / "idx").mkdir()
        for split in ("train", "t10k"):
            for kind, array in (
                ("images-idx3", np.zeros((images, 8, 8), np.uint8)),
                ("labels-idx1", np.arange(labels, dtype=np.uint8) % 10),
            ):
                header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
                with gzip.open(work / "idx" / f"{split}-{kind}-ubyte.gz", "wb") as file:
                    file.write(header + array.tobytes())

    return prepare


def png(value: int) -> bytes:
    """A grey 8x8 PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def table(
    labels: list[int | None], broken: dict[int, bytes | None] | None = None, name: str = "train-0"
) -> Prepare:
    """Writes a parquet file of images into `pq`; `broken` replaces the bytes of some rows."""

    def prepare(work: Path) -> None:
        (work / "pq").mkdir(exist_ok=True)
        images = [{"bytes": (broken or {}).get(i, png(i))} for i in range(len(labels))]
        typed = pa.array(images, pa.struct([("bytes", pa.binary())]))
        pq.write_table(
            pa.table({"image": typed, "label": pa.array(labels, pa.int64())}),
            work / "pq" / f"{name}.parquet",
        )

    return prepare


def columns(**values: list) -> Prepare:
    """Writes a parquet file with these columns into `pq`."""

    def prepare(work: Path) -> None:
        (work / "pq").mkdir()
        pq.write_table(pa.table(values), work / "pq" / "train-0.parquet")

    return prepare


def lost_images(work: Path) -> None:
    """Takes the images out of a distilled set."""
    path = work / "run" / "distilled" / "data.safetensors"
    rewrite_tensors(path, {k: v for k, v in load_file(path).items() if k != "images"})


def unfinished(work: Path) -> None:
    """Makes the finished run one that was killed after its last checkpoint."""
    shutil.rmtree(work / "run" / "distilled")


COMMANDS = [
    case("unknown-command", "distil", "command 'distil'", "nearest: distill"),
    case("no-recipe", "distill", "name of a recipe", RECIPE, "run.py recipes"),
    case("flags-without-recipe", "buffer --ipc 2", "name of a recipe first", RECIPE),
    case("unknown-recipe", "distill mtt/digit_ipc1", "recipe 'mtt/digit_ipc1'", RECIPE),
    case("recipes-takes-nothing", "recipes mtt", "recipes takes no arguments", "mtt"),
    case(
        "unknown-flag",
        f"distill {RECIPE} --outer.stepps 3",
        "--outer.stepps",
        "did you mean --outer.steps",
    ),
    case(
        "unknown-flag-of-demo",
        "demo --outer.stepps 3",
        "--outer.stepps",
        "did you mean --outer.steps",
        "run.py demo --help",
    ),
    case(
        "unknown-tensor",
        f"distill {RECIPE} --outer.optim.image.lr 3",
        "--outer.optim.image.lr",
        "did you mean",
        "--outer.optim.images.lr",
    ),
    case("part-as-a-flag", f"distill {RECIPE} --codec quantised", "--take codec=RECIPE", "--codec"),
    case("stray-word", f"distill {RECIPE} quickly", "quickly", "--help"),
    case("value-missing", f"distill {RECIPE} --outer.steps", "--outer.steps", "value"),
    case(
        "take-no-equals-sign",
        f"distill {RECIPE} --take buffer",
        "--take 'buffer'",
        "PART=RECIPE",
        "e.g. buffer=",
    ),
    case("take-nothing", f"distill {RECIPE} --take", "--take", "PART=RECIPE"),
    case(
        "take-unknown-part",
        f"distill {RECIPE} --take bufer={RECIPE}",
        "part in --take 'bufer'",
        "buffer",
    ),
    case(
        "take-unknown-recipe",
        f"distill {RECIPE} --take buffer=mtt/digit_ipc1",
        "recipe 'mtt/digit_ipc1'",
        RECIPE,
    ),
    case("evaluate-what", "evaluate --protocol fast", "evaluate needs the folder", "distilled set"),
    case("device-word", f"distill {RECIPE} --device foo", "--device 'foo'", "cpu", "cuda:N"),
    case(
        "device-unsupported", f"buffer {RECIPE} --device meta", "--device 'meta'", "cpu", "cuda:N"
    ),
    case(
        "device-not-there",
        f"buffer {RECIPE} --device cuda:99",
        "--device 'cuda:99'",
        "--device cpu",
    ),
    case(
        "tf32-on-cpu",
        f"buffer {RECIPE} --device cpu --precision tf32",
        "--precision tf32",
        "fp32",
        "--device cpu",
    ),
]


@pytest.mark.parametrize(("command", "words", "prepare"), COMMANDS)
def test_command_line(command, words, prepare, work, capsys):
    """Words that the command line does not know."""
    refuse(command, words, work, capsys)


VALUES = [
    case("steps-word", "--outer.steps abc", "--outer.steps", "got abc"),
    case("ipc-fraction", "--ipc 1.5", "--ipc", "got 1.5"),
    case("choice", "--precision fp8", "--precision", "fp8", "bf16"),
    case("boolean", "--data.zca maybe", "--data.zca", "maybe", "True"),
    case("size-one-number", "--data.size 8", "--data.size", "INT INT"),
    case("size-zero", "--data.size 0 8", "data.size", "positive", "(0, 8)"),
    case("steps-negative", "--outer.steps -1", "outer.steps", "not be negative", "got -1"),
    case("draws-zero", "--outer.draws 0", "outer.draws", "at least 1"),
    case("ipc-zero", "--ipc 0", "ipc", "at least 1"),
    case("validation-above-one", "--data.validation 1.5", "data.validation", "below 1", "1.5"),
    case("validation-nan", "--data.validation nan", "data.validation", "below 1", "nan"),
    case("limit-negative", "--data.limit -3", "data.limit", "positive", "-3"),
    case("split-seed-negative", "--data.split_seed -1", "data.split_seed", "-1"),
    case("momentum-one", "--objective.momentum 1", "objective.momentum", "below 1"),
    case("student-lr-negative", "--objective.lr -1", "objective.lr", "positive"),
    case("student-lr-infinite", "--objective.lr inf", "objective.lr", "inf"),
    case("window-upside-down", "--objective.window.low 5", "objective.window", "low 5", "high 4"),
    case(
        "image-lr-negative",
        "--outer.optim.images.lr -1",
        "outer.optim.images",
        "learning rate",
        "not negative",
    ),
    case(
        "image-lr-nan",
        "--outer.optim.images.lr nan",
        "outer.optim.images",
        "learning rate",
        "finite",
    ),
    case(
        "image-momentum-one",
        "--outer.optim.images.momentum 1",
        "outer.optim.images",
        "momentum",
        "below 1",
    ),
    case("max-loss-nan", "--outer.max_loss nan", "outer.max_loss", "nan"),
    case(
        "validate-without-split", "--data.validation 0", "outer.evaluate_every", "data.validation"
    ),
    case("expert-lr-zero", "--buffer.step.lr 0", "buffer.step.lr", "positive"),
    case("expert-lr-infinite", "--buffer.step.lr inf", "buffer.step.lr", "inf"),
    case("expert-decay", "--buffer.step.decay 2", "buffer.step.decay", "at most 1"),
    case("experts-zero", "--buffer.num_experts 0", "buffer.num_experts", "at least 1"),
    case("keep-beyond-epochs", "--buffer.keep 0 20", "buffer.keep 0 20", "buffer.epochs = 10"),
    case("keep-backwards", "--buffer.keep 3 1", "buffer.keep 3 1", "buffer.epochs"),
    case("keep-word", "--buffer.keep first", "buffer.keep", "first", "last"),
    case("augmentation-unknown", "--buffer.augment.ops crops", "augmentation 'crops'", "crop"),
    case("augmentation-scale-zero", "--buffer.augment.scale 0", "augment.scale", "0"),
    case("baseline-unknown", "--evaluation.baselines randm", "baseline 'randm'", "nearest: random"),
    case("protocol-unknown", "--evaluation.protocol quick", "protocol 'quick'", "fast"),
    case(
        "too-few-networks",
        "--evaluation.num_networks 2",
        "evaluation.num_networks",
        "at least 3",
        "evaluation.baselines",
    ),
    case("dataset-unknown", "--data.name digit", "dataset 'digit'", "nearest: digits"),
    case("limit-above-set", "--data.limit 5000", "data.limit 5000", "1438", "lower"),
    case("limit-below-classes", "--data.limit 5", "no training images", "data.limit"),
    case(
        "relabel-classes",
        "--targets.relabel True",
        "targets.relabel",
        "targets.kind is class",
        "targets.kind logits",
    ),
    case(
        "relabel-by-right-experts",
        "--targets.kind logits --targets.relabel True",
        "targets.relabel",
        "no expert is right",
        "targets.experts all",
    ),
    case(
        "labels-of-targets-not-shipped",
        "--objective.labels target",
        "objective.labels target",
        "targets.relabel True",
    ),
    case(
        "take-of-an-empty-slot",
        f"--take objective.perturb.alpha={RECIPE}",
        "objective.perturb is empty",
        "whole",
    ),
    case("label-epochs-backwards", "--targets.epochs 5 2", "targets.epochs", "ascending"),
    case("clusters-zero", "--init.clusters 0", "init.clusters", "at least 1"),
    case(
        "labels-not-stored",
        f"--take outer.optim={DATM}",
        "outer.optim",
        "'logits'",
        "targets.kind class",
    ),
    case(
        "labels-learned-and-made-anew",
        (
            f"--take outer.optim={DATM} --take targets={DATM} --targets.relabel True "
            "--targets.experts all"
        ),
        "targets.relabel",
        "learns",
    ),
    case(
        "growth-backwards",
        f"--take objective.window={DATM} --objective.window.high 1",
        "low < first <= high",
        "first 2",
    ),
    case(
        "growth-in-no-steps",
        f"--take objective.window={DATM} --objective.window.grow 0",
        "objective.window.grow",
        "at least 1",
    ),
    case(
        "perturbation-negative",
        f"--take objective.perturb={AST} --objective.perturb.alpha -1",
        "objective.perturb.alpha",
        "not negative",
    ),
    case(
        "flat-radius-negative",
        f"--take buffer={DATM} --buffer.step.rho -1",
        "buffer.step.rho",
        "not negative",
    ),
    case(
        "flat-alpha-infinite",
        f"--take buffer={DATM} --buffer.step.alpha inf",
        "buffer.step.alpha",
        "finite",
    ),
    case("clip-zero", f"--take buffer={AST} --buffer.step.clip 0", "buffer.step.clip", "above 0"),
    case(
        "penalty-negative",
        f"--take buffer={AST} --buffer.step.penalty -2",
        "buffer.step.penalty",
        "not negative",
    ),
    case(
        "take-no-such-field",
        f"--take objective.windw={DATM}",
        "'objective.windw'",
        "nearest: objective.window",
    ),
]


@pytest.mark.parametrize(("flags", "words", "prepare"), VALUES)
def test_values(flags, words, prepare, work, capsys):
    """Values that no recipe can have, or that clash with the data."""
    refuse(f"distill {RECIPE} {flags}", words, work, capsys)


NETWORKS = [
    case(
        "network-unknown",
        "--model covnet-d3-w8-in",
        "network 'covnet-d3-w8-in'",
        "nearest: convnet",
    ),
    case(
        "network-option",
        "--model convnet-d2-w8-xx",
        "network 'convnet-d2-w8-xx'",
        "'xx' is not an option",
    ),
    case(
        "network-too-deep",
        "--model convnet-d4-w8-in",
        "'convnet-d4-w8-in'",
        "8x8 image",
        "smaller depth",
    ),
    case(
        "network-wants-colour",
        "--model torchvision/vit_b_16-small",
        "torchvision/vit_b_16-small",
        "colour",
    ),
]


@pytest.mark.parametrize(
    "command", [pytest.param("buffer", id="buffer"), pytest.param("distill", id="distill")]
)
@pytest.mark.parametrize(("flags", "words", "prepare"), NETWORKS)
def test_network(command, flags, words, prepare, work, capsys):
    """Networks that are not there or cannot take the images, whatever stores there are."""
    refuse(f"{command} {RECIPE} {flags}", words, work, capsys)


FOLDER, IDX, PARQUET = "folder --data.root pics", "mnist --data.root idx", "parquet --data.root pq"
BAD, IMAGES, LABELS = (
    "pics/dog/bad.png",
    "idx/train-images-idx3-ubyte.gz",
    "idx/train-labels-idx1-ubyte.gz",
)
RAW = [
    f"mn/MNIST/raw/{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
DATA = [
    case("root-not-given", "folder", "data.root", "subfolders are the classes"),
    case("root-not-there", FOLDER, "data.root pics", "not a folder"),
    case("root-is-a-file", FOLDER, "data.root pics", "not a folder", prepare=text("pics", "cats")),
    case(
        "one-class",
        FOLDER,
        "1 class folder",
        "at least 2",
        "data.root",
        prepare=pictures("pics/cat"),
    ),
    case(
        "class-without-images",
        FOLDER,
        "pics/bird",
        "no images",
        prepare=all_of(CATS_DOGS, text("pics/bird/note.txt", "later")),
    ),
    case(
        "image-corrupt", FOLDER, BAD, "repair or remove", prepare=all_of(CATS_DOGS, text(BAD, "no"))
    ),
    case("image-empty", FOLDER, BAD, "repair or remove", prepare=all_of(CATS_DOGS, text(BAD, ""))),
    case(
        "image-truncated",
        FOLDER,
        "pics/dog/8px_1.png",
        "repair or remove",
        prepare=all_of(CATS_DOGS, cut("pics/dog/8px_1.png", 0.7)),
    ),
    case(
        "sizes-differ",
        FOLDER,
        "9x9",
        "8x8",
        "data.size",
        prepare=all_of(CATS_DOGS, pictures("pics/bird", side=9)),
    ),
    case(
        "test-classes-differ",
        FOLDER,
        "pics/test",
        "the same names",
        prepare=all_of(TRAIN, pictures("pics/test/cow")),
    ),
    case("idx-truncated", IDX, IMAGES, "again", prepare=all_of(idx(), cut(IMAGES))),
    case("idx-no-gzip", IDX, LABELS, "gzip", prepare=all_of(idx(), text(LABELS, "no"))),
    case("idx-too-many-labels", IDX, "20", "30", "labels", prepare=idx(labels=30)),
    case("idx-too-few-labels", IDX, "20", "30", "labels", prepare=idx(images=30)),
    case(
        "idx-swapped", IDX, "idx/", "images", "again", prepare=all_of(idx(), copied(LABELS, IMAGES))
    ),
    case("cifar-not-there", "cifar10", "CIFAR10", "data.root", "data.download True"),
    case(
        "cifar-root-not-there",
        "cifar10 --data.root nowhere",
        "data.root nowhere",
        "not a folder",
        "cifar10",
    ),
    case(
        "cifar-damaged",
        "cifar10 --data.root cf",
        "CIFAR10",
        "cf",
        "data.download True",
        prepare=text("cf/cifar-10-batches-py/data_batch_1", "no"),
    ),
    case(
        "mnist-damaged",
        "mnist --data.root mn",
        "MNIST in mn",
        "data.download True",
        prepare=all_of(*(text(p, "not a dataset") for p in RAW)),
    ),
    case("parquet-root-not-given", "parquet", "data.root", "parquet files"),
    case(
        "parquet-none",
        PARQUET,
        "pq",
        "no parquet files",
        "data.root",
        prepare=text("pq/readme.txt", "empty"),
    ),
    case(
        "parquet-corrupt",
        PARQUET,
        "train-1.parquet",
        "again",
        prepare=all_of(table([0, 1] * 4), text("pq/train-1.parquet", "no")),
    ),
    case(
        "parquet-truncated",
        PARQUET,
        "train-0.parquet",
        "again",
        prepare=all_of(table([0, 1] * 4), cut("pq/train-0.parquet")),
    ),
    case(
        "parquet-no-image",
        PARQUET,
        "columns text and label",
        "none holds images",
        prepare=columns(text=["a", "b"], label=[0, 1]),
    ),
    case(
        "parquet-no-label",
        PARQUET,
        "beside 'image': text",
        "data.label_column",
        prepare=columns(image=[png(0), png(1)], text=["a", "b"]),
    ),
    case("parquet-no-rows", PARQUET, "train-0.parquet", "no rows", prepare=table([])),
    case(
        "parquet-negative-label",
        PARQUET,
        "train-0.parquet",
        "negative labels",
        prepare=table([-1, 0, 1, 0, 1]),
    ),
    case(
        "parquet-label-missing",
        PARQUET,
        "train-0.parquet",
        "label",
        prepare=table([None, 0, 1, 0, 1]),
    ),
    case(
        "parquet-class-missing",
        PARQUET,
        "Class '1'",
        "no training images",
        prepare=table([0, 2] * 4),
    ),
    case(
        "parquet-image-corrupt",
        PARQUET,
        "of train-0.parquet",
        "repair",
        prepare=table([0, 1] * 4, {i: b"no" for i in range(8)}),
    ),
    case(
        "parquet-image-missing",
        PARQUET,
        "train-0.parquet stores no bytes",
        "write the bytes",
        prepare=table([0, 1] * 4, {i: None for i in range(8)}),
    ),
    case(
        "zca-of-large-images", "digits --data.zca True --data.size 112 112", "data.zca", "data.size"
    ),
]


@pytest.mark.parametrize(("data", "words", "prepare"), DATA)
def test_data(data, words, prepare, work, capsys):
    """Datasets that are not there, not whole, or not what they are said to be."""
    if prepare:
        prepare(work)
    refuse(f"distill {RECIPE} --data.name {data}", words, work, capsys)


@pytest.mark.parametrize(
    "name", [pytest.param("cifar10", id="cifar10"), pytest.param("mnist", id="mnist")]
)
def test_download_without_network(name, work, capsys, monkeypatch):
    """A download that was asked for and cannot be made."""

    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    refuse(
        f"buffer {RECIPE} --data.name {name} --data.download True",
        ("could not be downloaded", "network"),
        work,
        capsys,
        untouched=False,
    )


GROWING = f"{SAME} --take objective.window={DATM}"
SHARD, SHARD_BEST = (f"store/expert_{name}.safetensors" for name in ("0000", "best"))
STORES = [
    case(
        "no-store",
        f"distill {SETTINGS}",
        "no expert store in experts",
        "buffer command",
        "--experts",
    ),
    case(
        "named-store-not-there",
        f"distill {SETTINGS} --experts nowhere",
        "no expert store in nowhere",
        "buffer command",
    ),
    case(
        "named-store-is-a-file",
        f"distill {SETTINGS} --experts note",
        "no expert store in note",
        prepare=text("note", "no store"),
    ),
    case(
        "window-beyond-epochs",
        f"distill {SAME} --objective.window.high 4",
        "objective.window.high",
        "0 to 3",
        "buffer.epochs",
    ),
    case(
        "segment-beyond-epochs",
        f"distill {SAME} --objective.expert_epochs 9",
        "objective.expert_epochs",
        "0 to 3",
    ),
    case(
        "window-before-kept-epochs",
        f"distill {LATE} --model convnet-d1-w8-in --experts late",
        "1 to 2",
        "objective.window",
        "buffer.keep",
    ),
    case(
        "store-of-another-network",
        f"distill {LATE} --model {NETWORK} --experts late",
        "parameters",
        "network of the experts",
    ),
    case(
        "store-of-another-model",
        f"distill {SAME} --model mlp",
        "expert store store",
        f"model is {NETWORK} there and mlp here",
    ),
    case(
        "store-of-another-recipe",
        f"distill {RECIPE} --experts store",
        "expert store store",
        "buffer.epochs is 3 there and 10 here",
    ),
    case(
        "store-of-another-seed",
        f"distill {SAME} --buffer.seed 1",
        "expert store store",
        "buffer.seed is 0 there and 1 here",
    ),
    case(
        "store-to-grow",
        f"buffer {SETTINGS} --buffer.epochs 4 --out store",
        "expert store store",
        "buffer.epochs is 3 there and 4 here",
    ),
    case(
        "shard-truncated", f"distill {SAME}", SHARD, "damaged", "buffer command", prepare=cut(SHARD)
    ),
    case(
        "shard-empty", f"distill {SAME}", SHARD, "damaged", "buffer command", prepare=cut(SHARD, 0)
    ),
    case("shard-name", f"distill {SAME}", SHARD_BEST, prepare=copied(SHARD, SHARD_BEST)),
    case(
        "shard-of-another-store",
        f"distill {SAME}",
        SHARD,
        "another store",
        "delete",
        prepare=copied("late/expert_0000.safetensors", SHARD),
    ),
    case(
        "store-empty",
        f"distill {SAME}",
        "store",
        "no finished expert",
        "buffer command",
        prepare=gone(SHARD),
    ),
    case(
        "manifest-broken",
        f"distill {SAME}",
        "store/manifest.json",
        "cannot be read",
        prepare=cut("store/manifest.json"),
    ),
    case(
        "manifest-incomplete",
        f"distill {SAME}",
        "store/manifest.json",
        prepare=without("store/manifest.json", "epochs"),
    ),
    case(
        "manifest-list",
        f"distill {SAME}",
        "store/manifest.json",
        prepare=text("store/manifest.json", "[]"),
    ),
    case(
        "preprocess-truncated",
        f"distill {SAME}",
        "store/preprocess.safetensors",
        "damaged",
        prepare=cut("store/preprocess.safetensors"),
    ),
    case("ipc-above-class", f"distill {SAME} --ipc 500", "ipc 500", "class '0'", "lower ipc"),
    case(
        "smooth-asked-plain-there",
        f"distill {SAME} --take buffer={AST}",
        "expert store store",
        "buffer.step is Sgd there and Smooth here",
    ),
    case(
        "growing-window-beyond-epochs",
        f"distill {GROWING} --objective.window.high 9",
        "0 to 8",
        "objective.window.high",
        "buffer.epochs",
    ),
    case(
        "milestones-without-steps",
        f"distill {SAME} --take objective.milestones={AST} --objective.expert_epochs 3",
        "objective.milestones",
        "raise",
    ),
    case(
        "label-epochs-beyond",
        f"distill {SAME} --targets.kind logits --targets.epochs 2 9",
        "targets.epochs 2 9",
        "epoch 4",
        "0 to 3",
    ),
    case(
        "no-right-expert",
        f"distill {SAME} --init.kind noise --targets.kind logits",
        "No expert is right",
        "of class '",
        "targets.experts all",
    ),
    case(
        "no-correct-images",
        f"distill {SAME} --init.kind correct --ipc 14",
        "init.kind correct",
        "of class '",
        "lower ipc",
    ),
]


@pytest.mark.parametrize(("command", "words", "prepare"), STORES)
def test_store(command, words, prepare, filled, capsys):
    """Expert stores that are missing, damaged or made with other settings."""
    if prepare:
        prepare(filled)
    refuse(command, words, filled, capsys)


FOREIGN = text("photos/cat.png", "precious")
NOTE = text("note", "a file")
CHECKPOINT = "run/checkpoint/state.safetensors"
OUTPUTS = [
    case(
        "run-of-other-settings",
        f"distill {SAME} --out run --outer.steps 4",
        "run",
        "other settings",
        "--out",
        "--restart",
    ),
    case(
        "run-of-another-recipe",
        "distill mtt/digits_ipc10 --out run",
        "run",
        f"a run of {RECIPE}",
        "--out",
        "--restart",
    ),
    case(
        "run-is-foreign",
        f"distill {SAME} --out photos",
        "photos",
        "not a run",
        "--out",
        prepare=FOREIGN,
    ),
    case("run-is-a-file", f"distill {SAME} --out note", "note", "--out", prepare=NOTE),
    case(
        "run-below-a-file",
        f"distill {SAME} --out note/run",
        "note/run",
        "cannot be written",
        "--out",
        prepare=NOTE,
    ),
    case(
        "run-recipe-broken",
        f"distill {SAME} --out run",
        "run/recipe.json",
        "cannot be read",
        prepare=cut("run/recipe.json"),
    ),
    case(
        "run-recipe-foreign",
        f"distill {SAME} --out run",
        "recipe.json",
        "--out",
        prepare=text("run/recipe.json", '{"soup": 1}'),
    ),
    case(
        "checkpoint-truncated",
        f"distill {SAME} --out run",
        CHECKPOINT,
        "damaged",
        prepare=all_of(unfinished, cut(CHECKPOINT)),
    ),
    case(
        "store-is-foreign",
        f"buffer {SETTINGS} --out photos",
        "photos",
        "not",
        "--out",
        prepare=FOREIGN,
    ),
    case(
        "store-is-a-file",
        f"buffer {SETTINGS} --out note",
        "note",
        "cannot be written",
        "--out",
        prepare=NOTE,
    ),
    case(
        "store-below-a-file",
        f"buffer {SETTINGS} --out note/store",
        "note/store",
        "cannot be written",
        "--out",
        prepare=NOTE,
    ),
    case(
        "demo-is-foreign",
        f"demo {SETTINGS.removeprefix(RECIPE)} --out photos",
        "photos",
        "not a run",
        "--out",
        prepare=FOREIGN,
    ),
    case(
        "demo-network-unknown",
        f"demo {SETTINGS.removeprefix(RECIPE)} --evaluation.models covnet-d3",
        "network 'covnet-d3'",
        "convnet-d3",
    ),
    case(
        "restart-of-foreign-run",
        f"distill {SAME} --out photos --restart",
        "--restart",
        "photos",
        prepare=FOREIGN,
    ),
    case(
        "restart-of-foreign-store",
        f"buffer {SETTINGS} --out photos --restart",
        "--restart",
        "photos",
        prepare=FOREIGN,
    ),
    case(
        "restart-of-foreign-demo",
        "demo --out photos --restart",
        "--restart",
        "photos",
        prepare=FOREIGN,
    ),
    case(
        "restart-of-a-file", f"distill {SAME} --out note --restart", "note", "--out", prepare=NOTE
    ),
    case(
        "restart-of-a-file-buffer",
        f"buffer {SETTINGS} --out note --restart",
        "note",
        "--out",
        prepare=NOTE,
    ),
    case(
        "restart-on-no-device",
        f"distill {SAME} --out run --restart --device cuda:99",
        "--device 'cuda:99'",
    ),
    case(
        "restart-without-experts",
        f"distill {SETTINGS} --experts nowhere --out run --restart",
        "no expert store in nowhere",
    ),
    case(
        "restart-with-unknown-network",
        f"buffer {RECIPE} --model covnet-d3 --out store --restart",
        "network 'covnet-d3'",
        "convnet-d3",
    ),
]


@pytest.mark.parametrize(("command", "words", "prepare"), OUTPUTS)
def test_output(command, words, prepare, filled, capsys):
    """Folders to write that belong to something else; nothing of theirs is deleted, nor a run
    before its command is known to be sound.
    """
    if prepare:
        prepare(filled)
    refuse(command, words, filled, capsys)


META, TENSORS = "run/distilled/meta.json", "run/distilled/data.safetensors"
EVALUATIONS = [
    case("nothing-there", "evaluate nowhere", "nowhere", "not a distilled set", "distill"),
    case("not-a-set", "evaluate store", "store", "not a distilled set", "meta.json"),
    case("a-file", "evaluate note", "note", "not a distilled set", prepare=NOTE),
    case("a-recipe", f"evaluate {RECIPE}", RECIPE, "not a distilled set"),
    case("unfinished-run", "evaluate run", "run", "not a distilled set", prepare=unfinished),
    case("data-truncated", "evaluate run", "data.safetensors", "damaged", prepare=cut(TENSORS)),
    case(
        "data-missing", "evaluate run", "data.safetensors", "does not exist", prepare=gone(TENSORS)
    ),
    case(
        "data-without-images",
        "evaluate run",
        "run/distilled",
        "'images'",
        "again",
        prepare=lost_images,
    ),
    case("meta-broken", "evaluate run", "meta.json", "cannot be read", prepare=cut(META)),
    case("meta-empty", "evaluate run", "run/distilled", "again", prepare=text(META, "{}")),
    case("meta-list", "evaluate run", "run/distilled", "again", prepare=text(META, "[]")),
    case(
        "meta-without-recipe",
        "evaluate run",
        "run/distilled",
        "again",
        prepare=without(META, "recipe"),
    ),
    case(
        "meta-without-protocol",
        "evaluate run",
        "run/distilled",
        "again",
        prepare=without(META, "recipe", "evaluation"),
    ),
    case(
        "recipe-missing",
        "evaluate run",
        "run/recipe.json",
        "does not exist",
        prepare=gone("run/recipe.json"),
    ),
    case(
        "recipe-incomplete",
        "evaluate run",
        "run/recipe.json",
        prepare=without("run/recipe.json", "recipe", "data"),
    ),
    case("protocol-unknown", "evaluate run --protocol fats", "protocol 'fats'", "nearest: fast"),
    case(
        "protocol-unknown-equals",
        "evaluate run --protocol=fats",
        "protocol 'fats'",
        "nearest: fast",
    ),
    case("protocol-without-value", "evaluate run --protocol", "--protocol"),
    case("flag-unknown", "evaluate run --modles mlp", "--modles", "did you mean --models"),
    case(
        "baseline-unknown",
        "evaluate run --baselines herdin",
        "baseline 'herdin'",
        "nearest: herding",
    ),
    case(
        "network-unknown",
        "evaluate run --models covnet-d3-w8-in",
        "network 'covnet-d3-w8-in'",
        "nearest: convnet",
    ),
    case(
        "network-too-deep",
        "evaluate run --models mlp convnet-d4-w8-in",
        "'convnet-d4-w8-in'",
        "8x8 image",
        "smaller depth",
    ),
    case("epochs-zero", "evaluate run --epochs 0", "epochs", "at least 1"),
    case(
        "too-few-networks",
        "evaluate run --num_networks 2",
        "num_networks",
        "at least 3",
        "baselines",
    ),
    case("grid-empty", "evaluate run --lr_grid", "lr_grid"),
    case("grid-negative", "evaluate run --lr_grid 0.1 -1", "lr_grid", "-1"),
    case("lr-negative", "evaluate run --data.validation 0 --lr -1", "lr", "-1"),
    case("momentum-negative", "evaluate run --momentum -1", "momentum", "-1"),
    case("weight-decay-negative", "evaluate run --weight_decay -1", "weight_decay", "-1"),
    case("other-images", "evaluate run --data.size 9 9", "run/distilled", "other images", "data"),
    case(
        "other-classes",
        f"evaluate run --data.limit 8 --data.name {FOLDER}",
        "run/distilled",
        "data.name folder",
        prepare=CATS_DOGS,
    ),
    case("limit-above-set", "evaluate run --data.limit 5000", "data.limit 5000", "1438"),
    case("device-not-there", "evaluate run --device cuda:99", "--device 'cuda:99'", "--device cpu"),
    case(
        "out-below-a-file",
        "evaluate run --out note/there",
        "note/there",
        "cannot be written",
        "--out",
        prepare=NOTE,
    ),
    case(
        "out-is-a-file",
        "evaluate run --out note",
        "note",
        "cannot be written",
        "--out",
        prepare=NOTE,
    ),
    case(
        "evaluation-broken",
        "evaluate run",
        "run/evaluation.json",
        "--restart",
        prepare=text("run/evaluation.json", "{"),
    ),
    case(
        "evaluation-incomplete",
        "evaluate run",
        "run/evaluation.json",
        "--restart",
        prepare=text("run/evaluation.json", "{}"),
    ),
]


@pytest.mark.parametrize(("command", "words", "prepare"), EVALUATIONS)
def test_evaluate(command, words, prepare, filled, capsys):
    """Paths that are no distilled set, and flags that do not fit one."""
    if prepare:
        prepare(filled)
    refuse(command, words, filled, capsys)


NEW = f"distill {SAME} --out new --outer.steps 30"
DIVERGING = [
    case(
        "experts",
        f"buffer {SETTINGS} --out new --buffer.step.lr 1e30",
        "expert 0",
        "not finite",
        "lower the learning rate in buffer.step",
    ),
    case(
        "images",
        f"{NEW} --outer.optim.images.lr 1e30",
        "not finite for 10 steps in a row",
        "lower --outer.optim.images.lr",
        "1e+30",
    ),
    case(
        "student",
        f"{NEW} --objective.lr 1e30",
        "not finite for 10 steps in a row",
        "objective.lr",
        "1e+30",
    ),
]


@pytest.mark.parametrize(("command", "words", "prepare"), DIVERGING)
def test_divergence(command, words, prepare, filled, capsys):
    """Numbers that run away while training."""
    refuse(command, words, filled, capsys, untouched=False)
    assert not list(filled.glob("new/expert_*"))
    assert not (filled / "new" / "distilled").exists()


class Terminal(io.TextIOWrapper):
    """Standard output as a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True


TERMINALS = [
    pytest.param(Terminal, "utf-8", "100", id="terminal"),
    pytest.param(Terminal, "utf-8", "40", id="narrow-terminal"),
    pytest.param(io.TextIOWrapper, "ascii", "100", id="ascii"),
    pytest.param(io.TextIOWrapper, "latin-1", "100", id="latin-1"),
]


@pytest.mark.parametrize(("stream", "encoding", "width"), TERMINALS)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(
            "--outer.stepps 3",
            ("error: Unrecognized options: --outer.stepps", "did you mean --outer.steps"),
            id="unknown-flag",
        ),
        pytest.param("--outer.steps abc", ("error: --outer.steps", "got abc"), id="wrong-type"),
        pytest.param(
            "--data.validation 1.5", ("error: data.validation must be", "1.5"), id="out-of-range"
        ),
    ],
)
def test_terminal(stream, encoding, width, flags, words, work, capsys, monkeypatch):
    """The sentence does not depend on where standard output goes."""
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", stream(io.BytesIO(), encoding=encoding))
    refuse(f"distill {RECIPE} {flags}", words, work, capsys)
