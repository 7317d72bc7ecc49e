"""The command line: one module a command, each imported when its command is called.

A command parses its options, makes one call of the public API (ddengine, buffers, synth) and prints
what came of it. This is the one room, beside contract, that may import buffers and synth.
"""

import time

STARTED = time.perf_counter()  # before the imports, which take seconds

import importlib
import os
import sys

from ddengine.system import program
from ddengine.system.errors import UserError, unknown

DEMO = "mtt/digits_ipc1"
# command -> the module of this package whose `main` takes its arguments
COMMANDS = {
    "demo": "demo",
    "advise": "advise",
    "estimate": "estimate",
    "buffer": "buffer",
    "distill": "distill",
    "select": "select",
    "evaluate": "evaluate",
    "score": "score",
    "rank": "rank",
    "privacy": "privacy",
    "continual": "continual",
    "transfer": "transfer",
    "prune": "prune",
    "buy_labels": "buy_labels",
    "sweep": "sweep",
    "compare": "compare",
    "report": "report",
    "merge": "merge",
    "quantise": "quantise",
    "thin": "thin",
    "import": "bring_in",
    "export": "export",
    "push": "push",
    "inspect": "inspect",
    "verify": "verify",
    "recipes": "recipes",
    "cite": "cite",
}
USAGE = f"""\
usage: run.py COMMAND [arguments]

  demo                        digits, one image per class, in minutes on a CPU: experts,
                              distillation, evaluation, report
  advise [--data...] [--minutes N]
                              recipes for images and a time: what they take, what to expect
  estimate RECIPE... [flags]  what buffer, distill and evaluate will cost here: time, memory, disk
                              (a minute for small recipes); --json PATH
  buffer RECIPE [flags]       train and store the expert trajectories of a recipe
  distill RECIPE [flags]      distill; the same command continues an unfinished run
  select RECIPE [flags]       no distillation: the real images that --init.kind chooses, as a set

  evaluate SET... [flags]     train networks on distilled sets beside random, herding and full data
  score SET [flags]           DD-Ranking's label-robust and augmentation-robust scores
  rank SET [flags]            do many networks come in the same order as on the full data?
  privacy SET [flags]         the real images nearest to the distilled ones; does membership show?
  continual RECIPE [flags]    class-incremental learning: distilled, random and herding memories
                              of equal bytes
  transfer SET --to DATASET... [flags]
                              networks pre-trained on the set: linear probe and fine-tuning on
                              other datasets, full and few-shot (--shots), beside controls
  prune RECIPE [flags]        part of the data kept, at random or by a rule, and networks that learn
                              it with and without a teacher of all data
  buy_labels RECIPE [flags]   which labels to buy of a teacher that errs, round by round: robust,
                              unsure and random choices; --answers FILE asks a person
  sweep RECIPE --grid FIELD=VALUES --seeds 0,1,2 [flags]
                              all settings of a grid, distilled and evaluated with some seeds
  compare RUN... [flags]      a row for each setting: mean over seeds, spreads, paired differences;
                              --to, --csv, --latex, --x
  report SET... [--out FILE]  one HTML page about one or several runs

  merge SET... --out FOLDER   sets of some classes each (--data.classes), or of the same, as one
  quantise SET --out FOLDER [flags]
                              a finished set in 2, 3, 4 or 8 bits a value; --bytes for a budget
  thin SET --bytes N --out FOLDER
                              a finished set without the images that networks learn worst and first
  import RECIPE --files PATH... [flags]
                              others' experts, networks or distilled sets: a store, or a set
  export SET --format mtt | webdataset | folders | hub --out FOLDER
                              a set, or with mtt a store, as such files
  push SET --repo USER/NAME   a set to the Hugging Face Hub
  inspect PATH                what a store, run, set or file is
  verify PATH                 are all files of a store, run or set those that were written?
  recipes                     list the recipes with their published figures
  cite RECIPE [flags]         BibTeX of the method, its parts and the dataset; or cite prune, cite
                              buy_labels

SET is the folder of a run, or of a distilled set. Flags may stand before it.
Every field of a recipe is a flag: run.py distill {DEMO} --help.
--take PART=RECIPE takes a part from another recipe: buffer, targets or objective.window."""


def usage() -> str:
    """What the program can do, under the name that it was started by."""
    return USAGE.replace("run.py", program.name())


def run(args: list[str]) -> None:
    """Dispatch a command line. Raises UserError for a command that does not exist."""
    command, rest = args[0], args[1:]
    if command.startswith("-"):
        raise UserError(
            f"{command} stands before the command; write {program.name()} COMMAND first, and its "
            "flags behind it."
        )
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    importlib.import_module(f"ddengine.commands.{COMMANDS[command]}").main(rest)


def main(args: list[str] | None = None) -> int:
    """Run a command line, by default that of this process, and return its exit code."""
    words = sys.argv[1:] if args is None else args
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(program.version())
        return 0
    # before torch is imported: a thread that waits for another one is not to keep a core busy,
    # which other programs, or the threads that it waits for, could have
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from ddengine.commands.cli import run as guarded  # torch takes seconds to import

    program.know_packages_here()
    return guarded(lambda: run(words))
