"""Evaluation as a job: `ray job submit --working-dir . -- python jobs/evaluate.py --config jobs/evaluate-tiny.toml`."""

import sys

from rankray.cli import run_evaluate

if __name__ == "__main__":
    sys.exit(run_evaluate(sys.argv[1:]))
