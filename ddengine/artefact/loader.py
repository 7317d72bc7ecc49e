"""The `load.py` of a shipped set, written of what that set needs.

It reads the set, and trains on it as it was evaluated, in plain torch. Its functions are those of
plain.py and of the set's codec, copied. Of functions that stand for the same thing one is copied,
under the name by which the others call it.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from ddengine.artefact import plain
from ddengine.evaluation.protocol import OF_FEATURES
from ddengine.sets.codec import packed
from ddengine.types import Facts

TEMPLATE = '''"""The distilled set as ready-to-train tensors. Needs torch and safetensors only.

    from load import load{and_train}
    images, targets, info = load()     # as a network, and as the loss should see them
{usage}
info["lr"] is the learned learning rate (None without one), info["classes"] names the classes.
info["preprocess"](pixels) brings real images with values in [0, 1], shape (B, C, H, W), into the
same form: use it on the test images.{facts}
"""

{imports}

FOLDER = Path(__file__).resolve().parent
CODEC = {codec}  # settings of decode


{functions}
if __name__ == "__main__":
    images, targets, info = load()
    print(tuple(images.shape), images.dtype, "images of", len(info["classes"]), "classes")
    print("learned learning rate", info["lr"])
'''

USAGE = """    network = ...                      # any torch.nn.Module that takes such images
    train(network)                     # as info["protocol"] says
"""
# what is to be known of targets that are no classes
NOTES = {
    "features": """
Targets are features, which say no classes: fit a network with as many outputs as a target has
numbers to them by squared error, replace its last layer, and fit that to labelled images of your
own, alone (a linear probe) or with the whole network (fine-tuning).
"""
}
FACTS = """
info["protocol"] says how networks were trained on the set when it was evaluated, and
info["augment"](images, generator=None) changes a batch as it was changed then."""

TARGETS = {
    "class": plain.class_targets,
    "logits": plain.logit_targets,
    "weights": plain.weight_targets,
    "features": plain.feature_targets,
}
LOSSES = {"kl_divergence": plain.kl_divergence, "squared_error_of_logits": plain.squared_error}
# with weight decay on everything, and without on biases and normalisation layers
OPTIMISERS = {"sgd": (plain.sgd, plain.sgd_sparing), "adamw": (plain.adamw, plain.adamw_sparing)}
SCHEDULES = {"drops": plain.drop_rate, "cosine": plain.cosine_rate}
STANDARD = ("hashlib", "itertools", "json", "lzma", "math")  # modules that functions may use

Roles = dict[str, Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What decides which functions a `load.py` needs."""

    decode: Callable[..., Any]  # what `Codec.loader` returns
    codec: Facts  # settings of the codec
    pixels: bool  # the stored values are pixels, which are preprocessed after decoding
    whitened: bool  # preprocessing is ZCA whitening, not mean and standard deviation
    kind: str  # of the targets: class, logits, weights or features
    # what `protocol.facts` returns; None: the set does not say how networks are trained on it, so
    # `load.py` cannot
    protocol: Facts | None


def trainable(protocol: Facts) -> bool:
    """Whether `load.py` can train as the protocol says.

    It can where the labels are in the folder, the optimiser is not Muon, and the loss is one of
    those above, cross-entropy with classes or with weights, or that of features.
    """
    if protocol["optimiser"] == "muon":
        return False
    return protocol["labels"] != "teachers" and protocol["loss"] in (
        "cross_entropy",
        "weighted_cross_entropy",
        OF_FEATURES,
        *LOSSES,
    )


def source(shipped: Shipped) -> str:
    """The text of `load.py`."""
    protocol, operations = shipped.protocol, list[str]()
    roles = _reading(shipped)
    first = ["load"]
    if protocol is not None:
        augment = protocol["augment"]
        operations = list(dict.fromkeys((*augment["one_of"], *augment["always"])))
        roles |= _training(protocol)
        if operations:
            roles["augmented"] = plain.augmented_by_drawing
        first += [*operations, "train"]
    texts = list(_texts(first, roles).values())
    if operations:
        texts.append(f"OPERATIONS = {{op.__name__: op for op in [{', '.join(operations)}]}}\n")
    functions = "\n\n".join(texts)
    can_train = protocol is not None and trainable(protocol)
    return TEMPLATE.format(
        and_train=", train" if can_train else "",
        usage=(USAGE if can_train else "") + NOTES.get(shipped.kind, ""),
        facts="" if protocol is None else FACTS,
        imports=_imports(functions),
        codec=repr(dict(shipped.codec)),
        functions=functions,
    )


def _reading(shipped: Shipped) -> Roles:
    """The functions for reading the set, by the names under which others call them."""
    return {
        "decode": shipped.decode,
        "as_seen": plain.preprocess_pixels if shipped.pixels else plain.unchanged,
        "preprocess": plain.whitened if shipped.whitened else plain.normalised,
        "targets_of": TARGETS[shipped.kind],
        "augmented": plain.augmented_by_nothing,
    }


def _training(protocol: Facts) -> Roles:
    """The functions for training as the protocol says, by the names under which they are called."""
    if not trainable(protocol):
        return {"train": plain.refuse}
    roles: Roles = {
        "mixed_by": plain.unmixed,
        "batch_loss": plain.cross_entropy_of_batch,
        **_stepping(protocol),
    }
    if protocol["cutmix_probability"] or protocol["mixup_beta"]:
        roles["mixed_by"] = plain.cutmix if protocol["cutmix_probability"] else plain.mixup
        roles["batch_loss"] = plain.cross_entropy_of_mixed_batch
    if protocol["loss"] == OF_FEATURES:
        roles["batch_loss"] = plain.feature_loss_of_batch
    if protocol["loss"] in LOSSES:
        roles["batch_loss"] = plain.soft_loss_of_batch
        roles["soft_loss"] = LOSSES[protocol["loss"]]
        roles["mixed_logits"] = plain.blended_logits
        if protocol.get("mixed_labels") == "probabilities":
            roles["mixed_logits"] = plain.blended_probabilities
    return roles


def _stepping(protocol: Facts) -> Roles:
    """The functions that make updates."""
    if protocol["schedule"] == "students":
        return {"train": plain.train_as_students, "optimiser_of": plain.optimiser_of_torch}
    sparing = not protocol["weight_decay_on_biases_and_norms"]
    return {
        "optimiser_of": OPTIMISERS[protocol["optimiser"]][sparing],
        "set_rate": SCHEDULES[protocol["schedule"]],
    }


def _imports(functions: str) -> str:
    """The import statements that the functions need."""
    lines = [f"import {name}" for name in STANDARD if f"{name}." in functions]
    lines += ["from pathlib import Path", "", "import torch"]
    if "safe_open(" in functions:
        lines.append("from safetensors import safe_open")
    return "\n".join([*lines, "from safetensors.torch import load_file"])


@cache
def _functions(module: str) -> dict[str, FunctionType]:
    """All functions of a module by name, in their order, and those that codecs share."""
    functions = dict[str, FunctionType]()
    for name, value in vars(sys.modules[module]).items():
        if isinstance(value, FunctionType) and value.__module__ in (module, packed.__name__):
            functions[name] = value
    return functions


def _texts(first: Sequence[str], roles: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """Sources by name, in the order of their files.

    They are those of the names in `first`, and of what all these call. `roles` are functions by the
    names under which others call them; a role that nothing calls is left out.
    """
    todo = [(name, plain.__name__) for name in first]  # (name, module of who calls it)
    needed = dict[Callable[..., Any], str]()  # function -> its name in the written file
    while todo:
        name, caller = todo.pop()
        function = roles.get(name) or _functions(caller).get(name)
        if function is None or function in needed:
            continue
        needed[function] = name
        todo += [(called, function.__module__) for called in _called(function)]
    texts = dict[str, str]()
    for function in sorted(needed, key=_place):
        name = function.__name__
        text, _ = _source(function)
        texts[needed[function]] = text.replace(f"def {name}(", f"def {needed[function]}(", 1)
    return texts


def _place(function: Callable[..., Any]) -> tuple[bool, int]:
    """Functions of codecs come before those of plain.py, and each where it stands in its file."""
    return function.__module__ == plain.__name__, _source(function)[1]


@cache
def _source(function: Callable[..., Any]) -> tuple[str, int]:
    """The source of a function, and the line of its file where it begins."""
    lines, first = inspect.getsourcelines(function)
    return "".join(lines), first


@cache
def _called(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names that a function uses, each once."""
    nodes = ast.walk(ast.parse(_source(function)[0]))
    return tuple(sorted({node.id for node in nodes if isinstance(node, ast.Name)}))
