"""The `load.py` of a shipped set, written of what that set needs: reading it, and training on it as
it was evaluated, in plain torch.
"""

import ast
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import Any

from ddengine.artefact import plain

TEMPLATE = '''"""The distilled set as ready-to-train tensors. Needs torch and safetensors, nothing else.

    from load import load{and_train}
    images, targets, info = load()     # images as a network should see them, targets as the loss should
{usage}
info["lr"] is the learned learning rate (None without one), info["classes"] names the classes.
info["preprocess"](pixels) brings real images with values in [0, 1], shape (B, C, H, W), into the
same form: use it on the test images.{facts}
"""

{imports}
from pathlib import Path

import torch
from safetensors{safe_open}.torch import load_file

FOLDER = Path(__file__).resolve().parent


{decode}

{preprocess}

{functions}def load(folder=FOLDER):
    """(images, targets, info) of the set in a folder."""
    tensors = load_file(str(Path(folder) / "data.safetensors"))
    meta = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
    images, item = decode(tensors)
{load}
    info = {{
        "lr": tensors["lr"].item() if "lr" in tensors else None,
        "classes": meta["class_names"],
        "preprocess": lambda pixels: preprocess(pixels, tensors),
{info}
    }}
    return images, targets, info


{train}if __name__ == "__main__":
    images, targets, info = load()
    print(tuple(images.shape), images.dtype, "images of", len(info["classes"]), "classes, learned lr", info["lr"])
'''

NORMALISE = '''def preprocess(pixels, tensors):
    """Pixels as networks see them."""
    return (pixels - tensors["preprocess.mean"].view(-1, 1, 1)) / tensors["preprocess.std"].view(-1, 1, 1)
'''
WHITEN = '''def preprocess(pixels, tensors):
    """Pixels as networks see them: ZCA whitening."""
    flat = (pixels.flatten(1) - tensors["preprocess.mean"]) @ tensors["preprocess.matrix"]
    return flat.view_as(pixels)
'''

LOGITS = '''def all_logits(tensors, num_classes):
    """Soft labels (N, K)."""
    if "logits.index" not in tensors:
        return tensors["logits"].float()
    # the largest, and the mean of the others
    top, rest = tensors["logits"].float().split([tensors["logits.index"].shape[1], 1], 1)
    return rest.expand(-1, num_classes).scatter(1, tensors["logits.index"].long(), top)


'''
SOFT = """    path = Path(folder) / "labels.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it holds the soft labels of this set and belongs beside data.safetensors")
    with safe_open(str(path), "pt") as file:
        if (file.metadata() or {}).get("digest") != meta["labels_digest"]:
            raise ValueError(f"{path} holds the labels of another set; put the file there that was written with this one")
    logits = all_logits(tensors | load_file(str(path)), len(meta["class_names"]))%s
    targets = logits.softmax(1)  # probabilities, which torch's cross_entropy takes in place of classes"""

USAGE = """    network = ...                      # any torch.nn.Module that takes such images
    train(network)                     # as info["protocol"] says
"""
FACTS = """
info["protocol"] says how networks were trained on the set when it was evaluated, and
info["augment"](images, generator=None) changes a batch as it was changed then."""

LOSSES = {"kl_divergence": plain.kl_divergence, "squared_error_of_logits": plain.squared_error}
OPTIMISERS = {"sgd": (plain.sgd, plain.sgd_sparing), "adamw": (plain.adamw, plain.adamw_sparing)}
SCHEDULES = {"drops": plain.drop_rate, "cosine": plain.cosine_rate}


def trainable(protocol: Mapping[str, Any]) -> bool:
    """Whether `load.py` can train as the protocol says: the labels are in the folder, and the loss
    is one of those above or cross-entropy.
    """
    return protocol["labels"] != "teachers" and protocol["loss"] in ("cross_entropy", *LOSSES)


def source(
    *,
    decode: str,
    pixels: bool,
    whitened: bool,
    soft: bool,
    per_item: bool,
    protocol: Mapping[str, Any] | None,
) -> str:
    """The text of `load.py`.

    Args:
        decode: source of `decode(tensors)`, from the codec.
        pixels: the stored values are pixels, which are preprocessed after decoding.
        whitened: preprocessing is ZCA whitening, not mean and standard deviation.
        soft: the set has soft labels.
        per_item: soft labels belong to stored items, not to what is decoded of them.
        protocol: what `protocol.facts` returns; None: the set does not say how networks are trained
            on it, so `load.py` cannot.
    """
    load = ["    images = preprocess(images, tensors)"] if pixels else []
    load += [
        SOFT % ("[item]" if per_item else "") if soft else '    targets = tensors["classes"][item]'
    ]
    info = ['"protocol": meta.get("protocol"),']
    functions = [LOGITS] if soft else []
    train = ""
    if protocol is not None:
        operations = list(
            dict.fromkeys((*protocol["augment"]["one_of"], *protocol["augment"]["always"]))
        )
        augment = "images"
        if operations:
            load.append('    settings = meta["protocol"]["augment"]')
            augment = "apply(images, settings, sample(len(images), settings, generator))"
        info.append(f'"augment": lambda images, generator=None: {augment},')
        classes = 'tensors["classes"][item]'
        info += ['"logits": logits,', f'"image_classes": {classes},'] if soft else []
        info.append(
            f'"labels": {classes if soft and protocol["labels"] == "classes" else "targets"},  # for train'
        )
        texts = _texts(operations, _training(protocol))
        train = texts.pop("train") + "\n\n"
        functions += [f"{text}\n\n" for text in texts.values()]
        functions += (
            [f"OPERATIONS = {{op.__name__: op for op in [{', '.join(operations)}]}}\n\n\n"]
            if operations
            else []
        )
    can_train = protocol is not None and trainable(protocol)
    body = "".join(functions)
    return TEMPLATE.format(
        and_train=", train" if can_train else "",
        usage=USAGE if can_train else "",
        facts="" if protocol is None else FACTS,
        imports="\n".join(
            f"import {name}"
            for name in ("itertools", "json", "math")
            if name == "json" or f"{name}." in body
        ),
        safe_open=" import safe_open\nfrom safetensors" if soft else "",
        decode=decode,
        preprocess=WHITEN if whitened else NORMALISE,
        functions=body,
        load="\n".join(load),
        info="\n".join(f"        {line}" for line in info),
        train=train,
    )


def _training(protocol: Mapping[str, Any]) -> dict[str, FunctionType]:
    """The functions for training as the protocol says, by the names under which they call each
    other.
    """
    if not trainable(protocol):
        return {"train": plain.refuse}
    mixed = (
        plain.cutmix
        if protocol["cutmix_probability"]
        else plain.mixup
        if protocol["mixup_beta"]
        else plain.unmixed
    )
    chosen = {
        "mixed_by": mixed,
        "batch_loss": plain.cross_entropy_of_batch
        if mixed is plain.unmixed
        else plain.cross_entropy_of_mixed_batch,
        "optimiser_of": OPTIMISERS[protocol["optimiser"]][
            not protocol["weight_decay_on_biases_and_norms"]
        ],
        "set_rate": SCHEDULES[protocol["schedule"]],
        "train": plain.train,
    }
    if protocol["loss"] in LOSSES:
        chosen |= {"batch_loss": plain.soft_loss_of_batch, "soft_loss": LOSSES[protocol["loss"]]}
        chosen |= {
            "mixed_logits": plain.blended_probabilities
            if protocol.get("mixed_labels") == "probabilities"
            else plain.blended_logits
        }
    return chosen


@cache
def _functions() -> dict[str, FunctionType]:
    """All functions of plain.py by name, in their order."""
    return {
        name: value
        for name, value in vars(plain).items()
        if isinstance(value, FunctionType) and value.__module__ == plain.__name__
    }


def _texts(operations: Sequence[str], roles: Mapping[str, FunctionType]) -> dict[str, str]:
    """Sources by name, in the order of plain.py: of operations and what applies them, of roles, and
    of what all these call.

    `roles` are functions by the names under which others call them; a role that nothing calls is
    left out.
    """
    todo = [*operations, *(("sample", "apply") if operations else ()), "train"]
    needed = dict[str, str]()  # the name in plain.py -> that in the written file
    while todo:
        name = todo.pop()
        function = roles.get(name) or _functions().get(name)
        if function is not None and function.__name__ not in needed:
            needed[function.__name__] = name
            todo += _called(inspect.getsource(function))
    return {
        needed[own]: inspect.getsource(function).replace(f"def {own}(", f"def {needed[own]}(", 1)
        for own, function in _functions().items()
        if own in needed
    }


def _called(text: str) -> list[str]:
    """Names that a source uses, each once."""
    return sorted({node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)})
