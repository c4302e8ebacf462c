"""python -m extract …: `coview extract …`, from the checkout's folder."""

import sys

from base.commands import main

if __name__ == "__main__":
    sys.exit(main("coview.cli:COMMANDS", ["extract", *sys.argv[1:]]))
