"""`python -m lmlab` is `lmlab`."""

import sys

from lmlab.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
