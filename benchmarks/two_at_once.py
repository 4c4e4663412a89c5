"""What comes of two or three who want the same output at the same moment, on a local disk and in a bucket.

    python benchmarks/two_at_once.py                    writers of the mark: processes that own, write 24 rows, publish
    python benchmarks/two_at_once.py --jobs own         Syn-Pic jobs, each with a Ray of its own
    python benchmarks/two_at_once.py --jobs shared      Syn-Pic jobs on one Ray

Of each start: how many worked, what the others said, and whether the dataset is the undisturbed one row for row and
nothing stands beside it. The bucket is moto's, on this machine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from provenance import provenance

from rankray.config import ConfigError
from rankray.data import owner, place
from rankray.shapes.prompts import prompts

ROOT = Path(__file__).parents[1]
TOLD = re.compile(r"another job is at work on \S+: \w+ on \S+, pid \d+, since [-\d]+ [:\d]+ UTC; wait for it")


def write(output: str, go: str) -> int:
    """A process that makes a dataset of 24 rows as soon as the file `go` is there, if the output is nobody else's."""
    found = place.open_output(output, in_job=False)

    def make() -> dict[str, Any]:
        place.claim(found, "dataset.json", {"seed": 1})
        found.make("data")
        for number in range(6):
            rows = pa.table({"prompt_id": [f"{number}-{row}" for row in range(4)]})
            pq.write_table(rows, found.at("data", f"{os.getpid()}-{number}.parquet"), filesystem=found.fs)
            time.sleep(0.1)
        return {"identity": place.claimed(found), "rows": 24}

    print("ready", flush=True)
    while not Path(go).exists():
        time.sleep(0.001)
    try:
        owner.once(found, "writer", "dataset.json", lambda: _complete(found), make)
    except ConfigError as error:
        print(error)
        return 2
    return 0


def _complete(output: place.Output) -> dict[str, Any] | None:
    return place.complete(output, "dataset.json", {"seed": 1}, print)


def words(jobs: str, output: str, folder: Path) -> list[str]:
    """The command that makes the dataset at `output`."""
    if jobs == "none":
        return [sys.executable, __file__, "--write", output, str(folder / "go")]
    models = ['[{model="trivial:Rendered", samples=2}]', '[{model="trivial:Zero"}]']
    options = [
        "--prompts.path",
        str(folder / "prompts.txt"),
        "--generators",
        models[0],
        "--rewards",
        models[1],
    ]
    script = str(ROOT / "jobs" / "synpic.py")
    return [sys.executable, script, "--output", output, *options, "--execution.rows_per_block", "4"]


def at_once(jobs: str, count: int, output: str, folder: Path) -> list[str]:
    """What came of `count` processes that want `output` at the same moment: worked, complete, told, or what else."""
    (folder / "go").unlink(missing_ok=True)
    paths = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(words(jobs, output, folder), env=environment, **pipes) for _ in range(count)]
    if jobs == "none":
        for process in running:
            process.stdout.readline()  # type: ignore[union-attr]
    (folder / "go").touch()
    return [came(process.communicate()[0], process.returncode) for process in running]


def came(text: str, code: int) -> str:
    """What a process's last words and exit code mean."""
    last = (text.splitlines() or [""])[-1]
    if "Traceback" in text:
        return f"traceback: {last}"
    if code == 2:
        return "told" if TOLD.search(last) else f"exit 2: {last}"
    if code:
        return f"exit {code}: {last}"
    return "complete already" if "complete already" in text else "worked"


def dataset(output: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows by prompt id, what stands in the output)."""
    found = place.open_output(output, in_job=False)
    rows = [
        row for file in found.files("data") for row in pq.read_table(file, filesystem=found.fs).to_pylist()
    ]
    there = found.fs.get_file_info(pafs.FileSelector(found.path))
    return sorted(rows, key=lambda row: row["prompt_id"]), sorted(str(info.base_name) for info in there)


@contextlib.contextmanager
def bucket() -> Iterator[str]:
    """An S3 server on this machine, whose place all processes find in their environment; a bucket's URI."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    fs, _ = pafs.FileSystem.from_uri("s3://two-at-once?allow_bucket_creation=true")
    fs.create_dir("two-at-once")
    yield "s3://two-at-once"
    server.stop()


@contextlib.contextmanager
def ray_of(jobs: str) -> Iterator[None]:
    """The Ray that jobs join: each its own, or one for all."""
    if jobs != "shared":
        os.environ["RAY_ADDRESS"] = "local"
        yield
        return
    from ray.cluster_utils import Cluster

    paths = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    os.environ |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}  # what its workers see
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    yield
    cluster.shutdown()


def measure(jobs: str, counts: Sequence[tuple[int, int]], home: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each (starts, processes a start) at the place `home`."""
    undisturbed = f"{home}/undisturbed"
    assert at_once(jobs, 1, undisturbed, folder) == ["worked"]
    found = []
    for starts, count in counts:
        tally: collections.Counter[str] = collections.Counter()
        one = same = 0
        for start in range(starts):
            output = f"{home}/{count}-{start}"
            words_of = at_once(jobs, count, output, folder)
            tally.update(words_of)
            one += words_of.count("worked") == 1
            same += dataset(output) == dataset(undisturbed)
            print(f"{output}: {', '.join(words_of)}", flush=True)
        row = {"jobs": jobs, "place": home.partition("://")[0] if "://" in home else "local disk"}
        found.append(
            row | {"at_once": count, "starts": starts, "one_worked": one, "same": same, "came": dict(tally)}
        )
    return found


def main() -> None:
    """Measures, prints the table, writes it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs", choices=("none", "own", "shared"), default="none", help="real jobs, and their Ray"
    )
    parser.add_argument("--two", type=int, default=10, help="starts of two")
    parser.add_argument("--three", type=int, default=10, help="starts of three")
    parser.add_argument("--places", nargs="+", choices=("local", "s3"), default=("local", "s3"))
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        raise SystemExit(write(*options.write))
    rows, counts = [], [(options.two, 2), (options.three, 3)]
    with tempfile.TemporaryDirectory() as home, bucket() as uri, ray_of(options.jobs):
        folder = Path(home)
        (folder / "prompts.txt").write_text("\n".join(prompts("train")[:12]) + "\n")
        for name in options.places:
            rows += measure(options.jobs, counts, uri if name == "s3" else f"{home}/o", folder)
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
