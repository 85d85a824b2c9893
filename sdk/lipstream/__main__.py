"""Makes `python -m lipstream` the same as the command `lipstream`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
