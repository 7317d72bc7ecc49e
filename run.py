"""Dataset distillation from the command line: parses, opens stores, builds, calls."""

import time

STARTED = time.perf_counter()  # before the imports, which take seconds

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
import tyro
from rich.table import Table
from torch import nn

from buffers.exchange import export_experts
from buffers.experts import generate
from buffers.store import (
    ExpertStore,
    StoreGroup,
    check_identity,
    finished,
    identity,
    imported_digest,
    stored_preprocess,
    teacher_folder,
)
from buffers.train import train_expert
from ddengine import api
from ddengine import loop as outer
from ddengine.api import ASKS_EXPERTS, buffer_models, check_networks, reads_experts
from ddengine.artefact import describe, exchange, handover, results, runs
from ddengine.artefact import folder as set_folders
from ddengine.commands import cli
from ddengine.data import Data, Preprocess, load_data
from ddengine.evaluation import intervals, scores, tables
from ddengine.evaluation.evaluate import evaluate, set_digest
from ddengine.evaluation.rates import adapted
from ddengine.evaluation.train import validate
from ddengine.learning import training
from ddengine.learning.teachers import load_all
from ddengine.models import build_model, middle
from ddengine.objective import Objective
from ddengine.pages import report
from ddengine.plan import estimate as costs
from ddengine.recipe import (
    BufferT,
    CodecT,
    DataConfig,
    EvalConfig,
    ObjectiveT,
    Recipe,
    digest,
    from_dict,
    parametrised,
    require,
    resolved,
    to_dict,
)  # fmt: skip
from ddengine.sets import synthetic
from ddengine.sets.codec import Identity, Pixels
from ddengine.sets.start import SELECTIONS, selected_index
from ddengine.system import dist, files, log, runtime
from ddengine.system.errors import UserError, unknown
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.uses.continual import ContinualConfig
from synth.recipes import RECIPES, find, take
from synth.recipes.cite import bibtex
from synth.recipes.protocols import PROTOCOLS

DEMO = "mtt/digits_ipc1"
EXPERTS = Path("experts")
RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True, kw_only=True)
class Options(Generic[RecipeT]):
    """Flags of the run, then those of the recipe.

    --take PART=RECIPE takes a part from another recipe, e.g. objective.window=datm/cifar10_ipc10,
    and fills a slot that is shown as {None}.
    """

    seed: int = 0  # decides every random draw of the run
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    # folder to write; None: runs/RECIPE-HASH, or experts/FINGERPRINT for buffer
    out: Path | None = None
    # expert store, or with teachers the folder of their stores; None: experts/FINGERPRINT
    experts: Path | None = None
    restart: bool = False  # begin anew, deleting what the folder holds
    compile: bool = False  # compile the inner training step
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the run's folder
    print_config: bool = False  # print the resolved recipe and stop
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # the command line
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@dataclass(frozen=True, kw_only=True)
class Selection(Recipe[BufferT, CodecT, ObjectiveT]):
    """A recipe for `select`, which reads its data, ipc, network, init and evaluation, and what
    experts need where the kind of init asks them.

    The other parts have their flags, so that one command line does for `select` and `distill`, and
    need not fit together.
    """

    def __post_init__(self) -> None:
        require(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}.")


def options_of(
    command: str, args: list[str], fixed: str | None = None, flags: Any = Options
) -> Any:
    """Options and recipe from `RECIPE [--take PART=RECIPE]... [flags]`; `flags` is the dataclass
    that holds both, Options or one like it.
    """
    if fixed is None and (not args or args[0].startswith("-")):
        if set(args) & {"-h", "--help"}:
            raise UserError(
                f"run.py {command} takes a recipe first, whose flags --help then lists: run.py "
                f"{command} {DEMO} --help."
            )
        raise UserError(
            f"run.py {command} needs the name of a recipe first, e.g. {DEMO}; run.py recipes "
            "lists them."
        )
    name, rest = (fixed, list(args)) if fixed else (args[0], list(args[1:]))
    taken: list[str] = []
    rest = [
        word for arg in rest for word in (arg.split("=", 1) if arg.startswith("--take=") else [arg])
    ]
    while "--take" in rest:
        at = rest.index("--take")
        taken += rest[at + 1 : at + 2] or [""]
        del rest[at : at + 2]
    recipe = take(find(name), taken)
    if command == "select":
        recipe = Selection(**{part.name: getattr(recipe, part.name) for part in fields(recipe)})
    if taken:
        recipe = replace(
            recipe,
            published=None,
            note=f"{name} with parts of others ({', '.join(taken)}), for which nothing is published.",
        )
    recipe = replace(
        recipe, evaluation=named_protocol(rest, "--evaluation.protocol") or recipe.evaluation
    )
    kind = flags[parametrised(recipe)]
    options = cli.parse(
        kind, rest, kind(recipe=recipe), f"run.py {command}" + ("" if fixed else f" {name}")
    )
    if options.recipe.published is not None and not same_cell(options.recipe, recipe):
        options = replace(
            options,
            recipe=replace(
                options.recipe,
                published=None,
                note=f"{name} with other settings, for which nothing is published.",
            ),
        )
    return replace(options, command=(command, *args)) if hasattr(options, "command") else options


def same_cell(recipe: Recipe, published: Recipe) -> bool:
    """Whether nothing differs that decides what a published figure is of; how often is looked or
    saved does not.
    """

    def deciding(of: Recipe) -> dict[str, Any]:
        whole = resolved(of)
        outer = {k: v for k, v in whole.pop("outer").items() if not k.endswith("_every")}
        return {**whole, "outer": outer, "evaluation": None}

    return deciding(recipe) == deciding(published)


def named_protocol(args: list[str], flag: str) -> EvalConfig | None:
    """The protocol whose name `flag` gives, whose values the other flags then change; None without
    that flag.
    """
    words = [
        word
        for arg in args
        for word in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])
    ]
    if flag not in words[:-1]:
        return None
    name = words[words.index(flag) + 1]
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def print_config(recipe: Recipe) -> None:
    """The resolved recipe, as JSON."""
    log.console.print_json(data=to_dict(recipe))


def store_folders(
    options: Options[Recipe], images: str, root: Path = EXPERTS
) -> list[tuple[str, Path, dict[str, Any]]]:
    """(network, folder, identity) of each expert store of a recipe on these images."""
    recipe, found = options.recipe, []
    for model in buffer_models(recipe):
        content = identity(
            images, recipe.data, recipe.buffer, model, options.seed, options.precision
        )
        given = options.experts and (
            teacher_folder(options.experts, model) if recipe.teachers else options.experts
        )
        found.append((model, given or root / digest(content), content))
    return found


def load_for(options: Options[Recipe], device: torch.device, root: Path = EXPERTS) -> Data:
    """The recipe's data, preprocessed as its expert store has it, where there is one."""

    def stored(images: str) -> Preprocess | None:
        if options.recipe.buffer is None:
            return None
        return next(
            filter(
                None,
                (
                    stored_preprocess(folder)
                    for _, folder, _ in store_folders(options, images, root)
                ),
            ),
            None,
        )

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


def buffer(options: Options[Recipe], root: Path = EXPERTS) -> None:
    """Train the recipe's experts, trajectories or teachers, and store them."""
    recipe = options.recipe
    if recipe.buffer is None:
        raise UserError(f"The recipe {recipe.name} needs no experts; run distill.")
    if options.compile:
        log.say("warning: --compile is ignored, experts are trained uncompiled")
    if options.tensorboard:
        log.say("warning: --tensorboard is ignored, it shows distillations")
    device = start(options)
    data = load_for(options, device, root)
    stores = store_folders(
        replace(options, experts=options.out or options.experts), data.train.digest, root
    )
    check_networks(recipe, data)
    try:
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
        generate(
            data,
            recipe.data,
            recipe.buffer,
            name,
            new_model,
            folder,
            seed=options.seed,
            precision=options.precision,
        )
        store = ExpertStore(folder)
        scores = [
            a
            for i in range(store.num_experts)
            for a in store.metrics(i)["validation_accuracy"][-1:]
            if a is not None
        ]
        shown = (
            f", validation accuracy {100 * sum(scores) / len(scores):.1f} % after the last epoch"
            if scores
            else ""
        )
        what = f"{store.num_experts} experts of {recipe.buffer.epochs} epochs" + (
            f", teachers {name}," if recipe.teachers else ""
        )
        log.say(f"{what} in {folder}{shown}")


def run_identity(options: Options[Recipe], images: str, root: Path = EXPERTS) -> dict[str, Any]:
    """What makes two runs the same; experts of this program follow from recipe and seed, imported
    ones have a digest.
    """
    folders = (
        [folder for _, folder, _ in store_folders(options, images, root)]
        if options.recipe.buffer is not None
        else []
    )
    experts = ", ".join(filter(None, map(imported_digest, folders))) or None
    return runs.identity(
        options.recipe, images, seed=options.seed, precision=options.precision, compile=options.compile, experts=experts
    )  # fmt: skip


def open_store(
    options: Options[Recipe], data: Data, root: Path = EXPERTS
) -> ExpertStore | StoreGroup | None:
    """The expert stores of a recipe, None for a recipe without experts.

    Raises UserError for one that is not there or was made differently.
    """
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
    store = open_store(options, data, root) if reads_experts(recipe) else None
    syn, objective = api.prepare(
        recipe,
        data,
        device,
        store,
        seed=options.seed,
        precision=options.precision,
        compile=options.compile,
    )
    return syn, objective, store


def distill(options: Options[Recipe], root: Path = EXPERTS) -> Path:
    """Distill the recipe's dataset; returns the run's folder. Continues an unfinished run."""
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
    log.say(f"{recipe.data.name}: {data.said()}")
    board = log.Board(folder / "tensorboard") if options.tensorboard and dist.rank() == 0 else None
    began = time.perf_counter()
    syn, objective, store = prepare(options, data, device, root)
    initial_seconds = round(time.perf_counter() - began, 2)  # what a set that is only chosen costs
    outer.check(syn, objective, recipe.outer)  # before the folder is there
    if not options.force:
        costs.check(costs.job(options, load_for, open_store, root), syn, data, folder, device)

    def begin() -> None:
        if options.restart:
            runs.delete(folder, runs.MARK)
        runs.begin(folder, recipe, wanted, options.command)

    def picture(syn: synthetic.SyntheticSet, step: int) -> None:
        path = folder / "progress" / f"step_{step:06d}.png"
        report.grid(path, syn)
        if board is not None:
            board.picture(step, path)

    on_first_rank(begin)
    teachers = teachers_of(store, device) if recipe.evaluation.labels == "dynamic" else []
    result, counters = outer.distill(
        syn, objective, recipe.outer, folder, seed=seed,
        finish=partial(api.shipped, recipe=recipe, experts=store),
        validate=lambda s: validate(s, data, recipe.evaluation, recipe.model, seed=seed, device=device, precision=precision, teachers=teachers),
        picture=picture, board=board,
    )  # fmt: skip
    if dist.rank() == 0:
        meta = meta_of(
            options,
            recipe,
            data,
            store,
            device,
            distillation=outer.summary(counters) | {"initial_seconds": initial_seconds},
        )
        report.real_vs_distilled(folder / "real_vs_distilled.png", data.train, result, None)
        report.save_samples(folder / "samples.safetensors", data.train)
        set_folders.save(result, folder / "distilled", meta, data.split_names)
        stored = len(result.classes)
        tiles = "" if stored == len(result) else f", which decode to {len(result)},"
        log.say(
            f"distilled {stored} images{tiles} in "
            f"{log.duration(counters.seconds + initial_seconds)}: {folder / 'distilled'}"
        )
        log.say(report.ledger(result.nbytes(), data.bytes, data.dataset_bytes))
    return folder


def estimate(args: list[str]) -> None:
    """Say what buffer, distill and evaluate of a recipe will cost on this machine, from a short
    calibration; --json PATH writes it too.
    """
    words = [
        word for arg in args for word in (arg.split("=", 1) if arg.startswith("--json=") else [arg])
    ]
    at = words.index("--json") if "--json" in words else len(words)
    path, began = words[at + 1 : at + 2], time.perf_counter()
    options, parsing = (
        options_of("estimate", words[:at] + words[at + 2 :]),
        time.perf_counter() - began,
    )
    if at < len(words) and not path:
        raise UserError("--json needs the path of the file to write.")
    recipe = options.recipe
    if options.print_config:
        return print_config(recipe)
    if path:
        costs.check_path(Path(path[0]))
    device = one_process(options, "estimate")
    data, missing = load_for(options, torch.device("cpu")), {}
    check_networks(recipe, data)
    if recipe.buffer is not None:
        for model, folder, _ in store_folders(options, data.train.digest):
            missing[model] = max(0, recipe.buffer.num_experts - len(finished(folder)))
    job = costs.job(
        options,
        load_for,
        open_store,
        EXPERTS,
        train_expert=train_expert,
        set_options=set_options,
        parsing=parsing,
    )
    costs.show(
        job,
        missing,
        recipe,
        device,
        experts=options.experts or EXPERTS,
        run=options.out or Path("runs"),
        path=Path(path[0]) if path else None,
    )


def teachers_of(store: ExpertStore | StoreGroup | None, device: torch.device) -> list[nn.Module]:
    """The networks of a store after their last epoch; none without a store."""
    return [] if store is None else load_all(store, device)


def meta_of(
    options: Options[Recipe],
    recipe: Recipe,
    data: Data,
    store: ExpertStore | StoreGroup | None,
    device: torch.device,
    **more: Any,
) -> dict[str, Any]:
    """What meta.json says of a set beside what the set says itself."""
    return api.meta_of(
        recipe,
        data,
        store,
        device,
        seed=options.seed,
        precision=options.precision,
        bibtex=bibtex(recipe),
        **more,
    )


def select(options: Options[Recipe]) -> Path:
    """Write the real images that the recipe's init chooses, labelled with their classes, as a set
    like a distilled one; returns the folder.
    """
    recipe, kind = options.recipe, options.recipe.init.kind
    if kind not in SELECTIONS:
        raise UserError(
            f"run.py select chooses among real images, and init.kind is {kind}; set --init.kind "
            f"to one of {', '.join(SELECTIONS)}."
        )
    if options.compile:
        log.say("warning: --compile is ignored, nothing is compiled")
    if options.tensorboard:
        log.say("warning: --tensorboard is ignored, nothing is distilled")
    if options.out is not None:
        runs.check_folder(options.out)
    device = one_process(options, "select")
    asks_experts = kind in ASKS_EXPERTS
    if not asks_experts:  # then nothing depends on a store that happens to be there
        recipe = replace(
            recipe, buffer=None, teachers=(), evaluation=replace(recipe.evaluation, labels="own")
        )
        options = replace(options, recipe=recipe)
    data = load_for(options, device)
    log.say(f"{recipe.data.name}: {data.said()}")
    tiled = recipe.codec.per_item > 1
    recipe = replace(recipe, codec=Pixels())  # the bytes of real images as they are
    # the others play no role
    parts = (
        "name",
        "data",
        "model",
        "ipc",
        "init",
        "evaluation",
        *(["buffer"] if asks_experts else []),
    )
    whole = resolved(recipe)
    deciding = ["select", {part: whole[part] for part in parts}]
    wanted = run_identity(replace(options, compile=False), data.train.digest) | {
        "resolved": digest(deciding)
    }
    folder = options.out or Path("runs") / f"select-{kind}-{digest(wanted)}"
    if options.restart:
        runs.check_own(folder, runs.MARK)
    elif runs.is_finished(folder, wanted):
        log.say(f"{folder} is finished; --restart begins anew")
        return folder
    # which has no say in what networks may look at real images
    check_networks(replace(recipe, objective=None), data)
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    store = open_store(options, data)  # none where the kind asks none
    index = selected_index(
        data.train,
        recipe.ipc,
        data.class_names,
        generator(options.seed, "init"),
        recipe.init,
        store,
        new_model,
    )
    if options.restart:
        runs.delete(folder, runs.MARK)
    if tiled:
        log.say("images are chosen whole: the recipe's codec plays no role")
    runs.begin(folder, recipe, wanted, options.command)
    log.EventLog(folder / "metrics.jsonl").close()  # empty, as of a distillation without steps
    pixels, classes = (
        tensor.index_select(0, index.to(device))
        for tensor in (data.train.pixels, data.train.labels)
    )
    syn = synthetic.SyntheticSet(
        {"images": pixels},
        classes,
        data.class_names,
        recipe.codec,
        data.train.preprocess,
        space=recipe.codec.space,
    )
    report.real_vs_distilled(folder / "real_vs_distilled.png", data.train, syn, None)
    report.save_samples(folder / "samples.safetensors", data.train)
    selected = {
        "kind": kind,
        "index": index.tolist(),
        "names": [data.train_names[i] for i in index.tolist()],
    }
    meta = meta_of(options, recipe, data, store, device, selected=selected)
    set_folders.save(syn, folder / "distilled", meta, data.split_names)
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
    return folder, meta, cli.parse(EvaluateOptions, args, defaults, f"run.py {command} {path}")


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
    teachers = teachers_for(options, meta, data, device)
    files.make_folder(out)
    evaluation = evaluate(
        syn, data, options.evaluation, model, seed=options.seed, device=device, precision=options.precision,
        memo_path=out / "evaluation.partial.jsonl", seconds_before=time.perf_counter() - STARTED,
        name=row_name(meta, options.evaluation), teachers=teachers,
    )  # fmt: skip
    evaluation["command"] = ["python", "run.py", *words]
    files.write_json(out / "evaluation.json", evaluation)
    report.real_vs_distilled(out / "real_vs_distilled.png", data.train, syn, evaluation)
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
        report.heat_map(out / "heat_map.png", [(name, evaluation)])
        log.say(f"accuracy of every set on every network: {out / 'heat_map.png'}")
    return evaluation


def evaluate_paths(args: list[str]) -> None:
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
    log.console.print(report.cross_table(evaluations))
    metas = [files.read_json(runs.set_folder(path) / "meta.json") for path in paths]
    for found in scores.splits(
        [
            (name, meta, evaluation)
            for (name, evaluation), meta in zip(evaluations, metas, strict=True)
        ]
    ):
        log.say(scores.said(found))


def paths_of(args: list[str], command: str, what: str) -> list[Path]:
    """The paths before the first flag. Raises UserError without any."""
    paths = [
        Path(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), args)
    ]
    if not paths:
        raise UserError(f"run.py {command} needs {what} first.")
    return paths


def score(path: Path, args: list[str]) -> None:
    """DD-Ranking's scores of a set on every network: scores.json."""
    folder, meta, options = set_options(path, args, "score")
    out = options.out or path
    soft = meta["target_kind"] == "logits" or options.evaluation.labels == "dynamic"
    found = [
        evaluation_in(
            out / "scores" / name,
            folder,
            meta,
            replace(options, evaluation=config),
            ("score", str(path), *args),
            strict=True,
            command="score",
        )
        for name, config in zip(
            ("augmented", "plain"), scores.protocols(options.evaluation, soft), strict=True
        )
    ]
    made = scores.of(*found, name=found[0]["rows"][0]["set"])
    kept = ("machine", "versions", "commit", "seed", "precision")
    facts = {"scores": made, "interval": intervals.NAME}
    files.write_json(
        out / "scores.json",
        {
            **facts,
            "seconds": sum(e["seconds"] for e in found),
            **{k: found[0].get(k) for k in kept},
        },
    )
    log.console.print(scores.table(made, f"{meta['recipe']['name']}, accuracies as fractions"))
    log.say(f"95 % intervals are of the mean over networks, by {intervals.NAME}")
    for entry in made:
        if entry["diverged"]:
            log.say(
                f"warning: with {entry['diverged']} of the seeds a network on {entry['model']} "
                "diverged, and these do not count"
            )


def rank(path: Path, args: list[str]) -> None:
    """Do networks trained on the set come in the order they have on the full data? ranking.json and
    ranking.png.
    """
    from ddengine.evaluation import ranking  # scipy.stats takes a second to import

    folder, meta, options = set_options(path, args, "rank")
    out, config = options.out or path, options.evaluation
    channels, height, width = (
        set_folders.load(folder, torch.device("cpu"))[0]
        .pixels(torch.zeros(1, dtype=torch.long))
        .shape[1:]
    )
    asked = (
        config.baselines
        if any(word.split("=")[0] == "--baselines" for word in args)
        else ("random", "herding")
    )
    config = replace(
        config,
        models=config.models or ranking.grid((channels, height, width)),
        baselines=(*(b for b in asked if b != "full"), "full"),
    )
    if len(set(config.models)) < ranking.FEWEST:
        raise UserError(
            f"--models names {len(set(config.models))} networks, and a ranking needs "
            f"{ranking.FEWEST}; name more, or none for twelve of ours."
        )
    options = replace(options, evaluation=config)
    evaluation = evaluation_in(
        out / "ranking",
        folder,
        meta,
        options,
        ("rank", str(path), *args),
        strict=True,
        command="rank",
    )
    found = ranking.correlations(evaluation, seed=options.seed)
    files.write_json(out / "ranking.json", found)
    ranking.plot(out / "ranking.png", evaluation, found)
    log.console.print(ranking.table(found))


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions:
    """Flags of privacy."""

    seed: int = 0  # decides networks, orders and which images are compared
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder of privacy.json; None: the run, or the distilled folder
    model: str  # the network in whose embedding images are compared, and which is attacked
    full_steps: int  # most updates of the network that embeds, on the full data
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]


def privacy_of(path: Path, args: list[str]) -> None:
    """Which real images the distilled ones are nearest to, and whether membership shows:
    privacy.json and privacy.png.
    """
    from ddengine.uses import privacy

    folder, meta, defaults = set_defaults(path, [])
    model, config = meta["recipe"]["model"], defaults.evaluation
    options = cli.parse(
        PrivacyOptions,
        args,
        PrivacyOptions(model=model, full_steps=config.full_steps, data=defaults.data),
        f"run.py privacy {path}",
    )
    config = adapted(
        replace(config, full_steps=options.full_steps, models=(options.model,), baselines=()),
        options.model,
    )
    chosen = replace(
        defaults,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        data=options.data,
        evaluation=config,
    )
    out = options.out or path
    syn, data, device = open_set(folder, meta, chosen, "privacy")
    files.make_folder(out)
    build = partial(build_model, options.model, data.image_shape, data.num_classes)
    train = partial(
        training.train_networks,
        build,
        seeds=[options.seed],
        config=config,
        device=device,
        precision=options.precision,
    )
    learned = syn.lr if options.model == model and config.optimiser == "sgd" else None
    facts = {
        "model": options.model,
        "optimiser": config.optimiser,
        "lr": config.lr,
        "lr_on_set": learned or config.lr,
        "full_updates": min(config.full_steps, training.num_updates(len(data.train), config)),
        "labels": "hard" if config.loss == "uskd" else "own",
    }
    with log.progress("privacy", 3) as bar:
        bar.advance(f"{options.model} on the full data")
        full = train(sets=[data.train], lr=facts["lr"], steps=facts["full_updates"], labels="hard")[
            0
        ]
        bar.advance(f"{options.model} on the set")
        own = train(sets=[syn], lr=facts["lr_on_set"], labels=facts["labels"])[0]
        bar.advance("nearest images")
        found = privacy.measure(syn, data, full.embed, own, seed=options.seed)  # type: ignore[arg-type]
    found |= {
        "training": facts,
        "machine": runtime.machine(device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
    files.write_json(out / "privacy.json", found)
    privacy.picture(out / "privacy.png", syn, data, found)
    log.console.print(privacy.table(found))


@dataclass(frozen=True, kw_only=True)
class ContinualOptions(Generic[RecipeT]):
    """Flags of continual: --continual.stages, --continual.budget and so on, then those of the
    recipe, whose ipc follows from the budget.
    """

    seed: int = 0  # decides the order of the classes and every random draw
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder to write; None: runs/continual-RECIPE-HASH
    restart: bool = False  # begin anew, deleting what the folder holds
    print_config: bool = False  # print the resolved recipe and stop
    continual: ContinualConfig = ContinualConfig()
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def learn_continually(args: list[str]) -> None:
    """Class-incremental learning with memories of equal bytes: continual.json and continual.png;
    the same command continues.
    """
    from ddengine.uses import continual

    options: ContinualOptions[Recipe] = options_of("continual", args, flags=ContinualOptions)
    recipe, config = options.recipe, options.continual
    if options.print_config:
        return print_config(recipe)
    if "distilled" in config.memories and reads_experts(recipe):
        raise UserError(
            f"The recipe {recipe.name} needs experts, of each stage's classes; take one of a "
            "method without, such as dm/fashion_mnist_ipc10_small."
        )
    if (
        config.store == "uint8"
        and isinstance(recipe.codec, Identity)
        and not recipe.codec.bounded
        and not recipe.data.zca
    ):
        # the memory would cut what lies outside
        recipe = replace(recipe, codec=Identity(bounded=True))
        log.say(
            "images are distilled within the range of pixels (codec.bounded), because the memory "
            "keeps 8 bits; --continual.store float32 does not"
        )
    device = one_process(options, "continual")
    data = load_data(recipe.data, device, test=True)
    check_networks(recipe, data)
    continual.check(data, recipe, config)
    said = {"continual": to_dict(config), "seed": options.seed, "precision": options.precision}
    wanted = runs.identity(recipe, data.train.digest, **said)
    folder = (
        options.out or Path("runs") / f"continual-{recipe.name.replace('/', '-')}-{digest(wanted)}"
    )
    if options.restart:
        runs.delete(folder, "continual.recipe.json")
    runs.claim(folder, "continual.recipe.json", {"recipe": to_dict(recipe), **wanted})
    if (folder / "continual.json").is_file():
        result = files.read_json(folder / "continual.json", "memories")
        log.say(f"{folder / 'continual.json'} is there; --restart begins anew")
    else:

        def distill(of: Data, small: Recipe, seed: int, name: str) -> synthetic.SyntheticSet:
            return api.distill_data(
                of, small, seed=seed, device=device, precision=options.precision
            )

        result = continual.run(
            data,
            recipe,
            config,
            distill,
            seed=options.seed,
            device=device,
            precision=options.precision,
            memo_path=folder / "continual.partial.jsonl",
        )
        files.write_json(folder / "continual.json", result)
    continual.plot(folder / "continual.png", result)
    log.console.print(continual.table(result))
    for line in continual.notes(result):
        log.say(line)
    log.say(f"accuracy after each stage: {folder / 'continual.png'}")


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Flags of merge."""

    out: Path | None = None  # folder to write


def merge_sets(args: list[str]) -> None:
    """Make one distilled folder of several of one dataset; classes are matched by name."""
    from ddengine.sets import merge

    paths = paths_of(args, "merge", "the folders of runs or distilled sets")
    options = cli.parse(
        MergeOptions, args[len(paths) :], MergeOptions(), "run.py merge SET SET ..."
    )
    if options.out is None:
        raise UserError("run.py merge needs a folder to write; name it with --out.")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out} exists already; name another folder with --out.")
    folders = [runs.set_folder(path) for path in paths]
    loaded = [set_folders.load(folder, torch.device("cpu")) for folder in folders]
    metas = [meta for _, meta in loaded]
    maps, names = merge.class_maps(metas)
    # a run knows where its files lie, which a set does not say
    configs = [
        merge.config_of(meta, runs.data_of(path) if path != folder else None)
        for path, folder, meta in zip(paths, folders, metas, strict=True)
    ]
    merge.same_data(configs)
    merged = merge.merge(
        [syn for syn, _ in loaded], maps, names, preprocess=loaded[0][0].preprocess
    )
    ids = merge.class_ids(maps, configs, len(names))
    all_classes = all(config.classes is None for config in configs)
    wanted = (
        None if ids is None else replace(configs[0], classes=None if all_classes else tuple(ids))
    )
    data = merge.whole_data(configs, metas, wanted, merged.preprocess)
    own = {k: v for k, v in metas[0]["recipe"]["data"].items() if k != "classes"} | (
        {} if ids is None or all_classes else {"classes": ids}
    )
    recipe = {
        **metas[0]["recipe"],
        "ipc": max(1, round(merged.images_per_class())),
        "data": own,
        "published": None,
    }
    facts = (
        {}
        if data is None
        else {
            "images": data.train.digest,
            "raw_bytes": data.bytes,
            "dataset_bytes": data.dataset_bytes,
        }
    )
    if kinds := list(
        dict.fromkeys(str(meta["selected"].get("kind")) for meta in metas if "selected" in meta)
    ):
        if any("selected" not in meta for meta in metas):
            raise UserError(
                "Some of the sets are real images that were selected and some are distilled; "
                "merge those of one kind."
            )
        facts["selected"] = {"kind": " and ".join(kinds)}
    files.make_folder(options.out.parent)
    set_folders.save(
        merged,
        options.out,
        {
            "recipe": recipe,
            "merged": [str(f) for f in folders],
            "seed": None,
            **facts,
            "versions": runtime.versions(),
            "commit": runtime.commit(),
        },
    )
    log.say(f"{len(merged)} images of {len(names)} classes in {options.out}")
    root = [] if configs[0].root is None else ["--data.root", configs[0].root]
    log.say(f"evaluate them with {cli.as_typed('evaluate', str(options.out), *root)}")


def inspect(path: Path, args: list[str]) -> None:
    """Print what a store, run, set or file is."""
    if args:
        raise UserError(f"run.py inspect takes one path, got {' '.join(args)} too.")
    log.console.print(describe.shown(describe.describe(path)))


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Flags of report."""

    out: Path | None = None  # file to write; None: report.html in the first folder


def report_on(args: list[str]) -> None:
    """One page about one or several runs."""
    from ddengine.pages import page

    paths = paths_of(args, "report", "the folder of a run or of a distilled set")
    options = cli.parse(ReportOptions, args[len(paths) :], ReportOptions(), "run.py report RUN ...")
    log.say(f"report: {page.write(paths, options.out or paths[0] / 'report.html')}")


def teachers_for(
    options: EvaluateOptions, meta: dict[str, Any], data: Data, device: torch.device
) -> list[nn.Module]:
    """The teachers of a set, which label on the fly and label random images; none where the set has
    none.

    Raises UserError where dynamic labels need a store that is not there, or is not the one that the
    set was made with. A set that was imported says no fingerprints; there the stores in the folder
    that --experts names must be of these images.
    """
    recipe, dynamic = meta["recipe"], options.evaluation.labels == "dynamic"
    names, used = recipe.get("teachers") or [], (meta.get("experts") or {}).get("stores", [])
    if options.experts is not None and not names:
        raise UserError(
            "--experts names the stores of teachers, and this set was made without teachers; "
            "leave --experts out."
        )
    if dynamic and not (used or (names and options.experts)):
        raise UserError(
            "evaluation.labels dynamic needs the teachers of the set, and "
            + (
                "it does not say them; name the folder of their stores with --experts."
                if names
                else "it has none; set evaluation.labels own."
            )
        )
    epochs, found = recipe.get("targets", {}).get("epochs"), []
    for facts in used or [
        {"model": name, "fingerprint": None, "num": None} for name in names if options.experts
    ]:
        folder = (
            teacher_folder(options.experts, facts["model"])
            if options.experts
            else EXPERTS / facts["fingerprint"]
        )
        if not (folder / "manifest.json").is_file() and not dynamic and options.experts is None:
            log.say(
                f"warning: no store of the teacher {facts['model']} in {folder}; random_soft is "
                "labelled by a network trained on the full data"
            )
            return []
        store = ExpertStore(
            folder,
            partial(build_model, facts["model"], data.image_shape, data.num_classes),
            facts["num"],
        )
        if (
            facts["fingerprint"] not in (None, store.manifest["fingerprint"])
            or store.manifest["identity"]["images"] != data.train.digest
        ):
            raise UserError(
                f"{folder} holds other experts than those of the set; name the folder of its own "
                "with --experts."
            )
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
    # refuses a folder of something else
    runs.is_finished(
        folder, run_identity(options, data.train.digest, folder / "experts"), beside="experts"
    )
    buffer(options, folder / "experts")
    distill(replace(options, out=folder), folder / "experts")
    flags = [
        "--seed",
        str(options.seed),
        "--device",
        options.device,
        "--precision",
        options.precision,
    ]
    evaluation = evaluate_path(folder, flags)
    report_on([str(folder)])
    log.say(
        f"pictures: {folder / 'real_vs_distilled.png'} and {folder / 'progress'}; the set: "
        f"{folder / 'distilled'}"
    )
    log.say(f"{log.duration(evaluation['seconds'])} in all")


def import_files(args: list[str]) -> None:
    """Bring files of other programs in: experts and networks as a store, images as a distilled
    folder. What a file is, its content says.
    """
    from buffers import imports

    options: imports.ImportOptions[Recipe] = options_of("import", args, flags=imports.ImportOptions)
    if not options.files:
        raise UserError("run.py import needs the files to import; name them with --files.")
    imports.bring_in(options)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Flags of export."""

    # mtt: the files of MTT, FTD, TESLA and DATM | webdataset: a tar, or several, of 8-bit PNGs |
    # imagefolder: such PNGs in a folder for each class
    format: Literal["mtt", "webdataset", "imagefolder"] = "mtt"
    out: Path | None = None  # folder to write
    per_file: int = 10  # experts in a file of mtt
    per_shard: int = 10_000  # images in a tar of webdataset


def export(path: Path, args: list[str]) -> None:
    """Write an expert store, a run or a distilled folder as files of the published programs, a run
    or a distilled folder as image files.
    """
    options = cli.parse(ExportOptions, args, ExportOptions(), f"run.py export {path}")
    if options.out is None:
        raise UserError("run.py export needs a folder to write; name it with --out.")
    if (path / "manifest.json").is_file():
        if options.format != "mtt":
            raise UserError(
                f"{path} holds experts, and format {options.format} is one of images; set "
                "--format mtt."
            )
        written = export_experts(path, options.out, options.per_file)
    else:
        folder = runs.set_folder(path)
        if not (folder / "meta.json").is_file():
            raise UserError(
                f"{path} is neither an expert store nor a distilled set; give the folder that "
                "buffer, distill or import wrote."
            )
        syn, meta = set_folders.load(folder, torch.device("cpu"))
        if options.format == "webdataset":
            files.make_folder(options.out)
            written = handover.write_webdataset(syn, options.out / "train.tar", options.per_shard)
        elif options.format == "imagefolder":
            written = [handover.write_image_folder(syn, options.out)]
        else:
            written = exchange.export_set(syn, set_name(folder, meta), options.out)
        if options.format == "mtt" and len(syn) > len(syn.classes):
            log.say(
                f"{len(syn.classes)} stored images are written as the {len(syn)} that they decode "
                "to; such files have no codec"
            )
    log.say(
        f"{', '.join(p.name for p in written[:3])}{' ...' if len(written) > 3 else ''} in "
        f"{options.out}"
    )


def set_name(folder: Path, meta: dict[str, Any]) -> str:
    """The X of images_X.pt: the outer steps of a set of this program, or that it was imported or
    selected.
    """
    for origin in ("imported", "selected"):
        if origin in meta:
            return origin
    try:
        return str(int(meta["recipe"]["outer"]["steps"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder / 'meta.json'} does not say the recipe of the set, so its files have no "
            "name; distill it again."
        ) from None


def recipes(args: list[str]) -> None:
    """Print the table of recipes."""
    if args:
        raise UserError(f"run.py recipes takes no arguments, got {' '.join(args)}.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # 80 columns are enough for it
    for column in ("recipe", "published %", "for", "network"):
        table.add_column(column, no_wrap=True)
    for recipe in RECIPES.values():
        figure = recipe.published
        shown = (
            "-"
            if figure is None
            else f"{100 * figure.accuracy:.1f}"
            + (f" ± {100 * figure.std:.1f}" if figure.std is not None else "")
        )
        table.add_row(recipe.name, shown, wants(recipe), recipe.model)
    log.console.print(table)
    log.say("run.py distill NAME --print_config shows a recipe, with notes on its figure")


def cite(args: list[str]) -> None:
    """Print the BibTeX entries of what a recipe uses, as they are, so that they can be sent to a
    file.
    """
    options = options_of("cite", args)
    if options.print_config:
        return print_config(options.recipe)
    log.console.print(bibtex(options.recipe), end="", emoji=False)


def wants(recipe: Recipe) -> str:
    """What the work wants to run on: minutes of a CPU, or hours of a GPU."""
    small = recipe.data.name == "digits" or (
        recipe.data.limit is not None and recipe.data.limit <= 10_000
    )
    return "CPU" if small else "GPU"


USAGE = f"""usage: run.py COMMAND [arguments]

  demo                        digits, one image per class: experts, distillation, evaluation, report (minutes on a CPU)
  estimate RECIPE [flags]     what buffer, distill and evaluate will cost here: time, memory, disk (a minute for small recipes); --json PATH
  buffer RECIPE [flags]       train and store the expert trajectories of a recipe
  distill RECIPE [flags]      distill; the same command continues an unfinished run
  select RECIPE [flags]       no distillation: the real images that --init.kind chooses, as such a set

  evaluate SET... [flags]     train networks on distilled sets beside random, herding and full data
  score SET [flags]           DD-Ranking's label-robust and augmentation-robust scores
  rank SET [flags]            do many networks come in the same order on the set as on the full data?
  privacy SET [flags]         the real images nearest to the distilled ones; does membership show?
  continual RECIPE [flags]    class-incremental learning: distilled, random and herding memories of equal bytes
  report SET... [--out FILE]  one HTML page about one or several runs

  merge SET... --out FOLDER   sets of some classes each (--data.classes), or of the same, as one
  import RECIPE --files PATH... [flags]                                  others' experts, networks or distilled sets: a store, or a set
  export SET --format mtt | webdataset | imagefolder --out FOLDER        a set, or with mtt a store, as such files
  inspect PATH                what a store, run, set or file is
  recipes                     list the recipes with their published figures
  cite RECIPE [flags]         BibTeX of the method, its parts and the dataset

SET is the folder of a run, or of a distilled set. Every field of a recipe is a flag: run.py distill {DEMO} --help.
--take PART=RECIPE takes a part from another recipe, for example buffer, targets or objective.window."""


def on_recipe(
    command: str, action: Callable[[Options[Recipe]], Any]
) -> Callable[[list[str]], None]:
    """A command whose arguments are a recipe and its flags."""

    def run(args: list[str]) -> None:
        options = options_of(command, args)
        if options.print_config:
            print_config(options.recipe)
        else:
            action(options)

    return run


def on_path(
    command: str, what: str, action: Callable[[Path, list[str]], None]
) -> Callable[[list[str]], None]:
    """A command whose arguments are a path and flags."""
    return lambda args: action(paths_of(args[:1], command, what)[0], args[1:])


SET = "the folder of a run or of a distilled set"
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "estimate": estimate,
    "buffer": on_recipe("buffer", buffer),
    "distill": on_recipe("distill", distill),
    "select": on_recipe("select", select),
    "evaluate": evaluate_paths,
    "score": on_path("score", SET, score),
    "rank": on_path("rank", SET, rank),
    "privacy": on_path("privacy", SET, privacy_of),
    "continual": learn_continually,
    "report": report_on,
    "merge": merge_sets,
    "import": import_files,
    "export": on_path("export", "the folder of an expert store, a run or a distilled set", export),
    "inspect": on_path("inspect", "the path of a store, run, set or file", inspect),
    "recipes": recipes,
    "cite": cite,
}


def main(args: list[str]) -> None:
    """Dispatch a command line."""
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
    elif command in COMMANDS:
        COMMANDS[command](rest)
    else:
        raise unknown("command", command, COMMANDS)


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
