"""Algorithm 3 as a job: `ray job submit --working-dir . -- python jobs/align.py --config jobs/align-shapes.toml`."""

import sys

from rankray.cli import run_align

if __name__ == "__main__":
    sys.exit(run_align(sys.argv[1:]))
