"""The one exception a user may cause, and the helper that names what they probably meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake, in one sentence: what was set, what it clashes with, what to do.

    The command line exits with 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest ones that do."""
    known = sorted(known)
    near = (
        [k for k in known if name and k.startswith(name)][:12]
        or difflib.get_close_matches(name, known, n=3, cutoff=0.55)
        or known[:12]
    )
    return UserError(f"Unknown {kind} {name!r}; nearest: {', '.join(near)}.")
