"""The table of docs/reliability.md, of the results of the scripts in this folder.

python benchmarks/faults/table.py            # writes it into the page
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
PAGE = HERE.parent.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
# what stands behind a low line tells results of one script apart
NAMES = (
    "kills",
    "signals",
    "pairs",
    "flips",
    "full",
    "ranks",
    "strangers",
    "overhead",
)
HEAD = (
    "| fault | stage or file | times tried | lost | wrong | said so | note | script |\n"
    + "|---" * 8
)
COLUMNS = ("fault", "stage", "tried", "lost", "wrong", "noticed", "note")


def main() -> None:
    lines = [HEAD + "|"]
    for name in NAMES:
        path = RESULTS / f"faults_{name}.json"
        if not path.is_file():
            continue
        for row in json.loads(path.read_text())["rows"]:
            cells = [str(row[column]) for column in COLUMNS]
            lines.append(
                "| " + " | ".join([*cells, f"`faults/{name.partition('_')[0]}.py`"]) + " |"
            )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
