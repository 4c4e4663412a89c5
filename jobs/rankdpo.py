"""RankDPO as a job: `ray job submit --working-dir . -- python jobs/rankdpo.py --config jobs/rankdpo-shapes.toml`."""

import sys

from rankray.cli import run_rankdpo

if __name__ == "__main__":
    sys.exit(run_rankdpo(sys.argv[1:]))
