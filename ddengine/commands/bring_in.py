"""Import."""

from ddengine.commands.options import options_of
from ddengine.recipe import (
    Recipe,
)  # fmt: skip
from ddengine.system import program
from ddengine.system.errors import UserError


def main(args: list[str]) -> None:
    """Bring files of other programs in: experts and networks as a store, images as a distilled
    folder. What a file is, its content says.
    """
    from buffers import imports

    options: imports.ImportOptions[Recipe] = options_of("import", args, flags=imports.ImportOptions)
    if not options.files:
        raise UserError(
            f"{program.name()} import needs the files to import; name them with --files."
        )
    imports.bring_in(options)
