"""What arguments of the public functions cannot be, told in a sentence."""

from pathlib import Path
from typing import Any, get_args

import torch

from ddengine.artefact import runs
from ddengine.recipe import Recipe
from ddengine.system import log, runtime
from ddengine.system.errors import UserError, unknown
from ddengine.system.runtime import Precision

LARGEST_SEED = 2**63  # JSON files hold whole numbers of 64 bits


def check_recipe(recipe: Any) -> None:
    """Raise UserError for what is no recipe."""
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"The recipe is a {type(recipe).__name__}; give a Recipe, such as "
            f"synth.find({str(recipe)[:40]!r}) returns."
        )


def say_slow_precision(precision: Precision, device: torch.device) -> None:
    """Say where a precision that is meant to save time takes longer than fp32."""
    ratio = runtime.slower_in(precision, device)
    if ratio is not None:
        log.say(
            f"warning: --precision {precision} takes {ratio:.1f} times as long as fp32 on this "
            "processor; use fp32"
        )


def check_run(seed: Any, precision: Any) -> None:
    """Raise UserError for what is no seed or no precision."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"seed is {seed!r}; give a whole number.")
    if abs(seed) >= LARGEST_SEED:
        raise UserError(f"seed is {seed}, and seeds have 63 bits at most; give a smaller one.")
    if precision not in get_args(Precision):
        raise unknown("precision", str(precision), get_args(Precision))


def check_compile(compile: Any) -> None:
    """Raise UserError for what is no choice whether a run is compiled."""
    if not isinstance(compile, bool) and compile != "auto":  # 1 equals True and is not it
        raise UserError(f"compile is {compile!r}; give True, False or 'auto'.")


def check_folder(folder: Any) -> None:
    """Raise UserError for a file, and for what is no path."""
    if folder is None:
        return
    if not isinstance(folder, str | Path):
        raise UserError(f"folder is {folder!r}; give the path of a folder, or None.")
    runs.check_folder(Path(folder))


def check_experts(experts: Any) -> None:
    """Raise UserError for a path or a number in place of experts."""
    if isinstance(experts, str | Path | int | float):
        raise UserError(
            f"experts is {experts!r}; give what buffers.generate(data, recipe) returned, or "
            "buffers.stores(recipe) for those that lie in a folder."
        )
