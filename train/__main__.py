"""python -m train …: `coview train …`, from the checkout's folder."""

import sys

from base.commands import main

if __name__ == "__main__":
    sys.exit(main("coview.cli:COMMANDS", ["train", *sys.argv[1:]]))
