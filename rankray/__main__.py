"""`python -m rankray`: what `rankray` is, where a job's interpreter is known and its PATH is not."""

import sys

from rankray.verbs import main

if __name__ == "__main__":
    sys.exit(main())
