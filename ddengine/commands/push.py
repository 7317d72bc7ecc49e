"""`push SET --repo user/name`: a set as a dataset of the Hugging Face Hub."""

from dataclasses import dataclass

import ddengine
from ddengine.commands.on_set import OnPaths
from ddengine.system import log, program
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Flags of push."""

    repo: str | None = None  # user/name: the dataset of the Hugging Face Hub to write
    private: bool = False  # a repository that is made is for its owners only
    title: str | None = None  # of the card
    license: str | None = None  # of the set, for the card, such as cc-by-4.0


COMMAND = OnPaths("push", PushOptions)


def main(args: list[str]) -> None:
    """Upload a run, a distilled folder, or one that export wrote with --format hub, to the Hub."""
    path, flags = COMMAND.path(args)
    options = COMMAND.parse(path, flags)
    if options.repo is None:
        raise UserError(
            f"{program.name()} push needs the repository to write; name it with --repo user/name."
        )
    address = ddengine.push(
        path,
        options.repo,
        private=options.private,
        title=options.title,
        license=options.license,
    )
    log.say(f"uploaded to {address}")
