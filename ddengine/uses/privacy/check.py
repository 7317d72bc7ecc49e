"""The privacy check of a set: both networks are trained, then everything is measured."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ddengine.data import Data
from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log, runtime
from ddengine.system.runtime import Precision
from ddengine.types import Json
from ddengine.uses.privacy.measure import measure


def run(  # long: half of it says what it takes
    syn: SyntheticSet,
    data: Data,
    config: EvalConfig,
    model: str,
    *,
    seed: int,
    device: torch.device,
    precision: Precision = "fp32",
    learned_for: str | None = None,
) -> Json:
    """Train a network on the full data and one on the set, and measure what the set gives away.

    The first embeds the images, the second is attacked; `measure` says how. Of a set with features
    no network is attacked, because it would say no classes, whose loss the attack is by.

    Args:
        syn: the set.
        data: the data that it was made from, with their test split.
        config: how networks are trained; its `full_steps` bound the updates on the full data.
        model: the networks.
        seed: decides networks, orders and which images are compared.
        device: where everything lies.
        precision: in which networks are trained.
        learned_for: the network for which the set learned its rate, which is used for that alone.

    Returns:
        The content of privacy.json.
    """
    config = adapted(replace(config, models=(model,), baselines=()), model)
    learned = None
    if model == learned_for and config.optimiser == "sgd":
        learned = syn.lr
    facts = {
        "model": model,
        "optimiser": config.students.step.name if config.students else config.optimiser,
        "lr": config.lr,
        "lr_on_set": learned or config.lr,
        "full_updates": min(config.full_steps, training.updates_on_all(len(data.train), config)),
        "labels": "hard" if config.loss == "uskd" else "own",
    }
    train: Any = partial(
        training.train_networks,
        partial(build_model, model, data.image_shape, data.num_classes),
        seeds=[seed],
        config=config,
        device=device,
        precision=precision,
    )
    on_set = None
    with log.progress("privacy", 3) as bar:
        bar.advance(f"{model} on the full data")
        (full,) = train(
            sets=[data.train], lr=facts["lr"], steps=facts["full_updates"], labels="hard"
        )
        if syn.targets.regressed:
            bar.advance("no attack by the loss of a network, because the targets are features")
        else:
            bar.advance(f"{model} on the set")
            (on_set,) = train(sets=[syn], lr=facts["lr_on_set"], labels=facts["labels"])
        bar.advance("nearest images")
        result = measure(syn, data, full.embed, on_set, seed=seed)
    return result | {
        "training": facts,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
