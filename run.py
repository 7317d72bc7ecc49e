"""Dataset distillation from the command line: parses, opens stores, builds, calls."""

import time

STARTED = time.perf_counter()  # before the imports, which take seconds

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
import tyro
from rich.table import Table
from torch import nn

from buffers.exchange import expand, export_experts, files_digest, load_pt
from buffers.exchange import import_experts as make_store
from buffers.experts import generate
from buffers.store import ExpertStore, StoreGroup, check_identity, identity, imported_digest, stored_preprocess
from ddengine import cli, dist, exchange, files, labels, log, report, runs, runtime, scores, synthetic
from ddengine import distill as outer
from ddengine.codec import Compensated, Identity
from ddengine.data import Data, Preprocess, load_data
from ddengine.errors import UserError, unknown
from ddengine.evaluate import PROTOCOLS, evaluate, validate
from ddengine.flat import FlatModel
from ddengine.init import SELECTIONS, selected_index
from ddengine.models import build_model, middle
from ddengine.recipe import DataConfig, EvalConfig, Recipe, digest, from_dict, parametrised, resolved, to_dict
from ddengine.rng import generator
from ddengine.runtime import Precision
from ddengine.teachers import load_all
from ddengine.types import Env, Objective
from synth.recipes import RECIPES, find, take
from synth.recipes.cite import bibtex

DEMO = "mtt/digits_ipc1"
EXPERTS = Path("experts")
ASKS_EXPERTS = ("correct", "representative", "patches")  # kinds of init that look through experts
RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True, kw_only=True)
class Options(Generic[RecipeT]):
    """Flags of the run, then those of the recipe.

    --take PART=RECIPE takes a part from another recipe, e.g. objective.window=datm/cifar10_ipc10, and fills a slot that is shown as {None}.
    """

    seed: int = 0  # decides every random draw of the run
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder to write; None: runs/RECIPE-HASH, or experts/FINGERPRINT for buffer
    experts: Path | None = None  # expert store, or with teachers the folder of their stores; None: experts/FINGERPRINT
    restart: bool = False  # begin anew, deleting what the folder holds
    compile: bool = False  # compile the inner training step
    print_config: bool = False  # print the resolved recipe and stop
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def options_of(command: str, args: list[str], fixed: str | None = None, flags: Any = Options) -> Any:
    """Options and recipe from `RECIPE [--take PART=RECIPE]... [flags]`; `flags` is the dataclass that holds both, Options or one like it."""
    if fixed is None and (not args or args[0].startswith("-")):
        if set(args) & {"-h", "--help"}:
            raise UserError(f"run.py {command} takes a recipe first, whose flags --help then lists: run.py {command} {DEMO} --help.")
        raise UserError(f"run.py {command} needs the name of a recipe first, e.g. {DEMO}; run.py recipes lists them.")
    name, rest = (fixed, list(args)) if fixed else (args[0], list(args[1:]))
    taken: list[str] = []
    rest = [word for arg in rest for word in (arg.split("=", 1) if arg.startswith("--take=") else [arg])]
    while "--take" in rest:
        at = rest.index("--take")
        taken += rest[at + 1 : at + 2] or [""]
        del rest[at : at + 2]
    recipe = take(find(name), taken)
    if taken:
        recipe = replace(recipe, published=None, note=f"{name} with parts of others ({', '.join(taken)}), for which nothing is published.")
    recipe = replace(recipe, evaluation=named_protocol(rest, "--evaluation.protocol") or recipe.evaluation)
    kind = flags[parametrised(recipe)]
    return cli.parse(kind, rest, kind(recipe=recipe), f"run.py {command}" + ("" if fixed else f" {name}"))


def named_protocol(args: list[str], flag: str) -> EvalConfig | None:
    """The protocol whose name `flag` gives, whose values the other flags then change; None without that flag."""
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])]
    if flag not in words[:-1]:
        return None
    name = words[words.index(flag) + 1]
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def print_config(recipe: Recipe) -> None:
    """The resolved recipe, as JSON."""
    log.console.print_json(data=to_dict(recipe))


def buffer_models(recipe: Recipe) -> tuple[str, ...]:
    """The networks of the recipe's experts: each has a store."""
    return recipe.teachers or ((recipe.buffer and recipe.buffer.model) or recipe.model,)


def store_folders(options: Options[Recipe], images: str, root: Path = EXPERTS) -> list[tuple[str, Path, dict[str, Any]]]:
    """(network, folder, identity) of each expert store of a recipe on these images."""
    recipe, found = options.recipe, []
    for model in buffer_models(recipe):
        content = identity(images, recipe.data, recipe.buffer, model, options.seed, options.precision)
        given = options.experts and (teacher_folder(options.experts, model) if recipe.teachers else options.experts)
        found.append((model, given or root / digest(content), content))
    return found


def teacher_folder(folder: Path, model: str) -> Path:
    """Where the store of a teacher lies in a folder that the user named."""
    return folder / model.replace("/", "-")


def load_for(options: Options[Recipe], device: torch.device, root: Path = EXPERTS) -> Data:
    """The recipe's data, preprocessed as its expert store has it, where there is one."""

    def stored(images: str) -> Preprocess | None:
        if options.recipe.buffer is None:
            return None
        return next(filter(None, (stored_preprocess(folder) for _, folder, _ in store_folders(options, images, root))), None)

    return load_data(options.recipe.data, device, stored=stored)


def start(options: Options[Any]) -> torch.device:
    """Set the process up and return its device."""
    device = runtime.setup(options.device, options.precision)
    dist.start(device)
    return device


def one_process(options: Any, command: str) -> torch.device:
    """`start` for a command that several ranks cannot share."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"run.py {command} runs in one process; start it without torchrun.")
    return start(options)


def on_first_rank(action: Callable[[], None]) -> None:
    """Do something to the file system once, while the other ranks wait."""
    if dist.rank() == 0:
        action()
    dist.barrier()


def check_networks(recipe: Recipe, data: Data) -> None:
    """Build every network of the recipe once, and fit the codec to its budget, so that what does not go fails before any work."""
    recipe.codec.fit(recipe.ipc, data.num_classes)
    for name in {recipe.model, *buffer_models(recipe), *recipe.evaluation.models}:
        network = build_model(name, data.image_shape, data.num_classes, generator(0))
        if name in recipe.teachers and hasattr(recipe.objective, "check_teacher"):
            recipe.objective.check_teacher(name, network)
        if recipe.evaluation.loss == "uskd" and name in (recipe.evaluation.models or (recipe.model,)):
            middle(network, data.image_shape)


def buffer(options: Options[Recipe], root: Path = EXPERTS) -> None:
    """Train the recipe's experts, trajectories or teachers, and store them."""
    recipe = options.recipe
    if recipe.buffer is None:
        raise UserError(f"The recipe {recipe.name} needs no experts; run distill.")
    if options.compile:
        log.say("warning: --compile is ignored, experts are trained uncompiled")
    device = start(options)
    data = load_for(options, device, root)
    stores = store_folders(replace(options, experts=options.out or options.experts), data.train.digest, root)
    check_networks(recipe, data)
    try:
        if hasattr(recipe.objective, "check"):  # not of objectives that read no experts
            recipe.objective.check(recipe.buffer.kept_epochs())
    except UserError as error:  # the store is still good for other recipes
        log.say(f"warning: {error}")
    if options.restart:
        for _, folder, _ in stores:
            on_first_rank(lambda folder=folder: runs.check_own(folder, "manifest.json"))
        for _, folder, _ in stores:
            on_first_rank(lambda folder=folder: runs.delete(folder, "manifest.json"))
    for name, folder, _ in stores:
        new_model = partial(build_model, name, data.image_shape, data.num_classes)
        generate(data, recipe.data, recipe.buffer, name, new_model, folder, seed=options.seed, precision=options.precision)
        store = ExpertStore(folder)
        scores = [a for i in range(store.num_experts) for a in store.metrics(i)["validation_accuracy"][-1:]]
        shown = f", validation accuracy {100 * sum(scores) / len(scores):.1f} % after the last epoch" if scores else ""
        what = f"{store.num_experts} experts of {recipe.buffer.epochs} epochs" + (f", teachers {name}," if recipe.teachers else "")
        log.say(f"{what} in {folder}{shown}")


def run_identity(options: Options[Recipe], images: str, root: Path = EXPERTS) -> dict[str, Any]:
    """What makes two runs the same; experts of this program follow from recipe and seed, imported ones have a digest."""
    folders = [folder for _, folder, _ in store_folders(options, images, root)] if options.recipe.buffer is not None else []
    experts = ", ".join(filter(None, map(imported_digest, folders))) or None
    return runs.identity(
        options.recipe, images, seed=options.seed, precision=options.precision, compile=options.compile, experts=experts
    )  # fmt: skip


def reads_experts(recipe: Recipe) -> bool:
    """Whether a distillation reads the store of the recipe, and not only its buffer command makes one."""
    by_objective = hasattr(recipe.objective, "check") or getattr(recipe.objective, "reads_experts", False)
    return by_objective or recipe.init.kind in ASKS_EXPERTS or recipe.targets.kind == "logits" or recipe.evaluation.labels == "dynamic"


def open_store(options: Options[Recipe], data: Data, root: Path = EXPERTS) -> ExpertStore | StoreGroup | None:
    """The expert stores of a recipe, None for a recipe without experts. Raises UserError for one that is not there or was made differently."""
    if options.recipe.buffer is None:
        return None
    stores = []
    for model, folder, content in store_folders(options, data.train.digest, root):
        check_identity(folder, content)
        new_model = partial(build_model, model, data.image_shape, data.num_classes)
        stores.append(ExpertStore(folder, new_model, options.recipe.buffer.num_experts))
    return StoreGroup(stores) if options.recipe.teachers else stores[0]


def prepare(
    options: Options[Recipe], data: Data, device: torch.device, root: Path = EXPERTS
) -> tuple[synthetic.SyntheticSet, Objective, ExpertStore | StoreGroup | None]:
    """What a distillation starts from: the labelled initial set, the objective, the experts."""
    recipe = options.recipe
    check_networks(recipe, data)
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    store = open_store(options, data, root) if reads_experts(recipe) else None
    model = FlatModel(new_model(generator(0)), options.precision).to(device)
    objective = recipe.objective.build(Env(data.train, new_model, model, store, device, options.compile))
    codec, networks = recipe.codec, len(recipe.teachers) * (recipe.buffer.num_experts if recipe.buffer else 0)
    if recipe.teachers and isinstance(codec, Compensated) and codec.base is None and codec.compensators is None and codec.per_set != networks:
        log.say(f"warning: codec.per_set {codec.per_set} is not the number of teachers, {networks}, so not every set has a compensator of each")
    syn = synthetic.initial(recipe, data, generator(options.seed, "init"), store)
    makes, reads = (getattr(recipe.objective, name, default) for name, default in (("makes_labels", False), ("reads_labels", True)))
    if recipe.targets.kind == "logits" and reads and not makes:
        syn = labels.label(syn, store, recipe.targets)
    dist.from_first(syn.tensors.values())  # networks have chosen and labelled the images, and ranks need not agree to the last bit
    return syn, objective, store


def distill(options: Options[Recipe], root: Path = EXPERTS) -> Path:
    """Distil the recipe's dataset; returns the run's folder. Continues an unfinished run."""
    recipe, seed, precision = options.recipe, options.seed, options.precision
    if options.out is not None:
        runs.check_folder(options.out)
    device = start(options)
    data = load_for(options, device, root)
    wanted = run_identity(options, data.train.digest, root)
    folder = options.out or runs.default_folder(recipe, wanted)
    if options.restart:
        runs.check_own(folder, runs.MARK)
    elif runs.is_finished(folder, wanted, beside=root.name):
        log.say(f"{folder} is finished; --restart begins anew")
        return folder
    began = time.perf_counter()
    syn, objective, store = prepare(options, data, device, root)
    initial_seconds = round(time.perf_counter() - began, 2)  # what a set that is only chosen costs
    outer.check(syn, objective, recipe.outer)  # before the folder is there

    def begin() -> None:
        if options.restart:
            runs.delete(folder, runs.MARK)
        runs.begin(folder, recipe, wanted)

    on_first_rank(begin)
    teachers = teachers_of(store, device) if recipe.evaluation.labels == "dynamic" else []
    result, counters = outer.distill(
        syn, objective, recipe.outer, folder, seed=seed,
        finish=lambda s: labels.label(s.shipped(), store, recipe.targets) if recipe.targets.relabel else s.shipped(),
        validate=lambda s: validate(s, data, recipe.evaluation, recipe.model, seed=seed, device=device, precision=precision, teachers=teachers),
        picture=lambda s, step: report.grid(folder / "progress" / f"step_{step:06d}.png", s),
    )  # fmt: skip
    if dist.rank() == 0:
        meta = meta_of(options, recipe, data, store, device, distillation=outer.summary(counters) | {"initial_seconds": initial_seconds})
        report.real_vs_distilled(folder / "real_vs_distilled.png", data.train, result, None)
        result.save(folder / "distilled", meta)
        stored = len(result.classes)
        tiles = "" if stored == len(result) else f", which decode to {len(result)},"
        log.say(f"distilled {stored} images{tiles} in {log.duration(counters.seconds + initial_seconds)}: {folder / 'distilled'}")
        log.say(report.ledger(result.nbytes(), data.bytes, data.dataset_bytes))
    return folder


def teachers_of(store: ExpertStore | StoreGroup | None, device: torch.device) -> list[nn.Module]:
    """The networks of a store after their last epoch; none without a store."""
    return [] if store is None else load_all(store, device)


def meta_of(
    options: Options[Recipe], recipe: Recipe, data: Data, store: ExpertStore | StoreGroup | None, device: torch.device, **more: Any
) -> dict[str, Any]:
    """What meta.json says of a set beside what the set says itself."""
    return {
        "recipe": to_dict(replace(recipe, data=replace(recipe.data, root=None))),
        "seed": options.seed,
        "precision": options.precision,
        "images": data.train.digest,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "experts": store and store.summary(),
        **more,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }


def select(options: Options[Recipe]) -> Path:
    """Write the real images that the recipe's init chooses, labelled with their classes, as a set like a distilled one; returns the folder."""
    recipe, kind = options.recipe, options.recipe.init.kind
    if kind not in SELECTIONS:
        raise UserError(f"run.py select chooses among real images, and init.kind is {kind}; set --init.kind to one of {', '.join(SELECTIONS)}.")
    if options.compile:
        log.say("warning: --compile is ignored, nothing is compiled")
    if options.out is not None:
        runs.check_folder(options.out)
    device = one_process(options, "select")
    asks_experts = kind in ASKS_EXPERTS
    if not asks_experts:  # then nothing depends on a store that happens to be there
        recipe = replace(recipe, buffer=None, teachers=(), evaluation=replace(recipe.evaluation, labels="own"))
        options = replace(options, recipe=recipe)
    data = load_for(options, device)
    parts = ("name", "data", "model", "ipc", "init", "evaluation", *(["buffer"] if asks_experts else []))  # the others play no role
    whole = resolved(recipe)
    deciding = ["select", {part: whole[part] for part in parts}]
    wanted = run_identity(replace(options, compile=False), data.train.digest) | {"resolved": digest(deciding)}
    folder = options.out or Path("runs") / f"select-{kind}-{digest(wanted)}"
    if options.restart:
        runs.check_own(folder, runs.MARK)
    elif runs.is_finished(folder, wanted):
        log.say(f"{folder} is finished; --restart begins anew")
        return folder
    check_networks(recipe, data)
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    store = open_store(options, data)  # none where the kind asks none
    index = selected_index(data.train, recipe.ipc, data.class_names, generator(options.seed, "init"), recipe.init, store, new_model)
    if options.restart:
        runs.delete(folder, runs.MARK)
    if recipe.codec.per_item > 1:
        log.say("images are chosen whole: the recipe's codec plays no role")
    recipe = replace(recipe, codec=Identity())  # real images as they are
    runs.begin(folder, recipe, wanted)
    classes = data.train.labels[index.to(device)]
    syn = synthetic.SyntheticSet({"images": data.train.images(index)}, classes, data.class_names, Identity(), data.train.preprocess)
    report.real_vs_distilled(folder / "real_vs_distilled.png", data.train, syn, None)
    syn.save(folder / "distilled", meta_of(options, recipe, data, store, device, selected={"kind": kind, "index": index.tolist()}))
    if kind in ("herding", "k_centre", "k_means") and recipe.ipc == 1:
        log.say(f"{kind} with one image per class takes the image nearest to the class mean")
    log.say(f"{len(syn)} images chosen by init.kind {kind}: {folder / 'distilled'}")
    return folder


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Flags of evaluate."""

    seed: int = 0  # decides networks, orders, augmentation and random draws
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder of evaluation.json; None: the run, or the distilled folder
    restart: bool = False  # evaluate again although evaluation.json is there
    experts: Path | None = None  # the store of the set's experts, or with teachers the folder of their stores; None: experts/FINGERPRINT
    sort: Literal["none", "accuracy", "accuracy_per_byte"] = "none"  # order of the printed table
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]
    evaluation: Annotated[EvalConfig, tyro.conf.arg(name="")]


def set_options(path: Path, args: list[str], command: str = "evaluate") -> tuple[Path, dict[str, Any], EvaluateOptions]:
    """(folder, meta.json, options) of a run or a distilled folder: the flags, with what the set says of itself as their defaults."""
    run = path if (path / "distilled").is_dir() else None
    folder = path / "distilled" if run else path
    _, meta = synthetic.load(folder, torch.device("cpu"))
    recipe = meta.get("recipe", {})
    if not {"name", "model", "data", "evaluation"} <= recipe.keys():
        raise UserError(f"{folder / 'meta.json'} does not say the recipe of the set, so it cannot be evaluated; distil it again.")
    data_config = from_dict(DataConfig, runs.data_of(run) if run else recipe["data"])
    protocol = named_protocol(args, "--protocol") or from_dict(EvalConfig, recipe["evaluation"])
    if meta["target_kind"] == "logits" and "random" in protocol.baselines and "random_soft" not in protocol.baselines:
        protocol = replace(protocol, baselines=(*protocol.baselines, "random_soft"))
    if recipe.get("teachers"):  # the controls without which soft labels and more examples pass for distillation
        controls = [name for name in ("random_soft", "hard_labels") if name not in protocol.baselines and "random" in protocol.baselines]
        protocol = replace(protocol, baselines=(*protocol.baselines, *controls), baseline_steps="updates")
    options = cli.parse(EvaluateOptions, args, EvaluateOptions(data=data_config, evaluation=protocol), f"run.py {command} {path}")
    return folder, meta, options


def open_set(
    folder: Path, meta: dict[str, Any], options: EvaluateOptions, command: str = "evaluate"
) -> tuple[synthetic.SyntheticSet, Data, torch.device]:
    """The set and its data, test images too, on the device. Raises UserError where they do not belong together, or a network does not fit."""
    device = one_process(options, command)
    syn, _ = synthetic.load(folder, device)
    data = load_data(options.data, device, test=True, stored=lambda images: syn.preprocess)
    if data.class_names != syn.class_names or data.image_shape != tuple(syn.pixels(torch.zeros(1, dtype=torch.long)).shape[1:]):
        raise UserError(f"{folder} was distilled from other images than data.name {options.data.name} gives; set the data flags it was made with.")
    if data.train.digest != meta.get("images", data.train.digest):
        raise UserError(
            f"The training images are not those that {folder} was distilled from, so its test images may have been seen; "
            "set the data flags it was made with (data.limit, data.validation, data.split_seed)."
        )
    for name in options.evaluation.models or (meta["recipe"]["model"],):
        network = build_model(name, data.image_shape, data.num_classes, generator(0))  # a wrong name fails before the first training
        if options.evaluation.loss == "uskd":
            middle(network, data.image_shape)
    return syn, data, device


def row_name(meta: dict[str, Any], config: EvalConfig) -> str:
    """What the row of a set is called: a selection has its kind's name, unless a baseline has it."""
    kind = meta["selected"]["kind"] if "selected" in meta else "distilled"
    return f"selected {kind}" if kind in config.baselines else kind


def evaluation_in(out: Path, folder: Path, meta: dict[str, Any], options: EvaluateOptions, *, strict: bool, command: str = "evaluate") -> dict[str, Any]:
    """The content of evaluation.json in `out`, made where it is not there; `strict` refuses one that was made with other settings."""
    model = meta["recipe"]["model"]
    if (out / "evaluation.json").exists() and not options.restart:
        try:
            evaluation = files.read_json(out / "evaluation.json", "rows", "protocol")
        except UserError:
            raise UserError(f"{out / 'evaluation.json'} is damaged; evaluate again with --restart.") from None
        there = to_dict(from_dict(EvalConfig, evaluation["protocol"]))
        wanted = to_dict(replace(options.evaluation, models=options.evaluation.models or (model,)))
        if strict and (there != wanted or evaluation.get("seed", options.seed) != options.seed):
            raise UserError(f"{out / 'evaluation.json'} was made with other settings; {command} again with --restart, or name a folder with --out.")
        log.say(f"{out / 'evaluation.json'} is there; --restart evaluates again")
        return evaluation
    syn, data, device = open_set(folder, meta, options, command)
    teachers = teachers_for(options, meta, data, device)
    files.make_folder(out)
    evaluation = evaluate(
        syn, data, options.evaluation, model, seed=options.seed, device=device, precision=options.precision,
        memo_path=out / "evaluation.partial.jsonl", seconds_before=time.perf_counter() - STARTED, name=row_name(meta, options.evaluation), teachers=teachers,
    )  # fmt: skip
    files.write_json(out / "evaluation.json", evaluation)
    report.real_vs_distilled(out / "real_vs_distilled.png", data.train, syn, evaluation)
    return evaluation


def evaluate_path(path: Path, args: list[str]) -> dict[str, Any]:
    """Evaluate a run or a distilled folder, write evaluation.json and print it as a table."""
    folder, meta, options = set_options(path, args)
    out = options.out or path
    decides = any(word.startswith("--") and word.split("=")[0] not in ("--sort", "--out", "--experts", "--device") for word in args)
    evaluation = evaluation_in(out, folder, meta, options, strict=decides)
    name = meta["recipe"]["name"]
    log.console.print(report.table(evaluation, f"{name}, test accuracy", options.sort))
    if len({row["model"] for row in evaluation["rows"]}) > 1:
        report.heat_map(out / "heat_map.png", [(name, evaluation)])
        log.say(f"accuracy of every set on every network: {out / 'heat_map.png'}")
    return evaluation


def evaluate_paths(args: list[str]) -> None:
    """Evaluate one or several sets; of several print one table of every set on every network, and how their accuracies spread."""
    paths = paths_of(args, "evaluate", "the folder of a run or of a distilled set")
    rest = args[len(paths) :]
    if len(paths) == 1:
        evaluate_path(paths[0], rest)
        return
    if any(word.split("=")[0] == "--out" for word in rest):
        raise UserError(f"--out names one folder, and {len(paths)} sets are evaluated; leave --out out, or evaluate them one by one.")
    evaluations = [(str(path), evaluate_path(path, rest)) for path in paths]
    log.console.print(report.cross_table(evaluations))
    for line in spread(evaluations):
        log.say(line)


def spread(evaluations: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Of sets of one recipe and other seeds, in words: how much of the spread is between distillations, on each network."""
    groups: dict[tuple[str, str], list[list[float]]] = {}
    for path, evaluation in evaluations:
        folder = Path(path) / "distilled" if (Path(path) / "distilled").is_dir() else Path(path)
        recipe = digest(files.read_json(folder / "meta.json", "recipe")["recipe"])
        own = evaluation["rows"][0]["set"]
        for row in (r for r in evaluation["rows"] if r["set"] == own):
            groups.setdefault((recipe, row["model"]), []).append([a["accuracy"] for a in row["accuracies"]])
    said = []
    for (_, model), accuracies in groups.items():
        if len(accuracies) > 1 and min(map(len, accuracies)) > 1:
            split = scores.variance_split(accuracies)
            low, high = split["ci95"]
            said.append(
                f"{model}, {len(accuracies)} distillations: {100 * split['mean']:.1f} % ({100 * low:.1f} to {100 * high:.1f}); standard deviation "
                f"{100 * split['between_std']:.2f} between distillations, {100 * split['within_std']:.2f} between networks on one"
            )
    return said


def paths_of(args: list[str], command: str, what: str) -> list[Path]:
    """The paths before the first flag. Raises UserError without any."""
    paths = [Path(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), args)]
    if not paths:
        raise UserError(f"run.py {command} needs {what} first.")
    return paths


def score(path: Path, args: list[str]) -> None:
    """DD-Ranking's scores of a set on every network: scores.json."""
    folder, meta, options = set_options(path, args, "score")
    out = options.out or path
    soft = meta["target_kind"] == "logits" or options.evaluation.labels == "dynamic"
    found = [
        evaluation_in(out / "scores" / name, folder, meta, replace(options, evaluation=config), strict=True, command="score")
        for name, config in zip(("augmented", "plain"), scores.protocols(options.evaluation, soft), strict=True)
    ]
    made = scores.of(*found, name=found[0]["rows"][0]["set"])
    kept = ("machine", "versions", "commit", "seed", "precision")
    files.write_json(out / "scores.json", {"scores": made, "seconds": sum(e["seconds"] for e in found), **{k: found[0].get(k) for k in kept}})
    log.console.print(scores.table(made, f"{meta['recipe']['name']}, accuracies as fractions"))


def teachers_for(options: EvaluateOptions, meta: dict[str, Any], data: Data, device: torch.device) -> list[nn.Module]:
    """The teachers of a set, which label on the fly and label random images; none where the set has none.

    Raises UserError where dynamic labels need a store that is not there, or is not the one that the set was made with. A set that was imported says
    no fingerprints; there the stores in the folder that --experts names must be of these images.
    """
    recipe, dynamic = meta["recipe"], options.evaluation.labels == "dynamic"
    names, used = recipe.get("teachers") or [], (meta.get("experts") or {}).get("stores", [])
    if options.experts is not None and not names:
        raise UserError("--experts names the stores of teachers, and this set was made without teachers; leave --experts out.")
    if dynamic and not (used or (names and options.experts)):
        raise UserError(
            "evaluation.labels dynamic needs the teachers of the set, and "
            + ("it does not say them; name the folder of their stores with --experts." if names else "it has none; set evaluation.labels own.")
        )
    epochs, found = recipe.get("targets", {}).get("epochs"), []
    for facts in used or [{"model": name, "fingerprint": None, "num": None} for name in names if options.experts]:
        folder = teacher_folder(options.experts, facts["model"]) if options.experts else EXPERTS / facts["fingerprint"]
        if not (folder / "manifest.json").is_file() and not dynamic and options.experts is None:
            log.say(f"warning: no store of the teacher {facts['model']} in {folder}; random_soft is labelled by a network trained on the full data")
            return []
        store = ExpertStore(folder, partial(build_model, facts["model"], data.image_shape, data.num_classes), facts["num"])
        if facts["fingerprint"] not in (None, store.manifest["fingerprint"]) or store.manifest["identity"]["images"] != data.train.digest:
            raise UserError(f"{folder} holds other experts than those of the set; name the folder of its own with --experts.")
        found += load_all(store, device, epochs and range(epochs[0], epochs[1] + 1))
    return found[:1] if recipe.get("targets", {}).get("experts") == "first" else found


def demo(args: list[str]) -> None:
    """Digits, one image per class: buffers, distillation, evaluation, pictures."""
    options = options_of("demo", args, fixed=DEMO)
    if options.print_config:
        return print_config(options.recipe)
    folder = options.out or Path("runs/demo")
    if options.experts is not None:
        log.say(f"warning: --experts is ignored, demo makes its own in {folder / 'experts'}")
    device = one_process(options, "demo")
    data = load_data(options.recipe.data, device)
    check_networks(options.recipe, data)
    if options.restart:
        runs.delete(folder, runs.MARK, beside="experts")
    options = replace(options, out=None, experts=None, restart=False)
    runs.is_finished(folder, run_identity(options, data.train.digest, folder / "experts"), beside="experts")  # refuses a folder of something else
    buffer(options, folder / "experts")
    distill(replace(options, out=folder), folder / "experts")
    flags = ["--seed", str(options.seed), "--device", options.device, "--precision", options.precision]
    evaluation = evaluate_path(folder, flags)
    log.say(f"pictures: {folder / 'real_vs_distilled.png'} and {folder / 'progress'}; the set: {folder / 'distilled'}")
    log.say(f"{log.duration(evaluation['seconds'])} in all")


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Generic[RecipeT]):
    """Flags of import. The recipe says which images, preprocessing and network the files are of and, for experts, how these were trained."""

    files: tuple[Path, ...] = ()  # replay_buffer files or their folder, or one file of images, or one result of DC, DSA or DM
    labels: Path | None = None  # labels of the images; None: labels_X.pt beside images_X.pt, else the classes in order
    lr: float | None = None  # learned learning rate; None: lr_X.pt beside images_X.pt, else none
    experiment: int | None = None  # of a result of DC, DSA or DM, from 0; None: the last
    out: Path | None = None  # folder to write; None: experts/imported-DIGEST or runs/imported-DIGEST
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def import_files(args: list[str]) -> None:
    """Bring files of the published programs in: experts as a store, images as a distilled folder. What a file is, its content says."""
    options: ImportOptions[Recipe] = options_of("import", args, flags=ImportOptions)
    if not options.files:
        raise UserError("run.py import needs the files to import; name them with --files.")
    paths = expand(options.files)
    content = load_pt(paths[0])
    if isinstance(content, list | tuple):
        del content  # of a gigabyte; the files are read one by one
        import_experts(options, paths)
    elif len(paths) > 1:
        raise UserError(f"{paths[0]} holds no experts, and only files of experts are imported together; give one file with --files.")
    else:
        import_set(options, paths[0], content)


def import_experts(options: ImportOptions[Recipe], paths: list[Path]) -> None:
    """Files of experts, as a store."""
    recipe = options.recipe
    if given := [f"--{name}" for name in ("labels", "lr", "experiment") if getattr(options, name) is not None]:
        raise UserError(f"{paths[0]} holds experts, and {given[0]} belongs to a distilled set; leave {given[0]} out.")
    if recipe.teachers:
        raise UserError(
            f"{paths[0]} holds experts, and the recipe {recipe.name} has teachers, which need BatchNorm statistics; run the buffer command."
        )
    if recipe.buffer is None:
        raise UserError(f"{paths[0]} holds experts and the recipe {recipe.name} needs none; name a recipe that says how they were trained.")
    data = load_data(recipe.data, torch.device("cpu"))
    name, digest_of_files = buffer_models(recipe)[0], files_digest(paths)
    network = build_model(name, data.image_shape, data.num_classes, generator(0))
    folder = options.out or EXPERTS / f"imported-{digest_of_files}"
    runs.check_folder(folder)
    count = make_store(paths, digest_of_files, folder, data, recipe.data, recipe.buffer, name, network)
    log.say(f"{count} experts of {recipe.buffer.epochs} epochs in {folder}, taken as {name} on {seen(recipe)}")
    log.say(f"use them with run.py distill {recipe.name} --experts {folder} --buffer.num_experts {count} and the flags of this command")


def seen(recipe: Recipe) -> str:
    """How the networks of a recipe see its images, in words."""
    return f"{recipe.data.name}, {'ZCA-whitened' if recipe.data.zca else 'normalised by mean and standard deviation'}"


def import_set(options: ImportOptions[Recipe], path: Path, content: Any) -> None:
    """A file of images with what lies beside it, as a distilled folder."""
    recipe, device = options.recipe, torch.device("cpu")
    data = load_data(recipe.data, device)
    syn, used = exchange.read_set(path, content, load_pt, data, labels=options.labels, lr=options.lr, experiment=options.experiment)
    recipe = replace(recipe, ipc=max(1, round(syn.images_per_class())), codec=syn.codec, data=replace(recipe.data, root=None))
    imported = exchange.provenance(used, lr=options.lr, experiment=options.experiment)
    folder = options.out or Path("runs") / f"imported-{digest(imported)}"
    runs.check_folder(folder)
    own = {"recipe": to_dict(recipe), "imported": imported}
    if folder.exists() and any(folder.iterdir()):
        there = files.read_json(folder / "meta.json") if (folder / "meta.json").is_file() else {}
        if not isinstance(there, dict) or any(there.get(key) != value for key, value in own.items()):
            raise UserError(f"{folder} is not empty and not these files imported with this recipe; name another folder with --out.")
        log.say(f"{folder} holds these files already")
        return
    files.make_folder(folder.parent)
    facts = {
        "images": data.train.digest,
        "raw_bytes": data.bytes,
        "dataset_bytes": data.dataset_bytes,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
    }
    syn.save(folder, own | {"seed": None, "precision": None} | facts | {"commit": runtime.commit()})
    if syn.lr is None:
        log.say(f"no learned rate: evaluate chooses one of evaluation.lr_grid, or takes {recipe.evaluation.lr:g} where there is no validation split")
    kind = "classes" if syn.target_kind == "class" else "soft labels"
    log.say(f"{len(syn)} images with {kind} in {folder}, taken as {seen(recipe)}; evaluate them with run.py evaluate {folder}")
    if 0 <= syn.tensors["images"].min() and syn.tensors["images"].max() <= 1:
        log.say("warning: all values lie within 0 and 1, as pixels do, and sets are imported as networks see them")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Flags of export."""

    format: Literal["mtt"] = "mtt"  # the files of MTT, FTD, TESLA and DATM
    out: Path | None = None  # folder to write
    per_file: int = 10  # experts in a file


def export(path: Path, args: list[str]) -> None:
    """Write an expert store, a run or a distilled folder as files of the published programs."""
    options = cli.parse(ExportOptions, args, ExportOptions(), f"run.py export {path}")
    if options.out is None:
        raise UserError("run.py export needs a folder to write; name it with --out.")
    if (path / "manifest.json").is_file():
        written = export_experts(path, options.out, options.per_file)
    else:
        folder = path / "distilled" if (path / "distilled").is_dir() else path
        if not (folder / "meta.json").is_file():
            raise UserError(f"{path} is neither an expert store nor a distilled set; give the folder that buffer, distill or import wrote.")
        syn, meta = synthetic.load(folder, torch.device("cpu"))
        written = exchange.export_set(syn, set_name(folder, meta), options.out)
        if len(syn) > len(syn.classes):
            log.say(f"{len(syn.classes)} stored images are written as the {len(syn)} that they decode to; such files have no codec")
    log.say(f"{', '.join(p.name for p in written[:3])}{' ...' if len(written) > 3 else ''} in {options.out}")


def set_name(folder: Path, meta: dict[str, Any]) -> str:
    """The X of images_X.pt: the outer steps of a set of this program, or that it was imported or selected."""
    for origin in ("imported", "selected"):
        if origin in meta:
            return origin
    try:
        return str(int(meta["recipe"]["outer"]["steps"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / 'meta.json'} does not say the recipe of the set, so its files have no name; distil it again.") from None


def recipes(args: list[str]) -> None:
    """Print the table of recipes."""
    if args:
        raise UserError(f"run.py recipes takes no arguments, got {' '.join(args)}.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # 80 columns are enough for it
    for column in ("recipe", "published %", "for", "network"):
        table.add_column(column, no_wrap=True)
    for recipe in RECIPES.values():
        figure = recipe.published
        shown = "-" if figure is None else f"{100 * figure.accuracy:.1f}" + (f" ± {100 * figure.std:.1f}" if figure.std is not None else "")
        table.add_row(recipe.name, shown, wants(recipe), recipe.model)
    log.console.print(table)
    log.say("run.py distill NAME --print_config shows a recipe, with notes on its figure")


def cite(args: list[str]) -> None:
    """Print the BibTeX entries of what a recipe uses, as they are, so that they can be sent to a file."""
    options = options_of("cite", args)
    if options.print_config:
        return print_config(options.recipe)
    log.console.print(bibtex(options.recipe), end="", emoji=False)


def wants(recipe: Recipe) -> str:
    """What the work wants to run on: minutes of a CPU, or hours of a GPU."""
    small = recipe.data.name == "digits" or (recipe.data.limit is not None and recipe.data.limit <= 10_000)
    return "CPU" if small else "GPU"


USAGE = f"""usage: run.py COMMAND [arguments]

  demo                        digits, one image per class: experts, distillation, evaluation, pictures (minutes on a CPU)
  buffer RECIPE [flags]       train and store the expert trajectories of a recipe
  distill RECIPE [flags]      distil; the same command continues an unfinished run
  select RECIPE [flags]       no distillation: the real images that --init.kind chooses, as such a set
  evaluate PATH [flags]       train networks on a distilled set beside random, herding and full data
  import RECIPE --files PATH... [flags]       published experts or distilled sets (.pt): a store, or a folder to evaluate
  export PATH --format mtt --out FOLDER       a store, a run or a distilled set as such files
  recipes                     list the recipes with their published figures
  cite RECIPE [flags]         BibTeX of the method, its parts and the dataset

Every field of a recipe is a flag: run.py distill {DEMO} --help. --take PART=RECIPE takes a part from another recipe,
for example buffer, targets or objective.window."""


def main(args: list[str]) -> None:
    """Dispatch a command line."""
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
    elif command == "demo":
        demo(rest)
    elif command in ("buffer", "distill", "select"):
        options = options_of(command, rest)
        if options.print_config:
            print_config(options.recipe)
        elif command == "buffer":
            buffer(options)
        elif command == "select":
            select(options)
        else:
            distill(options)
    elif command == "evaluate":
        evaluate_paths(rest)
    elif command == "score":
        score(paths_of(rest[:1], command, "the folder of a run or of a distilled set")[0], rest[1:])
    elif command == "import":
        import_files(rest)
    elif command == "export":
        if not rest or rest[0].startswith("-"):
            raise UserError("run.py export needs the folder of an expert store, a run or a distilled set first.")
        export(Path(rest[0]), rest[1:])
    elif command == "recipes":
        recipes(rest)
    elif command == "cite":
        cite(rest)
    else:
        raise unknown("command", command, ("demo", "buffer", "distill", "select", "evaluate", "import", "export", "recipes", "cite"))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
