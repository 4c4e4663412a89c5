"""A larger dataset from a finished one: `... python jobs/extend.py --config FILE --reuse DATASET --output NEW`."""

import sys

from rankray.cli import run_extend

if __name__ == "__main__":
    sys.exit(run_extend(sys.argv[1:]))
