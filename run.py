"""Dataset distillation from the command line: parses, opens stores, builds, calls."""

import time

STARTED = time.perf_counter()  # before the imports, which take seconds

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro
from rich import box
from rich.table import Table

from buffers.generate import generate
from buffers.store import ExpertStore, check_identity, identity, stored_preprocess
from ddengine import cli, dist, files, log, report, runs, runtime, synthetic
from ddengine import distill as outer
from ddengine.data import Data, Preprocess, load_data
from ddengine.errors import UserError, unknown
from ddengine.evaluate import PROTOCOLS, evaluate, validate
from ddengine.flat import FlatModel
from ddengine.models import build_model
from ddengine.recipe import DataConfig, EvalConfig, Recipe, digest, from_dict, parametrised, to_dict
from ddengine.rng import generator
from ddengine.runtime import Precision
from ddengine.types import Env
from synth.recipes import RECIPES, find, take

DEMO = "mtt/digits_ipc1"
EXPERTS = Path("experts")
RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True, kw_only=True)
class Options(Generic[RecipeT]):
    """What belongs to a run and not to its recipe."""

    seed: int = 0  # decides every random draw of the run
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder to write; None: runs/RECIPE-HASH, or experts/FINGERPRINT for buffer
    experts: Path | None = None  # expert store; None: experts/FINGERPRINT
    restart: bool = False  # begin anew, deleting what the folder holds
    compile: bool = False  # compile the inner training step
    print_config: bool = False  # print the resolved recipe and stop
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def options_of(command: str, args: list[str], fixed: str | None = None) -> Options[Recipe]:
    """Options and recipe from `RECIPE [--take PART=RECIPE]... [flags]`."""
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
    recipe = replace(recipe, evaluation=named_protocol(rest, "--evaluation.protocol") or recipe.evaluation)
    kind = Options[parametrised(recipe)]
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


def buffer_model(recipe: Recipe) -> str:
    """The network of the recipe's experts."""
    return (recipe.buffer and recipe.buffer.model) or recipe.model


def store_folder(options: Options[Recipe], images: str, root: Path = EXPERTS) -> tuple[Path, dict[str, Any]]:
    """(folder, identity) of the expert store of a recipe on these images."""
    recipe = options.recipe
    content = identity(images, recipe.data, recipe.buffer, buffer_model(recipe), options.seed, options.precision)
    return options.experts or root / digest(content), content


def load_for(options: Options[Recipe], device: torch.device, root: Path = EXPERTS) -> Data:
    """The recipe's data, preprocessed as its expert store has it, where there is one."""

    def stored(images: str) -> Preprocess | None:
        if options.recipe.buffer is None:
            return None
        return stored_preprocess(store_folder(options, images, root)[0])

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
    """Build every network of the recipe once, so that a wrong name fails before any work."""
    for name in {recipe.model, buffer_model(recipe), *recipe.evaluation.models}:
        build_model(name, data.image_shape, data.num_classes, generator(0))


def buffer(options: Options[Recipe], root: Path = EXPERTS) -> None:
    """Train the recipe's expert trajectories and store them."""
    recipe = options.recipe
    if recipe.buffer is None:
        raise UserError(f"The recipe {recipe.name} needs no experts; run distill.")
    if options.compile:
        log.say("warning: --compile is ignored, experts are trained uncompiled")
    device = start(options)
    data = load_for(options, device, root)
    folder, _ = store_folder(replace(options, experts=options.out or options.experts), data.train.digest, root)
    check_networks(recipe, data)
    if options.restart:
        on_first_rank(lambda: runs.delete(folder, "manifest.json"))
    name = buffer_model(recipe)
    new_model = partial(build_model, name, data.image_shape, data.num_classes)
    generate(data, recipe.data, recipe.buffer, name, new_model, folder, seed=options.seed, precision=options.precision)
    store = ExpertStore(folder)
    scores = [a for i in range(store.num_experts) for a in store.metrics(i)["validation_accuracy"][-1:]]
    shown = f", validation accuracy {100 * sum(scores) / len(scores):.1f} % after the last epoch" if scores else ""
    log.say(f"{store.num_experts} experts of {recipe.buffer.epochs} epochs in {folder}{shown}")


def distill(options: Options[Recipe], root: Path = EXPERTS) -> Path:
    """Distil the recipe's dataset; returns the run's folder. Continues an unfinished run."""
    recipe, seed, precision = options.recipe, options.seed, options.precision
    if options.out is not None:
        runs.check_folder(options.out)
    device = start(options)
    data = load_for(options, device, root)
    wanted = runs.identity(recipe, data.train.digest, seed=seed, precision=precision, compile=options.compile)
    folder = options.out or runs.default_folder(recipe, wanted)
    if options.restart:
        runs.check_own(folder, runs.MARK)
    elif runs.is_finished(folder, wanted, beside=root.name):
        log.say(f"{folder} is finished; --restart begins anew")
        return folder
    check_networks(recipe, data)
    new_model = partial(build_model, recipe.model, data.image_shape, data.num_classes)
    store = None
    if recipe.buffer is not None:
        experts, content = store_folder(options, data.train.digest, root)
        check_identity(experts, content)
        store = ExpertStore(experts, new_model, recipe.buffer.num_experts)
    env = Env(data.train, new_model, FlatModel(new_model(generator(0)), precision).to(device), store, device, options.compile)
    objective = recipe.objective.build(env)
    syn = synthetic.initial(recipe, data, generator(seed, "init"))

    def begin() -> None:
        if options.restart:
            runs.delete(folder, runs.MARK)
        runs.begin(folder, recipe, wanted)

    on_first_rank(begin)
    result, counters = outer.distill(
        syn, objective, recipe.outer, folder, seed=seed,
        validate=lambda s: validate(s, data, recipe.evaluation, recipe.model, seed=seed, device=device, precision=precision),
        picture=lambda s, step: report.grid(folder / "progress" / f"step_{step:06d}.png", s),
    )  # fmt: skip
    if dist.rank() == 0:
        meta = {
            "recipe": to_dict(replace(recipe, data=replace(recipe.data, root=None))),
            "seed": seed,
            "precision": precision,
            "images": data.train.digest,
            "raw_bytes": data.bytes,
            "distillation": outer.summary(counters),
            "machine": runtime.machine(device),
            "versions": runtime.versions(),
            "commit": runtime.commit(),
        }
        report.real_vs_distilled(folder / "real_vs_distilled.png", data.train, result, None)
        result.save(folder / "distilled", meta)
        log.say(f"distilled {len(result)} images in {log.duration(counters.seconds)}: {folder / 'distilled'}")
    return folder


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Flags of evaluate."""

    seed: int = 0  # decides networks, orders, augmentation and random draws
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder of evaluation.json; None: the run, or the distilled folder
    restart: bool = False  # evaluate again although evaluation.json is there
    data: Annotated[DataConfig, tyro.conf.FlagConversionOff]
    evaluation: Annotated[EvalConfig, tyro.conf.arg(name="")]


def evaluate_path(path: Path, args: list[str]) -> dict[str, Any]:
    """Evaluate a run or a distilled folder, write evaluation.json and print it as a table."""
    run = path if (path / "distilled").is_dir() else None
    folder = path / "distilled" if run else path
    _, meta = synthetic.load(folder, torch.device("cpu"))
    recipe = meta.get("recipe", {})
    if not {"name", "model", "data", "evaluation"} <= recipe.keys():
        raise UserError(f"{folder / 'meta.json'} does not say the recipe of the set, so it cannot be evaluated; distil it again.")
    data_config = from_dict(DataConfig, runs.data_of(run) if run else recipe["data"])
    protocol = named_protocol(args, "--protocol") or from_dict(EvalConfig, recipe["evaluation"])
    options = cli.parse(EvaluateOptions, args, EvaluateOptions(data=data_config, evaluation=protocol), f"run.py evaluate {path}")
    out = options.out or path
    models = options.evaluation.models or (recipe["model"],)
    if (out / "evaluation.json").exists() and not options.restart:
        try:
            evaluation = files.read_json(out / "evaluation.json", "rows", "protocol")
        except UserError:
            raise UserError(f"{out / 'evaluation.json'} is damaged; evaluate again with --restart.") from None
        if args and evaluation["protocol"] != to_dict(replace(options.evaluation, models=models)):
            raise UserError(f"{out / 'evaluation.json'} was made with other settings; evaluate again with --restart, or name a folder with --out.")
        log.say(f"{out / 'evaluation.json'} is there; --restart evaluates again")
    else:
        device = one_process(options, "evaluate")
        syn, _ = synthetic.load(folder, device)
        data = load_data(options.data, device, test=True, stored=lambda images: syn.preprocess)
        if data.class_names != syn.class_names or data.image_shape != tuple(syn.pixels().shape[1:]):
            raise UserError(
                f"{folder} was distilled from other images than data.name {options.data.name} gives; set the data flags it was made with."
            )
        if data.train.digest != meta.get("images", data.train.digest):
            raise UserError(
                f"The training images are not those that {folder} was distilled from, so its test images may have been seen; "
                "set the data flags it was made with (data.limit, data.validation, data.split_seed)."
            )
        for name in models:
            build_model(name, data.image_shape, data.num_classes, generator(0))  # a wrong name fails before the first training
        files.make_folder(out)
        evaluation = evaluate(
            syn, data, options.evaluation, recipe["model"], seed=options.seed, device=device, precision=options.precision,
            memo_path=out / "evaluation.partial.jsonl", seconds_before=time.perf_counter() - STARTED,
        )  # fmt: skip
        files.write_json(out / "evaluation.json", evaluation)
        report.real_vs_distilled(out / "real_vs_distilled.png", data.train, syn, evaluation)
    log.console.print(report.table(evaluation, f"{recipe['name']}, test accuracy"))
    return evaluation


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
    key = {"seed": options.seed, "precision": options.precision, "compile": options.compile}
    runs.is_finished(folder, runs.identity(options.recipe, data.train.digest, **key), beside="experts")  # refuses a folder of something else
    options = replace(options, out=None, experts=None, restart=False)
    buffer(options, folder / "experts")
    distill(replace(options, out=folder), folder / "experts")
    flags = ["--seed", str(options.seed), "--device", options.device, "--precision", options.precision]
    evaluation = evaluate_path(folder, flags)
    log.say(f"pictures: {folder / 'real_vs_distilled.png'} and {folder / 'progress'}; the set: {folder / 'distilled'}")
    log.say(f"{log.duration(evaluation['seconds'])} in all")


def recipes(args: list[str]) -> None:
    """Print the table of recipes."""
    if args:
        raise UserError(f"run.py recipes takes no arguments, got {' '.join(args)}.")
    table = Table(box=box.SIMPLE)
    for column in ("recipe", "published %", "cost", "network"):
        table.add_column(column, no_wrap=True)
    for recipe in RECIPES.values():
        figure = recipe.published
        shown = "-" if figure is None else f"{100 * figure.accuracy:.1f}" + (f" ± {100 * figure.std:.1f}" if figure.std is not None else "")
        table.add_row(recipe.name, shown, cost_class(recipe), recipe.model)
    log.console.print(table)
    log.say("run.py distill NAME --print_config shows a recipe, with notes on its figure")


def cost_class(recipe: Recipe) -> str:
    """A rough size of the work: what it wants to run on."""
    wide = "-w128" in recipe.model
    return "GPU hours" if wide and recipe.outer.steps >= 1000 else "CPU minutes"


USAGE = f"""usage: run.py COMMAND [arguments]

  demo                        digits, one image per class: experts, distillation, evaluation, pictures (minutes on a CPU)
  buffer RECIPE [flags]       train and store the expert trajectories of a recipe
  distill RECIPE [flags]      distil; the same command continues an unfinished run
  evaluate PATH [flags]       train networks on a distilled set beside random, herding and full data
  recipes                     list the recipes with their published figures

Every field of a recipe is a flag: run.py distill {DEMO} --help. --take PART=RECIPE takes a whole part from another recipe."""


def main(args: list[str]) -> None:
    """Dispatch a command line."""
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE)
    elif command == "demo":
        demo(rest)
    elif command in ("buffer", "distill"):
        options = options_of(command, rest)
        if options.print_config:
            print_config(options.recipe)
        elif command == "buffer":
            buffer(options)
        else:
            distill(options)
    elif command == "evaluate":
        if not rest or rest[0].startswith("-"):
            raise UserError("run.py evaluate needs the folder of a run or of a distilled set first.")
        evaluate_path(Path(rest[0]), rest[1:])
    elif command == "recipes":
        recipes(rest)
    else:
        raise unknown("command", command, ("demo", "buffer", "distill", "evaluate", "recipes"))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
