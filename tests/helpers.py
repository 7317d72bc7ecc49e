"""Small complete set-ups for tests."""

import ast
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from buffers.experts import generate
from buffers.filling import Making
from buffers.steps import Sgd
from buffers.store import ExpertStore
from ddengine import commands
from ddengine.data import Data, load_data
from ddengine.learning.flat import FlatModel
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.sets.codec import Identity
from ddengine.sets.coreset import random_index
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.system.rng import generator

CPU = torch.device("cpu")
MODEL = "convnet-d1-w4-in"
DIGITS = DataConfig(name="digits", limit=200)

# The digits recipe at its smallest: seconds on one core.
TINY = [
    "--data.limit", "200", "--model", MODEL, "--buffer.num_experts", "2", "--buffer.epochs", "3",
    "--objective.window.high", "2", "--objective.expert_epochs", "1", "--objective.inner_steps", "3",
    "--outer.steps", "8", "--outer.checkpoint_every", "2", "--outer.evaluate_every", "0",
]  # fmt: skip

# DATM with AST's experts and intermediate losses at its smallest: soft labels, learned, on experts
# that are hardly trained.
TINY_CROSS = [
    "datm/cifar10_ipc10", "--take", "buffer=ast/cifar10_ipc10", "--take", "objective.milestones=ast/cifar10_ipc10",
    "--data.name", "digits", "--data.limit", "200", "--data.zca", "False", "--data.validation", "0.1", "--model", MODEL,
    "--buffer.num_experts", "2", "--buffer.epochs", "3", "--buffer.batch", "64", "--objective.inner_steps", "4", "--objective.batch", "8",
    "--objective.window.first", "1", "--objective.window.high", "2", "--outer.steps", "3", "--targets.experts", "all", "--init.kind", "real",
    "--outer.optim.images.lr", "1", "--outer.optim.logits.lr", "1",
]  # fmt: skip


def run(*args: str) -> int:
    """The exit code of a command line, run in this process."""
    return commands.main(list(args))


def rewrite_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Put other tensors into a file of a set or store, as the program that wrote it would have:
    digests fit, in the file and in meta.json or manifest.json beside it.
    """
    digest = files.write_tensors(path, tensors, metadata)
    for beside in (path.with_name("meta.json"), path.with_name("manifest.json")):
        if beside.is_file():
            content = files.read_json(beside)
            if path.name in content.get("digests", {}):
                content["digests"][path.name] = digest
                files.write_json(beside, content)


def tiny_data() -> Data:
    """200 digits."""
    return load_data(DIGITS, CPU)


def tiny_store(
    folder: Path,
    data: Data,
    *,
    epochs: int = 3,
    num_experts: int = 2,
    model: str = MODEL,
    step: Any = Sgd(lr=0.05),
    batch: int = 64,
    keep: Any = "all",
) -> ExpertStore:
    """A store of a few short experts; at a rate of 0.3 and batches of 16 they get most digits
    right.
    """
    config = BufferConfig(step=step, num_experts=num_experts, epochs=epochs, batch=batch, keep=keep)
    build = new_model(data, model)
    generate(data, DIGITS, config, model, build, folder)
    return ExpertStore(folder, build, num_experts)


def new_model(data: Data, model: str = MODEL):
    """The builder of a network for these data."""
    return lambda rng: build_model(model, data.image_shape, data.num_classes, rng)


def tiny_env(data: Data, store: ExpertStore | None, model: str = MODEL) -> Env:
    """What an objective is built from."""
    build = new_model(data, model)
    return Env(data.train, build, FlatModel(build(generator(0))), store, CPU)


def tiny_making(data: Data, config: BufferConfig, model: str, folder: Path) -> Making:
    """A store of these digits that is to be filled."""
    return Making(
        data=data,
        data_config=DIGITS,
        config=config,
        model=model,
        new_model=new_model(data, model),
        folder=folder,
        is_named=True,
    )


def tiny_set(data: Data, ipc: int = 2, **scalars: float) -> SyntheticSet:
    """Random real images as a set to be distilled."""
    images = data.train.images(
        random_index(data.train, ipc, data.class_names, generator(0, "init"))
    )
    classes = torch.arange(data.num_classes).repeat_interleave(ipc)
    tensors = {"images": images} | {k: torch.tensor(v) for k, v in scalars.items()}
    return SyntheticSet(tensors, classes, data.class_names, Identity(), data.train.preprocess)


def shipped_loader(folder: Path) -> Any:
    """The load.py of a distilled set as a module; it imports nothing of this program."""
    source = (folder / "load.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not {name.split(".")[0] for name in names} & {"ddengine", "buffers", "synth", "run"}
    spec = importlib.util.spec_from_file_location("shipped_loader", folder / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_move(
    start: dict[str, Tensor],
    reached: dict[str, Tensor],
    wanted: dict[str, Tensor],
    tolerance: float,
) -> None:
    """From `start` the tensors moved to `reached` as to `wanted`, up to a part of the size of the
    whole move.

    Not tensor by tensor: one whose true gradient is zero, such as a bias before a normalisation,
    moves by rounding alone, and that differs between processors.
    """
    assert start.keys() == reached.keys() == wanted.keys()
    apart = {k: float((reached[k].double() - wanted[k].double()).norm()) for k in start}
    moved = {k: float((wanted[k].double() - start[k].double()).norm()) for k in start}
    error, move = (math.hypot(*sizes.values()) for sizes in (apart, moved))
    assert move > 0, "nothing moved"
    worst = max(apart, key=lambda name: apart[name])
    assert error <= tolerance * move, (
        f"{error / move:.3g} of the move apart, allowed {tolerance:g}; most in {worst}"
    )


class Pull:
    """An objective whose loss is known: half the squared distance of the images to a target, moved
    a little by each draw.
    """

    def __init__(self, target: float = 0.0, noise: float = 0.0, num_losses: int = 1):
        """`num_losses` parts that sum to the whole."""
        self.target, self.noise, self.num_losses = target, noise, num_losses

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """A counter that is checkpointed."""
        return {"calls": torch.zeros(())}

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """One loss a part."""
        state["calls"] += 1
        shift = self.noise * torch.randn(syn.tensors["images"].shape, generator=rng)
        for part in (syn.tensors["images"] - self.target - shift).chunk(self.num_losses):
            yield 0.5 * part.square().sum()
