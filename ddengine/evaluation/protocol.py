"""How networks are trained on a set, as plain facts that go with it: into meta.json, the dataset
card, and `load()` of the shipped folder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ddengine.evaluation.rates import adapted, candidates
from ddengine.learning import training
from ddengine.recipe import AugmentConfig, EvalConfig, from_dict, to_dict
from ddengine.system.errors import UserError

# What each operation of the augmentation reads of its settings.
SETTINGS = {
    "color": ("brightness", "saturation", "contrast"),
    "crop": ("crop",),
    "cutout": ("cutout",),
    "flip": ("flip",),
    "scale": ("scale",),
    "rotate": ("rotate",),
    "roll": ("roll",),
    "resized_crop": ("area", "ratio"),
    "shuffle": ("patches",),
}
LOSSES = {
    "ce": "cross_entropy",
    "kl": "kl_divergence",
    "mse": "squared_error_of_logits",
    "nkd": "nkd",
    "uskd": "uskd",
}
LABELS = {"own": "stored", "hard": "classes", "dynamic": "teachers"}
LEARNED, USUAL, CHOSEN = (
    "learned with the set",
    "the usual one of the protocol",
    "the best on the validation split",
)


def facts(
    config: EvalConfig,
    model: str,
    num: int,
    *,
    soft: bool,
    learned: float | None = None,
    lr: float | None = None,
) -> dict[str, Any]:
    """A protocol as JSON data whose names say what the values are, for a network of the name
    `model` on `num` training examples.

    `soft`: the set has soft labels. `learned`: its learned learning rate. `lr`: the rate with which
    the set was evaluated, so that it is known; None: not evaluated yet, and the rate is the learned
    one, or the protocol's usual one.
    """
    of_network = adapted(config, model)
    own = learned if of_network.optimiser == "sgd" else None
    labels = LABELS[config.labels] if soft or config.labels == "dynamic" else "classes"
    labels = "classes" if config.loss == "uskd" else labels
    loss = "ce" if labels == "classes" and config.loss != "uskd" else config.loss
    searched = lr is not None and config.rate == "validation"
    if lr is None:
        lr, chosen_by = (own, LEARNED) if own else (of_network.lr, USUAL)
    else:
        chosen_by = CHOSEN if searched else LEARNED if lr == own else USUAL
    return {
        "name": config.protocol,
        "network": model,
        "examples": num,
        # stored: the soft labels of the set; teachers: they say a label at each update
        "labels": labels,
        "loss": LOSSES[loss],
        **({"temperature": config.temperature} if loss in ("kl", "nkd") else {}),
        **({"times_temperature_squared": config.squared} if loss == "kl" else {}),
        **({"class_loss_weight": config.hard_weight} if loss in ("kl", "mse") else {}),
        "optimiser": of_network.optimiser,
        "lr": lr,
        "lr_chosen_by": chosen_by,
        **({"lr_tried": candidates(of_network, own)} if searched else {}),
        **(
            {"momentum": of_network.momentum}
            if of_network.optimiser == "sgd"
            else {"betas": [0.9, 0.999]}
        ),
        "weight_decay": of_network.weight_decay,
        "weight_decay_on_biases_and_norms": of_network.decay_norms,
        "epochs": training.num_updates(num, of_network) // -(-num // config.batch),
        "images_per_update": config.batch,
        "updates": training.num_updates(num, of_network),
        **_schedule(of_network, num),
        "augment": _augment(config.augment),
        "cutmix_probability": config.cutmix,
        "mixup_beta": config.mixup,
        **(
            {"mixed_labels": config.mix_labels}
            if loss == "kl" and (config.cutmix or config.mixup)
            else {}
        ),
    }


def _schedule(config: EvalConfig, num: int) -> dict[str, Any]:
    """The learning rate over the epochs, which are counted from 0."""
    if config.schedule == "cosine":
        return {"schedule": "cosine", "cosine_stretch": config.stretch}
    last = training.num_updates(num, config) // -(-num // config.batch)
    # where two fall on one epoch, the later one
    points = {point.epoch: point for point in training.schedule(config, 1.0)}
    drops = [
        {
            "epoch": point.epoch,
            "lr_factor": point.lr,
            "momentum": point.momentum if config.optimiser == "sgd" else None,
            "optimiser_restarts": point.fresh,
        }
        for point in points.values()
        if 0 < point.epoch < last
    ]
    return {"schedule": "drops", "drops": drops}


def _augment(config: AugmentConfig) -> dict[str, Any]:
    """One of these operations for each update, those that are always applied, and the settings of
    both.
    """
    names = dict.fromkeys(name for op in (*config.ops, *config.always) for name in SETTINGS[op])
    return {
        "one_of": list(config.ops),
        "always": list(config.always),
        **{name: to_dict(getattr(config, name)) for name in names},
    }


def of_set(
    meta: Mapping[str, Any], num: int, *, soft: bool, learned: float | None
) -> dict[str, Any] | None:
    """The protocol that the recipe in a meta.json names, before any evaluation; None where there is
    none that is known.
    """
    recipe = meta.get("recipe")
    if (
        not isinstance(recipe, Mapping)
        or not isinstance(recipe.get("evaluation"), Mapping)
        or not isinstance(recipe.get("model"), str)
    ):
        return None
    try:
        return facts(
            from_dict(EvalConfig, recipe["evaluation"]),
            recipe["model"],
            num,
            soft=soft,
            learned=learned,
        )
    except UserError:  # written by another version of the engine
        return None


def of_evaluation(
    evaluation: Mapping[str, Any], model: str | None, *, soft: bool, learned: float | None
) -> dict[str, Any] | None:
    """The protocol by which the set was evaluated, with the rate of the set's row, the first, on
    `model` or else its first network.

    None for an evaluation that does not say it.
    """
    rows, config = evaluation.get("rows"), evaluation.get("protocol")
    if (
        not isinstance(rows, Sequence)
        or not rows
        or not isinstance(config, Mapping)
        or not {"lr", "images", "model"} <= rows[0].keys()
    ):
        return None
    row = next(
        (row for row in rows if row["set"] == rows[0]["set"] and row["model"] == model), rows[0]
    )
    try:
        config = from_dict(EvalConfig, config)
    except UserError:
        return None
    found = facts(
        config,
        row["model"],
        row["images"],
        soft=soft,
        learned=learned if row["model"] == model else None,
        lr=row["lr"],
    )
    if found["lr_chosen_by"] == CHOSEN and not (evaluation.get("num_images") or {}).get(
        "validation"
    ):
        found["lr_chosen_by"] = LEARNED if row["lr"] == learned else USUAL
        del found["lr_tried"]
    return found


def words(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a protocol says, for people."""
    augment = protocol["augment"]
    changed = (
        [f"one of {', '.join(augment['one_of'])} for each update"] if augment["one_of"] else []
    )
    changed += [f"always {', '.join(augment['always'])}"] if augment["always"] else []
    if protocol["cutmix_probability"]:
        changed.append(f"CutMix of {100 * protocol['cutmix_probability']:g} % of the batches")
    if protocol["mixup_beta"]:
        changed.append(f"mixup with Beta({protocol['mixup_beta']:g}, {protocol['mixup_beta']:g})")
    rate = [f"{protocol['lr']:.6g}, {protocol['lr_chosen_by']}"]
    rate += [
        f"times {drop['lr_factor']:.4g} from epoch {drop['epoch'] + 1} on"
        for drop in protocol.get("drops", ())
    ]
    rate += ["cosine over all epochs"] if protocol["schedule"] == "cosine" else []
    of_optimiser = (
        f"momentum {protocol['momentum']:g}"
        if "momentum" in protocol
        else f"betas {protocol['betas'][0]} and {protocol['betas'][1]}"
    )
    spared = (
        ""
        if protocol["weight_decay_on_biases_and_norms"]
        else " but on biases and normalisation layers"
    )
    at = f" at temperature {protocol['temperature']:g}" if "temperature" in protocol else ""
    labels = {
        "stored": "the soft labels of the set",
        "classes": "classes",
        "teachers": "what teachers say of each batch",
    }[protocol["labels"]]
    return [
        ("protocol", protocol["name"]),
        ("network", protocol["network"]),
        (
            "optimiser",
            (
                f"{protocol['optimiser'].upper()}, {of_optimiser}, weight decay "
                f"{protocol['weight_decay']:g}{spared}"
            ),
        ),
        ("learning rate", "; ".join(rate)),
        (
            "training",
            (
                f"{protocol['epochs']} epochs, {protocol['updates']} updates of at most "
                f"{protocol['images_per_update']} images"
            ),
        ),
        ("augmentation", "; ".join(changed) or "none"),
        ("loss", f"{protocol['loss'].replace('_', ' ')}{at}, with {labels}"),
    ]
