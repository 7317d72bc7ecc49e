"""`cite RECIPE [flags]`: BibTeX of a method, its parts and the dataset."""

from ddengine.commands.options import options_of, print_config
from ddengine.system import log
from synth.cite import bibtex


def main(args: list[str]) -> None:
    """The command. The entries are printed as they are, so that they can be sent to a file."""
    options = options_of("cite", args)
    if options.print_config:
        return print_config(options.recipe)
    log.console.print(bibtex(options.recipe), end="", emoji=False)
