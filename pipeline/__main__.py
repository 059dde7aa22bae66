"""`python -m pipeline COMMAND`: the tools around runs, see pipeline/cli."""

import sys

from pipeline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
