"""An evaluation put into the folder of the set that it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddengine.artefact import folder as folders
from ddengine.artefact.handover import (
    BEGIN,
    CARD,
    END,
    EVALUATION,
    PROTOCOL_BEGIN,
    PROTOCOL_END,
    _at,
    _put,
    results_table,
    trained_section,
    without_paths,
)
from ddengine.evaluation import protocol
from ddengine.system import files
from ddengine.system.errors import UserError


def add_results(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Put an evaluation into a distilled folder, in place of an earlier one: what is said there of
    accuracies is then about this one.

    The card gets the accuracies and the protocol; meta.json and load.py get the protocol, with the
    learning rate that was chosen for the set; evaluation.json is copied, without the paths of this
    machine. Each file is old or new, never half of one, and the same call again mends what a kill
    has left. Where the card has lost its places for them they go to its end. A folder without a
    card, written before there were cards, is left as it is.

    Args:
        folder: a distilled folder.
        evaluation: the content of evaluation.json (accuracies are fractions).

    Raises:
        UserError: an evaluation without rows.
    """
    path = folder / CARD
    if not path.is_file():
        return
    try:
        section = f"{BEGIN}\n{results_table(evaluation)}\n{END}"
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"The evaluation of {folder} lacks what its card says ({error!r}); evaluate again "
            "with --restart."
        ) from None
    text = path.read_bytes().decode(errors="replace")
    trained = _add_protocol(folder, evaluation)
    if trained is not None:
        text = _put(
            text,
            PROTOCOL_BEGIN,
            PROTOCOL_END,
            "How it was trained on",
            "\n".join(trained_section(trained)),
        )
    copied = dict(evaluation) | (
        {"command": without_paths(evaluation["command"])} if "command" in evaluation else {}
    )
    files.write_json(folder / EVALUATION, copied)
    files.write_text(path, _put(text, BEGIN, END, "Accuracy", section))


def _add_protocol(folder: Path, evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write the protocol of an evaluation into meta.json and load.py, and return it; None where
    folder or evaluation do not say enough for that.
    """
    if not (folder / "meta.json").is_file():
        return None
    syn, meta = folders.load(folder, torch.device("cpu"))
    model = _at(meta, "recipe", "model")
    trained = protocol.of_evaluation(
        evaluation, model, soft=syn.targets.soft, learned=syn.lr
    )
    if trained is None:
        return None
    files.write_text(folder / "load.py", folders.load_py(syn, trained))
    files.write_json(folder / "meta.json", meta | {"protocol": trained})
    return trained
