"""`python -m luthier` is the command line; torchrun starts it so."""

import sys

from luthier.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
