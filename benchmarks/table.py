"""Result tables: runs buffer, distill and evaluate of each row, and writes what came out.

The same command resumes.

    python benchmarks/table.py NAME [--jobs 2]              a table of this file
    python benchmarks/table.py NAME RECIPE [RECIPE ...]    one row a recipe, each with its baselines
    python benchmarks/table.py NAME --data_root PATH        where the images lie
    python benchmarks/table.py NAME --cifar10 PATH          where CIFAR-10 lies as parquet files

Writes docs/results/NAME.md, docs/results/NAME.json (every evaluation.json, with cost, machine,
versions and commit) and, of runs that validated while they distilled, docs/results/NAME.png
(accuracy against time). Runs go to runs/NAME. With several jobs that many processes share the
cores, each with its part of the threads.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import forms
import torch

from ddengine.pages import figures
from ddengine.system import files, runtime

ROOT = Path(__file__).resolve().parent.parent
RIVALS = ("random", "random_soft", "random_coded", "herding", "k_centre", "k_means")
# named after the run, not its group
OWN_ROWS = ("distilled", "raw", "distilled_same_steps", "random_coded", "base", "distilled_hard")
CONTROLS = ("random_coded", "base", "distilled_hard")  # of those, what is not meant to win
COLUMNS = (
    "row",
    "set",
    "accuracy % (95 % interval)",
    "n",
    "images",
    "bytes",
    "of them labels",
    "learning rate",
    "updates",
    "evaluation",
    "distillation",
    "peak memory",
    "experts",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One distillation."""

    label: str
    recipe: str
    flags: tuple[str, ...] = ()
    baselines: tuple[str, ...] | None = ()  # trained beside it; None: the recipe's
    group: str = ""  # rows of a group are compared with the baselines of any of them
    # label of the row whose set is evaluated, with the flags; none: an own distillation
    of: str = ""
    evaluate: tuple[str, ...] = ()  # flags of the evaluation alone

    @property
    def folder(self) -> str:
        """Its label as the name of a folder."""
        return "".join(c if c.isalnum() or c in "-+." else "_" for c in self.label)


def name_of(method: str) -> str:
    """What papers call a method."""
    return {"rat": "RaT-BPTT", "at": "AT-BPTT"}.get(method, method.upper())


EXPERTS = ("--buffer.num_experts", "4", "--buffer.epochs", "8")
STEPS = {
    1: ("--outer.steps", "200", "--objective.inner_steps", "20"),
    10: ("--outer.steps", "150", "--objective.inner_steps", "20"),
}
WINDOW = {1: ("--objective.window.high", "4"), 10: ("--objective.window.high", "6")}
OWN = {  # what follows from the shorter run and window
    ("datm", 1): ("--objective.window.first", "2", "--objective.window.grow", "100"),
    ("datm", 10): ("--objective.window.first", "3", "--objective.window.grow", "75"),
}
ALL = ("random", "random_soft", "herding", "full")
NONE = "mtt/cifar10_ipc1"  # a recipe whose slots are empty


def small(method: str, ipc: int) -> tuple[str, ...]:
    """The budget that all methods share."""
    return (*EXPERTS, *STEPS[ipc], *WINDOW[ipc], *OWN.get((method, ipc), ()))


def _methods() -> list[Row]:
    return [
        Row(
            label=f"{method.upper()}, IPC {ipc}",
            recipe=f"{method}/fashion_mnist_ipc{ipc}_small",
            flags=small(method, ipc),
            baselines=ALL if method == "mtt" else (),
            group=f"IPC {ipc}",
        )
        for ipc in (1, 10)
        for method in ("mtt", "ftd", "tesla", "datm", "ast")
    ]


def _parts() -> list[Row]:
    def row(label: str, *flags: str, method: str) -> Row:
        return Row(
            label=label,
            recipe=f"{method}/fashion_mnist_ipc1_small",
            flags=(*small(method, 1), *flags),
        )

    ast = [
        ("AST, all parts", ()),
        (
            "AST without heavy ball (rate x 10)",
            ("--objective.momentum", "0", "--objective.lr", "0.1"),
        ),
        ("AST without balanced loss", ("--take", f"objective.loss_scale={NONE}")),
        ("AST without intermediate matching", ("--take", f"objective.milestones={NONE}")),
        ("AST without weight perturbation", ("--take", f"objective.perturb={NONE}")),
        ("AST without representative start", ("--init.kind", "real")),
        ("AST experts without clipping loss", ("--buffer.step.clip", "1")),
        ("AST experts without gradient penalty", ("--buffer.step.penalty", "0")),
        (
            "AST experts without momentum (rate x 10)",
            ("--buffer.step.sgd.momentum", "0", "--buffer.step.sgd.lr", "0.03"),
        ),
    ]
    datm = [
        ("DATM, all parts", ()),
        ("DATM without growing window", ("--objective.window.first", "4")),
        (
            "DATM without correct start (labels by all)",
            ("--init.kind", "real", "--targets.experts", "all"),
        ),
        ("DATM without learning the labels", ("--outer.optim.logits.lr", "0")),
        (
            "DATM with hard labels",
            ("--take", f"targets={NONE}", "--take", "outer.optim=mtt/fashion_mnist_ipc1_small"),
        ),
        ("DATM without update gate", ("--outer.max_loss", "inf")),
        ("DATM with MTT's experts", ("--take", "buffer=mtt/fashion_mnist_ipc1_small")),
        ("DATM with AST's experts", ("--take", "buffer=ast/fashion_mnist_ipc1_small")),
    ]
    soft = (
        "--objective.labels",
        "target",
        "--targets.kind",
        "logits",
        "--targets.experts",
        "all",
        "--targets.relabel",
        "True",
    )
    return [
        *(row(label, *flags, method="ast") for label, flags in ast),
        *(row(label, *flags, method="datm") for label, flags in datm),
        row("TESLA with expert-made labels", *soft, "--targets.epochs", "2", "5", method="tesla"),
    ]


def _matching() -> list[Row]:
    """The methods that need no experts, MTT beside them, and the coresets.

    They follow the protocol of the small recipes, at IPC 10 half as long.
    """
    half = {1: (), 10: ("--evaluation.epochs", "150")}
    chosen = ("random", "herding", "k_centre", "k_means")
    mtt = {ipc: (*small("mtt", ipc), "--outer.evaluate_every", "30") for ipc in (1, 10)}
    mtt[10] = (*mtt[10], "--outer.steps", "120")
    return [
        Row(
            label=f"{method.upper()}, IPC {ipc}",
            recipe=f"{method}/fashion_mnist_ipc{ipc}_small",
            flags=(*(mtt[ipc] if method == "mtt" else ()), *half[ipc]),
            baselines=(*chosen, "full")
            if (method, ipc) == ("dm", 1)
            else chosen
            if method == "dm"
            else (),
            group=f"IPC {ipc}",
        )
        for ipc in (1, 10)
        for method in ("dm", "dc", "dsa", "idc", "mtt")
    ]


NETWORKS = (
    "convnet-d3-w16-in",
    "convnet-d2-w16-bn",
    "mlp",
    "lenet",
    "resnet18-bn-x12",
    "shufflenet_g2-x25",
)


def _cross() -> list[Row]:
    """Sets that one network distilled or chose, on six.

    Baselines are shared out so that two jobs take equally long.
    """
    shown = (
        "--evaluation.models",
        *NETWORKS,
        "--evaluation.epochs",
        "120",
        "--evaluation.num_networks",
        "3",
    )
    chosen = (
        "--evaluation.lr_grid",
        "0.003",
        "0.01",
        "0.03",
        "0.1",
        "--evaluation.full_steps",
        "120",
    )
    budget = {"mtt": (*small("mtt", 10), "--outer.steps", "120"), "dm": ()}
    baselines = {"mtt": ("full",), "dm": ("random", "herding")}
    rows = []
    for method in ("mtt", "dm"):
        row = Row(
            label=method.upper(),
            recipe=f"{method}/fashion_mnist_ipc10_small",
            flags=(*budget[method], *shown, *chosen),
            baselines=baselines[method],
            group="IPC 10",
        )
        rows.append(row)
    return rows


# three without BatchNorm, of which the first makes the sets, and three with it
FORMS_NETWORKS = (
    "convnet-d3-w16-in",
    "mlp",
    "lenet",
    "convnet-d3-w16-bn",
    "convnet-d2-w16-bn",
    "resnet18-bn-x12",
)
FORMS_FLAGS = {
    "mtt": (*small("mtt", 10), "--outer.steps", "80"),
    "dm": (),
    "dsa": (),
}


def _forms() -> list[Row]:
    """Sets in exact tensors, within the range of pixels, and in 8 bits, on six networks.

    A bounded set is shipped in 8 bits, so it has no other form. Rows are in the order in which two
    jobs end together; baselines stand beside the row that is made fastest.
    """
    shared = (
        "--outer.evaluate_every",
        "0",
        "--evaluation.models",
        *FORMS_NETWORKS,
        "--evaluation.epochs",
        "100",
        "--evaluation.num_networks",
        "3",
        "--evaluation.lr_grid",
        "0.03",
        "0.1",
        "--evaluation.full_steps",
        "120",
    )
    rows = []
    for method, bounded in (
        ("mtt", False),
        ("dm", False),
        ("mtt", True),
        ("dsa", False),
        ("dsa", True),
        ("dm", True),
    ):
        first = (method, bounded) == ("dm", False)
        row = Row(
            label=f"{method.upper()}, {'bounded' if bounded else 'exact'}",
            recipe=f"{method}/fashion_mnist_ipc10_small",
            flags=(*FORMS_FLAGS[method], *shared, "--codec.bounded", str(bounded)),
            baselines=("random", "herding", "eight_bit") if first else ("eight_bit",),
            group="IPC 10",
        )
        rows.append(row)
    return rows


UNTIL_DONE = ("--full_seconds", "None")  # networks on the full data take as long as they take
TEACHING = ("infer", "sre2l", "rded")


def _cifar() -> list[Row]:
    """The small cells of CIFAR-10 of every family beside real images of the same protocol.

    Networks are trained half as long as the protocol of methods without teachers says.
    """
    rates = ("--evaluation.lr_grid", "0.01", "0.03", "0.1", "--evaluation.full_steps", "150")
    rows = []
    for ipc in (1, 10):
        for method in ("mtt", "dsa", "rtp", "rat", "at", "dd", "dm"):
            row = Row(
                label=f"{name_of(method)}, IPC {ipc}",
                recipe=f"{method}/cifar10_ipc{ipc}_small",
                flags=("--evaluation.epochs", "150", *rates),
                baselines=("random", "herding", "full") if method == "dm" else (),
                group=f"IPC {ipc}",
                evaluate=UNTIL_DONE,
            )
            rows.append(row)
    for method in TEACHING:
        row = Row(
            label=f"{method.upper()}, IPC 10",
            recipe=f"{method}/cifar10_ipc10_small",
            flags=("--evaluation.num_networks", "3"),
            baselines=("random", "random_soft", "herding", "full") if method == "infer" else (),
            group="IPC 10, static labels",
            evaluate=UNTIL_DONE,
        )
        rows.append(row)
    return rows


DEAR = ("--labels", "dynamic", "--num_networks", "3")  # teachers look at every batch


def _compensator() -> list[Row]:
    """INFER, SRe2L and RDED with the same teachers and students.

    Each has labels that are stored, and labels made on the fly.
    """
    rows = []
    for ipc in (10, 50):
        for method in ("infer", "sre2l", "rded"):
            first = method == "infer"
            row = Row(
                label=f"{method.upper()}, IPC {ipc}, static",
                recipe=f"{method}/fashion_mnist_ipc{ipc}_small",
                baselines=(
                    "hard_labels",
                    *(("random", "random_soft") if first else ()),
                    *(("full",) if first and ipc == 10 else ()),
                ),
                group=f"IPC {ipc}, static",
            )
            dynamic = replace(
                row, label=f"{method.upper()}, IPC {ipc}, dynamic", of=row.label, flags=DEAR,
                baselines=("random_soft",) if first else (), group=f"IPC {ipc}, dynamic",
            )  # fmt: skip
            rows += [row, dynamic]
    return rows


# minutes are about four on one quiet core; the methods of before keep what their tables gave them
BPTT = ("rat", "at", "rtp", "dd", "mtt", "dm")
# as the students of RaT-BPTT and AT-BPTT are trained, also for sets that do not say it
OWN_TRAINING = ("--protocol", "bptt", "--lr", "0.005", "--updates", "30")


def _bptt(ipc: int) -> list[Row]:
    """Back-propagation through training beside MTT, DM and real images, hard labels."""
    half = {1: (), 10: ("--evaluation.epochs", "150")}[ipc]
    group = f"IPC {ipc}"
    rows = []
    for method in BPTT:
        budget = small("mtt", ipc) if method == "mtt" else ()
        row = Row(
            label=f"{name_of(method)}, {group}",
            recipe=f"{method}/fashion_mnist_ipc{ipc}_small",
            flags=(*budget, *half),
            baselines=("random", "herding", "full") if method == "rat" else (),
            group=group,
        )
        rows.append(row)
    for row in rows[:2]:
        own = replace(
            row,
            label=f"{row.label}, own training",
            of=row.label,
            flags=OWN_TRAINING,
            baselines=("random",) if row is rows[0] else (),
            group=f"{group}, own training",
        )
        rows.append(own)
    return rows


# outer steps of about half an hour on one quiet core
LONG = {("rtp", 1): "1300", ("rat", 10): "1400"}


def _bptt_long() -> list[Row]:
    """What did most in four minutes, at each number of images, with half an hour."""
    rows = []
    for (method, ipc), steps in LONG.items():
        half = ("--evaluation.epochs", "150") if ipc == 10 else ()
        row = Row(
            label=f"{name_of(method)}, IPC {ipc}",
            recipe=f"{method}/fashion_mnist_ipc{ipc}_small",
            flags=("--outer.steps", steps, "--outer.evaluate_every", str(int(steps) // 6), *half),
            baselines=("random", "herding"),
            group=f"IPC {ipc}",
        )
        rows.append(row)
    return rows


# of a diffusion model that is trained here: what is sampled, or not
GENERATED = {
    "reconstructed": ("--objective.kind", "reconstructed"),
    "unguided": ("--objective.guidance", "0"),
    "MGD3": ("--objective.fused", "False"),
    "MGD3 + EVLF": (),
    "prototypes (D4M)": ("--objective.kind", "prototypes", "--objective.fused", "False"),
}


def _generative() -> list[Row]:
    """Ten images per class of two datasets; each has one store, in which its parts are trained."""
    rows = []
    for dataset in ("fashion_mnist", "cifar10"):
        for what, flags in GENERATED.items():
            baselines = ("random", "k_means", "full") if what == "reconstructed" else ()
            rows.append(
                Row(
                    label=f"{dataset}, {what}",
                    recipe=f"evlf/{dataset}_ipc10_small",
                    flags=flags,
                    baselines=baselines,
                    group=dataset,
                )
            )
    return rows


TABLES = {
    "generative": _generative,
    "bptt_ipc1": partial(_bptt, 1),
    "bptt_ipc10": partial(_bptt, 10),
    "bptt_long": _bptt_long,
    "trajectory_small": _methods,
    "trajectory_parts": _parts,
    "matching_small": _matching,
    "compensator_small": _compensator,
    "cross_small": _cross,
    "forms_small": _forms,
    "cifar_small": _cifar,
}


def command(threads: int, *args: str) -> str:
    """The output of run.py with these arguments; what it says goes on to the terminal."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "run.py", *args], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"run.py {' '.join(args)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def collect(run: Path, folder: Path, row: Row) -> dict[str, Any]:
    """What a finished run, and the evaluation in `folder`, say of themselves."""
    meta = json.loads((run / "distilled" / "meta.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    cost = meta["distillation"] | {"machine": meta["machine"], "commit": meta["commit"]}
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [
        [e["step"], e["seconds"], e["validation_accuracy"]]
        for e in events
        if e.get("validation_accuracy") is not None
    ]
    said = {
        "row": row.label,
        "outside": forms.outside(run),  # of the range of pixels
        "experts": meta.get("experts"),
        "group": row.group,
        "flags": row.flags,
        "recipe": meta["recipe"]["name"],
    }
    return said | {
        "seed": meta["seed"],
        "distillation": cost,
        "validation": curve,
        "evaluation": evaluation,
    }


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _accuracy(row: dict[str, Any], spread: str = "") -> str:
    """Mean, what is said of its spread, and 95 % interval, in percent."""
    if row["accuracy_mean"] is None:
        return "diverged"
    between = ""
    if row["ci95"]:
        low, high = row["ci95"]
        between = f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * row['accuracy_mean']:.1f}{spread}{between}"


def _ends(row: dict[str, Any]) -> list[float]:
    """The interval.

    Of networks that diverged nothing is known, and of one network it is its accuracy.
    """
    if row["accuracy_mean"] is None:
        return [0.0, 1.0]
    return row["ci95"] or [row["accuracy_mean"]] * 2


def markdown(runs: list[dict[str, Any]]) -> str:
    """One line per row and set.

    A distilled set that does not beat the baselines of its group by more than both intervals is
    marked.
    """
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for run in runs:
        for row in run["evaluation"]["rows"]:
            label, name = run["group"] or run["row"], row["set"]
            if row["set"] in OWN_ROWS:
                label = run["row"]
                if row["set"] not in CONTROLS and not _is_above(row, _rivals(runs, run, row)):
                    name += " **not clearly above the baselines**"
            std = row["accuracy_std"]
            spread = "" if std is None else f" ± {100 * std:.1f}"
            lines.append(_line([label, name, _accuracy(row, spread), *_costs(run, row)]))
    return "".join(lines)


def _rivals(
    runs: list[dict[str, Any]], run: dict[str, Any], row: dict[str, Any]
) -> list[dict[str, Any]]:
    """The baselines of the group of a run, on the network of a row."""
    rivals = []
    for other in runs:
        if other["group"] != run["group"]:
            continue
        for rival in other["evaluation"]["rows"]:
            counts = rival["set"] in RIVALS and rival["accuracy_mean"] is not None
            if counts and rival["model"] == row["model"]:
                rivals.append(rival)
    return rivals


def _is_above(row: dict[str, Any], rivals: list[dict[str, Any]]) -> bool:
    """Whether a row beats others by more than both intervals."""
    return all(_ends(row)[0] > _ends(rival)[1] for rival in rivals)


def _costs(run: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """What an evaluation cost; of a distilled set also its distillation and its experts."""
    cells = [
        str(row["n"]),
        str(row.get("images", "")),
        str(row.get("bytes", "")),
        str(row.get("ledger", {}).get("labels", "")),
        f"{row['lr']:.4g}",
        str(row["steps"]),
        f"{row['seconds'] / 60:.1f} min",
    ]
    if row["set"] != "distilled":
        return [*cells, "-", "-", "-"]
    cost, experts = run["distillation"], run["experts"]
    # the initial images are all that some methods make
    memory = cost["peak_memory_bytes"]
    minutes = (cost["seconds"] + cost.get("initial_seconds", 0)) / 60
    return [
        *cells,
        f"{minutes:.1f} min",
        f"{memory / 1e9:.2f} GB" if memory else "-",  # earlier runs without steps lack it
        f"{experts['seconds'] / 60:.1f} min" if experts else "-",
    ]


def crossed(runs: list[dict[str, Any]]) -> str:
    """One line per set and one column per network, mean and 95 % interval.

    The last column is each set's loss against the network it was made with.
    """
    models = list(dict.fromkeys(row["model"] for run in runs for row in run["evaluation"]["rows"]))
    lines = [_line(["set", *models, "mean over the others"]), _line(["---"] * (len(models) + 2))]
    named = [(_named(run, row), row) for run in runs for row in run["evaluation"]["rows"]]
    labels = list(dict.fromkeys(label for label, _ in named))
    for label in sorted(labels, key=lambda name: name == "full"):  # last
        cells = {row["model"]: row for name, row in named if name == label}
        others = [cells[m]["accuracy_mean"] for m in models[1:]]
        mean = "diverged" if None in others else f"{100 * sum(others) / len(others):.1f}"
        lines.append(_line([label, *(_accuracy(cells[m]) for m in models), mean]))
    return "".join(lines)


def _named(run: dict[str, Any], row: dict[str, Any]) -> str:
    """What a row is called in a table of several runs."""
    if row["set"] == "distilled_8bit":
        return f"{run['row']}, in 8 bits"
    return run["row"] if row["set"] in OWN_ROWS else row["set"]


def plot(path: Path, runs: list[dict[str, Any]]) -> None:
    """Accuracy on the validation split against the time of experts and distillation.

    Each group of rows has a panel.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    groups = list(dict.fromkeys(run["group"] for run in runs))
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(5.5 * len(groups), 4), squeeze=False, layout="constrained"
    )
    for axis, group in zip(axes[0], groups, strict=True):
        for run in (r for r in runs if r["group"] == group):
            before = run["experts"]["seconds"] if run["experts"] else 0.0
            label = run["row"].removesuffix(f", {group}") + (
                " (with its experts)" if before else ""
            )
            axis.plot(
                [before + s for _, s, _ in run["validation"]],
                [100 * a for _, _, a in run["validation"]],
                marker="o",
                markersize=3,
                label=label,
            )
            levels: dict[float, list[str]] = {}  # equal selections share a line
            for row in run["evaluation"]["rows"]:
                if (
                    row["set"] in ("random", "herding", "k_centre", "k_means")
                    and row["accuracy_mean"] is not None
                ):
                    levels.setdefault(100 * row["accuracy_mean"], []).append(row["set"])
            for level, names in levels.items():
                axis.axhline(level, linewidth=0.8, linestyle=":", color="0.6")
                said = f"{', '.join(names)} (test)"
                axis.annotate(
                    said,
                    (0.99, level),
                    xycoords=axis.get_yaxis_transform(),
                    ha="right",
                    va="bottom",
                    fontsize=7,
                    color="0.4",
                )
        axis.set(
            title=group,
            xlabel="seconds",
            ylabel="validation accuracy of one network, %",
            xscale="log",
        )
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=8, loc="best")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def places(name: str, rows: list[Row], row: Row) -> tuple[Path, Path]:
    """Folders of the run and of the evaluation of a row."""
    own = ROOT / "runs" / name / row.folder
    return (
        own
        if not row.of
        else ROOT / "runs" / name / next(r.folder for r in rows if r.label == row.of)
    ), own


def write(name: str, rows: list[Row], said: str) -> None:
    """The table of the rows that are done."""
    runs = [
        collect(*places(name, rows, row), row)
        for row in rows
        if (places(name, rows, row)[1] / "evaluation.json").exists()
    ]
    out = ROOT / "docs" / "results"
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / f"{name}.json", {"command": said, "runs": runs})
    several = any(len({row["model"] for row in run["evaluation"]["rows"]}) > 1 for run in runs)
    text = crossed(runs) if several else markdown(runs)
    if name == "forms_small":
        text += f"\n{forms.summary(runs)}"
    (out / f"{name}.md").write_text(text)
    if several:
        figures.heat_map(out / f"{name}.png", [(run["row"], run["evaluation"]) for run in runs])
    elif runs and all(run["validation"] for run in runs):
        plot(out / f"{name}.png", runs)


def main(args: list[str]) -> None:
    """Run, collect, write."""
    names, asked = [*args], {"--jobs": "1", "--data_root": "", "--cifar10": ""}
    for flag in asked:
        if flag in names:
            place = names.index(flag)
            asked[flag] = names[place + 1]
            del names[place : place + 2]
    if not names or (len(names) == 1 and names[0] not in TABLES):
        sys.exit(
            "usage: python benchmarks/table.py NAME RECIPE [RECIPE ...], or one of "
            f"{', '.join(TABLES)} [--jobs N] [--data_root PATH] [--cifar10 PATH]"
        )
    name, *recipes = names
    rows = [Row(label=recipe, recipe=recipe, baselines=None, group=recipe) for recipe in recipes]
    rows = rows or TABLES[name]()
    jobs = int(asked["--jobs"])
    said = " ".join(["python benchmarks/table.py", *names, "--jobs", str(jobs)])
    where = {"": asked["--data_root"], "cifar10": asked["--cifar10"]}
    run_rows(name, rows, rows, jobs, where, partial(write, name, rows, said))


def run_rows(
    name: str,
    rows: list[Row],
    experts: list[Row],
    jobs: int,
    where: dict[str, str],
    done: Callable[[], None],
) -> None:
    """Make all rows of a table, so many at a time; `done` is called after each of them.

    The experts of the rows `experts` are trained first, those of a store once. `where` is that of
    `located`. What a row has made already is not made again.
    """
    cores = int(runtime.machine(torch.device("cpu"))["cores"])
    threads = max(1, cores // jobs)
    writing = Lock()  # of the result files

    def run(row: Row) -> None:
        make(name, rows, located(row, where), threads)
        with writing:
            done()

    with ThreadPoolExecutor(jobs) as pool:
        here = [located(row, where) for row in experts]
        list(pool.map(partial(train_experts, threads), with_stores(here, threads)))
        list(pool.map(run, [row for row in rows if not row.of]))
        list(pool.map(run, [row for row in rows if row.of]))  # whose sets are there now


def located(row: Row, where: dict[str, str]) -> Row:
    """The row with the flags that say where images lie on this machine, which no result names.

    `where` has the folder of parquet files of a dataset by its name, and that of all others by "".
    """
    if row.of:
        return row
    _, _, dataset = row.recipe.partition("/")
    parquet = where.get(dataset.partition("_ipc")[0], "")
    if parquet:
        flags = ("--data.name", "parquet", "--data.root", str(Path(parquet).resolve()))
    else:
        flags = ("--data.root", where[""]) if where[""] else ()
    return replace(row, flags=(*row.flags, *flags))


def with_stores(rows: list[Row], threads: int) -> list[Row]:
    """A row for each store of experts.

    Rows that share experts must not train them at the same time.
    """
    stores: dict[str, Row] = {}
    for row in rows:
        if row.of:
            continue
        recipe = json.loads(command(threads, "distill", row.recipe, *row.flags, "--print_config"))
        if recipe["buffer"] is not None:
            decides = [recipe["data"], recipe["buffer"], recipe["teachers"]]
            stores.setdefault(json.dumps(decides), row)
    return list(stores.values())


def train_experts(threads: int, row: Row) -> None:
    """The experts of a row."""
    command(threads, "buffer", row.recipe, *row.flags)


def make(name: str, rows: list[Row], row: Row, threads: int) -> None:
    """Distill and evaluate the set of a row, or evaluate the set of another row otherwise."""
    folder, out = (str(path.relative_to(ROOT)) for path in places(name, rows, row))
    flags = [*row.evaluate]
    if row.of:
        flags += [*row.flags, "--out", out]
    else:
        command(threads, "distill", row.recipe, *row.flags, "--out", folder)
    if row.baselines is not None:
        flags += ["--baselines", *row.baselines]
    command(threads, "evaluate", folder, *flags)


if __name__ == "__main__":
    main(sys.argv[1:])
