"""What every test shares: no usage reports, no other Ray's address, one thread a process, no deadlines."""

import os

from hypothesis import settings

# Before anything imports ray or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
    os.environ.pop(name, None)

# A first call imports what it needs, and other processes share the cores: time is no property of ours here.
settings.register_profile("rankray", deadline=None)
settings.load_profile("rankray")
