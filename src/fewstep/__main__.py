"""`python -m fewstep` is the command `fewstep`; `accelerate launch -m fewstep train ...` runs it on several processes."""

import sys

from fewstep.cli import main

if __name__ == "__main__":
    sys.exit(main())
