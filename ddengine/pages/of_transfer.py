"""The table of transfer.json, for a terminal and for a page, and the notes below it."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from ddengine.evaluation.tables import interval_of, percent
from ddengine.types import Facts, Row

HEADS = ("data", "images", "way", "start", "accuracy %", "95 %", "to none", "p")
LEFT = ("data", "way", "start", "network")
GROUPS = ("data", "images", "way")  # by which rows lie together
LONGEST_NAME = 9  # characters of a dataset's name in a line of the terminal
NOT_IN_TERMINAL = ("95 %", "p")  # for which 80 characters have no room


def heads(content: Facts) -> tuple[str, ...]:
    """The heads of the columns; with that of the network where there are several."""
    if len(content["models"]) == 1:
        return HEADS
    return (*GROUPS, "network", *HEADS[len(GROUPS) :])


def lines(content: Facts) -> list[list[str]]:
    """The cells of every row."""
    several = len(content["models"]) > 1
    made = []
    for row in content["rows"]:
        cells = [
            row["data"],
            _images_of(row),
            row["way"],
            row["set"],
            _accuracy(row),
            _ends(row.get("ci95")),
            _difference(row),
            _p_value(row),
        ]
        if several:
            cells.insert(len(GROUPS), row["model"])
        made.append(cells)
    return made


def table(content: Facts, title: str) -> Table:
    """transfer.json as a table for the terminal; `notes` belong below it."""
    if len(content["models"]) == 1:
        title += f", {content['models'][0]}"
    shown = Table(title=title, title_justify="left")
    columns = _columns(content)
    for head, cells in columns.items():
        justify = "left" if head in LEFT else "right"
        width = None
        if head == "data":
            width = min(LONGEST_NAME, max(map(len, cells)))
        shown.add_column(head, justify=justify, no_wrap=not width, overflow="fold", min_width=width)
    before: dict[str, str] = {}
    for cells in zip(*columns.values(), strict=True):
        row = dict(zip(columns, cells, strict=True))
        if before and row["data"] != before["data"]:
            shown.add_section()
        shown.add_row(*_not_again(row, before))
        before = row
    return shown


def _columns(content: Facts) -> dict[str, tuple[str, ...]]:
    """The columns that a terminal has room for; a number stands for each network, as notes say."""
    models: Sequence[str] = content["models"]
    columns = {}
    for head, *cells in zip(heads(content), *lines(content), strict=True):
        if head == "network":
            columns["#"] = tuple(str(models.index(model) + 1) for model in cells)
        elif head not in NOT_IN_TERMINAL:
            columns[head] = tuple(map(_short, cells))
    return columns


def _short(cell: str) -> str:
    """A cell as a terminal has room for it."""
    return cell.replace(" ± ", "±").replace(", ", ",").replace("finetune", "tune")


def _not_again(cells: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """The cells of a row, empty as long as they say what those of the row before said."""
    told: list[str] = []
    same = True
    for head, cell in cells.items():
        same = same and head in GROUPS and before.get(head) == cell
        told.append("" if same else cell)
    return told


def _images_of(row: Row) -> str:
    """How many images networks were trained on."""
    if row["shots"] == "all":
        return str(row["images"])
    return f"{row['shots']}/class"


def _p_value(row: Row) -> str:
    if row.get("p") is None:
        return ""
    return f"{row['p']:.2g}"


def _accuracy(row: Row) -> str:
    """Mean and sample standard deviation, in percent."""
    mean = percent(row["accuracy_mean"])
    if row["accuracy_std"] is None:
        return mean
    return f"{mean} ± {100 * row['accuracy_std']:.1f}"


def _ends(ci95: Sequence[float] | None) -> str:
    if not ci95:
        return ""
    return f"{100 * ci95[0]:.1f}-{100 * ci95[1]:.1f}"


def _difference(row: Row) -> str:
    """The mean difference to new networks in points of percent, with its interval."""
    if row.get("difference") is None:
        return ""
    said = f"{100 * row['difference']:+.1f}"
    if row.get("difference_ci95"):
        low, high = row["difference_ci95"]
        said += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return said


def notes(content: Facts) -> list[str]:
    """What rows start from, what was done to images, how rates were chosen, what is missing."""
    made = [f"{name}: {start['said']}" for name, start in content["starts"].items()]
    made += [*content["missing"], *content.get("warnings", ())]
    if len(content["models"]) > 1:
        for number, model in enumerate(content["models"], start=1):
            made.append(f"network {number}: {model}")
    for name, facts in content["datasets"].items():
        if facts["stored_shape"] != facts["shape"]:
            made.append(_brought(name, facts))
    return made + _choosing(content) + _of_numbers(content)


def _of_numbers(content: Facts) -> list[str]:
    """How intervals are made, and networks that diverged."""
    made = []
    if any(row.get("ci95") for row in content["rows"]):
        made.append(
            f"95 % intervals are of the mean over networks, by {interval_of(content)}; to none: "
            "the difference to new networks in points of percent, paired by seed, with the 95 % "
            "interval of Student's t, and p-values not corrected for their number"
        )
    for row in content["rows"]:
        if row["diverged"]:
            made.append(
                f"warning: {row['diverged']} of {row['diverged'] + row['n']} networks from "
                f"{row['set']} on {row['data']} diverged and do not count"
            )
    return made


def _brought(name: str, facts: Facts) -> str:
    """How the images of a dataset were brought into the form that the networks take."""
    channels, height, width = facts["shape"]
    said = f"{name}: images of several sizes were resized to {height}x{width}"
    if facts["stored_shape"] is not None:
        _, *sides = facts["stored_shape"]
        said = f"{name}: images of {sides[0]}x{sides[1]} were resized to {height}x{width}"
    if facts["channels"] != channels:
        said += f", {_colour(facts['channels'])} made {_colour(channels)}"
    return said


def _colour(channels: int) -> str:
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def _choosing(content: Facts) -> list[str]:
    """How rates and weight decays were chosen."""
    without = []
    datasets: Mapping[str, Facts] = content["datasets"]
    for name, facts in datasets.items():
        if not facts["num_images"]["validation"]:
            without.append(name)
    made = []
    if len(without) < len(datasets):
        made.append(
            "the rate of fine-tuning and the weight decay of a probe are chosen for each row by "
            "one more network on the validation split of the dataset, from the same grids for all"
        )
    if without:
        made.append(
            f"no validation split of {', '.join(without)}: all rows there have the usual rate and "
            "weight decay"
        )
    return made
