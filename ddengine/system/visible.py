"""Text that may come from a file, so that it shows what it holds and does nothing else."""

import re

# control characters but for tab and newline; marks that have no width, turn lines around or end
# them; halves of characters
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\ufff9-\ufffb]"
)


def visible(text: str) -> str:
    """The text, with what moves the cursor of a terminal or cannot be seen as Python writes it."""
    return UNSEEN.sub(lambda unseen: ascii(unseen[0])[1:-1], text)
