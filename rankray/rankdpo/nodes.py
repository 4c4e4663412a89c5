"""Whether the nodes hold what a training claims, now or after waiting: a claim that nothing can meet waits for ever.

Ray Data and Ray Train wait without a word for GPUs that no node has; here it is one line before a weight is read. What
is asked is what must run at once: a pool's least size with reading and writing beside it, or all workers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rankray.cluster import seats
from rankray.cluster.seats import IO_CPUS, Claim, Node
from rankray.config import ConfigError
from rankray.config.rankdpo import EncodingConfig, WorkersConfig
from rankray.words import Say

ASK_EVERY_S = 2.0


def workers(config: WorkersConfig) -> list[Claim]:
    """What Ray Train's workers claim, the least number of them."""
    return [Claim("workers", config.count, _needs(config.num_cpus, config.num_gpus))]


def encoders(config: EncodingConfig) -> list[Claim]:
    """What the encoding pool claims at its least size; reading and writing stand beside it."""
    beside = {"CPU": seats.CHECKPOINT_CPUS + seats.IO_TASKS * IO_CPUS}
    own = Claim("encoders", config.min_size, _needs(config.num_cpus, config.num_gpus))
    return [own, *([Claim("reading and writing", 1, beside)] if config.mode == "store" else [])]


def require(wanted: Sequence[Claim], wait_s: float, say: Say) -> None:
    """Returns once all of `wanted` have room at once; asks an autoscaler for it, and waits up to `wait_s`.

    Raises:
        ConfigError: they have none.
    """
    nodes = seats.alive_nodes()
    short = shortage(wanted, nodes)
    if short and wait_s > 0:
        say(f"waiting up to {wait_s:g} s for nodes: {short}")
        bundles = [claim.needs for claim in wanted for _ in range(claim.count)]
        deadline = time.monotonic() + wait_s
        try:
            while short and time.monotonic() < deadline:
                seats.ask_for(bundles)
                if seats.answer(bundles).refused:
                    break
                time.sleep(min(ASK_EVERY_S, wait_s))
                nodes = seats.alive_nodes()
                short = shortage(wanted, nodes)
        finally:
            seats.ask_for([])  # a request that stands would keep nodes for good
    if short:
        first = wanted[0].owner
        mend = {
            "workers": "lower workers.count, workers.num_gpus or workers.num_cpus",
            "encoders": "lower encoding.min_size, encoding.num_gpus or encoding.num_cpus",
        }[first]
        raise ConfigError(f"{short}; {mend}, add nodes, or raise workers.wait_for_nodes_s to wait for them")


def shortage(wanted: Sequence[Claim], nodes: Sequence[Node]) -> str:
    """What is missing, such as "8 workers need 8 GPU, and the cluster has 4"; empty where all find room."""
    total = seats.totals(nodes)
    for claim in wanted:
        for name, each in claim.needs.items():
            if claim.count * each > total.get(name, 0.0) + seats.SLACK:
                return (
                    f"{claim.count} {claim.owner} need {claim.count * each:g} {name}, and the cluster has "
                    f"{total.get(name, 0.0):g}"
                )
    placed, missing = seats.place(wanted, nodes)
    if missing is None:
        return ""
    held = sum(seat.claim is missing for seat in placed)
    share = " and ".join(f"{amount:g} {name}" for name, amount in missing.needs.items())
    return (
        f"{missing.count} {missing.owner} need {share} each, and beside the rest the nodes hold {held} such"
    )


def _needs(num_cpus: float, num_gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("GPU", num_gpus), ("CPU", num_cpus)) if amount}
