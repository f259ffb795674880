"""``python -m loomgate`` is the command ``loomgate``; nothing else lives here."""

import sys

from loomgate.cli import main

if __name__ == "__main__":
    sys.exit(main())
