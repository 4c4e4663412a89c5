"""`make rehearse`: the shipped GPU configurations as they are, on logical GPUs and checkpoints of random weights.

    python scripts/rehearse.py [synpic|rankdpo-sdxl|rankdpo-sd3|evaluate ...] [--nodes 8x1] [--place DIRECTORY]

Ray counts GPUs without looking for any, so pools, fractions, phases, waiting, environments, workers and ZeRO are seen
on a machine without one. `rehearsal` is the only place that says what differs from the file: where things lie, how
large models and trainings are, and `rehearse = true`. Kernels, memory and speed are not rehearsed.

Each cluster begins with a head alone, on which every job has to refuse in one line and leave nothing; nodes join when
the first one says that it waits for them. The price: eight workers on two cores, some minutes a training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from rankray import config, store
from rankray.shapes.prompts import prompts as shapes_prompts

ROOT = Path(__file__).resolve().parents[1]
JOBS = ROOT / "jobs"
SHIPPED = ("synpic", "rankdpo-sdxl", "rankdpo-sd3", "evaluate")
READS = {"rankdpo-sdxl": "synpic", "rankdpo-sd3": "synpic", "evaluate": "rankdpo-sdxl"}
"""Whose output a job needs: who names it gets that one before it."""

STORAGE = "/mnt/cluster_storage"
"""Where the shipped files put everything."""

TINY = "~/rankray/tiny"
"""Where the tiny jobs expect what `make tiny` writes."""

MODEL_KEYS = ("source", "height", "width", "steps", "dtype", "options", "models")
"""What of a model's table is taken from the tiny job: weights, and the sizes that go with them."""

KINDS = ("generators", "rewards", "models", "evals", "metrics")

TRAINING: Mapping[str, Any] = {
    "steps": 2,
    "batch_size": 8,
    "checkpoints.every": 1,
    "checkpoints.sample_every": 2,
    "validation.every": 1,
    "validation.min_prompts": 4,
}

SMALLER: Mapping[str, Mapping[str, Any]] = {
    "synpic": {"execution.rows_per_block": 4},  # so that a pool has more than one block of the few prompts
    "rankdpo-sdxl": TRAINING,
    "rankdpo-sd3": TRAINING,
    "evaluate": {
        "prompts.geneval.samples": 2,
        "prompts.dpg.samples": 2,
        "prompts.compbench.samples": 1,
    },
}
"""A file's further changes: a handful of everything."""

PROMPTS = 16
CPUS_A_GPU = 12
"""As large clouds rent A100s: 96 virtual CPUs beside eight."""

HEAD_CPUS = 4
TOO_FEW_WAIT_S = 2.0


def rehearsal(
    name: str, place: Path, weights: Path, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The tables of `jobs/NAME.toml` with what a rehearsal in `place` must change, and then `changes` by dotted key."""
    tables = _moved(config.read_toml(JOBS / f"{name}.toml"), STORAGE, str(place))
    small = _tiny_rows(weights)
    for kind in KINDS:
        if kind in tables:
            tables[kind] = [{**row, **small.get(row["model"], {})} for row in tables[kind]]
    if "model" in tables:
        tables["model"] |= small[tables["model"]["model"]]
    return config.with_options(tables, {"rehearse": True, **SMALLER[name], **(changes or {})})


def _tiny_rows(weights: Path) -> dict[str, dict[str, Any]]:
    """`MODEL_KEYS` of every model that the tiny jobs name, by model; weights are in `weights`."""
    found: dict[str, dict[str, Any]] = {}
    for job in ("synpic-tiny", "evaluate-tiny"):
        tables = _moved(config.read_toml(JOBS / f"{job}.toml"), TINY, str(weights))
        for kind in KINDS:
            for row in tables.get(kind, []):
                found.setdefault(row["model"], {}).update({k: row[k] for k in MODEL_KEYS if k in row})
    return found


def _moved(value: Any, old: str, new: str) -> Any:
    """`value` with `old` at the beginning of every string in it replaced by `new`."""
    if isinstance(value, str):
        return new + value.removeprefix(old) if value.startswith(old) else value
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    return [_moved(item, old, new) for item in value] if isinstance(value, list) else value


def write_prompts(place: Path, count: int = PROMPTS) -> None:
    """The files of prompts that the shipped configurations read, in the benchmarks' formats and our own words."""
    words = shapes_prompts("heldout")[: count + 3]
    (place / "prompts" / "compbench").mkdir(parents=True)
    pq.write_table(pa.table({"caption": words[:count]}), place / "prompts.parquet")
    asked = [
        {"tag": "single_object", "include": [{"class": "bus", "count": 1}], "prompt": "a photo of a bus"},
        {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "a photo of two cups"},
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in asked)
    (place / "prompts" / "evaluation_metadata.jsonl").write_text(lines)
    columns = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
    rows = [f'{n},{word},,{q},{q - 1},entity,whole,entity - whole (it),Is it there?' for n, word in
            enumerate(words[count : count + 3]) for q in (1, 2)]  # fmt: skip
    table = "\n".join([f"{columns},question_natural_language", *rows]) + "\n"
    (place / "prompts" / "dpg_bench.csv").write_text(table)
    files = {
        "color": "a teal bench and a pink kite",
        "shape": "a round clock and a square book",
        "texture": "a metallic cup and a wooden chair",
        "spatial": "a dog on the left of a chair",
        "non_spatial": "a person reads a book",
        "complex": "the red kite was on top of the brown bench",
    }
    for category, prompt in files.items():
        (place / "prompts" / "compbench" / f"{category}_val.txt").write_text(f"{prompt}\n")


@dataclass
class Ended:
    """A job that was run: its exit code, what it printed, and the most GPUs that the cluster had given out at once."""

    code: int
    text: str
    peak_gpus: float


@dataclass
class Rehearsal:
    """Jobs on one logical cluster.

    Attributes:
        nodes, gpus: how many nodes are added, and the GPUs of each.
        changes: further ones of a job's tables, by its name: a smaller rehearsal.
    """

    place: Path
    weights: Path
    nodes: int
    gpus: int
    cluster: Any
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    joined: list[Any] = field(default_factory=list)

    def join(self) -> None:
        """All nodes with GPUs, unless they are there."""
        while len(self.joined) < self.nodes:
            self.joined.append(
                self.cluster.add_node(num_cpus=CPUS_A_GPU * self.gpus, num_gpus=self.gpus, wait=False)
            )

    def leave(self) -> None:
        """The head alone is left."""
        import ray

        while self.joined:
            self.cluster.remove_node(self.joined.pop(), allow_graceful=False)
        while ray.cluster_resources().get("GPU"):
            time.sleep(0.5)

    def tables(self, name: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The rehearsal of `jobs/NAME.toml` here."""
        return rehearsal(name, self.place, self.weights, {**self.changes.get(name, {}), **(more or {})})

    def job(self, name: str, more: Mapping[str, Any] | None = None, late: bool = False) -> Ended:
        """Runs `jobs/NAME.toml`; with `late` the nodes join when it waits for them."""
        file = self.place / f"{name}.toml"
        file.write_text(tomli_w.dumps(self.tables(name, more)))
        script = JOBS / f"{name.partition('-')[0]}.py"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "RAY_ADDRESS": self.cluster.address,
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            "RAY_DEDUP_LOGS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, str(script), "--config", str(file)],
            cwd=self.place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        lines, peak = [], _Peak()
        assert process.stdout is not None
        with peak:
            for line in process.stdout:
                lines.append(line)
                if late and line.startswith("waiting up to"):
                    self.join()
        (self.place / f"{name}.log").write_text("".join(lines))
        return Ended(process.wait(), "".join(lines), peak.gpus)


class _Peak:
    """The most GPUs that Ray has given out at once, looked at twice a second (context manager)."""

    def __init__(self) -> None:
        self.gpus = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        import ray

        while not self._stop.wait(0.5):
            there, free = ray.cluster_resources(), ray.available_resources()
            self.gpus = max(self.gpus, there.get("GPU", 0.0) - free.get("GPU", 0.0))


@contextlib.contextmanager
def logical_cluster(place: Path, weights: Path, nodes: int, gpus: int) -> Iterator[Rehearsal]:
    """A Ray of its own with a head without GPUs, to which nodes are added; other Rays of the machine are left alone."""
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as home:  # sockets' paths are short
        os.environ |= {"RAY_TMPDIR": home, "RAY_prestart_worker_first_driver": "0"}
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": HEAD_CPUS, "num_gpus": 0, "include_dashboard": False},
        )
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            yield Rehearsal(place, weights, nodes, gpus, cluster)
        finally:
            ray.shutdown()
            cluster.shutdown()


def check_pools(tables: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    """A line a pool of a finished dataset: its actors and claims are what the file asked for.

    Raises:
        AssertionError: they are not.
    """
    rows = {row["model"]: row for row in info["cost"]["models"]}
    lines = [f"  layout: {info['layout']}"]
    for choice in (*tables["generators"], *tables["rewards"]):
        pool, row = choice["pool"], rows[choice["model"]]
        claimed = 3600 * row["gpu_hours"] / row["alive_s"]
        assert abs(claimed - pool["num_gpus"]) < 1e-3, f"{choice['model']} claimed {claimed:g} GPUs an actor"
        assert pool["min_size"] <= row["actors"] <= pool["max_size"], f"{choice['model']}: {row['actors']}"
        assert not row["failures"], f"{choice['model']}: {row['failures']} failed"
        lines.append(f"  {choice['model']:<18} {row['actors']} actors x {claimed:g} GPU")
    return lines


def check_training(place: Path, workers: int, ended: Ended) -> list[str]:
    """What a finished run says of itself: all workers trained from the first step, each with a GPU of its own.

    Raises:
        AssertionError: they did not.
    """
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    info = store.read_json(f"{place}/run.json", store.filesystem(str(place))[0])
    assert {line["workers"] for line in lines} == {workers}, [line["workers"] for line in lines]
    assert ended.peak_gpus >= workers, f"{ended.peak_gpus:g} GPUs were given out, not {workers}"
    assert info["zero_stage"] == 2
    assert info["reference"] != "precomputed" or "reference errors" in ended.text
    assert (place / "pipeline" / "model_index.json").exists()
    drawn = len(list((place / "samples").rglob("*.*")))
    assert drawn, "no grid was drawn"
    return [
        f"  {len(lines)} steps, {workers} workers x 1 GPU, ZeRO 2; {drawn} grids; the pipeline is written"
    ]


def check_job(name: str, on: Rehearsal) -> Ended:
    """`jobs/NAME.toml` on the cluster does what it says; prints what was seen.

    Raises:
        AssertionError: something is not as the file says.
    """
    begin_s = time.monotonic()
    ended = on.job(name, late=True)
    assert ended.code == 0, f"{name} ended with {ended.code}:\n{ended.text[-4000:]}"
    tables = on.tables(name)
    output = Path(tables["output"])
    if name == "synpic":
        found = check_pools(tables, json.loads((output / "dataset.json").read_text()))
    elif name == "evaluate":
        sets = sorted((output / "sets").glob("*/*/dataset.json"))
        assert len(sets) == len(tables["models"]) * len(tables["prompts"]), sets
        found = []
        for place in sets:
            info = json.loads(place.read_text())
            found += [f" {place.parent.relative_to(output)}", *check_pools(_asked(tables, info), info)]
    else:
        found = check_training(output, tables["workers"]["count"], ended)
    took = f"{name}: {time.monotonic() - begin_s:.0f} s, {ended.peak_gpus:g} GPUs given out at once"
    print("\n".join([took, *found]), flush=True)
    return ended


def _asked(tables: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """The models of one set of an evaluation as Syn-Pic's tables: who drew, and who judged."""
    scorers = {row["name"] for row in info["rewards"]}
    judges = [row for row in (*tables["evals"], *tables["metrics"]) if row["model"] in scorers]
    drawing = {**tables["models"][0], "model": info["generators"][0]["name"]}
    return {"generators": [drawing], "rewards": judges}


def check_too_few(name: str, on: Rehearsal) -> None:
    """On the head alone, `jobs/NAME.toml` ends with one line, exit code 2, and nothing at its output.

    Raises:
        AssertionError: it does not.
    """
    output = on.place / f"too-few-{name}"
    waits = "workers" if name.startswith("rankdpo") else "execution"
    ended = on.job(name, {"output": str(output), f"{waits}.wait_for_nodes_s": TOO_FEW_WAIT_S})
    last = ended.text.strip().splitlines()[-1]
    assert ended.code == 2, f"{name} ended with {ended.code}:\n{ended.text[-4000:]}"
    assert last.startswith(f"{name.partition('-')[0]}: "), last
    assert "GPU" in last, last
    assert "Traceback" not in ended.text
    assert not output.exists(), f"{output} was begun"
    print(f"{name} without GPUs: {last}", flush=True)


def due(names: Sequence[str]) -> list[str]:
    """`names` and what they read, each once, in the order in which they can run."""
    found: set[str] = set()
    for name in names:
        chain = [name]
        while chain[-1] in READS:
            chain.append(READS[chain[-1]])
        found.update(chain)
    return [name for name in SHIPPED if name in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Rehearses the files that are named; 1 at the first thing that is not as its file says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], *SHIPPED], metavar="NAME", help=", ".join(SHIPPED))
    parser.add_argument("--nodes", default="8x1", metavar="NxG", help="N nodes of G GPUs; 8x1 by default")
    parser.add_argument("--weights", default=TINY, help="where `make tiny` wrote")
    parser.add_argument("--place", help="a new directory to keep; a temporary one by default")
    options = parser.parse_args(argv)
    nodes, gpus = map(int, options.nodes.split("x"))
    weights = Path(options.weights).expanduser().absolute()
    with contextlib.ExitStack() as stack:
        place = Path(options.place or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        write_prompts(place)
        on = stack.enter_context(logical_cluster(place, weights, nodes, gpus))
        try:
            check_too_few("synpic", on)
            chosen = due(options.names or SHIPPED)
            for name in chosen:
                check_job(name, on)
            on.leave()
            for name in chosen:
                check_too_few(name, on)
        except AssertionError as error:
            print(f"rehearse: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
