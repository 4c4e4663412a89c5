"""Ablations as a job: `ray job submit --working-dir . -- python jobs/ablate.py --config jobs/ablate-shapes.toml`."""

import sys

from rankray.cli import run_ablate

if __name__ == "__main__":
    sys.exit(run_ablate(sys.argv[1:]))
