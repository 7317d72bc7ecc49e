"""The command line: python -m ddengine COMMAND; see ddengine/commands."""

import sys

from ddengine.commands import main

if __name__ == "__main__":
    sys.exit(main())
