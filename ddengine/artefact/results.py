"""An evaluation put into the folder of the set that it is of."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddengine.artefact import folder as folders
from ddengine.artefact import listing
from ddengine.artefact.card import (
    BEGIN,
    CARD,
    END,
    PROTOCOL_BEGIN,
    PROTOCOL_END,
    trained_section,
)
from ddengine.artefact.markdown import at, plain, row
from ddengine.evaluation import cautions, protocol, tables
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.system.log import size
from ddengine.types import Evaluation, Facts, Json, Meta

EVALUATION = "evaluation.json"


def add_results(folder: Path, evaluation: Evaluation) -> None:
    """Put an evaluation into a distilled folder, in place of an earlier one.

    What is said there of accuracies is then about this one: the card gets the accuracies and the
    protocol; meta.json and load.py get the protocol, with the learning rate that was chosen for the
    set; evaluation.json is copied, without the paths of this machine. Each file is old or new,
    never half of one, and the same call again mends what a kill has left. Where the card has lost
    its places for them they go to its end. A folder without a card, written before there were
    cards, is left as it is.

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
        marks = (PROTOCOL_BEGIN, PROTOCOL_END)
        text = _put(text, marks, "How it was trained on", trained_section(trained))
    shipped = dict(evaluation)
    if "command" in shipped:
        shipped["command"] = without_paths(shipped["command"])
    files.write_json(folder / EVALUATION, shipped)
    files.write_text(path, _put(text, (BEGIN, END), "Accuracy", section))
    listing.write(folder, [written for written in (path, folder / "load.py") if written.is_file()])


def is_of_set(evaluation: Evaluation, meta: Meta) -> bool:
    """Whether an evaluation is of the set with this meta.json, as far as both say it."""
    evaluated, stored = evaluation.get("set_digest"), meta.get("set_digest")
    return None in (evaluated, stored) or evaluated == stored


def check_of_set(path: Path, evaluation: Evaluation, meta: Meta) -> None:
    """Raise UserError for the evaluation in a file that is of another set."""
    if not is_of_set(evaluation, meta):
        raise UserError(
            f"{path} is the evaluation of another set; put the one of this set there, or evaluate "
            "again with --restart."
        )


def _add_protocol(folder: Path, evaluation: Evaluation) -> Json | None:
    """Write the protocol of an evaluation into meta.json and load.py, and return it.

    None where folder or evaluation do not say enough for that.
    """
    if not (folder / "meta.json").is_file():
        return None
    syn, meta = folders.load(folder, torch.device("cpu"))
    model = at(meta, "recipe", "model")
    trained = protocol.of_evaluation(evaluation, model, targets=syn.targets, learned=syn.lr)
    if trained is None:
        return None
    files.write_text(folder / "load.py", folders.load_py(syn, trained))
    files.write_json(folder / "meta.json", meta | {"protocol": trained})
    return trained


def _put(text: str, marks: tuple[str, str], heading: str, section: str) -> str:
    """The card with `section`, which has the marks around it, in its place.

    Where there is no such place, the section goes to the end under a heading.
    """
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if begin and end:
        return f"{before}{section}{after}"
    return f"{text.rstrip()}\n\n## {heading}\n\n{section}\n"


def without_paths(command: Sequence[Any]) -> list[str]:
    """The words of a command, without the folders of this machine that paths name.

    A path from the root or from a home keeps its last part only.
    """
    words = []
    for word in map(str, command):
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            words.append(flag + equals + without_folders(value))
        else:
            words.append(without_folders(word))
    return words


def without_folders(path: str) -> str:
    """The last part of a path from the root or from a home; anything else as it is."""
    if not re.match(r"[/\\~]|[A-Za-z]:[/\\]", path):
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


# The table


def _accuracy(of: Facts) -> str:
    accuracy = tables.percent(of["accuracy_mean"])
    if of.get("accuracy_std") is not None:
        accuracy += f" ± {100 * of['accuracy_std']:.1f}"
    return accuracy


def _interval(of: Facts) -> str:
    ends = of.get("ci95")
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else "-"


def _networks(of: Facts) -> str:
    networks = str(of.get("n", "-"))
    if of.get("diverged"):
        networks += f", {of['diverged']} diverged"
    return networks


BALANCED = "balanced accuracy %"
STORED = "stored"
# of the table: the head, and what is said of a row of the evaluation
COLUMNS = {
    "set": lambda of: plain(tables.set_of(of)),
    "network": lambda of: plain(of["model"]),
    "test accuracy %": _accuracy,
    "95 % interval": _interval,
    BALANCED: lambda of: tables.percent(of["balanced_accuracy_mean"]),
    "networks": _networks,
    STORED: lambda of: size(of["bytes"]),
}


def results_table(evaluation: Evaluation) -> str:
    """The rows of evaluation.json as a Markdown table, in percent.

    What the numbers mean is said below it.
    """
    rows = evaluation["rows"]
    balanced = tables.uneven(evaluation)
    balanced = balanced and all("balanced_accuracy_mean" in of for of in rows)
    heads = list(COLUMNS)
    if not balanced:
        heads.remove(BALANCED)
    if not all("bytes" in of for of in rows):
        heads.remove(STORED)
    lines = [row(heads), "|---" * len(heads) + "|"]
    for of in rows:
        lines.append(row([COLUMNS[head](of) for head in heads]))
    lines += ["", *_cautions(evaluation), _measured(evaluation)]
    for said in (*tables.networks_in_words(rows), *tables.economies(evaluation)):
        lines.append(f"{plain(said)}.")
    if any(of["set"] == "distilled_8bit" for of in rows):
        lines.append(
            "`distilled_8bit` is what the 8-bit export gives, `distilled` the exact tensors."
        )
    lines.append(_on_networks(evaluation))
    if balanced:
        lines.append(
            "Balanced accuracy is the mean over the classes, of which the test split holds "
            "unequal numbers of images."
        )
    return "\n".join(lines)


def _on_networks(evaluation: Evaluation) -> str:
    """In which networks the set was measured, and what that says of others."""
    first, *others = dict.fromkeys(row["model"] for row in evaluation["rows"])
    if others:
        return (
            "A set may be worth more than random images in one network and less in another: read "
            "the rows of the one that you train."
        )
    return (
        f"No network but {plain(first)} was measured: in another the set may be worth less than "
        "random images."
    )


def _cautions(evaluation: Evaluation) -> list[str]:
    """A sentence on each network in which the set is worth less than random images."""
    lines = []
    for caution in cautions.below_random(evaluation):
        form, model = caution.form, plain(caution.model)
        lines.append(
            f"**In {model} {form} {caution.verdict}: {caution.words}.** Use another form or "
            "network there, or real images."
        )
    if lines:
        lines.append("")
    return lines


def _measured(evaluation: Evaluation) -> str:
    """On what, how and how often the accuracies were measured."""
    name = at(evaluation, "protocol", "protocol")
    tested = at(evaluation, "num_images", "test")
    text = "Measured"
    if isinstance(tested, int):
        text += f" on {tested} test images"
    text += " by the settings of evaluation.json"
    if name:
        text += f" (protocol {plain(name)})"
    text += ": mean ± standard deviation over that many networks, each trained anew"
    if any(of.get("ci95") for of in evaluation["rows"]):
        text += f"; 95 % intervals of the mean by {tables.interval_of(evaluation)}"
    return f"{text}."
