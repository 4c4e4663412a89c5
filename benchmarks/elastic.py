"""Do pools follow a cluster that grows and shrinks, and share it well? Models that sleep, on logical GPUs.

python benchmarks/elastic.py follow [--json FILE]        1 -> 4 -> 2 nodes of 4 GPUs while one job runs
python benchmarks/elastic.py nine --gpus 8 16 64         nine pools of unequal cost beside sum(cost) / GPUs
python benchmarks/elastic.py autoscale                   a head alone, nodes brought and given back by Ray's autoscaler
python benchmarks/elastic.py start                       from submit to the first image, part by part

A model that sleeps costs what it says wherever it runs, so what is lost is the pipeline's and the scheduler's. Starting
is a number of its own: on two cores 64 processes import for minutes, and a GPU that waits for its actor does no work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import steady
from PIL import Image
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.cluster_utils import Cluster

from rankray import config
from rankray.config import SynPicConfig
from rankray.synpic import job as synpic

HERE = Path(__file__).parent
ROWS_PER_BLOCK = 4
POOL = {"num_gpus": 1, "num_cpus": 0.01, "max_size": 64}


class Sleeper:
    """A generator and a reward that take `item_s` an item; a picture is a function of its seed alone."""

    def __init__(self, device: str, item_s: float, load_s: float = 0.0) -> None:
        self.item_s = item_s
        time.sleep(load_s)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        time.sleep(self.item_s * len(prompts))
        return [
            Image.fromarray(np.random.default_rng(s).integers(0, 255, (8, 8, 3), dtype=np.uint8))
            for s in seeds
        ]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        time.sleep(self.item_s * len(images))
        return np.array([np.asarray(image).mean() for image in images], np.float32)


@dataclass(frozen=True)
class Costs:
    """Seconds an item of generators, each of `samples` pictures a prompt, and of rewards that score all of them."""

    generators: dict[str, float]
    rewards: dict[str, float]
    samples: int = 1

    @property
    def items(self) -> dict[str, int]:
        """A prompt, by model."""
        drawn = dict.fromkeys(self.generators, self.samples)
        return {**drawn, **dict.fromkeys(self.rewards, sum(drawn.values()))}

    @property
    def item_s(self) -> dict[str, float]:
        return {**self.generators, **self.rewards}

    @property
    def row_s(self) -> float:
        """GPU-seconds of a prompt."""
        return sum(self.item_s[model] * count for model, count in self.items.items())


def settings(
    place: Path,
    name: str,
    costs: Costs,
    rows: int,
    idle: bool = False,
    pools: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> SynPicConfig:
    """A job over `rows` prompts; `idle` models do the same and take no time; `pools` is what differs from `POOL`."""
    prompts = place / f"prompts-{rows}.txt"
    prompts.write_text("\n".join(f"picture {n}" for n in range(rows)))

    def models(found: dict[str, float], **more: Any) -> list[dict[str, Any]]:
        options = {model: {"item_s": 0.0 if idle else item_s} for model, item_s in found.items()}
        model = {"model": "elastic:Sleeper", **more}
        own = {name: {**POOL, **(pools or {}).get(name, {})} for name in options}
        return [{**model, "name": n, "options": option, "pool": own[n]} for n, option in options.items()]

    tables = {
        "prompts": {"path": str(prompts)},
        "generators": models(costs.generators, samples=costs.samples),
        "rewards": models(costs.rewards),
        "output": str(place / name),
        "rehearse": True,
        "execution": {"rows_per_block": ROWS_PER_BLOCK, "report_interval_s": 2.0},
    }
    return config.build(SynPicConfig, config.with_options(tables, changes))


NINE = Costs(
    {"a": 0.90, "b": 0.60, "c": 0.35, "d": 0.25},
    {"r": 0.08, "s": 0.06, "t": 0.05, "u": 0.04, "v": 0.02},
)
"""Four generators and five rewards, 3.1 s a prompt in all."""

TASKS_PER_S = 12
"""What two cores carry beside all else. There are nine tasks a block, so that with more GPUs the models are slower."""


class Watch:
    """What the meter of a job has counted: (seconds, GPU-seconds of work done, items by model), every `every_s`.

    An answer names every block: twice a second of a job of 12,000 blocks, reading them takes two thirds of the driver.
    """

    def __init__(self, output: str, costs: Costs, every_s: float = 0.5) -> None:
        self.costs, self.output, self.every_s = costs, output, every_s
        self.at: list[tuple[float, float, dict[str, int]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.starts: dict[Any, Any] = {}
        self.usage: list[dict[str, Any]] = []

    def __enter__(self) -> Watch:
        self.begin = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        meter = None
        while not self._stop.wait(self.every_s):
            try:
                meter = meter or ray.get_actor(f"synpic {self.output}", namespace="rankray")
                asked = [meter.done.remote(), meter.starts.remote(), meter.snapshot.remote()]
                (_, blocks), self.starts, self.usage = ray.get(asked, timeout=5)
            except (ValueError, AttributeError, ray.exceptions.RayError):  # not there yet, or not whole
                meter = None
                continue
            items: dict[str, int] = {}
            for _, model, block in blocks:
                items[model] = items.get(model, 0) + block.items
            done_s = sum(count * self.costs.item_s[model] for model, count in items.items())
            self.at.append((time.monotonic() - self.begin, done_s, items))

    def rate(self, begin: float, end: float) -> float:
        """GPU-seconds of work done a second between two moments: how many GPUs were at work."""
        inside = [(at, done) for at, done, _ in self.at if begin <= at <= end]
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


@contextmanager
def connected(address: str | None = None, **options: Any) -> Iterator[None]:
    """A driver in the cluster at `address`, or in a Ray of its own."""
    ray.init(address=address or "local", log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


def prepare_nodes() -> None:
    """What nodes inherit: where this file is, and no worker before it is needed, at no lower priority than others."""
    paths = os.pathsep.join((str(HERE), str(HERE.parent)))
    os.environ.update(
        {
            "PYTHONPATH": paths,
            "RAY_prestart_worker_first_driver": "0",
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "disabled",  # or a token of the user's for another cluster is asked for
        }
    )


@contextmanager
def autoscaling(nodes: int, gpus: int, idle_s: float) -> Iterator[str]:
    """The address of a head without GPUs, whose autoscaler brings `nodes` of `gpus` GPUs at most and takes them away.

    Ray's own fake node provider. Ray's `AutoscalingCluster` does the same, but begins and ends with `ray stop`, which
    ends every Ray of the machine, and reads a file that the wheel lacks.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    kinds = {
        "ray.head.default": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": gpus},
            "node_config": {},
            "min_workers": 0,
            "max_workers": nodes,
        },
    }
    provider = {
        "type": "external",
        "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
        **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": address,
    }
    settings_ = {
        "cluster_name": "elastic",
        "max_workers": nodes,
        "provider": provider,
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": idle_s / 60,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("initialization_commands", "setup_commands", "cluster_synced_files")},
        **{f"{kind}_{what}_commands": [] for kind in ("head", "worker") for what in ("setup", "start_ray")},
    }
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
    named = dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), FAKE_HEAD_NODE_ID)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(settings_, file)
        file.flush()
        command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=4", "--num-gpus=0"]
        command += ["--include-dashboard=false", f"--autoscaling-config={file.name}"]
        head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *command[1:]],
            env={**os.environ, **fake, **named},
            stdout=subprocess.DEVNULL,
        )
        try:
            yield address
        finally:
            head.terminate()
            head.wait()
            for pid in _of_cluster(address):
                os.kill(pid, signal.SIGKILL)


def _of_cluster(address: str) -> list[int]:
    """Processes that were started for the cluster at `address`: they have it on their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode().split("\0")
        except OSError:  # it is gone
            continue
        if any(word.endswith(f"={address}") for word in words):
            found.append(int(place.parent.name))
    return found


def autoscale(
    place: Path, nodes: int = 3, gpus: int = 2, idle_s: float = 10, rows: int = 160
) -> dict[str, Any]:
    """A job of two phases on a head alone: how many nodes it has, second by second, until the autoscaler has them back.

    The first phase's pool may have every GPU and the second's those of one node. A pool that no node holds is refused.
    """
    costs = Costs({"a": 0.5}, {"r": 0.5}, samples=2)
    with autoscaling(nodes, gpus, idle_s) as address, connected_when_up(address):
        waits = {"execution.wait_for_nodes_s": 300, "execution.mode": "phases"}
        refused, begin = "", time.monotonic()
        try:
            large = {"a": {"num_gpus": gpus + 1}}
            synpic.run(settings(place, "refused", costs, rows, pools=large, **waits))
        except config.ConfigError as error:
            refused = str(error)
        refused_s = time.monotonic() - begin
        pools = {"a": {"max_size": nodes * gpus}, "r": {"max_size": gpus}}
        job = settings(place, "autoscale", costs, rows, pools=pools, **waits)
        at: list[tuple[float, int]] = []
        begin, stop = time.monotonic(), threading.Event()

        def count() -> None:
            while not stop.wait(1.0):
                alive = sum(node["Alive"] and node["Resources"].get("GPU", 0) > 0 for node in ray.nodes())
                at.append((round(time.monotonic() - begin, 1), alive))

        counting = threading.Thread(target=count, daemon=True)
        counting.start()
        lines: list[tuple[float, str]] = []

        def say(line: str) -> None:
            lines.append((round(time.monotonic() - begin, 1), line))
            print(line, flush=True)

        with Watch(job.output, costs) as watch:
            synpic.run(job, say=say)
        ended = round(time.monotonic() - begin, 1)
        while at[-1][1] and time.monotonic() - begin < ended + 60 + 10 * idle_s:
            time.sleep(1)
        stop.set()
        counting.join()
    changes = [at[0], *(after for before, after in itertools.pairwise(at) if before[1] != after[1])]
    return {
        "nodes": changes,
        "most": max(count for _, count in at),
        "second_phase_at_s": next(at_s for at_s, line in lines if line == "phase: r"),
        "refused": refused,
        "refused_after_s": round(refused_s, 1),
        "ended_at_s": ended,
        "given_back_at_s": at[-1][0] if not at[-1][1] else None,
        "gpu_s": rows * costs.row_s,
        "items": watch.at[-1][2],
    }


@contextmanager
def connected_when_up(address: str, wait_s: float = 180) -> Iterator[None]:
    """`connected`, as soon as the head answers."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            ray.init(address=address, log_to_driver=False)
            break
        except (ConnectionError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(2)
    try:
        yield
    finally:
        ray.shutdown()


def rows_of(output: str) -> dict[str, Any]:
    """prompt_id -> candidates."""
    found = {}
    for file in sorted((Path(output) / "data").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            assert row["prompt_id"] not in found
            found[row["prompt_id"]] = row["candidates"]
    return found


def add_node(cluster: Cluster, tries: int = 5, **resources: int) -> Any:
    """A node that has joined; on a busy machine it may take longer than the half minute that Ray waits for it."""
    for _ in range(tries - 1):
        try:
            return cluster.add_node(**(resources or {"num_cpus": 1, "num_gpus": 2}))
        except Exception as error:  # noqa: BLE001 - Ray raises no narrower one
            print(f"a node did not come up: {error}", flush=True)
    return cluster.add_node(**(resources or {"num_cpus": 1, "num_gpus": 2}))


def follow(place: Path, before_s: float = 20, grown_s: float = 75, after_s: float = 65) -> dict[str, Any]:
    """1 -> 4 -> 2 nodes of 2 GPUs: GPUs at work against GPUs that are there, 30 s after each change and later."""
    costs = Costs({"a": 0.5}, {"r": 0.5}, samples=2)
    rows = int((2 * before_s + 8 * grown_s + 4 * after_s) / costs.row_s)
    cluster = Cluster()
    add_node(cluster, num_cpus=4, num_gpus=0)  # the head
    add_node(cluster)
    try:
        with connected(cluster.address):
            job = settings(place, "follow", costs, rows)
            moments: dict[str, float] = {}
            with Watch(job.output, costs) as watch, ThreadPoolExecutor(1) as jobs:
                running = jobs.submit(synpic.run, job)  # nodes are started by the main thread alone
                while (not watch.at or watch.at[-1][1] == 0) and not running.done():
                    time.sleep(0.5)
                moments["first"] = time.monotonic() - watch.begin
                time.sleep(before_s)
                joined = [add_node(cluster) for _ in range(3)]
                moments["joined"] = time.monotonic() - watch.begin
                time.sleep(grown_s)
                moments["lost"] = time.monotonic() - watch.begin
                for node in joined[:2]:
                    cluster.remove_node(node, allow_graceful=False)
                result = running.result()
                ended = time.monotonic() - watch.begin
            counted = watch.at[-1][2]
            twice = {m: counted[m] - rows * n for m, n in costs.items.items() if counted[m] != rows * n}
            plain = settings(place, "plain", costs, rows, idle=True)
            synpic.run(plain, say=lambda line: None)
            equal = rows_of(result.path) == rows_of(plain.output)
        (first, joined, lost) = (moments[name] for name in ("first", "joined", "lost"))
        table = {
            "1 node, 2 GPUs": (2, watch.rate(first + 5, joined)),
            "4 nodes, 8 GPUs, from 30 s after": (8, watch.rate(joined + 30, lost)),
            "2 nodes, 4 GPUs, from 30 s after": (4, watch.rate(lost + 30, min(ended, lost + after_s * 0.8))),
        }
        return {
            "rows": rows,
            "gpus_at_work": {
                name: {"gpus": gpus, "at_work": round(rate, 2)} for name, (gpus, rate) in table.items()
            },
            "every_5_s": [
                [round(at - first), round(watch.rate(at, at + 5), 1)]
                for at in np.arange(first, ended - 5, 5).tolist()
                if len([1 for t, *_ in watch.at if at <= t <= at + 5]) > 1
            ],
            "joined_at_s": round(joined - first),
            "lost_at_s": round(lost - first),
            "wall_s": round(ended - first),
            "counted_twice": twice,
            "equal_to_undisturbed": equal,
        }
    finally:
        cluster.shutdown()


def nine(place: Path, gpus: int, ideal_s: float) -> dict[str, Any]:
    """Nine pools on `gpus` GPUs: the time beside sum(cost) / GPUs, without starting; speeds from a small job before."""
    tasks_per_s = len(NINE.item_s) * gpus / NINE.row_s / ROWS_PER_BLOCK
    slower = max(1.0, tasks_per_s / TASKS_PER_S)
    costs = Costs(*({m: slower * s for m, s in part.items()} for part in (NINE.generators, NINE.rewards)))
    rows = int(ideal_s * gpus / costs.row_s // ROWS_PER_BLOCK * ROWS_PER_BLOCK)
    with connected(num_cpus=max(4, gpus // 4), num_gpus=gpus, include_dashboard=False):
        pilot = settings(place, f"pilot-{gpus}", costs, 8)
        synpic.run(pilot, say=lambda line: None)
        changes = {"execution.measured": pilot.output}
        job = settings(place, f"nine-{gpus}", costs, rows, **changes)
        lines: list[str] = []
        with Watch(job.output, costs, every_s=10.0) as watch:
            result = synpic.run(job, say=lambda line: (lines.append(line), print(line, flush=True))[0])
        starting_s = sum(sum(found) for found, _ in watch.starts.values())
        wall_s = result.info["throughput"]["wall_s"]
        ideal_s = rows * costs.row_s / gpus
        return {
            "gpus": gpus,
            "rows": rows,
            "row_gpu_s": round(costs.row_s, 2),
            "ideal_s": round(ideal_s, 1),
            "wall_s": round(wall_s, 1),
            "actors": sum(len(found) for found, _ in watch.starts.values()),
            "starting_gpu_s": round(starting_s, 1),
            "starting_s": round(starting_s / gpus, 1),
            "ratio": round((wall_s - starting_s / gpus) / ideal_s, 3),
            "layout": next(line.split("; ", 1)[1] for line in lines if "candidates x" in line),
        }


def start(place: Path) -> dict[str, Any]:
    """From submit to the first image and of each part, on one node: what a job says of its own start."""
    costs = Costs({"a": 0.25, "b": 0.25}, {"r": 0.05}, samples=1)
    begin = time.monotonic()
    with connected(num_cpus=4, num_gpus=4, include_dashboard=False):
        ray_s = time.monotonic() - begin
        job = settings(place, "start", costs, 32)
        tables = job.model_dump(mode="json", exclude_none=True)
        for model, load_s in zip((*tables["generators"], *tables["rewards"]), (2.0, 2.0, 20.0), strict=True):
            model["options"]["load_s"] = load_s
        found = synpic.run(config.build(SynPicConfig, tables)).info["throughput"]["start"]
    return {"ray_s": round(ray_s, 1), **found}


def main() -> None:
    """Measures, prints, and adds to the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["follow", "nine", "autoscale", "start"])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--ideal-s", type=float, default=60.0, help="seconds that nine pools should need")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    prepare_nodes()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if parsed.what == "follow":
            found: Any = follow(place)
        elif parsed.what == "nine":
            found = [nine(place, gpus, parsed.ideal_s) for gpus in parsed.gpus]
        elif parsed.what == "autoscale":
            found = autoscale(place)
        else:
            found = start(place)
    print(json.dumps(found, indent=1))
    if parsed.json is not None:
        known = json.loads(parsed.json.read_text()) if parsed.json.exists() else {}
        parsed.json.write_text(
            json.dumps({**known, parsed.what: {"result": found, **steady.provenance()}}, indent=1)
        )


if __name__ == "__main__":
    main()
