"""Cite."""

from ddengine.commands.options import options_of, print_config
from ddengine.system import log
from synth.cite import bibtex


def main(args: list[str]) -> None:
    """Print the BibTeX entries of what a recipe uses, as they are, so that they can be sent to a
    file.
    """
    options = options_of("cite", args)
    if options.print_config:
        return print_config(options.recipe)
    log.console.print(bibtex(options.recipe), end="", emoji=False)
