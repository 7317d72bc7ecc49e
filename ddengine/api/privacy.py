"""What a set shows of the images that it was made of."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ddengine.api.evaluate import OpenSet, open_set, protocol_of, source_of
from ddengine.api.inputs import Images, check_precision
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, opened
from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import DataConfig, EvalConfig
from ddengine.system import files, log, runtime
from ddengine.system.runtime import Precision


def privacy(
    of: Distilled | Path | str,
    data: Images | DataConfig = None,
    *,
    model: str | None = None,
    full_steps: int | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: bool = True,
) -> Outcome:  # long: its arguments are explained
    """The real images that those of a set are nearest to, and whether membership shows.

        ddengine.privacy(result, data)

    Args:
        of: a set, or the folder of one or of its run.
        data: as `evaluate` takes it.
        model: the network in whose embedding images are compared, and which is attacked; None: the
            recipe's.
        full_steps: most updates of the network that embeds, on the full data; None: the protocol's.
        folder: where privacy.json and privacy.png are written; None: as `evaluate` has it.
        seed: decides networks, orders and which images are compared.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: whether bars and notes are shown.

    Raises:
        UserError: images that are not those of the set, a network that does not fit.
    """
    from ddengine.pages import of_privacy
    from ddengine.uses import privacy as measuring

    check_precision(precision)
    with log.shown(progress):
        asked = opened(of)
        config = protocol_of(asked)
        name = model or asked.meta["recipe"]["model"]
        most = config.full_steps if full_steps is None else full_steps
        config = replace(config, full_steps=most, models=(name,), baselines=())
        config = adapted(config, name)
        beside = open_set(asked, source_of(asked, data), config, device, precision)
        out = asked.run if folder is None else Path(folder)
        if out is not None:
            files.make_folder(out)
        facts = _facts(asked, beside, config, name)
        full, attacked = _networks(beside, config, facts, seed, precision)
        content = measuring.measure(beside.syn, beside.data, full.embed, attacked, seed=seed)
        content |= {
            "training": facts,
            "machine": runtime.machine(beside.device),
            "versions": runtime.versions(),
            "commit": runtime.commit(),
        }
        if out is not None:
            files.write_json(out / "privacy.json", content)
            of_privacy.picture(out / "privacy.png", beside.syn, beside.data, content)
        heads = [head or "measure" for head in of_privacy.HEADS]
        rows = [dict(zip(heads, line, strict=True)) for line in of_privacy.lines(content)]
        return Outcome(content, rows, partial(of_privacy.table, content), (), out)


def _facts(of: Distilled, beside: OpenSet, config: EvalConfig, name: str) -> dict[str, Any]:
    """How the two networks are trained."""
    is_home = name == of.meta["recipe"]["model"]
    learned = beside.syn.lr if is_home and config.optimiser == "sgd" else None
    updates = training.num_updates(len(beside.data.train), config)
    return {
        "model": name,
        "optimiser": config.optimiser,
        "lr": config.lr,
        "lr_on_set": learned or config.lr,
        "full_updates": min(config.full_steps, updates),
        "labels": "hard" if config.loss == "uskd" else "own",
    }


def _networks(
    beside: OpenSet, config: EvalConfig, facts: dict[str, Any], seed: int, precision: Precision
) -> Sequence[Any]:
    """The network trained on the full data, which embeds, and that trained on the set."""
    name, data = facts["model"], beside.data
    train = partial(
        training.train_networks,
        partial(build_model, name, data.image_shape, data.num_classes),
        seeds=[seed],
        config=config,
        device=beside.device,
        precision=precision,
    )
    with log.progress("privacy", 3) as bar:
        bar.advance(f"{name} on the full data")
        steps = facts["full_updates"]
        full = train(sets=[data.train], lr=facts["lr"], steps=steps, labels="hard")
        bar.advance(f"{name} on the set")
        attacked = train(sets=[beside.syn], lr=facts["lr_on_set"], labels=facts["labels"])
        bar.advance("nearest images")
    return full[0], attacked[0]
