"""What the owner of a set says of it, its title and its licence, in the card of an export."""

import re
from dataclasses import dataclass

from ddengine.artefact.card import UNKNOWN
from ddengine.artefact.markdown import plain
from ddengine.system.errors import UserError

# the licences that the Hub knows and that are given to data; any other is "other" with a name
HUB_LICENCES = (
    "agpl-3.0",
    "apache-2.0",
    "bsd-2-clause",
    "bsd-3-clause",
    "c-uda",
    "cc0-1.0",
    *(f"cc-by-{version}" for version in ("2.0", "2.5", "3.0", "4.0")),
    *(f"cc-by-sa-{version}" for version in ("3.0", "4.0")),
    *(f"cc-by-nc-{version}" for version in ("2.0", "3.0", "4.0")),
    *(f"cc-by-nc-sa-{version}" for version in ("2.0", "3.0", "4.0")),
    *(f"cc-by-nc-nd-{version}" for version in ("3.0", "4.0")),
    "cc-by-nd-4.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "cdla-sharing-1.0",
    "etalab-2.0",
    "gpl-2.0",
    "gpl-3.0",
    "lgpl-3.0",
    "mit",
    "mpl-2.0",
    "odbl",
    "odc-by",
    "openrail",
    "pddl",
    "unknown",
    "unlicense",
)


@dataclass(frozen=True)
class OwnersWords:
    """A title and a licence; None leaves what the card of the set says."""

    title: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        for flag, words in (("title", self.title), ("license", self.license)):
            if words is not None and not words.strip():
                raise UserError(f"--{flag} is empty; give it words, or leave it out.")

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return self != OwnersWords()

    def front_matter(self) -> dict[str, str]:
        """What the YAML of the card says of it, in the words of the Hub."""
        said = {} if self.title is None else {"pretty_name": self.title}
        if self.license is None:
            return said
        name = "-".join(self.license.lower().split())
        if name in HUB_LICENCES:
            return said | {"license": name}
        return said | {"license": "other", "license_name": name}

    def on_card(self, text: str) -> str:
        """The card with this title as heading, and this licence under Licence."""
        if self.title is not None:
            heading = f"# {plain(self.title)}"
            text = re.sub("^# .*$", lambda match: heading, text, count=1, flags=re.MULTILINE)
        if self.license is not None:
            stated = f"Who exported the set states its licence: {plain(self.license)}."
            text = text.replace(UNKNOWN[1], "")
            text = text.replace("## Licence\n\n", f"## Licence\n\n{stated} ")
        return text
