"""Which codec is worth its bytes? Sets of equal bytes and hard labels, in every codec.

Every row has as many updates as every other, the plain set and real images among them. Beside each
coded set stand random real images and those of a coreset (herding) in the same codec. The same
command resumes.

    python benchmarks/equal_bytes.py screening     all codecs under DM, one distillation, n = 3
    python benchmarks/equal_bytes.py final         the four best under DM and MTT, three budgets, 3
                                                   distillations of seeds that chose nothing,
                                                   n = 5; after the screening
    python benchmarks/equal_bytes.py final PART    one method and budget of that, dm-ipc1:f32 etc.
    python benchmarks/equal_bytes.py cifar         two codecs and plain images on CIFAR-10, width 64
    python benchmarks/equal_bytes.py table         what is there, written again
    ... --jobs 2                                   rows at a time
    ... --data_root PATH, --cifar10 PATH           where Fashion-MNIST and CIFAR-10 (parquet) lie
    ... --tiny                                     the same in minutes; no figure says anything

Runs go to runs/equal_bytes_NAME; JSON, table with text, and picture to
docs/results/equal_bytes_NAME.*. Rows that the JSON holds are not made again, whatever has changed
since, so that a table can be made on one machine after another; those that are taken out of it are,
and without the file all. What of the screening went on is chosen once, by test accuracy, and stored
in runs/equal_bytes_final/chosen.json.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import equal_bytes_told as told
import table
from table import EXPERTS, ROOT, Row

from ddengine.system import files
from synth.catalogue import find

SHARED = (
    "--outer.evaluate_every", "0", "--evaluation.updates", "200", "--evaluation.batch", "128",
    "--evaluation.lr_grid", "0.01", "0.03", "0.1", "--evaluation.full_steps", "300",
)  # fmt: skip
# of plain sets; of coded ones herding asks for its images in the codec too
BASELINES = {"plain": ("random", "equal_bytes", "herding"), "plain in bytes": ("random", "herding")}
BOUNDED = ("--codec.bounded", "True")
BITS = {bits: ("--codec.bits", str(bits)) for bits in (2, 3, 4, 8)}
NUM_BEST = 4
PLAIN = "plain"

# name: recipe it is made of, its flags
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    PLAIN: (PLAIN, ()),
    "plain in bytes": (PLAIN, BOUNDED),
    **{f"quantised, {bits} bits": ("quantised", flags) for bits, flags in BITS.items()},
    "reduced": ("reduced", ()),
    "palettes": ("palettes", ()),
    "gaussians": ("gaussians", ()),
    "siren": ("siren", ()),
    "fred": ("fred", ()),
    "speed": ("speed", ()),
    "speed, dense while learned": ("speed", ("--codec.sparse_while_learned", "False")),
    "haba": ("haba", ()),
    "linba": ("linba", ()),
}
# in a quarter of the bytes; None: the parts that all classes share take more than that
IN_FEW_BYTES: dict[str, tuple[str, ...] | None] = {
    PLAIN: BOUNDED,
    "plain in bytes": None,  # which is what plain is there
    "quantised, 8 bits": None,
    "linba": ("--codec.bases", "4"),
    "haba": None,
}
BUDGETS = ("ipc1:f32", "ipc1:u8", "ipc10:f32")
METHODS = ("dm", "mtt")
# students see 32 examples at a step, so that a step of every codec takes as long
OF_METHOD = {
    "dm": (),
    "mtt": (
        *EXPERTS, "--outer.steps", "120", "--objective.inner_steps", "20",
        "--objective.window.high", "4", "--objective.batch", "32",
    ),
}  # fmt: skip
CIFAR = ("--model", "convnet-d3-w64-in", "--objective.real_batch", "64", "--outer.steps", "400")
# enlarged digits, because a test on as few images takes a thirtieth
TINY = (
    "--model", "convnet-d2-w8-in", "--outer.steps", "2", "--evaluation.updates", "2",
    "--evaluation.num_networks", "3", "--evaluation.lr_grid", "0.03",
    "--evaluation.full_steps", "2", "--data.name", "digits", "--data.limit", "None",
)  # fmt: skip
TINY_MTT = ("--buffer.num_experts", "2", "--buffer.epochs", "5", "--objective.inner_steps", "2")
FITTED = ("gaussians", "siren", "speed")  # codecs with codec.fit_steps
# of these, where every draw of a control is fitted too; the recipes say 1000 and 2000
FIT_STEPS = {
    ("gaussians", "ipc1"): "300", ("gaussians", "ipc10"): "60", ("siren", "ipc10"): "500",
}  # fmt: skip
FINAL_SEEDS = (1, 2, 3)  # by that of the screening, 0, the codecs were chosen


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a row of these tables is."""

    form: str  # of FORMS
    method: str = "dm"
    budget: str = "ipc1:f32"
    seed: int = 0
    dataset: str = "fashion_mnist"
    num_networks: int = 3
    controls: bool = True  # whether real images are evaluated beside it

    @property
    def fit_steps(self) -> str | None:
        """The steps of its codec's fits where they are fewer than its recipe says."""
        codec, _ = FORMS[self.form]
        return FIT_STEPS.get((codec, self.budget.partition(":")[0]))

    @property
    def part(self) -> str:
        """Method and budget, by which a long table is made in parts."""
        return f"{self.method}-{self.budget}"

    def row(self, *, tiny: bool) -> Row:
        """The distillation, and its evaluation with the controls."""
        codec, flags = FORMS[self.form]
        if self.budget == "ipc1:u8":
            flags = IN_FEW_BYTES.get(self.form) or flags
        if self.fit_steps is not None:
            flags = (*flags, "--codec.fit_steps", self.fit_steps)
        of_dataset = CIFAR if self.dataset == "cifar10" else ()
        given = (
            *SHARED, "--evaluation.num_networks", str(self.num_networks), "--budget", self.budget,
            *OF_METHOD[self.method], *of_dataset, *flags, "--seed", str(self.seed),
        )  # fmt: skip
        if tiny:
            given = in_place_of(given, self._tiny())
        baselines = ()
        if self.controls:
            baselines = BASELINES.get(self.form, ("herding",))
        return Row(
            label=f"{self.method.upper()}, {self.form}, {self.budget}, seed {self.seed}",
            recipe=f"{self.method}/{self.dataset}_ipc1_small",
            flags=(*self._coded(codec), *given),
            baselines=baselines,
            group=self.part,
            evaluate=(*table.UNTIL_DONE, "--seed", str(self.seed)),
        )

    def _coded(self, codec: str) -> tuple[str, ...]:
        """Flags that put a codec and its learning rates into the plain recipe."""
        if codec == PLAIN:
            return ()
        recipe = f"{self.method}/fashion_mnist_ipc1_{codec}_small"
        return ("--take", f"codec={recipe}", "--take", f"outer.optim={recipe}")

    def _tiny(self) -> tuple[str, ...]:
        """Flags of a row that takes seconds."""
        size = "32" if self.dataset == "cifar10" else "28"
        flags = (*TINY, "--data.size", size, size)
        if self.method == "mtt":
            flags += TINY_MTT
        if FORMS[self.form][0] in FITTED:
            flags += ("--codec.fit_steps", "2")
        return flags


def in_place_of(flags: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Flags, of which some are replaced, because each may stand once."""
    replaced = {word for word in others if word.startswith("--")}
    kept = []
    keeps = True
    for word in flags:
        if word.startswith("--"):
            keeps = word not in replaced
        if keeps:
            kept.append(word)
    return (*kept, *others)


# The cells of the tables.


def screening() -> list[Cell]:
    """Every codec under DM in the bytes of an image of a class."""
    return [Cell(form=form) for form in FORMS]


def final(forms: Sequence[str], part: str | None = None) -> list[Cell]:
    """The best codecs and plain images, three distillations each, in an order of what is dear."""
    cells = []
    for budget in BUDGETS:
        fitting = forms
        if budget == "ipc1:u8":
            fitting = [form for form in forms if IN_FEW_BYTES.get(form, ()) is not None]
        for method in METHODS:
            for form in (PLAIN, *fitting):
                for seed in FINAL_SEEDS:
                    cell = Cell(
                        form=form, method=method, budget=budget, seed=seed, num_networks=5,
                        controls=seed == FINAL_SEEDS[0],
                    )  # fmt: skip
                    cells.append(cell)
    return [cell for cell in cells if part in (None, cell.part)]


def cifar(forms: Sequence[str]) -> list[Cell]:
    """Two codecs and plain images on CIFAR-10, by DM."""
    return [Cell(form=form, dataset="cifar10") for form in (PLAIN, *forms)]


def chosen(folder: Path, screened: Path) -> list[str]:
    """The forms that did best in the screening, best first, each codec once; chosen once."""
    path = folder / "chosen.json"
    if path.is_file():
        return json.loads(path.read_text())["forms"]
    if not screened.is_file():
        sys.exit(f"{screened} is not there; run the screening first.")
    content = json.loads(screened.read_text())
    runs = content["runs"]
    num = content.get("rows", len(screening()))
    if len(runs) < num:
        sys.exit(f"{screened} has {len(runs)} of {num} rows; let the screening end.")
    best: dict[str, str] = {}
    for point in sorted(told.points(runs), key=lambda point: -point.mean):
        codec, _ = FORMS[point.form]
        if point.form != PLAIN:
            best.setdefault(codec, point.form)
    forms = list(best.values())
    files.make_folder(folder)
    files.write_json(path, {"screening": screened.name, "forms": forms})
    return forms


def of_cifar(forms: Sequence[str]) -> list[str]:
    """Of forms, best first, the quantised one and the best of others."""
    quantised = [form for form in forms if FORMS[form][0] == "quantised"]
    others = [form for form in forms if FORMS[form][0] not in ("quantised", PLAIN)]
    return [*quantised[:1], *others[:1]]


# Running and writing.


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a table's runs and results go."""

    name: str  # screening, final or cifar
    tiny: bool

    @property
    def runs(self) -> str:
        """The folder of its runs below runs/."""
        return f"equal_bytes_{self.name}{'-tiny' if self.tiny else ''}"

    @property
    def results(self) -> Path:
        """The path of its result files, without their endings."""
        folder = ROOT / "runs" / self.runs if self.tiny else ROOT / "docs" / "results"
        return folder / f"equal_bytes_{self.name}"


def cells_of(place: Place, part: str | None = None) -> list[Cell]:
    """The cells of a table, or of a part of it."""
    if place.name == "screening":
        return screening()
    screened = Place(name="screening", tiny=place.tiny)
    folder = ROOT / "runs" / Place(name="final", tiny=place.tiny).runs
    forms = chosen(folder, screened.results.with_suffix(".json"))
    if place.name == "cifar":
        return cifar(of_cifar(forms))
    return final(forms[:NUM_BEST], part)


def fewer_fits(cells: Sequence[Cell]) -> list[str]:
    """A sentence on the codecs that are fitted in fewer steps than their recipes say."""
    fits = []
    for cell in cells:
        if cell.fit_steps is not None:
            codec: Any = find(f"dm/fashion_mnist_ipc1_{FORMS[cell.form][0]}_small").codec
            ipc = cell.budget.partition(":")[0]
            fits.append(f"{cell.form} at {ipc} in {cell.fit_steps} of {codec.fit_steps}")
    if not fits:
        return []
    said = "Fitted in fewer steps than their recipes say, because every draw of a control is too: "
    return [f"{said}{'; '.join(dict.fromkeys(fits))}."]


def held(place: Place) -> dict[Cell, dict[str, Any]]:
    """What the JSON holds of each cell that is done."""
    path = place.results.with_suffix(".json")
    if not path.is_file():
        return {}
    return {Cell(**run["cell"]): run for run in json.loads(path.read_text())["runs"]}


def write(place: Place) -> None:
    """JSON, table with text, and picture of the rows that are done, if any is."""
    cells = cells_of(place)
    rows = [cell.row(tiny=place.tiny) for cell in cells]
    before = held(place)
    runs: list[dict[str, Any]] = []
    for cell, row in zip(cells, rows, strict=True):
        folders = table.places(place.runs, rows, row)
        if (folders[1] / "evaluation.json").is_file():
            runs.append(table.collect(*folders, row) | {"cell": asdict(cell)})
        elif cell in before:
            runs.append(before[cell])
    if not runs:
        print(f"No row of {place.name} is done; run it first.")
        return
    said = f"python benchmarks/equal_bytes.py {place.name} --jobs 2"
    files.make_folder(place.results.parent)
    files.write_json(
        place.results.with_suffix(".json"), {"command": said, "rows": len(rows), "runs": runs}
    )
    text = told.text(runs, len(rows), fewer_fits(cells))
    files.write_text(place.results.with_suffix(".md"), text)
    told.plot(place.results.with_suffix(".png"), runs)


def run(place: Place, part: str | None, jobs: int, where: Mapping[str, str]) -> None:
    """Make a table, or a part of it."""
    cells = cells_of(place, part)
    if not cells:
        parts = [f"{method}-{budget}" for budget in BUDGETS for method in METHODS]
        sys.exit(f"no part {part!r}; parts are {', '.join(parts)}")
    before = held(place)
    left = [cell for cell in cells if cell not in before]
    rows = [cell.row(tiny=place.tiny) for cell in left]
    follow = [row for cell, row in zip(left, rows, strict=True) if cell.method == "mtt"]
    table.run_rows(place.runs, rows, follow[:1], jobs, dict(where), partial(write, place))


def main(args: list[str]) -> None:
    """Run a table, or write what is there."""
    words, asked = [*args], {"--jobs": "1", "--data_root": "", "--cifar10": ""}
    for flag in asked:
        if flag in words:
            at = words.index(flag)
            asked[flag] = words[at + 1]
            del words[at : at + 2]
    tiny = "--tiny" in words
    name, *parts = [word for word in words if word != "--tiny"] or [""]
    if name not in ("screening", "final", "cifar", "table") or len(parts) > (name == "final"):
        sys.exit(__doc__)
    if name == "table":
        for one in ("screening", "final", "cifar"):
            place = Place(name=one, tiny=tiny)
            if (ROOT / "runs" / place.runs).is_dir() or held(place):
                write(place)
        return
    where = {"": asked["--data_root"], "cifar10": asked["--cifar10"]}
    run(Place(name=name, tiny=tiny), next(iter(parts), None), int(asked["--jobs"]), where)


if __name__ == "__main__":
    main(sys.argv[1:])
