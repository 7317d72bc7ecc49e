"""How this program was started, so that sentences and printed commands can be typed as they are."""

import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path

CHECKOUT = "run.py"  # the script of a checkout, which sentences name where nothing else is known


# how a stored command names this program
NAMES = (("python", CHECKOUT), ("python", "-m", "ddengine"), ("ddengine",))


def name() -> str:
    """The program as a sentence calls it: run.py, ddengine or python -m ddengine."""
    path = Path(sys.argv[0])
    started = path.name
    if started == "__main__.py" and path.parent.name == "ddengine":
        return "python -m ddengine"
    if started in ("ddengine", "ddengine.exe"):
        return "ddengine"
    return CHECKOUT


def stored() -> list[str]:
    """The words that name this program in a stored command, on whatever machine it is read."""
    called = name()
    if called == CHECKOUT:
        return ["python", CHECKOUT]
    return called.split()


def words() -> list[str]:
    """The words that start this program from the folder it was started in."""
    program = name()
    if program == "ddengine":
        return [program]
    python = Path(sys.executable)
    here = Path.cwd()
    if python.is_relative_to(here):
        python = python.relative_to(here)
    if program != CHECKOUT:
        return [str(python), "-m", "ddengine"]
    script = sys.argv[0]
    if Path(script).name != CHECKOUT:
        script = CHECKOUT
    return [str(python), script]


def as_typed(*arguments: str) -> str:
    """A command of this program as it can be typed where it was started, quoted for a shell."""
    return shlex.join([*words(), *arguments])


def know_packages_here() -> None:
    """Let packages in the folder that this was started in be imported, last of all places.

    So recipes of a package there are known, however the program was started.
    """
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def version() -> str:
    """The version of the engine: of the installed package, in a checkout that of pyproject.toml."""
    try:
        return metadata.version("ddengine")
    except metadata.PackageNotFoundError:
        settings = Path(__file__).resolve().parents[2] / "pyproject.toml"
        return tomllib.loads(settings.read_text(encoding="utf-8"))["project"]["version"]
