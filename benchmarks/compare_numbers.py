"""What differs between two files of same_numbers.py; the exit code is 1 where anything does.

    python benchmarks/compare_numbers.py before.json after.json --common --ignore said complained

--ignore leaves out paths in which one of these words is a part: said and complained are printed
lines, text is that of load.py and cards, .png the digests of pictures.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def leaves(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with the keys that lead to it; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*where, str(key)))
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*where, str(i)))
    else:
        yield where, value


def shown(value: Any) -> str:
    """A value on a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:297] + "..."


def main() -> int:
    """Print the differences and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--ignore", nargs="*", default=[])
    parser.add_argument("--most", type=int, default=200, help="differences that are printed")
    parser.add_argument("--common", action="store_true", help="only cells that both have")
    options = parser.parse_args()
    first, second = (json.loads(path.read_text()) for path in (options.a, options.b))
    if options.common:
        first = {cell: first[cell] for cell in first if cell in second}
        second = {cell: second[cell] for cell in first}
    one, two = dict(leaves(first)), dict(leaves(second))
    different = []
    for where in {**one, **two}:
        path = " > ".join(where)
        if one.get(where, ...) != two.get(where, ...) and not any(
            w in path for w in options.ignore
        ):
            different.append((path, shown(one.get(where)), shown(two.get(where))))
    for path, a, b in different[: options.most]:
        print(f"differs: {path}\n   A {a}\n   B {b}")
    print(f"{len(one)} and {len(two)} values compared, {len(different)} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
