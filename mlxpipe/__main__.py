"""`python -m mlxpipe`."""

import sys

from mlxpipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
