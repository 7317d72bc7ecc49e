"""Which experts a run follows, and runs that were begun when experts had the seed of the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from ddengine import contents
from ddengine.api.experts import with_expert_seed
from ddengine.api.inputs import AUTO, default_folder
from ddengine.artefact import runs
from ddengine.experts import ExpertSource
from ddengine.prepare import reads_experts
from ddengine.recipe import Recipe
from ddengine.system import log
from ddengine.system.errors import UserError


class Asked(Protocol):
    """A run that is asked for: a distillation, or a selection; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def recipe(self) -> Recipe:
        """What is to be done."""
        ...

    @property
    def seed(self) -> int:
        """Of the run."""
        ...

    @property
    def origin(self) -> ExpertSource:
        """Where its experts come from."""
        ...

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same."""
        ...


AskedT = TypeVar("AskedT", bound=Asked)


def followed(recipe: Recipe, seed: int, origin: str | None) -> str | None:
    """What the identity of a run says of its experts, whose `origin` is as ExpertSource says it.

    None for experts whose seed is that of the run: all had it once, and such runs stay what they
    were.
    """
    if origin is not None or recipe.buffer is None or not reads_experts(recipe):
        return origin
    return None if recipe.buffer.seed == seed else _of_seed(recipe.buffer.seed)


def _of_seed(seed: int) -> str:
    return f"buffer.seed {seed}"


def place(asked: Asked, folder: Path | str, name: str) -> Path:
    """Where a run lies: `folder`, or for AUTO where the command line keeps runs of that name."""
    return _folder(folder, name, asked.identity())


def begun(asked: AskedT, folder: Path | str, name: str) -> tuple[Path, AskedT]:
    """(where the run lies, the run with the experts that it follows there).

    `folder` and `name` are as of `place`. A run that lies there and was begun when experts had
    the seed of the run goes on with its own. Raises UserError for such a run where other experts
    were handed in.
    """
    wanted = asked.identity()
    path = place(asked, folder, name)
    # --buffer.seed asks for these experts and no others
    if wanted["experts"] != _of_seed(0):
        return path, asked
    before = wanted | {"experts": None}
    old = _folder(folder, name, before)
    if not _is_of_before(old, before):
        return path, asked
    said = f"{old} was begun when experts had the seed of the run, {asked.seed},"
    origin = asked.origin.of_seed(asked.seed)
    if origin is None:
        raise UserError(
            f"{said} and those given have the seed 0; give experts of buffer.seed {asked.seed}, or "
            "name another folder."
        )
    log.say(f"{said} and has such experts (as with --buffer.seed {asked.seed})")
    recipe = with_expert_seed(asked.recipe, asked.seed)
    return old, replace(asked, recipe=recipe, origin=origin)


def _folder(folder: Path | str, name: str, identity: dict[str, Any]) -> Path:
    return default_folder(name, identity) if folder == AUTO else Path(folder)


def _is_of_before(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether a run of that identity lies in the folder, whose recipe says no seed of experts."""
    mark = folder / runs.MARK
    if not mark.is_file():
        return False
    stored = contents.read_json(mark, "recipe")
    buffer = stored["recipe"].get("buffer") or {}
    return "seed" not in buffer and all(stored.get(k) == v for k, v in identity.items())
