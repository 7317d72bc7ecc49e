"""The command line of a checkout: python run.py COMMAND; see ddengine/commands."""

import sys

from ddengine.commands import main

if __name__ == "__main__":
    sys.exit(main())
