"""Values of meta.json as Markdown and YAML that say the same whatever is in the values."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from ddengine.system.visible import visible
from ddengine.types import Facts

Rows = Sequence[tuple[str, Any]]  # (name, value); a value None is not known

TEMPLATES = Path(__file__).parent / "templates"


def at(value: Any, *keys: str) -> Any:
    """What lies under nested keys; None where anything on the way is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def quoted(text: str) -> str:
    """A string as a YAML (and JSON) scalar in double quotes, whatever is in it.

    It cannot hold the mark of a section either, because no "<" is left in it.
    """
    scalar = json.dumps(text, ensure_ascii=False)
    return re.sub(
        "[<\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]",
        lambda match: f"\\u{ord(match[0]):04x}",
        scalar,
    )


def plain(value: Any) -> str:
    """A value as text of one line, in which Markdown and HTML see nothing of theirs."""
    line = " ".join(visible(str(value)).encode(errors="replace").decode().split())
    escaped = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(rows: Rows) -> str:
    """A Markdown table of names and of the values that are known."""
    lines = ["| | |", "|---|---|"]
    lines += [row((name, plain(value))) for name, value in rows if value is not None]
    return "\n".join(lines)


def fenced(text: str, language: str) -> str:
    """A block of code, within more backticks than there are in a row in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, 1 + longest)
    return f"{fence}{language}\n{text}\n{fence}"


def words(value: Any) -> str | None:
    """The names and values of a mapping in one line; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    return ", ".join(f"{name} {part}" for name, part in value.items())


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; values pass through `plain` or `quoted`
        finalize=lambda value: visible(value) if isinstance(value, str) else value,
    )
    environment.filters |= {"plain": plain, "quoted": quoted, "table": table, "fenced": fenced}
    return environment


def render(template: str, facts: Facts) -> str:
    """The text that a file of templates/ makes of facts; a fact that it names must be there."""
    return _environment().get_template(template).render(facts)
