"""python -m report …: `coview report …`, from the checkout's folder."""

import sys

from base.commands import main

if __name__ == "__main__":
    sys.exit(main("coview.cli:COMMANDS", ["report", *sys.argv[1:]]))
