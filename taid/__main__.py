"""python -m taid: the command `taid`."""

import sys

from taid.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
