"""Push."""

from dataclasses import dataclass

from ddengine.artefact.hub import push
from ddengine.commands import cli
from ddengine.commands.options import SET, paths_of
from ddengine.system import log, program
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Flags of push."""

    repo: str | None = None  # user/name: the dataset of the Hugging Face Hub to write
    private: bool = False  # a repository that is made is for its owners only


def main(args: list[str]) -> None:
    """Upload a run, a distilled folder, or one that export wrote with --format hub, to the Hub."""
    path = paths_of(args[:1], "push", SET)[0]
    options = cli.parse(PushOptions, args[1:], PushOptions(), f"push {path}")
    if options.repo is None:
        raise UserError(
            f"{program.name()} push needs the repository to write; name it with --repo user/name."
        )
    log.say(f"uploaded to {push(path, options.repo, private=options.private)}")
