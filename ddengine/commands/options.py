"""The flags that commands share, as dataclasses; each command adds its own."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from ddengine.recipe import DataConfig, EvalConfig, StudentSteps
from ddengine.system.dist import TIMEOUT
from ddengine.system.runtime import Precision
from ddengine.types import Compile
from synth.recipes.protocols import PROTOCOLS

# the help of --protocol
PROTOCOL = f"the named protocol that these values start from: {' | '.join(PROTOCOLS)}"
RecipeT = TypeVar("RecipeT")
COMPILE: dict[str, Compile] = {
    "auto": "auto",
    "on": True,
    "off": False,
}  # by the value of --compile


@dataclass(frozen=True, kw_only=True)
class Waits:
    """The flag of all commands that write into a folder."""

    wait: bool = False  # wait where another command works in the folder, which is refused otherwise


@dataclass(frozen=True, kw_only=True)
class Machine(Waits):
    """Flags of all commands that compute."""

    seed: int = 0  # decides every random draw but those of experts: buffer.seed
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The flag of commands that several processes share, which torchrun or srun starts."""

    # seconds after which a rank that gives no sign of life is named, and the others end
    dist_timeout: float = TIMEOUT


@dataclass(frozen=True, kw_only=True)
class OfRecipe:
    """Flags of all commands on a recipe; each adds its own, and the recipe."""

    print_config: bool = False  # print the resolved recipe and stop
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # the command line


@dataclass(frozen=True, kw_only=True)
class ForNetworks:
    """The flag of commands that make images for several networks, or experts for these."""

    # networks that the images are made for, and evaluated on: they take turns where the objective
    # draws networks, and are the teachers of a recipe with teachers; none: the recipe's
    networks: Annotated[tuple[str, ...], tyro.conf.arg(name="for")] = ()


@dataclass(frozen=True, kw_only=True)
class Compiles:
    """The flag of commands that distil."""

    # compile inner training and class passes; auto: where the steps pay for it; no value: on
    compile: Literal["auto", "on", "off"] = "off"


@dataclass(frozen=True, kw_only=True)
class Options(OfRecipe, ForNetworks, Ranks, Machine, Compiles, Generic[RecipeT]):
    """Flags of the run, then those of the recipe.

    --take PART=RECIPE takes a part from another recipe, e.g. objective.window=datm/cifar10_ipc10,
    and fills a slot that is shown as {None}.
    """

    out: Path | None = None  # folder to write; None: runs/RECIPE-HASH
    # expert store, or with teachers the folder of their stores; None: experts/FINGERPRINT
    experts: Path | None = None
    restart: bool = False  # begin anew, deleting what the folder holds
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the run's folder
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@dataclass(frozen=True, kw_only=True)
class NamedProtocol(EvalConfig):
    """A protocol whose flag says the names that there are."""

    protocol: Annotated[str, tyro.conf.arg(help=PROTOCOL)]
    # which is what a set says, and nothing that a person sets
    students: Annotated[StudentSteps | None, tyro.conf.Suppress] = None


@dataclass(frozen=True, kw_only=True)
class ProtocolAlone(NamedProtocol):
    """A protocol whose baselines the command decides."""

    baselines: Annotated[tuple[str, ...], tyro.conf.Suppress] = ("full",)


@dataclass(frozen=True, kw_only=True)
class OfEvaluation(Ranks, Machine):
    """Flags of all commands that train networks on a set; each adds its data and its protocol."""

    out: Path | None = None  # folder of what is written; None: the run, or the distilled folder
    restart: bool = False  # evaluate again although evaluation.json is there
    # the store of the set's experts, or with teachers the folder of their stores; None:
    # experts/FINGERPRINT
    experts: Path | None = None
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]


@dataclass(frozen=True, kw_only=True)
class OfScores(OfEvaluation):
    """Flags of a command that decides itself what a set is compared with."""

    evaluation: Annotated[ProtocolAlone, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def as_kind(kind: Any, value: Any) -> Any:
    """The values of a dataclass in another one with the same fields."""
    return kind(**{part.name: getattr(value, part.name) for part in fields(value)})
