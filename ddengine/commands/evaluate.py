"""Evaluate."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from buffers.open import SetTeachers
from ddengine import commands
from ddengine.artefact import folder as set_folders
from ddengine.artefact import results, runs
from ddengine.commands import cli
from ddengine.commands.options import named_protocol, paths_of
from ddengine.commands.process import one_process
from ddengine.data import Data, load_data
from ddengine.evaluation import scores, tables
from ddengine.evaluation.evaluate import evaluate, set_digest
from ddengine.models import build_model, middle
from ddengine.pages import figures, overview
from ddengine.recipe import (
    DataConfig,
    EvalConfig,
    from_dict,
    to_dict,
)  # fmt: skip
from ddengine.sets import synthetic
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Flags of evaluate."""

    seed: int = 0  # decides networks, orders, augmentation and random draws
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder of evaluation.json; None: the run, or the distilled folder
    restart: bool = False  # evaluate again although evaluation.json is there
    # the store of the set's experts, or with teachers the folder of their stores; None:
    # experts/FINGERPRINT
    experts: Path | None = None
    sort: Literal["none", "accuracy", "accuracy_per_byte"] = "none"  # order of the printed table
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]
    evaluation: Annotated[EvalConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def set_defaults(path: Path, args: list[str]) -> tuple[Path, dict[str, Any], EvaluateOptions]:
    """(folder, meta.json, options) of a run or a distilled folder: what the set says of itself, by
    the protocol that the flags may name.
    """
    folder = runs.set_folder(path)
    _, meta = set_folders.load(folder, torch.device("cpu"))
    recipe = meta.get("recipe", {})
    if not {"name", "model", "data", "evaluation"} <= recipe.keys():
        raise UserError(
            f"{folder / 'meta.json'} does not say the recipe of the set, so it cannot be "
            "evaluated; distill it again."
        )
    data_config = from_dict(DataConfig, runs.data_of(path) if folder != path else recipe["data"])
    protocol = named_protocol(args, "--protocol") or from_dict(EvalConfig, recipe["evaluation"])
    if (
        meta["target_kind"] == "logits"
        and "random" in protocol.baselines
        and "random_soft" not in protocol.baselines
    ):
        protocol = replace(protocol, baselines=(*protocol.baselines, "random_soft"))
    # the controls without which soft labels and more examples pass for distillation
    if recipe.get("teachers"):
        controls = [
            name
            for name in ("random_soft", "hard_labels")
            if name not in protocol.baselines and "random" in protocol.baselines
        ]
        protocol = replace(
            protocol, baselines=(*protocol.baselines, *controls), baseline_steps="updates"
        )
    return folder, meta, EvaluateOptions(data=data_config, evaluation=protocol)


def set_options(
    path: Path, args: list[str], command: str = "evaluate"
) -> tuple[Path, dict[str, Any], EvaluateOptions]:
    """`set_defaults` with the flags; those of the protocol may have the prefix that they have
    beside a recipe, as in --evaluation.epochs.
    """
    args = [
        word.replace("--evaluation.", "--", 1) if word.startswith("--evaluation.") else word
        for word in args
    ]
    folder, meta, defaults = set_defaults(path, args)
    return folder, meta, cli.parse(EvaluateOptions, args, defaults, f"{command} {path}")


def open_set(
    folder: Path, meta: dict[str, Any], options: EvaluateOptions, command: str = "evaluate"
) -> tuple[synthetic.SyntheticSet, Data, torch.device]:
    """The set and its data, test images too, on the device.

    Raises UserError where they do not belong together, or a network does not fit.
    """
    device = one_process(options, command)
    syn, _ = set_folders.load(folder, device)
    data = load_data(options.data, device, test=True, stored=lambda images: syn.preprocess)
    if data.class_names != syn.class_names or data.image_shape != tuple(
        syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:]
    ):
        raise UserError(
            f"{folder} was distilled from other images than data.name {options.data.name} gives; "
            "set the data flags it was made with."
        )
    if data.train.digest != meta.get("images", data.train.digest):
        raise UserError(
            f"The training images are not those that {folder} was distilled from, so its test "
            "images may have been seen; "
            "set the data flags it was made with (data.limit, data.validation, data.split_seed)."
        )
    for name in options.evaluation.models or (meta["recipe"]["model"],):
        # a wrong name fails before the first training
        network = build_model(name, data.image_shape, data.num_classes, generator(0))
        if options.evaluation.loss == "uskd":
            middle(network, data.image_shape)
    return syn, data, device


def row_name(meta: dict[str, Any], config: EvalConfig) -> str:
    """What the row of a set is called: a selection has its kind's name, unless a baseline has it."""
    kind = meta["selected"]["kind"] if "selected" in meta else "distilled"
    return f"selected {kind}" if kind in config.baselines else kind


def evaluation_in(
    out: Path,
    folder: Path,
    meta: dict[str, Any],
    options: EvaluateOptions,
    words: Sequence[str],
    *,
    strict: bool,
    command: str = "evaluate",
) -> dict[str, Any]:
    """The content of evaluation.json in `out`, made where it is not there; `strict` refuses one
    that was made with other settings.
    """
    model = meta["recipe"]["model"]
    if (out / "evaluation.json").exists() and not options.restart:
        try:
            evaluation = files.read_json(out / "evaluation.json", "rows", "protocol")
        except UserError:
            raise UserError(
                f"{out / 'evaluation.json'} is damaged; evaluate again with --restart."
            ) from None
        there = to_dict(from_dict(EvalConfig, evaluation["protocol"]))
        wanted = to_dict(replace(options.evaluation, models=options.evaluation.models or (model,)))
        if (
            evaluation.get(
                "set_digest", own := set_digest(set_folders.load(folder, torch.device("cpu"))[0])
            )
            != own
        ):
            raise UserError(
                f"{out / 'evaluation.json'} is of another set; {command} again with --restart, or "
                "name another folder with --out."
            )
        same = all(
            evaluation.get(name, getattr(options, name)) == getattr(options, name)
            for name in ("seed", "precision")
        )
        if strict and (there != wanted or not same):
            raise UserError(
                f"{out / 'evaluation.json'} was made with other settings; {command} again with "
                "--restart, or name a folder with --out."
            )
        log.say(f"{out / 'evaluation.json'} is there; --restart evaluates again")
        return evaluation
    syn, data, device = open_set(folder, meta, options, command)
    dynamic = options.evaluation.labels == "dynamic"
    teachers = SetTeachers(options.experts).teachers(meta, data, device, dynamic=dynamic)
    files.make_folder(out)
    evaluation = evaluate(
        syn, data, options.evaluation, model, seed=options.seed, device=device, precision=options.precision,
        memo_path=out / "evaluation.partial.jsonl", seconds_before=time.perf_counter() - commands.STARTED,
        name=row_name(meta, options.evaluation), teachers=teachers,
    )  # fmt: skip
    evaluation["command"] = ["python", "run.py", *words]
    files.write_json(out / "evaluation.json", evaluation)
    figures.real_vs_distilled(out / "real_vs_distilled.png", data.train, syn, evaluation)
    return evaluation


def evaluate_path(path: Path, args: list[str]) -> dict[str, Any]:
    """Evaluate a run or a distilled folder, write evaluation.json and print it as a table."""
    folder, meta, options = set_options(path, args)
    out = options.out or path
    decides = any(
        word.startswith("--")
        and word.split("=")[0] not in ("--sort", "--out", "--experts", "--device")
        for word in args
    )
    evaluation = evaluation_in(
        out, folder, meta, options, ("evaluate", str(path), *args), strict=decides
    )
    if options.out is None:
        results.add_results(folder, evaluation)
    name = meta["recipe"]["name"]
    on = f" on {evaluation['num_images']['test']} images" if "num_images" in evaluation else ""
    log.console.print(tables.table(evaluation, f"{name}, test accuracy{on}", options.sort))
    for line in tables.notes(evaluation):
        log.say(line)
    if len({row["model"] for row in evaluation["rows"]}) > 1:
        figures.heat_map(out / "heat_map.png", [(name, evaluation)])
        log.say(f"accuracy of every set on every network: {out / 'heat_map.png'}")
    return evaluation


def main(args: list[str]) -> None:
    """Evaluate one or several sets; of several print one table of every set on every network, and
    how their accuracies spread.
    """
    paths = paths_of(args, "evaluate", "the folder of a run or of a distilled set")
    rest = args[len(paths) :]
    if len(paths) == 1:
        evaluate_path(paths[0], rest)
        return
    if any(word.split("=")[0] == "--out" for word in rest):
        raise UserError(
            f"--out names one folder, and {len(paths)} sets are evaluated; leave --out out, or "
            "evaluate them one by one."
        )
    evaluations = [(str(path), evaluate_path(path, rest)) for path in paths]
    log.console.print(overview.cross_table(evaluations))
    metas = [files.read_json(runs.set_folder(path) / "meta.json") for path in paths]
    for found in scores.splits(
        [
            (name, meta, evaluation)
            for (name, evaluation), meta in zip(evaluations, metas, strict=True)
        ]
    ):
        log.say(scores.said(found))
