"""Syn-Pic as a job: `ray job submit --working-dir . -- python jobs/synpic.py --config jobs/synpic-shapes.toml`."""

import sys

from rankray.cli import run_synpic

if __name__ == "__main__":
    sys.exit(run_synpic(sys.argv[1:]))
