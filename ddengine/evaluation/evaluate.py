"""What a distilled set is worth: networks trained on it, beside random images, herding and the full
data under the same protocol.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddengine.data import Data
from ddengine.data.checks import image_digests
from ddengine.evaluation.bench import SEARCH_SEED, Bench, Contender
from ddengine.evaluation.contenders import baselines, has_soft_labels, of_codec, set_labels
from ddengine.evaluation.decoded import eight_bit, freeze
from ddengine.evaluation.intervals import NAME
from ddengine.evaluation.ledger import label_bytes
from ddengine.evaluation.rates import adapted, candidates
from ddengine.evaluation.rows import distinct, row
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import EvalConfig, digest, to_dict
from ddengine.sets import coreset
from ddengine.sets.codec import as_bytes
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log, runtime
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.system.runtime import Precision

# form of what is remembered of an interrupted evaluation; what an older program left is computed
# again
MEMO = 2


AT_ONCE = 2**24  # pixel values of a set that are decoded at a time


def num_trainings(bench: Bench, models: Sequence[str], own: Sequence[Contender], soft: bool) -> int:
    """Entries of the memo that an evaluation makes: for `own` contenders and the baselines a search
    for each rate and a row, and each coreset.

    `soft`: whether hard labels are something else than the set's own.
    """
    config, model = bench.config, bench.home
    searched = bench.data.validation is not None and config.rate == "validation"

    def tried(network: str) -> int:
        return len(candidates(adapted(config, network), bench.learned(network))) if searched else 0

    absent = (
        {"eight_bit"}
        | ({"hard_labels"} if not soft else set())
        | ({"random_soft"} if config.loss == "uskd" else set())
    )
    baselines = set(config.baselines) - absent
    coresets = baselines & {*coreset.KINDS}
    taking = sum(who.rate_of is not None for who in own)  # a rate that another contender has chosen
    rows = sum(
        (tried(network) + 1) * (len(own) + len(baselines)) - tried(network) * taking
        for network in models
    )
    eyes = coresets or "random_soft" in baselines  # a network on the full data, with its rate
    return (
        rows
        + len(coresets)
        + (tried(model) if eyes and not ("full" in baselines and model in models) else 0)
    )


def of_held_out(syn: SyntheticSet, data: Data) -> list[str]:
    """Warnings that count the images of a set that are, pixel for pixel at 8 bits, validation or
    test images.
    """
    parts = torch.arange(len(syn)).split(max(1, AT_ONCE // math.prod(data.image_shape)))
    own = [digest for part in parts for digest in image_digests(as_bytes(syn.pixels(part)))]
    found = []
    for name, real in (("validation", data.validation), ("test", data.test)):
        held = set() if real is None else set(image_digests(real.pixels))
        if count := sum(digest in held for digest in own):
            found.append(
                f"warning: {count} of the {len(syn)} images of the set are {name} images, so its "
                "accuracy says nothing"
            )
    return found


def evaluate(
    syn: SyntheticSet,
    data: Data,
    config: EvalConfig,
    model: str,
    *,
    seed: int,
    device: torch.device,
    precision: Precision = "fp32",
    memo_path: Path | None = None,
    seconds_before: float = 0.0,
    name: str = "distilled",
    teachers: Sequence[nn.Module] = (),
) -> dict[str, Any]:
    """Evaluate a distilled set beside its baselines; returns the content of evaluation.json
    (accuracies are fractions).

    `model` is the recipe's network: evaluated when `config.models` names none, and the eyes of
    herding. The test split of `data` is looked at once per reported network; rates are chosen on
    the validation split. `seconds_before` (of the same command) and those of trainings remembered
    from an interrupted evaluation are added to the total. `name` is what the row of the set is
    called; no baseline may be. `teachers` make dynamic labels, and label random images as the set's
    were. Raises UserError for dynamic labels without teachers.
    """
    if config.labels == "dynamic" and not teachers:
        raise UserError(
            "evaluation.labels dynamic needs the teachers of the set; name the folder of their "
            "stores with --experts, or set it to own."
        )
    start = time.perf_counter()
    models = config.models or (model,)
    distilled = freeze(syn, device)
    codec = [type(syn.codec).__name__, to_dict(syn.codec)]
    weights = [files.tensor_digest(network.state_dict()) for network in teachers]
    identity = digest(
        [
            MEMO,
            to_dict(config),
            seed,
            precision,
            data.train.digest,
            model,
            set_digest(syn),
            codec,
            weights,
        ]
    )
    memo = Memo(memo_path, identity)
    if data.validation is None and config.rate == "validation":
        who = (
            "all sets are"
            if syn.lr is None
            else "the distilled set is trained with its learned rate, the others are"
        )
        log.say(
            f"no validation split to choose a learning rate on: {who} trained with {config.lr:g}"
        )
    for warning in of_held_out(syn, data):
        log.say(warning)
    last_iterate = {
        k.removeprefix("raw."): v for k, v in syn.tensors.items() if k.startswith("raw.")
    }
    bench = Bench(
        data,
        config,
        seed,
        device,
        precision,
        memo,
        lambda label: None,
        model,
        syn.lr,
        name,
        teachers,
        label_bytes(syn),
        syn.as_labelled,
    )
    first = Contender(name, lambda draw: distilled, labels=set_labels(config), own=True)
    contenders = [first]
    if last_iterate:  # the last iterate beside its running average, on networks of its own
        raw = freeze(syn.with_tensors(last_iterate), device)
        contenders.append(Contender("raw", lambda draw: raw, labels=set_labels(config), own=True))
    if "eight_bit" in config.baselines and (eight := eight_bit(syn, distilled, device)) is not None:
        contenders.append(
            Contender(
                f"{name}_8bit",
                lambda draw: eight,
                labels=set_labels(config),
                own=True,
                rate_of=first,
            )
        )
    contenders += of_codec(syn, distilled, data, config, seed, device)
    # what a set does not use of its last image, the others may
    ipc = math.ceil(syn.images_per_class())
    fewest = min(len(members) for members in data.train.members)
    # of some classes it has more than of others
    if len(syn.classes.bincount(minlength=data.num_classes).unique()) > 1 and ipc > fewest:
        log.say(
            f"the set has {ipc} images per class on average, and a class {fewest} training "
            f"images: baselines have {fewest} per class"
        )
        ipc = fewest
    with log.progress(
        "evaluate",
        num_trainings(bench, models, contenders, has_soft_labels(config, distilled.targets)),
    ) as bar:
        bench = replace(bench, advance=bar.advance)
        contenders += baselines(bench, model, ipc, distilled)
        rows = [row(bench, who, network) for network in models for who in contenders]
    memo.clear()
    return {
        "protocol": to_dict(replace(config, models=models)),
        "rows": rows,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "interval": NAME,  # of every ci95
        "num_images": data.counts,
        "test_images_per_class": dict(
            zip(distinct(data.class_names), (len(m) for m in data.test.members), strict=True)
        )
        if data.test
        else {},
        "set_digest": set_digest(syn),
        "seed": seed,
        "precision": precision,
        # random_soft, and all with dynamic labels
        "labelled_by": f"{len(teachers)} teachers"
        if teachers
        else "a network trained on the full data",
        "teachers": weights,
        "seconds": round(seconds_before + memo.seconds_before + time.perf_counter() - start, 2),
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


def set_digest(syn: SyntheticSet) -> str:
    """12 hexadecimal digits that identify what a set stores."""
    return files.tensor_digest(syn.tensors)


def validate(
    syn: SyntheticSet,
    data: Data,
    config: EvalConfig,
    model: str,
    *,
    seed: int,
    device: torch.device,
    precision: Precision,
    teachers: Sequence[nn.Module] = (),
) -> float | None:
    """Accuracy on the validation split of one network trained on `syn` with its learned (or the
    protocol's usual) rate; None where it diverged.
    """
    assert data.validation is not None
    frozen, config = freeze(syn, device), adapted(config, model)
    build = partial(build_model, model, data.image_shape, data.num_classes)
    networks = training.train_networks(
        build,
        [frozen],
        [seed + 3 * SEARCH_SEED],
        config,
        (config.optimiser == "sgd" and syn.lr) or config.lr,
        device,
        precision=precision,
        teachers=teachers,
    )
    return training.accuracy(networks[0], data.validation, precision)
