"""Pages of the documentation that lie at the top of the repository: results, changes, contributing.

Their links are relative to the top; here they become relative to docs/. What is no part of the
documentation, such as a program in benchmarks/, becomes plain text. Pages of docs/ link to them as
they lie in a checkout.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parent.parent
PAGES = {"RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md"}
PAGES["CONTRIBUTING.md"] = "contributing.md"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def target(address: str) -> str | None:
    """Where a link at the top leads to within docs/; None for what is no part of it."""
    path, hash_, anchor = address.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return address
    if path in PAGES:
        return PAGES[path] + hash_ + anchor
    if path.startswith("docs/"):
        return path.removeprefix("docs/") + hash_ + anchor
    return None


def moved(match: re.Match[str]) -> str:
    """A link of a page at the top, as it must be within docs/."""
    picture, text, address = match.groups()
    place = target(address)
    if place is None:
        return text
    return f"{picture}[{text}]({place})"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page of docs/, whose links lead up to pages of the top where it is read in a checkout."""
    for name, place in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({place}")
    return markdown


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the top."""
    for name, place in PAGES.items():
        if (TOP / name).is_file():
            text = LINK.sub(moved, (TOP / name).read_text(encoding="utf-8"))
            files.append(File.generated(config, place, content=text))
    return files
