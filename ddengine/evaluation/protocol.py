"""How networks are trained on a set, as plain facts that go with it.

They go into meta.json, the dataset card, and `load()` of the shipped folder.
"""

from collections.abc import Mapping, Sequence

from ddengine.evaluation.rates import adapted, candidates
from ddengine.learning import muon, torch_steps, training
from ddengine.recipe import AugmentConfig, EvalConfig, StudentSteps, StudentTraining, as_students
from ddengine.sets.targets import Classes, Targets
from ddengine.system.configs import from_dict, to_dict
from ddengine.system.errors import UserError
from ddengine.types import Evaluation, Facts, Json, Meta, Row

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
    "weighted": "weighted_cross_entropy",
}
OF_FEATURES = "squared_error_of_features"  # the loss of networks that are fitted to these
LABELS = {"own": "stored", "hard": "classes", "dynamic": "teachers"}
# how the learning rate was chosen
LEARNED = "learned with the set"
USUAL = "the usual one of the protocol"
CHOSEN = "the best on the validation split"


def cites(config: EvalConfig) -> tuple[str, ...]:
    """Works to cite for how batches are mixed and what is minimised."""
    used = {
        "yun2019cutmix": config.cutmix > 0,
        "zhang2018mixup": config.mixup > 0,
        "yang2023nkd": config.loss in ("nkd", "uskd"),
    }
    return tuple(key for key, is_used in used.items() if is_used)


def facts(
    config: EvalConfig,
    model: str,
    num: int,
    *,
    targets: Targets = Classes(),
    learned: float | None = None,
    lr: float | None = None,
) -> Json:
    """A protocol as JSON data whose names say what the values are.

    Args:
        config: the protocol.
        model: the name of the network that is trained.
        num: training examples.
        targets: of the set.
        learned: its learned learning rate.
        lr: the rate with which the set was evaluated, so that it is known; None: not evaluated yet,
            and the rate is the learned one, or the protocol's usual one.
    """
    labels = _labels(config, targets)
    if labels == "stored":
        config = targets.trained_by(config)
    of_network = adapted(config, model)
    loss = "ce" if labels == "classes" and config.loss != "uskd" else config.loss
    regressed = labels == "stored" and targets.regressed
    updates = training.num_updates(num, of_network)
    students = of_network.students
    return {
        "name": config.protocol,
        "network": model,
        "examples": num,
        # stored: the soft labels or features of the set; teachers: they say a label at each update
        "labels": labels,
        "loss": OF_FEATURES if regressed else LOSSES[loss],
        **({} if regressed else _of_loss(config, loss)),
        **_optimiser(of_network),
        **_rate(config, of_network, learned, lr),
        "weight_decay": of_network.weight_decay,
        "weight_decay_on_biases_and_norms": of_network.decay_norms,
        **({"epochs": updates // -(-num // config.batch)} if students is None else {}),
        "images_per_update": config.batch,
        "updates": updates,
        **(_schedule(of_network, num) if students is None else _of_students(students)),
        "augment": _augment(config.augment),
        "cutmix_probability": config.cutmix,
        "mixup_beta": config.mixup,
        **_mixed_labels(config, loss),
    }


def _labels(config: EvalConfig, targets: Targets) -> str:
    has_values = bool(targets.names)
    if config.loss == "uskd" or not (has_values or config.labels == "dynamic"):
        return "classes"
    return LABELS[config.labels]


def _of_loss(config: EvalConfig, loss: str) -> Json:
    """The settings that a loss has."""
    settings: Json = {}
    if loss in ("kl", "nkd"):
        settings["temperature"] = config.temperature
    if loss == "kl":
        settings["times_temperature_squared"] = config.squared
    if loss in ("kl", "mse"):
        settings["class_loss_weight"] = config.hard_weight
        if config.soft_weight != 1:
            settings["label_loss_weight"] = config.soft_weight
    return settings


def _rate(
    config: EvalConfig, of_network: EvalConfig, learned: float | None, lr: float | None
) -> Json:
    """The learning rate, and how it was chosen."""
    if of_network.optimiser != "sgd" or config.rate == "fixed":
        learned = None
    if lr is None:
        if learned:
            return {"lr": learned, "lr_chosen_by": LEARNED}
        return {"lr": of_network.lr, "lr_chosen_by": USUAL}
    if config.rate == "validation":
        tried = candidates(of_network, learned)
        return {"lr": lr, "lr_chosen_by": CHOSEN, "lr_tried": tried}
    return {"lr": lr, "lr_chosen_by": LEARNED if lr == learned else USUAL}


def _optimiser(config: EvalConfig) -> Json:
    """The optimiser and its settings; that of students by its name in torch.optim."""
    if config.students is not None:
        step = config.students.step
        settings = to_dict(torch_steps.settings(step))
        return {"optimiser": step.name, "optimiser_settings": settings}
    if config.optimiser == "sgd":
        return {"optimiser": config.optimiser, "momentum": config.momentum}
    if config.optimiser == "muon":
        # the betas are those of AdamW
        facts = {"hidden_layers": "muon", "all_else": "adamw", "step_length": muon.LENGTH}
        return {"optimiser": "muon", "betas": list(muon.BETAS), **facts}
    return {"optimiser": config.optimiser, "betas": [0.9, 0.999]}


def _of_students(students: StudentSteps) -> Json:
    """What an update of students sees, and how far it steps.

    Rates are those of one update after another, and then from the beginning again, multiplied so
    that lr is their mean; none: lr.
    """
    return {
        "schedule": "students",
        "rates": list(students.rates),
        "batches": to_dict(students.batches),
    }


def _mixed_labels(config: EvalConfig, loss: str) -> Json:
    if loss == "kl" and (config.cutmix or config.mixup):
        return {"mixed_labels": config.mix_labels}
    return {}


def _schedule(config: EvalConfig, num: int) -> Json:
    """The learning rate over the epochs, which are counted from 0."""
    if config.schedule == "cosine":
        return {"schedule": "cosine", "cosine_stretch": config.stretch}
    last = training.num_updates(num, config) // -(-num // config.batch)
    # where two fall on one epoch, the later one
    points = {point.epoch: point for point in training.schedule(config, 1.0)}
    drops = []
    for epoch, point in points.items():
        if 0 < epoch < last:
            drop = {
                "epoch": epoch,
                "lr_factor": point.lr,
                "momentum": point.momentum if config.optimiser == "sgd" else None,
                "optimiser_restarts": point.fresh,
            }
            drops.append(drop)
    return {"schedule": "drops", "drops": drops}


def _augment(config: AugmentConfig) -> Json:
    """One of these operations for each update, those that always happen, and their settings."""
    said: Json = {"one_of": list(config.ops), "always": list(config.always)}
    settings = to_dict(config)
    for op in (*config.ops, *config.always):
        for name in SETTINGS[op]:
            said[name] = settings[name]
    return said


def of_set(meta: Meta, num: int, *, targets: Targets, learned: float | None) -> Json | None:
    """The protocol that the recipe in a meta.json names, before any evaluation.

    None where there is none that is known.
    """
    recipe = meta.get("recipe")
    if not isinstance(recipe, Mapping):
        return None
    evaluation, model = recipe.get("evaluation"), recipe.get("model")
    if not isinstance(evaluation, Mapping) or not isinstance(model, str):
        return None
    try:
        config = as_students(from_dict(EvalConfig, evaluation), students_of(meta))
        return facts(config, model, num, targets=targets, learned=learned)
    except UserError:  # written by another version of the engine
        return None


def students_of(meta: Meta) -> StudentTraining | None:
    """How the students of a set were trained, as its meta.json says it; None where it does not."""
    said = meta.get("students")
    return None if said is None else from_dict(StudentTraining, said)


def of_evaluation(
    evaluation: Evaluation, model: str | None, *, targets: Targets, learned: float | None
) -> Json | None:
    """The protocol by which the set was evaluated.

    The rate is that of the set's row, the first, on `model` or else its first network. None for an
    evaluation that does not say it, and for one by a training function of the user.
    """
    if not _says_protocol(evaluation):
        return None
    row = _row_on(evaluation["rows"], model)
    try:
        config = from_dict(EvalConfig, evaluation["protocol"])
    except UserError:
        return None
    on_model = learned if row["model"] == model else None
    known = {"targets": targets, "learned": on_model, "lr": row["lr"]}
    protocol = facts(config, row["model"], row["images"], **known)
    images = evaluation.get("num_images") or {}
    if protocol["lr_chosen_by"] == CHOSEN and not images.get("validation"):
        protocol["lr_chosen_by"] = LEARNED if row["lr"] == learned else USUAL
        del protocol["lr_tried"]
    return protocol


def _says_protocol(evaluation: Evaluation) -> bool:
    rows = evaluation.get("rows")
    if not isinstance(rows, Sequence) or not rows:
        return False
    if evaluation.get("quick"):  # by which nobody should go on
        return False
    if "trained_by" in rows[0] or not {"lr", "images", "model"} <= rows[0].keys():
        return False
    return isinstance(evaluation.get("protocol"), Mapping)


def _row_on(rows: Sequence[Row], model: str | None) -> Facts:
    """The row of the set, the first, on a network, or else its first one."""
    for row in rows:
        if row["set"] == rows[0]["set"] and row["model"] == model:
            return row
    return rows[0]


def words(protocol: Facts) -> list[tuple[str, str]]:
    """(name, value) of what a protocol says, for people."""
    return [
        ("protocol", protocol["name"]),
        ("network", protocol["network"]),
        ("optimiser", _optimiser_in_words(protocol)),
        ("learning rate", _rate_in_words(protocol)),
        (
            "training",
            _epochs_in_words(protocol) + f"{protocol['updates']} updates of at most "
            f"{protocol['images_per_update']} images",
        ),
        ("augmentation", _augmentation_in_words(protocol)),
        ("loss", _loss_in_words(protocol)),
    ]


def _epochs_in_words(protocol: Facts) -> str:
    if protocol["schedule"] == "students":
        return "as students of the set, "
    return f"{protocol['epochs']} epochs, "


def _optimiser_in_words(protocol: Facts) -> str:
    if "optimiser_settings" in protocol:
        parts = [protocol["optimiser"]]
        for name, value in protocol["optimiser_settings"].items():
            parts.append(f"{name} {value}")
        return ", ".join([*parts, f"weight decay {protocol['weight_decay']:g}"])
    if "momentum" in protocol:
        settings = f"momentum {protocol['momentum']:g}"
    else:
        settings = f"betas {protocol['betas'][0]} and {protocol['betas'][1]}"
    if protocol["optimiser"] == "muon":
        settings = f"of hidden layers, AdamW of all else with {settings}"
    spared = " but on biases and normalisation layers"
    if protocol["weight_decay_on_biases_and_norms"]:
        spared = ""
    name, decay = protocol["optimiser"].upper(), protocol["weight_decay"]
    return f"{name}, {settings}, weight decay {decay:g}{spared}"


def _rate_in_words(protocol: Facts) -> str:
    if protocol.get("rates"):
        low, high = min(protocol["rates"]), max(protocol["rates"])
        mean = f"{protocol['lr']:.4g} on average"
        return f"of each update, learned with the set, from {low:.4g} to {high:.4g}, {mean}"
    parts = [f"{protocol['lr']:.6g}, {protocol['lr_chosen_by']}"]
    for drop in protocol.get("drops", ()):
        parts.append(f"times {drop['lr_factor']:.4g} from epoch {drop['epoch'] + 1} on")
    if protocol["schedule"] == "cosine":
        parts.append("cosine over all epochs")
    return "; ".join(parts)


def _augmentation_in_words(protocol: Facts) -> str:
    augment, beta = protocol["augment"], protocol["mixup_beta"]
    parts = []
    if augment["one_of"]:
        parts.append(f"one of {', '.join(augment['one_of'])} for each update")
    if augment["always"]:
        parts.append(f"always {', '.join(augment['always'])}")
    if protocol["cutmix_probability"]:
        parts.append(f"CutMix of {100 * protocol['cutmix_probability']:g} % of the batches")
    if beta:
        parts.append(f"mixup with Beta({beta:g}, {beta:g})")
    return "; ".join(parts) or "none"


def _loss_in_words(protocol: Facts) -> str:
    labels = {
        "stored": "the soft labels of the set",
        "classes": "classes",
        "teachers": "what teachers say of each batch",
    }
    loss = protocol["loss"].replace("_", " ")
    if protocol["loss"] == OF_FEATURES:
        return f"{loss}, with the features of the set"
    if "temperature" in protocol:
        loss += f" at temperature {protocol['temperature']:g}"
    return f"{loss}, with {labels[protocol['labels']]}"
